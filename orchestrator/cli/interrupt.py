"""Ctrl-C: once to stop cleanly with what there is, twice to leave at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.cli.common import EXIT_INTERRUPTED

if TYPE_CHECKING:
    import asyncio

    import anyio

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop, and the second into the end of the process.

    The handlers are Python's own and not the event loop's, so that the second one works even when the loop is stuck.
    Boxes need no farewell: the engine's end of the stream sees this process go, and they end themselves.

    Attributes:
        requested: a first signal came.
    """

    def __init__(self, on_request: Callable[[str], None]) -> None:
        """Hold who is told, in one line, that the first signal came."""
        self.requested = False
        self._on_request = on_request
        self._previous: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: anyio.Event | None = None

    def __enter__(self) -> Self:
        """Take over the signals."""
        for number in _SIGNALS:
            # What nohup has ignored stays so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, work: Callable[[anyio.Event], Awaitable[None]]) -> None:
        """Run ``work`` on an event loop; the first signal sets the event it is given, and it should end soon."""
        import anyio

        from orchestrator.errors import ungrouped

        with ungrouped():
            anyio.run(self._run, work)

    async def _run(self, work: Callable[[anyio.Event], Awaitable[None]]) -> None:
        import asyncio

        import anyio

        self._stop = anyio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            if self.requested:
                self._request()
            await work(self._stop)
        finally:
            self._loop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.requested:
            if number == signal.SIGHUP:
                return  # The kernel and the shell both tell of a terminal that has gone: nobody is impatient.
            # Past every buffer: the handler may have interrupted a write to one.
            with suppress(OSError):
                os.write(2, b"\n")
            os._exit(EXIT_INTERRUPTED)
        self.requested = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._request)

    def _request(self) -> None:
        if self._stop is not None:
            self._stop.set()
        self._on_request("stopping; press Ctrl-C once more to leave at once")
