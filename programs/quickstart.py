"""`cuesmith quickstart`: compile one small program and show, on held-out examples, what it gained.

By default everything runs on this machine: the target is the embedded model, and the optimizer is simulated.
That shows the machinery at work; it is no evidence about large models. With model files it runs on this machine too,
and says beforehand how many minutes that will take.

Source: ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cuesmith.programs import report
from cuesmith.programs.comparison import (
    ComparisonRow,
    Result,
    Settings,
    Variant,
    capped,
    forecast,
    models,
    read_task,
    run,
    why_missing,
)
from cuesmith.programs.evaluation import estimate
from cuesmith.programs.models import SIMULATED
from cuesmith.programs.pace import Expected, expect, measure
from cuesmith.programs.tasks import DEFAULT_FAMILY, Sizes, Task
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.ledger import stopped
from cuesmith.teleprompters.runtime.progress_bar import Progress

CHANGEABLE = "(--compiler, --validation-size, --test-size and --budget-calls change these numbers)"


def main(settings: Settings, *, as_json: bool = False) -> int:
    """Run and show the result on standard output.

    Args:
        settings: What to run.
        as_json: Whether to print one JSON object instead of text.

    Returns:
        The exit status, 0.

    Raises:
        BadInput: Before anything ran.
        RunFailed: If no score could be had, as with a wrong key.
    """
    for library in ("dspy", "LiteLLM"):  # what they warn of, call by call, is counted in the result
        logging.getLogger(library).setLevel(logging.ERROR)
    console = Console(highlight=False)
    task = read_task(settings)
    target, optimizer = models(settings)
    bounds = forecast(settings, task)
    if not as_json:
        console.print(_heading(settings, task, bounds), soft_wrap=True)
    expected = None
    if settings.on_files:
        with Progress() as progress:
            progress.stage("loading the models and timing a few calls")
            expected = expect(settings, task, bounds.values(), measure(settings, task, target, optimizer))
        if not as_json:
            console.print("time       " + "\n           ".join(expected.lines()), soft_wrap=True)
    if not as_json:
        console.print()
    with Progress() as progress:
        result = run(settings, task, target, optimizer, callbacks=(progress,), stage=progress.stage)
    if as_json:
        text = report.json_text(to_json(result, expected))
        console.file.write(text + "\n")
    else:
        show(result, console)
    return 0


def to_json(result: Result, expected: Expected | None = None) -> dict[str, Json]:
    """The result as one JSON object, with what was expected of its time if that was measured."""
    task, settings = result.task, result.settings
    return {
        "task": task.name,
        "splits": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "seed": settings.seed,
        "lm": settings.target.name,
        "optimizer_lm": settings.optimizer.name,
        "simulated": settings.optimizer == SIMULATED,
        "expected": None if expected is None else expected.json(),
        "baseline": report.estimate_json(estimate(result.baseline)),
        "compilers": [_row_json(result, row) for row in result.rows],
        "seconds": round(result.seconds, 2),
    }


def _row_json(result: Result, row: ComparisonRow) -> Json:
    return {
        "compiler": row.variant.compiler,
        "options": dict(row.variant.options),
        "baseline": report.estimate_json(estimate(result.baseline)),
        "compiled": report.estimate_json(estimate(row.scores)),
        "gain": report.gain_json(row.gain),
        "missing": row.scores.missing,
        "calls": {role: usage.calls for role, usage in sorted(row.compilation.spent.by_role.items())},
        "spent": report.spent_json(row.compilation.spent),
        "seconds": round(row.seconds, 2),
        "stopped_by": row.compilation.stopped_by,
        "notes": list(row.compilation.notes),
        "diff": row.diff,
        "saved": str(row.saved),
        "run_dir": row.compilation.run_dir,
    }


def show(result: Result, console: Console) -> None:
    """Print the result for a person."""
    console.print(_table(result))
    console.print(
        f"\n{len(result.task.test)} held-out examples that no compiler saw; gains over the baseline, pair by pair; "
        "95 % intervals.",
        soft_wrap=True,
    )
    for row in result.rows:
        _show_row(row, console)
    console.print("\nThe same in Python:", style="bold")
    console.print(Text(python_lines(result.settings, Variant(result.settings.compilers[-1])).rstrip()), soft_wrap=True)
    for choice in (result.settings.target, result.settings.optimizer):
        if choice.caveat:
            console.print(f"\n{choice.caveat}", soft_wrap=True)
    console.print(f"\n{result.seconds:.0f} seconds in all.")


def _heading(settings: Settings, task: Task, bounds: Mapping[Variant, Forecast]) -> Text:
    description = f": {task.description}" if task.description else ""
    target, optimizer = (f"{each.name}{each.remark}" for each in (settings.target, settings.optimizer))
    most = [f"{capped(settings, bound):,} ({variant.label})" for variant, bound in bounds.items()]
    sizes = f"{len(task.train)} train, {len(task.validation)} validation, {len(task.test)} held-out test"
    judged = [] if settings.data is None else [f"metric     {task.metric}"]
    lines = [
        f"task       {task.name}{description}",
        f"examples   {sizes}",
        f'program    dspy.ChainOfThought("{task.fields}") on {target}',
        *judged,
        f"optimizer  {optimizer}",
        f"calls      at most {'; '.join(most)}",
        f"           and {len(task.test)} for each held-out score ({len(bounds) + 1} of them)",
    ]
    if settings.on_files:
        lines.append(f"           {CHANGEABLE}")
    return Text(report.visible("\n".join(lines)))


def _table(result: Result) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("compiler", "held-out score, %", "gain in points", "p", "calls", "s"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("compiler", "p") else "right")
    table.add_row("(baseline)", report.describe_estimate(estimate(result.baseline)))
    for row in result.rows:
        table.add_row(
            row.variant.label,
            report.describe_estimate(estimate(row.scores)),
            report.describe_gain(row.gain),
            report.describe_p(row.gain),
            f"{row.compilation.spent.total.calls:,}",
            f"{row.seconds:.0f}",
        )
    return table


def _show_row(row: ComparisonRow, console: Console) -> None:
    console.print(f"\n{row.variant.label}: the prompt before and after", style="bold")
    console.print(report.styled_diff(row.diff) if row.diff else "(unchanged)", soft_wrap=True)
    console.print(Text(report.bullet_list(_remarks(row))), soft_wrap=True)
    console.print(Text(f"saved: {row.saved} (loaded back: the same prompts)"), soft_wrap=True)


def _remarks(row: ComparisonRow) -> list[str]:
    calls = {role: usage.calls for role, usage in row.compilation.spent.by_role.items()}
    remarks = [f"calls: {report.describe_calls(calls)}"]
    if replayed := row.compilation.spent.total.replayed:
        remarks.append(f"{replayed:,} of these calls were in the journal, and were not made again")
    if not row.gain.significant:
        remarks.append("no significant gain on the held-out examples")
    if row.compilation.stopped_by is not None:
        remarks.append(f"{stopped(row.compilation.stopped_by)}; this is the best it had found")
    if row.scores.missing:
        remarks.append(f"{row.scores.missing} held-out examples have no score: {why_missing(row.scores)}")
    return [*remarks, *(f"while compiling: {note}" for note in row.compilation.notes)]


def python_lines(settings: Settings, variant: Variant) -> str:
    """Return Python that does the same: the imports, and three statements."""
    sizes = _sizes(settings)
    source = _source(settings)
    caps = {"usd": settings.budget_usd, "calls": settings.budget_calls}
    budget = ", ".join(f"{name}={cap}" for name, cap in caps.items() if cap is not None)
    at_once = {"max_in_flight": settings.in_flight} if settings.on_files else {}
    written = {name: repr(value) for name, value in {"seed": settings.seed, **variant.options, **at_once}.items()}
    options = written | ({"budget": f"Budget({budget})"} if budget else {})
    statements = f"""dspy.configure(lm={settings.target.code})
task = {source}, {sizes}seed={settings.seed})
compiled = compile(dspy.ChainOfThought(task.signature), {variant.compiler!r}, metric=task.metric,
                   trainset=task.train, valset=task.validation, optimizer_lm={settings.optimizer.code},
                   {", ".join(f"{name}={value}" for name, value in options.items())})
"""
    names = [n for n in ("Budget", "EmbeddedLM", "LocalLM", "SimulatedOptimizer", "compile") if f"{n}(" in statements]
    tasks = [n for n in ("Sizes", "generate", "load") if f"{n}(" in statements]
    return f"""import dspy
from cuesmith import {", ".join(names)}
from cuesmith.programs.tasks import {", ".join(tasks)}

{statements}"""


def _source(settings: Settings) -> str:
    """Return the call that makes the task, as far as the sizes."""
    if settings.data is None:
        return f"generate({settings.task or DEFAULT_FAMILY!r}"
    told = {"inputs": settings.inputs, "outputs": settings.outputs, "metric": settings.metric}
    return ", ".join([f"load({str(settings.data)!r}", *(f"{name}={v!r}" for name, v in told.items() if v is not None)])


def _sizes(settings: Settings) -> str:
    """Return the argument for the sizes that are not the usual ones."""
    usual = Sizes()
    wanted = {"validation": settings.validation_size, "test": settings.test_size}
    told = ", ".join(f"{name}={size}" for name, size in wanted.items() if size != getattr(usual, name))
    return f"sizes=Sizes({told}), " if told else ""
