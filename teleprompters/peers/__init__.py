"""dspy's own optimizers under Cuesmith's budget, split, journal and record: another name swaps one for another."""

from cuesmith.teleprompters.peers.bootstrap import Bootstrap
from cuesmith.teleprompters.peers.copro import COPRO
from cuesmith.teleprompters.peers.gepa import GEPA
from cuesmith.teleprompters.peers.mipro import MIPRO
from cuesmith.teleprompters.peers.peer import Peer
from cuesmith.teleprompters.peers.simba import SIMBA

__all__ = ["COPRO", "GEPA", "MIPRO", "SIMBA", "Bootstrap", "Peer"]
