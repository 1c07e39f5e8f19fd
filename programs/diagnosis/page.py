"""The report of a diagnosis: tables for a terminal, JSON for a program, one self-contained page for a browser.

What language models wrote is untrusted: it is text everywhere, with control characters shown as escapes. The page
has no script and loads nothing; its pictures are inline SVG, and a policy in its head forbids the rest.

Source: ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cuesmith.programs.diagnosis.figures import Figure, Section
from cuesmith.programs.report import visible
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.charts import environment, pictures


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


def html(title: str, subtitle: str, sections: Sequence[Section], quotes: Sequence[Quote] = ()) -> str:
    """Return the report as a page that needs nothing but itself.

    Args:
        title: Of the page.
        subtitle: What was diagnosed, in a sentence.
        sections: What to show.
        quotes: Texts to add at the end, such as prompts.
    """
    templates = environment(Path(__file__).parent)
    templates.filters.update(measured=measured, probability=probability)
    shown = [(section, list(pictures(section.curves))) for section in sections]
    return templates.get_template("page.html.j2").render(title=title, subtitle=subtitle, sections=shown, quotes=quotes)
