"""The policy that live tests begin with: the shipped profile named by ``RLM_SANDBOX_TEST_POLICY``."""

from __future__ import annotations

import os

import pytest

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor

VARIABLE = "RLM_SANDBOX_TEST_POLICY"


def base() -> Policy:
    """Return the profile that all live tests of this run narrow and open their boxes with; the default one if unset."""
    return Policy.load(os.environ.get(VARIABLE) or "default")


UNDER_GVISOR = gvisor.asked_for(base().sandbox.runtime)
# Controls that a box of this run need not have in force; its report says whether it has.
REPORTED = frozenset(name for name, found in gvisor.DIFFERENCES.items() if UNDER_GVISOR and found.inside == "reported")


def otherwise_under_gvisor(why: str) -> pytest.MarkDecorator:
    """Skip what is different under gVisor; ``tests/escape/test_gvisor.py`` tests how, and ``why`` says it."""
    return pytest.mark.skipif(UNDER_GVISOR, reason=f"under gVisor {why}")
