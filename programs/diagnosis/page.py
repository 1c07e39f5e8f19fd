"""The report of a diagnosis: tables for a terminal, JSON for a program, one self-contained page for a browser.

What language models wrote is untrusted: it is text everywhere, with control characters shown as escapes. The page
has no script and loads nothing; its pictures are inline SVG, and a policy in its head forbids the rest.

Source: ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cuesmith.programs.diagnosis.figures import Curve, Figure, Section
from cuesmith.programs.report import visible
from cuesmith.teleprompters.runtime.candidate import Json

__all__ = ["Quote", "as_json", "html", "plain", "show"]

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40
_TICKS = 4
_COLOURS = 6


@dataclass(frozen=True)
class Quote:
    """A text to show as it is, such as a prompt.

    Attributes:
        title: What it is.
        text: The text.
    """

    title: str
    text: str


def number(value: float | None) -> str:
    """A number with three significant digits, whole ones as such; a dash where there is none."""
    if value is None:
        return "-"
    if abs(value - round(value)) < 1e-9:
        return f"{round(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def measured(figure: Figure) -> str:
    """A figure's value with its interval: ``6.0 [-3.8, 17.0]``."""
    if figure.value is None or (figure.low is None and figure.high is None):
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def probability(p_value: float | None) -> str:
    """A p-value: ``<0.001``."""
    return "" if p_value is None else "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def show(title: str, notes: Sequence[str], sections: Sequence[Section], console: Console) -> None:
    """Print the sections as tables.

    Args:
        title: Of the report.
        notes: Sentences to begin with.
        sections: What to show.
        console: Where.
    """
    console.print(Text(visible(title), style="bold"))
    for note in notes:
        console.print(Text(visible(note)))
    for section in sections:
        console.print()
        console.print(Text(visible(section.title), style="bold cyan"))
        console.print(Text(visible(section.summary)))
        if section.figures:
            console.print(_table(section.figures))


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(show_lines=True, expand=True)
    table.add_column("figure", ratio=4)
    table.add_column("value [95 %]", ratio=3)
    table.add_column("what it means, and what to do", ratio=7)
    for one in figures:
        value = Text(measured(one), style="bold")
        value.append(f"\n{_grounds(one)}", style="not bold")
        said = Text(visible(one.meaning) + "\n")
        said.append(visible(one.advice), style="green")
        table.add_row(Text(visible(one.name)), value, said)
    return table


def _grounds(figure: Figure) -> str:
    """What a figure rests on: ``n = 50, p = 0.031``."""
    known = f"n = {figure.n:,}"
    if figure.p_value is None:
        return known
    p_value = probability(figure.p_value)
    return f"{known}, p {p_value}" if p_value.startswith("<") else f"{known}, p = {p_value}"


def as_json(run: Mapping[str, Json], sections: Sequence[Section], results: Mapping[str, object]) -> str:
    """Return the report as one JSON object, on one line.

    Args:
        run: What was diagnosed.
        sections: The figures with their sentences.
        results: Name -> a typed result, a sequence of them or None: every number behind the figures.
    """
    found = {"run": dict(run), "sections": [asdict(one) for one in sections], "results": dict(results)}
    return json.dumps(plain(found), allow_nan=False)


def plain(value: object) -> Json:
    """Return dataclasses, mappings and sequences as JSON data; null stands for what is not a number."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) or value is None else str(value)


@dataclass(frozen=True)
class _Line:
    """A curve in the picture's own coordinates."""

    name: str
    colour: int
    paths: tuple[str, ...]
    bands: tuple[str, ...]
    dots: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Tick:
    at: str
    text: str


@dataclass(frozen=True)
class _Picture:
    """Curves on one pair of axes."""

    x_label: str
    y_label: str
    lines: tuple[_Line, ...]
    x_ticks: tuple[_Tick, ...]
    y_ticks: tuple[_Tick, ...]


@dataclass(frozen=True)
class _Scale:
    """Maps values to places between two ends of a picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def html(title: str, subtitle: str, sections: Sequence[Section], quotes: Sequence[Quote] = ()) -> str:
    """Return the report as a page that needs nothing but itself.

    Args:
        title: Of the page.
        subtitle: What was diagnosed, in a sentence.
        sections: What to show.
        quotes: Texts to add at the end, such as prompts.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    # Before escaping: a control character has no escape in HTML, and the text direction could be turned by one.
    environment.finalize = lambda value: visible(value) if isinstance(value, str) and type(value) is str else value
    environment.filters.update(measured=measured, probability=probability)
    shown = [(section, list(_pictures(section.curves))) for section in sections]
    size = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _WIDTH - _RIGHT, "top": _TOP,
            "bottom": _HEIGHT - _BOTTOM}
    return environment.get_template("page.html.j2").render(
        title=title, subtitle=subtitle, sections=shown, quotes=quotes, size=size)


def _pictures(curves: Sequence[Curve]) -> Iterator[_Picture]:
    """Curves with equal axes share a picture."""
    for axes in dict.fromkeys((curve.x_label, curve.y_label) for curve in curves):
        own = [curve for curve in curves if (curve.x_label, curve.y_label) == axes]
        xs = [x for curve in own for x in curve.x if math.isfinite(x)]
        ys = [y for curve in own for ys in (curve.y, curve.low, curve.high) for y in ys if _known(y)]
        if xs and ys:
            yield _picture(own, _scale(xs, _LEFT, _WIDTH - _RIGHT), _scale(ys, _HEIGHT - _BOTTOM, _TOP))


def _known(y: float | None) -> bool:
    return y is not None and math.isfinite(y)


def _scale(values: Sequence[float | None], start: float, end: float) -> _Scale:
    known = [v for v in values if v is not None]
    low, high = min(known), max(known)
    room = (high - low) * 0.05 or max(1.0, abs(low)) * 0.5
    return _Scale(low - room, high + room, start, end)


def _picture(curves: Sequence[Curve], x: _Scale, y: _Scale) -> _Picture:
    lines = tuple(_line(curve, i % _COLOURS, x, y) for i, curve in enumerate(curves))
    whole = all(float(v).is_integer() for curve in curves for v in curve.x)
    return _Picture(curves[0].x_label, curves[0].y_label, lines, _ticks(x, whole), _ticks(y, False))


def _ticks(scale: _Scale, whole: bool) -> tuple[_Tick, ...]:
    """Ticks at round values: 1, 2 or 5 times a power of ten."""
    rough = (scale.high - scale.low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(scale.low / step)
    count = math.floor(scale.high / step) - first + 1
    return tuple(_Tick(scale(k * step), f"{k * step:,.10g}") for k in range(first, first + count))


def _line(curve: Curve, colour: int, x: _Scale, y: _Scale) -> _Line:
    runs = list(_runs(curve, x, y))
    paths = () if curve.points else tuple(_join(run) for run in runs)
    return _Line(curve.name, colour, paths, tuple(_bands(curve, x, y)), tuple(point for run in runs for point in run))


def _runs(curve: Curve, x: _Scale, y: _Scale) -> Iterator[list[tuple[str, str]]]:
    """The stretches of a line without a gap."""
    run: list[tuple[str, str]] = []
    for at, value in zip(curve.x, curve.y, strict=True):
        if value is not None and _known(value):
            run.append((x(at), y(value)))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _bands(curve: Curve, x: _Scale, y: _Scale) -> Iterator[str]:
    """The band's outline, stretch by stretch."""
    upper: list[tuple[str, str]] = []
    lower: list[tuple[str, str]] = []
    for at, low, high in (*zip(curve.x, curve.low, curve.high, strict=False), (0.0, None, None)):
        if low is not None and high is not None and _known(low) and _known(high):
            upper.append((x(at), y(high)))
            lower.append((x(at), y(low)))
        elif upper:
            yield _join([*upper, *reversed(lower)])
            upper, lower = [], []


def _join(points: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{a},{b}" for a, b in points)
