"""What the study of complexity found, and how it is measured: see `studies.complexity`.

Source: design and statistics are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cuesmith.programs.diagnosis.association import Correlation, holm, ratio, spearman
from cuesmith.programs.diagnosis.permutation import trend_of
from cuesmith.programs.diagnosis.repetition import interval95, resamples
from cuesmith.signatures.probes import FORM_DEMANDS
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, paired_gain

__all__ = [
    "ENOUGH", "EXAMPLES", "FORMS", "Asked", "Complexity", "Form", "Formed", "Level", "Limit", "Trend", "analyse",
    "gap", "limit_of",
]  # fmt: skip

EXAMPLES = 12
"""Examples a prompt is tried on. Ours."""
ENOUGH = 0.9
"""Share of the steps from which on a prompt counts as followed. Source of 90 %: ours."""
_MEETS: Mapping[str, Callable[[str], bool | None]] = {
    "capitals": lambda t: t == t.upper() if t != t.swapcase() else None,
    "brackets": lambda t: t.startswith("[") and t.endswith("]"),
    "one word": lambda t: len(t.split()) == 1,
    "opening": lambda t: t.casefold().startswith("answer"),
    "full stop": lambda t: t.endswith("."),
}
FORMS = {kind: (demand, _MEETS[kind]) for kind, demand in FORM_DEMANDS.items()}
"""Kind -> what is demanded, and whether an answer meets it; None where that cannot be told (no letters)."""
Floats = NDArray[np.float64]
Origins = tuple[str, int]
"""(task, number of the optimizer's procedure): what prompts of different length have in common."""


# --- what was seen -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What was seen of one prompt with labelled steps.

    Attributes:
        task: The task's name.
        base: Number of the optimizer's procedure that it was made of.
        steps: How many steps it asks for; 0 for the plain instruction.
        checks: Of each reply, whether each step was followed.
        right: Of each reply, whether the answer was right.
    """

    task: str
    base: int
    steps: int
    checks: tuple[tuple[bool, ...], ...]
    right: tuple[bool, ...]

    @property
    def followed(self) -> int:
        """Steps followed, over all replies."""
        return sum(map(sum, self.checks))


@dataclass(frozen=True)
class Formed:
    """What was seen of one demand on the form, added to one plain instruction.

    Attributes:
        task: The task's name.
        base: Number of the plain instruction.
        kind: A key of `FORMS`.
        asked: Of each answer, whether it meets the demand; those on which that cannot be told are left out.
        without: The same without the demand.
    """

    task: str
    base: int
    kind: str
    asked: tuple[bool, ...]
    without: tuple[bool, ...]


# --- what comes out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """All prompts of one length.

    Attributes:
        steps: How many steps they ask for.
        compliance: Share of the steps followed; a prompt is one observation.
        accuracy: Share of the right answers, likewise.
    """

    steps: int
    compliance: Estimate95
    accuracy: Estimate95


@dataclass(frozen=True)
class Trend:
    """How a share moves with the number of steps.

    Attributes:
        rho: Mean over the procedures of Spearman's correlation within each, with Student's t interval over them; nan
            if nothing varies.
        p_value: Two-sided: permutation of the lengths within each procedure; 1.0 if nothing varies.
        holm: The same, corrected for the two trends that are tested.
    """

    rho: Estimate95
    p_value: float
    holm: float

    @property
    def shown(self) -> bool:
        """Whether the corrected test rejects at 5 % and the interval, if there is one, excludes 0: the test alone
        speaks of the average of these procedures, which a few of them can carry."""
        return self.holm < 0.05 and not self.rho.low <= 0.0 <= self.rho.high


@dataclass(frozen=True)
class Limit:
    """The largest tried number of steps up to which every length is followed to `ENOUGH`.

    Attributes:
        steps: The number; 0 if not even the shortest prompts are followed; nan without prompts.
        end: Whether it is the largest number that was tried.
    """

    steps: Estimate95
    end: bool


@dataclass(frozen=True)
class Form:
    """One demand on the form.

    Attributes:
        kind: A key of `FORMS`.
        asked: Share of the answers that meet it; a prompt is one observation.
        without: The same where it is not demanded.
        gain: The difference over the prompts, with its sign-flip test.
        holm: Its p-value, corrected for the number of demands.
    """

    kind: str
    asked: Estimate95
    without: Estimate95
    gain: Gain
    holm: float


@dataclass(frozen=True)
class Complexity:
    """What was found.

    Attributes:
        levels: By number of steps.
        plain: Right answers with the plain instruction, without steps.
        compliance: How following moves with the number of steps.
        accuracy: How right answers do.
        limit: Up to how many steps the model follows.
        positions: Share of the prompts' steps followed at each position, over all lengths.
        forms: The demands on the form.
        tasks: Task -> share of the steps followed in its prompts.
        prompts: Prompts with steps.
        procedures: Procedures that they were made of.
    """

    levels: tuple[Level, ...]
    plain: Estimate95
    compliance: Trend
    accuracy: Trend
    limit: Limit
    positions: tuple[Estimate95, ...]
    forms: tuple[Form, ...]
    tasks: Mapping[str, float]
    prompts: int
    procedures: int


def analyse(asked: Sequence[Asked], formed: Sequence[Formed], *, seed: int = 0) -> Complexity:
    """Turn what was seen into the result; the order of what was seen does not matter.

    Args:
        asked: Prompts with steps, and plain ones.
        formed: Demands on the form.
        seed: Of permutations and bootstrap.
    """
    asked = sorted(asked, key=lambda one: (one.task, one.base, one.steps))
    prompts = [one for one in asked if one.steps]
    levels = [[one for one in prompts if one.steps == k] for k in sorted({one.steps for one in prompts})]
    trends = [_trend(prompts, share, seed) for share in (_compliance, _accuracy)]
    corrected = holm([p_value for _, p_value in trends])
    compliance, accuracy = (Trend(rho, p, q) for (rho, p), q in zip(trends, corrected, strict=True))
    longest = max((one.steps for one in prompts), default=0)
    return Complexity(
        levels=tuple(Level(group[0].steps, _followed(group), _right(group)) for group in levels),
        plain=_right([one for one in asked if not one.steps]),
        compliance=compliance,
        accuracy=accuracy,
        limit=_limit(prompts, seed),
        positions=tuple(_at([one for one in prompts if one.steps > k], k) for k in range(longest)),
        forms=_forms(formed, seed),
        tasks={name: _followed([one for one in prompts if one.task == name]).mean
               for name in dict.fromkeys(one.task for one in prompts)},
        prompts=len(prompts),
        procedures=len({(one.task, one.base) for one in prompts}),
    )


def _followed(prompts: Sequence[Asked]) -> Estimate95:
    return ratio([one.followed for one in prompts], [one.steps * len(one.checks) for one in prompts])


def _right(prompts: Sequence[Asked]) -> Estimate95:
    return ratio([sum(one.right) for one in prompts], [len(one.right) for one in prompts])


def _at(prompts: Sequence[Asked], k: int) -> Estimate95:
    return ratio([sum(row[k] for row in one.checks) for one in prompts], [len(one.checks) for one in prompts])


def _compliance(one: Asked) -> float:
    return one.followed / (one.steps * len(one.checks))


def _accuracy(one: Asked) -> float:
    return sum(one.right) / len(one.right)


def _trend(prompts: Sequence[Asked], share: Callable[[Asked], float], seed: int) -> tuple[Estimate95, float]:
    blocks = _blocks(prompts)
    return trend_of([[(float(one.steps), share(one)) for one in block] for block in blocks.values()], seed=seed)


def _blocks(prompts: Sequence[Asked]) -> dict[Origins, list[Asked]]:
    blocks: dict[Origins, list[Asked]] = {}
    for one in prompts:
        blocks.setdefault((one.task, one.base), []).append(one)
    return blocks


def _limit(prompts: Sequence[Asked], seed: int) -> Limit:
    levels = sorted({one.steps for one in prompts})
    blocks = list(_blocks(prompts).values())
    if not blocks:
        return Limit(Estimate95(np.nan, np.nan, np.nan, 0), False)
    parts, wholes = np.zeros((2, len(blocks), len(levels)))
    for i, block in enumerate(blocks):
        for one in block:
            parts[i, levels.index(one.steps)] = one.followed
            wholes[i, levels.index(one.steps)] = one.steps * len(one.checks)
    value = float(limit_of(levels, parts.sum(axis=0)[None], wholes.sum(axis=0)[None])[0])
    weights = resamples(len(blocks), np.random.default_rng(seed)) if len(blocks) > 2 else np.ones((0, len(blocks)))
    drawn = limit_of(levels, weights @ parts, weights @ wholes)
    return Limit(interval95(value, drawn, len(blocks)), value == levels[-1])


def limit_of(levels: Sequence[int], parts: Floats, wholes: Floats) -> Floats:
    """Return, for each row of counts by level, the last level before the first that is followed to less than `ENOUGH`.

    Args:
        levels: Numbers of steps, rising.
        parts: Steps followed.
        wholes: Steps asked for; a level without any is passed over.
    """
    lost = parts < ENOUGH * wholes - 1e-9
    first = np.where(lost.any(axis=1), lost.argmax(axis=1), len(levels))
    found: Floats = np.array([0.0, *levels])[first]
    return found


def _forms(formed: Sequence[Formed], seed: int) -> tuple[Form, ...]:
    found = []
    for kind in FORMS:
        own = sorted((one for one in formed if one.kind == kind), key=lambda one: (one.task, one.base))
        if not own:
            continue
        sides = [(one.asked, one.without) for one in own]
        asked, without = (ratio([sum(s[k]) for s in sides], [len(s[k]) for s in sides]) for k in (0, 1))
        means = [[sum(s[k]) / len(s[k]) for s in sides] for k in (1, 0)]
        found.append(Form(kind, asked, without, paired_gain(*means, seed=seed), 1.0))
    corrected = holm([one.gain.p_value for one in found])
    return tuple(replace(one, holm=q) for one, q in zip(found, corrected, strict=True))


def gap(found: Complexity, gains: Mapping[str, float]) -> Correlation:
    """Correlate how far each task's steps are followed with what ABO gained on it.

    Args:
        found: Of this study.
        gains: Task -> gain, as the study `abo-gain` has it; tasks that are missing on either side are left out.
    """
    names = sorted(set(found.tasks) & set(gains))
    return spearman([found.tasks[name] for name in names], [gains[name] for name in names])
