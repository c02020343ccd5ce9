"""One run's box in one scope: opened, numbered, recorded, and gone when the scope is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Never, Protocol

import anyio

from orchestrator.broker import Accept, Broker
from orchestrator.context import Context
from orchestrator.errors import RlmSandboxError
from orchestrator.events import KEPT, CellFinished, CellStarted, SandboxClosed, SandboxOpened
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.kernel.result import ExecutionResult
from orchestrator.ledger import Reservation, Scope
from orchestrator.metering import Complete
from orchestrator.models import retry
from orchestrator.models.base import Model
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import GivenUpError, Recorder
from orchestrator.tools import Toolbox
from orchestrator.traffic import Lane
from orchestrator.transport.rpc import RpcCall, RpcHandler, RpcRefusal, RpcReply

# A cell that was stopped while a call waited is stopped again so long after it waits again: what other threads of it
# still did then, they do meanwhile.
GIVEN_UP_S: Final = 1.0


class Box(Protocol):
    """What a session needs of a box (:class:`orchestrator.interpreter.Sandbox`)."""

    @property
    def info(self) -> BoxInfo:
        """What is known of it."""

    @property
    def cells(self) -> int:
        """Cells that were run in it so far."""

    @property
    def gone(self) -> bool:
        """Whether no further cell can run."""

    async def execute(
        self, code: str, timeout: float | None = None, stop: anyio.Event | None = None
    ) -> ExecutionResult:
        """Run one cell, until ``stop`` is set; cells are numbered from 1 in the order of these calls."""

    async def give(self, context: Context) -> None:
        """Bring one more context into it: ``context`` from now on, and the last of ``contexts``, which has them all.

        Raises:
            ContextError: it is none, or too large with those that are there; the box is as it was.
            SandboxError: the box is dead, or was given up because it did not take the context.
        """


OpenBox = Callable[..., AbstractAsyncContextManager[Box]]
"""Opens a box that holds a context and whose calls a handler answers; it is destroyed when the context is left.

It is called as ``open_box(policy, context, handler)``; with ``tools=names`` beside, where the run has tools.
"""


def open_sandbox(
    policy: Policy, context: Context, rpc: RpcHandler, *, tools: Sequence[str] = ()
) -> AbstractAsyncContextManager[Box]:
    """Open a fresh container; the usual :data:`OpenBox`."""
    return Sandbox.open(policy, context, rpc=rpc, tools=tools)


@dataclass(frozen=True, slots=True)
class ChildCall:
    """An ``rlm_query`` that passed the broker's checks.

    Attributes:
        query: the question.
        context: what it is about.
        cell: the cell that waits for the answer.
        deadline: when that cell will be stopped, on the event loop's clock.
        held: holds the child itself, for :meth:`~orchestrator.ledger.Scope.child`.
    """

    query: str
    context: Context
    cell: int
    deadline: float
    held: Reservation


ChildRun = Callable[[ChildCall], Awaitable[str]]
"""Carries out a child run; raises as a :data:`orchestrator.broker.ChildHandler` does."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What stands behind the calls of a box; all runs of a tree share it.

    Attributes:
        sub_model: the default model of sub-calls.
        open_named: gives the model for a name of ``policy.models.allowed``.
        prices: the price table.
        limiter: sub-calls that may be at a provider at once.
        lane: the tree's way to the providers.
        open_box: opens a box.
        complete: how a model is asked, retries included.
        tool_limiter: calls of tools that may be under way at once; None for ``models.in_flight`` of each run.
    """

    sub_model: Model
    open_named: Callable[[str], Model]
    prices: PriceTable
    limiter: anyio.CapacityLimiter
    open_box: OpenBox = open_sandbox
    complete: Complete = retry.complete
    lane: Lane | None = None
    tool_limiter: anyio.CapacityLimiter | None = None


class Session:
    """An open box, and what was recorded of it. Made by :func:`open_session` alone."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._box: Box | None = None
        self._broker: Broker | None = None
        self._cell = 0
        self._idle = anyio.Event()
        self._idle.set()
        self._quiet = False
        self._cell_ends = 0.0
        self._running = anyio.CancelScope()
        self._stop = anyio.Event()
        self._failure: Exception | None = None

    @property
    def cell(self) -> int:
        """Number of the last cell; 0 before the first."""
        return self._cell

    @property
    def final(self) -> str | None:
        """The answer, once the box handed it over."""
        return None if self._broker is None else self._broker.final

    @property
    def fatal(self) -> RlmSandboxError | None:
        """Why the run must stop: a sub-call's provider refuses the key, or the journal cannot be written."""
        return None if self._broker is None else self._broker.fatal

    async def run_cell(self, code: str, turn: int, timeout: float) -> ExecutionResult:
        """Run one cell, and record that.

        Args:
            code: Python source.
            turn: the root model's turn it comes from.
            timeout: seconds until it is interrupted.

        Raises:
            SandboxGoneError: the box is dead; nothing was run.
            JournalError: what happens cannot be recorded.
            Exception: what a sink raised when it was told of a call from the box, which is gone then.
        """
        if self._box is None or self._broker is None:
            raise RuntimeError("the session is not open")
        self.check()
        self._cell += 1
        cell, began = self._cell, anyio.current_time()
        self._recorder.emit(CellStarted(turn, cell, code))
        self._cell_ends = began + timeout
        self._stop, self._idle = anyio.Event(), anyio.Event()
        result = ExecutionResult("cancelled")
        try:
            with anyio.CancelScope() as self._running:
                result = await self._box.execute(code, timeout, self._stop)
        except anyio.get_cancelled_exc_class():
            abandoned = ExecutionResult("cancelled", elapsed_s=anyio.current_time() - began)
            self._recorder.emit(CellFinished(turn, cell, abandoned.to_dict()))
            raise
        finally:
            self._idle.set()
            self._broker.cell_ended(cell)
        self.check()
        self._recorder.emit(CellFinished(turn, cell, result.to_dict()))
        if self._quiet:
            await anyio.sleep_forever()  # nothing is to follow: whoever wanted quiet cancels the run
        return result

    async def quiet(self) -> None:
        """Interrupt the cell that runs, if one does, and wait for its end: what it had set is still there then.

        No further one ends but by being cancelled, which is for the caller to do.
        """
        self._quiet = True
        self._stop.set()
        await self._idle.wait()

    async def answer(self, call: RpcCall) -> RpcReply:
        """Answer a call of the box through the broker.

        Where that shows that the run must stop, the cell is interrupted. A call that is given up again waits for its
        end. What else is no answer and no refusal ends it and the box.
        """
        if self._broker is None:
            raise RpcRefusal("no_open_cell", "the box is not open yet")
        running = self._broker.fatal is None
        try:
            return await self._broker(call)
        except RpcRefusal:
            if running and self._broker.fatal is not None:
                self._stop.set()
            raise
        except GivenUpError as error:
            stops = error.stops
        except Exception as error:
            self._failure = self._failure or error
            self._running.cancel()
            raise RpcRefusal("run_stopped", "the run is being ended") from error
        return await self._give_up(stops=stops)

    async def _give_up(self, *, stops: bool) -> Never:
        """Wait for the end of the cell that runs; where it did not end by itself then, stop it soon."""
        stop = self._stop
        if stops:
            await anyio.sleep(GIVEN_UP_S)
            stop.set()
        while True:
            await anyio.sleep_forever()

    def check(self) -> None:
        """Raise what :meth:`answer` met, if it met anything."""
        if self._failure is not None:
            raise self._failure

    @property
    def cell_ends(self) -> float:
        """When the cell that runs will be stopped, on the event loop's clock."""
        return self._cell_ends

    def attach(self, box: Box, broker: Broker) -> None:
        """Bind the box and the handler of its calls, which needed the session before the box was up."""
        self._box, self._broker, self._cell = box, broker, box.cells


@asynccontextmanager
async def open_session(
    *,
    policy: Policy,
    context: Context,
    scope: Scope,
    recorder: Recorder,
    backing: Backing,
    child: ChildRun | None,
    accept: Accept | None = None,
    tools: Toolbox | None = None,
) -> AsyncIterator[Session]:
    """Open a box for one run.

    Args:
        policy: the run's policy.
        context: what the box holds.
        scope: pays for what the box asks for.
        recorder: the run's events.
        backing: what answers the box.
        child: carries out child runs; None turns every ``rlm_query`` into a plain sub-call.
        accept: judges the answer; None takes any.
        tools: functions that the box may call.

    Raises:
        ContextError: the context is larger than the policy allows.
        SandboxError: the box did not come up.
        JournalError: what happens cannot be recorded.
    """
    session = Session(recorder)

    async def run_child(query: str, its_context: Context, cell: int, held: Reservation) -> str:
        if child is None:
            raise RuntimeError("the broker was told that there are no child runs")
        return await child(ChildCall(query, its_context, cell, session.cell_ends, held))

    broker = Broker(
        scope=scope,
        policy=policy,
        sub_model=backing.sub_model,
        open_named=backing.open_named,
        prices=backing.prices,
        recorder=recorder,
        limiter=backing.limiter,
        child=None if child is None else run_child,
        complete=backing.complete,
        lane=backing.lane,
        cell_ends=lambda: session.cell_ends,
        accept=accept,
        tools=tools,
        tool_limiter=backing.tool_limiter,
    )
    container, reason, box = "", "", None
    try:
        given = {"tools": tuple(tools)} if tools else {}
        async with backing.open_box(policy, context, session.answer, **given) as box:
            info = box.info
            container = info.container
            opened = info.container, info.image, info.runtime, info.opened_s, info.controls
            recorder.emit(SandboxOpened(*opened, lent=box.cells > 0))
            session.attach(box, broker)
            yield session
        session.check()
    except BaseException as error:
        reason = type(error).__name__
        raise
    finally:
        if box is not None and not box.gone:
            reason = KEPT
        if container:
            recorder.emit(SandboxClosed(container, reason))
