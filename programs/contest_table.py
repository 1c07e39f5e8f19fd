"""The table of a comparison of compilers, and what stands behind each row: for a person and as JSON. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import dspy

from cuesmith.programs import report
from cuesmith.programs.spread import Spread
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.corpus_statistics import estimate_of
from cuesmith.teleprompters.runtime.ledger import Budget, Usage
from cuesmith.teleprompters.runtime.outcomes import Scores, worst_last
from cuesmith.teleprompters.runtime.run_report.honest import Scoring
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
        used: What the compile used, as far as a failure left it known; None if it was not begun.
        seconds: Of the compile, in all its sessions; None likewise.
        error: Why there is no result; "" if there is one.
        program: The compiled program; None if there is none.
    """

    compiler: str
    model: str
    seed: int
    scores: Scores | None = field(default=None, repr=False)
    gain: Gain | None = None
    compilation: Compilation | None = field(default=None, repr=False)
    used: Usage | None = None
    seconds: float | None = None
    error: str = ""
    program: dspy.Module | None = field(default=None, repr=False, compare=False)

    @cached_property
    def score(self) -> Estimate95 | None:
        """The held-out score with its interval; None if there is none."""
        return None if self.scores is None else estimate_of(self.scores)

    @property
    def is_partial(self) -> bool:
        """Whether it is known on too few held-out examples to stand above others: less than nine in ten. Ours."""
        return self.scores is not None and self.scores.n < 0.9 * len(self.scores.values)

    @property
    def characters(self) -> int | None:
        """Length of the compiled prompt; None if there is none."""
        return None if self.compilation is None else self.compilation.best.candidate.size

    def to_json(self) -> dict[str, Json]:
        """Return the figures as JSON data; null stands for what is not known."""
        made = self.compilation
        return {
            "seed": self.seed,
            "score": None if self.score is None else report.estimate_json(self.score),
            "gain": None if self.gain is None else report.gain_json(self.gain),
            "missing": None if self.scores is None else self.scores.missing,
            "spent": None if made is None else report.spent_json(made.spent),
            "calls": None if self.used is None else self.used.calls,
            "usd": None if self.used is None else self.used.usd,
            "characters": self.characters,
            "stopped_by": None if made is None else made.stopped_by,
            "run_dir": None if made is None else made.run_dir,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "error": self.error,
        }


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
    def rank(self) -> tuple[float, ...]:
        """What rows of a model are sorted by: those that are known in part come last, the highest score first."""
        return all(entry.is_partial for entry in self.done), *worst_last(self.score.mean)

    @property
    def errors(self) -> tuple[str, ...]:
        """Why compiles have no result, each reason once."""
        return tuple(dict.fromkeys(entry.error for entry in self.entries if entry.error))

    @property
    def p_value(self) -> float | None:
        """Of the gain, two-sided; None unless there is one compile: with several the interval alone tells."""
        return self.done[0].gain.p_value if len(self.done) == 1 and self.done[0].gain is not None else None

    @cached_property
    def calls(self) -> float | None:
        """Mean calls of a compile that is done; None if none is."""
        return _mean([None if entry.used is None else entry.used.calls for entry in self.done])

    @cached_property
    def usd(self) -> float | None:
        """Mean dollars likewise; None also if a price is not known."""
        return _mean([None if entry.used is None else entry.used.usd for entry in self.done])

    @cached_property
    def seconds(self) -> float | None:
        """Mean seconds likewise, in all their sessions."""
        return _mean([entry.seconds for entry in self.done])

    @cached_property
    def characters(self) -> float | None:
        """Mean length of the compiled prompts."""
        return _mean([entry.characters for entry in self.done])

    def to_json(self) -> dict[str, Json]:
        """Return the figures as JSON data, each compile among them; null stands for what is not known."""
        gain = None if self.gain is None else vars(self.gain)
        return {
            "compiler": self.compiler,
            "model": self.model,
            "compiles": len(self.done),
            "score": report.estimate_json(self.score),
            "gain": None if gain is None else {name: report.number_json(value) for name, value in gain.items()},
            "calls": report.number_json(self.calls),
            "usd": report.number_json(self.usd),
            "seconds": report.number_json(self.seconds, 2),
            "characters": report.number_json(self.characters),
            "errors": list(self.errors),
            "entries": [entry.to_json() for entry in self.entries],
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

    @cached_property
    def student_scores(self) -> Mapping[str, Estimate95]:
        """Model -> the student's held-out score with its interval; of no example where it has none."""
        return {model: estimate_of(scores) or estimate95(()) for model, scores in self.students.items()}

    @property
    def entries(self) -> tuple[ContestEntry, ...]:
        """All compiles."""
        return tuple(entry for row in self.rows for entry in row.entries)

    @property
    def best(self) -> ContestEntry | None:
        """The compile with the highest held-out score, of those that are scored on the examples; that score is
        optimistic for the best of many."""
        done = [(entry, entry.scores.score) for row in self.rows for entry in row.done if entry.scores is not None]
        return max(done, key=lambda one: (not one[0].is_partial, one[1]), default=(None, 0.0))[0]

    def sentences(self) -> list[str]:
        """What a reader of the table has to know."""
        several = any(len(row.done) > 1 for row in self.rows)
        over = "compiles and examples vary (in brackets the worst and the best compile)" if several else "pair by pair"
        usd = "unknown" if self.used.usd is None else f"${self.used.usd:.4f}"
        said = [
            f"{self.held_out} held-out examples that no compiler saw; gains over the student, {over}. "
            "The best of several rows looks better than it is.",
            *self._methods(),
            *self._partly(),
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

    def _partly(self) -> list[str]:
        """Return who has a score on some of the held-out examples alone."""
        held = [("the student", scores) for scores in self.students.values()]
        held += [(entry.compiler, entry.scores) for entry in self.entries if entry.scores is not None]
        few = [f"{name} on {scores.n}" for name, scores in held if scores.missing]
        return [f"Not all held-out examples have a score: {', '.join(few)} of {self.held_out}."] if few else []

    def _methods(self) -> list[str]:
        """Return how intervals and p-values were made; nothing where there are none."""
        interval, test = "Newcombe's for pairs of 0 and 1, else Student's t of the differences", "a sign-flip test"
        several = "Student's t, of compiles and examples that both vary"
        if any(each.together is not None for each in self._scored):
            interval, test = "a bootstrap over examples", "a test that swaps answers"
            several = "Student's t of the compiles' gains"
        elif all(value in (0.0, 1.0, None) for each in self._scored for value in each.values):
            interval, test = "Newcombe's for pairs", "McNemar's exact test"
        told = []
        if any(row.p_value is not None for row in self.rows):
            told.append(f"95 % intervals of gains: {interval}; p: {test}, two-sided, of each row by itself.")
        if any(len(row.done) > 1 for row in self.rows):
            told.append(f"95 % intervals over several compiles: {several}; there is no p.")
        return told

    @cached_property
    def _scored(self) -> list[Scores]:
        return [*self.students.values(), *(entry.scores for entry in self.entries if entry.scores is not None)]

    @cached_property
    def _factor(self) -> float:
        """What scores are multiplied by: those from 0 to 1 are told in percent, others in the metric's own unit."""
        return Scoring.of([v for each in self._scored for v in each.values if v is not None]).factor

    def to_markdown(self) -> str:
        """Return one table a model, and what has to be known of it."""
        lines = []
        for model, student in self.students.items():
            own = [row for row in self.rows if row.model == model]
            unit, gained = ("%", "in points") if self._factor == 100.0 else ("score", "in score")
            head = (
                f"| compiler | compiles | held-out {unit} | gain {gained} | p | calls | USD | s | prompt, characters |"
            )
            score = report.describe_estimate(self.student_scores[model], self._factor)
            lines += [
                f"Model: {report.markdown(model)}",
                "",
                head,
                "|---|---|---|---|---|---|---|---|---|",
                f"| (student) | | {score} | | | | | | {student.candidate.size:,} |",
            ]
            lines += [_markdown_row(row, self._factor) for row in own] + [""]
        return "\n".join([*lines, *map(report.markdown, self.sentences())]) + "\n"

    def to_json(self) -> dict[str, Json]:
        """Return everything but programs as JSON data; null stands for what is not known."""
        return {
            "students": {model: report.estimate_json(score) for model, score in self.student_scores.items()},
            "rows": [row.to_json() for row in self.rows],
            "held_out": self.held_out,
            "share": {name: cap for name, cap in vars(self.share).items() if cap is not None},
            "calls": self.used.calls,
            "usd": self.used.usd,
            "seconds": round(self.seconds, 2),
            "unfinished": list(self.unfinished),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _markdown_row(row: ContestRow, factor: float) -> str:
    name, why = report.markdown(row.compiler), "; ".join(map(report.markdown, row.errors))
    if row.gain is None:
        return f"| {name} | 0 | failed: {why} | | | | | | |"
    failed = f" ({len(row.entries) - len(row.done)} failed: {why})" if why else ""
    held = report.describe_estimate(row.score, factor)
    cells = (held, _gain(row.gain, factor), _p(row.p_value), _figure(row.calls, ",.0f"), _figure(row.usd, ".4f"),
             _figure(row.seconds, ".0f"), _figure(row.characters, ",.0f"))  # fmt: skip
    return f"| {name} | {len(row.done)}{failed} | {' | '.join(cells)} |"


def _gain(gain: Spread, factor: float) -> str:
    """Return a gain in points, or in the metric's own unit, with its interval where there is one, and the worst and
    best of several compiles."""
    if math.isnan(gain.mean):
        return "unknown"
    mean, low, high, least, most = (
        f"{factor * v:+.1f}" for v in (gain.mean, gain.low, gain.high, gain.least, gain.most)
    )
    interval = "" if math.isnan(gain.low) else f" [{low}, {high}]"
    return f"{mean}{interval}" + (f" ({least} to {most})" if gain.compiles > 1 else "")


def _p(p_value: float | None) -> str:
    return "" if p_value is None else "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _figure(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
