"""What every part of a prompt search looks at, and what all searches share: initial prompts written from examples,
which predictor comes next, reading what the optimizer wrote.

Source: 2402.02101 section 3 has initial prompts from 4 examples; its programs have one predictor. The rest is ours.
What the optimizer wrote is untrusted: every text is checked before it becomes a prompt.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import dspy

from cuesmith.modules.sampling import weighted_order
from cuesmith.signatures import WriteInstructions, naming_answers
from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt, distinct, example_id, line_of, made_from
from cuesmith.teleprompters.runtime.compilation import Trial
from cuesmith.teleprompters.runtime.evidence import REASONING, sound
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored, Scores, Step
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.context import SUMMARIZED, Requests, summary
from cuesmith.teleprompters.search.examples import Casebook, Failure, Material, read_failure, within_reach
from cuesmith.teleprompters.search.selection import keep_best, race
from cuesmith.teleprompters.search.setting import Setting

Strategy = Literal["round robin", "credit"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

LONGEST_REASON = 2000
"""Characters of a reason that are used. Ours."""


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
        past: What the search has scored, where it is not to look at all that the run has by now (`Frontier`).
        odds: Example (by `example_id`) -> the weight it is drawn with; all others have 1.
        memory: What a compiler remembers of its candidates, by their ids.
        tried: What candidates were seen to do on training examples.
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
    past: tuple[Trial, ...] | None = None
    odds: Mapping[str, float] = field(default_factory=dict)
    memory: dict[str, object] = field(default_factory=dict)
    tried: list[Scores] = field(default_factory=list)

    @property
    def guard(self) -> Guard:
        """What no instruction may be."""
        assert self.run.guard is not None, "a prompt search sets its rules before its first step"
        return self.run.guard

    async def ask(
        self,
        signature: type[dspy.Signature],
        name: str,
        inputs: Mapping[str, object],
        *,
        instructions: str = "",
        n: int = 1,
        salt: str = "",
    ) -> list[dspy.Prediction]:
        """Ask the optimizer about predictor `name`; see `Requests.ask`."""
        return await self.requests.ask(signature, name, inputs, instructions=instructions, n=n, salt=salt)

    def apart(self) -> Scene:
        """Return the scene for one of several things that go on at a time: it learns for itself, so that whichever ends
        first makes no difference. `join` brings together what was learnt."""
        return replace(self, book=self.book.copy(), tried=[])

    def join(self, others: Iterable[Scene]) -> None:
        """Take what was learnt apart, in this order."""
        for other in others:
            self.book.take(other.book)
            self.tried.extend(other.tried)

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return `Run.lineage`, among what the search looks at."""
        if self.past is None:
            return self.run.lineage(candidate)
        return line_of(candidate, {trial.candidate.id: trial.candidate for trial in self.past})

    def trials(self) -> tuple[Trial, ...]:
        """Return the candidates that have been scored on selection examples, best first."""
        return self.run.trials() if self.past is None else self.past

    def at(self, step: int) -> Scene:
        """Return the scene of another step; what has been scored until now says what is a success in it."""
        threshold = self.setting.threshold
        if self.relative:
            threshold = within_reach(threshold, [trial.scores for trial in self.trials()])
            if threshold != self.setting.threshold:
                self.run.note(
                    f"No answer has a score of {self.setting.threshold:g} so far: the best quarter of the "
                    "best prompt's answers count as successes."
                )
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
        """Record the step: the beam's scores on the selection examples and the best one's on those watched."""
        watched = self.material.watched
        train = await self.run.score([beam[0].candidate], watched) if watched else []
        await self.run.record(self.step, beam, train=train)

    def minibatch(
        self, pool: Sequence[dspy.Example] | None = None, *key: object, size: int | None = None
    ) -> list[dspy.Example]:
        """Draw the step's minibatch.

        Args:
            pool: What to draw from; all evidence by default.
            *key: Separates several draws of a step.
            size: How many examples; the setting's `minibatch` by default.
        """
        examples = self.material.evidence if pool is None else pool
        wanted = min(self.setting.minibatch if size is None else size, len(examples))
        rng = self.run.rng("minibatch", self.step, *key)
        if not self.odds:
            return rng.sample(list(examples), wanted)
        order = weighted_order(rng, [self.odds.get(example_id(example), 1.0) for example in examples])
        return [examples[i] for i in order[:wanted]]

    async def try_out(self, parents: Sequence[Candidate], batch: Sequence[dspy.Example]) -> list[Scores]:
        """Run the candidates on training examples, and learn from their successes."""
        return await self.try_each([(parent, batch) for parent in parents])

    async def try_each(self, pairs: Sequence[tuple[Candidate, Sequence[dspy.Example]]]) -> list[Scores]:
        """Run each candidate on its own training examples, and learn from their successes, in this order."""
        ran = [one for [one] in await asyncio.gather(*(self.run.score([each], batch) for each, batch in pairs))]
        self.book.learn(ran)
        self.tried.extend(ran)
        return ran

    def turn(self, ran: Scores | None = None, ahead: int = 0) -> str:
        """Return the predictor to change.

        Args:
            ran: How its candidate did, where that is known.
            ahead: Turns that this step has taken already.
        """
        names, step = self.run.baseline.names, self.step + ahead
        if ran is None or self.strategy == "round robin":
            return turn(names, step)
        return blamed(names, step, ran, self.book, self.threshold)

    def failures(self, ran: Scores, name: str) -> list[Failure]:
        """Return what predictor `name` did on the examples that the program failed on."""
        return self.read(ran.failures(self.threshold), name)

    def read(self, runs: Iterable[tuple[dspy.Example, Outcome]], name: str) -> list[Failure]:
        """Return what predictor `name` did in runs of the program, be they failures or not."""
        signature, names = self.run.predictors[name].signature, self.run.baseline.names
        read = (read_failure(example, outcome, name, names, signature) for example, outcome in runs)
        return [one for one in read if one is not None]

    def child(
        self, parent: Candidate, name: str, text: str, move: str, seen: Sequence[dspy.Example] = ()
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


async def beginning(scene: Scene, start: Callable[[Scene, int], Awaitable[list[Candidate]]]) -> list[Candidate]:
    """Return what a search begins with: the student, and the initial candidates.

    Where answers are always one of a few texts, the student that names them is the first of these.

    Args:
        scene: The initial step.
        start: Writes so many initial candidates.
    """
    student, count = scene.run.baseline, scene.setting.initial
    named = student
    for (name, output), values in scene.requests.context.answers.items():
        text = f"{named.prompts[name].instructions} {naming_answers(output, values)}".strip()
        named = named.replace(name, instructions=text, origin=made_from("name answers", (), student))
    if named == student or not count:
        return [student, *await start(scene, count)]
    return [student, named, *await start(scene, count - 1)]


async def write_instructions(
    requests: Requests, setting: Setting, material: Material, book: Casebook, *key: object
) -> list[Candidate]:
    """Return the initial candidates: each has new instructions for every predictor, from its own examples.

    Each sample of examples gives `init_draws` candidates, the last one what is left of them. A candidate takes one draw
    of each predictor; where a draw cannot be used, the predictor keeps the student's instructions. Ours: the paper's
    programs have one predictor.

    Args:
        requests: Asks.
        setting: How many candidates, and examples for each.
        material: The examples.
        book: What each predictor has to do on them.
        *key: Separates several calls of a search.
    """
    run = requests.run
    counts = [min(setting.init_draws, setting.initial - k) for k in range(0, setting.initial, setting.init_draws)]
    shown = subsets(run, material.evidence, setting.init_examples, len(counts), "initial", *key)
    drawn = await asyncio.gather(
        *(
            asyncio.gather(
                *(
                    _write(requests, book, name, examples, n, " ".join(map(str, ("initial", *key, j))))
                    for name in run.baseline.names
                )
            )
            for j, (examples, n) in enumerate(zip(shown, counts, strict=True))
        )
    )
    return [
        _candidate(run, texts, examples)
        for examples, made in zip(shown, drawn, strict=True)
        for texts in zip(*made, strict=True)
    ]


async def _write(
    requests: Requests, book: Casebook, name: str, examples: Sequence[dspy.Example], n: int, salt: str
) -> list[str | None]:
    request = {"examples": book.shown(name, examples)}
    own = requests.run.baseline.prompts[name].instructions
    replies = await requests.ask(WriteInstructions, name, request, instructions=own, n=n, salt=salt)
    made = [requests.run.usable(name, text_field(reply, "instruction")) for reply in replies]
    return [*made, *([None] * (n - len(made)))]


def _candidate(run: Run, drawn: Sequence[str | None], examples: Sequence[dspy.Example]) -> Candidate:
    prompts = {
        name: prompt if text is None else Prompt(text, prompt.demos)
        for (name, prompt), text in zip(run.baseline, drawn, strict=True)
    }
    return Candidate(prompts, made_from("initial", examples, run.baseline))


def subsets(
    run: Run, examples: Sequence[dspy.Example], size: int, count: int, *key: object
) -> list[list[dspy.Example]]:
    """Return `count` seeded samples of at most `size` examples; `key` separates different uses."""
    size = min(size, len(examples))
    return [run.rng("subset", *key, j).sample(list(examples), size) for j in range(count)]


def turn(names: Sequence[str], step: int) -> str:
    """Return the predictor that step 1, 2, ... changes: round robin in the program's order."""
    return names[(step - 1) % len(names)]


def blamed(names: Sequence[str], step: int, ran: Scores, book: Casebook, threshold: float) -> str:
    """Return the predictor where most failed runs went wrong.

    A run is compared with one that succeeded on the same example, of whichever candidate: the first predictor, in
    the program's order, that answered differently is to blame. A reply that cannot be used is that of
    `ParseFailure.writer`. Where neither tells, and on ties, it is round robin.

    Args:
        names: All predictors.
        step: The step, for round robin.
        ran: A candidate's outcomes.
        book: What is known of successes.
        threshold: A lower score is a failure.
    """
    blame: Counter[str] = Counter()
    for example, outcome in ran.failures(threshold):
        if isinstance(outcome, ParseFailure):
            blame.update(filter(None, [outcome.writer(names)]))
        elif isinstance(outcome, Scored) and (good := book.success(example)):
            blame.update([name for name in names if _said(outcome.trace, name) != _said(good, name)][:1])
    first = (step - 1) % len(names)
    order = [*names[first:], *names[:first]]
    return max(order, key=lambda name: blame[name])


def _said(trace: Sequence[Step], name: str) -> list[Mapping[str, object]]:
    return [
        {field: value for field, value in call.outputs.items() if field != REASONING}
        for call in trace
        if call.predictor == name
    ]


def text_field(reply: dspy.Prediction, name: str) -> str:
    """Return a text field of a reply, stripped; "" if it is missing or no text."""
    found = reply.get(name)
    return found.strip() if isinstance(found, str) else ""


def texts_of(found: object) -> list[str]:
    """Return the usable texts of a list that the optimizer wrote: stripped, cut, without repetitions."""
    if isinstance(found, str) or not isinstance(found, Sequence):
        return []
    texts = (sound(text).strip()[:LONGEST_REASON] for text in found if isinstance(text, str))
    return list({text.casefold(): text for text in texts if text}.values())
