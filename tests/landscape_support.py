"""Seeded landscapes on which searches are compared with references: a run whose two effects are arithmetic.

A text's quality follows from the text and the landscape's seed alone, and the k-th text written from another one has
a name of its own. Two searches that ask the same way get the same texts, and one step that differs shows.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import dspy

from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import StepRecord, Trial
from cuesmith.teleprompters.runtime.effects import seeded
from cuesmith.teleprompters.runtime.events import Stream
from cuesmith.teleprompters.runtime.ledger import Spent
from cuesmith.teleprompters.runtime.outcomes import Scored, Scores, Step
from cuesmith.teleprompters.runtime.outcomes import mean as mean_of
from cuesmith.teleprompters.runtime.remarks import Seen
from cuesmith.teleprompters.runtime.run import Run

ROOT = "P"
"""The student's instructions."""


def child(text: str, k: int) -> str:
    """Return the name of the k-th text that is written from another one."""
    return f"{text}.{k}"


@dataclass(frozen=True)
class Landscape:
    """How good texts are.

    Attributes:
        seed: Of everything in it.
        start: The student's quality.
        drift: How much better than its parent a text is on average.
        spread: The standard deviation of that.
        kept: Share of the parent's quality that a text starts from; the rest is `start`.
        steps: Qualities are whole numbers of 1/steps: few of them make ties.
    """

    seed: int
    start: float = 0.3
    drift: float = 0.02
    spread: float = 0.1
    kept: float = 0.85
    steps: int = 32

    def quality(self, text: str) -> float:
        """Return the quality of a text: from 0 to 1."""
        return round(self._exact(text) * self.steps) / self.steps

    def right(self, text: str, question: str) -> bool:
        """Return whether a program with this text answers a question right: as often as its quality says."""
        return seeded(self.seed, text, question).random() < self.quality(text)

    @cache  # noqa: B019  landscapes are few and small
    def _exact(self, text: str) -> float:
        above, _, _ = text.rpartition(".")
        if not above:
            return self.start
        base = self.kept * self._exact(above) + (1 - self.kept) * self.start
        return min(1.0, max(0.0, base + seeded(self.seed, text).gauss(self.drift, self.spread)))


Answer = Callable[[str, Mapping[str, object], str, int], Sequence[Mapping[str, object]] | None]
"""(request, inputs, instruction, n) -> the fields of each reply that can be used; None for the usual ones."""


class World:
    """What stands behind a `Run`: a target and an optimizer that are arithmetic, and a record of what was asked.

    Args:
        landscape: The qualities.
        n_train: Training examples, named t0, t1, ...
        n_select: Selection examples, named s0, s1, ...
        exact: Whether a text is right on just its quality's share of the selection examples, or drawn on each.
        write: What the optimizer answers, where it is not the next child of the instruction in the request.

    Attributes:
        asked: Every request: its name, the instruction in it, and all its inputs.
        steps: The steps that the search recorded.
    """

    def __init__(
        self, landscape: Landscape, n_train: int, n_select: int, *, exact: bool = True, write: Answer | None = None
    ) -> None:
        self.landscape, self.exact, self.write = landscape, exact, write
        self.student = dspy.Predict(dspy.Signature("question -> answer", ROOT))
        self.baseline, self.seed, self.together = Candidate.of(self.student), landscape.seed, None
        self.unread = 0.0
        self.seen, self.stream, self.lm, self.spent = Seen(), Stream([]), dspy.LM("test/landscape"), Spent()
        self.train, self.select = (
            tuple(dspy.Example(question=f"{kind}{i}", answer="yes").with_inputs("question") for i in range(n))
            for kind, n in (("t", n_train), ("s", n_select))
        )
        self.asked: list[tuple[str, str, Mapping[str, object]]] = []
        self.steps: list[StepRecord] = []
        self._written: Counter[str] = Counter()
        self._scored: dict[str, tuple[Candidate, dict[str, float]]] = {}

    def search(self, compiler: Compiler) -> str:
        """Return the text that a compiler's search ends in."""
        return text_of(asyncio.run(compiler.search(Run(self))))  # type: ignore[arg-type]

    def beams(self) -> list[list[str]]:
        """Return the texts of each recorded step's beam, best first."""
        return [[text_of(self._scored[one][0]) for one in step.beam] for step in self.steps]

    def scored_texts(self) -> set[str]:
        """Return all texts that were scored on a selection example."""
        return {text_of(trial.candidate) for trial in self.trials()}

    def named(self, name: str) -> list[tuple[str, Mapping[str, object]]]:
        """Return the instruction and the inputs of every request of that name."""
        return [(text, inputs) for request, text, inputs in self.asked if request == name]

    async def ask(
        self, signature: type[dspy.Signature], inputs: Mapping[str, object], *, n: int = 1, **_: object
    ) -> list[dspy.Prediction]:
        """Answer a request: whatever is to be a new text is the next child of the one in it."""
        text, name = str(inputs.get("instruction", "")), signature.__name__
        self.asked.append((name, text, inputs))
        own = self.write(name, inputs, text, n) if self.write else None
        if own is None:
            own = [self._fields(signature, text) for _ in range(n)]
        return [dspy.Prediction(**fields) for fields in own]

    async def score(
        self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example], draw: int = 0
    ) -> list[Scores]:
        """Score by arithmetic."""
        return [self._score(candidate, examples) for candidate in candidates]

    def known(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> tuple[float | None, ...]:
        """Return what was scored."""
        known = self._scored.get(candidate.id, (candidate, {}))[1]
        return tuple(known.get(str(example.question)) for example in examples)

    def trials(self) -> tuple[Trial, ...]:
        """Return what was scored on selection examples, in the kernel's order."""
        found = []
        for candidate, _ in self._scored.values():
            scores = self.known(candidate, self.select)
            if any(score is not None for score in scores):
                found.append(Trial(candidate, scores, mean_of(scores), sum(score is not None for score in scores)))
        return tuple(sorted(found, key=lambda trial: (-trial.mean, trial.candidate.size, trial.candidate.id)))

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return a candidate's first parents and itself."""
        path = [candidate]
        while path[-1].origin.parents:
            path.append(self._scored[path[-1].origin.parents[0]][0])
        return path[::-1]

    def note(self, text: str, kind: str) -> None:
        """Take no notes."""

    def check_open(self) -> None:
        """Is never closed."""

    def _fields(self, signature: type[dspy.Signature], text: str) -> dict[str, object]:
        kinds = {name: info.annotation for name, info in signature.output_fields.items()}
        plain: dict[str, object] = {name: ["why"] if kind == list[str] else "why" for name, kind in kinds.items()}
        new = [name for name in kinds if re.search("instruction|variation", name)]
        for name in new:
            plain[name] = child(text, self._written[text])
            self._written[text] += 1
        return plain

    def _score(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> Scores:
        text = text_of(candidate)
        known = self._scored.setdefault(candidate.id, (candidate, {}))[1]
        for question in (str(example.question) for example in examples):
            known[question] = float(self._is_right(text, question))
        outcomes = [
            Scored(score, "", (Step("self", {"question": question}, {"answer": "yes" if score else "no"}),))
            for question, score in ((str(e.question), known[str(e.question)]) for e in examples)
        ]
        return Scores(candidate, tuple(examples), tuple(outcomes))

    def _is_right(self, text: str, question: str) -> bool:
        if self.exact and question.startswith("s"):
            return int(question[1:]) < math.floor(self.landscape.quality(text) * len(self.select) + 0.5)
        return self.landscape.right(text, question)


def text_of(candidate: Candidate) -> str:
    """Return the instructions of a program with one predictor."""
    return candidate.prompts["self"].instructions


def questions_in(shown: object) -> list[str]:
    """Return the names of the training examples in what a request shows, in its order."""
    assert isinstance(shown, list)
    return [re.findall(r"\bt\d+\b", text)[0] for text in shown]
