"""What the commands share: kinds of arguments, how a call is answered, and that nothing is fetched. Source: ours.

A command is a function of one frozen dataclass, its options: cyclopts makes the command line of it, and its help of the
docstrings. Nothing here loads dspy.
"""

from __future__ import annotations

import codecs
import difflib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError
from cyclopts.exceptions import ConsumeMultipleError

T = TypeVar("T")

TRACEBACK = "CUESMITH_TRACEBACK"
"""The environment variable that has an error nobody foresaw shown in full."""


class BadInput(ValueError):
    """The arguments, or the data that they name, are wrong: exit status 2. The message is one line."""


class RunFailed(RuntimeError):
    """The run began and could not go on: exit status 1. The message is one line; what was paid is in the journal."""


def count(text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        ValueError: If it is none.
    """
    return _whole(text, 1)


def seed(text: str) -> int:
    """Return a whole number of at least 0.

    Raises:
        ValueError: If it is none.
    """
    return _whole(text, 0)


def amount(text: str) -> float:
    """Return a finite number above 0.

    Raises:
        ValueError: If it is none.
    """
    value = _number(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a positive amount")
    return value


def share(text: str) -> float:
    """Return a number from 0 to 1.

    Raises:
        ValueError: If it is none.
    """
    value = _number(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a share: a number from 0 to 1")
    return value


def score(text: str) -> float:
    """Return a finite number.

    Raises:
        ValueError: If it is none.
    """
    value = _number(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def columns(text: str) -> tuple[str, ...] | dict[str, str]:
    """Return the names of columns that are written with commas between them; field -> column where "=" names a field.

    Raises:
        ValueError: If one is empty, or a field is named twice.
    """
    parts = [[piece.strip() for piece in part.split("=", 1)] for part in text.split(",")]
    if not all(map(all, parts)):
        raise ValueError(f"{text!r} is no list of columns, such as question,context or question=prompt_text")
    fields, columns = [part[0] for part in parts], [part[-1] for part in parts]
    if twice := next((name for name in fields if fields.count(name) > 1), None):
        raise ValueError(f"{twice} is given twice")
    return tuple(columns) if fields == columns else dict(zip(fields, columns, strict=True))


def model(text: str) -> str:
    """Return the name of a LiteLLM model.

    Raises:
        ValueError: If it has not the form of one.
    """
    provider, slash, name = text.partition("/")
    if not (provider and slash and name) or any(c.isspace() for c in text):
        raise ValueError(f"{text!r} is not PROVIDER/MODEL, such as openai/gpt-4.1-mini")
    return text


def listed(convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Return what converts several values that are written with commas between them."""
    return lambda text: tuple(convert(piece.strip()) for piece in text.split(","))


def of(convert: Callable[[str], object], name: str) -> Parameter:
    """Return what makes an option's value of its text.

    Args:
        convert: Raises a ValueError that says what is wrong.
        name: What stands for the value in the help.
    """
    return Parameter(converter=lambda _, tokens: convert(tokens[0].value), n_tokens=1, metavar=name)


def metavar(name: str) -> Parameter:
    """Return what shows the value of an option under another name in the help."""
    return Parameter(metavar=name)


Count = Annotated[int, of(count, "N")]
Seed = Annotated[int, of(seed, "N")]
Amount = Annotated[float, of(amount, "X")]
Share = Annotated[float, of(share, "X")]
Score = Annotated[float, of(score, "X")]
Columns = Annotated[tuple[str, ...] | Mapping[str, str], of(columns, "COLUMNS")]
Model = Annotated[str, of(model, "MODEL")]


def only_one(**given: object) -> None:
    """Raise if more than one of some options is given.

    Raises:
        BadInput: If so.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise BadInput(f"{names[1]}: not allowed with {names[0]}")


def meant(name: str, known: Iterable[str]) -> str:
    """Return what to say of a name that is not known: the nearest one, and all there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? There are " if near else "there are ") + ", ".join(names)


def values_of(options: object, settings: type, **others: object) -> dict[str, Any]:
    """Return the values of a dataclass's fields: those of `others`, and the options of the same names, but for None.

    Args:
        options: As they were parsed.
        settings: The dataclass.
        **others: Fields that have no option of their name, or another value.
    """
    named = {field.name: getattr(options, field.name, None) for field in fields(settings)}
    return {name: value for name, value in {**named, **others}.items() if value is not None}


def application(**options: Any) -> App:
    """Return an empty command line that looks and answers as all of ours do."""
    quiet = Parameter(negative=(), show_default=False)
    return App(default_parameter=quiet, result_action="return_value", help_format="markdown",
               suppress_keyboard_interrupt=False, **options)  # fmt: skip


def escaped_where_unknown(*streams: object) -> None:
    """Have streams of an encoding that lacks a character write its escape: no result is lost to a terminal.

    The escapes are those of JSON, so that what is printed as JSON stays so.
    """
    codecs.register_error(_ESCAPE, _escaped)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPE)


_ESCAPE = "cuesmith-escape"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def call(app: App, words: Sequence[str], command: str = "cuesmith") -> int:
    """Call a command and return its exit status.

    Args:
        app: The commands.
        words: What follows the program's name.
        command: What to call it where its arguments are wrong.

    Raises:
        SystemExit: With status 2, after one line on standard error, if the call is wrong.
    """
    try:
        _check_words(words)
        result = app(words, exit_on_error=False, print_error=False, help_on_error=False)
    except CycloptsError as error:
        sys.exit(complain(" ".join(("cuesmith", *(error.command_chain or ()))), _wrong(error), 2))
    except BadInput as error:
        sys.exit(complain(command, str(error), 2))
    except RunFailed as error:
        return complain("cuesmith", str(error), 1)
    except KeyboardInterrupt as stop:
        return complain("cuesmith", str(stop) or "interrupted", 130)
    except SystemExit as stop:  # SIGTERM has ended a run, which says how to go on
        if said := getattr(stop, "message", ""):
            complain("cuesmith", said, 130)
        raise
    except BrokenPipeError:  # the reader of the output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        return complain("cuesmith", f"{type(error).__name__}: {error} ({TRACEBACK}=1 shows where)", 1)
    return result if isinstance(result, int) else 0


def _check_words(words: Sequence[str]) -> None:
    """Raise if one is empty: as a path it would be the working directory.

    Raises:
        BadInput: If so; it names the option.
    """
    for before, word in pairwise(("", *words)):
        option, equals, value = word.partition("=")
        if not word or (word.startswith("--") and equals and not value):
            named = option or (before if before.startswith("--") else "an argument")
            raise BadInput(f"{named} is empty: give it a value, or leave it out")


def call_alone(command: Callable[[Any], int], words: Sequence[str]) -> int:
    """Call one command by itself, as `call` does."""
    app = application(name="cuesmith")
    app.default(command)
    return call(app, words)


def parsed(kind: type[T], words: Sequence[str]) -> T:
    """Return a command's options, as they are told by words.

    Raises:
        CycloptsError: If they are none.
        BadInput: If they do not go together.
    """

    def given(options: Any) -> Any:
        return options

    told: Any = kind
    given.__annotations__ = {"options": told}
    if all(each.default is not MISSING or each.default_factory is not MISSING for each in fields(told)):
        given.__defaults__ = (told(),)
    app = application(name="cuesmith")
    app.default(given)
    found: T = app(words, exit_on_error=False, print_error=False, help_on_error=False)
    return found


def _wrong(error: CycloptsError) -> str:
    """Return what is wrong with a call, in one line."""
    if isinstance(error, ConsumeMultipleError) and error.argument is not None:
        return f"{error.argument.name}: takes one value at most"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        if error.argument.required:
            shown = name if error.argument.index is None else name.lstrip("-").upper().replace("-", "_")
            return f"{shown} is missing (--help says what it may be)"
        return f"{name} needs a value (--help says which)"
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument: {' '.join(error.unused_tokens or ())}"
    return str(error).rstrip(".")


def complain(command: str, problem: str, status: int) -> int:
    """Say on standard error, in one line, why a command ends.

    Args:
        command: As it was called, such as "cuesmith study".
        problem: What is wrong; what a model or a provider wrote may be in it.
        status: The exit status.

    Returns:
        The exit status.
    """
    line = " ".join(problem.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"{command}: {'' if status == 130 else 'error: '}{shown}", file=sys.stderr)
    return status


def file_of(option: str, path: Path) -> None:
    """Raise if a file cannot be written there.

    Raises:
        BadInput: If it is a folder, or in no folder that there is.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"{option} {path}: not a file in a folder that there is")


def be_offline(*, models: bool, embedder: bool = False) -> None:
    """Keep dspy and litellm from fetching price lists and models that a run on this machine has no use for.

    Args:
        models: Whether a provider's model takes part: then nothing is kept from anything.
        embedder: Whether an embedder does, which may come from the hub.
    """
    if not models:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if not models and not embedder:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise ValueError(f"{text!r} is not a whole number of at least {least}")
    return value
