"""Criticising instructions, and editing them by what the critique says.

The chain is causal: a critique is made from the failures, an edit is made from the words of the critique. So a
critique that is only advice leads to an edit that only adds advice, as 2402.02101 describes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from cuesmith.modules.simulated.author import Author, Source, Values
from cuesmith.modules.simulated.instruction_writing import (
    degraded_options,
    fallback_options,
    joined,
    prior_options,
    surface,
    variations_of,
)
from cuesmith.modules.simulated.points import (
    ADVICE,
    HINTS,
    Point,
    advice_in,
    faults,
    generic,
    merits,
    open_facts,
    read,
    sentence,
    speaks_of,
    stated,
    wordings,
)
from cuesmith.modules.simulated.task_inference import InferredTask, asked_part, entries_of, tokens_of
from cuesmith.modules.simulated.wordings import FRAMES, REWORDINGS, framed, instructions_of, norm, phrases, siblings
from cuesmith.signatures import parse_steps

_ASPECTS = 2
"""Aspects that a reflection lists."""


# --- what is wrong -----------------------------------------------------------------------------------------


def criticize_instruction(author: Author, source: Source) -> Values:
    """Answer `CriticizeInstruction`."""
    count = author.asked.inputs.get("count", 1)
    wanted = max(1, count) if isinstance(count, int) else 1
    return {"reasons": author.several("reason", _criticism(author, source, author.asked.texts("failures")), wanted)}


def _criticism(author: Author, source: Source, shown: Sequence[str]) -> dict[str, float]:
    """Every sentence that may be said about an instruction and what it led to, with its weight."""
    if source == "prior" or (source == "noise" and not author.tasks):
        return dict.fromkeys(generic(), 1.0)
    if not author.tasks:
        return dict.fromkeys(open_facts(_facts(shown)), 1.0)
    if source == "noise":
        first = author.tasks[0]
        wrong = [InferredTask(first.field, other) for other in siblings(first.family)]
        return dict.fromkeys((text for task in wrong for text in faults([task], "missing")), 1.0)
    if not _precise(author):
        return dict.fromkeys(faults(author.tasks, "missing"), 1.0)
    steps, form = faults(author.tasks, "steps"), faults(author.tasks, "form")
    likely = form if _form_at_fault(author.asked.text("instruction"), shown) else steps
    return dict.fromkeys([*steps, *form], 1.0) | dict.fromkeys(likely, 9.0)


def _form_at_fault(instruction: str, failures: Sequence[str]) -> bool:
    """Whether the form is the likelier fault of a precise instruction, not that it wants no steps.

    Where the answers are there, they stand in the wrong form; where they are not, they were not worked out. A fault
    that the instruction has been mended for is not found again, unless it has been mended for both.
    """
    has_steps = speaks_of("steps", instruction) or parse_steps(instruction) is not None
    if has_steps != (has_form := speaks_of("form", instruction)):
        return not has_form
    return 2 * sum(map(_has_answer, failures)) > len(failures)


def _has_answer(failure: str) -> bool:
    """Whether a response gives the expected answer in its last line, among other words."""
    expected, response = _expected_and_response(failure)
    want, have = (f" {' '.join(tokens_of(text))} " for text in (expected, response.rpartition("\n")[2]))
    return bool(want.strip()) and want in have


def _precise(author: Author) -> bool:
    """Whether the instruction already says what its evidence shows to be wanted."""
    said = {task.family.name for task in stated(author.asked.text("instruction"))}
    return said == {family.name for family in author.families}


def _facts(examples: Sequence[str]) -> list[str]:
    """What the surface of examples shows, without a family that explains them."""
    words, form = surface([asked_part(text) for text in examples])
    ways = (f"the answer has to be {form}", f"{form} is wanted as the answer", f"every answer is {form}")
    about = [f"the inputs are about things like {word}" for word in words]
    return [*ways, *about, "every part of the input may matter", "one rule leads from all inputs to the outputs"]


def reflect_on_failures(author: Author, source: Source) -> Values:
    """Answer `ReflectOnFailures`."""
    failures = author.asked.texts("failures")
    said = [author.pick("excuse", phrases("excuses"))] if source == "prior" else _examined(failures)
    return {"reflection": _reflection(author, said, _criticism(author, source, failures))}


def reflect_on_successes(author: Author, source: Source) -> Values:
    """Answer `ReflectOnSuccesses`."""
    said = author.pick("praise", phrases("praise")) if source == "prior" else "All responses are right."
    if source == "evidence" and _precise(author):
        options = dict.fromkeys(merits(author.tasks), 1.0)
    else:
        options = _criticism(author, source, author.asked.texts("successes"))
    return {"reflection": _reflection(author, [said], options)}


def _reflection(author: Author, said: Sequence[str], options: Mapping[str, float]) -> str:
    aspects = author.several("aspect", options, _ASPECTS)
    return "\n".join([*said, "Aspects to improve:", *(f"{k}. {aspect}" for k, aspect in enumerate(aspects, 1))])


def _examined(failures: Sequence[str]) -> list[str]:
    """What each failure shows: what was expected and what the response ends in."""
    lines = []
    for k, failure in enumerate(failures, 1):
        expected, response = _expected_and_response(failure)
        should = f'should give "{_short(expected)}" and ' if expected else ""
        lines.append(f'Failure {k}: the response {should}ends in "{_short(response)}".')
    return lines


def _expected_and_response(failure: str) -> tuple[str, str]:
    asked = asked_part(failure)
    response = failure.removeprefix(asked).removeprefix("response:").partition("\nfeedback:")[0].strip()
    return "; ".join(value for name, value in entries_of(asked) if name.startswith("expected")), response


def _short(text: str) -> str:
    return " ".join(text.split())[-60:]


# --- summaries ---------------------------------------------------------------------------------------------


def summarize_reasons(author: Author, source: Source) -> Values:
    """Answer `SummarizeReasons`."""
    reasons = [reason for reason in author.asked.texts("reasons") if norm(reason)]
    if not reasons:
        return {"points": [], "support": []}
    if source == "prior":
        return {"points": [author.pick("prior point", generic())], "support": [len(reasons)]}
    groups: dict[object, list[str]] = {}
    for reason in reasons:
        groups.setdefault(_says(reason), []).append(reason)
    ordered = sorted(groups.values(), key=len, reverse=True)
    support = [len(group) for group in ordered]
    points = [author.choose(f"point {k}", _rewordings(group[0])) for k, group in enumerate(ordered)]
    if source == "noise":  # the rarest point is lost in the first, or the only one in generalities
        kept = points[:-1] or [author.pick("vague point", generic())]
        return {"points": kept, "support": [support[0] + support[-1], *support[1:-1]] if points[1:] else support}
    return {"points": points, "support": support}


def _says(reason: str) -> object:
    """What a reason says, in whatever words: reasons of which this is equal say the same."""
    point = read(reason)
    if point.tasks:
        return tuple((task.field, task.family.name) for task in point.tasks), point.fault
    return advice_in(reason) or norm(reason)


def _rewordings(reason: str) -> dict[str, float]:
    """Sentences that say what a reason says, with their weights."""
    point = read(reason)
    if point.tasks:
        texts = faults(point.tasks, point.fault)
    else:
        texts = generic(advice) if (advice := _plain_advice(reason)) else [" ".join(reason.split())]
    return {framed(lead, text): 8.0 if lead == "{}" else 1.0 for lead in phrases("summaries") for text in texts}


def _plain_advice(text: str) -> list[str]:
    """The first advice that a text gives, if it is one of the phrases of this model."""
    said = advice_in(text)[:1]
    return [advice for advice in ADVICE if sentence(advice) in said]


# --- edits -------------------------------------------------------------------------------------------------


def edit_instruction(author: Author, source: Source) -> Values:
    """Answer `EditInstruction`: whatever the failures show, the reason decides."""
    return {"edited_instruction": _edited(author, source, read(author.asked.text("reason")), [])}


def rewrite_instruction(author: Author, source: Source) -> Values:
    """Answer `RewriteInstruction`: whatever the evidence shows, the reflection decides."""
    point, trajectory = read(author.asked.text("reflection")), author.asked.texts("trajectory")
    return {"rewritten_instruction": _edited(author, source, point, trajectory)}


def improve_instruction(author: Author, source: Source) -> Values:
    """Answer `ImproveInstruction`: it criticises and edits in one."""
    reason = author.choose("reason", _criticism(author, source, author.asked.texts("examples")))
    return {"improved_instruction": _edited(author, source, read(reason), [])}


def merge_instructions(author: Author, source: Source) -> Values:
    """Answer `MergeInstructions`: the first, and what the second says besides."""
    first, second = (author.asked.text(name).strip() for name in ("first", "second"))
    head, rest = _parts(first)
    if source != "evidence":
        return {"merged_instruction": author.choose("merge", _reworded(head)) + rest}
    said = norm(head)
    more = [text for text in re.findall(r"\S.*?(?:[.!?](?=\s)|$)", _parts(second)[0]) if norm(text) not in said]
    return {"merged_instruction": " ".join([head, *more]).strip() + rest}


def _edited(author: Author, source: Source, point: Point, used: Sequence[str]) -> str:
    """The instruction changed in its task; steps and a demonstration stay word for word."""
    instruction = author.asked.text("instruction").strip()
    head, rest = _parts(instruction)
    changes = {text + rest: weight for text, weight in _changes(author, source, point, head).items()}
    return author.choose("edit", _unused(changes, [instruction, *used]))


def _parts(instruction: str) -> tuple[str, str]:
    """The task of an instruction, and its steps with all that follows."""
    parsed = parse_steps(instruction)
    if parsed is None:
        return instruction, ""
    return parsed[0], instruction.removeprefix(parsed[0]) if parsed[0] else f"\n\n{instruction}"


def _changes(author: Author, source: Source, point: Point, head: str) -> Mapping[str, float]:
    if source == "prior":
        fresh = [sentence(advice) for advice in ADVICE if norm(advice) not in norm(head)]
        return _advised(head, author.pick("advice", fresh)) if fresh else _reworded(head)
    if source == "noise":
        return degraded_options(author)
    if point.tasks:
        return _precise_changes(point, head)
    return _mixed(_advised(head, advice) for advice in point.advice) or _reworded(head)


def _precise_changes(point: Point, head: str) -> dict[str, float]:
    """The task that a point names in every wording, with a hint against the fault, and what else there was to say."""
    hints = HINTS[point.fault] or ("",)
    plain = {text: weight for text, weight in _wordings(point.tasks).items() if not text.endswith(HINTS[point.fault])}
    texts = {f"{text} {hint}".strip(): weight for text, weight in plain.items() for hint in hints}
    others = _other_content(head, point)
    glue = "\n" if "\n" in "".join(others).strip() else " "
    changed = {}
    for text, weight in texts.items():
        kept = "".join(other for other in others if norm(other) not in norm(text)).strip()
        new = [advice for advice in point.advice if norm(advice) not in norm(text + kept)]
        changed[glue.join(filter(None, [text, kept, *new]))] = weight
    return changed


def _wordings(tasks: Sequence[InferredTask]) -> dict[str, float]:
    """Precise instructions for tasks, with their weights; those with odd openings only where others are used up."""
    columns = []
    for task in tasks:
        odd = [framed(frame, core) for frame in REWORDINGS for core in task.family.instructions]
        columns.append({**dict.fromkeys(odd, 0.001), **dict(zip(*instructions_of(task.family), strict=True))})
    if len(columns) == 1:
        return columns[0]
    rows = zip(*(column.items() for column in columns), strict=False)
    return {joined(tasks, [text for text, _ in row]): row[0][1] for row in rows}


def _advised(head: str, advice: str) -> dict[str, float]:
    """An instruction with a sentence added in front or behind, in many ways; reworded if it has it already."""
    if norm(advice) in norm(head):
        return _reworded(head)
    closers = phrases("closers")
    said = {framed(lead, advice) + closer: 1.0 for lead in phrases("leads") for closer in closers} | {advice: 8.0}
    before = {f"{text} {head}".strip(): weight / 4 for text, weight in said.items()}
    return before | {f"{head} {text}".strip(): weight for text, weight in said.items()}


def _reworded(head: str) -> dict[str, float]:
    """An instruction in other words, as far as its task is not known; of an empty one, what is always said."""
    return variations_of((), head) if head else prior_options()


def _mixed(options: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return {text: weight for some in options for text, weight in some.items()}


def _unused(options: Mapping[str, float], used: Iterable[str]) -> Mapping[str, float]:
    """The texts among the options that have not been tried; all of them if each has been."""
    tried = {norm(text) for text in used}
    return {text: weight for text, weight in options.items() if norm(text) not in tried} or options


# --- what an edit keeps ------------------------------------------------------------------------------------

_VAGUE = re.compile(
    r"(?:please |kindly )?(?:given the fields\b|"
    r"(?:answer|solve|do|complete|handle|process|respond to|work on|deal with) "
    r"(?:(?:the|this|a|given|following) )*(?:question|task|problem|input|request|query|exercise|text)\b)",
    re.IGNORECASE,
)
"""A sentence that stands for a task and says none."""

_MARK = "\ue000."


@lru_cache(maxsize=1)
def _openings() -> frozenset[str]:
    """The sentences around a task that are part of this model's wordings."""
    texts = [text for frame in (*FRAMES, *REWORDINGS) for text in frame.split("{}")]
    kept = {norm(text) for text in (*ADVICE, *(hint for hints in HINTS.values() for hint in hints))}
    return frozenset(map(norm, texts)) - kept


def _other_content(head: str, point: Point) -> list[str]:
    """What of an instruction stays when its task is said anew: the sentences that do not say it, spaces included."""
    for wording in wordings():
        head = head.replace(wording, _MARK)
    sentences = re.findall(r"\S.*?(?:[.!?](?=\s)|$)\s*", head, re.MULTILINE)
    dropped = [text for text in sentences if _MARK in text] or [text for text in sentences if stated(text)]
    dropped = dropped or [text for text in sentences if _VAGUE.match(text)]
    dropped = dropped or [text for text in sentences if not advice_in(text) and not _hint(text)][:1]
    hints = {norm(hint) for hint in HINTS[point.fault]}
    said = [re.sub(r"^for `\w+`:\s*", "", text, flags=re.IGNORECASE) for text in sentences]
    empty = [norm(text) in _openings() | hints or bool(_VAGUE.match(text)) for text in said]
    return [text for text, drop in zip(sentences, empty, strict=True) if not drop and text not in dropped]


def _hint(text: str) -> bool:
    return any(norm(hint) == norm(text) for hints in HINTS.values() for hint in hints)


# --- proposals ---------------------------------------------------------------------------------------------


def propose_instruction(author: Author, source: Source) -> Values:
    """Answer `ProposeInstruction`."""
    scored = _scored(author.asked.texts("scored_instructions"))
    best = max(scored, key=lambda text: scored[text], default="")
    if source == "prior":
        options = _imitations(best)
    elif source == "noise":
        options = degraded_options(author)
    elif author.tasks:  # the task as the exemplars show it, with or without what else the best text has
        head, rest = _parts(best)
        alike = _precise_changes(Point(tuple(author.tasks), "missing", ()), head)
        options = {text + rest: weight for text, weight in alike.items()} | _wordings(author.tasks)
    else:
        options = fallback_options(author.asked.texts("exemplars"))
    return {"instruction": author.choose("proposal", _unused(options, scored))}


def _imitations(best: str) -> dict[str, float]:
    """Small changes to the best text: what an optimizer does that only looks at the scores."""
    head, rest = _parts(best)
    changed = {f"{head} {sentence(advice)}".strip(): 0.5 for advice in ADVICE} | _reworded(head)
    return {text + rest: weight for text, weight in changed.items()}


def _scored(entries: Iterable[str]) -> dict[str, float]:
    """The texts of a history with their scores."""
    found = (re.fullmatch(r"\s*text:\s*(.*?)\s*score:\s*(-?\d+(?:\.\d+)?)\s*", entry, re.DOTALL) for entry in entries)
    return {match[1]: float(match[2]) for match in found if match}
