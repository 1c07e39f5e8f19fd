"""The simulated optimizer's critiques and edits: made from the evidence, and each from what the one before says."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuesmith.modules.embedded.families import FAMILIES, Family
from cuesmith.modules.simulated_optimizer import Asked, FieldValue, SimulatedOptimizerEngine, Truth
from cuesmith.signatures import (
    CriticizeInstruction,
    EditInstruction,
    ProposeInstruction,
    ReflectOnFailures,
    ReflectOnSuccesses,
    RewriteInstruction,
    SummarizeReasons,
    VaryInstructions,
    render_steps,
)
from cuesmith.teleprompters.runtime.evidence import render_fields, shown_example, shown_failure

ENGINE = SimulatedOptimizerEngine()
PRIOR = SimulatedOptimizerEngine(prior_bias=1.0)
NOISY = SimulatedOptimizerEngine(noise=1.0)
VAGUE = "Given the fields `question`, produce the fields `answer`."
STRANGE = [f"sentence: the robin sang {k} times\nexpected mood: happy{k}\nresponse: mood: sad" for k in range(4)]


def answers(family: Family, n: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(f"{family.name}{seed}")
    questions = [family.sample(rng, held_out=True) for _ in range(n)]
    solved = [(question, family.solve(question)) for question in questions]
    return [(question, solution.answer) for question, solution in solved if solution is not None]


def failing(family: Family, n: int = 6, seed: int = 0, answer: str = "no idea") -> list[str]:
    """Failures as compilers show them; "{}" in `answer` is the right one."""
    shown = []
    for question, gold in answers(family, n, seed):
        response = render_fields({"reasoning": "I looked at it.", "answer": answer.replace("{}", gold)})
        shown.append(shown_failure({"question": question}, {"answer": gold}, response, "not the expected answer"))
    return shown


def solved(family: Family, n: int = 6, seed: int = 0) -> list[str]:
    return [shown_example({"question": question}, {"answer": gold}) for question, gold in answers(family, n, seed)]


def text(asked: Asked, draw: int = 0, engine: SimulatedOptimizerEngine = ENGINE) -> str:
    """The answer's one text."""
    return str([*engine.answer(asked, draw).values()][-1])


def texts(asked: Asked, draw: int = 0, engine: SimulatedOptimizerEngine = ENGINE) -> list[str]:
    answer = engine.answer(asked, draw)
    value = next(answer[name] for name in answer if name != "analysis")
    assert isinstance(value, list)
    return [str(item) for item in value]


def criticize(instruction: str, failures: list[str], count: int = 1) -> Asked:
    return Asked.of(CriticizeInstruction, instruction=instruction, failures=failures, count=count)


def edit(instruction: str, reason: str, failures: Sequence[str] = ()) -> Asked:
    return Asked.of(EditInstruction, instruction=instruction, failures=list(failures), reason=reason)


def rewrite(instruction: str, reflection: str, trajectory: Sequence[str] = (), evidence: Sequence[str] = ()) -> Asked:
    return Asked.of(
        RewriteInstruction, instruction=instruction, evidence=list(evidence), reflection=reflection,
        trajectory=list(trajectory),
    )  # fmt: skip


def summarize(reasons: list[str]) -> Asked:
    return Asked.of(SummarizeReasons, instruction=VAGUE, reasons=reasons)


def propose(scored: dict[str, int], exemplars: list[str]) -> Asked:
    history = [f"text: {instruction}\nscore: {score}" for instruction, score in scored.items()]
    return Asked.of(
        ProposeInstruction, scored_instructions=history, exemplars=[f"<INS>\n{shown}" for shown in exemplars]
    )


def reflect(instruction: str, failures: list[str]) -> Asked:
    return Asked.of(ReflectOnFailures, instruction=instruction, failures=failures)


def praise(instruction: str, successes: list[str]) -> Asked:
    return Asked.of(ReflectOnSuccesses, instruction=instruction, successes=successes)


def named(saying: str) -> tuple[str, ...]:
    """The families that the model recognises in a text."""
    return ENGINE.truth(edit("", saying), 0).families


ABOUT: dict[str, Callable[[str, Family, int], Asked]] = {
    "criticize": lambda instruction, family, seed: criticize(instruction, failing(family, seed=seed), 3),
    "reflect": lambda instruction, family, seed: reflect(instruction, failing(family, seed=seed)),
    "praise": lambda instruction, family, seed: praise(instruction, solved(family, seed=seed)),
    "propose": lambda instruction, family, seed: propose({instruction: 40}, solved(family, seed=seed)),
}
"""Requests that show evidence of a family."""


# --- from the evidence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("request_name", ABOUT)
def test_the_task_is_named_from_the_evidence(request_name: str, name: str) -> None:
    family, hits = FAMILIES[name], 0
    for seed in range(5):
        asked = ABOUT[request_name](VAGUE, family, seed)
        for d in range(20):
            assert ENGINE.truth(asked, d).source == "evidence"
            said = texts(asked, d) if request_name == "criticize" else [text(asked, d)]
            hits += all(named(one) == (name,) for one in said)
    assert hits >= 95


@pytest.mark.parametrize("name", FAMILIES)
def test_reasons_and_reflections_lead_to_precise_instructions(name: str) -> None:
    failures, successes = failing(FAMILIES[name]), solved(FAMILIES[name])
    assert ENGINE.truth(criticize(VAGUE, failures), 0).families == (name,)
    for d in range(12):
        reason = texts(criticize(VAGUE, failures), d)[0]
        edited = text(edit(VAGUE, reason, failures), d)
        assert ENGINE.truth(Asked.of(VaryInstructions, instruction=edited), 0).families == (name,)  # nothing but that
        for reflection in (text(reflect(VAGUE, failures), d), text(praise(VAGUE, successes), d)):
            rewritten = text(rewrite(VAGUE, reflection, [VAGUE], failures), d)
            assert ENGINE.truth(Asked.of(VaryInstructions, instruction=rewritten), 0).families == (name,)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_a_precise_instruction_the_steps_or_the_form_are_at_fault(name: str) -> None:
    family = FAMILIES[name]
    precise = family.instructions[0]
    for answer, wanted in (("no idea", "step|work|intermediate|part"), ("It is {}, I think.", "form|words|else|bare")):
        asked = criticize(precise, failing(family, answer=answer))
        reasons = [texts(asked, d)[0] for d in range(20)]
        assert all(named(reason) == (name,) for reason in reasons)
        assert sum(any(word in reason for word in wanted.split("|")) for reason in reasons) >= 14
        for d, reason in enumerate(reasons):
            edited = text(edit(precise, reason), d)
            assert named(edited) == (name,) and edited != precise
            again = text(edit(edited, reason), d)  # editing on does not pile up hints
            assert named(again) == (name,) and len(again) < 2 * len(precise) + 120
        kept = text(praise(precise, solved(family)))
        assert named(kept) == (name,) and text(rewrite(precise, kept, [precise])) != precise


def test_a_fault_that_was_mended_is_not_found_again() -> None:
    family = FAMILIES["reverse"]
    precise = family.instructions[0]
    stepped = render_steps(precise, ["Number the words.", "Give the words."])
    for instruction, unlikely in (
        (f"{precise} Work step by step.", "step|work|intermediate|part"), (stepped, "step|work|intermediate|part"),
        (f"{precise} Give only the answer.", "form|other words|else|bare"),
    ):  # fmt: skip
        for answer in ("no idea", "It is {}, I think."):
            reasons = [texts(criticize(instruction, failing(family, answer=answer)), d)[0] for d in range(20)]
            assert sum(any(word in reason for word in unlikely.split("|")) for reason in reasons) <= 6
            edited = text(edit(instruction, reasons[0]))
            assert named(edited) == ("reverse",)
            assert ("tep by step" in edited) == ("tep by step" in instruction)  # what was there before stays


def test_the_reflection_examines_every_failure() -> None:
    family = FAMILIES["sum"]
    lines = text(reflect(VAGUE, failing(family, 4))).splitlines()
    for line, (_, gold) in zip(lines, answers(family, 4), strict=False):
        assert f'should give "{gold}" and ends in' in line and "no idea" in line
    assert lines[4] == "Aspects to improve:" and len(lines) == 7


def test_several_outputs_are_several_tasks_all_the_way() -> None:
    rows = answers(FAMILIES["reverse"], 6)
    shown = [{"question": question, "answer": gold, "size": str(len(gold.split()))} for question, gold in rows]
    failures = [
        shown_failure({"question": row["question"]}, {"answer": row["answer"], "size": row["size"]}, "answer: no")
        for row in shown
    ]
    for d in range(10):
        reason = texts(criticize(VAGUE, failures), d)[0]
        assert named(reason) == ("reverse", "count")
        edited = text(edit(VAGUE, reason, failures), d)
        assert named(edited) == ("reverse", "count") and "For `answer`:" in edited and "For `size`:" in edited
        assert set(named(texts(criticize(edited, failures), d)[0])) == {"reverse", "count"}
        assert text(edit(edited, reason, failures), d).count("For `") == 2  # said anew, not once more
    proposed = text(propose({VAGUE: 3}, [render_fields(row) for row in shown]))
    assert named(proposed) == ("reverse", "count")


def test_evidence_that_fits_two_families_is_read_as_the_instruction_says() -> None:
    failures = [
        shown_failure({"question": question}, {"answer": "3"}, "answer: no")
        for question in ("I have a dog, a cat, and a cow.", "I have a pig, a bee, and an owl.")
    ]
    found = {ENGINE.truth(criticize(VAGUE, failures), d).families[0] for d in range(60)}
    assert found == {"objects", "items", "animals"}
    for name in found:
        asked = criticize(FAMILIES[name].instructions[1], failures)
        assert {ENGINE.truth(asked, d).families for d in range(30)} == {(name,)}


# --- from the words of the critique ------------------------------------------------------------------------


def test_an_edit_follows_its_reason_and_not_the_failures() -> None:
    failures = failing(FAMILIES["animals"])
    for name in FAMILIES:
        reason = texts(criticize(VAGUE, failing(FAMILIES[name])))[0]
        asked = edit(VAGUE, reason, failures)
        assert ENGINE.truth(asked, 0) == Truth("evidence", (name,))
        assert {named(text(asked, d)) for d in range(10)} == {(name,)}


def test_a_biased_critique_makes_a_useless_edit() -> None:
    failures = failing(FAMILIES["animals"])
    for instruction in (VAGUE, "Count only the animals."):
        for d in range(12):
            reason = texts(criticize(instruction, failures), d, PRIOR)[0]
            reflection = text(reflect(instruction, failures), d, PRIOR)
            for asked in (edit(instruction, reason, failures), rewrite(instruction, reflection, (), failures)):
                changed = text(asked, d)
                assert ENGINE.truth(asked, d) == Truth("evidence", ())
                assert instruction in changed and len(changed) > len(instruction) + 8  # advice is added, no more
                assert named(changed) == named(instruction)


def test_advice_is_added_in_its_own_words_and_not_twice() -> None:
    once = text(edit("Add all the numbers.", "It should say more clearly to consider edge cases."))
    assert "onsider edge cases" in once and "Add all the numbers." in once
    twice = text(edit(once, "Nothing in it makes the model consider edge cases."))
    assert twice != once and twice.lower().count("consider edge cases") == 1


def test_the_first_point_of_a_summary_decides() -> None:
    points = ["The instruction does not ask for the sum of the numbers.", "It lacks the demand for the largest number."]
    summary = "\n".join(f"- {point} (said by {3 - k} of 3 reflections)" for k, point in enumerate(points))
    assert named(text(edit(VAGUE, summary))) == ("sum",)
    advice = "- There is no request to avoid common mistakes. (said by 4 of 7 reflections)"
    before, behind = text(edit(VAGUE, f"{advice}\n{summary}")), text(edit(VAGUE, f"{summary}\n{advice}"))
    assert named(before) == named(behind) == ("sum",)
    assert "Avoid common mistakes." in before and "mistakes" not in behind


def test_a_critique_by_somebody_else_is_acted_on() -> None:
    said = text(edit(VAGUE, "The instruction does not say that dates are written as in 2024-05-31."))
    assert "Dates are written as in 2024-05-31." in said and VAGUE in said
    assert "German" in text(edit(VAGUE, "Wants German."))
    assert named(text(edit(VAGUE, "Users expect the largest number, I think."))) == ("max",)
    assert named("The first word of the list does not matter. Count the words.") == ("count",)


def test_an_edit_keeps_steps_and_what_else_was_demanded() -> None:
    reason = "It never says that what is wanted is the number of words."
    stepped = render_steps(VAGUE, ["Number the words.", "Give the last number."], "question: x\nStep 1: y")
    edited = text(edit(stepped, reason))
    assert named(edited) == ("count",) and edited.endswith(stepped.removeprefix(VAGUE)) and VAGUE not in edited
    bare = render_steps("", ["Number the words.", "Give the last number."])
    assert text(edit(bare, reason)).endswith(f"\n\n{bare}")
    for task in (VAGUE, "Answer the question.", "Task: How many words are in the list?", "Find the thing!"):
        edited = text(edit(f"{task} Handle hyphens in the text as letters. Be careful.", reason))
        assert named(edited) == ("count",)
        assert edited.endswith(" Handle hyphens in the text as letters. Be careful.") and task not in edited
    listed = text(edit("Answer the question:\n- in one line.\n- without units", reason))
    assert listed.endswith("\n- in one line.\n- without units")


@given(st.text(st.sampled_from("ab .!?:\n-`1é"), max_size=50), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_an_edit_by_a_named_task_names_it_whatever_was_there(instruction: str, d: int) -> None:
    assert named(text(edit(instruction, "It lacks the demand for the sum of the numbers."), d)) == ("sum",)


# --- summaries ---------------------------------------------------------------------------------------------


KINDS = st.lists(st.sampled_from(["sum", "max", "steps", "advice", "other"]), min_size=1, max_size=12)


@given(KINDS, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_reasons_that_say_the_same_are_merged_and_counted(kinds: list[str], d: int) -> None:
    ways = {
        "sum": texts(criticize(VAGUE, failing(FAMILIES["sum"]), 12)),
        "max": texts(criticize(VAGUE, failing(FAMILIES["max"]), 12)),
        "steps": ["It should have the model work out the sum of the numbers step by step."],
        "advice": ["There is no request to be more specific.", "It should say more clearly to be more specific."],
        "other": ["Wants German.", "wants   GERMAN"],
    }
    reasons = [ways[kind][k % len(ways[kind])] for k, kind in enumerate(kinds)]
    answer = ENGINE.answer(summarize(reasons), d)
    assert answer["support"] == sorted(Counter(kinds).values(), reverse=True)
    assert isinstance(answer["points"], list)
    shown = [ENGINE.answer(summarize([str(point)] * 2), 0)["support"] for point in answer["points"]]
    assert shown == [[2]] * len(set(kinds))
    families = [named(str(point)) for point in answer["points"]]
    wanted = {"sum": ("sum",), "steps": ("sum",), "max": ("max",), "advice": (), "other": ()}
    assert Counter(families) == Counter(wanted[kind] for kind in set(kinds))


def test_summaries_by_the_knobs() -> None:
    reasons = [*texts(criticize(VAGUE, failing(FAMILIES["sum"]), 3)), "Wants German."]
    for d in range(10):
        biased, wrong = PRIOR.answer(summarize(reasons), d), NOISY.answer(summarize(reasons), d)
        assert biased["support"] == [4] and named(str(biased["points"])) == ()
        assert wrong["support"] == [4] and "German" not in str(wrong["points"])  # the rare point is lost
    assert ENGINE.answer(summarize([]), 0) == {"points": [], "support": []}
    assert ENGINE.truth(summarize([" ", "..."]), 0) == Truth("fallback", ())
    assert ENGINE.truth(summarize(reasons), 0) == Truth("evidence", ("sum",))


# --- trajectories and histories ----------------------------------------------------------------------------


def test_a_rewrite_repeats_nothing_of_its_trajectory() -> None:
    reflection = text(reflect(VAGUE, failing(FAMILIES["min"])))
    trajectory = [VAGUE]
    for d in range(50):
        trajectory.append(text(rewrite(VAGUE, reflection, trajectory), d))
    assert len(set(trajectory)) == 51
    assert all(named(rewritten) == ("min",) for rewritten in trajectory[1:])
    advice = text(rewrite(VAGUE, "Aspects to improve:\n1. There is no request to be clear and concise."))
    assert text(rewrite(VAGUE, "1. There is no request to be clear and concise.", [advice])) != advice


def test_proposals_are_new_and_follow_the_exemplars() -> None:
    exemplars, scored = solved(FAMILIES["fruits"]), {"Do it.": 5}
    for d in range(50):
        proposed = text(propose(scored, exemplars), d)
        assert proposed not in scored and named(proposed) == ("fruits",)
        scored[proposed] = 50 + d
    opro = [f"input:\nQ: {q}\nA: <INS>\noutput:\n{gold}" for q, gold in answers(FAMILIES["fruits"], 4)]
    asked = Asked.of(ProposeInstruction, scored_instructions=[], exemplars=opro)
    assert ENGINE.truth(asked, 0) == Truth("evidence", ("fruits",))


def test_a_proposal_may_keep_what_the_best_text_has_beside_the_task() -> None:
    scored = {"Answer the question. Be fast.": 20, "Answer the question. Work step by step.": 63, VAGUE: 40}
    proposed = [text(propose(scored, solved(FAMILIES["fruits"])), d) for d in range(40)]
    assert {named(one) for one in proposed} == {("fruits",)}
    assert 5 < sum(one.endswith("Work step by step.") for one in proposed) < 35
    assert not any("fast" in one or "Answer the question" in one for one in proposed)


def test_a_biased_proposal_imitates_the_best_text() -> None:
    best = "Please look at the wobbly gizmo. Think about it."
    stepped = render_steps(best, ["Look.", "Say it."])
    asked = propose({"Answer the question.": 40, best: 63, "Do it.": 63 - 8}, solved(FAMILIES["fruits"]))
    for d in range(20):
        proposed = text(asked, d, PRIOR)
        assert "wobbly gizmo" in proposed and proposed != best and named(proposed) == ()
    again = text(propose({best: 9, stepped: 10}, solved(FAMILIES["fruits"])), 0, PRIOR)
    assert "wobbly gizmo" in again and again.endswith("Step 1: Look.\nStep 2: Say it.")


# --- knobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_name", ABOUT)
def test_the_prior_never_uses_the_evidence(request_name: str) -> None:
    for d in range(8):
        said = [text(ABOUT[request_name](VAGUE, family, 0), d, PRIOR) for family in FAMILIES.values()]
        assert {named(one) for one in said} == {()}
    for family in FAMILIES.values():
        assert PRIOR.truth(ABOUT[request_name](VAGUE, family, 0), 1) == Truth("prior", (family.name,))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prior_of_an_edit_ignores_its_reason_and_noise_spoils_it(name: str) -> None:
    reason = texts(criticize(VAGUE, failing(FAMILIES[name])))[0]
    for asked in (edit(VAGUE, reason), rewrite(VAGUE, reason)):
        for d in range(8):
            assert VAGUE in text(asked, d, PRIOR) and named(text(asked, d, PRIOR)) == ()
            assert named(text(asked, d, NOISY)) != (name,)
        assert PRIOR.truth(asked, 0) == Truth("prior", (name,)) and NOISY.truth(asked, 0) == Truth("noise", (name,))
    for request_name, ask in ABOUT.items():
        for d in range(8):
            asked = ask(VAGUE, FAMILIES[name], 0)
            said = texts(asked, d, NOISY) if request_name == "criticize" else [text(asked, d, NOISY)]
            assert all(named(one) != (name,) for one in said)


@pytest.mark.parametrize(("prior", "noise"), [(0.3, 0.0), (0.0, 0.4), (0.5, 0.5)])
def test_knobs_are_shares_of_every_request(prior: float, noise: float) -> None:
    engine = SimulatedOptimizerEngine(prior_bias=prior, noise=noise, seed=11)
    for asked in EVERY.values():
        sources = [engine.truth(asked, d).source for d in range(600)]
        assert sources.count("prior") / 600 == pytest.approx(prior, abs=0.08)
        assert sources.count("noise") / 600 == pytest.approx((1 - prior) * noise, abs=0.08)


# --- draws -------------------------------------------------------------------------------------------------

SUM = FAMILIES["sum"]
REASON = "It never says that what is wanted is the sum of the numbers."
ADVICE = "There is no request to be more specific."
EVERY = {
    "criticize": criticize(VAGUE, failing(SUM), 2), "criticize precise": criticize(SUM.instructions[0], failing(SUM)),
    "criticize strange": criticize(VAGUE, STRANGE), "edit": edit(VAGUE, REASON), "edit more": edit(VAGUE, ADVICE),
    "summarize": summarize([REASON, ADVICE]), "summarize advice": summarize([ADVICE]),
    "reflect": reflect(VAGUE, failing(SUM)), "praise": praise(VAGUE, solved(SUM)),
    "praise precise": praise(SUM.instructions[0], solved(SUM)), "rewrite": rewrite(VAGUE, REASON, [VAGUE]),
    "propose": propose({VAGUE: 4}, solved(SUM)),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_draws_of_one_ask_differ_and_repeat(name: str) -> None:
    asked = EVERY[name]
    for block in (0, 1024 * 7):
        found = [str(ENGINE.answer(asked, block + d)) for d in range(64)]
        assert len(set(found)) == 64
        assert found == [str(SimulatedOptimizerEngine().answer(asked, block + d)) for d in range(64)]
    assert found != [str(ENGINE.answer(asked, d)) for d in range(64)]
    assert found != [str(SimulatedOptimizerEngine(seed=1).answer(asked, 1024 * 7 + d)) for d in range(64)]
    assert ENGINE.answer(asked, 64) == SimulatedOptimizerEngine().answer(asked, 64)


@pytest.mark.parametrize(("count", "found"), [(-2, 1), (0, 1), (1, 1), (5, 5), (40, 40)])
def test_as_many_different_reasons_as_asked_for(count: int, found: int) -> None:
    for engine in (ENGINE, PRIOR, NOISY):
        for failures in (failing(SUM), STRANGE):
            reasons = texts(criticize(VAGUE, failures, count), 2, engine)
            assert len(reasons) == len(set(reasons)) == found


# --- without a family --------------------------------------------------------------------------------------


def test_without_a_family_the_surface_is_all_that_is_said() -> None:
    reasons = [texts(criticize(VAGUE, STRANGE), d)[0] for d in range(40)]
    assert any("robin" in reason for reason in reasons) and any("a few words" in reason for reason in reasons)
    assert not any("sad" in reason for reason in reasons)  # what was answered is no evidence
    for d, reason in enumerate(reasons):
        fact = reason.rpartition(" that ")[2].rstrip(".")
        edited = text(edit(VAGUE, reason, STRANGE), d)
        assert VAGUE in edited and fact[1:] in edited
    reflection = text(reflect(VAGUE, STRANGE))
    assert "Aspects to improve:" in reflection and named(reflection) == ()
    assert VAGUE in text(rewrite(VAGUE, reflection))
    assert "robin" in str([text(propose({VAGUE: 3}, STRANGE), d) for d in range(9)])


NOTHING: dict[str, Asked] = {
    "criticize": criticize("", []), "edit": edit("", ""), "edit known": edit("Add all the numbers.", " - "),
    "reflect": reflect("", []), "praise": praise("", []), "rewrite": rewrite("", ""), "propose": propose({}, []),
    "strange": criticize(VAGUE, STRANGE), "strange reflection": reflect(VAGUE, STRANGE),
    "strange history": Asked.of(ProposeInstruction, scored_instructions=["x", "text: y"], exemplars=STRANGE),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_with_nothing_to_go_by_there_is_still_a_sane_answer(name: str) -> None:
    for engine in (ENGINE, PRIOR, NOISY):
        for d in range(6):
            values: list[FieldValue] = list(engine.answer(NOTHING[name], d).values())
            assert all(str(value).strip(" []'") for value in values)
    assert ENGINE.truth(NOTHING[name], 0) == Truth("fallback", ())
    assert PRIOR.truth(NOTHING[name], 0).source == "prior" and NOISY.truth(NOTHING[name], 0).source == "noise"
    if name == "edit known":
        assert named(text(NOTHING[name])) == ("sum",) and text(NOTHING[name]) != "Add all the numbers."
