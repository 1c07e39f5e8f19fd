"""Instruction following: a target that skips a step is found to skip it; rules, judges and their agreement."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import dspy
import pytest
from e2e_support import ToyEngine, exact, number, toy_lm, words
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cuesmith.programs.diagnosis.following import (
    Following,
    Response,
    Rule,
    agreement,
    check,
    following,
    rules_of,
    section_of,
)
from cuesmith.programs.diagnosis.run_record import RunRecord
from cuesmith.signatures import render_steps
from cuesmith.teleprompters.behavior.steps import by_rule, first_missing
from cuesmith.teleprompters.compiler import Compiler
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.outcomes import ParseFailure, ProviderFailure, rank
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.search.examples import Failure

STEPS = ("Write the sentence.", "Number its words.", "Name the last word.", "Check that it is there.", "Give it.")
RULES = tuple(Rule(text, k) for k, text in enumerate(STEPS, 1))


class Written(Compiler):
    """Scores prompts that are written already."""

    texts: tuple[str, ...] = ()

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return what `search` asks for."""
        return Plan(0, len(self.texts) * (n_select + n_train))

    async def search(self, run: Run) -> Candidate:
        """Score them all."""
        base, name = run.baseline, run.baseline.names[0]
        made = [base.replace(name, instructions=text, origin=Origin("write", (base.id,))) for text in self.texts]
        await run.score(made, run.train)  # training runs must not be counted
        beam = rank(await run.score([base, *made], run.select))
        await run.record(0, beam)
        return beam[0].candidate


def finished(
    directory: Path, target: Callable[[str, str], str], *texts: str, n: int = 80, student: dspy.Module | None = None
) -> RunRecord:
    """Run prompts on a scripted target: (system, question) -> its reply."""

    def reply(system: str, user: str, drawn: int | None) -> str:
        found = re.search(r"\[\[ ## question ## \]\]\s*(say \S+)", user)
        return target(system, found[1] if found else "")

    compiler = Written(exact)
    compiler.texts = texts
    with dspy.context(lm=toy_lm(ToyEngine(reply=reply))):
        compiler.compile(
            student or dspy.ChainOfThought("question -> answer"),
            trainset=words(12, "t"),
            valset=words(n, "v"),
            run_dir=directory,
        )
    return RunRecord.read(directory)


def skipping(
    skips: Callable[[str], Sequence[int]], right: Callable[[str, Sequence[int]], bool] = lambda q, s: True
) -> Callable[[str, str], str]:
    """A target that leaves out steps where it is given any; without, it is wrong."""

    def target(system: str, question: str) -> str:
        if "Step 1" not in system:
            return "[[ ## reasoning ## ]]\nhm\n\n[[ ## answer ## ]]\nno\n\n[[ ## completed ## ]]"
        skipped = skips(question)
        lines = [f"Step {k}: work of {k}" for k in range(1, len(STEPS) + 1) if k not in skipped]
        answer = question.split()[-1] if right(question, skipped) else "no"
        return "[[ ## reasoning ## ]]\n{}\n\n[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]".format(
            "\n".join(lines), answer
        )

    return target


PROMPT = render_steps("Repeat the word.", STEPS)


def one(record: RunRecord) -> Following:
    found = following(record)
    assert len(found) == 1
    return found[0]


def test_a_target_that_skips_step_3_is_found_to_skip_step_3(tmp_path: Path) -> None:
    found = one(finished(tmp_path, skipping(lambda question: [3]), PROMPT))
    assert [share.mean for share in found.by_rule] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert found.first_failure == {3: found.checked} and found.checked == 80
    assert found.rate.mean == pytest.approx(0.8) and found.full.mean == 0.0
    assert math.isnan(found.value.value) and found.p_value == 1.0
    section = section_of(found)
    assert "rule 3 first (80 responses)" in section.summary
    third = next(f for f in section.figures if f.name.startswith("Rule 3"))
    assert third.value == 0 and "80 of the responses" in third.meaning and STEPS[2] in third.name


def test_a_target_that_follows_is_found_to_follow(tmp_path: Path) -> None:
    found = one(finished(tmp_path, skipping(lambda question: []), PROMPT))
    assert found.full.mean == found.rate.mean == 1.0 and found.first_failure == {}
    expected = stats.binomtest(80, 80).proportion_ci(method="wilson")
    assert found.full.low == found.rate.low == pytest.approx(expected.low)


def test_the_share_that_skips_is_measured(tmp_path: Path) -> None:
    """It skips step 3 on 30 % of the questions, and is then right half as often."""

    def skips(question: str) -> list[int]:
        return [3] * (number("skip", question) % 10 < 3)

    def right(question: str, skipped: Sequence[int]) -> bool:
        return number("right", question) % 100 < (45 if skipped else 90)

    record = finished(tmp_path, skipping(skips, right), PROMPT, n=160)
    found = one(record)
    runs = record.held_out(record.best).values()
    questions = [str(o.trace[0].inputs["question"]) for o in runs]  # type: ignore[union-attr]
    known = [(bool(skips(q)), right(q, skips(q))) for q in questions]
    followed, not_followed = ([r for s, r in known if s is which] for which in (False, True))
    assert found.checked == len(questions) >= 90
    assert found.by_rule[2].mean == found.full.mean == pytest.approx(len(followed) / len(questions))
    assert found.by_rule[2].low < 0.7 < found.by_rule[2].high
    assert found.rate.mean == pytest.approx((4 + found.by_rule[2].mean) / 5)
    expected = sum(followed) / len(followed) - sum(not_followed) / len(not_followed)
    assert found.value.value == pytest.approx(expected) and found.value.low > 0
    assert found.p_value < 0.01
    assert "right more often" in next(f for f in section_of(found).figures if f.name.startswith("Right")).meaning


def test_the_value_of_following_as_fisher_has_it(tmp_path: Path) -> None:
    target = skipping(lambda q: [2] * (number(q) % 2), lambda q, skipped: bool(number("right", q) % 3))
    record = finished(tmp_path, target, PROMPT)
    found = one(record)
    held = record.held_out(record.best)
    table = {(f, c): 0 for f in (True, False) for c in (True, False)}
    for outcome in held.values():
        trace = outcome.trace  # type: ignore[union-attr]
        table["Step 2" in str(trace[0].outputs["reasoning"]), outcome.score == 1.0] += 1  # type: ignore[union-attr]
    rows = [[table[True, True], table[True, False]], [table[False, True], table[False, False]]]
    assert found.p_value == pytest.approx(stats.fisher_exact(rows).pvalue)
    assert found.value.value == pytest.approx(rows[0][0] / sum(rows[0]) - rows[1][0] / sum(rows[1]))


def test_positions_are_pooled_over_all_prompts(tmp_path: Path) -> None:
    """A target that never gets beyond the second step, of whatever prompt."""
    short = render_steps("Repeat the word, shortly.", STEPS[:3])
    record = finished(tmp_path, skipping(lambda question: [3, 4, 5]), PROMPT, short)
    found = one(record)
    assert [round(share.mean, 6) for share in found.by_position] == [1.0, 1.0, 0.0, 0.0, 0.0]
    mine = len(record.held_out(record.best))
    both = sum(len(record.held_out(c)) for c in record.candidates.values() if c != record.baseline)
    assert found.by_position[0].n == both > mine and found.by_position[4].n in (mine, both - mine)
    assert found.by_rule[0].n == mine


def test_training_examples_are_not_counted(tmp_path: Path) -> None:
    record = finished(tmp_path, skipping(lambda question: [3] * (question[4] == "t")), PROMPT)
    assert one(record).full.mean == 1.0
    assert sum(len(rows) for rows in record.outcomes.values()) > len(record.held_out(record.best)) + 12


def test_a_prompt_without_steps_has_nothing_to_follow(tmp_path: Path) -> None:
    record = finished(tmp_path, skipping(lambda question: []), PROMPT)
    assert following(dataclasses.replace(record, best=record.baseline)) == ()


def test_a_free_list_is_left_to_the_judge(tmp_path: Path) -> None:
    text = "Repeat the word.\n1. Write Step 1.\n2) Give the word."
    record = finished(tmp_path, skipping(lambda question: [3]), text)
    assert following(record) == ()
    found = following(record, judge=lambda rule, response: rule.startswith("Write"))
    assert [share.mean for share in found[0].by_rule] == [1.0, 0.0] and found[0].judged


def test_the_judge_sees_only_what_no_rule_decides(tmp_path: Path) -> None:
    asked: list[str] = []

    def judge(rule: str, response: str) -> bool | None:
        asked.append(rule)
        return None if rule == STEPS[3] else rule != STEPS[1]

    record = finished(tmp_path, skipping(lambda question: [3]), PROMPT)
    hand = [(STEPS[0], "a", True), (STEPS[1], "b", True), (STEPS[3], "c", True), (STEPS[1], "d", False)]
    found = following(record, judge=judge, hand=hand)[0]
    assert STEPS[2] not in asked
    assert [share.n for share in found.by_rule] == [80] * 5
    assert [share.mean for share in found.by_rule] == [1.0, 0.0, 0.0, 1.0, 1.0]  # of STEPS[3] there is the label
    assert (found.put, found.unclear) == (320, 80)
    assert found.first_failure == {2: 80} and found.agreement is not None
    assert (found.agreement.share.mean, found.agreement.share.n, found.agreement.undecided) == (
        pytest.approx(2 / 3),
        3,
        1,
    )  # type: ignore[comparison-overlap]
    names = [f.name for f in section_of(found).figures]
    assert any("agreement with hand labels" in name for name in names) and any("kappa" in name for name in names)


def test_replies_that_cannot_be_used_break_the_last_step(tmp_path: Path) -> None:
    def target(system: str, question: str) -> str:
        if "Step 1" in system and number(question) % 2:
            return "\n".join(f"Step {k}: work" for k in range(1, 6)) + " and no field"
        return skipping(lambda question: [])(system, question)

    record = finished(tmp_path, target, PROMPT)
    failed = sum(isinstance(o, ParseFailure) for o in record.held_out(record.best).values())
    found = one(record)
    assert 0 < failed < 80 and found.first_failure == {5: failed}
    assert [share.mean for share in found.by_rule[:4]] == [1.0] * 4


def test_missing_outcomes_are_left_out(tmp_path: Path) -> None:
    record = finished(tmp_path, skipping(lambda question: []), PROMPT)
    rows = {**record.outcomes[record.best.id], record.select[0].id: ProviderFailure("down")}
    torn = dataclasses.replace(record, outcomes={**record.outcomes, record.best.id: rows})
    assert one(torn).checked == 79


# --- rules ---------------------------------------------------------------------------------------------------


def response(text: str, parsed: bool = True) -> Response:
    return Response(text, text, parsed, True)


@pytest.mark.parametrize(
    ("text", "parsed", "expected"),
    [
        ("Step 1: a\nStep 2: b\nStep 3: c", True, (True, True, True)),
        ("step 1. a **Step 2:** b Step 3) c", True, (True, True, True)),
        ("Step 1: a\nStep 3: c", True, (True, False, True)),
        ("Step 1: a\nStep 3: c\nStep 2: b", True, (True, True, False)),
        ("Step 1: a\nStep 2:\nStep 3: c", True, (True, False, True)),
        ("Step 7: a\nStep 1: a\nStep 2: b\nStep 3: c", True, (True, True, True)),
        ("done", True, (False, False, False)),
        ("done", False, (None, None, False)),
        ("Step 1: a\nStep 2: b\nStep 3: c", False, (True, True, False)),
    ],
)
def test_check(text: str, parsed: bool, expected: tuple[bool | None, ...]) -> None:
    assert check(RULES[:3], response(text, parsed)) == expected
    assert check(RULES[:3], Response(text, None, True, True)) == (None, None, None)


@given(st.lists(st.integers(1, 6), max_size=9), st.booleans())
def test_the_first_failure_is_the_one_abo_finds(labels: list[int], parsed: bool) -> None:
    text = "\n".join(f"Step {k}: work" for k in labels)
    found = check(RULES, response(text, parsed))
    first = found.index(False) + 1 if False in found else None
    if parsed:
        assert first == first_missing(text, len(RULES))
    failure = Failure(dspy.Example(), {}, {}, text, text, parsed, "")
    ruled = by_rule(failure, len(RULES))
    if parsed or not labels or 1 in labels:  # ABO takes a reply that lacks only label 1 for one without labels
        assert (ruled[0] if ruled else None) == first


def test_rules_of() -> None:
    assert rules_of(PROMPT) == RULES
    assert rules_of("Count.\n1. Look.\n  2) Think hard.\nStep 3: Go.\n4 apples") == (
        Rule("Look."),
        Rule("Think hard."),
        Rule("Go."),
    )
    assert rules_of("Count the 3. things") == () == rules_of("")


def test_agreement() -> None:
    hand = [("r", str(i), i % 2 == 0) for i in range(20)]
    perfect = agreement(lambda rule, text: int(text) % 2 == 0, hand)
    assert perfect.share.mean == perfect.kappa == 1.0
    assert perfect.share.low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="wilson").low)
    lazy = agreement(lambda rule, text: True, hand)
    assert (lazy.share.mean, lazy.kappa) == (0.5, 0.0)
