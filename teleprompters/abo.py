"""ABO: Automatic Behavior Optimization. Source: 2402.02101 section 6; what it leaves open is ours (PAPERS.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from cuesmith.signatures import Deviation, ReviseStep, WriteSteps
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.events import Callback
from cuesmith.teleprompters.runtime.evidence import content_key
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.beam import record_step, turn
from cuesmith.teleprompters.search.demos import Behavior
from cuesmith.teleprompters.search.deviations import Located, most_frequent
from cuesmith.teleprompters.search.drafts import Draft, keep_best_drafts, outside_demonstrations
from cuesmith.teleprompters.search.initial import made_from, task_inputs
from cuesmith.teleprompters.search.locating import locate
from cuesmith.teleprompters.search.material import Casebook, Material, begin, subsets
from cuesmith.teleprompters.search.setting import Setting, whole
from cuesmith.teleprompters.search.texts import instruction, step_list, text_field
from cuesmith.teleprompters.search.working import Worked, demonstrate


@dataclass(frozen=True)
class _Scene:
    """What every part of one search looks at; `step` is 0 for the initial beam."""

    run: Run
    material: Material
    book: Casebook
    step: int = 0


class ABO(Compiler):
    """Optimise what the target model does: numbered checkable steps, and demonstrations of following them.

    The optimizer writes steps from examples, and works training examples by following each step. Then, for
    each kept candidate: run a minibatch, find in every failed response the first step it left and how, and let
    the most frequent (step, kind) decide the edit. A step that was skipped or misapplied stays, and failing
    inputs become its new demonstrations; a step that is insufficient, or the form of the answer, is rewritten,
    and the demonstrations with it. A step of the search changes one predictor, round robin.

    Args:
        metric: As for `Compiler`.
        width: Candidates kept after each step.
        branch: New candidates a step makes from each kept one.
        steps: Steps after the initial one.
        initial: Initial step lists written for each predictor.
        init_examples: Examples shown for each of them.
        minibatch: Training examples on which kept candidates are run, and the size of the training score's sample.
        threshold: A score of at least this is a success.
        max_steps: Numbered steps a prompt has at most.
        errors: Failed responses looked at for each kept candidate.
        demos_per_predictor: Demonstrations a prompt has at most.
        retries: Further draws for a demonstration that does not pass its tests.
        demonstrations: False is the paper's ablation: steps only, and every edit rewrites a step.
        optimizer_lm: As for `Compiler`, and so all that follow.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        metric: MetricFunction,
        *,
        width: int = 2,
        branch: int = 3,
        steps: int = 2,
        initial: int = 4,
        init_examples: int = 4,
        minibatch: int = 16,
        threshold: float = 1.0,
        max_steps: int = 8,
        errors: int = 6,
        demos_per_predictor: int = 2,
        retries: int = 2,
        demonstrations: bool = True,
        optimizer_lm: dspy.BaseLM | str | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        max_in_flight: int = 32,
        callbacks: Sequence[Callback] = (),
        example_timeout: float | None = 600.0,
    ) -> None:
        super().__init__(metric, optimizer_lm=optimizer_lm, budget=budget, seed=seed, max_in_flight=max_in_flight,
                         callbacks=callbacks, example_timeout=example_timeout)
        self.setting = Setting(width=width, branch=branch, steps=steps, initial=initial,
                               init_examples=init_examples, minibatch=minibatch, threshold=threshold)
        self.max_steps = whole("max_steps", max_steps, most=20)
        self.errors = whole("errors", errors)
        self.demos_per_predictor = whole("demos_per_predictor", demos_per_predictor, most=20)
        self.retries = whole("retries", retries, least=0, most=10)
        if not isinstance(demonstrations, bool):
            raise TypeError(f"demonstrations must be True or False, got {demonstrations!r}")
        self.demonstrations = demonstrations

    async def search(self, run: Run) -> Candidate:
        """Search; see the class."""
        setting = self.setting
        material = Material.of(run, setting)
        scene = _Scene(run, material, await begin(run, setting, material))
        student = Draft(run.baseline, {})
        written = await self._write(scene, student, run.baseline.names, setting.initial)
        beam = await keep_best_drafts(run, [student, *written], setting.width)
        await record_step(run, 0, beam.scores, material.watched)
        for step in range(1, setting.steps + 1):
            children = await self._children(_Scene(run, material, scene.book, step), beam)
            beam = await keep_best_drafts(run, [student, *beam.drafts, *children], setting.width)
            await record_step(run, step, beam.scores, material.watched)
        return beam.drafts[0].candidate

    async def _children(self, scene: _Scene, beam: Sequence[tuple[Draft, Scores]]) -> list[Draft]:
        """Run the kept candidates on one minibatch without their demonstrations, and edit each where it failed."""
        run, name = scene.run, turn(scene.run.baseline.names, scene.step)
        parents = [draft for draft, _ in beam]
        pool = outside_demonstrations(parents, scene.material.evidence)
        batch = run.rng("minibatch", scene.step).sample(pool, min(self.setting.minibatch, len(pool)))
        ran = await run.score([parent.candidate for parent in parents], batch)
        scene.book.learn(ran)
        families = await asyncio.gather(*(
            self._edit(scene, draft, name, on_batch, perfect=not on_select.failures(self.setting.threshold))
            for (draft, on_select), on_batch in zip(beam, ran, strict=True)))
        return [child for family in families for child in family]

    async def _edit(self, scene: _Scene, parent: Draft, name: str, ran: Scores, *, perfect: bool) -> list[Draft]:
        """Return the children of one candidate: variant i edits for the i-th most frequent (step, kind)."""
        if name not in parent.behaviors:  # the student itself: it has no steps to edit
            return await self._write(scene, parent, [name], self.setting.branch)
        located = await locate(scene.run, parent.behaviors[name].steps, name, ran, salt=f"step {scene.step}",
                               threshold=self.setting.threshold, most=self.errors)
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

    async def _variant(self, scene: _Scene, parent: Draft, name: str, first: Sequence[Located],
                       rest: Sequence[Located], i: int) -> Draft | None:
        """Make one child: rewrite the step, or only the demonstrations; None if the new steps are unusable."""
        old = parent.behaviors[name]
        steps, move = old.steps, "demonstrate"
        if first and (first[0].kind in ("insufficient", "format") or not self.demonstrations):
            steps, move = await self._revise(scene, steps, first, i), "revise"
        if not steps:
            return None
        failing = [one.failure.example for one in (*first, *rest)]
        worked = await self._work(scene, name, steps, failing, f"step {scene.step}, {i}", len(first))
        demos = worked.demonstrations
        if steps == old.steps:  # what was shown before still follows these steps
            new = {content_key(one.case.example) for one in demos}
            kept = [one for one in old.demonstrations if content_key(one.case.example) not in new]
            demos = (*demos, *kept)[: self.demos_per_predictor]
        seen = [*failing[: len(first)], *(one.case.example for one in demos)]
        return parent.change(scene.run, {name: Behavior(old.task, steps, demos)},
                             made_from(move, seen, parent.candidate), worked.dropped)

    async def _revise(self, scene: _Scene, steps: Sequence[str], located: Sequence[Located], i: int
                      ) -> tuple[str, ...]:
        kind: Deviation = located[0].kind
        number = len(steps) if kind == "format" else located[0].step  # the last step says the form of the answer
        request = {"steps": list(steps), "step": number, "kind": kind,
                   "failures": [one.failure.shown() for one in located]}
        replies = await scene.run.ask(ReviseStep, request, salt=f"step {scene.step}, {i}")
        return step_list(replies[0].get("revised_steps"), self.max_steps) if replies else ()

    async def _write(self, scene: _Scene, parent: Draft, names: Sequence[str], count: int) -> list[Draft]:
        """Write `count` drafts with new steps for the named predictors, draft j from its own examples."""
        shown = subsets(scene.run, scene.material.evidence, self.setting.init_examples, count, "write", scene.step)
        return [draft for draft in await asyncio.gather(*(
            self._write_one(scene, parent, names, examples, j) for j, examples in enumerate(shown)))
            if draft.behaviors]

    async def _write_one(self, scene: _Scene, parent: Draft, names: Sequence[str],
                         examples: Sequence[dspy.Example], j: int) -> Draft:
        written = await asyncio.gather(*(self._behavior(scene, name, examples, j) for name in names))
        behaviors = {name: one[0] for name, one in zip(names, written, strict=True) if one is not None}
        dropped = [why for one in written if one is not None for why in one[1]]
        return parent.change(scene.run, behaviors, made_from("write", examples, parent.candidate), dropped)

    async def _behavior(self, scene: _Scene, name: str, examples: Sequence[dspy.Example], j: int
                        ) -> tuple[Behavior, tuple[str, ...]] | None:
        salt = f"write {scene.step}, {j}"
        replies = await scene.run.ask(WriteSteps, task_inputs(scene.run, scene.book, name, examples), salt=salt)
        steps = step_list(replies[0].get("steps"), self.max_steps) if replies else ()
        if not steps:
            return None
        task = instruction(text_field(replies[0], "task")) or scene.run.baseline.prompts[name].instructions
        worked = await self._work(scene, name, steps, (), salt)
        return Behavior(task, steps, worked.demonstrations), worked.dropped

    async def _work(self, scene: _Scene, name: str, steps: Sequence[str], failing: Sequence[dspy.Example],
                    salt: str, first: int = 0) -> Worked:
        """Have demonstrations worked: on failing inputs before others, the `first` of them before the rest."""
        if not self.demonstrations:
            return Worked()
        workable = {content_key(example): example for example in scene.material.workable}
        wanted = [[content_key(e) for e in failing[:first]], [content_key(e) for e in failing[first:]], [*workable]]
        order: list[str] = []
        for k, keys in enumerate(wanted):
            order += scene.run.rng("demonstrate", name, salt, k).sample(keys, len(keys))
        known = (scene.book.case(name, workable[key]) for key in dict.fromkeys(order) if key in workable)
        cases = [case for case in known if case is not None][: self.demos_per_predictor]
        return await demonstrate(scene.run, steps, cases, retries=self.retries, threshold=self.setting.threshold,
                                 salt=salt)

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        With w = 1 + demos_per_predictor * (1 + retries) calls for a list of steps and its demonstrations
        (w = 1 without them), optimizer calls: initial * predictors * w + steps * width * (errors + branch * w).
        Program runs: (1 + initial + steps * width * branch) * n_select for the scores, steps * width minibatches,
        (steps + 1) * watched for the training scores, and one minibatch of the student.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        s = self.setting
        w = 1 + self.demonstrations * self.demos_per_predictor * (1 + self.retries)
        calls = s.initial * n_predictors * w + s.steps * s.width * (self.errors + s.branch * w)
        batches = (1 + s.steps * s.width) * min(s.minibatch, n_train) + (s.steps + 1) * s.watched(n_train)
        return Plan(calls, (1 + s.initial + s.steps * s.width * s.branch) * n_select + batches)
