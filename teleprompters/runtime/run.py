"""The two effects of a search: `ask` the optimizer model, `score` candidates on examples.

A compiler sees the outside world only through a `Run`. Both effects are named by their content, so that the
same question has the same answer within a run and in its resumption, and so that decisions cannot depend on
the order in which answers arrive. Source: ours.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import dspy
from dspy.utils.exceptions import LMError, LMInvalidRequestError, LMUnsupportedFeatureError

from cuesmith.modules.sampling import DRAWS_PER_ASK
from cuesmith.modules.sampling import draw as current_draw
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate, ExampleIds, digest, made_from, to_json
from cuesmith.teleprompters.runtime.compilation import Note, StepRecord, Trial
from cuesmith.teleprompters.runtime.events import (
    EffectDone,
    Malformed,
    Missing,
    Noted,
    SpentChanged,
    StepDone,
    Stream,
    TrainingStepDone,
)
from cuesmith.teleprompters.runtime.evidence import shortened, sound
from cuesmith.teleprompters.runtime.gate import Effect, FilteredReply, Gate, effect
from cuesmith.teleprompters.runtime.guards import Fault, Guard, longest_of, unwrapped
from cuesmith.teleprompters.runtime.journal import Journal, JournalError
from cuesmith.teleprompters.runtime.ledger import Role, RunStopped, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    Scored,
    Scores,
    outcome_from_json,
    outcome_to_json,
    value,
)
from cuesmith.teleprompters.runtime.replies import (
    ADAPTER,
    lost_by_content,
    lost_by_error,
    lost_by_finish,
    reaches,
    sound_reply,
)
from cuesmith.teleprompters.runtime.scoring import Scorer, settling
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

if TYPE_CHECKING:
    from cuesmith.teleprompters.alignment.record import Alignment

T = TypeVar("T")

LONGEST_INPUT = 12_000
"""Characters of one text of a request to the optimizer, unless instructions may be half as long. Ours."""

MOST_REFUSED = 8
"""So many requests to the optimizer, all taken for faulty by its provider, stop a run. Ours."""


class Run:
    """What a compiler's `search` works with.

    Attributes:
        student: The program as given; read only.
        baseline: The student's own prompts.
        seed: The compile's seed.
        train: Examples for evidence and demonstrations.
        select: Examples that candidates are compared on. None of them is in `train`; the examples of the final
            report are in neither and stay hidden.
        predictors: Name -> the student's predictor, for reading its signature.
        asked: Draws of the optimizer model that came back.
        lost: Those of them that could not be used.
        drafts: Prompts that were read out of the others.
        dropped: Why some of these may not be used -> how many.
        worked: Examples that the optimizer was to work as demonstrations.
        unworked: Why some became none -> how many.
        threshold: The score from which on the search counts an answer as a success; None if it asks for none.
        directory: Where the run keeps what survives it; None if it keeps nothing.
        most_calls: The most calls that a program run has made until now.
        alignment: What a prompter's training came to, for the compilation; None without one.
    """

    def __init__(
        self,
        *,
        student: dspy.Module,
        train: Sequence[dspy.Example],
        select: Sequence[dspy.Example],
        ids: ExampleIds,
        seed: int,
        scorer: Scorer,
        optimizer: dspy.BaseLM,
        gate: Gate,
        journal: Journal | None,
        stream: Stream,
        directory: Path | None = None,
    ) -> None:
        self.student = student
        self.baseline = Candidate.of(student)
        self.seed = seed
        self.train = tuple(train)
        self.select = tuple(select)
        self.predictors: Mapping[str, dspy.Predict] = MappingProxyType(dict(named_predictors(student)))
        self.steps: list[StepRecord] = []
        self.notes: list[Note] = []
        self.asked, self.lost = 0, list[Malformed]()
        self.drafts, self.dropped = 0, Counter[str]()
        self.worked, self.unworked = 0, Counter[str]()
        self.threshold: float | None = None
        self.directory = directory
        self.alignment: Alignment | None = None
        self._scorer = scorer
        self._optimizer = optimizer
        self._gate = gate
        self._journal = journal
        self._stream = stream
        self._candidates: dict[str, Candidate] = {self.baseline.id: self.baseline}
        self._outcomes: dict[str, asyncio.Task[Outcome]] = {}
        self._settled: dict[str, Outcome] = {}  # a finished task holds its whole context: thousands are a hundred MB
        self._replies: dict[str, asyncio.Task[dspy.Prediction | None]] = {}
        self._costs: dict[str, Usage] = {}
        self.most_calls = len(self.predictors)
        self._id = ids
        self._over = False
        self._heard = False
        self._faults: dict[str, Fault | None] = {}
        self._reached: dict[str, bool] = {}

    def rng(self, *key: object) -> random.Random:
        """Return a fresh generator seeded by the run's seed and `key`: the same at any concurrency."""
        text = repr((self.seed, key)).encode("utf-8", "surrogatepass")
        return random.Random(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))

    def note(self, text: str, kind: str = "search") -> None:
        """Add a sentence for the reader of the compilation; the same sentence is kept once.

        Args:
            text: The sentence.
            kind: What kind of thing it says (`Note.kind`).
        """
        if text not in self.notes:
            self.notes.append(Note(kind, text))
            self._stream.emit(Noted(self.notes[-1]))

    async def ask(
        self, signature: type[dspy.Signature], inputs: Mapping[str, object], *, n: int = 1, salt: str = ""
    ) -> list[dspy.Prediction]:
        """Ask the optimizer model.

        Args:
            signature: The request, one of `cuesmith.signatures` or of that kind.
            inputs: A value for each of its input fields. The middle of a very long text is left out.
            n: Distinct draws wanted.
            salt: Separates draws on the same inputs: the same (signature, inputs, salt, draw) is one effect.

        Returns:
            The draws that can be used, in draw order: 0 to n of them. See `lost` for the others.

        Raises:
            TypeError: If the inputs are not those of the signature.
            RunStopped: If a cap is reached, or the provider fails for good.
        """
        if set(inputs) != set(signature.input_fields):
            raise TypeError(f"{signature.__name__} takes {sorted(signature.input_fields)}, got {sorted(inputs)}")
        self._check_open()
        inputs = {name: _fitted(value, self._longest_input()) for name, value in inputs.items()}
        name = digest(signature.__name__, signature.instructions, list(signature.fields), to_json(dict(inputs)), salt)
        tasks = []
        for number in range(n):
            key = f"ask:{name}:{number}"
            if key not in self._replies:
                self._replies[key] = asyncio.create_task(self._ask_once(signature, inputs, key, number))
            tasks.append(self._replies[key])
        replies = await _all(tasks)
        self._tell_spent()
        return [reply for reply in replies if reply is not None]

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
        self._check_open()
        usable = [candidate for candidate in candidates if self.fault(candidate) is None]
        for candidate in usable:
            self._candidates.setdefault(candidate.id, candidate)
        tasks = {c: [self._outcome(c, e, draw) for e in examples] for c in usable}
        await _all([task for row in tasks.values() for task in row])
        if self._journal is not None:
            self._written(self._journal.flush)
        self._tell_spent()
        unrun = [ParseFailure("its instructions may not be used")] * len(examples)
        scores = [
            Scores(c, tuple(examples), tuple(task.result() for task in tasks[c]) if c in tasks else tuple(unrun))
            for c in candidates
        ]
        for one in scores:
            self._report_missing(one)
        return scores

    async def score_pairwise(self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example]) -> None:
        """Score example by example, so that a cap leaves as many complete comparisons as it can.

        Raises:
            RunStopped: As `score`; what is done can then be read by `known`.
        """
        await _all([self._outcome(c, e) for e in examples for c in candidates])

    async def reward(
        self,
        candidate: Candidate,
        rewrites: Sequence[tuple[dspy.Example, Mapping[str, str]]],
        *,
        draws: int = 1,
    ) -> list[tuple[float, ...]]:
        """Return r(x, y) for answers to rewritten inputs: the program sees the rewrite, the metric the original.

        What was rewarded before is not run again.

        Args:
            candidate: The frozen program.
            rewrites: Pairs of an example and the values that replace some of its inputs.
            draws: Answers a rewrite.

        Returns:
            Of each rewrite, in order, its rewards: one an answer, less those that the provider or the metric failed.

        Raises:
            RunStopped: As `score`.
        """
        self._check_open()
        tasks = [[self._reward(candidate, *pair, draw) for draw in range(draws)] for pair in rewrites]
        await _all([task for row in tasks for task in row])
        if self._journal is not None:
            self._written(self._journal.flush)
        self._tell_spent()
        return [tuple(v for task in row if (v := value(task.result())) is not None) for row in tasks]

    def add_prompter(self, fingerprint: str, front: Callable[[dspy.Module], dspy.Module]) -> None:
        """Make a prompter known, so that candidates may stand behind it (`Candidate.behind`).

        Args:
            fingerprint: Content hash of the prompter.
            front: Puts it in front of a program: returns a new module that holds the given one.
        """
        self._scorer.add_prompter(fingerprint, front)

    def affords(self, runs: int) -> bool:
        """Whether the budget's calls and tokens last for so many more program runs, at what runs have cost so far."""
        each = list(self._costs.values())
        total, n = sum(each, Usage()), max(1, len(each))
        mean = Usage(
            calls=math.ceil(total.calls / n),
            input_tokens=math.ceil(total.input_tokens / n),
            output_tokens=math.ceil(total.output_tokens / n),
            usd=(total.usd or 0.0) / n,
        )
        return self._gate.ledger.affords(mean, runs)

    def _reward(
        self, candidate: Candidate, example: dspy.Example, rewritten: Mapping[str, str], draw: int
    ) -> asyncio.Future[Outcome]:
        key = f"reward:{self._score_key(candidate, example)}:{digest(dict(rewritten))}:{draw}"
        return self._once(key, lambda: self._score_once(candidate, example, key, rewritten, draw))

    async def judge(self, example: dspy.Example, outputs: Mapping[str, object]) -> Outcome:
        """Apply the metric to given output values, as if a program had answered them on `example`.

        Raises:
            RunStopped: If the gate is closed.
        """
        self._check_open()
        key = f"judge:{digest(to_json(dict(outputs)))}:{self._id(example)}"
        return (await _all([self._once(key, lambda: self._judge_once(example, outputs, key))]))[0]

    @property
    def gate(self) -> Gate:
        """Where all calls go through, for hosting code that makes its own (dspy's optimizers); others need none."""
        return self._gate

    @property
    def unsettled(self) -> int:
        """Effects that have begun and have no result yet; those that wait for a thread have not begun."""
        effects = [*list(self._outcomes.values()), *list(self._replies.values())]
        return sum(not task.done() for task in effects) - self._scorer.waiting

    def observe(self, candidate: Candidate, example: dspy.Example, outcome: Outcome) -> None:
        """Take an outcome that hosted code found; what is known already stays. Called on the search's event loop."""
        self._candidates.setdefault(candidate.id, candidate)
        key = self._score_key(candidate, example)
        if key not in self._outcomes:
            self._settled.setdefault(key, outcome)
        self._emit("target", candidate.id, self._id(example), outcome)
        self._stream.emit(SpentChanged(self._gate.ledger.spent()))

    async def finish(self) -> None:
        """End the search: wait for what is in flight, and let nothing of it follow.

        A search that a stop unwinds may leave branches behind (`asyncio.gather` does), which would go on as soon as
        calls are admitted again for the report.
        """
        self._over = True
        if pending := self._pending():
            await asyncio.wait(pending)
        self._note_unseen()

    async def abandon(self, grace: float) -> None:
        """Wait for what is in flight, but no longer than `grace` seconds: then it is given up."""
        if pending := self._pending():
            _, left = await asyncio.wait(pending, timeout=grace)
            for task in left:
                task.cancel()

    def _pending(self) -> list[asyncio.Task[Outcome] | asyncio.Task[dspy.Prediction | None]]:
        return [task for task in (*self._outcomes.values(), *self._replies.values()) if not task.done()]

    def _check_open(self) -> None:
        if self._over:
            raise RunStopped(self._gate.stopped_by or "finished")

    def _tell_spent(self) -> None:
        if not self._over:
            self._stream.emit(SpentChanged(self._gate.ledger.spent()))

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
            _estimate(fit) if fit else None,
            _estimate(head),
        )
        self.steps.append(record)
        self._stream.emit(StepDone(record, {s.candidate.id: s.candidate.origin.move for s in beam}))

    def known(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> tuple[float | None, ...]:
        """Return the candidate's score on each example as far as it is known now; None where it is not."""
        found = (self.outcome_of(candidate, example) for example in examples)
        return tuple(None if outcome is None else value(outcome) for outcome in found)

    @property
    def ran(self) -> tuple[Outcome, ...]:
        """What became of every program run until now, in no order that means anything."""
        done = {key: task.result() for key, task in list(self._outcomes.items()) if _is_settled(task)}
        return tuple(o for key, o in {**self._settled, **done}.items() if not key.startswith("judge:"))

    def outcome_of(self, candidate: Candidate, example: dspy.Example) -> Outcome | None:
        """Return what became of a candidate on an example, as far as it is known now."""
        key = self._score_key(candidate, example)
        task = self._outcomes.get(key)
        return task.result() if task is not None and _is_settled(task) else self._settled.get(key)

    def tell(self, event: TrainingStepDone) -> None:
        """Emit an event of a compiler's own work. Called on the search's event loop."""
        self._stream.emit(event)

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return the candidates that led to this one, the oldest first and itself last: first parents only."""
        path = [candidate]
        while path[-1].origin.parents and path[-1].origin.parents[0] in self._candidates:
            path.append(self._candidates[path[-1].origin.parents[0]])
        return path[::-1]

    def cost(self, scores: Scores) -> Usage:
        """Return what the program runs behind `scores` used, whichever session of the run made them."""
        keys = [self._score_key(scores.candidate, example) for example in scores.examples]
        return sum((self._costs.get(key, Usage()) for key in dict.fromkeys(keys)), Usage())

    def trials(self) -> tuple[Trial, ...]:
        """Return every candidate with a score on a selection example, best first."""
        trials = []
        for candidate in self._candidates.values():
            scores = self.known(candidate, self.select)
            values = [s for s in scores if s is not None]
            if values:
                trials.append(Trial(candidate, scores, math.fsum(values) / len(values), len(values)))
        return tuple(sorted(trials, key=lambda t: (-t.mean, t.candidate.size, t.candidate.id)))

    def best_so_far(self) -> Candidate:
        """Return the best candidate by what is known now, compared with the baseline on the same examples.

        Candidates scored on all selection examples come first. Only if none of them is above the baseline, one
        that a stop left half scored may be taken: it must have a score on at least half of the examples.
        """
        known = {c: self.known(c, self.select) for c in list(self._candidates.values())}
        base = known[self.baseline]
        whole = sum(v is not None for v in base)
        ahead = []
        for candidate, scores in known.items():
            pairs = [(a, b) for a, b in zip(scores, base, strict=True) if a is not None and b is not None]
            gained = math.fsum(a - b for a, b in pairs)
            if gained > 0 and 2 * len(pairs) >= whole:
                ahead.append((len(pairs) == whole, gained / len(pairs), -candidate.size, candidate))
        return max(ahead, key=lambda entry: entry[:3])[3] if ahead else self.baseline

    def _score_key(self, candidate: Candidate, example: dspy.Example) -> str:
        return f"{candidate.id}:{self._id(example)}"

    def _outcome(self, candidate: Candidate, example: dspy.Example, draw: int = 0) -> asyncio.Future[Outcome]:
        key = self._score_key(candidate, example)
        if draw:
            key = f"again:{key}:{draw}"
        return self._once(key, lambda: self._score_once(candidate, example, key, draw=draw))

    def _once(self, key: str, make: Callable[[], Coroutine[object, object, Outcome]]) -> asyncio.Future[Outcome]:
        """Return the effect of that key, begun now unless it is under way or has a result to keep.

        A provider's failure is not kept: it may have passed.
        """
        task = self._outcomes.get(key)
        if task is not None and not task.done():
            return task
        if task is not None:
            self._settle(key, task)
        outcome = self._settled.get(key)
        if outcome is not None and not isinstance(outcome, ProviderFailure):
            known: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            known.set_result(outcome)
            return known
        task = self._outcomes[key] = asyncio.create_task(make())
        task.add_done_callback(functools.partial(self._settle, key))
        return task

    def _settle(self, key: str, task: asyncio.Task[Outcome]) -> None:
        """Keep what a finished task has found, in place of the task."""
        if self._outcomes.get(key) is task:
            del self._outcomes[key]
            if _is_settled(task):
                self._settled[key] = task.result()

    async def _score_once(
        self,
        candidate: Candidate,
        example: dspy.Example,
        key: str,
        rewritten: Mapping[str, str] = MappingProxyType({}),
        draw: int = 0,
    ) -> Outcome:
        stored = self._journal.get("outcomes", key) if self._journal else None
        if stored is not None:
            outcome = self._recall(key, stored)
        else:
            current = Effect(key, "target", self._gate, "reward" if key.startswith("reward:") else "judge")
            unreached = self._unreached(candidate)
            texts: list[str] = []
            current.texts = texts if unreached else None
            outcome = await self._scorer.run(candidate, example, current, rewritten=rewritten, draw=draw)
            outcome = self._gate.redactor.reply(outcome)  # a metric's feedback may repeat a key
            self._count_cost(key, sum(current.used.values(), Usage()))
            found = {
                name: any(reaches(candidate.prompts[name].instructions, text) for text in texts)
                for name in (sorted(unreached) if texts else ())
            }
            self._note_reached(found)
            self._store(key, outcome, current, found)
        self._emit("target", candidate.id, self._id(example), outcome)
        return outcome

    async def _judge_once(self, example: dspy.Example, outputs: Mapping[str, object], key: str) -> Outcome:
        self._gate.check()
        return await self._scorer.judge(example, outputs, Effect(key, "judge", self._gate))

    async def _ask_once(
        self, signature: type[dspy.Signature], inputs: Mapping[str, object], key: str, number: int
    ) -> dspy.Prediction | None:
        rollout = self.rng(key).randrange(1, 2**31)
        # At a temperature of 0 draws would be the same; one that nobody set is not sent: not every model takes one.
        cold = self._optimizer.kwargs.get("temperature") == 0
        config = {"rollout_id": rollout} | ({"temperature": 1.0} if cold else {})
        current = Effect(f"{self.seed}:{key}", "optimizer", self._gate)
        effect.set(current)
        current_draw.set(self.rng(key.rpartition(":")[0]).randrange(2**40) * DRAWS_PER_ASK + number)
        work = functools.partial(dspy.Predict(signature), **inputs, config=config)
        self._gate.check()
        reply, lost = None, None
        try:
            with settling(current), dspy.context(lm=self._optimizer, trace=[], disable_history=True, adapter=ADAPTER):
                reply = await self._scorer.workers.submit(work)
            if current.stopped:
                raise RunStopped(self._gate.stopped_by or "stopped")
            reply = sound_reply(reply)
            lost = lost_by_finish(current.finish[-1:]) or lost_by_content(reply)
            why = f"the reply is {lost} ({', '.join(current.finish) or 'no finish reason'})"
        except FilteredReply as error:
            lost, why = "refused", str(error)
        except (LMInvalidRequestError, LMUnsupportedFeatureError) as error:
            lost, why = "unreadable" if current.finish else "invalid request", f"{type(error).__name__}: {error}"
        except LMError as error:
            raise self._gate.stop("outage", f"the optimizer model failed: {error}") from None
        except UnknownPrice:
            raise
        except TimeoutError:
            current.abandoned = True
            self._gate.note_timeout(None)
            lost, why = "timed out", "no answer in time"
        except Exception as error:
            lost = lost_by_finish(current.finish[-1:]) or lost_by_error(error)
            why = f"{type(error).__name__}: {error}"
        self.asked += 1
        self._heard |= lost != "invalid request"
        if lost is not None:
            self._lose(Malformed(signature.__name__, self._gate.redactor(why)[:400], lost))
        self._emit("optimizer", None, None, None)
        return None if lost else reply

    def _lose(self, draw: Malformed) -> None:
        """Count a lost draw; stop where the provider has taken every request until now for faulty."""
        self.lost.append(draw)
        self._stream.emit(draw)
        if not self._heard and len(self.lost) >= MOST_REFUSED:
            raise self._gate.stop("configuration", f"the first {len(self.lost)} requests were refused: {draw.reason}")

    def _store(self, key: str, outcome: Outcome, current: Effect, reached: Mapping[str, bool]) -> None:
        if self._journal is not None and isinstance(outcome, Scored | ParseFailure):
            used = {role: vars(usage) for role, usage in current.used.items()}
            body = {"outcome": outcome_to_json(outcome), "used": used, "reached": dict(reached)}
            # What the journal's calls can give again may wait for the next write; anything else may not.
            write = self._journal.put_soon if current.replayable else self._journal.put
            self._written(functools.partial(write, "outcomes", key, body))

    def _written(self, write: Callable[[], object]) -> None:
        try:
            write()
        except JournalError as error:
            raise self._gate.stop("journal", str(error)) from None

    def _recall(self, key: str, stored: Mapping[str, object]) -> Outcome:
        body, used, reached = stored["outcome"], stored["used"], stored.get("reached", {})
        assert isinstance(body, dict) and isinstance(used, dict) and isinstance(reached, dict)
        self._note_reached(reached)
        self._count_cost(key, sum((Usage(**usage) for usage in used.values()), Usage()))
        return outcome_from_json(body)

    def _count_cost(self, key: str, used: Usage) -> None:
        self._costs[key] = used
        self.most_calls = max(self.most_calls, used.calls)

    def _emit(self, role: Role, candidate_id: str | None, example: str | None, outcome: Outcome | None) -> None:
        if not self._stream.watched:
            return
        kind, workers = "Reply" if outcome is None else type(outcome).__name__, self._scorer.workers
        self._stream.emit(
            EffectDone(
                role,
                candidate_id,
                example,
                kind,
                None if outcome is None else value(outcome),
                workers.in_flight,
                workers.pending,
            )
        )

    @cached_property
    def guard(self) -> Guard | None:
        """What no instruction may be; a search may set another one, or None for no rule at all, before it begins."""
        own = [prompt.instructions for _, prompt in self.baseline]
        return Guard.of(self.train, own, {}, None, [predictor.signature for predictor in self.predictors.values()])

    def usable(self, name: str, text: str) -> str | None:
        """Return what the optimizer wrote for predictor `name` as usable instructions, or None, which is counted."""
        self.drafts += 1
        if self.guard is None:
            return text
        found = self.guard.usable(name, text)
        if found is None:
            self.dropped[self.guard.fault(unwrapped(text)) or "too long"] += 1
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
        return None if usable is None else parent.replace(
            name, instructions=usable, origin=made_from(move, seen, parent))

    def fault(self, candidate: Candidate) -> Fault | None:
        """Return why a candidate may not be run; None if it may. The student's own instructions always may."""
        if candidate.id not in self._faults:
            own = {name: prompt.instructions for name, prompt in self.baseline}
            new = [p.instructions for name, p in candidate if p.instructions != own.get(name)]
            guard = self.guard if new else None
            found = next((fault for text in new if guard and (fault := guard.fault(text))), None)
            if found is not None:
                self.dropped[found] += 1
            self._faults[candidate.id] = found
        return self._faults[candidate.id]

    def _longest_input(self) -> int:
        """Return how many characters of one text a request has at most: instructions are always shown whole."""
        known = self.__dict__.get("guard")
        longest = longest_of([prompt.instructions for _, prompt in self.baseline])
        return max(LONGEST_INPUT, 2 * longest, 2 * known.longest if known else 0)

    def _unreached(self, candidate: Candidate) -> set[str]:
        """Return the predictors whose new instructions no request was seen to have until now."""
        own = self.baseline.prompts
        return {name for name, prompt in candidate
                if not self._reached.get(name) and prompt.instructions != own[name].instructions}

    def _note_reached(self, found: Mapping[str, bool]) -> None:
        """Take note of which predictors' new instructions stood in the requests of a program run."""
        for name, reached in found.items():
            self._reached[name] = reached or self._reached.get(name, False)

    def _note_unseen(self) -> None:
        for name in (name for name, reached in self._reached.items() if not reached):
            self.note(
                f"New instructions of the predictor {name!r} were in none of the requests that the program made: it "
                "is not called, or the program replaces what it is told.", kind="unseen")

    def _report_missing(self, scores: Scores) -> None:
        failed = [o for o in scores.outcomes if isinstance(o, ProviderFailure | MetricError)]
        if failed:
            self._stream.emit(Missing(scores.candidate.id, len(failed), failed[0].reason))


def _is_settled(task: asyncio.Task[Outcome]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _estimate(scores: Scores) -> Estimate95:
    return estimate95([v for v in scores.values if v is not None])


def _fitted(value: object, longest: int) -> object:
    """Return what a request is given, its texts sound and of at most so many characters."""
    match value:
        case str():
            return shortened(sound(value), longest)
        case list() | tuple():
            return [_fitted(held, longest) for held in value]
        case dict():
            return {name: _fitted(held, longest) for name, held in value.items()}
        case _:
            return value


async def _all(tasks: Sequence[asyncio.Future[T]]) -> list[T]:
    """Wait for all tasks, so that what is in flight is kept, and only then raise the first failure."""
    if tasks:
        await asyncio.wait(tasks)
    if any(task.cancelled() for task in tasks):
        raise RunStopped("stopped")
    failed = [error for task in tasks if (error := task.exception()) is not None]
    if failed:
        raise next((error for error in failed if not isinstance(error, RunStopped)), failed[0])
    return [task.result() for task in tasks]
