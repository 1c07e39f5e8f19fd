"""dspy's own optimizers behind the border: budgets, resume, outages and the record hold for them as for ours.

As a script it compiles once, to be killed: python tests/test_peers.py NAME RUN_DIR LOG
"""

from __future__ import annotations

import asyncio
import builtins
import gc
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import Response, ServerError
from e2e_support import (
    Answer,
    OnlyAsync,
    Provider,
    ToyEngine,
    error_body,
    exact,
    number,
    result_of,
    toy_lm,
    toy_reply,
    words,
)

from cuesmith import Budget, EmbeddedLM, SimulatedOptimizer
from cuesmith.programs.tasks import generate
from cuesmith.teleprompters.peers import COPRO, GEPA, MIPRO, SIMBA, Bootstrap, Peer
from cuesmith.teleprompters.peers.hosting import Host
from cuesmith.teleprompters.peers.quiet import MARK, quiet
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import CompileWarning, Plan
from cuesmith.teleprompters.runtime.events import EffectDone, Event
from cuesmith.teleprompters.runtime.ledger import RunStopped, UnknownPrice
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import CompileError

SMALL: dict[str, tuple[type[Peer], dict[str, object]]] = {
    "mipro": (MIPRO, {"auto": None, "num_candidates": 4, "num_trials": 5}),
    "gepa": (GEPA, {"max_metric_calls": 60}),
    "simba": (SIMBA, {"bsize": 6, "num_candidates": 3, "max_steps": 2}),
    "copro": (COPRO, {"breadth": 3, "depth": 2}),
    "bootstrap": (Bootstrap, {"num_candidate_programs": 3}),
}
each = pytest.mark.parametrize("name", list(SMALL))
asking = pytest.mark.parametrize("name", ["mipro", "gepa", "simba", "copro"])
BACKOFF = "cuesmith.teleprompters.runtime.gate.BACKOFF"


def reply(system: str, user: str, drawn: int | None = None) -> str:
    """Answer the toy task as the toy model, and any other request with an instruction in every output field."""
    inputs, _, rest = system.partition("Your output fields are:")
    if "`question`" in inputs and "`answer`" in rest:
        return toy_reply(system, user, drawn)
    asked = re.findall(r"^\d+\. `(\w+)` \(([^)]*)\)", rest.partition("All interactions")[0], re.MULTILINE)
    text = f"Repeat the word. skill={3 + number(system, user, drawn) % 7}"
    kinds = {"dict": {"self": text}, "list": [text]}
    values = {name: kinds.get(kind[:4], text) for name, kind in asked}
    if "JSON" in system:
        return json.dumps(values)
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in shown.items()) + "[[ ## completed ## ]]"


_shown: ContextVar[bool] = ContextVar("shown", default=False)


class Learner(ToyEngine):
    """Knows every other word, and every word once a demonstration shows what is wanted."""

    def __init__(self, **options: object) -> None:
        super().__init__(reply=learnt, **options)  # type: ignore[arg-type]

    def complete(self, request: object) -> Response:
        """Answer one request."""
        _shown.set(len(request.messages) > 1)  # type: ignore[attr-defined]
        return super().complete(request)


def learnt(system: str, user: str, drawn: int | None = None) -> str:
    """Answer as `Learner`."""
    word = re.search(r"say (\S+)", user)
    known = word is not None and (_shown.get() or number(word[1]) % 2)
    return f"[[ ## answer ## ]]\n{word[1] if word and known else 'no'}\n\n[[ ## completed ## ]]"


@dataclass
class Toy:
    """Both models of a compile, with their engines."""

    task: ToyEngine = field(default_factory=lambda: ToyEngine(reply=reply))
    optimizer: ToyEngine = field(default_factory=lambda: ToyEngine(reply=reply))

    @property
    def calls(self) -> int:
        """Calls that arrived at either engine."""
        return self.task.calls + self.optimizer.calls

    def compile(
        self,
        name: str,
        *,
        metric: Callable[..., object] = exact,
        student: dspy.Module | None = None,
        n_train: int = 12,
        n_val: int = 16,
        run_dir: Path | None = None,
        **options: object,
    ) -> dspy.Module:
        """Compile the toy program by the peer of that name; `options` go before those in `SMALL`."""
        kind, small = SMALL[name]
        given = {"optimizer_lm": toy_lm(self.optimizer, "optimizer"), "max_in_flight": 8, **small, **options}
        with dspy.context(lm=toy_lm(self.task)):
            compiler = kind(metric, **given)
            return compiler.compile(
                student if student is not None else dspy.Predict("question -> answer"),
                trainset=words(n_train, "t"),
                valset=words(n_val, "v") if n_val else None,
                run_dir=run_dir,
            )


def wait_for_pools() -> None:
    """Wait until dspy's own threads, some of which outlive a stop, have done whatever they were going to do."""
    for thread in threading.enumerate():
        if thread.name.startswith(("ThreadPoolExecutor", "cuesmith-host")):
            thread.join(10)
            assert not thread.is_alive()


@each
def test_each_compiles_the_embedded_model(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    from nano.dspy_answers import teach  # this file also runs as a script, without what conftest.py adds

    teach()
    task = generate("objects")
    student = dspy.Predict(task.signature)
    before = Candidate.of(student)
    with dspy.context(lm=EmbeddedLM()):
        compiled = compile(
            student,
            name,
            metric=task.metric,
            trainset=task.train[:12],
            valset=task.validation[:24],
            optimizer_lm=SimulatedOptimizer(),
            **SMALL[name][1],  # type: ignore[arg-type]
        )
        assert compiled(question="I have two bees and a squirrel.").answer
    record = compiled.compilation
    assert Candidate.of(student) == before and not hasattr(student, "compilation")
    assert record.compiler == SMALL[name][0].__name__ and record.stopped_by is None
    assert record.best.select is not None and record.baseline.select is not None
    assert [step.step for step in record.steps] == [0, 1] and record.best.select.n == 12
    assert {t.candidate.origin.move for t in record.candidates} <= {"student", name}
    assert Candidate.of(compiled) == record.best.candidate
    assert record.best.select.mean >= record.baseline.select.mean
    assert capfd.readouterr() == ("", ""), "dspy's optimizers print; a library does not"


@each
def test_a_cap_on_calls_holds_at_the_engines(name: str) -> None:
    toy, student = Toy(), dspy.Predict("question -> answer")
    before = Candidate.of(student)
    compiled = toy.compile(name, student=student, budget=Budget(calls=60))
    record, calls = compiled.compilation, toy.calls
    assert record.spent.total.calls == calls <= 60
    assert calls == 60 or name == "simba", "SIMBA's reserve finds nothing here to be used for"
    wait_for_pools()
    assert toy.calls == calls, "threads that dspy leaves behind send nothing"
    assert Candidate.of(student) == before
    if name in ("mipro", "gepa", "copro"):
        assert record.best.candidate.origin.move == name, "the best so far is returned"
        assert record.best.select.mean > record.baseline.select.mean


def test_caps_on_tokens_and_dollars_hold() -> None:
    toy = Toy()
    assert toy.compile("copro", budget=Budget(tokens=6000)).compilation.stopped_by == "tokens"
    assert 5000 < toy.calls * 120 <= 6000
    with dspy.context(lm=EmbeddedLM()), Provider() as provider:
        compiler = COPRO(
            exact, optimizer_lm=provider.lm("toy", engine="litellm"), budget=Budget(usd=1), breadth=2, depth=1
        )
        with pytest.raises(UnknownPrice, match="needs the price of every call"):
            compiler.compile(dspy.Predict("question -> answer"), trainset=words(4, "t"), valset=words(8, "v"))


@pytest.mark.parametrize("name", ["mipro", "simba", "bootstrap"])
def test_demonstrations_are_found_and_kept(name: str) -> None:
    compiled = Toy(task=Learner()).compile(name)
    record = compiled.compilation
    assert record.best.select.mean == 1.0 > record.baseline.select.mean and len(compiled.demos) > 0
    assert record.best.candidate.origin.move == name and Candidate.of(compiled) == record.best.candidate
    assert record.best.candidate.origin.parents == (record.baseline.candidate.id,)


def test_a_stopped_simba_validates_its_best_on_what_is_held_for_the_report() -> None:
    toy = Toy(task=Learner())
    record = toy.compile("simba", max_steps=8, budget=Budget(calls=100)).compilation
    assert record.stopped_by == "calls" and record.spent.total.calls == toy.calls <= 100
    assert any("Stopped half way" in note for note in record.notes)
    assert len(record.candidates) == 2 and record.candidates[0].n == 8
    assert record.best.candidate.origin.move == "simba" and record.best.select.mean == 1.0


class Leaver(Peer):
    """Hosted code that leaves a thread behind, which calls the model later."""

    MOVE = "leaver"

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return what `optimize` asks for."""
        return Plan(0, 1)

    def optimize(self, run: Run, host: Host) -> dspy.Module:
        """Call the model once, and once more when nobody waits any more."""
        host.task("now")
        self.may_call, self.seen = threading.Event(), list[str]()

        def later() -> None:
            self.may_call.wait(30)
            for lm in (host.task, host.task.copy(temperature=1.0), host.optimizer):
                try:
                    lm("later")
                except RunStopped as stop:
                    self.seen.append(stop.by)

        self.thread = threading.Thread(target=later)
        self.thread.start()
        return host.program


def test_a_thread_left_behind_reaches_no_model() -> None:
    toy = Toy()
    with dspy.context(lm=toy_lm(toy.task)):
        leaver = Leaver(exact, optimizer_lm=toy_lm(toy.optimizer))
        leaver.compile(dspy.Predict("question -> answer"), trainset=words(4, "t"), valset=words(8, "v"))
    calls = toy.calls
    leaver.may_call.set()
    leaver.thread.join(30)
    assert leaver.seen == ["stopped"] * 3 and toy.calls == calls == 4 + 1


class Killed(BaseException):
    """Ends a compile as nothing in dspy can catch."""


@each
def test_a_resumed_run_pays_nothing_twice_and_ends_the_same(name: str, tmp_path: Path) -> None:
    def hook(nth: int) -> None:
        if nth >= 50:
            raise Killed

    def toy(log: str, **options: object) -> Toy:
        return Toy(
            ToyEngine(0.003, tmp_path / log, reply, **options),  # type: ignore[arg-type]
            ToyEngine(0.003, tmp_path / log, reply),
        )

    whole = toy("whole").compile(name, max_in_flight=3)
    with pytest.raises(Killed):
        toy("parts", hook=hook).compile(name, run_dir=tmp_path / "run")
    wait_for_pools()
    resumed = toy("parts").compile(name, run_dir=tmp_path / "run", max_in_flight=2)

    def sent(log: str) -> Counter[str]:
        return Counter(line.split()[0] for line in (tmp_path / log).read_text().splitlines())

    assert sent("parts") == sent("whole"), "what was answered is not sent again, and nothing else is sent"
    expected, found = result_of(whole), result_of(resumed)
    assert {**found, "spent": None} == {**expected, "spent": None}
    assert resumed.compilation.spent.total.replayed > 0


def test_a_killed_process_resumes_from_its_journal(tmp_path: Path) -> None:
    log = tmp_path / "parts"
    child = subprocess.Popen([sys.executable, __file__, "mipro", str(tmp_path / "run"), str(log)])
    while child.poll() is None and (not log.exists() or log.read_text().count("\n") < 60):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was killed on its way"
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    expected = killable("mipro", None, whole)
    resumed = killable("mipro", tmp_path / "run", rest)

    def sent(*logs: Path) -> Counter[str]:
        return Counter(line.split()[0] for log in logs for line in log.read_text().splitlines())

    again = sent(log, rest) - sent(whole)
    assert again.total() <= 8, "a kill repeats at most what was in flight"
    assert not sent(whole) - sent(log, rest) and sent(rest).total() < sent(whole).total() - 40
    assert Candidate.of(resumed) == Candidate.of(expected)


def killable(name: str, run_dir: Path | None, log: Path) -> dspy.Module:
    """Compile with engines that log, slowly enough to be killed on the way."""
    return Toy(ToyEngine(0.02, log, reply), ToyEngine(0.02, log, reply)).compile(name, run_dir=run_dir)


@each
def test_an_outage_stops_and_scores_nothing_as_zero(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKOFF, 0.002)
    judged: list[tuple[str, bool]] = []

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        judged.append((example.question, exact(example, prediction)))
        return judged[-1][1]

    def hook(nth: int) -> None:
        if nth > 45:
            raise ServerError("the provider is down")

    toy = Toy(task=ToyEngine(0.002, reply=reply, hook=hook))
    record = toy.compile(name, metric=metric).compilation
    calls = toy.calls
    wait_for_pools()
    assert toy.calls == calls and toy.task.calls <= 45 + 8 * 6, "eight calls in flight, six attempts each"
    assert record.stopped_by == "outage"
    scores = Counter(s for t in record.candidates for s in t.scores)
    wrong = sum(not right for question, right in judged if question.startswith("say v"))
    assert 0 < scores[0.0] <= wrong, "each 0 in the record is a wrong answer that the metric saw"


@asking
def test_an_optimizer_model_that_refuses_the_key_stops_the_run(name: str) -> None:
    numbers = itertools.count()

    def wavering(system: str, user: str, drawn: int | None = None) -> str:
        return toy_reply(f"skill={9 * (next(numbers) % 2)}", user)

    refused: Answer = (401, {}, error_body("Incorrect API key provided", "invalid_api_key"))
    only_rules = {"max_demos": 0} if name == "simba" else {}
    toy = Toy(task=ToyEngine(reply=wavering))
    with Provider(intercept=lambda nth, body: refused) as provider:
        record = toy.compile(name, optimizer_lm=provider.lm(), **only_rules).compilation  # type: ignore[arg-type]
    assert record.stopped_by == "auth" and provider.calls == 1


@pytest.mark.parametrize("name", ["mipro", "gepa", "copro"])
def test_replies_of_no_use_are_counted(name: str) -> None:
    toy = Toy(optimizer=ToyEngine(reply=lambda *_: "I'm sorry, but I can't help with that."))
    with pytest.warns(CompileWarning, match=r"0 of \d+ optimizer replies could be used: \d+ refused"):
        record = toy.compile(name).compilation
    assert any(note.startswith(f"0 of {toy.optimizer.calls} optimizer replies") for note in record.notes)


def test_a_call_that_does_not_come_back_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()

    def hook(nth: int) -> None:
        if nth == 40:
            release.wait(30)

    toy = Toy(task=ToyEngine(reply=reply, hook=hook))
    try:
        record = toy.compile("copro", budget=Budget(seconds=1.5), max_in_flight=2).compilation
        assert record.stopped_by == "seconds" and toy.task.calls >= 40
        calls = toy.calls
    finally:
        release.set()
    wait_for_pools()
    assert toy.calls == calls
    hung = threading.Event()
    toy = Toy(optimizer=ToyEngine(reply=reply, hook=lambda nth: (hung.wait(30), None)[1]))
    try:
        assert toy.compile("copro", example_timeout=0.5).compilation.stopped_by == "outage"
    finally:
        hung.set()
    wait_for_pools()
    assert capfd.readouterr() == ("", ""), "a thread left behind is quiet, too"


@each
@pytest.mark.parametrize("form", ["small", "as dspy has it", "two predictors"])
def test_the_plan_bounds_what_a_run_takes(name: str, form: str) -> None:
    toy, (kind, options) = Toy(), SMALL[name]
    if form == "as dspy has it":
        options = {}
    student = Two() if form == "two predictors" else dspy.Predict("question -> answer")
    with dspy.context(lm=toy_lm(toy.task)):
        compiler = kind(exact, optimizer_lm=toy_lm(toy.optimizer), max_in_flight=8, **options)  # type: ignore[arg-type]
        forecast = compiler.estimate(student, trainset=words(12, "t"), valset=words(16, "v"))
        assert toy.calls == 0
        compiler.compile(student, trainset=words(12, "t"), valset=words(16, "v"))
    each_run = 2 if form == "two predictors" else 1
    assert toy.task.calls <= forecast.program_runs * each_run and toy.optimizer.calls <= forecast.optimizer_calls
    assert forecast.calls == forecast.program_runs * each_run + forecast.optimizer_calls
    if name == "copro" and form != "two predictors":  # its formula is what it does
        assert toy.optimizer.calls == forecast.optimizer_calls and toy.task.calls == forecast.program_runs


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (MIPRO, {"auto": "huge"}, ValueError, "auto must be one of 'light', 'medium', 'heavy', None, got 'huge'"),
        (MIPRO, {"num_trials": 3}, ValueError, "either auto or both"),
        (MIPRO, {"auto": None, "num_candidates": 3}, ValueError, "either auto or both"),
        (MIPRO, {"max_bootstrapped_demos": 0}, ValueError, "max_labeled_demos needs"),
        (MIPRO, {"init_temperature": "hot"}, TypeError, "init_temperature must be a number"),
        (MIPRO, {"minibatch": 1}, TypeError, "minibatch must be True or False"),
        (GEPA, {"auto": "light", "max_full_evals": 2}, ValueError, "give one of auto, max_full_evals"),
        (GEPA, {"component_selector": "some"}, ValueError, "component_selector must be one of"),
        (SIMBA, {"bsize": 0}, ValueError, "bsize must be at least 1, got 0"),
        (SIMBA, {"temperature_for_sampling": 0}, ValueError, "must be a finite number above 0"),
        (COPRO, {"breadth": 1}, ValueError, "breadth must be at least 2, got 1"),
        (Bootstrap, {"stop_at_score": float("nan")}, ValueError, "stop_at_score must be a finite number"),
        (Bootstrap, {"max_rounds": 1.5}, TypeError, "max_rounds must be an int"),
    ],
)
def test_options_are_checked_early(
    kind: type[Peer], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        kind(exact, optimizer_lm=SimulatedOptimizer(), **options)  # type: ignore[arg-type]


@each
def test_a_typo_in_an_option_is_refused(name: str) -> None:
    toy = Toy()
    with dspy.context(lm=toy_lm(toy.task)), pytest.raises(TypeError, match=r"no option num_treads: .*takes .*seed"):
        compile(dspy.Predict("question -> answer"), name, metric=exact, trainset=words(4), num_treads=4)
    assert toy.calls == 0


@pytest.mark.parametrize(("kind", "package"), [(MIPRO, "optuna"), (GEPA, "gepa")])
def test_a_missing_package_is_named(kind: type[Peer], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{kind.__name__} needs {package}: pip install '[a-z]+\[[a-z]+\]'"):
        kind(exact)


class Two(dspy.Module):  # type: ignore[misc]
    """Two predictors, each of which may have its own model."""

    def __init__(self, first: dspy.BaseLM | None = None, second: dspy.BaseLM | None = None) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")
        self.first.lm, self.second.lm = first, second

    def forward(self, question: str) -> dspy.Prediction:
        self.first(question=question)
        return self.second(question=question)


def test_a_student_that_cannot_be_taken_is_refused_before_it_costs() -> None:
    toy = Toy()
    with pytest.raises(ValueError, match="COPRO is synchronous: OnlyAsync needs a `forward`"):
        toy.compile("copro", student=OnlyAsync())
    with pytest.raises(ValueError, match="SIMBA samples from one model"):
        toy.compile("simba", student=Two(toy_lm(ToyEngine(), "own")))
    assert toy.calls == 0


@pytest.mark.parametrize("name", ["bootstrap", "mipro"])
def test_predictors_keep_their_models_when_dspy_resets_them(name: str) -> None:
    first, second, toy = ToyEngine(reply=reply), ToyEngine(reply=reply), Toy()
    student = Two(toy_lm(first, "first"), toy_lm(second, "second"))
    compiled = toy.compile(name, student=student)
    assert toy.task.calls == 0 and first.calls == second.calls > 80
    assert compiled.first.lm is student.first.lm and type(compiled.first) is type(student.first) is dspy.Predict


@each
def test_several_predictors_and_one_training_example(name: str) -> None:
    toy = Toy()
    record = toy.compile(name, student=Two(), n_train=4).compilation
    assert record.best.candidate.names == ("first", "second") and record.stopped_by is None
    record = toy.compile(name, n_train=1, n_val=0).compilation
    assert record.stopped_by is None and record.gain is None


@each
def test_the_same_result_at_any_concurrency(name: str) -> None:
    one, many = (Toy(Learner(latency=0.002), ToyEngine(reply=reply)).compile(name, max_in_flight=n) for n in (1, 8))
    assert result_of(one) == result_of(many)


def test_calls_are_counted_by_role_and_seen_as_events() -> None:
    seen: list[Event] = []

    def judge(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        dspy.Predict("verdict -> opinion")(verdict=str(prediction.answer))
        return exact(example, prediction)

    toy = Toy()
    roles = toy.compile("copro", metric=judge, callbacks=[seen.append]).compilation.spent.by_role
    assert roles["target"].calls == roles["judge"].calls and roles["optimizer"].calls == toy.optimizer.calls == 5
    assert roles["target"].calls + roles["judge"].calls == toy.task.calls
    moves = {e.candidate_id for e in seen if isinstance(e, EffectDone) and e.role == "target"}
    assert len(moves) > 2, "what dspy evaluates can be watched"


@asking
def test_every_form_of_metric_serves_every_peer(name: str) -> None:
    async def form_two(example: dspy.Example, prediction: dspy.Prediction) -> float:
        await asyncio.sleep(0)
        return float(exact(example, prediction))

    def form_five(
        gold: dspy.Example, pred: dspy.Prediction, trace: object, pred_name: str | None, pred_trace: object
    ) -> dspy.Prediction:
        return dspy.Prediction(score=float(exact(gold, pred)), feedback=f"It was {gold.answer}, of course.")

    shown: list[str] = []

    def listening(system: str, user: str, drawn: int | None) -> str:
        shown.append(user)
        return reply(system, user, drawn)

    results = []
    for metric in (exact, form_two, form_five):
        toy = Toy(optimizer=ToyEngine(reply=listening))
        results.append(toy.compile(name, metric=metric).compilation.best.select)
    assert results[0] == results[1] and results[2] is not None
    assert any("of course" in text for text in shown) == (name == "gepa"), "GEPA's model reads the feedback"


def test_replies_that_do_not_parse_count_as_zero() -> None:
    def mumbling(system: str, user: str, drawn: int | None = None) -> str:
        word = re.search(r"say (\S+)", user)
        return "no fields at all" if word and number(word[1]) % 2 else reply(system, user, drawn)

    record = Toy(task=ToyEngine(reply=mumbling)).compile("copro", n_val=60).compilation
    best = record.candidates[0]
    assert record.stopped_by is None and best.n == 30, "dspy's COPRO gives up after ten such replies"
    assert best.scores.count(0.0) > 10 and best.mean > 0 and len(record.candidates) > 2
    assert not any("failed" in note for note in record.notes)


@pytest.mark.parametrize("name", ["copro", "mipro"])
def test_a_reply_with_half_a_character_is_a_reply(name: str) -> None:
    def halved(system: str, user: str, drawn: int | None = None) -> str:
        return reply(system, user, drawn).replace("Repeat the word.", "Repeat the word \ud83c.")

    record = Toy(optimizer=ToyEngine(reply=halved)).compile(name).compilation
    assert "\ufffd" in record.best.candidate.prompts["self"].instructions
    assert record.best.select.mean > record.baseline.select.mean


def test_a_metric_that_fails_is_missing_in_the_record_and_noted() -> None:
    def strict(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        if prediction.answer == "no":
            raise LookupError("no such answer")
        return exact(example, prediction)

    record = Toy().compile("copro", metric=strict, n_val=40).compilation
    assert any("counted as 0 what has no score" in note for note in record.notes)
    assert all(score in (1.0, None) for trial in record.candidates for score in trial.scores)


def test_an_optimizer_that_fails_half_way_leaves_what_it_scored() -> None:
    def tired(system: str, user: str, drawn: int | None = None) -> str:
        return "I would rather not." if "attempted_instructions" in system else reply(system, user, drawn)

    record = Toy(optimizer=ToyEngine(reply=tired)).compile("copro").compilation
    assert any("dspy's COPRO failed on the way (AdapterParseError" in note for note in record.notes)
    assert record.best.candidate.origin.move == "copro" and record.best.select.mean > record.baseline.select.mean
    record = Toy(optimizer=ToyEngine(reply=lambda system, user, drawn: "No.")).compile("copro").compilation
    assert any("AdapterParseError" in note for note in record.notes)
    assert record.best.candidate == record.baseline.candidate
    with pytest.raises(CompileError, match="dspy's Leaver failed before it scored a candidate: AttributeError"):
        leaver = Leaver(exact, optimizer_lm=toy_lm(ToyEngine()))
        leaver.optimize = lambda run, host: host.program.no_such_thing  # type: ignore[method-assign]
        with dspy.context(lm=toy_lm(ToyEngine())):
            leaver.compile(dspy.Predict("question -> answer"), trainset=words(4, "t"), valset=words(8, "v"))


def test_inside_better_together_and_from_a_compiled_student() -> None:
    toy = Toy()
    with dspy.context(lm=toy_lm(toy.task)):
        lm = toy_lm(toy.optimizer, "optimizer")
        together = dspy.BetterTogether(
            metric=exact,
            p=COPRO(exact, optimizer_lm=lm, breadth=3, depth=1),
            w=Bootstrap(exact, optimizer_lm=lm, num_candidate_programs=1),
        )
        student = dspy.Predict("question -> answer")
        student.set_lm(toy_lm(toy.task))
        compiled = together.compile(student, trainset=words(12, "t"), valset=words(16, "v"), strategy="p -> w", seed=0)
    assert "skill=" in compiled.signature.instructions and "skill=" not in student.signature.instructions


def test_prints_of_others_pass_while_dspys_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    def chatty(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        print("judged")
        return exact(example, prediction)

    before: Sequence[object] = (sys.stdout, sys.stderr)
    Toy().compile("bootstrap", metric=chatty)
    Toy().compile("bootstrap", budget=Budget(calls=40))
    gc.collect()  # a progress bar that a stop left open says good-bye
    assert (sys.stdout, sys.stderr) == before
    out, err = capfd.readouterr()
    assert "judged" in out and not out.replace("judged", "").strip() and err == ""


def test_a_block_that_was_left_behind_lets_nothing_of_later_ones_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, streams = quiet(), (io.StringIO(), io.StringIO())
    left.__enter__()
    for stream in streams:
        monkeypatch.setattr(sys, "stdout", stream)
        with quiet(), dspy.context(**{MARK: True}):
            exec("print('dropped')", {"__name__": "dspy.evaluate"})
            exec("print('kept')", {"__name__": "app"})
        assert sys.stdout is stream and stream.getvalue() == "kept\n"
    left.__exit__(None, None, None)
    assert sys.stdout is streams[1]


def test_dspys_prints_are_dropped_when_something_stands_in_for_print(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As Ray does for good in every process that has asked a cluster's worker for anything."""
    ray = pytest.importorskip("ray.experimental.tqdm_ray")
    monkeypatch.setattr(builtins, "print", ray.safe_print)
    with quiet(), dspy.context(**{MARK: True}):
        exec("print('dropped')", {"__name__": "dspy.evaluate"})
        exec("print('kept')", {"__name__": "app"})
    assert capfd.readouterr() == ("kept\n", "")


if __name__ == "__main__":
    killable(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)
