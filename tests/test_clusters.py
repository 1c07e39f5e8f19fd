"""Dask and Ray with real local clusters of two workers, one of which is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import Provider, Saying, exact, result_of, toy_compile, words
from test_remote import Deadly, paid_twice

from cuesmith import Budget, RayExecutor
from cuesmith.programs.evaluation import evaluate
from cuesmith.teleprompters.runtime.outcomes import ProviderFailure, Scored

SMALL: dict[str, Any] = {"n_val": 24, "width": 2, "steps": 2}


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A client of two worker processes."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as local, distributed.Client(local) as client:
        yield client


@pytest.fixture(scope="module")
def ray() -> Iterator[RayExecutor]:
    """A Ray of two worker processes."""
    module: Any = pytest.importorskip("ray")
    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield RayExecutor()
    module.shutdown()


@pytest.fixture(params=["dask", "ray"], scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    """Each in turn."""
    return request.getfixturevalue(request.param)


def test_the_result_is_the_one_of_this_process(cluster: Any) -> None:
    with Provider() as provider:
        near = toy_compile(provider.lm(), max_in_flight=8, **SMALL)
        calls = provider.calls
        far = toy_compile(provider.lm(), max_in_flight=8, executor=cluster, **SMALL)
        assert provider.calls == 2 * calls
        capped = toy_compile(provider.lm(), max_in_flight=8, executor=cluster, budget=Budget(calls=40), **SMALL)
        assert provider.calls == 2 * calls + 40 and capped.compilation.spent.total.calls == 40
    assert result_of(far) == result_of(near)


class Telling(Saying):
    """Writes down which process runs it.

    Args:
        folder: Where each process has a file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(f"{question}\n")
        return self.say(question=question)


def kill_one(folder: Path, after: int) -> None:
    """Kill a process that works, once so many runs have begun."""
    while sum(len(file.read_text().splitlines()) for file in folder.iterdir()) < after:
        time.sleep(0.01)
    os.kill(int(max(folder.iterdir(), key=lambda file: file.stat().st_mtime).name), signal.SIGKILL)


def test_a_killed_worker_costs_no_finished_example(cluster: Any, tmp_path: Path) -> None:
    examples = words(300)
    threading.Thread(target=kill_one, args=(tmp_path, 100), daemon=True).start()
    with Provider(latency=0.005) as provider, dspy.context(lm=provider.lm()):
        far = evaluate(Telling(tmp_path), examples, exact, max_in_flight=8, executor=cluster)
        assert paid_twice(provider) <= 4, "what the dead one had under way"
        near = evaluate(dspy.Predict("question -> answer"), examples, exact, max_in_flight=8)
    assert far.values == near.values
    begun = Counter(line for file in tmp_path.iterdir() for line in file.read_text().splitlines())
    assert len(begun) == 300 and sum(begun.values()) - 300 <= 4 and len(list(tmp_path.iterdir())) >= 2


@pytest.mark.slow
def test_a_program_that_kills_its_process_is_given_up(dask: Any) -> None:
    """After three deaths nobody knows more of that example; all others have their scores."""
    with Provider() as provider, dspy.context(lm=provider.lm()):
        far = evaluate(Deadly(os.getpid()), words(12), exact, max_in_flight=2, executor=dask)
    assert isinstance(far.outcomes[1], ProviderFailure) and "3 workers died" in far.outcomes[1].reason
    assert [type(o) for n, o in enumerate(far.outcomes) if n != 1] == [Scored] * 11


def test_clients_that_have_nothing_to_give_are_refused() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(processes=False, n_workers=1, dashboard_address=None) as client,
        pytest.raises(TypeError, match="threads of this process"),
    ):
        evaluate(dspy.Predict("question -> answer"), words(2), exact, executor=client)
