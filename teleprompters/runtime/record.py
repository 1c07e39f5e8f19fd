"""What a finished compile leaves beside its journal, for whoever studies it later. Source: ours."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import dspy

from cuesmith.teleprompters.runtime.candidate import Candidate, ExampleIds, Json, to_json
from cuesmith.teleprompters.runtime.compilation import Compilation, Report
from cuesmith.teleprompters.runtime.effects import Effects, effects_of
from cuesmith.teleprompters.runtime.evidence import feedback_of, inputs_of, labels_of, shortened, text_of
from cuesmith.teleprompters.runtime.journal import JournalError
from cuesmith.teleprompters.runtime.outcomes import MetricError, Outcome, ParseFailure, ProviderFailure, value
from cuesmith.teleprompters.runtime.run import Run
from cuesmith.teleprompters.runtime.statistics import Estimate95

FILE = "record.json"
FORMAT = 1
MOST_SHOWN = 1_000
"""Examples of a split whose answers are kept for a report. Ours."""
LONGEST_SHOWN = 2_000
"""Characters of one value of them. Ours."""


def write_record(directory: Path, record: Mapping[str, Json]) -> None:
    """Write the record of a compile; an older one is replaced whole.

    Args:
        directory: The run directory.
        record: What `record_of` and `examples_of` returned, without keys.

    Raises:
        JournalError: If it cannot be written; an older one stays then.
    """
    partial = directory / f"{FILE}.new"
    text = json.dumps(record, ensure_ascii=True)
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, directory / FILE)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        mend = "make room there and run the same command again; nothing is paid twice"
        raise JournalError(
            f"run_dir {str(directory)!r}: {FILE} cannot be written ({error.strerror or error})"
            + (f": {mend}" if directory.is_dir() else "")
        ) from error


def record_of(c: Compilation, run: Run, fresh: Sequence[dspy.Example], ids: ExampleIds) -> dict[str, Json]:
    """Return the record of a compile as JSON data: prompts, lineage, scores, and what a report shows of the examples.

    The whole of the examples (`examples_of`) is not in it, so that it can be kept in memory.

    Args:
        c: The result.
        run: The run, for its examples.
        fresh: The examples of the report.
        ids: Content hashes of examples, as the journal's keys have them.
    """
    effects, pair = effects_of(run), (c.baseline.candidate, c.best.candidate)

    def on_fresh(candidate: Candidate) -> Json:
        return list(run.known(candidate, fresh))

    return {
        "format": FORMAT,
        "compiler": c.compiler,
        "predictors": {
            name: {
                "inputs": list(predictor.signature.input_fields),
                "outputs": list(predictor.signature.output_fields),
            }
            for name, predictor in run.predictors.items()
        },
        "baseline": c.baseline.candidate.id,
        "best": c.best.candidate.id,
        "candidates": [
            {**_mapping(t.candidate.to_json()), "scores": list(t.scores), "mean": t.mean, "n": t.n}
            for t in c.candidates
        ],
        "steps": [
            {
                "step": s.step,
                "best_id": s.best_id,
                "beam": list(s.beam),
                "train": _estimate(s.train),
                "validation": _estimate(s.validation),
                "calls": s.calls,
            }
            for s in c.steps
        ],
        "selection": [ids(example) for example in run.select],
        "fresh_scores": {"baseline": on_fresh(c.baseline.candidate), "best": on_fresh(c.best.candidate)},
        "gain": None if c.gain is None else asdict(c.gain),
        "provenance": None if c.provenance is None else c.provenance.to_json(),
        "stopped_by": c.stopped_by,
        "notes": [{"kind": note.kind, "text": note.text} for note in c.notes],
        "spent": {role: asdict(used) for role, used in c.spent.by_role.items()},
        "seconds": c.spent.seconds,
        "reports": {"baseline": _report(c.baseline), "best": _report(c.best)},
        "shown": {"select": _views(effects, pair, run.select, ids), "fresh": _views(effects, pair, fresh, ids)},
        "front": [standing.candidate_id for standing in c.front],
    }


def examples_of(run: Run, ids: ExampleIds) -> dict[str, Json]:
    """Return the examples of a run whole, as they complete its record on disk."""
    return {
        "train": [_example(example, ids) for example in run.train],
        "select": [_example(example, ids) for example in run.select],
    }


def _answer(outcome: Outcome | None) -> dict[str, Json] | None:
    """Return what became of a program run as a report shows it: each value as text, and cut; None for none."""
    if outcome is None or isinstance(outcome, ProviderFailure):
        return None if outcome is None else {"score": None, "outcome": "ProviderFailure", "words": outcome.reason}
    words = outcome.reason if isinstance(outcome, MetricError) else feedback_of(outcome)
    response = outcome.response if isinstance(outcome, ParseFailure) else ""
    known = value(outcome)
    return {
        "score": None if known is None else float(known),
        "outcome": type(outcome).__name__,
        "steps": [[step.predictor, _texts(step.outputs)] for step in outcome.trace],
        "words": shortened(words, LONGEST_SHOWN),
        "response": shortened(response, LONGEST_SHOWN),
    }


def _views(
    effects: Effects, pair: tuple[Candidate, Candidate], examples: Sequence[dspy.Example], ids: ExampleIds
) -> list[Json]:
    """Return examples with the answers of the student and of the returned prompt, as `stored.StoredView` has them."""
    return [
        view_of(
            ids(example),
            inputs_of(example),
            labels_of(example),
            *(effects.outcome_of(candidate, example) for candidate in pair),
        )
        for example in examples[:MOST_SHOWN]
    ]


def view_of(
    known: str,
    inputs: Mapping[str, object],
    labels: Mapping[str, object],
    baseline: Outcome | None,
    best: Outcome | None,
) -> dict[str, Json]:
    """Return an example as a report shows it, with what the student and the returned prompt made of it."""
    return {
        "id": known,
        "inputs": _texts(inputs),
        "labels": _texts(labels),
        "baseline": _answer(baseline),
        "best": _answer(best),
    }


def _texts(values: Mapping[str, object]) -> dict[str, Json]:
    """Return values as a report shows them: as text, and cut."""
    return {str(name): shortened(text_of(held), LONGEST_SHOWN) for name, held in values.items()}


def _report(report: Report) -> Json:
    return {"select": _estimate(report.select), "fresh": _estimate(report.fresh)}


def _example(example: dspy.Example, ids: ExampleIds) -> dict[str, Json]:
    inputs: Mapping[str, object] = example.inputs().toDict()
    labels = {name: v for name, v in example.toDict().items() if name not in inputs}
    return {"id": ids(example), "inputs": to_json(dict(inputs)), "labels": to_json(labels)}


def _estimate(estimate: Estimate95 | None) -> Json:
    return None if estimate is None else dict(asdict(estimate))


def _mapping(data: Json) -> dict[str, Json]:
    assert isinstance(data, dict)
    return data
