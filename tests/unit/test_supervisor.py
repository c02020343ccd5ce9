"""What the supervisor makes of the kernels it starts, without starting any."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.policy import Policy
from orchestrator.sandbox import hardening
from sandbox_image import supervisor
from sandbox_image.supervisor import Supervisor

STRICT = hardening.supervisor_settings(Policy.load("strict"))
SAID = b'{"execve":"EPERM"}'


@pytest.fixture
def sent() -> list[signal.Signals]:
    return []


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[signal.Signals]) -> Iterator[Supervisor]:
    """One that has told the host of its first kernel, and waits for what another says first."""
    monkeypatch.setattr(supervisor, "RUN_DIR", str(tmp_path))
    found = Supervisor(STRICT)
    found._refusals, found._confined, found._loaded = SAID, False, False
    monkeypatch.setattr(found, "_signal", sent.append)
    yield found
    for descriptor in (found._context_read, found._context_write, found._exits_read, found._exits_write):
        os.close(descriptor)


@pytest.mark.parametrize("said", [b"", b"{}", b'{"execve":"EFAULT"}'])
def test_a_later_kernel_that_gave_up_less_than_the_first_is_ended(
    later: Supervisor, sent: list[signal.Signals], said: bytes
) -> None:
    later._kernel_said(said)
    assert sent == [signal.SIGKILL]


def test_one_that_gave_up_the_same_goes_on(later: Supervisor, sent: list[signal.Signals]) -> None:
    later._kernel_said(SAID)
    assert (sent, later._confined, later._loaded) == ([], True, False)
