"""What `compile` promises: the student untouched, dspy's conventions kept, every metric form, one clear error each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import dspy
import numpy as np
import pytest
from dspy.lm15 import Response
from dspy.utils.callback import BaseCallback
from e2e_support import OnlyAsync, Saying, ToyEngine, ToySearch, exact, toy_compile, toy_lm, toy_reply, words
from pydantic import BaseModel

import cuesmith
from cuesmith.teleprompters.registry import COMPILERS
from cuesmith.teleprompters.runtime.candidate import Candidate, Demo, Origin
from cuesmith.teleprompters.runtime.outcomes import ParseFailure, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.score_program import score_program
from cuesmith.teleprompters.runtime.session import CompileError

SMALL: dict[str, int] = {"n_train": 6, "n_val": 12}


def small(lm: dspy.LM, **options: object) -> dspy.Module:
    """Compile something small."""
    return toy_compile(lm, **{**SMALL, "steps": 1, "width": 2, **options})  # type: ignore[arg-type]


class Two(dspy.Module):  # type: ignore[misc]
    """Two sub-modules whose predictors have the same leaf name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.ChainOfThought("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        self.first(question=question)
        return self.second(question=question)


def reasoned(system: str, user: str, drawn: int | None) -> str:
    """Answer for programs with a reasoning field."""
    text = toy_reply(system, user, drawn)
    return f"[[ ## reasoning ## ]]\nit is said\n\n{text}" if "`reasoning`" in system else text


def test_the_student_is_untouched() -> None:
    student = dspy.Predict("question -> answer")
    own = toy_lm(ToyEngine(), "own")
    student.lm, student.demos = own, [dspy.Example(question="say hi", answer="hi")]
    signature, demos, before = student.signature, student.demos, Candidate.of(student)
    optimizer = toy_lm(ToyEngine())
    compiled = small(optimizer, student=student)
    assert compiled is not student and not hasattr(student, "compilation")
    assert student.signature is signature and student.demos is demos and Candidate.of(student) == before
    assert student.lm is own and compiled.lm is own, "predictors keep their LMs"
    assert type(own) is dspy.LM and own.history == [] and optimizer.history == []
    assert compiled.signature.instructions != student.signature.instructions
    assert not getattr(student, "_compiled", False) and compiled._compiled
    with dspy.context(lm=optimizer):
        assert compiled(question="say x").answer in ("x", "no")


def test_dspy_is_not_configured() -> None:
    with dspy.context(lm=None, trace=[]):
        before = dict(dspy.settings.copy())
        engine = ToyEngine()
        student = dspy.Predict("question -> answer")
        student.set_lm(toy_lm(engine))
        ToySearch(exact, optimizer_lm=toy_lm(engine), steps=1).compile(
            student, trainset=words(6, "t"), valset=words(12, "v")
        )
        assert engine.calls > 0
        assert dict(dspy.settings.copy()) == before and dspy.settings.trace == []


def test_sync_compile_in_a_running_loop_and_acompile() -> None:
    engine = ToyEngine()
    expected = Candidate.of(small(toy_lm(engine)))

    async def notebook() -> tuple[dspy.Module, dspy.Module]:
        with dspy.context(lm=toy_lm(engine)):
            compiler = ToySearch(exact, steps=1, width=2)
            a = compiler.compile(dspy.Predict("question -> answer"), trainset=words(6, "t"), valset=words(12, "v"))
            b = await compiler.acompile(
                dspy.Predict("question -> answer"), trainset=words(6, "t"), valset=words(12, "v")
            )
            return a, b

    a, b = asyncio.run(notebook())
    assert Candidate.of(a) == Candidate.of(b) == expected


def test_inside_better_together() -> None:
    engine = ToyEngine()
    with dspy.context(lm=toy_lm(engine)):
        together = dspy.BetterTogether(metric=exact, p=ToySearch(exact, steps=1), q=ToySearch(exact, steps=1, seed=3))
        student = dspy.Predict("question -> answer")
        student.set_lm(toy_lm(engine))
        compiled = together.compile(student, trainset=words(12, "t"), valset=words(16, "v"), strategy="p -> q", seed=0)
    assert "skill=" in compiled.signature.instructions
    assert student.signature.instructions != compiled.signature.instructions


def test_compile_callbacks_of_dspy_are_called() -> None:
    class Watch(BaseCallback):  # type: ignore[misc]
        seen: list[str]

        def __init__(self) -> None:
            self.seen = []

        def on_compile_start(self, call_id: str, instance: object, inputs: dict[str, object]) -> None:
            self.seen.append("start")

        def on_compile_end(self, call_id: str, outputs: object, exception: Exception | None = None) -> None:
            self.seen.append("end" if exception is None else "error")

    watch = Watch()
    with dspy.context(callbacks=[watch]):
        small(toy_lm(ToyEngine()))
    assert watch.seen == ["start", "end"]


class Address(BaseModel):
    """A typed field."""

    street: str
    no: int


class Rich(dspy.Signature):  # type: ignore[misc]
    """Tell."""

    question: str = dspy.InputField()
    place: Address = dspy.InputField()
    count: int = dspy.OutputField()
    mood: Literal["froh", "trüb"] = dspy.OutputField()
    homes: list[Address] = dspy.OutputField()


def test_demonstrations_round_trip_through_save_and_load(tmp_path: Path) -> None:
    class AddsDemo(ToySearch):
        async def search(self, run: Run) -> Candidate:
            demo = Demo.of(
                {
                    "question": "wie viele? 漢字 🎈",
                    "place": Address(street='Öl\n"gasse"', no=3),
                    "count": 7,
                    "mood": "trüb",
                    "homes": [Address(street="a", no=1)],
                }
            )
            shown = run.baseline.replace("self", demos=[demo], instructions="Schätze.", origin=Origin("demo"))
            await run.record(0, await run.score([shown], run.select))
            return shown

    def reply(system: str, user: str, drawn: int | None) -> str:
        right = "Schätze" in system
        return (
            f"[[ ## count ## ]]\n{7 if right else 1}\n\n[[ ## mood ## ]]\ntrüb\n\n[[ ## homes ## ]]\n"
            '[{"street": "a", "no": 1}]\n\n[[ ## completed ## ]]'
        )

    def example(i: int) -> dspy.Example:
        place = Address(street=f"s{i}", no=i)
        return dspy.Example(question=f"q{i}", place=place, count=7).with_inputs("question", "place")

    lm = toy_lm(ToyEngine(reply=reply), "rich")
    with dspy.context(lm=lm):
        compiled = AddsDemo(lambda e, p: e.count == p.count).compile(
            dspy.Predict(Rich), trainset=[example(i) for i in range(30)]
        )
        compiled.save(tmp_path / "program.json")
        loaded = dspy.Predict(Rich)
        loaded.load(tmp_path / "program.json")
        assert Candidate.of(loaded) == Candidate.of(compiled) != Candidate.of(dspy.Predict(Rich))
        demo = compiled.demos[0]
        assert demo.place == Address(street='Öl\n"gasse"', no=3) and demo.homes == [Address(street="a", no=1)]
        assert demo.count == 7 and demo.mood == "trüb" and demo.question.endswith("🎈")
        one = example(99).inputs()
        adapter = dspy.ChatAdapter()
        assert adapter.format(compiled.signature, compiled.demos, dict(one)) == adapter.format(
            loaded.signature, loaded.demos, dict(one)
        )
        assert loaded(**one).count == 7


def test_same_leaf_names_are_told_apart() -> None:
    engine = ToyEngine(reply=reasoned)
    student = Two()
    compiled = small(toy_lm(engine), student=student)
    assert Candidate.of(student).names == ("first.predict", "second.predict")
    assert compiled.compilation.baseline.candidate == Candidate.of(student)
    for trial in compiled.compilation.candidates:
        own = Candidate.of(student).prompts
        assert trial.candidate.prompts["second.predict"] == own["second.predict"]


def test_the_trace_names_the_predictors() -> None:
    with dspy.context(lm=toy_lm(ToyEngine(reply=reasoned))):
        scores = score_program(Two(), words(3), exact)
    assert [s.predictor for s in scores.outcomes[0].trace] == ["first.predict", "second.predict"]  # type: ignore[union-attr]


def test_a_frozen_sub_module_is_not_changed() -> None:
    student = Two()
    student.second._compiled = True
    student.second.predict.signature = student.second.predict.signature.with_instructions("Frozen. skill=9")
    compiled = small(toy_lm(ToyEngine(reply=reasoned)), student=student)
    assert Candidate.of(student).names == ("first.predict",)
    assert compiled.second.predict.signature.instructions == "Frozen. skill=9"


class AsyncToy:
    """The toy engine for coroutines."""

    def __init__(self, engine: ToyEngine) -> None:
        self.engine = engine

    async def complete(self, request: object) -> Response:
        await asyncio.sleep(0.001)
        return self.engine.complete(request)


@pytest.mark.parametrize("in_flight", [1, 16])
def test_an_async_program(in_flight: int) -> None:
    engine = ToyEngine()
    lm = toy_lm(engine, async_engine=AsyncToy(engine))
    sync = small(toy_lm(ToyEngine()), max_in_flight=in_flight).compilation
    found = small(lm, student=OnlyAsync(), max_in_flight=in_flight, budget=cuesmith.Budget(calls=10**6)).compilation
    assert [t.mean for t in found.candidates] == [t.mean for t in sync.candidates]
    assert found.spent.total.calls == engine.calls
    capped = small(lm, student=OnlyAsync(), max_in_flight=in_flight, budget=cuesmith.Budget(calls=9))
    assert capped.compilation.spent.total.calls == 9 and capped.compilation.stopped_by == "calls"


def two(e: dspy.Example, p: dspy.Prediction) -> bool:
    return bool(e.answer == p.answer)


def five(
    gold: dspy.Example, pred: dspy.Prediction, trace: object, pred_name: str | None, pred_trace: object
) -> dspy.Prediction:
    return dspy.Prediction(score=float(gold.answer == pred.answer), feedback="look")


async def awaited(e: dspy.Example, p: dspy.Prediction, trace: object = None) -> float:
    await asyncio.sleep(0)
    return float(e.answer == p.answer)


class Callable2:
    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> np.float32:
        return np.float32(example.answer == prediction.answer)


FORMS: list[Callable[..., object]] = [
    two,
    exact,
    five,
    awaited,
    Callable2(),
    lambda e, p, trace=None: np.bool_(e.answer == p.answer),
    lambda e, p, trace=None: np.int64(e.answer == p.answer),
    lambda e, p, trace=None: {"score": int(e.answer == p.answer)},
    dspy.evaluate.answer_exact_match,
]


@pytest.mark.parametrize("metric", FORMS)
def test_every_form_of_metric(metric: Callable[..., object]) -> None:
    found = small(toy_lm(ToyEngine()), metric=metric).compilation
    expected = small(toy_lm(ToyEngine())).compilation
    assert [t.scores for t in found.candidates] == [t.scores for t in expected.candidates]
    assert 0 < found.candidates[0].mean <= 1


BAD: list[object] = [None, math.nan, math.inf, "0.5", [1], RuntimeError("boom"), KeyError("answer")]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_a_bad_score_is_missing_and_never_zero(bad: object) -> None:
    def metric(e: dspy.Example, p: dspy.Prediction) -> object:
        if e.answer in ("w1", "w4"):
            if isinstance(bad, Exception):
                raise bad
            return bad
        return 1.0

    with dspy.context(lm=toy_lm(ToyEngine())):
        scores = score_program(dspy.Predict("question -> answer"), words(6), metric)
    assert scores.values == (1.0, None, 1.0, 1.0, None, 1.0)
    assert scores.mean == 1.0 and scores.missing == 2
    with pytest.raises((CompileError, ValueError), match=r"the metric (failed on all|returned)"):
        small(toy_lm(ToyEngine()), metric=_always(bad))


def _always(bad: object) -> Callable[..., object]:
    def metric(e: dspy.Example, p: dspy.Prediction) -> object:
        if isinstance(bad, Exception):
            raise bad
        return bad

    return metric


@pytest.mark.parametrize(("returned", "shown"), [("no", "'no', a str"), ({"answer": 1}, "{'answer': 1}, a dict"),
                                                  (None, "None, a NoneType")], ids=repr)  # fmt: skip
def test_a_program_that_returns_no_prediction_stops_the_run_at_its_first_answer(returned: object, shown: str) -> None:
    class Bare(Saying):
        def forward(self, question: str) -> object:
            self.say(question=question)
            return returned

    engine = ToyEngine(latency=0.2)
    told = rf"the program \(Bare\) returned {shown}, and the metric raised \w+: .*: programs return dspy.Prediction"
    with pytest.raises(CompileError, match=told) as raised:
        small(toy_lm(engine), student=Bare(), max_in_flight=1)
    assert engine.calls <= 3 and raised.value.stopped_by == "configuration"  # the next ones were under way
    served = small(toy_lm(ToyEngine()), student=Bare(), metric=lambda e, p: p == returned).compilation
    assert served.baseline.select.mean == 1.0, "a metric that can judge it"


def test_one_answer_that_is_no_prediction_is_a_failure_of_the_program() -> None:
    class Sometimes(Saying):
        def forward(self, question: str) -> object:
            found = self.say(question=question)
            return "none" if question == "say w2" else found

    with dspy.context(lm=toy_lm(ToyEngine(reply=lambda *_: "[[ ## answer ## ]]\nw1"))):
        scores = score_program(Sometimes(), words(4), exact, max_in_flight=1)
    assert scores.values == (0.0, 1.0, 0.0, 0.0) and scores.missing == 0
    assert isinstance(scores.outcomes[2], ParseFailure) and "returned 'none', a str" in scores.outcomes[2].reason


def test_a_program_that_raises_on_some_outputs_fails_there() -> None:
    class Strict(Saying):
        def __init__(self, least: int) -> None:
            super().__init__()
            self.least = least

        def forward(self, question: str) -> dspy.Prediction:
            if int(question[4:]) < self.least:
                raise ValueError("too small")
            return self.say(question=question)

    with dspy.context(lm=toy_lm(ToyEngine())):
        scores = score_program(Strict(2), words(4, ""), lambda e, p: 1.0)
    assert scores.values == (0.0, 0.0, 1.0, 1.0)
    assert isinstance(scores.outcomes[0], ParseFailure) and "ValueError: too small" in scores.outcomes[0].reason
    with dspy.context(lm=toy_lm(ToyEngine())), pytest.raises(CompileError, match="mend the program"):
        ToySearch(exact).compile(Strict(10**9), trainset=words(8, ""))


Q = "question -> answer"
WRONG: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, "trainset is empty", lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset=[])),
    (
        ValueError,
        "no inputs marked",
        lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset=[dspy.Example(question="q", answer="a")]),
    ),
    (TypeError, "trainset must be a list", lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset="abc")),
    (TypeError, "must be a dspy.Example", lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset=[{"q": 1}])),
    (
        TypeError,
        "valset",
        lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset=words(3), valset=[1]),
    ),
    (TypeError, "student must be", lambda: ToySearch(exact).compile("program", trainset=words(3))),
    (ValueError, "no predictors", lambda: ToySearch(exact).compile(dspy.Module(), trainset=words(3))),
    (ValueError, "predictor 'self', 'question -> ', has no output field", lambda: ToySearch(exact).compile(
        dspy.Predict("question -> "), trainset=words(3))),
    (TypeError, "run_dir=5 must be the path of a folder", lambda: small(toy_lm(ToyEngine()), run_dir=5)),
    (ValueError, "run_dir='' names no folder", lambda: small(toy_lm(ToyEngine()), run_dir="")),
    (ValueError, "no teacher", lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset=words(3), teacher=Two())),
    (TypeError, "budget=", lambda: ToySearch(exact, budget=5)),
    (TypeError, "metric must be callable", lambda: ToySearch("metric")),  # type: ignore[arg-type]
    (TypeError, "takes", lambda: ToySearch(lambda a: 1.0)),
    (TypeError, "takes", lambda: ToySearch(lambda a, b, c, d: 1.0)),
    (ValueError, "seed", lambda: ToySearch(exact, seed=-1)),
    (ValueError, "max_in_flight", lambda: ToySearch(exact, max_in_flight=0)),
    (ValueError, "example_timeout", lambda: ToySearch(exact, example_timeout=0)),
    (TypeError, "not callable", lambda: ToySearch(exact, callbacks=[1])),
    (TypeError, "optimizer_lm", lambda: ToySearch(exact, optimizer_lm=3)),
    (ValueError, "Budget", lambda: cuesmith.Budget(calls=0)),
    (ValueError, "Budget", lambda: cuesmith.Budget(usd=math.nan)),
    (ValueError, "Budget", lambda: cuesmith.Budget(tokens=1.5)),  # type: ignore[arg-type]
    (TypeError, r"Budget\(60\) does not say what it caps: .* calls=", lambda: cuesmith.Budget(60)),  # type: ignore[arg-type]
    (TypeError, "Budget has no option call: did you mean 'calls'", lambda: cuesmith.Budget(call=60)),  # type: ignore[arg-type]
    (TypeError, "budget=5 must be a cuesmith.Budget", lambda: cuesmith.check(
        dspy.Predict(Q), metric=exact, data=words(30), budget=5)),  # type: ignore[arg-type]
    (TypeError, "budget=6 must be a cuesmith.Budget", lambda: cuesmith.compare_compilers(
        dspy.Predict(Q), ["apo"], metric=exact, trainset=words(30), testset=words(40)[30:], budget=6)),  # type: ignore[arg-type]
    (TypeError, "APO has no option num_threads: did you mean 'max_in_flight'", lambda: cuesmith.APO(
        exact, num_threads=3)),  # type: ignore[call-arg]
    (TypeError, "unexpected", lambda: ToySearch(exact).compile(dspy.Predict(Q), trainset=words(3), num_trials=3)),  # type: ignore[call-arg]
    (TypeError, "no option num_trials", lambda: cuesmith.compile(dspy.Predict(Q), "iterative-ape", metric=exact,
                                                                 trainset=words(3), num_trials=3)),
    (ValueError, "no compiler is called", lambda: cuesmith.compile(dspy.Predict(Q), "aboo", metric=exact,
                                                                   trainset=words(3))),
    (TypeError, "give 'iterative-ape', or call it", lambda: cuesmith.compile(
        dspy.Predict(Q), cuesmith.IterativeAPE, metric=exact, trainset=words(3))),  # type: ignore[arg-type]
    (TypeError, "reflection_lm: did you mean 'optimizer_lm'", lambda: cuesmith.compile(
        dspy.Predict(Q), "dspy.GEPA", metric=exact, trainset=words(3), reflection_lm=None)),
    (TypeError, "such as dspy.Predict", lambda: cuesmith.compile("q -> a", "apo", metric=exact, trainset=words(3))),
    (TypeError, "compare_compilers", lambda: cuesmith.compare(dspy.Predict(Q), dspy.Predict(Q))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words_of_it", "wrong"), WRONG, ids=[w[1] for w in WRONG])
def test_bad_input_is_one_clear_error_before_any_call(
    kind: type[Exception], words_of_it: str, wrong: Callable[[], object]
) -> None:
    engine = ToyEngine()
    with dspy.context(lm=toy_lm(engine)), pytest.raises(kind, match=words_of_it) as told:
        wrong()
    assert engine.calls == 0
    assert "no running event loop" not in repr(told.value.__context__)


@pytest.mark.parametrize("name", COMPILERS)
def test_every_class_says_what_an_unknown_option_may_have_been(name: str) -> None:
    kind = cuesmith.compiler_class(name)
    with pytest.raises(TypeError, match=f"^{kind.__name__} has no option optimizer_lmm: did you mean 'optimizer_lm'"):
        kind(exact, optimizer_lmm=None)  # type: ignore[arg-type]


def test_no_language_model_is_one_clear_error() -> None:
    with dspy.context(lm=None), pytest.raises(ValueError, match="no language model for the student"):
        ToySearch(exact).compile(dspy.Predict(Q), trainset=words(3))


def test_equal_examples_of_arrays_are_the_same_examples() -> None:
    def scored() -> Scores:
        rows = [dspy.Example(question="q", seen=np.arange(k + 2), answer="x").with_inputs("question") for k in range(3)]
        with dspy.context(lm=toy_lm(ToyEngine())):
            return cuesmith.evaluate(dspy.Predict(Q), rows, lambda example, prediction: 1.0)

    assert cuesmith.compare(scored(), scored()).n == 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_examples(n: int) -> None:
    with dspy.context(lm=toy_lm(ToyEngine())):
        compilation = ToySearch(exact, steps=1).compile(dspy.Predict(Q), trainset=words(n)).compilation
    assert compilation.baseline.select is not None
    assert compilation.gain is None or compilation.gain.n <= 1


def test_duplicates_and_a_valset_that_is_the_trainset() -> None:
    examples = words(20) + words(20)
    with dspy.context(lm=toy_lm(ToyEngine())):
        compilation = ToySearch(exact, steps=1).compile(dspy.Predict(Q), trainset=examples, valset=examples).compilation
    assert compilation.candidates[0].n <= 10 and any("duplicates" in note for note in compilation.notes)


def test_a_raising_callback_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("display is gone")

    assert small(toy_lm(ToyEngine()), callbacks=[broken]).compilation.stopped_by is None
    assert len([r for r in caplog.records if "gets no further events" in r.getMessage()]) == 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    small(toy_lm(ToyEngine()))
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
