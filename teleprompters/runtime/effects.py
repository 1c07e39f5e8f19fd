"""The kernel behind a `Run`: every effect once by its key, journalled, replayed, counted.

A search sees a `Run` and nothing of this. What works within a run for others comes in by `effects_of`: the session,
dspy's hosted optimizers, a prompter's training. What only asks makes an `Asker`. The import contract says who may.
Source: ours.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

import dspy
from dspy.utils.exceptions import LMError, LMUnsupportedFeatureError

from cuesmith.modules.sampling import DRAWS_PER_ASK
from cuesmith.modules.sampling import draw as current_draw
from cuesmith.teleprompters.runtime._dspy import takes_temperature
from cuesmith.teleprompters.runtime.candidate import Candidate, Json, digest, line_of, to_json
from cuesmith.teleprompters.runtime.compilation import Note, Standing, StepRecord, Trial, undominated
from cuesmith.teleprompters.runtime.corpus_statistics import p_value_of
from cuesmith.teleprompters.runtime.events import EffectDone, Malformed, Missing, Noted, SpentChanged, Stream
from cuesmith.teleprompters.runtime.evidence import shortened, sound
from cuesmith.teleprompters.runtime.gate import Effect, effect
from cuesmith.teleprompters.runtime.journal import Journal, JournalError
from cuesmith.teleprompters.runtime.ledger import Role, RunStopped, Spent, UnknownPrice, Usage
from cuesmith.teleprompters.runtime.outages import FilteredReply, is_refused
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    Scored,
    Scores,
    common,
    lowest,
    outcome_from_json,
    outcome_to_json,
    value,
    worst_last,
)
from cuesmith.teleprompters.runtime.redaction import redacted
from cuesmith.teleprompters.runtime.remarks import Seen
from cuesmith.teleprompters.runtime.replies import (
    ADAPTER,
    lost_by_content,
    lost_by_error,
    lost_by_finish,
    reaches,
    sound_reply,
)
from cuesmith.teleprompters.runtime.scoring import Pool, Scorer, settling
from cuesmith.teleprompters.runtime.splitting import Split
from cuesmith.teleprompters.runtime.workers import begun

T = TypeVar("T")

LONGEST_INPUT = 12_000
"""Characters of one text of a request to the optimizer, unless instructions may be half as long. Ours."""

OPTIONAL = ("context", "style")
"""Inputs of a request that need not be given: nothing is told then."""

EQUAL = 0.5
"""Two candidates are equally good if a difference like theirs comes by chance more often than this. Ours."""

MOST_REFUSED = 8
"""So many requests to the optimizer, all taken for faulty by its provider, stop a run. Ours."""

_NOT_RUN = ProviderFailure("not run yet")


class Asker:
    """Asks a model typed requests, each draw once. At temperature 1 unless the model has one of its own above 0.

    Args:
        lm: The model.
        pool: Where its calls are made, and the gate that they pass.
        stream: Is told of each draw.
        seed: Other seeds are other draws.

    Attributes:
        seen: What came back, and what is said of it in the end.
    """

    def __init__(self, lm: dspy.BaseLM, pool: Pool, stream: Stream, seed: int) -> None:
        self.pool, self.gate, self.stream, self.seed = pool, pool.gate, stream, seed
        self.seen = Seen()
        self.lm = lm
        self._replies: dict[str, asyncio.Task[dspy.Prediction | None]] = {}
        self._heard = self._over = False
        self._refusals = itertools.count(1)

    async def ask(
        self,
        signature: type[dspy.Signature],
        inputs: Mapping[str, object],
        *,
        n: int = 1,
        salt: str = "",
        longest: int = LONGEST_INPUT,
        temperature: float | None = None,
    ) -> list[dspy.Prediction]:
        """Ask as `Run.ask` does, with at most `longest` characters of one text, at `Run.temperature`."""
        inputs = {**{name: "" for name in OPTIONAL if name in signature.input_fields}, **inputs}
        if set(inputs) != set(signature.input_fields):
            raise TypeError(f"{signature.__name__} takes {sorted(signature.input_fields)}, got {sorted(inputs)}")
        self.check_open()
        inputs = {name: _fitted(value, longest) for name, value in inputs.items()}
        name = digest(signature.__name__, signature.instructions, list(signature.fields), to_json(dict(inputs)), salt)
        tasks = []
        for number in range(n):
            key = f"ask:{name}:{number}"
            if key not in self._replies:
                self._replies[key] = begun(self._ask_once(signature, inputs, key, number, temperature))
            tasks.append(self._replies[key])
        replies = await all_of(tasks)
        self.tell_spent()
        return [reply for reply in replies if reply is not None]

    async def _ask_once(
        self,
        signature: type[dspy.Signature],
        inputs: Mapping[str, object],
        key: str,
        number: int,
        temperature: float | None,
    ) -> dspy.Prediction | None:
        rollout = seeded(self.seed, key).randrange(1, 2**31)
        # At a temperature of 0 draws would be the same; one that nobody set is not sent: not every model takes one.
        own = self.lm.kwargs.get("temperature")
        wanted = temperature if takes_temperature(self.lm) else None
        sent = own or wanted or (None if own is None else 1.0)
        config = {"rollout_id": rollout} | ({} if sent == own else {"temperature": sent})
        current = Effect(f"{self.seed}:{key}", "optimizer", self.gate)
        effect.set(current)
        current_draw.set(seeded(self.seed, key.rpartition(":")[0]).randrange(2**40) * DRAWS_PER_ASK + number)
        work = functools.partial(self._predict, functools.partial(dspy.Predict(signature), **inputs, config=config))
        self.gate.check()
        reply, lost = None, None
        try:
            with settling(current), dspy.context(lm=self.lm, trace=[], disable_history=True, adapter=ADAPTER):
                reply = await self.pool.workers.submit(work)
            if current.stopped:
                raise RunStopped(self.gate.stopped_by or "stopped")
            reply = sound_reply(reply)
            lost = lost_by_finish(current.finish[-1:]) or lost_by_content(reply)
            why = f"the reply is {lost} ({', '.join(current.finish) or 'no finish reason'})"
        except FilteredReply as error:
            lost, why = "refused", str(error)
        except LMError as error:
            if not _is_faulty(error):
                raise self.gate.stop("outage", f"the optimizer model failed: {error}") from None
            lost, why = "unreadable" if current.finish else "invalid request", f"{type(error).__name__}: {error}"
        except UnknownPrice:
            raise
        except TimeoutError:
            current.abandoned = True
            self.gate.note_timeout(self.pool.timeout, True)
            lost, why = "timed out", "no answer in time"
        except Exception as error:
            lost = lost_by_finish(current.finish[-1:]) or lost_by_error(error)
            why = f"{type(error).__name__}: {error}"
        self._heard |= lost != "invalid request"
        self.count(Malformed(signature.__name__, self.gate.redactor(why)[:400], lost) if lost else None)
        if lost and self.gate.stopped_by == "configuration":
            raise RunStopped("configuration")
        self.emit("optimizer", None, None, None)
        return None if lost else reply

    def _predict(self, predict: Callable[[], dspy.Prediction]) -> dspy.Prediction:
        """Ask, in a thread; stop where the provider has taken every request until now for faulty.

        It is counted here, before the thread takes the next request: the event loop may hear of it late.
        """
        current = effect.get()
        assert current is not None
        try:
            return predict()
        except LMError as error:
            faulty = _is_faulty(error) and not current.finish and not self._heard
            if faulty and next(self._refusals) >= MOST_REFUSED:
                why = f"{type(error).__name__}: {error}"[:400]
                self.gate.stop("configuration", f"the first {MOST_REFUSED} requests were refused: {why}")
            raise
        finally:
            self._heard |= bool(current.finish)

    def count(self, lost: Malformed | None) -> None:
        """Count a draw of the optimizer model that came back, and what made it useless, if anything did."""
        self.seen.asked += 1
        if lost is not None:
            self.seen.lost.append(lost)
            self.stream.emit(lost)

    def emit(self, role: Role, candidate_id: str | None, example: str | None, outcome: Outcome | None) -> None:
        """Say that an effect is done, if anybody listens."""
        if not self.stream.watched:
            return
        kind, score = ("Reply", None) if outcome is None else (type(outcome).__name__, value(outcome))
        self.stream.emit(EffectDone(role, candidate_id, example, kind, score, self.pool.in_flight, self.pool.waiting))

    def check_open(self) -> None:
        """Raise `RunStopped` if the search is over."""
        if self._over:
            raise RunStopped(self.gate.stopped_by or "finished")

    @property
    def spent(self) -> Spent:
        """What was used until now."""
        return self.gate.ledger.spent()

    def tell_spent(self) -> None:
        """Say what was used until now."""
        if not self._over:
            self.stream.emit(SpentChanged(self.spent))


class Effects(Asker):
    """All effects of one run.

    Args:
        scorer: Runs candidates of the student on examples.
        split: The examples.
        lm: The optimizer model.
        stream: Is told of each effect.
        seed: Of every decision.
        journal: Keeps what completes; None keeps nothing.
        directory: Where the run keeps what survives it; None if it keeps nothing.

    Attributes:
        baseline: The student's own prompts.
        steps: The search's steps.
        notes: What a reader should know.
        extras: What a search leaves for the compilation besides candidates (`Compilation.extras`).
        costs: What each program run used, by its key, whichever session of the run made it.
        most_calls: The most calls that a program run has made until now.
        unread: What a reply that could not be used counts as.
    """

    def __init__(
        self,
        scorer: Scorer,
        split: Split,
        lm: dspy.BaseLM,
        stream: Stream,
        seed: int,
        journal: Journal | None,
        directory: Path | None,
    ) -> None:
        super().__init__(lm, scorer.pool, stream, seed)
        self.student, self.baseline = scorer.student, Candidate.of(scorer.student)
        self.train, self.select, self.ids = tuple(split.train), tuple(split.select), split.ids
        self.scorer, self.directory, self.together = scorer, directory, scorer.together
        self.steps: list[StepRecord] = []
        self.notes: list[Note] = []
        self.extras: dict[str, object] = {}
        self.costs: dict[str, Usage] = {}
        self.most_calls = len(self.baseline.names)
        self.unread = 0.0
        self._journal = journal
        self._candidates: dict[str, Candidate] = {self.baseline.id: self.baseline}
        self._outcomes: dict[str, asyncio.Task[Outcome]] = {}
        self._settled: dict[str, Outcome] = {}  # a finished task holds its whole context: thousands are a hundred MB
        self._results: dict[str, asyncio.Task[Json]] = {}
        self._reached: dict[str, bool] = {}

    def decided(self, key: str, decide: Callable[[], dict[str, Json]]) -> dict[str, Json]:
        """Return what the run decided when it first came here: a resumed one, which knows more, does as it did.

        Args:
            key: Names the decision.
            decide: Decides.
        """
        stored = self._journal.get("outcomes", key) if self._journal else None
        if stored is not None:
            return {name: to_json(value) for name, value in stored.items()}
        found = decide()
        if self._journal is not None:
            self._written(functools.partial(self._journal.put, "outcomes", key, found))
        return found

    def note(self, text: str, kind: str) -> None:
        """Add a note; the same sentence is kept once."""
        if text not in self.notes:
            self.notes.append(Note(kind, text))
            self.stream.emit(Noted(self.notes[-1]))

    async def score(
        self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example], draw: int = 0
    ) -> list[Scores]:
        """Score candidates as `Run.score` does, whatever their instructions."""
        for candidate in candidates:
            self._candidates.setdefault(candidate.id, candidate)
        rows = [[self.outcome(c, e, draw=draw) for e in examples] for c in candidates]
        await self.settle([task for row in rows for task in row])
        pairs = zip(candidates, rows, strict=True)
        scores = [Scores(c, tuple(examples), tuple(task.result() for task in row), self.together) for c, row in pairs]
        for one in scores:
            failed = [o for o in one.outcomes if isinstance(o, ProviderFailure | MetricError)]
            if failed:
                self.stream.emit(Missing(one.candidate.id, len(failed), failed[0].reason))
        return scores

    async def settle(self, outcomes: Sequence[asyncio.Future[T]]) -> list[T]:
        """Wait for all of a group of effects, keep them, and say what was used.

        Raises:
            RunStopped: If a cap is reached, or the provider refuses calls for good.
        """
        found = await all_of(outcomes)
        if self._journal is not None:
            self._written(self._journal.flush)
        self.tell_spent()
        return found

    async def score_pairwise(self, candidates: Sequence[Candidate], examples: Sequence[dspy.Example]) -> None:
        """Score example by example, so that a cap leaves as many complete comparisons as it can.

        Raises:
            RunStopped: As `score`; what is done can then be read by `known`.
        """
        await all_of([self.outcome(c, e) for e in examples for c in candidates])

    async def judge(self, example: dspy.Example, outputs: Mapping[str, object]) -> Outcome:
        """Judge as `Run.judge` does."""
        self.check_open()
        key = f"judge:{digest(to_json(dict(outputs)))}:{self.ids(example)}"
        return (await all_of([self._once(key, lambda: self._judge_once(example, outputs, key))]))[0]

    async def effect(self, key: str, work: Callable[[], Json]) -> Json:
        """Do other work once, as `Run.effect` says."""
        self.check_open()
        key = f"effect:{key}"
        if key not in self._results:
            self._results[key] = begun(self._work_once(key, work))
        return (await all_of([self._results[key]]))[0]

    async def _work_once(self, key: str, work: Callable[[], Json]) -> Json:
        stored = self._journal.get("outcomes", key) if self._journal else None
        if stored is not None:
            return to_json(stored["result"])
        self.gate.check()
        current = Effect(key, "other", self.gate)
        effect.set(current)
        with settling(current):
            result = redacted(to_json(await asyncio.to_thread(work)), self.gate.redactor)
        if current.stopped:
            raise RunStopped(self.gate.stopped_by or "stopped")
        if current.failure:  # whatever the work made of the error
            raise self.gate.stop("outage", current.failure)
        if self._journal is not None:
            self._written(functools.partial(self._journal.put, "outcomes", key, {"result": result}))
        return result

    @property
    def unsettled(self) -> int:
        """Effects that have begun and have no result yet; those that wait for a thread have not begun."""
        effects = [*list(self._outcomes.values()), *list(self._replies.values()), *list(self._results.values())]
        return sum(not task.done() for task in effects) - self.pool.waiting

    def weigh(self, student: Scores) -> None:
        """Have a reply that could not be used count as what the student's worst answer scored, if that is below 0: else
        under a loss it would be worth more than any answer."""
        self.unread = lowest(one.score for one in student.outcomes if isinstance(one, Scored))
        for key, task in list(self._outcomes.items()):
            if task.done():
                self._settle(key, task)
        self._settled = {key: self._weighed(outcome) for key, outcome in self._settled.items()}

    def _weighed(self, outcome: Outcome) -> Outcome:
        return replace(outcome, score=self.unread) if isinstance(outcome, ParseFailure) else outcome

    def observe(self, candidate: Candidate, example: dspy.Example, outcome: Outcome) -> None:
        """Take an outcome that hosted code found; what is known already stays. Called on the search's event loop."""
        outcome = self._weighed(outcome)
        self._candidates.setdefault(candidate.id, candidate)
        key = self.key(candidate, example)
        if key not in self._outcomes:
            self._settled.setdefault(key, outcome)
        self.emit("target", candidate.id, self.ids(example), outcome)
        self.stream.emit(SpentChanged(self.spent))

    async def finish(self) -> None:
        """End the search: wait for what is in flight, and let nothing of it follow.

        A search that a stop unwinds may leave branches behind (`asyncio.gather` does), which would go on as soon as
        calls are admitted again for the report.
        """
        self._over = True
        await self.rest()
        self._note_unseen()

    async def rest(self) -> None:
        """Wait for what is in flight."""
        if pending := self._pending():
            await asyncio.wait(pending)

    async def abandon(self, grace: float) -> None:
        """Wait for what is in flight, but no longer than `grace` seconds: then it is given up."""
        if pending := self._pending():
            _, left = await asyncio.wait(pending, timeout=grace)
            for task in left:
                task.cancel()

    def _pending(self) -> list[asyncio.Task[Outcome] | asyncio.Task[dspy.Prediction | None] | asyncio.Task[Json]]:
        effects = (*self._outcomes.values(), *self._replies.values(), *self._results.values())
        return [task for task in effects if not task.done()]

    def known(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> tuple[float | None, ...]:
        """Return scores as `Run.known` does."""
        return self.so_far(candidate, examples).values

    def so_far(self, candidate: Candidate, examples: Sequence[dspy.Example]) -> Scores:
        """Return what is known now of a candidate; an example that it has not run on counts as missing."""
        found = (self.outcome_of(candidate, example) or _NOT_RUN for example in examples)
        return Scores(candidate, tuple(examples), tuple(found), self.together)

    @property
    def ran(self) -> tuple[Outcome, ...]:
        """What became of every program run until now, in no order that means anything."""
        done = {key: task.result() for key, task in list(self._outcomes.items()) if _is_settled(task)}
        return tuple(o for key, o in {**self._settled, **done}.items() if not key.startswith("judge:"))

    def outcome_of(self, candidate: Candidate, example: dspy.Example) -> Outcome | None:
        """Return what became of a candidate on an example, as far as it is known now."""
        key = self.key(candidate, example)
        task = self._outcomes.get(key)
        return task.result() if task is not None and _is_settled(task) else self._settled.get(key)

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return the first parents as `Run.lineage` does."""
        return line_of(candidate, self._candidates)

    def claim(self, candidate: Candidate) -> None:
        """Take a candidate's origin for the one that counts, as `Run.claim` says."""
        self._candidates[candidate.id] = candidate

    def cost(self, scores: Scores) -> Usage:
        """Return what the program runs behind `scores` used, whichever session of the run made them."""
        keys = [self.key(scores.candidate, example) for example in scores.examples]
        return sum((self.costs.get(key, Usage()) for key in dict.fromkeys(keys)), Usage())

    def trials(self) -> tuple[Trial, ...]:
        """Return every candidate with a score on a selection example, best first."""
        known = (self.so_far(candidate, self.select) for candidate in self._candidates.values())
        trials = [Trial(scores.candidate, scores.values, scores.score, scores.n) for scores in known if scores.n]
        return tuple(sorted(trials, key=lambda t: (*worst_last(t.mean), t.candidate.size, t.candidate.id)))

    def front(self) -> tuple[Standing, ...]:
        """Return the candidates that no other dominates, of those scored on every selection example that the student
        has a score on."""
        base = self.known(self.baseline, self.select)
        scored = [example for example, v in zip(self.select, base, strict=True) if v is not None]
        known = [self.so_far(candidate, scored) for candidate in self._candidates.values()]
        return undominated([self._standing(scores) for scores in known if scores.n and not scores.missing])

    def _standing(self, scores: Scores) -> Standing:
        tokens = self.cost(scores).tokens / scores.n or None
        return Standing(scores.candidate.id, scores.score, scores.objectives, scores.candidate.size, tokens)

    def best_so_far(self) -> Candidate:
        """Return the best candidate by what is known now, compared with the baseline on the same examples.

        What a stop left unscored counts as lost, that is 0, or the lowest score seen where that is less: searches
        begin where the student fails, so that a child's first scores flatter it. A provider's failure counts for
        neither side.
        """
        base, ahead = self.so_far(self.baseline, self.select), []
        known = [self.so_far(candidate, self.select) for candidate in list(self._candidates.values())]
        least = lowest(*(scores.values for scores in known))
        for scores in known:
            both = common([scores, base])
            pairs = zip(base.values, scores.outcomes, strict=True)
            lost = [v - least for v, o in pairs if o is _NOT_RUN and v is not None]
            if (lost and self.together is not None) or not both:
                continue
            n = len(both) + len(lost)
            gained = (scores.score_on(both) - base.score_on(both)) * len(both) / n - math.fsum(lost) / n
            if gained > 0:
                ahead.append((gained, -scores.candidate.size, scores.candidate))
        return max(ahead, key=lambda entry: entry[:2])[2] if ahead else self.baseline

    def shortest_as_good(self, best: Candidate) -> Candidate:
        """Return the shortest candidate that cannot be told from the best one: it is above the student too, and the
        difference between the two is more likely chance than not (`EQUAL`)."""
        own, base = self.so_far(best, self.select), self.so_far(self.baseline, self.select)
        for candidate in sorted(self._candidates.values(), key=lambda c: (c.size, c.id)):
            scores = self.so_far(candidate, self.select)
            if candidate.size >= best.size or best == self.baseline or own.missing or scores.missing or base.missing:
                continue
            if scores.score > base.score and p_value_of(scores, own, seed=self.seed) > EQUAL:
                return candidate
        return best

    def key(self, candidate: Candidate, example: dspy.Example) -> str:
        """Return what names the program run of a candidate on an example."""
        return f"{candidate.id}:{self.ids(example)}"

    def outcome(
        self,
        candidate: Candidate,
        example: dspy.Example,
        *,
        key: str = "",
        rewritten: Mapping[str, str] = MappingProxyType({}),
        draw: int = 0,
        judge: Role = "judge",
    ) -> asyncio.Future[Outcome]:
        """Return the effect of running a candidate on an example, begun now unless it is under way or known.

        Args:
            candidate: What runs.
            example: What it runs on.
            key: Names the effect, where it is not the score that counts for the search.
            rewritten: Values that the program gets in place of the example's own; the metric does not see them.
            draw: Number of the draw: 0 is what counts for the search.
            judge: Whose the metric's calls are.
        """
        plain = self.key(candidate, example)
        key = key or (f"again:{plain}:{draw}" if draw else plain)
        return self._once(key, lambda: self._score_once(candidate, example, key, rewritten, draw, judge))

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
        self, candidate: Candidate, example: dspy.Example, key: str, rewritten: Mapping[str, str], draw: int, who: Role
    ) -> Outcome:
        stored = self._journal.get("outcomes", key) if self._journal else None
        if stored is not None:
            outcome = self._recall(key, stored)
        else:
            current = Effect(key, "target", self.gate, who)
            unreached = self._unreached(candidate)
            texts: list[str] = []
            current.texts = texts if unreached else None
            outcome = await self.scorer.run(candidate, example, current, rewritten=rewritten, draw=draw)
            outcome = self.gate.redactor.reply(outcome)  # a metric's feedback may repeat a key
            self._count_cost(key, sum(current.used.values(), Usage()))
            found = {
                name: any(reaches(candidate.prompts[name].instructions, text) for text in texts)
                for name in (sorted(unreached) if texts else ())
            }
            self._note_reached(found)
            self._store(key, outcome, current, found)
        outcome = self._weighed(outcome)
        self.emit("target", candidate.id, self.ids(example), outcome)
        return outcome

    async def _judge_once(self, example: dspy.Example, outputs: Mapping[str, object], key: str) -> Outcome:
        self.gate.check()
        return await self.scorer.judge(example, outputs, Effect(key, "judge", self.gate))

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
            raise self.gate.stop("journal", str(error)) from None

    def _recall(self, key: str, stored: Mapping[str, object]) -> Outcome:
        body, used, reached = stored["outcome"], stored["used"], stored.get("reached", {})
        assert isinstance(body, dict) and isinstance(used, dict) and isinstance(reached, dict)
        self._note_reached(reached)
        self._count_cost(key, sum((Usage(**usage) for usage in used.values()), Usage()))
        return outcome_from_json(body)

    def _count_cost(self, key: str, used: Usage) -> None:
        self.costs[key] = used
        self.most_calls = max(self.most_calls, used.calls)

    def _unreached(self, candidate: Candidate) -> set[str]:
        """Return the predictors whose new instructions no request was seen to have until now."""
        own = self.baseline.prompts
        return {
            name
            for name, prompt in candidate
            if not self._reached.get(name) and prompt.instructions != own[name].instructions
        }

    def _note_reached(self, found: Mapping[str, bool]) -> None:
        """Take note of which predictors' new instructions stood in the requests of a program run."""
        for name, reached in found.items():
            self._reached[name] = reached or self._reached.get(name, False)

    def _note_unseen(self) -> None:
        for name in (name for name, reached in self._reached.items() if not reached):
            self.note(
                f"New instructions of the predictor {name!r} were in none of the requests that the program made: it "
                "is not called, or the program replaces what it is told.",
                kind="unseen",
            )


class _OnEffects(Protocol):
    _effects: Effects


def effects_of(run: _OnEffects) -> Effects:
    """Return what stands behind a `Run`: the one door for code that works within it for others.

    A search has no use for it: what it learns there is no part of its contract, and may change.
    """
    return run._effects


def seeded(seed: int, *key: object) -> random.Random:
    """Return a fresh generator for a run's seed and `key`: the same at any concurrency."""
    text = repr((seed, key)).encode("utf-8", "surrogatepass")
    return random.Random(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))


def _is_faulty(error: LMError) -> bool:
    """Return whether it is the request that a provider, or dspy before it, takes exception to."""
    return is_refused(error) or isinstance(error, LMUnsupportedFeatureError)


def _is_settled(task: asyncio.Task[Outcome]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


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


async def all_of(tasks: Sequence[asyncio.Future[T]]) -> list[T]:
    """Wait for all tasks, so that what is in flight is kept, and only then raise the first failure."""
    if tasks:
        await asyncio.wait(tasks)
    if any(task.cancelled() for task in tasks):
        raise RunStopped("stopped")
    failed = [error for task in tasks if (error := task.exception()) is not None]
    if failed:
        raise next((error for error in failed if not isinstance(error, RunStopped)), failed[0])
    return [task.result() for task in tasks]
