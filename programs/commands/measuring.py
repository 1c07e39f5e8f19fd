"""`cuesmith check` and `cuesmith compare`. Source: ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cuesmith.programs.arguments import BadInput, Count, listed, model, of, only_one, seed
from cuesmith.programs.commands.compiling import (
    TRAIN,
    VALIDATION,
    OwnOptions,
    check_options,
    compiler_known,
    options_of,
    save_program,
)
from cuesmith.programs.commands.run_folders import CONTEST, PROGRAM, KeptResult, to_call
from cuesmith.programs.commands.sources import budget_of
from cuesmith.programs.commands.workbench import (
    WorkOptions,
    context_of,
    ended,
    kept_run,
    plainly,
    prepare,
    print_json,
    print_text,
    read_again,
)

if TYPE_CHECKING:
    from cuesmith.programs.contest import Contest

Compilers = Annotated[tuple[str, ...], of(listed(compiler_known), "NAMES")]
Models = Annotated[tuple[str, ...], of(listed(model), "MODELS")]
Seeds = Annotated[tuple[int, ...], of(listed(seed), "SEEDS")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CheckOptions(WorkOptions):
    """What `cuesmith check` is told.

    Attributes:
        compilers: Names of those whose cost is wanted, with commas (default: all).
    """

    compilers: Compilers | None = None


def check(options: CheckOptions) -> int:
    """Is it worth compiling? What the program scores, how steady that is, and what could be gained.

    In some hundred calls of the program's own model: the score with its interval, how much repeated draws differ, which
    failures are of form, how much room there is, how many examples would show a gain, and what each compiler costs.
    """
    from cuesmith.programs.tasks import Sizes

    with plainly(as_json=options.json):
        from cuesmith.programs.checking import check as checked

        work = prepare(options, Sizes())
        task = work.task
        given = read_again(options, work, Sizes(TRAIN, VALIDATION, 1))  # as `cuesmith compile` reads it
        with context_of(work), kept_run("check", options, work, "check", _nothing_compiled) as folder:
            found = checked(
                work.program, metric=work.metric, data=[*task.train, *task.validation, *task.test], lm=work.target,
                optimizer_lm=work.optimizer, budget=budget_of(options.budget), seed=options.seed,
                compilers=options.compilers, trainset=given.train, valset=given.validation, run_dir=folder,
                max_in_flight=work.in_flight)  # fmt: skip
    text, data = found.to_markdown(), {"run_dir": str(folder), **found.to_json()}
    KeptResult(data, text).write(folder)
    if options.json:
        print_json(data)
    else:
        print_text(text)
    return ended(found.stopped_by)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompareOptions(WorkOptions):
    """What `cuesmith compare` is told.

    Attributes:
        compilers: Names of the compilers, with commas.
        lms: Several LiteLLM models to run the program on, with commas, in place of --lm. Each writes its own prompts,
            unless --optimizer-lm is given.
        seeds: One compile each, with commas (default: 0).
        option: An option of all of the compilers, such as steps=3; may be repeated.
        train_size: Examples to show and to make demonstrations of, at most (default: 40).
        validation_size: Examples to choose with, at most (default: 100).
        test_size: Held-out examples that no compiler sees, at most (default: 250).
    """

    compilers: Compilers
    lms: Models | None = None
    seeds: Seeds = (0,)
    option: OwnOptions = ()
    train_size: Count = 40
    validation_size: Count = 100
    test_size: Count = 250

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together, or name what is not there.
        """
        only_one(lm=self.lm, lms=self.lms, local=self.local)
        for name in ("compilers", "lms", "seeds"):
            values = getattr(self, name) or ()
            if twice := [value for value in values if values.count(value) > 1]:
                raise BadInput(f"--{name}: {twice[0]} is given twice")
        check_options(self.option)
        super().__post_init__()

    @property
    def on_providers(self) -> bool:
        """Whether a provider's model takes part."""
        return self.lms is not None or super().on_providers


def compare(options: CompareOptions) -> int:
    """Compile with several compilers, seeds and models, and put all in one table.

    All are scored on the same held-out examples and share one budget. The same command goes on with --run-dir, and pays
    for nothing that is on record; there it may have further compilers, models and seeds.
    """
    from cuesmith.programs.tasks import Sizes

    with plainly(as_json=options.json):
        from cuesmith.programs.contest import compare_compilers

        sizes = Sizes(options.train_size, options.validation_size, options.test_size)
        work = prepare(options, sizes, options.lms or ())
        task, own = work.task, options_of(options.option)
        with context_of(work), kept_run("compare", options, work, "compare", _what_is_done) as folder:
            found = compare_compilers(
                work.program, dict.fromkeys(options.compilers, own), metric=work.metric, trainset=task.train,
                valset=task.validation, testset=task.test, lms=_models(options) or work.target,
                optimizer_lm=work.optimizer, seeds=options.seeds, budget=budget_of(options.budget), run_dir=folder,
                max_in_flight=work.in_flight)  # fmt: skip
    best = _kept(found)
    text = "\n".join([found.to_markdown(), *_going_home(found, best, folder)]) + "\n"
    data = {"run_dir": str(folder), "best": None if best is None else str(best), **found.to_json()}
    KeptResult(data, text).write(folder)
    if options.json:
        print_json(data)
    else:
        print_text(text)
    return 0


def _kept(contest: "Contest") -> Path | None:
    """Save all compiled programs in the folders of their compiles; return the best one's, if it gains anything."""
    for entry in contest.entries:
        if entry.program is not None and entry.compilation is not None and entry.compilation.run_dir is not None:
            save_program(entry.program, Path(entry.compilation.run_dir) / PROGRAM)
    best = contest.best
    if best is None or best.compilation is None or best.gain is None or not best.gain.difference > 0.0:
        return None
    return None if best.compilation.run_dir is None else Path(best.compilation.run_dir)


def _going_home(contest: "Contest", best: Path | None, folder: Path) -> list[str]:
    """Say where the programs are."""
    if best is None or contest.best is None:
        return ["- the best here: the student, as far as can be told", f"- all compiles: `{to_call('runs', folder)}`"]
    row = contest.best
    return [f"- the best here: {row.compiler}, seed {row.seed}, on {row.model}; its program is {best / PROGRAM}",
            f"- how it came about: `{to_call('report', best)}`",
            f"- its prompt for use elsewhere: `{to_call('export', best)}`",
            f"- all compiles: `{to_call('runs', folder)}`"]  # fmt: skip


def _nothing_compiled(_program: object, _folder: Path) -> str:
    return "nothing was compiled"


def _what_is_done(_program: object, folder: Path) -> str:
    return f"what is done stands in {folder / CONTEST}" if (folder / CONTEST).exists() else "no compile is done"


def _models(options: CompareOptions) -> dict[str, Any]:
    from cuesmith.programs.comparison import made
    from cuesmith.programs.models import named

    return {name: made(named(name)) for name in options.lms or ()}
