"""Which runs a ready box will do for; the boxes themselves are in ``tests/docker/test_pool.py``."""

from __future__ import annotations

import pytest

from orchestrator import pool
from orchestrator.policy import Policy


@pytest.mark.parametrize(
    ("setting", "fits"),
    [
        ("budget.wall_s=1799", True),
        # Its lease was made for the pool's time: one that outlived it could be swept as an orphan.
        ("budget.wall_s=1801", False),
        ("budget.calls=1", True),
        ("models.max_tokens=16", True),
        ("limits.pids=95", False),
        ("sandbox.uids=1", False),
        ("models.in_flight=15", False),
    ],
)
def test_a_box_of_the_pool_serves_the_runs_whose_own_box_would_be_no_other(setting: str, *, fits: bool) -> None:
    assert pool._same_box(Policy().override([setting]), Policy()) is fits
