"""Outcomes: what counts as what, JSON, and a fair order of candidates."""

import itertools
import json
import math

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    Scored,
    Scores,
    Step,
    mean,
    outcome_from_json,
    outcome_to_json,
    rank,
    value,
)

TEXTS = st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2)
TRACES = st.lists(st.builds(Step, st.text(max_size=5), TEXTS, TEXTS), max_size=2).map(tuple)
OUTCOMES = (
    st.builds(Scored, st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9), TRACES)
    | st.builds(ParseFailure, st.text(max_size=9), st.text(max_size=9), TRACES)
    | st.builds(ProviderFailure, st.text(max_size=9))
    | st.builds(MetricError, st.text(max_size=9), TRACES)
)
MISSING = ProviderFailure("down")


def _scores(name: str, *values: float | None) -> Scores:
    examples = tuple(dspy.Example(q=i).with_inputs("q") for i in range(len(values)))
    outcomes: tuple[Outcome, ...] = tuple(MISSING if v is None else Scored(v) for v in values)
    return Scores(Candidate({"p": Prompt(name)}), examples, outcomes)


@given(OUTCOMES)
@settings(max_examples=50, deadline=None)
def test_json_round_trip(outcome: Outcome) -> None:
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome


def test_a_broken_reply_with_lone_surrogates_can_be_stored() -> None:
    outcome = ParseFailure("bad", "\ud83d half an emoji", (Step("p", {"q": "\udc00"}, {}),))
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome


def test_bad_json_is_refused() -> None:
    with pytest.raises(KeyError):
        outcome_from_json({"kind": "Other", "body": {}})
    with pytest.raises(ValidationError):
        outcome_from_json({"kind": "Scored", "body": {"score": "high"}})


def test_only_the_models_fault_is_a_zero() -> None:
    outcomes = (Scored(0.5), ParseFailure("x"), ProviderFailure("x"), MetricError("x"))
    assert [value(o) for o in outcomes] == [0.5, 0.0, None, None]
    scores = Scores(Candidate({}), tuple(dspy.Example(q=i) for i in range(4)), outcomes)
    assert scores.values == (0.5, 0.0, None, None) and scores.n == 2 and scores.missing == 2 and scores.mean == 0.25
    assert [o for _, o in scores.failures()] == [Scored(0.5), ParseFailure("x")]
    assert [e.q for e, _ in scores.failures(0.5)] == [1]
    assert math.isnan(mean([])) and math.isnan(mean([None])) and math.isnan(_scores("a", None).mean)


def test_rank_is_not_moved_by_which_examples_are_missing() -> None:
    lucky, better = _scores("lucky", 1.0, 1.0, None, None), _scores("better", 1.0, 1.0, 0.0, 1.0)
    worse, nothing = _scores("w", 0.0, 1.0, 0.0, 1.0), _scores("n", None, None, None, None)
    # The two lack nothing of each other's: the longer prompt of equal ones comes second.
    assert rank([nothing, worse, better, lucky]) == [lucky, better, worse, nothing]
    assert rank([]) == [] and rank([nothing]) == [nothing]


def test_rank_under_an_outage_keeps_the_order_of_all_answers() -> None:
    random, right = np.random.default_rng(0), 0
    for _ in range(50):
        ease, level = random.uniform(size=40), random.permutation(30) / 60
        drawn = (random.uniform(size=(30, 40)) < 0.5 * ease + level[:, None]).astype(float)
        lost = random.uniform(size=drawn.shape) < 0.1  # one or two examples have a score of all
        rows = [
            [None if out else float(v) for v, out in zip(*row, strict=True)] for row in zip(drawn, lost, strict=True)
        ]
        first = rank([_scores(f"{i:2}", *row) for i, row in enumerate(rows)])[0]
        means = drawn.mean(axis=1)
        right += bool(means[int(first.candidate.prompts["p"].instructions)] >= np.sort(means)[-3])
    assert right >= 40, "one of the three that are best with all answers"


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e90])
def test_rank_is_the_same_in_any_unit(unit: float) -> None:
    rows = ((3.0, None, 1.0), (None, 2.0, 0.0), (2.0, 3.0, None))
    names = ("a", "bb", "ccc")
    ranked = rank([_scores(name, *(v and v * unit for v in row)) for name, row in zip(names, rows, strict=True)])
    assert [one.candidate.prompts["p"].instructions for one in ranked] == ["a", "ccc", "bb"]


def test_rank_without_a_common_example_uses_each_ones_own() -> None:
    a, b = _scores("a", 0.2, None), _scores("b", None, 0.7)
    assert rank([a, b]) == [b, a]


def test_rank_ties_shorter_then_earlier() -> None:
    long, short, same = _scores("looong", 1.0), _scores("ab", 1.0), _scores("cd", 1.0)
    assert rank([long, same, short]) == [same, short, long]
    assert rank([long, short, same]) == [short, same, long]


def test_rank_refuses_different_lengths() -> None:
    with pytest.raises(ValueError, match="same examples"):
        rank([_scores("a", 1.0), _scores("b", 1.0, 0.0)])


@given(
    st.integers(0, 6).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]), min_size=n, max_size=n), max_size=5)
    )
)
@settings(max_examples=50, deadline=None)
def test_rank_against_its_definition(rows: list[list[float | None]]) -> None:
    scores = [_scores("x" * (i % 3), *row) for i, row in enumerate(rows)]
    ranked = rank(scores)
    assert sorted(map(id, ranked)) == sorted(map(id, scores))
    assert [s.n == 0 for s in ranked] == sorted(s.n == 0 for s in ranked)
    known = [s.values for s in ranked if s.n]
    places = [(k, i) for k, row in enumerate(known) for i, v in enumerate(row) if v is not None]
    design = np.array([[*np.eye(len(known))[k], *np.eye(len(known[0]))[i]] for k, i in places])
    columns = len({i for _, i in places})
    if known and np.linalg.matrix_rank(design) == len(known) + columns - 1:
        level = np.linalg.lstsq(design, np.array([known[k][i] for k, i in places]))[0][: len(known)]
        assert all(a >= b - 1e-6 for a, b in itertools.pairwise(level)), "all of them hang together"
