"""The author of one answer: what it recognised in the request, and its seeded choices."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from cuesmith.modules.embedded.families import Family
from cuesmith.modules.sampling import weighted_order
from cuesmith.modules.simulated.points import read, stated
from cuesmith.modules.simulated.request import Asked, FieldValue
from cuesmith.modules.simulated.task_inference import FIELD, InferredTask, asked_part, by_phrase, by_steps, explain
from cuesmith.modules.simulated.wordings import norm
from cuesmith.signatures import parse_steps

Values = dict[str, FieldValue]
"""An answer: a value for each output field."""
Source = Literal["evidence", "prior", "noise", "fallback"]
"""Where an answer comes from; see `cuesmith.modules.simulated_optimizer.Truth`."""
RECOGNISERS: dict[str, Callable[[Asked, random.Random], list[InferredTask]]] = {}
"""What finds the tasks that one of the `request.FORMS` is about."""
T = TypeVar("T")

_ACTED_ON = {
    "EditInstruction": "reason", "RewriteInstruction": "reflection", "SummarizeReasons": "reasons",
    "IdentifyCondition": "feedback", "CheckRule": "response",
}  # fmt: skip
"""The input that an answer follows, whether or not it names a task."""

_BLOCK, _DISTINCT = 1024, 64
"""A draw's number is a block (which `ask`) times 1024 plus its place there; places below 64 choose distinctly."""


def digest(*parts: object) -> int:
    """A number of 64 bits that the parts determine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class Author:
    """The seeded choices behind one answer: seed, request and draw determine everything."""

    def __init__(self, seed: int, asked: Asked, draw: int) -> None:
        self.seed, self.asked, self.draw, self.key = seed, asked, draw, asked.key
        self.tasks = _recognised(asked, self.rng("tie", draw))

    @property
    def families(self) -> list[Family]:
        """The families of the recognised tasks."""
        return [task.family for task in self.tasks]

    @property
    def grounded(self) -> bool:
        """Whether the request shows something to go by: a task, or for some requests any text to act on."""
        acted_on = _ACTED_ON.get(self.asked.name, "")
        return bool(self.tasks) or self.asked.name == "VaryInstructions" or bool(norm(self.asked.text(acted_on)))

    def rng(self, *label: object) -> random.Random:
        """Seeded chance for one purpose."""
        return random.Random(digest(self.seed, self.key, *label))

    def pick(self, label: str, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Choose an option, the likelier the heavier it is, so that the draws of one `ask` choose different ones."""
        return self.ranked(label, options, weights)[0]

    def choose(self, label: str, weighted: Mapping[str, float]) -> str:
        """Choose as `pick` does, from texts with their weights."""
        return self.pick(label, list(weighted), list(weighted.values()))

    def several(self, label: str, weighted: Mapping[str, float], count: int) -> list[str]:
        """Choose `count` different texts, or all if there are fewer; the first as `choose` does."""
        options, weights = list(weighted), list(weighted.values())
        chosen: list[str] = []
        for k in range(min(count, len(options))):
            ranked = self.ranked((label, k), options, weights)
            chosen.append(next(option for option in ranked if option not in chosen))
        return chosen

    def ranked(self, label: object, options: Sequence[T], weights: Sequence[float] | None = None) -> list[T]:
        """Return all options in the order of this draw's preference.

        The options are put into a weighted random order, the same for all draws of a block, and the draws of the
        block take one after the other. A draw whose place in its block is too large for that is on its own.
        """
        block, place = divmod(self.draw, _BLOCK)
        shared = place < min(_DISTINCT, len(options))
        rng = self.rng("pick", label, block) if shared else self.rng("pick alone", label, self.draw)
        ranked = weighted_order(rng, weights or [1.0] * len(options))
        first = place if shared else 0
        return [options[k] for k in (*ranked[first:], *ranked[:first])]


def _recognised(asked: Asked, rng: random.Random) -> list[InferredTask]:
    """The task that a request is about, from what it shows."""
    steps = asked.texts("steps")
    match asked.name:
        case "WriteInstructions" | "WriteSteps":
            return explain(asked.texts("examples"), (), rng)
        case "VaryInstructions":
            return by_phrase(asked.text("instruction"))
        case "WorkExample" | "LocateDeviation":
            gold = asked.text("outputs" if asked.name == "WorkExample" else "expected")
            gold = gold if FIELD.match(gold) else f"expected: {gold}"
            inputs = asked.text("inputs")
            return explain([f"{inputs}\n{gold}"], steps, rng) or by_steps(inputs, steps)
        case "ReviseStep":
            failures = [asked_part(text) for text in asked.texts("failures")]
            tasks = explain(failures, steps, rng) or by_steps("\n".join(failures), steps)
            return tasks[:1]
        case "ImproveInstruction":
            return _shown(asked, asked.texts("examples"), rng)
        case "MergeInstructions":
            return list(dict.fromkeys(t for name in ("first", "second") for t in stated(asked.text(name))))
        case "CriticizeInstruction" | "ReflectOnFailures":
            return _shown(asked, asked.texts("failures"), rng)
        case "ReflectOnSuccesses":
            return _shown(asked, asked.texts("successes"), rng)
        case "EditInstruction" | "RewriteInstruction":
            # It acts on what was concluded, not on the evidence behind it: a wrong critique makes a wrong edit.
            return list(read(asked.text(_ACTED_ON[asked.name])).tasks)
        case "SummarizeReasons":
            return list(dict.fromkeys(task for reason in asked.texts("reasons") for task in read(reason).tasks))
        case "ProposeInstruction":
            return explain([text.replace("<INS>", "") for text in asked.texts("exemplars")], (), rng)
        case _:
            return RECOGNISERS[asked.name](asked, rng) if asked.name in RECOGNISERS else []


def _shown(asked: Asked, examples: Sequence[str], rng: random.Random) -> list[InferredTask]:
    """The tasks that explain what an instruction was tried on; if several can, the one that it names."""
    instruction = asked.text("instruction")
    parsed = parse_steps(instruction)
    said = {task.family.name for task in stated(instruction)}
    tasks = explain([asked_part(text) for text in examples], parsed[1] if parsed else (), rng, said)
    return [InferredTask(task.field.removeprefix("expected "), task.family) for task in tasks]
