"""The simulated optimizer: what it says follows from what it is shown, as its knobs say."""

import asyncio
import copy
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

from cuesmith import signatures
from cuesmith.modules.embedded.families import FAMILIES, Family, render_work
from cuesmith.modules.sampling import draw
from cuesmith.modules.simulated_optimizer import Asked, FieldValue, SimulatedOptimizer, SimulatedOptimizerEngine
from cuesmith.signatures import (
    LocateDeviation,
    ReviseStep,
    StepWork,
    VaryInstructions,
    WorkExample,
    WriteInstructions,
    WriteSteps,
    render_steps,
)
from cuesmith.teleprompters.behavior.steps import mend, under_labels

ENGINE = SimulatedOptimizerEngine()


def solved(family: Family, question: str) -> tuple[str, str]:
    solution = family.solve(question)
    assert solution is not None
    return solution.answer, render_work(solution)


def shown(family: Family, n: int, seed: int = 0, names: tuple[str, str] = ("question", "answer")) -> list[str]:
    rng = random.Random(f"{family.name}{seed}")
    questions = [family.sample(rng, held_out=True) for _ in range(n)]
    return [f"{names[0]}: {q}\n{names[1]}: {solved(family, q)[0]}" for q in questions]


def asking(examples: list[str]) -> Asked:
    return Asked.of(WriteInstructions, examples=examples)


# --- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_four_examples_show_the_family(name: str) -> None:
    family = FAMILIES[name]
    found = [ENGINE.truth(asking(shown(family, 4, seed, ("input text", "out"))), 0) for seed in range(10)]
    assert sum(truth.families == (name,) for truth in found) >= 9  # chance can leave two families possible
    assert {truth.source for truth in found} == {"evidence"}


def test_wrong_labels_spelling_and_a_second_input_do_not_hide_the_family() -> None:
    rng = random.Random(3)
    walks = [FAMILIES["navigate"].sample(rng, held_out=False) for _ in range(4)]
    said = {"True": "Yes.", "False": "no"}
    examples = [f"hint: 7\nwalk: {w}\nhome: {said[solved(FAMILIES['navigate'], w)[0]]}" for w in walks]
    examples[0] = examples[0].replace("Yes.", "?").replace("home: no", "home: Yes.")
    assert ENGINE.truth(asking(examples), 0).families == ("navigate",)
    counting = [
        "input: I have a car, and two stoves.\ntarget: three",
        "input: I have five apples and three cats.\ntarget: 8",
    ]
    assert ENGINE.truth(asking(counting), 0).families == ("objects",)


def test_two_outputs_are_two_tasks() -> None:
    examples = [text + f"\nsize: {len(text.split(chr(10))[0].split()) - 1}" for text in shown(FAMILIES["reverse"], 4)]
    text = str(ENGINE.answer(asking(examples), 0)["instruction"])
    assert "For `answer`:" in text and "For `size`:" in text
    assert ENGINE.truth(asking(examples), 0).families == ("reverse", "count")
    steps = ENGINE.answer(Asked.of(WriteSteps, examples=examples), 0)["steps"]
    assert isinstance(steps, list) and len(steps) == 5


def test_reversed_words_are_no_second_task() -> None:
    assert "For `" not in str(ENGINE.answer(asking(shown(FAMILIES["reverse"], 4)), 0)["instruction"])


def test_draws_of_one_ask_differ_and_repeat() -> None:
    asked = asking(shown(FAMILIES["sum"], 4))
    for block in (0, 1024 * 99):
        texts = [ENGINE.answer(asked, block + d)["instruction"] for d in range(40)]
        assert len(set(map(str, texts))) == 40
        assert texts == [SimulatedOptimizerEngine().answer(asked, block + d)["instruction"] for d in range(40)]
    other = [SimulatedOptimizerEngine(seed=1).answer(asked, d)["instruction"] for d in range(40)]
    assert other != [ENGINE.answer(asked, d)["instruction"] for d in range(40)]


def test_unknown_tasks_get_an_honest_answer_that_depends_on_the_examples() -> None:
    birds = asking([f"sentence: the robin sang {k} times\nmood: happy{k}" for k in range(4)])
    boats = asking([f"sentence: the ferry sank {k} times\nmood: gloomy{k}" for k in range(4)])
    assert ENGINE.truth(birds, 0).source == "fallback"
    assert "robin" in str(ENGINE.answer(birds, 0)["instruction"])
    assert "ferry" in str(ENGINE.answer(boats, 0)["instruction"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_variation_is_another_wording_of_the_same_task(name: str) -> None:
    for text in FAMILIES[name].instructions:
        asked = Asked.of(VaryInstructions, instruction=text)
        varied = [str(ENGINE.answer(asked, d)["variation"]) for d in range(12)]
        assert text not in varied and len(set(varied)) == 12
        again = {ENGINE.truth(Asked.of(VaryInstructions, instruction=v), 0).families for v in varied}
        assert again == {(name,)}


def test_a_variation_of_an_unknown_text_keeps_its_names_and_its_steps() -> None:
    text = "Given the fields `question`, produce the fields `answer`. Answer carefully."
    varied = [str(ENGINE.answer(Asked.of(VaryInstructions, instruction=text), d)["variation"]) for d in range(10)]
    assert len(set(varied)) == 10 and text not in varied
    assert all("`question`" in v and "`answer`" in v for v in varied)
    longer = "Count the words. Ignore words in capitals."
    for d in range(10):
        assert "capitals" in str(ENGINE.answer(Asked.of(VaryInstructions, instruction=longer), d)["variation"])
    stepped = render_steps("Count the words.", ["Number the words in order.", "Give it."], "question: x\nStep 1: y")
    variation = str(ENGINE.answer(Asked.of(VaryInstructions, instruction=stepped), 0)["variation"])
    assert variation != stepped and variation.endswith(stepped.removeprefix("Count the words."))


# --- steps and demonstrations ------------------------------------------------------------------------------


def work_in(answer: Mapping[str, object]) -> list[StepWork]:
    """Return the work of an answer as its reader has it."""
    found = answer["work"]
    assert isinstance(found, list)
    return [StepWork.model_validate(one) for one in found]


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_and_work_of_every_family(name: str) -> None:
    family = FAMILIES[name]
    asked = Asked.of(WriteSteps, examples=shown(family, 6))
    written = [ENGINE.answer(asked, d)["steps"] for d in range(30)]
    assert sum(steps == list(family.steps) for steps in written) >= 15
    question = family.sample(random.Random(1), held_out=True)
    gold, work = solved(family, question)
    for steps in written:
        assert isinstance(steps, list)
        demo = Asked.of(WorkExample, steps=steps, inputs=f"question: {question}", outputs=f"answer: {gold}")
        assert under_labels(work_in(ENGINE.answer(demo, 0))) == work


def test_work_follows_foreign_steps_and_ends_in_the_gold() -> None:
    steps = ["Read the text.", "Number all the words in order.", "Number the words once more."]
    asked = Asked.of(WorkExample, steps=steps, inputs="question: red old cat", outputs="answer: 3")
    found = work_in(ENGINE.answer(asked, 0))
    assert [one.step for one in found] == steps
    assert found[1].result == "1 red, 2 old, 3 cat" and found[2].result.endswith("3")
    wrong = Asked.of(WorkExample, steps=list(FAMILIES["count"].steps), inputs="question: a b", outputs="answer: 9")
    assert under_labels(work_in(ENGINE.answer(wrong, 0))).endswith("Step 2: 9")


# --- deviations --------------------------------------------------------------------------------------------

SUM = FAMILIES["sum"]
QUESTION = "4 11 7 2"
GOLD, WORK = solved(SUM, QUESTION)
LINES = WORK.splitlines()


def located(
    response: str, steps: list[str] | None = None, engine: SimulatedOptimizerEngine = ENGINE
) -> tuple[object, object]:
    asked = Asked.of(
        LocateDeviation,
        steps=steps or list(SUM.steps),
        inputs=f"question: {QUESTION}",
        expected=f"answer: {GOLD}",
        response=response,
    )
    answer = engine.answer(asked, 0)
    return answer["step"], answer["kind"]


@pytest.mark.parametrize("form", ["reasoning: {}\nanswer: {}", "[[ ## reasoning ## ]]\n{}\n\n[[ ## answer ## ]]\n{}"])
@pytest.mark.parametrize(
    ("lines", "answer", "wanted"),
    [
        (LINES[1:], GOLD, (1, "skipped")),
        ([LINES[0], LINES[2]], GOLD, (2, "skipped")),
        (["Some thoughts."], "7", (1, "skipped")),
        ([LINES[0].replace("11", "1"), *LINES[1:]], "3", (1, "misapplied")),
        ([LINES[0], "Step 2: 4 + 11 = 16, 16 + 7 = 23, 23 + 2 = 25", "Step 3: 25"], "25", (2, "misapplied")),
        ([*LINES[:2], "Step 3: 25"], "25", (3, "misapplied")),
        (LINES, "25", (3, "misapplied")),
    ],
)
def test_planted_deviations_are_located(form: str, lines: list[str], answer: str, wanted: tuple[int, str]) -> None:
    assert located(form.format("\n".join(lines), answer)) == wanted


def test_an_answer_that_cannot_be_read_is_a_deviation_of_the_form() -> None:
    assert located(f"reasoning: {WORK}\nThe result would be the total.") == (3, "format")


def test_a_step_that_lacks_something_is_insufficient() -> None:
    vague = [SUM.steps[0], "Work it out.", SUM.steps[2]]
    assert located(f"{LINES[0]}\nStep 2: hm\nStep 3: 30\nanswer: 30", vague) == (2, "insufficient")
    dropped = [SUM.steps[0], SUM.steps[2]]
    assert located(f"{LINES[0]}\nStep 2: 30\nanswer: 30", dropped) == (2, "insufficient")


def revised(steps: list[str], step: int, kind: str, engine: SimulatedOptimizerEngine = ENGINE) -> list[str]:
    failure = f"question: {QUESTION}\nexpected answer: {GOLD}\nresponse: {LINES[0]}\nStep 2: 11\nanswer: 11"
    asked = Asked.of(ReviseStep, steps=steps, step=step, kind=kind, failures=[failure] * 2)
    answer = engine.answer(asked, 0)
    new = answer["new_steps"]
    assert isinstance(new, list)
    return list(mend(steps, step, answer["move"], [str(text) for text in new])[1])


def test_revisions_repair_the_planted_fault() -> None:
    own = list(SUM.steps)
    assert revised([own[0], "Work it out.", own[2]], 2, "insufficient") == own
    assert revised([own[0], own[2]], 2, "insufficient") == own
    assert revised([own[0], own[2]], 1, "misapplied") == own
    assert revised(own[1:], 1, "skipped") == own
    assert revised([*own[:2], "Say something."], 3, "insufficient") == own
    clearer = revised(own, 2, "misapplied")
    assert clearer[::2] == own[::2] and clearer[1] != own[1]
    form = revised(own, 3, "format")
    assert form[:2] == own[:2] and form[2] != own[2]
    assert all(ENGINE.truth(Asked.of(ReviseStep, steps=own, step=2, kind=kind, failures=[
        f"question: {QUESTION}\nexpected answer: {GOLD}\nresponse: answer: 11"]), 0).families == ("sum",)
        for kind in ("skipped", "format"))  # fmt: skip


# --- knobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prior", "noise"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.5, 0.5), (1.0, 0.3)])
def test_knobs_are_shares_and_the_truth_counts_them(prior: float, noise: float) -> None:
    engine = SimulatedOptimizerEngine(prior_bias=prior, noise=noise, seed=7)
    asked = [asking(shown(FAMILIES[name], 4, seed)) for name in ("max", "items") for seed in range(5)]
    sources = [engine.truth(a, d).source for a in asked for d in range(60)]
    assert sources.count("prior") / len(sources) == pytest.approx(prior, abs=0.08)
    assert sources.count("noise") / len(sources) == pytest.approx((1 - prior) * noise, abs=0.08)


def test_prior_answers_ignore_the_evidence() -> None:
    engine = SimulatedOptimizerEngine(prior_bias=1.0)
    texts = {
        str(engine.answer(asking(shown(FAMILIES[name], 4)), d)["instruction"]) for name in FAMILIES for d in range(9)
    }
    about = {ENGINE.truth(Asked.of(VaryInstructions, instruction=text), 0).families for text in texts}
    assert about == {()}  # none of them says what any task is
    own = list(SUM.steps)
    broken = [own[0], "Work it out.", own[2]]
    assert "Work it out" in revised(broken, 2, "insufficient", engine)[1].capitalize()
    asked = Asked.of(WriteSteps, examples=shown(SUM, 4))
    steps = engine.answer(asked, 0)["steps"]
    assert isinstance(steps, list) and not set(steps) & set(own)


def test_noise_degrades() -> None:
    engine = SimulatedOptimizerEngine(noise=1.0)
    for name, family in FAMILIES.items():
        for d in range(6):
            wrong = str(engine.answer(asking(shown(family, 4)), d)["instruction"])
            assert ENGINE.truth(Asked.of(VaryInstructions, instruction=wrong), 0).families != (name,)
            steps = engine.answer(Asked.of(WriteSteps, examples=shown(family, 4)), d)["steps"]
            assert isinstance(steps, list) and not set(family.steps) <= set(steps)
    assert located("\n".join([*LINES[:2], "Step 3: 25"]), engine=engine)[0] != 3
    assert revised([SUM.steps[0], "Guess.", SUM.steps[2]], 2, "insufficient", engine) != list(SUM.steps)


@pytest.mark.parametrize(("prior", "noise", "named"), [(1.5, 0.0, "prior_bias.*1.5"), (0.0, -0.1, "noise.*-0.1")])
def test_shares_are_checked(prior: float, noise: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SimulatedOptimizer(prior_bias=prior, noise=noise)


# --- as a dspy.LM ------------------------------------------------------------------------------------------

INPUTS: dict[str, dict[str, FieldValue]] = {
    "SummarizeData": {"examples": shown(SUM, 4)},
    "WriteInstructions": {"examples": shown(SUM, 4)},
    "VaryInstructions": {"instruction": "Add all the numbers."},
    "WriteSteps": {"examples": shown(SUM, 4), "max_steps": 8},
    "WorkExample": {"steps": list(SUM.steps), "inputs": f"question: {QUESTION}", "outputs": f"answer: {GOLD}"},
    "LocateDeviation": {
        "steps": list(SUM.steps), "inputs": f"question: {QUESTION}", "expected": f"answer: {GOLD}",
        "response": "\n".join(LINES[1:]), "feedback": "",
    },
    "ReviseStep": {
        "steps": list(SUM.steps), "step": 1, "kind": "skipped", "failures": shown(SUM, 2), "max_steps": 8},
    "CriticizeInstruction": {"instruction": "Do it.", "failures": shown(SUM, 2), "count": 3},
    "EditInstruction": {"instruction": "Do it.", "failures": shown(SUM, 2), "reason": "It never asks for the sum."},
    "SummarizeReasons": {"instruction": "Do it.", "reasons": ["Too vague.", "No sum of the numbers.", "Too vague!"]},
    "ReflectOnFailures": {"instruction": "Do it.", "failures": shown(SUM, 2)},
    "ReflectOnSuccesses": {"instruction": "Add all the numbers.", "successes": shown(SUM, 2)},
    "RewriteInstruction": {
        "instruction": "Do it.", "evidence": shown(SUM, 2), "reflection": "Aspects to improve:\n1. Be precise.",
        "trajectory": ["Do it.", "Do it well."],
    },
    "ImproveInstruction": {"instruction": "Do it.", "examples": shown(SUM, 2)},
    "MergeInstructions": {"first": "Add all the numbers.", "second": "Add them. Write every total down."},
    "ProposeInstruction": {
        "scored_instructions": ["text: Do it.\nscore: 5"], "exemplars": [f"<INS>\n{text}" for text in shown(SUM, 2)],
    },
    "IdentifyCondition": {
        "feedback": "It never asks for the sum.", "conditions": ["name: A\nerrors: sums", "name: B\nerrors: words"],
    },
    "CheckRule": {"rule": "Answer in one word.", "response": "answer: four"},
}  # fmt: skip
INPUTS = {name: {field: "" for field in ("context", "style") if field in getattr(signatures, name).input_fields} | given
          for name, given in INPUTS.items()}  # fmt: skip


def test_every_request_has_inputs_here() -> None:
    others = {"Deviation", "Followed", "Move", "StepWork", "STYLES", "Style"}
    requests = {name for name in signatures.__all__ if name[0].isupper()} - others
    assert set(INPUTS) == requests


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter])
@pytest.mark.parametrize("name", INPUTS)
def test_every_request_is_understood_in_both_formats(name: str, adapter: Callable[[], dspy.Adapter]) -> None:
    signature, lm = getattr(signatures, name), SimulatedOptimizer()
    reset = draw.set(3)
    try:
        with dspy.context(lm=lm, adapter=adapter()):
            prediction = dspy.Predict(signature)(**INPUTS[name])
    finally:
        draw.reset(reset)
    wanted = ENGINE.answer(Asked.of(signature, **INPUTS[name]), 3)
    assert {key: to_jsonable_python(prediction[key]) for key in signature.output_fields} == wanted
    assert len(lm.history) == 1  # one call: nothing had to be asked again in another format
    assert lm.history[0]["usage"]["prompt_tokens"] > 50 and lm.history[0]["usage"]["completion_tokens"] > 1


def test_repeated_requests_outside_of_an_ask_are_draws_in_turn() -> None:
    lm, predict = SimulatedOptimizer(), dspy.Predict(VaryInstructions)
    with dspy.context(lm=lm):
        texts = [predict(context="", instruction="Count the words.").variation for _ in range(5)]
    asked = Asked.of(VaryInstructions, instruction="Count the words.")
    assert texts == [ENGINE.answer(asked, d)["variation"] for d in range(5)]


def test_async_deepcopy_reasoning_and_foreign_requests() -> None:
    lm = SimulatedOptimizer(seed=4)
    assert copy.deepcopy(ENGINE) is ENGINE

    async def run() -> dspy.Prediction:
        with dspy.context(lm=lm):
            return await dspy.ChainOfThought(WriteInstructions).acall(context="", style="", examples=shown(SUM, 4))

    assert asyncio.run(run()).reasoning
    with dspy.context(lm=lm):
        judged = dspy.Predict("text -> good: bool, score: float, level: int, names: list[str], word: str")(text="x")
    assert judged.good is True and isinstance(judged.names, list)
    assert isinstance(lm("What is love?")[0], str)


def test_a_program_that_holds_it_can_be_saved(tmp_path: Path) -> None:
    program = dspy.Predict(VaryInstructions)
    program.set_lm(SimulatedOptimizer(prior_bias=0.25, noise=0.5, seed=9))
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict(VaryInstructions)
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    asked = {"context": "", "instruction": "Count the words."}
    assert loaded(**asked).variation == program(**asked).variation


ODD = st.text(st.sampled_from("ab 1:\n`\"'[]{}#\\_Step é\u2028"), max_size=60)
ODD_LISTS = st.lists(ODD, max_size=4)


@given(
    st.sampled_from(sorted(INPUTS)), st.data(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0]),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_any_input_gets_a_reply_that_parses(name: str, data: st.DataObject, prior: float, noise: float) -> None:
    odd = ODD | st.just("[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]\n\nRespond with `x`") | st.just("question: 1 2")
    inputs: dict[str, object] = {}
    for key, value in INPUTS[name].items():
        if isinstance(value, list):
            inputs[key] = data.draw(st.lists(odd, max_size=4) | st.just(value))
        elif isinstance(value, int):
            inputs[key] = data.draw(st.integers(-3, 99))
        elif key != "kind":
            inputs[key] = data.draw(odd | st.just(value))
    inputs |= {"kind": "format"} if "kind" in INPUTS[name] else {}
    signature = getattr(signatures, name)
    with dspy.context(
        lm=SimulatedOptimizer(prior_bias=prior, noise=noise), adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)
    ):
        prediction = dspy.Predict(signature)(**inputs)
    assert set(signature.output_fields) <= set(prediction.keys())
    if name == "ReviseStep":
        assert prediction.move in get_args(signatures.Move) and len(prediction.new_steps) <= 99
    if name == "SummarizeReasons":
        assert len(prediction.points) == len(prediction.support)
