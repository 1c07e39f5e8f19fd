"""`cuesmith quickstart`: its options. What it does is in `cuesmith.programs.quickstart`. Source: ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cuesmith.programs.arguments import Amount, Count, Seed, be_offline, metavar, values_of
from cuesmith.programs.commands.sources import DataOptions, ModelOptions, check_run_dir, check_saved

if TYPE_CHECKING:
    from cuesmith.programs.comparison import Settings

COMPILERS = {"abo": ("abo",), "iterative-ape": ("iterative-ape",), "both": ("iterative-ape", "abo")}

LOCAL = {"compilers": ("iterative-ape",), "validation_size": 60, "test_size": 60, "budget_calls": 300}
"""Settings with model files, unless told otherwise: some minutes on two cores with half a billion weights. Prompts of
this compiler stay short, and are written in one request each."""

LOCAL_TASK = "max"
"""Half a billion weights can do it if they are told what it is; counting objects they cannot."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class QuickOptions(DataOptions, ModelOptions):
    """What `cuesmith quickstart` is told.

    Attributes:
        compiler: Which compilers run (default: both; of a model file iterative-ape).
        ablation: Also run ABO without demonstrations.
        budget_usd: Dollars each compile may cost.
        budget_calls: Calls each compile may make (of a model file: 300).
        seed: Seed of splits and search (default: 0).
        validation_size: Examples to choose with (default: 100; of a model file: 60).
        test_size: Held-out examples (default: 250; of a model file: 60).
        json: Print one JSON object instead of text.
        save: File for the program (default: in runs/quickstart/).
        run_dir: Keep journals here; resumes what is there.
    """

    compiler: Literal["abo", "both", "iterative-ape"] | None = None
    ablation: bool = False
    budget_usd: Amount | None = None
    budget_calls: Count | None = None
    seed: Seed = 0
    validation_size: Count | None = None
    test_size: Count | None = None
    json: bool = False
    save: Annotated[Path | None, metavar("FILE")] = None
    run_dir: Annotated[Path | None, metavar("DIR")] = None

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            BadInput: If arguments do not go together, or a path cannot be what it is to be.
        """
        self.check_data()
        self.check_models()
        check_saved(self.save)
        check_run_dir(self.run_dir)

    @property
    def settings(self) -> "Settings":
        """What the arguments ask for; model files bring some numbers of their own."""
        from cuesmith.programs.comparison import Settings

        task = self.task or (LOCAL_TASK if self.on_files and self.data is None else None)
        chosen = values_of(self, Settings, task=task, compilers=COMPILERS.get(self.compiler or ""))
        return Settings(**{**(LOCAL if self.on_files else {}), **chosen})


def quickstart(options: QuickOptions = QuickOptions()) -> int:
    """Compile a small program on a task and show what it gained; needs no key.

    Without --lm everything runs on this machine: a tiny embedded model and a simulated optimizer, no key. With --local
    it runs on this machine too, on a real model, and says beforehand how many minutes it will take.
    """
    options.check_files()
    be_offline(models=options.on_providers)
    from cuesmith.programs import quickstart as program  # only now: it loads dspy

    return program.main(options.settings, as_json=options.json)
