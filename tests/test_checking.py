"""`cuesmith.check`: the verdict on planted cases, what it costs, and that a compile then finds what it said."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import dspy
import pytest
from e2e_support import KEY, Provider, Saying, ToyEngine, exact, number, toy_lm, words

import cuesmith
from cuesmith import Budget, EmbeddedLM, Interrupted, SimulatedOptimizer
from cuesmith.corpus import MacroF1
from cuesmith.programs.checking import Check, check, check_forecast
from cuesmith.programs.costing import REPLY_TOKENS, REQUEST_TOKENS
from cuesmith.programs.probing import SHOWN
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.signatures.probes import GENERIC_PROMPTS
from cuesmith.teleprompters.registry import COMPILERS
from cuesmith.teleprompters.runtime.events import RunFinished
from cuesmith.teleprompters.runtime.session import CompileError

STEPS, FORM = GENERIC_PROMPTS["step by step"], GENERIC_PROMPTS["exact form"]
PROGRAM = dspy.Predict("question -> answer")
CHEAP = ("iterative-ape", "opro")
SAMPLE = 24


def answering(rule: Callable[[str, str], str], hook: Callable[[int], object] = lambda nth: None) -> ToyEngine:
    """A model that answers by a rule of (its instructions, the word that is asked for)."""

    def reply(system: str, user: str, drawn: int | None) -> str:
        asked = re.findall(r"\[\[ ## question ## \]\]\s*say (\S+)", user)[-1]
        return f"[[ ## answer ## ]]\n{rule(system, asked)}\n\n[[ ## completed ## ]]"

    return ToyEngine(reply=reply, hook=hook)


def half(system: str, word: str) -> str:
    """Right on half of the words, whatever the instructions."""
    return word if number(word) % 2 else "no"


def checked(rule: Callable[[str, str], str] | ToyEngine, n: int = 80, **options: Any) -> Check:
    """Check the toy program on a model."""
    engine = rule if isinstance(rule, ToyEngine) else answering(rule)
    given = {"program": PROGRAM, "lm": toy_lm(engine), "metric": exact, "data": words(n), "sample": SAMPLE, **options}
    return check(given.pop("program"), **{"compilers": CHEAP, **given})


# --- planted cases -----------------------------------------------------------------------------------------


def test_a_perfect_student_is_not_worth_compiling_and_costs_its_sample_alone() -> None:
    found = checked(lambda system, word: word)
    assert found.finding == "perfect" and found.worth is False
    assert found.verdict == "Not worth compiling: the student already scores 100 [86, 100] (n = 24)."
    assert found.spent.total.calls == SAMPLE < found.forecast.calls


def test_an_impossible_task_is_told_from_a_broken_metric() -> None:
    found = checked(lambda system, word: "no")
    assert found.finding == "hopeless" and found.worth is False
    assert "the metric gives right answers 1" in found.verdict and "3 generic prompts" in found.verdict

    broken = checked(lambda system, word: word, metric=lambda example, prediction: prediction.answer == "never")
    assert broken.finding == "metric" and "never gives above 0" in broken.verdict
    assert broken.spent.total.calls == SAMPLE  # nothing more is tried by a metric that measures nothing


def test_a_metric_that_is_always_content_is_broken_too() -> None:
    found = checked(half, metric=lambda example, prediction: 1.0)
    assert found.finding == "metric" and "wrong answers too" in found.verdict


def test_a_metric_that_cannot_be_asked_about_a_right_answer_may_be_broken() -> None:
    data = [dspy.Example(question=f"say w{i}").with_inputs("question") for i in range(60)]
    found = checked(half, data=data, metric=lambda example, prediction: 0.0)
    assert found.finding == "metric" and found.worth is None and "may be broken" in found.verdict


def test_a_metric_that_raises_is_named() -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise RuntimeError("no such column")

    found = checked(half, metric=metric)
    assert found.finding == "unmeasured" and "no such column" in found.verdict and found.student is None


def test_a_metric_that_raises_on_wrong_answers_is_not_judged_by_the_right_ones() -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return {example.answer: 1.0}[prediction.answer]

    found = checked(half, metric=metric)
    assert found.finding == "metric" and found.worth is False and "KeyError" in found.verdict
    assert f"failed on {found.failures.unjudged} of {SAMPLE} answers" in found.verdict and found.failures.unjudged > 3
    assert found.spent.total.calls == SAMPLE  # nothing more is tried


def test_a_metric_that_gives_wrong_answers_more_is_upside_down() -> None:
    for rule in (half, lambda system, word: word):
        found = checked(rule, metric=lambda e, p: abs(float(number(e.answer)) - float(number(p.answer))))
        assert found.finding == "metric" and found.worth is False and "upside down" in found.verdict
        assert found.spent.total.calls == SAMPLE


def test_graded_scores_need_fewer_examples_than_right_and_wrong_ones() -> None:
    found = checked(
        lambda s, w: w if FORM in s and number(w) % 2 else "no",
        n=40,
        metric=lambda e, p: 1.0 if e.answer == p.answer else 0.7,
    )
    assert found.finding == "headroom" and found.figures.visible is not None and found.figures.visible < 30


def test_failures_of_form_ask_for_another_form_first() -> None:
    found = checked(
        lambda system, word: "about seven",
        program=dspy.Predict("question -> answer: int"),
        data=[dspy.Example(question=f"say {i}", answer=i).with_inputs("question") for i in range(60)],
    )
    assert found.finding == "form" and "JSON mode first" in found.verdict
    assert found.failures.unread == found.failures.of_form == SAMPLE and found.failures.of_content == 0
    assert "step by step" not in {one.name for one in found.tried}


def test_right_answers_beside_other_words_are_failures_of_form() -> None:
    found = checked(lambda system, word: word if FORM in system else f"I would say {word}, of course")
    assert found.finding == "form" and found.failures.beside == SAMPLE
    assert "exact form alone gains +100" in found.verdict


def test_a_noisy_judge_is_told_from_a_noisy_model() -> None:
    judged: Counter[str] = Counter()

    def coin(example: dspy.Example, prediction: dspy.Prediction) -> float:
        judged[example.question] += 1
        return float(number(example.question, judged[example.question]) % 2)

    found = checked(lambda system, word: "hm", metric=coin, lm=toy_lm(answering(lambda s, w: "hm"), temperature=0.0))
    assert found.finding == "noise" and "scored" in found.verdict
    assert found.noise is not None and found.noise.of_the_metric and found.noise.alike == 60

    asked: Counter[str] = Counter()

    def fickle(system: str, word: str) -> str:
        asked[system + word] += 1
        return word if number(word, system, asked[system + word]) % 2 else f"no{asked[system + word]}"

    moved = checked(fickle)
    assert moved.noise is not None and moved.noise.moved > 5 and not moved.noise.of_the_metric
    assert moved.noise.best.mean > 0.7 and moved.finding == "headroom" and "best of 3 draws" in moved.verdict


def test_guessing_one_of_two_labels_is_no_headroom() -> None:
    data = [dspy.Example(question=f"say w{i}", answer="ab"[i % 2]).with_inputs("question") for i in range(200)]
    asked: Counter[str] = Counter()

    def guess(system: str, word: str) -> str:
        asked[system + word] += 1
        return "ab"[number(word, system, asked[system + word]) % 2]

    found = checked(guess, data=data)
    assert found.noise is not None and found.noise.best.mean > 0.75  # of three guesses one is mostly right
    assert found.finding == "doubtful" and found.worth is None and "most frequent answer scores 50" in found.verdict


def test_too_few_examples_to_see_anything() -> None:
    found = checked(half, 16)
    assert found.finding == "few" and found.worth is False
    assert "keeps 4 for its report, which show no gain at all" in found.verdict
    assert checked(half, 400).finding == "doubtful"


def test_a_prompt_that_helps_is_headroom() -> None:
    found = checked(lambda system, word: word if STEPS in system else half(system, word))
    assert found.finding == "headroom" and found.worth is True
    assert "step by step" in found.verdict and found.tried[0].gains and not found.tried[-1].gains


def test_a_program_that_raises_is_to_be_mended_first() -> None:
    class Fragile(Saying):
        def forward(self, question: str) -> dspy.Prediction:
            if number(question) % 3:
                raise KeyError("entry")
            return self.say(question=question)

    found = checked(lambda system, word: word, program=Fragile())
    assert found.finding == "program" and "Mend the program first" in found.verdict


# --- the verdict against a compile --------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [False, True])
def test_a_compile_finds_what_the_verdict_said(shown: bool) -> None:
    task = generate("max", sizes=Sizes(train=20, validation=60, test=1))
    program = dspy.ChainOfThought(task.signature)
    if shown:  # with examples of the kind that the model was trained on nothing is left to gain
        program.predict.demos = list(generate("max", seed=9).train[:3])
    data, lm = [*task.train, *task.validation], EmbeddedLM()
    found = check(program, metric=task.metric, data=data, lm=lm, compilers=CHEAP, sample=SAMPLE, draws=1)
    assert found.finding == ("perfect" if shown else "headroom")
    with dspy.context(lm=lm):
        compiled = cuesmith.compile(
            program,
            "iterative-ape",
            metric=task.metric,
            trainset=list(task.train),
            valset=list(task.validation),
            optimizer_lm=SimulatedOptimizer(),
            budget=Budget(calls=160),
        )
    gain = compiled.compilation.gain
    assert gain is not None and gain.significant == (found.worth is True)


# --- budget, resume, cost -----------------------------------------------------------------------------------


def test_the_forecast_is_what_a_whole_check_uses() -> None:
    found = checked(half, 400, sample=40)
    assert found.forecast == check_forecast(PROGRAM, words(400))
    assert found.spent.total.calls == found.forecast.calls == 40 + 2 * 20 + 3 * 40


def test_a_cap_holds_and_leaves_what_was_seen() -> None:
    engine = answering(half)
    few = checked(engine, budget=Budget(calls=5))
    assert engine.calls == few.spent.total.calls == 5 and few.stopped_by == "calls" and few.finding == "unmeasured"
    some = checked(engine, budget=Budget(calls=50))
    assert engine.calls == 55 and some.stopped_by == "calls" and some.student is not None and some.student.n == SAMPLE
    assert some.noise is not None and not some.tried and "before anything but the student" in some.verdict


def test_a_check_goes_on_where_it_was(tmp_path: Path) -> None:
    engine = answering(half)
    part = checked(engine, budget=Budget(calls=30), run_dir=tmp_path)
    assert part.stopped_by == "calls" and engine.calls == 30
    first = checked(engine, run_dir=tmp_path)
    assert engine.calls == first.forecast.calls
    again = checked(engine, run_dir=tmp_path)
    assert engine.calls == first.forecast.calls and again.figures == first.figures and again.verdict == first.verdict


@pytest.mark.parametrize("nth", [30, 100])
def test_an_interrupt_speaks_of_no_program(tmp_path: Path, nth: int) -> None:
    def press(number: int) -> None:
        if number == nth:
            signal.raise_signal(signal.SIGINT)

    engine, before = answering(half, press), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as caught:
            checked(engine, run_dir=tmp_path, max_in_flight=1)
    finally:
        signal.signal(signal.SIGINT, before)
    said = f"Nothing was compiled. To go on: run the same again with run_dir='{tmp_path}'."
    assert str(caught.value).startswith(f"interrupted after {engine.calls} calls") and said in str(caught.value)
    assert caught.value.program is None and not (tmp_path / "record.json").exists()
    whole = checked(engine, run_dir=tmp_path)
    assert whole.spent.total.calls == whole.forecast.calls == engine.calls


def test_an_interrupt_at_the_very_end_is_not_lost_and_speaks_of_no_program() -> None:
    def late(event: object) -> None:
        if isinstance(event, RunFinished):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match=r"at the very end\. Nothing was compiled") as caught:
            checked(half, callbacks=[late])
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.program is None


def test_costs_are_by_known_prices_and_what_a_run_has_cost() -> None:
    with Provider() as provider:
        found = checked(half, lm=provider.lm("gpt-4.1-mini"), budget=Budget(usd=1))
    import litellm

    price = litellm.model_cost["gpt-4.1-mini"]
    run = found.spent.total.usd / found.spent.total.calls if found.spent.total.usd else 0.0
    request = REQUEST_TOKENS * price["input_cost_per_token"] + REPLY_TOKENS * price["output_cost_per_token"]
    assert run > 0
    for cost in found.costs:
        assert cost.forecast is not None
        assert cost.usd == pytest.approx(cost.forecast.program_runs * run + cost.forecast.optimizer_calls * request)
    assert [cost.name for cost in found.costs] == list(CHEAP)

    unknown = checked(half)
    assert all(cost.usd is None and cost.forecast is not None for cost in unknown.costs)
    free = check(PROGRAM, metric=exact, data=words(20), lm=EmbeddedLM(), compilers=CHEAP, sample=4, draws=1)
    assert all(cost.usd == 0.0 for cost in free.costs)


def test_a_compiler_that_cannot_take_the_program_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPILERS, "toy", "contest_support:NeedsOptuna")
    found = checked(lambda system, word: word, compilers=("opro", "toy"))
    assert [(cost.name, bool(cost.forecast)) for cost in found.costs] == [("opro", True), ("toy", False)]
    assert "pip install optuna" in found.costs[1].reason and "pip install optuna" in found.to_markdown()


def test_a_refused_key_ends_it() -> None:
    with Provider(intercept=lambda nth, body: (401, {}, {"error": {"message": f"bad key {KEY}"}})) as provider:
        with pytest.raises(CompileError, match="refuses the key") as caught:
            checked(half, lm=provider.lm())
        assert KEY not in str(caught.value)


# --- other shapes -------------------------------------------------------------------------------------------


def test_temperature_0_is_said_to_be_deterministic() -> None:
    steady = checked(half, lm=toy_lm(answering(half), temperature=0.0))
    assert steady.noise is not None and steady.noise.deterministic and "temperature 0 and is" in steady.to_markdown()
    assert checked(half, draws=1).noise is None


def test_draws_come_past_the_cache() -> None:
    engine = answering(half)
    found = checked(engine, lm=toy_lm(engine, uuid4().hex, cache=True, temperature=1.0), n=400)
    assert found.noise is not None and found.noise.examples == 20 and engine.calls == found.forecast.calls


def test_models_that_predictors_carry_are_not_drawn_again() -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(toy_lm(answering(half)))
    found = check(program, metric=exact, data=words(60), compilers=CHEAP)
    assert found.noise is None and any("noise was not measured" in note for note in found.notes)


def test_all_predictors_get_a_generic_prompt_and_those_that_fit_get_examples() -> None:
    class Two(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.plan, self.say = dspy.Predict("question -> hint"), dspy.Predict("question, hint -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return self.say(question=question, hint=self.plan(question=question).hint)

    systems: list[tuple[str, int]] = []

    class Watching(ToyEngine):
        def complete(self, request: Any) -> Any:
            systems.append((str(request.system), len(request.messages)))
            return super().complete(request)

    def reply(system: str, user: str, drawn: int | None) -> str:
        field = "answer" if "`answer`" in system else "hint"
        return f"[[ ## {field} ## ]]\nno\n\n[[ ## completed ## ]]"

    found = checked(Watching(reply=reply), program=Two(), draws=1)
    assert found.forecast.calls == len(systems) == 2 * SAMPLE * 3
    assert sum(STEPS in system for system, _ in systems) == sum(FORM in system for system, _ in systems) == 2 * SAMPLE
    assert {size for _, size in systems} == {1}  # no predictor has all its inputs in the examples


def test_examples_that_are_shown_are_not_scored() -> None:
    shown: set[str] = set()
    scored: set[str] = set()

    class Watching(ToyEngine):
        def complete(self, request: Any) -> Any:
            texts = [re.findall(r"say (\w+)", str(message.text)) for message in request.messages]
            scored.add(texts[-1][0])
            shown.update(found[0] for found in texts[:-1] if found)
            return super().complete(request)

    found = checked(Watching())
    assert len(shown) == SHOWN and not shown & scored and "examples shown" in {one.name for one in found.tried}


def test_scores_of_another_scale_are_told_in_percent_of_the_full_one() -> None:
    found = checked(half, metric=lambda e, p: 10.0 * (e.answer == p.answer))
    assert found.figures.scale.top == 10.0 and found.student is not None and found.student.mean > 1
    assert re.search(r"The student scores (\d\d) \\\[\d\d, \d\d\\\] of 100", found.to_markdown())


def test_a_loss_of_which_0_is_the_best_is_no_broken_metric() -> None:
    found = checked(half, metric=lambda e, p: 0.0 if e.answer == p.answer else -5.0, n=400)
    assert (found.figures.scale.low, found.figures.scale.top) == (-5.0, 0.0) and found.finding == "doubtful"
    assert checked(lambda s, w: w, metric=lambda e, p: -5.0 * (e.answer != p.answer)).finding == "perfect"
    assert checked(lambda s, w: "no", metric=lambda e, p: -5.0 * (e.answer != p.answer)).finding == "hopeless"


def test_a_metric_that_judges_all_answers_together() -> None:
    data = [dspy.Example(question=f"say w{i}", answer="ab"[i % 2]).with_inputs("question") for i in range(100)]
    metric = MacroF1("answer")
    found = checked(lambda system, word: "a", data=data, metric=metric, draws=1, sample=12)
    assert found.student is not None and found.student.mean == pytest.approx(1 / 3, abs=0.15)
    assert found.finding in ("doubtful", "few")


def test_what_models_wrote_stands_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](http://e.vil) \x1b[31m"
    found = checked(
        lambda system, word: hostile,
        program=dspy.Predict("question -> answer: int"),
        data=[dspy.Example(question=f"say {i}", answer=i).with_inputs("question") for i in range(60)],
    )
    text = found.to_markdown()
    assert "script" in text and "<script>" not in text and "\x1b" not in text and "[x](" not in text
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["finding"] == "form" and told["failures"]["unread"] == SAMPLE


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"data": []}, "data is empty"),
        ({"data": [dspy.Example(question="q")]}, "has no inputs marked"),
        ({"data": [dspy.Example(query="q", answer="a").with_inputs("query")]}, "rename 'query' to 'question'"),
        ({"compilers": ("apoo",)}, "did you mean 'apo'"),
        ({"compilers": "apo"}, "must be a list of names"),
        ({"sample": 0}, "sample"),
        ({"draws": 0}, "draws"),
        ({"budget": Budget(usd=1)}, "custom engine"),
        ({"program": dspy.Module()}, "no predictors"),
        ({"program": dspy.Predict("question -> ")}, "has no output field"),
        ({"lm": "openai/gpt"}, "lm must be a dspy.LM"),
    ],
)
def test_wrong_arguments_are_one_line_before_any_call(options: dict[str, Any], problem: str) -> None:
    engine = answering(half)
    with pytest.raises((TypeError, ValueError), match=problem) as caught:
        checked(engine, **options)
    assert engine.calls == 0 and "\n" not in str(caught.value)


def test_without_a_model_it_says_so() -> None:
    with dspy.context(lm=None), pytest.raises(ValueError, match="no language model"):
        check(PROGRAM, metric=exact, data=words(3))
