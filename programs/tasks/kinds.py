"""Types made from data: what values of records, lists and classes have in common, as annotations of typed fields.

Source: ours.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import pydantic

Kind: TypeAlias = Any
"""An annotation: `str`, `bool`, `Literal[...]`, `list[...]`, a pydantic model, or one of them or None."""

CLASSES = 150
"""Different texts that are classes at most. Ours."""

EACH = 5
"""Rows that each class has on average, at least. Ours."""

_LONGEST = 60
"""Characters of a class's name at most. Ours."""

_MOST_KEYS = 50
"""Keys of a record at most; a mapping with more is one, and no record. Ours."""


def classes(texts: Sequence[str]) -> list[str] | None:
    """Return the classes that texts are, sorted; None if they are none.

    Classes are few (at most `CLASSES`), short, of at least `EACH` rows on average, and all known: where more than a
    text in a thousand stands in one row alone, there are probably others that no row has.
    """
    counts = Counter(texts)
    once = sum(count == 1 for count in counts.values())
    if not 2 <= len(counts) <= min(CLASSES, len(texts) / EACH) or once * 1000 > len(texts):
        return None
    if any(len(text) > _LONGEST or "\n" in text or not text.strip() for text in counts):
        return None
    return sorted(counts)


def literal(values: Sequence[str]) -> Kind:
    """Return the type of the texts that are one of `values`."""
    kind: Any = Literal
    return kind[tuple(values)]


def typed(name: str, values: Sequence[object], *, with_classes: bool = True) -> tuple[Kind, list[object]]:
    """Return the type that values have in common, and the values as data of that type.

    Records become pydantic models, named by their field; what some rows lack may be None. Values of different types
    become text, beside lists a single value becomes a list of one.

    Args:
        name: Of the field.
        values: JSON data; None where there is no value.
        with_classes: Whether texts may become one of their `classes`, and records models: not in an input.
    """
    held = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    there = [value for value in held if value is not None]
    kind, found = _common(name, there, with_classes)
    filled = iter(found)
    if len(there) < len(held):
        kind = kind | None
    return kind, [None if value is None else next(filled) for value in held]


def _common(name: str, values: Sequence[object], with_classes: bool) -> tuple[Kind, list[object]]:
    kinds = {type(value) for value in values}
    if any(issubclass(kind, Mapping) for kind in kinds) and all(issubclass(kind, Mapping) for kind in kinds):
        return _record(name, [value for value in values if isinstance(value, Mapping)], with_classes)
    if list in kinds:
        return _list(name, [value if isinstance(value, list) else [value] for value in values], with_classes)
    if kinds and kinds <= {bool, int, float} and (bool not in kinds or len(kinds) == 1):
        return (float if float in kinds else kinds.pop()), list(values)
    texts = [text_of(value).strip() for value in values]
    known = classes(texts) if with_classes else None
    return (literal(known) if known else str), list(texts)


def text_of(value: object) -> str:
    """Return a value as text: a text as it is, other data as JSON writes it, but for True and False."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping) else str(value)


def _list(name: str, lists: Sequence[list[object]], with_classes: bool) -> tuple[Kind, list[object]]:
    kind, members = typed(name, [member for each in lists for member in each], with_classes=with_classes)
    left = iter(members)
    made: Kind = list.__class_getitem__(kind)
    return made, [[next(left) for _ in each] for each in lists]


def _record(name: str, records: Sequence[Mapping[str, object]], with_classes: bool) -> tuple[Kind, list[object]]:
    if not with_classes:  # of an input, which nothing has to be made of
        data: Kind = dict[str, Any]
        return data, list(records)
    keys = list(dict.fromkeys(str(key) for record in records for key in record))
    if len(keys) > _MOST_KEYS:
        kind, cells = typed(name, [cell for record in records for cell in record.values()], with_classes=with_classes)
        left = iter(cells)
        made: Kind = dict.__class_getitem__((str, kind))
        return made, [{str(key): next(left) for key in record} for record in records]
    columns = {key: typed(key, [r.get(key) for r in records], with_classes=with_classes) for key in keys}
    rows = [{str(key): columns[str(key)][1][k] for key in record} for k, record in enumerate(records)]
    return _model(name, {key: kind for key, (kind, _) in columns.items()}), list(rows)


def _model(name: str, kinds: Mapping[str, Kind]) -> type[pydantic.BaseModel]:
    """Return a model of the fields; one whose name Python or pydantic does not take goes by an alias."""
    fields: dict[str, Any] = {}
    for k, (key, kind) in enumerate(kinds.items()):
        default = None if _may_be_none(kind) else ...
        taken = keyword.iskeyword(key) or hasattr(pydantic.BaseModel, key) or key.startswith(("_", "model_"))
        own = key.isidentifier() and not taken
        fields[key if own else f"field_{k}"] = (kind, pydantic.Field(default, alias=None if own else key))
    title = "".join(word[:1].upper() + word[1:] for word in re.split(r"\W+|_", name)) or "Record"
    made: type[pydantic.BaseModel] = pydantic.create_model(title, __module__=__name__, **fields)
    return made


def _may_be_none(kind: Kind) -> bool:
    return type(None) in getattr(kind, "__args__", ())
