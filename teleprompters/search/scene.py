"""What every part of a prompt search looks at, and the moves that all searches share. Source: ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.beam import distinct, keep_best, record_step
from cuesmith.teleprompters.search.context import SUMMARIZED, Requests, summary
from cuesmith.teleprompters.search.credit import Strategy, blamed, turn
from cuesmith.teleprompters.search.deviations import Failure, read_failure
from cuesmith.teleprompters.search.material import Casebook, Material
from cuesmith.teleprompters.search.racing import race
from cuesmith.teleprompters.search.setting import Setting
from cuesmith.teleprompters.search.success import within_reach


@dataclass(frozen=True)
class Scene:
    """A search at one of its steps; step 0 is the initial beam.

    Attributes:
        run: The two effects.
        requests: Asks the optimizer about a predictor.
        setting: The numbers.
        material: The training examples by use.
        book: What each predictor has to do on them.
        racing: Whether hopeless candidates are dropped before they are fully scored.
        strategy: Which predictor is changed next.
        relative: Whether nobody has said what a success is: then it may become less than the setting's threshold.
        step: The step.
        threshold: The score from which on an outcome counts as a success in this step.
    """

    run: Run
    requests: Requests
    setting: Setting
    material: Material
    book: Casebook
    racing: bool
    strategy: Strategy
    relative: bool = False
    step: int = 0
    threshold: float = 1.0

    @property
    def guard(self) -> Guard:
        """What no instruction may be."""
        assert self.run.guard is not None, "a prompt search sets its rules before its first step"
        return self.run.guard

    async def ask(self, signature: type[dspy.Signature], name: str, inputs: Mapping[str, object], *,
                  instructions: str = "", n: int = 1, salt: str = "") -> list[dspy.Prediction]:
        """Ask the optimizer about predictor `name`; see `Requests.ask`."""
        return await self.requests.ask(signature, name, inputs, instructions=instructions, n=n, salt=salt)

    def at(self, step: int) -> Scene:
        """Return the scene of another step; what has been scored until now says what is a success in it."""
        threshold = self.setting.threshold
        if self.relative:
            threshold = within_reach(threshold, [trial.scores for trial in self.run.trials()])
            if threshold != self.setting.threshold:
                self.run.note(f"No answer has a score of {self.setting.threshold:g} so far: the best quarter of the "
                              "best prompt's answers count as successes.")
        self.book.threshold = threshold
        return replace(self, step=step, threshold=threshold)

    async def summarized(self) -> Scene:
        """Return the scene with a summary of the data in all its requests."""
        shown = self.book.shown(self.run.baseline.names[-1], self.material.evidence[:SUMMARIZED])
        context = replace(self.requests.context, data=await summary(self.requests, shown))
        return replace(self, requests=replace(self.requests, context=context))

    async def keep(self, pool: Iterable[Candidate]) -> list[Scores]:
        """Compare the candidates on the selection examples and return the setting's `width` best, best first."""
        if self.racing:
            return await race(self.run, distinct(pool), self.setting.width)
        return await keep_best(self.run, pool, self.setting.width)

    async def record(self, beam: Sequence[Scores]) -> None:
        """Record the step."""
        await record_step(self.run, self.step, beam, self.material.watched)

    def minibatch(self, pool: Sequence[dspy.Example] | None = None, *key: object, size: int | None = None
                  ) -> list[dspy.Example]:
        """Draw the step's minibatch.

        Args:
            pool: What to draw from; all evidence by default.
            *key: Separates several draws of a step.
            size: How many examples; the setting's `minibatch` by default.
        """
        examples = self.material.evidence if pool is None else pool
        wanted = min(self.setting.minibatch if size is None else size, len(examples))
        return self.run.rng("minibatch", self.step, *key).sample(list(examples), wanted)

    async def try_out(self, parents: Sequence[Candidate], batch: Sequence[dspy.Example]) -> list[Scores]:
        """Run the candidates on training examples, and learn from their successes."""
        ran = await self.run.score(parents, batch)
        self.book.learn(ran)
        return ran

    def turn(self, ran: Scores | None = None) -> str:
        """Return the predictor to change, given how its candidate did where that is known."""
        names = self.run.baseline.names
        if ran is None or self.strategy == "round robin":
            return turn(names, self.step)
        return blamed(names, self.step, ran, self.book, self.threshold)

    def failures(self, ran: Scores, name: str) -> list[Failure]:
        """Return what predictor `name` did on the examples that the program failed on."""
        signature, names = self.run.predictors[name].signature, self.run.baseline.names
        read = (read_failure(example, outcome, name, names, signature)
                for example, outcome in ran.failures(self.threshold))
        return [failure for failure in read if failure is not None]

    def child(self, parent: Candidate, name: str, text: str, move: str, seen: Sequence[dspy.Example] = ()
              ) -> Candidate | None:
        """Return `parent` with other instructions for predictor `name`; None if they may not be used.

        Args:
            parent: What is changed.
            name: The predictor.
            text: What the optimizer wrote.
            move: What made it.
            seen: The examples that the optimizer was shown for it.
        """
        return self.run.child(parent, name, text, move=move, seen=seen)
