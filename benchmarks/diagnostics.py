"""The live instruments of `cuesmith diagnose` against an optimizer whose truth is known: the simulated one.

    python benchmarks/diagnostics.py [--studies 200] [--seed 0] [--processes 1] [--json FILE]

One study has a vague prompt and its errors on three generated tasks that share their questions, so that the errors
have three causes. `only A`, `only B`, `mixed` and `one cluster` are 20 requests each; so are the prompt without errors,
right answers shown as wrong, a planted fault and another task. `prior_bias` is the share of answers that ignore what is
shown. Every request is the project's own `CriticizeInstruction`; the engine is asked directly, which gives the same
texts as through dspy (tests/test_validity.py).

Columns of the first table, over all studies: how often sensitivity is found (wanted: <= 5 % at prior_bias 1, >= 95 %
at 0), that is, the test rejects and the interval lies above 0, and how often the test alone rejects, at 5 %; the mean
of eta; how often identifiability is found, by permutation and by the binomial test, which is wrong about the built-in
rule too often; its mean accuracy (chance is 0.25); the mean share of feedback that names the planted cause, what the
engine says of the same answers, and what the knob says, (1 - prior_bias) (1 - noise); the mean likeness to feedback
without errors, and how often it is told from 1; the share that finds a cause where there is none.
Of the second: repetition over batches of the mixed pool, 20 batches asked about three times. `covered` is how often
the 95 % interval of `across` holds its mean over all studies of the same tasks; `generic` how often the ceiling is not
above the floor, so that nothing can be normalised.
The last lines measure TF-IDF: its time, and how well similarity tells pairs of feedback that name the same cause from
pairs that do not (AUC, 0.5 is chance), for three ways to weigh words.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cuesmith.modules.embedded.families import FAMILIES
from cuesmith.modules.simulated.points import NOUNS
from cuesmith.modules.simulated.task_inference import tokens_of
from cuesmith.modules.simulated_optimizer import Asked, SimulatedOptimizerEngine
from cuesmith.programs.diagnosis.asking import Error, Evidence, numbered
from cuesmith.programs.diagnosis.embedders import TfIdf, words_of
from cuesmith.programs.diagnosis.planted import Planted, names_any
from cuesmith.programs.diagnosis.repetition import Repetition, repetition_of
from cuesmith.programs.diagnosis.validity import Judging, ShownConditions, Validity, validity_of
from cuesmith.programs.tasks import Sizes, generate
from cuesmith.signatures import CriticizeInstruction

VAGUE = "Answer the question."
LOOKS = (("objects", "items", "animals"), ("first", "last", "count"), ("sum", "max", "min"))
"""Tasks that share their questions; a study takes one row for its errors and the next one for another task."""
FAULT = ("navigate", "position")
"""Tasks of which one is dropped from the prompt as the planted fault."""
SETTINGS = ((1.0, 0.0), (0.7, 0.0), (0.5, 0.0), (0.0, 0.0), (0.0, 0.3), (0.5, 0.3))
"""(prior_bias, noise) of the rows."""


def said(engine: SimulatedOptimizerEngine, shown: Sequence[Evidence]) -> list[str | None]:
    """Ask the engine directly for a reason an entry, each draw a fresh start, as `said_by` of the tests does."""
    replies = [engine.answer(_asked(one), 1024 * k)["reasons"] for one, k in zip(shown, numbered(shown), strict=True)]
    return [str(reasons[0]) if isinstance(reasons, list) and reasons else None for reasons in replies]


def _asked(evidence: Evidence) -> Asked:
    failures = [error.shown() for error in evidence.errors]
    return Asked.of(CriticizeInstruction, instruction=evidence.instructions, failures=failures, count=1)


@lru_cache(maxsize=256)
def errors_of(family: str, seed: int, n: int = 24) -> tuple[Error, ...]:
    """Errors of a generated task that only its own rule explains, so that what they show is beyond doubt."""
    examples = generate(family, sizes=Sizes(4 * n, 1, 1), seed=seed).train
    telling = (example for example in examples if _families(example.question, example.answer) == {family})
    shown = (Error({"question": e.question}, "answer: I do not know.", {"answer": e.answer}) for e in telling)
    return tuple(itertools.islice(shown, n))


def _families(question: str, answer: str) -> set[str]:
    solved = {name: family.solve(question) for name, family in FAMILIES.items()}
    return {name for name, found in solved.items() if found and tokens_of(found.answer) == tokens_of(answer)}


def pool(look: Sequence[str], seed: int) -> tuple[list[Error], Callable[[Error], str]]:
    """The errors of tasks that share their questions, and which task an error is of."""
    errors = {name: errors_of(name, seed) for name in look}
    kinds = {error.shown(): name for name, own in errors.items() for error in own}
    return [error for own in errors.values() for error in own], lambda error: kinds[error.shown()]


def planted(seed: int) -> Planted:
    """A prompt from which the task was dropped: the cause is named where one of the task's noun phrases is."""
    family = FAULT[seed % len(FAULT)]
    return Planted(f"the task {family} is not stated", VAGUE, errors_of(family, seed), names_any(*NOUNS[family]))


@lru_cache(maxsize=8)
def batches(look: tuple[str, ...], seed: int, n: int) -> list[Evidence]:
    """Batches of five errors of the mixed pool."""
    errors, _ = pool(look, seed)
    rng = np.random.default_rng(seed)
    return [Evidence(VAGUE, tuple(errors[k] for k in rng.choice(len(errors), 5, replace=False))) for _ in range(n)]


@lru_cache(maxsize=8)
def study_of(seed: int, n: int = 20) -> ShownConditions:
    """One study; its errors, batches and other task depend on the seed alone."""
    look, other = LOOKS[seed % len(LOOKS)], LOOKS[(seed + 1) % len(LOOKS)]
    errors, kind = pool(look, seed)
    rights = [replace(error, response=f"answer: {error.gold['answer']}") for error in errors_of(look[0], seed)]
    others = batches(other, seed + 1, n)
    fault = planted(seed)
    return ShownConditions.of(VAGUE, errors, rights=rights, fault=fault, others=others, n=n, kind=kind, seed=seed)


@dataclass(frozen=True)
class One:
    """What one study found, and how often the engine says that it named the planted cause."""

    found: Validity
    truth: float
    repeated: Repetition


def run_seed(seed: int, settings: Sequence[tuple[float, float]] = SETTINGS) -> list[One]:
    """Run one study in every setting."""
    with threadpool_limits(1):
        return [run_one(setting, seed) for setting in settings]


def run_one(setting: tuple[float, float], seed: int) -> One:
    """Run one study; the engine's seed is the study's."""
    engine = SimulatedOptimizerEngine(prior_bias=setting[0], noise=setting[1], seed=seed)
    study, look = study_of(seed), LOOKS[seed % len(LOOKS)]
    feedback = study.answered(said(engine, study.shown()))
    found = validity_of(feedback, judging=Judging(names_cause=planted(seed).names), seed=seed)
    sources = [
        engine.truth(_asked(one), 1024 * k).source
        for one, k in zip(study.planted, numbered(study.planted), strict=True)
    ]
    others = batches(LOOKS[(seed + 1) % len(LOOKS)], seed + 1, 20)
    replies = said(engine, [*(batch for batch in batches(look, seed, 20) for _ in range(3)), *others])
    texts = [[text for text in replies[k : k + 3] if text] for k in range(0, 60, 3)]
    repeated = repetition_of(texts, [text for text in replies[60:] if text], seed=seed)
    return One(found, float(np.mean([source == "evidence" for source in sources])), repeated)


@dataclass(frozen=True)
class Row:
    """A line of the first table; shares over studies, means of shares, p for prior_bias and noise."""

    prior_bias: float
    noise: float
    studies: int
    sensitive: float
    rejected: float
    eta: float
    identified: float
    binomial: float
    accuracy: float
    hits: float
    engine: float
    knob: float
    worst: float
    likeness: float
    differs: float
    placebo: float


def row_of(setting: tuple[float, float], ones: Sequence[One]) -> Row:
    """Summarise the studies of one setting."""
    found = [one.found for one in ones]
    hits = np.array([f.cause_hits.mean for f in found if f.cause_hits])
    truth = np.array([one.truth for one in ones])
    priors = [f.prior_bias for f in found if f.prior_bias]
    return Row(
        *setting,
        len(ones),
        sensitive=float(np.mean([f.sensitivity.found for f in found])),
        rejected=float(np.mean([f.sensitivity.p_value <= 0.05 for f in found])),
        eta=float(np.mean([f.sensitivity.eta.mean for f in found])),
        identified=float(np.mean([f.identified.p_value <= 0.05 for f in found])),
        binomial=float(np.mean([f.identified.binomial_p <= 0.05 for f in found])),
        accuracy=float(np.mean([f.identified.accuracy.mean for f in found])),
        hits=float(hits.mean()),
        engine=float(truth.mean()),
        knob=(1 - setting[0]) * (1 - setting[1]),
        worst=float(np.abs(hits - truth).max()),
        likeness=float(np.mean([prior.likeness.mean for prior in priors])),
        differs=float(np.mean([prior.p_value <= 0.05 for prior in priors])),
        placebo=float(np.mean([f.placebo.mean for f in found if f.placebo])),
    )


def auc(matrix: NDArray[np.float64], causes: Sequence[str]) -> float:
    """The chance that a pair of one cause is more alike than a pair of two."""
    upper = np.triu_indices(len(causes), 1)
    values = matrix[upper]
    numbers = np.unique(np.array(causes), return_inverse=True)[1]
    same = numbers[upper[0]] == numbers[upper[1]]
    order = np.sort(values[~same])
    below = np.searchsorted(order, values[same], "left") + np.searchsorted(order, values[same], "right")
    return float(below.mean() / 2 / len(order))


class Bigrams:
    """TF-IDF of words and pairs of words."""

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the similarities, by writing every pair as one more word."""
        pairs = ([f"{a}_{b}" for a, b in itertools.pairwise(words_of(text))] for text in texts)
        return TfIdf().matrix([" ".join([text, *more]) for text, more in zip(texts, pairs, strict=True)])


class Plain:
    """Counts of words without weights."""

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosines of the counts."""
        counts = [Counter(words_of(text)) for text in texts]
        names = sorted({word for count in counts for word in count})
        rows = np.array([[count[name] for name in names] for count in counts], dtype=np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows @ rows.T, dtype=np.float64)


def feedback_by_cause(n: int) -> tuple[list[str], list[str]]:
    """Feedback on each task of all looks, with the task."""
    engine, texts, causes = SimulatedOptimizerEngine(seed=1), list[str](), list[str]()
    for name in itertools.chain(*LOOKS):
        errors = errors_of(name, 1)
        shown = [Evidence(VAGUE, tuple(errors[(k + j) % len(errors)] for j in range(5))) for k in range(n)]
        texts += [text for one in shown for text in said(engine, [one]) if text]
        causes += [name] * n
    return texts, causes


def report_similarity() -> None:
    """Print what TF-IDF costs and tells."""
    texts, causes = feedback_by_cause(40)
    for name, kind in (("TF-IDF", TfIdf()), ("with bigrams", Bigrams()), ("plain counts", Plain())):
        began = time.perf_counter()
        matrix = kind.matrix(texts)
        took = time.perf_counter() - began
        print(f"{name:>14}: AUC {auc(matrix, causes):.3f}, {1000 * took:.0f} ms for {len(texts)} texts")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.studies)
    began = time.perf_counter()
    if options.processes > 1:
        with ProcessPoolExecutor(options.processes) as processes:
            studies = list(processes.map(run_seed, seeds, chunksize=5))
    else:
        studies = list(map(run_seed, seeds))
    found = list(zip(SETTINGS, zip(*studies, strict=True), strict=True))
    rows = [row_of(setting, ones) for setting, ones in found]
    repeats = [repeats_of(setting, ones, options.seed) for setting, ones in found]
    report(rows, repeats)
    report_similarity()
    print(f"{options.studies} studies a line, {time.perf_counter() - began:.0f} s with {options.processes} processes")
    if options.json:
        body = {"validity": [asdict(row) for row in rows], "repetition": repeats}
        options.json.write_text(json.dumps(body, indent=1))


def repeats_of(setting: tuple[float, float], ones: Sequence[One], seed: int) -> dict[str, float]:
    """Summarise repetition for one setting."""
    looks = [(seed + k) % len(LOOKS) for k in range(len(ones))]
    means = np.array([one.repeated.across.mean for one in ones])
    truths = [float(means[np.array(looks) == look].mean()) for look in looks]
    across = [(one.repeated.across, truth) for one, truth in zip(ones, truths, strict=True)]
    known = [one.repeated.normalised.mean for one in ones if not one.repeated.generic]
    return {
        "prior_bias": setting[0],
        "noise": setting[1],
        "across": float(np.mean([found.mean for found, _ in across])),
        "covered": float(np.mean([found.low <= truth <= found.high for found, truth in across])),
        "ceiling": float(np.mean([one.repeated.ceiling.mean for one in ones])),
        "floor": float(np.mean([one.repeated.floor.mean for one in ones])),
        "normalised": float(np.mean(known)) if known else math.nan,
        "generic": float(np.mean([one.repeated.generic for one in ones])),
        "themes": float(np.mean([len(one.repeated.themes) for one in ones])),
    }


def report(rows: Sequence[Row], repeats: Sequence[dict[str, float]]) -> None:
    """Print both tables."""
    parts = ("prior noise", " found   test    eta", "ident. binom.  acc.", " hits engine  knob worst")
    print(" | ".join([*parts, "likeness differs", "placebo"]))
    for r in rows:
        print(
            f"{r.prior_bias:5.1f} {r.noise:5.1f} | {r.sensitive:6.1%} {r.rejected:6.1%} {r.eta:6.3f}"
            f" | {r.identified:6.1%} {r.binomial:6.1%} {r.accuracy:5.2f}"
            f" | {r.hits:5.1%} {r.engine:6.1%} {r.knob:5.0%} {r.worst:5.2f} | {r.likeness:8.2f} {r.differs:7.1%}"
            f" | {r.placebo:6.1%}"
        )
    print("\nprior noise | across covered | ceiling floor | normalised generic | themes")
    for r2 in repeats:
        print(
            f"{r2['prior_bias']:5.1f} {r2['noise']:5.1f} | {r2['across']:6.3f} {r2['covered']:7.1%}"
            f" | {r2['ceiling']:7.3f} {r2['floor']:5.3f} | {r2['normalised']:10.2f} {r2['generic']:7.1%}"
            f" | {r2['themes']:6.1f}"
        )


if __name__ == "__main__":
    main()
