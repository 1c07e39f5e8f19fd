"""A tree of candidates searched by UCT. Source: PromptAgent (2310.16427) and its public code; pure, no effects here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.outcomes import Scores


@dataclass(eq=False)
class Node:
    """A candidate in the tree.

    Attributes:
        scores: Its scores on the selection examples; their mean is the node's reward.
        parent: The node it was rewritten from; None for the root.
        stops: Whether every path that reaches it ends here.
        children: Its rewrites.
        returns: One entry a back-propagation: the rewards from here to the end of the path, summed.
    """

    scores: Scores
    parent: Node | None = None
    stops: bool = False
    children: list[Node] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    @property
    def candidate(self) -> Candidate:
        """The candidate."""
        return self.scores.candidate

    @property
    def reward(self) -> float:
        """The mean score; 0 where nothing could be scored."""
        return self.scores.mean if self.scores.n else 0.0

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def value(self) -> float:
        """The mean return; the reward as long as there is none."""
        return math.fsum(self.returns) / len(self.returns) if self.returns else self.reward

    def uct(self, exploration: float) -> float:
        """The index that a path is chosen by: value + exploration * sqrt(ln(visits of the parent + 1) / visits)."""
        above = len(self.parent.returns) if self.parent else 0
        return self.value + exploration * math.sqrt(math.log(above + 1) / max(1, len(self.returns)))

    def walk(self) -> Iterator[Node]:
        """Yield the node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def descend(root: Node, exploration: float) -> list[Node]:
    """Return the path from the root to a node without children, or one that stops, by the highest index."""
    path = [root]
    while path[-1].children and not path[-1].stops:
        path.append(max(path[-1].children, key=lambda node: node.uct(exploration)))
    return path


def back_propagate(path: Sequence[Node]) -> None:
    """Add to every node of a path the sum of the rewards from it to the path's end."""
    total = 0.0
    for node in reversed(path):
        total += node.reward
        node.returns.append(total)


def best_of(paths: Sequence[Sequence[Node]]) -> Node:
    """Return the node of highest reward on the path of highest mean reward; ties: the later path, the earlier node."""
    best = max(reversed(paths), key=lambda path: math.fsum(node.reward for node in path) / len(path))
    return max(best, key=lambda node: node.reward)
