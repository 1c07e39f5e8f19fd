"""Metrics by name: what they compare, and what counts as the same.

A metric is a small frozen value, so that a run's record knows it by its content. Texts have one right answer or several
accepted ones (`ACCEPTED`); the answer of a model may say more than that (see `cuesmith.programs.tasks.answers`).

Source: ours; `f1` is SQuAD's (Rajpurkar et al. 2016), "####" is GSM8K's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import dspy

from cuesmith.programs.tasks.answers import LETTERS, as_data, in_order, members, normalise, number_in, options_in, words
from cuesmith.teleprompters.runtime.metric import Judgement, MetricFunction

ACCEPTED = "accepted"
"""The example's field with every accepted answer; it is neither an input nor a label of the signature."""

NAMED_AT_MOST = 8
"""Wrong fields, or members of a list, that a feedback names."""


@dataclass(frozen=True)
class ExactMatch:
    """Whether the normalised answer equals one of the accepted ones, itself normalised.

    Attributes:
        output: The output field that holds the answer.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """Score one prediction.

        Args:
            example: Holds the accepted answers in `ACCEPTED`, or one in the output field.
            prediction: What the program returned.
            trace: Ignored; dspy passes it while bootstrapping.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        answer = normalise(getattr(prediction, self.output))
        return any(answer == normalise(text) for text in _accepted(example, self.output))


@dataclass(frozen=True)
class Number:
    """Whether the last number of the answer is that of an accepted one, as in "#### 1,234" or "so $1234 in all".

    Attributes:
        output: The output field that holds the answer.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """Score one prediction; see `ExactMatch`.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        said = number_in(str(getattr(prediction, self.output)))
        wanted = [number_in(text) for text in _accepted(example, self.output)]
        return said is not None and any(number is not None and said.equals(number) for number in wanted)


@dataclass(frozen=True)
class Near:
    """How near the last number of the answer is to that of an accepted one; 0 where it is `span` away, or more.

    Attributes:
        output: The output field that holds the answer.
        span: The distance from which on an answer is worth nothing; `load` takes the range of the right answers.
    """

    output: str = "answer"
    span: float = 1.0

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        """Score one prediction, from 0 to 1; see `ExactMatch`.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        said = number_in(str(getattr(prediction, self.output)))
        wanted = [number_in(text) for text in _accepted(example, self.output)]
        if said is None:
            return 0.0
        away = [abs(float(said.value - number.value)) for number in wanted if number is not None]
        return max([0.0, *(1 - each / self.span for each in away)])


@dataclass(frozen=True)
class Choice:
    """Whether the answer picks an accepted option of those that the inputs list: by its letter or its text.

    Where the inputs list no options, letters alone are compared; where the accepted answer is no option, texts.

    Attributes:
        output: The output field that holds the answer.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        """Score one prediction; see `ExactMatch`.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        answer, accepted = str(getattr(prediction, self.output)), _accepted(example, self.output)
        asked = "\n".join(value for value in example.inputs().toDict().values() if isinstance(value, str))
        options = options_in(asked) or LETTERS
        said = options.picked(answer)
        if said is not None and said in [options.picked(text) for text in accepted]:
            return True
        return normalise(answer) in [normalise(text) for text in accepted if options.picked(text) is None]


@dataclass(frozen=True)
class TokenF1:
    """The best F1 of the answer's words against an accepted answer's, as SQuAD counts words.

    Attributes:
        output: The output field that holds the answer.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        """Score one prediction, from 0 to 1; see `ExactMatch`.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        answer = words(str(getattr(prediction, self.output)))
        return max(_f1(answer, words(text)) for text in _accepted(example, self.output))


@dataclass(frozen=True)
class SetF1:
    """The F1 of the members of the answer's list against those of the right one; their order does not count.

    The answer may also be a text that lists them.

    Attributes:
        output: The output field that holds the list.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> Judgement:
        """Score one prediction, from 0 to 1, with what is missing and what is too much as feedback.

        Args:
            example: Holds the right list in the output field.
            prediction: What the program returned.
            trace: While dspy bootstraps, only a full score is a success.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        wanted, given = members(getattr(example, self.output)), members(getattr(prediction, self.output))
        missing, extra = [m for m in wanted if m not in given], [m for m in given if m not in wanted]
        told = [f"{what}: {_listed(found)}" for what, found in (("missing", missing), ("not expected", extra)) if found]
        return _judgement(_f1(given, wanted), "; ".join(told), trace)


@dataclass(frozen=True)
class InOrder:
    """The share of the places of a list at which the answer's list has the right member, as for tags of words.

    Attributes:
        output: The output field that holds the list.
    """

    output: str = "answer"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> Judgement:
        """Score one prediction, from 0 to 1, with the first wrong place as feedback; see `SetF1`.

        Raises:
            AttributeError: If the prediction or the example has no such field.
        """
        wanted, given = (in_order(getattr(each, self.output)) for each in (example, prediction))
        length = max(len(wanted), len(given))
        right = [a == b for a, b in zip(wanted, given, strict=False)]
        if all(right) and len(wanted) == len(given):
            return 1.0
        place = right.index(False) if False in right else len(right)
        told = [each[place] if place < len(each) else "nothing" for each in (wanted, given)]
        return _judgement(sum(right) / length, f"place {place + 1}: expected {told[0]}, got {told[1]}", trace)


@dataclass(frozen=True)
class JsonFields:
    """The share of the right fields: the mean over the outputs, in which a record counts as the mean of its fields.

    Texts are compared as `ExactMatch` does, numbers as numbers, lists as `SetF1` does. A field that a record does not
    have and the answer has counts as a wrong one.

    Attributes:
        outputs: The output fields.
    """

    outputs: tuple[str, ...] = ("answer",)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> Judgement:
        """Score one prediction, from 0 to 1; the feedback names the wrong fields with expected and given values.

        Args:
            example: Holds the right values in the output fields; one that it lacks is expected to be none.
            prediction: What the program returned.
            trace: While dspy bootstraps, only a full score is a success.

        Raises:
            AttributeError: If the prediction lacks a field that the example has.
        """
        wrong: dict[str, str] = {}
        given = {o: getattr(prediction, o) if o in example else prediction.get(o) for o in self.outputs}
        scores = [_share(o, example.get(o), given[o], wrong) for o in self.outputs]
        told = [f"{path} ({what})" for path, what in list(wrong.items())[:NAMED_AT_MOST]]
        more = [f"and {len(wrong) - NAMED_AT_MOST} more"] if len(wrong) > NAMED_AT_MOST else []
        return _judgement(sum(scores) / len(scores), f"wrong: {'; '.join(told + more)}" if told else "", trace)


METRICS: Mapping[str, Callable[[Any], MetricFunction]] = MappingProxyType(
    {
        "exact": ExactMatch,
        "choice": Choice,
        "number": Number,
        "near": Near,
        "f1": TokenF1,
        "json_fields": JsonFields,
        "set_f1": SetF1,
        "in_order": InOrder,
    }
)
"""Name -> what makes the metric of an output field; `json_fields` takes a tuple of them."""


def _accepted(example: dspy.Example, output: str) -> Sequence[str]:
    accepted: Sequence[str] = example.get(ACCEPTED) or (str(getattr(example, output)),)
    return accepted


def _judgement(score: float, feedback: str, trace: object) -> Judgement:
    if trace is not None:
        return score >= 1.0
    return dspy.Prediction(score=score, feedback=feedback) if feedback else score


def _f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if given or wanted else 1.0


def _share(path: str, wanted: object, given: object, wrong: dict[str, str]) -> float:
    """Return how much of a value is right, and enter into `wrong` what is not."""
    data = as_data(given)
    if isinstance(wanted, Mapping):
        held = data if isinstance(data, Mapping) else {}
        keys = dict.fromkeys([*wanted, *(key for key, each in held.items() if each is not None)])
        shares = [_share(f"{path}.{key}", wanted.get(key), held.get(key), wrong) for key in keys]
        return sum(shares) / len(shares) if shares else float(isinstance(data, Mapping))
    listed = isinstance(wanted, list | tuple)
    score = _f1(members(data), members(wanted)) if listed else float(_same(wanted, given))
    if score < 1.0:
        wrong[path] = f"expected {_told(wanted)}, got {_told(given)}"
    return score


def _same(wanted: object, given: object) -> bool:
    if isinstance(wanted, int | float) and not isinstance(wanted, bool) and not isinstance(given, bool):
        said, number = number_in(str(given)), number_in(str(wanted))
        return said is not None and number is not None and said.equals(number)
    if wanted is None or given is None:
        return wanted is given
    return normalise(wanted) == normalise(given)


def _told(value: object) -> str:
    text = repr(as_data(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(found: Sequence[str]) -> str:
    named = ", ".join(found[:NAMED_AT_MOST])
    return f"{named} and {len(found) - NAMED_AT_MOST} more" if len(found) > NAMED_AT_MOST else named
