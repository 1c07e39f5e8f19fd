"""ABO: Automatic Behavior Optimization. Source: 2402.02101 section 6; what it leaves open is ours (PAPERS.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Unpack

import dspy

from cuesmith.signatures import Deviation, ReviseStep, WriteSteps, render_steps
from cuesmith.teleprompters.prompt_search import PromptSearch, SearchOptions
from cuesmith.teleprompters.runtime.candidate import Candidate, made_from, question_key
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.demos import Behavior, Demonstration
from cuesmith.teleprompters.search.deviations import Located, most_frequent
from cuesmith.teleprompters.search.drafts import Draft, keep_drafts, outside_demonstrations
from cuesmith.teleprompters.search.initial import task_inputs
from cuesmith.teleprompters.search.locating import locate
from cuesmith.teleprompters.search.material import subsets
from cuesmith.teleprompters.search.scene import Scene
from cuesmith.teleprompters.search.setting import Setting
from cuesmith.teleprompters.search.texts import step_list, steps_fault, text_field
from cuesmith.teleprompters.search.working import demonstrate


class ABO(PromptSearch):
    """Optimise what the target model does: numbered checkable steps, and demonstrations of following them.

    The optimizer writes steps from examples, and works training examples by following each step. Then, for
    each kept candidate: run a minibatch, find in every failed response the first step it left and how, and let
    the most frequent (step, kind) decide the edit. A step that was skipped or misapplied stays, and failing
    inputs become its new demonstrations; a step that is insufficient, or the form of the answer, is rewritten,
    and the demonstrations with it. A step of the search changes one predictor, round robin.

    Its native form has the steps of the paper's section 6 (0, 1, 2) and a narrower beam of ours.

    Args:
        metric: As for `Compiler`.
        max_steps: Numbered steps a prompt has at most.
        errors: Failed responses looked at for each kept candidate.
        demos_per_predictor: Demonstrations a prompt has at most.
        retries: Further draws for a demonstration that does not pass its tests.
        demonstrations: False is the paper's ablation: steps only, and every edit rewrites a step.
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

    async def unified(self, scene: Scene) -> Candidate:
        """Beam search as for `PromptSearch`, over drafts: candidates with the steps they are written from."""
        student = Draft(scene.run.baseline, {})
        written = await self._write(scene, student, scene.run.baseline.names, self.setting.initial)
        beam = await keep_drafts(scene, [student, *written])
        await scene.record(beam.scores)
        for step in range(1, self.setting.steps + 1):
            here = scene.at(step)
            children = await self._children(here, beam)
            beam = await keep_drafts(here, [student, *beam.drafts, *children])
            await here.record(beam.scores)
        return beam.drafts[0].candidate

    async def _children(self, scene: Scene, beam: Sequence[tuple[Draft, Scores]]) -> list[Draft]:
        """Run the kept candidates on one minibatch without their demonstrations, and edit each where it failed."""
        parents = [draft for draft, _ in beam]
        batch = scene.minibatch(outside_demonstrations(parents, scene.material.evidence))
        ran = await scene.try_out([parent.candidate for parent in parents], batch)
        families = await asyncio.gather(*(
            self._edit(scene, draft, on_batch, perfect=not on_select.failures(scene.setting.threshold))
            for (draft, on_select), on_batch in zip(beam, ran, strict=True)))
        return [child for family in families for child in family]

    async def _edit(self, scene: Scene, parent: Draft, ran: Scores, *, perfect: bool) -> list[Draft]:
        """Return the children of one candidate: variant i edits for the i-th most frequent (step, kind)."""
        name = scene.turn(ran)
        if name not in parent.behaviors:  # the student itself: it has no steps to edit
            return await self._write(scene, parent, [name], self.setting.branch)
        located = await locate(scene.run, parent.behaviors[name].steps, name, ran, salt=f"step {scene.step}",
                               threshold=scene.setting.threshold, most=self.errors)
        ranking = most_frequent(located)
        if not ranking and (perfect or not self.demonstrations):
            return []  # nothing failed, or nothing can be said of why
        edits = []
        for i in range(self.setting.branch):
            pair = ranking[i % len(ranking)] if ranking else None
            first = [one for one in located if (one.step, one.kind) == pair]
            rest = [one for one in located if (one.step, one.kind) != pair]
            edits.append(self._variant(scene, parent, name, first, rest, i))
        return [child for child in await asyncio.gather(*edits) if child is not None]

    async def _variant(self, scene: Scene, parent: Draft, name: str, first: Sequence[Located],
                       rest: Sequence[Located], i: int) -> Draft | None:
        """Make one child: rewrite the step, or only the demonstrations; None if the new steps are unusable."""
        old = parent.behaviors[name]
        steps, move = old.steps, "demonstrate"
        if first and (first[0].kind in ("insufficient", "format") or not self.demonstrations):
            steps, move = await self._revise(scene, steps, first, i), "revise"
        if not steps:
            return None
        failing = [one.failure.example for one in (*first, *rest)]
        demos = await self._work(scene, name, steps, failing, f"step {scene.step}, {i}", len(first))
        if steps == old.steps:  # what was shown before still follows these steps
            new = {question_key(one.case.example) for one in demos}
            kept = [one for one in old.demonstrations if question_key(one.case.example) not in new]
            demos = (*demos, *kept)[: self.demos_per_predictor]
        seen = [*failing[: len(first)], *(one.case.example for one in demos)]
        return parent.change(scene.run, {name: Behavior(old.task, steps, demos)},
                             made_from(move, seen, parent.candidate))

    async def _revise(self, scene: Scene, steps: Sequence[str], located: Sequence[Located], i: int
                      ) -> tuple[str, ...]:
        kind: Deviation = located[0].kind
        number = len(steps) if kind == "format" else located[0].step  # the last step says the form of the answer
        request = {"steps": list(steps), "step": number, "kind": kind,
                   "failures": [one.failure.shown() for one in located]}
        replies = await scene.run.ask(ReviseStep, request, salt=f"step {scene.step}, {i}")
        return self._usable(scene, replies[0].get("revised_steps")) if replies else ()

    def _usable(self, scene: Scene, found: object) -> tuple[str, ...]:
        steps = step_list(found)
        fault = steps_fault(steps, self.max_steps, scene.guard)
        if fault:
            scene.run.seen.dropped[fault] += 1
        return () if fault else steps

    async def _write(self, scene: Scene, parent: Draft, names: Sequence[str], count: int) -> list[Draft]:
        """Write `count` drafts with new steps for the named predictors, draft j from its own examples."""
        shown = subsets(scene.run, scene.material.evidence, self.setting.init_examples, count, "write", scene.step)
        return [draft for draft in await asyncio.gather(*(
            self._write_one(scene, parent, names, examples, j) for j, examples in enumerate(shown)))
            if draft.behaviors]

    async def _write_one(self, scene: Scene, parent: Draft, names: Sequence[str],
                         examples: Sequence[dspy.Example], j: int) -> Draft:
        written = await asyncio.gather(*(self._behavior(scene, name, examples, j) for name in names))
        behaviors = {name: one for name, one in zip(names, written, strict=True) if one is not None}
        return parent.change(scene.run, behaviors, made_from("write", examples, parent.candidate))

    async def _behavior(self, scene: Scene, name: str, examples: Sequence[dspy.Example], j: int
                        ) -> Behavior | None:
        salt = f"write {scene.step}, {j}"
        replies = await scene.run.ask(WriteSteps, task_inputs(scene.run, scene.book, name, examples), salt=salt)
        steps = self._usable(scene, replies[0].get("steps")) if replies else ()
        if not steps:
            return None
        own = scene.guard.pin(name, scene.run.baseline.prompts[name].instructions)
        written = scene.guard.usable(name, text_field(replies[0], "task")) or own
        tasks = (task for task in (written, own) if len(render_steps(task, steps)) <= scene.guard.longest)
        if (task := next(tasks, None)) is None:
            scene.run.seen.dropped["too long"] += 1
            return None
        return Behavior(task, steps, await self._work(scene, name, steps, (), salt))

    async def _work(self, scene: Scene, name: str, steps: Sequence[str], failing: Sequence[dspy.Example],
                    salt: str, first: int = 0) -> tuple[Demonstration, ...]:
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
        return await demonstrate(scene.run, steps, cases, retries=self.retries, threshold=scene.setting.threshold,
                                 salt=salt)

    def initial_calls(self) -> int:
        """Return the optimizer calls of an initial prompt: its steps, and its demonstrations with all retries."""
        return 1 + self.demonstrations * self.demos_per_predictor * (1 + self.retries)

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step for each kept candidate: a call for each error looked at, and for each child as
        for an initial prompt; a minibatch of program runs."""
        calls = self.errors + self.setting.branch * self.initial_calls()
        return Plan(calls, min(self.setting.minibatch, n_train))
