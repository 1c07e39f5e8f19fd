"""The simulated optimizer's answers to dspy's own requests, asked by dspy's own code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response
from dspy.propose.dataset_summary_generator import (
    DatasetDescriptor,
    DatasetDescriptorWithPriorObservations,
    ObservationSummarizer,
    create_dataset_summary,
)
from dspy.propose.grounded_proposer import (
    DescribeModule,
    DescribeProgram,
    GroundedProposer,
    generate_instruction_class,
)
from dspy.teleprompt.copro_optimizer import BasicGenerateInstruction, GenerateInstructionGivenAttempts
from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer, ProposeInstruction
from dspy.teleprompt.simba_utils import OfferFeedback, append_a_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from nano.dspy_answers import teach
from nano.dspy_requests import REQUESTS, told

from cuesmith import signatures
from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.modules.simulated.instruction_writing import prior_options
from cuesmith.modules.simulated.points import HINTS, stated
from cuesmith.modules.simulated.request import form_of
from cuesmith.modules.simulated.task_inference import tokens_of
from cuesmith.modules.simulated.wordings import instructions_of
from cuesmith.modules.simulated_optimizer import Asked, SimulatedOptimizer, SimulatedOptimizerEngine, Truth
from cuesmith.programs.tasks import Sizes, generate

teach()
ENGINE = SimulatedOptimizerEngine()
PRIOR = SimulatedOptimizerEngine(prior_bias=1.0)
NOISY = SimulatedOptimizerEngine(noise=1.0)
VAGUE = "Given the fields `question`, produce the fields `answer`."
SIGNATURES: dict[str, type[dspy.Signature]] = {
    "dspy.BasicGenerateInstruction": BasicGenerateInstruction,
    "dspy.GenerateInstructionGivenAttempts": GenerateInstructionGivenAttempts,
    "dspy.DatasetDescriptor": DatasetDescriptor,
    "dspy.DatasetDescriptorWithPriorObservations": DatasetDescriptorWithPriorObservations,
    "dspy.ObservationSummarizer": ObservationSummarizer,
    "dspy.DescribeProgram": DescribeProgram,
    "dspy.DescribeModule": DescribeModule,
    "dspy.GenerateSingleModuleInstruction": generate_instruction_class().signature,
    "dspy.OfferFeedback": OfferFeedback,
    "dspy.ProposeInstruction": InstructionProposer(
        skills="One\nskill.", additional_instructions="Be kind.", max_chars=9
    ).propose.signature,
}
Adapter = Callable[[], dspy.Adapter]
adapters = pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter])
each_family = pytest.mark.parametrize("name", FAMILIES)


@lru_cache(maxsize=64)
def examples(name: str, n: int = 24, seed: int = 0) -> tuple[dspy.Example, ...]:
    return generate(name, sizes=Sizes(train=n, validation=1, test=1), seed=seed).train


def telling(name: str, n: int) -> list[dspy.Example]:
    """Examples that no other family explains."""
    found = [example for example in examples(name, 60) if consistent(example) == {name}]
    assert len(found) >= n
    return found[:n]


def consistent(example: dspy.Example) -> set[str]:
    solved = {name: family.solve(example.question) for name, family in FAMILIES.items()}
    gold = tokens_of(example.answer)
    found = {name for name, solution in solved.items() if solution and tokens_of(solution.answer) == gold}
    return {name for name in found if FAMILIES[name].answer_type is not str} or found


def named(text: object) -> tuple[str, ...]:
    return tuple(task.family.name for task in stated(str(text)))


class Listener(SimulatedOptimizerEngine):
    """A simulated optimizer that keeps what arrives, also at copies of its model."""

    def __init__(self, **knobs: float) -> None:
        super().__init__(**knobs)  # type: ignore[arg-type]
        self.heard: list[str] = []
        self.lm = dspy.LM("cuesmith/listener", engine=self, cache=False)

    def complete(self, request: Request) -> Response:
        self.heard.append(str(request.messages[-1].text))
        return super().complete(request)


# --- asked by dspy's code ----------------------------------------------------------------------------------


def attempts(model: Listener, scored: dict[str, float], n: int = 4) -> list[str]:
    """COPRO's later requests."""
    listed = []
    for k, (text, score) in enumerate(scored.items(), 1):
        listed += [f"Instruction #{k}: {text}", f"Prefix #{k}: Answer:", f"Resulting Score #{k}: {score}"]
    with dspy.context(lm=model.lm):
        reply = dspy.Predict(GenerateInstructionGivenAttempts, n=n, temperature=1.4)(attempted_instructions=listed)
    assert all(reply.completions.proposed_prefix_for_output_field)
    return [text.strip('"').strip() for text in reply.completions.proposed_instruction]


def basic(model: Listener, instruction: str, n: int = 4) -> list[str]:
    """COPRO's first request."""
    with dspy.context(lm=model.lm):
        reply = dspy.Predict(BasicGenerateInstruction, n=n, temperature=1.4)(basic_instruction=instruction)
    return [text.strip('"').strip() for text in reply.completions.proposed_instruction]


def proposals(model: Listener, name: str, instruction: str = VAGUE, aware: bool = True) -> list[str]:
    """MIPROv2's instructions for three sets of demonstrations, the first of which it does not show."""
    program = dspy.ChainOfThought(dspy.Signature("question -> answer", instruction))
    train = telling(name, 24)
    sets = [[
        dspy.Example(augmented=True, question=e.question, reasoning="Step 1: it is\n\nStep 2: so", answer=e.answer)
        for e in train[4 * k : 4 * k + 4]
    ] for k in range(3)]  # fmt: skip
    proposer = GroundedProposer(
        prompt_model=model.lm, program=program, trainset=list(train), program_aware=aware, use_dataset_summary=aware,
        use_instruct_history=False, set_history_randomly=False, rng=random.Random(0),
    )  # fmt: skip
    found = proposer.propose_instructions_for_program(
        trainset=list(train), program=program, demo_candidates=[sets], trial_logs={}, N=3
    )
    return [str(text) for text in found[0]]


def advice(model: Listener, example: dspy.Example, instruction: str = VAGUE, wrong: str = "unclear") -> str:
    """What SIMBA appends to the instruction."""
    program = dspy.ChainOfThought(dspy.Signature("question -> answer", instruction))
    (predictor,) = program.predictors()

    def run(answer: str, score: float) -> dict[str, object]:
        prediction = dspy.Prediction(reasoning="I looked at it.", answer=answer)
        trace = [(predictor, {"question": example.question}, prediction)]
        return {
            "example": example, "prediction": prediction, "trace": trace, "score": score, "output_metadata": {},
        }  # fmt: skip

    append_rule(model, program, run(example.answer, 1.0), run(wrong, 0.0))
    before, _, added = predictor.signature.instructions.partition("\n\n")
    assert before == instruction
    return str(added)


def append_rule(model: Listener, program: dspy.Module, good: dict[str, object], bad: dict[str, object]) -> None:
    predictors = dict(program.named_predictors())
    assert append_a_rule(
        [good, bad], program, predictor2name={id(p): name for name, p in predictors.items()},
        name2predictor=predictors, batch_10p_score=0.0, batch_90p_score=1.0, prompt_model=model.lm,
    )  # fmt: skip


Record = tuple[dspy.Example, str, str]


def evolved(model: Listener, records: Sequence[Record], instruction: str = VAGUE) -> str:
    """GEPA's new instruction, from examples with answers and feedback."""
    shown = [
        {"Inputs": {"question": example.question}, "Generated Outputs": {"reasoning": "So.", "answer": answer},
         "Feedback": feedback}
        for example, answer, feedback in records
    ]  # fmt: skip
    with dspy.context(lm=model.lm):
        return str(InstructionProposer()({"self": instruction}, {"self": shown}, ["self"])["self"])


def score(value: float) -> str:
    return f"This trajectory got a score of {value}."


def by_score(name: str, seed: int = 0) -> list[Record]:
    """Four right answers and two wrong ones, with dspy's own feedback."""
    rows = random.Random(seed).sample(examples(name), 6)
    return [(row, row.answer if k % 3 else "unclear", score(float(k % 3 > 0))) for k, row in enumerate(rows)]


def by_feedback(name: str, answer: str = "unclear", seed: int = 0) -> list[Record]:
    """Wrong answers, with feedback that says what is right."""
    ways = ("The expected answer is {}.", "Wrong: expected '{}', got something else.", "expected answer: {}",
            "The answer should be {}, but it is not.")  # fmt: skip
    rows = random.Random(seed).sample(examples(name), 4)
    return [(row, answer.replace("{}", row.answer), way.replace("{}", row.answer))
            for row, way in zip(rows, ways, strict=True)]  # fmt: skip


def asked_of(name: str) -> dict[str, str]:
    """One text of each of dspy's requests that shows evidence of a family, as it arrives."""
    model = Listener()
    attempts(model, {VAGUE: 20.0, FAMILIES[name].instructions[0]: 60.0}, 1)
    basic(model, FAMILIES[name].instructions[0], 1)
    proposals(model, name)
    advice(model, telling(name, 1)[0])
    evolved(model, by_score(name))
    return {kind: [text for text in model.heard if Asked.parse(text).name == kind][-1] for kind in REQUESTS}


# --- the form ----------------------------------------------------------------------------------------------


def test_the_fields_are_those_of_dspy() -> None:
    assert set(SIGNATURES) == set(REQUESTS)
    for name, signature in SIGNATURES.items():
        form = REQUESTS[name]
        assert set(form.inputs) == set(signature.input_fields) and form.outputs == set(signature.output_fields)
        assert list(form.inputs) == list(signature.input_fields) or name == "dspy.OfferFeedback"
        assert form_of(form.needed, form.outputs) == form_of(form.inputs, form.outputs) == name
    assert tuple(OfferFeedback.input_fields) == REQUESTS["dspy.OfferFeedback"].inputs
    assert REQUESTS["dspy.ProposeInstruction"].needed == set(ProposeInstruction.input_fields)
    few = generate_instruction_class(*[False] * 5).signature
    assert REQUESTS["dspy.GenerateSingleModuleInstruction"].needed == set(few.input_fields)


def test_requests_of_our_own_are_not_taken_for_those() -> None:
    values = [getattr(signatures, name) for name in signatures.__all__]
    kinds: list[type[dspy.Signature]] = [
        value for value in values if isinstance(value, type) and issubclass(value, dspy.Signature)
    ]
    assert len(kinds) > 10
    assert {form_of(kind.input_fields, kind.output_fields) for kind in kinds} == {""}


def test_every_wording_is_told_again() -> None:
    for name, family in FAMILIES.items():
        for text in instructions_of(family)[0]:
            assert [task.family.name for task in told(f"The task of these examples: {text}All fit.")] == [name]


ODD = st.text(st.sampled_from("ab 1:\n`\"'[]{}()#\\«»_Example=é\u2028"), max_size=40)


@given(st.sampled_from(sorted(REQUESTS)), st.data(), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_any_input_gets_a_reply_that_parses(name: str, data: st.DataObject, prior: float, noise: float) -> None:
    odd = ODD | st.sampled_from([
        "[[ ## answer ## ]]\nx", "Example({'a': [1]}) (input_keys={'a'})", "Example({'a': (}) (input_keys=None)",
        "Question: 1 2\nAnswer: 3\n\nQuestion: 4 5\nAnswer: 9", '["self", 3]', '[{"module_name": "self"}]', '{"a": 1}',
        "-" * 80 + "\nModule self\n" + "-" * 80, "[1] «Instruction #1: x»\n[2] «Prefix #1: »",
    ])  # fmt: skip
    records = st.lists(st.dictionaries(st.sampled_from(["Inputs", "Generated Outputs", "Feedback"]), odd), max_size=3)
    signature = SIGNATURES[name]
    inputs = {
        key: data.draw(records if key == "examples_with_feedback" else odd) for key in signature.input_fields
    }  # fmt: skip
    with dspy.context(
        lm=SimulatedOptimizer(prior_bias=prior, noise=noise), adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)
    ):
        prediction = dspy.Predict(signature)(**inputs)
    assert set(signature.output_fields) <= set(prediction.keys())
    assert all(str(value).strip() for value in prediction.toDict().values())


@adapters
def test_both_formats_give_the_same_answers(adapter: Adapter) -> None:
    model, asked = Listener(), asked_of("sum")
    for name, signature in SIGNATURES.items():
        inputs = dict(Asked.parse(asked[name]).inputs)
        if name == "dspy.ProposeInstruction":
            signature = ProposeInstruction
            inputs["examples_with_feedback"] = json.loads(str(inputs["examples_with_feedback"]))
        if name == "dspy.GenerateSingleModuleInstruction":
            signature = generate_instruction_class(use_instruct_history=False, use_tip="tip" in inputs).signature
        if name == "dspy.GenerateInstructionGivenAttempts":
            continue  # a list of texts, which is shown as such in both formats
        with dspy.context(lm=model.lm, adapter=adapter()):
            prediction = dspy.Predict(signature)(**inputs)
        wanted = ENGINE.answer(asked[name], 0)
        assert {key: prediction[key] for key in signature.output_fields} == wanted


# --- from the evidence -------------------------------------------------------------------------------------


@each_family
def test_the_task_is_named_from_the_evidence(name: str) -> None:
    model = Listener()
    for records in (by_score, by_feedback):
        texts = [evolved(model, records(name, seed=seed)) for seed in range(4) for _ in range(5)]
        assert sum(named(text) == (name,) for text in texts) >= 19
    texts = [advice(model, example) for example in telling(name, 8) for _ in range(5)]
    assert sum(named(text) == (name,) for text in texts) >= 38
    texts = [text for _ in range(2) for text in proposals(model, name)]
    assert {named(text) for text in texts} == {(name,)}
    texts = [text for _ in range(2) for text in proposals(model, name, aware=False)]
    assert [named(text) == (name,) for text in texts] == [False, True, True] * 2  # the first sees no demonstration
    best = FAMILIES[name].instructions[1]
    texts = [*attempts(model, {VAGUE: 20.0, best: 60.0}, 10), *basic(model, best, 10)]
    assert {named(text) for text in texts} == {(name,)} and best not in texts
    summaries = {create_dataset_summary(list(examples(name)), 10, model.lm) for _ in range(2)}
    assert {tuple(task.family.name for task in told(text)) for text in summaries} == {(name,)}


def test_one_example_that_several_families_explain_is_read_as_one_of_them() -> None:
    model = Listener()
    example = dspy.Example(question="I have a dog, a cat, and a cow.", answer="3", accepted=("3",))
    shown = example.with_inputs("question")
    assert {named(advice(model, shown)) for _ in range(60)} == {("objects",), ("items",), ("animals",)}
    for name in ("objects", "items", "animals"):
        said = {named(advice(model, shown, FAMILIES[name].instructions[0])) for _ in range(20)}
        assert said == {(name,)}


def test_a_wrong_answer_speaks_against_the_family_for_which_it_is_right() -> None:
    model = Listener()
    tied = dspy.Example(question="I have a carrot, a kiwi, and a lemon.").with_inputs("question")
    other = dspy.Example(question="I have two kiwis and a dog.").with_inputs("question")
    records = [(tied, "3", score(1.0)), (other, "0", score(0.0))]
    assert {named(evolved(model, records)) for _ in range(40)} == {("objects",), ("items",)}
    assert {named(evolved(model, [*records, (other, "2", score(0.0))])) for _ in range(40)} == {("objects",)}
    wrong = FAMILIES["items"].instructions[0]  # what the instruction names is refuted as well
    assert {named(evolved(model, [*records, (other, "2", score(0.0))], wrong)) for _ in range(20)} == {("objects",)}


def test_gepa_without_a_right_answer_has_nothing_to_go_by() -> None:
    for answer in ("unclear", "7"):
        model = Listener()
        records = [(example, answer, score(0.0)) for example in telling("objects", 3) if example.answer != answer]
        texts = [evolved(model, records) for _ in range(20)]
        assert {named(text) for text in texts} == {()} and len(set(texts)) == 20
        assert not any("short text" in text for text in texts)  # nor is known which form an answer has
        assert ENGINE.truth(model.heard[-1], 0) == Truth("fallback", ())


def test_what_was_observed_most_often_counts_where_no_example_is_shown() -> None:
    model = Listener()
    most = "All examples fit this task: Give the largest number.Add all the numbers. Find the highest number."
    with dspy.context(lm=model.lm):
        summary = dspy.Predict(ObservationSummarizer)(observations=most).summary
        assert named(summary) == ("max",)
        predict = generate_instruction_class(False, False, True, False, False)
        proposed = predict(task_demos="No task demos provided.", basic_instruction=VAGUE).proposed_instruction
        assert named(proposed) == () and ENGINE.truth(model.heard[-1], 0) == Truth("fallback", ())
        predict = generate_instruction_class(True, False, True, False, False)
        for demos, family in (("No task demos provided.", "max"), ("Question: 3 9 4\nAnswer: 16", "sum")):
            told_so = {"dataset_description": summary, "task_demos": demos, "basic_instruction": VAGUE}
            assert named(predict(**told_so).proposed_instruction) == (family,)
        vague = dspy.Predict(ObservationSummarizer)(observations="The inputs are about robins.").summary
        assert "robins" in vague and ENGINE.truth(model.heard[-1], 0) == Truth("fallback", ())


def test_of_data_without_a_family_the_surface_is_told() -> None:
    hues = {f"the robin sang {k} songs": str(k + 9) for k in range(9)}
    rows = [dspy.Example(text=text, hue=hue, accepted=(hue, "?")) for text, hue in hues.items()]
    model = Listener()
    summary = create_dataset_summary([row.with_inputs("text") for row in rows], 10, model.lm)
    assert "robin" in summary and "a single number" in summary  # the metric's list of accepted answers is no output
    assert {ENGINE.truth(text, 0) for text in model.heard} == {Truth("fallback", ())}
    feedback = [(dspy.Example(question=row.text), "7", f"expected: {row.hue}") for row in rows]
    texts = [evolved(model, feedback) for _ in range(20)]
    assert all(VAGUE in text for text in texts) and any("a single number" in text.lower() for text in texts)


def test_the_words_of_a_biased_observer_carry_no_task() -> None:
    model = Listener(prior_bias=1.0)
    summary = create_dataset_summary(list(examples("sum")), 10, model.lm)
    assert named(summary) == () and told(summary) == []


# --- a precise instruction that fails ----------------------------------------------------------------------


def hinted(texts: Sequence[str], fault: str) -> int:
    return sum(any(hint in text for hint in HINTS["steps" if fault == "steps" else "form"]) for text in texts)


@pytest.mark.parametrize("name", ["objects", "reverse", "navigate", "bool"])
def test_a_precise_instruction_that_fails_is_mended_as_after_our_critiques(name: str) -> None:
    model, precise = Listener(), FAMILIES[name].instructions[0]
    shown = telling(name, 1)[0]
    for answer, fault in (("unclear", "steps"), ("It is {}, I think.", "form")):
        texts = [evolved(model, by_feedback(name, answer), precise) for _ in range(20)]
        assert {named(text) for text in texts} == {(name,)} and hinted(texts, fault) >= 14
        texts = [advice(model, shown, precise, answer.replace("{}", shown.answer)) for _ in range(20)]
        assert {named(text) for text in texts} == {(name,)} and hinted(texts, fault) >= 14
    unsolved = [(shown, "unclear", score(0.0))] * 3
    texts = [evolved(model, unsolved, precise) for _ in range(20)]
    assert {named(text) for text in texts} == {(name,)} and hinted(texts, "steps") >= 14
    mended = f"{precise} Work step by step."
    texts = [evolved(model, by_feedback(name), mended) for _ in range(20)]
    assert hinted(texts, "form") >= 14 and hinted(texts, "steps") == 20
    vague = [evolved(model, by_feedback(name)) for _ in range(20)]
    assert hinted(vague, "steps") == 0  # it was not precise before: first things first
    solved = [(example, example.answer, "Correct.") for example in telling(name, 4)]
    kept = [evolved(model, solved, precise) for _ in range(20)]
    assert {named(text) for text in kept} == {(name,)} and hinted(kept, "steps") == 0 and precise not in kept


def test_what_else_is_demanded_stays() -> None:
    text = evolved(Listener(), by_feedback("sum"), "Answer the question. Read hyphens as minus signs.")
    assert named(text) == ("sum",) and text.endswith(" Read hyphens as minus signs.")


def test_attempts_are_not_repeated_and_the_best_counts() -> None:
    model, scored = Listener(), {"Add all the numbers.": 40.0, "Be kind.\n\nFind the highest number.": 60.5}
    for _ in range(12):
        texts = attempts(model, scored, 3)
        assert {named(text) for text in texts} == {("max",)} and not set(texts) & set(scored)
        assert all("Be kind." in text for text in texts)
        scored |= dict.fromkeys(texts, 61.0)


def test_without_evidence_an_instruction_is_reworded_or_given_general_advice() -> None:
    model = Listener()
    for texts in (basic(model, VAGUE, 20), attempts(model, {VAGUE: 40.0, "Do it.": 2.5}, 20)):
        assert {named(text) for text in texts} == {()} and VAGUE not in texts
        assert len({text for text in texts if "`question`" in text}) == 20
    assert {ENGINE.truth(text, 0) for text in model.heard} == {Truth("fallback", ())}
    scored = {VAGUE: 90.0}
    for _ in range(9):
        texts = attempts(model, scored, 4)
        assert not set(texts) & set(scored)
        scored |= dict.fromkeys(texts, 41.0)


# --- several predictors ------------------------------------------------------------------------------------


class Two(dspy.Module):  # type: ignore[misc]
    """Two questions about the same words, and a module that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.size = dspy.Predict("words -> size")
        self.turned = dspy.Predict("words -> turned")
        self.idle = dspy.Predict("text -> mood")


def test_every_module_gets_its_own_advice() -> None:
    model, program, shown = Listener(), Two(), "robin sings loudly"
    example = dspy.Example(words=shown, size="3", turned="loudly sings robin").with_inputs("words")

    def run(size: str, turned: str, value: float) -> dict[str, Any]:
        trace = [
            (program.size, {"words": shown}, dspy.Prediction(size=size)),
            (program.turned, {"words": shown}, dspy.Prediction(turned=turned)),
        ]
        return {
            "example": example, "prediction": dspy.Prediction(size=size, turned=turned), "trace": trace,
            "score": value, "output_metadata": {},
        }  # fmt: skip

    append_rule(model, program, run("3", "loudly sings robin", 1.0), run("9", "robin", 0.0))
    assert named(program.size.signature.instructions) == ("count",)
    assert named(program.turned.signature.instructions) == ("reverse",)
    _, _, added = program.idle.signature.instructions.partition("\n\n")
    assert added in prior_options()  # nothing is known about it
    assert ENGINE.truth(model.heard[-1], 0) == Truth("evidence", ("count", "reverse"))


# --- knobs and draws ---------------------------------------------------------------------------------------


def said(engine: SimulatedOptimizerEngine, asked: str, draw: int) -> str:
    return json.dumps(engine.answer(asked, draw))


@each_family
def test_the_knobs(name: str) -> None:
    for kind, asked in asked_of(name).items():
        of_instruction = kind in ("dspy.BasicGenerateInstruction", "dspy.GenerateInstructionGivenAttempts")
        for d in range(8):
            assert ENGINE.truth(asked, d) == Truth("evidence", (name,))
            assert PRIOR.truth(asked, d) == Truth("prior", (name,))
            assert NOISY.truth(asked, d) == Truth("noise", (name,))
            assert (named(said(PRIOR, asked, d)) == ()) != of_instruction  # which is kept, with advice added
            assert named(said(ENGINE, asked, d)) == (name,) != named(said(NOISY, asked, d))


@pytest.mark.parametrize(("prior", "noise"), [(0.3, 0.0), (0.4, 0.5)])
def test_knobs_are_shares_of_every_request(prior: float, noise: float) -> None:
    engine = SimulatedOptimizerEngine(prior_bias=prior, noise=noise, seed=11)
    for asked in asked_of("items").values():
        sources = [engine.truth(asked, d).source for d in range(300)]
        assert sources.count("prior") / 300 == pytest.approx(prior, abs=0.09)
        assert sources.count("noise") / 300 == pytest.approx((1 - prior) * noise, abs=0.09)


def test_draws_of_one_request_differ_and_repeat() -> None:
    model = Listener()
    basic(model, VAGUE, 1)
    evolved(model, by_feedback("items"), FAMILIES["items"].instructions[0])
    for asked in [*asked_of("items").values(), *model.heard]:
        for block in (0, 1024 * 7):
            found = [said(ENGINE, asked, block + d) for d in range(40)]
            assert len(set(found)) == 40
        assert found[:9] == [said(SimulatedOptimizerEngine(), asked, block + d) for d in range(9)]
        assert found[:9] != [said(ENGINE, asked, d) for d in range(9)]
        assert found[:9] != [said(SimulatedOptimizerEngine(seed=1), asked, block + d) for d in range(9)]
