"""What can be known to be wrong is said before the first call is paid for."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import dspy
import pytest
from processes_support import Forked, on_a_terminal

import cuesmith
from cuesmith.teleprompters import APO, IterativeAPE
from cuesmith.teleprompters.peers.copro import COPRO
from cuesmith.teleprompters.runtime import preflight
from cuesmith.teleprompters.runtime._dspy import PaidCall, no_calls
from cuesmith.teleprompters.runtime.compilation import Note
from cuesmith.teleprompters.runtime.metric import Metric
from cuesmith.teleprompters.runtime.preflight import check_gold, check_inputs, check_parts, takes
from cuesmith.testing import Engine

ANSWER = "[[ ## label ## ]]\na\n\n[[ ## instruction ## ]]\nDo.\n\n[[ ## completed ## ]]"


def fixed(text: str = ANSWER) -> Engine:
    """Return a model that always answers the same."""
    return Engine(lambda sent: text)


def examples(n: int = 12, *inputs: str, **fields: str) -> list[dspy.Example]:
    values = fields or {"review": "r", "label": "l"}
    return [
        dspy.Example(**{k: f"{v}{i}" for k, v in values.items()}).with_inputs(*(inputs or ("review",)))
        for i in range(n)
    ]


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.label == prediction.label)


class Counted:
    """A metric that gives the same to everything, and counts."""

    def __init__(self, score: float) -> None:
        self.score, self.calls = score, 0

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        self.calls += 1
        return self.score


class Named(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("review -> label")

    def forward(self, review: str, tone: str = "") -> dspy.Prediction:
        return self.guess(review=review)


class Awaited(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("review -> label")

    async def aforward(self, review: str) -> dspy.Prediction:
        return await self.guess.acall(review=review)


class Renaming(dspy.Module):  # type: ignore[misc]
    """Takes anything, and makes of it what its predictor takes."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("review -> label")

    def forward(self, **given: str) -> dspy.Prediction:
        return self.guess(review=given["text"])


def supplied(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(self: object, *args: object, **given: object) -> object:
        return forward(self, *args, tone="kind", **given)

    return wrapper


class Decorated(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("review -> label")

    @supplied
    def forward(self, review: str, tone: str) -> dspy.Prediction:
        return self.guess(review=review)


class Takes2(dspy.Module):  # type: ignore[misc]
    """A program whose code takes a label."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("review -> label")

    def forward(self, review: str, label: str) -> object:
        """Answer."""
        return self.say(review=review)


class Calling(dspy.Module):  # type: ignore[misc]
    """Is called in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("review -> label")

    def __call__(self, **given: str) -> dspy.Prediction:
        return super().__call__(next(iter(given.values())))

    def forward(self, review: str) -> dspy.Prediction:
        return self.guess(review=review)


def look_up(word: str) -> str:
    """Look a word up."""
    return word


OWN = [
    lambda: dspy.Predict("review -> label"),
    lambda: dspy.ChainOfThought("review -> label"),
    lambda: dspy.ReAct("review -> label", tools=[look_up]),
    lambda: dspy.BestOfN(dspy.Predict("review -> label"), N=2, reward_fn=lambda a, p: 1.0, threshold=1.0),
    lambda: dspy.Refine(dspy.ChainOfThought("review -> label"), N=2, reward_fn=lambda a, p: 1.0, threshold=1.0),
]


# --- inputs against the program ---


@pytest.mark.parametrize("program", [*OWN, Named, Awaited])
def test_a_field_that_the_program_does_not_take_is_an_error_before_any_call(program: Any) -> None:
    engine, metric = fixed(), Counted(1.0)
    train = examples(12, "text", text="t", label="l")
    with dspy.context(lm=engine.lm("m")), pytest.raises(ValueError) as error:
        IterativeAPE(metric).compile(program(), trainset=train)
    assert engine.calls == 0 and not metric.calls
    assert "trainset[0] has 'text' marked as input" in str(error.value) and "takes 'review'" in str(error.value)
    assert "rename 'text' to 'review', and mark the inputs by .with_inputs('review')" in str(error.value)


def test_the_example_at_fault_is_named_in_either_set() -> None:
    good, bad = examples(8), examples(1, "label")
    with pytest.raises(ValueError, match=r"trainset\[8\] .*mark the inputs by .with_inputs\('review'\)"):
        check_inputs(Named(), trainset=[*good, *bad], valset=None)
    with pytest.raises(ValueError, match=r"valset\[2\]"):
        check_inputs(dspy.Predict("review -> label"), trainset=good, valset=[*good[:2], *bad])
    maker = IterativeAPE(exact)
    with pytest.raises(ValueError, match=r"valset\[0\]"):
        maker.estimate(Named(), trainset=good, valset=bad)


def test_a_needed_field_that_was_left_unmarked_is_an_error() -> None:
    both = examples(3, "question", context="c", question="q", answer="a")
    with pytest.raises(ValueError, match=r"\.with_inputs\('context', 'question'\)"):
        check_inputs(dspy.ChainOfThought("context, question -> answer"), trainset=both)


@pytest.mark.parametrize(
    ("program", "train"),
    [
        (Named, examples(2)),
        (Named, examples(2, "review", "tone", review="r", tone="t", label="l")),
        (Awaited, examples(2)),
        (Renaming, examples(2, "text", text="t", label="l")),
        (Decorated, examples(2)),
        (Calling, examples(2)),
        (Calling, examples(2, "text", text="t", label="l")),
        *((own, examples(2)) for own in OWN),
        # dspy leaves out what a signature has a default or an Optional for.
        (
            lambda: dspy.Predict(
                dspy.Signature(
                    {
                        "review": (str, dspy.InputField()),
                        "hint": (str | None, dspy.InputField()),
                        "history": (dspy.History, dspy.InputField()),
                        "tone": (str, dspy.InputField(default="kind")),
                        "label": (str, dspy.OutputField()),
                    }
                )
            ),
            examples(2),
        ),
    ],
)
def test_what_can_work_is_not_refused(program: Any, train: list[dspy.Example]) -> None:
    notes = check_inputs(program(), trainset=train)
    assert notes == () or (program is Renaming and [note.kind for note in notes] == ["inputs"])


def test_an_input_that_the_program_does_not_take_is_a_note() -> None:
    (note,) = check_inputs(OWN[0](), trainset=examples(2, "review", "id", review="r", id="i", label="l"))
    assert note.kind == "inputs" and "'id' marked as input, which the program (Predict) does not take" in note


def test_an_answer_that_is_marked_as_input_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'label' marked as input, which .* is to answer: .*with_inputs\('review'\)"):
        check_inputs(dspy.Predict("review -> label"), trainset=examples(2, "review", "label", review="r", label="l"))
    both = examples(2, "review", "label", review="r", label="l")
    assert check_inputs(Takes2(), trainset=both) == (), "its code takes both"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n": "many"}, "trainset[0] has n = 'many', a str: the signature has another type"),
        ({"n": None}, "2 of 2 examples of trainset have None as 'n'"),
        ({"n": 3, "label": None}, "All 2 examples of trainset have None as 'label'"),
    ],
)
def test_values_that_cannot_be_meant_are_a_note(values: dict[str, object], said: str) -> None:
    given = [dspy.Example(label="l").copy(**values).with_inputs("n") for _ in range(2)]
    (note,) = check_inputs(dspy.Predict("n: int -> label"), trainset=given)
    assert note.text.startswith(said)


def test_a_field_that_the_examples_do_not_have_at_all_is_a_note() -> None:
    program = dspy.Predict("context, question -> answer")
    (note,) = check_inputs(program, trainset=examples(3, "question", question="q", answer="a"))
    assert note.kind == "inputs" and "the example has no 'context'" in note


def test_programs_that_do_not_tell_are_left_alone() -> None:
    assert takes(Calling()).open and takes(Calling()).fields == ()


@pytest.mark.parametrize(
    ("program", "inputs"),
    [
        (OWN[1], "'review'"),
        (Named, "'review'"),
        (lambda: dspy.Predict("context, question -> answer"), "'context', 'question'"),
    ],
)
def test_examples_without_inputs_are_told_the_programs_own_fields(program: Any, inputs: str) -> None:
    with dspy.context(lm=fixed().lm("m")), pytest.raises(ValueError) as error:
        IterativeAPE(exact).compile(program(), trainset=[dspy.Example(review="x", label="y")])
    assert str(error.value) == f"trainset[0] has no inputs marked: write dspy.Example(...).with_inputs({inputs})"


# --- the metric on a gold answer ---


def gold(
    metric: Any,
    train: list[dspy.Example] | None = None,
    program: dspy.Module | None = None,
    threshold: float | None = None,
) -> tuple[Note, ...]:
    found = check_gold(
        Metric(metric), examples() if train is None else train, program or dspy.Predict("review -> label"), threshold
    )
    return asyncio.run(found)


def test_a_gold_that_its_own_metric_refuses_is_named_before_the_first_call() -> None:
    """As of GSM8K: the label is a worked solution, and the metric wants the number alone."""
    train = [
        dspy.Example(question=f"q{i}", answer=f"{i} + 1 = {i + 1}\n#### {i + 1}").with_inputs("question")
        for i in range(12)
    ]
    engine, before = fixed("[[ ## answer ## ]]\n7\n\n[[ ## instruction ## ]]\nDo.\n\n[[ ## completed ## ]]"), []

    def number(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        before.append(engine.calls)
        return bool(prediction.answer == example.answer.split("#### ")[-1])

    with dspy.context(lm=engine.lm("m")), pytest.warns(cuesmith.CompileWarning, match="of example 0"):
        found = (
            IterativeAPE(number, steps=0, initial=1)
            .compile(dspy.Predict("question -> answer"), trainset=train)
            .compilation
        )
    assert before[0] == 0 and before.count(0) <= 3
    (note,) = (note for note in found.notes if note.kind == "gold")
    assert "(answer = '0 + 1 = 1 #### 1') the score 0" in note


def test_a_label_in_a_file_is_text_where_the_program_answers_a_number() -> None:
    train = [dspy.Example(question=f"q{i}", pieces=str(i)).with_inputs("question") for i in range(12)]
    seen = []

    def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        seen.append(prediction.pieces)
        return bool(int(example.pieces) == prediction.pieces)

    engine = fixed("[[ ## pieces ## ]]\n7\n\n[[ ## instruction ## ]]\nDo.\n\n[[ ## completed ## ]]")
    with dspy.context(lm=engine.lm("m")):
        found = (
            IterativeAPE(right, steps=0, initial=1)
            .compile(dspy.Predict("question -> pieces: int"), trainset=train)
            .compilation
        )
    assert seen[0] == 0 and not [note for note in found.notes if note.kind == "gold"]


def test_a_metric_that_takes_its_gold_is_called_once_and_nothing_is_said() -> None:
    metric = Counted(1.0)
    assert gold(metric) == () and metric.calls == 1
    assert gold(exact) == ()


@pytest.mark.parametrize("returned", [None, "yes", ("right", 1.0), [1.0], float("nan"), {"feedback": "none"}])
def test_a_metric_that_gives_right_answers_no_score_is_refused_before_the_first_call(returned: object) -> None:
    engine = fixed()
    with dspy.context(lm=engine.lm("m")), pytest.raises(ValueError, match=r"metric returned .* of example 0"):
        IterativeAPE(lambda e, p, t=None: returned).compile(dspy.Predict("review -> label"), trainset=examples())
    assert engine.calls == 0
    given = iter(["no score", 1.0, 1.0])
    assert gold(lambda e, p, t=None: next(given)) == ()


@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
def test_a_metric_that_reads_a_label_which_the_program_never_answers_is_refused(kind: Any) -> None:
    engine, program = fixed(), kind("review -> mood")
    with dspy.context(lm=engine.lm("m")), pytest.raises(ValueError, match=r"reads 'label' .* not answer: .*'mood'"):
        IterativeAPE(exact).compile(program, trainset=examples())
    assert engine.calls == 0
    assert gold(lambda e, p, t=None: p.get("mood") == e.label, program=program) != (), "only said to score 0"


def test_a_label_that_is_none_of_the_options_is_a_note() -> None:
    given = examples(4, review="r", label="A") + examples(2, review="r", label="b")
    text = "review -> label: Literal['a0', 'a1', 'a2', 'B0 ']"
    (note,) = check_inputs(dspy.Predict(text), trainset=given)
    assert "2 of 6 examples of trainset have 'A3', 'b1' as 'label', which is none of the options" in note.text
    assert check_inputs(dspy.Predict("review -> label"), trainset=given) == ()
    moods = dspy.Signature("review -> label: Moods", custom_types={"Moods": Enum("Moods", {"GOOD": "a0", "BAD": "b0"})})
    (note,) = check_inputs(dspy.Predict(moods), trainset=examples(2, review="r", label="a"))
    assert "1 of 2 examples of trainset have 'a1' as 'label'" in note.text


def test_what_seems_wrong_is_looked_into_with_at_most_three_calls() -> None:
    metric = Counted(0.0)
    (note,) = gold(metric)
    assert note.kind == "gold" and metric.calls <= 3


def test_of_a_loss_zero_is_the_best() -> None:
    assert gold(lambda e, p, t=None: -float(e.label != p.label)) == ()
    assert len(gold(lambda e, p, t=None: -1.0)) == 1


def test_a_gold_below_the_threshold_is_told() -> None:
    (note,) = gold(lambda e, p, t=None: 0.9, threshold=1.0)
    assert note.kind == "threshold" and "give threshold=0.9" in note
    assert gold(lambda e, p, t=None: 0.9) == () and gold(lambda e, p, t=None: 5, threshold=4.0) == ()
    assert APO(exact).success == 1.0 and APO(exact, threshold=3).success == 3 and COPRO(exact).success is None


def test_feedback_async_and_long_metrics_are_read_as_in_a_run() -> None:
    async def waits(example: dspy.Example, prediction: dspy.Prediction) -> float:
        await asyncio.sleep(0)
        return 0.0

    assert len(gold(waits)) == 1
    assert len(gold(lambda e, p, t=None: dspy.Prediction(score=0.0, feedback="no"))) == 1
    assert len(gold(lambda gold, pred, trace, pred_name, pred_trace: 0.0)) == 1


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("label"), SystemExit(3), AssertionError()])
def test_a_metric_that_needs_more_than_gold_is_left_alone(error: BaseException) -> None:
    def raises(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise error

    assert gold(raises) == ()


def test_a_field_that_nothing_has_is_named() -> None:
    (note,) = gold(lambda e, p, t=None: e.label == p.lable)
    assert note == "The metric reads 'lable' of a prediction, which has none: there are 'label', 'review'."
    (note,) = gold(lambda e, p, t=None: e.lable == p.label)
    assert "'lable' of an example" in note
    # Of a program's own code nobody knows what it returns; reasoning is an output that gold lacks.
    assert gold(lambda e, p, t=None: e.label == p.lable, program=Named()) == ()
    assert gold(lambda e, p, t=None: bool(p.reasoning), program=dspy.ChainOfThought("review -> label")) == ()


def test_examples_without_labels_are_not_judged() -> None:
    assert gold(lambda e, p, t=None: 1 / 0, train=[dspy.Example(review="r").with_inputs("review")]) == ()


def test_a_slow_metric_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PATIENCE", 0.05)
    release = threading.Event()
    started = time.monotonic()
    assert gold(lambda e, p, t=None: release.wait(30) or 0.0) == ()
    assert time.monotonic() - started < 5
    release.set()


# --- no judge is paid ---


def _bare(ask: Any) -> Any:
    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        try:
            return float(ask() == "a")
        except:  # noqa: E722  (as people write it)
            return 0.0

    return metric


def _threaded(ask: Any) -> Any:
    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        with ThreadPoolExecutor(1) as pool:
            return float(pool.submit(ask).result() == "a")

    return metric


def _plain(ask: Any) -> Any:
    return lambda e, p, t=None: float(ask() == "a")


def _awaiting(ask: Any) -> Any:
    async def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(ask() == "a")

    return metric


@pytest.mark.parametrize("form", [_plain, _bare, _threaded, _awaiting])
def test_a_metric_that_calls_a_model_is_not_paid_for_beforehand(form: Any) -> None:
    engine = fixed()
    judge = dspy.Predict("review -> label")

    def ask() -> str:
        with dspy.context(lm=engine.lm("m")):
            return str(judge(review="x").label)

    assert gold(form(ask)) == () and engine.calls == 0
    assert ask() == "a" and engine.calls == 1  # outside it is as before


def test_embedders_are_refused_too() -> None:
    sent: list[list[str]] = []

    def vectors(texts: list[str]) -> list[list[float]]:
        sent.append(texts)
        return [[0.0] for _ in texts]

    embed = dspy.Embedder(vectors, caching=False)
    assert gold(lambda e, p, t=None: float(embed(["x"])[0][0])) == () and not sent
    with no_calls() as tried, pytest.raises(PaidCall):
        embed(["x"])
    assert len(tried) == 1


def test_a_judge_is_metered_as_ever_in_the_run_itself() -> None:
    engine, judge = fixed(), fixed("[[ ## label ## ]]\na\n\n[[ ## completed ## ]]")
    asks = dspy.Predict("review -> label")

    def judged(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        with dspy.context(lm=judge.lm("m")):
            return float(asks(review="x").label == "a")

    with dspy.context(lm=engine.lm("m")):
        found = (
            IterativeAPE(judged, steps=0, initial=0)
            .compile(dspy.Predict("review -> label"), trainset=examples())
            .compilation
        )
    assert found.spent.by_role["judge"].calls == judge.calls > 0


# --- progress by default ---

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import warnings; warnings.simplefilter("ignore")
from test_preflight import examples, exact, fixed
import dspy
from cuesmith.teleprompters import IterativeAPE
dspy.configure(lm=fixed().lm("m"))
IterativeAPE(exact, steps=1, initial=2{options}).compile(dspy.Predict("review -> label"), trainset=examples())
"""


def drawn(options: str = "") -> str:
    """Run a compile and return what a terminal shows of it."""
    done, seen = on_a_terminal(SCRIPT.format(tests=str(Path(__file__).parent), options=options))
    assert done.returncode == 0, seen
    return seen


def test_a_terminal_shows_how_far_a_compile_is_and_what_it_notes() -> None:
    text = drawn()
    assert "IterativeAPE" in text and "candidates" in text and "\x1b[" in text and "fresh examples measure" in text


@pytest.mark.parametrize("options", [", progress=False", ", callbacks=lambda event: None"])
def test_it_shows_nothing_where_it_is_not_wanted(options: str) -> None:
    assert "candidates" not in drawn(options)


def test_it_can_be_wanted_beside_callbacks() -> None:
    assert "candidates" in drawn(", progress=True, callbacks=[lambda event: None]")


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CI": "true"}])
def test_a_pipe_is_silent(env: dict[str, str]) -> None:
    for options in ("", ", progress=True"):
        code = SCRIPT.format(tests=str(Path(__file__).parent), options=options)
        done = Forked(code, env={**os.environ, "TERM": "xterm-256color", **env}).done()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_progress_must_be_a_switch() -> None:
    with pytest.raises(TypeError, match="progress must be True, False or None"):
        IterativeAPE(exact, progress="yes")  # type: ignore[arg-type]


def test_a_clean_compile_warns_of_nothing() -> None:
    with warnings.catch_warnings(), dspy.context(lm=fixed().lm("m")):
        warnings.simplefilter("error", cuesmith.CompileWarning)
        IterativeAPE(exact, steps=0, initial=1).compile(dspy.Predict("review -> label"), trainset=examples())


class Nested(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.steps = {"first": dspy.Predict("review -> topic"), "more": [dspy.ChainOfThought("topic -> label")]}
        self.fixed = dspy.Predict("a -> b")
        self.done = dspy.ChainOfThought("review -> label")
        self.done._compiled = True


def test_predictors_that_dspy_does_not_see_are_told() -> None:
    (note,) = check_parts(Nested())
    assert note.startswith("a predictor stands inside a list or dict of lists or dicts")
    assert "(the first: topic -> reasoning, label)" in note and note.kind == "parts"
    assert check_parts(dspy.ReAct("review -> label", tools=[look_up])) == ()
