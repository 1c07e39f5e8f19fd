"""Writes a report out: a page, a notebook's fragment, Markdown, JSON.

The page has a policy that lets nothing run or be fetched but its own script, which sorts and filters and can be missed;
what language models wrote is text everywhere, with control characters shown as escapes. Source: ours.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment
from markupsafe import Markup

from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.charts import Curve, Picture, environment, pictures
from cuesmith.teleprompters.runtime.evidence import shortened, sound, text_of
from cuesmith.teleprompters.runtime.formatting import visible
from cuesmith.teleprompters.runtime.ledger import Usage, stopped
from cuesmith.teleprompters.runtime.run_report.contrast import FATES, Contrast, Fate
from cuesmith.teleprompters.runtime.run_report.family import Member, picture_of
from cuesmith.teleprompters.runtime.run_report.honest import Scoring, p_words
from cuesmith.teleprompters.runtime.run_report.word_diff import demo_text, prompt_changes
from cuesmith.teleprompters.runtime.statistics import Estimate95

if TYPE_CHECKING:
    from cuesmith.teleprompters.runtime.run_report.reporting import RunReport

__all__ = ["fragment", "json_data", "markdown", "page"]

_HERE = Path(__file__).parent
_LONGEST = 12_000
"""Characters of one text on a page; the middle of a longer one is left out. Ours."""
_LONGEST_LINE, _OPEN_LINE = 24, 8
"""Ancestors whose changes are on a page, and those of them that are not folded. Ours."""
_TOLD = 40
"""Candidates whose prompts are on a page. Ours."""
_PRINTED, _PRINTED_CASES, _PRINTED_CELLS = 12, 3, 200
"""Candidates, examples and their marks that are on paper too; of more it says how many the page has. Ours."""
_MOST_CELLS = 1_000
_MOST_POINTS = 600
_GIST = 160
_ROLES = {
    "target": "the program",
    "optimizer": "the optimizer",
    "judge": "the metric",
    "reward": "the reward",
    "embedder": "the embedder",
    "other": "other",
}


@dataclass(frozen=True)
class Headline:
    """A figure at the head of a report: its name, the figure, what to add in small print, and its colour."""

    name: str
    value: str
    aside: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Bar:
    """A score with its interval on a scale from 0 to 100."""

    name: str
    value: str
    colour: int
    low: str
    width: str
    at: str


def page(r: RunReport) -> str:
    """Return the page."""
    css = "\n".join(path.read_text("utf-8") for path in (_HERE.parent / "charts.css", _HERE / "report.css"))
    script = (_HERE / "report.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    template = _templates(r.scoring).get_template("report.html.j2")
    return sound(
        template.render(
            r=r,
            css=Markup(css),
            script=Markup(script),
            policy=policy,
            figures=headlines(r),
            parts=list(_parts(r)),
            created=str((r.provenance or {}).get("created") or ""),
            origin=list(_flat(r.provenance or {})),
            search_words=_search_words(r),
            bars=list(_bars(r)),
            curves=list(_curves(r)),
            **_of_prompts(r),
            **_of_lineage(r),
            **_of_examples(r),
            roles=list(_roles(r)),
            replayed=r.spent.total.replayed,
            ended=ended(r),
        )
    )


def _of_prompts(r: RunReport) -> dict[str, object]:
    """Return what the template says of the prompts."""
    parent = r.parent
    return {
        "length": f"It has {r.best.size:,} characters, the student's {r.baseline.size:,}.",
        "parent_changes": prompt_changes(parent, r.best) if parent else (),
        "parent_rank": _ranks(r).get(parent.id) if parent else None,
    }


def _of_lineage(r: RunReport) -> dict[str, object]:
    """Return what the template says of the candidates."""
    line = list(zip(r.line, (None, *r.line[:-1]), strict=True))
    return {
        "line": line[-_OPEN_LINE:],
        "earlier": line[-_LONGEST_LINE:-_OPEN_LINE],
        "skipped": max(0, len(line) - _LONGEST_LINE),
        "family": picture_of(r.members, r.best.id, r.scoring.factor),
        "members": r.members,
        "told": r.members[:_TOLD],
        "most_printed": _PRINTED,
        "ranks": _ranks(r),
        "changes_between": prompt_changes,
    }


def _of_examples(r: RunReport) -> dict[str, object]:
    """Return what the template says of examples won and lost."""
    return {
        "contrasts": r.contrasts,
        "fates": FATES,
        "fate_words": lambda fate: fate_words(fate, r.unchanged),
        "most_cells": _MOST_CELLS,
        "printed_cells": _PRINTED_CELLS,
        "most_cases": _PRINTED_CASES,
        "is_open": _is_open,
        "unprinted": _unprinted,
    }


def _is_open(contrast: Contrast, fate: Fate) -> bool:
    """Whether the examples of a fate are not folded; the others are not on paper either."""
    return contrast.name == "fresh" and fate == "lost"


def _unprinted(contrast: Contrast) -> int:
    """Return how many examples are written out on the page and not on paper."""
    return sum(
        len(cases) - (min(len(cases), _PRINTED_CASES) if _is_open(contrast, fate) else 0)
        for fate, cases in contrast.groups
    )


def fragment(r: RunReport) -> str:
    """Return what a notebook shows: small, with styles for itself alone, and in the notebook's own colours."""
    template = _templates(r.scoring).get_template("fragment.html.j2")
    return sound(template.render(r=r, figures=headlines(r)))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@lru_cache(maxsize=2)
def _templates(scoring: Scoring) -> Environment:
    found = environment(_HERE)
    found.filters.update(
        score=scoring.score,
        number=scoring.number,
        change=scoring.change,
        tone=_tone,
        cut=_cut,
        gist=_gist,
        demo_text=demo_text,
        quoted=shlex.quote,
    )
    return found


def _cut(text: str) -> str:
    return shortened(text, _LONGEST)


def _gist(values: Mapping[str, str]) -> str:
    """Return the beginning of an example's inputs on one line."""
    text = " · ".join(" ".join(text[:_GIST].split()) for text in values.values())
    return text if len(text) <= _GIST else f"{text[:_GIST]} …"


def _tone(difference: float) -> str:
    return "up" if difference > 0 else "down" if difference < 0 else ""


def fate_words(fate: Fate, alone: bool) -> str:
    """Return what became of an example, in words; `alone` where only the student is there."""
    return {"right": "Right", "wrong": "Not right"}.get(fate, FATES[fate][1]) if alone else FATES[fate][1]


def headlines(r: RunReport) -> list[Headline]:
    """Return the figures at the head of a report."""
    split = "fresh" if r.estimate("baseline", "fresh") is not None else "select"
    on = "fresh examples" if split == "fresh" else "selection examples"
    shown = [
        Headline(name, *_headline(r.scoring, r.estimate(who, split), on))
        for name, who in (("Student", "baseline"), ("Returned", "best"))
    ]
    total = r.spent.total
    measured = r.gain is not None and r.gain.n > 0
    gain = Headline(
        "Gain",
        r.scoring.change(r.gain.difference) if measured and r.gain else "–",
        f"{r.scoring.interval(r.gain.low, r.gain.high)}, {p_words(r.gain.p_value)}".lstrip(", ")
        if measured and r.gain
        else "not measured",
        {"gain": "up", "loss": "down"}.get(r.verdict.tone, ""),
    )
    calls = ", ".join(f"{used.calls:,} {role}" for role, used in sorted(r.spent.by_role.items()))
    return [
        *shown,
        gain,
        Headline("Calls", f"{total.calls:,}", calls),
        Headline("Cost", _dollars(total), f"{total.tokens:,} tokens"),
        Headline("Time", duration(r.spent.seconds), "of the last session" if total.replayed else ""),
        Headline(
            "Ended",
            "by itself" if r.stopped_by is None else "early",
            "" if r.stopped_by is None else stopped(r.stopped_by),
        ),
    ]


def _headline(scoring: Scoring, estimate: Estimate95 | None, on: str) -> tuple[str, str]:
    if estimate is None:
        return "–", "not measured"
    inside = scoring.interval(estimate.low, estimate.high)
    return scoring.score(estimate.mean), f"{f'{inside}, ' if inside else ''}{estimate.n} {on}"


def _dollars(used: Usage) -> str:
    if used.usd is None:
        return "unknown"
    return f"${used.usd:,.2f}" if used.usd >= 1 or not used.usd else f"${used.usd:.4f}"


def duration(seconds: float) -> str:
    """Seconds for a reader: ``3.2 s``, ``4 min 10 s``, ``2 h 5 min``; a dash where they are not known."""
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ended(r: RunReport) -> str:
    """Return why the search ended, in one sentence."""
    if r.stopped_by is None:
        return "The search ran to its end."
    return f"The search was {stopped(r.stopped_by)}; what is returned is the best that it had found by then."


def _parts(r: RunReport) -> Iterator[tuple[str, str]]:
    yield from (
        ("prompt", "The prompt"),
        ("search", "The search"),
        ("lineage", "Who came from whom"),
        ("examples", "Examples won and lost"),
        ("spending", "What it took"),
        ("notes", "Why it ended"),
    )
    if r.provenance:
        yield "origin", "Where it comes from"


def _search_words(r: RunReport) -> str:
    n, steps = len(r.trials), len(r.steps)
    scored = f"{n:,} candidate{'s' if n != 1 else ''} scored in {steps:,} step{'s' if steps != 1 else ''}."
    return f"{scored} Bands are 95 % intervals; scores on selection examples are optimistic for the best of many."


def _bars(r: RunReport) -> Iterator[Bar]:
    """Yield the four scores with their intervals, where scores are from 0 to 1."""
    if not r.scoring.percent:
        return
    for split, on in (("fresh", "fresh"), ("select", "selection")):
        for who, name, colour in (("baseline", "Student", 1), ("best", "Returned", 0)):
            estimate = r.estimate(who, split)
            if estimate is not None and not (who == "best" and r.unchanged):
                yield _bar(f"{name}, {on}", r.scoring, estimate, colour)


def _bar(name: str, scoring: Scoring, estimate: Estimate95, colour: int) -> Bar:
    known = not (math.isnan(estimate.low) or math.isnan(estimate.high))
    low, high = (min(100.0, max(0.0, 100 * v)) if known else 0.0 for v in (estimate.low, estimate.high))
    at = min(99.3, max(0.0, 100 * estimate.mean - 0.35))
    width = f"{high - low:.2f}" if known else ""
    return Bar(name, scoring.estimate(estimate), colour, f"{low:.2f}", width, f"{at:.2f}")


def _curves(r: RunReport) -> Iterator[Picture]:
    """Yield the score against what was spent until then."""
    if len(r.steps) < 2:
        return
    calls = [step.calls for step in r.steps]
    known = [float(c) for c in calls if c is not None]
    by_calls = len(known) == len(calls) and known == sorted(known) and known[-1] > known[0]
    xs = known if by_calls else [float(step.step) for step in r.steps]
    axes = "calls" if by_calls else "step", r.scoring.axis
    curves = [_scores("best so far, selection examples", xs, [s.validation for s in r.steps], axes, r.scoring)]
    student = r.estimate("baseline", "select")
    if student is not None:
        curves.append(_scores("the student", [xs[0], xs[-1]], [student, student], axes, r.scoring))
    if any(step.train for step in r.steps):
        curves.append(_scores("the best on training examples", xs, [s.train for s in r.steps], axes, r.scoring))
    at = dict(zip((step.step for step in r.steps), xs, strict=True))
    kept = [m for m in r.members if m.step is not None and "student" not in m.roles and not math.isnan(m.score)]
    dots = sorted((at[m.step], r.scoring.factor * m.score) for m in kept[:_MOST_POINTS] if m.step is not None)
    if dots:
        at_calls, scored = zip(*dots, strict=True)
        curves.append(Curve("candidates as they entered the beam", at_calls, scored, *axes, points=True))
    yield from pictures(curves)


def _scores(
    name: str, xs: Sequence[float], of: Sequence[Estimate95 | None], axes: tuple[str, str], scoring: Scoring
) -> Curve:
    factor = scoring.factor
    y, low, high = ([None if e is None else factor * getattr(e, part) for e in of] for part in ("mean", "low", "high"))
    return Curve(name, xs, y, *axes, low=low, high=high)


def _ranks(r: RunReport) -> dict[str, int]:
    return {member.candidate.id: member.rank for member in r.members}


@dataclass(frozen=True)
class Outlay:
    """A row of what was spent: whose, and each figure with its heading."""

    name: str
    cells: tuple[tuple[str, str], ...]


def _roles(r: RunReport) -> Iterator[Outlay]:
    for role, used in (*sorted(r.spent.by_role.items(), key=lambda one: -one[1].calls), ("", r.spent.total)):
        if r.spent.by_role:
            yield Outlay(
                _ROLES.get(role, role) if role else "all",
                (
                    ("calls", f"{used.calls:,}"),
                    ("input tokens", f"{used.input_tokens:,}"),
                    ("output tokens", f"{used.output_tokens:,}"),
                    ("US dollars", _dollars(used)),
                    ("from the cache", f"{used.cache_hits:,}"),
                ),
            )


def _flat(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and texts of a provenance, what is nested under dotted names."""
    for name, held in values.items():
        path = f"{before}{name}"
        if isinstance(held, Mapping):
            yield from _flat(held, f"{path}.")
        elif held is not None:
            yield path, f"{held:.4g}" if isinstance(held, float) else text_of(held)


def markdown(r: RunReport) -> str:
    """Return the report as Markdown; what models wrote stands in fences, or with its marks escaped."""
    lines = [
        f"# {r.compiler}",
        "",
        f"**{_plain(r.verdict.text)}**",
        "",
        _plain(r.verdict.grounds),
        "",
        *_table(("figure", "value", ""), [(h.name, h.value, h.aside) for h in headlines(r)]),
        "## The prompt against the student",
        "",
        *_fenced(r.diff() or "(unchanged)", "diff"),
    ]
    if r.moves:
        rows = [
            (
                m.move,
                f"{m.made:,}",
                f"{m.above} of {m.compared}" if m.compared else "–",
                r.scoring.change(m.change),
                r.scoring.score(m.best),
            )
            for m in r.moves
        ]
        lines += ["## Moves", "", *_table(("move", "made", "above its parent", "mean change", "best score"), rows)]
    if r.contrasts:
        names = [fate_words(fate, r.unchanged) for fate in FATES]
        counts = [(c.name, *(str(n) for n in c.counts.values())) for c in r.contrasts]
        lines += ["## Examples", "", *_table(("examples", *names), counts)]
    used = [(role.name, *(cell for _, cell in role.cells)) for role in _roles(r)]
    heads = ("role", "calls", "input tokens", "output tokens", "US dollars", "from the cache")
    lines += ["## What it took", "", *_table(heads, used)]
    lines += ["## Why it ended, and what to know", "", _plain(ended(r)), ""]
    lines += [f"- {_plain(note.text)}" for note in r.notes]
    return sound("\n".join(lines).rstrip() + "\n")


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&$])", r"\\\1", " ".join(visible(text).split()))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    written = [heads, ["---"] * len(heads), *rows]
    return [*(f"| {' | '.join(c if c == '---' else _plain(c) for c in row)} |" for row in written), ""]


def _fenced(text: str, kind: str) -> list[str]:
    """Return a text in a fence that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return [f"{fence}{kind}", visible(text), fence, ""]


def json_data(r: RunReport) -> dict[str, Json]:
    """Return the report as JSON data."""
    splits = ("select", "fresh")
    found = {
        "compiler": r.compiler,
        "verdict": r.verdict,
        "unchanged": r.unchanged,
        "scores": {who: {split: r.estimate(who, split) for split in splits} for who in ("baseline", "best")},
        "gain": None if r.gain is None else {**asdict(r.gain), "significant": r.gain.significant},
        "spent": {role: used.to_json() for role, used in r.spent.by_role.items()},
        "calls": r.spent.total.calls,
        "usd": r.spent.total.usd,
        "seconds": r.spent.seconds,
        "stopped_by": r.stopped_by,
        "notes": [{"kind": note.kind, "text": note.text} for note in r.notes],
        "baseline": r.baseline.to_json(),
        "best": r.best.to_json(),
        "diff": r.diff(),
        "steps": [{**asdict(step), "beam": list(step.beam)} for step in r.steps],
        "moves": r.moves,
        "candidates": [_member(member) for member in r.members],
        "lineage": [member.candidate.id for member in r.line],
        "examples": {c.name: {"counts": c.counts, "fates": [case.fate for case in c.cases]} for c in r.contrasts},
        "run_dir": r.run_dir,
        "provenance": r.provenance,
    }
    data = _data(found)
    assert isinstance(data, dict)
    return data


def _member(member: Member) -> dict[str, object]:
    origin = member.candidate.origin
    return {
        "id": member.candidate.id,
        "rank": member.rank,
        "move": origin.move,
        "parents": list(origin.parents),
        "score": member.score,
        "n": member.n,
        "generation": member.generation,
        "step": member.step,
        "size": member.candidate.size,
        "roles": list(member.roles),
    }


def _data(value: object) -> Json:
    """Return values as JSON data; null stands for what is no finite number."""
    if is_dataclass(value) and not isinstance(value, type):
        return _data(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _data(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_data(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return sound(value)
    return value if isinstance(value, int) or value is None else text_of(value)
