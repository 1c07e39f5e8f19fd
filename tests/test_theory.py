"""Finite instances against values worked out by hand, a numerical optimiser, and thousands of random draws."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from cyclopts import CycloptsError
from scipy import optimize, special

from cuesmith.programs import theory as program
from cuesmith.programs.arguments import parsed
from cuesmith.teleprompters.alignment.finite import (
    Instance,
    kl_divergence,
    log_mean_exp,
    random_instance,
    total_variation,
)

LN2, LN3 = math.log(2), math.log(3)


def by_hand(kl_coefficient: float = 1 / LN3) -> Instance:
    """One prompt; two rewrites with R = 0 and 1, so that exp(R / lambda) is 1 and 3; pi_F answers by a fair coin."""
    return Instance(
        prompts=np.array([1.0]),
        reference=np.array([[0.75, 0.25]]),
        frozen=np.array([[0.5, 0.5]]),
        rewritten=np.array([[[1.0, 0.0], [0.0, 1.0]]]),
        rewards=np.array([[0.0, 1.0]]),
        beta=1 / LN3,
        kl_coefficient=kl_coefficient,
    )


def test_an_instance_worked_out_by_hand() -> None:
    instance, lam = by_hand(), 1 / LN3
    theory = instance.theory()
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    kl_reverse = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    wanted = {
        "aligned": 0.75,  # odds 1 : 3
        "prompted": 0.5,  # 0.75 * 1 : 0.25 * 3
        "frozen": 0.5,
        "untrained": 0.25,
        "delta_1": 0.25,
        "delta_2": 0.0,
        "gap": 0.25,
        "epsilon_1": 0.25,
        "epsilon_2": 0.5,
        "kl": kl,
        "kl_reverse": kl_reverse,
        "bound": 0.75 - lam * kl,
        "tighter_bound": 0.75 - lam * (kl + kl_reverse),
        "identity": 0.25,
        "attainable": lam * math.log(1.5),
    }
    assert dataclasses.asdict(theory) == pytest.approx(wanted, abs=1e-14)
    assert instance.optimal_prompter() == pytest.approx(np.array([[0.5, 0.5]]))
    assert instance.optimal_policy() == pytest.approx(np.array([[0.25, 0.75]]))
    assert instance.log_partition() == pytest.approx(np.array([math.log(1.5)]))
    assert instance.rewrite_rewards() == pytest.approx(np.array([[0.0, 1.0]]))
    assert instance.objective(instance.reference) == pytest.approx(0.25)


def violations(instances: int, seed: int, coefficient: str) -> tuple[int, float]:
    """How often Theorem 1 fails with a coefficient, and the largest error of the identity, relative."""
    rng, failed, worst = np.random.default_rng(seed), 0, 0.0
    for _ in range(instances):
        low, width = (-1.0, 2.0) if coefficient == "r_max" else (rng.normal(scale=3.0), 10.0 ** rng.uniform(-1, 1))
        instance = random_instance(rng, reward_range=(low, low + width))
        theory = instance.theory()
        scale = 1.0 if coefficient == "r_max" else instance.reward_width
        epsilons = (theory.epsilon_1 + theory.epsilon_2) / instance.reward_width * scale
        failed += theory.gap > epsilons - instance.kl_coefficient * theory.kl + 1e-12
        failed += coefficient != "r_max" and theory.gap > theory.tighter_bound + 1e-12
        worst = max(worst, theory.identity_error)
    return failed, worst


def test_theorem_1_and_the_identity_on_2000_instances() -> None:
    failed, worst = violations(2000, 0, "r_max - r_min")
    assert failed == 0 and worst < 1e-12


@pytest.mark.slow
def test_theorem_1_and_the_identity_on_20000_instances() -> None:
    failed, worst = violations(20_000, 1, "r_max - r_min")
    assert failed == 0 and worst < 1e-12


def test_with_r_max_alone_theorem_1_is_false_for_rewards_of_either_sign() -> None:
    """So the tests above can fail: in the paper's literal form, with rewards in [-r_max, r_max], it does not hold."""
    failed, _ = violations(1000, 0, "r_max")
    assert failed > 50


@pytest.mark.parametrize("kl_coefficient", [1e-3, 1e-1, 1e3])
@pytest.mark.parametrize("beta", [1e-3, 1e3])
def test_extreme_coefficients_stay_finite_and_exact(kl_coefficient: float, beta: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        drawn = random_instance(rng, reward_range=(-1.0, 1.0))
        instance = dataclasses.replace(drawn, kl_coefficient=kl_coefficient, beta=beta)
        theory = instance.theory()
        assert all(math.isfinite(value) for value in dataclasses.astuple(theory))
        assert theory.identity_error < 1e-12 and theory.gap <= theory.bound + 1e-12
        assert theory.kl >= -1e-15 and theory.kl_reverse >= -1e-15


@pytest.mark.parametrize("kl_coefficient", [0.1, 0.5, 2.0])
def test_a_numerical_optimiser_finds_rho_star(kl_coefficient: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        drawn = random_instance(rng, max_prompts=1, max_rewrites=4, reward_range=(0.0, 1.0))
        reference = rng.dirichlet(np.full(drawn.reference.shape[1], 2.0), size=1)
        instance = dataclasses.replace(drawn, reference=reference, kl_coefficient=kl_coefficient)

        def loss(logits: np.ndarray, instance: Instance = instance) -> float:
            return -instance.objective(special.softmax(logits)[None, :])

        start = np.zeros(reference.shape[1])
        found = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-9})
        assert special.softmax(found.x)[None, :] == pytest.approx(instance.optimal_prompter(), abs=1e-4)
        assert -found.fun == pytest.approx(instance.attainable(), abs=1e-8)


def test_the_parts_of_the_theory_agree_with_each_other() -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        instance = random_instance(rng)
        theory, prompter = instance.theory(), instance.optimal_prompter()
        assert theory.gap == pytest.approx(theory.delta_1 + theory.delta_2, abs=1e-12) and theory.delta_1 >= -1e-12
        assert instance.objective(prompter) == pytest.approx(theory.attainable, rel=1e-10)
        direct = float(instance.prompts @ kl_divergence(prompter, instance.reference))
        assert theory.kl == pytest.approx(direct, rel=1e-6, abs=1e-12)
        again = float((prompter * instance.rewrite_rewards()).sum(axis=1) @ instance.prompts)
        assert theory.prompted == pytest.approx(again, abs=1e-12)


def test_admissible_lambdas_are_one_ray_where_the_bound_never_dips() -> None:
    assert by_hand().admissible() == ((0.0, math.inf),)


def test_admissible_lambdas_leave_out_exactly_where_the_bound_is_negative() -> None:
    instance = program.example()
    (zero, first), (second, infinite) = instance.admissible()
    assert zero == 0.0 and infinite == math.inf and first < second
    for end in (first, second):
        theory = instance.with_kl_coefficient(end).theory()
        assert theory.bound == pytest.approx(0.0, abs=1e-12)
        # The paper's form of the same condition.
        assert end == pytest.approx((theory.epsilon_1 + theory.epsilon_2) / theory.kl)
    for lam in np.geomspace(1e-3, 1e3, 500):
        inside = lam <= first or lam >= second
        assert (instance.with_kl_coefficient(float(lam)).theory().bound >= 0) == inside


def test_helpers_against_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.dirichlet(np.ones(5), size=(2, 7))
    for scale in (1e-9, 1.0, 1e4):
        scores = rng.normal(size=(7, 5)) * scale
        wanted = special.logsumexp(scores, b=first, axis=-1)
        assert log_mean_exp(first, scores) == pytest.approx(wanted, rel=1e-9, abs=1e-14)
    assert kl_divergence(first, second) == pytest.approx(special.rel_entr(first, second).sum(axis=-1))
    assert kl_divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(LN2)
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == math.inf
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_rewrites_without_mass_stay_without() -> None:
    instance = dataclasses.replace(by_hand(0.01), reference=np.array([[1.0, 0.0]]))
    assert instance.optimal_prompter().tolist() == [[1.0, 0.0]]
    assert instance.theory().kl == 0.0 and instance.attainable() == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompts", np.array([0.5]), "sum to 1"),
        ("prompts", np.array([0.5, 0.5]), r"must have shape \(1,\)"),
        ("reference", np.array([[1.5, -0.5]]), "probabilities"),
        ("reference", np.array([0.5, 0.5]), "2 axes"),
        ("frozen", np.array([[math.nan, 1.0]]), "probabilities"),
        ("rewritten", np.ones((1, 2, 1)), r"must have shape \(1, 2, 2\)"),
        ("rewards", np.array([[0.0, math.inf]]), "finite"),
        ("beta", 0.0, "beta"),
        ("kl_coefficient", math.inf, "kl_coefficient"),
        ("reward_range", (0.0, 0.5), "reward_range"),
    ],
)
def test_wrong_instances_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(by_hand(), **{name: value})  # type: ignore[arg-type]


def options(*words: str) -> program.TheoryOptions:
    return parsed(program.TheoryOptions, words)


def test_command_prints_json_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.svg"
    assert program.command(options("--instances", "40", "--seed", "3", "--json", "--svg", str(picture))) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["violations"] == 0 and found["instances"] == 40 and len(found["checks"]) == 6
    assert all(row["tried"] in (40, 2) for row in found["checks"])
    assert found["admissible"][0][0] == 0.0 and found["admissible"][-1][1] is None
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    text = " ".join(root.itertext())
    for label in ("λ, units of reward", "units of reward", "nats", "bound", "gap", "KL(ρ* || ρ_sft)", "prefers-color"):
        assert label in text
    lines = [node for node in root.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 3
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == 161 and all(70 <= x <= 700 and 60 <= y <= 500 for x, y in points)


def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.command(options("--instances", "20")) == 0
    out = capsys.readouterr().out
    assert "Theorem 1: gap <= bound" in out and "lambda at which the bound is not negative: 0 to 0.028" in out


def test_command_fails_where_the_theory_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Instance, "reward_width", property(lambda self: 0.2))
    assert program.command(options("--instances", "40")) == 1
    assert "Theorem 1" in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.command(options("--instances", "1", "--svg", str(tmp_path / "none" / "a.svg"))) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--instances", "0"), ("--seed", "-1"), ("--instances", "x")])
def test_wrong_arguments_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(CycloptsError, match="whole number"):
        options(*words)
