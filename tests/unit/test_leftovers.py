"""What a failed start left on the host is ended, and nothing else is."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from orchestrator.errors import EngineUnavailableError
from orchestrator.sandbox import leftovers
from orchestrator.sandbox.container import started
from orchestrator.sandbox.engine import Engine

BOUND = 10


@pytest.fixture
def container() -> str:
    return secrets.token_hex(32)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def process(stack: ExitStack, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a process that waits for its input to end, under a command line of our choice."""
    command = [arguments[0], "-c", "import sys; print(flush=True); sys.stdin.read()", *arguments[1:]]
    found = stack.enter_context(
        subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    stack.callback(found.kill)
    assert found.stdout is not None
    found.stdout.readline()  # it runs under that name by now
    return found


@pytest.mark.parametrize("program", ["/usr/bin/runsc", "runsc-sandbox", "runsc-gofer"])
def test_every_process_of_gvisor_for_that_container_is_killed(stack: ExitStack, container: str, program: str) -> None:
    found = process(stack, program, f"--log=/run/{container}/log.json", "create")
    assert leftovers.end(container) == []
    assert found.wait(BOUND) == -9


def test_nothing_else_is_killed(stack: ExitStack, container: str) -> None:
    others = [
        process(stack, "runsc-sandbox", f"--log=/run/{secrets.token_hex(32)}/log.json"),
        process(stack, "containerd-shim-runc-v2", "-id", container),
        process(stack, "python3", "runsc", container),
    ]
    assert leftovers.end(container) == []
    assert [other.poll() for other in others] == [None] * 3


def test_what_may_not_be_killed_is_named(stack: ExitStack, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int, _signal: int) -> None:
        raise PermissionError

    found = process(stack, "runsc-sandbox", container)
    monkeypatch.setattr("signal.pidfd_send_signal", refuse)
    assert leftovers.end(container) == [found.pid]


class HangingEngine:
    """Creates, and then fails to start, with a process left behind."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.ended: list[str] = []

    def create(self, _config: object, _name: str) -> str:
        return self.container

    def attach(self, _name: str) -> object:
        import socket

        ours, self.peer = socket.socketpair()
        return ours

    def start(self, _name: str) -> None:
        raise EngineUnavailableError("the Docker engine did not start the container within 60 s")

    def end(self, name: str, _timeout_s: float) -> None:
        self.ended.append(name)


@pytest.mark.anyio
async def test_a_start_that_fails_is_cleaned_up_before_the_container_is_removed(
    stack: ExitStack, container: str
) -> None:
    left = process(stack, "runsc-sandbox", container)
    engine = HangingEngine(container)
    with pytest.raises(EngineUnavailableError, match=r"did not start the container within 60 s$"):
        async with started(cast("Engine", engine), {}):
            pass
    assert left.wait(BOUND) == -9
    assert len(engine.ended) == 1
    engine.peer.close()


@pytest.mark.anyio
async def test_what_could_not_be_cleaned_up_is_said(
    stack: ExitStack, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_killed", lambda _handle: False)
    left = process(stack, "runsc-sandbox", container)
    engine = HangingEngine(container)
    with pytest.raises(EngineUnavailableError, match=f"left processes behind, for root to kill: {left.pid}"):
        async with started(cast("Engine", engine), {}):
            pass
    engine.peer.close()
