"""Asking an optimizer model why errors happen, with the request that the project's compilers send.

The instruments see the model only through an *asker*: a function of what is shown (`Evidence`) and a number of
draws. So they work on a run, on a plain LM, on a simulated optimizer and on recorded answers alike. Source: ours.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.programs.diagnosis.inquiry import Inquiry, Request
from cuesmith.signatures import CriticizeInstruction
from cuesmith.teleprompters.runtime.evidence import render_fields, shown_failure, sound
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.context import ProgramContext
from cuesmith.teleprompters.search.examples import Failure
from cuesmith.teleprompters.search.scene import texts_of

__all__ = ["Ask", "Error", "Evidence", "TooLittle", "ask_all", "inquirer", "reasons", "requests_of"]


@dataclass(frozen=True, slots=True)
class Error:
    """One observed error of a prompt.

    Attributes:
        inputs: What the predictor was given.
        response: All that it wrote.
        gold: The right outputs, as far as labels tell them.
        feedback: The metric's words, if it has any.
    """

    inputs: Mapping[str, object]
    response: str
    gold: Mapping[str, object]
    feedback: str = ""

    @classmethod
    def of(cls, failure: Failure) -> Error:
        """Return the error that a compiler's failure is."""
        return cls(failure.inputs, failure.response, failure.expected, failure.feedback)

    def shown(self) -> str:
        """Return the error as compilers show it to an optimizer."""
        return shown_failure(self.inputs, self.gold, self.response, self.feedback)

    @property
    def answer(self) -> str:
        """The right outputs as one text: the error's class, unless somebody knows a better one."""
        return render_fields(self.gold)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an optimizer is shown.

    Attributes:
        instructions: The prompt under study.
        errors: A batch of its errors; empty asks for reasons without any evidence.
    """

    instructions: str
    errors: tuple[Error, ...] = ()

    def request(self) -> dict[str, object]:
        """Return the inputs of `CriticizeInstruction`: one reason is wanted; a record does not tell the context."""
        return {
            "context": "",
            "instruction": sound(self.instructions),
            "failures": [error.shown() for error in self.errors],
            "count": 1,
        }

    @property
    def key(self) -> str:
        """What makes two requests the same."""
        return json.dumps(self.request(), ensure_ascii=False)


class TooLittle(ValueError):
    """What was answered is not enough to measure anything by."""


Ask = Callable[[Evidence, int], list[str]]
"""(what is shown, draws) -> at most that many feedback texts, drawn independently of each other."""


def inquirer(inquiry: Inquiry) -> Ask:
    """Make an asker of an inquiry: within its budget, and nothing twice."""

    def ask(evidence: Evidence, draws: int) -> list[str]:
        replies = inquiry.ask([_criticism(evidence, number) for number in range(draws)])
        return [text for reply in replies if reply is not None for text in _reason(reply)]

    return ask


def requests_of(parts: Sequence[Sequence[Evidence]]) -> list[Request]:
    """Return the requests of several parts of a study in an order in which all parts grow alike.

    So a cap that cuts the list short leaves the same share of each. The entries of a part, or of different ones, that
    show the same are different draws.

    Args:
        parts: What to show.
    """
    places = [((k + 0.5) / len(part), evidence) for part in parts for k, evidence in enumerate(part)]
    ordered = [evidence for _, evidence in sorted(places, key=lambda entry: entry[0])]
    return [_criticism(evidence, number) for evidence, number in zip(ordered, _numbered(ordered), strict=True)]


def _numbered(shown: Sequence[Evidence]) -> list[int]:
    """Number the entries that show the same, each kind from 0 on: the numbers of their draws."""
    counters = defaultdict[str, Iterator[int]](itertools.count)
    return [next(counters[evidence.key]) for evidence in shown]


def _criticism(evidence: Evidence, number: int) -> Request:
    return Request(CriticizeInstruction, evidence.request(), number)


def ask_all(ask: Ask, shown: Sequence[Evidence]) -> list[str | None]:
    """Ask for one feedback text an entry. Entries that show the same get different draws.

    Args:
        ask: The asker.
        shown: What to show, in any order.

    Returns:
        The texts, in the order of `shown`; None where the model gave none.
    """
    counts = Counter(evidence.key for evidence in shown)
    left = {key: iter(ask(evidence, counts[key])) for key, evidence in {one.key: one for one in shown}.items()}
    return [next(left[evidence.key], None) for evidence in shown]


async def reasons(run: Run, shown: Sequence[Evidence], into: MutableSequence[str | None], *, order: Sequence[int],
                  salt: str = "diagnosis") -> None:
    """Ask for one reason an entry, everything at once, as `ask_all` does; keep each as it comes.

    Entries that show the same get different draws. A stop leaves what had come until then.

    Args:
        run: The run.
        shown: What to show.
        into: Gets the reason of each entry at the entry's place.
        order: The places, in the order in which to ask.
        salt: Separates draws of several calls.

    Raises:
        RunStopped: As `Run.ask`.
    """
    draws = _numbered(shown)
    context = ProgramContext.of(run).shown(run.baseline.names[-1])

    async def one(place: int) -> None:
        request = {**shown[place].request(), "context": context}
        replies = await run.ask(CriticizeInstruction, request, salt=f"{salt}, draw {draws[place]}")
        into[place] = next((text for reply in replies for text in _reason(reply)), None)

    await asyncio.gather(*map(one, order))


def _reason(reply: dspy.Prediction) -> list[str]:
    """The first reason of a reply, if it has one."""
    return texts_of(reply.get("reasons"))[:1]
