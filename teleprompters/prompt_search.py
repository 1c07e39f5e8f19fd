"""The base of all compilers that search over prompts: one setting, one evaluation, one loop.

2402.02101 compares its methods in a unified setting, in which they differ only in how a step makes new prompts from
the kept ones (`update`). `search="native"` is a method as its own authors run it. Source: 2402.02101 section 3 and the
public code of each method; guards, racing and the choice of predictor are ours.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self, Unpack, get_args

import dspy

from cuesmith.signatures import STYLES, MergeInstructions, Style
from cuesmith.teleprompters.compiler import Compiler, Options
from cuesmith.teleprompters.runtime._dspy import named_predictors
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.checks import chosen, text, whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scored, Scores
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.session import REPORT_SHARE
from cuesmith.teleprompters.search.context import ProgramContext, Requests, rewarded
from cuesmith.teleprompters.search.examples import Material, begin, success_threshold
from cuesmith.teleprompters.search.frontier import FRONTIER, Frontier, Update, frontier_plan
from cuesmith.teleprompters.search.scene import STRATEGIES, Scene, Strategy, beginning, text_field, write_instructions
from cuesmith.teleprompters.search.setting import UNIFIED, Setting, smaller

Form = Literal["unified", "native", "frontier"]
FORMS: tuple[Form, ...] = get_args(Form)

STEPS: dict[Form, int] = {"unified": 1, "frontier": 2}
"""Under a cap on calls a setting is made so small that so many steps fit in. Ours."""

USED, ASKED = 0.6, 0.4
"""Shares of the upper bounds of program runs, with racing, and of optimizer calls that a search takes by and large.
Ours."""


class SearchOptions(Options, total=False):
    """The options that every prompt search takes; `PromptSearch` says what they mean."""

    search: Form
    width: int | None
    branch: int | None
    steps: int | None
    initial: int | None
    init_examples: int | None
    init_draws: int | None
    minibatch: int | None
    scoring: int | None
    threshold: float | None
    temperature: float | None
    racing: bool | None
    pinned: str | Mapping[str, str] | None
    longest: int | None
    next_predictor: Strategy
    task_description: str
    metric_description: str | None
    dataset_summary: bool | None
    analysis: Literal["auto"] | bool
    style: Style


class PromptSearch(Compiler):
    """A search over the prompts of a program.

    In the unified form a cap on calls makes the setting smaller where not even a step would fit in: numbers that were
    given stay, and a note says what became of the others.

    Args:
        metric: As for `Compiler`.
        search: "unified" is the setting that all compilers share, so that results differ by method; "native" the
            method's own search and numbers (`NATIVE`); "frontier" has it propose along a Pareto front, as GEPA does.
        width: Candidates kept after each step; parents of a round. None, here and below: what `search` says.
        branch: New candidates a step makes from each of them.
        steps: Steps after the initial one.
        initial: Initial prompts for each predictor, one of which names the answers if they are a few texts; 0: none.
        init_examples: Examples shown for each of them.
        init_draws: How many of them are drawn from the same examples.
        minibatch: Training examples on which kept candidates are run, and the size of the training score's sample.
        scoring: Selection examples that a candidate is scored on at most.
        threshold: A score of at least this is a success. None: 1.0 where the student's scores say that the metric
            gives 0 to 1, else what the right answers of some examples score (`search/examples.py`).
        temperature: What the optimizer samples at, unless its model has a temperature of its own above 0, or takes none
            (OpenAI's reasoning models).
        racing: Whether candidates that can no longer enter the beam are dropped before they are fully scored. None:
            yes, unless the method needs every score (`RACING`). Off where the metric judges all answers together
            (`corpus`): sums of scores then say nothing of who is ahead.
        pinned: Text that every predictor's instructions keep, or a mapping from predictor name to it; what the
            optimizer leaves out is appended again.
        longest: Characters that instructions may have. None: 4,000, or half as many again as the student's own have.
        next_predictor: Of a program with several predictors, a step changes one: "round robin" in the program's
            order, or by "credit", where failed runs first left the successful ones.
        task_description: What the optimizer is told of the task in every request, besides what the program says.
        metric_description: What it is told that the metric rewards. None: the first paragraph of its docstring.
        dataset_summary: Whether it first writes a summary of the data, in one call, which every request then shows.
            None: yes unless the form is native.
        analysis: Whether requests let it think in a field of its own before it judges or writes; "auto": unless it is
            a model that thinks by itself.
        style: "brief" asks for short instructions, "expert" for all facts, conventions and edge rules that help.
        **options: As for `Compiler`.

    Raises:
        TypeError: If an option is of the wrong type, or there is none of that name.
        ValueError: If an option is out of range.
    """

    NATIVE: ClassVar[Setting] = UNIFIED
    """The numbers of the method's own search."""
    RACING: ClassVar[bool] = True
    """Whether candidates race by default."""

    def __init__(
        self,
        metric: MetricFunction,
        *,
        search: Form = "unified",
        width: int | None = None,
        branch: int | None = None,
        steps: int | None = None,
        initial: int | None = None,
        init_examples: int | None = None,
        init_draws: int | None = None,
        minibatch: int | None = None,
        scoring: int | None = None,
        threshold: float | None = None,
        temperature: float | None = None,
        racing: bool | None = None,
        pinned: str | Mapping[str, str] | None = None,
        longest: int | None = None,
        next_predictor: Strategy = "round robin",
        task_description: str = "",
        metric_description: str | None = None,
        dataset_summary: bool | None = None,
        analysis: Literal["auto"] | bool = "auto",
        style: Style = "brief",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        self.form: Form = chosen("search", search, FORMS)
        self.threshold = threshold
        given = {
            "width": width,
            "branch": branch,
            "steps": steps,
            "initial": initial,
            "init_examples": init_examples,
            "init_draws": init_draws,
            "minibatch": minibatch,
            "scoring": scoring,
            "threshold": threshold,
            "temperature": temperature,
        }
        numbers = {name: number for name, number in given.items() if number is not None}
        self.given = tuple(sorted(numbers))
        usual = {"unified": UNIFIED, "native": self.NATIVE, "frontier": FRONTIER}
        self.setting = replace(usual[self.form], **numbers)  # type: ignore[arg-type]
        self.scoring = self.setting.scoring
        if not isinstance(racing, bool | None):
            raise TypeError(f"racing must be True, False or None, got {racing!r}")
        self.racing = Metric(metric).corpus is None and (self.RACING if racing is None else racing)
        self.pinned = _pinned(pinned)
        self.longest = None if longest is None else whole("longest", longest)
        self.next_predictor: Strategy = chosen("next_predictor", next_predictor, STRATEGIES)
        self.task_description = text("task_description", task_description)
        own = rewarded(metric) if metric_description is None else metric_description
        self.metric_description = text("metric_description", own)
        if not isinstance(dataset_summary, bool | None):
            raise TypeError(f"dataset_summary must be True, False or None, got {dataset_summary!r}")
        self.dataset_summary = self.form != "native" if dataset_summary is None else dataset_summary
        if analysis != "auto" and not isinstance(analysis, bool):
            raise ValueError(f'analysis={analysis!r} must be "auto", True or False')
        self.analysis = analysis
        self.style: Style = chosen("style", style, tuple(STYLES))

    @abstractmethod
    async def unified(self, scene: Scene) -> Candidate:
        """Beam search in the unified setting."""

    @abstractmethod
    def cost(self, n_train: int) -> Plan:
        """Return upper bounds of what one step's `update` asks for, for each kept candidate.

        Args:
            n_train: Training examples.
        """

    async def search(self, run: Run) -> Candidate:
        """Search; see the class."""
        return await (await self._fitted(run))._search(run)

    async def _search(self, run: Run) -> Candidate:
        setting = (
            self.setting
            if self.threshold is not None
            else replace(self.setting, threshold=await success_threshold(run, self.setting.threshold))
        )
        run.seen.threshold = setting.threshold
        run.temperature = setting.temperature
        material = Material.of(run, setting)
        run.guard = Guard.of(
            material.evidence,
            [p.instructions for _, p in run.baseline],
            self._pinned_by_name(run.baseline.names),
            self.longest,
            [predictor.signature for predictor in run.predictors.values()],
        )
        book = await begin(run, setting, material)
        scene = Scene(
            run,
            await self._requests(run),
            setting,
            material,
            book,
            self.racing,
            self.next_predictor,
            self.threshold is None,
        ).at(0)
        if self.dataset_summary:
            scene = await scene.summarized()
        return await {"unified": self.unified, "native": self.native, "frontier": self.frontier}[self.form](scene)

    async def native(self, scene: Scene) -> Candidate:
        """Search as the method's authors do; a beam search with other numbers unless the method says otherwise."""
        return await self.unified(scene)

    async def frontier(self, scene: Scene) -> Candidate:
        """Search along the Pareto front."""
        return await Frontier(scene, self.start, self.branching, self.merged).search()

    def branching(self, width: int, branch: int) -> Update:
        """Return an `update` that makes so many children of each of so many parents."""
        other = copy.copy(self)
        other.setting = replace(self.setting, width=width, branch=branch)
        return other.update

    async def start(self, scene: Scene, count: int) -> list[Candidate]:
        """Return `count` initial candidates, as far as what the optimizer writes can be used."""
        setting, key = replace(scene.setting, initial=count), (scene.step,) * bool(scene.step)
        return await write_instructions(scene.requests, setting, scene.material, scene.book, *key)

    @abstractmethod
    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return the new candidates of one step.

        Args:
            scene: The step.
            beam: The kept candidates, best first, scored on the selection examples.
        """

    async def merged(self, scene: Scene, name: str, first: str, second: str) -> str | None:
        """Return one instruction for predictor `name` that holds what two say; None if there is none."""
        both = {"first": first, "second": second}
        replies = await scene.ask(MergeInstructions, name, both, instructions=first)
        return scene.run.usable(name, text_field(replies[0], "merged_instruction")) if replies else None

    async def _requests(self, run: Run) -> Requests:
        """Return what asks the optimizer, with what every request is told."""
        ran = (await run.score([run.baseline], run.select))[0].outcomes
        traces = [outcome.trace for outcome in ran if isinstance(outcome, Scored)]
        context = ProgramContext.of(run, traces, self.metric_description, self.task_description, self.form != "native")
        analysis = not run.thinks if self.analysis == "auto" else self.analysis
        return Requests(run, context, self.style, analysis)

    async def _fitted(self, run: Run) -> Self:
        """Return this compiler with the largest setting whose first steps a cap on calls leaves room for."""
        if self.budget.calls is None or self.form == "native":
            return self
        each = (USED if self.racing else 1.0) * await run.calls_per_run()
        for setting in smaller(replace(self.setting, overlap=1), self.given):
            fitted = copy.copy(self)
            fitted.setting = replace(setting, steps=min(STEPS[self.form], setting.steps))
            plan = fitted.plan(len(run.predictors), len(run.select), len(run.train))
            fitted.setting = setting
            if each * plan.program_runs + ASKED * plan.optimizer_calls <= (1 - REPORT_SHARE) * self.budget.calls:
                break
        if replace(fitted.setting, overlap=self.setting.overlap) != self.setting:
            s = fitted.setting
            run.note(
                f"A cap of {self.budget.calls} calls is low for this search, which is made smaller: "
                f"width {s.width}, branch {s.branch}, initial {s.initial}, minibatch {s.minibatch}."
            )
        return fitted

    @property
    def shortest(self) -> bool:
        """Whether of candidates that cannot be told apart the shortest is returned: unless the form is native."""
        return self.form != "native"

    @property
    def success(self) -> float:
        """The score that counts as a success, as far as it is known before the student is scored."""
        return self.setting.threshold

    def initial(self, n_train: int) -> Plan:
        """Return what an initial prompt takes: optimizer calls for each predictor, and program runs."""
        return Plan(1, 0)

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds of the search.

        Optimizer calls: one for a summary of the data, initial * predictors * `initial` + steps * width *
        (calls of `cost`). Program runs: (1 + initial + steps * width * branch) * n_select for the scores, steps * width
        * (runs of `cost`), (steps + 1) * watched for the training scores, and one minibatch of the student.

        Args:
            n_predictors: Predictors of the student.
            n_select: Selection examples.
            n_train: Training examples.
        """
        s, each, parents = self.setting, self.cost(n_train), self.setting.steps * self.setting.width
        if self.form == "frontier":
            return frontier_plan(s, each, self.initial(n_train), n_predictors, n_select, n_train, self.dataset_summary)
        runs = (1 + s.initial + parents * s.branch) * n_select + parents * each.program_runs
        first = self.initial(n_train)
        runs += (s.steps + 1) * s.watched(n_train) + min(s.minibatch, n_train) + s.initial * first.program_runs
        asked = self.dataset_summary + s.initial * n_predictors * first.optimizer_calls
        return Plan(asked + parents * each.optimizer_calls, runs)

    def check_student(self, student: dspy.Module) -> None:
        """Raise `ValueError` if `pinned` names a predictor that the student has none of."""
        self._pinned_by_name([name for name, _ in named_predictors(student)])

    def _pinned_by_name(self, names: Sequence[str]) -> Mapping[str, str]:
        if isinstance(self.pinned, str):
            return dict.fromkeys(names, self.pinned)
        unknown = sorted(set(self.pinned) - set(names))
        if unknown:
            raise ValueError(f"pinned names {unknown[0]!r}, but the student's predictors are {', '.join(names)}")
        return self.pinned


class BeamSearch(PromptSearch):
    """A search whose methods differ in nothing but how a step makes new candidates from the kept ones."""

    async def unified(self, scene: Scene) -> Candidate:
        """Beam search in which the student competes at every step."""
        return await self.climb(scene, [scene.run.baseline])

    async def climb(self, scene: Scene, always: Sequence[Candidate] = ()) -> Candidate:
        """Beam search: student and initial prompts, then steps of `update`, the best of parents and children kept.

        Args:
            scene: The initial step.
            always: Candidates that compete at every step, whether or not they were kept.
        """
        beam = await self.keep(scene, await beginning(scene, self.start))
        await scene.record(beam)
        for step in range(1, self.setting.steps + 1):
            here = scene.at(step)
            children = await self.update(here, beam)
            beam = await self.keep(here, [*always, *(kept.candidate for kept in beam), *children])
            await here.record(beam)
        return beam[0].candidate

    async def keep(self, scene: Scene, pool: Sequence[Candidate]) -> list[Scores]:
        """Return the `width` best candidates of a pool, best first."""
        return await scene.keep(pool)


def _pinned(pinned: str | Mapping[str, str] | None) -> str | Mapping[str, str]:
    if pinned is None:
        return {}
    texts = [pinned] if isinstance(pinned, str) else list(pinned.values()) if isinstance(pinned, Mapping) else [pinned]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError(f"pinned must be a text, or a mapping from predictor name to text, got {pinned!r}")
    return pinned
