"""Task families with exact solutions: the ground truth of the embedded model and of the generated tasks.

A family knows how to draw a question, how to solve any question of its form (also ones written by somebody
else, such as BIG-bench's object counting and navigation items) and which steps lead to the answer. Families of
one *look* share their questions: only the prompt can tell which of them is meant.

The module is pure standard library.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

WORDS: tuple[str, ...] = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
"""Common English words of technical prose, 3 to 9 letters, most frequent first."""

_TABLES: dict[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
T = TypeVar("T")
Work: TypeAlias = tuple[str, ...]
Thing: TypeAlias = tuple[str, str, int]
"""Phrase, noun, number."""
HELD_OUT_SHARE = 10
"""One input in this many is held out of training, chosen by a hash of its text."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A worked answer.

    Attributes:
        work: One text per step of the family's ``steps``: what "Step k:" should say.
    """

    work: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The canonical answer text, such as ``12``, ``True`` or ``cat dog``: what the last step gives."""
        return self.work[-1]


@dataclass(frozen=True)
class Family:
    """A task family.

    Attributes:
        name: Its key in `FAMILIES`.
        look: Families of one look cannot be told apart from the input alone.
        answer_type: The type of the answer.
        instructions: Precise phrasings of the task.
        steps: Two to four imperative, checkable steps, the last of which gives the answer.
        sampler: Draws the text of a question.
        solver: Solves a question's text, None if the text has another form.
    """

    name: str
    look: str
    answer_type: type
    instructions: tuple[str, ...]
    steps: tuple[str, ...]
    sampler: Callable[[random.Random], str]
    solver: Callable[[str], Solution | None]

    def sample(self, rng: random.Random, *, held_out: bool) -> str:
        """Draw a question.

        Args:
            rng: The source of randomness.
            held_out: Whether to draw from the tenth of the inputs that is never trained on.
        """
        while True:
            question = self.sampler(rng)
            if is_held_out(question) == held_out:
                return question

    def solve(self, question: str) -> Solution | None:
        """Solve a question, or return None if it is not of this family's form."""
        return self.solver(" ".join(question.split()))


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the held-out tenth, by a hash of the text."""
    return zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0


def render_work(solution: Solution) -> str:
    """Write the worked solution as the model writes it: one "Step k: ..." line per step."""
    return "\n".join(f"Step {k}: {text}" for k, text in enumerate(solution.work, 1))


# --- words -------------------------------------------------------------------------------------------------

_ONSETS = (
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z",
    "br", "cl", "dr", "fl", "gr", "pl", "sh", "st", "th", "tr", "qu", "sn",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "oo", "ou")
_CODAS = ("", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "x")


def invented_word(rng: random.Random) -> str:
    """Make up a pronounceable word of one to three syllables."""
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def random_word(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw a real or (one time in four) an invented word, from the held-out tenth or from the rest."""
    while True:
        word = invented_word(rng) if rng.random() < 0.25 else rng.choice(WORDS)
        if len(word) > 1 and is_held_out("word:" + word) == held_out:
            return word


def word_list(rng: random.Random, *, held_out: bool = False) -> str:
    """A question of the words look: 3 to 6 different words; ``held_out`` makes every word an unseen one."""
    words: dict[str, None] = {}
    size = rng.randint(3, 6)
    while len(words) < size:
        words[random_word(rng, held_out=held_out)] = None
    return " ".join(words)


def _words(question: str) -> list[str] | None:
    words = [word.strip(".,;") for word in question.split()]
    return words if words and all(re.fullmatch(r"[A-Za-z][A-Za-z'-]*", word) for word in words) else None


def _numbered(things: list[str]) -> str:
    return ", ".join(f"{k} {thing}" for k, thing in enumerate(things, 1))


def _reversed(words: list[str]) -> Work:
    backwards = [f"{k} {word}" for k, word in enumerate(words, 1)][::-1]
    return _numbered(words), ", ".join(backwards), " ".join(reversed(words))


# --- numbers -----------------------------------------------------------------------------------------------


def _number_list(rng: random.Random) -> str:
    return " ".join(map(str, rng.sample(range(1, 16), rng.randint(3, 5))))


def _numbers(question: str) -> list[int] | None:
    parts = [part for part in re.split(r"[\s,;]+", question.strip(" .[]")) if part and part != "and"]
    return [int(part) for part in parts] if parts and all(re.fullmatch(r"-?\d+", p) for p in parts) else None


def _sum(numbers: list[int]) -> Work:
    total, sums = numbers[0], []
    for number in numbers[1:]:
        sums.append(f"{total} + {number} = {total + number}")
        total += number
    return " ".join(map(str, numbers)), ", ".join(sums) or str(total), str(total)


def _extreme(pick: Callable[[int, int], int]) -> Callable[[list[int]], Work]:
    def work(numbers: list[int]) -> Work:
        best = list(itertools.accumulate(numbers, pick))
        return *(" ".join(map(str, values)) for values in (numbers, best)), str(best[-1])

    return work


# --- things ------------------------------------------------------------------------------------------------

ANIMALS, FRUITS, OTHERS = (tuple(_TABLES[kind]) for kind in ("animals", "fruits", "others"))
_COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_QUANTITIES = {"a": 1, "an": 1, "one": 1, "the": 1, "some": 1, **_COUNTS}


def plural(noun: str) -> str:
    """The plural of one of this module's nouns."""
    if noun in _TABLES["irregular_plurals"]:
        return str(_TABLES["irregular_plurals"][noun])
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|sh|ch)$", noun) else "s")


def _with_plurals(nouns: tuple[str, ...]) -> frozenset[str]:
    return frozenset(nouns) | frozenset(map(plural, nouns))


_IS_ANIMAL, _IS_FRUIT = _with_plurals(ANIMALS), _with_plurals(FRUITS)


def _quantity(rng: random.Random, noun: str) -> str:
    if rng.random() < 0.55:
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return f"{rng.choice(('two', 'two', 'three', 'three', 'four', 'five'))} {plural(noun)}"


def _sentence(phrases: list[str]) -> str:
    if len(phrases) < 3:
        return f"I have {' and '.join(phrases)}."
    return f"I have {', '.join(phrases[:-1])}, and {phrases[-1]}."


def _things_question(rng: random.Random) -> str:
    size = rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 10))
    nouns: dict[str, None] = {}
    if rng.random() < 0.25:
        pool = rng.choice((ANIMALS, FRUITS, OTHERS))
        nouns.update(dict.fromkeys(rng.sample(pool, size)))
    while len(nouns) < size:
        nouns[rng.choice(rng.choice((ANIMALS, ANIMALS, FRUITS, FRUITS, OTHERS, OTHERS, OTHERS)))] = None
    return _sentence([_quantity(rng, noun) for noun in nouns])


def _things(question: str) -> list[Thing] | None:
    """The quantities of a sentence."""
    match = re.fullmatch(r"I have (.+?)\.?", question.split("?")[0].strip())
    if match is None:
        return None
    things = []
    for phrase in re.split(r",\s*and\s+|,\s*|\s+and\s+", match[1]):
        word, _, noun = phrase.partition(" ")
        if not noun or (word not in _QUANTITIES and not word.isdigit()):
            return None
        things.append((phrase, noun, _QUANTITIES.get(word) or int(word)))
    return things


def _totals(things: list[Thing]) -> Work:
    sums = list(itertools.accumulate(number for _, _, number in things))
    texts = [f"{noun} {total}" for (_, noun, _), total in zip(things, sums, strict=True)]
    return ", ".join(texts) or "none 0", str(sums[-1] if sums else 0)


def _kind(members: frozenset[str]) -> Callable[[list[Thing]], Work]:
    def work(things: list[Thing]) -> Work:
        kept = [thing for thing in things if thing[1] in members]
        return ", ".join(phrase for phrase, _, _ in kept) or "none", *_totals(kept)

    return work


# --- walks -------------------------------------------------------------------------------------------------

_HEADINGS = ("north", "east", "south", "west")
_VECTORS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
_TURNS = {"Turn right": 1, "Turn around": 2, "Turn left": 3}
_SIDES = {"forward": 0, "right": 1, "backward": 2, "left": 3}
_MOVE = re.compile(r"Take (\d+) steps?(?: (forward|backward|left|right))?")


def _take(steps: int, side: str = "") -> str:
    return f"Take {steps} step{'' if steps == 1 else 's'}{side and ' '}{side}"


def _leg(length: int, rng: random.Random) -> list[int]:
    """Split a distance into moves of at most ten steps, sometimes into more than needed."""
    parts = []
    while length:
        part = min(length, 10)
        if length > 1 and rng.random() < 0.3:
            part = rng.randint(1, part)
        parts.append(part)
        length -= part
    return parts


def _facing_forward(rng: random.Random, returns: bool) -> list[str]:
    moves = [(rng.randint(1, 10), rng.choice(tuple(_SIDES))) for _ in range(rng.randint(1, 3))]
    if returns:
        x = sum(n * _VECTORS[_HEADINGS[_SIDES[side]]][0] for n, side in moves)
        y = sum(n * _VECTORS[_HEADINGS[_SIDES[side]]][1] for n, side in moves)
        moves += [(n, "left" if x > 0 else "right") for n in _leg(abs(x), rng)]
        moves += [(n, "backward" if y > 0 else "forward") for n in _leg(abs(y), rng)]
        rng.shuffle(moves)
    else:
        moves += [(rng.randint(1, 10), rng.choice(tuple(_SIDES))) for _ in range(rng.randint(1, 2))]
    return ["Always face forward", *(_take(n, side) for n, side in moves)]


def _random_legs(rng: random.Random, low: int, high: int) -> list[str]:
    return [
        _take(rng.randint(1, 10)) if rng.random() < 0.55 else rng.choice(tuple(_TURNS))
        for _ in range(rng.randint(low, high))
    ]


def _turning(rng: random.Random, returns: bool) -> list[str]:
    sentences = _random_legs(rng, 1, 4)
    if not returns:
        return sentences + _random_legs(rng, 1, 3)
    _, heading, x, y = _trace(sentences)[-1]
    for length, wanted in ((abs(x), "west" if x > 0 else "east"), (abs(y), "south" if y > 0 else "north")):
        if not length:
            continue
        turn = (_HEADINGS.index(wanted) - _HEADINGS.index(heading)) % 4
        if turn:
            sentences.append(next(text for text, by in _TURNS.items() if by == turn))
        sentences += [_take(part) for part in _leg(length, rng)]
        heading = wanted
    return sentences + ([rng.choice(tuple(_TURNS))] if rng.random() < 0.25 else [])


def _perturbed(rng: random.Random, sentences: list[str]) -> list[str]:
    """Change one number, so that a walk that returns no longer does (mostly)."""
    places = [k for k, text in enumerate(sentences) if _MOVE.fullmatch(text)]
    place = rng.choice(places)
    match = _MOVE.fullmatch(sentences[place])
    assert match is not None
    number = rng.choice([n for n in range(1, 11) if n != int(match[1])])
    return [*sentences[:place], _take(number, match[2] or ""), *sentences[place + 1 :]]


def _walk_question(rng: random.Random) -> str:
    make = rng.choice((_facing_forward, _turning))
    returns = rng.random() < 0.5
    while True:
        near_miss = not returns and rng.random() < 0.6
        sentences = make(rng, returns or near_miss)
        if sum("Take" in text for text in sentences) < 2:
            continue
        if near_miss:
            sentences = _perturbed(rng, sentences)
        trace = _trace(sentences)
        home, near = trace[-1][2:] == (0, 0), all(abs(x) < 31 > abs(y) for *_, x, y in trace)
        if 3 <= len(sentences) <= rng.choice((4, 5, 6, 8, 10)) and home == returns and near:
            return ". ".join(sentences) + "."


def _trace(sentences: list[str]) -> list[tuple[int, str, int, int]]:
    """Per sentence: steps taken, the direction of the move (or the new heading) and the position."""
    heading, x, y = "north", 0, 0
    trace: list[tuple[int, str, int, int]] = []
    for text in sentences:
        if text in _TURNS:
            heading = _HEADINGS[(_HEADINGS.index(heading) + _TURNS[text]) % 4]
            trace.append((0, heading, x, y))
        elif match := _MOVE.fullmatch(text):
            direction = _HEADINGS[(_HEADINGS.index(heading) + _SIDES[match[2] or "forward"]) % 4]
            steps = int(match[1])
            x, y = x + steps * _VECTORS[direction][0], y + steps * _VECTORS[direction][1]
            trace.append((steps, direction, x, y))
    return trace or [(0, heading, x, y)]


def _walk(question: str) -> list[str] | None:
    sentences = [text.strip() for text in question.split("?")[-1].split(".") if text.strip()]
    known = all(s in _TURNS or s == "Always face forward" or _MOVE.fullmatch(s) for s in sentences)
    return sentences if sentences and known else None


def _position(sentences: list[str]) -> Work:
    """The numbered moves ("1 north 3 : 0 3, 2 east 0 : 0 3") and the final position."""
    trace = _trace(sentences)
    rows = [f"{k} {heading} {steps} : {x} {y}" for k, (steps, heading, x, y) in enumerate(trace, 1)]
    return ", ".join(rows), f"{trace[-1][2]} {trace[-1][3]}"


def _navigate(sentences: list[str]) -> Work:
    work = _position(sentences)
    return *work, str(work[-1] == "0 0")


# --- logic -------------------------------------------------------------------------------------------------


def _logic_question(rng: random.Random) -> str:
    wanted = rng.random() < 0.5
    while True:
        terms = [rng.choice(("", "", "not ")) + rng.choice(("True", "False")) for _ in range(rng.randint(2, 5))]
        text = terms[0] + "".join(f" {rng.choice(('and', 'and', 'or'))} {term}" for term in terms[1:])
        if _evaluate(text)[-1] == str(wanted):
            return text


def _evaluate(text: str) -> Work:
    """The expression without "not", then without "and", then its value."""
    plain = text.replace("not True", "#").replace("not False", "True").replace("#", "False")
    groups = [str("False" not in group) for group in plain.split(" or ")]
    return plain, " or ".join(groups), str("True" in groups)


def _logic(question: str) -> str | None:
    text, term = question.strip(" ."), r"(?:not )?(?:True|False)"
    return text if re.fullmatch(rf"{term}(?: (?:and|or) {term})*", text) else None


def _trues(text: str) -> Work:
    plain = _evaluate(text)[0]
    values = re.findall(r"True|False", plain)
    counts = itertools.accumulate(int(value == "True") for value in values)
    rows = [f"{value} {count}" for value, count in zip(values, counts, strict=True)]
    return plain, ", ".join(rows), str(values.count("True"))


# --- the table ---------------------------------------------------------------------------------------------


def _family(
    name: str,
    look: str,
    kind: type,
    sampler: Callable[[random.Random], str],
    parse: Callable[[str], T | None],
    work: Callable[[T], Work],
) -> Family:
    """A family by how a question is read (None for another form) and how what was read is worked on."""
    own = _TABLES["families"][name]

    def solve(question: str) -> Solution | None:
        read = parse(question)
        return None if read is None else Solution(work(read))

    return Family(name, look, kind, tuple(own["instructions"]), tuple(own["steps"]), sampler, solve)


_ALL = (
    _family("first", "words", str, word_list, _words, lambda words: (" ".join(words), words[0])),
    _family("last", "words", str, word_list, _words, lambda words: (" ".join(words), words[-1])),
    _family("reverse", "words", str, word_list, _words, _reversed),
    _family("count", "words", int, word_list, _words, lambda words: (_numbered(words), str(len(words)))),
    _family("sum", "numbers", int, _number_list, _numbers, _sum),
    _family("max", "numbers", int, _number_list, _numbers, _extreme(max)),
    _family("min", "numbers", int, _number_list, _numbers, _extreme(min)),
    _family("objects", "things", int, _things_question, _things, _totals),
    _family("items", "things", int, _things_question, _things,
            lambda things: (_numbered([noun for _, noun, _ in things]), str(len(things)))),
    _family("animals", "things", int, _things_question, _things, _kind(_IS_ANIMAL)),
    _family("fruits", "things", int, _things_question, _things, _kind(_IS_FRUIT)),
    _family("navigate", "walk", bool, _walk_question, _walk, _navigate),
    _family("position", "walk", str, _walk_question, _walk, _position),
    _family("bool", "logic", bool, _logic_question, _logic, _evaluate),
    _family("trues", "logic", int, _logic_question, _logic, _trues),
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""All task families by name; their wordings stand in `families.json`."""
