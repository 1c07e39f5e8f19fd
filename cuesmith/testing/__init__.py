"""For authors of compilers: the conformance suite, and models, providers, programs and examples to test with.

    from cuesmith.testing import CompilerConformance

    class TestMine(CompilerConformance):
        small_options = {"width": 2, "steps": 1}

        def make(self, metric, **options):
            return Mine(metric, **options)

What stands where:

- `conformance`: the suite, `CompilerConformance`; `ran`: what one compile of it did, and what holds of any.
- `fakes`: `Engine`, a model in this process that answers by a rule and keeps what it was sent; `Server`, a provider on
  the loopback interface that can go down or refuse the key; optimizers that write what they should not; students,
  examples and a metric.
- `purity`: what in a compiler's source would be no pure function of its run's effects.

The suite needs pytest, which `cuesmith` itself does not. Source: ours.
"""

from cuesmith.testing.conformance import CompilerConformance
from cuesmith.testing.fakes import Engine, Sent, Server
from cuesmith.testing.purity import source_faults, sources_of
from cuesmith.testing.ran import Ran

__all__ = ["CompilerConformance", "Engine", "Ran", "Sent", "Server", "source_faults", "sources_of"]
