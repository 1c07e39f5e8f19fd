"""What a study found, as figures, as JSON, as a table, and in plain words with its limits.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from cuesmith.programs import report
from cuesmith.programs.alignment.configurations import ALIGN_PRO, ALONE, ORACLE, UNTRAINED, AlignStudy, Evaluated
from cuesmith.programs.alignment.measures import (
    EqualLength,
    Wins,
    count_wins,
    equal_length_gain,
    reward_verdicts,
    variance95,
)
from cuesmith.programs.diagnosis.words import paragraphs_of
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95, paired_gain

REWARD_AS_JUDGE = "the reward model itself (no independent judge)"


@dataclass(frozen=True)
class Against:
    """One configuration against another on the same prompts.

    Attributes:
        gain: In mean reward, in pairs.
        wins: By the judge.
        equal_length: The gain at equal length; None where the lengths say nothing.
    """

    gain: Gain
    wins: Wins
    equal_length: EqualLength | None


@dataclass(frozen=True)
class Figures:
    """What is said of one configuration.

    Attributes:
        name: Its name.
        reward: Mean reward.
        variance: Of the reward over prompts.
        length: Mean length of the answers, in characters.
        missing: Prompts without a reward.
        rewritten: Share of the prompts that the prompter changed; nan without a prompter.
        inconsistent: Pairs on which the judge contradicted itself.
        against_alone: Against the frozen model alone; None for that itself.
        rule: Mean quality of the answers by the rule behind the toy's preferences; None but for the toy.
    """

    name: str
    reward: Estimate95
    variance: Estimate95
    length: Estimate95
    missing: int
    rewritten: float
    inconsistent: int
    against_alone: Against | None
    rule: Estimate95 | None


@dataclass(frozen=True)
class AlignFindings:
    """All figures of a study.

    Attributes:
        configurations: One for each, the frozen model alone first.
        training: Align-Pro against the untrained prompter, by the reward: what the training itself gave.
        oracle: Align-Pro against the RLHF oracle, by the reward; None without an oracle.
        judge: Who compared the answers.
    """

    configurations: tuple[Figures, ...]
    training: Against
    oracle: Against | None
    judge: str

    def __getitem__(self, name: str) -> Figures:
        """Return a configuration's figures by its name.

        Raises:
            KeyError: If there is none of that name.
        """
        for figures in self.configurations:
            if figures.name == name:
                return figures
        raise KeyError(name)


def findings(
    study: AlignStudy,
    prompts: tuple[str, ...],
    *,
    judge: str | None = None,
    rule: Callable[[str, str], float] | None = None,
) -> AlignFindings:
    """Compute all figures.

    Args:
        study: What was evaluated.
        prompts: The test prompts.
        judge: Name of the language model that judged; None if the reward does.
        rule: True quality of an answer to a prompt, where it is known, as in the toy.
    """
    found = study.configurations
    oracle = against(found[ALIGN_PRO], found[ORACLE], by_judge=False) if ORACLE in found else None
    return AlignFindings(
        tuple(_figures(one, found[ALONE], prompts, rule) for one in found.values()),
        against(found[ALIGN_PRO], found[UNTRAINED], by_judge=False),
        oracle,
        judge or REWARD_AS_JUDGE,
    )


def against(one: Evaluated, baseline: Evaluated, *, by_judge: bool = True) -> Against:
    """Compare two configurations on the same prompts.

    Args:
        one: The configuration that may gain.
        baseline: What it is compared with.
        by_judge: Whether `one.verdicts`, where there are any, are about this pair.
    """
    judged = list(one.verdicts) if by_judge and one.verdicts is not None else None
    verdicts = judged or reward_verdicts(one.rewards, baseline.rewards)
    rewards, lengths = _differences(one.rewards, baseline.rewards), _differences(one.lengths, baseline.lengths)
    return Against(
        paired_gain(baseline.rewards, one.rewards), count_wins(verdicts), equal_length_gain(rewards, lengths)
    )


def _figures(
    one: Evaluated, alone: Evaluated, prompts: tuple[str, ...], rule: Callable[[str, str], float] | None
) -> Figures:
    changed = [question != prompt for question, prompt in zip(one.questions, prompts, strict=True)]
    prompted = one.name in (UNTRAINED, ALIGN_PRO)
    return Figures(
        one.name,
        estimate95(one.rewards),
        variance95(one.rewards),
        estimate95(one.lengths),
        one.rewards.count(None),
        sum(changed) / len(changed) if prompted else math.nan,
        one.inconsistent,
        None if one is alone else against(one, alone),
        None if rule is None else estimate95(_by_rule(rule, prompts, one.responses)),
    )


def _by_rule(
    rule: Callable[[str, str], float], prompts: tuple[str, ...], responses: tuple[str | None, ...]
) -> list[float]:
    return [rule(prompt, text) for prompt, text in zip(prompts, responses, strict=True) if text is not None]


def _differences(values: Sequence[float | None], others: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(values, others, strict=True)]


def to_json(found: AlignFindings) -> dict[str, Json]:
    """The findings as JSON data; null stands for what there is none of."""
    return {
        "judge": found.judge,
        "configurations": [_figures_json(figures) for figures in found.configurations],
        "align_pro_against_untrained": _against_json(found.training),
        "align_pro_against_oracle": None if found.oracle is None else _against_json(found.oracle),
        "share_of_oracle_gain": share_of_oracle(found),
    }


def _figures_json(figures: Figures) -> dict[str, Json]:
    against_alone = None if figures.against_alone is None else _against_json(figures.against_alone)
    return {
        "name": figures.name,
        "reward": report.estimate_json(figures.reward),
        "variance": report.estimate_json(figures.variance),
        "length": report.estimate_json(figures.length),
        "missing": figures.missing,
        "rewritten": None if math.isnan(figures.rewritten) else figures.rewritten,
        "inconsistent_verdicts": figures.inconsistent,
        "against_frozen_alone": against_alone,
        "quality_by_rule": None if figures.rule is None else report.estimate_json(figures.rule),
    }


def _against_json(one: Against) -> dict[str, Json]:
    wins, equal = one.wins, one.equal_length
    counted: dict[str, Json] = {
        "wins": wins.wins,
        "ties": wins.ties,
        "losses": wins.losses,
        "missing": wins.missing,
        "win_rate": report.estimate_json(wins.rate),
        "sign_test_p": wins.p_value,
    }
    at_equal: Json = None
    if equal is not None:
        rest = {name: value for name, value in asdict(equal).items() if name != "intercept"}
        at_equal = {"gain": report.estimate_json(equal.intercept), **rest}
    return {"gain": report.gain_json(one.gain), "verdicts": counted, "at_equal_length": at_equal}


def share_of_oracle(found: AlignFindings) -> float | None:
    """Return Align-Pro's gain over the frozen model alone as a share of the oracle's.

    Returns:
        The share; None without an oracle, or where the oracle's own gain is not significantly above 0.
    """
    if found.oracle is None:
        return None
    ours, its = found[ALIGN_PRO].against_alone, found[ORACLE].against_alone
    assert ours is not None and its is not None
    return ours.gain.difference / its.gain.difference if its.gain.significant and its.gain.low > 0 else None


def tables(found: AlignFindings) -> list[Table]:
    """The figures as tables of 80 columns: each configuration, then each against the frozen model alone."""
    each = _empty("", "mean reward", "variance", "characters")
    gains = _empty("against alone", "gain", "p", "gain at equal length")
    wins = _empty("against alone", "win/tie/loss", "wins, %", "sign test p")
    for figures in found.configurations:
        length = f"{figures.length.mean:.0f}"
        each.add_row(figures.name, figure(figures.reward), figure(figures.variance), length)
        one = figures.against_alone
        if one is None:
            continue
        equal = "-" if one.equal_length is None else figure(one.equal_length.intercept, signed=True)
        gains.add_row(figures.name, describe_gain(one.gain), p_value(one.gain.p_value), equal)
        counts = f"{one.wins.wins}/{one.wins.ties}/{one.wins.losses}"
        wins.add_row(figures.name, counts, report.describe_estimate(one.wins.rate), p_value(one.wins.p_value))
    return [each, gains, wins]


def _empty(*heads: str) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        shown.add_column(head, no_wrap=True, justify="right" if number else "left")
    return shown


def figure(estimate: Estimate95, *, signed: bool = False) -> str:
    """An estimate with its interval: ``1.23 [1.01, 1.45]``."""
    form = "+.2f" if signed else ".2f"
    if math.isnan(estimate.mean):
        return "-"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.mean:{form}}{interval}"


def describe_gain(gain: Gain) -> str:
    """A gain in reward with its interval: ``+1.23 [+1.01, +1.45]``."""
    return figure(Estimate95(gain.difference, gain.low, gain.high, gain.n), signed=True)


def p_value(p: float) -> str:
    """A p-value: ``<0.001``."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def meaning(found: AlignFindings) -> tuple[str, ...]:
    """Say in plain words what the figures mean, a sentence or two each."""
    ours = found[ALIGN_PRO].against_alone
    assert ours is not None
    share = None if found.oracle is None else share_of_oracle(found)
    forms = figure, describe_gain, p_value
    return paragraphs_of("alignment/findings", found, ours, share, _variances(found), *forms, part="meaning")


def _variances(found: AlignFindings) -> tuple[str, Estimate95, Estimate95] | None:
    """Whether training made the rewards vary less; None where that is not known."""
    ours, alone = found[ALIGN_PRO].variance, found[ALONE].variance
    if any(math.isnan(bound) for bound in (ours.low, ours.high, alone.low, alone.high)):
        return None
    apart = ours.high < alone.low or alone.high < ours.low
    return ("lower" if ours.mean < alone.mean else "higher") if apart else "not clearly different", ours, alone


def limits(found: AlignFindings, *, toy: bool) -> tuple[str, ...]:
    """Say what the figures do not show."""
    return paragraphs_of("alignment/findings", found[ALONE].reward.n, found.judge == REWARD_AS_JUDGE, toy)
