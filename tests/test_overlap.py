"""What goes on at a time: the same result whatever ends first, within the plan, and quiet when it is interrupted."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import threading
import zlib
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from test_frontier import Scripted, Skilled, numbers

from cuesmith import Interrupted
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.teleprompters.abo import ABO
from cuesmith.teleprompters.prompt_agent import PromptAgent
from cuesmith.teleprompters.registry import compiler_class
from cuesmith.teleprompters.runtime.candidate import Candidate, example_id
from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.interruption import run_coroutine
from cuesmith.teleprompters.runtime.ledger import RunStopped
from cuesmith.teleprompters.search.frontier import _ahead
from cuesmith.teleprompters.search.scene import Scene
from cuesmith.testing import Engine, Sent
from cuesmith.testing.fakes import chat


def chance(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


class Model(Engine):
    """Target and optimizer: fills the fields that a request wants; the same each time, but after a random time.

    Args:
        latency: Seconds that an answer takes at most.
        vocabulary: So many different instructions it writes.
        skill: Percentage of questions that it solves, whatever it is told.
    """

    def __init__(
        self,
        latency: float = 0.0,
        vocabulary: int = 10**6,
        skill: int = 60,
        hook: Callable[[int], None] = lambda nth: None,
    ) -> None:
        super().__init__(self._answer, jitter=latency)
        self.vocabulary, self.skill, self.hook = vocabulary, skill, hook
        self.lock, self.targets, self.optimizers = threading.Lock(), 0, 0

    def _answer(self, sent: Sent) -> str:
        system, user, number = sent.system, sent.turns[-1], sent.draw
        outputs = system.split("output fields are")[1].split("All inter")[0]
        wanted = re.findall(r"^\d+\. `(\w+)` \(([^)]*)\)", outputs, re.MULTILINE)
        optimizer = "question" not in re.findall(r"`(\w+)`", system)
        with self.lock:
            self.optimizers += optimizer
            self.targets += not optimizer
            nth = self.optimizers + self.targets
        self.hook(nth)
        if optimizer:
            return chat({name: self._written(name, kind, user, number) for name, kind in wanted})
        word = re.findall(r"[a-z]\d+", user.split("question ## ]]")[-1])[0]
        good = chance(system.split("your objective is:")[-1], word) % 100 < self.skill
        return chat({name: word if good else "no" for name, _ in wanted})

    def _written(self, name: str, kind: str, user: str, number: int | None) -> object:
        k = chance(user, number) % self.vocabulary
        fixed: dict[str, object] = {"kind": "insufficient", "step": 1, "move": "edit"}
        if name in ("steps", "new_steps"):
            return [f"Find the word {k}.", f"Give the word {k}."]
        if name == "work":
            return [f"looked {k}", re.findall(r"[a-z]\d+", user)[-1]]
        listed = [f"Reason {k} {j}." for j in range(3)] if "list" in kind else f"Repeat the word number {k}."
        return fixed.get(name, listed)


class Two(dspy.Module):  # type: ignore[misc]
    """A program of two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(dspy.Signature("question -> hint", "Find a hint."))
        self.second = dspy.Predict(dspy.Signature("question, hint -> answer", "Give the answer."))

    def forward(self, question: str) -> dspy.Prediction:
        """Ask both."""
        return self.second(question=question, hint=self.first(question=question).hint)


def words(n: int, prefix: str) -> list[dspy.Example]:
    return [dspy.Example(question=f"say {prefix}{i}", answer=f"{prefix}{i}").with_inputs("question") for i in range(n)]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.answer == prediction.answer)


def compiled(
    name: str, model: Model, student: dspy.Module | None = None, n_val: int = 24, metric: Any = exact, **options: Any
) -> Compilation:
    given = {"search": "frontier", "progress": False, **options}
    with dspy.context(lm=dspy.LM("test/overlap", engine=model, cache=False)):
        compiler = compiler_class(name)(metric, **given)
        found = compiler.compile(
            student or dspy.Predict("question -> answer"), trainset=words(20, "t"), valset=words(n_val, "v")
        ).compilation
    assert isinstance(found, Compilation)
    return found


def told(found: Compilation) -> str:
    trials = [(trial.candidate.to_json(), trial.scores) for trial in found.candidates]
    return json.dumps([trials, list(map(repr, found.steps)), found.notes])


@pytest.mark.parametrize(
    "name, vocabulary, several",
    [("portfolio", 10**6, True), ("portfolio", 12, False), ("prompt-agent", 12, False), ("apo", 12, True)],
)
def test_what_ends_first_makes_no_difference(name: str, vocabulary: int, several: bool) -> None:
    """Equal texts come from several rounds at a time; several stages are credited by what was learnt until then."""
    results = set()
    for in_flight, latency in ((1, 0.0), (64, 0.02)):
        results.add(
            told(
                compiled(
                    name,
                    Model(latency, vocabulary),
                    Two() if several else None,
                    steps=8,
                    next_predictor="credit",
                    max_in_flight=in_flight,
                )
            )
        )
    assert len(results) == 1


@pytest.mark.parametrize("form, n_val", [("frontier", 8), ("unified", 100)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_portfolio_keeps_to_its_plan(form: str, n_val: int, steps: int) -> None:
    model = Model(skill=0)
    options: dict[str, Any] = {"search": form, "initial": 0, "steps": steps, "racing": False, "progress": False}
    compiled("portfolio", model, n_val=n_val, **options)
    with dspy.context(lm=dspy.LM("test/overlap", engine=model, cache=False)):
        most = compiler_class("portfolio")(exact, **options).estimate(
            dspy.Predict("question -> answer"), trainset=words(20, "t"), valset=words(n_val, "v")
        )
    assert model.optimizers <= most.optimizer_calls and model.targets <= most.program_runs


def test_prompt_agent_along_the_front_plans_no_tree() -> None:
    along = PromptAgent(exact, search="frontier").plan(1, 20, 20)
    tree = PromptAgent(exact, search="native", steps=10, width=4).plan(1, 20, 20)
    assert 3 * along.program_runs < tree.program_runs


def test_the_best_member_goes_on_where_the_metric_cannot_judge_all() -> None:
    def picky(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        if str(example.question).endswith(("1", "3", "5")):
            raise ValueError("no opinion")
        return exact(example, prediction)

    best = set()
    for compilers in (("opro", "prompt-agent"), ("prompt-agent", "opro")):
        found = compiled(
            "portfolio", Model(), metric=picky, steps=2, search="unified", racing=False, compilers=compilers
        )
        best |= {name for note in found.notes for name in re.findall(r"(\S+) had the best proposals", note)}
    assert len(best) == 1


def test_a_missing_score_is_no_zero() -> None:
    assert _ahead((1.0, None, 0.5), (None, 1.0, 0.5)) == 0.0 == _ahead((None,), (1.0,))
    assert _ahead((1.0, 0.2), (None, 0.1)) == pytest.approx(0.1)


class Sixes:
    """Right or wrong; all answers together are worth what those to multiples of 6 are."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return str(example.answer) == str(prediction.answer)

    def corpus(self, examples: list[dspy.Example], predictions: list[dspy.Prediction | None]) -> float:
        pairs = [(e, p) for e, p in zip(examples, predictions, strict=True) if int(e.answer) % 6 == 0]
        return sum(p is not None and self(e, p) for e, p in pairs) / max(1, len(pairs))


class Modular(Skilled):
    """Solves the numbers whose remainder by 12 is named."""

    def _answer(self, sent: Sent) -> str:
        number = re.findall(r"number (\d+)", sent.turns[-1])[-1]
        return chat({"answer": number if f"[{int(number) % 12}]" in sent.system else "no"})


def test_sums_of_scores_give_up_nobody_where_all_answers_are_judged_together() -> None:
    class Waiting(Scripted):
        """Has all multiples of 6 to offer once the front has every number."""

        first = ("[1] [2] [3] [4] [5] [7] [8] [9] [10] [11]", "[0]", "[6]")

        async def update(self, scene: Scene, beam: Any) -> list[Candidate]:
            parents = [one.candidate for one in beam if one.candidate.prompts["self"].instructions in ("[0]", "[6]")]
            made = [scene.child(parent, "self", "[6] [0]", "vary") for parent in parents]
            return [child for child in made if child is not None]

        async def merged(self, scene: Scene, name: str, first: str, second: str) -> str | None:
            return None

    sixes = [e for e in numbers(0, 240) if int(e.answer) % 6 == 0]
    with dspy.context(lm=dspy.LM("test/modular", engine=Modular(), cache=False)):
        compiler = Waiting(
            Sixes(),
            optimizer_lm=SimulatedOptimizer(),
            search="frontier",
            steps=2,
            minibatch=12,
            dataset_summary=False,
            progress=False,
        )
        found = compiler.compile(
            dspy.Predict(dspy.Signature("question -> answer", "Do it.")), trainset=sixes, valset=numbers(300, 120)
        ).compilation
    assert found.best.candidate.prompts["self"].instructions == "[6] [0]"
    assert found.best.select is not None and found.best.select.mean == 1.0


def test_what_a_prompt_demonstrates_is_part_of_its_evidence() -> None:
    class Kept(ABO):
        """Remembers what it starts with."""

        started: list[Candidate]

        async def start(self, scene: Scene, count: int) -> list[Candidate]:
            self.started = await super().start(scene, count)
            return self.started

    with dspy.context(lm=dspy.LM("test/overlap", engine=Model(), cache=False)):
        compiler = Kept(exact, steps=0, progress=False, init_examples=1)
        train = words(20, "t")
        compiler.compile(dspy.ChainOfThought("question -> answer"), trainset=train, valset=words(20, "v"))
    ids = {str(example.question): example_id(example) for example in train}
    shown = [(one, str(dict(demo.values)["question"])) for one in compiler.started for _, p in one for demo in p.demos]
    assert shown and all(ids[question] in one.origin.evidence for one, question in shown)


@pytest.mark.parametrize("form", ["frontier", "unified"])
@pytest.mark.parametrize("at", [80, 110])
def test_an_interrupt_is_quiet(form: str, at: int, caplog: pytest.LogCaptureFixture) -> None:
    def hook(nth: int) -> None:
        if nth == at:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(Interrupted) as raised:
            compiled("portfolio", Model(0.02, hook=hook), search=form, steps=8, max_in_flight=8)
    finally:
        signal.signal(signal.SIGINT, before)
    gc.collect()
    assert raised.value.program is not None and not [r for r in caplog.records if r.name == "asyncio"]


def test_what_a_stop_leaves_behind_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def branch() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("ended by its own exception") from None

    async def stops() -> None:
        await asyncio.sleep(0.01)
        raise RunStopped("stopped")

    async def search() -> None:
        await asyncio.gather(branch(), stops())

    with pytest.raises(RunStopped):
        run_coroutine(search)
    gc.collect()
    assert not [r for r in caplog.records if r.name == "asyncio"]


def test_ctrl_c_while_what_is_left_behind_ends_is_not_lost() -> None:
    async def branch() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            signal.raise_signal(signal.SIGINT)
            raise

    async def work() -> list[asyncio.Task[None]]:
        left = [asyncio.create_task(branch())]
        await asyncio.sleep(0)
        return left

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_coroutine(work)
    finally:
        signal.signal(signal.SIGINT, before)
