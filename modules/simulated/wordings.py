"""The texts that the simulated optimizer has: wordings of every family's task and steps, and what it says without."""

import itertools
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cuesmith.modules.embedded.families import FAMILIES, Family

STOP = frozenset(
    re.findall(r"\w+", "a an the of in to with and or for each every it its their them this that as by is are")
)

TABLES: dict[str, Any] = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))


def phrases(name: str) -> tuple[str, ...]:
    """One of the lists in `phrases.json`."""
    return tuple(TABLES[name])


def table(name: str) -> dict[str, tuple[str, ...]]:
    """One of the tables of lists in `phrases.json`."""
    return {key: tuple(texts) for key, texts in TABLES[name].items()}


PHRASINGS = table("phrasings")
FRAMES, STEP_FRAMES, LAST_FRAMES = phrases("frames"), phrases("step_frames"), phrases("last_frames")
FRAME_WEIGHTS: list[float] = TABLES["frame_weights"]
VERBS = table("verbs")

PRIOR_ADVICE, PRIOR_REASONS = phrases("prior_advice"), phrases("prior_reasons")
PRIOR_STEPS, PRIOR_LAST = phrases("prior_steps"), phrases("prior_last")

VAGUE_STEPS = phrases("vague_steps")
VAGUE_BY_LOOK: dict[str, str] = TABLES["vague_by_look"]

SYNONYMS: list[list[str]] = TABLES["synonyms"]
REWORDINGS = phrases("rewordings")


def norm(text: str) -> str:
    """The words of a text alone, for comparing wordings."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def lowered(text: str) -> str:
    """The text with a small first letter, to follow an opening; capitalised names stay."""
    return text[:1].lower() + text[1:]


def framed(frame: str, text: str) -> str:
    """The text in a frame: at its "{}", or with a small first letter at its "{low}"."""
    return frame.replace("{low}", lowered(text)).replace("{}", text)


def filled(frames: Sequence[str], **values: object) -> list[str]:
    """The frames with the values at their names."""
    return [frame.format(**values) for frame in frames]


@lru_cache(maxsize=64)
def instructions_of(family: Family) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Every wording of a family's task that this model has, with its weight."""
    cores = [(text, 3.0) for text in family.instructions] + [(text, 2.0) for text in PHRASINGS.get(family.name, ())]
    pairs = itertools.product(zip(FRAMES, FRAME_WEIGHTS, strict=True), cores)
    weighted = {framed(frame, text): much * weight for (frame, much), (text, weight) in pairs}
    return tuple(weighted), tuple(weighted.values())


@lru_cache(maxsize=256)
def step_variants(step: str, last: bool = False) -> tuple[str, ...]:
    """Light rewordings of a step, the step itself first."""
    verb, _, rest = step.partition(" ")
    swapped = [f"{other} {rest}" for other in VERBS.get(verb, ())]
    frames = LAST_FRAMES if last else STEP_FRAMES
    return tuple(dict.fromkeys([step, *swapped, *(framed(frame, step) for frame in frames)]))


def siblings(family: Family) -> list[Family]:
    """The other families whose questions look the same."""
    return [other for other in FAMILIES.values() if other.look == family.look and other is not family]
