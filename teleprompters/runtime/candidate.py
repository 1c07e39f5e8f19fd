"""The values a search moves among: demonstrations, prompts and candidates.

All are frozen, hashable, JSON-serialisable and identified by content, so that a journal, a cache and a
comparison can name them. Reading one from a program and binding one to a program are the only two places
where they touch dspy. Source: ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import dspy
import pydantic
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from cuesmith.teleprompters.runtime._dspy import copy_program, named_predictors
from cuesmith.teleprompters.runtime.fingerprint import fingerprint
from cuesmith.teleprompters.runtime.frames import Frame, frames_of

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


_PLAIN = (str, int, float, bool, type(None))


def digest(*parts: object) -> str:
    """Return a 16-hex-digit content hash of JSON data; what else is in it counts by a content hash of its own."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_hashed)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def to_json(value: object) -> Json:
    """Return `value` as plain JSON data: an array as lists; what JSON cannot hold, by its type and a content hash."""
    if isinstance(value, dspy.Example):
        value = dict(value.items())
    return _jsonable(_ordered(value))


def _jsonable(value: object) -> Json:
    result: Json = to_jsonable_python(value, fallback=_stand_in, bytes_mode="base64")
    return result


def _hashed(value: object) -> dict[str, str]:
    return {"fingerprint": fingerprint(value)}


def _stand_in(value: Any) -> object:
    kind = type(value)
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return f"<{kind.__qualname__.rpartition('.')[2]} {fingerprint(value)}>"


def typed(value: object, annotation: Any) -> object:
    """Return JSON data, or its text, as a value of a field's type; what does not fit stays as it is."""
    try:
        kind = TypeAdapter(annotation)
    except PydanticUserError:
        return value
    with suppress(ValidationError, UnicodeError):
        found: object = kind.validate_python(value)
        return found
    for text in (value, _written(value)):  # as JSON a strict model takes a date's text, and a literal its enum's value
        if isinstance(text, str):
            with suppress(ValidationError, UnicodeError):
                found = kind.validate_json(text)
                return found
    return value


def _written(value: object) -> str | None:
    with suppress(TypeError, ValueError, RecursionError):
        return json.dumps(value)
    return None


def typed_fields(values: Mapping[str, object], signature: type[dspy.Signature]) -> dict[str, object]:
    """Return the JSON data of fields as values of the fields' types; a field that there is none of stays as it is."""
    kinds = {name: info.annotation for name, info in signature.fields.items()}
    return {name: typed(value, kinds[name]) if name in kinds else value for name, value in values.items()}


def _ordered(value: object) -> object:
    """Put sets in an order, which differs from process to process, and write dspy's own types by their fields."""
    match value:
        case pydantic.BaseModel():
            return _model(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: _ordered(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case set() | frozenset():
            return [_ordered(v) for v in sorted(value, key=lambda v: repr(v) if type(v) in _PLAIN else fingerprint(v))]
        case dict():
            return {name: _ordered(v) for name, v in value.items()}
        case list() | tuple():
            return [_ordered(v) for v in value]
        case bytes():  # text, if it is text: it is read back so; else base64
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value
        case _:
            return value


def _holds_set(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_set, value.values()))
    return isinstance(value, set | frozenset) or (isinstance(value, list | tuple) and any(map(_holds_set, value)))


def _model(value: pydantic.BaseModel) -> object:
    """Return the data that a model is made of again: what it writes itself, or else its fields.

    A model may leave fields out when it writes itself, or write them in a form that it does not read. An image, a
    recording or a file of dspy's writes itself as marked text for a prompt, which no model reads back. In a place of
    no type (a message of `dspy.History`) that text is the whole of what can be kept, and prompts show it.
    """
    dumped = value.model_dump() if _holds_set(vars(value)) else value
    own = _jsonable(_ordered(dumped) if dumped is not value else value)
    fields = {info.alias or name: _ordered(getattr(value, name)) for name, info in type(value).model_fields.items()}
    return next((data for data in (own, fields) if _is_read_back(data, value)), own)


def _is_read_back(data: object, value: pydantic.BaseModel) -> bool:
    return any(_reads(read, data, value) for read in (type(value).model_validate, _from_json(type(value))))


def _from_json(kind: type[pydantic.BaseModel]) -> Callable[[object], object]:
    return lambda data: kind.model_validate_json(json.dumps(data))


def _reads(read: Callable[[object], object], data: object, value: pydantic.BaseModel) -> bool:
    try:
        return bool(read(_jsonable(data)) == value)
    except Exception:  # validators are other people's code
        return False


@dataclass(frozen=True)
class Demo:
    """One demonstration: values for some of a signature's fields, in field order.

    Attributes:
        values: (field name, JSON value) pairs.
    """

    values: tuple[tuple[str, Json], ...]

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Demo:
        """Build a demonstration from field values of any JSON-serialisable or pydantic type."""
        return cls(tuple((str(name), to_json(value)) for name, value in values.items()))

    def __getitem__(self, name: str) -> Json:
        """Return the value of field `name`.

        Raises:
            KeyError: If the demonstration has no such field.
        """
        return dict(self.values)[name]

    def __contains__(self, name: object) -> bool:
        """Return whether the demonstration has a value for the field."""
        return any(name == own for own, _ in self.values)

    def __eq__(self, other: object) -> bool:
        """Compare by content, as the hash does: 1, 1.0 and True are different values."""
        return isinstance(other, Demo) and digest(self.values) == digest(other.values)

    def __hash__(self) -> int:
        """Hash by content (values may be lists, which do not hash)."""
        return hash(digest(self.values))

    def to_example(self, signature: type[dspy.Signature]) -> dspy.Example:
        """Return the demonstration as dspy takes it, values converted to the fields' types.

        Args:
            signature: The predictor's signature; a field it does not know keeps its JSON value.
        """
        found = typed_fields(dict(self.values), signature)
        return dspy.Example(**found).with_inputs(*(name for name in found if name in signature.input_fields))


@dataclass(frozen=True)
class Prompt:
    """What a compiler may change of one predictor: its instructions and its demonstrations.

    Of instructions that a module composed (`dspy.ReAct`: its tools, the protocol of its loop) only the user's part.
    """

    instructions: str
    demos: tuple[Demo, ...] = ()

    def to_json(self) -> Json:
        """Return the prompt as JSON data."""
        return {"instructions": self.instructions, "demos": [dict(demo.values) for demo in self.demos]}


@dataclass(frozen=True)
class Origin:
    """Where a candidate came from.

    Attributes:
        move: The move that made it, e.g. "student", "initial", "vary", "revise".
        parents: Ids of the candidates it was made from.
        evidence: Ids of the examples shown to the optimizer for it.
    """

    move: str
    parents: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Candidate:
    """One setting of all prompts of a program; equality, hash and `id` are by content.

    Attributes:
        prompts: Predictor name -> its prompt, in the program's order. Read-only.
        origin: Lineage; not part of the identity.
        prompter: Fingerprint of what stands in front of the program and rewrites its inputs; "" if nothing does.
    """

    prompts: Mapping[str, Prompt]
    origin: Origin = field(default=Origin("student"))
    prompter: str = ""

    def __post_init__(self) -> None:
        """Freeze the mapping."""
        object.__setattr__(self, "prompts", MappingProxyType(dict(self.prompts)))

    def __getstate__(self) -> dict[str, object]:
        """Return picklable state (a mapping proxy is not)."""
        return {"prompts": dict(self.prompts), "origin": self.origin, "prompter": self.prompter}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore from `__getstate__`."""
        self.__dict__.update(state)
        self.__post_init__()

    def __deepcopy__(self, memo: object) -> Candidate:
        """Return itself: it cannot change."""
        return self

    @cached_property
    def id(self) -> str:
        """Content hash of the prompts and the prompter, 16 hex digits."""
        prompts = [[name, prompt.to_json()] for name, prompt in self.prompts.items()]
        return digest(prompts, self.prompter) if self.prompter else digest(prompts)

    @property
    def names(self) -> tuple[str, ...]:
        """Predictor names, in the program's order."""
        return tuple(self.prompts)

    @property
    def size(self) -> int:
        """Characters of all instructions and demonstrations together."""
        return sum(
            len(p.instructions) + sum(len(str(v)) for d in p.demos for _, v in d.values) for p in self.prompts.values()
        )

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        return isinstance(other, Candidate) and self.id == other.id

    def __hash__(self) -> int:
        """Hash by content."""
        return hash(self.id)

    def __iter__(self) -> Iterator[tuple[str, Prompt]]:
        """Iterate over (predictor name, prompt)."""
        return iter(self.prompts.items())

    @classmethod
    def of(cls, program: dspy.Module) -> Candidate:
        """Read the candidate that `program` now is.

        Args:
            program: Any dspy module; predictors inside frozen (compiled) sub-modules are not read.
        """
        frames = frames_of(program)
        return cls(
            {
                name: Prompt(
                    frames.get(name, Frame()).inner(str(p.signature.instructions)),
                    tuple(_demo(d, p.signature) for d in p.demos),
                )
                for name, p in named_predictors(program)
            }
        )

    def bind(self, program: dspy.Module) -> dspy.Module:
        """Return a copy of `program` with these prompts; `program` and its LMs stay untouched and shared.

        What modules of the program wrote into instructions themselves stays there.

        Raises:
            ValueError: If the program has other predictors than the candidate.
        """
        bound = copy_program(program)
        predictors = dict(named_predictors(bound))
        if set(predictors) != set(self.prompts):
            raise ValueError(
                f"candidate {self.id} is for the predictors {sorted(self.prompts)}, "
                f"but the program has {sorted(predictors)}"
            )
        own, frames = Candidate.of(program).prompts, frames_of(program)
        for name, prompt in self.prompts.items():
            predictor = predictors[name]
            if prompt.instructions != own[name].instructions:
                whole = frames.get(name, Frame()).around(prompt.instructions)
                predictor.signature = predictor.signature.with_instructions(whole)
            if prompt.demos != own[name].demos:
                predictor.demos = [demo.to_example(predictor.signature) for demo in prompt.demos]
        return bound

    def replace(
        self, name: str, *, origin: Origin, instructions: str | None = None, demos: Sequence[Demo] | None = None
    ) -> Candidate:
        """Return a candidate with one predictor's prompt changed.

        Args:
            name: The predictor to change.
            origin: Where the new candidate comes from.
            instructions: New instructions, or None to keep them.
            demos: New demonstrations, or None to keep them.

        Raises:
            KeyError: If there is no predictor of that name.
        """
        old = self.prompts[name]
        new = Prompt(
            old.instructions if instructions is None else instructions, old.demos if demos is None else tuple(demos)
        )
        return Candidate({**self.prompts, name: new}, origin, self.prompter)

    def behind(self, prompter: str, origin: Origin) -> Candidate:
        """Return the candidate with another prompter in front of it.

        Args:
            prompter: Its fingerprint, a content hash.
            origin: Where the new candidate comes from.
        """
        return Candidate(self.prompts, origin, prompter)

    def to_json(self) -> Json:
        """Return the candidate as JSON data, with its lineage."""
        return {
            "id": self.id,
            "prompts": {name: prompt.to_json() for name, prompt in self},
            **({"prompter": self.prompter} if self.prompter else {}),
            "origin": {
                "move": self.origin.move,
                "parents": list(self.origin.parents),
                "evidence": list(self.origin.evidence),
            },
        }

    @classmethod
    def from_json(cls, data: object) -> Candidate:
        """Rebuild a candidate from `to_json`.

        Raises:
            pydantic.ValidationError: If the data is not of that form.
        """
        stored = _STORED.validate_python(data)
        prompts = {
            name: Prompt(p.instructions, tuple(Demo.of(d) for d in p.demos)) for name, p in stored.prompts.items()
        }
        origin = Origin(stored.origin.move, tuple(stored.origin.parents), tuple(stored.origin.evidence))
        return cls(prompts, origin, stored.prompter)


@dataclass
class _StoredPrompt:
    instructions: str
    demos: list[dict[str, object]]


@dataclass
class _StoredOrigin:
    move: str
    parents: list[str]
    evidence: list[str]


@dataclass
class _Stored:
    prompts: dict[str, _StoredPrompt]
    origin: _StoredOrigin
    prompter: str = ""


_STORED = TypeAdapter(_Stored)


def _demo(demo: object, signature: type[dspy.Signature]) -> Demo:
    values = dict(demo.items()) if isinstance(demo, dspy.Example) else demo  # `toDict` writes images as text
    if not isinstance(values, Mapping):
        raise ValueError(f"a demonstration must be a dspy.Example or a dict, got {type(demo).__name__}")
    return Demo.of({name: values[name] for name in signature.fields if name in values})


def example_id(example: dspy.Example) -> str:
    """Return the content hash of an example: its full values and which of them are inputs, 16 hex digits."""
    return digest(_full(dict(example.items())), sorted(example.inputs().keys()))


def question_key(example: dspy.Example) -> str:
    """Return what makes two examples the same one: the full inputs, case and white space aside, labels aside."""
    return digest({name: _folded(to_json(value)) for name, value in example.inputs().items()})


def _full(value: object) -> object:
    """Return JSON data as it is, and a content hash in place of every other value."""
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple):
        return [_full(v) for v in value]  # type: ignore[attr-defined]
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _full(v) for name, v in value.items()}
    return _hashed(value)


def _folded(value: Json) -> Json:
    match value:
        case str():
            return _plain(value)
        case list():
            return [_folded(v) for v in value]
        case dict():
            return {_plain(name): _folded(v) for name, v in value.items()}
        case _:
            return _plain(str(value))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates without those whose prompts another one before has, in order."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.id, candidate)
    return list(first.values())


def line_of(candidate: Candidate, known: Mapping[str, Candidate]) -> list[Candidate]:
    """Return the candidates that led to this one, the oldest first and itself last: first parents, as far as known.

    A circle, which no search makes but a damaged record can have, ends where it closes.
    """
    path = {candidate.id: candidate}
    while (parents := candidate.origin.parents) and parents[0] in known and parents[0] not in path:
        candidate = path[parents[0]] = known[parents[0]]
    return [*path.values()][::-1]


def made_from(move: str, examples: Sequence[dspy.Example], *parents: Candidate) -> Origin:
    """Return the origin of a candidate made by `move` from `parents`, with `examples` as evidence."""
    evidence = dict.fromkeys(example_id(example) for example in examples)
    return Origin(move, tuple(parent.id for parent in parents), tuple(evidence))


class ExampleIds:
    """Content hashes of examples, each computed once: a run asks for them again and again, and they do not change."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[dspy.Example, str]] = {}

    def __call__(self, example: dspy.Example) -> str:
        """Return the example's `example_id`."""
        known = self._known.get(id(example))
        if known is None or known[0] is not example:
            known = self._known[id(example)] = (example, example_id(example))
        return known[1]
