"""What every request to the optimizer is told of the program: its stages, their fields, what is rewarded, the data.

Source: ours. The published requests show a task's description at most; MIPROv2 shows the program's code.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

import dspy
from pydantic import BaseModel

from cuesmith.signatures import STYLES, Style, SummarizeData
from cuesmith.teleprompters.runtime.evidence import REASONING, answer_fields, labels_of, shortened, text_of
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Step
from cuesmith.teleprompters.runtime.replies import ANALYSIS
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.closed_answers import closed_answers

VALUES = 100
"""Allowed values of a field that are listed. Ours."""

TOLD = 600
"""Characters of another stage's instructions, and of what a metric says of itself. Ours."""

SUMMARIZED = 12
"""Training examples that the summary of the data is written from. Ours."""

SAME = 12
"""So many characters of a value, found in a later stage's input, are taken for that value. Ours."""


@dataclass(frozen=True)
class ProgramContext:
    """What is known of a program, for `context` of a request.

    Attributes:
        signatures: Stage (predictor) -> its signature, in the program's order.
        instructions: Stage -> the student's instructions.
        labels: Names of what the examples say is right.
        flows: (stage, output, later stage, its input), as far as names or runs tell.
        metric: What the metric rewards.
        task: The user's description of the task.
        data: A summary of the data.
        answers: (stage, output) -> the texts of which it is always one in the examples, where they are few.
    """

    signatures: Mapping[str, type[dspy.Signature]]
    instructions: Mapping[str, str]
    labels: frozenset[str] = frozenset()
    flows: tuple[tuple[str, str, str, str], ...] = ()
    metric: str = ""
    task: str = ""
    data: str = ""
    answers: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, run: Run, traces: Sequence[Sequence[Step]] = (), metric: str = "", task: str = "", naming: bool = True
    ) -> ProgramContext:
        """Return what is known before anything is asked: from the student, its runs so far, and the examples.

        Args:
            run: The run.
            traces: Of runs of the student.
            metric: What the metric rewards.
            task: The user's description.
            naming: Whether answers that are always one of a few are named.
        """
        signatures = {name: predictor.signature for name, predictor in run.predictors.items()}
        labels = frozenset(name for example in run.train[:SUMMARIZED] for name in labels_of(example))
        return cls(
            signatures,
            {name: prompt.instructions for name, prompt in run.baseline},
            labels,
            _flows(signatures, traces),
            metric,
            task,
            answers=closed_answers(run.train, signatures) if naming else {},
        )

    def shown(self, name: str, instructions: str = "") -> str:
        """Return the context of a request about stage `name`.

        Args:
            name: The predictor.
            instructions: Its present instructions, where the request does not show them otherwise.
        """
        signature, several = self.signatures[name], len(self.signatures) > 1
        lines = [
            ("task", self.task),
            ("program", f"{len(self.signatures)} stages: {self._stages()}" if several else ""),
            ("this stage", f'"{name}"' if several else ""),
            *((f"input {one}", _field(signature, one)) for one in signature.input_fields),
            *(
                (f"output {one}", _field(signature, one) + self._known(name, one) + self._goes(name, one))
                for one in answer_fields(signature)
            ),
            *((f'later or earlier stage "{other}"', self._other(other)) for other in self.signatures if other != name),
            ("present instruction", instructions if instructions != self._defaults[name] else ""),
            *(("besides, in every prompt", part) for part in _fixed(signature, self.instructions[name])),
            ("how answers are scored", self.metric),
            ("the data", self.data),
        ]
        return "\n".join(f"{head}: {text}" for head, text in lines if text)

    @functools.cached_property
    def _defaults(self) -> Mapping[str, str]:
        """Stage -> instructions that nobody wrote: a model would only copy them."""
        return {name: _default_of(signature) for name, signature in self.signatures.items()}

    def _stages(self) -> str:
        return ", then ".join(
            f'"{name}" ({", ".join(one.input_fields)} -> {", ".join(answer_fields(one))})'
            for name, one in self.signatures.items()
        )

    def _known(self, name: str, output: str) -> str:
        values = [repr(value) for value in self.answers.get((name, output), ())]
        return f"; in the examples always {_one_of(values)}" if values else ""

    def _goes(self, name: str, output: str) -> str:
        """Return where an output of a stage goes."""
        to = [f'stage "{stage}" as {given}' for by, what, stage, given in self.flows if (by, what) == (name, output)]
        final = ["the program's answer"] if output in self.labels and len(self.signatures) > 1 else []
        if to or final or name == [*self.signatures][-1]:
            return f"; goes to {' and '.join([*to, *final])}" if to or final else ""
        return "; goes on to the stages after it"

    def _other(self, name: str) -> str:
        signature = self.signatures[name]
        fields = [
            f"{one} ({_field(signature, one)}{self._goes(name, one) if one in signature.output_fields else ''})"
            for one in (*signature.input_fields, *answer_fields(signature))
        ]
        return f"{shortened(self.instructions[name], TOLD)} [{'; '.join(fields)}]"


@dataclass(frozen=True)
class Requests:
    """Asks the optimizer: every request is told the context and the style, and may think before it answers.

    Attributes:
        run: The run.
        context: What is known of the program.
        style: How instructions are to be written.
        analysis: Whether requests have the field `analysis`.
    """

    run: Run
    context: ProgramContext
    style: Style = "brief"
    analysis: bool = True

    async def ask(
        self,
        signature: type[dspy.Signature],
        name: str,
        inputs: Mapping[str, object],
        *,
        instructions: str = "",
        n: int = 1,
        salt: str = "",
    ) -> list[dspy.Prediction]:
        """Ask as `Run.ask`, about predictor `name`.

        Args:
            signature: The request; its `context` and `style` are filled in.
            name: The predictor.
            inputs: Its other inputs.
            instructions: The predictor's present instructions, where `inputs` do not hold them.
            n: As for `Run.ask`.
            salt: As for `Run.ask`.

        Raises:
            RunStopped: As `Run.ask`.
        """
        known = {"context": self.context.shown(name, instructions), "style": STYLES[self.style]}
        given = {field: text for field, text in known.items() if field in signature.input_fields}
        if not self.analysis and ANALYSIS in signature.output_fields:
            name_of, signature = signature.__name__, signature.delete(ANALYSIS)
            signature.__name__ = name_of
        return await self.run.ask(signature, {**given, **inputs}, n=n, salt=salt)


async def summary(requests: Requests, examples: Sequence[str]) -> str:
    """Return the optimizer's summary of the data, asked once a run; "" if it gives none.

    Args:
        requests: Asks.
        examples: Solved examples, as an optimizer is shown them.
    """
    name = requests.run.baseline.names[-1]
    plain = replace(requests.context, metric="", task="")  # a weak model would summarise these as well
    replies = await replace(requests, context=plain).ask(SummarizeData, name, {"examples": list(examples)}, salt="data")
    found = replies[0].get("summary") if replies else ""
    return shortened(found.strip(), 2 * TOLD) if isinstance(found, str) else ""


def rewarded(metric: MetricFunction) -> str:
    """Return what a metric says of itself: the first paragraph of its docstring; "" if it has none of its own."""
    inner: Any = metric.func if isinstance(metric, functools.partial) else metric
    plain = inspect.isroutine(inner) or inspect.isclass(inner)
    places = [inner] if plain else [vars(type(inner)).get("__call__"), vars(type(inner)).get("forward"), type(inner)]
    for place in places:
        text = place.__doc__ and inspect.getdoc(place)
        made = is_dataclass(place) and (text or "").startswith(f"{getattr(place, '__name__', '')}(")
        if text and not made:
            return shortened(" ".join(text.split("\n\n", 1)[0].split()), TOLD)
    return ""


# --- fields ------------------------------------------------------------------------------------------------


def _field(signature: type[dspy.Signature], name: str) -> str:
    """Return a field's type with its allowed values, and what is said of it."""
    info = signature.fields[name]
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    said = extra.get("desc")
    known = f"; {said}" if isinstance(said, str) and said and said != f"${{{name}}}" else ""
    bounds = f"; {extra['constraints']}" if extra.get("constraints") else ""
    return f"{kind_of(info.annotation)}{bounds}{known}"


def kind_of(annotation: Any, within: tuple[object, ...] = ()) -> str:
    """Return a type in words, with the values and fields that it allows.

    Args:
        annotation: The type.
        within: Models that it is part of: one that holds itself is named only.
    """
    origin, inner = get_origin(annotation), get_args(annotation)

    def also(one: Any) -> str:
        return kind_of(one, within)

    if origin is Literal:
        return _one_of([repr(one) for one in inner])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _one_of([repr(one.value) for one in annotation])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, dspy.Type):
        return annotation.__name__ if annotation in within else _model(annotation, within)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if one is type(None) else also(one) for one in inner)
    if origin is typing.Annotated:
        return ", ".join([also(inner[0]), *(text_of(str(one)) for one in inner[1:])])
    if origin in (list, set, frozenset, tuple) and inner:
        return f"{origin.__name__} of {' and '.join(also(one) for one in inner if one is not Ellipsis)}"
    if origin is dict and len(inner) == 2:
        return f"mapping from {also(inner[0])} to {also(inner[1])}"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _one_of(values: Sequence[str]) -> str:
    more = f" and {len(values) - VALUES} more" if len(values) > VALUES else ""
    return f"one of {', '.join(values[:VALUES])}{more}"


def _model(model: type[BaseModel], within: tuple[object, ...]) -> str:
    fields = [
        f"{name}: {kind_of(info.annotation, (*within, model))}" + (f" ({info.description})" if info.description else "")
        for name, info in model.model_fields.items()
    ]
    return f"{model.__name__} with {{{'; '.join(fields)}}}"


def _default_of(signature: type[dspy.Signature]) -> str:
    """Return what dspy writes as instructions where nobody wrote any."""
    plain = signature.delete(REASONING) if REASONING in signature.fields else signature
    return str(dspy.Signature(dict(plain.fields)).instructions)


def _fixed(signature: type[dspy.Signature], instructions: str) -> list[str]:
    """Return what a signature's instructions hold around the ones that are searched (see `frames`)."""
    whole = str(signature.instructions)
    if instructions not in whole:
        return []
    parts = whole.split(instructions, 1) if instructions else [whole]
    return [shortened(part.strip()) for part in parts if part.strip()]


# --- flows -------------------------------------------------------------------------------------------------


def _flows(
    signatures: Mapping[str, type[dspy.Signature]], traces: Sequence[Sequence[Step]]
) -> tuple[tuple[str, str, str, str], ...]:
    """Return which output of a stage is which input of a later one: by equal names, else by values seen in runs."""
    names = [*signatures]
    found = {
        (one, what, other, what)
        for i, one in enumerate(names)
        for other in names[i + 1 :]
        for what in answer_fields(signatures[one])
        if what in signatures[other].input_fields
    }
    for trace in traces:
        for i, early in enumerate(trace):
            for late in trace[i + 1 :]:
                found |= {
                    (early.predictor, what, late.predictor, given)
                    for what, value in early.outputs.items()
                    for given, got in late.inputs.items()
                    if early.predictor != late.predictor and _is_in(value, got)
                }
    known = [one for one in found if one[0] in signatures and one[1] in answer_fields(signatures[one[0]])]
    return tuple(sorted(known))


def _is_in(value: object, got: object) -> bool:
    if isinstance(value, bool | int | float | None):
        return False
    text, held = text_of(value), text_of(got)
    return bool(text) and (text == held or (len(text) >= SAME and text in held))
