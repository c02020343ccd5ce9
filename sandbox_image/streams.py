"""stdout and stderr of the kernel: in pieces that fit the gate, from any thread, and at little cost a line."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq
from ipykernel.iostream import IOPubThread, OutStream

# Messages that wait for the thread that publishes them; who has more to say waits for it.
MAX_WAITING = 1000


class BoxIOPubThread(IOPubThread):
    """Publishes for all threads, woken up as any event loop is.

    ipykernel gives each thread that prints a ZeroMQ socket for that, which stays for some seconds after the thread: a
    few hundred threads that print, one after the other, use up all descriptors; and its own such socket can fill up
    while it is the one that should empty it, which is then for ever.
    """

    def schedule(self, f: Callable[..., Any]) -> None:
        """Have ``f`` called by the publishing thread, after all that was scheduled before."""
        if threading.get_ident() == self.thread.ident:
            f()
            self._welcome()
            return
        if not self.thread.is_alive():
            f()
            return
        while len(self._events) >= MAX_WAITING:
            time.sleep(0.001)
        self._events.append(f)
        self.io_loop.add_callback(self._handle_event, None)

    def _handle_event(self, msg: Any) -> None:
        super()._handle_event(msg)  # type: ignore[no-untyped-call]
        self._welcome()

    def _welcome(self) -> None:
        """Welcome whoever subscribed while something was sent.

        A send takes up what libzmq's own thread had to announce, and the loop is not woken for that a second time
        (zmq_getsockopt(3), ZMQ_FD). Without the welcome the supervisor waits for ever for its kernel.
        """
        if self.socket.events & zmq.POLLIN:
            self._xpub_stream.flush(zmq.POLLIN)


class BoxStream(OutStream):
    """stdout and stderr, in pieces that fit the gate: what is printed at once, or in a moment, may be 100 MB.

    Attributes:
        forked: this process was forked off the kernel: it has no thread that publishes.
    """

    PIECE = 1 << 18
    forked = False
    _held = 0
    _line = ""
    _sender: tuple[Any, frozenset[Any]] = (None, frozenset())

    def write(self, string: str) -> int:
        """Write ``string``; lone surrogates, which no JSON can carry, become question marks.

        What ipykernel's own does beside that (an echo, a second look at who it is, a set made of the header of the cell
        each time) takes longer than the rest, in loops that print line by line.
        """
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string).__name__}")
        if self.forked:
            self._line += string
            if "\n" in string:
                self.flush()
            return len(string)
        if not string.isascii():
            string = string.encode("utf-8", "replace").decode()
        if len(string) <= self.PIECE:
            self._keep(string)
        else:
            for start in range(0, len(string), self.PIECE):
                self._keep(string[start : start + self.PIECE])
                self.flush()
        return len(string)

    def _keep(self, string: str) -> None:
        parent, sender = self.parent_header, self._sender
        if parent is not sender[0]:
            sender = self._sender = parent, frozenset(parent.items())
        with self._buffer_lock:
            self._buffers[sender[1]].write(string)
        self._held += len(string)
        if self._held > self.PIECE:
            self._held = 0
            self.flush()
        elif not self._flush_pending:
            self._schedule_flush()  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Publish what is buffered.

        ipykernel asks for it several times a cell, and each time waits for the thread that publishes. Where nothing is
        buffered there is nothing to wait for: the same thread sends "idle", which cannot overtake what came before.
        """
        if not self.forked:
            if self._buffers:
                super().flush()  # type: ignore[no-untyped-call]
            return
        # A fork has no thread that publishes; what it writes to the descriptor is read by the one of its parent.
        data, self._line = self._line.encode("utf-8", "replace"), ""
        with suppress(OSError):  # the cell may have closed it
            while data:
                data = data[os.write(self._original_stdstream_fd, data) :]

    def close(self) -> None:
        """Stay open: a cell that closes its output must not silence all later ones."""
        self.flush()


def _note_fork() -> None:
    BoxStream.forked = True


os.register_at_fork(after_in_child=_note_fork)
