"""What an answer says: its last number, the option it picks, the members of its list.

Models write more than was asked, so each function looks for the answer in a text. Only pure functions. Source: ours;
"####" is how GSM8K marks its answers, `words` is SQuAD's official normalisation (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import pydantic

MARK = "####"
"""What stands before the final answer in GSM8K's solutions."""

# --- text ---------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return a text in small letters, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def normalise(value: object) -> str:
    """Return the text of an answer without what carries no meaning in it.

    Case, white space, quotes around it and punctuation after it go; an answer of nothing but those stays.
    """
    text = plain(_without_tex(str(value)))
    bare = text.strip("\"'`").rstrip(".,;:!?").strip("\"'` ")
    return bare or text


def boxed(text: str) -> str:
    r"""Return what the last `\boxed{...}` of a text holds; empty if there is none."""
    start = text.rfind("\\boxed{")
    depth, inner = 0, text[start + 6 :] if start >= 0 else ""
    for k, character in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return inner[1:k].strip()
    return ""


def _without_tex(text: str) -> str:
    r"""Return a formula in one of the ways to write it: without `\boxed{}`, dollars, and what only sets spaces."""
    if "\\" not in text and "$" not in text:
        return text
    bare = boxed(text) or text.strip()
    bare = bare.strip("$ ") if bare.startswith("$") and bare.rstrip(". ").endswith("$") else bare
    bare = re.sub(r"\\(?:left|right|!|,|;|quad)(?![A-Za-z])\s*", "", bare)
    bare = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", bare)
    return re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r"\1", bare)


def words(text: str) -> list[str]:
    """Return the words of a text as SQuAD counts them: no case, no punctuation, no articles."""
    bare = "".join(c for c in text.casefold() if c not in string.punctuation)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


# --- numbers ------------------------------------------------------------------------------------------------

_DIGITS = r"(?:\d{1,3}(?:[,'\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_EUROPEAN = (
    r"(?:[1-9]\d{,2}(?:(?:[.\u00a0\u202f]\d{3})+,\d+|(?:\.\d{3}){2})|\d+,\d{1,2}(?=\s?(?:%|€|EUR\b))|(?<=€)\d+,\d{2})"
    r"(?![.,]?\d)"
)
"""Numbers with a comma for the point, where no list and no number in the English way can be meant."""
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-\u2212\u2013]|(?<![\d)\]]\s)\b(?i:minus|negative)\s+)?"
    r"(?:(?P<money>[$€£¥₹])(?P<minus>-)?)?(?<![\w.])(?<!\d/)"
    rf"(?:(?P<whole>\d+)\s+(?=\d+/))?(?P<value>(?P<european>{_EUROPEAN})|(?:{_DIGITS})(?:[eE][+-]?\d{{1,3}}(?!\w))?)"
    r"(?:\s?/\s?(?P<under>\d+)(?!\d|/\d|\.\d))?(?P<percent>\s?(?:%|percent\b))?"
    r"(?:(?:\s(?P<scale>(?i:thousand|million|billion|trillion))|(?P<short>(?(money)[kKmM]|[kK])|\s?bn))\b)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: k for k, word in enumerate(_UNITS)} | {word: 10 * k for k, word in enumerate(_TENS, 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT = {"k": 10**3, "m": 10**6, "bn": 10**9}
_SMALL = rf"(?:(?:{'|'.join(_TENS)})[-\s](?:{'|'.join(_UNITS[1:10])})|{'|'.join(_WORDS)})\b"
_GROUP = rf"{_SMALL}(?:\s+hundred\b(?:\s+(?:and\s+)?{_SMALL})?)?"
_SPELT = re.compile(
    rf"\b(?P<sign>(?:minus|negative)\s+)?(?P<said>{_GROUP}(?:\s+(?:{'|'.join(_SCALES)})\b(?:,?\s+(?:and\s+)?{_GROUP})?)*)"
)


@dataclass(frozen=True)
class Quantity:
    """A number that stands in a text.

    Attributes:
        value: It, without its percent sign.
        percent: Whether it has one.
    """

    value: Fraction
    percent: bool = False

    def equals(self, other: Quantity) -> bool:
        """Return whether two numbers are the same, whole ones exactly, others up to the machine's rounding; 50 % is 50,
        and 0.5."""
        pairs = [(self.value, other.value)]
        if self.percent != other.percent:
            pairs.append(tuple(n.value / 100 if n.percent else n.value for n in (self, other)))  # type: ignore[arg-type]
        return any(
            a == b if a.denominator == b.denominator == 1 else abs(a - b) <= max(abs(a), abs(b)) / 10**9
            for a, b in pairs
        )


def number_in(text: str) -> Quantity | None:
    r"""Return the last number of a text; None if it has none.

    After "####" or in a `\boxed{}`, if there is one. Currency signs, separators of thousands, units and percent signs
    are read over; fractions, exponents, signs, "minus", "million" and "5k" count. A comma stands for the point where
    nothing else can be meant, as in "1.234,56". Words are read where there are no digits.
    """
    said = _focus(text)
    found = list(_NUMBER.finditer(said))
    if found:
        return _number(found[-1])
    spelt = list(_SPELT.finditer(said.casefold()))
    return _in_words(spelt[-1]) if spelt else None


def _in_words(found: re.Match[str]) -> Quantity:
    whole = part = 0
    for word in re.findall(r"[a-z]+", found["said"]):
        if word in _SCALES:
            whole, part = whole + part * _SCALES[word], 0
        else:
            part = part * 100 if word == "hundred" else part + _WORDS.get(word, 0)  # "and" is nothing
    return Quantity(Fraction(-(whole + part) if found["sign"] else whole + part))


def is_number(text: str) -> bool:
    """Return whether a text is a number and nothing else; one that begins with a 0 too many is a code."""
    said = _focus(text).strip()
    if re.match(r"0\d", said):
        return False
    return bool(_NUMBER.fullmatch(said) or _SPELT.fullmatch(said.casefold())) and number_in(said) is not None


def _focus(text: str) -> str:
    """Return the part of a text in which the number is."""
    text = _FRACTION.sub(r"\1/\2", text.rpartition(MARK)[2])
    for written, meant in ((r"\,", ""), ("{,}", ""), (r"\%", "%"), (r"\$", "$")):
        text = text.replace(written, meant)
    boxed = _BOXED.findall(text)
    return str(boxed[-1]) if boxed else text


def _number(found: re.Match[str]) -> Quantity | None:
    try:
        european = re.sub(r"[.\u00a0\u202f]", "", found["european"] or "").replace(",", ".")
        value = Fraction(european or re.sub(r"[,'\u00a0\u202f]", "", found["value"]))
    except ValueError:  # of more digits than Python reads
        return None
    if found["under"] and int(found["under"]):
        value = int(found["whole"] or 0) + value / int(found["under"])
    value *= _SCALES.get((found["scale"] or "").casefold(), 1) * _SHORT.get(
        (found["short"] or "").strip().casefold(), 1
    )
    return Quantity(-value if found["sign"] or found["minus"] else value, percent=found["percent"] is not None)


# --- options ------------------------------------------------------------------------------------------------

_IN_BRACKETS = re.compile(r"(?<!\S)\(([A-Za-z])\)\s*")
_AT_LINE_START = re.compile(r"^[ \t]*([A-Za-z])[).:][ \t]*", re.MULTILINE)
_HEADED = re.compile(r"^[ \t]*(?:options|choices|answer choices)[ \t]*:?[ \t]*\n((?:[ \t]*-[ \t]*\S.*(?:\n|$))+)",
                     re.MULTILINE | re.IGNORECASE)  # fmt: skip
_NAMED = re.compile(r"^[ \t]*choice:[ \t]*(\S.*)$", re.MULTILINE)

_AROUND = " \t\n\"'`*_.:"
_ALONE = re.compile(r"\(?([A-Za-z])\)?[).:]?")
_UNDECIDED = re.compile(r"not\s+\(?[A-Z]\)?|\(?[A-Z]\)?(?:\s*(?:,|/|,?\s(?:or|and)\s)\s*\(?[A-Z]\)?)+", re.IGNORECASE)
_LETTER = r"(?:\([A-Za-z]\)|(?<!\w)[A-HJ-Z](?![\w'’])\)?)"
_NEGATED = r"(?i:\b(?:neither|nor|not|never|rather than|instead of)\b|\b\w+n['’]t) (?i:(?:be|option|answer|choice) )?"
_REFUTED = r" (?i:(?:is|are)(?: not|n['’]t) (?:the|correct|right|true)|(?:is|are) (?:wrong|incorrect|false))\b"
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_LEADING = re.compile(r"([A-Za-z])[).:](?=\s|$)|([A-Za-z])\)(?=\S)|([B-HJ-Z])(?=\s*[-–—,]\s)")
_LAST = re.compile(r"(?<!\w)([A-Z])\W*$")
_ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice)(?:\s+(?:is|would\s+be))?\s*:?\s*[\"'*]*"
    r"(?:\(([A-Za-z])\)|([A-Z])(?=[\"'*]*(?:[).:,;]|\s*$))|([B-HJ-Z])\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AnswerOptions:
    """What a question lets choose from.

    Attributes:
        texts: The options, in order.
        lettered: Whether they have letters: (A), (B), ...
    """

    texts: tuple[str, ...]
    lettered: bool

    def picked(self, answer: str) -> int | None:
        """Return the place of the option that an answer picks; None if that is not clear.

        "(B)", "B", "b.", "B) text", "the answer is (B)" and the option's text are understood; "A" is no option where it
        is the article of a sentence.
        """
        said = _BOXED.sub(r"\1", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", answer)).strip(_AROUND)
        if _UNDECIDED.fullmatch(said):
            return None
        for letter_or_text in (self._letter_alone(said), self._text(said)):
            if letter_or_text is not None:
                return letter_or_text
        said = " ".join(said.split())
        meant = self._hedges(said).sub(lambda found: found["text"] or "~", said).strip(f"~{_AROUND}")
        within = self._letter_within(meant)
        return within if within is not None else self._only_text_within(meant)

    def _hedges(self, said: str) -> re.Pattern[str]:
        """Return what finds options that an answer names without picking them, and the texts of options as `text`.

        These are one or another, several, and what is said not to be it. A "not" that begins an option's text is none.
        """
        there = sorted((t for t in self.texts if t and plain(t) in plain(said)), key=len, reverse=True)
        texts = "|".join(re.escape(" ".join(text.split())) for text in there)
        text = rf"(?<!\w)(?i:(?:an? |the )?(?:{texts}))(?!\w)" if texts else "(?!)"
        letter = _LETTER if self.lettered else "(?!)"
        one = f"(?:{letter}(?:[:.]? {text})?|{text})"
        listed = f"{one}(?: ?, ?{one}){{,9}}"  # bounded, for a model may write "A, A, A, ..." without end
        either = f"{listed}(?:(?: ?,? (?i:or|nor) | ?/ ?){one})+"
        both = rf"{listed}(?: ?,? (?i:and) {one})+(?! (?i:is)\b)"
        several = f"(?:{either}|{both})"
        return re.compile(f"(?:{several}|{one}){_REFUTED}|{several}|(?P<text>{text})|{_NEGATED}(?:{several}|{one})")

    def _place(self, letter: str) -> int | None:
        place = ord(letter.lower()) - ord("a")
        return place if self.lettered and place < len(self.texts) else None

    def _letter_alone(self, said: str) -> int | None:
        found = _ALONE.fullmatch(said)
        return self._place(found[1]) if found else None

    def _text(self, said: str) -> int | None:
        wanted = normalise(said)
        return next((k for k, text in enumerate(self.texts) if text and normalise(text) == wanted), None)

    def _letter_within(self, said: str) -> int | None:
        """The letter that the answer begins with, or the last that it announces, has in brackets or ends in."""
        for found in (_BRACKETED.match(said), _LEADING.match(said)):
            if found and (place := self._place(next(filter(None, found.groups())))) is not None:
                return place
        for pattern in (_ANNOUNCED, _BRACKETED, _LAST):
            letters = [next(filter(None, found.groups())) for found in pattern.finditer(said)]
            places = [place for letter in letters if (place := self._place(letter)) is not None]
            if places:
                return places[-1]
        return None

    def _only_text_within(self, said: str) -> int | None:
        """The option whose text the answer begins with, or the only one whose text stands in it."""
        whole = plain(said)
        patterns = [re.compile(rf"(?<!\w){re.escape(normalise(text))}(?!\w)") if text else None for text in self.texts]
        leading = [k for k, pattern in enumerate(patterns) if pattern and pattern.match(whole)]
        if leading:
            return max(leading, key=lambda k: len(self.texts[k]))
        within = [k for k, pattern in enumerate(patterns) if pattern and pattern.search(whole)]
        return within[0] if len(within) == 1 else None


LETTERS = AnswerOptions(("",) * 26, lettered=True)
"""Options of which nothing but the letters is known."""


def options_in(text: str) -> AnswerOptions | None:
    """Return the options that a question lists; None if it lists none.

    They are "(A) ...", "A) ...", "A. ..." from A on, lines with a dash below "Options:", or BIG-bench's "choice: ...".
    """
    for pattern in (_IN_BRACKETS, _AT_LINE_START):
        run = _last_run(list(pattern.finditer(text)))
        if len(run) > 1:
            return AnswerOptions(tuple(_between(text, run)), lettered=True)
    headed = _HEADED.findall(text)
    listed = [line.strip().removeprefix("-").strip() for line in headed[-1].splitlines()] if headed else []
    listed = listed or [str(choice).strip() for choice in _NAMED.findall(text)]
    return AnswerOptions(tuple(listed), lettered=False) if len(listed) > 1 else None


def _last_run(marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Return the last of the marks that go a, b, c, ..."""
    best: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for mark in marks:
        place = ord(mark[1].lower()) - ord("a")
        if place == 0:
            run = [mark]
        elif run and place == len(run):
            run.append(mark)
        best = run if len(run) > 1 else best
    return best


def _between(text: str, marks: Sequence[re.Match[str]]) -> list[str]:
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    texts = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
    return [" ".join(each.split()) for each in [*texts[:-1], texts[-1].partition("\n")[0]]]


# --- data ---------------------------------------------------------------------------------------------------


def as_data(value: object) -> object:
    """Return a value of typed fields as JSON data: models as mappings, and text that holds JSON as what it holds."""
    match value:
        case pydantic.BaseModel():
            return value.model_dump(by_alias=True)
        case str():
            return json_in(value)
        case _:
            return value


def json_in(text: str) -> object:
    """Return the object or list that a text holds as JSON, in a code block or bare; else the text itself."""
    bare = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", text)
    if bare.lstrip()[:1] not in ("{", "["):
        return text
    try:
        found: object = json.loads(bare)
    except (ValueError, RecursionError):
        return text
    return found


def members(value: object) -> list[str]:
    """Return what a list, or a text that lists something, has in it, each different member in a form to compare."""
    return [member for member in dict.fromkeys(in_order(value)) if member]


def in_order(value: object) -> list[str]:
    """Return all that a list, or a text that lists something, has in it, each in a form that can be compared."""
    data = as_data(value)
    if isinstance(data, str):
        data = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", part) for part in re.split(r"[,;\n]", data)]
    elif data is None:
        data = []
    elif isinstance(data, Mapping) or not isinstance(data, list | tuple | set | frozenset):
        data = [data]
    return [_comparable(member) for member in data]


def _comparable(member: object) -> str:
    data = as_data(member)
    if isinstance(data, Mapping | list | tuple):
        return plain(json.dumps(data, sort_keys=True, ensure_ascii=False, default=str))
    return normalise(data)
