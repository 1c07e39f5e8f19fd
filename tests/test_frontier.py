"""The search along the Pareto front: who becomes a parent, what is tried, kept, merged, and when it starts afresh."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.evaluation import evaluate
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.teleprompters.prompt_search import BeamSearch
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt, example_id
from cuesmith.teleprompters.runtime.compilation import Compilation, Plan
from cuesmith.teleprompters.runtime.outcomes import Outcome, ProviderFailure, Scored, Scores
from cuesmith.teleprompters.search.frontier import FRONTIER, STALE, Front, Known
from cuesmith.teleprompters.search.scene import Scene
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import chat

OURS = ("iterative-ape", "apo", "apo-sum", "prompt-agent", "opro", "reflective-mutation", "abo", "portfolio")


def scored(name: str, row: Sequence[float | None]) -> Scores:
    outcomes: list[Outcome] = [
        ProviderFailure("gone") if v is None else Scored(score=v, feedback="", trace=()) for v in row
    ]
    asked = tuple(dspy.Example(question=str(i)).with_inputs("question") for i in range(len(row)))
    return Scores(Candidate({"self": Prompt(name)}), asked, tuple(outcomes))


ROWS = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=n, max_size=n), min_size=1, max_size=7)
)


@given(ROWS)
@settings(max_examples=300, deadline=None)
def test_the_front_holds_every_example_and_nobody_in_it_is_superfluous(rows: list[list[float | None]]) -> None:
    pool = [scored(f"prompt {k}", row) for k, row in enumerate(rows)]
    front = Front.of(pool)
    assert {one.candidate.id for one in front.members} == set(front.held)
    for i, column in enumerate(zip(*rows, strict=True)):
        known = [v for v in column if v is not None]
        holders = [one for one in front.members if i in front.held[one.candidate.id]]
        assert bool(holders) == bool(known) and all(one.values[i] == max(known) for one in holders)
    for key, places in front.held.items():
        others = [held for other, held in front.held.items() if other != key]
        assert places - frozenset().union(*others)
    pair = front.rivals(frozenset())
    assert (pair is None) == (len(front.held) < 2)  # of two that are both needed, each holds something alone


def test_odds_are_highest_for_what_goes_well_sometimes() -> None:
    rows = [scored("a", [1.0, 1.0, 0.0, None]), scored("b", [1.0, 0.0, 0.0, None])]
    known = Known((), (*rows, *rows))  # the same run twice is one run
    odds = known.odds(1.0)
    first, second, third, _ = (example_id(example) for example in rows[0].examples)
    assert odds[first] == odds[third] == pytest.approx(4 * 3 / 16) and odds[second] == 1.0 and len(odds) == 3


class Skilled(Engine):
    """Solves what its instructions name: "ALPHA" the even questions, "BETA" the odd ones; remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    @property
    def told(self) -> list[str]:
        """The system messages."""
        return [sent.system for sent in self.sent]

    def _answer(self, sent: Sent) -> str:
        system, found = sent.system, re.search(r"number (\d+)", sent.turns[-1])
        assert found is not None
        skill = ("BETA" if int(found[1]) % 2 else "ALPHA") in system or "ALL" in system
        return chat({"answer": found[1] if skill else "no"})


def numbers(first: int, n: int) -> list[dspy.Example]:
    made = (dspy.Example(question=f"number {i}", answer=str(i)) for i in range(first, first + n))
    return [example.with_inputs("question") for example in made]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return str(example.answer) == str(prediction.answer)


class Scripted(BeamSearch):
    """Writes what it is given: ALPHA and BETA at first, nothing new afterwards, and one text for a merge."""

    merge_of: ClassVar[str] = "ALPHA and BETA"
    first: ClassVar[tuple[str, ...]] = ("ALPHA", "BETA")
    afresh: ClassVar[str] = ""

    async def start(self, scene: Scene, count: int) -> list[Candidate]:
        texts = ([self.afresh] if self.afresh else []) if scene.step else self.first
        made = (scene.child(scene.run.baseline, "self", text, "initial") for text in texts[:count])
        return [child for child in made if child is not None]

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        made = (scene.child(one.candidate, "self", f"Try {scene.step}.", "vary") for one in beam[:1])
        return [child for child in made if child is not None]

    async def merged(self, scene: Scene, name: str, first: str, second: str) -> str | None:
        assert {first, second} == set(self.first)
        return scene.run.usable(name, self.merge_of)

    def cost(self, n_train: int) -> Plan:
        return Plan(0, 0)


def searched(kind: type[BeamSearch], engine: Skilled, **options: Any) -> Compilation:
    given = {"search": "frontier", "steps": 4, "minibatch": 6, "dataset_summary": False, "progress": False, **options}
    with dspy.context(lm=dspy.LM("test/skilled", engine=engine, cache=False)):
        student = dspy.Predict(dspy.Signature("question -> answer", "Do it."))
        compiler = kind(exact, optimizer_lm=SimulatedOptimizer(), **given)
        found = compiler.compile(student, trainset=numbers(0, 40), valset=numbers(100, 24)).compilation
    assert isinstance(found, Compilation)
    return found


def test_specialists_are_both_kept_and_a_merge_that_is_better_on_fresh_examples_wins() -> None:
    engine = Skilled()
    found = searched(Scripted, engine)
    best = found.best.candidate
    assert best.prompts["self"].instructions == "ALPHA and BETA" and best.origin.move == "merge"
    parents = {trial.candidate.id: trial for trial in found.candidates}
    assert {parents[key].candidate.prompts["self"].instructions for key in best.origin.parents} == {"ALPHA", "BETA"}
    assert found.best.select is not None and found.best.select.mean == 1.0
    assert [record.step for record in found.steps] == list(range(len(found.steps)))


def test_a_merge_that_gains_nothing_is_never_scored_and_not_asked_for_again() -> None:
    class Vain(Scripted):
        """Merges into what only the first can do."""

        merge_of = "ALPHA, and no more"

    engine = Skilled()
    found = searched(Vain, engine)
    texts = {trial.candidate.prompts["self"].instructions for trial in found.candidates}
    assert texts == {"Do it.", "ALPHA", "BETA"}
    tried = {text for told in engine.told for text in re.findall("ALPHA, and no more", told)}
    assert tried and found.best.candidate.prompts["self"].instructions in ("ALPHA", "BETA")


def test_children_that_do_no_better_on_the_minibatch_are_not_scored() -> None:
    engine = Skilled()
    searched(Scripted, engine, steps=3)
    runs = [told for told in engine.told if "Try " in told]
    assert 0 < len(runs) <= 3 * 6


def test_after_rounds_of_nothing_a_prompt_is_written_afresh() -> None:
    class Stuck(Scripted):
        """Starts from nothing, and has one more thing to say."""

        first = ()
        afresh = "ALL of them"

    found = searched(Stuck, Skilled(), steps=STALE)
    assert found.best.candidate == found.baseline.candidate
    found = searched(Stuck, Skilled(), steps=STALE + 3 * FRONTIER.overlap)
    assert found.best.candidate.prompts["self"].instructions == "ALL of them"
    assert len(found.steps) < STALE + 3 * FRONTIER.overlap, "nothing is left to gain"


def test_a_graded_metric_that_gives_no_full_marks_ends_no_search() -> None:
    def graded(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(prediction.answer)

    class Longer(Scripted):
        first = ()

        async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
            texts = ((one.candidate, f"{one.candidate.prompts['self'].instructions} More.") for one in beam)
            made = (scene.child(parent, "self", text, "vary") for parent, text in texts)
            return [child for child in made if child is not None]

    def by_length(sent: Sent) -> str:
        return chat({"answer": f"{0.1 * sent.system.count('More.') + 0.01 * (len(sent.user) % 2):.2f}"})

    with dspy.context(lm=Engine(by_length).lm("graded")):
        student = dspy.Predict(dspy.Signature("question -> answer", "Do it."))
        options: Any = {"search": "frontier", "steps": 5, "dataset_summary": False, "progress": False}
        compiler = Longer(graded, optimizer_lm=SimulatedOptimizer(), **options)
        found = compiler.compile(student, trainset=numbers(95, 10), valset=numbers(95, 10)).compilation
    assert len(found.steps) == 1 + 5, "0.1 is above all that the student has, and no reason to stop"


def test_the_plan_is_never_exceeded() -> None:
    engine = Skilled()
    searched(Scripted, engine, steps=5)
    plan = Scripted(exact, search="frontier", steps=5, minibatch=6, dataset_summary=False).plan(1, 24, 40)
    assert len(engine.told) - 2 * 24 <= plan.program_runs


@pytest.mark.slow
@pytest.mark.parametrize("form", ["unified", "frontier"])
@pytest.mark.parametrize("name", OURS)
def test_a_defective_first_prompt_sinks_no_compiler(name: str, form: str) -> None:
    """GEPA is known to end below its baseline from such a prompt (arXiv 2603.18388)."""
    task = generate("objects", sizes=Sizes(test=100), seed=3)
    plain = dspy.ChainOfThought(task.signature)
    wrong = dspy.Signature(task.signature, "Give the last word of the question, in capitals.")
    defective = dspy.ChainOfThought(wrong)
    with dspy.context(lm=EmbeddedLM()):
        means = []
        for student in (plain, defective):
            found = compile(student, name, metric=task.metric, trainset=list(task.train), valset=list(task.validation),
                            optimizer_lm=SimulatedOptimizer(), search=form, progress=False)  # fmt: skip
            means.append(evaluate(found, task.test, task.metric).mean)
    assert means[1] >= means[0] - 0.1
