"""Scores of several objectives: kept in the outcomes, on the frontier, and in the record's front."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import ToyEngine, exact, toy_compile, toy_lm, words
from hypothesis import given
from hypothesis import strategies as st

from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt
from cuesmith.teleprompters.runtime.compilation import Standing, undominated
from cuesmith.teleprompters.runtime.metric import BadScore, read_judgement
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    Scored,
    Scores,
    outcome_from_json,
    outcome_to_json,
)
from cuesmith.teleprompters.runtime.score_program import score_program
from cuesmith.teleprompters.search.frontier import Front

# --- reading and keeping them ---


def test_what_a_metric_gives() -> None:
    judged = read_judgement(dspy.Prediction(score=1, objective_scores={"brevity": 0.25, "tone": True}))
    assert judged == (1.0, "", {"brevity": 0.25, "tone": 1.0})
    assert read_judgement({"score": 1, "objective_scores": None}).objectives == {}


@pytest.mark.parametrize("given", [[0.5], "brevity", {"brevity": math.nan}, {"brevity": None}, {"brevity": "0.5"}])
def test_others_are_no_scores(given: object) -> None:
    with pytest.raises(BadScore):
        read_judgement(dspy.Prediction(score=1, objective_scores=given))
    found = score_program(
        dspy.Predict("question -> answer"),
        words(1),
        lambda e, p: dspy.Prediction(score=1, objective_scores=given),
        lm=toy_lm(ToyEngine()),
    )
    assert isinstance(found.outcomes[0], MetricError)


def test_they_are_in_the_journal_and_old_ones_load() -> None:
    outcome = Scored(0.5, objectives={"brevity": 0.25})
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome
    old = {"kind": "Scored", "body": {"score": 0.5, "feedback": "", "trace": [], "cut": 0}}
    assert outcome_from_json(old) == Scored(0.5) and outcome_to_json(Scored(0.5)) == old


def scored(name: str, outcomes: Sequence[Outcome]) -> Scores:
    return Scores(Candidate({"self": Prompt(name)}), tuple(words(len(outcomes))), tuple(outcomes))


def test_means_count_a_reply_that_cannot_be_used_and_no_outage() -> None:
    one = scored(
        "a",
        [
            Scored(1.0, objectives={"x": 1.0, "y": 0.5}),
            Scored(0.0, objectives={"x": 0.5}),
            ParseFailure("mute"),
            ProviderFailure("down"),
            MetricError("raised"),
        ],
    )
    assert one.objectives == {"x": 0.5, "y": 0.25}
    assert scored("b", [ParseFailure("mute")]).objectives == {}
    below = scored(
        "c", [Scored(1.0, objectives={"x": -4.0}), Scored(1.0, objectives={"x": -2.0}), ParseFailure("mute")]
    )
    assert below.objectives == {"x": pytest.approx(-10 / 3)}


def test_who_is_best_on_an_objective_is_on_the_frontier() -> None:
    good = scored("good", [Scored(1.0, objectives={"x": 0.1})] * 2)
    kind = scored("kind", [Scored(0.0, objectives={"x": 0.9})] * 2)
    poor = scored("poor", [Scored(0.0, objectives={"x": 0.5})] * 2)
    front = Front.of([poor, kind, good])
    assert [one.candidate for one in front.members] == [good.candidate, kind.candidate]
    assert front.held == {good.candidate.id: {0, 1}, kind.candidate.id: {2}}
    assert front.rivals(frozenset()) == (good.candidate, kind.candidate)


# --- the front ---

NUMBERS = st.sampled_from([0.0, 0.5, 1.0])
STANDINGS = st.lists(
    st.builds(
        Standing,
        st.uuids().map(str),
        NUMBERS | st.just(math.nan),
        st.dictionaries(st.sampled_from("xy"), NUMBERS),
        st.integers(1, 3),
        st.sampled_from([None, 1.0, 2.0]) | st.sampled_from([1.0, 2.0]),
    ),
    max_size=8,
)


def dominates(one: Standing, other: Standing, counted: bool) -> bool:
    """By the definition, term by term."""

    def up(value: float) -> float:
        return -1.0 if math.isnan(value) else value

    pairs = [(up(one.score), up(other.score)), (other.size, one.size)]
    pairs += [(one.objectives.get(name, -1.0), other.objectives.get(name, -1.0)) for name in "xy"]
    if counted:
        pairs.append((other.tokens or 0.0, one.tokens or 0.0))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@given(STANDINGS)
def test_the_front_is_what_nobody_dominates(standings: list[Standing]) -> None:
    front = undominated(standings)
    counted = all(one.tokens is not None for one in standings)
    assert set(map(id, front)) <= set(map(id, standings)) and bool(front) == bool(standings)
    for one in standings:
        above = [other for other in front if dominates(other, one, counted)]
        assert not above if any(one is kept for kept in front) else above
    known = [one.score for one in front if not math.isnan(one.score)]
    assert known == sorted(known, reverse=True)


def brief(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """The answer is right, and short."""
    return dspy.Prediction(score=exact(example, prediction), objective_scores={"brevity": 1 / len(prediction.answer)})


def test_a_compile_has_its_front(tmp_path: Path) -> None:
    engine = ToyEngine()
    first: Any = toy_compile(toy_lm(engine), metric=brief, run_dir=tmp_path).compilation
    paid = engine.calls
    again: Any = toy_compile(toy_lm(engine), metric=brief, run_dir=tmp_path).compilation
    assert engine.calls == paid and again.front == first.front
    best, trials = first.front[0], {trial.candidate.id: trial for trial in first.candidates}
    assert best.candidate_id == first.best.candidate.id and best.score == max(trial.mean for trial in trials.values())
    assert best.size == first.best.candidate.size and best.tokens == 120.0
    base = next(one for one in first.front if one.candidate_id == first.baseline.candidate.id)  # the shortest of all
    assert base.objectives["brevity"] > best.objectives["brevity"] > 0  # "no" is a short answer
    assert all(trials[one.candidate_id].mean == one.score for one in first.front)


def test_a_front_takes_what_the_student_could_be_scored_on() -> None:
    def picky(example: dspy.Example, prediction: dspy.Prediction) -> float:
        if example.answer in ("v0", "v1", "v2"):
            raise ValueError("no score for this one")
        return float(exact(example, prediction))

    found: Any = toy_compile(toy_lm(ToyEngine()), metric=picky).compilation
    assert any(trial.n < len(trial.scores) for trial in found.candidates)
    first, ids = found.front[0], [one.candidate_id for one in found.front]
    assert found.best.candidate.id in ids and (first.score, first.size) == (
        found.candidates[0].mean,
        found.best.candidate.size,
    )
