"""Models as judges, asking within caps, and similarity by an embedder: real requests, real servers, known truth."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import dspy
import numpy as np
import pytest
from diagnose_support import abo_run, run, said_by, toy_run
from e2e_support import KEY, Answer, Provider, ToyEngine, error_body, number, toy_lm

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated.grading import followed
from cuesmith.modules.simulated.request import Asked
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer, SimulatedOptimizerEngine
from cuesmith.programs import diagnose
from cuesmith.programs.diagnosis.asking import (
    Error,
    Evidence,
    Inquiry,
    OptimizerRequest,
    asked,
    requests_of,
)
from cuesmith.programs.diagnosis.embedders import SimilarityError, similarity_named
from cuesmith.programs.diagnosis.following import agreement, pairs_of
from cuesmith.programs.diagnosis.live import live, plan
from cuesmith.programs.diagnosis.lm_judges import (
    HAND,
    ConditionJudge,
    JudgeFailed,
    LabelsError,
    RuleJudge,
    describe,
    labels_of,
)
from cuesmith.programs.diagnosis.planted import drawn
from cuesmith.programs.diagnosis.run_record import RunRecord
from cuesmith.programs.diagnosis.validity import Feedback, Judging, ShownConditions, section_of, validity_of
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.signatures import CheckRule, IdentifyCondition
from cuesmith.teleprompters.registry import compile
from cuesmith.teleprompters.runtime.candidate import Candidate, Origin
from cuesmith.teleprompters.runtime.compilation import Trial
from cuesmith.teleprompters.runtime.ledger import Budget, UnknownPrice
from cuesmith.testing.fakes import chat, completion, sent_of

FAMILIES = ("sum", "reverse", "navigate")


def errors(family: str, n: int = 12) -> list[Error]:
    examples = generate(family, sizes=Sizes(n, 1, 1), seed=0).train
    return [Error({"question": e.question}, "answer: unknown", {"answer": e.answer}) for e in examples]


def families() -> dict[str, list[Evidence]]:
    return {name: drawn("Answer.", errors(name), n=20, label=name) for name in FAMILIES}


def reply(**fields: object) -> str:
    return chat(fields)


def judging_engine(vote: Callable[[int], str], **options: object) -> ToyEngine:
    """Answers `CheckRule` by the number of the draw among those of one pair, counted from 0."""
    seen: Counter[str] = Counter()

    def answer(system: str, user: str, drawn_: int | None) -> str:
        seen[user] += 1
        return reply(followed=vote(seen[user] - 1))

    return ToyEngine(reply=answer, **options)  # type: ignore[arg-type]


# --- the simulated judge -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "response", "expected"),
    [
        ("Begin the work of each step with its label.", "Step 1: a\nStep 2: b", True),
        ("Begin the work of each step with its label.", "Step 2: b\nStep 1: a", False),
        ("Begin the work of each step with its label.", "a, then b", False),
        ("Use bullets.", "- a\n* b", True), ("Use bullets.", "reasoning: - a\nanswer: a and b", False),
        ("Give only the number.", "reasoning: many words\nanswer: -4.5", True),
        ("Answer with one word.", "answer: well done", False),
        ("At least 3 words.", "a b", False), ("Write up to two sentences.", "It is 4.5 km. So far!", True),
        ("Write exactly one sentence.", "One. Two.", False), ("Answer in three sentences.", "A b. C d. E f?", True),
        ("Use capital letters.", "NO", True),
        ("Answer yes or no.", "Yes.", True), ("Answer yes or no.", "maybe", False),
        ("Begin your answer with 'Well'.", "answer: Well, yes", True), ("End with \"bye\".", "bye bye, you", False),
        ("Do not use the word 'very'.", "answer: a very good one", False),
        ("Do not use the word 'very'.", "answer: every one", True),
        ("Mention the word 'price'.", "the price is 4", True),
        ("Think about it.", "I did.", None), ("", "a", None),
    ],
)  # fmt: skip
def test_what_can_be_checked_by_its_words(rule: str, response: str, expected: bool | None) -> None:
    assert followed(rule, response) is expected


def test_the_simulated_judge_against_the_hand_labels() -> None:
    assert len(HAND) == 24 and sum(label for *_, label in HAND) == 12 and len({pair[:2] for pair in HAND}) == 24
    judge = RuleJudge(Inquiry(SimulatedOptimizer()))
    found = agreement(judge, HAND)
    assert (found.share.mean, found.share.n, found.undecided, found.kappa) == (1.0, 12, 12, 1.0)
    biased = agreement(RuleJudge(Inquiry(SimulatedOptimizer(prior_bias=1.0))), HAND)
    assert (biased.share.mean, biased.share.n, biased.kappa) == (0.5, 24, 0.0)  # "yes" to everything
    wrong = agreement(RuleJudge(Inquiry(SimulatedOptimizer(noise=1.0))), HAND[:12])
    assert (wrong.share.mean, wrong.share.n) == (0.0, 12)


def test_a_majority_outvotes_a_little_noise() -> None:
    """Draws are independent: of 0.2 wrong ones a majority of 3 leaves 0.104, of all three the same model's one 0.2."""
    pairs = [("Answer with a single word.", f"answer: w{k}", True) for k in range(150)]
    one = agreement(RuleJudge(Inquiry(SimulatedOptimizer(noise=0.2), max_in_flight=32), votes=1), pairs)
    three = agreement(RuleJudge(Inquiry(SimulatedOptimizer(noise=0.2), max_in_flight=32)), pairs)
    assert one.share.mean == pytest.approx(0.8, abs=0.08) and three.share.mean == pytest.approx(0.896, abs=0.06)


def test_conditions_are_identified_as_far_as_feedback_follows_the_errors() -> None:
    study = ShownConditions(families())
    told = describe(study.conditions)
    found = {}
    for bias in (0.0, 0.5, 1.0):
        said = asked(Inquiry(SimulatedOptimizer(prior_bias=bias)), study.parts)
        judge = ConditionJudge(Inquiry(SimulatedOptimizer()))
        found[bias] = validity_of(study.answered(said), judging=Judging(judge, told)).identified
    assert all(one.judged and one.undecided == 0 and one.chance == pytest.approx(1 / 3) for one in found.values())
    assert found[0.0].accuracy.mean == 1.0 and found[0.0].p_value < 1e-20
    assert found[0.5].accuracy.mean == pytest.approx(0.5 + 0.5 / 3, abs=0.15) and found[0.5].p_value < 0.001
    assert found[1.0].accuracy.low < 1 / 3 < found[1.0].accuracy.high and found[1.0].p_value > 0.05


def test_a_judge_that_goes_by_place_hits_by_chance_only() -> None:
    study, told = ShownConditions(families()), describe(families())
    feedback = study.answered(asked(Inquiry(SimulatedOptimizer()), study.parts))
    for first in (SimulatedOptimizer(prior_bias=1.0), toy_lm(ToyEngine(reply=lambda s, u, d: reply(condition="B")))):
        found = validity_of(feedback, judging=Judging(ConditionJudge(Inquiry(first)), told)).identified
        assert found.accuracy.low < 1 / 3 < found.accuracy.high and found.accuracy.n == 60
    wrong = validity_of(feedback, judging=Judging(ConditionJudge(Inquiry(SimulatedOptimizer(noise=1.0))), told))
    assert wrong.identified.accuracy.mean == 0.0


def test_descriptions_say_what_was_shown() -> None:
    told = describe(
        {
            "a": [
                Evidence(
                    "i", (Error({"q": "one"}, "r", {"answer": "x"}),) * 3 + (Error({"q": "two"}, "r", {"answer": "y"}),)
                )
            ]
        }
    )
    assert told["a"].splitlines()[0] == "right outputs: answer: x (75 %); answer: y (25 %)"
    assert told["a"].count("such as:") == 2 and "q: one" in told["a"] and "q: two" in told["a"]


def test_both_requests_of_the_simulated_optimizer_tell_their_source() -> None:
    asked = Asked.of(CheckRule, rule="Use bullets.", response="a")
    for prior, noise, source, said in (
        (0.0, 0.0, "evidence", "no"),
        (1.0, 0.0, "prior", "yes"),
        (0.0, 1.0, "noise", "yes"),
    ):
        engine = SimulatedOptimizerEngine(prior_bias=prior, noise=noise)
        assert (engine.truth(asked, 0).source, engine.answer(asked, 0)["followed"]) == (source, said)
    empty = Asked.of(IdentifyCondition, feedback="", conditions=["name: A\nx", "name: B\ny"])
    assert SimulatedOptimizerEngine().truth(empty, 0).source == "fallback"
    assert SimulatedOptimizerEngine().answer(empty, 0)["condition"] in ("A", "B")


# --- judges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "expected", "calls"),
    [(["yes", "yes"], True, 2), (["no", "no"], False, 2), (["yes", "no", "no"], False, 3),
     (["unclear", "yes", "yes"], True, 3), (["unclear", "no", "yes"], None, 3), (["unclear"] * 3, None, 3)],
)  # fmt: skip
def test_a_majority_of_three_takes_no_draw_too_many(votes: list[str], expected: bool | None, calls: int) -> None:
    engine = judging_engine(lambda k: votes[k])
    judge = RuleJudge(Inquiry(toy_lm(engine), max_in_flight=1))
    assert [judge("r", "t") for _ in range(3)] == [expected] * 3 and engine.calls == calls


def test_many_pairs_are_judged_at_once_and_none_twice() -> None:
    engine = judging_engine(lambda k: "yes", latency=0.02)
    judge = RuleJudge(Inquiry(toy_lm(engine), max_in_flight=16))
    pairs = [(f"rule {k % 7}", f"text {k}") for k in range(40)]
    judge.prefetch([*pairs, *pairs])
    assert engine.calls == 80 and engine.most >= 8
    assert all(judge(*pair) for pair in pairs) and engine.calls == 80
    with pytest.raises(ValueError, match="at least 1"):
        RuleJudge(Inquiry(toy_lm(engine)), votes=0)


def test_replies_that_cannot_be_used_are_counted_and_no_votes() -> None:
    engine = judging_engine(lambda k: ("yes", "perhaps", "yes")[k % 3])
    inquiry = Inquiry(toy_lm(engine, cache=False), max_in_flight=1)
    engine.says = lambda system, user, n: "no field at all" if "text 1" in user else reply(followed="yes")
    judge = RuleJudge(inquiry)
    judge.prefetch([("r", "text 0"), ("r", "text 1")])
    assert (judge("r", "text 0"), judge("r", "text 1")) == (True, None)
    assert (inquiry.answered, inquiry.unusable) == (2, 3)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("A", True),
        (" b.", True),
        ("name: C", True),
        ("**A**", True),
        ("D", False),
        ("A or B", False),
        ("the first", False),
    ],
)
def test_a_condition_has_to_be_one_of_the_names(said: str, known: bool) -> None:
    judge = ConditionJudge(Inquiry(toy_lm(ToyEngine(reply=lambda s, u, d: reply(condition=said)))))
    guess = judge("feedback", {"one": "1", "two": "2", "three": "3"})
    assert (guess in ("one", "two", "three")) if known else guess is None


def test_a_condition_that_is_blank_is_no_reply() -> None:
    judge = ConditionJudge(Inquiry(toy_lm(ToyEngine(reply=lambda s, u, d: reply(condition="")))))
    with pytest.raises(JudgeFailed, match="none of 1 replies could be used; the first: the reply is empty"):
        judge("feedback", {"one": "1", "two": "2", "three": "3"})


def test_feedback_without_a_guess_does_not_count() -> None:
    feedback = Feedback({"a": ["x 1", "x 2", "x 3"], "b": ["y 1", "y 2", "y 3"]})
    judge = Judging(lambda text, told: None if text.endswith("3") else "a")
    found = validity_of(feedback, judging=judge).identified
    assert (found.accuracy.mean, found.accuracy.n, found.undecided) == (0.5, 4, 2)
    none = validity_of(feedback, judging=Judging(lambda text, told: None)).identified
    assert math.isnan(none.accuracy.mean) and none.p_value == 1.0 and none.undecided == 6


def refusing(nth: int, body: Mapping[str, object]) -> Answer:
    return 401, {}, error_body(f"Incorrect API key provided: {KEY}.", "invalid_api_key")


def test_a_providers_failure_is_raised_without_the_key() -> None:
    with Provider(refusing) as provider:
        inquiry = Inquiry(provider.lm(), max_in_flight=4)
        for judge in (lambda: RuleJudge(inquiry)("r", "t"), lambda: ConditionJudge(inquiry)("f", {"a": "1"})):
            with pytest.raises(JudgeFailed, match="stopped by a provider that refuses the key") as caught:
                judge()
            assert KEY not in str(caught.value) and "\n" not in str(caught.value)
        assert provider.calls <= 4


LINES = [
    ('{"rule": "r", "response": "t", "followed": true}\n\n{"rule": "r", "response": "", "followed": false}', ""),
    ("", "no labelled pairs"), ("nonsense", "line 1: Invalid JSON"), ('[1]', "line 1: Input should be an object"),
    ('\n{"rule": "r", "followed": true}', "line 2: response: Field required"),
    ('{"rule": " ", "response": "t", "followed": true}', "line 1: rule: String should match"),
    ('{"rule": "r", "response": "t", "followed": "yes"}', "followed: Input should be a valid"), ("\xff", "not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), LINES)
def test_labels_are_read_or_refused_in_one_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(text.encode("latin-1"))
    if not problem:
        assert labels_of(path) == (("r", "t", True), ("r", "", False))
        return
    with pytest.raises(LabelsError, match=re.escape(problem)) as caught:
        labels_of(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(LabelsError, match="No such file"):
        labels_of(tmp_path / "none")


# --- asking within caps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 16])
@pytest.mark.parametrize("cap", [1, 17, 40])
def test_a_cap_on_calls_is_hard_and_nothing_answered_is_lost(cap: int, in_flight: int) -> None:
    engine = ToyEngine(0.002, reply=lambda system, user, n: reply(followed="yes"))
    inquiry = Inquiry(toy_lm(engine), budget=Budget(calls=cap), max_in_flight=in_flight)
    requests = [OptimizerRequest(CheckRule, {"rule": "r", "response": str(k)}) for k in range(60)]
    replies = inquiry.ask(requests)
    assert engine.calls == cap == inquiry.answered == inquiry.spent.total.calls
    assert sum(one is not None for one in replies) == cap and (in_flight > 1 or all(replies[:cap]))
    assert (inquiry.stopped_by, inquiry.failure) == ("calls", None)
    assert inquiry.ask(requests) == replies and engine.calls == cap
    assert inquiry.ask([OptimizerRequest(CheckRule, {"rule": "new", "response": ""})]) == [None] and engine.calls == cap


def test_failures_that_pass_are_retried_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuesmith.teleprompters.runtime.gate.BACKOFF", 0.01)

    def limited(nth: int, body: Mapping[str, object]) -> Answer | None:
        return (429, {"Retry-After": "0"}, error_body("slow down", "rate_limit")) if nth in (2, 3) else None

    with Provider(limited) as provider:
        provider.reply = lambda sent: reply(followed="yes")
        inquiry = Inquiry(provider.lm(), max_in_flight=1)
        assert all(inquiry.ask([OptimizerRequest(CheckRule, {"rule": "r", "response": str(k)}) for k in range(4)]))
        assert provider.calls == inquiry.spent.total.calls == 6 and inquiry.failure is None


def test_a_cap_in_dollars_needs_prices() -> None:
    with pytest.raises(ValueError, match="cannot be held"):
        Inquiry(toy_lm(ToyEngine()), budget=Budget(usd=1))
    with Provider() as provider:
        provider.reply = lambda sent: reply(followed="yes")
        with pytest.raises(ValueError, match="price of every call"):
            Inquiry(provider.lm(), budget=Budget(usd=1))
        inquiry = Inquiry(provider.lm(engine="litellm"), budget=Budget(usd=1))
        with pytest.raises(UnknownPrice):
            inquiry.ask([OptimizerRequest(CheckRule, {"rule": "r", "response": str(k)}) for k in range(20)])
        assert provider.calls == 1
    free = Inquiry(SimulatedOptimizer(), budget=Budget(usd=0.01))
    assert free.ask([OptimizerRequest(CheckRule, {"rule": "r", "response": "t"})])[0] is not None


def test_a_list_that_is_cut_short_leaves_every_part_its_share() -> None:
    parts = [[Evidence("a", (one,)) for one in errors("sum")] * 3, [Evidence("b")] * 12, [Evidence("c")] * 2]
    requests = requests_of(parts)
    assert len({request.key for request in requests}) == len(requests) == 50  # what shows the same is another draw
    first = Counter(str(request.inputs["instruction"]) for request in requests[:25])
    assert first == {"a": 18, "b": 6, "c": 1}
    assert {request.draw for request in requests if request.inputs["instruction"] == "b"} == set(range(12))


def test_an_inquiry_is_asked_as_a_plain_model_is() -> None:
    for evidence in (families()["sum"][0], Evidence("Answer.")):
        inquiry = Inquiry(SimulatedOptimizer())
        few, many = (asked(inquiry, [[evidence] * count]) for count in (5, 12))
        # Draws of their own, not one repeated.
        assert min(len(set(said)) for said in (many, said_by(SimulatedOptimizer(), [evidence] * 12))) >= 8
        assert many[:5] == few and inquiry.answered == 12
    silent = Inquiry(toy_lm(ToyEngine(reply=lambda system, user, drawn_: reply(reasons=["  "]))))
    assert asked(silent, [[Evidence("Answer.")] * 2]) == [None, None]


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def abo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return abo_run(tmp_path_factory.mktemp("abo"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("toy"))


def test_a_judged_diagnosis_says_how_far_to_trust_the_judge(abo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(abo, "--lm", "simulated", "--judge", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    results, account = found["results"], found["results"]["account"]
    planned, pairs = plan(RunRecord.read(abo)), pairs_of(RunRecord.read(abo), sample=diagnose.JUDGED)
    most = planned.requests + planned.judgements + 3 * (len(pairs) + len(HAND))
    assert captured.err == f"cuesmith diagnose: asking simulated at most {most} times\n"
    assert account["planned"] == most and planned.requests < account["answered"] <= most
    assert account["stopped_by"] is account["failure"] is None
    assert account["spent"]["by_role"]["optimizer"]["calls"] == account["answered"]
    judged = results["judged"][0]
    assert judged["judged"] and judged["checked"] == diagnose.JUDGED < results["following"][0]["checked"]
    assert (judged["agreement"]["share"]["mean"], judged["agreement"]["undecided"]) == (1.0, 12)
    assert judged["by_position"] == [] and judged["unclear"] == judged["put"] > 0  # its steps are no rules of form
    names = [figure["name"] for section in found["sections"] for figure in section["figures"]]
    assert "Judge's agreement with hand labels (%)" in names and "Checks that the judge left open (%)" in names
    assert results["live"]["validity"]["identified"]["judged"]
    assert "simulated answered" in found["run"]["notes"][-1]


@pytest.mark.parametrize("cap", [3, 40, 100])
def test_a_cap_leaves_a_report_that_says_so(abo: Path, cap: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(abo, "--lm", "simulated", "--json", "--budget-calls", cap) == 0
    captured = capsys.readouterr()
    assert captured.err.endswith(f" times, within {cap} calls\n")
    found = json.loads(captured.out)
    live_found, account = found["results"]["live"], found["results"]["account"]
    assert account["spent"]["by_role"]["optimizer"]["calls"] == account["answered"] == cap
    assert account["stopped_by"] == "calls"
    assert f"stopped by the cap on calls after {cap} of {account['planned']} requests" in found["run"]["notes"][-1]
    summaries = {section["title"]: section["summary"] for section in found["sections"]}
    if cap == 3:
        assert live_found["repetition"] is None and live_found["validity"] is None
        assert summaries["Does the feedback repeat itself?"].startswith("Too little was answered")
    elif cap == 40:
        answered = [live_found["repetition"][kind]["n"] for kind in ("across", "floor")]  # but for the last
        assert all(8 <= n <= 12 for n in answered) and live_found["validity"] is None
    else:
        counts = live_found["validity"]["counts"].values()
        assert live_found["repetition"]["across"]["n"] == 20 and max(counts) - min(counts) <= 1
        assert not live_found["validity"]["enough"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--judge"], "name one with --lm"), (["--budget-calls", "5"], "name one with --lm"),
        (["--budget-usd", "1"], "name one with --lm"), (["--lm", "simulated", "--labels", "x"], "add --judge"),
        (["--lm", "simulated", "--judge", "--labels", "none.jsonl"], "none.jsonl: No such file"),
        (["--embedder", "st:"], "names no model"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_one_line(
    toy: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and problem in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lm", "gpt-4"],
        ["--budget-calls", "0"],
        ["--budget-usd", "-1"],
        ["--budget-usd", "nan"],
        ["--embedder", "ada"],
    ],
)
def test_values_of_no_use_are_refused(toy: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(toy, *arguments)
    assert stop.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_page_that_cannot_be_written_costs_nothing(abo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(abo, "--lm", "simulated", "--html", abo / "no" / "such.html") == 1
    assert "asking" not in capsys.readouterr().err


def critic(body: Mapping[str, object]) -> Answer:
    user = sent_of(body).user
    return completion(reply(reasons=[f"It lacks rule {number(user) % 5} of the {number(user) % 3}."]))


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Provider], None]:
    """Points LiteLLM's OpenAI models at a server of the test's own, past dspy's cache."""

    def point(provider: Provider) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{provider.port}/v1")

    made = dspy.LM

    def uncached(name: str, **given: object) -> dspy.LM:
        return made(name, **{"cache": False, **given})

    monkeypatch.setattr(dspy, "LM", uncached)
    return point


def test_a_key_revoked_on_the_way_leaves_what_was_found(
    abo: Path, keyed: Callable[[Provider], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Provider(lambda nth, body: refusing(nth, body) if nth > 90 else critic(body)) as provider:
        keyed(provider)
        assert run(abo, "--lm", "openai/toy", "--judge", "--json") == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["results"]["live"]["repetition"]["across"]["n"] == 20 and found["results"]["judged"] == []
    assert found["results"]["account"]["stopped_by"] == "auth" and found["results"]["account"]["answered"] == 90
    assert "stopped by a provider that refuses the key" in captured.err and KEY not in captured.out + captured.err


@pytest.mark.parametrize("wrong", [refusing, lambda nth, body: completion("I would rather talk of something else.")])
def test_a_provider_that_gives_nothing_is_one_line(
    abo: Path,
    keyed: Callable[[Provider], None],
    wrong: Callable[[int, Mapping[str, object]], Answer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Provider(wrong) as provider:
        keyed(provider)
        assert run(abo, "--lm", "openai/toy", "--budget-calls", "30") == 1
        assert provider.calls <= 30
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 2 and KEY not in captured.err
    assert captured.err.splitlines()[1].startswith("cuesmith diagnose: error: --lm openai/toy: ")


def test_an_unknown_price_stops_a_cap_in_dollars(
    abo: Path, keyed: Callable[[Provider], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Provider(lambda nth, body: critic(body)) as provider:
        keyed(provider)
        assert run(abo, "--lm", "openai/toy", "--budget-usd", "1") == 1
        assert provider.calls == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "needs the price of every call" in captured.err


# --- embedders ---------------------------------------------------------------------------------------------


def embedding(body: Mapping[str, object], size: int = 64) -> Answer:
    """Embeds texts as an OpenAI-compatible server does: here, by hashing their words."""
    texts = body["input"]
    assert isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
    data = []
    for index, text in enumerate(texts):
        vector = np.full(size, 0.01)
        for word in text.lower().split():
            vector[number(word) % size] += 1.0
        data.append({"object": "embedding", "index": index, "embedding": vector.tolist()})
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return 200, {}, {"object": "list", "data": data, "model": body["model"], "usage": usage}


def test_similarity_by_a_hosted_embedder(keyed: Callable[[Provider], None]) -> None:
    with Provider(lambda nth, body: embedding(body)) as provider:
        keyed(provider)
        similarity = similarity_named("openai/toy-embedding")
        matrix = similarity.matrix(["count the words", "count the words now", "turn left"])
        assert matrix[0, 1] > 0.8 > 0.4 > matrix[0, 2] and np.allclose(np.diag(matrix), 1.0)
        again = similarity.matrix(["turn left", "", "count the words", "turn left"])
        assert again[0, 3] == pytest.approx(1.0) and again[2, 0] == pytest.approx(matrix[0, 2])
        sent = [text for _, _, body, _ in provider.seen for text in body["input"]]  # type: ignore[attr-defined]
    assert len(sent) == len(set(sent)) == 4 and {key for *_, key in provider.seen} == {f"Bearer {KEY}"}


def test_a_diagnosis_by_an_embedder(
    abo: Path, keyed: Callable[[Provider], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Provider(lambda nth, body: embedding(body)) as provider:
        keyed(provider)
        assert run(abo, "--lm", "simulated", "--json", "--embedder", "openai/toy-embedding") == 0
        texts = [text for _, _, body, _ in provider.seen for text in body["input"]]  # type: ignore[attr-defined]
    one = json.loads(capsys.readouterr().out)["results"]
    assert len(texts) == len(set(texts)) > 100
    assert run(abo, "--lm", "simulated", "--json") == 0
    other = json.loads(capsys.readouterr().out)["results"]
    assert one["live"]["repetition"]["across"]["n"] == 20
    assert one["live"]["repetition"]["across"]["mean"] != other["live"]["repetition"]["across"]["mean"]
    assert one["live"]["validity"]["sensitivity"]["within"] != other["live"]["validity"]["sensitivity"]["within"]
    assert one["changes"]["changes"][0]["distance"] != other["changes"]["changes"][0]["distance"]


def test_an_embedder_that_refuses_is_one_line_without_the_key(
    toy: Path, keyed: Callable[[Provider], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Provider(refusing) as provider:
        keyed(provider)
        assert run(toy, "--embedder", "openai/toy-embedding", "--lm", "simulated") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1  # nothing was asked of --lm
    assert "embedder openai/toy-embedding" in captured.err and KEY not in captured.err


def test_sentence_transformers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    with pytest.raises(SimilarityError, match="pip install sentence-transformers"):
        similarity_named("st:some/model")


def test_similarity_by_a_local_model(tmp_path: Path) -> None:
    """A model without training, made here: its similarities mean nothing, but they are its own."""
    pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path)
    matrix = similarity_named(f"st:{tmp_path}").matrix(["count", "count", "turn left"])
    assert matrix[0, 1] == pytest.approx(1.0) and matrix[0, 2] < 0.999
    with pytest.raises(SimilarityError, match="embedder st:") as caught:
        similarity_named(f"st:{tmp_path / 'none'}")
    assert "\n" not in str(caught.value)


# --- runs of other compilers -------------------------------------------------------------------------------


def test_the_prompt_in_question_is_not_one_behind_a_prompter(abo: Path) -> None:
    """What a rewritten input led to is not the instruction's doing."""
    record = RunRecord.read(abo)
    base = record.baseline
    behind = Candidate(base.prompts, Origin("trained by ppo", (base.id,)), prompter="0123456789abcdef")
    trial = Trial(behind, (0.0,) * len(record.select), 0.0, len(record.select))
    outcomes = {**record.outcomes, behind.id: record.outcomes[base.id]}
    torn = dataclasses.replace(record, trials=(trial, *record.trials), outcomes=outcomes)
    assert plan(torn).candidate == base


def test_what_cannot_be_said_is_not_advised() -> None:
    """Too few feedbacks to find anything: the advice is not to give reflection up."""
    feedback = Feedback({name: [f"note {name} {k} {k * 7}" for k in range(4)] for name in "abc"})
    weak = validity_of(feedback)
    assert not weak.sensitivity.found and not weak.sensitivity.detectable <= 0.5
    assert section_of(weak).figures[0].advice.startswith("Decide nothing by this")


@pytest.mark.parametrize(
    "name", ["gepa", *(pytest.param(other, marks=pytest.mark.slow) for other in ("prompt-agent", "iterative-ape"))]
)
def test_runs_of_other_compilers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = generate("objects", sizes=Sizes(test=5), seed=0)
    with dspy.context(lm=EmbeddedLM()):
        compile(
            dspy.ChainOfThought(task.signature), name, metric=task.metric, trainset=task.train[:20],
            valset=task.validation[:40], run_dir=tmp_path, optimizer_lm=SimulatedOptimizer(), budget=Budget(calls=250),
        )  # fmt: skip
    assert run(tmp_path, "--lm", "simulated", "--judge", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    record, course = RunRecord.read(tmp_path), found["results"]["trajectory"]
    assert record.best != record.baseline and course["points"][-1]["candidate"] == record.best.id
    if name == "gepa":  # dspy's optimizers record no beams: what they kept is not known
        assert course["accepted"]["n"] == 0
    else:
        assert course["accepted"]["mean"] > 0
    assert found["results"]["live"]["repetition"]["across"]["n"] == 20
    changed = found["results"]["changes"]  # dspy's journal scores alone: they tell what was fixed and broken
    means = {trial.candidate.id: trial.mean for trial in record.trials if trial.n == len(record.select)}
    whole = [one for one in changed["changes"] if one["parent"] in means and one["child"] in means]
    assert whole and changed["unknown"] == 0
    for one in whole:
        gain = means[one["child"]] - means[one["parent"]]
        assert (one["fixed"] - one["broken"]) / len(record.select) == pytest.approx(gain)
        assert (one["flips"]["n"] == 0) is (name == "gepa")


def test_live_from_python_is_the_commands(abo: Path) -> None:
    planned = plan(RunRecord.read(abo))
    found = live(planned, Inquiry(SimulatedOptimizer()))
    assert found.repetition is not None and found.validity is not None and not found.no_repetition + found.no_validity
    assert found.validity.missing == found.repetition.missing == 0
    assert live(planned, Inquiry(SimulatedOptimizer(), max_in_flight=1)) == found  # whatever the concurrency
