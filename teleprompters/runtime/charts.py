"""Curves as pictures, and the templates of pages that hold them: what the report and the diagnosis share.

What language models wrote is untrusted: it is text everywhere, with control characters shown as escapes. Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cuesmith.teleprompters.runtime.formatting import visible

__all__ = ["Curve", "Picture", "Scale", "Tick", "environment", "pictures", "scale_of", "ticks"]

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40
_TICKS = 4
_COLOURS = 6
_MOST_DOTS = 40
"""Points that a line may have to show each as a dot. Ours."""


def environment(folder: Path) -> Environment:
    """Return the templates of a folder and of this one: all that is filled in is escaped, and a name must be known."""
    found = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    # Before escaping: a control character has no escape in HTML, and the text direction could be turned by one.
    found.finalize = lambda value: visible(value) if type(value) is str and not value.isprintable() else value
    found.globals["size"] = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": _HEIGHT - _BOTTOM,
    }
    return found


@dataclass(frozen=True)
class Curve:
    """Points to draw as one line, with an optional 95 % band. Lines of one section with equal axes share a picture.

    Attributes:
        name: What the line shows.
        x: Positions, in rising order.
        y: Values, one a position; None leaves a gap.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
        low: Lower edge of the band, one a position; empty without a band.
        high: Upper edge of the band, one a position; empty without a band.
        points: Whether single dots are drawn instead of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    x_label: str
    y_label: str
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    points: bool = False

    def __post_init__(self) -> None:
        """Refuse lines that cannot be drawn.

        Raises:
            ValueError: If the sequences differ in length.
        """
        lengths = {len(self.x), len(self.y)} | {len(band) for band in (self.low, self.high) if band}
        if len(lengths) > 1:
            raise ValueError(f"a curve's sequences must have one length, got {sorted(lengths)}")


@dataclass(frozen=True)
class Line:
    """A curve in the picture's own coordinates."""

    name: str
    colour: int
    paths: tuple[str, ...]
    bands: tuple[str, ...]
    dots: tuple[tuple[str, str], ...]
    loose: bool


@dataclass(frozen=True)
class Tick:
    """A place on an axis with its label."""

    at: str
    text: str


@dataclass(frozen=True)
class Picture:
    """Curves on one pair of axes."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Scale:
    """Maps values to places between two ends of a picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def pictures(curves: Sequence[Curve]) -> Iterator[Picture]:
    """Curves with equal axes share a picture."""
    for axes in dict.fromkeys((curve.x_label, curve.y_label) for curve in curves):
        own = [curve for curve in curves if (curve.x_label, curve.y_label) == axes]
        xs = [x for curve in own for x in curve.x if math.isfinite(x)]
        ys = [y for curve in own for ys in (curve.y, curve.low, curve.high) for y in ys if _known(y)]
        if xs and ys:
            yield _picture(own, scale_of(xs, _LEFT, _WIDTH - _RIGHT), scale_of(ys, _HEIGHT - _BOTTOM, _TOP))


def _known(y: float | None) -> bool:
    return y is not None and math.isfinite(y)


def scale_of(values: Sequence[float | None], start: float, end: float) -> Scale:
    """Return the scale that has all values between two ends of a picture, with some room."""
    known = [v for v in values if v is not None]
    low, high = min(known), max(known)
    room = (high - low) * 0.05 or max(1.0, abs(low)) * 0.5
    return Scale(low - room, high + room, start, end)


def _picture(curves: Sequence[Curve], x: Scale, y: Scale) -> Picture:
    lines = tuple(_line(curve, i % _COLOURS, x, y) for i, curve in enumerate(curves))
    whole = all(float(v).is_integer() for curve in curves for v in curve.x)
    return Picture(curves[0].x_label, curves[0].y_label, lines, ticks(x, whole), ticks(y, False))


def ticks(scale: Scale, whole: bool) -> tuple[Tick, ...]:
    """Ticks at round values: 1, 2 or 5 times a power of ten."""
    rough = (scale.high - scale.low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(scale.low / step)
    count = math.floor(scale.high / step) - first + 1
    return tuple(Tick(scale(k * step), f"{k * step:,.10g}") for k in range(first, first + count))


def _line(curve: Curve, colour: int, x: Scale, y: Scale) -> Line:
    runs = list(_runs(curve, x, y))
    paths = () if curve.points else tuple(_join(run) for run in runs)
    dots = tuple(point for run in runs for point in run) if curve.points or len(curve.x) <= _MOST_DOTS else ()
    return Line(curve.name, colour, paths, tuple(_bands(curve, x, y)), dots, curve.points)


def _runs(curve: Curve, x: Scale, y: Scale) -> Iterator[list[tuple[str, str]]]:
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


def _bands(curve: Curve, x: Scale, y: Scale) -> Iterator[str]:
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
