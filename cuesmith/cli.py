"""The `cuesmith` command. Everything heavy loads only after the arguments are found good.

Exit status: 0 done, 1 the run failed, 2 the arguments or the data are wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import cuesmith
from cuesmith.programs.arguments import amount, be_offline, columns, count, model, seed, values_of

if TYPE_CHECKING:
    from cuesmith.programs.comparison import Settings

COMPILERS = {"abo": ("abo",), "iterative-ape": ("iterative-ape",), "both": ("iterative-ape", "abo")}

LOCAL = {"compilers": ("iterative-ape",), "validation_size": 60, "test_size": 60, "budget_calls": 300}
"""Settings with model files, unless told otherwise: some minutes on two cores with half a billion weights. Prompts of
this compiler stay short, and are written in one request each."""

LOCAL_TASK = "max"
"""Half a billion weights can do it if they are told what it is; counting objects they cannot."""

STUDIES = {
    "diagnose": "show what a finished run tells: its course, its refinements, how its prompts are followed",
    "study": "run a ready study of reflection, refinement, demonstrations or compliance",
    "theory": "check Align-Pro's theory on finite instances, exactly",
    "align-study": "compare a trained prompter with the frozen model, the untrained prompter and RLHF",
}


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the command's name; those of this process by default.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(given)
    options = parser.parse_args(given)
    try:
        if options.command == "compilers":
            return _compilers()
        if options.command in STUDIES:
            status: int = _study(options.command).command(options)
            return status
        return _quickstart(parser, options)
    except KeyboardInterrupt:
        print("cuesmith: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _study(name: str) -> ModuleType:
    """Return the module of a study: its `arguments` and its `command`."""
    return importlib.import_module(f"cuesmith.programs.{name.replace('-', '_')}")


def _parser(given: Sequence[str]) -> Parser:
    parser = Parser(prog="cuesmith", description="Compile language-model programs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cuesmith {cuesmith.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("compilers", help="list the compilers", allow_abbrev=False)
    for name, summary in STUDIES.items():
        sentence = f"{summary[0].upper()}{summary[1:]}."
        study = commands.add_parser(name, help=summary, description=sentence, allow_abbrev=False)
        if name in given[:1]:
            if not {"--judge", "--frozen", "--lm", "--optimizer-lm"} & set(given):  # no provider, no prices
                os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            _study(name).arguments(study)
    quick = commands.add_parser(
        "quickstart",
        help="compile a small program and show what it gained",
        description="Compile a program on a task and show its held-out score before and after. Without "
        "--lm everything runs on this machine: a tiny embedded model and a simulated optimizer, no key. "
        "With --local it runs on this machine too, on a real model, and says beforehand how many minutes it will take.",
        allow_abbrev=False,
    )
    data = quick.add_mutually_exclusive_group()
    data.add_argument("--task", metavar="NAME", help="a generated task family (default: objects; of a file max)")
    add = quick.add_argument
    data.add_argument("--data", metavar="FILE", type=Path, help="a file or folder of data")
    add("--inputs", metavar="COLUMNS", type=columns, help="of --data: what is asked, with commas")
    add("--outputs", metavar="COLUMNS", type=columns, help="of --data: what is the answer, with commas")
    add("--metric", metavar="NAME", help="of --data: exact, choice, number, f1, json_fields or set_f1")
    add("--compiler", choices=sorted(COMPILERS), help="which compilers run (default: both; of a file iterative-ape)")
    add("--ablation", action="store_true", help="also run ABO without demonstrations")
    target, optimizer = quick.add_mutually_exclusive_group(), quick.add_mutually_exclusive_group()
    target.add_argument("--lm", metavar="MODEL", type=model, help="a LiteLLM model instead of the embedded one")
    target.add_argument("--local", metavar="FILE", type=Path, help="a model file (.gguf) instead of the embedded one")
    optimizer.add_argument("--optimizer-lm", metavar="MODEL", type=model, help="a LiteLLM model as optimizer")
    optimizer.add_argument("--local-optimizer", metavar="FILE", type=Path, help="a model file as optimizer")
    add("--threads", metavar="N", type=count, help="threads of a model file (default: one a core; fewer if busy)")
    add("--budget-usd", metavar="X", type=amount, help="dollars each compile may cost")
    add("--budget-calls", metavar="N", type=count, help="calls each compile may make (of a model file: 300)")
    add("--seed", metavar="N", type=seed, default=0, help="seed of splits and search (default: 0)")
    add("--validation-size", metavar="N", type=count, help="examples to choose with (default: 100; of a file: 60)")
    add("--test-size", metavar="N", type=count, help="held-out examples (default: 250; of a model file: 60)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--save", metavar="PATH", type=Path, help="file for the program (default: in runs/quickstart/)")
    add("--run-dir", metavar="DIR", type=Path, help="keep journals here; resumes what is there")
    return parser


def _quickstart(parser: Parser, options: argparse.Namespace) -> int:
    _check_paths(parser, options)
    be_offline(models=bool(options.lm or options.optimizer_lm))
    from cuesmith.programs import comparison, quickstart  # only now: they load dspy

    settings = _settings(options)
    try:
        return quickstart.main(settings, as_json=options.json)
    except comparison.BadInput as error:
        parser.error(str(error))
    except comparison.RunFailed as error:
        print(f"cuesmith: error: {error}", file=sys.stderr)
        return 1
    except cuesmith.Interrupted as stop:
        print(f"cuesmith: {stop}", file=sys.stderr)
        return 130


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the arguments ask for; model files bring some of their own."""
    from cuesmith.programs.comparison import Settings

    task = options.task or (LOCAL_TASK if _on_files(options) and options.data is None else None)
    chosen = values_of(options, Settings, task=task, compilers=COMPILERS.get(options.compiler))
    return Settings(**{**(LOCAL if _on_files(options) else {}), **chosen})


def _on_files(options: argparse.Namespace) -> bool:
    return options.local is not None or options.local_optimizer is not None


def _compilers() -> int:
    be_offline(models=False)
    from cuesmith.teleprompters import registry

    for name in registry.COMPILERS:
        documentation = registry.compiler_class(name).__doc__ or ""
        print(f"{name:<16} {documentation.strip().splitlines()[0]}")
    return 0


def _check_paths(parser: Parser, options: argparse.Namespace) -> None:
    if options.data is not None and not options.data.exists():
        parser.error(f"--data {options.data}: no such file")
    of_data = [f"--{name}" for name in ("inputs", "outputs", "metric") if getattr(options, name) is not None]
    if options.data is None and of_data:
        parser.error(f"{', '.join(of_data)}: only with --data")
    if options.threads is not None and not _on_files(options):
        parser.error("--threads: only with --local or --local-optimizer")
    if options.save is not None and (options.save.suffix != ".json" or options.save.is_dir()):
        parser.error(f"--save {options.save}: must be the name of a file that ends in .json")
    if options.run_dir is not None and options.run_dir.exists() and not options.run_dir.is_dir():
        parser.error(f"--run-dir {options.run_dir}: is not a folder")


if __name__ == "__main__":
    sys.exit(main())
