"""The policy that live tests begin with: the shipped profile named by ``RLM_SANDBOX_TEST_POLICY``."""

from __future__ import annotations

import os

from orchestrator.policy import Policy

VARIABLE = "RLM_SANDBOX_TEST_POLICY"


def base() -> Policy:
    """Return the profile that all live tests of this run narrow and open their boxes with; the default one if unset."""
    return Policy.load(os.environ.get(VARIABLE) or "default")
