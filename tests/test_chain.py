"""Chains: one compile of several stages, with one budget, journal, seed, record, and one gain, that of all of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import Provider, ToyEngine, ToySearch, exact, result_of, toy_lm, words

from cuesmith import ABO, APO, AlignPro, Budget, Compiled, IterativeAPE, compile, provenance
from cuesmith.modules.sampling import draw
from cuesmith.teleprompters.chain import HELD, SHARED, Chain
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.registry import compiler_of
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.events import (
    EffectDone,
    Event,
    Noted,
    RunFinished,
    RunStarted,
    SpentChanged,
    StepDone,
)
from cuesmith.teleprompters.runtime.journal import JournalError
from cuesmith.teleprompters.runtime.ledger import Usage
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.testing import CompilerConformance
from cuesmith.testing.purity import source_faults

SMALL: Mapping[str, Any] = {"width": 2, "branch": 2, "steps": 1, "initial": 2, "init_examples": 4, "minibatch": 4}


class TestChain(CompilerConformance):
    """Two of ours, one after the other, pass the suite that each of them passes."""

    shows_own_inputs = True
    pure = False  # it knows AlignPro, whose files have limits of their own; see below for its own
    pytestmark = pytest.mark.slow

    def make(self, metric: MetricFunction, **options: object) -> Compiler:
        made: Compiler = IterativeAPE(metric, **options) >> APO(metric, **options)  # type: ignore[arg-type]
        return made


TRAIN, VALID = words(12), words(40, "v")


def toy(steps: int = 1, **options: Any) -> ToySearch:
    return ToySearch(exact, steps=steps, width=2, **options)


def run(compiler: Compiler, engine: ToyEngine | None = None, run_dir: Path | None = None) -> Compiled:
    with dspy.context(lm=toy_lm(engine or ToyEngine())):
        return compiler.compile(dspy.Predict("question -> answer"), trainset=TRAIN, valset=VALID, run_dir=run_dir)


def test_each_stage_goes_on_from_the_best_before() -> None:
    events: list[Event] = []
    engine = ToyEngine()
    made = run(toy(seed=2) >> toy(2, callbacks=events.append), engine)
    found = made.compilation
    assert [type(event) for event in events].count(RunStarted) == 1 == [type(e) for e in events].count(RunFinished)
    assert found.compiler == "ToySearch >> ToySearch"
    assert [step.step for step in found.steps] == [0, 1, 2, 3, 4]
    assert found.steps[2].best_id == found.steps[1].best_id, "the second begins where the first has ended"
    stages = [note for note in found.notes if note.kind == "stage"]
    assert stages == [
        f"Stage 1 of 2: ToySearch, from the prompt {found.baseline.candidate.id}.",
        f"Stage 2 of 2: ToySearch, from the prompt {found.steps[1].best_id}.",
    ]
    assert found.baseline.candidate == Candidate.of(dspy.Predict("question -> answer")), "the first student"
    first = next(t for t in found.candidates if t.candidate.id == found.steps[1].best_id)
    alone = run(toy(seed=2)).compilation
    assert first.candidate == alone.best.candidate, "the first stage is what it is alone"
    assert found.best.select is not None and found.best.select.mean > first.mean
    assert found.gain is not None and alone.gain is not None and found.gain.difference > alone.gain.difference
    assert found.spent.total.calls == engine.calls
    lineage = {t.candidate.id: t.candidate.origin.parents for t in found.candidates}
    place = found.best.candidate.id
    while lineage[place] and place != first.candidate.id:
        place = lineage[place][0]
    assert place == first.candidate.id, "the best comes from the first stage's"
    facts = provenance(made)
    assert facts is not None and facts.compiler == "toy-search >> toy-search" and facts.seed == 2


def test_the_same_request_is_another_draw_in_a_later_stage() -> None:
    """Where the first stage finds nothing, the second asks the same: it has to be another draw."""
    drawn: list[int | None] = []

    def stubborn(system: str, user: str, number: int | None) -> str:
        if "`variation`" not in system:
            return "[[ ## answer ## ]]\nno\n\n[[ ## completed ## ]]"
        drawn.append(draw.get())
        return "[[ ## variation ## ]]\nSay it.\n\n[[ ## completed ## ]]"

    run(toy() >> toy(), ToyEngine(reply=stubborn))
    assert len(drawn) == len(set(drawn)) == 4


def test_estimates_add_up_and_bound_what_is_done() -> None:
    first, second = toy(), toy(2)
    student = dspy.Predict("question -> answer")
    events: list[Event] = []
    with dspy.context(lm=toy_lm(ToyEngine())):
        each = [one.estimate(student, trainset=TRAIN, valset=VALID) for one in (first, second)]
        chain = first >> toy(2, callbacks=events.append)
        both = chain.estimate(student, trainset=TRAIN, valset=VALID)
    select, fresh = 20, 20
    assert both.optimizer_calls == each[0].optimizer_calls + each[1].optimizer_calls == 6
    once = select + 2 * fresh
    assert both.program_runs == sum(one.program_runs - once for one in each) + once + 2 * select
    run(chain)
    done = [event.role for event in events if isinstance(event, EffectDone)]
    assert done.count("optimizer") <= both.optimizer_calls and done.count("target") <= both.program_runs


def test_one_budget_holds_for_all_stages() -> None:
    engine = ToyEngine()
    made = run(toy(budget=Budget(calls=90)) >> toy(3), engine)
    found = made.compilation
    assert found.stopped_by == "calls" and engine.calls <= 90 and found.spent.total.calls == engine.calls
    assert found.gain is not None and found.gain.n > 0, "the report's share is kept"
    small, whole = Budget(calls=300), ABO(exact, budget=Budget(calls=300))
    chain = whole >> APO(exact, budget=small)
    assert isinstance(chain, Chain) and chain.budget == small


class Spending:
    """What had been used when each stage began, and at the end."""

    def __init__(self) -> None:
        self.at: list[Usage] = []
        self.now = Usage()

    def __call__(self, event: Event) -> None:
        """Follow a run."""
        match event:
            case SpentChanged():
                self.now = event.spent.total
            case Noted() if ", from the prompt " in event.note:
                self.at.append(self.now)


@pytest.mark.parametrize("budget", [Budget(usd=0.016), Budget(calls=200), Budget(tokens=24_000)], ids=str)
def test_each_stage_has_a_share_of_every_cap(budget: Budget) -> None:
    """One call takes 120 tokens and 72 micro-dollars: each cap is about 200 calls, and no stage comes to its end."""
    spending = Spending()
    with Provider() as provider, dspy.context(lm=provider.lm("gpt-4.1-mini")):
        chain = toy(9, budget=budget, callbacks=spending) >> toy(9) >> toy(9)
        found = chain.compile(dspy.Predict("question -> answer"), trainset=TRAIN, valset=VALID).compilation
    (cap,) = (name for name, value in vars(budget).items() if value is not None)
    stages = [note for note in found.notes if note.kind == "stage"]
    assert [note.split(":")[0] for note in stages] == [
        "Stage 1 of 3", f"Stage 1 has used its share of the budget's {cap}.", "Stage 2 of 3",
        f"Stage 2 has used its share of the budget's {cap}.", "Stage 3 of 3"]  # fmt: skip
    assert found.stopped_by == cap and provider.calls == found.spent.total.calls <= 224
    begun = [usage.calls for usage in spending.at]
    used = [later - earlier for earlier, later in pairwise([*begun, spending.now.calls])]
    first, second, _ = used
    assert abs(first - second) <= 12 and 30 < first < 60, used
    assert found.gain is not None and found.gain.n > 0, "the report's share is kept"


def test_what_a_stage_leaves_over_the_next_may_use() -> None:
    spending, engine = Spending(), ToyEngine()
    found = run(toy(1, budget=Budget(calls=200), callbacks=spending) >> toy(9), engine).compilation
    first, second = (usage.calls for usage in spending.at)
    assert not any("has used its share" in note for note in found.notes) and found.stopped_by == "calls"
    assert second - first < 50 and engine.calls <= 200 and spending.now.calls - second > 90


def test_a_stage_fits_its_size_into_its_share() -> None:
    caps: list[int | None] = []

    class Watched(ToySearch):
        async def search(self, run: Run) -> Candidate:
            caps.append(self.budget.calls)
            return await super().search(run)

    given = Watched(exact, steps=1, width=2, budget=Budget(calls=400))
    run(given >> toy(1) >> Watched(exact, steps=1, width=2))
    first, last = (calls or 0 for calls in caps)
    assert 110 < first < 190 < 1.5 * first < last < 400, "an equal share, and at last all that is left"
    assert given.budget.calls == 400, "what was given stays as it was"


@pytest.mark.parametrize("at", [50, 170])
def test_a_share_is_the_same_in_a_resumed_run(at: int, tmp_path: Path) -> None:
    def cut(number: int) -> None:
        if number == at:
            raise KeyboardInterrupt

    budget = Budget(calls=200)
    whole = ToyEngine()
    expected = run(toy(9, budget=budget) >> toy(9), whole, tmp_path / "whole")
    broken, rest = ToyEngine(hook=cut), ToyEngine()
    with pytest.raises(KeyboardInterrupt):
        run(toy(9, budget=budget, max_in_flight=1) >> toy(9), broken, tmp_path / "run")
    on = run(toy(9, budget=budget) >> toy(9), rest, tmp_path / "run")
    told = [[note for note in made.compilation.notes if note.kind == "stage"] for made in (expected, on)]
    assert told[0] == told[1] and len(told[0]) == 3
    assert broken.calls + rest.calls <= 200 == whole.calls


def test_an_early_stage_of_dspys_that_its_share_ends_is_scored_all_the_same() -> None:
    from cuesmith.testing.fakes import Engine, examples, graded, ruled, simulated

    target, optimizer = Engine(ruled), Engine(simulated())
    chain = compiler_of("copro", metric=graded, optimizer_lm=optimizer.lm("optimizer"), budget=Budget(calls=150),
                        breadth=6, depth=6) >> IterativeAPE(graded, **SMALL)  # fmt: skip
    with dspy.context(lm=target.lm("target")):
        made = chain.compile(dspy.Predict("question -> answer"), trainset=examples(8, "t"), valset=examples(12, "v"))
    found = made.compilation
    assert target.calls + optimizer.calls == found.spent.total.calls <= 150
    stages = [note for note in found.notes if note.kind == "stage"]
    assert "Stage 1 has used its share of the budget's calls." in stages and len(stages) == 3
    assert found.best.select is not None and found.baseline.select is not None
    assert found.best.select.mean > found.baseline.select.mean


@pytest.mark.parametrize("at", [5, 120])
def test_a_chain_that_is_killed_goes_on(at: int, tmp_path: Path) -> None:
    """In the first stage, and in the second: nothing that was answered is asked again."""

    def cut(number: int) -> None:
        if number == at:
            raise KeyboardInterrupt

    whole = ToyEngine()
    expected = run(toy(seed=1) >> toy(2), whole, tmp_path / "whole")
    broken, rest = ToyEngine(hook=cut), ToyEngine()
    with pytest.raises(KeyboardInterrupt):
        run(toy(seed=1, max_in_flight=1) >> toy(2), broken, tmp_path / "run")
    on = result_of(run(toy(seed=1) >> toy(2), rest, tmp_path / "run"))
    unpaid = {"spent": None}  # the call that the kill cut off is counted, too
    assert {**on, **unpaid} == {**result_of(expected), **unpaid}
    assert whole.calls <= broken.calls + rest.calls <= whole.calls + 1
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith("journal")] == ["journal.jsonl"]
    with pytest.raises(JournalError, match="steps of stage 2"):
        run(toy(seed=1) >> toy(3), rest, tmp_path / "run")


def test_a_prompter_comes_last_in_front_of_the_compiled_prompt() -> None:
    """AlignPro without a model of its own: the optimizer rewrites, in front of what the first stage has found."""

    def reply(system: str, user: str, number: int | None) -> str:
        from e2e_support import toy_reply

        if "`rewritten`" in system:
            word = user.partition("say ")[2].split()[0].strip(".!?`\"'")
            return f"[[ ## rewritten ## ]]\nsay {word}\n\n[[ ## completed ## ]]"
        return toy_reply(system, user, number)

    lm = toy_lm(ToyEngine(reply=reply))
    made = run(toy(optimizer_lm=lm) >> AlignPro(exact, optimizer_lm=lm), ToyEngine(reply=reply))
    found = made.compilation
    behind = [t.candidate for t in found.candidates if t.candidate.prompter]
    best = next(t.candidate for t in found.candidates if not t.candidate.prompter)
    assert len(behind) == 1 and behind[0].prompts == best.prompts != found.baseline.candidate.prompts
    assert behind[0].origin.parents == (best.id,)
    assert any("Nothing is trained" in note for note in found.notes) and "alignment" in found.extras


def test_its_source_is_pure() -> None:
    assert source_faults(Path(inspect.getfile(Chain)).read_text()) == []


def test_what_stages_have_in_common_is_what_every_compiler_takes() -> None:
    given = list(inspect.signature(Compiler.__init__).parameters.values())[1:]
    taken = {each.name: each.default for each in given if each.kind is not each.VAR_KEYWORD}
    assert taken.keys() == SHARED.keys()
    assert {**taken, "metric": None, "budget": Budget()} == SHARED
    held = {HELD.get(name, name) for name in SHARED}
    assert held <= vars(toy()).keys() and not held & toy()._options().keys()


def test_by_name() -> None:
    chain = compiler_of("abo >>  APO", metric=exact, demonstrations=False, steps=1, seed=3)
    assert isinstance(chain, Chain) and [type(stage) for stage in chain.stages] == [ABO, APO]
    assert (chain.called, chain.title, chain.seed) == ("abo >> apo", "ABO >> APO", 3)
    assert [stage.setting.steps for stage in chain.stages] == [1, 1]
    three = chain >> IterativeAPE(exact)
    assert isinstance(three, Chain) and len(three.stages) == 3
    with pytest.raises(ValueError, match="no compiler is called 'abp': did you mean"):
        compile(dspy.Predict("q -> a"), "apo >> abp", metric=exact, trainset=TRAIN)
    with pytest.raises(TypeError, match="ABO >> APO has no option stepz"):
        compiler_of("abo >> apo", metric=exact, stepz=1)


def other(example: dspy.Example, prediction: dspy.Prediction) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: ABO(exact, seed=1) >> APO(exact, seed=2),
            "have one seed, and ABO has another than APO: give it to one",
        ),
        (lambda: ABO(exact, budget=Budget(calls=9)) >> APO(exact, budget=Budget(usd=1)), "have one budget"),
        (lambda: ABO(exact) >> APO(other), "have one metric"),
        (lambda: ABO(exact, optimizer_lm="a/b") >> APO(exact, optimizer_lm="a/c"), "have one optimizer_lm"),
        (lambda: AlignPro(exact) >> ABO(exact), "AlignPro must be the last of a chain"),
        (lambda: ABO(exact, optimizer_lm="a/b") >> AlignPro(exact), "give it optimizer_lm= as well"),
        (lambda: Chain([ABO(exact)]), "at least two compilers, got 1"),
    ],
)
def test_what_cannot_be_chained_is_one_line(make: Callable[[], Compiler], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_agrees_may_be_given_twice() -> None:
    chain = ABO(exact, optimizer_lm="a/b", seed=1) >> APO(exact, optimizer_lm="a/b", seed=1)
    assert chain.optimizer_lm is not None and chain.optimizer_lm.model == "a/b"
    with pytest.raises(TypeError, match="unsupported operand"):
        ABO(exact) >> "apo"
    with pytest.raises(TypeError, match="a chain is of compilers, got str"):
        Chain([ABO(exact), "apo"])  # type: ignore[list-item]


def test_two_of_ours_and_one_of_dspys() -> None:
    """Each reads other parts of a run: what a stage stands for the student has to be so for all of them."""
    from cuesmith.testing.fakes import Engine, examples, graded, ruled, simulated

    target, optimizer = Engine(ruled), Engine(simulated())
    steps: list[StepDone] = []
    chain = (IterativeAPE(graded, optimizer_lm=optimizer.lm("optimizer"), **SMALL)
             >> compiler_of("bootstrap", metric=graded, num_candidate_programs=1, max_bootstrapped_demos=1)
             >> APO(graded, callbacks=lambda event: steps.append(event) if isinstance(event, StepDone) else None,
                    **SMALL))  # fmt: skip
    with dspy.context(lm=target.lm("target")):
        made = chain.compile(dspy.Predict("question -> answer"), trainset=examples(8, "t"), valset=examples(24, "v"))
    found = made.compilation
    assert [event.record.step for event in steps] == list(range(len(steps))) and len(steps) > 4
    assert len([note for note in found.notes if note.kind == "stage"]) == 3
    assert found.best.select is not None and found.baseline.select is not None
    assert found.best.select.mean > found.baseline.select.mean
    assert found.spent.total.calls == target.calls + optimizer.calls
