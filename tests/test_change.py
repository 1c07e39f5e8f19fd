"""What refinements change in words and in answers; noise; and paraphrases, with scorers whose truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import dspy
import numpy as np
import pytest
from e2e_support import ToyEngine, number, toy_compile, toy_lm
from scipy import stats

from cuesmith.programs.diagnosis.change import (
    Row,
    Score,
    best_paraphrase,
    changes,
    flips,
    neighbourhood_of,
    noise_flips,
    section_of,
    text_of_prompts,
)
from cuesmith.programs.diagnosis.embedders import TfIdf
from cuesmith.programs.diagnosis.run_record import RunRecord
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, Prompt
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, ProviderFailure, Scored, Step


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    directory = tmp_path_factory.mktemp("run")
    toy_compile(toy_lm(ToyEngine()), run_dir=directory, steps=3, width=4)
    return RunRecord.read(directory)


def test_each_refinement_is_counted_by_hand(record: RunRecord) -> None:
    found = changes(record)
    assert len(found.changes) == len(list(record.pairs())) == 12 and found.unknown == 0
    for one in found.changes:
        old, new = (record.scores_of(record.candidates[name]) for name in (one.parent, one.child))
        pairs = list(zip(old, new, strict=True))
        assert one.fixed == pairs.count((0.0, 1.0)) and one.broken == pairs.count((1.0, 0.0))
        assert one.gain.difference == pytest.approx((one.fixed - one.broken) / 20) and one.gain.n == 20
        expected = stats.binomtest(one.fixed, one.fixed + one.broken).pvalue if one.fixed + one.broken else 1.0
        assert one.gain.p_value == pytest.approx(expected)
        # The toy answers the word or "no": an answer changes exactly where its score does.
        assert one.flips.mean == pytest.approx((one.fixed + one.broken) / 20)
        texts = [text_of_prompts(c) for c in record.candidates.values()]
        places = [list(record.candidates).index(name) for name in (one.parent, one.child)]
        assert one.distance == pytest.approx(1 - TfIdf().matrix(texts)[places[0], places[1]], abs=1e-6)


def test_what_is_said_of_all_refinements(record: RunRecord) -> None:
    found = changes(record)
    gains = [one.gain.difference for one in found.changes]
    expected = stats.spearmanr([one.distance for one in found.changes], np.abs(gains))
    assert found.association.rho == pytest.approx(expected.statistic)
    assert found.association.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert found.improved.mean == pytest.approx(np.mean([gain > 0 for gain in gains]))
    interval = stats.binomtest(sum(gain > 0 for gain in gains), 12).proportion_ci(method="wilson")
    assert (found.improved.low, found.improved.high) == pytest.approx((interval.low, interval.high))
    assert found.later.n == sum(one.parent != record.baseline.id for one in found.changes) < 12
    section = section_of(found)
    assert all(f.meaning.endswith(".") and f.advice.endswith(".") for f in section.figures)
    assert len(section.curves[0].x) == 12


def test_a_similarity_that_is_given_is_used(record: RunRecord) -> None:
    class Alike:
        def matrix(self, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
            return np.full((len(texts), len(texts)), 0.25)

    assert {one.distance for one in changes(record, Alike()).changes} == {0.75}


def test_a_run_without_refinements(record: RunRecord) -> None:
    alone = dataclasses.replace(record, trials=tuple(t for t in record.trials if t.candidate == record.baseline))
    found = changes(alone)
    assert found.changes == () and found.improved.n == 0
    assert "no refined prompt" in section_of(found).summary


def test_examples_without_a_score_or_an_answer_are_left_out(record: RunRecord) -> None:
    parent, child = next(record.pairs())
    rows = dict(record.outcomes[child.id])
    lost, unparsed = record.select[0].id, record.select[1].id
    rows[lost], rows[unparsed] = ProviderFailure("down"), ParseFailure("?", "raw")
    torn = dataclasses.replace(record, outcomes={**record.outcomes, child.id: rows})
    one = next(c for c in changes(torn).changes if (c.parent, c.child) == (parent.id, child.id))
    assert one.gain.n == one.flips.n == 19
    apart = dataclasses.replace(record, outcomes={**record.outcomes, child.id: {}})
    by_score = next(c for c in changes(apart).changes if (c.parent, c.child) == (parent.id, child.id))
    assert by_score.flips.n == 0 and by_score.gain.n == 20 and changes(apart).unknown == changes(record).unknown
    trials = [t if t.candidate != child else dataclasses.replace(t, scores=(None,) * 20) for t in record.trials]
    nothing = dataclasses.replace(apart, trials=tuple(trials))
    assert changes(nothing).unknown >= 1


def said(text: str, score: float = 1.0) -> Outcome:
    return Scored(score, "", (Step("p", {}, {"reasoning": f"because {text}", "answer": text}),))


def test_flips_look_at_the_parsed_answer_alone() -> None:
    before = [said("yes"), said("Yes ", 0.0), said("no"), ParseFailure("?"), ParseFailure("?"), None]
    after = [said("YES"), said("yes"), said("yes"), ParseFailure("!"), said("yes"), said("yes")]
    assert (flips(before, after).mean, flips(before, after).n) == (0.4, 5)


# --- scoring anew --------------------------------------------------------------------------------------------


def scorer(skill: Callable[[str], float], noise: float = 0.0) -> Score:
    """A target that is right on a share of the examples that depends on the prompt, and rolls dice again by noise."""

    def score(candidate: Candidate, examples: Sequence[dspy.Example], draw: int) -> list[Outcome]:
        text = candidate.prompts["p"].instructions
        outcomes = []
        for example in examples:
            difficulty = number("difficulty", example.q) % 1000 / 1000
            own = number("own", example.q, text) % 1000 / 1000  # what the wording alone does
            level = 0.7 * difficulty + 0.3 * own
            if noise and number("again", example.q, text, draw) % 1000 / 1000 < noise:
                level = number("dice", example.q, text, draw) % 1000 / 1000
            right = level < skill(text)
            outcomes.append(said("right" if right else "wrong", float(right)))
        return outcomes

    return score


def candidate(text: str) -> Candidate:
    return Candidate({"p": Prompt(text)}, Origin("edit"))


EXAMPLES = [dspy.Example(q=f"question {i}").with_inputs("q") for i in range(160)]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_flips_find_the_noise(noise: float) -> None:
    score, many = scorer(lambda text: 0.5, noise), [dspy.Example(q=str(i)).with_inputs("q") for i in range(3000)]
    found = noise_flips(score, candidate("p"), many)
    expected = np.mean(
        [a != b for a, b in zip(score(candidate("p"), many, 0), score(candidate("p"), many, 1), strict=True)]
    )
    assert found.flips.mean == pytest.approx(expected) and found.flips.n == 3000
    # An answer flips when either draw rolled dice and they fall on the other side: at most noise * (2 - noise) / 2.
    assert (found.flips.mean == 0) == (noise == 0) and found.flips.mean <= noise * (2 - noise) / 2 + 0.02
    assert (found.gain.low <= 0 <= found.gain.high) and section_of(found).figures


def paraphrases(text: str, count: int) -> list[str]:
    return [f"{text} in other words {i}" for i in range(count)]


def hood(skill: Callable[[str], float], seed: int = 0, n: int = 100, r: int = 8, tag: str = ""):  # type: ignore[no-untyped-def]
    score, new = scorer(skill), candidate(f"new{tag}")
    around = [[candidate(text) for text in paraphrases(f"{word}{tag}", r)] for word in ("old", "new")]
    first, second = ([score(c, EXAMPLES[:n], 0) for c in side] for side in around)
    own = score(new, EXAMPLES[:n], 0)
    best = around[1][best_paraphrase(first, own, second)]
    return neighbourhood_of(first, own, second, (score(new, EXAMPLES[n:], 0), score(best, EXAMPLES[n:], 0)), seed=seed)


def test_right_idea_wrong_wording() -> None:
    """Every wording of the new idea but its own is better: valid, with a shortfall, and last in rank."""
    found = hood(lambda text: 0.7 if "new" in text and "other" in text else 0.4)
    # The level is below t in [0.3, 0.7] with probability (t - 0.15) / 0.7.
    assert found.validity.low > 0.15 and found.validity.mean == pytest.approx(0.3 / 0.7, abs=0.1)
    assert found.shortfall.low > 0 and found.rank == 9 and found.n == 100 and found.shortfall.n == 60
    assert section_of(found).summary.startswith("Right idea, wrong wording")


def test_a_wording_that_alone_is_good_is_not_a_good_idea() -> None:
    found = hood(lambda text: 0.8 if text == "new" else 0.4)
    assert found.validity.low < 0 < found.validity.high and found.rank == 1 and found.shortfall.difference < 0
    assert section_of(found).summary.startswith("No effect")
    worse = hood(lambda text: 0.3 if "new" in text else 0.7)
    assert "worse" in section_of(worse).summary
    better = hood(lambda text: 0.8 if "new" in text else 0.4)
    assert "improvement" in section_of(better).summary


@pytest.mark.slow
def test_the_interval_of_the_validity_covers_no_effect() -> None:
    missed = 0
    for k in range(60):
        found = hood(lambda text: 0.5, tag=str(k), r=6)
        missed += not found.validity.low <= 0 <= found.validity.high
    assert missed <= 6  # 3 are expected, and the bootstrap errs on the wide side


def test_the_best_paraphrase_is_chosen_and_judged_on_different_examples() -> None:
    """With equal wordings the best of 8 looks better on the examples it was chosen by, and is not on fresh ones."""
    chosen, fresh = [], []
    for k in range(40):
        found = hood(lambda text: 0.5, tag=f"equal{k}", n=80)
        chosen.append(max(found.child) - found.own)
        fresh.append(found.shortfall.difference)
    assert np.mean(chosen) > 0.02
    assert abs(np.mean(fresh)) < 3 * np.std(fresh) / 40**0.5 + 1e-9


def test_the_bootstrap_over_examples_as_scipy() -> None:
    """With one paraphrase each only examples are drawn: scipy's paired bootstrap of the mean difference."""
    found = hood(lambda text: 0.6 if "new" in text else 0.45, r=1)
    rows = [
        scorer(lambda t: 0.6 if "new" in t else 0.45)(candidate(f"{w} in other words 0"), EXAMPLES[:100], 0)
        for w in ("old", "new")
    ]
    values = [[o.score for o in row if isinstance(o, Scored)] for row in rows]
    expected = stats.bootstrap(
        values,
        lambda a, b, axis: np.mean(b, axis) - np.mean(a, axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.validity.mean == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert (found.validity.low, found.validity.high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_what_cannot_be_tested_is_refused() -> None:
    score, texts = scorer(lambda text: 0.6 if "new" in text else 0.4), [paraphrases(word, 4) for word in ("old", "new")]
    first, second = ([score(candidate(text), EXAMPLES[:100], 0) for text in side] for side in texts)
    own = score(candidate("new"), EXAMPLES[:100], 0)
    fresh = (own, second[0])
    torn = [[None, *row[1:]] for row in first]  # an example that was not run counts for nobody
    assert neighbourhood_of(torn, own, second, ([None, *own[1:]], second[0]), seed=3).n == 99
    down = [[ProviderFailure("down") for _ in own]]
    none, cases = "at least one paraphrase", list[tuple[Sequence[Row], Sequence[Row], str]]()
    cases += [(first, [], none), ([], second, none), ([[None] * 100], second, "no example")]
    for before, after, problem in (*cases, (down, second, "no example")):
        with pytest.raises(ValueError, match=problem):
            best_paraphrase(before, own, after)
        with pytest.raises(ValueError, match=problem):
            neighbourhood_of(before, own, after, fresh)
