"""What every test shares."""

from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    """Hear SIGHUP even under ``nohup``: what that has ignored, the product leaves so, and tests would wait for it."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def anyio_backend() -> str:
    """The one event loop this package runs on."""
    return "asyncio"
