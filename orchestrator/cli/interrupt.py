"""Ctrl-C: once to stop cleanly with what there is, twice to leave at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
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

    Work that is one of several is done in a block of :meth:`armed`, and :meth:`rearm` goes between two of them; while a
    person is waited for, in a block of :meth:`waiting`, there is nothing to stop, and a signal is a KeyboardInterrupt.

    Attributes:
        requested: a first signal came.
        leaving: one came that asks for the end of the process, and not of what it does now: no SIGINT.
    """

    def __init__(self, on_request: Callable[[str], None]) -> None:
        """Hold who is told, in one line, that the first signal came."""
        self.requested = False
        self.leaving = False
        self._waiting = False
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
        with self.armed() as stop:
            await work(stop)

    @contextmanager
    def armed(self) -> Iterator[anyio.Event]:
        """Give, on a running event loop of whatever thread, the event that the first signal sets."""
        import asyncio

        import anyio

        self._stop = anyio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            if self.requested:
                self._request()
            yield self._stop
        finally:
            self._loop = None

    def rearm(self) -> None:
        """Take what was stopped for done: the next signal is a first one again, unless one asked for the end."""
        self.requested = self.leaving

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Have a signal raise KeyboardInterrupt in this block, which is the main thread's; so does one before it."""
        self._waiting = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Have threads that are started in this block, and those that they start, leave the signals to this one.

        The kernel gives a signal to whichever thread takes it, but the handlers run in the main one alone, and that
        does not wake for what another took (signal(7), "Signal mask and pending signals"; Python's ``signal``).
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self.leaving |= number != signal.SIGINT
        if self._waiting:
            self._waiting = False
            self.requested = True
            raise KeyboardInterrupt
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
