"""Does feedback change when the distribution of the errors is changed? One prompt, many batches of its errors.

Three instruments are read together. `diagnosis.validity` shows errors of one class, of another, mixed, alike, none at
all, right answers as wrong ones and a planted fault. `diagnosis.repetition` says how alike feedback on different
batches is, between the same batch asked again and another task. New here is what tells cause from surface:

- *exchange*: every mixed batch once more, with each error's expected and given answer in each other's place. The words
  stay the same, what they say is wrong does not. An optimizer that looks at the errors says something else then.
- *Mantel correlation*: whether batches that read alike get feedback that reads alike.

Classes may share one cause; then the right feedback is the same for all of them and validity finds nothing, rightly.
The exchange is the control that has no such excuse.

Errors are shown without the metric's words, which cannot be exchanged, and those whose answer could not be read are
left out. Source: 2402.02101, next check 1 ("error distributions are systematically manipulated while keeping semantic
similarity constant"); the correlation: Mantel 1967; exchange and statistics: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from cuesmith.programs.diagnosis import validity
from cuesmith.programs.diagnosis.asking import reasons
from cuesmith.programs.diagnosis.planted import BATCH
from cuesmith.programs.studies import STUDIES
from cuesmith.programs.studies.bench import Bench, Findings, Study
from cuesmith.programs.studies.checks import one_task
from cuesmith.programs.studies.errors_analysis import DRAWS, Plan, analysed, plan
from cuesmith.programs.studies.errors_report import limits, sections
from cuesmith.programs.studies.observed import Observed, observed
from cuesmith.programs.tasks import Sizes, Task
from cuesmith.teleprompters.runtime.compilation import Forecast
from cuesmith.teleprompters.runtime.run import Run

__all__ = ["STUDY", "Experiment", "conduct", "forecast"]

_PARTS = 8 + (DRAWS - 1) + DRAWS
"""Conditions at most: 4 distributions, no errors, placebo, planted, another task; mixed again, exchanged."""


# --- what is asked -----------------------------------------------------------------------------------------


class Experiment:
    """Observes the prompt's errors, then asks for everything at once.

    Attributes:
        found: What was observed; None until then.
        plan: What is shown; None until it is known, and if there are too few errors.
        replies: What was said, in the order of the plan; None where nothing came (yet).
    """

    def __init__(self, description: str, n: int) -> None:
        """Take what the plan needs.

        Args:
            description: What the task is, in words.
            n: Feedbacks a condition.
        """
        self.found: Observed | None = None
        self.plan: Plan | None = None
        self.replies: list[str | None] = []
        self._description, self._n = description, n

    async def __call__(self, run: Run) -> None:
        """Run it.

        Raises:
            RunStopped: As `Run.score`.
        """
        self.found = observed(run, (await run.score([run.baseline], run.train))[0])
        self.plan = plan(self.found, self._description, n=self._n, seed=run.seed)
        if self.plan is not None:
            shown = self.plan.shown()
            self.replies = [None] * len(shown)
            await reasons(run, shown, self.replies, order=self.plan.order())


# --- the study ---------------------------------------------------------------------------------------------


def conduct(bench: Bench, tasks: Sequence[Task], n: int) -> Findings:
    """Conduct the study on one task, with n feedbacks a condition.

    Raises:
        ValueError: Before any call, if it is not one task with training examples enough.
    """
    task = one_task(STUDY.name, tasks, n, fewest=STUDY.fewest, train=BATCH + 1)
    experiment = Experiment(task.description, n)
    bench.conduct(STUDY.name, task, experiment)
    result = analysed(experiment.found, experiment.plan, experiment.replies,
                      similarity=bench.similarity, seed=bench.seed)
    return Findings(result, sections(result), tuple(limits(result)))


def forecast(tasks: Sequence[Task], n: int) -> Forecast:
    """Return upper bounds: the student on every training and validation example, and each condition n times."""
    runs = sum(len(task.train) + len(task.validation) for task in tasks)
    asks = _PARTS * n * len(tasks)
    return Forecast(asks, runs, asks + runs)


STUDY = Study(
    name="errors",
    question=STUDIES["errors"],
    families=("objects",),
    sizes=Sizes(train=120, validation=10, test=1),
    n=validity.ENOUGH,
    unit="feedbacks a condition",
    fewest=5,
    conduct=conduct,
    forecast=forecast,
)
