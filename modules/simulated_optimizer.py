"""A simulated optimizer model: answers every request of `cuesmith.signatures` without a network or weights.

It stands in for the large model that writes prompts. It reads a request as a model would get it, works out from
the shown examples, steps and responses which task family of `cuesmith.modules.embedded.families` they come from,
and writes what a good optimizer would write. It knows the families, not the items of any test.

It is an instrument, not a language model. Two seeded knobs make it worse in known ways, and `truth` says for
every answer which way it went, so that diagnostics can be calibrated against it:

- ``prior_bias``: the share of answers that ignore the evidence and say what optimizers like to say anyway:
  "pay attention to detail", steps without content, a guessed deviation, a revision of another step.
- ``noise``: the share of the remaining answers that start from the evidence and get it wrong: a vague or a
  sibling's instruction, a step dropped, a line of work garbled, the wrong step blamed.

Results obtained with it illustrate the machinery and are no evidence about large models.
"""

import hashlib
import itertools
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar, get_args

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from cuesmith import signatures
from cuesmith.modules.embedded.families import FAMILIES, Family, Solution
from cuesmith.modules.sampling import draw as current_draw
from cuesmith.signatures import Deviation, parse_steps

__all__ = [
    "Asked",
    "AsyncSimulatedOptimizerEngine",
    "FieldValue",
    "SimulatedOptimizer",
    "SimulatedOptimizerEngine",
    "Truth",
]

FieldValue = str | int | float | bool | list[str]
"""What a field of a request can hold."""
Source = Literal["evidence", "prior", "noise", "fallback"]
T = TypeVar("T")

_KINDS: tuple[Deviation, ...] = get_args(Deviation)
_MAX_STEPS = 8
_BLOCK, _DISTINCT = 1024, 64
"""A draw's number is a block (which `ask`) times 1024 plus its place there; places below 64 choose distinctly."""


# --- the public face ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known about one answer, for calibrating diagnostics.

    Attributes:
        source: "evidence" if the answer follows from what the request shows; "prior" if it ignores it; "noise"
            if it was degraded on purpose; "fallback" if no family explains what the request shows.
        families: The families that were recognised in the request, whether the answer uses them or not.
    """

    source: Source
    families: tuple[str, ...]


def SimulatedOptimizer(*, prior_bias: float = 0.0, noise: float = 0.0, seed: int = 0) -> dspy.LM:
    """Make the simulated optimizer model, to be passed as ``optimizer_lm``. Source: ours.

    Its answers are a pure function of the seed, the request and the number of the draw
    (`cuesmith.modules.sampling.draw`); outside of an `ask`, repeated requests count as draws 0, 1, 2 ...
    Nothing is cached: dspy's cache does not tell draws or seeds apart.

    Args:
        prior_bias: Share of the answers that ignore the evidence, in [0, 1].
        noise: Share of the other answers that are degraded, in [0, 1].
        seed: Seeds every choice.

    Returns:
        An LM named "cuesmith/simulated-optimizer". Its usage counts words as tokens.

    Raises:
        ValueError: If a share is outside [0, 1].
    """
    engine = SimulatedOptimizerEngine(prior_bias=prior_bias, noise=noise, seed=seed)
    return dspy.LM(
        "cuesmith/simulated-optimizer",
        engine=engine,
        async_engine=AsyncSimulatedOptimizerEngine(engine),
        cache=False,
    )


class SimulatedOptimizerEngine:
    """The engine of `SimulatedOptimizer`; thread-safe, stateless but for the count of repeated requests."""

    free = True
    """It runs in this process: its calls cost nothing, which a budget in dollars has to know."""

    def __init__(self, *, prior_bias: float = 0.0, noise: float = 0.0, seed: int = 0) -> None:
        """Set the knobs.

        Args:
            prior_bias: Share of the answers that ignore the evidence, in [0, 1].
            noise: Share of the other answers that are degraded, in [0, 1].
            seed: Seeds every choice.

        Raises:
            ValueError: If a share is outside [0, 1].
        """
        for name, share in (("prior_bias", prior_bias), ("noise", noise)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {share!r}")
        self.prior_bias, self.noise, self.seed = prior_bias, noise, seed
        self._lock = threading.Lock()
        self._repeats: Counter[str] = Counter()

    def answer(self, request: "str | Asked", draw: int) -> dict[str, FieldValue]:
        """Answer a request; a pure function of the knobs and the arguments.

        Args:
            request: The text of the request's last message as a dspy adapter writes it, or what it asks for.
            draw: The number of the draw, 0-based. Numbers that differ only below a multiple of 1024 choose distinct
                wordings (the first 64 of them, as long as there are enough); larger steps are fresh starts.

        Returns:
            A value for every output field that the request asks for.
        """
        return self._reply(_asked(request), draw)[0]

    def truth(self, request: "str | Asked", draw: int) -> Truth:
        """Say how the answer to a request comes about; arguments as in `answer`."""
        return self._reply(_asked(request), draw)[1]

    def complete(self, request: Request) -> Response:
        """Answer one request of the LM layer (dspy's engine protocol)."""
        asked_text = str(request.messages[-1].text or "") if request.messages else ""
        number = current_draw.get()
        if number is None:
            number = self._repeat(asked_text)
        asked = Asked.parse(asked_text)
        text = asked.render(self.answer(asked, number))
        before = " ".join([str(request.system or ""), *(str(m.text or "") for m in request.messages)])
        used, written = len(before.split()), len(text.split())
        usage = Usage(input_tokens=used, output_tokens=written, total_tokens=used + written)
        return Response(
            id=f"simulated-{_digest(self.seed, asked_text, number) & 0xFFFFFFFF:08x}",
            model=request.model,
            message=Message.assistant(text),
            finish_reason="stop",
            usage=usage,
        )

    def dump_state(self) -> dict[str, float | int]:
        """Return the knobs, so that a program holding this model can be saved."""
        return {"prior_bias": self.prior_bias, "noise": self.noise, "seed": self.seed}

    @classmethod
    def load_state(cls, state: Mapping[str, float | int]) -> "SimulatedOptimizerEngine":
        """Make the engine whose `dump_state` gave `state`."""
        return cls(prior_bias=state["prior_bias"], noise=state["noise"], seed=int(state["seed"]))

    def __deepcopy__(self, memo: dict[int, object]) -> "SimulatedOptimizerEngine":
        """Return itself: `module.deepcopy()` copies LMs, and a lock cannot be copied."""
        return self

    def _repeat(self, text: str) -> int:
        with self._lock:
            self._repeats[text] += 1
            return self._repeats[text] - 1

    def _reply(self, asked: "Asked", draw: int) -> tuple[dict[str, FieldValue], Truth]:
        author = _Author(self.seed, asked, draw)
        source = self._source(author)
        families = tuple(dict.fromkeys(family.name for family in author.families))
        if source == "evidence" and not families and asked.name != "VaryInstructions":
            source = "fallback"  # varying needs no family: the text itself is all the evidence there is
        values = _WRITERS[asked.name](author, source) if asked.name in _WRITERS else {}
        for name, kind in asked.outputs.items():
            values.setdefault(name, _plausible(kind, author))
        return {name: values[name] for name in asked.outputs} if asked.outputs else values, Truth(source, families)

    def _source(self, author: "_Author") -> Source:
        rng = author.rng("source", author.draw)
        if rng.random() < self.prior_bias:
            return "prior"
        return "noise" if rng.random() < self.noise else "evidence"


class AsyncSimulatedOptimizerEngine:
    """The asynchronous face of a `SimulatedOptimizerEngine`: answers at once, shares its state."""

    def __init__(self, engine: SimulatedOptimizerEngine) -> None:
        """Wrap `engine`."""
        self.engine = engine

    async def complete(self, request: Request) -> Response:
        """Answer one request of the LM layer (dspy's engine protocol)."""
        return self.engine.complete(request)

    def dump_state(self) -> dict[str, float | int]:
        """Return the knobs."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: Mapping[str, float | int]) -> "AsyncSimulatedOptimizerEngine":
        """Make the engine whose `dump_state` gave `state`."""
        return cls(SimulatedOptimizerEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, object]) -> "AsyncSimulatedOptimizerEngine":
        """Return itself, as the engine it wraps does."""
        return self


# --- reading a request -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _requests() -> dict[str, type[dspy.Signature]]:
    found = ((name, getattr(signatures, name)) for name in signatures.__all__)
    return {name: value for name, value in found if isinstance(value, type) and issubclass(value, dspy.Signature)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        name: The name of the signature in `cuesmith.signatures`; "" for a request that is not one of them.
        inputs: Its input fields by name, with their values.
        outputs: The output fields to answer, by name, with their type as dspy writes it ("list[str]").
        as_json: Whether the answer has to be a JSON object.
    """

    name: str
    inputs: Mapping[str, FieldValue]
    outputs: Mapping[str, str]
    as_json: bool = False

    @classmethod
    def of(cls, signature: type[dspy.Signature], **inputs: FieldValue) -> "Asked":
        """Ask for a signature's outputs, given its inputs."""
        outputs = {name: _type_name(field.annotation) for name, field in signature.output_fields.items()}
        inputs = {name: value.strip() if isinstance(value, str) else value for name, value in inputs.items()}
        return cls(_name_of(tuple(signature.input_fields), tuple(outputs)), inputs, outputs)

    @classmethod
    def parse(cls, text: str) -> "Asked":
        """Read a request as dspy's ChatAdapter or JSONAdapter writes it; any other text gives name "".

        Args:
            text: The text of the last message.
        """
        head, respond, tail = text.rpartition("\n\nRespond with ")
        if not respond:
            return cls("", {}, {})
        outputs = {
            match[1]: match[2] or "str"
            for match in re.finditer(
                r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`(?: \(must be formatted as a valid Python ([^)]*)\))?", tail
            )
            if match[1] != "completed"
        }
        texts = _sections(head)
        name = _name_of(tuple(texts), tuple(outputs))
        if not name:
            return cls("", dict(texts), outputs, tail.startswith("a JSON"))
        # A value may hold a line that looks like a field's header: only the signature's own fields count.
        fields = _requests()[name].input_fields
        texts = _sections(head, tuple(fields))
        inputs = {key: _value(texts.get(key, ""), _type_name(field.annotation)) for key, field in fields.items()}
        return cls(name, inputs, outputs, tail.startswith("a JSON"))

    @property
    def key(self) -> str:
        """The request's identity: the same whichever adapter wrote it."""
        return json.dumps([self.name, dict(self.inputs), sorted(self.outputs)], sort_keys=True, default=str)

    def text(self, name: str) -> str:
        """An input as one text."""
        value = self.inputs.get(name, "")
        return "\n".join(value) if isinstance(value, list) else str(value)

    def texts(self, name: str) -> list[str]:
        """An input as a list of texts."""
        value = self.inputs.get(name, [])
        return [str(item) for item in value] if isinstance(value, list) else str(value).splitlines()

    def render(self, values: Mapping[str, FieldValue]) -> str:
        """Write the values of the output fields in the form that the request demands."""
        if not self.outputs:
            return "\n".join(map(str, values.values())) or _PRIOR_ADVICE[0]
        if self.as_json:
            return json.dumps(dict(values), ensure_ascii=False)
        parts = [f"[[ ## {name} ## ]]\n{_as_text(value)}" for name, value in values.items()]
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _asked(request: str | Asked) -> Asked:
    return Asked.parse(request) if isinstance(request, str) else request


def _name_of(inputs: Sequence[str], outputs: Sequence[str]) -> str:
    for name, signature in _requests().items():
        # An adapter or ChainOfThought may ask for more than the signature does, such as `reasoning`.
        if set(signature.input_fields) <= set(inputs) and set(signature.output_fields) <= set(outputs):
            return name
    return ""


def _sections(text: str, names: tuple[str, ...] = ()) -> dict[str, str]:
    """The texts under "[[ ## name ## ]]" headers; with `names`, under these headers in this order only."""
    heads: list[tuple[str, int, int]] = []
    for match in re.finditer(r"^\[\[ ## (\w+) ## \]\][ \t]*\n?", text, re.MULTILINE):
        if not names or (len(heads) < len(names) and match[1] == names[len(heads)]):
            heads.append((match[1], match.start(), match.end()))
    ends = [*(start for _, start, _ in heads[1:]), len(text)]
    return {name: text[begin:end].strip() for (name, _, begin), end in zip(heads, ends, strict=False)}


def _type_name(annotation: object) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _value(text: str, kind: str) -> FieldValue:
    if kind == "list[str]":
        try:
            items = json.loads(text)
        except ValueError:
            return text.splitlines()
        return [str(item) for item in items] if isinstance(items, list) else [str(items)]
    if kind == "int":
        number = re.search(r"-?\d+", text)
        return int(number[0]) if number else 1
    return text


def _as_text(value: FieldValue) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    return text.replace("[[ ##", "[ [ ##")  # what was shown may not act as a header of the reply


def _plausible(kind: str, author: "_Author") -> FieldValue:
    """A well-formed value for a field of a request that this model does not know."""
    if kind.startswith("list"):
        return [author.pick("plausible", _PRIOR_ADVICE)]
    if kind.startswith("Literal"):
        options = re.findall(r"'([^']*)'", kind)
        return author.pick("plausible", options) if options else ""
    simple: dict[str, FieldValue] = {"int": 1, "float": 0.5, "bool": True}
    return simple[kind] if kind in simple else author.pick("plausible", _PRIOR_ADVICE)


# --- evidence ----------------------------------------------------------------------------------------------

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAME = {**{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}, "yes": "true", "no": "false"}
_THOUGHT = re.compile(r"reasoning|step \d+", re.IGNORECASE)
"""Entries that lead to an answer and are none."""
_FIELD = re.compile(r"^[ \t]*(?:[-*][ \t]+)?`?([A-Za-z_][\w ]{0,40}?)`?:(?:[ \t]+|$)", re.MULTILINE)


def _tokens(text: str) -> list[str]:
    """The words and numbers of a text, for comparing answers: case, punctuation and spelling aside."""
    words = re.findall(r"-?\w[\w'-]*", text.lower())
    return [_SAME.get(word, word) for word in words]


def _entries(text: str) -> list[tuple[str, str]]:
    """The "name: value" entries of a text; a value runs to the next entry."""
    heads = list(_FIELD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found = [(head[1].strip(), text[head.end() : end].strip()) for head, end in zip(heads, ends, strict=False)]
    lead = text[: heads[0].start()].strip() if heads else text.strip()
    return [("", lead), *found] if lead else found


def _questions(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Every text among the entries that may be a question."""
    values = [value for _, value in entries if value]
    lines = [line for value in values if "\n" in value for line in value.splitlines() if line.strip()]
    return list(dict.fromkeys([*values, *lines]))


def _solutions(family: Family, questions: Iterable[str]) -> list[tuple[str, Solution]]:
    solved = ((question, family.solve(question)) for question in questions)
    return [(question, solution) for question, solution in solved if solution is not None]


@dataclass(frozen=True, slots=True)
class _Task:
    """A family that explains the values of one output field."""

    field: str
    family: Family


@lru_cache(maxsize=4096)
def _explained(text: str) -> frozenset[tuple[str, str]]:
    """The (output field, family) pairs that one solved example agrees with; outputs come after inputs."""
    entries = [entry for entry in _entries(text) if not _THOUGHT.fullmatch(entry[0])]
    pairs: set[tuple[str, str]] = set()
    for place, family in itertools.product(range(len(entries)), FAMILIES.values()):
        for _, solution in _solutions(family, _questions(entries[place : place + 1])):
            answer = _tokens(solution.answer)
            pairs |= {(name, family.name) for name, value in entries[place + 1 :] if _tokens(value) == answer}
    return frozenset(pairs)


def _explain(examples: Sequence[str], steps: Sequence[str], rng: random.Random) -> list[_Task]:
    """The families that explain the examples: for each output field the one that explains most of them.

    Real data holds wrong labels, so half of the examples are enough. Several families can explain as many
    (objects and kinds of things, if there is one of each): then the steps decide, if there are any, else chance.
    """
    counts = Counter(pair for example in examples for pair in _explained(example))
    tasks: list[_Task] = []
    for output in dict.fromkeys(field for field, _ in sorted(counts)):
        ranked = {family: count for (field, family), count in counts.items() if field == output}
        most = max(ranked.values())
        if 2 * most < len(examples):
            continue
        tied = sorted(family for family, count in ranked.items() if count == most)
        # The last word of "not True" is its value too: an answer of a type says more than a word does.
        fit = {name: (_fit(FAMILIES[name], steps), FAMILIES[name].answer_type is not str) for name in tied}
        best = [name for name in tied if fit[name] == max(fit.values())]
        tasks.append(_Task(output, FAMILIES[rng.choice(best)]))
    return tasks


def _fit(family: Family, steps: Sequence[str]) -> int:
    """How many of the given steps are steps of the family."""
    return sum(_canonical(family, step) is not None for step in steps)


def _by_steps(text: str, steps: Sequence[str]) -> list[_Task]:
    """The family whose steps are given and that can solve the text; for an example with a wrong label."""
    questions = _questions(_entries(text))
    fits = {name: _fit(family, steps) for name, family in FAMILIES.items() if _solutions(family, questions)}
    best = max(fits, key=lambda name: fits[name], default="")
    return [_Task("", FAMILIES[best])] if fits.get(best) else []


def _norm(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))


@lru_cache(maxsize=4096)
def _canonical(family: Family, step: str) -> int | None:
    """Which of the family's steps a step says in other words; None if none."""
    given = _norm(step)
    for k, own in enumerate(family.steps):
        if any(_norm(variant) == given for variant in _step_variants(own)):
            return k
    for k, own in enumerate(family.steps):
        if f" {_norm(own)} " in f" {given} ":
            return k
    words = set(given.split()) - _STOP
    overlaps = [_overlap(words, set(_norm(own).split()) - _STOP) for own in family.steps]
    best = max(range(len(overlaps)), key=lambda k: overlaps[k])
    return best if overlaps[best] >= 0.6 else None


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


# --- the author of one answer ------------------------------------------------------------------------------


def _digest(*parts: object) -> int:
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class _Author:
    """The seeded choices behind one answer: seed, request and draw determine everything."""

    def __init__(self, seed: int, asked: Asked, draw: int) -> None:
        self.seed, self.asked, self.draw, self.key = seed, asked, draw, asked.key
        self.tasks = _recognised(asked, self.rng("tie", draw))

    @property
    def families(self) -> list[Family]:
        return [task.family for task in self.tasks]

    def rng(self, *label: object) -> random.Random:
        return random.Random(_digest(self.seed, self.key, *label))

    def pick(self, label: str, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Choose an option, the likelier the heavier it is, so that the draws of one `ask` choose different ones.

        The options are put into a weighted random order, the same for all draws of a block, and the draws of the
        block take one after the other. A draw whose place in its block is too large for that is on its own.
        """
        block, place = divmod(self.draw, _BLOCK)
        shared = place < min(_DISTINCT, len(options))
        rng = self.rng("pick", label, block) if shared else self.rng("pick alone", label, self.draw)
        order = [rng.random() ** (1.0 / weight) for weight in weights or [1.0] * len(options)]
        ranked = sorted(range(len(options)), key=lambda k: -order[k])
        return options[ranked[place if shared else 0]]


def _recognised(asked: Asked, rng: random.Random) -> list[_Task]:
    """The task that a request is about, from what it shows."""
    steps = asked.texts("steps")
    match asked.name:
        case "WriteInstructions" | "WriteSteps":
            return _explain(asked.texts("examples"), (), rng)
        case "VaryInstructions":
            return _by_phrase(asked.text("instruction"))
        case "WorkExample" | "LocateDeviation":
            gold = asked.text("outputs" if asked.name == "WorkExample" else "expected")
            gold = gold if _FIELD.match(gold) else f"expected: {gold}"
            inputs = asked.text("inputs")
            return _explain([f"{inputs}\n{gold}"], steps, rng) or _by_steps(inputs, steps)
        case "ReviseStep":
            # What was answered is no evidence of what is asked: a wrong answer fits another family.
            failures = [re.split(r"^response:", text, flags=re.MULTILINE)[0] for text in asked.texts("failures")]
            tasks = _explain(failures, steps, rng) or _by_steps("\n".join(failures), steps)
            return tasks[:1]
        case _:
            return []


# --- wordings ----------------------------------------------------------------------------------------------

_STOP = frozenset(
    re.findall(r"\w+", "a an the of in to with and or for each every it its their them this that as by is are")
)

_PHRASINGS: dict[str, tuple[str, ...]] = {
    "first": ("Say which word the list begins with.", "From the words given, pick the one in front."),
    "last": ("Say which word the list ends with.", "From the words given, pick the one at the very end."),
    "reverse": ("Turn the list of words around.", "Repeat the words starting from the last and ending with the first."),
    "count": ("Determine how many words there are.", "Say how many words were given."),
    "sum": ("Work out what all the numbers add up to.", "Add everything up and report the total."),
    "max": ("Pick out the number that is greater than all others.", "Which of the numbers is the highest?"),
    "min": ("Pick out the number that is smaller than all others.", "Which of the numbers is the lowest?"),
    "objects": ("Work out how many objects there are altogether, counting every quantity.",
                "Say how many single objects are owned in all."),
    "items": ("Determine how many different kinds of things there are, whatever their quantities.",
              "Say how many separate entries the list of things has."),
    "animals": ("Work out how many animals there are altogether and leave everything else out.",
                "Of all the things, add up only those that are animals."),
    "fruits": ("Work out how many fruits there are altogether and leave everything else out.",
               "Of all the things, add up only those that are fruits."),
    "navigate": ("Tell whether following the moves brings you back to where you began: True or False.",
                 "Follow the moves and say True if you are back at the start, else False."),
    "position": ("Follow the moves from 0 0 facing north and report the coordinates where you stop.",
                 "Work out at which coordinates the moves end."),
    "bool": ("Work out whether the logical expression is True or False.",
             "Simplify the expression to a single truth value."),
    "trues": ("Say how many of the terms come out true.", "Work out how many terms have the value True."),
}  # fmt: skip

_FRAMES = (
    "{}", "{} Give only the answer.", "Read the input carefully. {}", "Task: {}", "Here is what to do. {}",
    "For the given input: {}", "{} Nothing else is needed.", "You are given an input. {}",
)  # fmt: skip
_FRAME_WEIGHTS = (8.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)

_STEP_FRAMES = ("{}", "Carefully {low}", "{} Leave nothing out.", "{} Do this exactly.", "Now {low}")
_LAST_FRAMES = ("{}", "{} Write nothing else.", "Finally, {low}", "{} Give it alone, without other words.")
_VERBS = {"Give": ("State", "Write"), "Copy": ("Repeat", "Write"), "Write": ("List",), "Number": ("Enumerate",)}

_PRIOR_ADVICE = (
    "Think carefully and pay attention to detail.",
    "Read the input carefully and answer as accurately as possible.",
    "You are an expert. Provide a clear, correct and concise answer.",
    "Let's think step by step and make sure that the answer is right.",
    "Analyze the input thoroughly before you respond, and avoid mistakes.",
    "Make sure you understand what is being asked, then give your best answer.",
    "Take a deep breath, work on the problem and double-check your result.",
    "Be precise, consistent and complete in your response.",
    "Consider all relevant information and follow the required format.",
    "Answer the question faithfully, paying close attention to edge cases.",
)

_PRIOR_STEPS = (
    "Read the input carefully.", "Think about what is being asked.", "Identify the key information.",
    "Reason step by step.", "Double-check your reasoning.", "Avoid common mistakes.",
)  # fmt: skip
_PRIOR_LAST = ("Give the final answer.", "State your answer clearly.", "Provide the correct answer.")

_PRIOR_REASONS = (
    "The reasoning was not careful enough at this step.",
    "The model did not pay enough attention to detail here.",
    "The step was carried out too hastily.",
    "The model probably misunderstood what was asked.",
    "Important information may have been overlooked at this point.",
)

_VAGUE_STEPS = ("Look at the input.", "Think about it.", "Work it out.", "Consider everything that matters.")

_VAGUE_BY_LOOK = {
    "words": "Answer the question about the words.", "numbers": "Answer the question about the numbers.",
    "things": "Answer the question about the things.", "walk": "Answer the question about the walk.",
    "logic": "Answer the question about the expression.",
}  # fmt: skip

_SYNONYMS = (
    ("carefully", "with care"), ("Give", "Provide"), ("Provide", "Give"), ("answer", "reply"), ("produce", "give"),
    ("must", "have to"), ("Determine", "Find out"), ("following", "subsequent"), ("Return", "Output"),
    ("only", "just"), ("make sure", "ensure"), ("Think", "Reason"),
)  # fmt: skip
_REWORDINGS = (
    "Please do the following. {}", "{} Follow this exactly.", "Your task is this: {}", "{} Please keep to this.",
    "Here is your task. {}", "{} That is the task.", "What you have to do: {}", "As instructed: {}",
)  # fmt: skip


def _lower(text: str) -> str:
    """The text with a small first letter, to follow an opening; capitalised names stay."""
    return text[:1].lower() + text[1:]


def _framed(frame: str, text: str) -> str:
    return frame.replace("{low}", _lower(text)).replace("{}", text)


@lru_cache(maxsize=64)
def _instructions(family: Family) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Every wording of a family's task that this model has, with its weight."""
    cores = [(text, 3.0) for text in family.instructions] + [(text, 2.0) for text in _PHRASINGS.get(family.name, ())]
    pairs = itertools.product(zip(_FRAMES, _FRAME_WEIGHTS, strict=True), cores)
    weighted = {_framed(frame, text): much * weight for (frame, much), (text, weight) in pairs}
    return tuple(weighted), tuple(weighted.values())


@lru_cache(maxsize=1)
def _phrases() -> dict[str, str]:
    """The family of every wording."""
    return {_norm(text): name for name, family in FAMILIES.items() for text in _instructions(family)[0]}


def _by_phrase(instruction: str) -> list[_Task]:
    parsed = parse_steps(instruction)
    name = _phrases().get(_norm(parsed[0] if parsed else instruction))
    return [_Task("", FAMILIES[name])] if name else []


@lru_cache(maxsize=256)
def _step_variants(step: str, last: bool = False) -> tuple[str, ...]:
    """Light rewordings of a step, the step itself first."""
    verb, _, rest = step.partition(" ")
    swapped = [f"{other} {rest}" for other in _VERBS.get(verb, ())]
    frames = _LAST_FRAMES if last else _STEP_FRAMES
    return tuple(dict.fromkeys([step, *swapped, *(_framed(frame, step) for frame in frames)]))


def _joined(tasks: Sequence[_Task], texts: Sequence[str]) -> str:
    """One text for all output fields; their names are needed only if there are several."""
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"For `{task.field}`: {text}" for task, text in zip(tasks, texts, strict=True))


def _siblings(family: Family) -> list[Family]:
    return [other for other in FAMILIES.values() if other.look == family.look and other is not family]


# --- one writer for each request ---------------------------------------------------------------------------

_Values = dict[str, FieldValue]


def _write_instructions(author: _Author, source: Source) -> _Values:
    if source == "prior":
        return {"instruction": _prior_instruction(author)}
    if source == "noise":
        return {"instruction": _degraded_instruction(author)}
    if not author.tasks:
        return {"instruction": _fallback_instruction(author, author.asked.texts("examples"))}
    return {"instruction": _joined(author.tasks, [_wording(author, task.family) for task in author.tasks])}


def _wording(author: _Author, family: Family) -> str:
    return author.pick(f"instruction {family.name}", *_instructions(family))


def _prior_instruction(author: _Author) -> str:
    pairs = [f"{one} {other}" for one, other in itertools.permutations(_PRIOR_ADVICE, 2)]
    options = [*_PRIOR_ADVICE, *pairs]
    return author.pick("prior", options, [20.0] * len(_PRIOR_ADVICE) + [1.0] * len(pairs))


def _degraded_instruction(author: _Author) -> str:
    """A vague instruction, or that of a task that looks the same."""
    if not author.tasks:
        return _prior_instruction(author)
    family = author.tasks[0].family
    wrong = [text for other in _siblings(family) for text in other.instructions]
    vague = [_framed(frame, _VAGUE_BY_LOOK.get(family.look, "Answer the question.")) for frame in _FRAMES]
    return author.pick("degraded", [*wrong, *vague])


def _fallback_instruction(author: _Author, examples: Sequence[str]) -> str:
    """Without a family: say honestly no more than what the surface of the examples shows."""
    words, form = _surface(examples)
    about = f"The inputs are about things like {', '.join(words)}. " if words else ""
    ways = (
        f"{about}Work out what is asked and reply with {form}.",
        f"{about}Find the rule that the inputs follow and give {form} as the answer.",
        f"{about}Look closely at every part of the input, then answer with {form}.",
        f"Answer with {form}. {about}Use everything that the input says.",
    )
    return author.pick("fallback", [_framed(frame, way).strip() for frame in _FRAMES for way in ways])


def _surface(examples: Sequence[str]) -> tuple[list[str], str]:
    """The most frequent content words of the examples, and the form of their answers."""
    words = Counter(word for text in examples for _, value in _entries(text) for word in set(_tokens(value)))
    common = sorted((word for word in words if word.isalpha() and len(word) > 3), key=lambda w: (-words[w], w))
    answers = [entries[-1][1] for text in examples if (entries := _entries(text))]
    if answers and all(re.fullmatch(r"-?\d+(?:\.\d+)?", answer) for answer in answers):
        return common[:3], "a single number"
    if answers and all(answer.lower() in ("true", "false", "yes", "no") for answer in answers):
        return common[:3], " or ".join(sorted(set(answers)))
    short = answers and all(len(answer.split()) <= 3 for answer in answers)
    return common[:3], "a few words" if short else "a short text"


def _vary_instructions(author: _Author, source: Source) -> _Values:
    instruction = author.asked.text("instruction").strip()
    parsed = parse_steps(instruction)
    text = parsed[0] if parsed else instruction
    if source == "prior":
        varied = _prior_instruction(author)
    elif source == "noise":
        varied = _degraded_instruction(author)
    else:
        varied = author.pick("vary", *_variations(author.families, text))
    # Steps and a demonstration stay word for word: only the sentence before them is said in other words.
    return {"variation": varied + instruction.removeprefix(text) if parsed and text else varied}


def _variations(families: Sequence[Family], text: str) -> tuple[Sequence[str], Sequence[float]]:
    """Other wordings of an instruction that mean the same, with their weights."""
    if families:
        wordings = zip(*_instructions(families[0]), strict=True)
        kept = {wording: weight for wording, weight in wordings if _norm(wording) != _norm(text)}
        return list(kept), list(kept.values())
    options: dict[str, float] = {}
    for core, others in _replaceable(text):
        options |= {text.replace(core, other): 3.0 for other in others}
    for old, new in _SYNONYMS:
        # Quoted words are names of fields and values: those must stay.
        if swapped := re.sub(rf"(?<![`\"'\w]){old}(?![`\"'\w])", new, text):
            options |= {_framed(frame, swapped): 1.0 for frame in ("{}", *_REWORDINGS)}
    options.pop(text, None)
    return list(options) or _PRIOR_ADVICE, list(options.values()) or [1.0] * len(_PRIOR_ADVICE)


def _replaceable(text: str) -> Iterable[tuple[str, list[str]]]:
    """Parts of a longer instruction that say a family's task, with other wordings of it."""
    for family in FAMILIES.values():
        cores = (*family.instructions, *_PHRASINGS.get(family.name, ()))
        for core in cores:
            if core in text:
                yield core, [other for other in cores if other != core]


def _write_steps(author: _Author, source: Source) -> _Values:
    if source == "prior" or (source == "noise" and not author.tasks):
        inner = author.pick("prior steps", list(itertools.permutations(_PRIOR_STEPS, 3)))
        return {"task": _prior_instruction(author), "steps": [*inner, author.pick("prior last", _PRIOR_LAST)]}
    if not author.tasks:
        return _fallback_steps(author)
    steps = [step for family in author.families for step in _own_steps(author, family)][:_MAX_STEPS]
    if source == "noise":
        steps = _degraded_steps(author, steps)
    task = _joined(author.tasks, [_wording(author, family) for family in author.families])
    return {"task": task, "steps": steps}


def _own_steps(author: _Author, family: Family) -> list[str]:
    """The family's steps, in three of ten draws with one of them reworded."""
    steps = list(family.steps)
    rng = author.rng("reword", author.draw)
    if rng.random() < 0.3:
        k = rng.randrange(len(steps))
        steps[k] = rng.choice(_step_variants(steps[k], k == len(steps) - 1))
    return steps


def _degraded_steps(author: _Author, steps: list[str]) -> list[str]:
    """Drop a step or make one vague; never the last, if there is another."""
    rng = author.rng("degrade", author.draw)
    k = rng.randrange(max(1, len(steps) - 1))
    vague = rng.choice(_VAGUE_STEPS)
    dropped = [*steps[:k], *steps[k + 1 :]]
    return dropped if dropped and rng.random() < 0.5 else [*steps[:k], vague, *steps[k + 1 :]]


def _fallback_steps(author: _Author) -> _Values:
    examples = author.asked.texts("examples")
    words, form = _surface(examples)
    about = f" such as {', '.join(words)}" if words else ""
    first = author.pick("fallback steps", (
        f"Write down every part of the input that matters{about}.", f"List what the input mentions{about}.",
        f"Copy the important parts of the input{about}.", f"Note each thing the input says{about}.",
    ))  # fmt: skip
    steps = [first, "Write what follows from each of these, one at a time.", f"Give the final answer as {form}."]
    return {"task": _fallback_instruction(author, examples), "steps": steps}


@dataclass(frozen=True, slots=True)
class _Worked:
    """A step's correct work, and whether it is the last one, which gives the answer."""

    text: str
    last: bool


def _worked(author: _Author, steps: Sequence[str]) -> list[_Worked | None]:
    """The correct work of each of the given steps; None for a step that no recognised family has."""
    questions = _questions(_entries(author.asked.text("inputs")))
    solved = [(family, _solutions(family, questions)) for family in author.families]
    work: list[_Worked | None] = []
    for step in steps:
        places = ((solutions[0][1], _canonical(family, step)) for family, solutions in solved if solutions)
        found = [_Worked(solution.work[k], k == len(solution.work) - 1) for solution, k in places if k is not None]
        work.append(found[0] if found else None)
    return work


def _work_example(author: _Author, source: Source) -> _Values:
    steps = author.asked.texts("steps")
    gold = "; ".join(value for _, value in _entries(author.asked.text("outputs")) if value)
    if not steps:
        return {"work": gold}
    worked = _worked(author, steps)
    if source == "prior":
        lines = [author.pick("prior work", ("Done carefully.", "I did this with care.", "OK.")) for _ in steps]
    else:
        lines = [_line(author, work) for work in worked]
    lines[-1] = _ending(worked[-1] if source != "prior" else None, gold)
    labelled = [f"Step {k}: {line}" for k, line in enumerate(lines, 1)]
    return {"work": "\n".join(_degraded_work(author, labelled) if source == "noise" else labelled)}


def _line(author: _Author, work: _Worked | None) -> str:
    """The work of a step; of one that asks for nothing checkable, that it was done."""
    return work.text if work else author.pick("unknown step", ("Done.", "Done, nothing to write.", "OK."))


def _ending(work: _Worked | None, gold: str) -> str:
    """The last line, ending in the right answer as it was given."""
    if work is None or work.last or _tokens(work.text) == _tokens(gold):
        return gold
    return f"{work.text}, so {gold}"


def _degraded_work(author: _Author, lines: list[str]) -> list[str]:
    """Leave a line out, or garble one; never the last, if there is another."""
    rng = author.rng("degrade", author.draw)
    k = rng.randrange(max(1, len(lines) - 1))
    if len(lines) > 1 and rng.random() < 0.5:
        return [*lines[:k], *lines[k + 1 :]]
    label, _, text = lines[k].partition(": ")
    words = text.split()
    garbled = words[: len(words) // 2] or ["unclear"]
    return [*lines[:k], f"{label}: {' '.join(garbled)}", *lines[k + 1 :]]


# --- deviations --------------------------------------------------------------------------------------------

_LABEL = re.compile(r"(?:^|(?<=\s))\**step\s*(\d+)\**\s*[:.)]\**[ \t]*", re.IGNORECASE)
_HEADER = re.compile(r"\[\[ ## \w+ ## \]\]|\n[ \t]*`?\w+`?:(?=\s)")


@dataclass(frozen=True, slots=True)
class _Found:
    """A deviation: the 0-based step, its kind, what the step should have given and what was written."""

    place: int
    kind: Deviation
    wanted: str
    written: str


def _segments(response: str) -> dict[int, str]:
    """The written work by step number; of a label that occurs twice, the first."""
    heads = list(_LABEL.finditer(response))
    ends = [head.start() for head in heads[1:]] + [len(response)]
    found: dict[int, str] = {}
    for head, end in zip(heads, ends, strict=False):
        text = response[head.end() : end]
        cut = _HEADER.search(text)  # the last step's work ends where the output fields begin
        found.setdefault(int(head[1]), (text[: cut.start()] if cut else text).strip())
    return found


def _agrees(wanted: str, written: str) -> bool:
    """Whether written work is the wanted work, perhaps led in by other words."""
    want = _tokens(wanted)
    # The whole text, or its first line: behind the last step the response may go on.
    texts = (_tokens(written), _tokens(written.partition("\n")[0]))
    return any(have == want or (len(want) > 0 and have[-len(want) :] == want) for have in texts)


def _gives_expected(expected: str, response: str) -> bool | None:
    """Whether the response's output fields hold the expected values; None if one cannot be found."""
    for name, value in _entries(expected):
        pattern = rf"(?:\[\[ ## {re.escape(name)} ## \]\]|^[ \t]*[\"'`]?{re.escape(name)}[\"'`]?:)[ \t]*\n?(.*)"
        shown = re.findall(pattern, response, re.MULTILINE | re.IGNORECASE) if name else []
        if not shown:
            return None
        if _tokens(str(shown[-1])) != _tokens(value):
            return False
    return True


def _deviation(author: _Author, steps: Sequence[str]) -> _Found:
    """The first deviation from the steps, in their order; without any, the form of the answer."""
    response = author.asked.text("response")
    segments, worked = _segments(response), _worked(author, steps)
    gaps = dict(reversed(_gaps(author.families, steps)))  # the first of several at one place
    for k, work in enumerate(worked):
        if k + 1 not in segments:
            return _Found(k, "skipped", work.text if work else "", "")
        written = segments[k + 1]
        if work is not None and not _agrees(work.text, written):
            # A step cannot be followed if the one that it builds on is not in the list.
            kind: Deviation = "insufficient" if k in gaps else "misapplied"
            return _Found(k, kind, gaps.get(k, work.text), written)
        if work is None and k in gaps:
            return _Found(k, "insufficient", gaps[k], written)
    last = len(steps) - 1
    if last + 1 in gaps:
        return _Found(last, "insufficient", gaps[last + 1], segments[last + 1])
    wanted = author.asked.text("expected")
    if _gives_expected(wanted, response) is False:
        kind = "misapplied" if all(worked) else "insufficient"
        return _Found(last if all(worked) else _unexplained(worked), kind, wanted, segments[last + 1])
    return _Found(last, "format", wanted, segments[last + 1])


def _unexplained(worked: Sequence[_Worked | None]) -> int:
    return next(k for k, work in enumerate(worked) if work is None)


def _gaps(families: Sequence[Family], steps: Sequence[str]) -> list[tuple[int, str]]:
    """The steps of the recognised families that the list lacks, each with the place where it belongs."""
    gaps: list[tuple[int, str]] = []
    for family in families:
        matched = [_canonical(family, step) for step in steps]
        for k, own in enumerate(family.steps):
            if k not in matched:
                # Behind the last given step that comes before it in the family's order.
                before = [place + 1 for place, at in enumerate(matched) if at is not None and at < k]
                gaps.append((max(before, default=0), own))
    return gaps


def _locate_deviation(author: _Author, source: Source) -> _Values:
    steps = author.asked.texts("steps")
    if not steps:
        return {"step": 1, "kind": "insufficient", "reason": "There are no steps to follow."}
    rng = author.rng("guess", author.draw)
    if source == "prior":
        guess = rng.choices(_KINDS, weights=(1, 6, 2, 1))[0]
        return {"step": rng.randint(1, len(steps)), "kind": guess, "reason": author.pick("why", _PRIOR_REASONS)}
    found = _deviation(author, steps)
    if source == "noise":
        wrong = [k for k in range(len(steps)) if k != found.place]
        kinds = [kind for kind in _KINDS if kind != found.kind]
        place, kind = (rng.choice(wrong), found.kind) if wrong else (found.place, rng.choice(kinds))
        return {"step": place + 1, "kind": kind, "reason": f'The work of "{steps[place]}" does not look right.'}
    return {"step": found.place + 1, "kind": found.kind, "reason": _reason(author, steps, found)}


def _reason(author: _Author, steps: Sequence[str], found: _Found) -> str:
    number = found.place + 1
    wanted, written = " ".join(found.wanted.split()), " ".join(found.written.split())
    ways: dict[Deviation, tuple[str, ...]] = {
        "skipped": (
            f'There is no work for step {number}, "{steps[found.place]}"',
            f"The response leaves step {number} out",
        ),
        "misapplied": (
            f'Step {number} should give "{wanted}", but the response has "{written}"',
            f'The response writes "{written}" for step {number} instead of "{wanted}"',
        ),
        "insufficient": (
            f'Step {number}, "{steps[found.place]}", is not enough; something like "{wanted}" is needed',
            f'What is missing at step {number} is "{wanted}"; the response could only write "{written}"',
        ),
        "format": (
            f'The content is right, but the answer is not given in the form "{wanted}"',
            f'Step {number} has to end in exactly "{wanted}"',
        ),
    }
    return author.pick("reason", ways[found.kind]) + "."


# --- revisions ---------------------------------------------------------------------------------------------


def _revise_step(author: _Author, source: Source) -> _Values:
    steps = author.asked.texts("steps")
    number = author.asked.inputs.get("step", 1)
    place = min(max((number if isinstance(number, int) else 1) - 1, 0), max(len(steps) - 1, 0))
    kind = author.asked.text("kind")
    if source == "prior" or not steps:
        revised = _elsewhere(author, steps, place)
    elif source == "noise":
        revised = [*steps[:place], author.pick("vague", _VAGUE_STEPS), *steps[place + 1 :]]
    elif not author.tasks:
        revised = _fallback_revision(author, steps, place)
    else:
        revised = _repaired(author, steps, place, kind)
    return {"revised_steps": list(revised[: _MAX_STEPS - 1]) + list(revised[_MAX_STEPS - 1 :][-1:])}


def _elsewhere(author: _Author, steps: list[str], place: int) -> list[str]:
    """A revision that sounds like one and leaves the step in question as it is."""
    other = [k for k in range(len(steps)) if k != place]
    if not other:
        return [author.pick("prior revision", _PRIOR_STEPS), *(steps or [_PRIOR_LAST[0]])]
    options = [
        [*steps[:k], text, *steps[k + 1 :]]
        for k in other
        for text in (f"{steps[k]} Be careful.", f"Carefully {_lower(steps[k])}", f"{steps[k]} Pay attention to detail.")
    ]
    return author.pick("prior revision", options)


def _repaired(author: _Author, steps: list[str], place: int, kind: str) -> list[str]:
    """Restore what the list lacks around the step, else make the step itself clearer."""
    family = author.tasks[0].family
    if kind == "format":
        form = [
            text for frame in _LAST_FRAMES[1:] if _norm(text := _framed(frame, family.steps[-1])) != _norm(steps[-1])
        ]
        return [*steps[:-1], author.pick("format", form)]
    gaps = _gaps([family], steps)
    near = [gap for gap in gaps if gap[0] in (place, place + 1)] or gaps[:1]
    if near:
        return _restored(family, steps, near)
    k = _canonical(family, steps[place])
    if k is None:  # nothing is missing, so a step that the family does not have only distracts
        return [*steps[:place], *steps[place + 1 :]] if len(steps) > 1 else list(family.steps)
    texts = _clearer(family, steps[place], last=k == len(family.steps) - 1)
    return [*steps[:place], author.pick("clearer", texts), *steps[place + 1 :]]


def _restored(family: Family, steps: list[str], gaps: Sequence[tuple[int, str]]) -> list[str]:
    """Put missing steps where they belong, in place of a step there that the family does not have."""
    revised = list(steps)
    for at in sorted({place for place, _ in gaps}, reverse=True):
        texts = [text for place, text in gaps if place == at]
        foreign = at < len(steps) and _canonical(family, steps[at]) is None
        revised[at : at + foreign] = texts
    return revised


def _clearer(family: Family, step: str, *, last: bool) -> list[str]:
    """Wordings of a step that differ from the present one; the family's own wording weighs most by coming first."""
    k = _canonical(family, step)
    own = family.steps[-1 if k is None or last else k]
    if _norm(own) != _norm(step):
        return [own]
    return [text for text in _step_variants(own, last) if _norm(text) != _norm(step)]


def _fallback_revision(author: _Author, steps: list[str], place: int) -> list[str]:
    words, _ = _surface(author.asked.texts("failures"))
    about = f" about {', '.join(words)}" if words else ""
    before = author.pick("fallback revision", (
        f"Write out what the input says{about}.", f"List every detail{about} that the next step needs.",
        f"Note the parts of the input{about}, one by one.",
    ))  # fmt: skip
    return [*steps[:place], before, *steps[place:]]


_WRITERS: dict[str, Callable[[_Author, Source], _Values]] = {
    "WriteInstructions": _write_instructions,
    "VaryInstructions": _vary_instructions,
    "WriteSteps": _write_steps,
    "WorkExample": _work_example,
    "LocateDeviation": _locate_deviation,
    "ReviseStep": _revise_step,
}
