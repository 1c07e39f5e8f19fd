"""Options that several commands share: the data, the models, the budget, and what they name. Source: ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.modules.gguf_header import LocalModelError, read_header
from cuesmith.programs.arguments import (
    BadInput,
    Columns,
    Count,
    Model,
    amount,
    count,
    meant,
    metavar,
    of,
    only_one,
)
from cuesmith.programs.commands.run_folders import CONTEST, FILE, JOURNAL, PROGRAM, RESULT

if TYPE_CHECKING:
    from cuesmith.teleprompters.runtime.ledger import Budget

File = Annotated[Path, metavar("FILE")]

_CAPS = {"usd": amount, "calls": count, "tokens": count, "seconds": amount}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What a program is compiled on.

    Attributes:
        task: A generated task family, which the embedded model knows.
        data: A file or folder of data: JSON, JSON Lines, CSV, Parquet, BIG-bench, ...
        inputs: Columns of --data that are asked, with commas; field=column where the program calls it otherwise.
        outputs: Columns of --data that are the answer, likewise.
        metric: What is right: exact, choice, number, near, f1, json_fields, set_f1 or in_order (default: what suits the
            answers).
    """

    task: Annotated[str | None, metavar("NAME")] = None
    data: Annotated[Path | None, metavar("FILE")] = None
    inputs: Columns | None = None
    outputs: Columns | None = None
    metric: Annotated[str | None, metavar("METRIC")] = None

    def check_data(self) -> None:
        """Check what can be checked without reading anything.

        Raises:
            BadInput: If options do not go together, or there is no such file.
        """
        only_one(task=self.task, data=self.data)
        if self.data is not None and not self.data.exists():
            raise BadInput(f"--data {self.data}: no such file")
        of_data = [f"--{name}" for name in ("inputs", "outputs", "metric") if getattr(self, name) is not None]
        if self.data is None and of_data:
            raise BadInput(f"{', '.join(of_data)}: only with --data")
        if self.task is not None and self.task not in FAMILIES:
            raise BadInput(f"--task: no task family {self.task!r}: {meant(self.task, sorted(FAMILIES))}")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which models take part.

    Attributes:
        lm: The LiteLLM model that the program runs on (default: the embedded one, which knows its own tasks only).
        local: A model file (.gguf) that it runs on, in this process.
        optimizer_lm: The LiteLLM model that writes prompts (default: the program's).
        local_optimizer: A model file that writes prompts.
        threads: Threads of a model file (default: one a core; fewer if these are busy).
    """

    lm: Model | None = None
    local: Annotated[Path | None, metavar("FILE")] = None
    optimizer_lm: Model | None = None
    local_optimizer: Annotated[Path | None, metavar("FILE")] = None
    threads: Count | None = None

    @property
    def on_files(self) -> bool:
        """Whether a model file takes part."""
        return self.local is not None or self.local_optimizer is not None

    @property
    def on_providers(self) -> bool:
        """Whether a provider's model takes part."""
        return self.lm is not None or self.optimizer_lm is not None

    def check_models(self) -> None:
        """Check what can be checked without looking at files.

        Raises:
            BadInput: If options do not go together.
        """
        only_one(lm=self.lm, local=self.local)
        only_one(optimizer_lm=self.optimizer_lm, local_optimizer=self.local_optimizer)
        if self.threads is not None and not self.on_files:
            raise BadInput("--threads: only with --local or --local-optimizer")

    def check_files(self) -> None:
        """Look whether the model files are there, and are such by what they say of themselves.

        Raises:
            BadInput: If one is not.
        """
        for name, file in (("local", self.local), ("local-optimizer", self.local_optimizer)):
            try:
                if file is not None:
                    read_header(file.expanduser())
            except LocalModelError as error:
                raise BadInput(f"--{name} {error}") from None


def caps(text: str) -> Mapping[str, float]:
    """Return the caps that are written as "usd=2,calls=500".

    Raises:
        ValueError: If one is unknown, given twice, or no amount.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in _CAPS:
            hint = meant(name, _CAPS) if name not in _CAPS else f"write {name}=AMOUNT"
            raise ValueError(f"{part.strip()!r} is no cap, such as usd=2 or calls=500: {hint}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        try:
            found[name] = _CAPS[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


Caps = Annotated[Mapping[str, float], of(caps, "CAPS")]


def budget_of(given: Mapping[str, float] | None) -> "Budget":
    """Return the budget with those caps."""
    from cuesmith.teleprompters.runtime.ledger import Budget

    return Budget(**(given or {}))  # type: ignore[arg-type]


def check_saved(path: Path | None) -> None:
    """Raise if a program cannot be saved there.

    Raises:
        BadInput: If so.
    """
    if path is not None and (path.suffix != ".json" or path.is_dir()):
        raise BadInput(f"--save {path}: must be the name of a file that ends in .json")


def check_writable(option: str, path: Path) -> None:
    """Raise if a file cannot be written there; its folder is made.

    Raises:
        BadInput: If so.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise BadInput(f"{option} {path}: {error.strerror or error}") from None


def check_run_dir(path: Path | None) -> None:
    """Raise if a run cannot be kept there.

    Raises:
        BadInput: If so.
    """
    if path is not None and path.exists() and not path.is_dir():
        raise BadInput(f"--run-dir {path}: is not a folder")
    made = [FILE, JOURNAL, CONTEST, RESULT]
    if path is not None and (path / PROGRAM).exists() and not any((path / name).exists() for name in made):
        raise BadInput(
            f"--run-dir {path}: has a {PROGRAM} that no run has made, which this one would replace: give a new folder"
        )
