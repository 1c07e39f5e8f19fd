"""ABO: Automatic Behavior Optimization. Source: 2402.02101 section 6; what it leaves open is ours (PAPERS.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Unpack

import dspy

from cuesmith.signatures import ReviseStep, WriteSteps, render_steps
from cuesmith.teleprompters.behavior.steps import Located, locate, mend, most_frequent, step_list, steps_fault
from cuesmith.teleprompters.behavior.worked_examples import (
    Behavior,
    Demonstration,
    Draft,
    demonstrate,
    followed,
    outside_demonstrations,
    with_demonstrations,
)
from cuesmith.teleprompters.prompt_search import BeamSearch, SearchOptions
from cuesmith.teleprompters.runtime.candidate import Candidate, made_from, question_key
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.scene import Scene, subsets, text_field
from cuesmith.teleprompters.search.setting import Setting

OWN = 4
"""Runs of new steps, for each demonstration wanted, that are looked at for demonstrations. Ours."""


class ABO(BeamSearch):
    """Optimise what the target model does: numbered checkable steps, and demonstrations of following them.

    The optimizer writes steps from examples, and works training examples by following each step. Then, for
    each kept candidate: run a minibatch, find in every failed response the first step it left and how, and let
    the most frequent (step, kind) decide the edit. A step that was skipped or misapplied stays at first, and failing
    inputs become its new demonstrations; a step that is insufficient, or the form of the answer, is edited, split,
    deleted, or gets another before it, and the demonstrations with it. Where the optimizer's demonstrations do not pass
    their tests, runs of the target that followed the steps to a success take their place. A step of the search changes
    one predictor.

    A predictor without a reasoning field writes the work of its steps before its first field, where nothing reads it
    but this search.

    Its native form has the steps of the paper's section 6 (0, 1, 2) and a narrower beam of ours.

    Args:
        metric: As for `Compiler`.
        max_steps: Numbered steps a prompt has at most.
        errors: Failed responses looked at for each kept candidate.
        demos_per_predictor: Demonstrations a prompt has at most.
        retries: Further draws for a demonstration that does not pass its tests.
        demonstrations: False is the paper's ablation: everything as otherwise, but no demonstrations.
        **options: As for `PromptSearch`.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    NATIVE = Setting(width=2, branch=3, steps=2)

    def __init__(
        self,
        metric: MetricFunction,
        *,
        max_steps: int = 8,
        errors: int = 6,
        demos_per_predictor: int = 2,
        retries: int = 2,
        demonstrations: bool = True,
        **options: Unpack[SearchOptions],
    ) -> None:
        super().__init__(metric, **options)
        self.max_steps = whole("max_steps", max_steps, most=20)
        self.errors = whole("errors", errors)
        self.demos_per_predictor = whole("demos_per_predictor", demos_per_predictor, most=20)
        self.retries = whole("retries", retries, least=0, most=10)
        if not isinstance(demonstrations, bool):
            raise TypeError(f"demonstrations must be True or False, got {demonstrations!r}")
        self.demonstrations = demonstrations

    async def start(self, scene: Scene, count: int) -> list[Candidate]:
        """Return candidates with new steps for every predictor, each from its own examples."""
        return await self._write(scene, Draft(scene.run.baseline, {}), scene.run.baseline.names, count)

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Run the kept candidates on one minibatch without their demonstrations, and edit each where it failed."""
        parents = [Draft.of(scene, scores.candidate) for scores in beam]
        batch = scene.minibatch(outside_demonstrations(parents, scene.material.evidence))
        ran = await scene.try_out([parent.candidate for parent in parents], batch)
        families = await asyncio.gather(
            *(
                self._edit(scene, draft, on_batch, perfect=not on_select.failures(scene.threshold))
                for draft, on_select, on_batch in zip(parents, beam, ran, strict=True)
            )
        )
        return [child for family in families for child in family]

    async def merged(self, scene: Scene, name: str, first: str, second: str) -> str | None:
        """Return None: demonstrations of two lists of steps follow neither's merge."""
        return None

    async def _edit(self, scene: Scene, parent: Draft, ran: Scores, *, perfect: bool) -> list[Candidate]:
        """Return the children of one candidate: variant i edits for the i-th most frequent (step, kind)."""
        name = scene.turn(ran)
        if name not in parent.behaviors:  # the student itself: it has no steps to edit
            return await self._write(scene, parent, [name], self.setting.branch)
        own = parent.behaviors[name]
        located = await locate(
            scene.requests,
            own.task,
            own.steps,
            name,
            ran,
            salt=f"step {scene.step}",
            threshold=scene.threshold,
            most=self.errors,
        )
        ranking = most_frequent(located)
        if not ranking and (perfect or not self.demonstrations):
            return []  # nothing failed, or nothing can be said of why
        edits = []
        for i in range(self.setting.branch):
            again, place = divmod(i, len(ranking)) if ranking else (0, 0)
            pair = ranking[place] if ranking else None
            first = [one for one in located if (one.step, one.kind) == pair]
            rest = [one for one in located if (one.step, one.kind) != pair]
            edits.append(self._variant(scene, parent, name, ran, first, rest, i, again=again > 0))
        return [child for child in await asyncio.gather(*edits) if child is not None]

    async def _variant(
        self,
        scene: Scene,
        parent: Draft,
        name: str,
        ran: Scores,
        first: Sequence[Located],
        rest: Sequence[Located],
        i: int,
        *,
        again: bool,
    ) -> Candidate | None:
        """Make one child: mend the step, or only the demonstrations; None if the new steps are unusable.

        Of a step that was skipped or misapplied, the second child for the same failures (`again`) mends it as well.
        """
        old = parent.behaviors[name]
        steps, move = old.steps, "demonstrate"
        if first and (again or first[0].kind in ("insufficient", "format")):
            steps, move = await self._revise(scene, name, old, first, i)
        if not steps:
            return None
        failing = [one.failure.example for one in (*first, *rest)]
        demos = await self._work(scene, name, old.task, steps, failing, f"step {scene.step}, {i}", len(first))
        new = Behavior(old.task, steps, demos)
        if steps == old.steps and self.demonstrations:  # what was shown before, or done by itself, follows these steps
            new = self._filled(scene, name, old, demos, ran)
        seen = [*failing[: len(first)], *(one.case.example for one in new.demonstrations)]
        return parent.change(scene, {name: new}, made_from(move, seen, parent.candidate))

    async def _revise(
        self, scene: Scene, name: str, old: Behavior, located: Sequence[Located], i: int
    ) -> tuple[tuple[str, ...], str]:
        """Return the steps with one of them mended, and the move; no steps if they are unusable."""
        steps, kind = old.steps, located[0].kind
        number = len(steps) if kind == "format" else located[0].step  # the last step says the form of the answer
        request = {
            "steps": list(steps),
            "step": number,
            "kind": kind,
            "max_steps": self.max_steps,
            "failures": [one.shown() for one in located],
        }
        salt = f"step {scene.step}, {i}"
        replies = await scene.ask(ReviseStep, name, request, instructions=old.task, salt=salt)
        if not replies:
            return (), "revise"
        move, mended = mend(steps, number, replies[0].get("move"), step_list(replies[0].get("new_steps")))
        return self._usable(scene, mended), f"{move} step"

    def _usable(self, scene: Scene, steps: tuple[str, ...]) -> tuple[str, ...]:
        fault = steps_fault(steps, self.max_steps, scene.guard)
        scene.run.seen.drafts += 1
        if fault:
            scene.run.seen.dropped[fault] += 1
        return () if fault else steps

    async def _write(self, scene: Scene, parent: Draft, names: Sequence[str], count: int) -> list[Candidate]:
        """Write `count` candidates with new steps for the named predictors, candidate j from its own examples."""
        shown = subsets(scene.run, scene.material.evidence, self.setting.init_examples, count, "write", scene.step)
        written = await asyncio.gather(
            *(self._write_one(scene, parent, names, examples, j) for j, examples in enumerate(shown))
        )
        return [candidate for candidate in written if candidate is not None]

    async def _write_one(
        self, scene: Scene, parent: Draft, names: Sequence[str], examples: Sequence[dspy.Example], j: int
    ) -> Candidate | None:
        written = await asyncio.gather(*(self._behavior(scene, name, examples, j) for name in names))
        behaviors = {name: one for name, one in zip(names, written, strict=True) if one is not None}
        if not behaviors and not parent.behaviors:
            return None
        candidate = self._written(scene, parent, behaviors, examples)
        lacking = [name for name, one in behaviors.items() if len(one.demonstrations) < self.demos_per_predictor]
        if scene.step or not self.demonstrations or not lacking or not scene.material.workable:
            return candidate  # later steps see runs of each candidate anyway
        batch = scene.minibatch(scene.material.workable, "own", j, size=OWN * self.demos_per_predictor)
        ran = (await scene.try_out([candidate], batch))[0]
        filled = {name: self._filled(scene, name, one, (), ran) for name, one in behaviors.items()}
        return self._written(scene, parent, filled, examples)

    @staticmethod
    def _written(
        scene: Scene, parent: Draft, behaviors: Mapping[str, Behavior], examples: Sequence[dspy.Example]
    ) -> Candidate:
        worked = [one.case.example for behavior in behaviors.values() for one in behavior.demonstrations]
        return parent.change(scene, behaviors, made_from("write", [*examples, *worked], parent.candidate))

    def _filled(self, scene: Scene, name: str, old: Behavior, first: Sequence[Demonstration], ran: Scores) -> Behavior:
        """Return a behaviour with the demonstrations that come first, its own, and runs that followed it."""
        own = followed(ran, name, scene.run.predictors[name].signature, old.steps, scene.threshold)
        return with_demonstrations(
            old, (*first, *old.demonstrations, *own), scene.material.workable, self.demos_per_predictor
        )

    async def _behavior(self, scene: Scene, name: str, examples: Sequence[dspy.Example], j: int) -> Behavior | None:
        salt, student = f"write {scene.step}, {j}", scene.run.baseline.prompts[name].instructions
        request = {"examples": scene.book.shown(name, examples), "max_steps": self.max_steps}
        replies = await scene.ask(WriteSteps, name, request, instructions=student, salt=salt)
        steps = self._usable(scene, step_list(replies[0].get("steps"))) if replies else ()
        if not steps:
            return None
        own = scene.guard.pin(name, student)
        written = (scene.run.usable(name, text) if (text := text_field(replies[0], "task")) else None) or own
        tasks = (task for task in (written, own) if len(render_steps(task, steps)) <= scene.guard.longest)
        if (task := next(tasks, None)) is None:
            scene.run.seen.dropped["too long"] += 1
            return None
        return Behavior(task, steps, await self._work(scene, name, task, steps, (), salt))

    async def _work(
        self,
        scene: Scene,
        name: str,
        task: str,
        steps: Sequence[str],
        failing: Sequence[dspy.Example],
        salt: str,
        first: int = 0,
    ) -> tuple[Demonstration, ...]:
        """Have demonstrations worked: on failing inputs before others, the `first` of them before the rest."""
        if not self.demonstrations:
            return ()
        workable = {question_key(example): example for example in scene.material.workable}
        wanted = [[question_key(e) for e in failing[:first]], [question_key(e) for e in failing[first:]], [*workable]]
        order: list[str] = []
        for k, keys in enumerate(wanted):
            order += scene.run.rng("demonstrate", name, salt, k).sample(keys, len(keys))
        known = (scene.book.case(name, workable[key]) for key in dict.fromkeys(order) if key in workable)
        cases = [case for case in known if case is not None][: self.demos_per_predictor]
        return await demonstrate(
            scene.requests, name, task, steps, cases, retries=self.retries, threshold=scene.threshold, salt=salt
        )

    def initial(self, n_train: int) -> Plan:
        """Return what an initial prompt takes: its steps, its demonstrations with all retries, and runs of the steps
        that are looked at for more of them."""
        calls = 1 + self.demonstrations * self.demos_per_predictor * (1 + self.retries)
        return Plan(calls, self.demonstrations * min(OWN * self.demos_per_predictor, n_train))

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: a call for each error looked at, and for each child as
        for an initial prompt; a minibatch of program runs."""
        calls = self.errors + self.setting.branch * self.initial(n_train).optimizer_calls
        return Plan(calls, min(self.setting.minibatch, n_train))
