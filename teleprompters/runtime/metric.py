"""One wrapper around the metrics people write: two, three or five arguments; bool, number or Prediction.

Source: ours; the conventions are dspy's (`metric(example, pred, trace=None)`, GEPA's five arguments and its
`objective_scores`). `corpus` is ours.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import dspy

from cuesmith.teleprompters.runtime._dspy import is_async

Judgement: TypeAlias = "bool | int | float | dspy.Prediction"
MetricFunction: TypeAlias = Callable[..., "Judgement | Awaitable[Judgement]"]
CorpusFunction: TypeAlias = Callable[[Sequence[dspy.Example], Sequence[dspy.Prediction | None]], float]
"""Judges all answers together; None stands for a reply that could not be used."""


LARGEST = 1e100
"""The largest score, in size: sums of squares of such are still numbers. Ours."""


class BadScore(ValueError):
    """A metric returned what is no number, or none of a size that can be reckoned with."""


class Judged(NamedTuple):
    """What a metric made of one answer.

    Attributes:
        score: Its score.
        feedback: Its words.
        objectives: Name -> score of what else counts, higher being better.
    """

    score: float
    feedback: str
    objectives: Mapping[str, float]


class Metric:
    """A user's metric, checked once and called one way.

    Args:
        function: `f(example, prediction)`, `f(example, prediction, trace)` or dspy's five-argument form
            `f(gold, pred, trace, pred_name, pred_trace)`, or a `dspy.Module` with such a `forward`; sync or async;
            returning a bool, a number, or a `dspy.Prediction(score=..., feedback=..., objective_scores={...})`. It may
            have a method `corpus(examples, predictions)` by which all answers are judged together (`CorpusFunction`).

    Attributes:
        corpus: That method; None if it has none.

    Raises:
        TypeError: If it is not callable or takes another number of arguments, or its `corpus` does.
    """

    def __init__(self, function: MetricFunction) -> None:
        self.function, self.corpus = function, _corpus(function)
        if isinstance(function, dspy.Module):
            self.is_async = not hasattr(type(function), "forward")
            inner = object.__getattribute__(function, "aforward" if self.is_async else "forward")
            self.arity = _arity(inner)
            self._asked: MetricFunction = function.acall if self.is_async else function
            return
        self.arity, self._asked, self.is_async = _arity(function), function, is_async(function)

    def arguments(self, example: dspy.Example, prediction: dspy.Prediction) -> tuple[object, ...]:
        """Return what the metric is called with. The trace is None: this is evaluation, not bootstrapping."""
        return (example, prediction, None, None, None)[: self.arity]

    def call(self, example: dspy.Example, prediction: dspy.Prediction) -> Judged:
        """Return what a sync metric makes of an answer.

        Raises:
            BadScore: If the metric returned what is no finite number.
        """
        answer = self._asked(*self.arguments(example, prediction))
        if inspect.isawaitable(answer):  # a lambda around a coroutine function, which tells nobody
            answer = asyncio.run(_finished(answer))
        return read_judgement(answer)

    async def acall(self, example: dspy.Example, prediction: dspy.Prediction) -> Judged:
        """Return what an async metric makes of an answer.

        Raises:
            BadScore: If the metric returned what is no finite number.
        """
        answer = self._asked(*self.arguments(example, prediction))
        return read_judgement(await answer if inspect.isawaitable(answer) else answer)


async def _finished(answer: Awaitable[Judgement]) -> Judgement:
    return await answer


def _arity(function: MetricFunction) -> int:
    if not callable(function):
        raise TypeError(
            f"metric must be callable, got {function!r}: pass e.g. "
            "`lambda example, prediction, trace=None: example.answer == prediction.answer`"
        )
    try:
        parameters: Sequence[inspect.Parameter] = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 2
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    most = 5 if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    if required == 2 and len(positional) > 2 and positional[2].default is not None:
        most = 2  # an option of the metric's own, such as `tolerance=0.1`: it is no trace
    names_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    for arity in (5, 3, 2):
        if required <= arity <= most and (arity != 5 or required == 5 or "pred_name" in [p.name for p in positional]):
            if names_only:
                break
            return arity
    raise TypeError(
        f"metric {getattr(function, '__name__', function)!r} takes {inspect.signature(function)}: a metric "
        "takes (example, prediction), (example, prediction, trace) or "
        "(gold, pred, trace, pred_name, pred_trace)"
    )


def _corpus(function: object) -> CorpusFunction | None:
    found = getattr(function, "corpus", None)
    if not callable(found):  # a metric may keep its data under that name
        return None
    name = f"the metric's `corpus` ({getattr(found, '__qualname__', found)})"
    if inspect.iscoroutinefunction(found):
        raise TypeError(f"{name} is async: it must return a number at once")
    try:
        inspect.signature(found).bind((), ())
    except TypeError as error:
        raise TypeError(
            f"{name} takes {inspect.signature(found)}: it is called as corpus(examples, predictions)"
        ) from error
    except ValueError:  # it tells no signature
        pass
    corpus: CorpusFunction = found
    return corpus


def read_judgement(answer: object) -> Judged:
    """Return what a metric returned as score, feedback and scores of objectives.

    Raises:
        BadScore: If there is no finite number in it, or something else among its objectives.
    """
    feedback: object = ""
    objectives: dict[str, float] = {}
    if isinstance(answer, dspy.Prediction | dspy.Example | Mapping):
        if "score" not in answer:
            raise BadScore(f"the metric returned {type(answer).__name__} without a score")
        feedback = answer.get("feedback", "") or ""
        objectives = _objectives(answer.get("objective_scores"))
        answer = answer["score"]
    return Judged(_number(answer), str(feedback), objectives)


def _objectives(given: object) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadScore(f"the metric returned objective_scores={given!r}: they must map names to numbers")
    return {str(name): _number(score) for name, score in given.items()}


def _number(answer: object) -> float:
    if answer is None or isinstance(answer, str):
        raise BadScore(f"the metric returned {answer!r}: it must return a bool, a number or a Prediction with a score")
    try:
        score = float(answer)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadScore(f"the metric returned {type(answer).__name__}, which is no number") from error
    if not abs(score) <= LARGEST:  # NaN is not either
        raise BadScore(f"the metric returned {score}: a score is a finite number of at most {LARGEST:g}")
    return score
