"""What the tests with a real engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.sandbox.engine import Engine
from tests.support import live


@pytest.fixture(scope="module")
def live_engine() -> Iterator[Engine]:
    """One connection a module; skips where there is no engine or no image."""
    yield from live.connect()


@pytest.fixture
def engine(live_engine: Engine) -> Iterator[Engine]:
    """A connection for a test that leaves no container behind."""
    yield live_engine
    assert live.left_behind(live_engine) == []
