"""The course of a search: optimism, acceptance, duplicates, growth and copied text."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from e2e_support import ToyEngine, toy_compile, toy_lm

from cuesmith.programs.diagnosis.figures import Curve, Figure
from cuesmith.programs.diagnosis.run_record import KnownExample, RunRecord
from cuesmith.programs.diagnosis.trajectory import copied, section_of, trajectory
from cuesmith.signatures import render_steps
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin, Prompt
from cuesmith.teleprompters.runtime.compilation import StepRecord, Trial
from cuesmith.teleprompters.runtime.statistics import estimate95


def prompt(text: str, *demos: str, parent: str = "") -> Candidate:
    origin = Origin("edit", (parent,)) if parent else Origin("student")
    return Candidate({"p": Prompt(text, tuple(Demo.of({"q": demo}) for demo in demos))}, origin)


def record_of(
    tried: Sequence[tuple[Candidate, Sequence[float | None]]],
    *,
    best: Candidate | None = None,
    beams: Sequence[Sequence[Candidate]] = (),
    fresh: tuple[Sequence[float | None], Sequence[float | None]] = ((), ()),
    train: Sequence[str] = (),
) -> RunRecord:
    """A run made by hand; the first candidate is the student."""
    scores = {c.id: values for c, values in tried}
    steps = [
        StepRecord(k, beam[0].id, tuple(c.id for c in beam), None, estimate95(scores[beam[0].id]))
        for k, beam in enumerate(beams)
    ]
    n = len(tried[0][1])
    return RunRecord(
        directory=Path("run"),
        compiler="Hand",
        inputs={"p": ("q",)},
        outputs={"p": ("answer",)},
        baseline=tried[0][0],
        best=best or tried[-1][0],
        trials=tuple(Trial(c, tuple(v), estimate95(v).mean, estimate95(v).n) for c, v in tried),
        steps=tuple(steps),
        train=tuple(KnownExample(f"t{i}", {"q": text}, {}) for i, text in enumerate(train)),
        select=tuple(KnownExample(f"s{i}", {"q": str(i)}, {}) for i in range(n)),
        fresh_baseline=tuple(fresh[0]),
        fresh_best=tuple(fresh[1]),
        gain=None,
        stopped_by=None,
        notes=(),
        outcomes={},
    )


def test_all_of_a_real_run(tmp_path: Path) -> None:
    compilation = toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path).compilation
    found = trajectory(RunRecord.read(tmp_path))
    assert found.search == compilation.best.select and found.fresh == compilation.best.fresh
    assert compilation.best.select is not None and compilation.best.fresh is not None
    assert found.optimism is not None
    assert found.optimism.value == pytest.approx(compilation.best.select.mean - compilation.best.fresh.mean)
    assert [p.search for p in found.points] == [s.validation for s in compilation.steps]
    # The student at step 0 and the returned prompt at step 2 were run on fresh examples, the one between was not.
    assert [p.fresh is not None for p in found.points] == [True, False, True]
    assert (found.accepted.mean, found.accepted.n) == (1.0, 6)  # the toy keeps every child in its beam
    assert found.best_characters == compilation.best.candidate.size
    figures = section_of(found).figures
    assert all(f.meaning.endswith(".") and f.advice.endswith(".") for f in figures)


def test_optimism_is_found_where_there_is_none_and_where_there_is() -> None:
    """The best of 30 equal prompts looks better than it is; a single one does not."""
    rng = np.random.default_rng(0)
    found, clear, single = [], 0, 0
    for _ in range(60):
        children = [prompt(f"child {i}", parent="x") for i in range(30)]
        scores = rng.binomial(1, 0.5, (31, 50)).astype(float).tolist()
        fresh = rng.binomial(1, 0.5, (2, 400)).astype(float).tolist()
        tried = list(zip([prompt("student"), *children], scores, strict=True))
        best = max(tried[1:], key=lambda pair: sum(pair[1]))[0]
        optimism = trajectory(record_of(tried, best=best, fresh=(fresh[0], fresh[1]))).optimism
        alone = trajectory(record_of(tried[:2], fresh=(fresh[0], fresh[1]))).optimism
        assert optimism is not None and alone is not None
        found.append(optimism.value)
        clear += optimism.low > 0
        single += alone.low > 0 or alone.high < 0
    assert 0.10 < np.mean(found) < 0.19  # the maximum of 30 lies 2.04 standard errors (7.1 points) above the mean
    assert clear > 15 and single <= 7  # half an interval is about 14.7 points wide


def test_the_optimism_of_the_gain_does_not_depend_on_harder_examples() -> None:
    easy, hard = [1.0] * 18 + [0.0] * 2, [0.0] * 18 + [1.0] * 2
    student, best = prompt("a"), prompt("b", parent="a")
    found = trajectory(record_of([(student, easy), (best, easy)], fresh=(hard, hard)))
    assert found.optimism is not None and found.optimism.low > 0
    assert found.gain_optimism is not None and found.gain_optimism.value == 0.0


def test_without_fresh_scores_nothing_is_said_of_optimism() -> None:
    found = trajectory(record_of([(prompt("a"), [0.0, 1.0]), (prompt("b", parent="a"), [1.0, 1.0])]))
    assert found.fresh is None and found.optimism is None and found.gain_optimism is None
    assert "nobody knows" in section_of(found).summary
    assert not any("Optimism" in f.name or "Fresh" in f.name for f in section_of(found).figures)


def test_acceptance_counts_children_that_a_beam_kept() -> None:
    student = prompt("student")
    children = [prompt(f"child {i}", parent=student.id) for i in range(4)]
    record = record_of(
        [(c, [1.0, 0.0]) for c in (student, *children)],
        best=children[1],
        beams=[[student], [children[1], children[2]], [children[1], student]],
    )
    found = trajectory(record)
    assert (found.accepted.mean, found.accepted.n) == (0.5, 4)
    assert [p.candidate for p in found.points] == [student.id, children[1].id, children[1].id]


def test_a_search_that_tells_of_no_step_is_not_taken_for_one_that_kept_nothing() -> None:
    """As dspy's optimizers are recorded: step 0 holds the student, and the returned prompt is another."""
    student, child, other = prompt("student"), prompt("child", parent="s"), prompt("other", parent="s")
    tried = [(student, [0.0, 0.0]), (child, [1.0, 1.0]), (other, [1.0, 0.0])]
    found = trajectory(record_of(tried, best=child, beams=[[student]], fresh=([0.0], [1.0])))
    assert found.accepted.n == 0 and [p.candidate for p in found.points] == [student.id, child.id]
    assert found.points[-1].step == 1 and found.points[-1].fresh == estimate95([1.0])
    figure = next(f for f in section_of(found).figures if f.name.startswith("Accepted"))
    assert figure.value is None and "does not tell" in figure.advice
    none = trajectory(record_of(tried, best=student, beams=[[student]]))
    assert (none.accepted.mean, none.accepted.n) == (0.0, 2) and len(none.points) == 1
    stopped = trajectory(record_of(tried, best=child, beams=[[student], [other]]))  # before its step was recorded
    assert (stopped.accepted.mean, stopped.accepted.n) == (1.0, 2)


def test_one_prompt_behind_two_prompters_is_no_duplicate() -> None:
    student = prompt("student")
    behind = [Candidate(student.prompts, Origin("trained", (student.id,)), prompter=name * 16) for name in "ab"]
    assert trajectory(record_of([(c, [1.0]) for c in (student, *behind)])).duplicates.mean == 0.0


def test_duplicates_are_prompts_in_the_same_words() -> None:
    texts = ["Count the objects.", "count  the objects", "Count the objects twice.", "How many?", "HOW: many"]
    record = record_of([(prompt(text), [1.0]) for text in texts] + [(prompt(texts[0], "a demo"), [1.0])])
    found = trajectory(record)
    assert found.duplicates.mean == pytest.approx(4 / 6) and found.duplicates.n == 6


def test_growth_and_score_by_length() -> None:
    student, best = prompt("x" * 100), prompt("y" * 300, "z" * 200, parent="x")
    found = trajectory(record_of([(student, [0.0, 1.0]), (best, [1.0, 1.0])], fresh=([0.0, 0.0], [1.0, 0.0])))
    assert (found.baseline_characters, found.best_characters) == (100, 500)
    assert found.per_hundred_tokens == pytest.approx(50 / 125 * 100)  # 500 characters are about 125 tokens
    assert found.gain_per_hundred_tokens == pytest.approx(50 / 100 * 100)
    shrunk = trajectory(record_of([(best, [0.0]), (student, [1.0])]))
    assert math.isnan(shrunk.gain_per_hundred_tokens)


TRAIN = [
    "The quick brown fox jumps over the lazy dog near the river.",
    *(f"Say what {w} is in one word and nothing else at all please" for w in "abcdefghi"),
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Remember that THE quick, brown fox jumps over the lazy dog!", 9),
        ("the quick brown fox jumps over the lazy cat", 8),
        ("the quick brown fox jumps over a lazy dog", 6),
        ("Answer is in one word and nothing else at all please", 7),  # the task's own phrase is no copy
        ("", 0),
    ],
)
def test_copied_words(text: str, words: int) -> None:
    train = [KnownExample(str(i), {"q": one}, {}) for i, one in enumerate(TRAIN)]
    found = copied(prompt(text), prompt("student"), train)
    assert (found.words, found.leaks) == (words, words >= 8)
    assert len(found.text.split()) == words and (not words or found.text in " ".join(TRAIN).lower().replace(",", ""))


def test_what_the_student_said_and_demonstrations_are_no_copies() -> None:
    train = [KnownExample("t", {"q": TRAIN[0]}, {})]
    student = prompt(f"Read this: {TRAIN[0]}")
    assert not copied(student, student, train).leaks
    steps = render_steps("Find it.", ["Look."], f"q: {TRAIN[0]}\nStep 1: fox")
    assert TRAIN[0] in steps and not copied(prompt(steps), prompt("student"), train).leaks
    assert not copied(prompt("short", TRAIN[0]), prompt("student"), train).leaks


def test_the_longest_copy_as_by_trying_all() -> None:
    rng = random.Random(5)
    for _ in range(40):
        a, b = (" ".join(rng.choice("uvwxyz") for _ in range(rng.randrange(40))) for _ in range(2))
        words = a.split()
        runs = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        longest = max((len(run.split()) for run in runs if f" {run} " in f" {b} "), default=0)
        found = copied(prompt(a), prompt("student"), [KnownExample("t", {"q": b}, {})])
        assert found.words == longest


def test_leakage_is_told() -> None:
    train = ["one two three four five six seven eight nine", *(f"unlike {i}" for i in range(9))]
    record = record_of([(prompt("s"), [1.0]), (prompt(f"Do it. {train[0]}", parent="s"), [1.0])], train=train)
    section = section_of(trajectory(record))
    assert "9 words in a row" in section.summary
    figure = next(f for f in section.figures if "copied" in f.name)
    assert figure.value == 9 and figure.meaning.startswith("Leakage")


def test_figures_have_no_nan_and_curves_fit() -> None:
    figure = Figure("a", math.nan, math.inf, 1, 3, None, "b", "c")
    assert (figure.value, figure.low, figure.high) == (None, None, 1.0)
    with pytest.raises(ValueError, match="one length"):
        Curve("a", [1.0, 2.0], [1.0], "x", "y")
    assert dataclasses.asdict(figure)["n"] == 3
