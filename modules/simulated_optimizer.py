"""A simulated optimizer model: answers every request of `cuesmith.signatures` without a network or weights.

It stands in for the large model that writes prompts. It reads a request as a model would get it, works out from
the shown examples, steps and responses which task family of `cuesmith.modules.embedded.families` they come from,
and writes what a good optimizer would write. It knows the families, not the items of any test. Where a request
hands on what was concluded before (a reason, a reflection), it acts on those words and not on the evidence behind
them, so that what a wrong critique costs can be measured.

A request that it does not know, such as one of dspy's own optimizers, gets a well-formed answer that says nothing.
(`benchmarks/nano/` teaches it those.)

It is an instrument, not a language model. Two seeded knobs make it worse in known ways, and `truth` says for
every answer which way it went, so that diagnostics can be calibrated against it:

- ``prior_bias``: the share of answers that ignore the evidence and say what optimizers like to say anyway:
  "pay attention to detail", steps without content, a guessed deviation, a revision of another step, a critique or
  an edit that is only advice, small changes to the best instruction so far, "yes" to every rule and the first of all
  conditions.
- ``noise``: the share of the remaining answers that start from the evidence and get it wrong: a vague or a
  sibling's instruction, a step dropped, a line of work garbled, the wrong step blamed, a sibling's task missed, a
  rule judged the other way round.

Results obtained with it illustrate the machinery and are no evidence about large models.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from cuesmith.modules.sampling import draw as current_draw
from cuesmith.modules.simulated.author import Author, Source, Values, digest
from cuesmith.modules.simulated.critique import (
    criticize_instruction,
    edit_instruction,
    improve_instruction,
    merge_instructions,
    propose_instruction,
    reflect_on_failures,
    reflect_on_successes,
    rewrite_instruction,
    summarize_reasons,
)
from cuesmith.modules.simulated.deviations import locate_deviation, revise_step
from cuesmith.modules.simulated.grading import check_rule, identify_condition
from cuesmith.modules.simulated.instruction_writing import summarize_data, vary_instructions, write_instructions
from cuesmith.modules.simulated.request import Asked, FieldValue
from cuesmith.modules.simulated.step_writing import work_example, write_steps
from cuesmith.modules.simulated.wordings import PRIOR_ADVICE

__all__ = [
    "Asked",
    "AsyncSimulatedOptimizerEngine",
    "FieldValue",
    "SimulatedOptimizer",
    "SimulatedOptimizerEngine",
    "Truth",
]


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known about one answer, for calibrating diagnostics.

    Attributes:
        source: "evidence" if the answer follows from what the request shows; "prior" if it ignores it; "noise"
            if it was degraded on purpose; "fallback" if no family explains what the request shows. An edit follows
            from its reason, a rewrite from its reflection, a summary from its reasons: with any of these to act on
            it is "evidence", also where they are only advice and name no family.
        families: The families that were recognised in the request, whether the answer uses them or not; for an
            edit, a rewrite and a summary, in the words that they act on.
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

    def answer(self, request: str | Asked, draw: int) -> dict[str, FieldValue]:
        """Answer a request; a pure function of the knobs and the arguments.

        Args:
            request: The text of the request's last message as a dspy adapter writes it, or what it asks for.
            draw: The number of the draw, 0-based. Numbers that differ only below a multiple of 1024 choose distinct
                wordings (the first 64 of them, as long as there are enough); larger steps are fresh starts.

        Returns:
            A value for every output field that the request asks for.
        """
        author = Author(self.seed, _asked(request), draw)
        asked, source = author.asked, self._source(author)
        values = WRITERS[asked.name](author, source) if asked.name in WRITERS else {}
        if "analysis" in asked.outputs:
            values.setdefault("analysis", "I compared what is shown with what should have come out.")
        for name, kind in asked.outputs.items():
            values.setdefault(name, _plausible(kind, author))
        return {name: values[name] for name in asked.outputs} if asked.outputs else values

    def truth(self, request: str | Asked, draw: int) -> Truth:
        """Say how the answer to a request comes about; arguments as in `answer`."""
        author = Author(self.seed, _asked(request), draw)
        return Truth(self._source(author), tuple(dict.fromkeys(family.name for family in author.families)))

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
            id=f"simulated-{digest(self.seed, asked_text, number) & 0xFFFFFFFF:08x}",
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

    def _source(self, author: Author) -> Source:
        rng = author.rng("source", author.draw)
        if rng.random() < self.prior_bias:
            return "prior"
        if rng.random() < self.noise:
            return "noise"
        return "evidence" if author.grounded else "fallback"


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


def _asked(request: str | Asked) -> Asked:
    return Asked.parse(request) if isinstance(request, str) else request


def _plausible(kind: str, author: Author) -> FieldValue:
    """A well-formed value for a field of a request that this model does not know."""
    if kind == "list[int]":
        return [1]
    if kind.startswith("list"):
        return [author.pick("plausible", PRIOR_ADVICE)]
    if kind.startswith("dict"):
        return {}
    if kind.startswith("Literal"):
        options = re.findall(r"'([^']*)'", kind)
        return author.pick("plausible", options) if options else ""
    simple: dict[str, FieldValue] = {"int": 1, "float": 0.5, "bool": True}
    return simple[kind] if kind in simple else author.pick("plausible", PRIOR_ADVICE)


WRITERS: dict[str, Callable[[Author, Source], Values]] = {
    "WriteInstructions": write_instructions,
    "SummarizeData": summarize_data,
    "VaryInstructions": vary_instructions,
    "WriteSteps": write_steps,
    "WorkExample": work_example,
    "LocateDeviation": locate_deviation,
    "ReviseStep": revise_step,
    "CriticizeInstruction": criticize_instruction,
    "EditInstruction": edit_instruction,
    "ImproveInstruction": improve_instruction,
    "MergeInstructions": merge_instructions,
    "SummarizeReasons": summarize_reasons,
    "ReflectOnFailures": reflect_on_failures,
    "ReflectOnSuccesses": reflect_on_successes,
    "RewriteInstruction": rewrite_instruction,
    "ProposeInstruction": propose_instruction,
    "IdentifyCondition": identify_condition,
    "CheckRule": check_rule,
}
"""What answers a request, by its name."""
