"""What the supervisor makes of the kernels it starts, without starting any."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from orchestrator.policy import Policy
from orchestrator.sandbox import hardening
from sandbox_image import supervisor, wire
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
    found._contexts.close()
    for descriptor in (found._exits_read, found._exits_write):
        os.close(descriptor)


@pytest.mark.parametrize("said", [b"", b"{}", b'{"execve":"EFAULT"}'])
def test_a_later_kernel_that_gave_up_less_than_the_first_is_ended(
    later: Supervisor, sent: list[signal.Signals], said: bytes
) -> None:
    later._kernel_said(said)
    assert sent == [signal.SIGKILL]


class Channel:
    """A socket from which messages can be read that have come."""

    def __init__(self, *messages: list[bytes]) -> None:
        self._messages = list(messages)

    def recv_multipart(self, _flags: int) -> list[bytes]:
        if not self._messages:
            raise zmq.Again
        return self._messages.pop(0)


def reply(count: int) -> list[bytes]:
    header, content = {"msg_type": "execute_reply"}, {"status": "ok", "execution_count": count}
    return [b"<IDS|MSG>", b"", *(json.dumps(part).encode() for part in (header, {"msg_id": "m"}, {}, content))]


def test_of_two_replies_to_a_request_the_first_stands(later: Supervisor) -> None:
    later._zmq = zmq
    later._gate.open("m", "execute_request")
    later._drain(wire.Channel.SHELL, Channel(reply(1), reply(2)))
    later._drain(wire.Channel.SHELL, Channel(reply(3)))
    assert later._held_reply is not None
    _, parts = wire.unpack_parts(later._held_reply[0])
    assert json.loads(parts[5])["execution_count"] == 1


def test_one_that_gave_up_the_same_goes_on(later: Supervisor, sent: list[signal.Signals]) -> None:
    later._kernel_said(SAID)
    assert (sent, later._confined, later._loaded) == ([], True, False)
