"""PromptAgent: strategic planning over prompts by Monte-Carlo tree search. Source: 2310.16427 and its public code
(XinyuanWangCS/PromptAgent); in beam form as 2402.02101 section 3 compares it."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import dspy

from cuesmith.signatures import ReflectOnFailures, ReflectOnSuccesses, RewriteInstruction
from cuesmith.teleprompters.prompt_search import BeamSearch, SearchOptions
from cuesmith.teleprompters.runtime.candidate import Candidate, distinct
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.evidence import shortened
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores, rank
from cuesmith.teleprompters.search.scene import Scene, text_field
from cuesmith.teleprompters.search.setting import Setting


class PromptAgent(BeamSearch):
    """Plan a path of rewrites: reflect on fresh errors, rewrite with the path so far in view, follow what pays.

    Each new prompt comes from a batch of its own: the parent is run on it, every error is examined, and the prompt
    is rewritten from the reflection and the trajectory of prompts that led to it. A batch without errors is asked
    why it went well.

    Its native form is Monte-Carlo tree search with the public code's numbers: 12 iterations; a node is chosen by UCT,
    expanded by `width` rewrites, and the best child followed. A path ends for good where it is deep enough or has
    fallen behind; at a node that beats all that paths have come to so far, only this iteration ends, and a later one
    may go on from there. Rewards are back-propagated. It returns the best node of the path with the highest mean
    reward. Batches go through the training examples epoch by epoch, each in a new order. Every node is fully scored,
    so there is no racing in it.

    Args:
        metric: As for `Compiler`.
        batch: Training examples run and reflected on for each new prompt.
        depth: Rewrites on a path at most. Native form only, as all that follow.
        min_depth: Rewrites on a path before it may end otherwise than by `depth`.
        exploration: The weight of exploration in UCT.
        **options: As for `PromptSearch`; in the native form `steps` are iterations and `width` rewrites of a node.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    NATIVE = Setting(width=3, branch=1, steps=12, initial=0, minibatch=5)

    def __init__(
        self,
        metric: MetricFunction,
        *,
        batch: int = 5,
        depth: int = 8,
        min_depth: int = 2,
        exploration: float = 2.5,
        **options: Unpack[SearchOptions],
    ) -> None:
        super().__init__(metric, **options)
        self.batch = whole("batch", batch)
        self.depth = whole("depth", depth)
        self.min_depth = whole("min_depth", min_depth, least=0)
        if isinstance(exploration, bool) or not isinstance(exploration, int | float) or not exploration >= 0:
            raise ValueError(f"exploration={exploration!r} must be a number of at least 0")
        self.exploration = exploration

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return `branch` rewrites of each kept candidate, each from its own batch."""
        pairs = [(one.candidate, scene.minibatch(None, one.candidate.id, j, size=self.batch))
                 for one in beam for j in range(self.setting.branch)]  # fmt: skip
        made = await asyncio.gather(
            *(
                self._rewrite(scene, ran, scene.lineage(ran.candidate), k % self.setting.branch)
                for k, ran in enumerate(await scene.try_each(pairs))
            )
        )
        return [child for child in made if child is not None]

    async def native(self, scene: Scene) -> Candidate:
        """Monte-Carlo tree search."""
        run = scene.run
        root = Node((await run.score([run.baseline], run.select))[0])
        await scene.record([root.scores])
        paths: list[list[Node]] = []
        numbers, highest = itertools.count(), root.reward
        for iteration in range(1, self.setting.steps + 1):
            here, path, ahead = scene.at(iteration), descend(root, self.exploration), False
            while not path[-1].stops and not ahead:
                await self._expand(here, root, path, numbers)
                if not path[-1].children:
                    break
                path.append(max(path[-1].children, key=lambda node: node.reward))
                ahead = path[-1].depth > self.min_depth and path[-1].reward > highest
                highest = max(highest, path[-1].reward)
            back_propagate(path)
            paths.append(path)
            await here.record(rank([node.scores for node in root.walk()])[: self.setting.width])
        return best_of(paths or [[root]]).candidate

    async def _expand(self, scene: Scene, root: Node, path: Sequence[Node], numbers: Iterator[int]) -> None:
        """Give the last node of a path its children, each scored on the selection examples.

        Args:
            scene: The iteration.
            root: The tree.
            path: From the root to the node; one that has children already keeps them.
            numbers: Of the batches, counted over the whole search.
        """
        node = path[-1]
        if node.children:
            return
        lineage = [each.candidate for each in path]
        batches = {number: self._batch(scene, number) for number in itertools.islice(numbers, self.setting.width)}
        ran = await scene.try_each([(node.candidate, batch) for batch in batches.values()])
        made = await asyncio.gather(
            *(
                self._rewrite(scene, one, lineage, number, depth=node.depth)
                for number, one in zip(batches, ran, strict=True)
            )
        )
        children = distinct(child for child in made if child is not None)
        for scores in await scene.run.score(children, scene.run.select):
            child = Node(scores, node)
            behind = child.reward < (root.reward + node.reward) / 2
            child.stops = child.depth >= self.depth or (child.depth > self.min_depth and behind)
            node.children.append(child)

    def _batch(self, scene: Scene, number: int) -> list[dspy.Example]:
        """Return the batch of that number: epochs of all examples, each in its own order, cut into batches."""
        examples = scene.material.evidence
        epoch, place = divmod(number, math.ceil(len(examples) / self.batch))
        order = scene.run.rng("epoch", epoch).sample(examples, len(examples))
        return order[place * self.batch :][: self.batch]

    async def _rewrite(
        self, scene: Scene, ran: Scores, lineage: Sequence[Candidate], j: int, depth: int = 0
    ) -> Candidate | None:
        parent, batch, name = ran.candidate, ran.examples, scene.turn(ran, ahead=depth)
        text, salt = parent.prompts[name].instructions, f"step {scene.step}, {j}"
        failed = [failure.shown() for failure in scene.failures(ran, name)]
        solved = [] if failed else scene.book.shown(name, batch)
        if failed:
            replies = await scene.ask(ReflectOnFailures, name, {"instruction": text, "failures": failed}, salt=salt)
        else:
            replies = await scene.ask(ReflectOnSuccesses, name, {"instruction": text, "successes": solved}, salt=salt)
        reflection = shortened(text_field(replies[0], "reflection")) if replies else ""
        if not reflection:
            return None
        trajectory = list(dict.fromkeys(each.prompts[name].instructions for each in lineage))
        request = {
            "instruction": text,
            "evidence": failed or solved,
            "reflection": reflection,
            "trajectory": trajectory,
        }
        replies = await scene.ask(RewriteInstruction, name, request, salt=salt)
        if not replies:
            return None
        return scene.child(parent, name, text_field(replies[0], "rewritten_instruction"), "rewrite", batch)

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: 2 calls and a batch of program runs a rewrite."""
        return Plan(2 * self.setting.branch, self.setting.branch * min(self.batch, n_train))

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Native, with at most width * depth * iterations rewrites: 2 optimizer calls, a batch and the selection examples
        each; training scores and a minibatch of the student come on top. Else as for `PromptSearch`.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        if self.form != "native":
            return super().plan(n_predictors, n_select, n_train)
        s = self.setting
        rewrites = s.width * self.depth * s.steps
        runs = rewrites * (min(self.batch, n_train) + n_select) + n_select
        runs += (s.steps + 1) * s.watched(n_train) + min(s.minibatch, n_train)
        return Plan(self.dataset_summary + 2 * rewrites, runs)


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
        """The score; 0 where nothing could be scored."""
        return 0.0 if math.isnan(self.scores.score) else self.scores.score

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
