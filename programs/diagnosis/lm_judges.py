"""Language models as judges: of the condition that a feedback was given under, and of whether a rule is followed.

A judge is a function, as `validity.Judging` and `following` take it. It asks through an `Inquiry`, many pairs at once
where they are announced by `prefetch`, and nothing twice. How far a judge of rules can be trusted is measured by pairs
that a person labelled: `HAND`, or the user's own. Source: ours; majority of 3 is the project's notes' (section 4.4).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from cuesmith.programs.diagnosis.asking import Error, Evidence, Inquiry, OptimizerRequest
from cuesmith.signatures import CheckRule, IdentifyCondition
from cuesmith.teleprompters.runtime.evidence import sound

VOTES = 3
"""Draws for each pair of a rule and a response. Source: the project's notes."""
_VOTE: dict[object, bool] = {"yes": True, "no": False}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OUTPUTS, _SHOWN = 3, 2
"""Right outputs, and whole errors, that stand for a condition in its description."""
_SHORT, _LONG = 60, 400
"""Characters of each."""
Pair = tuple[str, str]
"""A rule and a response."""


class JudgeFailed(RuntimeError):
    """The provider failed for good, or not one reply can be used; the message is one line."""


class LabelsError(ValueError):
    """A file of hand labels cannot be read; the message is one line."""


class _Label(BaseModel):
    """A line of such a file."""

    model_config = ConfigDict(strict=True)

    rule: Annotated[str, StringConstraints(pattern=r"\S")]
    response: str
    followed: bool


_LABEL = TypeAdapter(_Label)


# --- rules -------------------------------------------------------------------------------------------------


class RuleJudge:
    """Says whether a response follows a rule: the majority of several draws of a model. A judge for `following`.

    Draws that can no longer change the majority are not made.

    Args:
        inquiry: Asks the model.
        votes: Draws a pair at most.

    Raises:
        ValueError: If `votes` is not positive.
    """

    def __init__(self, inquiry: Inquiry, votes: int = VOTES) -> None:
        if votes < 1:
            raise ValueError(f"votes must be at least 1, got {votes}")
        self._inquiry, self._votes = inquiry, votes

    def __call__(self, rule: str, response: str) -> bool | None:
        """Return whether the response follows the rule; None if it is unclear, cannot be told, or a cap came first.

        Raises:
            JudgeFailed: If the provider fails.
        """
        self.prefetch([(rule, response)])
        said = self._said((rule, response))
        yes, no = said.count(True), said.count(False)
        return None if yes == no or not self._settled(said) else yes > no

    def prefetch(self, pairs: Sequence[Pair]) -> None:
        """Judge pairs, many at once.

        Args:
            pairs: Rules and responses; what a cap leaves out is the last of them.

        Raises:
            JudgeFailed: If the provider fails.
        """
        while requests := [request for pair in pairs for request in self._wanted(pair)]:
            self._inquiry.ask(requests)
            _check(self._inquiry)
            if self._inquiry.stopped_by is not None:
                return

    def _wanted(self, pair: Pair) -> list[OptimizerRequest]:
        """The draws that it takes, at best, to settle what is said of a pair; none if it is settled."""
        said = self._said(pair)
        if self._settled(said):
            return []
        short = self._votes - len(said) - _lead(said)
        return [_request(pair, draw) for draw in range(len(said), len(said) + short // 2 + 1)]

    def _said(self, pair: Pair) -> list[bool | None]:
        """What is known of a pair: the votes of its draws, None for "unclear" and what could not be used."""
        known = itertools.takewhile(self._inquiry.knows, (_request(pair, draw) for draw in range(self._votes)))
        replies = self._inquiry.ask(list(known))
        return [None if reply is None else _VOTE.get(reply.followed) for reply in replies]

    def _settled(self, said: Sequence[bool | None]) -> bool:
        """Whether the draws that are left cannot change the majority."""
        return len(said) == self._votes or _lead(said) > self._votes - len(said)


def _request(pair: Pair, draw: int) -> OptimizerRequest:
    return OptimizerRequest(CheckRule, {"rule": sound(pair[0]), "response": sound(pair[1])}, draw)


def _lead(said: Sequence[bool | None]) -> int:
    return abs(said.count(True) - said.count(False))


def _check(inquiry: Inquiry) -> None:
    if inquiry.failure is not None:
        raise JudgeFailed(inquiry.failure)


def labels_of(path: str | Path) -> tuple[tuple[str, str, bool], ...]:
    """Read hand labels: one JSON object a line, with the texts "rule" and "response", and "followed": true or false.

    Args:
        path: The file; empty lines are skipped.

    Raises:
        LabelsError: If it cannot be read, has another form, or holds nothing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise LabelsError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise LabelsError(f"{path}: not UTF-8 text") from None
    found = [_label(f"{path}: line {k}", line) for k, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise LabelsError(f"{path}: no labelled pairs in it")
    return tuple(found)


def _label(where: str, line: str) -> tuple[str, str, bool]:
    try:
        label = _LABEL.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise LabelsError(
            f'{where}: {said}; a line has the texts "rule" and "response", and "followed": true or false'
        ) from None
    return label.rule, label.response, label.followed


HAND = labels_of(Path(__file__).with_name("hand.jsonl"))
"""Pairs written and labelled by us. Half are followed. Rules are about form, about steps and about content; the hard
ones come last in each group: a claim to have followed stands in for the work, or nearly all is done."""

# --- conditions --------------------------------------------------------------------------------------------


class ConditionJudge:
    """Says which condition a feedback was given under. A judge for `validity.Judging`.

    The model sees the conditions under letters, in an order that chance gives each feedback anew: one that goes by
    names or places instead of by content then hits by chance only.

    Args:
        inquiry: Asks the model.
    """

    def __init__(self, inquiry: Inquiry) -> None:
        self._inquiry = inquiry

    def __call__(self, feedback: str, conditions: Mapping[str, str]) -> str | None:
        """Return the name of the condition; None if the model names none of them, or a cap came first.

        Args:
            feedback: The text.
            conditions: Name -> description; at most 26.

        Raises:
            JudgeFailed: If the provider fails.
        """
        self.prefetch([feedback], conditions)
        reply = self._inquiry.ask([self._request(feedback, conditions)])[0]
        if reply is None:
            return None
        return self._order(feedback, conditions).get(_bare(str(reply.condition)))

    def prefetch(self, feedback: Sequence[str], conditions: Mapping[str, str]) -> None:
        """Judge texts, many at once.

        Raises:
            JudgeFailed: If the provider fails.
        """
        self._inquiry.ask([self._request(text, conditions) for text in feedback])
        _check(self._inquiry)

    def _request(self, feedback: str, conditions: Mapping[str, str]) -> OptimizerRequest:
        order = self._order(feedback, conditions)
        told = [f"name: {letter}\n{sound(conditions[name])}" for letter, name in order.items()]
        return OptimizerRequest(IdentifyCondition, {"feedback": sound(feedback), "conditions": told})

    def _order(self, feedback: str, conditions: Mapping[str, str]) -> dict[str, str]:
        names = list(conditions)
        random.Random(f"0:{feedback}").shuffle(names)
        return dict(zip(_LETTERS, names, strict=False))


def _bare(text: str) -> str:
    return text.strip().removeprefix("name:").strip(" \t\n\"'`.*()[]").upper()


def describe(conditions: Mapping[str, Sequence[Evidence]]) -> dict[str, str]:
    """Describe the error distributions of a study for a judge: how often each right output, and some of the errors.

    Args:
        conditions: Condition -> the batches that were shown under it.
    """
    return {
        name: _described([error for batch in batches for error in batch.errors]) for name, batches in conditions.items()
    }


def _described(errors: Sequence[Error]) -> str:
    counts = Counter(" ".join(error.answer.split())[:_SHORT] for error in errors)
    outputs = "; ".join(f"{text} ({100 * count / len(errors):.0f} %)" for text, count in counts.most_common(_OUTPUTS))
    others = "; others" if len(counts) > _OUTPUTS else ""
    shown = list(dict.fromkeys(error.shown()[:_LONG] for error in errors))[:_SHOWN]
    return "\n".join([f"right outputs: {outputs}{others}", *(f"such as:\n{text}" for text in shown)])
