"""Does the model do what the prompt tells it? Its responses, held against the rules of its prompt.

Rules first: a prompt with numbered steps asks for the work of each under its label, so a step without a label, in
its place and with something under it, was not followed. What a rule cannot tell is left to a judge, any function
(rule, response) -> bool, or None where it cannot tell either; its agreement with hand labels is reported.

Source: 2402.02101 finds that targets do not follow refined prompts; rules and figures are ours (the project's notes,
section 4.4).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cuesmith.programs.diagnosis import words
from cuesmith.programs.diagnosis.figures import Curve, Section, percent_curve
from cuesmith.programs.diagnosis.inference import Difference, fisher_exact, kappa, ratio, unpaired
from cuesmith.programs.diagnosis.run_record import RunRecord, passed
from cuesmith.signatures import parse_steps
from cuesmith.teleprompters.behavior.steps import labelled
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.evidence import REASONING, render_fields, text_of
from cuesmith.teleprompters.runtime.outcomes import Outcome, ParseFailure, Scored
from cuesmith.teleprompters.runtime.statistics import Estimate95, estimate95

Judge = Callable[[str, str], bool | None]
"""(rule, response) -> whether the response follows it; None if that cannot be told or the rule does not apply."""

SHORT = 80
"""Characters of a rule in the report."""
_LISTED = re.compile(r"^\s*(?:step\s*)?(\d{1,2})\s*[.):]\s+(\S.*)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Rule:
    """Something that a prompt demands.

    Attributes:
        text: The demand.
        label: The number k if the prompt asks for its work under "Step k:"; None if only a judge can check it.
    """

    text: str
    label: int | None = None


@dataclass(frozen=True)
class Response:
    """What a predictor wrote on one example.

    Attributes:
        text: All of it.
        work: The text in which labels stand; None if no field shows it.
        parsed: Whether it could be used.
        correct: Whether the program's answer was right; None where that is missing.
    """

    text: str
    work: str | None
    parsed: bool
    correct: bool | None


@dataclass(frozen=True)
class Agreement:
    """A judge against hand labels.

    Attributes:
        share: Share of the labelled pairs in which it says the same; undecided ones are left out.
        kappa: Cohen's kappa, agreement beyond chance; nan if both only ever said one thing.
        undecided: Pairs for which the judge gave None.
    """

    share: Estimate95
    kappa: float
    undecided: int


@dataclass(frozen=True, kw_only=True)
class Following:
    """How a prompt was followed.

    Attributes:
        candidate: Id of the prompt's candidate.
        predictor: The predictor that it is the prompt of.
        rules: What it demands, in order.
        rate: Share of the rules followed, of those that could be checked; n is the number of responses.
        by_rule: Share of the responses that follow each rule; n is the number that could be checked.
        by_position: The same pooled over all prompts of the run that have a rule at that position; empty for a sample.
        full: Share of the responses that follow every rule that could be checked.
        value: P(correct | all followed) - P(correct | not).
        p_value: Fisher's exact test of `value`; 1.0 where one of the groups is empty.
        first_failure: Position (from 1) of the first rule that was not followed -> number of responses.
        checked: Responses with at least one rule that could be checked.
        judged: Whether a judge took part.
        agreement: The judge's agreement with hand labels, if it was measured.
        put: Checks of this prompt's responses that were put to the judge.
        unclear: How many of them it could not decide: they count by rule, or not at all where no rule can tell.
    """

    candidate: str
    predictor: str
    rules: tuple[Rule, ...]
    rate: Estimate95
    by_rule: tuple[Estimate95, ...]
    by_position: tuple[Estimate95, ...] = ()
    full: Estimate95
    value: Difference
    p_value: float
    first_failure: Mapping[int, int]
    checked: int
    judged: bool = False
    agreement: Agreement | None = None
    put: int = 0
    unclear: int = 0


def rules_of(instructions: str) -> tuple[Rule, ...]:
    """Return the rules of a prompt: its numbered steps, or the lines of a numbered list.

    Only steps that the prompt asks to be worked under their labels can be checked without a judge.
    """
    parsed = parse_steps(instructions)
    if parsed is not None:
        return tuple(Rule(text, k) for k, text in enumerate(parsed[1], 1))
    return tuple(Rule(match[2].strip()) for match in _LISTED.finditer(instructions))


def check(rules: Sequence[Rule], response: Response, judge: Judge | None = None) -> tuple[bool | None, ...]:
    """Say of each rule whether a response follows it; None where nobody can tell.

    By rule: step k is followed if its label stands after that of the last step that was followed, with work under
    it. A reply that could not be used breaks the last step, which is about the answer's form; if it has no label
    at all, nothing is known of the others. These are the rules by which ABO finds the first deviating step. What is
    left, and what has its label, is put to the judge, if there is one: the label says that there is work, the judge
    whether it is the work that was asked for. Where the judge cannot tell, the label counts: if only rules that were
    found broken were known, every prompt would seem not to be followed.

    Args:
        rules: Of the prompt.
        response: To check.
        judge: For what a rule cannot tell.
    """
    found = _by_rule(rules, response)
    if judge is None:
        return found
    said = (None if one is False else judge(rule.text, response.text) for rule, one in zip(rules, found, strict=True))
    return tuple(one if judged is None else judged for one, judged in zip(found, said, strict=True))


def _by_rule(rules: Sequence[Rule], response: Response) -> tuple[bool | None, ...]:
    work = list(labelled(response.work)) if response.work is not None else []
    shown = bool(work) or (response.work is not None and response.parsed)
    found: list[bool | None] = []
    place = -1
    for rule in rules:
        if rule.label is None or not shown:
            found.append(None)
            continue
        here = next((i for i, (k, text) in enumerate(work) if i > place and k == rule.label and text), None)
        found.append(here is not None)
        place = place if here is None else here
    if not response.parsed and rules and rules[-1].label is not None:
        found[-1] = False
    return tuple(found)


def following(
    record: RunRecord,
    *,
    judge: Judge | None = None,
    hand: Sequence[tuple[str, str, bool]] = (),
    threshold: float = 1.0,
    sample: int | None = None,
) -> tuple[Following, ...]:
    """Check the journalled responses to the returned prompts, on all examples that are not training examples.

    Args:
        record: The run.
        judge: For what rules cannot tell.
        hand: Hand-labelled (rule, response, followed) triples, to measure the judge by; 20 are a start.
        threshold: A score from which on an answer counts as right.
        sample: At most so many responses to each prompt, chosen by chance, and to no other prompt of the run: for a
            judge that has its price. None takes all.

    Returns:
        One result for each predictor whose prompt has rules and whose responses could be checked.
    """
    measured = agreement(judge, hand) if judge is not None and hand else None
    found = []
    for name, prompt in record.best:
        counted: Counter[bool | None] = Counter()
        rules, asked = rules_of(prompt.instructions), None if judge is None else _counting(judge, counted)
        responses = _sampled(_responses(record, record.best, name, threshold), sample)
        checks = [check(rules, response, asked) for response in responses]
        if any(one is not None for row in checks for one in row):
            one = _following((record.best.id, name), rules, checks, [response.correct for response in responses])
            pooled = () if sample else _by_position(record, name, checks, judge, threshold)
            found.append(
                replace(
                    one,
                    by_position=pooled,
                    judged=judge is not None,
                    agreement=measured,
                    put=counted.total(),
                    unclear=counted[None],
                )
            )
    return tuple(found)


def pairs_of(record: RunRecord, *, threshold: float = 1.0, sample: int | None = None) -> list[tuple[str, str]]:
    """Return the pairs of a rule and a response that `following` puts to a judge, each once, in its order.

    Args:
        record: The run.
        threshold: As in `following`.
        sample: As in `following`.
    """
    pairs: dict[tuple[str, str], None] = {}
    following(
        record, judge=lambda rule, response: pairs.setdefault((rule, response)), threshold=threshold, sample=sample
    )
    return list(pairs)


def _counting(judge: Judge, counted: Counter[bool | None]) -> Judge:
    def ask(rule: str, response: str) -> bool | None:
        said = judge(rule, response)
        counted[said] += 1
        return said

    return ask


def _sampled(responses: list[Response], sample: int | None) -> list[Response]:
    """At most so many responses, in their order; the same ones each time."""
    if sample is None or len(responses) <= sample:
        return responses
    chosen = sorted(random.Random("following").sample(range(len(responses)), sample))
    return [responses[k] for k in chosen]


def _responses(record: RunRecord, candidate: Candidate, name: str, threshold: float) -> list[Response]:
    read = (_response(record, name, one, threshold) for one in record.held_out(candidate).values())
    return [one for one in read if one is not None]


def _response(record: RunRecord, name: str, outcome: Outcome, threshold: float) -> Response | None:
    """Return what predictor `name` wrote; None if it had no part in the run, or that is not known.

    A reply that could not be used is that of `ParseFailure.writer`.
    """
    if not isinstance(outcome, Scored | ParseFailure):
        return None
    fields = record.outputs.get(name, ())
    reasons = REASONING in fields and len(fields) > 1
    if isinstance(outcome, ParseFailure) and name == outcome.writer(list(record.outputs)):
        return Response(outcome.response, outcome.response, False, False)
    calls = [step for step in outcome.trace if step.predictor == name]
    if calls:
        outputs = calls[-1].outputs
        text = render_fields(outputs)
        answered = any(text_of(outputs.get(field, "")).strip() for field in fields if field != REASONING or not reasons)
        work = text_of(outputs.get(REASONING, "")) if reasons else text if any(labelled(text)) else None
        return Response(text, work, answered, passed(outcome, threshold))
    return None


def _following(
    who: tuple[str, str], rules: tuple[Rule, ...], checks: Sequence[tuple[bool | None, ...]],
    correct: Sequence[bool | None],
) -> Following:  # fmt: skip
    """What the checks of one prompt's responses say, and whether their answers were right."""
    known = [([c for c in row if c is not None], right) for row, right in zip(checks, correct, strict=True)]
    known = [(row, right) for row, right in known if row]
    scores = {full: [right for row, right in known if all(row) is full and right is not None] for full in (False, True)}
    first = Counter(row.index(False) + 1 for row in checks if False in row)
    return Following(
        candidate=who[0],
        predictor=who[1],
        rules=rules,
        rate=ratio([sum(row) for row, _ in known], [len(row) for row, _ in known]),
        by_rule=tuple(estimate95(column) for column in zip(*checks, strict=True)),
        full=estimate95(all(row) for row, _ in known),
        value=unpaired(scores[False], scores[True]),
        p_value=_fisher(scores[True], scores[False]),
        first_failure=dict(sorted(first.items())),
        checked=len(known),
    )


def _fisher(followed: Sequence[bool], not_followed: Sequence[bool]) -> float:
    if not followed or not not_followed:
        return 1.0
    a, c = sum(followed), sum(not_followed)
    return fisher_exact(a, len(followed) - a, c, len(not_followed) - c)


def _by_position(
    record: RunRecord, name: str, own: Sequence[tuple[bool | None, ...]], judge: Judge | None, threshold: float
) -> tuple[Estimate95, ...]:
    """Pool the checks of all prompts of the run by position; those of the returned one are made already."""
    rows = list(own)
    for candidate in record.candidates.values():
        rules = rules_of(candidate.prompts[name].instructions) if name in candidate.prompts else ()
        if candidate != record.best and rules:
            rows += [check(rules, one, judge) for one in _responses(record, candidate, name, threshold)]
    longest = max(map(len, rows), default=0)
    return tuple(estimate95([row[k] for row in rows if k < len(row)]) for k in range(longest))


def agreement(judge: Judge, hand: Sequence[tuple[str, str, bool]]) -> Agreement:
    """Measure a judge by hand-labelled pairs.

    Args:
        judge: To be measured.
        hand: (rule, response, whether a person finds it followed).
    """
    pairs = [(judge(rule, response), label) for rule, response, label in hand]
    decided = [(said, label) for said, label in pairs if said is not None]
    counts = Counter(decided)
    return Agreement(
        share=estimate95(said == label for said, label in decided),
        kappa=kappa(counts[True, True], counts[True, False], counts[False, True], counts[False, False]),
        undecided=len(pairs) - len(decided),
    )


def section_of(found: Following) -> Section:
    """Put a result into words and figures."""
    lines = [" ".join(rule.text.split()) for rule in found.rules]
    short = [line if len(line) <= SHORT else f"{line[: SHORT - 3]}..." for line in lines]
    return words.section_of("diagnosis/following", found, tuple(_curves(found)), short)


def _curves(found: Following) -> Iterator[Curve]:
    for name, shares in (("this prompt", found.by_rule), ("all prompts of the run", found.by_position)):
        if shares:
            yield percent_curve(name, list(enumerate(shares, 1)), "position of the rule", "followed (%)")
