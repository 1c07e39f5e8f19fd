"""Locating the step that a response leaves, and revising it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from cuesmith.modules.embedded.families import Family
from cuesmith.modules.simulated.author import Author, Source, Values
from cuesmith.modules.simulated.instruction_writing import surface
from cuesmith.modules.simulated.step_writing import MAX_STEPS, Worked, work_of
from cuesmith.modules.simulated.task_inference import canonical, entries_of, tokens_of
from cuesmith.modules.simulated.wordings import (
    LAST_FRAMES,
    PRIOR_REASONS,
    PRIOR_STEPS,
    TABLES,
    VAGUE_STEPS,
    filled,
    framed,
    lowered,
    norm,
    step_variants,
)
from cuesmith.signatures import Deviation, Move

_KINDS: tuple[Deviation, ...] = get_args(Deviation)

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
    want = tokens_of(wanted)
    # The whole text, or its first line: behind the last step the response may go on.
    texts = (tokens_of(written), tokens_of(written.partition("\n")[0]))
    return any(have == want or (len(want) > 0 and have[-len(want) :] == want) for have in texts)


def _gives_expected(expected: str, response: str) -> bool | None:
    """Whether the response's output fields hold the expected values; None if one cannot be found."""
    for name, value in entries_of(expected):
        pattern = rf"(?:\[\[ ## {re.escape(name)} ## \]\]|^[ \t]*[\"'`]?{re.escape(name)}[\"'`]?:)[ \t]*\n?(.*)"
        shown = re.findall(pattern, response, re.MULTILINE | re.IGNORECASE) if name else []
        if not shown:
            return None
        if tokens_of(str(shown[-1])) != tokens_of(value):
            return False
    return True


def _deviation(author: Author, steps: Sequence[str]) -> _Found:
    """The first deviation from the steps, in their order; without any, the form of the answer."""
    response = author.asked.text("response")
    segments, worked = _segments(response), work_of(author, steps)
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


def _unexplained(worked: Sequence[Worked | None]) -> int:
    return next(k for k, work in enumerate(worked) if work is None)


def _gaps(families: Sequence[Family], steps: Sequence[str]) -> list[tuple[int, str]]:
    """The steps of the recognised families that the list lacks, each with the place where it belongs."""
    gaps: list[tuple[int, str]] = []
    for family in families:
        matched = [canonical(family, step) for step in steps]
        for k, own in enumerate(family.steps):
            if k not in matched:
                # Behind the last given step that comes before it in the family's order.
                before = [place + 1 for place, at in enumerate(matched) if at is not None and at < k]
                gaps.append((max(before, default=0), own))
    return gaps


def locate_deviation(author: Author, source: Source) -> Values:
    """Answer `LocateDeviation`."""
    steps = author.asked.texts("steps")
    if not steps:
        return {"step": 1, "kind": "insufficient", "reason": "There are no steps to follow."}
    rng = author.rng("guess", author.draw)
    if source == "prior":
        guess = rng.choices(_KINDS, weights=(1, 6, 2, 1))[0]
        return {"step": rng.randint(1, len(steps)), "kind": guess, "reason": author.pick("why", PRIOR_REASONS)}
    found = _deviation(author, steps)
    if source == "noise":
        wrong = [k for k in range(len(steps)) if k != found.place]
        kinds = [kind for kind in _KINDS if kind != found.kind]
        place, kind = (rng.choice(wrong), found.kind) if wrong else (found.place, rng.choice(kinds))
        return {"step": place + 1, "kind": kind, "reason": f'The work of "{steps[place]}" does not look right.'}
    return {"step": found.place + 1, "kind": found.kind, "reason": _reason(author, steps, found)}


def _reason(author: Author, steps: Sequence[str], found: _Found) -> str:
    wanted, written = " ".join(found.wanted.split()), " ".join(found.written.split())
    ways = filled(
        TABLES["deviations"][found.kind],
        number=found.place + 1,
        step=steps[found.place],
        wanted=wanted,
        written=written,
    )
    return author.pick("reason", ways)


# --- revisions -------------------------------------------------------------------------------------------


def revise_step(author: Author, source: Source) -> Values:
    """Answer `ReviseStep`."""
    steps = author.asked.texts("steps")
    number = author.asked.inputs.get("step", 1)
    place = min(max((number if isinstance(number, int) else 1) - 1, 0), max(len(steps) - 1, 0))
    kind = author.asked.text("kind")
    if not steps:
        return {"move": "add", "new_steps": [author.pick("prior revision", PRIOR_STEPS)]}
    if source == "prior":
        step = steps[place]
        unhelpful = filled(TABLES["unhelpful_edits"], step=step, low=lowered(step))  # that sound like help
        return _moved("edit", [author.pick("prior revision", unhelpful)])
    if source == "noise":
        return _moved("edit", [author.pick("vague", VAGUE_STEPS)])
    if not author.tasks:
        return _moved("add", [_fallback_step(author)])
    return _repaired(author, steps, place, kind)


def _moved(move: Move, texts: Sequence[str]) -> Values:
    return {"move": move, "new_steps": list(texts)}


def _repaired(author: Author, steps: list[str], place: int, kind: str) -> Values:
    """Restore what the list lacks around the step, else make the step itself clearer."""
    family, own = author.tasks[0].family, steps[place]
    if kind == "format":
        form = [text for frame in LAST_FRAMES[1:] if norm(text := framed(frame, family.steps[-1])) != norm(own)]
        return _moved("edit", [author.pick("format", form)])
    gaps, k = _gaps([family], steps), canonical(family, own)
    before = [text for at, text in gaps if at == place]
    behind = [text for at, text in gaps if at == place + 1]
    room = int(str(author.asked.inputs.get("max_steps", MAX_STEPS))) - len(steps)
    if k is None and (before or behind):  # instead of a step that the family does not have
        texts = [*before, *behind][: max(1, room + 1)]
        return _moved("split" if len(texts) > 1 else "edit", texts)
    if before and room >= len(before):
        return _moved("add", before)
    if behind and room >= len(behind):
        return _moved("split", [own, *behind])
    if k is None and len(steps) > 1:  # nothing is missing here, so such a step only distracts
        return _moved("delete", [])
    return _moved("edit", [author.pick("clearer", _clearer(family, own, last=k == len(family.steps) - 1))])


def _clearer(family: Family, step: str, *, last: bool) -> list[str]:
    """Wordings of a step that differ from the present one; the family's own wording weighs most by coming first."""
    k = canonical(family, step)
    own = family.steps[-1 if k is None or last else k]
    if norm(own) != norm(step):
        return [own]
    return [text for text in step_variants(own, last) if norm(text) != norm(step)]


def _fallback_step(author: Author) -> str:
    words, _ = surface(author.asked.texts("failures"))
    about = f" about {', '.join(words)}" if words else ""
    return author.pick("fallback revision", filled(TABLES["fallback_revisions"], about=about))
