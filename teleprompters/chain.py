"""Chain: one compiler after the other, each from where the one before it ended: `abo >> apo`. Source: ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import dspy

from cuesmith.teleprompters.align_pro import AlignPro
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.outcomes import rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import REPORT_SHARE
from cuesmith.teleprompters.runtime.stage import Stage

SHARED: Mapping[str, object] = {
    "metric": None, "optimizer_lm": None, "budget": Budget(), "seed": 0, "max_in_flight": 32, "callbacks": (),
    "progress": None, "example_timeout": 600.0, "hedge": None, "executor": None,
}  # fmt: skip
"""What all stages have in common, with the values that say nothing."""

HELD = {"callbacks": "observers", "executor": "remote"}
"""Options that a compiler holds under another name."""


class Chain(Compiler):
    """Several compilers one after the other, as one compile: one budget, one journal, one seed, one record.

    Each stage has the best candidate so far in the student's place, and knows all that was scored before it. The
    compilation's baseline is the first student, its gain that of the whole chain, on examples that no stage sees. A cap
    is that of all stages together, whatever it counts: each has an equal share of what the ones before it have left
    over, fits its size into its share of a cap on calls, and ends where its share is used (the notes say so).

    What is common (metric, optimizer, budget, seed, and the other options of every compiler) is given to any one of the
    stages; several may have it, if they agree. Written `first >> second >> third`.

    Args:
        stages: Two compilers or more, in order.

    Raises:
        TypeError: If a stage is no compiler.
        ValueError: If there are fewer than two, if two have different values of what is common, or if one that rewrites
            inputs is not the last.
    """

    stages: Sequence[Compiler]

    def __init__(self, stages: Sequence[Compiler]) -> None:
        parts: list[Sequence[Compiler]] = [stage.stages if isinstance(stage, Chain) else [stage] for stage in stages]
        flat = [stage for part in parts for stage in part]
        for stage in flat:
            if not isinstance(stage, Compiler):
                raise TypeError(f"a chain is of compilers, got {type(stage).__name__}")
        if len(flat) < 2:
            raise ValueError(f"a chain needs at least two compilers, got {len(flat)}")
        if early := [stage.title for stage in flat[:-1] if isinstance(stage, AlignPro)]:
            raise ValueError(f"{early[0]} must be the last of a chain: what follows would not see its rewrites")
        shared = {name: _common(name, flat) for name in SHARED}
        super().__init__(**shared)  # type: ignore[arg-type]
        last = flat[-1]
        if isinstance(last, AlignPro) and last.untrained and (last.optimizer_lm is None) != (self.optimizer_lm is None):
            raise ValueError(
                f"{last.title} without a prompter rewrites by the optimizer: give it optimizer_lm= as well"
            )
        self.scoring = max(stage.scoring for stage in flat)
        self.stages = [self._equal(stage) for stage in flat]

    def _equal(self, stage: Compiler) -> Compiler:
        """Return a stage with what is common."""
        equal = copy.copy(stage)
        for name in SHARED:
            setattr(equal, HELD.get(name, name), getattr(self, HELD.get(name, name)))
        return equal

    async def search(self, run: Run) -> Candidate:
        """Search stage by stage."""
        best = run.baseline
        for number, stage in enumerate(self.stages, 1):
            run.note(f"Stage {number} of {len(self.stages)}: {stage.title}, from the prompt {best.id}.", "stage")
            here = Stage(run, number, best, len(self.stages))
            found = await here.conduct(_fitted(stage, here).search)
            best = rank(await run.score(list(dict.fromkeys([best, found])), run.select))[0].candidate
        return best

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search: those of all stages, and each stage's result on the selection examples.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        each = [stage.plan(n_predictors, n_select, n_train) for stage in self.stages]
        runs = sum(one.program_runs for one in each) + len(each) * n_select
        return Plan(sum(one.optimizer_calls for one in each), runs)

    def check_data(self, trainset: Sequence[dspy.Example]) -> None:
        """Raise what a stage's own check does."""
        for stage in self.stages:
            stage.check_data(trainset)

    def check_student(self, student: dspy.Module) -> None:
        """Raise what a stage's own check does."""
        for stage in self.stages:
            stage.check_student(student)

    @property
    def title(self) -> str:
        """The stages' class names, in order."""
        return " >> ".join(stage.title for stage in self.stages)

    @property
    def called(self) -> str:
        """The stages' names, in order, as `cuesmith.compile` takes them."""
        return " >> ".join(stage.called for stage in self.stages)

    @property
    def shortest(self) -> bool:
        """Whether of candidates that cannot be told apart the shortest is returned: if every stage does so."""
        return all(stage.shortest for stage in self.stages)

    @property
    def success(self) -> float | None:
        """The score that counts as a success, for the first stage that asks for one."""
        return next((stage.success for stage in self.stages if stage.success is not None), None)

    def _options(self) -> Mapping[str, object]:
        stages = enumerate(self.stages, 1)
        return {f"{name} of stage {n}": option for n, stage in stages for name, option in stage._options().items()}


def _fitted(stage: Compiler, here: Stage) -> Compiler:
    """Return a stage whose size will fit into its share of a cap on calls."""
    fitted = copy.copy(stage)
    if (calls := here.share.get("calls")) is not None:
        fitted.budget = replace(stage.budget, calls=max(1, round(calls / (1 - REPORT_SHARE))))
    return fitted


def _common(name: str, stages: Sequence[Compiler]) -> object:
    """Return the value that stages give to what they have in common; that of saying nothing if none does.

    Raises:
        ValueError: If two of them give different ones.
    """
    given = [
        (stage.title, value) for stage in stages if (value := getattr(stage, HELD.get(name, name))) != SHARED[name]
    ]
    for title, value in given[1:]:
        if not _same(value, given[0][1]):
            raise ValueError(
                f"the stages of a chain have one {name}, and {given[0][0]} has another than {title}: "
                "give it to one of them, or the same to both"
            )
    return given[0][1] if given else SHARED[name]


def _same(one: object, other: object) -> bool:
    """Whether two values are the same; two models made of one name are."""
    if isinstance(one, dspy.BaseLM) and isinstance(other, dspy.BaseLM):
        return one is other or (
            type(one) is type(other)
            and vars(one).get("engine") is vars(other).get("engine")
            and one.dump_state() == other.dump_state()
        )
    return one is other or one == other
