"""What a command's TARGET and --metric name, and how they are loaded: checked first, imported last.

A module that is named is the user's own code: importing runs it. An inline signature and a saved state are data; they
are parsed and never executed.

Source: ours.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.programs.arguments import BadInput, meant

if TYPE_CHECKING:
    import dspy

    from cuesmith.programs.tasks import Task
    from cuesmith.teleprompters.runtime.metric import MetricFunction

FORMS = 'module:program, file.py:program, a folder of a saved program, or a signature such as "review -> label"'


@dataclass(frozen=True)
class Place:
    """Where a Python object is: a file or the name of a module, and the object's name in it.

    Attributes:
        option: What names it, such as "TARGET" or "--metric".
        source: The file, or the module's name.
        name: The object's name; it may be dotted.
    """

    option: str
    source: str
    name: str

    def check(self) -> None:
        """Look whether it can be there, without running anything.

        Raises:
            BadInput: If there is no such file or module, or the file defines no such name.
        """
        said = f"{self.option} {self.source}:{self.name}"
        if not self.name or not all(part.isidentifier() for part in self.name.split(".")):
            raise BadInput(f"{said}: {self.name!r} is not a Python name; write {self.source}:NAME")
        if not self.source.endswith(".py"):
            self._check_module(said)
            return
        path = Path(self.source)
        if not path.is_file():
            raise BadInput(f"{said}: no such file {self.source}")
        self._check_name(path, said)

    def _check_module(self, said: str) -> None:
        top = self.source.split(".")[0]
        if not all(part.isidentifier() for part in self.source.split(".")):
            raise BadInput(f"{said}: {self.source!r} is neither a file that ends in .py nor the name of a module")
        with _from_here():
            held = sys.modules.get(top)
            spec = importlib.util.find_spec(top) if held is None else held.__spec__
        if held is None and spec is None:
            hint = f"; there is a file: write {top}.py:{self.name}" if Path(f"{top}.py").is_file() else ""
            raise BadInput(f"{said}: no module is called {top!r}{hint}")
        origin = Path(spec.origin or "") if spec is not None and spec.submodule_search_locations is None else Path()
        if self.source == top and origin.suffix == ".py":  # a package may get names of what is in it
            self._check_name(origin, said)

    def _check_name(self, path: Path, said: str) -> None:
        """Look whether a file defines the object."""
        names, first = _defined(path, said), self.name.split(".")[0]
        if names is not None and first not in names:
            raise BadInput(f"{said}: {self.source} defines no {first!r}: {meant(first, sorted(names))}")

    def may_be_class(self) -> bool:
        """Return whether it may be a class, as far as can be told without running anything."""
        path = Path(self.source)
        if path.suffix != ".py" or not path.is_file() or "." in self.name:
            return True
        try:
            body = ast.parse(path.read_bytes()).body
        except (SyntaxError, ValueError, RecursionError):
            return True
        defined = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assigned = {
            each.id
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            for each in ast.walk(target)
            if isinstance(each, ast.Name)
        }
        return isinstance(defined.get(self.name), ast.ClassDef) or self.name not in {*defined, *assigned}

    def load(self) -> object:
        """Import the module or file, and return the object.

        Raises:
            BadInput: If importing fails, or there is no such object.
        """
        said = f"{self.option} {self.source}:{self.name}"
        try:
            with _from_here():
                found: object = (
                    _file(Path(self.source)) if self.source.endswith(".py") else importlib.import_module(self.source)
                )
        except (Exception, SystemExit) as error:
            raise BadInput(f"{said}: importing {self.source} fails: {_told(error)}") from None
        for part in self.name.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                names = [name for name in vars(found) if not name.startswith("_")]
                raise BadInput(f"{said}: {self.source} has no {part!r}: {meant(part, names)}") from None
        return found


@dataclass(frozen=True)
class NamedProgram:
    """The program that a command works on, not loaded yet.

    Attributes:
        text: As it was given.
        cot: Whether an inline signature is answered after a chain of thought.
        state: A saved state that the program gets; None for none.
    """

    text: str
    cot: bool = False
    state: Path | None = None

    @property
    def place(self) -> Place | None:
        """Where it is, if it is an object of a module."""
        source, colon, name = self.text.rpartition(":")
        return Place("TARGET", source, name.strip()) if colon and not self.inline else None

    @property
    def inline(self) -> bool:
        """Whether it is a signature."""
        return "->" in self.text

    def check(self) -> None:
        """Look whether it can be what it is to be, without running anything.

        Raises:
            BadInput: If it cannot.
        """
        if self.state is not None:
            _check_state(self.state)
        if self.inline:
            if not all(side.strip() for side in self.text.split("->", 1)):
                raise BadInput(f"TARGET {self.text!r}: names no field on one side of ->, as question -> answer does")
            return
        path, place = Path(self.text), self.place
        if self.cot and (place is None or path.exists() or not place.may_be_class()):
            raise BadInput(f"--cot: only with a signature, not with {self.text}")
        if place is not None and not path.exists():
            place.check()
        elif path.is_dir():
            if not (path / "program.pkl").is_file():
                raise BadInput(f"TARGET {path}: no saved program in this folder (no program.pkl); TARGET is {FORMS}")
        elif path.suffix == ".json" and path.is_file():
            raise BadInput(f"TARGET {path}: a saved state has no code: give the program too, with --state {path}")
        elif path.suffix == ".py" and path.is_file():
            names = sorted(_defined(path, f"TARGET {path}") or ())
            there = ", ".join(names[:8]) or "none"
            raise BadInput(f"TARGET {path}: which of its names? Write {path}:NAME; it has {there}")
        else:
            raise BadInput(f"TARGET {self.text!r}: no such program; it is {FORMS}")

    def load(self) -> dspy.Module:
        """Make the program; a named module is imported, which runs it.

        Raises:
            BadInput: If it cannot be made.
        """
        program = self._made()
        if self.state is not None:
            _check_predictors(self.state, program)
            try:
                program = program.deepcopy()  # the one in the user's module stays as it is
                program.load(self.state)
            except Exception as error:  # whatever is objected to, the state does not fit
                raise BadInput(f"--state {self.state}: does not fit the program: {_told(error)}") from None
        return program

    def _made(self) -> dspy.Module:
        import dspy

        if self.inline:
            try:
                signature = dspy.Signature(self.text)
                return dspy.ChainOfThought(signature) if self.cot else dspy.Predict(signature)
            except Exception as error:  # dspy's parser raises what it comes upon
                raise BadInput(f"TARGET {self.text!r}: not a signature: {_told(error)}") from None
        if self.place is None or Path(self.text).is_dir():
            try:
                return dspy.load(self.text, allow_pickle=True)
            except Exception as error:
                raise BadInput(f"TARGET {self.text}: cannot be loaded: {_told(error)}") from None
        found = self.place.load()
        if isinstance(found, type) and issubclass(found, dspy.Signature):
            return dspy.ChainOfThought(found) if self.cot else dspy.Predict(found)
        if self.cot:
            raise BadInput(f"--cot: only with a signature, not with {self.text}")
        if callable(found) and not isinstance(found, dspy.Module):  # a class, or a function that makes one
            try:
                found = found()
            except (Exception, SystemExit) as error:
                raise BadInput(f"TARGET {self.text}: making the program fails: {_told(error)}") from None
        if inspect.iscoroutine(found):
            found.close()
        if not isinstance(found, dspy.Module):
            kind = type(found).__name__
            raise BadInput(
                f"TARGET {self.text}: is a {kind}: it must be a dspy.Module, or make one without arguments, "
                "or be a dspy.Signature"
            )
        return found


def metric_place(text: str | None) -> Place | None:
    """Return where a metric is, if it is not one of those with names."""
    source, colon, name = (text or "").rpartition(":")
    return Place("--metric", source, name) if colon else None


def load_metric(place: Place) -> MetricFunction:
    """Import a metric; its module is the user's own code.

    Raises:
        BadInput: If it is not there, or no metric.
    """
    from cuesmith.teleprompters.runtime.metric import Metric

    found = place.load()
    try:
        made: Any = found() if isinstance(found, type) else found
        Metric(made)
    except Exception as error:
        raise BadInput(f"--metric {place.source}:{place.name}: {_told(error)}") from None
    return made  # type: ignore[no-any-return]


def known_to_embedded(task: Task) -> bool:
    """Whether the embedded model knows a task: one of its families solves most of the examples."""

    def solved(solve: Callable[[str], Any], question: str, answer: str) -> bool:
        found = solve(question)
        return found is not None and found.answer.casefold() == answer.strip().casefold()

    pairs = [(list(e.inputs().toDict().values()), e.labels().toDict()) for e in task.train[:20]]
    asked = [(str(values[0]), str(next(iter(labels.values()), ""))) for values, labels in pairs if len(values) == 1]
    return len(asked) == len(pairs) > 0 and any(
        2 * sum(solved(family.solve, *pair) for pair in asked) > len(asked) for family in FAMILIES.values()
    )


def _defined(path: Path, said: str) -> set[str] | None:
    """Return the names that a file defines at its top level; None where only running it can tell."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise BadInput(f"{said}: {path} is not Python: {_told(error)}") from None
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names |= {each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            case ast.Expr():
                pass
            case _:
                return None  # a name may be defined within
    return None if {"*", "__getattr__"} & names else names


def _file(path: Path) -> object:
    """Import a file under its own name, so that what it defines can be pickled and named."""
    name = path.stem
    held = sys.modules.get(name)
    if held is not None and Path(getattr(held, "__file__", "") or "").resolve() == path.resolve():
        return held
    if held is not None or not name.isidentifier():  # always the same one, so that a run can be resumed
        name = f"cuesmith_target_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _from_here:
    """Has imports look into the working directory first, as `python -m` does."""

    def __enter__(self) -> None:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, "")
            importlib.invalidate_caches()

    def __exit__(self, *_: object) -> None:
        return None


def _check_state(path: Path) -> None:
    if not path.is_file() or path.suffix != ".json":
        raise BadInput(f"--state {path}: must be a file that ends in .json, as program.save() writes it")
    try:
        if isinstance(json.loads(path.read_bytes()), dict):
            return
    except (ValueError, RecursionError, OSError):
        pass
    raise BadInput(f"--state {path}: not the saved state of a program")


def _check_predictors(path: Path, program: dspy.Module) -> None:
    """Raise if a state is of predictors that the program has not.

    Raises:
        BadInput: If so; it names both.
    """
    from cuesmith.teleprompters.runtime._dspy import named_predictors

    state = json.loads(path.read_bytes())
    there, wanted = {name for name in state if name != "metadata"}, [name for name, _ in named_predictors(program)]
    single = {"traces", "train", "demos", "signature"} & there  # the state of a bare predictor, without a name
    if (single and wanted == ["self"]) or there >= {*wanted}:
        return
    has = "a single predictor" if single else ", ".join(sorted(there)) or "none"
    raise BadInput(f"--state {path}: does not fit the program, whose predictors are {', '.join(wanted)}: it has {has}")


def _told(error: BaseException) -> str:
    """Return an error in one line: its kind, and what it says."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{': ' if text else ''}{text}"
