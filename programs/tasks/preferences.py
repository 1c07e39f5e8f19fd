"""Preference data: a prompt, a better and a worse response, from the data sets of Align-Pro's evaluation.

Data is read by Hugging Face `datasets`, from its hub or from local files, and its form is known by its columns:

- UltraFeedback (`HuggingFaceH4/ultrafeedback_binarized`): `prompt`, and `chosen` and `rejected` as conversations or
  texts; the margin is `score_chosen - score_rejected` where the data has the scores.
- HelpSteer (`nvidia/HelpSteer`): `prompt`, `response` and five scores. Two responses to one prompt make a pair, the
  higher weighted score is the better one, and the difference is the margin.
- Orca (`Intel/orca_dpo_pairs`): `system`, `question`, `chosen`, `rejected`; no margin. The prompt is the system
  text, where there is one, an empty line, and the question.

Source: the data sets of 2501.03486, section "Experimental Setup"; the one form and the checks are ours.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from cuesmith.programs.tasks.task import TaskError

_T = TypeVar("_T")
Columns: TypeAlias = Mapping[str, object]

HELPSTEER_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.55, "verbosity": -0.4}
)
"""How HelpSteer's five scores (0 to 4 each) make one. Source: nvidia/Llama3-70B-SteerLM-RM, its model card."""

_FILE_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Preference:
    """Two responses to one prompt.

    Attributes:
        prompt: What was asked.
        chosen: The better response.
        rejected: The worse one.
        margin: By how much, in the data's own unit, above 0; None where the data does not say.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float | None = None


@dataclass(frozen=True)
class Source:
    """A known data set: its name on the hub and the split with the training data."""

    hub: str
    split: str


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "ultrafeedback": Source("HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
        "helpsteer": Source("nvidia/HelpSteer", "train"),
        "orca": Source("Intel/orca_dpo_pairs", "train"),
    }
)
"""The data sets of the paper, by short name."""


def load_preferences(
    source: str | Path,
    *,
    split: str | None = None,
    size: int | None = None,
    seed: int = 0,
    weights: Mapping[str, float] = HELPSTEER_WEIGHTS,
    cache_dir: Path | None = None,
) -> tuple[Preference, ...]:
    """Read preference pairs.

    Pairs that prefer nothing (equal responses, or a margin that is not above 0) are left out, and so are repeated
    ones. Which pairs are taken depends on their content and the seed alone, not on the order of the data.

    Args:
        source: A key of `SOURCES`, a local .json, .jsonl or .parquet file or a folder of such, or a hub name.
        split: The split to read; by default the known data set's own, else "train".
        size: Pairs, at most; all by default.
        seed: Chooses which, and their order.
        weights: Weights of HelpSteer's scores.
        cache_dir: Where `datasets` keeps what it converts; its own place by default.

    Raises:
        TaskError: If the data cannot be read, has other columns, or holds no pair. The message is one line.
    """
    where, rows, columns = _open(source, split, cache_dir)
    reader = _reader(where, columns, weights)
    found = dict.fromkeys(pair for pair in reader(where, rows) if _prefers(pair))
    if not found:
        raise TaskError(f"{where}: no pair of a better and a worse response")
    order = _shuffled(found, lambda pair: f"{pair.prompt}\0{pair.chosen}\0{pair.rejected}", seed)
    return tuple(order[:size])


def load_prompts(
    source: str | Path,
    *,
    split: str | None = None,
    size: int | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> tuple[str, ...]:
    """Read the different prompts of preference data; data of prompts alone will do, too.

    Args:
        source: As `load_preferences` takes it.
        split: As there.
        size: Prompts, at most; all by default.
        seed: Chooses which, and their order.
        cache_dir: As there.

    Raises:
        TaskError: If the data cannot be read or has no column "prompt" or "question".
    """
    where, rows, columns = _open(source, split, cache_dir)
    if not columns & {"prompt", "question"}:
        raise TaskError(f"{where}: no column 'prompt' or 'question'; there are: {_listed(columns)}")
    prompt = _orca_prompt if "prompt" not in columns else _plain_prompt
    found = dict.fromkeys(prompt(f"{where}: row {number}", row) for number, row in enumerate(rows))
    if not found:
        raise TaskError(f"{where}: no rows")
    return tuple(_shuffled(found, str, seed)[:size])


def prompts(preferences: Iterable[Preference]) -> tuple[str, ...]:
    """Return the different prompts, in order of first appearance."""
    return tuple(dict.fromkeys(preference.prompt for preference in preferences))


def _open(source: str | Path, split: str | None, cache_dir: Path | None) -> tuple[str, Iterable[Columns], set[str]]:
    """Return a name for messages, the rows, and the names of the columns."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        problem = f"{source}: reading it needs the package 'datasets' (pip install 'cuesmith[train]')"
        raise TaskError(problem) from None
    known = SOURCES.get(str(source))
    split = split or (known.split if known else "train")
    where = f"{known.hub if known else source}[{split}]"
    cache = None if cache_dir is None else str(cache_dir)
    try:
        if known is not None:
            table = datasets.load_dataset(known.hub, split=split, cache_dir=cache)
        elif Path(source).exists():
            kind, files = _local(Path(source))
            table = datasets.load_dataset(kind, data_files={split: files}, split=split, cache_dir=cache)
        else:
            table = datasets.load_dataset(str(source), split=split, cache_dir=cache)
    except TaskError:
        raise
    except Exception as error:  # whatever the library objects to: file, network, split, syntax
        raise TaskError(f"{where}: {_reason(error)}") from None
    return where, table, set(table.column_names)


def _local(path: Path) -> tuple[str, list[str]]:
    """Return the kind of a file or of a folder's files, and the files."""
    files = sorted(p for p in path.iterdir() if p.suffix in _FILE_KINDS) if path.is_dir() else [path]
    kinds = {_FILE_KINDS.get(file.suffix.lower()) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise TaskError(f"{path}: expected a file, or files of one kind, that end in {', '.join(_FILE_KINDS)}")
    return str(kinds.pop()), [str(file) for file in files]


def _reason(error: BaseException) -> str:
    """The innermost message in one line: `datasets` wraps what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _reader(
    where: str, columns: set[str], weights: Mapping[str, float]
) -> Callable[[str, Iterable[Columns]], Iterator[Preference]]:
    if {"question", "chosen", "rejected"} <= columns and "prompt" not in columns:
        return _orca
    if {"prompt", "chosen", "rejected"} <= columns:
        return _binarized
    if {"prompt", "response", *weights} <= columns:
        return lambda place, rows: _helpsteer(place, rows, weights)
    raise TaskError(
        f"{where}: the columns are those of no known preference data; there are: {_listed(columns)}; expected "
        f"prompt, chosen, rejected (UltraFeedback) or prompt, response, {', '.join(weights)} (HelpSteer) or "
        "system, question, chosen, rejected (Orca)"
    )


def _binarized(where: str, rows: Iterable[Columns]) -> Iterator[Preference]:
    for number, row in enumerate(rows):
        place = f"{where}: row {number}"
        responses = [_response(place, row, name) for name in ("chosen", "rejected")]
        yield Preference(_plain_prompt(place, row), responses[0], responses[1], _margin(place, row))


def _orca(where: str, rows: Iterable[Columns]) -> Iterator[Preference]:
    for number, row in enumerate(rows):
        place = f"{where}: row {number}"
        yield Preference(_orca_prompt(place, row), _text(place, row, "chosen"), _text(place, row, "rejected"))


def _helpsteer(where: str, rows: Iterable[Columns], weights: Mapping[str, float]) -> Iterator[Preference]:
    answers: dict[str, list[tuple[str, float]]] = {}
    for number, row in enumerate(rows):
        place = f"{where}: row {number}"
        score = math.fsum(weight * _number(place, row, name) for name, weight in weights.items())
        answers.setdefault(_plain_prompt(place, row), []).append((_text(place, row, "response"), score))
    for prompt, scored in answers.items():
        for (first, a), (second, b) in itertools.combinations(scored, 2):
            better, worse = (first, second) if a > b else (second, first)
            yield Preference(prompt, better, worse, round(abs(a - b), 9))  # sums of tenths that are equal stay equal


def _plain_prompt(where: str, row: Columns) -> str:
    return _text(where, row, "prompt")


def _orca_prompt(where: str, row: Columns) -> str:
    question, system = _text(where, row, "question"), str(row.get("system") or "").strip()
    return f"{system}\n\n{question}" if system else question


def _text(where: str, row: Columns, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        problem = "is missing or empty" if value is None or isinstance(value, str) else f"is a {type(value).__name__}"
        raise TaskError(f"{where}: {name!r} {problem}; a text is needed")
    return value


def _response(where: str, row: Columns, name: str) -> str:
    """The response: a text, or the last message of a conversation, which must be the assistant's."""
    value = row.get(name)
    if not isinstance(value, list):
        return _text(where, row, name)
    last: object = value[-1] if value else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise TaskError(f"{where}: {name!r} does not end with a message of the assistant")
    return str(last.get("content") or "")


def _margin(where: str, row: Columns) -> float | None:
    if row.get("margin") is not None:
        return _number(where, row, "margin")
    if row.get("score_chosen") is None or row.get("score_rejected") is None:
        return None
    return _number(where, row, "score_chosen") - _number(where, row, "score_rejected")


def _number(where: str, row: Columns, name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TaskError(f"{where}: {name!r} must be a number, got {value!r:.60}")
    return float(value)


def _prefers(pair: Preference) -> bool:
    return pair.chosen != pair.rejected and bool(pair.chosen.strip()) and (pair.margin is None or pair.margin > 0)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(sorted(columns)) or "none"


def _shuffled(items: Iterable[_T], key: Callable[[_T], str], seed: int) -> Sequence[_T]:
    """Return the items in an order that depends on each one's content and the seed alone."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{key(item)}".encode()).digest())
