"""Answering dspy's own requests to an optimizer model, by the writers that answer those of `cuesmith.signatures`.

Every one is answered as if something of `cuesmith.signatures` had been asked about what it shows: MIPROv2's as
`WriteInstructions`, GEPA's and SIMBA's as `CriticizeInstruction` and then `EditInstruction` by what the critique says,
COPRO's, where an instruction names a task, as `RewriteInstruction`. So knobs and cleverness are the same. Source: ours.
"""

import copy
import itertools
from collections.abc import Callable, Sequence

from cuesmith.modules.simulated.author import RECOGNISERS, Author, Source, Values
from cuesmith.modules.simulated.critique import (
    criticize_instruction,
    edit_instruction,
    reflect_on_successes,
    rewrite_instruction,
)
from cuesmith.modules.simulated.instruction_writing import prior_options, variations_of, write_instructions
from cuesmith.modules.simulated.request import FORMS, Asked, FieldValue
from cuesmith.modules.simulated.task_inference import InferredTask
from cuesmith.modules.simulated.wordings import framed, norm
from cuesmith.modules.simulated_optimizer import WRITERS
from nano.dspy_requests import REQUESTS, Shown, recognised, shown, tasks_of

_PREFIXES = ("Answer:", "The answer is:", "Result:", "Final answer:", "Therefore, the answer is:")

_DATA = (
    "{}", "The task of these examples: {}", "What the data are for: {}", "All examples fit this task: {}",
    "{} That is what the outputs follow from.",
)  # fmt: skip
_PROGRAM = (
    "{}", "The program is made for this task: {}", "What the program does: {}", "Its job: {}",
    "{} It does so with one call of a language model for each part.",
)  # fmt: skip
_NOTHING = (
    "It takes inputs and gives outputs.", "It passes its inputs to a language model.",
    "It asks a language model for the outputs.", "It has a language model fill in the output fields.",
    "Nothing more can be said of it than what its fields are called.",
)  # fmt: skip


def _as_if(author: Author, tasks: Sequence[InferredTask], name: str, **inputs: FieldValue) -> Author:
    """The same author asked for something of `cuesmith.signatures`, about tasks that are recognised already."""
    other = copy.copy(author)
    other.asked, other.tasks = Asked(name, inputs, {}), list(tasks)
    return other


# --- COPRO -------------------------------------------------------------------------------------------------


def propose_from_attempts(author: Author, source: Source) -> Values:
    """Answer COPRO's requests, which show instructions, later with scores, and no example."""
    (seen,) = shown(author.asked).values()
    if source == "fallback":
        text = _untold(author, seen)
    else:
        best, tried = seen.instruction, list(seen.tried)
        editor = _as_if(
            author, author.tasks, "RewriteInstruction", instruction=best, evidence=[], reflection=best, trajectory=tried
        )
        text = str(rewrite_instruction(editor, source)["rewritten_instruction"])
    return {"proposed_instruction": text, "proposed_prefix_for_output_field": author.pick("prefix", _PREFIXES)}


def _untold(author: Author, seen: Shown) -> str:
    """With an instruction and nothing else to go by: other words for it, or what is always said added to it."""
    head = seen.instruction
    reworded, always = variations_of((), head), prior_options()
    share = sum(reworded.values()) / sum(always.values())
    options = {f"{head} {text}".strip(): weight * share for text, weight in always.items()} | reworded
    tried = set(map(norm, seen.tried))
    return author.choose("untold", {text: w for text, w in options.items() if norm(text) not in tried} or options)


# --- MIPROv2 -----------------------------------------------------------------------------------------------


def describe_data(author: Author, source: Source) -> Values:
    """Answer what MIPROv2 asks about examples of the data."""
    return {"observations": _description(author, source, _DATA)}


def summarize_observations(author: Author, source: Source) -> Values:
    """Answer MIPROv2's request for a summary: whatever the data show, what was observed decides."""
    (seen,) = shown(author.asked).values()
    if source == "fallback":
        said = " ".join(seen.words.split())[:300]
        return {"summary": author.choose("summary", {framed(frame, said): 1.0 for frame in _DATA})}
    return {"summary": _description(author, source, _DATA)}


def describe_program(author: Author, source: Source) -> Values:
    """Answer what MIPROv2 asks about a program and its modules."""
    said = _description(author, source, _PROGRAM)
    return {"program_description": said, "module_description": said}


def _description(author: Author, source: Source, frames: Sequence[str]) -> str:
    (seen,) = shown(author.asked).values()
    if source == "fallback" and not seen.examples:
        return author.choose("nothing", {f"{one} {two}": 1.0 for one, two in itertools.permutations(_NOTHING, 2)})
    return framed(author.rng("frame", author.draw).choice(frames), _instruction(author, source, seen))


def _instruction(author: Author, source: Source, seen: Shown) -> str:
    writer = _as_if(author, author.tasks, "WriteInstructions", task_description="", examples=list(seen.examples))
    return str(write_instructions(writer, source)["instruction"])


def propose_for_module(author: Author, source: Source) -> Values:
    """Answer MIPROv2's request for an instruction. Its tip is not followed: a role or high stakes are no evidence."""
    (seen,) = shown(author.asked).values()
    untold = source == "fallback" and not seen.examples
    return {"proposed_instruction": _untold(author, seen) if untold else _instruction(author, source, seen)}


# --- SIMBA and GEPA ----------------------------------------------------------------------------------------


def offer_feedback(author: Author, source: Source) -> Values:
    """Answer SIMBA's request for advice to each module, which is appended to the module's instruction."""
    said, advice, rng = [], {}, author.rng("tie", author.draw)
    for name, seen in shown(author.asked).items():
        tasks = tasks_of(seen, rng)
        reason, advice[name] = _mended(author, source, tasks, seen, "")
        said.append(f"{name}: {reason}")
    return {"discussion": "\n".join(said) or "Nothing is shown.", "module_advice": advice}


def propose_after_feedback(author: Author, source: Source) -> Values:
    """Answer GEPA's request for a new instruction."""
    (seen,) = shown(author.asked).values()
    return {"new_instruction": _mended(author, source, author.tasks, seen, seen.instruction)[1]}


def _mended(author: Author, source: Source, tasks: Sequence[InferredTask], seen: Shown, head: str) -> tuple[str, str]:
    """What is wrong with an instruction, and `head` edited by that."""
    if source in ("evidence", "fallback") and not tasks and not seen.examples:
        return "Nothing shows which answer is right.", _untold(author, Shown(head, tried=(head,)))
    now, failed = seen.instruction, list(seen.failures if tasks else seen.examples)
    if failed:
        critic = _as_if(author, tasks, "CriticizeInstruction", instruction=now, failures=failed, count=1)
        reasons = criticize_instruction(critic, source)["reasons"]
        reason = "\n".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
    else:
        critic = _as_if(author, tasks, "ReflectOnSuccesses", instruction=now, successes=list(seen.examples))
        reason = str(reflect_on_successes(critic, source)["reflection"])
    editor = _as_if(author, tasks, "EditInstruction", instruction=head, failures=[], reason=reason)
    return reason, str(edit_instruction(editor, source)["edited_instruction"])


_WRITERS: dict[str, Callable[[Author, Source], Values]] = {
    "dspy.BasicGenerateInstruction": propose_from_attempts,
    "dspy.GenerateInstructionGivenAttempts": propose_from_attempts,
    "dspy.DatasetDescriptor": describe_data,
    "dspy.DatasetDescriptorWithPriorObservations": describe_data,
    "dspy.ObservationSummarizer": summarize_observations,
    "dspy.DescribeProgram": describe_program,
    "dspy.DescribeModule": describe_program,
    "dspy.GenerateSingleModuleInstruction": propose_for_module,
    "dspy.OfferFeedback": offer_feedback,
    "dspy.ProposeInstruction": propose_after_feedback,
}
"""What answers each of `REQUESTS`."""


def teach() -> None:
    """Let every `SimulatedOptimizer` of this process answer dspy's own requests."""
    FORMS.update(REQUESTS)
    RECOGNISERS.update(dict.fromkeys(REQUESTS, recognised))
    WRITERS.update(_WRITERS)
