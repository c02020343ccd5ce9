"""Runs cells in the kernel of a box, over frames; a cell always ends.

``jupyter_client``'s ``Session`` builds and parses the messages; no socket of its own is involved. Four things race for
the end of a cell: the kernel's reply, the kernel's death, the end of the stream, and the deadline, which runs on the
event loop's monotonic clock and depends on nothing the box sends. After the deadline comes the ladder::

    interrupt ── 0.5 s ── interrupt ── 0.5 s ── kill every process but the supervisor ── 1 s ── give the box up

so a cell ends within its timeout and 2 s, and the rest of the promised 3 s is for a busy host and for a box that is
slow to take the code. What was done is told in :attr:`ExecutionResult.ladder`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from orchestrator.errors import SandboxGoneError, SandboxStartError, ungrouped
from orchestrator.kernel.hearing import Hearing, describe_death
from orchestrator.kernel.outputs import CellFold
from orchestrator.kernel.result import ExecutionResult, Status, Step
from sandbox_image import wire
from sandbox_image.wire import Channel, Kind

INTERRUPT_GRACE_S = 0.5
KILL_GRACE_S = 1.0
# The code of a cell may take this much longer to send than the cell may run: a frame cut off in its middle would make
# nonsense of all that follow it.
SEND_GRACE_S = 0.5
# A cell whose kernel must come up first waits for it as long as it may run, and this; then it has this at least to run.
LATE_START_S = 3.0
LEAST_S = 1.0

Send = Callable[[Kind, bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _End:
    """How a cell ended; the fields are those of :class:`ExecutionResult`."""

    status: Status
    detail: str
    state_lost: bool = True
    ladder: tuple[Step, ...] = ()


def preload() -> None:
    """Import ``jupyter_client`` ahead of need; on a worker thread, since it takes some 0.1 s."""
    import jupyter_client.session  # noqa: F401


class KernelClient(Hearing):
    """The host's end of a kernel.

    Args:
        send: sends one frame into the box.
        output_limit: characters of output a cell may have, a stream.
    """

    def __init__(self, send: Send, output_limit: int) -> None:
        """Set up; nothing is sent before :meth:`handshake`."""
        super().__init__()
        self._send = send
        self._output_limit = output_limit

    # Starting -------------------------------------------------------------------------------------------------------

    async def hello(self) -> dict[str, Any]:
        """Wait for the supervisor's report on its confinement.

        Raises:
            SandboxStartError: the stream ended before it came.
        """
        while self._hello is None:
            if self.gone:
                raise SandboxStartError(f"the box ended before it reported{self._because()}")
            await self._changed.wait()
        return self._hello

    async def bound(self) -> None:
        """Wait until a kernel is up and waits for the context.

        Raises:
            SandboxStartError: the stream ended before it was.
        """
        while not self._bound.is_set():
            if self.gone:
                raise SandboxStartError(f"the kernel did not start{self._because()}")
            await self._changed.wait()

    async def handshake(self) -> None:
        """Wait until the kernel answers ``kernel_info_request``.

        Raises:
            SandboxStartError: it died or the stream ended.
        """
        await self._until_ready()
        self._death = None  # of a try before the one that came up
        await self._sent(self._request("kernel_info_request", {}))
        while not self._replied:
            if self.gone or self._death is not None:
                raise SandboxStartError(f"the kernel ended before it answered{self._because()}")
            await self._changed.wait()
        self._message_id = self._lost_between = ""

    async def _until_ready(self) -> None:
        while not self._ready.is_set():
            if self.gone:
                raise SandboxStartError(f"the kernel did not start{self._because()}")
            await self._changed.wait()

    async def _request(self, kind: str, content: dict[str, Any]) -> None:
        message = self._session.msg(kind, content)
        self._message_id = message["header"]["msg_id"]
        self._replied = False
        parts = self._session.serialize(message)
        await self._send(Kind.KERNEL, wire.pack_parts(Channel.SHELL, parts))

    # Cells ----------------------------------------------------------------------------------------------------------

    async def execute(
        self, code: str, timeout_s: float, start_timeout_s: float, stop: anyio.Event | None = None
    ) -> ExecutionResult:
        """Run one cell to its end; one at a time.

        Args:
            code: Python source, as a model wrote it.
            timeout_s: seconds until the ladder begins.
            start_timeout_s: seconds a fresh kernel may take, if the last one died.
            stop: when set, the ladder begins at once, and the cell is ``cancelled``.

        Raises:
            SandboxGoneError: the box was dead already.
        """
        if self.gone:
            raise SandboxGoneError(f"the box is gone{self._because()}")
        asked, late = time.monotonic(), not self._ready.is_set()
        if not await self._kernel_within(min(start_timeout_s, timeout_s + LATE_START_S), start_timeout_s):
            detail = f"no fresh REPL was ready within {timeout_s + LATE_START_S:g} s: the code was not run"
            return ExecutionResult("timeout", state_lost=True, elapsed_s=time.monotonic() - asked, detail=detail)
        started = time.monotonic()
        if late:
            timeout_s = max(timeout_s - (started - asked), min(timeout_s, LEAST_S))
        lost_before, self._lost_between = self._lost_between, ""
        fold = self._fold = CellFold(self._output_limit)
        self._death, self._flooded = None, False
        try:
            async with _waking(self._wake, stop):
                end = await self._run(code, timeout_s, stop)
        except anyio.get_cancelled_exc_class():
            # Nobody is left to climb the ladder: what runs in the box now is unknown, so it serves no further cell.
            self.give_up("a cell was abandoned")
            raise
        finally:
            self._fold, self._message_id = None, ""
        return fold.result(
            end.status,
            state_lost=end.state_lost or bool(lost_before),
            detail="; ".join(part for part in (lost_before, end.detail) if part),
            ladder=end.ladder,
            elapsed_s=time.monotonic() - started,
        )

    async def load(self, timeout_s: float) -> None:
        """Have the kernel load what was sent to it besides, as it does before a cell: here before one without code.

        If the kernel dies of that, or died before, the fresh one loads all there is; the next cell tells of it.

        Args:
            timeout_s: seconds until the box is given up.

        Raises:
            SandboxGoneError: the box is dead.
            SandboxStartError: it was not loaded in time, or could not be.
        """
        deadline = anyio.current_time() + timeout_s
        result = await self.execute("", timeout_s, timeout_s)
        self._lost_between = result.detail if result.state_lost else ""
        if result.status in ("died", "oom") and not self.gone:
            left = max(deadline - anyio.current_time(), 0)
            await self._kernel_within(left, left)
        elif self.gone and not result.ladder:
            raise SandboxGoneError(f"the box ended while it loaded the context{self._because()}")
        elif result.status != "ok":
            self.give_up("it did not load a context")
            told = result.detail or (result.error.value if result.error else result.status)
            raise SandboxStartError(f"the context was not loaded: {told}")

    async def _kernel_within(self, timeout_s: float, start_timeout_s: float) -> bool:
        """Wait for the kernel; return whether it came, and raise if by ``start_timeout_s`` it should have."""
        try:
            with anyio.fail_after(timeout_s):
                await self._until_ready()
        except (TimeoutError, SandboxStartError) as error:
            if isinstance(error, TimeoutError) and timeout_s < start_timeout_s:
                return False
            self.give_up("no fresh kernel came up")
            raise SandboxGoneError(f"no fresh kernel came up{self._because()}") from error
        return True

    async def _run(self, code: str, timeout_s: float, stop: anyio.Event | None) -> _End:
        content = {
            "code": code.encode("utf-8", "replace").decode(),
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        deadline = anyio.current_time() + timeout_s
        with anyio.CancelScope(deadline=deadline + SEND_GRACE_S) as sending:
            await self._sent(self._request("execute_request", content))
        if sending.cancelled_caught:
            self.give_up("it did not take the code of a cell")
            return _End("timeout", f"it did not take the code: {_TOLD['destroy']}", ladder=("destroy",))
        with anyio.CancelScope(deadline=deadline):
            while not self._over and not self._flooded and not (stop and stop.is_set()):
                await self._changed.wait()
        if self._over:
            return self._outcome()
        return await self._ladder(*_ended_by(stop, timeout_s, flooded=self._flooded))

    @property
    def _over(self) -> bool:
        return self._replied or self._dead

    @property
    def _dead(self) -> bool:
        return self.gone or self._death is not None

    def _over_by(self, step: Step) -> bool:
        return self._dead if step == "kill" else self._over

    async def _sent(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except anyio.BrokenResourceError:
            self._closed = True

    def _outcome(self) -> _End:
        if self._fold is None:
            raise RuntimeError("no cell is open")
        if self._violation:
            return _End("protocol_error", f"the box broke the protocol: {self._violation}")
        death = "" if self._death is None else describe_death(self._death)
        if self._replied:  # and may have died since
            return _End(self._fold.replied or "error", death, state_lost=self._death is not None)
        if self._death is not None:
            return _End("oom" if self._death.get("oom") is True else "died", death)
        return _End("died", "the box ended")

    async def _ladder(self, why: Status, reason: str) -> _End:
        """Climb from step to step until the cell is over.

        A step's order is sent by a task that the step's end does not cut off: it may have to wait behind a long answer
        to a call, and half a frame would make nonsense of all that follow it. From the order to kill on, a reply ends
        nothing: the kernel that sent it dies of the order all the same, and would take the next cell along.
        """
        steps: tuple[tuple[Step, Kind, float], ...] = (
            ("interrupt", Kind.INTERRUPT, INTERRUPT_GRACE_S),
            ("interrupt", Kind.INTERRUPT, INTERRUPT_GRACE_S),
            ("kill", Kind.RESTART, KILL_GRACE_S),
        )
        climbed: list[Step] = []
        with ungrouped():
            async with anyio.create_task_group() as sends:
                for step, kind, grace_s in steps:
                    climbed.append(step)
                    sends.start_soon(self._sent, self._order(kind))
                    with anyio.move_on_after(grace_s):
                        while not self._over_by(step):
                            await self._changed.wait()
                    ended = self._over_by(step)
                    if ended:
                        break
                sends.cancel_scope.cancel()
        if ended:
            outcome = self._outcome()
            status = outcome.status if outcome.status in ("oom", "protocol_error") else why
            return _End(status, f"{reason}: {_told(climbed)}", outcome.state_lost, tuple(climbed))
        self.give_up("it did not end its kernel")
        climbed.append("destroy")
        return _End(why, f"{reason}: {_told(climbed)}", ladder=tuple(climbed))

    async def _order(self, kind: Kind) -> None:
        # It names the kernel that is meant: one that came up meanwhile has done nothing.
        await self._send(kind, json.dumps({"generation": self._generation}).encode())

    def _because(self) -> str:
        return f": {self._violation}" if self._violation else ""


_TOLD = {"kill": "its process was killed", "destroy": "the box was destroyed"}


def _told(climbed: list[Step]) -> str:
    """Return, for people, the step that ended the cell."""
    return _TOLD.get(climbed[-1]) or ("interrupted" if len(climbed) == 1 else "interrupted twice")


def _ended_by(stop: anyio.Event | None, timeout_s: float, *, flooded: bool) -> tuple[Status, str]:
    if flooded:
        return "output_limit", "it printed without end"
    if stop and stop.is_set():
        return "cancelled", "it was asked to stop"
    return "timeout", f"it ran longer than {round(timeout_s, 3):g} s"


@asynccontextmanager
async def _waking(wake: Callable[[], None], stop: anyio.Event | None) -> AsyncIterator[None]:
    """Call ``wake`` when ``stop`` is set, inside the block."""
    if stop is None:
        yield
        return

    async def wait() -> None:
        await stop.wait()
        wake()

    with ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            yield
            tasks.cancel_scope.cancel()
