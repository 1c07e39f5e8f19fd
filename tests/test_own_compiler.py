"""A compiler of one's own, written directly on `Compiler` with no care for hygiene, keeps all promises of the suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cuesmith.signatures import WriteInstructions
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, made_from
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.evidence import shown_example
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.testing import CompilerConformance


class RandomSearch(Compiler):
    """Asks for instructions from random examples, changes one predictor after the other, and keeps the best."""

    def __init__(self, metric: MetricFunction, *, rounds: int = 4, **options: object) -> None:
        super().__init__(metric, **options)  # type: ignore[arg-type]
        self.rounds = rounds

    async def search(self, run: Run) -> Candidate:
        """Search."""
        best = (await run.score([run.baseline], run.select))[0]
        for number in range(self.rounds):
            for name in run.baseline.names:
                examples = run.rng(number, name).sample(run.train, min(4, len(run.train)))
                shown = [shown_example(example.inputs().toDict(), example.labels().toDict()) for example in examples]
                request = {"context": best.candidate.prompts[name].instructions, "examples": shown}
                for reply in await run.ask(WriteInstructions, request, salt=f"{number}, {name}"):
                    origin = made_from("random", examples, best.candidate)
                    made = best.candidate.replace(name, instructions=reply.instruction, origin=origin)
                    best = rank([best, *await run.score([made], run.select)])[0]
        await run.record(0, [best])
        return best.candidate

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """One request, and one candidate, for each predictor in each round."""
        return Plan(self.rounds * n_predictors, self.rounds * n_predictors * n_select + n_select)


class TestRandomSearch(CompilerConformance):
    """The whole suite, with nothing declared that it could not do."""

    small_options: ClassVar[Mapping[str, object]] = {"rounds": 4}

    def make(self, metric: MetricFunction, **options: object) -> Compiler:
        """Return one."""
        return RandomSearch(metric, **options)  # type: ignore[arg-type]
