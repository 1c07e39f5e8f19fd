"""The reflective compilers on the real kernel: what they ask, how often, and what they may not write."""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from cuesmith.modules.simulated_optimizer import Asked, FieldValue
from cuesmith.teleprompters import APO, OPRO, APOSum, Compiler, IterativeAPE, PromptAgent
from cuesmith.teleprompters.prompt_agent import Node, back_propagate, best_of, descend
from cuesmith.teleprompters.runtime.candidate import Candidate, Prompt
from cuesmith.teleprompters.runtime.compilation import Compilation, Trial
from cuesmith.teleprompters.runtime.guards import Guard
from cuesmith.teleprompters.runtime.ledger import Budget
from cuesmith.teleprompters.runtime.outcomes import Scored, Scores, Step
from cuesmith.teleprompters.search.scene import blamed
from cuesmith.testing import Engine, Sent

Answer = Mapping[str, FieldValue]


class Target(Engine):
    """Answers "yes" as often as the last number after "quality" in its instructions says, else "no"."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, sent: Sent) -> str:
        """Answer whatever the output field is called."""
        text = sent.turns[-1]
        question = text.split("## ]]\n", 1)[1].split("\n\n", 1)[0]
        said = re.findall(r"quality (\d+)", sent.system)
        right = zlib.crc32(question.encode()) % 100 < int(said[-1] if said else 10)
        field = re.findall(r"`\[\[ ## (\w+) ## \]\]`", text)[0]
        return f"[[ ## {field} ## ]]\n{'yes' if right else 'no'}\n\n[[ ## completed ## ]]"


class Optimizer(Engine):
    """Answers every request with texts that no other answer has; remembers what it was asked.

    Args:
        write: What to write for a request, field by field, instead.
    """

    def __init__(self, write: Callable[[Asked, int], Answer] | None = None) -> None:
        super().__init__(self._answer)
        self.write, self.count = write, itertools.count(1)

    def _answer(self, sent: Sent) -> str:
        asked, number = sent.asked, next(self.count)
        own = self.write(asked, number) if self.write else {}
        plain: dict[str, FieldValue] = {
            name: [f"point {number}"] if kind == "list[str]" else [1] if kind == "list[int]" else f"Text {number}."
            for name, kind in asked.outputs.items()
        }
        return asked.render({**plain, **own})


def examples(n: int, start: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"is {k} so?", answer="yes").with_inputs("question") for k in range(start, start + n)]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return str(prediction.answer) == "yes"


TRAIN, VALID = examples(24, 0), examples(40, 100)


def compiled(
    kind: type[Compiler], optimizer: Optimizer, *, program: dspy.Module | None = None, **options: object
) -> Compilation:
    lm = dspy.LM("test/optimizer", engine=optimizer, cache=False)
    compiler = kind(exact, optimizer_lm=lm, **options)  # type: ignore[arg-type]
    with dspy.context(lm=dspy.LM("test/target", engine=Target(), cache=False)):
        found = compiler.compile(program or dspy.Predict("question -> answer"), trainset=TRAIN, valset=VALID)
    assert isinstance(found.compilation, Compilation)
    return found.compilation


# The calls of one step in the unified setting with b = 2 and c = 3, as the table in research/algorithms.md has them.
CALLS = {
    IterativeAPE: {"VaryInstructions": 2 * 3},
    APO: {"CriticizeInstruction": 2 * 3, "EditInstruction": 2 * 3},
    APOSum: {"CriticizeInstruction": 2 * 4, "SummarizeReasons": 2, "EditInstruction": 2 * 3},
    PromptAgent: {"ReflectOnFailures": 2 * 3, "RewriteInstruction": 2 * 3},
    OPRO: {"ProposeInstruction": 2 * 3},
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_step_asks_and_scores_as_often_as_the_method_says(kind: type[Compiler]) -> None:
    optimizer = Optimizer()
    groups = {"error_groups": 3} if kind is APO else {}
    small = {"width": 2, "branch": 3, "steps": 2, "initial": 4, "minibatch": 6, "racing": False, **groups}
    found = compiled(kind, optimizer, **small)
    counts = Counter(asked.name for asked in optimizer.asked)
    assert counts.pop("WriteInstructions") == 4 and counts.pop("SummarizeData") == 1
    assert counts == {name: 2 * n for name, n in CALLS[kind].items()}
    children = {"vary", "edit", "rewrite", "propose"}
    assert sum(t.candidate.origin.move in children for t in found.candidates) == 2 * 2 * 3
    plan = kind(exact, **small).plan(1, 20, 24)  # type: ignore[arg-type]
    assert plan.optimizer_calls == found.spent.by_role["optimizer"].calls
    report = 2 * 20
    assert found.spent.by_role["target"].calls <= plan.program_runs + 20 + report
    batches = {APO: 2 * 2 * 6, APOSum: 2 * 2 * 6, PromptAgent: 2 * 2 * 3 * 5}.get(kind, 0)
    assert plan.program_runs == (1 + 4 + 2 * 2 * 3) * 20 + batches + 3 * 6 + 6


def test_racing_saves_program_runs() -> None:
    def spread(asked: Asked, number: int) -> Answer:
        return dict.fromkeys(asked.outputs, f"Text {number}, quality {5 + 37 * number % 80}")

    spent = [
        compiled(IterativeAPE, Optimizer(spread), racing=racing, steps=2).spent.by_role["target"].calls
        for racing in (True, False)
    ]
    assert spent[0] < 0.8 * spent[1]


def test_textual_gradients_climb_and_see_the_errors() -> None:
    def write(asked: Asked, number: int) -> Answer:
        if asked.name == "CriticizeInstruction":
            assert all("expected answer: yes" in text and "answer: no" in text for text in asked.texts("failures"))
            return {"reasons": ["it lacks quality"]}
        if asked.name == "EditInstruction":
            assert asked.text("reason") == "it lacks quality" and 1 <= len(asked.texts("failures")) <= 4
            quality = re.findall(r"quality (\d+)", asked.text("instruction"))
            return {"edited_instruction": f"Say yes {number}, quality {int(quality[-1] if quality else 10) + 25}"}
        return {}

    found = compiled(APO, Optimizer(write), steps=3)
    assert found.gain is not None and found.gain.difference > 0.4
    assert [found.best.candidate.origin.move, found.steps[-1].step] == ["edit", 3]


def test_where_nothing_fails_nothing_is_asked() -> None:
    perfect = Optimizer(lambda asked, number: dict.fromkeys(asked.outputs, f"Text {number}, quality 100"))
    compiled(APO, perfect, initial=4, width=3)
    criticized = {asked.text("instruction") for asked in perfect.named("CriticizeInstruction")}
    assert not any("quality 100" in text for text in criticized)
    agent = Optimizer(lambda asked, number: dict.fromkeys(asked.outputs, f"Text {number}, quality 100"))
    compiled(PromptAgent, agent, initial=4, width=2, branch=2, steps=1)
    assert agent.named("ReflectOnSuccesses")  # a batch that went well is asked why


def test_paraphrases_and_the_cut_of_apo() -> None:
    optimizer = Optimizer()
    found = compiled(APO, optimizer, width=1, branch=5, steps=1, paraphrases=2, racing=False)
    counts = Counter(asked.name for asked in optimizer.asked)
    assert counts["EditInstruction"] == 4 and counts["VaryInstructions"] == 2 * (4 + 1)
    assert sum(t.candidate.origin.move in ("edit", "vary") for t in found.candidates) == 5


@pytest.mark.parametrize("selection", ["ucb", "ucb-e", "sr", "sh"])
def test_apo_selects_by_a_bandit_within_its_budget(selection: str) -> None:
    def write(asked: Asked, number: int) -> Answer:
        return {
            name: f"Text {number}, quality {95 if number % 7 == 3 else 15}"
            for name in asked.outputs
            if name not in ("reasons",)
        }

    found = compiled(
        APO, Optimizer(write), steps=1, width=1, initial=8, minibatch=4, selection=selection, selection_runs=90
    )
    assert found.best.candidate.prompts["self"].instructions.endswith("quality 95")
    # a bandit of 90 runs and the full score of one winner, twice; minibatch, training scores, baseline, report
    assert found.spent.by_role["target"].calls <= 2 * (90 + 20) + 4 + 2 * 4 + 4 + 20 + 40


def test_a_bandit_needs_a_run_for_every_candidate_and_says_so_before_any_call() -> None:
    with pytest.raises(ValueError, match="selection_runs must be at least 21, got 20"):
        APO(exact, selection="sh", selection_runs=20)


def test_the_summary_counts_support_and_leads_with_the_best_supported() -> None:
    def write(asked: Asked, number: int) -> Answer:
        if asked.name == "SummarizeReasons":
            assert len(asked.texts("reasons")) == 4
            return {"points": ["rare", "often"], "support": [1, 3]}
        return {}

    optimizer = Optimizer(write)
    compiled(APOSum, optimizer, width=1, steps=1)
    reasons = {asked.text("reason") for asked in optimizer.named("EditInstruction")}
    assert reasons == {"- often (said by 3 of 4 reflections)\n- rare (said by 1 of 4 reflections)"}


def test_prompt_agent_sees_its_trajectory_and_its_native_tree_stays_within_the_plan() -> None:
    def write(asked: Asked, number: int) -> Answer:
        if asked.name == "RewriteInstruction":
            depth = len(asked.texts("trajectory"))
            return {"rewritten_instruction": f"Text {number}, quality {min(90, 20 * depth)}"}
        return {}

    optimizer = Optimizer(write)
    options = {"search": "native", "steps": 2, "width": 2, "depth": 4}
    found = compiled(PromptAgent, optimizer, **options)
    rewrites = optimizer.named("RewriteInstruction")
    lengths = Counter(len(asked.texts("trajectory")) for asked in rewrites)
    assert set(lengths) <= {1, 2, 3, 4} and lengths[1] == 2 and len(lengths) >= 3
    for asked in rewrites:
        assert asked.texts("trajectory")[-1] == asked.text("instruction")
        assert asked.texts("trajectory")[0] == found.baseline.candidate.prompts["self"].instructions
    plan = PromptAgent(exact, **options).plan(1, 20, 24)  # type: ignore[arg-type]
    assert found.spent.by_role["optimizer"].calls <= plan.optimizer_calls == 2 * 2 * 4 * 2
    assert not optimizer.named("WriteInstructions")
    assert found.gain is not None and found.gain.difference > 0.3


def test_opro_shows_its_history_ascending_and_exemplars_with_the_slot() -> None:
    def write(asked: Asked, number: int) -> Answer:
        return {"instruction": f"Text {number}, quality {5 * number}"}

    optimizer = Optimizer(write)
    compiled(OPRO, optimizer, width=1, branch=4, steps=3, initial=2, history=5)
    shown = [asked.texts("scored_instructions") for asked in optimizer.named("ProposeInstruction")]
    assert [len(texts) for texts in shown[::4]] == [3, 5, 5]
    for texts in shown:
        entries = [re.fullmatch(r"text: .*\nscore: (\d+)", text, re.DOTALL) for text in texts]
        scores = [int(entry[1]) for entry in entries if entry]
        assert len(scores) == len(texts) and scores == sorted(scores)
    for asked in optimizer.named("ProposeInstruction"):
        exemplars = asked.texts("exemplars")
        assert len(exemplars) == 3 and all(text.startswith("<INS>\nquestion: ") for text in exemplars)


def test_opro_shows_no_text_that_was_scored_on_less_than_half_of_the_examples() -> None:
    whole, hardly = (Candidate({"self": Prompt(text, ())}) for text in ("scored whole", "hardly scored"))
    trials = Trial(whole, (0.5,) * 4, 0.5, 4), Trial(hardly, (1.0, None, None, None), 1.0, 1)
    scene: Any = SimpleNamespace(run=SimpleNamespace(select=range(4)), trials=lambda: trials)
    assert OPRO(exact)._history(scene, "self", [whole, hardly]) == ["text: scored whole\nscore: 50"]


# --- guards ------------------------------------------------------------------------------------------------


def test_a_copied_example_is_no_instruction_but_common_phrases_and_the_students_own_are() -> None:
    story = "the cat that sat on the mat of the old house by the river"
    tasks = [
        dspy.Example(
            text=f"If you follow these simple instructions do you return home: walk {k}", answer="yes"
        ).with_inputs("text")
        for k in range(10)
    ]
    own = "Never say what the owner of the shop told you before"
    data = [*tasks, *(dspy.Example(text=t, answer="x").with_inputs("text") for t in (story, own))]
    guard = Guard.of(data, [own], {}, 4000)
    assert guard.copies(f"Think of: {story.upper()}!") and not guard.copies("the cat on the mat of the house")
    assert guard.usable("p", "As in " + story) is None
    assert not guard.copies("If you follow these simple instructions do you return home, say yes.")
    assert not guard.copies(own)


def test_pinned_text_cannot_be_lost_and_long_texts_are_refused() -> None:
    guard = Guard.of([], [], {"p": "Answer in French."}, 40)
    assert guard.usable("p", "Do it.") == "Do it.\nAnswer in French."
    assert guard.usable("p", "Answer in French. Do it.") == "Answer in French. Do it."
    assert guard.usable("q", "Do it.") == "Do it."
    assert guard.usable("p", "x" * 30) is None and guard.usable("q", "x" * 30) is not None


@pytest.mark.parametrize("kind", CALLS)
def test_every_candidate_of_every_method_keeps_the_pinned_text(kind: type[Compiler]) -> None:
    found = compiled(kind, Optimizer(), width=1, branch=2, steps=1, initial=2, pinned="Be polite.")
    written = (t.candidate for t in found.candidates if t.candidate != found.baseline.candidate)
    texts = [candidate.prompts["self"].instructions for candidate in written]
    assert len(texts) >= 3 and all(text.endswith("Be polite.") for text in texts)


def test_pinning_for_a_predictor_that_is_not_there_is_refused_before_any_call() -> None:
    optimizer = Optimizer()
    with pytest.raises(ValueError, match=r"pinned names 'other'.*self"):
        compiled(APO, optimizer, pinned={"other": "x"})
    assert not optimizer.asked


@pytest.mark.parametrize(("kind", "option", "bad", "error"), [
    (APO, "selection", "best", ValueError), (APO, "error_groups", 0, ValueError), (APO, "paraphrases", -1, ValueError),
    (APOSum, "gradients", "2", TypeError), (PromptAgent, "depth", 0, ValueError),
    (PromptAgent, "exploration", float("nan"), ValueError), (OPRO, "history", 0, ValueError),
    (OPRO, "buckets", 1.5, TypeError), (APO, "search", "both", ValueError), (APO, "racing", 1, TypeError),
    (APO, "pinned", "", TypeError), (APO, "pinned", {"p": 3}, TypeError), (APO, "next_predictor", "x", ValueError),
    (APO, "widht", 3, TypeError), (OPRO, "longest", 0, ValueError),
])  # fmt: skip
def test_a_bad_option_is_refused_with_its_name(
    kind: type[Compiler], option: str, bad: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=option):
        kind(exact, **{option: bad})  # type: ignore[arg-type]


# --- several predictors ------------------------------------------------------------------------------------


class Chain(dspy.Module):  # type: ignore[misc]
    """Two predictors; only the second one's answer is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("question -> hint"), dspy.Predict("hint -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        return self.second(hint=self.first(question=question).hint)


def test_reflection_sees_the_predictors_own_inputs_and_steps_take_turns() -> None:
    optimizer = Optimizer()
    found = compiled(APO, optimizer, program=Chain(), width=1, branch=2, steps=2, initial=1)
    shown = ["\n".join(asked.texts("failures")) for asked in optimizer.named("CriticizeInstruction")]
    assert len(shown) == 8
    assert all(text.startswith("question: is ") for text in shown[:4])
    assert all(text.startswith("hint: ") and "question:" not in text for text in shown[4:])
    moved = [t.candidate for t in found.candidates if t.candidate.origin.move == "edit"]
    base = {c.id: c for c in (t.candidate for t in found.candidates)}
    changed = [[name for name in c.names if c.prompts[name] != base[c.origin.parents[0]].prompts[name]] for c in moved]
    assert {tuple(names) for names in changed} == {("first",), ("second",)}


class _Book:
    """A casebook that knows one success."""

    def __init__(self, trace: tuple[Step, ...]) -> None:
        self.trace = trace

    def success(self, example: dspy.Example) -> tuple[Step, ...]:
        """Return the trace."""
        return self.trace


def test_credit_goes_to_the_first_predictor_that_left_the_successful_run() -> None:
    def trace(hint: str, answer: str) -> tuple[Step, ...]:
        return Step("first", {}, {"hint": hint}), Step("second", {}, {"answer": answer, "reasoning": hint * 2})

    def scores(*traces: tuple[Step, ...]) -> Scores:
        student = Chain()
        return Scores(Candidate.of(student), tuple(examples(len(traces), 0)), tuple(Scored(0.0, "", t) for t in traces))

    book = _Book(trace("good", "yes"))
    names = ("first", "second")

    def to_blame(ran: Scores, step: int = 1) -> str:
        return blamed(names, step, ran, book, 1.0)  # type: ignore[arg-type]

    assert to_blame(scores(trace("good", "no"), trace("good", "no"), trace("bad", "no"))) == "second"
    assert to_blame(scores(trace("bad", "no"), trace("worse", "no"), trace("good", "no")), 2) == "first"
    assert [to_blame(scores(trace("good", "yes")), step) for step in (1, 2, 3)] == ["first", "second", "first"]


# --- the tree ----------------------------------------------------------------------------------------------


def _node(reward: float, parent: Node | None = None) -> Node:
    data = tuple(examples(10, 0))
    values = tuple(Scored(1.0 if k < round(10 * reward) else 0.0) for k in range(10))
    node = Node(Scores(Candidate({"self": Prompt(f"{reward} {id(parent)}")}), data, values), parent)
    if parent is not None:
        parent.children.append(node)
    return node


def test_uct_by_hand() -> None:
    root = _node(0.2)
    left, right = _node(0.5, root), _node(0.4, root)
    assert descend(root, 2.5) == [root, left]  # nothing visited: the better reward
    back_propagate([root, left])
    assert root.returns == pytest.approx([0.7]) and left.returns == [0.5]
    assert left.uct(2.5) == pytest.approx(0.5 + 2.5 * (0.6931471805599453**0.5))
    assert right.uct(0.0) == 0.4
    deep = _node(0.9, left)
    back_propagate([root, left, deep])
    assert left.returns == pytest.approx([0.5, 1.4]) and left.value == pytest.approx(0.95)
    # ln 3 = 1.0986: left 0.95 + 2.5 sqrt(1.0986 / 2) = 2.80, right 0.4 + 2.5 sqrt(1.0986 / 1) = 3.02
    assert descend(root, 2.5) == [root, right] and descend(root, 0.1) == [root, left, deep]
    assert best_of([[root, right], [root, left, deep]]) is deep


def test_a_path_that_stops_is_not_followed_further() -> None:
    root = _node(0.1)
    child = _node(0.3, root)
    _node(0.9, child)
    child.stops = True
    assert descend(root, 1.0) == [root, child] and child.depth == 1


@pytest.mark.parametrize("kind", CALLS)
def test_a_low_cap_leaves_room_for_a_first_step(kind: type[Compiler]) -> None:
    optimizer = Optimizer()
    found = compiled(kind, optimizer, budget=Budget(calls=200))
    assert len(found.steps) > 1, "the initial prompts and at least one step"
    said = [note for note in found.notes if note.startswith("A cap of 200 calls is low")]
    assert len(said) == 1 and "width 2," in said[0]
    assert {asked.name for asked in optimizer.asked} >= set(CALLS[kind])


def test_numbers_that_were_given_stay_under_a_low_cap() -> None:
    optimizer = Optimizer()
    compiled(OPRO, optimizer, budget=Budget(calls=200), initial=7)
    assert len(optimizer.named("WriteInstructions")) == 7
    enough = compiled(OPRO, Optimizer(), budget=Budget(calls=5000))
    assert not any("is low for this search" in note for note in enough.notes)
