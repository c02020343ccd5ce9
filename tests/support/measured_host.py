"""A host of its own process: it drives a run over a box that attacks it, and says what that cost the host.

``python -m tests.support.measured_host`` takes a :class:`Job` as JSON and prints a :class:`Cost` as JSON. The box is
either at the other end of a socket, where a test plays it, or a real one whose cells the job holds.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import anyio

from orchestrator import RLM, Policy, prepared
from orchestrator.context import Context
from orchestrator.errors import ModelRequestError
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.kernel import outputs
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.rlm import parse
from orchestrator.sandbox import hardening
from orchestrator.sandbox.attach import AttachStream
from orchestrator.sandbox.container import Container
from orchestrator.transport import mux as muxes
from orchestrator.transport.rpc import BodyLimit, Inbox, RpcHandler
from sandbox_image import wire

HUGE = 1 << 34


@dataclass(frozen=True, slots=True)
class Job:
    """What to host.

    Attributes:
        stream: descriptor of a connected socket that the attacker holds the other end of; None for a real box.
        cells: code of the turns, where the box is real; an attacker at a socket does as it likes.
        settings: of the policy, over the default one.
        without: name in :data:`WITHOUT` of a bound to take away.
    """

    stream: int | None = None
    cells: tuple[str, ...] = ("pass",)
    settings: tuple[str, ...] = ()
    without: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What became of it.

    Attributes:
        status: of the run.
        reason: likewise.
        answer: how long it is, in characters.
        cells: how the cells ended.
        memory: bytes the process grew by, at its peak, over what it held when the box was ready.
        disk: bytes of the journal.
        elapsed_s: seconds from the ready box to the end.
    """

    status: str
    reason: str
    answer: int
    cells: tuple[str, ...]
    memory: int
    disk: int
    elapsed_s: float


class _Root:
    """A root model that asks for one cell a turn."""

    name = "root"

    def __init__(self, cells: tuple[str, ...]) -> None:
        self._cells = cells
        self._turn = 0

    async def complete(self, request: ModelRequest) -> ModelReply:
        del request
        code = self._cells[min(self._turn, len(self._cells) - 1)]
        self._turn += 1
        return ModelReply(f"```repl\n{code}\n```", Usage(10, 10))

    async def aclose(self) -> None:
        """Nothing is open."""


class _Sub:
    """A provider that leaves those who ask it to hang, and refuses long prompts, for which it bills nothing."""

    name = "sub"

    async def complete(self, request: ModelRequest) -> ModelReply:
        if request.messages[-1].text.startswith("hang"):
            await anyio.sleep_forever()
        if len(request.messages[-1].text) > 100_000:
            raise ModelRequestError("too long")
        return ModelReply("yes", Usage(10, 1))

    async def aclose(self) -> None:
        """Nothing is open."""


class Meter:
    """Memory of this process, from a moment on."""

    def start(self) -> None:
        """Forget the peak so far (proc(5), clear_refs)."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = _status("VmRSS")
        self._began = time.monotonic()

    def read(self) -> tuple[int, float]:
        """Return the peak above the start, in bytes, and the seconds since."""
        return _status("VmHWM") - self._before, time.monotonic() - self._began


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def host(job: Job) -> Cost:
    """Carry ``job`` out."""
    WITHOUT[job.without]()
    meter = Meter()
    ended: list[str] = []
    policy = Policy().override(["budget.turns=2", "limits.cell_timeout_s=1", *job.settings])

    def opened(policy: Policy, context: Context, rpc: RpcHandler) -> AbstractAsyncContextManager[Sandbox]:
        return _metered(meter, job.stream, policy, context, rpc)

    parse.parse_reply("```repl\n1\n```", complete=True)  # imports what it needs
    meter.start()
    with tempfile.TemporaryDirectory() as folder:
        rlm = RLM(
            _Root(job.cells),
            _Sub(),
            policy,
            journal=folder,
            open_box=opened,
            on_event=lambda envelope: ended.extend(_end(envelope.event)),
        )
        result = rlm.complete("a context", "a question")
        memory, elapsed_s = meter.read()
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    return Cost(result.status, result.reason, len(result.answer or ""), tuple(ended), memory, disk, elapsed_s)


def _end(event: object) -> list[str]:
    result = getattr(event, "result", None)
    return [result["status"]] if isinstance(result, dict) else []


@asynccontextmanager
async def _metered(
    meter: Meter, stream: int | None, policy: Policy, context: Context, rpc: RpcHandler
) -> AsyncIterator[Sandbox]:
    box = Sandbox.open(policy, context, rpc=rpc) if stream is None else _over(stream, policy, rpc)
    async with box as opened:
        meter.start()
        yield opened


@asynccontextmanager
async def _over(stream: int, policy: Policy, rpc: RpcHandler) -> AsyncIterator[Sandbox]:
    """Open a box as :meth:`Sandbox.open` does, but without an engine: whoever holds the socket is the container."""
    container = Container("attacker", AttachStream(socket.socket(fileno=stream)))
    try:
        async with prepared._served(container, policy, rpc) as (client, mux):
            with anyio.fail_after(30):
                await client.hello()
                await client.handshake()
            yield Sandbox(client, mux, policy, BoxInfo("attacker", "none", "none", {}, 0.0))
    finally:
        await container.stream.aclose()


# What a bound is worth is seen by taking it away ---------------------------------------------------------------------


def _frame_limit() -> None:
    patch.object(hardening, "output_frame_bytes", lambda _policy: HUGE).start()
    patch.object(muxes, "MAX_FACTS", {}).start()


def _call_limits() -> None:
    boundless = {method: BodyLimit(HUGE, "") for method in ("llm_query", "rlm_query", "final")}
    patch.object(prepared, "_body_limits", lambda _policy: boundless).start()
    patch.object(muxes.Mux, "_no_place", lambda _mux, _size: None).start()
    patch.object(muxes, "Inbox", lambda _most, limits, admit: Inbox(HUGE, limits, admit)).start()


def _output_limits() -> None:
    for name in ("SLACK", "MAX_MESSAGES", "MAX_TEXT"):
        patch.object(outputs, name, HUGE).start()


WITHOUT: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "frame limit": _frame_limit,
    "call limits": _call_limits,
    "output limits": _output_limits,
    "value limit": lambda: patch.object(wire, "MAX_VALUES", HUGE).start(),
}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(host(Job(**json.loads(sys.argv[1]))))))
