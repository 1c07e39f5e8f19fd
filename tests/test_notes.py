"""A run says what it could not do: typed notes, made of what was counted."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest
from replies_support import Told

import cuesmith
from cuesmith.programs.diagnosis.run_record import RunRecord
from cuesmith.teleprompters import ABO, APO, OPRO, IterativeAPE, PromptAgent
from cuesmith.teleprompters.runtime.compilation import Compilation, Note
from cuesmith.teleprompters.runtime.events import Event, Lost, Malformed, Noted, RunStarted
from cuesmith.teleprompters.runtime.outcomes import MetricError, Outcome, ParseFailure, ProviderFailure, Scored
from cuesmith.teleprompters.runtime.remarks import Seen, few_fresh, needed, points, remarks, replies
from cuesmith.teleprompters.runtime.statistics import pairs_to_show
from cuesmith.teleprompters.search.examples import threshold_of
from cuesmith.testing.fakes import chat

Answer = Callable[[str, str, int], str]
TRAIN = [dspy.Example(question=f"say w{i}", answer=f"w{i}").with_inputs("question") for i in range(30)]


def model(reply: Answer | Told, name: str = "target") -> dspy.LM:
    return (reply if isinstance(reply, Told) else Told(reply)).lm(name)


def says(system: str, user: str, n: int) -> str:
    """A target that answers right where it is told to do BETTER."""
    return chat({"answer": re.findall(r"say (\w+)", user)[-1] if "BETTER" in system else "no"})


def writes(instruction: str) -> Answer:
    """An optimizer that writes `instruction` into every text field and two steps into every list."""

    def reply(system: str, user: str, n: int) -> str:
        part = system.split("Your output fields are:", 1)[-1].split("All interactions will be", 1)[0]
        kinds = re.findall(r"`(\w+)` \((.*?)\)", part)
        steps = json.dumps(["Read the question.", "Give the answer."])
        return chat(
            {k: steps if t.startswith("list") else "1" if t == "int" else f"{instruction} {n}" for k, t in kinds}
        )

    return reply


def refuses(system: str, user: str, n: int) -> str:
    return "Sorry, I can't help with that."


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


def compiled(
    kind: type,
    optimizer: Answer,
    metric: Callable[..., object] = exact,
    target: Answer = says,
    train: list[dspy.Example] = TRAIN,
    **options: object,
) -> Compilation:
    small = {"steps": 1, "width": 2, "branch": 2, "initial": 2, **options}
    with dspy.context(lm=model(target)), warnings.catch_warnings():
        warnings.simplefilter("ignore", cuesmith.CompileWarning)
        made = kind(metric=metric, optimizer_lm=model(optimizer, "optimizer"), **small)
        found = made.compile(dspy.Predict("question -> answer"), trainset=train).compilation
    assert isinstance(found, Compilation)
    return found


def kinds(found: Compilation) -> dict[str, str]:
    return {note.kind: note.text for note in found.notes}


# --- the optimizer's replies ---


@pytest.mark.parametrize("kind", [IterativeAPE, APO, OPRO, ABO, PromptAgent])
def test_an_optimizer_that_refuses_is_no_search_that_found_nothing(kind: type) -> None:
    found = compiled(kind, refuses)
    said = kinds(found)
    assert re.match(r"0 of (\d+) optimizer replies could be used: \1 refused; the first: Adapter", said["replies"])
    assert said["verdict"].startswith("Nothing was tried") and "not one of" in said["verdict"]
    assert not any("Nothing scored above" in note for note in found.notes) and len(found.candidates) == 1


def test_it_is_warned_of_too_and_only_then() -> None:
    with (
        pytest.warns(cuesmith.CompileWarning, match="0 of 3 optimizer replies could be used"),
        dspy.context(lm=model(says)),
    ):
        IterativeAPE(exact, optimizer_lm=model(refuses), steps=0, initial=2).compile(
            dspy.Predict("question -> answer"), trainset=TRAIN
        )
    with warnings.catch_warnings(), dspy.context(lm=model(says)):
        warnings.simplefilter("error", cuesmith.CompileWarning)
        IterativeAPE(exact, optimizer_lm=model(writes("BETTER")), steps=0, initial=2).compile(
            dspy.Predict("question -> answer"), trainset=TRAIN
        )


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


@pytest.mark.parametrize("how", ["plain", "in a running loop", "awaited", "as a task"])
def test_a_warning_points_at_the_line_that_called_compile(how: str) -> None:
    """Also where the compile runs on a thread or a task of its own; the metric's warning and the optimizer's alike."""
    made = IterativeAPE(lambda example, prediction: 0.0, optimizer_lm=model(refuses), steps=0, initial=2)
    compiled_by = functools.partial(made.compile, dspy.Predict("question -> answer"), trainset=TRAIN)
    awaited_by = functools.partial(made.acompile, dspy.Predict("question -> answer"), trainset=TRAIN)
    lines: list[int] = []

    async def running() -> None:
        if how == "in a running loop":
            lines.append(here() + 1)
            compiled_by()
        elif how == "awaited":
            lines.append(here() + 1)
            await awaited_by()
        else:
            await asyncio.create_task(awaited_by())

    with dspy.context(lm=model(says)), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if how == "plain":
            lines.append(here() + 1)
            compiled_by()
        else:
            lines.append(here() + 1)
            asyncio.run(running())
    ours = [each for each in told if issubclass(each.category, cuesmith.CompileWarning)]
    assert len(ours) > 1 and {(each.filename, each.lineno) for each in ours} == {(__file__, lines[-1])}


def test_some_replies_that_cannot_be_used_are_counted_and_leave_the_verdict() -> None:
    good = writes("plain")
    found = compiled(IterativeAPE, lambda s, u, n: refuses(s, u, n) if n <= 2 else good(s, u, n), max_in_flight=1)
    said = kinds(found)
    assert re.match(r"\d+ of \d+ optimizer replies could be used: 1 refused; ", said["replies"])
    assert said["verdict"] == "Nothing scored above the student: it is returned unchanged."


@pytest.mark.parametrize(("gained", "lost"), [(2, 99), (99, 1)])
def test_a_choice_that_is_behind_on_fresh_examples_is_given_up_unless_all_examples_speak_for_it(
    gained: int, lost: int
) -> None:
    select: list[str] = []
    fresh: list[str] = []

    def target(system: str, user: str, n: int) -> str:
        word, better = re.findall(r"say (\w+)", user)[-1], "BETTER" in system
        searching.append(better)
        if word.startswith("w"):  # to show the optimizer
            return says(system, user, n)
        part = fresh if any(searching) and word not in select else select
        part += [] if word in part else [word]
        wrong = better and fresh.index(word) < lost if part is fresh else not better and select.index(word) < gained
        return chat({"answer": "no" if wrong else word})

    searching: list[bool] = []
    judged = [dspy.Example(question=f"say v{i}", answer=f"v{i}").with_inputs("question") for i in range(20)]
    with dspy.context(lm=model(target)):
        made = IterativeAPE(
            exact, optimizer_lm=model(writes("BETTER"), "optimizer"), steps=1, initial=2, max_in_flight=1
        )
        found = made.compile(dspy.Predict("question -> answer"), trainset=TRAIN, valset=judged).compilation
    student, best = found.baseline, max(found.candidates, key=lambda trial: trial.mean)
    assert student.select is not None and student.select.mean < best.mean == 1.0
    assert student.fresh is not None and student.fresh.mean == 1.0 and student.fresh.n == len(fresh) > 4
    assert found.gain is not None
    if lost == 1:
        assert found.best.candidate != student.candidate and found.gain.difference == pytest.approx(-1 / len(fresh))
        return
    assert found.best.candidate == student.candidate and found.gain.difference == 0.0
    assert kinds(found)["verdict"] == (
        f"The best by the selection examples scored 1 less than the student on fresh ones (n = {len(fresh)}): "
        "the student is returned unchanged."
    )


def test_a_search_that_goes_well_says_nothing_of_the_kind() -> None:
    said = kinds(compiled(IterativeAPE, writes("BETTER")))
    assert set(said) == {"length", "power", "verdict"} and "significant (n = " in said["verdict"]


def test_the_same_replies_make_the_same_note_in_any_order() -> None:
    kinds: list[Lost] = ["cut", "refused", "refused", "empty"]
    lost = [Malformed("S", f"reason {i}", kind) for i, kind in enumerate(kinds)]
    text = "12 of 16 optimizer replies could be used: 2 refused, 1 cut, 1 empty; the first: reason 1"
    assert replies(16, lost) == replies(16, lost[::-1]) == text


# --- drafts and demonstrations ---


def test_dropped_drafts_and_demonstrations_are_one_note_each() -> None:
    dropped, unworked = Counter({"too long": 1, "copied": 2}), Counter({"its last step is wrong": 3})
    seen = Seen(drafts=8, dropped=dropped, worked=4, unworked=unworked)
    assert [(note.kind, note.text) for note in remarks(seen)] == [
        ("dropped", "3 of 8 drafts dropped: copied 2, too long (1)."),
        ("dropped", "3 of 4 demonstrations dropped: its last step is wrong (3)."),
    ]


def test_demonstrations_are_counted_where_they_are_dropped() -> None:
    found = compiled(ABO, writes("plain"), steps=0, demos_per_predictor=2, retries=0)
    (note,) = (note for note in found.notes if "demonstrations" in note)
    assert note == "4 of 4 demonstrations dropped: it repeats a step's wording (4)."


# --- the metric's scale ---


def graded(right: float, wrong: float) -> Callable[..., float]:
    return lambda example, prediction, trace=None: right if example.answer == prediction.answer else wrong


@pytest.mark.parametrize(("right", "wrong"), [(5, 1), (5, 2), (90.0, 40.0), (100, 0), (0.0, -3.0), (0.9, 0.2)])
@pytest.mark.parametrize("kind", [APO, ABO, PromptAgent])
def test_failures_are_shown_whatever_the_scale(kind: type, right: float, wrong: float) -> None:
    optimizer = Told(writes("plain"))
    with dspy.context(lm=model(says)):
        kind(metric=graded(right, wrong), optimizer_lm=model(optimizer), steps=1, width=2, branch=2, initial=1).compile(
            dspy.Predict("question -> answer"), trainset=TRAIN
        )
    assert any("response" in sent.user and "answer: no" in sent.user for sent in optimizer.sent)


@pytest.mark.parametrize(
    ("seen", "gold", "threshold"),
    [
        ([0.0, 1.0], [], 1.0),
        ([0.3, 0.7], [1.0], 1.0),
        ([1.0, 1.0], [1.0], 1.0),
        ([0.2, 0.2], [0.9], 0.9),  # 0 to 1
        ([0.0, 0.0], [0.0], 1.0),
        ([0.0, 0.0], [], 1.0),
        ([1.0, 1.0], [5.0, 4.0], 4.0),
        ([2.0, 5.0], [5.0], 5.0),
        ([0.0, 0.0], [100.0], 100.0),  # right answers tell
        ([-3.0, -1.0], [0.0], 0.0),
        ([2.0, 4.0], [1.0], 4.0),
        ([2.0, 4.0], [], 4.0),  # they do not: the best seen
    ],
)
def test_where_success_begins(seen: list[float], gold: list[float], threshold: float) -> None:
    assert threshold_of(seen, gold, 1.0) == threshold


def test_where_all_answers_score_alike_on_an_unknown_scale_only_a_higher_one_is_a_success() -> None:
    assert 2.0 < threshold_of([2.0, 2.0], [], 1.0) < 2.001


def test_another_scale_is_named_with_what_counts_as_a_success() -> None:
    said = kinds(compiled(APO, writes("plain"), graded(5, 2)))
    assert "All scores were 2" in said["scale"] and "success from 5 on" in said["scale"]
    said = kinds(compiled(APO, writes("BETTER"), graded(5, 2)))
    assert "Scores went from 2 to 5" in said["scale"]
    assert "scale" not in kinds(compiled(APO, writes("BETTER"), graded(1, 0)))


def test_a_threshold_that_every_answer_reaches_is_named() -> None:
    half = lambda example, prediction, trace=None: 0.5 + 0.25 * (len(example.answer) % 2)  # noqa: E731
    said = kinds(compiled(APO, writes("plain"), half, threshold=0.5))
    assert "counted as a success (scores 0.5 to 0.75, threshold 0.5)" in said["threshold"]
    assert "threshold=" in said["threshold"]
    said = kinds(compiled(APO, writes("plain"), graded(0.9, 0.2)))
    assert "No answer came up to the threshold of 0.9: the highest score is 0.2." in said["threshold"]
    assert "threshold" not in kinds(compiled(APO, writes("plain"), graded(1.0, 0.0)))


def test_a_threshold_that_is_given_is_kept() -> None:
    said = kinds(compiled(APO, writes("plain"), graded(5, 2), threshold=1.0))
    assert "success from 1 on" in said["scale"]


# --- nothing above 0 ---


def test_a_metric_that_reads_no_field_is_asked_about() -> None:
    typo = lambda example, prediction, trace=None: getattr(prediction, "anwser", None) == example.answer  # noqa: E731
    said = kinds(compiled(IterativeAPE, writes("BETTER"), typo))
    assert said["zero"].startswith("Nothing ever scored above 0")
    assert "answer = 'no'; expected: answer = 'w" in said["zero"]
    assert "the score 0" in said["gold"]
    assert "zero" not in kinds(compiled(IterativeAPE, writes("BETTER")))


def test_long_and_secret_values_are_not_repeated_whole() -> None:
    long = [dspy.Example(question=f"q{i}", answer=f"{i} " + "x" * 5000).with_inputs("question") for i in range(12)]
    found = compiled(IterativeAPE, writes("plain"), train=long)
    assert 50 < len(kinds(found)["zero"]) < 800


def test_replies_that_cannot_be_read_are_not_the_metrics_fault() -> None:
    found = compiled(IterativeAPE, writes("plain"), target=lambda s, u, n: "")
    assert kinds(found)["zero"].startswith("No program run gave an answer that could be read")


# --- missing and cut runs ---


def test_missing_runs_are_one_note_with_their_reasons() -> None:
    late = ProviderFailure("timeout")
    ran: list[Outcome] = [Scored(1.0), late, late, MetricError("bad"), ParseFailure("x"), ProviderFailure("z")]
    note, unread = remarks(Seen(ran=ran))
    assert unread.text == "1 of 6 program runs gave no answer that could be read, which counts as a failure: x"
    assert note.kind == "missing" and note.text == (
        "4 of 6 program runs have no score, and were compared without: 2 times timeout; 1 times bad; 1 more reasons."
    )


def test_answers_that_cannot_be_read_are_told_where_there_are_many() -> None:
    def some(right: int, unread: int) -> list[str]:
        ran: list[Outcome] = [*[Scored(1.0)] * right, *[ParseFailure("no field")] * unread]
        return [note.text for note in remarks(Seen(ran=ran)) if note.kind == "unread"]

    assert some(39, 1) == some(0, 9) == [] and some(38, 2)[0].startswith("2 of 40 program runs gave no answer")


def test_a_metric_that_fails_at_times_is_one_note() -> None:
    def fails(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        if example.answer.endswith("1"):
            raise ValueError(f"cannot judge {example.answer}")  # another text each time
        return exact(example, prediction)

    found = compiled(IterativeAPE, writes("BETTER"), fails)
    assert sum(note.kind == "missing" for note in found.notes) == 1
    assert "cannot judge" in kinds(found)["missing"]


def test_cut_replies_of_the_target_are_counted() -> None:
    notes = list(remarks(Seen(ran=[Scored(1.0, cut=1), ParseFailure("x", cut=2), Scored(0.0)])))
    assert [note.kind for note in notes] == ["cut"] and notes[0].startswith("In 2 of 3 program runs")


# --- few fresh examples ---


def test_the_number_of_pairs_that_show_a_gain() -> None:
    assert (pairs_to_show(0.1), pairs_to_show(0.05), pairs_to_show(0.5)) == (71, 150, 8)
    assert pairs_to_show(1.0) == 6
    assert pairs_to_show(0.1, [0.0, 1.0, -1.0, 0.0] * 10) > 300  # answers become worse too
    assert pairs_to_show(0.1, [0.05, 0.1, 0.0, 0.02] * 10) == 6  # a metric of parts of a point, with little spread
    assert pairs_to_show(0.1, [0.0] * 40) == 71  # of 0 and 1: that nothing was seen to change says little


def test_that_many_pairs_do_show_it_in_eight_of_ten_studies() -> None:
    import numpy as np

    from cuesmith.teleprompters.runtime.statistics import paired_gain

    n, rng = pairs_to_show(0.1), np.random.default_rng(0)
    draws = [(rng.random(n) < 0.1).astype(float).tolist() for _ in range(300)]
    shown = [paired_gain([0.0] * n, better).p_value < 0.05 for better in draws]
    assert 0.7 < sum(shown) / len(shown) < 0.9


def test_few_fresh_examples_are_told_before_and_after() -> None:
    assert few_fresh(71) is None and few_fresh(0) is None
    note = few_fresh(1)
    assert note is not None and note.kind == "power" and note.startswith("1 fresh example measures")
    # a gain on two of the five examples at most
    lucky = lambda s, u, n: chat({"answer": re.findall(r"say (\w+)", u)[-1] if "BETTER" in s and "1" in u else "no"})  # noqa: E731
    said = kinds(compiled(IterativeAPE, writes("BETTER"), target=lucky, train=TRAIN[:20]))
    assert "71 to be shown, one of 5 takes 150" in said["power"]
    wanted = r"No significant gain on fresh examples \(n = 5, .*about \d+ would show a gain of 10 points, \d+ one of 5"
    assert re.search(wanted, said["verdict"])


def test_points_are_of_the_metrics_own_scale() -> None:
    assert [points(of) for of in ([0.0, 0.5], [20.0, 70.0], [3.0, 3.0], [])] == [1.0, 50.0, 1.0, 1.0]
    assert needed([0.0, 100.0] * 20, 100.0) == needed([0.0, 1.0] * 20, 1.0)


# --- notes as values ---


def test_a_note_is_its_sentence_and_has_a_kind() -> None:
    note = Note("verdict", "It is so.")
    copied = pickle.loads(pickle.dumps(note))
    assert note == "It is so." and (copied.kind, copied.text) == ("verdict", "It is so.")
    assert json.dumps([note]) == '["It is so."]'


def test_notes_are_events_after_the_start_and_stand_in_the_record_with_their_kind(tmp_path: Path) -> None:
    events: list[Event] = []
    with dspy.context(lm=model(says)):
        made = IterativeAPE(
            exact, optimizer_lm=model(writes("BETTER")), steps=0, initial=1, callbacks=events.append
        )  # one function, not a tuple
        found = made.compile(dspy.Predict("question -> answer"), trainset=TRAIN, run_dir=tmp_path).compilation
    assert [event.note for event in events if isinstance(event, Noted)] == list(found.notes)
    assert isinstance(events[0], RunStarted)
    stored = json.loads((tmp_path / "record.json").read_text())["notes"]
    assert stored == [{"kind": note.kind, "text": note.text} for note in found.notes] and len(stored) == 3
    read = RunRecord.read(tmp_path).notes
    assert [(note.kind, note.text) for note in read] == [(note.kind, note.text) for note in found.notes]


@pytest.mark.parametrize("thinks", [True, False])
def test_thinking_that_was_taken_off_is_named_also_by_a_resumed_run(thinks: bool, tmp_path: Path) -> None:
    def target(system: str, user: str, n: int) -> str:
        return ("<think>no</think>\n" if thinks else "") + says(system, user, n)

    made = IterativeAPE(exact, optimizer_lm=model(writes("BETTER"), "optimizer"), steps=0, initial=1)
    with dspy.context(lm=model(target)):
        for _ in range(2):
            found = made.compile(dspy.Predict("question -> answer"), trainset=TRAIN, run_dir=tmp_path).compilation
            assert isinstance(found, Compilation) and ("thinking" in kinds(found)) is thinks


def test_every_note_of_a_run_has_a_kind_of_one_word() -> None:
    for found in (compiled(ABO, refuses), compiled(APO, writes("plain"), graded(5, 2))):
        assert all(isinstance(note, Note) and re.fullmatch("[a-z]+", note.kind) for note in found.notes)


@pytest.mark.parametrize("bad", [3, [3], {"a": 1}])
def test_callbacks_that_are_none_are_one_clear_error(bad: object) -> None:
    with pytest.raises(TypeError, match="callbacks"):
        IterativeAPE(exact, callbacks=bad)  # type: ignore[arg-type]
