"""Lets test files import the helpers beside them, and keeps every test off the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
# Before any test module imports it: the tests of its faults read what its assertions say.
pytest.register_assert_rewrite("cuesmith.teleprompters.conformance")
