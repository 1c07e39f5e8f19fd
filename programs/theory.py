"""`cuesmith theory`: Align-Pro's theory checked on finite instances, in which every quantity is computed exactly.

Random instances are drawn; on each, Lemma 1 is tried against random competitors, Theorem 1 and its tighter form are
compared with the true gap, both sides of the identity are computed, and the ends of the admissible lambda interval
are verified. One further instance shows gap, bound and KL against lambda.

Source: 2501.03486 (Lemma 1, Theorem 1); the identity, the tighter bound and the checks are ours.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cuesmith.programs.arguments import Count, Seed, complain, metavar

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from cuesmith.teleprompters.alignment.finite import Instance
    from cuesmith.teleprompters.runtime.candidate import Json

TOLERANCE = 1e-12
"""Rounding allowed, relative to r_max - r_min and, for the prompter's objective, to lambda."""
COMPETITORS = 8
_LAMBDAS = (1e-3, 1e2)
_ROWS, _POINTS = 11, 161


@dataclass(frozen=True, slots=True)
class TheoryCheck:
    """One statement, tried on all instances.

    Attributes:
        name: What is stated.
        tried: How often it was tried.
        violations: How often it failed by more than rounding.
        worst: Largest excess over what is stated, relative to r_max - r_min; not above 0 where it holds strictly.
    """

    name: str
    tried: int
    violations: int
    worst: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The theory of one instance at one lambda; gap and bound in units of reward, KL in nats."""

    kl_coefficient: float
    gap: float
    bound: float
    kl: float


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TheoryOptions:
    """What `cuesmith theory` is told.

    Attributes:
        instances: Random instances (default: 2000).
        seed: Seed of the instances (default: 0).
        svg: Write the curves to this file, as a picture.
        json: Print one JSON object instead of text.
    """

    instances: Count = 2000
    seed: Seed = 0
    svg: Annotated[Path | None, metavar("FILE")] = None
    json: bool = False


def command(options: TheoryOptions = TheoryOptions()) -> int:
    """Check Align-Pro's theory on finite instances, exactly.

    Returns:
        The exit status: 0 if nothing is violated, else 1.
    """
    from rich.console import Console

    console = Console(highlight=False)
    checks = check(options.instances, options.seed)
    instance = example()
    intervals = instance.admissible()
    if options.json:
        found = _to_json(options, checks, curve(instance, _ROWS), intervals)
        console.file.write(json.dumps(found, allow_nan=False) + "\n")
    else:
        _show(checks, curve(instance, _ROWS), intervals, console)
    if options.svg is not None:
        try:
            options.svg.write_text(picture(curve(instance, _POINTS), intervals), encoding="utf-8")
        except OSError as error:
            return complain("cuesmith theory", f"--svg {options.svg}: {error.strerror}", 1)
        if not options.json:
            console.print(f"\npicture: {options.svg}", markup=False, soft_wrap=True)
    return 1 if any(row.violations for row in checks) else 0


def check(instances: int, seed: int = 0) -> list[TheoryCheck]:
    """Try every statement on random instances.

    Args:
        instances: How many.
        seed: Of the instances and of the competitors.

    Returns:
        One row a statement.
    """
    import numpy as np

    from cuesmith.teleprompters.alignment.finite import random_instance

    rng = np.random.default_rng(seed)
    excesses: dict[str, list[float]] = {}
    for number in range(instances):
        instance = random_instance(rng)
        found = _excesses(instance, rng)
        if number % 20 == 0:  # the slowest by far
            found["admissible lambda: the bound is 0 at each end"] = _interval_excess(_faithful(instance))
        for name, excess in found.items():
            excesses.setdefault(name, []).append(excess)
    return [
        TheoryCheck(name, len(values), sum(not value <= TOLERANCE for value in values), max(values))
        for name, values in excesses.items()
    ]


def _excesses(instance: Instance, rng: np.random.Generator) -> dict[str, float]:
    """By how much each statement fails on one instance."""
    theory, width = instance.theory(), instance.reward_width
    prompter = instance.optimal_prompter()
    # Half of the competitors anywhere, half close by.
    rivals = rng.dirichlet([1.0] * prompter.shape[1], size=(COMPETITORS, prompter.shape[0]))
    rivals[::2] = 0.99 * prompter + 0.01 * rivals[::2]
    best = max(instance.objective(rival) for rival in rivals)
    reached = instance.objective(prompter)
    scale = width + instance.kl_coefficient
    return {
        "Lemma 1: no competitor beats rho*": (best - reached) / scale,
        "Lemma 1: rho* reaches lambda E log Z": abs(reached - theory.attainable) / scale,
        "Theorem 1: gap <= bound": (theory.gap - theory.bound) / width,
        "tighter: gap <= bound - lambda KL reversed": (theory.gap - theory.tighter_bound) / width,
        "identity: both sides are equal": theory.identity_error / width,
    }


def _faithful(instance: Instance) -> Instance:
    """The instance with a rho_sft that mostly copies, and a pi* near pi_F: then the bound dips below 0 more often."""
    reference, rewritten = 0.05 * instance.reference, instance.rewritten.copy()
    reference[:, 0] += 0.95
    rewritten[:, 0] = instance.frozen
    return replace(instance, reference=reference, rewritten=rewritten, beta=20 * instance.reward_width)


def _interval_excess(instance: Instance) -> float:
    """How far the bound is from 0 at the finite ends of the admissible set."""
    ends = [end for interval in instance.admissible() for end in interval if 0 < end < math.inf]
    bounds = [abs(instance.with_kl_coefficient(end).theory().bound) for end in ends]
    return max(bounds, default=0.0) / instance.reward_width


def example() -> Instance:
    """The instance of the curves: one good rewrite that rho_sft seldom writes, so that lambda matters."""
    import numpy as np

    from cuesmith.teleprompters.alignment.finite import Instance

    return Instance(
        prompts=np.array([1.0]),
        reference=np.array([[0.96, 0.03, 0.01]]),
        frozen=np.array([[0.80, 0.20]]),
        rewritten=np.array([[[0.82, 0.18], [0.45, 0.55], [0.05, 0.95]]]),
        rewards=np.array([[0.0, 1.0]]),
        beta=2.0,
        kl_coefficient=0.1,
    )


def curve(instance: Instance, points: int) -> list[CurvePoint]:
    """The theory against lambda, at points evenly spaced on a logarithmic axis."""
    low, high = (math.log10(end) for end in _LAMBDAS)
    found = []
    for i in range(points):
        kl_coefficient = 10 ** (low + (high - low) * i / (points - 1))
        theory = instance.with_kl_coefficient(kl_coefficient).theory()
        found.append(CurvePoint(kl_coefficient, theory.gap, theory.bound, theory.kl))
    return found


def _show(
    checks: list[TheoryCheck], points: list[CurvePoint], intervals: tuple[tuple[float, float], ...], console: Console
) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("statement")
    for name in ("tried", "violations", "worst excess"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in checks:
        table.add_row(row.name, f"{row.tried:,}", f"{row.violations:,}", f"{row.worst:.1e}")
    console.print(table)
    console.print(
        f"\nExcess: by how much a statement fails, relative to r_max - r_min; a violation is more than {TOLERANCE:g}. "
        "A bound's excess below 0 is its slack.\n",
        soft_wrap=True,
    )
    curves = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("lambda", "gap to pi*", "bound", "KL(rho* || rho_sft), nats"):
        curves.add_column(name, justify="right", no_wrap=True)
    for point in points:
        curves.add_row(f"{point.kl_coefficient:.3g}", *(f"{v:.4f}" for v in (point.gap, point.bound, point.kl)))
    console.print("One instance, in units of reward:", style="bold")
    console.print(curves)
    console.print(f"\nlambda at which the bound is not negative: {_describe(intervals)}", soft_wrap=True)


def _describe(intervals: tuple[tuple[float, float], ...]) -> str:
    return " and ".join(f"{low:.4g} to {high:.4g}" for low, high in intervals)


def _to_json(
    options: TheoryOptions,
    checks: list[TheoryCheck],
    points: list[CurvePoint],
    intervals: tuple[tuple[float, float], ...],
) -> dict[str, Json]:
    return {
        "instances": options.instances,
        "seed": options.seed,
        "violations": sum(row.violations for row in checks),
        "checks": [
            {"name": row.name, "tried": row.tried, "violations": row.violations, "worst": _number(row.worst)}
            for row in checks
        ],
        "curve": [{"kl_coefficient": p.kl_coefficient, "gap": p.gap, "bound": p.bound, "kl": p.kl} for p in points],
        "admissible": [[_number(end) for end in interval] for interval in intervals],
    }


def _number(value: float) -> float | None:
    """For JSON, which has no infinity: null stands for it."""
    return value if math.isfinite(value) else None


_LIGHT = {"ink": "#1f2328", "paper": "#ffffff", "grid": "#d0d7de", "shade": "#f6d5d6", "gap": "#0969da",
          "bound": "#bc4c00", "kl": "#1a7f37"}  # fmt: skip
_DARK = {"ink": "#e6edf3", "paper": "#0d1117", "grid": "#30363d", "shade": "#43201f", "gap": "#58a6ff",
         "bound": "#f0883e", "kl": "#3fb950"}  # fmt: skip
"""Colours by what they are for. The light ones are written into the elements, for viewers without style sheets."""
_LEFT, _RIGHT, _WIDTH = 70, 700, 720


@dataclass(frozen=True)
class _Panel:
    """One pair of axes: shades (x, width), rows and columns (place, label), lines (label, colour, path)."""

    top: int
    bottom: int
    unit: str
    shades: list[tuple[float, float]]
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    lines: list[tuple[str, str, str]]


def picture(points: list[CurvePoint], intervals: tuple[tuple[float, float], ...]) -> str:
    """Draw gap and bound (above) and KL (below) against lambda as one self-contained SVG.

    Args:
        points: The curve, in increasing order of lambda.
        intervals: The admissible lambdas; the others are shaded.

    Returns:
        The SVG document, for light and dark.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shaded = [(before[1], after[0]) for before, after in pairwise(intervals)]
    rewards = {
        "gap to the aligned model \u03c0*": ("gap", [p.gap for p in points]),
        "bound (Theorem 1)": ("bound", [p.bound for p in points]),
    }
    kls = {"KL(\u03c1* || \u03c1_sft)": ("kl", [p.kl for p in points])}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
                              keep_trailing_newline=True, undefined=StrictUndefined)  # fmt: skip
    environment.filters["escaped"] = html.escape
    return environment.get_template("theory.svg.j2").render(
        title="Gap to the aligned model, Theorem 1's bound and KL against \u03bb",
        note="shaded: the bound is negative" if shaded else "the bound is nowhere negative",
        panels=(_panel(60, 290, points, rewards, "units of reward", shaded),
                _panel(340, 500, points, kls, "nats", shaded)),
        light=_LIGHT, dark=_DARK, left=_LEFT, right=_RIGHT, width=_WIDTH,
    )  # fmt: skip


def _panel(
    top: int,
    bottom: int,
    points: list[CurvePoint],
    lines: dict[str, tuple[str, list[float]]],
    unit: str,
    shaded: list[tuple[float, float]],
) -> _Panel:
    """Return one pair of axes with its lines; `lines` gives colour and values by label."""
    first, last = (math.log10(points[end].kl_coefficient) for end in (0, -1))
    values = [value for _, row in lines.values() for value in row] + [0.0]
    step = _nice((max(values) - min(values)) / 4)
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step

    def across(kl_coefficient: float) -> float:
        place = (math.log10(max(kl_coefficient, 1e-300)) - first) / (last - first)
        return _LEFT + (_RIGHT - _LEFT) * min(max(place, 0.0), 1.0)

    def down(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    grid = [low + i * step for i in range(round((high - low) / step) + 1)]
    powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    return _Panel(
        top,
        bottom,
        unit,
        [(across(a), across(b) - across(a)) for a, b in shaded],
        [(down(value), f"{value:.3g}" if abs(value) > step / 2 else "0") for value in grid],
        [(across(10.0**power), f"{10.0**power:g}") for power in powers],
        [(label, colour, " ".join(f"{across(p.kl_coefficient):.1f},{down(v):.1f}"
                                  for p, v in zip(points, row, strict=True)))
         for label, (colour, row) in lines.items()],
    )  # fmt: skip


def _nice(step: float) -> float:
    """A round number of at least `step`: 1, 2 or 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
