"""A run directory answers only for what it recorded: every change of a kind is refused in one line that names it.

One module of a user's, `TASK`, holds the program, the metric and all they reach. It is compiled once; each case then
changes the module's text and resumes a copy of that run's directory.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy
import pytest
from e2e_support import ToyEngine, ToySearch, exact, toy_lm, words
from processes_support import Forked

from cuesmith.teleprompters.runtime.compilation import Compilation
from cuesmith.teleprompters.runtime.journal import JournalError

DATA = Path(__file__).parent / "data"
TASK, HELPERS = ((DATA / f"changing_{name}.txt").read_text() for name in ("task", "helpers"))


def load(text: str, name: str = "task_of_user") -> ModuleType:
    """Make a user's module from text, as an import would."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, f"/home/user/{name}.py", "exec", dont_inherit=True), vars(module))
    return module


def compiled(task: Any, run_dir: Path, engine: ToyEngine, **options: Any) -> Compilation:
    """Compile the task's program."""
    lm = options.pop("lm", None) or toy_lm(engine)
    adapter = options.pop("adapter", None)
    student = options.pop("student", None) or task.program()
    with dspy.context(lm=lm, adapter=adapter):
        search = ToySearch(task.metric, **{"optimizer_lm": toy_lm(engine, "writer"), "steps": 1, "width": 1, **options})
        found: Compilation = search.compile(student, trainset=words(8), run_dir=run_dir).compilation
    return found


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in ("task_of_user", "user_helpers"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the run that all changes are tried on."""
    load(HELPERS, "user_helpers")
    run_dir, engine = tmp_path_factory.mktemp("changes") / "run", ToyEngine()
    compiled(load(TASK), run_dir, engine)
    assert engine.calls > 0
    return run_dir


def refusal(run_dir: Path, task: Any, **options: Any) -> str:
    """Return the one line that a resumed compile is refused with."""
    engine = ToyEngine()
    with pytest.raises(JournalError) as caught:
        compiled(task, run_dir, engine, **options)
    said = str(caught.value)
    assert engine.calls == 0 and "\n" not in said and said.count(",") < 7
    return said


CHANGES = {
    "metric's code": ("* weight *", "+ weight *", "metric: code of metric"),
    "metric's helper": ("one == other and", "one != other and", "metric: code of near"),
    "metric's default": ("weight=1)", "weight=2)", "metric: default `weight` of metric"),
    "keyword-only default": ("*, slack=0)", "*, slack=1)", "metric: default `slack` of near"),
    "closure": ("enough = made(1)", "enough = made(9)", "metric: closure `low` of <lambda>"),
    "nested function's code": ("len(text) >= low", "len(text) > low", "metric: code of <lambda>"),
    "metric object's attribute": ("judge = Judge(0)", "judge = Judge(1)", "metric: attribute `bonus` of Judge"),
    "metric object's class": ("return self.bonus", "return -self.bonus", "metric: code of Judge.__call__"),
    "partial": ("partial(near, slack=0)", "partial(near, slack=3)", "metric: argument `slack` of partial of near"),
    "decorator": ("return function(*args, **kwargs)", "return not function(*args, **kwargs)", "code of metric"),
    "global constant": ("LEAST = 1", "LEAST = 2", "metric: global `LEAST`"),
    "global regex": ('compile(r"w")', 'compile(r"w+")', "metric: global `WORD`"),
    "regex flags": ('compile(r"w")', 'compile(r"w", re.I)', "metric: global `WORD`"),
    "cached function": ("return text\n\n\n@logged", "return not text\n\n\n@logged", "metric: code of cached"),
    "program's class": ("Program", "Renamed", "program"),
    "forward": ("self.end(said))", "self.end(said) + '!')", "program: code of Program.forward"),
    "inherited method": ("        return text\n\n\nclass Program", "        return text[1:]\n\n\nclass Program",
                         "program: code of Base.end"),
    "attribute": ("self.upper = False", "self.upper = True", "program: attribute `upper` of Program"),
    "attribute's type": ("self.upper = False", "self.upper = 0", "program: attribute `upper` of Program"),
    "attribute of a name that predictors use": ('"draft"', '"final"', "program: attribute `stage` of Program"),
    "new attribute": ("self.upper = False", "self.upper = self.lower = False", "attribute `lower` of Program"),
    "class attribute": ("scale = 1", "scale = 2", "program: attribute `scale` of class Program"),
    "array": ("np.arange(4)", "np.array([0, 1, 2, 4])", "program: attribute `table` of Program"),
    "array's type": ("np.arange(4)", "np.arange(4.0)", "program: attribute `table` of Program"),
    "dict of functions": ('text + "2"', 'text + "3"', "program: code of <lambda> (2)"),
    "enum value": ('B = "b"', 'B = "c"', "program: member `B` of class Kind"),
    "pydantic field's type": ("    name: str = p", "    name: str | None = p", "program: field `name` of class Person"),
    "pydantic field's text": ("first and last", "last and first", "program: field `name` of class Person"),
    "pydantic validator": ("value.strip()", "value.lstrip()", "program: code of Person.strip"),
    "pydantic validator's mode": ('field_validator("name")', 'field_validator("name", mode="before")',
                                  "program: validators of class Person"),
    "pydantic value": ('Person(name="x")', 'Person(name="y")', "program: attribute `name` of Person"),
    "dataclass default": ("depth: int = 3", "depth: int = 4", "program: attribute `depth` of Config"),
    "dataclass value": ("Config()", "Config(tags=[1])", "program: attribute `tags` of Config"),
    "dataclass factory": ("default_factory=list", "default_factory=tuple", "class Config"),
    "property": ('return "."', 'return "!"', "program: code of Style.mark"),
    "static method": ("text[:99]", "text[:98]", "program: code of Style.cut"),
    "class method": ("return cls.__name__", "return cls.__qualname__", "program: code of Style.named"),
    "slot": ("Slotted(1)", "Slotted(2)", "program: attribute `size` of Slotted"),
    "list of one's own": ("Many([1, 2])", "Many([2, 1])", "program: content of Many"),
    "nested set": ('2, "three"', '2, "four"', "program: attribute `options` of Program"),
    "namespace": ("SimpleNamespace(depth=1)", "SimpleNamespace(depth=2)", "program: attribute `note` of Program"),
    "field's type": ("answer: str =", "answer: str | None =", "program: field `answer` of predictor `ask`"),
    "field's text": ("what is asked", "what is wanted", "program: field `question` of predictor `ask`"),
    "another field": ("answer: str =", "why: str = dspy.OutputField()\n    answer: str =",
                      "program: fields of predictor `ask`"),
    "literal": ("Literal['x', 'y']", "Literal['x', 'z']", "field `label` of predictor `spare.predict`"),
    "predictor's options": ("temperature=0.5", "temperature=0.6", "attribute `config` of predictor `spare.predict`"),
    "frozen predictor": ('dspy.Predict("a -> b")', 'dspy.Predict("a -> b", n=2)', "predictor `frozen`"),
    "student's instructions": ('"""Answer."""', '"""Answer well."""', "program: prompts"),
    "own LM": ("self.upper =", "self.ask.set_lm(dspy.LM('openai/other')); self.upper =", "LM of predictor `ask`"),
    "model": ("openai/spare", "openai/rare", "program: model of LM of predictor `spare.predict`"),
    "temperature": ("temperature=0.1", "temperature=0.2", "option `temperature` of LM of predictor `spare.predict`"),
    "max_tokens": ("max_tokens=100", "max_tokens=200", "option `max_tokens` of LM of predictor `spare.predict`"),
}  # fmt: skip


@pytest.mark.parametrize(
    "found", ["globals()['clean']", "eval('clean')", "sys.modules[__name__].clean", "Base.__subclasses__()[0].go"]
)
def test_code_that_is_looked_up_by_name_counts_and_a_note_says_so(found: str, tmp_path: Path) -> None:
    text = f"""
import sys

import dspy

def clean(text):
    return text.strip()

class Base:
    pass

class Own(Base):
    @staticmethod
    def go(text):
        return text.strip()

class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question={found}(question))
"""

    def go(module: ModuleType) -> Compilation:
        found: Compilation
        with dspy.context(lm=toy_lm(ToyEngine())):
            found = ToySearch(exact, steps=1, width=1).compile(
                module.Program(), trainset=words(6, "t"), valset=words(8, "v"), run_dir=tmp_path
            ).compilation  # fmt: skip
        return found

    (note,) = [note for note in go(load(text)).notes if note.kind == "identity"]
    assert "what Program.forward looks up by name" in note
    with pytest.raises(JournalError, match=r"code of (clean|Own\.go)"):
        go(load(text.replace("strip()", "lstrip()")))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_in_one_line_that_names_it(change: str, first: Path, tmp_path: Path) -> None:
    old, new, part = CHANGES[change]
    assert TASK.count(old) >= 1 and old != new
    load(HELPERS, "user_helpers")
    shutil.copytree(first, tmp_path / "run")
    assert part in refusal(tmp_path / "run", load(TASK.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("return clean(text)", "return clean(text) + ''", "program: code of tidy"),
        ("text.strip()", "text.lstrip()", "program: code of clean"),
        ("def late(value):\n    return value", "def late(value):\n    return 2 * value", "metric: code of late"),
    ],
)
def test_a_change_in_another_module_of_the_users_is_refused(
    old: str, new: str, part: str, first: Path, tmp_path: Path
) -> None:
    assert old in HELPERS
    load(HELPERS.replace(old, new), "user_helpers")
    shutil.copytree(first, tmp_path / "run")
    assert part in refusal(tmp_path / "run", load(TASK))


class Shouting(dspy.ChatAdapter):  # type: ignore[misc]
    """An adapter of a user's."""


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"adapter": dspy.JSONAdapter()}, "adapter"),
        ({"adapter": dspy.ChatAdapter(use_json_adapter_fallback=False)}, "attribute `use_json_adapter_fallback`"),
        ({"adapter": Shouting()}, "adapter"),
        ({"adapter": dspy.TwoStepAdapter(dspy.LM("openai/extract"))}, "adapter"),
        ({"lm": toy_lm(ToyEngine(), temperature=0.3)}, "task LM: option `temperature`"),
        ({"lm": toy_lm(ToyEngine(), max_tokens=7)}, "task LM: option `max_tokens`"),
        ({"lm": toy_lm(ToyEngine(), "else")}, "task LM: model"),
        ({"optimizer_lm": toy_lm(ToyEngine(), "writer", temperature=0.3)}, "optimizer LM: option `temperature`"),
        ({"seed": 1}, "seed"),
        ({"width": 2}, "option `width`"),
    ],
)
def test_other_surroundings_are_refused(options: dict[str, Any], part: str, first: Path, tmp_path: Path) -> None:
    load(HELPERS, "user_helpers")
    shutil.copytree(first, tmp_path / "run")
    assert part in refusal(tmp_path / "run", load(TASK), **options)


REACHED = {
    "api_base": "http://host/v1",
    "api_key": "sk-1",
    "extra_headers": {"Authorization": "Bearer a", "X-Team": "b"},
    "extra_body": {"top_k": 3, "token": "t"},
    "num_retries": 2,
    "timeout": 3,
}


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"api_base": "http://other/v1"}, "option `api_base`"),
        ({"extra_headers": {"Authorization": "Bearer a"}}, "option `extra_headers`"),
        ({"extra_body": {"top_k": 4, "token": "t"}}, "option `extra_body`"),
        ({"stop": ["x"]}, "option `stop`"),
        ({"api_base": "http://user:word@host/v1", "api_key": "sk-2"}, None),
        ({"extra_headers": {"Authorization": "Bearer b", "X-Team": "c"}}, None),
        ({"extra_body": {"top_k": 3, "token": "u"}, "timeout": 9, "num_retries": 0}, None),
    ],
)
def test_of_how_a_model_is_reached_the_address_counts_and_no_secret(
    changed: dict[str, object], part: str | None, tmp_path: Path
) -> None:
    def student(options: dict[str, object]) -> dspy.Module:
        program = Counting(toy_lm(ToyEngine()))
        program.spare = dspy.LM("openai/spare", **options)
        return program

    task = type("Task", (), {"metric": staticmethod(exact)})
    compiled(task, tmp_path, ToyEngine(), student=student(REACHED))
    again = student({**REACHED, **changed})
    if part is not None:
        assert f"program: {part} of LM in attribute `spare` of Counting" in refusal(tmp_path, task, student=again)
    else:
        engine = ToyEngine()
        compiled(task, tmp_path, engine, student=again)
        assert engine.calls == 0


def test_an_adapters_model_is_part_of_it(tmp_path: Path) -> None:
    task = load(HELPERS + "\nimport dspy\ndef program(): return dspy.Predict('question -> answer')")
    task.metric = exact  # type: ignore[attr-defined]

    def adapter(temperature: float) -> dspy.Adapter:
        return dspy.TwoStepAdapter(toy_lm(ToyEngine(), "extract", temperature=temperature))

    compiled(task, tmp_path, ToyEngine(), adapter=adapter(0.1))
    assert "adapter: option `temperature` of LM in attribute `extraction_model` of TwoStepAdapter" in refusal(
        tmp_path, task, adapter=adapter(0.2)
    )


@pytest.mark.parametrize(
    "text",
    [
        TASK,
        "\n\n# moved\n" + TASK.replace("\n\n\n", "\n\n\n\n# a comment\n"),
        TASK.replace('{1, 2, "three"}', '{"three", 2, 1}'),
        TASK.replace("BAR = tqdm(total=3, ", "BAR = tqdm(total=3, leave=True, "),
    ],
    ids=["same", "elsewhere", "set", "same bar"],
)
def test_the_unchanged_program_resumes_without_a_call(text: str, first: Path, tmp_path: Path) -> None:
    load(HELPERS.replace("def unused(value):", "def unused(value, other=1):"), "user_helpers")
    shutil.copytree(first, tmp_path / "run")
    engine = ToyEngine()
    compiled(load(text), tmp_path / "run", engine)
    assert engine.calls == 0


def test_another_process_with_another_hash_seed_resumes_without_a_call(first: Path, tmp_path: Path) -> None:
    (tmp_path / "task_of_user.py").write_text(TASK)
    (tmp_path / "user_helpers.py").write_text(HELPERS)
    code = (
        "import sys; from pathlib import Path; from e2e_support import ToyEngine; import task_of_user\n"
        "from test_resume_changes import compiled\n"
        "engine = ToyEngine(); compiled(task_of_user, Path(sys.argv[1]), engine); print(engine.calls)"
    )
    shutil.copytree(first, tmp_path / "run")
    ran = Forked(code, tmp_path / "run", cwd=tmp_path).done()
    assert ran.stdout.strip() == "0", ran.stderr[-2000:]


class Holder:
    """Closes a circle."""

    def __init__(self, program: dspy.Module) -> None:
        self.program = program


class Counting(dspy.Module):  # type: ignore[misc]
    """A program that counts, keeps answers, and holds what cannot be hashed."""

    def __init__(self, lm: dspy.LM) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.ask.lm = lm
        self.asked = 0
        self.kept: dict[str, str] = {}
        self.lock = threading.Lock()
        self.scale = 1
        self.back = [Holder(self)]

    def forward(self, question: str) -> dspy.Prediction:
        """Answer, and remember."""
        with self.lock:
            self.asked += 1
            self.kept[question] = "seen"
        return dspy.Prediction(answer=self.ask(question=question).answer)


CALLS: list[str] = []


def counted() -> Callable[..., bool]:
    """Return a metric that counts in a closure, in a global and on itself."""
    seen: list[object] = []
    numbers = itertools.count()

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        seen.append(prediction)
        CALLS.append(prediction.answer)
        metric.calls = next(numbers)  # type: ignore[attr-defined]
        return exact(example, prediction)

    return metric


def test_what_running_changes_does_not_hinder_a_resume(tmp_path: Path) -> None:
    engine = ToyEngine()
    student, metric = Counting(toy_lm(engine)), counted()
    task = type("Task", (), {"metric": staticmethod(metric)})
    found = compiled(task, tmp_path, engine, student=student)
    paid = engine.calls
    (note,) = [note for note in found.notes if note.kind == "identity"]
    assert paid and "attribute `lock` of Counting (_thread.lock)" in note and "\n" not in note
    with dspy.context(lm=toy_lm(engine)):
        student(question="say something")  # a history, a counter and a cache of its own
    calls = engine.calls
    for _ in range(2):
        compiled(task, tmp_path, engine, student=student)
    assert engine.calls == calls
    student.scale = 2
    assert "attribute `scale` of Counting" in refusal(tmp_path, task, student=student)


def test_a_copy_is_the_same_program(first: Path, tmp_path: Path) -> None:
    load(HELPERS, "user_helpers")
    task, engine = load(TASK), ToyEngine()
    shutil.copytree(first, tmp_path / "run")
    compiled(task, tmp_path / "run", engine, student=task.program().deepcopy())
    assert engine.calls == 0


def test_a_models_class_and_an_engines_class_count_and_no_counter(tmp_path: Path) -> None:
    def made(extra: int, counted: int) -> dspy.LM:
        class Engine(ToyEngine):
            def complete(self, request: object) -> Any:
                return super().complete(request) if extra < 2 else None

        class Model(dspy.LM):  # type: ignore[misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return super().forward(*args, **kwargs)

            if extra == 1:

                def aforward(self, *args: Any, **kwargs: Any) -> Any:
                    return super().aforward(*args, **kwargs)

        engine = Engine()
        engine.most = counted
        return Model("cuesmith-test/own", engine=engine, cache=False)

    task = type("Task", (), {"metric": staticmethod(exact), "program": staticmethod(plain)})
    compiled(task, tmp_path, ToyEngine(), lm=made(0, 0))
    engine = ToyEngine()
    compiled(task, tmp_path, engine, lm=made(0, 99))
    assert engine.calls == 0
    assert "task LM: attribute `aforward` of class Model" in refusal(tmp_path, task, lm=made(1, 0))
    assert "closure `extra` of Engine.complete" in refusal(tmp_path, task, lm=made(2, 0))


def test_a_changed_example_is_refused(tmp_path: Path) -> None:
    def document(middle: str) -> dspy.Example:
        return dspy.Example(question="a" * 3000 + middle + "z" * 3000, answer="x").with_inputs("question")

    def go(middle: str, engine: ToyEngine) -> None:
        with dspy.context(lm=toy_lm(engine)):
            search = ToySearch(exact, steps=1, width=1)
            search.compile(dspy.Predict("question -> answer"), trainset=[*words(5), document(middle)], run_dir=tmp_path)

    go("one", ToyEngine())
    engine = ToyEngine()
    with pytest.raises(JournalError, match=r"differs in: .*examples"):
        go("two", engine)
    assert engine.calls == 0
    again = ToyEngine()
    go("one", again)
    assert again.calls == 0


def test_a_wrapped_metric_of_functools_is_followed(tmp_path: Path) -> None:
    def task(least: int) -> Any:
        def judge(least: int, example: dspy.Example, prediction: dspy.Prediction) -> bool:
            return len(prediction.answer) >= least

        return type("Task", (), {"metric": functools.partial(judge, least), "program": staticmethod(plain)})

    compiled(task(1), tmp_path, ToyEngine())
    assert "metric: argument `0` of partial of judge" in refusal(tmp_path, task(2))


def plain() -> dspy.Module:
    """Return the plainest program."""
    return dspy.Predict("question -> answer")
