"""Finding the best candidates: by full scoring, by racing, or by a bandit.

Racing keeps the same scores as full scoring, without scoring every candidate on every example. It is ours, a branch and
bound: a candidate is given up as soon as it can no longer enter the beam, whatever it scores on the examples still to
come. The order in which examples and candidates are taken makes that come early.

A bandit finds the best for a fixed number of program runs. Each candidate is an arm, and a pull is its score on one
more example. Sources:

- "ucb", "ucb-e": ProTeGi, 2305.03495 and its public code (microsoft/LMOps, `prompt_optimization/evaluators.py`);
  "ucb-e" first in Audibert, Bubeck, Munos 2010, "Best arm identification in multi-armed bandits".
- "sr", successive rejects: the same paper of 2010.
- "sh", successive (sequential) halving: Karnin, Koren, Somekh 2013, "Almost optimal exploration in multi-armed
  bandits".

"sr" and "sh" as published for one winner, "ucb" and "ucb-e" as in ProTeGi's code, where t is the number of the round.
Ours: `width` winners in "sr" and "sh" (ProTeGi's code overspends in the one and leaves the other unfinished), examples
in one order for all arms (in the code each round draws its own, for all arms it pulls), more rounds for more arms than
the code's numbers are made for, and what a missing score counts as (nothing).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate, distinct
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.outcomes import Scores, lowest, rank
from cuesmith.teleprompters.runtime.run import Run

BLOCK = 4
"""Examples from one look to the next, or a quarter of those so far where that is more. Ours, measured."""

LEADERS = 2
"""Candidates that may be scored to the end at each look. Ours, measured: one, two and four cost nearly the same."""

Method = Literal["ucb", "ucb-e", "sr", "sh"]
METHODS: tuple[Method, ...] = get_args(Method)

ROUND = 8
"""Arms that "ucb" and "ucb-e" pull in a round, and the number of their rounds: both as in ProTeGi's code."""

EXPLORATION = 1.0
"""The c of "ucb" and "ucb-e", as in ProTeGi's code."""

ALMOST_NONE = 1e-3
"""Pulls that ProTeGi's code gives each arm in its index on top of its own, lest it divide by 0."""


async def keep_best(run: Run, pool: Iterable[Candidate], width: int) -> list[Scores]:
    """Score every distinct candidate on the selection examples and return the best, best first.

    All candidates x examples go out in one call, so that the pool of calls stays full; parents cost nothing
    again. Ties go to the shorter prompt, then to the earlier candidate.

    Args:
        run: The run.
        pool: Parents and children.
        width: How many to keep.
    """
    return rank(await run.score(distinct(pool), run.select))[:width]


async def race(run: Run, pool: Sequence[Candidate], width: int) -> list[Scores]:
    """Find the best candidates on the selection examples without scoring all of them on all examples.

    The bar is the candidate with the `width`-th best score of those that are known on all examples: parents first of
    all, which cost nothing. All others walk through the examples, those first on which the best parents score lowest:
    there a child shows whether it gains anything. At each look those that cannot rise above the bar any more, even with
    the highest score on every example still to come, are dropped; then the best of those that are ahead of it so far
    are scored to the end, which raises the bar for the rest.

    Nothing is lost by it: the scores of the beam are exactly those of full scoring. Of candidates with equal scores
    another may be kept, for one that can only draw level is dropped too. The highest score is taken to be 1, or the
    highest seen so far where that is more. A missing score counts for the candidate as the highest, for the bar as 0,
    or the lowest seen so far where that is less.

    What it saves depends on how far the children are from the beam. Share of the program runs of full scoring, in
    simulated searches (beam of 4; 5 candidates, then 3 steps of 16 children; 0/1 scores on 50 examples of common
    difficulty; the study stands in `tests/test_racing.py`), and in compiles on the embedded model
    (`benchmarks/compilers.py --racing`):

    | children's true accuracy | share |
    |---|---|
    | 10 to 80 % | 0.62 |
    | 50 to 60 % | 0.84 |
    | 80 to 95 % | 0.53 |
    | the parent's - 3 +- 10 points | 0.75 |
    | embedded model | 0.42 |

    Args:
        run: The run.
        pool: Parents and children; of equal ones the first counts.
        width: How many to keep.

    Returns:
        The best, best first, scored on all selection examples.

    Raises:
        RunStopped: As `run.score`.
    """
    pool = distinct(pool)
    done = [c for c in pool if None not in run.known(c, run.select)]
    left = [c for c in pool if c not in done]
    order, n = _hardest_first(run, done, width), 0
    while left:
        n = min(len(order), n + max(BLOCK, n // 4))
        await run.score(left, order[:n])
        left = _open(run, done, left, width)
        leaders = left if n == len(order) else _ahead(run, done, left, width, order[:n])
        await run.score(leaders, run.select)
        done += leaders
        left = _open(run, done, [c for c in left if c not in leaders], width)
    return rank(await run.score(done, run.select))[:width]


def _hardest_first(run: Run, parents: Sequence[Candidate], width: int) -> list[dspy.Example]:
    """Return the selection examples, by the sum of the best parents' scores and, where equal, in a seeded order."""
    lowest, _ = _range(run, parents)
    rows = [run.known(c, run.select) for c in _best(run, parents, run.select, lowest)[:width]]
    seeded = run.rng("race").sample(range(len(run.select)), len(run.select))
    return [run.select[i] for i in sorted(seeded, key=lambda i: math.fsum(_or(row[i], lowest) for row in rows))]


def _ahead(
    run: Run, done: Sequence[Candidate], left: Sequence[Candidate], width: int, seen: Sequence[dspy.Example]
) -> list[Candidate]:
    """Return the best of `left` on the examples seen so far, only such as are above the bar there if there is one."""
    lowest, _ = _range(run, [*done, *left])
    bars = [_sum(run, b, seen, lowest) for b in _best(run, done, run.select, lowest)[width - 1 : width]]
    ahead = _best(run, left, seen, lowest)[:LEADERS]
    return [c for c in ahead if all(_sum(run, c, seen, lowest) > bar for bar in bars)]


def _open(run: Run, done: Sequence[Candidate], left: Sequence[Candidate], width: int) -> list[Candidate]:
    """Return those of `left` that can still rise above the bar."""
    lowest, highest = _range(run, [*done, *left])
    bars = [_sum(run, c, run.select, lowest) for c in _best(run, done, run.select, lowest)[width - 1 : width]]
    return [c for c in left if all(_sum(run, c, run.select, highest) > bar for bar in bars)]


def _range(run: Run, candidates: Sequence[Candidate]) -> tuple[float, float]:
    """Return the lowest and the highest score of these candidates, at most 0 and at least 1."""
    known = [v for c in candidates for v in run.known(c, run.select) if v is not None]
    return lowest(known), max([1.0, *known])


def _best(
    run: Run, candidates: Sequence[Candidate], examples: Sequence[dspy.Example], unknown: float
) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (-_sum(run, c, examples, unknown), c.size))


def _sum(run: Run, candidate: Candidate, examples: Sequence[dspy.Example], unknown: float) -> float:
    return math.fsum(_or(v, unknown) for v in run.known(candidate, examples))


def _or(value: float | None, unknown: float) -> float:
    return unknown if value is None else value


class Bandit:
    """A selection that does no I/O: ask it for pulls, tell it the scores, until it asks for no more.

        while asked := bandit.next():
            bandit.tell({arm: [score(arm, example) for example in examples] for arm, examples in asked.items()})
        kept = bandit.best()

    An arm's pulls walk through one order of the examples, the same for all arms, each example once: arms are compared
    on common examples as far as can be, and none is pulled when it has seen them all. A missing score is no pull: it
    costs nothing of the budget, and the arm's next example takes its place.

    Args:
        method: How pulls are shared out:

            - "ucb": rounds of 8 arms, those with the highest mean + c sqrt(ln t / n), n being the arm's pulls and
              t the number of rounds so far (as in ProTeGi's paper and code; total pulls would be UCB1). Every arm is
              pulled once before any is pulled twice (in the code ln 1 = 0 can pull the first 8 again). An arm of a
              round gets budget / 64 examples (the code: 32 of 2,048), or, with more than 32 arms, so many that half
              of the budget pays for the first pass (ours).
            - "ucb-e": the same with mean + c sqrt(c / n).
            - "sr": the worst arm is rejected after each phase, until `width` are left; in phase k every arm left is
              pulled up to n_k = ceil((B - K) / (L (K + 1 - k))) times, with K arms, budget B and
              L = width / (width + 1) + sum of 1/i for i = width + 1 .. K: for one winner the logbar(K) of 2010, and
              for several the L that spends the budget by the same proof (ours).
            - "sh": ceil(log2(K / width)) rounds, in each of which every arm left is pulled
              floor(B / (arms left * rounds)) times more, and the worse half is dropped, but `width` stay. Karnin's
              rounds end at one winner. Means are over all pulls of an arm (ours).
        arms: How many there are.
        width: How many are wanted.
        order: The examples' numbers, in the order in which arms are pulled on them.
        budget: Pulls of all arms together; never exceeded. Less is used where arms have seen all examples, by rounding,
            and in "ucb" and "ucb-e" where there are less arms than a round has places.

    Raises:
        TypeError: If a number is no int.
        ValueError: If the method is unknown, a number is not positive, or the budget has no pull for every arm.
    """

    def __init__(self, method: Method, arms: int, width: int, order: Sequence[int], budget: int) -> None:
        shares = {"ucb": self._ucb, "ucb-e": self._ucb, "sr": self._successive_rejects, "sh": self._halving}
        if method not in shares:
            raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
        self.method = method
        self.width = min(whole("width", width), whole("arms", arms))
        self.budget = whole("budget", budget)
        if self.width < arms and budget < arms:
            raise ValueError(f"a budget of {budget} pulls is not enough to pull each of {arms} arms once")
        self._order = tuple(order)
        self._values: list[list[float]] = [[] for _ in range(arms)]
        self._seen = [0] * arms
        self._left = list(range(arms))
        self._asked: dict[int, tuple[int, ...]] = {}
        self._wants = shares[method]() if self.width < arms else iter(())

    @property
    def pulls(self) -> tuple[int, ...]:
        """How many scores each arm has."""
        return tuple(map(len, self._values))

    def next(self) -> dict[int, tuple[int, ...]]:
        """Return the examples on which each arm is to be scored now; none when the selection is over.

        Raises:
            RuntimeError: If the scores of the last pulls have not been told.
        """
        if self._asked:
            raise RuntimeError("tell the scores of the last pulls first")
        spare = self.budget - sum(self.pulls)
        if spare:
            for arm, count in next(self._wants, {}).items():
                examples = self._order[self._seen[arm] : self._seen[arm] + min(count, spare)]
                spare -= len(examples)
                if examples:
                    self._asked[arm] = examples
        return dict(self._asked)

    def tell(self, values: Mapping[int, Sequence[float | None]]) -> None:
        """Take the scores of the pulls that `next` asked for.

        Args:
            values: Arm -> its scores in the order of the examples; None where one is missing.

        Raises:
            ValueError: If they are not the scores of those pulls.
        """
        if {arm: len(scores) for arm, scores in values.items()} != {a: len(e) for a, e in self._asked.items()}:
            raise ValueError("the scores are not those of the pulls that were asked for")
        for arm, scores in values.items():
            self._seen[arm] += len(scores)
            self._values[arm] += [score for score in scores if score is not None]
        self._asked = {}

    def best(self) -> list[int]:
        """Return the `width` best of the arms left, best first by their means."""
        return self._by_mean(self._left)[: self.width]

    def _mean(self, arm: int) -> float:
        values = self._values[arm]
        return math.fsum(values) / len(values) if values else -math.inf

    def _by_mean(self, arms: Iterable[int]) -> list[int]:
        """Return the arms best first; ties go to the earlier one, an arm without scores comes last."""
        return sorted(arms, key=lambda arm: (-self._mean(arm), arm))

    def _open(self, arms: Iterable[int]) -> list[int]:
        """Return the arms that have examples left."""
        return [arm for arm in arms if self._seen[arm] < len(self._order)]

    def _ucb(self) -> Iterator[dict[int, int]]:
        rounds = max(ROUND, math.ceil(len(self._left) / ROUND) + 3)  # all arms, one round for t = 1, two to choose in
        samples = self.budget // (rounds * ROUND)
        for t in range(rounds) if samples else itertools.count():
            arms = self._open(self._left)
            if t:
                arms.sort(key=lambda arm: (-self._index(arm, t, bool(samples)), arm))
            yield dict.fromkeys(arms[:ROUND], samples or 1)

    def _index(self, arm: int, t: int, greedy: bool) -> float:
        """Return what an arm is chosen by in round `t`; one without pulls comes first, but at t = 1 if `greedy`.

        The code's ln 1 = 0 makes that round a greedy one, in which an arm without pulls counts as 0.
        """
        spread = math.log(t) if self.method == "ucb" else EXPLORATION
        n = len(self._values[arm])
        if not n:
            return 0.0 if greedy and not spread else math.inf
        return self._mean(arm) + EXPLORATION * math.sqrt(spread / (n + ALMOST_NONE))

    def _successive_rejects(self) -> Iterator[dict[int, int]]:
        k, width = len(self._left), self.width
        share = width / (width + 1) + math.fsum(1 / i for i in range(width + 1, k + 1))
        for phase in range(1, k - width + 1):
            yield from self._reach(max(1, math.ceil((self.budget - k) / (share * (k + 1 - phase)))))
            self._left = self._by_mean(self._left)[:-1]

    def _halving(self) -> Iterator[dict[int, int]]:
        rounds, reached = math.ceil(math.log2(len(self._left) / self.width)), 0
        for _ in range(rounds):
            reached += max(1, self.budget // (len(self._left) * rounds))
            yield from self._reach(reached)
            self._left = self._by_mean(self._left)[: max(self.width, (len(self._left) + 1) // 2)]

    def _reach(self, pulls: int) -> Iterator[dict[int, int]]:
        """Ask until every arm left has so many pulls, or no examples."""
        while wants := {
            arm: pulls - len(self._values[arm]) for arm in self._open(self._left) if len(self._values[arm]) < pulls
        }:
            yield wants


async def select(
    run: Run, pool: Sequence[Candidate], width: int, *, method: Method, budget: int, key: object
) -> list[Scores]:
    """Find the best candidates by a bandit on the selection examples, and score those fully.

    A bandit's means are over different examples, and the ranks of "sr" and "sh" are no scores: so its `width` winners
    are scored on all selection examples and ranked by that. Program runs: at most `budget` + width * examples; less
    by every pull that is known from before (a parent's) and by the winners' own pulls, since both are free but a pull
    counts in the budget all the same. The bandit goes by means of single scores even where the metric judges all
    answers together; the winners are ranked by that.

    Args:
        run: The run.
        pool: Parents and children; of equal ones the first counts.
        width: How many to keep.
        method: As for `Bandit`.
        budget: Pulls.
        key: Seeds the order of the examples, with the run's seed.

    Returns:
        The winners, best first, scored on the selection examples.

    Raises:
        ValueError: If the budget has no pull for every candidate.
        RunStopped: As `run.score`.
    """
    arms = distinct(pool)
    if method in ("ucb", "ucb-e"):  # whose first round pulls arms at random
        arms = run.rng("arms", key).sample(arms, len(arms))
    order = run.rng("bandit", key).sample(range(len(run.select)), len(run.select))
    bandit = Bandit(method, len(arms), width, order, budget)
    while asked := bandit.next():
        bandit.tell(await _pull(run, arms, asked))
    return rank(await run.score([arms[arm] for arm in bandit.best()], run.select))


async def _pull(
    run: Run, arms: Sequence[Candidate], asked: Mapping[int, tuple[int, ...]]
) -> dict[int, tuple[float | None, ...]]:
    """Score every arm on its examples, arms with the same ones together."""
    together: dict[tuple[int, ...], list[int]] = {}
    for arm, examples in asked.items():
        together.setdefault(examples, []).append(arm)
    scored = await asyncio.gather(
        *(
            run.score([arms[arm] for arm in group], [run.select[i] for i in examples])
            for examples, group in together.items()
        )
    )
    return {
        arm: scores.values
        for group, many in zip(together.values(), scored, strict=True)
        for arm, scores in zip(group, many, strict=True)
    }
