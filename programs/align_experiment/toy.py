"""A toy for the whole study: a tiny language, and three models that are made from a seed in about a minute.

What is built in, so that nobody takes it for a finding: people ask vaguely ("tell me about the old river"); the frozen
model knows four facts of each of twelve things, was taught to answer vague questions mostly with a phrase, and to list
exactly the facts that a precise question names; the untrained prompter was taught to repeat the question often, to ask
precisely sometimes, and to ask of the wrong thing now and then; preferences like answers with more right facts of the
thing that was asked about. So a better prompter exists by construction, and the untrained one can stumble on it.
Whether training finds it, with the reward model learnt from the preferences and not from the rule behind them, is what
the toy shows.

Source: ours.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuesmith.programs.tasks.preferences import Preference

if TYPE_CHECKING:
    from cuesmith.modules.policy import LocalPolicy

THINGS = (
    *("river", "tower", "bridge", "garden", "castle", "market"),
    *("harbour", "forest", "museum", "island", "valley", "temple"),
)
ADJECTIVES = ["old", "small", "grey", "quiet", "famous", "new", "tall", "little", "wide", "odd", "plain", "far"]
DETERMINERS = ["the", "a", "this", "that"]
OPENERS = ("tell me about", "what about", "say something on", "describe", "explain", "and")
VALUES = {
    "length": ["short", "long", "endless", "tiny"],
    "colour": ["red", "blue", "green", "white"],
    "age": ["ancient", "recent", "modern", "young"],
    "place": ["north", "south", "east", "west"],
}
PHRASE = ("is", "nice", ".")
WORDS = tuple(
    sorted(
        {*THINGS, *ADJECTIVES, *DETERMINERS, *" ".join(OPENERS).split(), *VALUES, *PHRASE, "list", "of", ":", ","}
        | {value for values in VALUES.values() for value in values}
    )
)


@dataclass(frozen=True)
class Language:
    """The facts of a tiny world, and what people ask and prefer in it.

    Attributes:
        facts: (thing, attribute) -> value.
    """

    facts: dict[tuple[str, str], str]

    @classmethod
    def of(cls, seed: int) -> Language:
        """Draw the facts."""
        rng = random.Random(f"facts:{seed}")
        return cls({(thing, name): rng.choice(values) for thing in THINGS for name, values in VALUES.items()})

    def vague(self, rng: random.Random, thing: str | None = None) -> str:
        """A question as people ask it."""
        asked = (rng.choice(OPENERS), rng.choice(DETERMINERS), rng.choice(ADJECTIVES), thing or rng.choice(THINGS))
        return " ".join(asked)

    def precise(self, thing: str, attributes: Sequence[str]) -> str:
        """A question that names what it wants to know."""
        return f"list {' '.join(attributes)} of the {thing}"

    def answer(self, thing: str, attributes: Sequence[str]) -> str:
        """The right answer to a precise question; a phrase where nothing is asked."""
        if not attributes:
            return " ".join(("the", thing, *PHRASE))
        told = " , ".join(f"{name} {self.facts[thing, name]}" for name in attributes)
        return f"the {thing} : {told} ."

    def quality(self, question: str, answer: str) -> float:
        """How good an answer is: different right facts of the thing asked about, less 1 for each other claim."""
        asked = next((word for word in question.split() if word in THINGS), "")
        words = answer.split()
        about = next((word for word in words if word in THINGS), "")
        claims = {(a, b) for a, b in itertools.pairwise(words) if a in VALUES and b in VALUES[a]}
        right = {claim for claim in claims if about == asked and self.facts.get((asked, claim[0])) == claim[1]}
        return float(len(right) - len(claims - right) - (about != asked))

    def frozen_pairs(self, seed: int, count: int) -> list[tuple[str, str]]:
        """Questions and answers that the frozen model is taught."""
        rng = random.Random(f"frozen:{seed}")
        return [self._frozen_pair(rng) for _ in range(count)]

    def _frozen_pair(self, rng: random.Random) -> tuple[str, str]:
        thing = rng.choice(THINGS)
        if rng.random() < 0.3:
            told = rng.choices(range(5), (70, 15, 8, 4, 3))[0]
            return self.vague(rng, thing), self.answer(thing, _some(rng, told))
        asked = _some(rng, rng.randint(1, 4))
        return self.precise(thing, asked), self.answer(thing, asked)

    def prompter_pairs(self, seed: int, count: int) -> list[tuple[str, str]]:
        """Vague questions and rewrites that the untrained prompter is taught: mostly of little use."""
        rng = random.Random(f"prompter:{seed}")
        return [self._prompter_pair(rng) for _ in range(count)]

    def _prompter_pair(self, rng: random.Random) -> tuple[str, str]:
        thing = rng.choice(THINGS)
        asked = self.vague(rng, thing)
        kind = rng.choices(("repeat", 1, 2, 3, 4, "wrong"), (50, 20, 12, 6, 4, 8))[0]
        if kind == "repeat":
            return asked, asked
        if kind == "wrong":
            return asked, self.precise(rng.choice(THINGS), _some(rng, 1))
        return asked, self.precise(thing, _some(rng, int(kind)))

    def prompts(self, seed: int, count: int) -> list[str]:
        """Different vague questions.

        Raises:
            ValueError: If the language has fewer.
        """
        most = len(OPENERS) * len(DETERMINERS) * len(ADJECTIVES) * len(THINGS)
        if count > most:
            raise ValueError(f"the toy language has {most:,} different questions, {count:,} are needed")
        rng, found = random.Random(f"prompts:{seed}"), dict[str, None]()
        while len(found) < count:
            found[self.vague(rng)] = None
        return list(found)

    def preferences(self, seed: int, count: int) -> list[Preference]:
        """Pairs of answers to vague questions, the better one by `quality`, one in twenty the wrong way round."""
        rng, pairs = random.Random(f"preferences:{seed}"), list[Preference]()
        while len(pairs) < count:
            thing = rng.choice(THINGS)
            question = self.vague(rng, thing)
            scored = sorted((self.quality(question, text), text) for text in (self._reply(rng, thing) for _ in "ab"))
            (low, worse), (high, better) = scored
            if low == high:
                continue
            if rng.random() < 0.05:
                worse, better = better, worse
            pairs.append(Preference(question, better, worse, high - low))
        return pairs

    def _reply(self, rng: random.Random, thing: str) -> str:
        """An answer of any quality: facts, facts said twice, a phrase, another thing's facts, wrong facts."""
        kind, asked = rng.random(), _some(rng, rng.randint(1, 4))
        if kind < 0.5:
            return self.answer(thing, asked)
        if kind < 0.65:
            return self.answer(thing, rng.choices(asked, k=rng.randint(2, 4)))
        if kind < 0.8:
            return " ".join([self.answer(thing, ())] * rng.randint(1, 3))  # long and empty: length alone is no merit
        if kind < 0.9:
            return self.answer(rng.choice(THINGS), asked)
        wrong = {(thing, name): rng.choice(VALUES[name]) for name in asked}
        return Language(self.facts | wrong).answer(thing, asked)


def _some(rng: random.Random, count: int) -> list[str]:
    return rng.sample(list(VALUES), k=count)


@dataclass(frozen=True)
class ToySizes:
    """How large the toy's models are, and how much they are taught.

    Attributes:
        hidden: Width of each model.
        layers: Depth of each model.
        pairs: Questions and answers, and questions and rewrites, to teach.
        frozen_steps: Steps of 32 pairs for the frozen model.
        prompter_steps: Steps of 32 pairs for the prompter.
        preferences: Preference pairs.
        reward_steps: Steps of 32 preference pairs for the reward model.
    """

    hidden: int = 64
    layers: int = 2
    pairs: int = 6000
    frozen_steps: int = 400
    prompter_steps: int = 300
    preferences: int = 4000
    reward_steps: int = 300


def frozen(language: Language, seed: int, sizes: ToySizes) -> LocalPolicy:
    """Make the toy's frozen model: it knows the facts, and answers a precise question precisely."""
    return _taught(language.frozen_pairs(seed, sizes.pairs), sizes.frozen_steps, untrained(seed + 1, sizes), seed)


def prompter(language: Language, seed: int, sizes: ToySizes) -> LocalPolicy:
    """Make the toy's untrained prompter: it mostly repeats the question, and sometimes asks precisely."""
    return _taught(language.prompter_pairs(seed, sizes.pairs), sizes.prompter_steps, untrained(seed + 2, sizes), seed)


def _taught(pairs: Sequence[tuple[str, str]], steps: int, pupil: LocalPolicy, seed: int) -> LocalPolicy:
    from cuesmith.teleprompters.alignment.training import warm_start

    return warm_start(pupil, pairs, steps=steps, learning_rate=3e-3, seed=seed)


def untrained(seed: int, sizes: ToySizes) -> LocalPolicy:
    """Make a causal language model of random weights that has the language's words as tokens."""
    from cuesmith.modules.tiny import tiny_policy

    return tiny_policy(WORDS, seed=seed, hidden=sizes.hidden, layers=sizes.layers)
