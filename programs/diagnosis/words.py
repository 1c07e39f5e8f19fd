"""Reports in words: the sentences stand in templates (`*.j2`) beside what they report, the numbers in typed results.

A template has macros, each one part of a report. In them `section` and `figure` are called with their words::

    % call section("Title")
    The finding.
    % endcall
    % call figure("what is measured", estimate, p=0.03)
    What it says. -> What to do about it.
    % endcall

Line breaks in the words are spaces. What the figures do not show is a macro of paragraphs. Source: ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cuesmith.programs.diagnosis.figures import Curve, Figure, Section
from cuesmith.teleprompters.runtime.statistics import Estimate95


@dataclass
class _Report:
    """What a template has said so far."""

    sections: list[Section] = field(default_factory=list)

    def section(self, title: str, *, curves: Sequence[Curve] = (), caller: Callable[[], str]) -> str:
        """Begin a section with its summary."""
        self.sections.append(Section(title, _plain(caller()), (), tuple(curves)))
        return ""

    def figure(
        self,
        name: str,
        value: Estimate95 | float | None,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        p: float | None = None,
        *,
        caller: Callable[[], str],
    ) -> str:
        """Add a figure to the section, from an estimate or from plain numbers."""
        if isinstance(value, Estimate95):
            low, high, n, value = value.low, value.high, value.n if n is None else n, value.mean
        meaning, _, advice = _plain(caller()).rpartition(" -> ")
        last = self.sections[-1]
        new = Figure(name=name, value=value, low=low, high=high, n=n or 0, p_value=p, meaning=meaning, advice=advice)
        self.sections[-1] = replace(last, figures=(*last.figures, new))
        return ""

    def add(self, section: Section) -> str:
        """Add a section that another template has made."""
        self.sections.append(section)
        return ""


def _plain(text: str) -> str:
    return " ".join(text.split())


def _percent(estimate: Estimate95, factor: float = 100.0) -> Estimate95:
    return replace(estimate, mean=factor * estimate.mean, low=factor * estimate.low, high=factor * estimate.high)


def _unless_equal(estimate: Estimate95) -> Estimate95:
    """Without the interval if all observations are equal: that says nothing of others."""
    return replace(estimate, low=math.nan, high=math.nan) if estimate.low == estimate.high else estimate


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]), undefined=StrictUndefined, line_statement_prefix="%"
    )
    made.filters.update(fmt=format, percent=_percent, repr=repr, unless_equal=_unless_equal)
    made.tests.update(nan=math.isnan, finite=math.isfinite)
    return made


def _told(template: str, part: str, facts: tuple[object, ...]) -> tuple[_Report, str]:
    report = _Report()
    calls = {name: getattr(report, name) for name in ("section", "figure", "add")}
    macro = getattr(_environment().get_template(f"{template}.j2").make_module(calls), part)
    return report, str(macro(*facts))


def sections_of(template: str, *facts: object, part: str = "sections") -> tuple[Section, ...]:
    """Return the sections that a template makes of facts.

    Args:
        template: Its path below `programs/`, without suffix.
        *facts: Arguments of the macro.
        part: The macro.
    """
    return tuple(_told(template, part, facts)[0].sections)


def section_of(template: str, *facts: object, part: str = "sections") -> Section:
    """Return the only section that a template makes of facts; arguments as for `sections_of`."""
    (section,) = sections_of(template, *facts, part=part)
    return section


def paragraphs_of(template: str, *facts: object, part: str = "limits") -> tuple[str, ...]:
    """Return the paragraphs that a macro writes, by default what the figures do not show; else as `sections_of`."""
    return tuple(map(_plain, re.split(r"\n\s*\n", _told(template, part, facts)[1].strip())))
