"""What every instrument hands to the report: numbers that come with their interval, their n and two plain sentences.

Source: ours. Values only; how they are shown is in page.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cuesmith.teleprompters.runtime.statistics import Estimate95

__all__ = ["Curve", "Figure", "Section", "percent"]


@dataclass(frozen=True)
class Figure:
    """One number of a diagnosis.

    Attributes:
        name: What is measured, in a few words.
        value: The number, in the unit that `name` says; None if it could not be computed.
        low: Lower end of its 95 % interval; None without one.
        high: Upper end of its 95 % interval; None without one.
        n: How many observations it rests on.
        p_value: Of the test that `meaning` names; None without one.
        meaning: One sentence: what the number says.
        advice: One sentence: what to do about it.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    meaning: str
    advice: str

    def __post_init__(self) -> None:
        """Turn what is no finite number into None: a report has no nan, and JSON has none either."""
        for field in ("value", "low", "high", "p_value"):
            number = getattr(self, field)
            if number is not None:
                plain = float(number)
                object.__setattr__(self, field, plain if math.isfinite(plain) else None)


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
class Section:
    """One instrument's part of the report.

    Attributes:
        title: What was examined.
        summary: The finding in one or two sentences, for a reader who knows no paper.
        figures: Its numbers.
        curves: Its lines.
    """

    title: str
    summary: str
    figures: tuple[Figure, ...]
    curves: tuple[Curve, ...] = ()


def percent(estimate: Estimate95) -> tuple[float, float, float]:
    """Return value, low and high of a figure in percent, or points, from an estimate of a share, or of a score."""
    return 100 * estimate.mean, 100 * estimate.low, 100 * estimate.high
