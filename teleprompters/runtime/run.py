"""What a search works with: the two effects `ask` and `score`, and a read-only memory of what became of them.

A compiler sees the outside world only through a `Run`. Its effects are named by their content, so that the
same question has the same answer within a run and in its resumption, and so that decisions cannot depend on
the order in which answers arrive. Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import dspy

from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, Json, made_from
from cuesmith.teleprompters.runtime.compilation import StepRecord, Trial
from cuesmith.teleprompters.runtime.corpus_statistics import estimate_of
from cuesmith.teleprompters.runtime.effects import LONGEST_INPUT, Effects, seeded
from cuesmith.teleprompters.runtime.events import StepDone
from cuesmith.teleprompters.runtime.guards import Fault, Guard, longest_of, unwrapped
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scores
from cuesmith.teleprompters.runtime.statistics import estimate95
from cuesmith.teleprompters.runtime.thinking import thinks


class Run:
    """What a compiler's `search` works with.

    Args:
        effects: What stands behind it.

    Attributes:
        student: The program as given; read only.
        baseline: The student's own prompts.
        seed: The compile's seed.
        train: Examples for evidence and demonstrations.
        select: Examples that candidates are compared on. None of them is in `train`; the examples of the final
            report are in neither and stay hidden.
        predictors: Name -> the student's predictor, for reading its signature.
        temperature: What `ask` samples at, unless the optimizer model has a temperature of its own above 0, or takes
            none. None is the provider's, and 1 where the model's own is 0. A search may set it before it begins.
        thinks: Whether the optimizer model thinks by itself before it answers.
        seen: What is counted for the run's remarks: draws, drafts, and why some could not be used.
    """

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self.student, self.baseline, self.seed = effects.student, effects.baseline, effects.seed
        self.train, self.select, self.seen = effects.train, effects.select, effects.seen
        self.predictors: Mapping[str, dspy.Predict] = MappingProxyType(dict(named_predictors(self.student)))
        self.temperature: float | None = None
        self.thinks = thinks(effects.lm)
        self._faults: dict[str, Fault | None] = {}

    def rng(self, *key: object) -> random.Random:
        """Return a fresh generator seeded by the run's seed and `key`: the same at any concurrency."""
        return seeded(self.seed, *key)

    def note(self, text: str, kind: str = "search") -> None:
        """Add a sentence for the reader of the compilation; the same sentence is kept once.

        Args:
            text: The sentence.
            kind: What kind of thing it says (`Note.kind`).
        """
        self._effects.note(text, kind)

    async def ask(
        self, signature: type[dspy.Signature], inputs: Mapping[str, object], *, n: int = 1, salt: str = ""
    ) -> list[dspy.Prediction]:
        """Ask the optimizer model.

        Args:
            signature: The request, one of `cuesmith.signatures` or of that kind.
            inputs: A value for each of its input fields; `context` and `style` may be left out. The middle of a very
                long text is left out. `search.context.Requests` asks with a full context.
            n: Distinct draws wanted.
            salt: Separates draws on the same inputs: the same (signature, inputs, salt, draw) is one effect.

        Returns:
            The draws that can be used, in draw order: 0 to n of them. `seen.lost` has the others.

        Raises:
            TypeError: If the inputs are not those of the signature.
            RunStopped: If a cap is reached, or the provider fails for good.
        """
        return await self._effects.ask(
            signature, inputs, n=n, salt=salt, longest=self._longest_input(), temperature=self.temperature
        )

    async def score(
        self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example], *, draw: int = 0
    ) -> list[Scores]:
        """Score candidates on examples, all in one pool. What was scored before is not run again.

        A candidate whose instructions no model could work with, or that copy an example (`guard`), is never run: it
        counts as a failure on every example, and is no result of the run.

        Args:
            candidates: What to score.
            examples: What to score them on.
            draw: Another number than 0 runs the programs once more, apart from what counts for the search: a model
                that samples may then answer otherwise.

        Returns:
            One `Scores` a candidate, in the given order.

        Raises:
            RunStopped: If a cap is reached, or the provider refuses calls for good.
        """
        self._effects.check_open()
        usable = [candidate for candidate in candidates if self.fault(candidate) is None]
        ran = {scores.candidate.id: scores.outcomes for scores in await self._effects.score(usable, examples, draw)}
        unrun = (ParseFailure("its instructions may not be used", score=self._effects.unread),) * len(examples)
        return [Scores(c, tuple(examples), ran.get(c.id, unrun), self._effects.together) for c in candidates]

    async def judge(self, example: dspy.Example, outputs: Mapping[str, object]) -> Outcome:
        """Apply the metric to given output values, as if a program had answered them on `example`.

        Raises:
            RunStopped: If the gate is closed.
        """
        return await self._effects.judge(example, outputs)

    async def effect(self, key: str, work: Callable[[], Json]) -> Json:
        """Do anything else that is slow or not pure, once: its result is recorded, and a resumed run has it from there.

        Args:
            key: Names the work by all that its result depends on; the same key in flight is the same work.
            work: Blocking; runs in a thread of its own. Its model calls are metered as `other`.

        Returns:
            What it returned, as JSON data.

        Raises:
            RunStopped: If the run has been stopped.
            Exception: What `work` raised; it is not recorded.
        """
        return await self._effects.effect(key, work)

    async def record(self, step: int, beam: Sequence[Scores], *, train: Sequence[Scores] = ()) -> None:
        """Note that a step of the search is finished.

        Args:
            step: 0, 1, 2, ...
            beam: Best first, scored on `select`. At a stop the best so far is taken from what was scored.
            train: The head's scores on training examples, if the compiler wants them recorded.
        """
        if not beam:
            raise ValueError("a step's beam has at least one candidate: the baseline is one")
        beam = [scores for scores in beam if self.fault(scores.candidate) is None]
        if not beam:
            return
        head = beam[0]
        fit = next((s for s in train if s.candidate == head.candidate), None)
        record = StepRecord(
            step,
            head.candidate.id,
            tuple(s.candidate.id for s in beam),
            estimate_of(fit) if fit else None,
            estimate_of(head) or estimate95(()),
            self._effects.spent.total.calls,
        )
        self._effects.steps.append(record)
        self._effects.stream.emit(StepDone(record, {s.candidate.id: s.candidate.origin.move for s in beam}))

    def known(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> tuple[float | None, ...]:
        """Return the candidate's score on each example as far as it is known now; None where it is not."""
        return self._effects.known(candidate, examples)

    async def calls_per_run(self) -> float:
        """Return how many calls to models a run of the student has taken on average, on the selection examples."""
        scores = (await self.score([self.baseline], self.select))[0]
        return self._effects.cost(scores).calls / len(self.select) or float(len(self.predictors))

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return the candidates that led to this one, the oldest first and itself last: first parents only."""
        return self._effects.lineage(candidate)

    def claim(self, candidate: Candidate) -> None:
        """Say that of equal candidates this one's origin counts. Else it is that of the first to be scored, which is
        chance where several are written at a time."""
        self._effects.claim(candidate)

    def trials(self) -> tuple[Trial, ...]:
        """Return every candidate with a score on a selection example, best first."""
        return self._effects.trials()

    @cached_property
    def guard(self) -> Guard | None:
        """What no instruction may be; a search may set another one, or None for no rule at all, before it begins."""
        own = [prompt.instructions for _, prompt in self.baseline]
        return Guard.of(self.train, own, {}, None, [predictor.signature for predictor in self.predictors.values()])

    def usable(self, name: str, text: str) -> str | None:
        """Return what the optimizer wrote for predictor `name` as usable instructions, or None, which is counted."""
        self.seen.drafts += 1
        if self.guard is None:
            return text
        found = self.guard.usable(name, text)
        if found is None:
            self.seen.dropped[self.guard.fault(unwrapped(text)) or "too long"] += 1
        return found

    def child(
        self, parent: Candidate, name: str, instructions: str, *, move: str, seen: Sequence[dspy.Example] = ()
    ) -> Candidate | None:
        """Return `parent` with other instructions for one predictor; None if they may not be used, which is counted.

        Args:
            parent: What is changed.
            name: The predictor.
            instructions: What the optimizer wrote.
            move: What made it (`Origin.move`).
            seen: The examples that the optimizer was shown for it.

        Raises:
            KeyError: If there is no predictor of that name.
        """
        usable = self.usable(name, instructions)
        return (
            None if usable is None else parent.replace(name, instructions=usable, origin=made_from(move, seen, parent))
        )

    def fault(self, candidate: Candidate) -> Fault | None:
        """Return why a candidate may not be run; None if it may. The student's own instructions always may."""
        if candidate.id not in self._faults:
            own = {name: prompt.instructions for name, prompt in self.baseline}
            new = [p.instructions for name, p in candidate if p.instructions != own.get(name)]
            guard = self.guard if new else None
            found = next((fault for text in new if guard and (fault := guard.fault(text))), None)
            if found is not None:
                self.seen.drafts += 1
                self.seen.dropped[found] += 1
            self._faults[candidate.id] = found
        return self._faults[candidate.id]

    def _longest_input(self) -> int:
        """Return how many characters of one text a request has at most: instructions are always shown whole."""
        known = self.__dict__.get("guard")
        longest = longest_of([prompt.instructions for _, prompt in self.baseline])
        return max(LONGEST_INPUT, 2 * longest, 2 * known.longest if known else 0)
