"""How results are put into words for a person or a program: figures, prompts, differences, JSON.

What language models wrote is untrusted: it is shown as plain text, with control characters made visible, and
never as markup.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.text import Text

from cuesmith.teleprompters.runtime.candidate import Json
from cuesmith.teleprompters.runtime.formatting import describe_estimate as describe_estimate
from cuesmith.teleprompters.runtime.formatting import json_text as json_text
from cuesmith.teleprompters.runtime.formatting import percent as percent
from cuesmith.teleprompters.runtime.formatting import usd as usd
from cuesmith.teleprompters.runtime.formatting import visible as visible
from cuesmith.teleprompters.runtime.ledger import Spent
from cuesmith.teleprompters.runtime.run_report.word_diff import prompt_diff as prompt_diff
from cuesmith.teleprompters.runtime.run_report.word_diff import prompt_text as prompt_text
from cuesmith.teleprompters.runtime.statistics import Estimate95, Gain

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def describe_gain(gain: Gain) -> str:
    """A gain in points with its 95 % interval: ``+41.2 [+35.0, +47.1]``."""
    if gain.n == 0:
        return "not measured"
    return f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def describe_p(gain: Gain) -> str:
    """The p-value of a gain: ``<0.001``."""
    return "<0.001" if gain.p_value < 0.001 else f"{gain.p_value:.3f}"


def styled_diff(diff: str) -> Text:
    """Colour a unified difference."""
    text = Text()
    for line in visible(diff).split("\n"):
        text.append(line + "\n", style=_STYLES.get(line[:1], ""))
    text.rstrip()
    return text


def estimate_json(estimate: Estimate95) -> dict[str, Json]:
    """An estimate as JSON data."""
    return _numbers(mean=estimate.mean, low=estimate.low, high=estimate.high) | {"n": estimate.n}


def gain_json(gain: Gain) -> dict[str, Json]:
    """A gain as JSON data."""
    figures = _numbers(difference=gain.difference, low=gain.low, high=gain.high, p_value=gain.p_value)
    return figures | {"n": gain.n, "significant": gain.significant}


def spent_json(spent: Spent) -> dict[str, Json]:
    """What a compile used, by role, as JSON data."""
    return {
        role: {
            "calls": usage.calls,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "usd": usage.usd,
            "cache_hits": usage.cache_hits,
            "replayed": usage.replayed,
        }
        for role, usage in sorted(spent.by_role.items())
    }


def describe_calls(calls: Mapping[str, int]) -> str:
    """Calls by role: ``1,840 task, 64 optimizer``."""
    return ", ".join(f"{number:,} {role}" for role, number in calls.items()) or "none"


def bullet_list(lines: Iterable[str]) -> str:
    """Lines as a list, one a line."""
    return "\n".join(f"- {visible(line)}" for line in lines)


def markdown(text: str) -> str:
    """Text that stands as it is in one line of Markdown, also in a table: nothing in it is markup."""
    plain = " ".join(visible(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~" else c for c in plain)


def number_json(value: float | None, places: int = 6) -> float | None:
    """A figure for JSON, which has no NaN: null stands for what is not known."""
    return None if value is None or math.isnan(value) else round(value, places)


def _numbers(**values: float) -> dict[str, Json]:
    return {name: number_json(value) for name, value in values.items()}
