"""How single figures and untrusted texts are written for a person: a share, an amount, a score with its interval.

Source: ours.
"""

from __future__ import annotations

import json
import math

from cuesmith.teleprompters.runtime.statistics import Estimate95


def visible(text: str) -> str:
    """Return text that is safe to print: control characters, except line ends and tabs, as escapes."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_text(data: object, indent: int | None = None) -> str:
    """Return data as JSON that is safe to print, and reads back as it was: control characters as escapes.

    Raises:
        ValueError: If a number in it is not finite.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent)
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def percent(share: float, factor: float = 100.0) -> str:
    """A share in percent: ``83.2``; a dash where there is none. A score that is no share has the factor 1."""
    return "-" if math.isnan(share) else f"{factor * share:.1f}"


def usd(amount: float | None) -> str:
    """An amount of dollars; nothing for nothing, a word where the price is unknown."""
    if amount is None:
        return "price unknown"
    return f"${amount:.4f}" if amount else ""


def describe_estimate(estimate: Estimate95, factor: float = 100.0) -> str:
    """A score in percent with its 95 % interval: ``83.2 [78.1, 87.3]``; `factor` as for `percent`."""
    mean, low, high = (percent(value, factor) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"
