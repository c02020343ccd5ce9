"""Skips what follows, loudly, where the supervisor could not be kept apart from this machine."""

from __future__ import annotations

import pytest

from tests.support import bridge


@pytest.fixture(scope="package", autouse=True)
def _namespaces() -> None:
    if reason := bridge.missing():
        pytest.skip(reason)
