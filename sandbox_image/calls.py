"""Calls from the REPL to the host: many at once, from any thread or task, over one socket to the supervisor.

Two threads do the I/O. Neither is the main thread, so an interrupt never cuts a message in half; and what other threads
do to them is put into a queue that an interrupt cannot leave locked.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

from sandbox_image import wire
from sandbox_image.wire import Kind

Reply = tuple[dict[str, Any], str]
Done = Callable[[dict[str, Any], str], None]

# What is answered at once, whatever else is under way: one place of the window is kept for them, so that a cell whose
# threads wait for answers can still ask what is left and hand over its own.
CONTROL = frozenset(("budget", "batch_open", "batch_close", "final"))
CELL_OVER = {"error": {"reason": "cell_over", "limit": None, "message": "the cell that made this call is over"}}


class QueryRefused(Exception):  # noqa: N818 - the name model code is told
    """A call was refused or failed.

    Attributes:
        reason: stable word, such as ``calls``, ``tokens``, ``depth``, ``model_unavailable`` or ``invalid_params``.
        limit: what would have been allowed, where that is a number; else None.
        message: the sentence alone.
    """

    def __init__(self, reason: str, limit: float | None, message: str) -> None:
        """Hold the facts; the text names reason and limit too, because models read tracebacks."""
        super().__init__(f"{message} (reason={reason!r}, limit={limit!r})")
        self.reason = reason
        self.limit = limit
        self.message = message


class _Call(NamedTuple):
    """A call that was not sent yet; its text is encoded when it is."""

    identity: str
    cell: int
    control: bool
    head: bytes
    body: str
    done: Done


class _Sent(NamedTuple):
    """A call under way."""

    control: bool
    size: int
    done: Done


class _Lane:
    """Calls of one kind that wait, and the room there is for them."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.calls: deque[_Call] = deque()
        self._next = b""

    def next(self) -> bytes:
        """Return the message of the call that is next; nothing when there is none or no place for it."""
        if self.places < 1 or not self.calls:
            return b""
        if not self._next:
            self._next = self.calls[0].head + self.calls[0].body.encode("utf-8", "replace")
        return self._next

    def take(self) -> _Call:
        """Take the call that is next, and a place for it."""
        self._next = b""
        self.places -= 1
        return self.calls.popleft()

    def drop(self) -> None:
        """Tell all that wait that their cell is over."""
        self._next = b""
        while self.calls:
            self.calls.popleft().done(CELL_OVER, "")


class Connection:
    """Calls to the host.

    What does not fit into the window waits here, as the text it is, and is encoded when it leaves: however many calls a
    cell makes at once, no more of them are under way than the host accepts. The host answers every call, if only to say
    that its cell is over.

    Attributes:
        window: calls under way at once, at most.
    """

    def __init__(self, sock: socket.socket, max_frame: int, max_message: int, window: int) -> None:
        """Take over ``sock``; the I/O threads start with the first call."""
        self.window = window
        self._sock = sock
        self._max_frame = max_frame
        self._max_message = max_message
        self._pid = os.getpid()
        self._start_lock = threading.Lock()
        self._started = False
        # Calls to send, calls that were answered, and None when a cell is over: all that the writer has to know.
        self._events: queue.SimpleQueue[_Call | _Sent | None] = queue.SimpleQueue()
        self._waiting: dict[str, _Sent] = {}
        self._cells = 0
        self._open: int | None = 0
        self._cell = ContextVar("cell", default=0)
        # Held while a call is sent, and while a cell is closed: a call has left whole before the end of its cell, or
        # does not leave.
        self._leaving = threading.Lock()

    def begin_cell(self) -> None:
        """Let calls be made by what runs in this context, and by what it starts."""
        self._cells += 1
        self._open = self._cells
        self._cell.set(self._cells)

    def end_cell(self) -> None:
        """Refuse them: the host would too, but for a call that is under way when it opens the next cell."""
        with self._leaving:
            self._open = None

    def _may_call(self, cell: int) -> bool:
        # What was started below Python is in no cell that is known here: it may speak while one is open.
        return self._open is not None and cell in (0, self._open)

    def submit(self, method: str, params: dict[str, Any], body: str, done: Done) -> None:
        """Send a call when there is room; ``done`` gets the reply's head and body on an I/O thread.

        Raises:
            QueryRefused: it cannot be sent.
        """
        if os.getpid() != self._pid:
            raise QueryRefused("forked_process", None, "only the process of the REPL itself can make calls")
        cell = self._cell.get()
        if not self._may_call(cell):
            raise QueryRefused("cell_over", None, "the cell that started this thread or task is over")
        # A character has one to four bytes: most texts need not be encoded to know that they fit.
        if len(body) * 4 > self._max_message:
            size, limit = len(body.encode("utf-8", "replace")), self._max_message
            if size > limit:
                raise QueryRefused("too_large", limit, f"the text has {size:,} bytes; at most {limit:,} can be sent")
        with self._start_lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._write, daemon=True, name="rpc-writer").start()
                threading.Thread(target=self._read, daemon=True, name="rpc-reader").start()
        identity = os.urandom(16).hex()
        self._events.put(_Call(identity, cell, method in CONTROL, _head(identity, method, params), body, done))

    def call(self, method: str, params: dict[str, Any] | None = None, body: str = "") -> Reply:
        """Make a call and wait for its answer.

        Raises:
            QueryRefused: the host refused, or the call failed.
        """
        replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self.submit(method, params or {}, body, lambda head, text: replies.put((head, text)))
        return unwrap(*replies.get())

    async def acall(self, method: str, params: dict[str, Any], body: str) -> Reply:
        """Make a call and await its answer.

        Raises:
            QueryRefused: the host refused, or the call failed.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()

        def resolve(head: dict[str, Any], text: str) -> None:
            if not reply.done():
                reply.set_result((head, text))

        def done(head: dict[str, Any], text: str) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(resolve, head, text)

        self.submit(method, params, body, done)
        return unwrap(*await reply)

    def cell_over(self) -> None:
        """Drop what was not sent yet: in the next cell it would be paid for, and nobody waits for it."""
        if self._started:
            self._events.put(None)

    def _write(self) -> None:
        lanes = {True: _Lane(1), False: _Lane(max(self.window - 1, 1))}
        under_way = 0
        while True:
            event = self._events.get()
            if event is None:
                lanes[False].drop()
            elif isinstance(event, _Call):
                lanes[event.control].calls.append(event)
            else:
                under_way -= event.size
                lanes[event.control].places += 1
            for lane in lanes.values():
                # The host takes so many bytes at once; a message that is larger than what is left waits for the others.
                while (message := lane.next()) and (not under_way or under_way + len(message) <= self._max_message):
                    call = lane.take()
                    if self._send(call, message):
                        under_way += len(message)
                    else:
                        lane.places += 1
                        call.done(CELL_OVER, "")

    def _send(self, call: _Call, message: bytes) -> bool:
        """Send a call, unless its cell is over; return whether it was sent."""
        with self._leaving:
            if not self._may_call(call.cell):
                return False
            self._waiting[call.identity] = _Sent(call.control, len(message), call.done)
            for frame in wire.encode_fragments(message, min(wire.CHUNK, self._max_frame - 1)):
                self._sock.sendall(frame)
        return True

    def _read(self) -> None:
        decoder = wire.Decoder(self._max_frame, frozenset((Kind.RPC,)))
        assembler = wire.Assembler(self._max_message + wire.MAX_HEAD)
        while data := self._sock.recv(1 << 20):
            for frame in decoder.feed(data):
                message = assembler.feed(frame.payload)
                if message is None:
                    continue
                head, body = wire.unpack_message(message)
                sent = self._waiting.pop(head["id"], None)
                if sent is not None:  # None: it answers a call of the kernel before this one
                    self._events.put(sent)
                    sent.done(head, str(body, "utf-8"))


def _head(identity: str, method: str, params: dict[str, Any]) -> bytes:
    """Return the head of a call, as the host will read it: what it cannot read would end the box.

    Raises:
        QueryRefused: the parameters are no strict JSON, or too much of it.
    """
    try:
        head = wire.pack_message({"id": identity, "method": method, "params": params}, b"")
        wire.unpack_head(head)
    except (wire.WireError, TypeError, ValueError, RecursionError) as error:
        few = "; join documents into fewer" if "layout" in params else ""
        raise QueryRefused("invalid_params", None, f"the parameters cannot be sent: {error}{few}") from None
    return head


def unwrap(head: dict[str, Any], body: str) -> Reply:
    """Return result and body of a reply.

    Raises:
        QueryRefused: it is a refusal.
    """
    error = head.get("error")
    if error is not None:
        raise QueryRefused(error["reason"], error["limit"], error["message"])
    return head["result"], body
