"""Metrics that judge all answers together: exact values, what they select and report, and what is refused."""

from __future__ import annotations

import asyncio
import enum
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from e2e_support import ToyEngine, result_of, toy_compile, toy_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.corpus import F1, MCC, MacroF1
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.evaluation import compare, estimate, evaluate
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.peers.bootstrap import Bootstrap
from cuesmith.teleprompters.runtime import session
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin, Prompt
from cuesmith.teleprompters.runtime.compilation import Compilation, Plan
from cuesmith.teleprompters.runtime.corpus_statistics import Corpus, estimate_of, gain_of
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.outcomes import (
    MetricError,
    Outcome,
    ParseFailure,
    ProviderFailure,
    Scored,
    Scores,
    outcome_from_json,
    outcome_to_json,
    rank,
)
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.score_program import score_program
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.teleprompters.runtime.statistics import Gain, bootstrap95, bootstrap_gain, paired_gain, swap_p_value
from cuesmith.teleprompters.search.frontier import Front
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import chat

# --- the values ---


def asked(right: Sequence[object]) -> list[dspy.Example]:
    return [dspy.Example(question=str(i), label=v).with_inputs("question") for i, v in enumerate(right)]


def answered(given: Sequence[object]) -> list[dspy.Prediction | None]:
    return [None if v is None else dspy.Prediction(label=v) for v in given]


def value(metric: F1 | MacroF1 | MCC, right: Sequence[object], given: Sequence[object]) -> float:
    return metric.corpus(asked(right), answered(given))


def test_values_worked_by_hand() -> None:
    right, given = "yyyynnnnnn", "yyynynnnnn"  # 3 hits, 1 missed, 1 too many, 5 rightly left
    assert value(F1("label", "y"), right, given) == 0.75
    assert value(F1("label", positive="n"), right, given) == pytest.approx(10 / 12)
    assert value(MacroF1("label"), right, given) == pytest.approx((0.75 + 10 / 12) / 2)
    assert value(MCC("label"), right, given) == pytest.approx((3 * 5 - 1 * 1) / math.sqrt(4 * 4 * 6 * 6))
    several = value(MCC("label"), "aabbcc", "aabbba")  # 6*4 - (2*3 + 2*3 + 0), over (36 - 12) and (36 - 18)
    assert several == pytest.approx(12 / math.sqrt(24 * 18))
    assert value(MacroF1("label"), "aabbcc", "aabbba") == pytest.approx((4 / 5 + 4 / 5 + 0) / 3)


def test_what_was_not_answered_is_a_miss_and_no_class() -> None:
    assert value(F1("label", "y"), "yyn", [None, "y", None]) == pytest.approx(2 / 3)
    assert value(MacroF1("label"), "yyn", [None, "y", "n"]) == pytest.approx((2 / 3 + 1) / 2)
    assert value(MacroF1("label"), "yyn", ["maybe", "y", "n"]) == pytest.approx((2 / 3 + 1) / 2)
    assert value(MCC("label"), "yn", [None, None]) == 0.0 == value(MCC("label"), "yy", "yn")
    assert value(F1("label", "y"), "nn", "nn") == 0.0


LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)


@given(LABELS)
def test_macro_f1_is_the_mean_of_harmonic_means(pairs: list[tuple[str, str]]) -> None:
    right, given = zip(*pairs, strict=True)

    def share(of: Sequence[str], among: Sequence[str], each: str) -> float:
        places = [i for i, v in enumerate(among) if v == each]
        return sum(of[i] == each for i in places) / len(places) if places else 0.0

    expected = []
    for each in set(right):
        precision, recall = share(right, given, each), share(given, right, each)
        expected.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        assert value(F1("label", each), right, given) == pytest.approx(expected[-1])
    assert value(MacroF1("label"), right, given) == pytest.approx(np.mean(expected))


@given(LABELS)
def test_mcc_is_the_correlation_of_indicators(pairs: list[tuple[str, str]]) -> None:
    right, given = (np.array([[v == each for each in "abc"] for v in side], float) for side in zip(*pairs, strict=True))
    right, given = right - right.mean(axis=0), given - given.mean(axis=0)  # Gorodkin's definition, by covariances
    spread = math.sqrt((right**2).sum() * (given**2).sum())
    found = value(MCC("label"), *zip(*pairs, strict=True))
    assert found == pytest.approx((right * given).sum() / spread if spread else 0.0)
    assert value(MCC("label"), *zip(*((a, a) for a, _ in pairs), strict=True)) == float(len({a for a, _ in pairs}) > 1)


@pytest.mark.parametrize("field", ["", None, 3])
def test_a_field_has_a_name(field: object) -> None:
    with pytest.raises(TypeError, match="takes the name of a field"):
        MacroF1(field)  # type: ignore[arg-type]


# --- outcomes ---


def scored(metric: Any, right: Sequence[object], given: Sequence[Outcome | str], name: str = "a") -> Scores:
    outcomes = [o if not isinstance(o, str) else Scored(float(o == v), answer={"label": o})
                for o, v in zip(given, right, strict=True)]  # fmt: skip
    together = Corpus(metric.corpus, dspy.Predict("question -> label"))
    return Scores(Candidate({"self": Prompt(name)}), tuple(asked(right)), tuple(outcomes), together)


class Heard:
    """A metric that remembers what it was asked to judge."""

    def __init__(self) -> None:
        self.heard: list[tuple[list[str], list[object]]] = []

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return bool(example.label == prediction.label)

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        self.heard.append(([e.label for e in examples], [p and p.label for p in predictions]))
        return float(len(examples))


def test_what_an_outage_took_is_left_out_and_what_cannot_be_read_is_none() -> None:
    metric = Heard()
    gone: list[Outcome | str] = ["y", ProviderFailure("down"), ParseFailure("mute"), MetricError("raised"), "n"]
    one = scored(metric, "abcde", gone)
    assert one.score == 3.0 and metric.heard == [(["a", "c", "e"], ["y", None, "n"])]
    assert one.score_on([0, 1]) == 1.0 and math.isnan(one.score_on([1]))
    found = estimate_of(one)
    assert found is not None and found.n == 3
    other = scored(metric, "abcde", [ProviderFailure("down"), "x", "x", "x", "x"])
    metric.heard.clear()
    assert gain_of(one, other).n == 2
    assert {tuple(labels) for labels, _ in metric.heard if len(set(labels)) == 2} <= {("c", "e"), ("e", "c")}
    assert estimate_of(scored(metric, "a", [ProviderFailure("down")])) is None


def test_ranks_are_by_the_value_on_common_examples() -> None:
    right, f1 = "ynnnnnnnnn", F1("label", "y")
    majority = scored(f1, right, "nnnnnnnnnn", "majority")
    finder = scored(f1, right, "yyynnnnnnn", "finder")
    assert majority.mean > finder.mean and finder.score == 0.5
    assert [one.candidate for one in rank([majority, finder])] == [finder.candidate, majority.candidate]
    # Where the other lacks the only example that counts, both are worth 0 there: the shorter prompt is first.
    lacking = scored(f1, right, [ProviderFailure("down"), *"nnnnnnnnn"], "brief")
    assert rank([finder, lacking])[0] is lacking
    held = Front.of([majority, finder]).held
    assert len(right) in held[finder.candidate.id] and len(right) not in held.get(majority.candidate.id, ())


def test_a_value_that_is_none_comes_last() -> None:
    class Picky(Heard):
        def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
            return {"y": 0.0}[next(p.label for p in predictions if p is not None)]

    broken, fine = scored(Picky(), "yn", "ny", "broken"), scored(Picky(), "yn", "yy", "a long prompt")
    assert rank([broken, fine])[0] is fine and math.isnan(broken.score)
    assert isinstance(broken.together, Corpus) and "KeyError" in broken.together.fault
    assert gain_of(broken, fine).n == 0


# --- intervals and tests ---


def mean_of(rows: Sequence[Sequence[float]]) -> Callable[[Sequence[tuple[int, int]]], float]:
    return lambda picked: math.fsum(rows[program][i] for i, program in picked) / len(picked)


PAIRS = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=9)


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_of_a_mean_the_swap_test_is_the_sign_flip_test(pairs: list[tuple[float, float]]) -> None:
    rows = list(zip(*pairs, strict=True))
    differ = [i for i, (a, b) in enumerate(pairs) if a != b]
    assert swap_p_value(mean_of(rows), len(pairs), differ) == pytest.approx(paired_gain(*rows).p_value)


def test_random_swaps_come_near_the_exact_test() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 2, (2, 60)).astype(float)
    rows[1, :12] = 1.0
    differ = np.flatnonzero(rows[0] != rows[1]).tolist()
    exact = paired_gain(*rows.tolist()).p_value
    assert len(differ) > 10 and abs(swap_p_value(mean_of(rows.tolist()), 60, differ, seed=3) - exact) < 0.04


def test_the_interval_is_the_percentile_bootstraps() -> None:
    from scipy.stats import bootstrap

    rows = np.random.default_rng(0).normal(size=(2, 40))
    found = bootstrap95(mean_of(rows.tolist()), 40, seed=1)
    theirs = bootstrap((rows[0],), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.04) and found.mean == pytest.approx(
        rows[0].mean())  # fmt: skip
    gain = bootstrap_gain(mean_of(rows.tolist()), 40, range(40))
    pairs = bootstrap((rows[1] - rows[0],), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert (gain.low, gain.high) == pytest.approx(tuple(pairs.confidence_interval), abs=0.06)
    assert gain == bootstrap_gain(mean_of(rows.tolist()), 40, range(40))


def test_resamples_without_a_value_are_left_out() -> None:
    def lacking(picked: Sequence[tuple[int, int]]) -> float:  # there is nothing to say without example 0
        return float(len(picked)) if any(i == 0 for i, _ in picked) else math.nan

    most, few = bootstrap95(lacking, 4), bootstrap95(lambda picked: lacking(picked[:1]), 4)
    assert (most.low, most.high) == (4.0, 4.0) and few.mean == 1.0 and math.isnan(few.low)
    assert math.isnan(bootstrap95(lacking, 1).high)
    assert swap_p_value(lacking, 4, []) == 1.0


# --- compiles ---


class Detector(Engine):
    """Says whether a number can be divided by ten: "MAJOR" never, "FIND" for 3 of 10, else always; counts calls."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, sent: Sent) -> str:
        """Answer; what it is told decides."""
        system, found = sent.system, re.search(r"number (\d+)", sent.turns[-1])
        assert found is not None
        last = int(found[1]) % 10
        said = "no" if "MAJOR" in system or ("FIND" in system and last not in (0, 4, 5)) else "yes"
        return chat({"label": "perhaps" if "ODD" in system else said})


class Given(Compiler):
    """Scores the prompts that it is given."""

    prompts = ("MAJOR", "FIND")

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        return Plan(0, len(self.prompts) * n_select)

    async def search(self, run: Run) -> Candidate:
        made = [
            run.baseline.replace("self", instructions=text, origin=Origin("given", (run.baseline.id,)))
            for text in self.prompts
        ]
        scores = rank(await run.score([run.baseline, *made], run.select))
        await run.record(0, scores)
        return scores[0].candidate


def tens(first: int, n: int) -> list[dspy.Example]:
    made = (dspy.Example(question=f"number {i}", label="no" if i % 10 else "yes") for i in range(first, first + n))
    return [example.with_inputs("question") for example in made]


def compiled(metric: Any, kind: Callable[..., Compiler] = Given, engine: Detector | None = None,
             run_dir: Path | None = None, **options: Any) -> Compilation:  # fmt: skip
    with dspy.context(lm=dspy.LM("test/detector", engine=engine or Detector(), cache=False)):
        compiler = kind(metric, optimizer_lm=SimulatedOptimizer(), progress=False, **options)
        found = compiler.compile(dspy.Predict(dspy.Signature("question -> label", "Do it.")), trainset=tens(0, 20),
                                 valset=tens(100, 100), run_dir=run_dir).compilation  # fmt: skip
    assert isinstance(found, Compilation)
    return found


def test_of_an_imbalanced_task_f1_finds_what_the_mean_does_not() -> None:
    by_mean = compiled(lambda e, p: e.label == p.label)
    assert by_mean.best.candidate.prompts["self"].instructions == "MAJOR"
    metric = F1("label", positive="yes")
    found = compiled(metric)
    assert found.best.candidate.prompts["self"].instructions == "FIND"
    of = {trial.candidate.prompts["self"].instructions: trial for trial in found.candidates}
    assert [trial.mean for trial in found.candidates] == sorted((t.mean for t in of.values()), reverse=True)
    assert of["FIND"].mean == found.steps[0].validation.mean and of["MAJOR"].mean == 0.0
    fresh, base, gain = found.best.fresh, found.baseline.fresh, found.gain
    assert found.best.select is not None and fresh is not None and base is not None and gain is not None
    assert found.best.select.mean == of["FIND"].mean
    assert fresh.low < fresh.mean < fresh.high and gain.difference == pytest.approx(fresh.mean - base.mean)
    assert gain.low <= gain.difference <= gain.high and 0 < gain.p_value <= 1
    assert not any(note.kind == "power" or "about" in note for note in found.notes)
    assert found.front[0].candidate_id == found.best.candidate.id and found.front[0].score == of["FIND"].mean


def test_a_hosted_optimizer_is_reported_by_the_value_too() -> None:
    found = compiled(F1("label", positive="yes"), Bootstrap, restrict=[-3, -2])
    share = sum(score or 0.0 for score in found.candidates[0].scores) / found.candidates[0].n
    assert found.baseline.select is not None  # all are called "yes": F1 = 2 p / (1 + p)
    assert found.baseline.select.mean == pytest.approx(2 * share / (1 + share)) != share


def test_programs_are_evaluated_and_compared_by_it() -> None:
    lm, metric = dspy.LM("test/detector", engine=Detector(), cache=False), F1("label", "yes")
    every, find = (
        evaluate(dspy.Predict(dspy.Signature("question -> label", text)), tens(0, 60), metric, lm=lm)
        for text in ("Do it.", "FIND")
    )
    gain = compare(every, find)
    assert estimate(every).mean == pytest.approx(2 / 11) and estimate(find).mean == 0.5
    assert gain.difference == pytest.approx(0.5 - 2 / 11) and gain.significant and gain.n == 60


def test_racing_is_off() -> None:
    assert ABO(lambda e, p: 1.0).racing and not ABO(MacroF1("label")).racing
    assert not ABO(MacroF1("label"), racing=True).racing


def test_a_resumed_run_reports_the_same_without_a_call(tmp_path: Path) -> None:
    engine = ToyEngine()
    first = toy_compile(toy_lm(engine), metric=MacroF1("answer"), run_dir=tmp_path)
    paid = engine.calls
    again = toy_compile(toy_lm(engine), metric=MacroF1("answer"), run_dir=tmp_path)
    assert engine.calls == paid > 0 and result_of(again) == result_of(first)
    assert again.compilation.front == first.compilation.front != ()
    report = first.compilation.best
    means = {trial.candidate.id: trial for trial in first.compilation.candidates}
    assert report.select.mean == means[report.candidate.id].mean


class Kind(enum.Enum):
    """A type that JSON has no word for."""

    ODD, EVEN = "odd", "even"


class Sorts(dspy.Signature):  # type: ignore[misc]
    """Say what the number is."""

    question: str = dspy.InputField()
    kind: Kind = dspy.OutputField()
    digits: list[int] = dspy.OutputField()


class Typed(Heard):
    """Holds predictions to their types."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return True

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        self.heard.append(([e.question for e in examples], [p and (p.kind, p.digits) for p in predictions]))
        return 1.0


def test_predictions_have_the_types_of_the_signature() -> None:
    def reply(system: str, user: str, drawn: int | None) -> str:
        return "nothing to be read" if "number 2" in user else chat({"kind": "odd", "digits": [1, 2]})

    metric = Typed()
    examples = [dspy.Example(question=f"number {i}").with_inputs("question") for i in range(3)]
    scores = score_program(dspy.Predict(Sorts), examples, metric, lm=toy_lm(ToyEngine(reply=reply)))
    stored = tuple(outcome_from_json(outcome_to_json(outcome)) for outcome in scores.outcomes)
    for one in (scores, Scores(scores.candidate, scores.examples, stored, scores.together)):
        assert one.score == 1.0
        assert metric.heard.pop()[1] == [(Kind.ODD, [1, 2]), (Kind.ODD, [1, 2]), None]


def test_journals_say_no_more_than_they_did_where_there_is_no_more_to_say() -> None:
    plain = outcome_to_json(Scored(0.5, "why"))["body"]
    assert plain == {"score": 0.5, "feedback": "why", "trace": [], "cut": 0}
    assert outcome_from_json({"kind": "Scored", "body": plain}) == Scored(0.5, "why")
    exact = score_program(dspy.Predict("question -> answer"), [dspy.Example(question="say a").with_inputs("question")],
                          lambda e, p: 1.0, lm=toy_lm(ToyEngine()))  # fmt: skip
    assert isinstance(exact.outcomes[0], Scored) and exact.outcomes[0].answer is None


# --- what is refused ---


class Asks(Heard):
    """Its corpus asks a model."""

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        dspy.Predict("question -> label")(question="number 1")
        return 1.0


def corpus_of(function: Callable[..., object]) -> Any:
    class Metric(Heard):
        corpus = staticmethod(function)  # type: ignore[assignment]

    return Metric()


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (corpus_of(lambda examples, predictions: math.nan), "the right answers.*nan, which is no finite number"),
        (corpus_of(lambda examples, predictions: "0.5"), "'0.5', which is no finite number"),
        (corpus_of(lambda examples, predictions: None), "the right answers.*TypeError"),
        (corpus_of(lambda examples, predictions: 1 / 0), "the right answers.*ZeroDivisionError"),
        (corpus_of(lambda e, p: float(len({one.label for one in p}))), r"a missing answer \(None\).*AttributeError"),
        (corpus_of(lambda e, p: float(len({one.lable for one in e}))), "the right answers.*'lable'"),
        (MacroF1("lable"), "the right answers.*'lable'"),
        (Asks(), "a model is called"),
    ],
)
def test_a_corpus_that_cannot_judge_is_refused_before_any_call(metric: Any, said: str) -> None:
    engine = Detector()
    with pytest.raises(ValueError, match=f"(?s)the metric's `corpus` must judge .*{said}"):
        compiled(metric, engine=engine)
    assert engine.calls == 0


async def _later(examples: object, predictions: object) -> float:
    await asyncio.sleep(0)
    return 1.0


@pytest.mark.parametrize(("function", "said"), [
    (lambda examples: 1.0, r"takes \(examples\): it is called as corpus\(examples, predictions\)"),
    (lambda a, b, c: 1.0, r"takes \(a, b, c\)"),
    (_later, "is async"),
])  # fmt: skip
def test_other_arguments_are_refused_at_once(function: Callable[..., object], said: str) -> None:
    with pytest.raises(TypeError, match=f"the metric's `corpus` .*{said}"):
        Given(corpus_of(function))
    odd = corpus_of(lambda e, p: 1.0)
    odd.corpus = ["texts", "of", "its", "own"]
    assert Metric(odd).corpus is None


def test_a_class_that_no_example_has_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="gives the right answers of all examples the value 0"):
        found = compiled(F1("label", positive="Yes"))
    assert any(note.kind == "gold" for note in found.notes)


class Strict(Heard):
    """Knows two answers."""

    def corpus(self, examples: Sequence[dspy.Example], predictions: Sequence[dspy.Prediction | None]) -> float:
        return float(np.mean([{"yes": 0.5, "no": 1.0}[p.label] for p in predictions if p is not None]))


def test_a_corpus_that_fails_on_answers() -> None:
    class Odd(Given):
        prompts = ("ODD", "MAJOR")

    found = compiled(Strict(), Odd)
    assert found.best.candidate.prompts["self"].instructions == "MAJOR"
    assert math.isnan(found.candidates[-1].mean) and len(found.candidates) == 3
    assert any(note.kind == "corpus" and "1 candidates" in note and "'perhaps'" in note for note in found.notes)

    student = dspy.Predict(dspy.Signature("question -> label", "ODD"))
    with (
        dspy.context(lm=dspy.LM("test/detector", engine=Detector(), cache=False)),
        pytest.raises(CompileError, match="makes nothing of the student's answers: KeyError: 'perhaps'"),
    ):
        Given(Strict(), progress=False).compile(student, trainset=tens(0, 20), valset=tens(100, 40))


def test_a_choice_stays_where_nothing_can_be_made_of_the_fresh_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Gain(difference=math.nan, low=math.nan, high=math.nan, p_value=1.0, n=20)
    monkeypatch.setattr(session, "gain_of", lambda baseline, best: unknown)
    found = compiled(Strict())
    assert found.gain is unknown and found.best.candidate != found.baseline.candidate
