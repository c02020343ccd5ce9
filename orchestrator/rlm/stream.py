"""The events of one run, as they happen, for ``async for``."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

import anyio

from orchestrator.errors import ungrouped
from orchestrator.events import Envelope, Sink
from orchestrator.rlm.result import Result

Begin = Callable[[Sink, anyio.Event], Awaitable[Result]]
"""Carries a run out: gives its events to the first, and ends it early when the second is set."""


def both(first: Sink | None, second: Sink) -> Sink:
    """Return a sink that tells both, the first one first."""
    if first is None:
        return second

    def sink(envelope: Envelope) -> None:
        first(envelope)
        second(envelope)

    return sink


class RunStream:
    """The events of one run and its children, in order; iterate over it once, and ask for the result.

    Events wait here until they are taken: none is lost to a slow reader, and none is waited for, so a reader cannot
    hold up the run. How many there can be is bounded by the run's budgets.
    """

    def __init__(self) -> None:
        self._events: deque[Envelope] = deque()
        self._more = anyio.Event()
        self._ended = anyio.Event()
        self._stop = anyio.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Envelope:
        """Return the next event; after the last, raise what kept the run from having a result, if anything did."""
        while not self._events:
            if self._ended.is_set():
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._more.wait()
        await anyio.lowlevel.checkpoint()
        return self._events.popleft()

    async def result(self) -> Result:
        """Wait for the end of the run and return its result. Events that were not taken can still be.

        Raises:
            RlmSandboxError: as :meth:`orchestrator.rlm.api.RLM.complete`.
        """
        await self._ended.wait()
        if self._result is None:
            raise self._error or RuntimeError("the run was cancelled")
        return self._result

    def stop(self) -> None:
        """Ask the run to end now, with what it has: the reason is then ``interrupted``."""
        self._stop.set()

    def _put(self, envelope: Envelope) -> None:
        self._events.append(envelope)
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = anyio.Event()

    async def _carry_out(self, begin: Begin) -> None:
        try:
            self._result = await begin(self._put, self._stop)
        except Exception as error:  # noqa: BLE001 - it is the reader's, who is told at the end
            self._error = error
        finally:
            self._ended.set()
            self._wake()


@asynccontextmanager
async def streamed(begin: Begin, patience_s: float = 0.0) -> AsyncIterator[RunStream]:
    """Carry a run out beside the block; leaving the block ends a run that goes on.

    Args:
        begin: carries it out.
        patience_s: seconds it has to end by itself, before it is cancelled.
    """
    stream = RunStream()
    with ungrouped() as whole:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream._carry_out, begin)  # noqa: SLF001 - the other half of it
            try:
                yield stream
            except BaseExceptionGroup as group:
                whole.append(group)
                raise
            finally:
                stream.stop()
                with anyio.move_on_after(patience_s, shield=True):
                    await stream._ended.wait()  # noqa: SLF001 - as above
                tasks.cancel_scope.cancel()
