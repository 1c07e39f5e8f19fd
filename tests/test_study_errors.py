"""The study of errors: the Mantel correlation and the exchange against enumeration, their errors, and the whole."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from study_support import bench, pairs_of, readable, refuses, symmetric

from cuesmith.programs.diagnosis.embedders import TfIdf
from cuesmith.programs.diagnosis.inference import holm
from cuesmith.programs.diagnosis.likeness import alike, mantel
from cuesmith.programs.diagnosis.planted import BATCH
from cuesmith.programs.studies.bench import Bench
from cuesmith.programs.studies.errors import DRAWS, MIXED, STUDY, ErrorsResult, ShownErrors, analysed, plan, sections
from cuesmith.programs.studies.observed import Observed, Shown
from cuesmith.programs.tasks import Sizes, Task, generate
from cuesmith.teleprompters.runtime.ledger import Budget

Floats = NDArray[np.float64]
SMALL = Sizes(train=40, validation=4, test=1)
CAUSES = ["count every quantity", "name the final entry", "reverse whole list", "add numbers up"]
FRAMES = ["you should {} here", "it fails to {}", "nothing says {}", "please {} instead", "always {} first"]


# --- Mantel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 6, 7])
def test_the_mantel_correlation_against_scipy_and_enumeration(n: int) -> None:
    for seed in range(3):
        one, other = symmetric(n, seed), symmetric(n, seed + 100)
        found = mantel(one, other)
        assert found is not None and found.exact and found.r.n == n
        wanted = stats.pearsonr(pairs_of(one), pairs_of(other)).statistic
        assert found.r.mean == pytest.approx(wanted) and found.r.low <= wanted <= found.r.high
        every = [
            np.corrcoef(pairs_of(one), pairs_of(other[np.ix_(order, order)]))[0, 1]
            for order in itertools.permutations(range(n))
        ]
        assert found.p_value == pytest.approx(np.mean([value >= wanted - 1e-12 for value in every]))
        assert found.pairs == tuple(sorted(zip(pairs_of(one).tolist(), pairs_of(other).tolist(), strict=True)))


def test_random_orders_are_near_all_orders_and_the_observed_one_counts() -> None:
    one, other = symmetric(9, 1), symmetric(9, 2)
    other = other + 0.3 * one
    found = mantel(one, other)
    rng = np.random.default_rng(5)
    every = [
        np.corrcoef(pairs_of(one), pairs_of(other[np.ix_(order, order)]))[0, 1]
        for order in (rng.permutation(9) for _ in range(4000))
    ]
    assert found is not None and not found.exact
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= found.r.mean), abs=0.03)
    assert found.detectable == pytest.approx((stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) * np.std(every), rel=0.1)
    same = mantel(symmetric(20, 3), symmetric(20, 3))
    assert same is not None and same.p_value == pytest.approx(1 / 2000) and same.r.mean == pytest.approx(1.0)


def test_there_is_no_correlation_where_all_is_equally_alike_or_too_little() -> None:
    assert mantel(symmetric(4, 0), symmetric(4, 1)) is None and mantel(np.zeros((0, 0)), np.zeros((0, 0))) is None
    assert mantel(np.ones((9, 9)), symmetric(9, 1)) is None and mantel(symmetric(9, 1), np.eye(9)) is None
    but_one = np.ones((9, 9))
    but_one[0, 1:] = but_one[1:, 0] = np.arange(8)
    assert mantel(but_one, symmetric(9, 1)) is None  # without the first unit all is equally alike


def batches(n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Similarities of n batches of 5 from a pool of 40 errors, and the vectors that they are of."""
    held = np.stack([np.isin(np.arange(40), rng.choice(40, 5, replace=False)) for _ in range(n)]).astype(float)
    texts = held @ rng.normal(0, 1, (40, 8))
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    return unit @ unit.T, unit


def cosines(rows: Floats) -> Floats:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


@pytest.mark.slow
def test_the_mantel_test_finds_nothing_where_there_is_nothing_and_what_is_there() -> None:
    false, found, covered = 0, 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shown, unit = batches(20, rng)
        said = rng.normal(0, 1, (20, 8))
        null = mantel(shown, cosines(said), seed=seed)
        assert null is not None
        false += null.p_value <= 0.05
        covered += null.r.low <= 0 <= null.r.high
        if seed < 40:
            follows = mantel(shown, cosines(unit + 0.2 * said), seed=seed)
            assert follows is not None
            found += follows.p_value <= 0.05 and follows.r.low > 0
    assert false <= 14, false  # 7 % of 200
    assert covered >= 186, covered
    assert found >= 36, found


# --- the exchange ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exchange_finds_nothing_where_there_is_nothing_and_what_is_there() -> None:
    false, free, found, covered = 0, 0, 0, 0
    for seed in range(250):
        rng = random.Random(seed)

        def say(cause: int, rng: random.Random = rng) -> str:
            return rng.choice(FRAMES).format(CAUSES[cause])

        surface = [rng.randrange(4) for _ in range(20)]  # what is said follows the words of a batch, not its answers
        null = alike(TfIdf().matrix([say(cause) for cause in surface * 2]), 20, paired=True, seed=seed)
        blind = alike(TfIdf().matrix([say(rng.randrange(4)) for _ in range(32)]), 20, seed=seed)
        assert null is not None and blind is not None
        false += null.p_value <= 0.05 and null.likeness.high < 1
        free += blind.p_value <= 0.05
        covered += blind.likeness.low <= 1 <= blind.likeness.high
        if seed < 60:
            turned = [say(rng.choice([0, 1])) for _ in range(20)] + [say(rng.choice([1, 2])) for _ in range(20)]
            real = alike(TfIdf().matrix(turned), 20, paired=True, seed=seed)
            assert real is not None
            found += real.p_value <= 0.05 and real.likeness.high < 1
    assert false <= 17 and free <= 17, (false, free)  # 7 % of 250
    assert covered >= 232, covered
    assert found >= 42, found


# --- the plan ----------------------------------------------------------------------------------------------


def seen(k: int, gold: str, answered: str | None) -> Shown:
    outputs = {} if answered is None else {"reasoning": "so", "answer": answered}
    text = "?" if answered is None else f"reasoning: so\nanswer: {answered}"
    return Shown({"question": f"item{k} and thing{k % 7}"}, text, {"answer": gold}, "too bad", outputs)


def observed(golds: str = "AB", n: int = 30) -> Observed:
    errors = [seen(k, golds[k % len(golds)], f"other{k}") for k in range(n)]
    rights = [seen(n + k, golds[k % len(golds)], golds[k % len(golds)]) for k in range(12)]
    return Observed("self", "Do it.", (*errors, seen(99, "A", None)), tuple(rights), n + 13)


def planned(n: int = 6, golds: str = "AB") -> ShownErrors:
    made = plan(observed(golds), "Give it.", n=n)
    assert made is not None
    return made


def test_a_plan_asks_everything_once_and_in_turn() -> None:
    made = planned()
    shown, order = made.shown(), made.order()
    assert list(made.study.conditions) == ["only answer: A", "only answer: B", MIXED, "one cluster"]
    assert len(shown) == len(order) == 6 * (8 + DRAWS - 1 + DRAWS) == STUDY.forecast([small()], 6).optimizer_calls
    assert sorted(order) == list(range(len(shown)))
    turn = [shown[place] for place in order[: len(order) // 6]]
    assert all(turn.count(batch) <= DRAWS for batch in turn)
    assert not any("too bad" in error.shown() for batch in shown for error in batch.errors)  # the metric's words
    assert not any("item99" in error.shown() for batch in (*made.mixed, *made.twins) for error in batch.errors)


def test_replies_come_back_to_where_they_belong() -> None:
    made = planned()
    shown = made.shown()
    replies: list[str | None] = [f"reply {place}" for place in range(len(shown))]
    feedback, mixed, twins = made.answered(replies)
    for groups, batches in ((mixed, made.mixed), (twins, made.twins)):
        for texts, batch in zip(groups, batches, strict=True):
            places = [int(text.split()[1]) for text in texts]
            assert len(set(places)) == DRAWS and all(shown[place] == batch for place in places)
    first = mixed[2][0]
    assert first == feedback.conditions[MIXED][2]
    lost = int(first.split()[1])
    replies[lost] = None
    assert [len(texts) for texts in made.answered(replies)[1]] == [3, 3, 2, 3, 3, 3]


def test_a_twin_says_other_things_in_the_same_words() -> None:
    made = planned()
    for batch, twin in zip(made.mixed, made.twins, strict=True):
        assert len(batch.errors) == len(twin.errors) == BATCH and batch.instructions == twin.instructions
        for error, other in zip(batch.errors, twin.errors, strict=True):
            assert error.gold != other.gold and error.inputs == other.inputs
            assert Counter(error.shown().split()) == Counter(other.shown().split())
    found = analysed(observed(), made, [None] * len(made.shown()))
    assert found.surface is not None and found.surface.exchanged == pytest.approx(1.0)


def test_without_two_classes_the_rest_is_still_asked_and_few_errors_are_told() -> None:
    single = replace(
        observed("A"),
        errors=tuple(
            Shown({"question": "x" * k}, f"answer: no{k}", {"answer": "A"}, "", {"answer": f"no{k}"}) for k in range(9)
        ),
    )
    assert plan(replace(single, errors=single.errors[:BATCH]), "", n=6) is None
    open_ended = tuple(Shown({"question": f"{k}"}, f"answer: no{k}", {"answer": f"yes{k}"}, "", {"answer": f"no{k}"})
                       for k in range(9))  # fmt: skip
    for errors in (single.errors, open_ended):
        made = plan(replace(single, errors=errors), "", n=6)
        assert made is not None and len(made.shown()) <= STUDY.forecast([small()], 6).optimizer_calls
        texts = [FRAMES[k % 5].format(CAUSES[k % 3]) for k in range(len(made.shown()))]
        found = analysed(single, made, texts)
        readable(sections(found), found)
        assert found.exchange is not None and found.repetition is not None
        assert (list(made.study.conditions) == [MIXED]) == (found.validity is None)
    assert found.validity is None
    assert "no two classes" in sections(found)[1].summary


# --- the analysis ------------------------------------------------------------------------------------------


def said(made: ShownErrors, *, follows: bool, seed: int = 0) -> list[str | None]:
    """Replies of an optimizer that names a cause by what is expected, or one at random."""
    rng, twins = random.Random(seed), set(map(id, made.twins))
    return [
        rng.choice(FRAMES).format(CAUSES[(id(batch) in twins) if follows else rng.randrange(4)])
        for batch in made.shown()
    ]


def test_what_follows_the_errors_is_told_from_what_does_not() -> None:
    made = planned(12)
    real = analysed(observed(), made, said(made, follows=True))
    assert real.changes and "Feedback changes with what the errors say" in sections(real)[0].summary
    blind = analysed(observed(), made, said(made, follows=False))
    assert not blind.changes and "changes with what the errors say:" not in sections(blind)[0].summary
    assert (real.errors, real.unread, real.examples) == (31, 1, 43)
    for found in (real, blind):
        assert found.exchange is not None and found.mantel is not None and found.validity is not None
        raw = [found.exchange.p_value, found.mantel.p_value]
        assert found.corrected == dict(zip(("exchange", "mantel"), holm(raw), strict=True))
        assert found.requests == found.answered == len(made.shown())
        readable(sections(found), found)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.6, 0.95])
def test_whatever_a_stop_leaves_is_said_in_words(share: float) -> None:
    made = planned(8)
    replies = said(made, follows=True)
    kept = set(made.order()[: int(share * len(replies))])
    found = analysed(observed(), made, [text if k in kept else None for k, text in enumerate(replies)])
    assert found.answered == len(kept)
    readable(sections(found), found)
    if share == 0.0:
        assert "Nothing can be said: 0 of 104" in sections(found)[0].summary
        assert not any((found.exchange, found.mantel, found.validity, found.repetition))
    if share >= 0.6:
        assert None not in (found.exchange, found.validity, found.repetition)


def test_what_was_not_begun_is_said_in_words() -> None:
    nothing = analysed(None, None, ())
    assert len(sections(nothing)) == 1 and "stopped before" in sections(nothing)[0].summary
    few = analysed(observed(n=4), None, ())
    assert "made 5 errors on 17 training examples, of which 4 can be shown" in sections(few)[0].summary
    readable(sections(nothing), nothing)
    readable(sections(few), few)


# --- the study ---------------------------------------------------------------------------------------------


def small() -> Task:
    return generate("navigate", sizes=SMALL)


def found_by(on: Bench, n: int = 12) -> ErrorsResult:
    result = STUDY.conduct(on, [small()], n).result
    assert isinstance(result, ErrorsResult)
    return result


def test_an_optimizer_that_looks_is_told_from_one_that_does_not() -> None:
    on, most = bench(), STUDY.forecast([small()], 12)
    looks = found_by(on)
    assert looks.changes and looks.exchange is not None and looks.exchange.likeness.mean < 0.8
    assert looks.surface is not None and looks.surface.exchanged > 0.99
    assert looks.validity is not None and looks.validity.prior_bias is not None
    assert looks.validity.cause_hits is not None
    assert looks.validity.prior_bias.p_value < 0.01 and looks.validity.cause_hits.mean > 0.6
    assert on.spent.by_role["optimizer"].calls <= most.optimizer_calls
    assert on.spent.by_role["target"].calls <= most.program_runs == 44 and on.spent.total.calls <= most.calls
    blind = found_by(bench(1.0, seed=2))
    assert not blind.changes and blind.exchange is not None and blind.exchange.likeness.high > 1.0
    assert blind.validity is not None and blind.validity.prior_bias is not None
    assert blind.validity.prior_bias.p_value > 0.05 and not blind.validity.sensitivity.found
    for found in (looks, blind):
        readable(sections(found), found)
        assert [section.title for section in sections(found)][1:] == [
            "Does the reflection look at the errors?",
            "Does the feedback repeat itself?",
        ]


def test_the_same_result_at_any_concurrency_and_no_call_twice(tmp_path: Path) -> None:
    one, many = found_by(bench(max_in_flight=1), 5), bench(max_in_flight=64, run_dir=tmp_path)
    assert repr(one) == repr(found_by(many, 5))  # repr, as nan is not equal to itself
    again = bench(max_in_flight=64, run_dir=tmp_path)
    assert repr(one) == repr(found_by(again, 5)) and again.spent.total.calls == many.spent.total.calls > 0


@pytest.mark.parametrize("calls", [3, 20, 60, 90, 140])
def test_a_cap_holds_and_leaves_a_report(calls: int) -> None:
    on = bench(budget=Budget(calls=calls))
    findings = STUDY.conduct(on, [small()], 12)
    assert on.spent.total.calls <= calls and on.stopped_by == "calls" and findings.limits
    assert isinstance(findings.result, ErrorsResult)
    assert findings.result.answered < findings.result.requests or calls < 44
    readable(sections(findings.result), findings.result)


def test_tasks_that_do_not_fit_are_refused_before_a_call() -> None:
    tiny = generate("objects", sizes=Sizes(train=5, validation=5, test=5))
    refuses(STUDY, [
        ([], 6, "about one task, got 0"), ([small(), small()], 6, "about one task, got 2"),
        ([small()], 4, "n of at least 5, got 4"), ([tiny], 6, "at least 6 train examples, and objects has 5"),
    ])  # fmt: skip


def test_a_prompt_without_errors_is_told_so() -> None:
    task = replace(small(), metric=lambda example, prediction, trace=None: True)
    findings = STUDY.conduct(bench(), [task], 6)
    assert "made 0 errors on 40 training examples" in findings.sections[0].summary


@pytest.mark.slow
@pytest.mark.parametrize("family", ["objects", "navigate", "bool", "first"])
def test_as_it_comes(family: str) -> None:
    task = generate(family, sizes=STUDY.sizes)
    for prior_bias, changes in ((0.0, True), (1.0, False)):
        on = bench(prior_bias)
        found = STUDY.conduct(on, [task], STUDY.n).result
        assert isinstance(found, ErrorsResult) and found.changes == changes
        assert on.spent.total.calls <= STUDY.forecast([task], STUDY.n).calls
