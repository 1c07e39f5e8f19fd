"""Portfolio: several compilers propose, and the one whose proposals did best goes on. Source: ours; that no optimizer
is best on every task, and that a composite can beat each of its members, is what GEPA's authors report of theirs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from cuesmith.teleprompters.prompt_search import BeamSearch, SearchOptions
from cuesmith.teleprompters.registry import compiler_class
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.scene import Scene
from cuesmith.teleprompters.search.setting import Setting

MEMBERS = ("reflective-mutation", "apo", "prompt-agent", "opro", "abo")


class Portfolio(BeamSearch):
    """Let several compilers race on the first steps, and the best go on from the best, over one record and budget.

    In its first `trial` steps every member proposes from the best candidate. From then on one member proposes, from all
    kept candidates: that whose best child has the highest mean on the selection examples so far. Prompts, scores and
    evidence are common to all; of ABO's steps only ABO makes use.

    Its native form has the numbers of the unified one.

    Args:
        metric: As for `Compiler`.
        compilers: Names of the members; each proposes as in a search of its own, with its own options' defaults.
        trial: Steps in which all propose.
        **options: As for `PromptSearch`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range, or a member is unknown, or proposes nothing from kept candidates.
    """

    def __init__(
        self,
        metric: MetricFunction,
        *,
        compilers: Sequence[str] = MEMBERS,
        trial: int = 1,
        **options: Unpack[SearchOptions],
    ) -> None:
        super().__init__(metric, **options)
        if isinstance(compilers, str) or not isinstance(compilers, Sequence) or len({*compilers}) < 2:
            raise TypeError(f"compilers must be two or more names, got {compilers!r}")
        self.trial = whole("trial", trial)
        self.compilers = tuple(dict.fromkeys(compilers))
        self._members(self.setting)

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return the proposals of all members from the best candidate, or those of the best member from all."""
        trial = scene.step <= self._trial
        names, parents = (self.compilers, beam[:1]) if trial else ((self._best(scene),), beam)
        members, apart = self._members(self.setting), [scene.apart() for _ in names]
        updates = [members[name].branching(len(parents), self.setting.branch) for name in names]
        made = await asyncio.gather(*(update(one, parents) for update, one in zip(updates, apart, strict=True)))
        scene.join(apart)
        for name, children in zip(names, made, strict=True):
            for child in children:
                scene.memory.setdefault(f"step {scene.step}: {child.id}", name)
        return [child for children in made for child in children]

    @property
    def _trial(self) -> int:
        """Steps in which all propose: along the front the next rounds begin before the first has ended."""
        return self.trial + self.setting.overlap - 1

    def _best(self, scene: Scene) -> str:
        """Return the member whose best child is best; where none has any that was scored to the end, the first."""
        base = scene.run.known(scene.run.baseline, scene.run.select)
        needed = {i for i, v in enumerate(base) if v is not None}  # an outage may have left gaps, in all alike
        by = ((_proposer(scene, trial.candidate), trial) for trial in scene.trials())
        whole = [
            (name, trial.mean)
            for name, trial in by
            if name and not math.isnan(trial.mean) and all(trial.scores[i] is not None for i in needed)
        ]
        if not whole:
            scene.run.note(
                f"No proposal of {', '.join(self.compilers)} was worth scoring to the end at first: "
                f"{self.compilers[0]} went on alone."
            )
            return self.compilers[0]
        best = max(whole, key=lambda pair: pair[1])[0]
        scene.run.note(f"Of {', '.join(self.compilers)}, {best} had the best proposals at first, and went on alone.")
        return best

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: that of the dearest member."""
        each = [member.cost(n_train) for member in self._members(self.setting).values()]
        return Plan(max(one.optimizer_calls for one in each), max(one.program_runs for one in each))

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search: as for `PromptSearch`, and what the trial's steps take beyond those.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        usual, s, along = super().plan(n_predictors, n_select, n_train), self.setting, self.form == "frontier"
        wide = s.branch * (s.width if along else 1)  # the first front may have one member, whose children are as many
        each = [member.cost(n_train) for member in self._members(replace(s, branch=wide)).values()]
        tried_on = min(s.minibatch, n_train) if along else n_select
        more = max(0, len(each) * wide - s.width * s.branch) * tried_on
        dearest = self.cost(n_train)
        calls = max(0, sum(one.optimizer_calls for one in each) - s.width * dearest.optimizer_calls)
        runs = max(0, sum(one.program_runs for one in each) - s.width * dearest.program_runs)
        steps = min(self._trial, s.steps)
        return Plan(usual.optimizer_calls + steps * calls, usual.program_runs + steps * (runs + more))

    def _members(self, setting: Setting) -> dict[str, BeamSearch]:
        """Return the members, by name, with these numbers: the search's own, which a cap may have made smaller.

        Raises:
            ValueError: If there is none of a name, or it proposes nothing from kept candidates.
        """
        members = {}
        for name in self.compilers:
            kind = compiler_class(name)
            if not issubclass(kind, BeamSearch) or issubclass(kind, Portfolio):
                raise ValueError(f"compilers: {name!r} proposes nothing from kept candidates, and cannot be a member")
            members[name] = kind(self.metric)
            members[name].setting = setting
        return members


def _proposer(scene: Scene, candidate: Candidate) -> str:
    """Return the member that proposed a candidate first; "" if none did."""
    steps = (scene.memory.get(f"step {step}: {candidate.id}") for step in range(1, scene.step))
    return str(next((name for name in steps if name), ""))
