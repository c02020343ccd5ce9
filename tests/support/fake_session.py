"""Named fakes for whatever drives a box: cells without a box, and a box without a container."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from orchestrator.context import Context
from orchestrator.errors import RlmSandboxError, ungrouped
from orchestrator.interpreter import BoxInfo
from orchestrator.kernel.result import CellError, ExecutionResult
from orchestrator.policy import Policy
from orchestrator.rlm.sitting import CLEAR
from orchestrator.transport.rpc import RpcCall, RpcHandler, RpcReply

FETCH_DRAFT = 'Final = globals().get("draft")'
OK = ExecutionResult("ok")


def error(name: str = "ValueError", value: str = "bad") -> ExecutionResult:
    """Return the result of a cell whose code raised."""
    return ExecutionResult(
        "error", error=CellError(name, value, f"Traceback (most recent call last):\n{name}: {value}")
    )


Step = ExecutionResult | Exception | Callable[["FakeCells"], ExecutionResult]


class FakeCells:
    """Cells that end as a script says, and ``ok`` when it is used up; ``draft`` is what the box holds under that name.

    A step is the result, an exception to raise, or a function that may set ``final`` or ``fatal``.
    """

    def __init__(self, steps: Iterable[Step] = (), *, draft: str | None = None) -> None:
        self.cell = 0
        self.final: str | None = None
        self.fatal: RlmSandboxError | None = None
        self.draft = draft
        self.codes: list[str] = []
        self.timeouts: list[float] = []
        self._steps = deque(steps)

    async def run_cell(self, code: str, turn: int, timeout: float) -> ExecutionResult:
        del turn
        self.cell += 1
        self.timeouts.append(timeout)
        if code == FETCH_DRAFT:
            self.final = self.draft
            return OK
        self.codes.append(code)
        step = self._steps.popleft() if self._steps else OK
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, ExecutionResult) else step(self)


def sets_final(answer: str) -> Callable[[FakeCells], ExecutionResult]:
    """Return a step whose cell hands over an answer."""

    def step(cells: FakeCells) -> ExecutionResult:
        cells.final = answer
        return OK

    return step


class FakeBox:
    """A box of which each cell is a function on the host that may make the calls a box makes."""

    def __init__(self, policy: Policy, context: Context, rpc: RpcHandler, cells: deque[CellBody]) -> None:
        self.policy = policy
        self.context = context
        self.info = BoxInfo("fake-container", "sha256:fake", "fake", {"network": "none"}, 0.25)
        self.codes: list[str] = []
        self.timeouts: list[float | None] = []
        self.cell = 0
        self.contexts = [context]
        self.gone = False
        self._rpc = rpc
        self._cells = cells
        self._calls = 0

    async def execute(
        self, code: str, timeout: float | None = None, stop: anyio.Event | None = None
    ) -> ExecutionResult:
        self.cell += 1
        self.codes.append(code)
        self.timeouts.append(timeout)
        if code in (FETCH_DRAFT, CLEAR) or not self._cells:
            return OK
        body = self._cells.popleft()
        result: ExecutionResult | None = ExecutionResult("cancelled")
        self.gone = True  # unless it comes to its end
        with ungrouped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_set, stop or anyio.Event(), tasks.cancel_scope)
                result = await body(self)
                tasks.cancel_scope.cancel()
        self.gone = False
        return result or OK

    @property
    def cells(self) -> int:
        return self.cell

    async def give(self, context: Context) -> None:
        self.contexts.append(context)

    async def call(self, method: str, body: str = "", **params: object) -> str:
        """Make a call out of the open cell."""
        return (await self._reply(method, body, **params)).body

    async def budget(self) -> dict[str, Any]:
        """Call ``budget``."""
        return (await self._reply("budget")).result

    async def _reply(self, method: str, body: str = "", **params: object) -> RpcReply:
        self._calls += 1
        return await self._rpc(RpcCall(f"{self._calls:032x}", method, params, body, self.cell))

    async def child(self, query: str, context: str) -> str:
        """Call ``rlm_query``."""
        return await self.call("rlm_query", context, query=query, layout={"kind": "text"})


async def _cancel_when_set(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


CellBody = Callable[[FakeBox], Awaitable[ExecutionResult | None]]


def finals(answer: str) -> CellBody:
    """Return the body of a cell that sets ``Final``."""

    async def body(box: FakeBox) -> None:
        await box.call("final", answer)

    return body


@dataclass(slots=True)
class FakeBoxes:
    """Opens fake boxes; the n-th to be opened runs the n-th list of cells.

    Attributes:
        cells: what the cells of each box do, in order.
        opened: the boxes, in order.
        closed: how many of them were left.
        failure: raised instead of opening one.
        cells_before: that each is said to have run.
    """

    cells: list[list[CellBody]] = field(default_factory=list)
    opened: list[FakeBox] = field(default_factory=list)
    closed: int = 0
    failure: Exception | None = None
    cells_before: int = 0

    @asynccontextmanager
    async def open(self, policy: Policy, context: Context, rpc: RpcHandler) -> AsyncIterator[FakeBox]:
        if self.failure is not None:
            raise self.failure
        number = len(self.opened)
        bodies = self.cells[number] if number < len(self.cells) else []
        self.opened.append(FakeBox(policy, context, rpc, deque(bodies)))
        self.opened[number].cell = self.cells_before
        try:
            yield self.opened[number]
        finally:
            self.opened[number].gone = True
            self.closed += 1
