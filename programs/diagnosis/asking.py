"""Asking an optimizer model why errors happen, with the request that the project's compilers send.

The instruments see the model only through an *asker*: a function of what is shown (`Evidence`) and a number of
draws. So they work on a run, on a plain LM, on a simulated optimizer and on recorded answers alike. Source: ours.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass

import dspy
from dspy.utils.exceptions import AdapterParseError

from cuesmith.modules.sampling import DRAWS_PER_ASK
from cuesmith.modules.sampling import draw as current_draw
from cuesmith.programs.diagnosis.inquiry import Inquiry, Request
from cuesmith.signatures import CriticizeInstruction
from cuesmith.teleprompters.runtime.evidence import render_fields, shown_failure, sound
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.deviations import Failure
from cuesmith.teleprompters.search.reflecting import texts_of

__all__ = ["Ask", "AskSoon", "Error", "Evidence", "TooLittle", "ask_all", "ask_all_soon", "asker", "inquirer",
           "lm_asker", "requests_of"]


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
        """Return the inputs of `CriticizeInstruction`: one reason is wanted."""
        return {
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
AskSoon = Callable[[Evidence, int], Awaitable[list[str]]]
"""An asker that is awaited."""


def asker(run: Run) -> AskSoon:
    """Make an asker of a run: its budget, its journal, its prices.

    Every draw is an effect of its own, so that draws are independent, also of a model that makes the draws of one
    `ask` differ.

    Args:
        run: A run that is not over.
    """

    async def ask(evidence: Evidence, draws: int) -> list[str]:
        request = evidence.request()
        asked = (run.ask(CriticizeInstruction, request, salt=f"diagnosis, draw {k}") for k in range(draws))
        return [text for replies in await asyncio.gather(*asked) for reply in replies for text in _reason(reply)]

    return ask


def lm_asker(lm: dspy.BaseLM, *, seed: int = 0) -> Ask:
    """Make an asker of a plain LM, without a budget. At temperature 1 unless the LM has one of its own above 0.

    Replies that cannot be used are left out; a provider's failure is raised as it is.

    Args:
        lm: The optimizer model.
        seed: Other seeds are other draws.
    """
    warm = (lm.kwargs.get("temperature") or 0) > 0

    def one(evidence: Evidence, number: int) -> list[str]:
        config = {"rollout_id": number + 1} | ({} if warm else {"temperature": 1.0})
        current_draw.set(number * DRAWS_PER_ASK)  # a multiple of it is a fresh start for models in this process
        try:
            with dspy.context(lm=lm, trace=[]):
                return _reason(dspy.Predict(CriticizeInstruction)(**evidence.request(), config=config))
        except AdapterParseError:
            return []

    def ask(evidence: Evidence, draws: int) -> list[str]:
        numbers = range(seed * DRAWS_PER_ASK, seed * DRAWS_PER_ASK + draws)
        return [text for number in numbers for text in copy_context().run(one, evidence, number)]

    return ask


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
    numbers: Counter[str] = Counter()
    requests = []
    for _, evidence in sorted(places, key=lambda entry: entry[0]):
        requests.append(_criticism(evidence, numbers[evidence.key]))
        numbers[evidence.key] += 1
    return requests


def _criticism(evidence: Evidence, number: int) -> Request:
    return Request(CriticizeInstruction, evidence.request(), number)


def ask_all(ask: Ask, shown: Sequence[Evidence], *, threads: int = 1) -> list[str | None]:
    """Ask for one feedback text an entry. Entries that show the same get different draws.

    Args:
        ask: The asker.
        shown: What to show, in any order.
        threads: Requests in flight at once.

    Returns:
        The texts, in the order of `shown`; None where the model gave none.
    """
    wanted, counts = _distinct(shown)
    if threads <= 1:
        return _dealt(shown, counts, [ask(evidence, count) for evidence, count in zip(*wanted, strict=True)])
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(copy_context().run, ask, evidence, count) for evidence, count in zip(*wanted, strict=True)]
        try:
            return _dealt(shown, counts, [task.result() for task in tasks])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is not under way is not sent to a failed provider
            raise


async def ask_all_soon(ask: AskSoon, shown: Sequence[Evidence]) -> list[str | None]:
    """Ask as `ask_all` does, everything at once: a run bounds by itself what is in flight."""
    wanted, counts = _distinct(shown)
    replies = await asyncio.gather(*(ask(evidence, count) for evidence, count in zip(*wanted, strict=True)))
    return _dealt(shown, counts, replies)


def _distinct(shown: Sequence[Evidence]) -> tuple[tuple[list[Evidence], list[int]], Counter[str]]:
    counts = Counter(evidence.key for evidence in shown)
    distinct = {evidence.key: evidence for evidence in shown}
    return (list(distinct.values()), [counts[key] for key in distinct]), counts


def _dealt(shown: Sequence[Evidence], keys: Counter[str], replies: Sequence[Sequence[str]]) -> list[str | None]:
    left: dict[str, Iterator[str]] = defaultdict(lambda: iter(()))
    left.update({key: iter(texts) for key, texts in zip(keys, replies, strict=True)})
    return [next(left[evidence.key], None) for evidence in shown]


def _reason(reply: dspy.Prediction) -> list[str]:
    """The first reason of a reply, if it has one."""
    return texts_of(reply.get("reasons"))[:1]
