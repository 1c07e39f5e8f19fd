"""Grading for a diagnosis: whether a response follows a rule, and under which condition a feedback was given.

Both by the request's own words. Rules about the form of an answer can be checked, and "unclear" is said of all others:
this model does not understand what a rule asks for.
"""

import re
from collections.abc import Callable, Sequence

from cuesmith.modules.simulated.author import Author, Source, Values
from cuesmith.modules.simulated.points import read
from cuesmith.modules.simulated.task_inference import asked_part, entries_of, explain
from cuesmith.modules.simulated.wordings import STOP, norm

_NUMBERS = {word: k for k, word in enumerate(
    ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))}  # fmt: skip
_COUNT = rf"(\d{{1,3}}|{'|'.join(_NUMBERS)})"
_THOUGHT = re.compile(r"reasoning$", re.IGNORECASE)
Check = Callable[[re.Match[str], str, str], bool]
"""(how the rule was recognised, the whole response, the answer in it) -> whether the rule is followed."""


# --- rules -------------------------------------------------------------------------------------------------


def check_rule(author: Author, source: Source) -> Values:
    """Answer `CheckRule`."""
    if source == "prior":
        return {"followed": "yes"}
    found = followed(author.asked.text("rule"), author.asked.text("response"))
    said = "unclear" if found is None else "yes" if found else "no"
    return {"followed": {"yes": "no", "no": "yes", "unclear": "yes"}[said] if source == "noise" else said}


def followed(rule: str, response: str) -> bool | None:
    """Whether a response follows a rule; None for a rule of no kind that can be checked by its words."""
    for pattern, check in _CHECKS:
        if match := pattern.search(rule):
            return check(match, response, _answer(response))
    return None


def _answer(response: str) -> str:
    """What a response gives as its answer: the values of its fields but the reasoning."""
    values = [value for name, value in entries_of(response) if not _THOUGHT.match(name)]
    return "\n".join(values).strip() or response.strip()


def _count(match: re.Match[str]) -> int:
    return _NUMBERS[match[1].lower()] if match[1].lower() in _NUMBERS else int(match[1])


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_](?:[\w'’.-]*[^\W_])?", text)


def _sentences(text: str) -> int:
    return len(re.findall(r"[^.!?\s][^.!?]*(?:[.!?]+(?=\s|$)|$)", text))


def _has(quoted: re.Match[str], text: str) -> bool:
    return f" {norm(quoted[1])} " in f" {norm(text)} "


def _labels(match: re.Match[str], response: str, answer: str) -> bool:
    found = [int(k) for k in re.findall(r"(?:^|(?<=\s))\**step\s*(\d+)\**\s*[:.)]", response, re.IGNORECASE)]
    return bool(found) and found == list(range(1, len(found) + 1))


def _bullets(match: re.Match[str], response: str, answer: str) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return bool(lines) and all(re.match(r"\s*[-*•]\s", line) for line in lines)


def _bare(match: re.Match[str], response: str, answer: str) -> bool:
    return re.fullmatch(r"[-+]?\d[\d.,]*%?", answer) is not None


def _truth(match: re.Match[str], response: str, answer: str) -> bool:
    return norm(answer) in {norm(match[1]), norm(match[2])}


_QUOTED = r"[\"“'‘`]([^\"”'’`]+)[\"”'’`]"
_RULES: Sequence[tuple[str, Check]] = (
    (r"\b(?:under|with|by) (?:its|their|the|a) labels?\b|\blabel (?:each|every) step\b", _labels),
    (r"\bbullet", _bullets),
    (r"\b(?:only|just|nothing but) (?:the |a )?(?:bare |final )?(?:number|digits?)\b", _bare),
    (r"\b(?:a single|one|only one) word\b", lambda m, r, a: len(_words(a)) == 1),
    (rf"\b(?:at most|no more than|not more than|up to) {_COUNT} words\b", lambda m, r, a: len(_words(a)) <= _count(m)),
    (rf"\b(?:at least|no fewer than|no less than) {_COUNT} words\b", lambda m, r, a: len(_words(a)) >= _count(m)),
    (rf"\b(?:at most|no more than|not more than|up to) {_COUNT} sentences?\b",
     lambda m, r, a: _sentences(a) <= _count(m)),
    (rf"\b(?:exactly|in) {_COUNT} sentences?\b", lambda m, r, a: _sentences(a) == _count(m)),
    (r"\b(?:lower[- ]?case|small letters)\b", lambda m, r, a: a == a.lower()),
    (r"\b(?:upper[- ]?case|capital letters|capitals)\b", lambda m, r, a: a == a.upper()),
    (r"\b(true|yes) or (false|no)\b", _truth),
    (rf"\b(?:do not|don't|never|without) (?:\w+ ){{1,3}}{_QUOTED}", lambda m, r, a: not _has(m, r)),
    (rf"\b(?:begin|start)s? (?:\w+ ){{0,4}}{_QUOTED}", lambda m, r, a: norm(a).startswith(norm(m[1]))),
    (rf"\bends? (?:\w+ ){{0,4}}{_QUOTED}", lambda m, r, a: norm(a).endswith(norm(m[1]))),
    (rf"\b(?:mention|use|include|contain|write) (?:\w+ ){{0,3}}{_QUOTED}", lambda m, r, a: _has(m, r)),
)  # fmt: skip
"""Kinds of rules in the order in which they are tried, each with the check that decides it."""
_CHECKS = [(re.compile(pattern, re.IGNORECASE), check) for pattern, check in _RULES]


# --- conditions --------------------------------------------------------------------------------------------


def identify_condition(author: Author, source: Source) -> Values:
    """Answer `IdentifyCondition`."""
    told = [_named(text) for text in author.asked.texts("conditions")]
    if not told:
        return {"condition": ""}
    if source == "prior":
        return {"condition": told[0][0]}
    fits = [_fit(author, description) for _, description in told]
    best = [name for (name, _), fit in zip(told, fits, strict=True) if fit == max(fits)]
    chosen = author.rng("tie").choice(best)
    others = [name for name, _ in told if name != chosen]
    return {"condition": author.rng("wrong").choice(others) if source == "noise" and others else chosen}


def _named(text: str) -> tuple[str, str]:
    """The name of a condition, and the rest of what is told of it."""
    head, _, rest = text.partition("\n")
    return head.partition(":")[2].strip() or head.strip(), rest


def _fit(author: Author, description: str) -> float:
    """The share of the feedback's words that a description has too; more if its failures are of the task named."""
    feedback = author.asked.text("feedback")
    said, told = _content(feedback), _content(description)
    named = {task.family.name for task in read(feedback).tasks}
    failures = [asked_part(text) for text in re.split(r"^such as:\n", description, flags=re.MULTILINE)[1:]]
    shown = {task.family.name for task in explain(failures, (), author.rng("tie of tasks"), named)}
    return bool(named & shown) + (len(said & told) / len(said) if said else 0.0)


def _content(text: str) -> set[str]:
    return set(norm(text).split()) - STOP
