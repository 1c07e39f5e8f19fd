"""The table of a comparison of compilers, and what stands behind each row: for a person and as JSON. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import dspy

from cuesmith.programs import report
from cuesmith.programs.spread import Spread
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.corpus import estimate_of
from cuesmith.teleprompters.runtime.ledger import Budget, Usage
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95


@dataclass(frozen=True)
class ContestEntry:
    """One compile and its held-out score.

    Attributes:
        compiler: The label.
        model: The model's label.
        seed: Of the compile.
        scores: Of the compiled program on the held-out examples; None if there is none.
        gain: Over the student on the same examples, in pairs; None likewise.
        compilation: The compile's own record; None if it failed.
        seconds: Of the compile, in this session.
        error: Why there is no result; "" if there is one.
        program: The compiled program; None if there is none.
    """

    compiler: str
    model: str
    seed: int
    scores: Scores | None = field(default=None, repr=False)
    gain: Gain | None = None
    compilation: Compilation | None = field(default=None, repr=False)
    seconds: float = 0.0
    error: str = ""
    program: dspy.Module | None = field(default=None, repr=False, compare=False)

    @cached_property
    def score(self) -> Estimate95 | None:
        """The held-out score with its interval; None if there is none."""
        return None if self.scores is None else estimate_of(self.scores)

    @property
    def used(self) -> Usage:
        """What the compile used."""
        return Usage() if self.compilation is None else self.compilation.spent.total


@dataclass(frozen=True)
class ContestRow:
    """A compiler on a model, all seeds together.

    Attributes:
        compiler: The label.
        model: The model's label.
        entries: One a seed.
        score: Held-out; with several seeds the interval is over compiles.
        gain: Over the student; with several seeds compiles and examples vary.
    """

    compiler: str
    model: str
    entries: tuple[ContestEntry, ...]
    score: Estimate95
    gain: Spread | None

    @property
    def done(self) -> tuple[ContestEntry, ...]:
        """Those with a held-out score."""
        return tuple(entry for entry in self.entries if entry.scores is not None)

    @property
    def errors(self) -> tuple[str, ...]:
        """Why compiles have no result, each reason once."""
        return tuple(dict.fromkeys(entry.error for entry in self.entries if entry.error))

    @property
    def usd(self) -> float | None:
        """Mean dollars of a compile; None if a price is not known."""
        known = [entry.used.usd for entry in self.done]
        return None if None in known or not known else sum(usd or 0.0 for usd in known) / len(known)

    def mean(self, what: Callable[[ContestEntry], float]) -> float:
        """Return the mean of a figure of the compiles that are done; NaN if none is."""
        return sum(map(what, self.done)) / len(self.done) if self.done else math.nan

    def to_json(self) -> dict[str, Json]:
        """Return the figures as JSON data, each compile among them."""
        gain = self.gain
        return {
            "compiler": self.compiler,
            "model": self.model,
            "compiles": len(self.done),
            "score": report.estimate_json(self.score),
            "gain": None if gain is None else {name: round(v, 6) for name, v in vars(gain).items()},
            "usd": self.usd,
            "errors": list(self.errors),
            "entries": [_entry_json(entry) for entry in self.entries],
        }


@dataclass(frozen=True)
class Contest:
    """What a comparison of compilers found.

    Attributes:
        rows: One a compiler and model, each model's best first.
        students: Model -> the student's held-out scores.
        held_out: Number of held-out examples.
        share: What each compile might use; without caps if there was no budget.
        used: All of it: compiles, and held-out scores.
        seconds: Of this session.
        unfinished: Compiles that were not begun, or not ended.
    """

    rows: tuple[ContestRow, ...]
    students: Mapping[str, Scores]
    held_out: int
    share: Budget
    used: Usage
    seconds: float
    unfinished: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[ContestEntry, ...]:
        """All compiles."""
        return tuple(entry for row in self.rows for entry in row.entries)

    @property
    def best(self) -> ContestEntry | None:
        """The compile with the highest held-out score; that score is optimistic for the best of many."""
        done = [entry for row in self.rows for entry in row.done]
        return max(done, key=lambda entry: entry.scores.score if entry.scores else -math.inf, default=None)

    def sentences(self) -> list[str]:
        """What a reader of the table has to know."""
        several = any(len(row.done) > 1 for row in self.rows)
        over = "compiles and examples vary (in brackets the worst and the best compile)" if several else "pair by pair"
        usd = "unknown" if self.used.usd is None else f"${self.used.usd:.4f}"
        said = [
            f"{self.held_out} held-out examples that no compiler saw; gains over the student, {over}; 95 % intervals. "
            "The best of several rows looks better than it is.",
            f"In all {self.used.calls:,} calls (price {usd}), held-out scores included; each student was scored once.",
        ]
        if self.used.cache_hits:
            said.append(
                f"{self.used.cache_hits:,} answers came from dspy's cache and count as no calls: compiles that come "
                "later pay less."
            )
        caps = [f"{name} = {cap:g}" for name, cap in vars(self.share).items() if cap is not None]
        said += [f"Each compile had the same share of the budget: {', '.join(caps)}."] if caps else []
        return said + ([f"Not done: {'; '.join(self.unfinished)}."] if self.unfinished else [])

    def to_markdown(self) -> str:
        """Return one table a model, and what has to be known of it."""
        lines = []
        for model, student in self.students.items():
            own = [row for row in self.rows if row.model == model]
            head = "| compiler | compiles | held-out % | gain in points | calls | USD | s | prompt, characters |"
            score = report.describe_estimate(estimate_of(student) or estimate95(()))
            lines += [
                f"Model: {report.markdown(model)}",
                "",
                head,
                "|---|---|---|---|---|---|---|---|",
                f"| (student) | | {score} | | | | | {student.candidate.size:,} |",
            ]
            lines += [_markdown_row(row) for row in own] + [""]
        return "\n".join([*lines, *map(report.markdown, self.sentences())]) + "\n"

    def to_json(self) -> dict[str, Json]:
        """Return everything but programs as JSON data."""
        students: dict[str, Json] = {
            model: report.estimate_json(estimate_of(scores) or estimate95(()))
            for model, scores in self.students.items()
        }
        return {
            "students": students,
            "rows": [row.to_json() for row in self.rows],
            "held_out": self.held_out,
            "share": {name: cap for name, cap in vars(self.share).items() if cap is not None},
            "calls": self.used.calls,
            "usd": self.used.usd,
            "seconds": round(self.seconds, 2),
            "unfinished": list(self.unfinished),
        }


def _entry_json(entry: ContestEntry) -> Json:
    made = entry.compilation
    return {
        "seed": entry.seed,
        "score": None if entry.score is None else report.estimate_json(entry.score),
        "gain": None if entry.gain is None else report.gain_json(entry.gain),
        "missing": None if entry.scores is None else entry.scores.missing,
        "spent": None if made is None else report.spent_json(made.spent),
        "characters": None if made is None else made.best.candidate.size,
        "stopped_by": None if made is None else made.stopped_by,
        "run_dir": None if made is None else made.run_dir,
        "seconds": round(entry.seconds, 2),
        "error": entry.error,
    }


def _markdown_row(row: ContestRow) -> str:
    name, why = report.markdown(row.compiler), "; ".join(map(report.markdown, row.errors))
    if row.gain is None:
        return f"| {name} | 0 | failed: {why} | | | | | |"
    failed = f" ({len(row.entries) - len(row.done)} failed: {why})" if why else ""
    gain = f"{100 * row.gain.mean:+.1f} [{100 * row.gain.low:+.1f}, {100 * row.gain.high:+.1f}]"
    if row.gain.compiles > 1:
        gain += f" ({100 * row.gain.least:+.1f} to {100 * row.gain.most:+.1f})"
    calls, seconds = row.mean(lambda e: e.used.calls), row.mean(lambda e: e.seconds)
    size = row.mean(lambda e: e.compilation.best.candidate.size if e.compilation else 0)
    usd = "unknown" if row.usd is None else f"{row.usd:.4f}"
    return (
        f"| {name} | {len(row.done)}{failed} | {report.describe_estimate(row.score)} | {gain} | {calls:,.0f} | {usd} "
        f"| {seconds:.0f} | {size:,.0f} |"
    )
