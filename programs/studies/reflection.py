"""Does showing the errors make better refinements than no errors, or wrong ones? The same edit, from other reflections.

One prompt is refined many times in four ways, which differ in nothing but what the reflection was shown:

- *own errors*: a random batch of the errors that the prompt made on training examples;
- *no errors*: the prompt alone ("uniform reflection": what the optimizer believes without looking);
- *wrong errors*: a placebo, examples that the prompt answered rightly, each with another example's expected outputs
  and without the metric's words (`observed.swapped`); where there are fewer than `RIGHTS` of those, its errors,
  swapped likewise;
- *rewording*: no reflection; the prompt said in other words.

The edit sees the reason and never the errors, so that whatever a refinement knows of them came through the reflection.
How much that leaves out is measured as well: *own errors, shown to the edit too* edits from the very same reasons with
the batch in sight, as `APO` does.

A refinement is the unit of analysis: all are scored on the same examples, tests permute refinements, and intervals
resample refinements and examples. Source: 2402.02101 ("uniform reflection vs error-specific reflection"); the requests
are those of ProTeGi (2305.03495) as this project words them; design, placebo and statistics: ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cuesmith.programs.diagnosis.asking import Error, Evidence, reasons
from cuesmith.programs.diagnosis.planted import BATCH, FEWEST, drawn, without_errors
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.checks import one_task
from cuesmith.programs.studies.observed import Observed, observed, swapped
from cuesmith.programs.studies.reflection_analysis import (
    ARMS,
    OWN,
    PLACEBO,
    REWORDING,
    SEEN,
    UNIFORM,
    Collected,
    Refinement,
    analysed,
)
from cuesmith.programs.studies.reflection_report import limits, sections
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.signatures import EditInstruction, VaryInstructions
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.context import ProgramContext, Requests
from cuesmith.teleprompters.search.scene import text_field

__all__ = ["STUDY", "Experiment", "conduct", "forecast"]

RIGHTS = 2 * BATCH
"""Right answers that the placebo is made of at least, so that its batches differ. Ours."""


# --- what is asked -----------------------------------------------------------------------------------------


class Experiment:
    """Observes the prompt's errors, reflects, edits and scores.

    Attributes:
        kept: What has been found so far.
    """

    def __init__(self, n: int) -> None:
        """Take the number of refinements an arm."""
        self.kept = Collected()
        self._n = n

    async def __call__(self, run: Run) -> None:
        """Run it.

        Raises:
            RunStopped: As `Run.score`.
        """
        kept = self.kept
        scores, student = await asyncio.gather(
            run.score([run.baseline], run.train), run.score([run.baseline], run.select))
        kept.observed, kept.student = observed(run, scores[0]), student[0].values
        if len(kept.observed.errors) < FEWEST:
            return
        shown = self._shown(run, kept.observed)
        kept.reasons = {arm: [None] * self._n for arm in shown}
        kept.unusable = dict.fromkeys((*shown, REWORDING, SEEN), 0)
        written: dict[tuple[int, str], str] = {}
        await asyncio.gather(*(chain for k in range(self._n) for chain in (
            *(self._reflect(run, written, arm, k, batches[k]) for arm, batches in shown.items()),
            self._reword(run, written, k))))
        # All is written before the first is scored, in turn: so a stop leaves about as many refinements of every arm.
        await asyncio.gather(*(self._score(run, arm, k, written.get((k, arm), ""))
                               for k in range(self._n) for arm in kept.unusable))

    def _shown(self, run: Run, found: Observed) -> dict[str, list[Evidence]]:
        """What each arm's reflection is shown, one entry a refinement."""
        n, seed, prompt = self._n, run.seed, found.instructions
        shown = {OWN: drawn(prompt, found.errors, n=n, seed=seed, label=OWN), UNIFORM: without_errors(prompt, n=n)}
        pools = {"right answers": found.rights if len(found.rights) >= RIGHTS else (), "errors": found.errors}
        for name, pool in pools.items():
            wrong = swapped(pool, run.rng("placebo"))
            if len(wrong) >= FEWEST:
                self.kept.placebo = name
                return {**shown, PLACEBO: drawn(prompt, wrong, n=n, seed=seed, label=PLACEBO)}
        return shown

    async def _reflect(self, run: Run, written: dict[tuple[int, str], str], arm: str, k: int, evidence: Evidence
                       ) -> None:
        said: list[str | None] = [None]
        await reasons(run, [evidence], said, order=[0], salt=f"refinement {k}")
        reason = self.kept.reasons[arm][k] = said[0]
        if reason is None:
            return
        requests = Requests(run, ProgramContext.of(run))
        shown: dict[str, Sequence[Error]] = {arm: (), **({SEEN: evidence.errors} if arm == OWN else {})}

        async def edit(way: str) -> None:
            failures = [error.shown() for error in shown[way]]
            request = {"instruction": evidence.instructions, "failures": failures, "reason": reason}
            replies = await requests.ask(EditInstruction, run.baseline.names[-1], request, salt=f"refinement {k}")
            written[k, way] = text_field(replies[0], "edited_instruction") if replies else ""

        await asyncio.gather(*map(edit, shown))

    async def _reword(self, run: Run, written: dict[tuple[int, str], str], k: int) -> None:
        assert self.kept.observed is not None
        request = {"instruction": self.kept.observed.instructions}
        requests = Requests(run, ProgramContext.of(run))
        replies = await requests.ask(VaryInstructions, run.baseline.names[-1], request, salt=f"refinement {k}")
        written[k, REWORDING] = text_field(replies[0], "variation") if replies else ""

    async def _score(self, run: Run, arm: str, k: int, text: str) -> None:
        assert self.kept.observed is not None
        name = self.kept.observed.name
        made = run.child(run.baseline, name, text, move=f"refined by {arm}")
        if made is None:
            self.kept.unusable[arm] += 1
            return
        scored = (await run.score([made], run.select))[0]
        self.kept.refinements.append(Refinement(arm, k, made.prompts[name].instructions, scored.values))


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Conduct the study on one task, with n refinements an arm.

    Raises:
        ValueError: Before any call, if it is not one task with training examples enough.
    """
    task = one_task(STUDY.name, tasks, n, fewest=STUDY.fewest, train=FEWEST)
    experiment = Experiment(n)
    bench.conduct(STUDY.name, task, experiment)
    result = analysed(experiment.kept, n, similarity=bench.similarity, seed=bench.seed)
    return Findings(result, sections(result), tuple(limits(result)))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds: three reflections, four edits and a rewording a number, each of the five then scored."""
    asks = (3 + 4 + 1) * n * len(tasks)
    runs = sum(len(task.train) + (1 + len(ARMS) * n) * len(task.validation) for task in tasks)
    return Forecast(asks, runs, asks + runs)


STUDY = Study(
    name="reflection",
    question=STUDIES["reflection"],
    families=("objects",),
    sizes=Sizes(train=60, validation=60, test=1),
    n=12,
    unit="refinements an arm",
    fewest=4,
    conduct=conduct,
    forecast=forecast,
)
