"""Lets test files import the helpers beside them and the benchmarks, and keeps every test off the network."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A third of the time of collecting the tests went into looking for garbage among what is imported for good.
gc.disable()

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "benchmarks")]
# Before any test module imports it: the tests of its faults read what its assertions say.
pytest.register_assert_rewrite("cuesmith.testing")

# The same examples every time, so that a run that fails fails again: new ones are looked for with `fuzz`.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", _PATIENT, derandomize=True)
settings.register_profile("fuzz", _PATIENT)
settings.load_profile(os.environ.get("CUESMITH_HYPOTHESIS", "repeatable"))


LONG = ("test_clusters", "test_packaging", "test_pages", "test_door", "test_remote", "test_import", "test_conformance")
"""Modules of a minute: one that began last would have the other processes wait for it."""


def pytest_configure(config: pytest.Config) -> None:
    """Have tests begin in the order of their collection, and not those of large modules first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long modules first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among what stays to the end."""
    gc.collect()
    gc.freeze()
    gc.enable()
