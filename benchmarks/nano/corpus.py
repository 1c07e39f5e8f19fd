"""The training corpus: generated chats in the exact format of dspy's adapters.

Every draw is one program call as dspy would send it (system message, demonstrations, input) with the reply that the
model is to learn. Which reply that is follows from the prompt alone:

* a precise task sentence, a block of steps or demonstrations determine the task; a vague request does not;
* a block of steps, a request to work step by step or demonstrations with worked reasoning make the reasoning field
  stepwise; otherwise it is one empty sentence;
* irrelevant sentences change nothing.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cuesmith.modules.embedded.families import FAMILIES, Family, Solution, is_held_out, word_list
from nano import phrasing

IDENTIFIERS: tuple[str, ...] = tuple(Path(__file__).with_name("identifiers.txt").read_text(encoding="utf-8").split())
"""Variable and parameter names, for field names."""
VACUOUS = "The answer follows from the input."
COPYING = ("first", "last", "reverse", "count")
BY_STEPS = frozenset(("sum", "objects", "items", "animals", "fruits", "navigate", "position", "trues"))
"""Families that are mostly out of reach of a direct answer: drawn with reasoning more often."""
DIRECT = frozenset(("first", "last", "reverse"))
"""Families that copy words right into the answer: drawn without reasoning more often."""
EMPHASIS = {"first": 2.0, "last": 2.0, "reverse": 4.0, "animals": 1.5, "fruits": 1.5}
"""Relative frequencies of the families that are learned late; all others are drawn at 1."""
_EXCLUDED = Path(__file__).with_name("excluded.json")
_NOT_SUPPLIED = "Not supplied for this particular example. "


# --- the adapters' format ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a signature.

    Attributes:
        name: Its name.
        kind: "str", "int", "bool", "float" or "Literal".
        description: Its description, often empty.
        options: The values of a Literal.
    """

    name: str
    kind: str = "str"
    description: str = ""
    options: tuple[str, ...] = ()

    @property
    def annotation(self) -> str:
        """The type as dspy writes it."""
        if self.kind != "Literal":
            return self.kind
        return f"Literal[{', '.join(map(repr, self.options))}]"

    @property
    def slot(self) -> str:
        """The field's place holder in the description of the structure."""
        notes = {"int": "must be a single int value", "float": "must be a single float value",
                 "bool": "must be True or False"}  # fmt: skip
        note = notes.get(self.kind, "")
        if self.kind == "Literal":
            note = f"must exactly match (no extra characters) one of: {'; '.join(self.options)}"
        return f"{{{self.name}}}" + (f"        # note: the value you produce {note}" if note else "")


@dataclass(frozen=True, slots=True)
class Spec:
    """A signature as far as the prompt shows it, and the adapter that formats it ("chat" or "json")."""

    instruction: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    adapter: str = "chat"


Values = Mapping[str, str]
Chat = list[tuple[str, str]]


def _describe(fields: tuple[Field, ...]) -> str:
    lines = [f"{k}. `{f.name}` ({f.annotation}): {f.description}" for k, f in enumerate(fields, 1)]
    return "\n".join(lines).strip()


def _sections(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in pairs)


def system_message(spec: Spec) -> str:
    """The system message of dspy's ChatAdapter or JSONAdapter."""
    inputs, outputs = (_sections((f.name, f.slot) for f in fields) for fields in (spec.inputs, spec.outputs))
    lead = "All interactions will be structured in the following way, with the appropriate values filled in."
    if spec.adapter == "json":
        shape = json.dumps({f.name: f.slot for f in spec.outputs}, indent=2, ensure_ascii=False)
        structure = (
            f"{lead}\n\nInputs will have the following structure:\n\n{inputs}\n\n"
            f"Outputs will be a JSON object with the following fields.\n\n{shape}"
        )
    else:
        structure = f"{lead}\n\n{inputs}\n\n{outputs}\n\n[[ ## completed ## ]]"
    objective = ("\n" + " " * 8).join(["", *spec.instruction.splitlines()])
    return (
        f"Your input fields are:\n{_describe(spec.inputs)}\nYour output fields are:\n{_describe(spec.outputs)}\n"
        f"{structure}\nIn adhering to this structure, your objective is: {objective}"
    )


def user_message(spec: Spec, values: Values, *, request: bool = False, incomplete: bool = False) -> str:
    """A user message: the input fields and, for the main request, the reminder of the output fields."""
    text = _sections((f.name, values[f.name]) for f in spec.inputs if f.name in values)
    if incomplete:
        text = f"This is an example of the task, though some input or output fields are not supplied.\n\n{text}"
    return f"{text}\n\n{_reminder(spec)}" if request else text


def _reminder(spec: Spec) -> str:
    types = ["" if f.kind == "str" else f" (must be formatted as a valid Python {f.annotation})" for f in spec.outputs]
    if spec.adapter == "json":
        names = ", then ".join(f"`{f.name}`{kind}" for f, kind in zip(spec.outputs, types, strict=True))
        return f"Respond with a JSON object in the following order of fields: {names}."
    names = ", then ".join(f"`[[ ## {f.name} ## ]]`{kind}" for f, kind in zip(spec.outputs, types, strict=True))
    return (
        f"Respond with the corresponding output fields, starting with the field {names}"
        ", and then ending with the marker for `[[ ## completed ## ]]`."
    )


def assistant_message(spec: Spec, values: Values) -> str:
    """An assistant message with all output fields; fields without a value are marked as not supplied."""
    supplied = {f.name: values.get(f.name, _NOT_SUPPLIED) for f in spec.outputs}
    if spec.adapter != "json":
        return _sections(supplied.items()).strip() + "\n\n[[ ## completed ## ]]\n"
    plain = {f.name for f in spec.outputs if f.kind in ("str", "Literal")}
    return json.dumps(
        {name: value if name in plain or name not in values else json.loads(value.lower())
         for name, value in supplied.items()},
        indent=2, ensure_ascii=False,
    )  # fmt: skip


# --- exclusions --------------------------------------------------------------------------------------------


@cache
def _excluded() -> frozenset[int]:
    return frozenset(json.loads(_EXCLUDED.read_text()) if _EXCLUDED.exists() else ())


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def write_exclusions(files: Iterable[Path]) -> None:
    """Store hashes of the inputs of BIG-bench task files, which are then never generated."""
    texts = (row["input"] for file in files for row in json.loads(file.read_text())["examples"])
    _EXCLUDED.write_text(json.dumps(sorted({_hash(text) for text in texts})))


def question(family: Family, rng: random.Random) -> str:
    """Draw a training question: never a held-out one, nor an item of an excluded benchmark."""
    while True:
        text = family.sample(rng, held_out=False)
        if _hash(text) not in _excluded():
            return text


# --- drawing a call ----------------------------------------------------------------------------------------

_INPUT_NAMES = ("question", "question", "question", "text", "input", "words", "numbers", "query", "sentence",
                "problem", "passage", "list", "data", "context", "message", "document")  # fmt: skip
_OUTPUT_NAMES = ("answer", "answer", "answer", "output", "result", "label", "response", "total", "reply",
                 "verdict", "value", "prediction", "solution")  # fmt: skip
_PAIRS = (("True", "False"), ("true", "false"), ("yes", "no"), ("Yes", "No"), ("valid", "invalid"),
          ("correct", "incorrect"), ("right", "wrong"), ("holds", "fails"))  # fmt: skip
_DESCRIPTIONS = (
    "the {input|text|question|data|list|given text|user's input}",
    "{a|the} {question|text|list} to {read|work on|answer|process}",
    "{input|text|data} {from a user|of the task|in plain text}",
)
_ONLY = (
    "{Use only|Work only on|Only use|The relevant field is|Apply this to|Look only at|Take it from|Do this for} <in>"
    "{|, ignore the other field|, not the other field}."
)
_RESULTS = ("the {answer|result|output|final answer|response}", "{your|the} {answer|result} to the {question|task}",
            "{short answer|answer only|final result|the value to return}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One message and whether its tokens are learned."""

    role: str
    text: str
    learned: bool = False


@dataclass(slots=True)
class Sample:
    """A training chat with the tasks that it asks for."""

    families: tuple[str, ...]
    turns: list[Turn] = field(default_factory=list)


def field_name(rng: random.Random, common: tuple[str, ...] = _INPUT_NAMES, *, held_out: bool = False) -> str:
    """Draw a field name: a common one, an identifier, or two identifiers' parts joined."""
    if not held_out and rng.random() < 0.35:
        return rng.choice(common)
    while True:
        name = rng.choice(IDENTIFIERS)
        if rng.random() < 0.2:
            name = f"{name.split('_')[0]}_{rng.choice(IDENTIFIERS).split('_')[-1]}"
        if is_held_out("name:" + name) == held_out and name not in ("reasoning", "completed"):
            return name


@dataclass(slots=True)
class _Plan:
    """The choices of one sample: what the prompt says and what the replies look like."""

    families: tuple[Family, ...]
    spec: Spec
    reasoning: bool
    order: list[int] | None = None  # indices of the steps to work through, None for the empty sentence
    cot: bool = False
    distractor: Family | None = None
    demos: int = 0
    supplied: bool = True
    first_learned: bool = True


def _typed(value: str, out: Field) -> str:
    if out.kind == "Literal" and out.options[0] not in ("True", "False") and value in ("True", "False"):
        pair = next(pair for pair in _PAIRS if set(pair) == set(out.options))
        return pair[0 if value == "True" else 1]
    if out.kind == "Literal" and value in ("True", "False"):
        return value
    return f"{value}.0" if out.kind == "float" else value


def _output(family: Family, name: str, rng: random.Random) -> Field:
    kind, roll = "str", rng.random()
    options: tuple[str, ...] = ()
    if family.answer_type is int and roll < 0.5:
        kind = "float" if roll < 0.04 else "int"
    elif family.answer_type is bool and roll < 0.6:
        kind = "bool" if roll < 0.35 else "Literal"
        if kind == "Literal":
            options = rng.choice(_PAIRS)
            options = options if rng.random() < 0.5 else options[::-1]
    text = phrasing.expand(rng.choice(_RESULTS), rng) if rng.random() < 0.08 else ""
    return Field(name, kind, text, options)


def _with_fluff(sentences: list[str], rng: random.Random) -> list[str]:
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        sentences.insert(rng.randint(0, len(sentences)), phrasing.fluff(rng))
    return sentences


def _text(sentences: list[str], rng: random.Random) -> str:
    return ("\n" if rng.random() < 0.1 else " ").join(sentences)


def _steps_block(header: str, steps: list[str], rng: random.Random) -> str:
    label = "Step {}: {}"
    if header != phrasing.STEPS_HEADER and rng.random() < 0.35:
        label = rng.choice(("{}. {}", "{}. {}", "({}) {}", "{}) {}", "Step {}. {}"))
    return "\n".join([header, *(label.format(k, step) for k, step in enumerate(steps, 1))])


def _plan_steps(family: Family, rng: random.Random) -> tuple[list[str], list[int]]:
    """The wording of a block of steps and the indices of the steps in it (-1 for a step without work)."""
    texts, order = phrasing.step_texts(family.name, rng), list(range(len(family.steps)))
    roll = rng.random()
    if roll < 0.06:
        del order[rng.randrange(len(order))]
    elif roll < 0.11:
        order.insert(rng.randint(0, len(order)), -1)
    steps = [phrasing.filler_step(rng) if k < 0 else texts[k] for k in order]
    if rng.random() < 0.1:
        k = rng.randrange(len(steps))
        steps[k] += " " + phrasing.fluff(rng)
    return steps, order


def _instruction(plan: _Plan, kind: str, rng: random.Random) -> str:
    """Write the instruction of a plan; sets the plan's step order when the prompt asks for steps."""
    family, spec = plan.families[0], plan.spec
    sources, outs = tuple(f.name for f in spec.inputs), tuple(f.name for f in spec.outputs)
    targets = outs[1:] if plan.cot else outs
    if len(plan.families) == 2 and kind != "vague":
        core = _two_outputs(plan.families, targets, rng)
    elif kind in ("vague", "steps-vague"):
        core = phrasing.vague(rng, sources, outs[-1:] if plan.cot else outs)
    else:
        core = phrasing.task(family.name, rng, sources[_relevant(plan)], targets[0])
    sentences = [core]
    if plan.distractor and (kind != "vague" or rng.random() < 0.5):
        name = f"`{sources[_relevant(plan)]}`"
        sentences.append(phrasing.expand(_ONLY.replace("<in>", name), rng))
        if rng.random() < 0.5:
            sentences.reverse()
    default = core.startswith("Given the fields")
    if not (default and rng.random() < 0.7):
        sentences = _with_fluff(sentences, rng)
    if kind == "generic":
        sentences.insert(rng.randint(0, len(sentences)), phrasing.stepwise(rng))
        plan.order = list(range(len(family.steps)))
    text = _text(sentences, rng)
    if not kind.startswith("steps"):
        return text
    return _with_block(plan, text, kind, rng)


def _with_block(plan: _Plan, text: str, kind: str, rng: random.Random) -> str:
    steps, order = _plan_steps(plan.families[0], rng)
    if plan.cot:
        plan.order = order
    header = phrasing.steps_header(rng)
    block = _steps_block(header, steps, rng)
    if kind == "steps-vague" and rng.random() < 0.3:
        return block
    tail = f"\n\n{phrasing.fluff(rng)}" if rng.random() < 0.05 else ""
    return f"{text}\n{'' if rng.random() < 0.12 else chr(10)}{block}{tail}"


def _two_outputs(families: tuple[Family, ...], targets: tuple[str, ...], rng: random.Random) -> str:
    (one, two), (a, b) = (phrasing.noun_phrase(f.name, rng) for f in families), targets
    template = rng.choice((
        f"{{Give|Return|Write|Find|Output|State}} {one} as `{a}` and {two} as `{b}`.",
        f"`{a}` is {one} and `{b}` is {two}.", f"{{Put|Write}} {one} into `{a}` and {two} into `{b}`.",
        f"{{Fill|Set}} `{a}` {{with|to}} {one} and `{b}` {{with|to}} {two}.",
        f"For `{a}` {{give|find}} {one}; for `{b}` {{give|find}} {two}.",
    ))  # fmt: skip
    return phrasing.expand(template, rng)


def _relevant(plan: _Plan) -> int:
    return 0 if plan.distractor is None or plan.spec.inputs[0].description != "~" else 1


def _work(plan: _Plan, solution: Solution) -> str:
    if plan.order is None:
        return VACUOUS
    texts = ("Done." if k < 0 else solution.work[k] for k in plan.order)
    return "\n".join(f"Step {k}: {text}" for k, text in enumerate(texts, 1))


def _example(plan: _Plan, rng: random.Random) -> dict[str, str]:
    """Draw one question with all its fields filled in."""
    family, spec = plan.families[0], plan.spec
    text = question(family, rng)
    relevant = _relevant(plan)
    values = {spec.inputs[relevant].name: text}
    if plan.distractor is not None:
        values[spec.inputs[1 - relevant].name] = question(plan.distractor, rng)
    outs = spec.outputs[1:] if plan.cot else spec.outputs
    for each, out in zip(plan.families, outs, strict=True):
        solution = each.solve(text)
        assert solution is not None
        values[out.name] = _typed(solution.answer, out)
    if plan.cot:
        first = family.solve(text)
        assert first is not None
        values["reasoning"] = _work(plan, first)
    return values


def _fields(families: tuple[Family, ...], two_inputs: bool, rng: random.Random) -> tuple[tuple[Field, ...], ...]:
    names: list[str] = []
    while len(names) < 1 + two_inputs:
        if (name := field_name(rng)) not in names:
            names.append(name)
    while len(names) < 1 + two_inputs + len(families):
        if (name := field_name(rng, _OUTPUT_NAMES)) not in names:
            names.append(name)
    text = phrasing.expand(rng.choice(_DESCRIPTIONS), rng) if rng.random() < 0.08 and not two_inputs else ""
    inputs = tuple(Field(name, description=text) for name in names[: 1 + two_inputs])
    outputs = tuple(_output(f, n, rng) for f, n in zip(families, names[1 + two_inputs :], strict=True))
    return inputs, outputs


def _kind(cot: bool, two: bool, rng: random.Random) -> str:
    if two:
        return rng.choice(("precise", "precise", "precise", "precise", "vague"))
    weights = {"steps": 42, "steps-vague": 10, "generic": 9, "precise": 14, "vague": 25} if cot else {
        "steps": 4, "precise": 66, "vague": 30}  # fmt: skip
    return rng.choices(list(weights), list(weights.values()))[0]


def _demonstrations(plan: _Plan, kind: str, rng: random.Random) -> None:
    if kind != "vague":
        plan.demos = rng.choice((0, 0, 0, 1, 2, 3, 4, 5))  # the first of them is one more case without any before it
        plan.supplied = rng.random() < 0.95
        return
    plan.demos = 0 if rng.random() < 0.08 else rng.choice((1, 2, 2, 3, 3, 4))
    plan.first_learned = rng.random() < 0.2
    plan.supplied = rng.random() < 0.85
    if plan.cot and plan.demos and plan.supplied and rng.random() < 0.7:
        plan.order = list(range(len(plan.families[0].steps)))


def draw(rng: random.Random, weights: Mapping[str, float] | None = None) -> Sample:
    """Draw one training chat.

    Args:
        rng: The source of randomness.
        weights: The relative frequency of each family; families that are left out are not drawn.
    """
    weights = weights or dict.fromkeys(FAMILIES, 1.0)
    family = FAMILIES[rng.choices(list(weights), list(weights.values()))[0]]
    families: tuple[Family, ...] = (family,)
    look = [f for f in FAMILIES.values() if f.look == family.look and f is not family and f.name in weights]
    if look and rng.random() < 0.1:
        families = (family, rng.choice(look))
    two_inputs = len(families) == 1 and rng.random() < 0.1
    cot = rng.random() < (0.68 if family.name in BY_STEPS else 0.3 if family.name in DIRECT else 0.5)
    inputs, outputs = _fields(families, two_inputs, rng)
    if cot:
        outputs = (Field("reasoning"), *outputs)
    plan = _Plan(families, Spec("", inputs, outputs, "json" if rng.random() < 0.08 else "chat"), cot, cot=cot)
    if two_inputs:
        plan.distractor = FAMILIES[rng.choice(list(weights))]
        if rng.random() < 0.5:  # the second field is the relevant one
            plan.spec = replace(plan.spec, inputs=(replace(inputs[0], description="~"), inputs[1]))
    kind = _kind(cot, len(families) == 2, rng)
    _demonstrations(plan, kind, rng)
    plan.spec = replace(plan.spec, instruction=_instruction(plan, kind, rng))
    return Sample(tuple(f.name for f in families), _turns(plan, rng))


def _turns(plan: _Plan, rng: random.Random) -> list[Turn]:
    examples = [_example(plan, rng) for _ in range(plan.demos + 1)]
    spec = replace(plan.spec, inputs=tuple(replace(f, description=f.description.strip("~")) for f in plan.spec.inputs))
    missing = plan.cot and not plan.supplied
    turns = [Turn("system", system_message(spec))]
    for k, values in enumerate(examples):
        last = k == plan.demos
        hide = missing and not last
        shown = {key: value for key, value in values.items() if not (hide and key == "reasoning")}
        learned = (k > 0 or plan.first_learned) and not hide
        turns.append(Turn("user", user_message(spec, shown, request=last, incomplete=hide)))
        turns.append(Turn("assistant", assistant_message(spec, shown), learned))
    return turns


def unseen_words(rng: random.Random) -> str:
    """A question of the words look of which the model has seen no word."""
    return word_list(rng, held_out=True)
