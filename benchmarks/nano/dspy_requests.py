"""dspy's own requests to an optimizer model: telling them apart, and reading what they show.

COPRO, MIPROv2, SIMBA and GEPA send prompts of their own. They are read here as those of `cuesmith.signatures` are: from
the examples with right outputs, what failed, the words of earlier answers and the scored instructions that a request
shows, the same code recognises the task. Source: the fields and formats are those of dspy 3.4; the reading is ours.
"""

from __future__ import annotations

import ast
import json
import random
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.modules.simulated.points import stated
from cuesmith.modules.simulated.request import Asked, Form
from cuesmith.modules.simulated.task_inference import (
    InferredTask,
    asked_part,
    entries_of,
    explain,
    questions_of,
    solutions_of,
    tokens_of,
)
from cuesmith.modules.simulated.wordings import PHRASINGS, norm
from cuesmith.signatures import parse_steps

# --- telling them apart ------------------------------------------------------------------------------------


def _form(needed: str, outputs: str, inputs: str = "") -> Form:
    return Form(frozenset(needed.split()), frozenset(outputs.split()), tuple((inputs or needed).split()))


REQUESTS: dict[str, Form] = {
    "dspy.GenerateInstructionGivenAttempts": _form(
        "attempted_instructions", "proposed_instruction proposed_prefix_for_output_field"
    ),
    "dspy.BasicGenerateInstruction": _form(
        "basic_instruction", "proposed_instruction proposed_prefix_for_output_field"
    ),
    "dspy.DatasetDescriptorWithPriorObservations": _form("examples prior_observations", "observations"),
    "dspy.DatasetDescriptor": _form("examples", "observations"),
    "dspy.ObservationSummarizer": _form("observations", "summary"),
    "dspy.DescribeModule": _form("program_code program_example program_description module", "module_description"),
    "dspy.DescribeProgram": _form("program_code program_example", "program_description"),
    "dspy.GenerateSingleModuleInstruction": _form(
        "task_demos basic_instruction",
        "proposed_instruction",
        "dataset_description program_code program_description module module_description task_demos "
        "previous_instructions basic_instruction tip",
    ),
    "dspy.OfferFeedback": _form(
        "program_code modules_defn program_inputs oracle_metadata worse_program_trajectory worse_program_outputs "
        "worse_reward_value worse_reward_info better_program_trajectory better_program_outputs better_reward_value "
        "better_reward_info module_names",
        "discussion module_advice",
    ),
    "dspy.ProposeInstruction": _form(
        "current_instruction examples_with_feedback",
        "new_instruction",
        "reference_skills additional_instructions length_limit current_instruction examples_with_feedback",
    ),
}
"""dspy's requests by the names of their signatures; one that has another's fields and more stands before it."""


# --- what they show ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows about one predictor, in the terms of `cuesmith.signatures`.

    Attributes:
        instruction: The instruction to improve; of several, the one with the highest score.
        examples: Examples with their right outputs, as "name: value" entries.
        failures: Failed ones with what was answered; with the right outputs as far as these are shown.
        refuted: Questions with answers that scored less than a right one, where no right one is shown.
        words: What earlier answers of the optimizer say about the data or the program.
        tried: Instructions that were tried.
    """

    instruction: str = ""
    examples: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    refuted: tuple[tuple[str, str], ...] = ()
    words: str = ""
    tried: tuple[str, ...] = ()


def shown(asked: Asked) -> dict[str, Shown]:
    """What a request shows, for each predictor that it asks about; of one that is not named, under ""."""
    return _READERS[asked.name](asked)


def recognised(asked: Asked, rng: random.Random) -> list[InferredTask]:
    """The tasks that one of dspy's requests is about."""
    return list(dict.fromkeys(task for one in shown(asked).values() for task in tasks_of(one, rng)))


def tasks_of(seen: Shown, rng: random.Random) -> list[InferredTask]:
    """The tasks that explain what is shown.

    Examples decide. If several families explain them, what was said decides between those, and that a wrong answer
    would be right for a family speaks against it. Without a family that explains examples, what was said counts, and
    without examples what the instruction says.
    """
    parsed = parse_steps(seen.instruction)
    said, named = told(seen.words), stated(seen.instruction)
    wrong = {family for question, answer in seen.refuted for family in _fitting(question, answer)}
    meant = {task.family.name for task in (*said, *named)} - wrong or set(FAMILIES) - wrong
    examples = [asked_part(text) for text in seen.examples]
    if found := explain(examples, parsed[1] if parsed else (), rng, meant) or said:
        return [InferredTask(task.field.removeprefix("expected "), task.family) for task in found]
    return [] if examples else [task for task in named if task.family.name not in wrong]


def told(text: str) -> list[InferredTask]:
    """The tasks that a text names, for each "for `field`:" in it the one that it names most often."""
    parts = re.split(r"\bfor `(\w+)`:", text, flags=re.IGNORECASE)
    said = dict.fromkeys(parts[1::2], "") or {"": text}
    for field, part in zip(parts[1::2], parts[2::2], strict=True):
        said[field] += f" {part}"
    tasks: list[InferredTask] = []
    for field, words in said.items():
        given = f" {norm(words)} ".replace(" ", "  ")
        counts = Counter({name: sum(map(given.count, sayings)) for name, sayings in _sayings().items()})
        (name, most), *_ = counts.most_common(1)
        families = [FAMILIES[name]] if most else [task.family for task in stated(words)[:1]]
        tasks += [InferredTask(field, family) for family in families]
    return tasks


@lru_cache(maxsize=1)
def _sayings() -> Mapping[str, Sequence[str]]:
    """Every wording of each family's task; spaces are doubled, so that neighbours have one each."""
    texts = {name: family.instructions + PHRASINGS[name] for name, family in FAMILIES.items()}
    return {name: [f" {norm(text)} ".replace(" ", "  ") for text in own] for name, own in texts.items()}


def _fitting(question: str, answer: str) -> list[str]:
    """The families for which an answer to a question would be right."""
    texts, given = questions_of(entries_of(question)), tokens_of(answer)
    solved = {name: solutions_of(family, texts) for name, family in FAMILIES.items()}
    return [name for name, found in solved.items() if any(tokens_of(one.answer) == given for _, one in found)]


# --- COPRO -------------------------------------------------------------------------------------------------


def _alone(asked: Asked) -> dict[str, Shown]:
    basic = asked.text("basic_instruction")
    return {"": Shown(instruction=basic, tried=(basic,))}


def _attempts(asked: Asked) -> dict[str, Shown]:
    listed = re.finditer(
        r"^\[\d+\] (?:«««\n(.*?)\n»»»|«(.*?)»)$", asked.text("attempted_instructions"), re.MULTILINE | re.DOTALL
    )
    items = "\n".join(textwrap.dedent(match[1]) if match[1] is not None else match[2] for match in listed)
    attempt = r"^Instruction #(\d+): (.*?)\nPrefix #\1: .*?\nResulting Score #\1: (-?[\d.]+)$"
    scored = {match[2]: _number(match[3]) for match in re.finditer(attempt, items, re.MULTILINE | re.DOTALL)}
    return {"": Shown(instruction=max(scored, key=lambda text: scored[text], default=""), tried=tuple(scored))}


# --- MIPROv2 -----------------------------------------------------------------------------------------------

_EXAMPLE = re.compile(r"Example\((\{.*?\})\) \(input_keys=(\{[^{}]*\}|None)\)", re.DOTALL)


def _dataset(asked: Asked) -> dict[str, Shown]:
    """Examples as Python writes a list of them."""
    examples = []
    for match in _EXAMPLE.finditer(asked.text("examples")):
        try:
            values, inputs = ast.literal_eval(match[1]), ast.literal_eval(match[2]) or ()
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue  # it holds values of other types
        if isinstance(values, dict):
            examples.append(_entries(dict(sorted(values.items(), key=lambda item: item[0] not in inputs))))
    return {"": Shown(examples=tuple(examples), words=asked.text("prior_observations"))}


def _observations(asked: Asked) -> dict[str, Shown]:
    return {"": Shown(words=asked.text("observations"))}


def _program(asked: Asked) -> dict[str, Shown]:
    words = f"{asked.text('program_code')}\n{asked.text('program_description')}"
    return {"": Shown(examples=_demos(asked.text("program_example")), words=words)}


def _module(asked: Asked) -> dict[str, Shown]:
    words = "\n".join(map(asked.text, ("dataset_description", "program_description", "module_description")))
    basic = asked.text("basic_instruction")
    return {"": Shown(instruction=basic, examples=_demos(asked.text("task_demos")), words=words)}


def _demos(text: str) -> tuple[str, ...]:
    """Demonstrations as entries; each begins like the first."""
    first = re.match(r"\s*([^\n:]{1,40}):", text)
    if first is None:
        return ()
    parts = re.split(rf"\n\n(?={re.escape(first[1])}:)", text)
    # dspy writes `final_answer` as "Final Answer"
    named = ([(re.sub(r"(?<=\D) (?=\D)", "_", name.lower()), value) for name, value in entries_of(p)] for p in parts)
    return tuple("\n".join(f"{name}: {value}" for name, value in entries) for entries in named)


# --- SIMBA -------------------------------------------------------------------------------------------------


def _trajectories(asked: Asked) -> dict[str, Shown]:
    names = _read_json(asked.text("module_names"))
    definitions = _instructions(asked.text("modules_defn"))
    modules = [str(name) for name in names] if isinstance(names, list) else list(definitions)
    return {name: _module_run(asked, name, definitions.get(name, ""), len(modules) == 1) for name in modules}


def _module_run(asked: Asked, name: str, instruction: str, only: bool) -> Shown:
    """What two runs of a program on one example show about one module; an only module's fields are the program's."""
    better, worse = (_steps(asked.text(f"{which}_program_trajectory"), name) for which in ("better", "worse"))
    labels, asking = (_mapping(_read_json(asked.text(key))) for key in ("oracle_metadata", "program_inputs"))
    inputs = _mapping((better or worse).get("inputs")) or (asking if only else {})
    results = {key for run in (better, worse) for key in _mapping(run.get("outputs"))}
    gold = {key: value for key, value in labels.items() if key in results}
    if _number(asked.text("better_reward_value")) >= 1:
        gold = {**_answers(_mapping(better.get("outputs"))), **gold}
    gold = gold or (_scalars(labels) if only else {})
    if not gold or not inputs:
        return Shown(instruction=instruction)
    response = _mapping(worse.get("outputs"))
    failed = (_failure(inputs, gold, response),) if response else ()
    return Shown(instruction=instruction, examples=(_failure(inputs, gold),), failures=failed)


def _steps(trajectory: str, name: str) -> Mapping[str, object]:
    """The last run of a module in a trajectory."""
    found = _read_json(trajectory)
    steps = [_mapping(step) for step in found] if isinstance(found, list) else []
    return next((step for step in reversed(steps) if step.get("module_name") == name), {})


def _instructions(definitions: str) -> dict[str, str]:
    """The instruction of each module."""
    found: dict[str, str] = {}
    for part in re.split(r"^-{80}$", definitions, flags=re.MULTILINE):
        head = re.match(r"\s*Module (.+)", part)
        _, _, instruction = part.partition("\tOriginal Instructions:")
        if head:
            found[head[1].strip()] = "\n".join(line.removeprefix("\t\t") for line in instruction.splitlines()).strip()
    return found


# --- GEPA --------------------------------------------------------------------------------------------------

_SCORE = re.compile(r"got a score of (-?\d+(?:\.\d+)?)")
_RIGHT = re.compile(r"\W*(?:correct|right|exact match)\b(?!\s+(?:answer|output|value|label|result))", re.IGNORECASE)
_GOLD = re.compile(
    r"(?:\b(?:expected|correct|right|gold|reference)\b(?:\s+(?:answer|output|value|label|result))?\s*(?:is|was|:|=)?"
    r"|\bshould (?:be|have been)\b:?)\s*[\"'`]?([^\"'`,;.\n]+)",
    re.IGNORECASE,
)
"""How a metric's feedback names the right answer."""


def _reflections(asked: Asked) -> dict[str, Shown]:
    records = _read_json(asked.text("examples_with_feedback"))
    examples, failures, refuted = [], [], []
    for record in [_mapping(one) for one in records] if isinstance(records, list) else []:
        inputs, outputs = _mapping(record.get("Inputs")), _mapping(record.get("Generated Outputs"))
        answers, feedback = _answers(outputs), str(record.get("Feedback", ""))
        right = _is_right(feedback)
        gold = answers if right else _gold(feedback, answers)
        if gold:
            examples.append(_failure(inputs, gold))
        else:
            refuted += [(_entries(inputs), _text(answer)) for answer in answers.values()]
        if not right:
            failures.append(_failure(inputs, gold, outputs or {"reply": record.get("Generated Outputs")}))
    instruction = asked.text("current_instruction")
    return {"": Shown(instruction, tuple(examples), tuple(failures), tuple(refuted))}


def _is_right(feedback: str) -> bool:
    score = _SCORE.search(feedback)
    return float(score[1]) >= 1 if score else bool(_RIGHT.match(feedback))


def _gold(feedback: str, answers: Mapping[str, object]) -> dict[str, object]:
    """The right outputs that a feedback names: as entries, or of an only answer in a sentence."""
    entries = {name.removeprefix("expected "): value for name, value in entries_of(feedback) if "expected " in name}
    if gold := {name: value for name, value in entries.items() if name in answers}:
        return dict(gold)
    found = _GOLD.search(feedback)
    value = re.split(r"\s+(?:but|not|instead|got|and)\b", found[1].strip())[0] if found else ""
    return dict.fromkeys(answers, value) if value and len(answers) == 1 else {}


# --- values ------------------------------------------------------------------------------------------------


def _failure(
    inputs: Mapping[str, object], gold: Mapping[str, object], response: Mapping[str, object] | None = None
) -> str:
    """An example as compilers show failures; without a response, one with its right outputs alone."""
    lines = [_entries(inputs), *(f"expected {name}: {_text(value)}" for name, value in gold.items())]
    return "\n".join([*lines, f"response: {_entries(response)}"] if response else lines)


def _entries(values: Mapping[str, object]) -> str:
    return "\n".join(f"{name}: {_text(value)}" for name, value in _scalars(values).items())


def _answers(outputs: Mapping[str, object]) -> dict[str, object]:
    """Outputs without the reasoning, which is never a label."""
    return {name: value for name, value in _scalars(outputs).items() if name != "reasoning"}


def _scalars(values: Mapping[str, object]) -> dict[str, object]:
    """The values that are not lists: a data set's notes for its metric, such as all accepted answers, may be."""
    return {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)}


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _mapping(value: object) -> Mapping[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _read_json(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def _number(text: str) -> float:
    """The number that a text is; 0 if it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


_READERS: dict[str, Callable[[Asked], dict[str, Shown]]] = {
    "dspy.BasicGenerateInstruction": _alone,
    "dspy.GenerateInstructionGivenAttempts": _attempts,
    "dspy.DatasetDescriptor": _dataset,
    "dspy.DatasetDescriptorWithPriorObservations": _dataset,
    "dspy.ObservationSummarizer": _observations,
    "dspy.DescribeProgram": _program,
    "dspy.DescribeModule": _program,
    "dspy.GenerateSingleModuleInstruction": _module,
    "dspy.OfferFeedback": _trajectories,
    "dspy.ProposeInstruction": _reflections,
}
