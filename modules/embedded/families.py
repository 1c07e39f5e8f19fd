"""Task families with exact solutions: the ground truth of the embedded model and of the generated tasks.

A family knows how to draw a question, how to solve any question of its form (also ones written by somebody
else, such as BIG-bench's object counting and navigation items) and which steps lead to the answer. Families of
one *look* share their questions: only the prompt can tell which of them is meant.

The module is pure standard library.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from cuesmith.modules.embedded.wordlists import WORDS

HELD_OUT_SHARE = 10
"""One input in this many is held out of training, chosen by a hash of its text."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A worked answer.

    Attributes:
        answer: The canonical answer text, such as ``12``, ``True`` or ``cat dog``.
        work: One text per step of the family's ``steps``: what "Step k:" should say.
    """

    answer: str
    work: tuple[str, ...]


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


def _solve_first(question: str) -> Solution | None:
    if (words := _words(question)) is None:
        return None
    return Solution(words[0], (" ".join(words), words[0]))


def _solve_last(question: str) -> Solution | None:
    if (words := _words(question)) is None:
        return None
    return Solution(words[-1], (" ".join(words), words[-1]))


def _solve_reverse(question: str) -> Solution | None:
    if (words := _words(question)) is None:
        return None
    answer = " ".join(reversed(words))
    backwards = [f"{k} {word}" for k, word in enumerate(words, 1)][::-1]
    return Solution(answer, (_numbered(words), ", ".join(backwards), answer))


def _solve_count(question: str) -> Solution | None:
    if (words := _words(question)) is None:
        return None
    return Solution(str(len(words)), (_numbered(words), str(len(words))))


# --- numbers -----------------------------------------------------------------------------------------------


def _number_list(rng: random.Random) -> str:
    return " ".join(map(str, rng.sample(range(1, 16), rng.randint(3, 5))))


def _numbers(question: str) -> list[int] | None:
    parts = [part for part in re.split(r"[\s,;]+", question.strip(" .[]")) if part and part != "and"]
    return [int(part) for part in parts] if parts and all(re.fullmatch(r"-?\d+", p) for p in parts) else None


def _solve_sum(question: str) -> Solution | None:
    if (numbers := _numbers(question)) is None:
        return None
    total, sums = numbers[0], []
    for number in numbers[1:]:
        sums.append(f"{total} + {number} = {total + number}")
        total += number
    return Solution(str(total), (" ".join(map(str, numbers)), ", ".join(sums) or str(total), str(total)))


def _extreme(pick: Callable[[int, int], int]) -> Callable[[str], Solution | None]:
    def solve(question: str) -> Solution | None:
        if (numbers := _numbers(question)) is None:
            return None
        best = [numbers[0]]
        for number in numbers[1:]:
            best.append(pick(best[-1], number))
        texts = [" ".join(map(str, values)) for values in (numbers, best)]
        return Solution(str(best[-1]), (*texts, str(best[-1])))

    return solve


# --- things ------------------------------------------------------------------------------------------------

_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "wolf": "wolves", "knife": "knives", "shelf": "shelves",
    "calf": "calves", "fish": "fish", "ox": "oxen", "scarf": "scarves", "loaf": "loaves",
    "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "head of broccoli": "heads of broccoli",
    "stalk of celery": "stalks of celery", "bunch of grapes": "bunches of grapes",
    "head of lettuce": "heads of lettuce",
    "ear of corn": "ears of corn", "pair of scissors": "pairs of scissors",
}  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().replace("_", " ") for name in text.split())


ANIMALS = _names(
    """dog cat cow bear fish snail frog snake mouse duck pig donkey goat rabbit chicken horse sheep wolf fox lion
    tiger monkey zebra camel goose turkey parrot eagle owl crow turtle lizard crab bee ant spider whale dolphin seal
    otter beaver squirrel hamster deer moose llama kitten puppy calf swan"""
)
FRUITS = _names(
    """apple banana orange peach plum nectarine grape strawberry raspberry blackberry blueberry cherry pear mango
    lemon lime kiwi melon apricot fig pineapple papaya coconut grapefruit tangerine watermelon"""
)
OTHERS = _names(
    """potato carrot onion garlic cabbage yam cauliflower lettuce_head head_of_broccoli stalk_of_celery tomato
    cucumber pumpkin radish turnip zucchini ear_of_corn
    flute clarinet violin piano drum trumpet trombone accordion guitar harp cello banjo tuba saxophone
    car toaster stove lamp microwave bed chair couch fridge table oven desk shelf mirror bench stool rug clock
    book pen pencil ruler eraser notebook bag box bottle cup plate bowl spoon fork knife pan kettle jar basket candle
    coat shirt hat scarf glove sock shoe boot belt ring watch necklace umbrella key coin ticket stamp letter card
    ball doll kite puzzle bike truck bus boat tent rope hammer nail screw drill saw ladder bucket broom towel pillow
    blanket phone camera radio laptop printer brick stone shell feather"""
)
_COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_QUANTITIES = {"a": 1, "an": 1, "one": 1, "the": 1, "some": 1, **_COUNTS}


def plural(noun: str) -> str:
    """The plural of one of this module's nouns."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
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


def _things(question: str) -> list[tuple[str, str, int]] | None:
    """The quantities of a sentence as (phrase, noun, number)."""
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


def _totals(things: list[tuple[str, str, int]]) -> tuple[str, int]:
    total, texts = 0, []
    for _, noun, number in things:
        total += number
        texts.append(f"{noun} {total}")
    return ", ".join(texts) or "none 0", total


def _solve_objects(question: str) -> Solution | None:
    if (things := _things(question)) is None:
        return None
    work, total = _totals(things)
    return Solution(str(total), (work, str(total)))


def _solve_items(question: str) -> Solution | None:
    if (things := _things(question)) is None:
        return None
    return Solution(str(len(things)), (_numbered([noun for _, noun, _ in things]), str(len(things))))


def _kind(members: frozenset[str]) -> Callable[[str], Solution | None]:
    def solve(question: str) -> Solution | None:
        if (things := _things(question)) is None:
            return None
        kept = [thing for thing in things if thing[1] in members]
        work, total = _totals(kept)
        return Solution(str(total), (", ".join(phrase for phrase, _, _ in kept) or "none", work, str(total)))

    return solve


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


def _walk_work(sentences: list[str]) -> tuple[str, str]:
    """The numbered moves ("1 north 3 : 0 3, 2 east 0 : 0 3") and the final position."""
    trace = _trace(sentences)
    rows = [f"{k} {heading} {steps} : {x} {y}" for k, (steps, heading, x, y) in enumerate(trace, 1)]
    return ", ".join(rows), f"{trace[-1][2]} {trace[-1][3]}"


def _solve_navigate(question: str) -> Solution | None:
    if (sentences := _walk(question)) is None:
        return None
    rows, end = _walk_work(sentences)
    answer = str(end == "0 0")
    return Solution(answer, (rows, end, answer))


def _solve_position(question: str) -> Solution | None:
    if (sentences := _walk(question)) is None:
        return None
    rows, end = _walk_work(sentences)
    return Solution(end, (rows, end))


# --- logic -------------------------------------------------------------------------------------------------


def _logic_question(rng: random.Random) -> str:
    wanted = rng.random() < 0.5
    while True:
        terms = [rng.choice(("", "", "not ")) + rng.choice(("True", "False")) for _ in range(rng.randint(2, 5))]
        text = terms[0] + "".join(f" {rng.choice(('and', 'and', 'or'))} {term}" for term in terms[1:])
        if _evaluate(text)[-1] == str(wanted):
            return text


def _evaluate(text: str) -> tuple[str, str, str]:
    """The expression without "not", then without "and", then its value."""
    plain = text.replace("not True", "#").replace("not False", "True").replace("#", "False")
    groups = [str("False" not in group) for group in plain.split(" or ")]
    return plain, " or ".join(groups), str("True" in groups)


def _solve_bool(question: str) -> Solution | None:
    text = question.strip(" .")
    term = r"(?:not )?(?:True|False)"
    if not re.fullmatch(rf"{term}(?: (?:and|or) {term})*", text):
        return None
    work = _evaluate(text)
    return Solution(work[-1], work)


def _solve_trues(question: str) -> Solution | None:
    if (solved := _solve_bool(question)) is None:
        return None
    values = re.findall(r"True|False", solved.work[0])
    count, rows = 0, []
    for value in values:
        count += value == "True"
        rows.append(f"{value} {count}")
    return Solution(str(count), (solved.work[0], ", ".join(rows), str(count)))


# --- the table ---------------------------------------------------------------------------------------------

_ALL = (
    Family(
        "first", "words", str,
        ("Give the first word of the list.", "Return the first word.", "Which word comes first?",
         "Output the word at the start of the list.", "Name the first of the words."),
        ("Copy the words in order.", "Give the first of them."),
        word_list, _solve_first,
    ),
    Family(
        "last", "words", str,
        ("Give the last word of the list.", "Return the final word.", "Which word comes last?",
         "Output the word at the end of the list.", "Name the last of the words."),
        ("Copy the words in order.", "Give the last of them."),
        word_list, _solve_last,
    ),
    Family(
        "reverse", "words", str,
        ("Write the words in reverse order.", "Reverse the order of the words.", "Give the list of words backwards.",
         "List the words from last to first."),
        ("Number the words in order.", "Write the numbered words from the last to the first.",
         "Give the words in that order without their numbers."),
        word_list, _solve_reverse,
    ),
    Family(
        "count", "words", int,
        ("Count the words.", "How many words are in the list?", "Give the number of words.",
         "Return the length of the list of words."),
        ("Number the words in order.", "Give the number of the last word."),
        word_list, _solve_count,
    ),
    Family(
        "sum", "numbers", int,
        ("Add all the numbers.", "Give the sum of the numbers.", "What is the total of the numbers?",
         "Compute the sum of the list."),
        ("Copy the numbers in order.", "Add the numbers one at a time, writing each sum.", "Give the final sum."),
        _number_list, _solve_sum,
    ),
    Family(
        "max", "numbers", int,
        ("Give the largest number.", "What is the maximum of the numbers?", "Return the biggest of the numbers.",
         "Find the highest number."),
        ("Copy the numbers in order.", "For each number write the largest number so far.",
         "Give the last of these, the largest."),
        _number_list, _extreme(max),
    ),
    Family(
        "min", "numbers", int,
        ("Give the smallest number.", "What is the minimum of the numbers?", "Return the least of the numbers.",
         "Find the lowest number."),
        ("Copy the numbers in order.", "For each number write the smallest number so far.",
         "Give the last of these, the smallest."),
        _number_list, _extreme(min),
    ),
    Family(
        "objects", "things", int,
        ("Count all the objects, including quantities.", "How many objects do I have in total?",
         "Give the total number of objects.", "Add up the quantities of everything."),
        ("Write each thing with the running total of the quantities.", "Give the last total."),
        _things_question, _solve_objects,
    ),
    Family(
        "items", "things", int,
        ("Count the different kinds of things.", "How many different items are listed?",
         "Give the number of distinct kinds, ignoring quantities.", "Count the entries of the list."),
        ("Number the kinds of things in order, ignoring quantities.", "Give the number of the last kind."),
        _things_question, _solve_items,
    ),
    Family(
        "animals", "things", int,
        ("Count only the animals.", "How many animals do I have?", "Give the total number of animals.",
         "Add up the quantities of the animals."),
        ("Write down only the animals with their quantities.", "Write each animal with the running total.",
         "Give the last total."),
        _things_question, _kind(_IS_ANIMAL),
    ),
    Family(
        "fruits", "things", int,
        ("Count only the fruits.", "How many fruits do I have?", "Give the total number of fruits.",
         "Add up the quantities of the fruits."),
        ("Write down only the fruits with their quantities.", "Write each fruit with the running total.",
         "Give the last total."),
        _things_question, _kind(_IS_FRUIT),
    ),
    Family(
        "navigate", "walk", bool,
        ("Do the moves lead back to the starting point? Answer True or False.",
         "Decide whether the walk ends where it started: True or False.",
         "If you follow these instructions, do you return to the starting point?",
         "Say True if you end at the start and False otherwise."),
        ("Start at 0 0 facing north and write number, direction, distance and position for each move.",
         "Give the final position.", "Answer True if the final position is 0 0, otherwise False."),
        _walk_question, _solve_navigate,
    ),
    Family(
        "position", "walk", str,
        ("Give the final position.", "Where does the walk end? Give the coordinates.",
         "Starting at 0 0 facing north, at which coordinates do you end?", "Return the coordinates of the end point."),
        ("Start at 0 0 facing north and write number, direction, distance and position for each move.",
         "Give the final position as the answer."),
        _walk_question, _solve_position,
    ),
    Family(
        "bool", "logic", bool,
        ("Evaluate the logical expression.", "Is the expression True or False?",
         "Give the truth value of the expression.", "Compute the value of the Boolean expression."),
        ("Apply every not.", "Join each group of and into one value.", "Join the values with or into the answer."),
        _logic_question, _solve_bool,
    ),
    Family(
        "trues", "logic", int,
        ("Count the terms that are true.", "How many of the terms are true?",
         "Give the number of terms that hold.", "Count how many terms have the value True."),
        ("Apply every not.", "Write each value with the count of True so far.", "Give the last count."),
        _logic_question, _solve_trues,
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""All task families by name."""
