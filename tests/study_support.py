"""What the tests of the studies share: a bench, similarities of nothing, and what holds of every report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from cuesmith.modules.embedded import EmbeddedLM
from cuesmith.modules.simulated_optimizer import SimulatedOptimizer
from cuesmith.programs.diagnosis import page
from cuesmith.programs.diagnosis.figures import Section
from cuesmith.programs.studies.bench import Bench, Study
from cuesmith.programs.tasks import Task

Floats = NDArray[np.float64]


def bench(prior_bias: float = 0.0, **options: object) -> Bench:
    """The embedded model, with the simulated optimizer."""
    return Bench(EmbeddedLM(), SimulatedOptimizer(prior_bias=prior_bias), **options)  # type: ignore[arg-type]


def symmetric(n: int, seed: int) -> Floats:
    """Random similarities of n units."""
    upper = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    return upper + upper.T + np.eye(n)


def pairs_of(matrix: Floats) -> Floats:
    """What a symmetric matrix has for each pair of units."""
    return np.asarray(matrix[np.triu_indices(len(matrix), 1)])


def readable(sections: Sequence[Section], result: object) -> None:
    """Every part of a report can be shown, and its sentences are sentences."""
    for section in sections:
        assert section.summary.endswith(".") and "nan" not in section.summary
        for figure in section.figures:
            assert figure.meaning.endswith(".") and figure.advice.endswith(".") and "nan" not in figure.meaning
    json.loads(page.as_json({}, sections, {"result": result}))


def whole(sections: Sequence[Section], limits: Sequence[str] = (), *, tests: Sequence[str] = ("test",)) -> None:
    """What these reports keep beside: one sentence a cell, tests that are named, and a page for a browser.

    Args:
        sections: The report's parts.
        limits: What the figures do not show.
        tests: Words of which the meaning of a figure with a p-value has one.
    """
    readable(sections, {})
    assert page.html("title", "", sections)
    for figure in (figure for section in sections for figure in section.figures):
        for text in (figure.meaning, figure.advice):
            assert "nan" not in text and len(re.findall(r"[.!?] [A-Z]", text)) == 0, text
        assert figure.p_value is None or any(word in figure.meaning for word in tests)
        assert figure.low is None or figure.value is None or figure.low <= figure.value + 1e-9
    assert all(text.endswith(".") and "nan" not in text for text in limits)


def refuses(study: Study, cases: Iterable[tuple[Sequence[Task], int, str]], *, forecast: bool = False) -> None:
    """The study refuses what does not fit it, before a call.

    Args:
        study: The study.
        cases: Tasks, n and what it says.
        forecast: Whether its forecast refuses the same.
    """
    on = bench()
    for tasks, n, problem in cases:
        with pytest.raises(ValueError, match=problem):
            study.conduct(on, tasks, n)
        if forecast:
            with pytest.raises(ValueError, match=problem):
                study.forecast(tasks, n)
    assert on.spent.total.calls == 0
