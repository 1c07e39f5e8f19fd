"""Metrics as people write them: how many arguments they take, and what their answers mean."""

import asyncio
import functools
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import dspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuesmith.teleprompters.runtime.metric import LARGEST, BadScore, Metric, read_judgement
from cuesmith.teleprompters.runtime.statistics import estimate95, paired_gain

EXAMPLE = dspy.Example(question="q", answer="a").with_inputs("question")
RIGHT = dspy.Prediction(answer="a")


def _two(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.answer == prediction.answer)


def _three(example: dspy.Example, prediction: dspy.Prediction, trace: object) -> float:
    return float(example.answer == prediction.answer and trace is None)


def _three_optional(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    return float(trace is None)


def _five(gold: object, pred: object, trace: object, pred_name: object, pred_trace: object) -> float:
    return float((trace, pred_name, pred_trace) == (None, None, None))


def _five_optional(
    gold: object, pred: object, trace: object = None, pred_name: object = None, pred_trace: object = None
) -> float:
    return 1.0


def _own_option(example: dspy.Example, prediction: dspy.Prediction, tolerance: float = 0.5) -> float:
    return 1.0 if tolerance > 0.1 else 0.0


def _four_optional(example: object, prediction: object, trace: object = None, frac: float = 1.0) -> float:
    return frac


def _keyword_only(example: object, prediction: object, *, strict: bool = True) -> bool:
    return strict


def _keyword_needed(example: object, prediction: object, *, strict: bool) -> bool:
    return strict


def _star(*args: object) -> float:
    return float(len(args))


def _star_star(example: object, prediction: object, trace: object = None, **rest: object) -> float:
    return 1.0 - len(rest)


def _one(example: object) -> float:
    return 1.0


def _four(a: object, b: object, c: object, d: object) -> float:
    return 1.0


def _six(a: object, b: object, c: object, d: object, e: object, f: object) -> float:
    return 1.0


async def _async(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    await asyncio.sleep(0)
    return dspy.Prediction(score=0.25, feedback="half of half")


class _Judge:
    """Metrics in all their places."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return 1.0

    def method(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        return 1.0

    @classmethod
    def of_class(cls, gold: object, pred: object, trace: object, pred_name: object, pred_trace: object) -> float:
        return 1.0

    @staticmethod
    def static(example: dspy.Example, prediction: dspy.Prediction, trace: object) -> float:
        return 1.0


class _AsyncJudge:
    """A callable object whose call is a coroutine."""

    async def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        return 0.5


class _Module(dspy.Module):  # type: ignore[misc]
    """A dspy module as a metric, as dspy's SemanticF1 is."""

    def forward(self, example: dspy.Example, pred: dspy.Prediction, trace: object = None) -> float:
        """Return full marks."""
        return 1.0


@functools.wraps(_two)
def _wrapped(*args: object) -> bool:
    assert len(args) == 2
    return True


@pytest.mark.parametrize(
    ("function", "arity"),
    [
        (_two, 2),
        (_three, 3),
        (_three_optional, 3),
        (_five, 5),
        (_five_optional, 5),
        (_own_option, 2),
        (_four_optional, 3),
        (_keyword_only, 2),
        (_star, 3),
        (_star_star, 3),
        (_Judge(), 3),
        (_Judge().method, 2),
        (_Judge.of_class, 5),
        (_Judge.static, 3),
        (functools.partial(_three, trace=None), 2),
        (functools.partial(_keyword_needed, strict=True), 2),
        (functools.partial(_four, object()), 3),
        (_Module(), 3),
        (_wrapped, 2),
        (operator.eq, 2),
        (lambda example, prediction: 1, 2),
        (lambda e, p, t=None: 1, 3),
        (lambda e, p, *rest: 1, 3),
        (dspy.evaluate.answer_exact_match, 3),
    ],
)
def test_arity_and_a_call_that_works(function: Callable[..., float], arity: int) -> None:
    metric = Metric(function)
    assert metric.arity == arity and not metric.is_async
    score, feedback, _ = metric.call(EXAMPLE, RIGHT)
    assert math.isfinite(score) and feedback == ""


def test_what_a_metric_is_given() -> None:
    assert Metric(_star).call(EXAMPLE, RIGHT) == (3.0, "", {})
    assert Metric(_five).call(EXAMPLE, RIGHT) == Metric(_own_option).call(EXAMPLE, RIGHT) == (1.0, "", {})
    assert Metric(_two).arguments(EXAMPLE, RIGHT) == (EXAMPLE, RIGHT)
    assert Metric(max).arity == 2  # its signature is not known


@pytest.mark.parametrize("function", [_one, _four, _six, _keyword_needed, lambda: 1, lambda *, a: 1])
def test_other_numbers_of_arguments_are_refused_before_any_call(function: Callable[..., float]) -> None:
    with pytest.raises(TypeError, match=r"takes \(.*a metric takes \(example, prediction\)"):
        Metric(function)


@pytest.mark.parametrize("thing", [None, "exact_match", 1.0, EXAMPLE])
def test_what_cannot_be_called_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="metric must be callable"):
        Metric(thing)  # type: ignore[arg-type]


def test_async_metrics() -> None:
    async def body() -> None:
        for function in (_async, functools.partial(_async)):
            metric = Metric(function)
            assert metric.is_async and await metric.acall(EXAMPLE, RIGHT) == (0.25, "half of half", {})
        judge = Metric(_AsyncJudge())
        assert judge.is_async and judge.arity == 2 and await judge.acall(EXAMPLE, RIGHT) == (0.5, "", {})
        assert await Metric(_two).acall(EXAMPLE, RIGHT) == (1.0, "", {})

    asyncio.run(body())


@given(st.floats(-LARGEST, LARGEST) | st.integers(-(10**6), 10**6) | st.booleans())
def test_numbers_are_scores(answer: float) -> None:
    assert read_judgement(answer) == (float(answer), "", {})
    assert read_judgement(dspy.Prediction(score=answer, feedback="why")) == (float(answer), "why", {})
    assert read_judgement({"score": answer}) == (float(answer), "", {})


@pytest.mark.parametrize("answer", [np.float32(0.5), np.float64(0.5), Decimal("0.5"), Fraction(1, 2), np.array(0.5)])
def test_other_numbers(answer: object) -> None:
    assert read_judgement(answer) == (0.5, "", {})
    assert read_judgement(np.bool_(True)) == (1.0, "", {})
    assert read_judgement(dspy.Example(score=answer, feedback=None)) == (0.5, "", {})


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "1.0",
        float("nan"),
        float("inf"),
        -1e308,
        10**400,
        [1.0],
        object(),
        1j,
        dspy.Prediction(answer="a"),
        dspy.Prediction(score=None),
        dspy.Prediction(score="high"),
        {"feedback": "x"},
        np.array([0.1, 0.2]),
    ],
)
def test_what_is_no_finite_number_is_no_score(answer: object) -> None:
    with pytest.raises(BadScore, match="the metric returned"):
        read_judgement(answer)


def test_the_largest_scores_can_be_reckoned_with() -> None:
    scores = [LARGEST, -LARGEST, LARGEST]
    assert all(math.isfinite(v) for v in (estimate95(scores).low, estimate95(scores).mean, estimate95(scores).high))
    gain = paired_gain(scores, [-LARGEST, LARGEST, LARGEST])
    assert math.isfinite(gain.difference) and 0.0 <= gain.p_value <= 1.0
