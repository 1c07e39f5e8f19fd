"""The study: its statistics against scipy, its presets, its four configurations end to end on real tiny models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cyclopts import CycloptsError
from e2e_support import ToyEngine, toy_lm
from scipy import stats

pytest.importorskip("torch")
pytest.importorskip("trl")

import dspy
import torch

from cuesmith.modules.decoding import Decoding
from cuesmith.modules.judges import RewardModel
from cuesmith.modules.policy import LocalPolicy
from cuesmith.programs import align_study
from cuesmith.programs.align_experiment import configurations, setup, toy
from cuesmith.programs.align_experiment.configurations import (
    ALIGN_PRO,
    ALONE,
    ORACLE,
    UNTRAINED,
    AlignStudy,
    Evaluated,
    StudyParts,
    StudyPlan,
)
from cuesmith.programs.align_experiment.findings import findings, limits, meaning
from cuesmith.programs.align_experiment.measures import (
    count_wins,
    equal_length_gain,
    reward_verdicts,
    sign_test,
    variance95,
)
from cuesmith.programs.arguments import BadInput, parsed
from cuesmith.programs.presets import PRESETS, TOY
from cuesmith.programs.tasks import TaskError
from cuesmith.programs.tasks.preferences import SOURCES, Preference
from cuesmith.teleprompters.alignment.reward_training import train_reward_model
from cuesmith.teleprompters.alignment.training import Training

torch.set_num_threads(1)

SMALL = toy.ToySizes(
    hidden=32, layers=1, pairs=500, frozen_steps=15, prompter_steps=15, preferences=300, reward_steps=15
)
BRIEF = replace(TOY, steps=2, batch_size=8, generations=4, train_prompts=20)


@pytest.mark.parametrize(("wins", "losses"), [(60, 24), (46, 37), (46, 46), (0, 0), (1, 0), (0, 12), (700, 650)])
def test_sign_test_is_the_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_verdicts_of_rewards_are_counted_with_ties_and_missing_ones() -> None:
    verdicts = reward_verdicts([1.0, 2.0, 3.0, None, 5.0], [0.0, 2.0 + 1e-9, 4.0, 1.0, None])
    assert verdicts == ["win", "tie", "loss", None, None]
    wins = count_wins(verdicts)
    assert (wins.wins, wins.ties, wins.losses, wins.missing) == (1, 1, 1, 2)
    interval = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert wins.win_rate.low == pytest.approx(interval.low) and wins.win_rate.high == pytest.approx(interval.high)
    with pytest.raises(ValueError):
        reward_verdicts([1.0], [])


def test_variance_is_the_samples_and_its_interval_bonetts() -> None:
    values = [float(v) for v in np.random.default_rng(0).gamma(2.0, size=50)]
    found = variance95([*values, None, math.nan])
    n, z = 50, stats.norm.ppf(0.975)
    around = stats.trim_mean(values, 1 / (2 * math.sqrt(n - 4)))
    kurtosis = n * sum((v - around) ** 4 for v in values) / sum((v - np.mean(values)) ** 2 for v in values) ** 2
    c = n / (n - z)
    half = z * c * math.sqrt((kurtosis - (n - 3) / n) / (n - 1))
    assert found.n == n and found.mean == pytest.approx(np.var(values, ddof=1))
    assert math.log(found.low) == pytest.approx(math.log(c * found.mean) - half)
    assert math.log(found.high) == pytest.approx(math.log(c * found.mean) + half)


@pytest.mark.parametrize(
    ("name", "draw", "variance", "floor"),
    [
        ("normal", lambda rng: rng.normal(0, 2, 100), 4.0, 0.93),
        ("uniform", lambda rng: rng.uniform(0, 1, 100), 1 / 12, 0.93),
        ("exponential", lambda rng: rng.exponential(1, 100), 1.0, 0.90),
        ("two values", lambda rng: rng.choice([0.0, 3.0], 100, p=[0.8, 0.2]), 9 * 0.16, 0.90),
    ],
)
def test_variance_intervals_cover(name: str, draw, variance: float, floor: float) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    found = [variance95(draw(rng)) for _ in range(1000)]
    covered = sum(e.low <= variance <= e.high for e in found) / len(found)
    assert floor <= covered <= 0.99, name


def test_variance_of_few_or_equal_values() -> None:
    assert math.isnan(variance95([1.0, None]).mean)
    assert variance95([1.0, 3.0]).mean == 2.0 and math.isnan(variance95([1.0, 3.0]).low)
    equal = variance95([2.0] * 20)
    assert equal.mean == 0.0 and math.isnan(equal.low)


def test_equal_length_gain_is_the_intercept() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.normal(20, 20, 80)
    gains = 0.5 + 0.02 * lengths + rng.normal(0, 1, 80) * (0.5 + np.abs(lengths) / 30)
    found = equal_length_gain([*gains.tolist(), None, 1.0], [*lengths.tolist(), 2.0, None])
    line = stats.linregress(lengths, gains)
    assert found is not None and found.gain.n == 80 and not found.extrapolated
    assert found.gain.mean == pytest.approx(line.intercept) and found.slope == pytest.approx(line.slope)
    design = np.column_stack([np.ones(80), lengths])
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    scaled = np.diag(((gains - hat @ gains) / (1 - np.diag(hat))) ** 2)  # HC3 written out
    bread = np.linalg.inv(design.T @ design)
    error = math.sqrt((bread @ design.T @ scaled @ design @ bread)[0, 0])
    half = stats.t.ppf(0.975, 78) * error
    assert found.gain.high - found.gain.mean == pytest.approx(half)


def test_equal_length_gain_covers_where_length_alone_is_paid() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(500):
        lengths = rng.normal(40, 30, 60)
        gains = 0.03 * lengths + rng.normal(0, 0.3 + np.abs(lengths) / 50)
        found = equal_length_gain(gains.tolist(), lengths.tolist())
        assert found is not None
        covered += found.gain.low <= 0 <= found.gain.high
    assert 0.92 <= covered / 500 <= 0.98


def test_equal_length_gain_says_where_it_cannot_tell() -> None:
    assert equal_length_gain([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert equal_length_gain([1.0, 2.0, 3.0, 4.0], [5.0] * 4) is None
    beyond = equal_length_gain([1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0])
    assert beyond is not None and beyond.extrapolated
    both = equal_length_gain([1.0, 2.0, 3.0, 5.0, 1.0], [1.0, -2.0, 3.0, 4.0, -1.0])
    assert both is not None and not both.extrapolated


def test_presets_are_the_papers() -> None:
    pairs = {(p.prompter, p.frozen) for p in PRESETS.values() if not p.is_toy}
    assert pairs == {
        (prompter, frozen)
        for prompter in ("microsoft/Phi-3.5-mini-instruct", "Qwen/Qwen2.5-1.5B-Instruct")
        for frozen in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
    }
    for preset in PRESETS.values():
        assert (preset.decoding.temperature, preset.decoding.top_p, preset.decoding.top_k) == (1.5, 0.6, 20)
        assert PRESETS[preset.name] is preset
        setup.AlignSettings(preset, Path("out")).plan()  # its numbers fit each other
        if not preset.is_toy:
            assert preset.reward_model == "weqweasdas/RM-Gemma-2B" and preset.learning_rate == 1.41e-5
            assert preset.dataset in SOURCES


def test_the_toys_language() -> None:
    language = toy.Language.of(0)
    facts = language.answer("river", ["age", "colour"])
    assert language.quality("tell me about the old river", facts) == 2
    assert language.quality("tell me about the old river", language.answer("river", [])) == 0
    assert language.quality("tell me about the old river", language.answer("river", ["age", "age"])) == 1
    other = next(v for v in toy.VALUES["age"] if v != language.facts["river", "age"])
    assert language.quality("tell me about the old river", f"the river : age {other} .") == -1
    assert language.quality("tell me about the old river", language.answer("tower", ["age"])) == -2
    assert len(set(language.prompts(0, 500))) == 500 and language.prompts(0, 500) == language.prompts(0, 500)
    known = set(toy.WORDS)
    pairs = [*language.frozen_pairs(0, 200), *language.prompter_pairs(0, 200)]
    texts = " ".join(text for pair in pairs for text in pair)
    assert set(texts.split()) <= known
    for pair in language.preferences(0, 100):
        assert set(f"{pair.prompt} {pair.chosen} {pair.rejected}".split()) <= known
        gap = language.quality(pair.prompt, pair.chosen) - language.quality(pair.prompt, pair.rejected)
        assert pair.margin == abs(gap)
    with pytest.raises(ValueError, match="different questions"):
        language.prompts(0, 10**6)


def evaluated(name: str, rewards: Sequence[float | None], length: int = 5) -> Evaluated:
    answers = tuple(None if r is None else "x" * (length + i % 3) for i, r in enumerate(rewards))
    return Evaluated(name, tuple("q" for _ in rewards), answers, tuple(rewards))


def test_words_follow_the_figures() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 60).tolist()
    better = [None if i == 7 else b + 1 + 0.1 * rng.normal() for i, b in enumerate(base)]
    same = [b + 0.5 * rng.normal() for b in base]
    each = (evaluated(ALONE, base), evaluated(UNTRAINED, same, 6), evaluated(ALIGN_PRO, better, 9))
    found = {one.name: one for one in (*each, evaluated(ORACLE, [b + 2 for b in base]))}
    result = findings(AlignStudy(found, None, None), tuple("q" for _ in base))  # type: ignore[arg-type]
    said = " ".join(meaning(result))
    assert "Align-Pro raises the mean reward of the frozen model alone: +1.0" in said
    assert "The training itself raises" in said and "Align-Pro reaches 50 %" in said
    assert "won 59, tied 0, lost 0" in said and "1 of Align-Pro" in said and "no independent judge" in said
    assert result[ALIGN_PRO].missing == 1 and result[ALIGN_PRO].reward.n == 59
    against = result[UNTRAINED].against_frozen_alone
    assert against is not None and not against.gain.significant
    assert any("language model" in text for text in limits(result, toy=True))


def test_a_missing_response_has_no_reward() -> None:
    asked: list[tuple[Sequence[str], Sequence[str]]] = []

    def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        asked.append((prompts, responses))
        return [float(len(r)) for r in responses]

    assert configurations.rewards_of(reward, ["a", "b", "c"], ["xx", None, ""]) == [2.0, None, 0.0]
    assert asked == [(["a", "c"], ["xx", ""])]
    assert configurations.rewards_of(reward, ["a"], [None]) == [None]


def refuses(system: str, user: str, drawn: int | None) -> str:
    if "museum" in user:
        raise dspy.lm15.InvalidRequestError("refused")
    return f"{user.upper()} {system}".strip()


def test_a_frozen_model_behind_a_provider() -> None:
    engine = ToyEngine(reply=refuses)
    answer = configurations.remote(toy_lm(engine, "frozen", num_retries=0))
    assert answer(["one", "a museum", "three"], 1) == ["ONE", None, "THREE"]  # no system message
    assert engine.calls == 3


def judging(system: str, user: str, drawn: int | None) -> str:
    form = r"## %s ## \]\]\n(.*)"
    first, second = (re.search(form % name, user) for name in ("first_response", "second_response"))
    assert first and second
    longer = "tie" if len(first[1]) == len(second[1]) else "first" if len(first[1]) > len(second[1]) else "second"
    return f"[[ ## reason ## ]]\nlength\n\n[[ ## verdict ## ]]\n{longer}\n\n[[ ## completed ## ]]"


def test_the_judge_is_asked_in_both_orders() -> None:
    prompts, ours, theirs = ["a", "b", "c", "d"], ["long one", "x", "same", None], ["y", "longer", "size", "z"]
    engine = ToyEngine(reply=judging)
    verdicts, inconsistent = configurations.judge_pairs(prompts, ours, theirs, toy_lm(engine, "judge"))
    assert verdicts == ["win", "loss", "tie", None] and inconsistent == 0 and engine.calls == 6

    def always_first(system: str, user: str, drawn: int | None) -> str:
        return "[[ ## reason ## ]]\nx\n\n[[ ## verdict ## ]]\nfirst\n\n[[ ## completed ## ]]"

    biased = toy_lm(ToyEngine(reply=always_first), "biased")
    verdicts, inconsistent = configurations.judge_pairs(prompts, ours, theirs, biased)
    assert verdicts == ["tie", "tie", "tie", None] and inconsistent == 3


def test_reward_model_learns_pairs_and_reports_held_out_accuracy(tmp_path: Path) -> None:
    base = tmp_path / "base"
    toy.untrained(0, SMALL).save_pretrained(base)
    language = toy.Language.of(0)
    questions = language.prompts(0, 150)
    pairs = [
        Preference(q, language.answer(t, ["age"]), language.answer(t, []))
        for q in questions
        for t in [next(word for word in q.split() if word in toy.THINGS)]
    ]
    before = torch.random.get_rng_state()
    made = train_reward_model(base, pairs, tmp_path / "rm", steps=25, learning_rate=3e-3, held_out=0.2, max_length=30)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (made.pairs, made.held_out, made.too_long) == (120, 30, 0)
    assert made.accuracy.n == made.held_out and made.accuracy.mean == 1.0 and made.accuracy.low < 1.0
    reward = RewardModel.from_pretrained(made.directory)
    pair = pairs[0]
    good, bad = reward([pair.prompt] * 2, [pair.chosen, pair.rejected])
    assert good > bad
    swapped = [Preference(p.prompt, p.rejected, p.chosen) for p in pairs]
    assert train_reward_model(base, swapped, tmp_path / "worse", steps=25, learning_rate=3e-3).accuracy.mean == 1.0
    worse = RewardModel.from_pretrained(tmp_path / "worse")([pair.prompt] * 2, [pair.chosen, pair.rejected])
    assert worse[0] < worse[1]


def test_reward_training_says_what_is_wrong(tmp_path: Path) -> None:
    base = tmp_path / "base"
    toy.untrained(0, SMALL).save_pretrained(base)
    pair = Preference("tell me about the old river", "the river is nice .", "river")
    with pytest.raises(ValueError, match="1 pairs leave 0 to train on"):
        train_reward_model(base, [pair], tmp_path / "rm")
    many = [replace(pair, prompt=f"{pair.prompt} {'old ' * n}") for n in range(40)]
    with pytest.raises(ValueError, match=r"leave 0 to train on \(at most 3 tokens"):
        train_reward_model(base, many, tmp_path / "rm", max_length=3)
    with pytest.raises(ValueError, match="held_out must be between 0 and 1, got 1"):
        train_reward_model(base, many, tmp_path / "rm", held_out=1)
    with pytest.raises(ValueError, match="got 32 and 5"):
        train_reward_model(base, many, tmp_path / "rm", gradient_accumulation=5)


def test_test_prompts_must_not_be_trained_on() -> None:
    policy = toy.untrained(0, SMALL)
    with pytest.raises(ValueError, match="1 test prompts are trained on, such as 'a'"):
        StudyParts(policy, policy, lambda p, r: [], ("a", "b"), ("a",))
    with pytest.raises(ValueError, match="0 to train on"):
        StudyParts(policy, policy, lambda p, r: [], (), ("a",))


def test_the_toy_study_small_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = setup.AlignSettings(BRIEF, tmp_path / "out", n_test=10, sizes=SMALL)
    assert align_study.main(settings, as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in data["configurations"]] == [ALONE, UNTRAINED, ALIGN_PRO, ORACLE]
    assert all(one["reward"]["n"] == 10 for one in data["configurations"]) and data["n_train"] == 20
    assert len(data["curves"][ALIGN_PRO]) == len(data["curves"][ORACLE]) == 2
    assert data["configurations"][0]["against_frozen_alone"] is None and data["reward_model_accuracy"]["n"] > 0
    assert data == json.loads((tmp_path / "out" / "study.json").read_text())
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 40 and {row["configuration"] for row in answers} == {ALONE, UNTRAINED, ALIGN_PRO, ORACLE}
    alone = [row for row in answers if row["configuration"] == ALONE]
    assert all(row["question"] == row["prompt"] for row in alone)
    reward = RewardModel.from_pretrained(tmp_path / "out" / "reward-model")
    for row in answers:  # of the original prompt, not of what it was rewritten to
        assert row["reward"] == pytest.approx(reward([row["prompt"]], [row["response"]])[0], abs=1e-4)
    prompter = LocalPolicy.from_pretrained(tmp_path / "out" / "prompter")
    ours = [row for row in answers if row["configuration"] == ALIGN_PRO]
    again = prompter.sample([row["prompt"] for row in ours], 1, settings.plan().prompter_decoding)
    assert [r[0].text.strip() or row["prompt"] for r, row in zip(again, ours, strict=True)] == [
        row["question"] for row in ours
    ]


def test_models_and_data_from_folders(tmp_path: Path) -> None:
    language = toy.Language.of(0)
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in language.preferences(0, 60)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, seed in (("prompter", 1), ("frozen", 2)):
        toy.untrained(seed, SMALL).save_pretrained(tmp_path / name)
    settings = setup.AlignSettings(
        BRIEF, tmp_path / "out", dataset=str(file), prompter=str(tmp_path / "prompter"),
        frozen=str(tmp_path / "frozen"), train_reward="", n_test=12, steps=1,
    )  # fmt: skip
    ready = setup.prepare(settings)
    parts = ready.parts
    assert len(parts.test) == 12 and not set(parts.test) & set(parts.train) and len(parts.train) == 20
    assert isinstance(parts.frozen, LocalPolicy) and parts.frozen.instructions == ""  # it gets the question alone
    assert parts.prompter.fingerprint == toy.untrained(1, SMALL).fingerprint
    made = ready.reward_training
    assert made is not None and made.pairs + made.held_out == sum(r["prompt"] not in parts.test for r in rows)
    assert ready.names["reward_model"] == f"trained here from {tmp_path / 'prompter'}"
    found = findings(configurations.conduct(parts, settings.plan()), parts.test)
    assert [figures.reward.n for figures in found.configurations] == [12] * 4
    with pytest.raises(TaskError, match="give --prompter and --frozen"):
        setup.prepare(replace(settings, prompter=None))
    with pytest.raises(TaskError, match="need twice as many"):
        setup.prepare(replace(settings, n_test=40))


def test_only_the_same_training_is_resumed(tmp_path: Path) -> None:
    settings = setup.AlignSettings(TOY, tmp_path)
    others = (replace(settings, reward_model="other"), replace(settings, seed=1), replace(settings, kl_coefficient=1.0))
    assert len({each.plan().directory for each in (settings, *others)}) == 4
    assert replace(settings, judge="openai/x").plan().directory == settings.plan().directory


def test_a_remote_frozen_model_has_no_oracle_and_outages_are_missing() -> None:
    frozen = toy_lm(ToyEngine(reply=refuses), num_retries=0)
    asked = toy.Language.of(0).prompts(0, 32)
    train, test = tuple(asked[:12]), tuple(asked[12:])
    lost = sum("museum" in prompt for prompt in test)
    assert 0 < lost < 20
    training = Training(steps=1, batch_size=24, generations=2, max_new_tokens=8)
    draws = Decoding(max_new_tokens=8)
    # Of random weights: its rewrites hardly ever name the museum.
    parts = StudyParts(toy.untrained(0, SMALL), frozen, lambda p, r: [1.0 + len(x) for x in r], train, test)
    result = configurations.conduct(parts, StudyPlan(training, training, draws, draws))
    assert list(result.configurations) == [ALONE, UNTRAINED, ALIGN_PRO] and result.oracle is None
    for one in result.configurations.values():
        refused = sum("museum" in question for question in one.questions)
        assert one.rewards.count(None) == one.responses.count(None) == refused and 0.0 not in one.rewards
    alone = result.configurations[ALONE]
    assert alone.questions == test and alone.rewards.count(None) == lost
    step = result.configurations[ALIGN_PRO].curve[0]
    assert step.missing < 24 and step.reward > 1
    found = findings(result, test)
    assert found[ALONE].missing == lost and "No RLHF oracle" in " ".join(meaning(found))
    against = found[ALIGN_PRO].against_frozen_alone
    assert against is not None and against.gain.n <= 20 - lost and against.verdicts.missing >= lost


def parse(*arguments: str) -> align_study.AlignStudyOptions:
    return parsed(align_study.AlignStudyOptions, arguments)


def test_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = align_study.settings_of(parse("--preset", "qwen1.5b-llama8b", "--trainer", "rloo", "--steps", "7"))
    assert settings.plan().prompter_training.steps == 7 and settings.plan().prompter_training.trainer == "rloo"
    assert settings.plan().oracle_training.max_new_tokens == 512 and settings.plan().response_decoding.top_k == 20
    rewards = {(): None, ("--train-reward",): "", ("--train-reward", ""): "", ("--train-reward", "m"): "m"}
    for words, base in rewards.items():
        settings = align_study.settings_of(parse(*words, "--json"))
        assert settings.train_reward == base
    with pytest.raises(BadInput, match="--train-reward: given twice"):
        parse("--train-reward", "a", "--train-reward", "b")
    with pytest.raises(CycloptsError, match="at most 1"):
        parse("--train-reward", "a", "b")
    with pytest.raises(CycloptsError, match="'0' is not a whole number of at least 1"):
        parse("--steps", "0")
    with pytest.raises(CycloptsError, match="'-1' is not a positive amount"):
        parse("--kl-coefficient=-1")
    named = ("--dataset", str(tmp_path / "no.jsonl"), "--prompter", "p", "--frozen", "hf:f", "--out", str(tmp_path))
    missing = parse(*named)
    assert align_study.command(missing) == 2
    assert "no.jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_the_toy_study_finds_what_is_built_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align_study.command(parse("--preset", "toy", "--json", "--out", str(tmp_path))) == 0
    data = json.loads(capsys.readouterr().out)
    found = {one["name"]: one for one in data["configurations"]}
    assert data["reward_model_accuracy"]["low"] > 0.65
    assert found[ALIGN_PRO]["against_frozen_alone"]["gain"]["low"] > 0
    assert data["align_pro_against_untrained"]["gain"]["low"] > 0
    assert found[ORACLE]["against_frozen_alone"]["gain"]["low"] > 0
    quality = {name: one["quality_by_rule"] for name, one in found.items()}
    assert quality[ALIGN_PRO]["low"] > quality[UNTRAINED]["high"] and quality[ALIGN_PRO]["low"] > quality[ALONE]["high"]
