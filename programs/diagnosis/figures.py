"""What every instrument hands to the report: numbers that come with their interval, their n and two plain sentences.

Source: ours. Values only; how they are shown is in page.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cuesmith.teleprompters.runtime.charts import Curve
from cuesmith.teleprompters.runtime.statistics import Estimate95

__all__ = ["Curve", "Figure", "Section", "percent", "percent_curve"]


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


def percent(estimate: Estimate95, factor: float = 100.0) -> tuple[float, float, float]:
    """Return value, low and high of a figure in percent, or points, from an estimate of a share, or of a score."""
    return factor * estimate.mean, factor * estimate.low, factor * estimate.high


def percent_curve(
    name: str, points: Sequence[tuple[float, Estimate95]], x_label: str, y_label: str, *, factor: float = 100.0
) -> Curve:
    """Return estimates of shares, or of scores, over their positions, with their intervals.

    They are in percent, or in the unit that `factor` makes of them.
    """
    y, low, high = ([percent(estimate, factor)[k] for _, estimate in points] for k in range(3))
    return Curve(name, [float(x) for x, _ in points], y, x_label, y_label, low, high)
