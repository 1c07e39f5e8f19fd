"""What an optimizer is shown in a controlled study: error distributions, placebos, and errors whose cause is known.

Source: 2402.02101 asks whether feedback follows the errors by changing their distribution; which conditions there are
and how they are drawn is ours.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cuesmith.programs.diagnosis.asking import Error, Evidence
from cuesmith.programs.diagnosis.embedders import TfIdf, average_linkage, words_of
from cuesmith.programs.tasks import Sizes, generate

FEWEST = 3
"""Errors that a class or a cluster needs for a condition of its own. Ours."""
BATCH = 5
"""Errors shown at once. Ours."""

_ABSTAINS = re.compile(
    r"\b(?:no|not an?|nothing|without) (?:\w+ ){0,3}"
    r"(?:fault|reason(?! step)|problem|failures?|errors?|wrong|mistakes?)\b"
    r"|\b(?:labels?|expected (?:outputs?|answers?)) (?:\w+ ){0,4}(?:wrong|incorrect|mistaken|inconsistent)"
    r"|\bresponses? (?:\w+ ){0,3}(?:right|correct)\b|\bcannot be (?:determined|explained|told)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Planted:
    """Errors of a prompt with a fault that was put there on purpose, so that their true cause is known.

    Attributes:
        cause: The fault in a few words, for a reader or a judge.
        instructions: The prompt with the fault.
        errors: What it led to.
        names: Whether a feedback text names the cause: a rule or a judge.
    """

    cause: str
    instructions: str
    errors: tuple[Error, ...]
    names: Callable[[str], bool]


def drawn(
    instructions: str, errors: Sequence[Error], *, n: int = 20, size: int = BATCH, seed: int = 0, label: str = ""
) -> list[Evidence]:
    """Draw batches of different errors, or of all of them where there are not more than a batch holds.

    Args:
        instructions: The prompt.
        errors: Its errors.
        n: Batches.
        size: Errors a batch.
        seed: Chooses the batches.
        label: Gives other batches of the same seed.
    """
    rng, pool = random.Random(f"{seed}:{label}"), list(errors)
    return [Evidence(instructions, tuple(rng.sample(pool, min(size, len(pool))))) for _ in range(n)]


def another_task(family: str, *, n: int = 20, seed: int = 0) -> list[Evidence]:
    """Draw batches of errors of a generated task, for the floors of those who have no second task of their own.

    Args:
        family: A family of `cuesmith.modules.embedded.families` that is not the task under study.
        n: Batches.
        seed: Chooses questions and batches.

    Raises:
        TaskError: If there is no such family.
    """
    examples = generate(family, sizes=Sizes(24, 1, 1), seed=seed).train
    errors = [Error({"question": e.question}, "answer: unknown", {"answer": e.answer}) for e in examples]
    return drawn("Answer the question.", errors, n=n, seed=seed, label="another task")


def controlled(
    instructions: str,
    errors: Sequence[Error],
    *,
    n: int = 20,
    size: int = BATCH,
    kind: Callable[[Error], str] | None = None,
    seed: int = 0,
) -> dict[str, list[Evidence]]:
    """Draw batches under controlled error distributions from a pool of observed errors of one prompt.

    The conditions are "only A" and "only B", for the two most frequent classes A and B, "mixed", from the whole pool,
    and "one cluster", from the largest cluster of errors that read alike, if it is neither class nor the whole pool.
    Where fewer than two classes have `FEWEST` errors, as with open answers, clusters stand in for the classes.

    Args:
        instructions: The prompt.
        errors: Its observed errors.
        n: Batches a condition.
        size: Errors a batch; fewer where a condition has fewer.
        kind: The class of an error; by default what the right answer is.
        seed: Chooses the batches.

    Returns:
        Condition -> its batches, in the order above.

    Raises:
        ValueError: If the pool has no two classes and no two clusters of at least `FEWEST` errors.
    """
    named = kind or (lambda error: error.answer)
    classes = _groups(errors, [named(error) for error in errors])
    clusters = _groups(errors, _clusters(errors))
    if len(classes) < 2:
        classes = {f"cluster {name}": members for name, members in clusters.items()}
    if len(classes) < 2:
        raise ValueError(
            f"{len(errors)} errors have no two classes or clusters of at least {FEWEST}: nothing can be controlled"
        )
    pools = {f"only {' '.join(name.split())[:60]}": members for name, members in list(classes.items())[:2]}
    pools["mixed"] = list(errors)
    for members in list(clusters.values())[:1]:
        if members not in pools.values():
            pools["one cluster"] = members
    shape = {"n": n, "size": size, "seed": seed}
    return {name: drawn(instructions, members, **shape, label=name) for name, members in pools.items()}


def shuffled(
    instructions: str, rights: Sequence[Error], *, n: int = 20, size: int = BATCH, seed: int = 0
) -> list[Evidence]:
    """Draw placebo batches: right responses, each shown as wrong because another example's answer is expected.

    Args:
        instructions: The prompt.
        rights: Examples that were answered rightly, with their responses.
        n: Batches.
        size: Examples a batch.
        seed: Chooses the batches and the answers.

    Raises:
        ValueError: If all right answers are the same: then none can be shown as wrong.
    """
    rng = random.Random(f"shuffled:{seed}")
    if len({right.answer for right in rights}) < 2:
        raise ValueError(f"{len(rights)} right answers do not differ, so that none can stand in for another")
    wrong = []
    for right in rights:
        other = rng.choice([other for other in rights if other.answer != right.answer])
        wrong.append(replace(right, gold=other.gold))
    return drawn(instructions, wrong, n=n, size=size, seed=seed, label="shuffled")


def without_errors(instructions: str, *, n: int = 20) -> list[Evidence]:
    """Return `n` times nothing but the prompt: what is said then is said without evidence."""
    return [Evidence(instructions)] * n


def planted_batches(fault: Planted, *, n: int = 20, size: int = BATCH, seed: int = 0) -> list[Evidence]:
    """Draw batches of the errors that a planted fault led to."""
    return drawn(fault.instructions, fault.errors, n=n, size=size, seed=seed, label=fault.cause)


def form_fault(instructions: str, rights: Sequence[Error]) -> Planted:
    """Plant a missing rule on the form of the answer: each right answer stands in a sentence and so counts as wrong.

    Args:
        instructions: A prompt that says what is wanted and nothing of the form.
        rights: Examples that were answered rightly.
    """
    errors = tuple(replace(right, response=_wordy(right)) for right in rights)
    names = names_any(
        "form", "format", "only the answer", "nothing else", "other words", "bare answer", "just the", "alone",
        "extra text", "extra words", "additional text", "explanation", "full sentence", "sentences", "single word",
    )  # fmt: skip
    return Planted("nothing is said of the form of the answer", instructions, errors, names)


def names_any(*phrases: str) -> Callable[[str], bool]:
    """Return the rule that a text names a cause if it has one of the phrases, as whole words in any case."""
    wanted = [" ".join(["", *words_of(phrase), ""]) for phrase in phrases]
    return lambda text: any(phrase in " ".join(["", *words_of(text), ""]) for phrase in wanted)


def abstains(text: str) -> bool:
    """Return whether a feedback text finds no fault with the prompt, by a rule that knows common wordings only."""
    return _ABSTAINS.search(text) is not None


def _wordy(right: Error) -> str:
    said = ", ".join(f"the {name} is {value}" for name, value in right.gold.items())
    return f"Let me think about it. I would say that {said}, if I read this rightly."


def _groups(errors: Sequence[Error], names: Sequence[str]) -> Mapping[str, list[Error]]:
    """The errors of each name, the most frequent first, as far as there are enough of them."""
    return {
        name: [error for error, own in zip(errors, names, strict=True) if own == name]
        for name, count in Counter(names).most_common()
        if count >= FEWEST
    }


def _clusters(errors: Sequence[Error]) -> list[str]:
    """Errors that read alike, by their words: groups at the upper quartile of the similarities of the pool."""
    matrix = TfIdf().matrix([error.shown() for error in errors])
    pairs = sorted(float(value) for k, row in enumerate(matrix) for value in row[:k])
    if not pairs:
        return ["0"] * len(errors)
    return [str(group + 1) for group in average_linkage(matrix, pairs[3 * len(pairs) // 4])]
