"""What the tests of the command line share."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from orchestrator.errors import EngineUnavailableError
from orchestrator.interpreter import BoxInfo
from orchestrator.kernel.result import ExecutionResult
from orchestrator.policy import Policy
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.sandbox.engine import EngineInfo
from tests.support import boxes

HOSTILE = "\x1b]0;title\x07red\x1b[31m\u202e"
Run = Callable[..., tuple[int, str, str]]

ENGINE_INFO = EngineInfo(
    version="28.0",
    runc="1.5.0",
    kernel="7.1.2",
    cgroup_version="2",
    cgroup_driver="systemd",
    security_options=("name=seccomp",),
    runtimes=("runc", "runsc"),
    default_runtime="runc",
    architecture="x86_64",
    operating_system="Debian GNU/Linux 13",
)
BOX_INFO = BoxInfo(
    container="c0ffee",
    image="sha256:1",
    runtime="runc",
    controls={control.id: f"{control.what}: held (engine)" for control in CONTROLS},
    opened_s=0.4,
    kernel="Linux version 7.1",
)


class Stdin:
    """Standard input that holds ``data``."""

    def __init__(self, data: bytes, *, tty: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self.closed = False
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


def write(folder: Path, **files: str | bytes) -> Path:
    """Make files in ``folder``; in a name, ``__`` stands for a slash and ``_dot_`` for a dot."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def one_complaint(err: str) -> bool:
    """Return whether stderr holds one line of the form that every error has, and nothing else."""
    return err.startswith("rlm-sandbox: ") and err.count("\n") == 1 and err.endswith("\n")


@dataclass(slots=True)
class FakeBox:
    """Stands in for a sandbox: its results are prepared.

    Attributes:
        results: what each cell gives, or raises, in order.
        opened: arguments it was opened with.
        ran: code and timeout of each cell.
        failure: raised instead of opening.
        info: what is told of it.
        during: called while the second cell runs, which then ends only when it is stopped.
        opening: called while it opens, which then never ends.
    """

    results: list[ExecutionResult | Exception] = field(default_factory=list)
    opened: tuple[Any, ...] = ()
    ran: list[tuple[str, float | None]] = field(default_factory=list)
    failure: Exception | None = None
    info: Any = None
    during: Callable[[], object] | None = None
    opening: Callable[[], object] | None = None

    @asynccontextmanager
    async def open(self, policy: Policy, context: Any = None, **_: Any) -> AsyncIterator[FakeBox]:
        if self.failure is not None:
            raise self.failure
        if self.opening is not None:
            self.opening()
            await anyio.sleep_forever()
        self.opened = (policy, context)
        yield self

    async def execute(self, code: str, timeout: float | None, stop: anyio.Event) -> ExecutionResult:
        self.ran.append((code, timeout))
        if self.during is not None and len(self.ran) > 1:
            self.during()
            await stop.wait()
            return ExecutionResult("cancelled", stdout="so far\n", detail="it was asked to stop: interrupted")
        outcome = self.results.pop(0) if self.results else ExecutionResult("ok")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass(slots=True)
class FakeEngine:
    """Stands in for the engine; without one, connecting fails."""

    there: bool = True
    built: list[bool] = field(default_factory=list)

    def connect(self) -> FakeEngine:
        if not self.there:
            raise EngineUnavailableError("no Docker engine answers: start dockerd, or set DOCKER_HOST")
        return self

    def info(self) -> EngineInfo:
        return ENGINE_INFO

    def inspect(self, _: str) -> dict[str, Any]:
        return boxes.record()

    def close(self) -> None:
        pass
