"""The diagnosis of runs by other metrics than right or wrong, and of programs of several predictors."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dspy
import pytest
from e2e_support import ToyEngine, exact, toy_compile, toy_lm, toy_reply
from rich.console import Console

from cuesmith.programs.diagnose import Diagnosis, diagnose
from cuesmith.programs.diagnosis.run_record import KnownExample, passed
from cuesmith.programs.diagnosis.trajectory import copied
from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.outcomes import ParseFailure
from cuesmith.teleprompters.runtime.progress_bar import Progress


def stars(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """From 2 to 5."""
    return 5.0 if exact(example, prediction) else 2.0


def loss(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """From -1 to 0."""
    return 0.0 if exact(example, prediction) else -1.0


class Halved:
    """Judges all answers together."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return exact(example, prediction)

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        """Half of the share of right answers."""
        pairs = zip(examples, predictions, strict=True)
        return sum(p is not None and exact(e, p) for e, p in pairs) / len(examples) / 2


def diagnosed(folder: Path, metric: Callable[..., object]) -> tuple[Diagnosis, Compilation]:
    compiled = toy_compile(toy_lm(ToyEngine()), run_dir=folder, metric=metric)
    return diagnose(folder), compiled.compilation


@pytest.mark.parametrize("metric", [stars, loss])
def test_scores_of_another_scale_keep_their_unit_and_their_right_answers(
    tmp_path: Path, metric: Callable[..., object]
) -> None:
    found, compilation = diagnosed(tmp_path / "scaled", metric)
    plain, _ = diagnosed(tmp_path / "plain", exact)
    assert found.changes.improved == plain.changes.improved and found.changes.flips == plain.changes.flips
    best = compilation.best.fresh
    assert best is not None
    figures = {figure.name: figure for figure in found.sections[0].figures}
    assert figures["Fresh score (in the metric's unit)"].value == best.mean
    assert f"{best.mean:.4g} on fresh ones" in found.sections[0].summary
    assert any(f"counts as right from {found.threshold:g} on" in note for note in found.notes)
    assert passed(ParseFailure("?"), found.threshold) is False


def test_a_score_of_all_answers_together_is_the_one_that_the_compile_reported(tmp_path: Path) -> None:
    found, compilation = diagnosed(tmp_path, Halved())
    assert found.trajectory.search == compilation.best.select and found.trajectory.fresh == compilation.best.fresh
    assert found.trajectory.optimism is None and found.trajectory.gain_optimism is None
    assert found.trajectory.points[-1].fresh == compilation.best.fresh


def test_moves_are_worth_what_the_metric_makes_of_all_answers_together(tmp_path: Path) -> None:
    _, compilation = diagnosed(tmp_path, Halved())
    score = {trial.candidate.id: trial.mean for trial in compilation.candidates}
    made = [t.candidate for t in compilation.candidates if t.candidate.origin.move == "vary"]
    changes = [score[one.id] - score[one.origin.parents[0]] for one in made]
    (move,) = compilation.report.moves
    assert move.compared == len(changes) and move.change == pytest.approx(sum(changes) / len(changes))


def test_progress_shows_a_score_in_the_unit_of_the_metric() -> None:
    shown = []
    with Progress(Console(file=io.StringIO(), force_terminal=True, width=160)) as progress:
        for metric in (stars, exact):
            toy_compile(toy_lm(ToyEngine()), metric=metric, callbacks=[progress])
            shown.append(progress.status())
    assert "best 4.1 [" in shown[0] and "best 70.0 [" in shown[1]


@pytest.mark.parametrize("length", [0, 3, 8, 9, 13, 31, 3000])
def test_a_long_passage_that_was_copied_is_found_whole_and_at_once(length: int) -> None:
    words = [f"w{k}" for k in range(length)]
    passage, began = " ".join(words), time.monotonic()
    student, prompt = (Candidate({"p": Prompt(text)}) for text in ("Answer.", f"Answer. {passage} end"))
    train = [KnownExample(str(k), {"q": f"begin {passage if k == 3 else k} of it"}, {}) for k in range(20)]
    found = copied(prompt, student, train)
    assert (found.words, found.text, found.inputs) == (length, passage, int(length > 0))
    assert time.monotonic() - began < 20


class Reviewed(dspy.Module):  # type: ignore[misc]
    """Answers, and has something written about the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.say, self.review = dspy.Predict("question -> answer"), dspy.Predict("answer -> review")

    def forward(self, question: str) -> dspy.Prediction:
        said = self.say(question=question)
        return dspy.Prediction(answer=said.answer, review=self.review(answer=said.answer).review)


def reviewing(system: str, user: str, drawn: int | None) -> str:
    """Find everything fine."""
    return "[[ ## review ## ]]\nfine" if "`review`" in system else toy_reply(system, user, drawn)


def test_an_answer_is_what_has_a_label_whichever_predictor_wrote_it(tmp_path: Path) -> None:
    toy_compile(toy_lm(ToyEngine(reply=reviewing)), run_dir=tmp_path, student=Reviewed())
    found = diagnose(tmp_path).changes
    mended = [change for change in found.changes if change.fixed or change.broken]
    assert mended and all(change.flips.mean >= (change.fixed + change.broken) / change.gain.n for change in mended)


def test_shares_have_no_interval_beyond_0_and_100(tmp_path: Path) -> None:
    toy_compile(toy_lm(ToyEngine()), run_dir=tmp_path, n_val=8, width=2, steps=1)
    flips = diagnose(tmp_path).changes.flips
    assert flips.n == 2 and 0.0 <= flips.low <= flips.mean <= flips.high <= 1.0
