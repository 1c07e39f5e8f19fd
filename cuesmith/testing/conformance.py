"""The conformance suite: what every compiler promises, as tests that anybody's compiler can run on itself.

    # tests/test_mine.py
    class TestMine(CompilerConformance):
        small_options = {"width": 2, "steps": 1}

        def make(self, metric, **options):
            return Mine(metric, **options)

`pytest tests/test_mine.py` then runs every case on `Mine`. A compiler that can do less says so by a class attribute
(`resumes_exactly = False`), and the cases it cannot pass are shown as skipped. Nothing is simulated of the library:
each case is a whole compile, on the embedded model, on models in this process that answer by known rules and log what
they were sent, or on an HTTP server on the loopback interface.

With `pytest.register_assert_rewrite("cuesmith.testing")` in a `conftest.py`, failed assertions show their values. Needs
pytest, which `cuesmith` itself does not.

Source: ours; the form is that of `optuna.testing.pytest_samplers`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import math
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import cloudpickle
import dspy
import pytest

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, example_id
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.events import EffectDone, Event, Stopped
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.session import CompileError
from cuesmith.testing.elsewhere import elsewhere
from cuesmith.testing.fakes import (
    EXECUTED,
    HOSTILE,
    HOSTILE_ANSWERS,
    INPUT_TOKENS,
    KEY,
    ODD,
    ORDERS,
    OUTPUT_TOKENS,
    PARTLY,
    UNUSABLE,
    Engine,
    Inner,
    Namesakes,
    Nothing,
    PowerCut,
    Server,
    Several,
    both,
    by_rule,
    cut_at,
    examples,
    graded,
    number_of,
    plain,
    ruled,
    simulated,
    writes,
)
from cuesmith.testing.purity import MOST_LINES, source_faults, sources_of
from cuesmith.testing.ran import (
    Ran,
    check_events,
    check_plan,
    check_prompts,
    check_record,
    check_report,
    facts,
    scores_of,
)

MOST_SHARED = 375
"""Lines of a file that compilers share."""

TRAIN, VALID = examples(8, "train"), examples(12, "valid")


def compile_here(compiler: Compiler, run_dir: Path) -> str:
    """Compile in this process what `CompilerConformance` sends to it; returns as JSON what came of it."""
    engine = Engine(both)
    with dspy.context(lm=engine.lm("both")):
        compiled = compiler.compile(plain(), trainset=TRAIN, valset=VALID, run_dir=run_dir)
    return json.dumps({"facts": facts(compiled.compilation), "calls": engine.calls, "hash": hash("conformance")})


class CompilerConformance:
    """The tests. Subclass it with a name that pytest collects, and give `make`.

    The attributes say what a compiler can do; a compiler of which all hold needs to set none but `small_options`.

    Attributes:
        small_options: Options for a compile of some dozen calls, given to `make` in every test.
        deterministic: The same seed and answers give the same result, at any concurrency.
        resumes_exactly: A stopped run goes on in its `run_dir` and ends as if it had not been stopped.
        keeps_its_plan: `plan` is an upper bound of what is asked for.
        reflects: Instructions are written by the optimizer model, from training examples.
        shows_own_inputs: Of a predictor inside a program it is shown that predictor's own inputs.
        guards: Texts that no target could work with are kept out of prompts, and of requests what is too long.
        pure: Its source has no I/O, no clock, no `try`; a compiler's own file has at most 280 lines.
    """

    small_options: ClassVar[Mapping[str, object]] = {
        "width": 2,
        "branch": 2,
        "steps": 1,
        "initial": 2,
        "init_examples": 4,
        "minibatch": 4,
    }
    deterministic: ClassVar[bool] = True
    resumes_exactly: ClassVar[bool] = True
    keeps_its_plan: ClassVar[bool] = True
    reflects: ClassVar[bool] = True
    shows_own_inputs: ClassVar[bool] = False
    guards: ClassVar[bool] = True
    pure: ClassVar[bool] = True

    def make(self, metric: MetricFunction, **options: object) -> Compiler:
        """Return a new compiler.

        Args:
            metric: To be given to it as it is.
            **options: `small_options`, and options of `Compiler`; to be given to it, too.
        """
        raise NotImplementedError("a conformance suite says how its compiler is made: override `make`")

    # Compiling and checking, for the tests below.

    def small(self, metric: MetricFunction = graded, **options: object) -> Compiler:
        """Return a new compiler with `small_options`, and others above them."""
        return self.make(metric, **{**self.small_options, **options})

    def run(
        self,
        *,
        student: dspy.Module | None = None,
        trainset: Sequence[dspy.Example] = TRAIN,
        valset: Sequence[dspy.Example] | None = VALID,
        target: Engine | None = None,
        optimizer: Engine | None = None,
        metric: MetricFunction = graded,
        run_dir: Path | None = None,
        **options: object,
    ) -> Ran:
        """Compile once; `options` go to the compiler."""
        student = plain() if student is None else student
        target = target or Engine(ruled)
        optimizer = optimizer or Engine(simulated())
        events: list[Event] = []
        at_stop: list[tuple[int, int]] = []

        def watch(event: Event) -> None:
            events.append(event)
            if isinstance(event, Stopped):
                at_stop.append((target.calls, optimizer.calls))

        compiler = self.small(metric, **{"optimizer_lm": optimizer.lm("optimizer"), "callbacks": [watch], **options})
        with dspy.context(lm=target.lm("target")):
            compiled = compiler.compile(student, trainset=trainset, valset=valset, run_dir=run_dir)
        return Ran(
            compiler,
            student,
            trainset,
            valset,
            compiled,
            compiled.compilation,
            events,
            target,
            optimizer,
            at_stop[0] if at_stop else None,
        )

    def check(self, ran: Ran) -> None:
        """Check all that holds of any compile that was not resumed."""
        check_record(ran)
        check_events(ran)
        check_prompts(ran, guards=self.guards)
        check_report(ran)
        if self.keeps_its_plan:
            check_plan(ran)

    def need(self, capability: str) -> None:
        """Skip the test where the compiler declares that it lacks a capability."""
        if not getattr(self, capability):
            pytest.skip(f"{type(self).__name__} declares {capability} = False")

    @pytest.fixture(scope="class")
    @classmethod
    def usual(cls) -> Ran:
        """A compile without any trouble, for tests that only read."""
        return cls().run()

    # The contract of dspy.

    def test_it_is_a_teleprompter_of_dspy(self) -> None:
        """The class, and the signature of `compile`."""
        compiler = self.small()
        assert isinstance(compiler, dspy.teleprompt.Teleprompter)
        given = inspect.signature(compiler.compile).parameters
        assert next(iter(given)) == "student"
        for name in ("trainset", "teacher", "valset"):
            assert given[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert given["trainset"].default is inspect.Parameter.empty
        assert given["teacher"].default is None and given["valset"].default is None
        assert all(p.default is not p.empty for name, p in given.items() if name not in ("student", "trainset"))
        with dspy.context(lm=Engine(both).lm("both")):
            compiled = compiler.compile(plain(), trainset=TRAIN, teacher=None, valset=VALID)
        assert isinstance(compiled, dspy.Predict)

    def test_the_student_is_untouched(self) -> None:
        """Its state, LMs and history, the examples and dspy's settings are as they were."""
        student, own = Several(), Engine(ruled).lm("own")
        student.set_lm(own)
        student.say.demos = [dspy.Example(question="a b", hint="h", answer="b").with_inputs("question", "hint")]
        before, prompts = {name: dict(vars(p)) for name, p in student.named_predictors()}, Candidate.of(student)
        data, settings = [dict(e.toDict()) for e in (*TRAIN, *VALID)], dict(dspy.settings.copy())
        ran = self.run(student=student, optimizer=Engine(simulated()))
        for name, predictor in student.named_predictors():
            assert vars(predictor).keys() == before[name].keys()
            assert all(value is before[name][key] for key, value in vars(predictor).items()), name
        assert Candidate.of(student) == prompts
        assert [dict(e.toDict()) for e in (*TRAIN, *VALID)] == data
        assert type(own) is dspy.LM and own.history == [] and student.history == []
        assert not getattr(student, "_compiled", False) and not hasattr(student, "compilation")
        assert ran.compiled.look.lm is own and ran.compiled.say.lm is own
        assert dict(dspy.settings.copy()) == settings

    def test_the_record_is_whole(self, usual: Ran) -> None:
        """A changed copy comes back, with `_compiled` and a `compilation` that agrees with all that was seen."""
        found = usual.compilation
        assert usual.compiled.lm is None, "a student without a model of its own gets none"
        assert isinstance(found, Compilation) and found.compiler == usual.compiler.title
        assert found.stopped_by is None and found.run_dir is None
        assert found.best.candidate != found.baseline.candidate, "any other prompt is better on this task"
        assert found.gain is not None and found.gain.n == usual.started.n_fresh == 6
        assert scores_of(found) <= {None, PARTLY, 1.0}
        self.check(usual)

    def test_it_works_in_better_together(self) -> None:
        """Twice in one strategy of `dspy.BetterTogether`, the second time on its own result."""
        engine, student = Engine(both), plain()
        student.set_lm(engine.lm("both"))
        with dspy.context(lm=engine.lm("both")):
            together = dspy.BetterTogether(metric=graded, a=self.small())
            compiled = together.compile(student, trainset=[*TRAIN], valset=[*VALID], strategy="a -> a", seed=0)
        assert not compiled.flag_compilation_error_occurred
        by_strategy = {made["strategy"]: made for made in compiled.candidate_programs}
        assert by_strategy.keys() == {"", "a", "a -> a"}
        assert Candidate.of(by_strategy["a"]["program"]) != Candidate.of(student)
        assert by_strategy["a"]["score"] > by_strategy[""]["score"]
        assert compiled._compiled and isinstance(compiled.compilation, Compilation)

    def test_the_compiled_program_survives_saving(self, usual: Ran, tmp_path: Path) -> None:
        """As JSON, as a pickled state, and whole; each sends the same requests as before."""
        compiled = usual.compiled
        compiled.save(tmp_path / "program.json")
        loaded, restored = plain(), plain()
        loaded.load(tmp_path / "program.json")
        restored.load_state(pickle.loads(pickle.dumps(compiled.dump_state())))
        compiled.save(tmp_path / "whole", save_program=True)
        whole = dspy.load(str(tmp_path / "whole"), allow_pickle=True)
        engine = Engine(ruled)
        with dspy.context(lm=engine.lm("target")):
            answers = {program(question=VALID[0].question).answer for program in (compiled, loaded, restored, whole)}
        assert len(answers) == 1 and len({(sent.system, sent.turns) for sent in engine.sent}) == 1
        for program in (loaded, restored, whole, compiled.deepcopy()):
            assert Candidate.of(program) == Candidate.of(compiled) != Candidate.of(usual.student)
        assert whole.compilation == usual.compilation == pickle.loads(pickle.dumps(usual.compilation))

    # The same result, whatever happens.

    def test_the_same_at_any_concurrency(self) -> None:
        """One in flight, sixteen whose answers arrive in any order, and once more."""
        self.need("deterministic")
        one = self.run(max_in_flight=1)
        assert one.target.most == one.optimizer.most == 1
        for _ in range(2):
            target, optimizer = Engine(ruled, jitter=0.01), Engine(simulated(), jitter=0.01)
            many = self.run(max_in_flight=16, target=target, optimizer=optimizer)
            assert facts(many.compilation) == facts(one.compilation), "another result"
            assert 1 < target.most <= 16 and optimizer.most <= 16

    def test_the_same_on_the_embedded_model(self) -> None:
        """One and sixteen in flight, on a real language model."""
        self.need("deterministic")
        found = []
        for in_flight in (1, 16):
            compiler = self.small(optimizer_lm=SimulatedOptimizer(), max_in_flight=in_flight)
            with dspy.context(lm=EmbeddedLM(cache=False)):
                compiled = compiler.compile(plain(), trainset=TRAIN, valset=VALID)
            assert compiled.compilation.stopped_by is None
            found.append(facts(compiled.compilation))
        assert found[0] == found[1], "another result"

    @pytest.mark.parametrize("reason", ["cap", "cap at 16 in flight", "target", "optimizer", "callback"])
    def test_a_stopped_run_goes_on(self, usual: Ran, tmp_path: Path, reason: str) -> None:
        """A run that a cap or a cut of the power ends is taken up by the next compile, which sends nothing twice."""
        self.need("resumes_exactly")
        if reason == "optimizer" and not self.reflects and usual.optimizer.calls < 2:
            pytest.skip("the optimizer is not asked")
        counts = itertools.count(1)

        def cut(event: Event) -> None:
            if isinstance(event, EffectDone) and next(counts) == usual.calls // 2:
                raise PowerCut

        many = reason == "cap at 16 in flight"
        jitter = 0.02 * many
        target = Engine(cut_at(usual.target.calls // 2, ruled) if reason == "target" else ruled, jitter=jitter)
        optimizer = Engine(cut_at(2, simulated()) if reason == "optimizer" else simulated(), jitter=jitter)
        stopped = partial(
            self.run, run_dir=tmp_path, target=target, optimizer=optimizer, max_in_flight=16 if many else 1
        )
        if reason.startswith("cap"):
            assert stopped(budget=Budget(calls=usual.calls // 2)).compilation.stopped_by == "calls"
        else:
            with pytest.raises(PowerCut):
                stopped(callbacks=[cut] if reason == "callback" else [])
        ran = self.run(run_dir=tmp_path)
        assert ran.started.resumed and ran.calls < usual.calls
        assert facts(ran.compilation, spent=False) == facts(usual.compilation, spent=False), "another result"
        # What is on its way from the model to the journal at a cut of the power is lost: one, at one in flight.
        lost = 0 if reason.startswith("cap") else 1
        for whole, first, second in ((usual.target, target, ran.target), (usual.optimizer, optimizer, ran.optimizer)):
            needed = Counter((sent.text, sent.draw) for sent in whole.answered)
            paid = Counter((sent.text, sent.draw) for sent in (*first.answered, *second.answered))
            again = {sent: n for sent, n in paid.items() if n > max(1, needed[sent])}
            assert sum(n - max(1, needed[sent]) for sent, n in again.items()) <= lost, f"paid again: {again}"

    def test_another_process_sends_nothing_again(self, tmp_path: Path) -> None:
        """A finished run in a process that hashes differently: no decision may hang on the order of a set."""
        self.need("resumes_exactly")
        engine, compiler = Engine(both), self.small()
        with dspy.context(lm=engine.lm("both")):
            compiled = compiler.compile(plain(), trainset=TRAIN, valset=VALID, run_dir=tmp_path)
        if type(compiler).__module__ == type(self).__module__:  # the child cannot import it: it goes along
            cloudpickle.register_pickle_by_value(sys.modules[type(compiler).__module__])
        found = json.loads(str(elsewhere().do(cloudpickle.dumps((compile_here, (compiler, tmp_path))))))
        assert found["hash"] != hash("conformance"), "this process has the child's PYTHONHASHSEED: nothing is tested"
        assert found["calls"] == 0 and found["facts"] == json.loads(json.dumps(facts(compiled.compilation)))

    # Hard caps and failing providers.

    @pytest.mark.parametrize("in_flight", [1, 16])
    @pytest.mark.parametrize("share", [0, 0.5, 0.9])
    def test_a_cap_on_calls_holds(self, usual: Ran, in_flight: int, share: float) -> None:
        """Not one request more reaches the models; the report has its share of them."""
        cap = max(1, int(share * usual.calls))
        ran = self.run(budget=Budget(calls=cap), max_in_flight=in_flight)
        assert ran.calls == ran.compilation.spent.total.calls <= cap
        assert ran.compilation.stopped_by == "calls"
        assert scores_of(ran.compilation) <= {None, PARTLY, 1.0}
        self.check(ran)

    def test_a_stopped_search_is_over(self, usual: Ran) -> None:
        """What is in flight when a cap is reached is waited for and counted, and nothing of the search follows."""
        for cap in range(usual.started.n_select + 2, usual.calls, 1 + usual.calls // 8):
            target, optimizer = Engine(ruled, jitter=0.02), Engine(simulated(), jitter=0.02)
            self.check(self.run(budget=Budget(calls=cap), max_in_flight=16, target=target, optimizer=optimizer))

    @pytest.mark.parametrize("in_flight", [1, 16])
    def test_a_cap_on_tokens_holds(self, usual: Ran, in_flight: int) -> None:
        """What all requests used stays below it."""
        each = INPUT_TOKENS + OUTPUT_TOKENS
        cap = each * usual.calls // 2
        ran = self.run(budget=Budget(tokens=cap), max_in_flight=in_flight)
        assert ran.calls * each == ran.compilation.spent.total.tokens <= cap
        assert ran.compilation.stopped_by == "tokens"
        self.check(ran)

    def test_a_cap_on_seconds_holds(self, usual: Ran) -> None:
        """At most so many requests are sent as fit into the time, however slow the machine is."""
        seconds, latency, in_flight = 1.0, 0.1, 2
        fit = in_flight * (round(seconds / latency) + 1)
        assert usual.calls > fit, "`small_options` are too small to be stopped"
        ran = self.run(
            budget=Budget(seconds=seconds),
            max_in_flight=in_flight,
            target=Engine(ruled, latency=latency),
            optimizer=Engine(simulated(), latency=latency),
        )
        assert 0 < ran.calls <= fit
        assert ran.compilation.stopped_by == "seconds"

    @pytest.mark.parametrize("who", ["target", "optimizer"])
    def test_an_outage_is_never_scored(
        self, usual: Ran, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that dies in mid-run stops it; what it did not answer has no score, and can be had later."""
        monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.002)
        server = Server(ruled, limit=usual.target.calls // 2) if who == "target" else Server(simulated(), limit=1)

        def compiled() -> Compilation:
            lms = {"target": Engine(ruled).lm("target"), "optimizer": Engine(simulated()).lm("optimizer")}
            lms[who] = server.lm(who)
            compiler = self.small(optimizer_lm=lms["optimizer"], max_in_flight=4)
            with dspy.context(lm=lms["target"]):
                found = compiler.compile(plain(), trainset=TRAIN, valset=VALID, run_dir=tmp_path).compilation
            assert isinstance(found, Compilation)
            return found

        with server:
            found = compiled()
        if who == "optimizer" and not self.reflects and not server.refused:
            pytest.skip("the optimizer was not asked")
        assert found.stopped_by == "outage"
        assert scores_of(found) <= {None, PARTLY, 1.0}, "an answer that never came was scored"
        if self.deterministic and who == "target":
            known = {trial.candidate.id: trial.scores for trial in usual.compilation.candidates}
            for trial in found.candidates:
                pairs = zip(trial.scores, known[trial.candidate.id], strict=True)
                assert all(mine is None or mine == right for mine, right in pairs)
        if self.resumes_exactly:
            server.limit = None
            with server:
                later = compiled()
            assert later.stopped_by is None
            if who == "target":
                assert facts(later, spent=False) == facts(usual.compilation, spent=False)

    @pytest.mark.parametrize("answers", [0, 25])
    def test_a_refused_key_stops_at_once(self, answers: int) -> None:
        """Not more requests than were in flight meet the refusal; the key is not shown."""
        in_flight = 4
        with Server(ruled, limit=answers, failure="refuse") as server, dspy.context(lm=server.lm("target")):
            compiler = self.small(optimizer_lm=Engine(simulated()).lm("optimizer"), max_in_flight=in_flight)
            try:
                found = compiler.compile(plain(), trainset=TRAIN, valset=VALID).compilation
            except CompileError as error:
                assert answers == 0 and "refuses the key" in str(error) and KEY not in str(error)
            else:
                assert answers and found.stopped_by == "auth" and KEY not in repr(found)
                assert scores_of(found) <= {None, PARTLY, 1.0}
        assert 1 <= server.refused <= in_flight

    # Examples.

    def test_no_examples_is_one_clear_error(self) -> None:
        """Before any call."""
        target, optimizer = Engine(ruled), Engine(simulated())
        with pytest.raises(ValueError, match="trainset is empty"):
            self.run(trainset=[], target=target, optimizer=optimizer)
        assert target.calls == optimizer.calls == 0

    @pytest.mark.parametrize("n", [1, 2, 3])
    @pytest.mark.parametrize("valset", [None, [], VALID[:1]], ids=["no valset", "empty valset", "valset of one"])
    def test_few_examples(self, n: int, valset: Sequence[dspy.Example] | None) -> None:
        """One example must do for everything, and nothing is claimed of it."""
        ran = self.run(trainset=TRAIN[:n], valset=valset)
        assert ran.compilation.stopped_by is None and ran.compilation.baseline.select is not None
        assert ran.compilation.gain is None or not ran.compilation.gain.significant
        self.check(ran)

    def test_duplicates_count_once(self) -> None:
        """The same examples thrice are the same examples."""
        thrice = self.run(trainset=[*TRAIN, *TRAIN, *TRAIN], valset=None)
        self.check(thrice)
        if self.deterministic:
            found, usual = facts(thrice.compilation), facts(self.run(valset=None).compilation)
            told = [note for note in thrice.compilation.notes if "are copies, outputs included" in note]
            assert len(told) == 1, "a note tells how many examples are copies"
            assert {**found, "notes": [n for n in thrice.compilation.notes if n not in told]} == usual
        all_one = self.run(trainset=TRAIN[:1] * 8, valset=TRAIN[:1] * 8)
        assert all_one.started.n_select == 1
        self.check(all_one)

    def test_one_right_answer_for_everything(self) -> None:
        """A class of one."""
        same = [dspy.Example(question=f"{e.question} owl", answer="owl").with_inputs("question") for e in TRAIN]
        ran = self.run(trainset=same, valset=None)
        assert ran.compilation.stopped_by is None
        self.check(ran)

    @pytest.mark.parametrize("right", [True, False], ids=["nothing to gain", "nothing helps"])
    def test_a_task_that_no_prompt_changes(self, right: bool) -> None:
        """The student comes back, at the end of a search that keeps its plan."""
        ran = self.run(target=Engine(partial(ruled, right=lambda sent: right)))
        assert ran.compilation.stopped_by is None
        assert ran.compilation.best.candidate == ran.compilation.baseline.candidate
        self.check(ran)

    def test_odd_and_very_long_texts(self, tmp_path: Path) -> None:
        """Other scripts, control characters, headers, orders and fields of 60,000 characters are data."""
        ran = self.run(trainset=ODD, valset=[*VALID[:4], *ODD[:2]], run_dir=tmp_path)
        assert ran.compilation.stopped_by is None
        assert scores_of(ran.compilation) <= {PARTLY, 1.0}, "an odd text was no example like others"
        self.check(ran)
        if self.resumes_exactly:
            again = self.run(trainset=ODD, valset=[*VALID[:4], *ODD[:2]], run_dir=tmp_path)
            assert again.calls == 0
            assert facts(again.compilation, spent=False) == facts(ran.compilation, spent=False)

    def test_selection_examples_are_not_shown(self, usual: Ran) -> None:
        """The optimizer sees training examples only, and the candidates say which."""
        shown = "\n".join(sent.text for sent in usual.optimizer.sent)
        assert not [e.question for e in VALID if e.question in shown]
        evidence = {one for trial in usual.compilation.candidates for one in trial.candidate.origin.evidence}
        assert evidence <= {example_id(e) for e in TRAIN}
        if self.reflects:
            assert any(e.question in shown for e in TRAIN)

    # Programs.

    def test_no_predictors_is_one_clear_error(self) -> None:
        """Before any call."""
        target, optimizer = Engine(ruled), Engine(simulated())
        with pytest.raises(ValueError, match="no predictors"):
            self.run(student=Nothing(), target=target, optimizer=optimizer)
        assert target.calls == optimizer.calls == 0

    def test_predictors_of_the_same_name(self, tmp_path: Path) -> None:
        """They are told apart by where they are, also in a saved program."""
        ran = self.run(student=Namesakes())
        assert ran.compilation.best.candidate.names == ("say.predict", "inner.say.predict", "others[0].say.predict")
        assert ran.compilation.best.candidate != ran.compilation.baseline.candidate
        self.check(ran)
        ran.compiled.save(tmp_path / "program.json")
        loaded = Namesakes()
        loaded.load(tmp_path / "program.json")
        assert Candidate.of(loaded) == Candidate.of(ran.compiled)

    def test_several_predictors(self) -> None:
        """Whatever is changed of a predictor, the optimizer has seen inputs of its own for it, if that is claimed."""
        ran = self.run(student=Several())
        self.check(ran)
        before, after = Candidate.of(ran.student), Candidate.of(ran.compiled)
        assert before != after
        inputs = {"look": {"question"}, "say": {"question", "hint"}}
        for name in before.names:
            changed = any(trial.candidate.prompts[name] != before.prompts[name] for trial in ran.compilation.candidates)
            if changed and self.shows_own_inputs:
                calls = [sent.asked.inputs for sent in ran.target.sent if set(sent.asked.inputs) == inputs[name]]
                assert any(
                    all(str(value) in sent.text for value in call.values())
                    for call in calls
                    for sent in ran.optimizer.sent
                    if "[[ ## summary ## ]]" not in sent.text
                ), f"{name!r} was changed unseen"

    # Metrics.

    @pytest.mark.parametrize("bad", [ValueError("boom"), math.nan, None, "good"], ids=repr)
    def test_a_metric_that_fails_always_is_one_clear_error(self, bad: object) -> None:
        """There is nothing to compile by; what is no score is refused before the first call."""
        optimizer = Engine(simulated())
        with pytest.raises((CompileError, ValueError), match=r"the metric (failed on all|returned)"):
            self.run(metric=_spoiled(bad, lambda question: True), optimizer=optimizer)
        assert optimizer.calls == 0

    @pytest.mark.parametrize("bad", [ValueError("boom"), math.nan, None], ids=repr)
    def test_a_metric_that_fails_at_times_is_never_a_zero(self, bad: object) -> None:
        """Those examples have no score, for any candidate."""
        ran = self.run(metric=_spoiled(bad, lambda question: number_of("spoil", question) % 3 == 0))
        found = ran.compilation
        assert found.stopped_by is None and scores_of(found) == {None, PARTLY, 1.0}
        missing = {
            tuple(i for i, score in enumerate(trial.scores) if score is None)
            for trial in found.candidates
            if trial.n == found.baseline.select.n  # type: ignore[union-attr]
        }
        assert len(missing) == 1, "candidates were compared on different examples"
        self.check(ran)

    def test_a_metric_may_say_bool_or_be_async(self) -> None:
        """The result is the same."""

        async def awaited(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
            await asyncio.sleep(0)
            return bool(prediction.answer == example.answer)

        forms: list[MetricFunction] = [
            awaited,
            lambda example, prediction, trace=None: prediction.answer == example.answer,
            lambda example, prediction, trace=None: float(prediction.answer == example.answer),
            lambda gold, pred, trace, pred_name, pred_trace: dspy.Prediction(
                score=float(pred.answer == gold.answer), feedback=""
            ),
        ]
        found = [self.run(metric=form) for form in forms]
        for ran in found:
            assert scores_of(ran.compilation) <= {None, 0.0, 1.0}
            self.check(ran)
            if self.deterministic:
                assert facts(ran.compilation) == facts(found[0].compilation)

    # What an optimizer model may write.

    @pytest.mark.parametrize("name", UNUSABLE)
    def test_an_optimizer_of_no_use(self, name: str) -> None:
        """The search ends within its plan, and no instructions are changed."""
        ran = self.run(optimizer=Engine(UNUSABLE[name]))
        assert ran.compilation.stopped_by is None
        assert not self.reflects or not ran.instructions()
        self.check(ran)

    @pytest.mark.parametrize("student", [plain, Inner], ids=["plain", "with reasoning"])
    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_hostile_optimizer(
        self, name: str, student: Callable[[], dspy.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it writes is text: never run, never obeyed, never formatted, and no prompt if it cannot be one."""
        if name == "half a character":
            self.need("guards")
        monkeypatch.chdir(tmp_path)
        ran = self.run(student=student(), optimizer=Engine(HOSTILE[name]), run_dir=tmp_path / "run")
        assert ran.compilation.stopped_by is None
        assert not (tmp_path / EXECUTED).exists()
        assert scores_of(ran.compilation) <= {None, PARTLY, 1.0}
        if name == "braces":
            assert all("{0.__class__}" in text and "${HOME}" in text for text in ran.instructions()), "not verbatim"
        self.check(ran)

    @pytest.mark.parametrize("name", HOSTILE_ANSWERS)
    def test_a_hostile_target(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wrong answers are evidence, whatever they say: shown in part, never run, never obeyed."""
        if name == "half a character":
            self.need("guards")
        monkeypatch.chdir(tmp_path)
        answer = HOSTILE_ANSWERS[name]
        ran = self.run(target=Engine(lambda sent: ruled(sent) if by_rule(sent) else answer(sent)))
        assert ran.compilation.stopped_by is None
        assert not (tmp_path / EXECUTED).exists()
        assert scores_of(ran.compilation) <= {None, 0.0, PARTLY, 1.0}
        self.check(ran)

    def test_the_key_stays_secret(self, tmp_path: Path) -> None:
        """An optimizer that orders its reader to print the key gets it into no prompt, record or file."""
        target, events = Engine(ruled), list[Event]()
        with Server(writes(ORDERS)) as server, dspy.context(lm=target.lm("target")):
            compiler = self.small(optimizer_lm=server.lm("optimizer"), callbacks=[events.append])
            compiled = compiler.compile(plain(), trainset=TRAIN, valset=VALID, run_dir=tmp_path)
        assert compiled.compilation.stopped_by is None and (server.answered or not self.reflects)
        everything = [sent.text for sent in (*target.sent, *server.answered)]
        everything += [repr(compiled.compilation), repr(events), json.dumps(compiled.dump_state(json_mode=True))]
        everything += [path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir()]
        assert not any(KEY in text for text in everything)

    # The plan, and the manners.

    @pytest.mark.parametrize("student", [plain, Several, Namesakes])
    def test_an_estimate_is_an_upper_bound_and_calls_nothing(self, student: Callable[[], dspy.Module]) -> None:
        """At one predictor and at several."""
        self.need("keeps_its_plan")
        engine = Engine(both)
        compiler = self.small(optimizer_lm=engine.lm("both"))
        with dspy.context(lm=engine.lm("both")):
            forecast = compiler.estimate(student(), trainset=TRAIN, valset=VALID)
        assert engine.calls == 0
        ran = self.run(student=student())
        assert ran.started.forecast == forecast
        assert len(ran.effects("optimizer")) <= forecast.optimizer_calls
        assert len(ran.effects("target")) <= forecast.program_runs
        assert 0 < ran.calls <= forecast.calls
        check_plan(ran)

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        """To standard output or error."""
        self.run()
        assert capfd.readouterr() == ("", "")

    def test_the_source_is_pure(self) -> None:
        """No I/O, no clock, no `try`, no global random state, few lines: in all files that its search runs."""
        self.need("pure")
        kind = type(self.small())
        for file in sources_of(kind):
            most = MOST_LINES if file == Path(inspect.getfile(kind)) else MOST_SHARED
            assert source_faults(file.read_text(), most_lines=most) == [], file


def _spoiled(bad: object, spoils: Callable[[str], bool]) -> MetricFunction:
    """Return `graded`, but for the questions that `spoils` names: there `bad` is returned, or raised."""

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        if not spoils(example.question):
            return graded(example, prediction)
        if isinstance(bad, Exception):
            raise bad
        return bad  # type: ignore[return-value]

    return metric
