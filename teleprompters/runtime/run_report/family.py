"""Who came from whom, by which move, and what the moves were worth. Source: ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuesmith.teleprompters.runtime.candidate import Candidate, line_of
from cuesmith.teleprompters.runtime.charts import Tick, scale_of, ticks
from cuesmith.teleprompters.runtime.compilation import StepRecord, Trial
from cuesmith.teleprompters.runtime.outcomes import mean

__all__ = ["FamilyPicture", "Member", "MoveTally", "family_of", "line_to", "moves_of", "picture_of"]

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 40
_MOST_DRAWN = 400
"""Candidates that the picture shows: the best, and the whole line of the one that was returned. Ours."""
_GOLDEN = 0.618034


@dataclass(frozen=True)
class Member:
    """A scored candidate among its kin.

    Attributes:
        rank: 1 for the highest score; those that were scored on a part of the selection examples come after all others.
        candidate: The prompts with their origin.
        score: What candidates are compared by; NaN where a metric made nothing of its answers.
        n: Scores on selection examples that it has.
        generation: How many first parents lead back to one without any on record.
        step: The first step whose beam it was in; None if it was in none.
        roles: "student", "returned", "front".
        partial: Whether it lacks scores that the student has, as where a race left it behind.
    """

    rank: int
    candidate: Candidate
    score: float
    n: int
    generation: int
    step: int | None
    roles: tuple[str, ...]
    partial: bool


@dataclass(frozen=True)
class MoveTally:
    """What a kind of move was worth.

    Attributes:
        move: Its name.
        made: Candidates that it made and that were scored.
        above: Those of them that scored above their (first) parent, on the examples that both have a score for. Where
            the metric judges all answers together, only such are compared as have equally many.
        compared: Those that can be compared with a parent.
        change: Mean change against the parent; NaN if none can be compared.
        best: The highest score of those that were scored on all selection examples; NaN without any.
    """

    move: str
    made: int
    above: int
    compared: int
    change: float
    best: float


@dataclass(frozen=True)
class FamilyMember:
    """A candidate in the picture."""

    x: str
    y: str
    role: str
    title: str


@dataclass(frozen=True)
class FamilyPicture:
    """Candidates by generation and score, each joined to its first parent.

    Attributes:
        nodes: The candidates; those on the line to the returned one come last, so that they are on top.
        edges: (x1, y1, x2, y2, whether it is on that line).
        x_ticks: Generations.
        y_ticks: Scores.
        left_out: Candidates that are not drawn.
    """

    nodes: tuple[FamilyMember, ...]
    edges: tuple[tuple[str, str, str, str, bool], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left_out: int


def family_of(
    trials: Sequence[Trial], steps: Sequence[StepRecord], student: str, returned: str, front: Sequence[str]
) -> tuple[Member, ...]:
    """Return all scored candidates, best first, with their place among the others.

    Args:
        trials: Best first.
        steps: Of the search.
        student: Id of the student's prompts.
        returned: Id of the prompts that were returned.
        front: Ids of the candidates that no other dominates.
    """
    known = {trial.candidate.id: trial.candidate for trial in trials}
    first: dict[str, int] = {}
    for step in steps:
        for one in step.beam:
            first.setdefault(one, step.step)
    generations, whole = _generations(known), _whole(trials)
    roles = {"student": {student}, "returned": {returned}, "front": set(front)}
    return tuple(
        Member(
            rank,
            t.candidate,
            t.mean,
            t.n,
            generations[t.candidate.id],
            first.get(t.candidate.id),
            tuple(role for role, ids in roles.items() if t.candidate.id in ids),
            t.n < whole,
        )
        for rank, t in enumerate(sorted(trials, key=lambda t: t.n < whole), 1)
    )


def _whole(trials: Sequence[Trial]) -> int:
    """Return how many scores a candidate has that was scored on all that the student has a score on."""
    own = [trial.n for trial in trials if trial.candidate.origin.move == "student"]
    return min(own, default=0) or max((trial.n for trial in trials), default=0)


def _generations(known: Mapping[str, Candidate]) -> dict[str, int]:
    """Return how far each candidate is from the first of its line; a circle, which no search makes, ends there."""
    found: dict[str, int] = {}
    for start in known:
        path: list[str] = []
        at: str | None = start
        while at is not None and at not in found and at not in path:
            path.append(at)
            parents = known[at].origin.parents
            at = parents[0] if parents and parents[0] in known else None
        depth = -1 if at is None else found.get(at, -1)
        for one in reversed(path):
            depth += 1
            found[one] = depth
    return found


def line_to(members: Sequence[Member], returned: str) -> list[Member]:
    """Return the members that led to the returned candidate, the oldest first and itself last."""
    by_id = {member.candidate.id: member for member in members}
    if returned not in by_id:
        return []
    known = {one: member.candidate for one, member in by_id.items()}
    return [by_id[candidate.id] for candidate in line_of(by_id[returned].candidate, known)]


def moves_of(trials: Sequence[Trial]) -> tuple[MoveTally, ...]:
    """Return what each kind of move was worth, the most used first; the student's own prompts are no move's."""
    by_id = {trial.candidate.id: trial for trial in trials}
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.candidate.origin.move != "student":
            groups.setdefault(trial.candidate.origin.move, []).append(trial)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple(_tally(move, made, by_id, _whole(trials)) for move, made in ordered)


def _tally(move: str, made: Sequence[Trial], by_id: Mapping[str, Trial], whole: int) -> MoveTally:
    together = any(trial.together for trial in by_id.values())
    changes = []
    for child in made:
        parents = child.candidate.origin.parents
        if parents and parents[0] in by_id:
            change = _change(by_id[parents[0]], child, together)
            changes += [] if math.isnan(change) else [change]
    scored = [trial.mean for trial in made if trial.n >= whole and not math.isnan(trial.mean)]
    return MoveTally(
        move,
        len(made),
        sum(change > 0 for change in changes),
        len(changes),
        mean(changes),
        max(scored, default=math.nan),
    )


def _change(parent: Trial, child: Trial, together: bool) -> float:
    """Return what a child scored above its parent; NaN where the two cannot be compared."""
    if together:
        return child.mean - parent.mean if child.n == parent.n else math.nan
    return mean([a - b for a, b in zip(child.scores, parent.scores, strict=True) if a is not None and b is not None])


def picture_of(members: Sequence[Member], returned: str, factor: float) -> FamilyPicture | None:
    """Return the picture of a family; None where there is nothing to see.

    Args:
        members: Best first.
        returned: Id of the returned candidate.
        factor: What scores are multiplied by.
    """
    line = {member.candidate.id for member in line_to(members, returned)}
    scored = [m for m in members if not math.isnan(m.score)]
    drawn = [m for m in scored if m.candidate.id in line or "student" in m.roles or m.rank <= _MOST_DRAWN]
    depth = max((m.generation for m in drawn), default=0)
    if len(drawn) < 3 or not depth:
        return None
    y = scale_of([factor * m.score for m in drawn], HEIGHT - _BOTTOM, _TOP)
    width = (WIDTH - _LEFT - _RIGHT) / (depth + 1)
    places, count = {}, dict.fromkeys(range(depth + 1), 0)
    for m in drawn:
        count[m.generation] += 1
        aside = 0.0 if m.candidate.id in line else (count[m.generation] * _GOLDEN) % 1 - 0.5
        x = _LEFT + (m.generation + 0.5 + 0.7 * aside) * width
        places[m.candidate.id] = f"{x:.0f}", y(factor * m.score)
    on_top = sorted(drawn, key=lambda m: m.candidate.id in line)
    edges = [
        (*places[m.candidate.origin.parents[0]], *places[m.candidate.id], m.candidate.id in line)
        for m in on_top
        if m.candidate.origin.parents and m.candidate.origin.parents[0] in places
    ]
    nodes = [
        FamilyMember(*places[m.candidate.id], _role(m, line), f"{m.candidate.origin.move}, {factor * m.score:.3g}")
        for m in on_top
    ]
    generations = [Tick(f"{_LEFT + (k + 0.5) * width:.0f}", str(k)) for k in range(0, depth + 1, 1 + depth // 16)]
    return FamilyPicture(tuple(nodes), tuple(edges), tuple(generations), ticks(y, False), len(scored) - len(drawn))


def _role(member: Member, line: set[str]) -> str:
    for role in ("returned", "student"):
        if role in member.roles:
            return role
    return "line" if member.candidate.id in line else "part" if member.partial else "other"
