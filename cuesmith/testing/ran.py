"""What one compile of the suite did, as it was seen from outside, and what holds of any. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, Json, example_id
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.events import (
    EffectDone,
    Event,
    RunFinished,
    RunStarted,
    SpentChanged,
    StepDone,
    Stopped,
)
from cuesmith.testing.fakes import LONG, LONGEST_INSTRUCTIONS, Engine


@dataclass(frozen=True)
class Ran:
    """One compile of the suite.

    Attributes:
        compiler: Who compiled.
        student: What was given.
        trainset: What was given.
        valset: What was given.
        compiled: What came back.
        compilation: Its record.
        events: All events, in order.
        target: The model of the program.
        optimizer: The model that was asked.
        at_stop: How many requests target and optimizer had had when the search was stopped; None if it was not.
    """

    compiler: Compiler
    student: dspy.Module
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example] | None
    compiled: dspy.Module
    compilation: Compilation
    events: Sequence[Event]
    target: Engine
    optimizer: Engine
    at_stop: tuple[int, int] | None

    @property
    def calls(self) -> int:
        """How many requests reached both models."""
        return self.target.calls + self.optimizer.calls

    @property
    def started(self) -> RunStarted:
        """The first event."""
        first = self.events[0]
        assert isinstance(first, RunStarted)
        return first

    def effects(self, role: str) -> list[EffectDone]:
        """The effects of one role, in the order of their completion."""
        return [event for event in self.events if isinstance(event, EffectDone) and event.role == role]

    def instructions(self) -> list[str]:
        """The instructions of all candidates, the student's left out."""
        own = {name: prompt.instructions for name, prompt in Candidate.of(self.student)}
        prompts = (pair for trial in self.compilation.candidates for pair in trial.candidate)
        return [prompt.instructions for name, prompt in prompts if prompt.instructions != own[name]]


def facts(compilation: Compilation, *, spent: bool = True) -> Mapping[str, Json]:
    """Return, as JSON data, what must be equal in two runs of one compile.

    Args:
        compilation: The record.
        spent: Whether that includes the calls and tokens by role.
    """
    by_role = sorted(compilation.spent.by_role.items()) if spent else []
    return {
        "best": compilation.best.candidate.to_json(),
        "reports": repr((compilation.baseline, compilation.best)),
        "candidates": [[trial.candidate.to_json(), list(trial.scores)] for trial in compilation.candidates],
        "steps": [repr(step) for step in compilation.steps],
        "gain": repr(compilation.gain),
        "stopped_by": compilation.stopped_by,
        "notes": list(compilation.notes),
        "spent": [[role, usage.calls, usage.input_tokens, usage.output_tokens] for role, usage in by_role],
    }


def scores_of(compilation: Compilation) -> set[float | None]:
    """Return every score that a candidate has on any selection example."""
    return {score for trial in compilation.candidates for score in trial.scores}


def check_record(ran: Ran) -> None:
    """Check that the record, the compiled program and the engines' counts agree."""
    found = ran.compilation
    assert ran.compiled is not ran.student and type(ran.compiled) is type(ran.student)
    assert ran.compiled._compiled is True
    assert Candidate.of(ran.compiled) == found.best.candidate
    assert found.baseline.candidate == Candidate.of(ran.student)
    assert found.spent.total.calls == ran.calls, "every call is counted, at the engines and in the ledger"
    ids = [trial.candidate.id for trial in found.candidates]
    assert len(ids) == len(set(ids))
    if found.stopped_by is None and None not in found.candidates[0].scores:
        assert found.best.select is not None and found.baseline.select is not None
        assert found.best.select.n == ran.started.n_select, "what is returned was scored on all examples"
        assert found.best.select.mean >= found.baseline.select.mean


def check_events(ran: Ran) -> None:
    """Check that events come in an order that a reader can follow."""
    events, found = ran.events, ran.compilation
    kinds = [type(event) for event in events]
    assert kinds.count(RunStarted) == kinds.count(RunFinished) == 1
    assert kinds[0] is RunStarted and kinds[-1] is RunFinished
    last = events[-1]
    assert isinstance(last, RunFinished) and last.compilation is found
    steps = tuple(event.record for event in events if isinstance(event, StepDone))
    assert steps == found.steps and [step.step for step in steps] == list(range(len(steps)))
    stops = [event.by for event in events if isinstance(event, Stopped)]
    in_report = any(note.kind == "partial" for note in found.notes)
    assert stops == ([] if found.stopped_by is None or (in_report and not stops) else [found.stopped_by])
    paid = [event.spent.total.calls for event in events if isinstance(event, SpentChanged)]
    assert paid == sorted(paid)
    known = {ran.compilation.baseline.candidate.id, *(trial.candidate.id for trial in found.candidates)}
    for step in steps:
        assert step.best_id == step.beam[0] and known >= set(step.beam)


def check_prompts(ran: Ran, *, guards: bool) -> None:
    """Check that no candidate has instructions that a target could not work with."""
    names = Candidate.of(ran.student).names
    for trial in ran.compilation.candidates:
        assert trial.candidate.names == names
    for text in ran.instructions() if guards else ():
        assert text.strip(), "blank instructions"
        assert "[[ ##" not in text, "a field's header in instructions makes the target's replies unreadable"
        assert len(text) <= LONGEST_INSTRUCTIONS
    if guards:
        assert all(len(sent.text) < LONG for sent in ran.optimizer.sent), "a request has all of a long text"


def check_plan(ran: Ran) -> None:
    """Check what was asked for against `plan`."""
    began, runs = ran.started, ran.effects("target")
    plan = ran.compiler.plan(len(began.predictors), began.n_select, began.n_train)
    assert len(ran.effects("optimizer")) <= plan.optimizer_calls == began.forecast.optimizer_calls
    assert len(runs) <= began.forecast.program_runs
    if (fresh := fresh_of(ran)) is not None:
        searched = [effect for effect in runs if effect.example_id not in fresh]
        assert len(searched) - began.n_select <= plan.program_runs


def check_report(ran: Ran) -> None:
    """Check that search and report keep apart: the search sees no fresh example, and is over when it is stopped."""
    fresh = fresh_of(ran)
    if fresh is None:
        return
    if ran.at_stop is None:
        order = [effect.example_id in fresh for effect in ran.effects("target")]
        assert sorted(order) == order, "the search ran an example of the report"
    else:
        late = {sent.asked.inputs["question"] for sent in ran.target.sent[ran.at_stop[0] :]}
        assert late <= set(fresh.values()), "the search ran programs after it was stopped"
        assert ran.optimizer.calls == ran.at_stop[1], "the search asked after it was stopped"


def fresh_of(ran: Ran) -> Mapping[str | None, object] | None:
    """Return id and question of the report's examples; None where they are some of the trainset, unknown which."""
    known = {example_id(example) for example in ran.trainset}
    new = {example_id(example): example.question for example in ran.valset or ()}
    if len(new.keys() - known) < 2:
        return None
    selected = {effect.example_id for effect in ran.effects("target")[: ran.started.n_select]}  # the student's runs
    return {one: question for one, question in new.items() if one not in known | selected}
