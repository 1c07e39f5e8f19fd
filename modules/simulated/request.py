"""Reading what a request asks for, and writing the answer in the form that it demands."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import dspy

from cuesmith import signatures
from cuesmith.modules.simulated.wordings import PRIOR_ADVICE

FieldValue = str | int | float | bool | list[str] | list[int] | dict[str, str] | list[dict[str, str]]
"""What a field of a request can hold."""


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a request that is none of `cuesmith.signatures`, by which it is known.

    Attributes:
        needed: Input fields that it always has.
        outputs: Output fields.
        inputs: All input fields in the order in which they are written; those that are not `needed` may be left out.
    """

    needed: frozenset[str]
    outputs: frozenset[str]
    inputs: tuple[str, ...]


FORMS: dict[str, Form] = {}
"""Further requests that are known, by name; one that has another's fields and more stands before it."""


def form_of(inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """The name of the further request that has these fields; "" if none has."""
    given, wanted = set(inputs), set(outputs)
    return next((name for name, form in FORMS.items() if form.needed <= given and form.outputs <= wanted), "")


@lru_cache(maxsize=1)
def _requests() -> dict[str, type[dspy.Signature]]:
    found = ((name, getattr(signatures, name)) for name in signatures.__all__)
    return {name: value for name, value in found if isinstance(value, type) and issubclass(value, dspy.Signature)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        name: The name of the signature in `cuesmith.signatures`, or of one of `FORMS`; "" for any
            other request.
        inputs: Its input fields by name, with their values.
        outputs: The output fields to answer, by name, with their type as dspy writes it ("list[str]").
        as_json: Whether the answer has to be a JSON object.
    """

    name: str
    inputs: Mapping[str, FieldValue]
    outputs: Mapping[str, str]
    as_json: bool = False

    @classmethod
    def of(cls, signature: type[dspy.Signature], **inputs: FieldValue) -> "Asked":
        """Ask for a signature's outputs, given its inputs."""
        outputs = {name: _type_name(field.annotation) for name, field in signature.output_fields.items()}
        inputs = {name: value.strip() if isinstance(value, str) else value for name, value in inputs.items()}
        return cls(_name_of(tuple(signature.input_fields), tuple(outputs)), inputs, outputs)

    @classmethod
    def parse(cls, text: str) -> "Asked":
        """Read a request as dspy's ChatAdapter or JSONAdapter writes it; any other text gives name "".

        Args:
            text: The text of the last message.
        """
        head, respond, tail = text.rpartition("\n\nRespond with ")
        if not respond:
            return cls("", {}, {})
        outputs = {
            match[1]: match[2] or "str"
            for match in re.finditer(
                r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`(?: \(must be formatted as a valid Python ([^)]*)\))?", tail
            )
            if match[1] != "completed"
        }
        texts = _sections(head)
        name = _name_of(tuple(texts), tuple(outputs))
        if not name:
            return cls("", dict(texts), outputs, tail.startswith("a JSON"))
        # A value may hold a line that looks like a field's header: only the signature's own fields count.
        kinds = _input_kinds(name, texts)
        texts = _sections(head, tuple(kinds))
        inputs = {key: _value(texts.get(key, ""), kind) for key, kind in kinds.items()}
        return cls(name, inputs, outputs, tail.startswith("a JSON"))

    @property
    def key(self) -> str:
        """The request's identity: the same whichever adapter wrote it."""
        inputs = {name: value for name, value in self.inputs.items() if name not in _BESIDES}
        return json.dumps([self.name, inputs, sorted({*self.outputs} - _BESIDES)], sort_keys=True, default=str)

    def text(self, name: str) -> str:
        """An input as one text."""
        value = self.inputs.get(name, "")
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

    def texts(self, name: str) -> list[str]:
        """An input as a list of texts."""
        value = self.inputs.get(name, [])
        return [str(item) for item in value] if isinstance(value, list) else str(value).splitlines()

    def render(self, values: Mapping[str, FieldValue]) -> str:
        """Write the values of the output fields in the form that the request demands."""
        if not self.outputs:
            return "\n".join(map(str, values.values())) or PRIOR_ADVICE[0]
        if self.as_json:
            return json.dumps(dict(values), ensure_ascii=False)
        parts = [f"[[ ## {name} ## ]]\n{_as_text(value)}" for name, value in values.items()]
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])


_BESIDES = {"context", "style", "analysis"}
"""Fields that many requests have, and that tell none from another."""


def _name_of(inputs: Sequence[str], outputs: Sequence[str]) -> str:
    for name, signature in _requests().items():
        # An adapter or ChainOfThought may ask for more than the signature does, such as `reasoning`.
        own = set(signature.input_fields) - _BESIDES, set(signature.output_fields) - _BESIDES
        if own[0] <= set(inputs) and own[1] <= set(outputs):
            return name
    return form_of(inputs, outputs)


def _input_kinds(name: str, given: Collection[str]) -> dict[str, str]:
    """The input fields of a request with their types; of a further one, those that are there, as texts."""
    if name in FORMS:
        return {field: "str" for field in FORMS[name].inputs if field in given}
    return {field: _type_name(info.annotation) for field, info in _requests()[name].input_fields.items()}


def _sections(text: str, names: tuple[str, ...] = ()) -> dict[str, str]:
    """The texts under "[[ ## name ## ]]" headers; with `names`, under these headers in this order only."""
    heads: list[tuple[str, int, int]] = []
    for match in re.finditer(r"^\[\[ ## (\w+) ## \]\][ \t]*\n?", text, re.MULTILINE):
        if not names or (len(heads) < len(names) and match[1] == names[len(heads)]):
            heads.append((match[1], match.start(), match.end()))
    ends = [*(start for _, start, _ in heads[1:]), len(text)]
    return {name: text[begin:end].strip() for (name, _, begin), end in zip(heads, ends, strict=False)}


def _type_name(annotation: object) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _value(text: str, kind: str) -> FieldValue:
    if kind == "list[str]":
        try:
            items = json.loads(text)
        except ValueError:
            return text.splitlines()
        return [str(item) for item in items] if isinstance(items, list) else [str(items)]
    if kind == "int":
        number = re.search(r"-?\d+", text)
        return int(number[0]) if number else 1
    return text


def _as_text(value: FieldValue) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return text.replace("[[ ##", "[ [ ##")  # what was shown may not act as a header of the reply
