"""What a study found, as figures, as JSON, as a table, and in plain words with its limits.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from cuesmith.programs import report
from cuesmith.programs.align_experiment.configurations import ALIGN_PRO, ALONE, ORACLE, UNTRAINED, AlignStudy, Evaluated
from cuesmith.programs.align_experiment.measures import (
    EqualLength,
    Wins,
    count_wins,
    equal_length_gain,
    reward_verdicts,
    variance95,
)
from cuesmith.programs.diagnosis.page import probability
from cuesmith.programs.diagnosis.words import paragraphs_of
from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain, estimate95, paired_gain

REWARD_AS_JUDGE = "the reward model itself (no independent judge)"


@dataclass(frozen=True)
class Against:
    """One configuration against another on the same prompts.

    Attributes:
        gain: In mean reward, in pairs.
        verdicts: Of the judge.
        at_equal_length: What is left of the gain; None where the lengths say nothing.
    """

    gain: Gain
    verdicts: Wins
    at_equal_length: EqualLength | None


@dataclass(frozen=True)
class Figures:
    """What is said of one configuration.

    Attributes:
        name: Its name.
        reward: Mean reward.
        variance: Of the reward over prompts.
        length: Mean length of the answers, in characters.
        missing: Prompts without a reward.
        rewritten: Share of the prompts that the prompter changed; None without a prompter.
        inconsistent_verdicts: Pairs on which the judge contradicted itself.
        against_frozen_alone: None for the frozen model alone.
        quality_by_rule: Mean quality of the answers by the rule behind the toy's preferences; None but for the toy.
    """

    name: str
    reward: Estimate95
    variance: Estimate95
    length: Estimate95
    missing: int
    rewritten: float | None
    inconsistent_verdicts: int
    against_frozen_alone: Against | None
    quality_by_rule: Estimate95 | None


@dataclass(frozen=True)
class AlignFindings:
    """All figures of a study.

    Attributes:
        judge: Who compared the answers.
        configurations: One for each, the frozen model alone first.
        align_pro_against_untrained: By the reward: what the training itself gave.
        align_pro_against_oracle: Against the RLHF oracle, by the reward; None without an oracle.
        share_of_oracle_gain: Align-Pro's gain over the frozen model alone as a share of the oracle's; None without an
            oracle, or where the oracle's own gain is not significantly above 0.
    """

    judge: str
    configurations: tuple[Figures, ...]
    align_pro_against_untrained: Against
    align_pro_against_oracle: Against | None
    share_of_oracle_gain: float | None

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
    ours, oracle = found[ALIGN_PRO], found.get(ORACLE)
    return AlignFindings(
        judge or REWARD_AS_JUDGE,
        tuple(_figures(one, found[ALONE], prompts, rule) for one in found.values()),
        against(ours, found[UNTRAINED], by_judge=False),
        against(ours, oracle, by_judge=False) if oracle else None,
        _share(ours, oracle, found[ALONE]) if oracle else None,
    )


def _share(ours: Evaluated, oracle: Evaluated, alone: Evaluated) -> float | None:
    own, its = (paired_gain(alone.rewards, one.rewards) for one in (ours, oracle))
    return own.difference / its.difference if its.significant and its.low > 0 else None


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
    answered = [(prompt, text) for prompt, text in zip(prompts, one.responses, strict=True) if text is not None]
    return Figures(
        one.name,
        estimate95(one.rewards),
        variance95(one.rewards),
        estimate95(one.lengths),
        one.rewards.count(None),
        sum(changed) / len(changed) if one.name in (UNTRAINED, ALIGN_PRO) else None,
        one.inconsistent,
        None if one is alone else against(one, alone),
        None if rule is None else estimate95(rule(prompt, text) for prompt, text in answered),
    )


def _differences(values: Sequence[float | None], others: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(values, others, strict=True)]


def to_json(found: AlignFindings) -> dict[str, Json]:
    """Return the findings as JSON data, by the names of their attributes; null stands for what there is none of."""
    return {name: _plain(value) for name, value in vars(found).items()}


def _plain(value: object) -> Json:
    match value:
        case Estimate95():
            return report.estimate_json(value)
        case Gain():
            return report.gain_json(value)
        case tuple():
            return [_plain(one) for one in value]
        case None | int() | float() | str():
            return value
    return {name: _plain(one) for name, one in vars(value).items()}


def tables(found: AlignFindings) -> list[Table]:
    """The figures as tables of 80 columns: each configuration, then each against the frozen model alone."""
    each = _empty("", "mean reward", "variance", "characters")
    gains = _empty("against alone", "gain", "p", "gain at equal length")
    wins = _empty("against alone", "win/tie/loss", "wins, %", "sign test p")
    for figures in found.configurations:
        length = f"{figures.length.mean:.0f}"
        each.add_row(figures.name, figure(figures.reward), figure(figures.variance), length)
        one = figures.against_frozen_alone
        if one is None:
            continue
        equal, counts = one.at_equal_length, one.verdicts
        left = "-" if equal is None else figure(equal.gain, signed=True)
        gains.add_row(figures.name, describe_gain(one.gain), probability(one.gain.p_value), left)
        score = f"{counts.wins}/{counts.ties}/{counts.losses}"
        share = report.describe_estimate(counts.win_rate)
        wins.add_row(figures.name, score, share, probability(counts.sign_test_p))
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


def meaning(found: AlignFindings) -> tuple[str, ...]:
    """Say in plain words what the figures mean, a sentence or two each."""
    ours = found[ALIGN_PRO].against_frozen_alone
    forms = figure, describe_gain, probability
    return paragraphs_of("align_experiment/findings", found, ours, _variances(found), *forms, part="meaning")


def _variances(found: AlignFindings) -> tuple[str, Estimate95, Estimate95] | None:
    """Whether training made the rewards vary less; None where that is not known."""
    ours, alone = found[ALIGN_PRO].variance, found[ALONE].variance
    if any(math.isnan(bound) for bound in (ours.low, ours.high, alone.low, alone.high)):
        return None
    apart = ours.high < alone.low or alone.high < ours.low
    return ("lower" if ours.mean < alone.mean else "higher") if apart else "not clearly different", ours, alone


def limits(found: AlignFindings, *, toy: bool) -> tuple[str, ...]:
    """Say what the figures do not show."""
    return paragraphs_of("align_experiment/findings", found[ALONE].reward.n, found.judge == REWARD_AS_JUDGE, toy)
