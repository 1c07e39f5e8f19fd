"""A search along the Pareto front: what is best on at least one example is worth building on.

Source: GEPA (2507.19457) has parents drawn from the front by instance, and the trial of a child on the minibatch that
it was written from; gepa 0.1.4 has several parents and proposals a round. Initial prompts that race, minibatches by
difficulty, restarts, rounds that overlap, and the test that a merge has to pass are ours.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import dspy

from cuesmith.modules.sampling import weighted_order
from cuesmith.teleprompters.runtime.candidate import Candidate, distinct, example_id, made_from
from cuesmith.teleprompters.runtime.compilation import Plan, Trial
from cuesmith.teleprompters.runtime.outcomes import Scores, lowest, rank
from cuesmith.teleprompters.runtime.statistics import paired_gain
from cuesmith.teleprompters.runtime.workers import begun
from cuesmith.teleprompters.search.examples import Casebook
from cuesmith.teleprompters.search.scene import Scene, beginning
from cuesmith.teleprompters.search.setting import Setting

Start = Callable[[Scene, int], Awaitable[list[Candidate]]]
Update = Callable[[Scene, Sequence[Scores]], Awaitable[list[Candidate]]]
Merge = Callable[[Scene, str, str, str], Awaitable[str | None]]

FRONTIER = Setting(width=4, branch=2, steps=10, minibatch=6, watching=False, overlap=3)
"""What `search="frontier"` means for every compiler: `width` parents a round, `branch` proposals each.

A round looks at what was known when the last but `overlap` had ended, whatever ends first: so results are the same at
any number of calls in flight. Under a cap on calls rounds are smaller, and one at a time, so that each can build on the
last. Ours."""

STALE = 3
"""So many rounds without a new candidate on the front, and a prompt is written afresh, from examples alone. Ours."""

MERGES = 5
"""Merges of a search at most, as in GEPA."""

LOOKS = (8, 24)
"""After so many selection examples a child may be given up: few looks, for each is waited for. Ours."""

SURE = 0.2
"""A merge is kept if its gain over the better parent on examples new to both has a p-value of at most this. Ours."""


@dataclass(frozen=True)
class Front:
    """Candidates that nobody beats on some example, or in the mean of some objective (as gepa's "hybrid" frontier).

    Attributes:
        members: Their scores, the best first.
        held: Id -> the positions of the examples on which nobody does better; behind them those of objectives, and of
            what the metric makes of all answers together.
    """

    members: tuple[Scores, ...]
    held: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, pool: Sequence[Scores]) -> Front:
        """Return the front of a pool, without those for whose every example another member is as good.

        Args:
            pool: Different candidates, scored on the same examples.
        """
        ranked = rank(pool)
        names = sorted({name for one in ranked for name in one.objectives})
        rows = {one.candidate.id: (*one.values, *map(one.objectives.get, names), one.score if one.together else None)
                for one in ranked}  # fmt: skip
        columns = zip(*rows.values(), strict=True)
        best = [max((v for v in column if v is not None), default=math.inf) for column in columns]
        held = {key: frozenset(i for i, v in enumerate(row) if v is not None and v == best[i])
                for key, row in rows.items()}  # fmt: skip
        for one in reversed(ranked):  # the worst goes first
            others = [places for key, places in held.items() if key != one.candidate.id]
            if held[one.candidate.id] <= frozenset().union(*others):
                del held[one.candidate.id]
        return cls(tuple(one for one in ranked if one.candidate.id in held), held)

    def draw(self, scene: Scene, count: int) -> list[Scores]:
        """Return different members, each drawn with the number of examples that it holds for its weight."""
        weights = [len(self.held[one.candidate.id]) for one in self.members]
        return [self.members[i] for i in weighted_order(scene.run.rng("parents", scene.step), weights)[:count]]

    def rivals(self, merged: frozenset[frozenset[str]]) -> tuple[Candidate, Candidate] | None:
        """Return the two that hold most examples together, each some that the other does not.

        Args:
            merged: Pairs of ids that are not wanted.
        """
        pairs = [(a, b) for k, a in enumerate(self.held) for b in list(self.held)[k + 1 :]
                 if frozenset((a, b)) not in merged
                 and self.held[a] - self.held[b] and self.held[b] - self.held[a]]  # fmt: skip
        if not pairs:
            return None
        both = max(pairs, key=lambda pair: len(self.held[pair[0]] | self.held[pair[1]]))
        first, second = (one.candidate for one in self.members if one.candidate.id in both)
        return first, second


@dataclass(frozen=True)
class Found:
    """What came of a round.

    Attributes:
        kept: Its new candidates, scored on all selection examples.
        ran: What candidates did on training examples.
        book: What was learnt from it.
        merged: Pairs of ids that a merge was tried of.
        made: All that were run on selection examples.
    """

    kept: tuple[Scores, ...]
    ran: tuple[Scores, ...]
    book: Casebook
    merged: frozenset[frozenset[str]]
    made: tuple[Candidate, ...]


@dataclass(frozen=True)
class Known:
    """What a round looks at: all that came of the rounds that had ended when it began.

    Attributes:
        pool: Candidates scored on all selection examples.
        ran: What candidates did on training examples.
        stale: Rounds since the front last got a new member.
        merged: Pairs of ids that a merge was tried of.
    """

    pool: tuple[Scores, ...]
    ran: tuple[Scores, ...] = ()
    stale: int = 0
    merged: frozenset[frozenset[str]] = frozenset()

    def after(self, found: Found) -> Known:
        """Return what is known with one more round."""
        old = {one.candidate.id for one in self.pool}
        pool = (*self.pool, *(one for one in found.kept if one.candidate.id not in old))
        new = set(Front.of(pool).held) - old
        return Known(pool, (*self.ran, *found.ran), 0 if new else self.stale + 1, self.merged | found.merged)

    def odds(self, threshold: float) -> dict[str, float]:
        """Return what each training example is drawn with: 4 p (1 - p), p being how often it went well.

        One success and one failure are added, so that one that nobody has tried has 1, as all others.
        """
        went = {(example_id(example), scores.candidate.id): v >= threshold
                for scores in self.ran for example, v in zip(scores.examples, scores.values, strict=True)
                if v is not None}  # fmt: skip
        tried: dict[str, list[bool]] = {}
        for (example, _), well in went.items():
            tried.setdefault(example, []).append(well)
        shares = {key: (sum(well) + 1) / (len(well) + 2) for key, well in tried.items()}
        return {key: 4.0 * p * (1.0 - p) for key, p in shares.items()}

    def trials(self) -> tuple[Trial, ...]:
        """Return the pool as `Run.trials` would."""
        return tuple(Trial(one.candidate, one.values, one.score, one.n) for one in rank(self.pool) if one.n)


class Frontier:
    """The search. A round draws `width` parents, and has `branch` children proposed of each; of few parents more.

    Children are tried on the minibatch; those that do better there than their parents, at most `width` of them, are
    scored on the selection examples as long as they may become the best, or are on some example. Two members of the
    front that win on different examples are merged, and the merge is tried on examples new to both. Where nothing comes
    of several rounds, a prompt is written afresh. It ends early where the best candidate has no failure left.

    Args:
        scene: The initial step.
        start: Writes initial candidates.
        branching: Returns what proposes so many children of each of so many parents.
        merge: Writes one instruction of a predictor from two; None where it cannot.
    """

    def __init__(self, scene: Scene, start: Start, branching: Callable[[int, int], Update], merge: Merge) -> None:
        self.scene, self.run, self.setting = scene, scene.run, scene.setting
        self.start, self.branching, self.merge = start, branching, merge
        self.claimed: set[str] = set()

    async def search(self) -> Candidate:
        """Search, and return the best by its mean on the selection examples."""
        rounds: deque[asyncio.Task[Found]] = deque()
        known, ended = await self._begin(), 0
        for step in range(1, self.setting.steps + 1):
            if not rank(known.pool)[0].failures(self.setting.threshold):
                break
            rounds.append(begun(self._round(step, known, self.scene.book.copy())))
            if len(rounds) == self.setting.overlap:
                known, ended = await self._end(ended + 1, known, await rounds.popleft()), ended + 1
        while rounds:
            known, ended = await self._end(ended + 1, known, await rounds.popleft()), ended + 1
        return rank(known.pool)[0].candidate

    async def _begin(self) -> Known:
        """Let the initial prompts race; what is scored to the end is the first pool."""
        pool = await beginning(self.scene, self.start)
        self.claimed.update(one.id for one in pool)
        kept = await self.scene.keep(pool)
        await self.run.record(0, kept)
        base = await self.run.score([self.run.baseline], self.run.select)
        return Known(tuple({one.candidate.id: one for one in (*kept, *base)}.values()))

    async def _end(self, step: int, known: Known, found: Found) -> Known:
        """Return what is known after a round, and record it."""
        self.scene.book.take(found.book)
        for child in (one for one in found.made if one.id not in self.claimed):
            self.claimed.add(child.id)
            self.run.claim(child)
        known = known.after(found)
        await self.run.record(step, rank(known.pool)[: self.setting.width])
        return known

    async def _round(self, step: int, known: Known, book: Casebook) -> Found:
        here, front = replace(self.scene, past=known.trials(), book=book, tried=[]).at(step), Front.of(known.pool)
        here = replace(here, odds=known.odds(here.threshold))
        parents = front.draw(here, self.setting.width)
        fresh = int(known.stale > 0 and known.stale % STALE == 0)
        branch = max(1, self.setting.width * self.setting.branch // len(parents))  # of a small front as many
        propose = self.branching(len(parents), branch)
        apart = [here.apart() for _ in range(3)]
        made, written, (merges, merged) = await asyncio.gather(
            propose(apart[0], parents), self.start(apart[1], fresh), self._merged(apart[2], front, known)
        )
        here.join(apart)
        old = {one.candidate.id for one in known.pool}
        children = [child for child in distinct([*made, *written]) if child.id not in old]
        better = await self._better(here, [one.candidate for one in parents], children, written)
        kept = await self._validated(known, better := distinct([*better, *merges]))
        return Found(tuple(kept), tuple(here.tried), here.book, merged, tuple(better))

    async def _validated(self, known: Known, children: Sequence[Candidate]) -> list[Scores]:
        """Score children on the selection examples, those first that the pool does worst on, and return their scores.

        A child that is better than all on some example is scored to the end. Any other is given up as soon as it cannot
        rise above the best mean any more, whatever it scores on the examples still to come; none where racing is off.
        """
        if not children or not self.scene.racing:
            return await self.run.score(children, self.run.select)
        least = lowest(*(one.values for one in known.pool))
        rows = [[least if v is None else v for v in one.values] for one in known.pool]
        tops = [max(column) for column in zip(*rows, strict=True)]
        bar, highest = max(map(math.fsum, rows)), max(1.0, *tops)
        sums = [math.fsum(column) for column in zip(*rows, strict=True)]
        order, left, n = sorted(range(len(tops)), key=lambda i: (tops[i], sums[i])), list(children), 0
        while left and n < len(order):
            seen = order[: (n := next((look for look in LOOKS if n < look < len(order)), len(order)))]
            ran = await self.run.score(left, [self.run.select[i] for i in seen])
            left = [one.candidate for one in ran if any(
                v is None or v > tops[i] for i, v in zip(seen, one.values, strict=True))
                or math.fsum(v or 0.0 for v in one.values) + highest * (len(order) - n) > bar]  # fmt: skip
        return await self.run.score(left, self.run.select)

    async def _better(
        self, scene: Scene, parents: Sequence[Candidate], children: Sequence[Candidate], written: Sequence[Candidate]
    ) -> list[Candidate]:
        """Return the children that do better on the minibatch than their parents; what is written afresh has none, and
        has to be as good as the best of them."""
        if not children:
            return []
        ran = await scene.try_out(distinct([*parents, *children]), scene.minibatch())
        rows, ids = {one.candidate.id: one.values for one in ran}, [one.id for one in parents]
        against = {
            child: ids if child in written else [key for key in child.origin.parents[:1] if key in ids] or ids
            for child in children
        }
        gains = {
            child: min(_ahead(rows[child.id], rows[key]) for key in keys) + 1e-9 * (child in written)
            for child, keys in against.items()
        }
        better = sorted((child for child in children if gains[child] > 0), key=lambda c: (-gains[c], c.size))
        return better[: self.setting.width]

    async def _merged(
        self, scene: Scene, front: Front, known: Known
    ) -> tuple[list[Candidate], frozenset[frozenset[str]]]:
        """Return a merge that is better on examples new to both, if there is one, and the pair that was tried."""
        pair = front.rivals(known.merged) if not known.stale and len(known.merged) < MERGES else None
        if pair is None:
            return [], frozenset()
        tried = frozenset([frozenset(one.id for one in pair)])
        fresh, made = self._new_to(scene, pair, known), await self._merge(scene, *pair)
        if made is None or made in pair or not fresh:
            return [], tried
        scores = await scene.try_out([*pair, made], fresh)
        gain = paired_gain(rank(scores[:2])[0].values, scores[2].values, seed=self.run.seed)
        return ([made] if gain.difference > 0 and gain.p_value <= SURE else []), tried

    async def _merge(self, scene: Scene, first: Candidate, second: Candidate) -> Candidate | None:
        """Return a candidate with what both have, where the two differ; None if there is none.

        Of a predictor that one of them has not changed the other's prompt is taken, as GEPA does; where both have, one
        instruction is written from two.
        """
        made: Candidate | None = first
        for name, other in second:
            own, base = first.prompts[name], self.run.baseline.prompts[name]
            if made is None or other in (own, base):
                continue
            text = (
                other.instructions
                if own == base
                else await self.merge(scene, name, own.instructions, other.instructions)
            )
            made = (
                None
                if text is None
                else made.replace(
                    name,
                    instructions=text,
                    demos=(other if own == base else own).demos,
                    origin=made_from("merge", (), first, second),
                )
            )
        return made

    def _new_to(self, scene: Scene, pair: Sequence[Candidate], known: Known) -> list[dspy.Example]:
        """Return training examples that nothing about the two has depended on, at most two minibatches."""
        lines = [ancestor for one in pair for ancestor in scene.lineage(one)]
        used = {key for one in lines for key in one.origin.evidence}
        ids = {one.id for one in lines}
        used |= {example_id(e) for scores in known.ran if scores.candidate.id in ids for e in scores.examples}
        fresh = [e for e in self.scene.material.evidence if example_id(e) not in used]
        return fresh[: 2 * self.setting.minibatch]


def _ahead(own: Sequence[float | None], other: Sequence[float | None]) -> float:
    """Return how far one is ahead of another on the examples that both have a score for."""
    both = [(a, b) for a, b in zip(own, other, strict=True) if a is not None and b is not None]
    return math.fsum(a for a, _ in both) - math.fsum(b for _, b in both)


def frontier_plan(
    setting: Setting, each: Plan, first: Plan, n_predictors: int, n_select: int, n_train: int, summary: bool
) -> Plan:
    """Return upper bounds of the search.

    Of a round's new candidates at most `width` are scored, all are tried on a minibatch with their parents. A merge
    takes a call a predictor and 6 minibatches, and some prompts are written afresh.

    Args:
        setting: The numbers.
        each: What proposing children of one parent takes.
        first: What an initial prompt takes: optimizer calls for each predictor, and program runs.
        n_predictors: Predictors of the student.
        n_select: Selection examples.
        n_train: Training examples.
        summary: Whether the data is summarised first.
    """
    s, parents = setting, setting.steps * setting.width
    batch, merges, fresh = min(s.minibatch, n_train), min(MERGES + s.overlap - 1, s.steps), s.steps // STALE
    runs = (1 + s.initial + parents + merges) * n_select + parents * each.program_runs + batch
    runs += (parents * (1 + s.branch) + fresh + 6 * merges) * batch
    runs += (s.initial + fresh) * first.program_runs
    asked = summary + (s.initial + fresh) * n_predictors * first.optimizer_calls
    return Plan(asked + parents * each.optimizer_calls + merges * n_predictors, runs)
