"""Every compiler of the registry passes the conformance suite, in each of its forms; and the suite finds faults."""

from __future__ import annotations

import importlib
import inspect
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from nano.dspy_answers import teach

from cuesmith.signatures import VaryInstructions
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.prompt_search import BeamSearch
from cuesmith.teleprompters.registry import COMPILERS, compiler_class
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.journal import JournalError
from cuesmith.teleprompters.runtime.metric import MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.search.scene import Scene, text_field
from cuesmith.testing.conformance import MOST_SHARED, CompilerConformance
from cuesmith.testing.fakes import plain
from cuesmith.testing.purity import source_faults, sources_of

teach()  # the optimizer behind the suite of those that are hosted

HOSTED: Mapping[str, object] = {"reflects": False, "guards": False, "pure": False}
"""What dspy's own optimizers cannot do: their prompts and their way of searching are theirs."""

UNORDERED: Mapping[str, object] = {**HOSTED, "deterministic": False, "resumes_exactly": False}
"""What those cannot do whose decisions hang on the order in which answers arrive."""

APART = ("apo", "prompt-agent")
"""Compilers whose native search is another one; that of the others has other numbers, and small ones here as well."""

ALONG = ("reflective-mutation", "abo", "prompt-agent", "opro")
"""Compilers whose proposals along the Pareto front are put to the suite: each looks at other parts of a step."""

NO_PROMPT_SEARCH = ("align-pro",)
"""Compilers that ask no language model for prompts: most of the suite says what becomes of its answers. What holds for
them as well (budget, journal, outages, purity, the student untouched) stands in their own tests."""

DECLARED: Mapping[str, Mapping[str, object]] = {
    "portfolio": {"shows_own_inputs": True, "pure": False},  # it loads its members by name
    "mipro": {
        **HOSTED,
        "small_options": {
            "auto": None,
            "num_candidates": 2,
            "num_trials": 3,
            "max_bootstrapped_demos": 2,
            "max_labeled_demos": 2,
            "minibatch": False,
        },
    },
    "gepa": {**HOSTED, "small_options": {"max_metric_calls": 40}},
    "simba": {**UNORDERED, "small_options": {"bsize": 4, "num_candidates": 3, "max_steps": 4, "max_demos": 2}},
    "copro": {**HOSTED, "small_options": {"breadth": 2, "depth": 2}},
    "bootstrap": {
        **UNORDERED,
        "small_options": {"num_candidate_programs": 2, "max_bootstrapped_demos": 2, "max_labeled_demos": 2},
    },
}
"""Name -> class attributes of `CompilerConformance`, for compilers that can do less or are made small otherwise."""


LONG = (
    "Test_apo_native",
    "Test_prompt_agent_native",
    "Test_copro",
    "Test_simba",
    "Test_reflective_mutation",
    "Test_portfolio",
    "Test_abo_frontier",
    "Test_prompt_agent_frontier",
    "Test_opro_frontier",
    "Test_apo_sum",
)
"""Suites whose code others run too: with `pytest -m slow`."""


def suites() -> Iterator[type[CompilerConformance]]:
    """Yield the suite of every compiler of the registry: a new one is there by itself."""
    for name in COMPILERS:
        if name not in NO_PROMPT_SEARCH:
            yield suite(name)
    for name in APART:
        yield suite(name, search="native")
    for name in ALONG:
        yield suite(name, search="frontier")


def suite(name: str, **fixed: str) -> type[CompilerConformance]:
    """Return the suite of one compiler, made with some options fixed."""
    kind = compiler_class(name)
    known = kind.options()

    def make(self: CompilerConformance, metric: MetricFunction, **options: object) -> Compiler:
        return kind(metric, **fixed, **options)  # type: ignore[arg-type]

    small = {option: value for option, value in CompilerConformance.small_options.items() if option in known}
    title = "_".join(["Test", name.replace("-", "_"), *fixed.values()])
    declared = DECLARED.get(name, {"shows_own_inputs": True})
    marks = [pytest.mark.slow] if title in LONG else []
    body = {"make": make, "small_options": small, "__module__": __name__, "pytestmark": marks, **declared}
    return type(title, (CompilerConformance,), body)


globals().update({each.__name__: each for each in suites()})


class Mine(BeamSearch):
    """A third party's compiler, sound and small: it varies what it has kept. The faulty ones below are made of it."""

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        """Return variations of the best candidate."""
        parent, name = beam[0].candidate, scene.turn()
        made = [scene.child(parent, name, text, "vary") for text in await self.texts(scene, parent, name)]
        return [child for child in made if child is not None]

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        """Ask for variations."""
        inputs = {"instruction": parent.prompts[name].instructions}
        asked = await scene.run.ask(VaryInstructions, inputs, n=self.setting.branch, salt=f"{scene.step}{salt}")
        return [text_field(reply, "variation") for reply in asked]

    def cost(self, n_train: int) -> Plan:
        """Return the cost of a step."""
        return Plan(self.setting.branch, 0)


class TestMine(CompilerConformance):
    """A compiler outside the package, in a file that no other process can import, beside faulty ones.

    `tests/test_own_compiler.py` stands in for it.
    """

    pytestmark = pytest.mark.slow
    pure = False
    shows_own_inputs = True

    def make(self, metric: MetricFunction, **options: object) -> Compiler:
        return Mine(metric, **options)  # type: ignore[arg-type]


class Prints(Mine):
    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        print("step", scene.step)
        return await super().texts(scene, parent, name)


class Tampers(Mine):
    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        predictor = scene.run.predictors[name]
        predictor.signature = predictor.signature.with_instructions("Changed in place.")
        return await super().texts(scene, parent, name)


class Counts(Mine):
    """Keeps state outside of the run."""

    numbers: ClassVar[Iterator[int]] = itertools.count()

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        return await super().texts(scene, parent, name, salt=str(next(self.numbers)))


class InOrderOfASet(Mine):
    """Decides by the order of a set, which is another in another process."""

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        return await super().texts(scene, parent, name, salt="".join({f"example {i}" for i in range(20)}))


class Overspends(Mine):
    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        more = [await super(Overspends, self).texts(scene, parent, name, salt=f"try {i}") for i in range(3)]
        return [text for texts in more for text in texts]


class Peeks(Mine):
    """Shows the optimizer what candidates are selected on."""

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        inputs = {"instruction": f"{parent.prompts[name].instructions} {scene.run.select[0].toDict()}"}
        return [text_field(reply, "variation") for reply in await scene.run.ask(VaryInstructions, inputs)]


class Trusts(Mine):
    """Lifts the rules and takes every text for an instruction."""

    async def update(self, scene: Scene, beam: Sequence[Scores]) -> list[Candidate]:
        scene.run.guard = None
        parent, name = beam[0].candidate, scene.turn()
        texts = await self.texts(scene, parent, name)
        return [parent.replace(name, instructions=text, origin=Origin("vary")) for text in texts]


class Invents(Mine):
    """Writes a prompt of its own where the optimizer gave none."""

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        return await super().texts(scene, parent, name) or ["Name the last word."]


class Formats(Mine):
    """Takes what was written for a template."""

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        found = await super().texts(scene, parent, name)
        return [text.replace("{question}", "the question").replace("{0.__class__}", str(type(self))) for text in found]


class Obeys(Mine):
    """Runs what was written."""

    async def texts(self, scene: Scene, parent: Candidate, name: str, salt: str = "") -> list[str]:
        found = await super().texts(scene, parent, name)
        for text in found:
            if text.startswith("__import__"):
                eval(text)
        return found


class Unseen(Mine):
    """Writes for the last predictor without having seen what it gets."""

    async def start(self, scene: Scene, count: int) -> list[Candidate]:
        name = scene.run.baseline.names[-1]
        texts = await self.texts(scene, scene.run.baseline, name)
        return [scene.run.baseline.replace(name, instructions=text, origin=Origin("vary")) for text in texts]


class Forgets(Mine):
    """Has an option that differs from object to object, so that no run is recognised."""

    def __init__(self, metric: MetricFunction, **options: object) -> None:
        super().__init__(metric, **options)  # type: ignore[arg-type]
        self.helper = uuid.uuid4().hex


FAULTS: Sequence[tuple[type[Mine], Callable[..., None], Mapping[str, object], str]] = [
    (Prints, CompilerConformance.test_nothing_is_printed, {}, "step 1"),
    (Tampers, CompilerConformance.test_the_student_is_untouched, {}, "look"),
    (Counts, CompilerConformance.test_the_same_at_any_concurrency, {}, "another result"),
    (Counts, CompilerConformance.test_a_stopped_run_goes_on, {"reason": "cap"}, "another result"),
    (InOrderOfASet, CompilerConformance.test_another_process_sends_nothing_again, {}, r"== 0|facts"),
    (Forgets, CompilerConformance.test_a_stopped_run_goes_on, {"reason": "target"}, "differs in: option"),
    (Overspends, CompilerConformance.test_an_estimate_is_an_upper_bound_and_calls_nothing, {"student": plain}, "calls"),
    (Peeks, CompilerConformance.test_selection_examples_are_not_shown, {}, "in shown|assert not"),
    (Trusts, CompilerConformance.test_a_hostile_optimizer, {"name": "headers in a line", "student": plain}, "header"),
    (Trusts, CompilerConformance.test_a_hostile_optimizer, {"name": "enormous", "student": plain}, "50000"),
    (Invents, CompilerConformance.test_an_optimizer_of_no_use, {"name": "blank fields"}, "instructions"),
    (Formats, CompilerConformance.test_a_hostile_optimizer, {"name": "braces", "student": plain}, "not verbatim"),
    (Obeys, CompilerConformance.test_a_hostile_optimizer, {"name": "code", "student": plain}, "exists"),
    (Unseen, CompilerConformance.test_several_predictors, {}, "was changed unseen"),
]


@pytest.mark.parametrize(
    ("kind", "test", "arguments", "said"), FAULTS, ids=[f"{kind.__name__} {test.__name__}" for kind, test, *_ in FAULTS]
)
def test_a_fault_is_found(
    kind: type[Mine],
    test: Callable[..., None],
    arguments: Mapping[str, object],
    said: str,
    request: pytest.FixtureRequest,
) -> None:
    class Suite(CompilerConformance):
        shows_own_inputs = True

        def make(self, metric: MetricFunction, **options: object) -> Compiler:
            return kind(metric, **options)  # type: ignore[arg-type]

    tested = Suite()
    wanted = [name for name in inspect.signature(test).parameters if name not in ("self", *arguments)]
    given = {name: tested.run() if name == "usual" else request.getfixturevalue(name) for name in wanted}
    with pytest.raises((AssertionError, JournalError), match=said):
        test(tested, **arguments, **given)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import time", "import time"),
        ("from datetime import datetime", "from datetime import"),
        ("import os.path as p", "import os.path"),
        ("def f():\n    return open('x').read()", "line 2: open("),
        ("print(1)", "print("),
        ("try:\n    f()\nexcept ValueError:\n    pass", "try"),
        ("random.shuffle(x)", "random.shuffle("),
        ("async def f():\n    await asyncio.sleep(1)", "asyncio.sleep("),
        ("async def f(run):\n    await asyncio.wait_for(run.ask(), 3)", "asyncio.wait_for("),
        ("from cuesmith.teleprompters.runtime.effects import effects_of", "runtime.effects"),
        ("\n" * 281, "281 lines"),
    ],
)
def test_impure_source_is_found(source: str, fault: str) -> None:
    (found,) = source_faults(source)
    assert fault in found


def test_pure_source_is_not_blamed() -> None:
    source = "import random\nasync def f(run):\n    entry = random.Random(run.seed)\n    opened = run.openly(entry)\n"
    assert source_faults(source) == []
    assert source_faults(Path(inspect.getfile(BeamSearch)).read_text(), most_lines=MOST_SHARED) == []


def test_what_a_search_calls_in_its_own_package_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("import time\n")
    head = "from cuesmith.teleprompters.compiler import Compiler\n"
    (package / "search.py").write_text(f"{head}from own_package.helper import time\nclass Own(Compiler):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("own_package.search").Own
    assert {path.name for path in sources_of(kind) if source_faults(path.read_text())} == {"helper.py"}
    named = {path.name for path in sources_of(compiler_class("abo"))}
    assert {"abo.py", "prompt_search.py", "worked_examples.py", "scene.py"} <= named and "run.py" not in named
