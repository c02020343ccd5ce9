"""Carries frames between a box and its host: one reader, ordered writers, and the calls that come out of the box.

The reader never waits for anything but the stream. What a frame means for the kernel is the listener's business, and is
decided without waiting; a call from the box becomes a task of its own, bounded in number and bytes: whether there is a
place for it is decided when its head is here, and its text becomes a ``str`` only if there is.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import anyio
import anyio.abc

from orchestrator.transport.rpc import (
    Arrival,
    BodyLimit,
    Inbox,
    RpcCall,
    RpcHandler,
    RpcRefusal,
    RpcReply,
    encode_refusal,
    encode_reply,
)
from orchestrator.transport.streams import ByteStream
from sandbox_image import wire
from sandbox_image.wire import Frame, Kind

FROM_BOX = frozenset((Kind.KERNEL, Kind.RPC, Kind.HELLO, Kind.READY, Kind.CUT, Kind.DIED, Kind.FAULT, Kind.BOUND))
# Facts are a line of JSON; the supervisor's report on its confinement, the longest of them, has some 10 KiB.
MAX_FACTS = dict.fromkeys((Kind.READY, Kind.DIED, Kind.FAULT, Kind.BOUND), 4096)
MAX_FACTS |= {Kind.HELLO: 1 << 20, Kind.RPC: wire.CHUNK + 1}
# Calls beyond the window are refused, each by a short task; a box that keeps that many refusals waiting is hostile.
MAX_REFUSALS = 256
# A frame is written by the supervisor in one piece, and a call by one thread of the box: what takes longer than this is
# held back on purpose. A box that is throttled to a hundredth of a core still writes its largest frame in a second.
STALL_S = 30.0
# Answers that are ready at the same time leave together: of short ones, the system call is most of the cost. A frame
# of another kind, such as an interrupt, waits for one such piece or one message at most.
BURST_BYTES = 1 << 16
_CELL_OVER = RpcRefusal("cell_over", "the cell that made this call is over")

_log = logging.getLogger(__name__)


class _Answer(NamedTuple):
    """An answer that waits to be sent."""

    message: bytes
    refused: bool


class Listener(Protocol):
    """Who hears of frames. Its methods return at once and never raise."""

    def frame(self, frame: Frame) -> None:
        """Take one frame that is not a call."""

    def closed(self, violation: str) -> None:
        """Learn that nothing more will come; ``violation`` names what the box did wrong, or is empty."""


async def refuse_everything(call: RpcCall) -> RpcReply:
    """Answer calls of a box that was opened without a handler."""
    raise RpcRefusal("unavailable", f"{call.method} is not available in this sandbox")


class Mux:
    """Frames over one byte stream.

    Args:
        stream: to the box; the mux sends and receives on it, and closes it when it has read its last.
        listener: hears of frames.
        handler: answers calls. What it raises that is no RpcRefusal is logged, as is a reply that cannot be sent; the
            box is told no more than ``handler_failed``.
        max_frame: bytes of the largest frame accepted; of most kinds less is (:data:`MAX_FACTS`).
        max_message: bytes of the largest call accepted, and of all calls under way together.
        window: calls answered at once.
        limits: what calls may carry, by method; others may carry little.
    """

    def __init__(
        self,
        stream: ByteStream,
        listener: Listener,
        handler: RpcHandler,
        *,
        max_frame: int,
        max_message: int,
        window: int,
        limits: Mapping[str, BodyLimit],
    ) -> None:
        """Set up; :meth:`run` starts reading."""
        self._stream = stream
        self._listener = listener
        self._handler = handler
        self._decoder = wire.Decoder(max_frame, FROM_BOX, MAX_FACTS)
        self._inbox = Inbox(max_message, limits, self._no_place)
        self._max_message = max_message
        self._window = window
        self._write_lock = anyio.Lock()
        self._calls: set[anyio.CancelScope] = set()
        self._handling = self._bytes_under_way = 0
        self._answers: deque[_Answer] = deque()
        self._answered = anyio.Event()
        self._unsent = self._refusals = 0
        self._violation = ""
        # What began to arrive and has not ended: how many frames or calls had ended before it.
        self._frames_ended = self._calls_ended = 0
        self.cell: int | None = None
        """Number of the open cell; calls are bound to it."""

    async def run(self) -> None:
        """Read until the stream ends or the box violates the protocol."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            tasks.start_soon(self._write)
            try:
                while data := await self._stream.receive():
                    for frame in self._decoder.feed(data):
                        self._frames_ended += 1
                        self._take(tasks, frame)
                    del data  # else it would be held, beside what it became, until more arrives
            except wire.WireError as error:
                self._violation = self._violation or str(error)
            finally:
                # Before the tasks are waited for: one of them may be sending to a box that no longer reads.
                with anyio.CancelScope(shield=True):
                    await self._stream.aclose()
            self._listener.closed(self._violation)
            tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        """End what is begun and not finished within :data:`STALL_S`, or twice that; the box has no say in it."""
        frame = call = -1
        while True:
            await anyio.sleep(STALL_S)
            if self._decoder.buffered and frame == self._frames_ended:
                self._violation = f"a frame that did not end within {STALL_S:g} s"
                await self._stream.aclose()  # the reader then reads the end
                return
            if self._inbox.partial and call == self._calls_ended:
                # Not the box's end: its kernel may have been stopped in the middle, and be killed for it.
                self._inbox.abandon(RpcRefusal("stalled", f"the call did not arrive within {STALL_S:g} s"))
            frame = self._frames_ended if self._decoder.buffered else -1
            call = self._calls_ended if self._inbox.partial else -1

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one frame.

        Raises:
            anyio.BrokenResourceError: the box is gone.
        """
        async with self._write_lock:
            await self._stream.send(wire.encode(kind, payload))

    def cancel_calls(self) -> None:
        """Cancel every call under way: its cell is over, so nobody waits for the answer."""
        for scope in self._calls:
            scope.cancel()

    def _take(self, tasks: anyio.abc.TaskGroup, frame: Frame) -> None:
        if frame.kind is Kind.RPC:
            self._fragment(tasks, frame.payload)
            return
        if frame.kind is Kind.DIED:
            self._calls_ended += 1
            self._inbox.reset()  # the next kernel's first call must not be joined to what this one left unsaid
        self._listener.frame(frame)

    def _no_place(self, size: int) -> RpcRefusal | None:
        """Return why no call with a body of so many bytes can be taken now, or None."""
        full = max(self._handling, self._unsent) >= self._window or self._bytes_under_way + size > self._max_message
        return RpcRefusal("too_many_in_flight", "too many calls at once", limit=self._window) if full else None

    def _fragment(self, tasks: anyio.abc.TaskGroup, fragment: bytes) -> None:
        arrival = self._inbox.feed(fragment)
        if arrival is None:
            return
        self._calls_ended += 1
        if arrival.refusal is not None:
            self._refusals += 1
            if self._refusals > MAX_REFUSALS:
                raise wire.WireError("calls without end")
            self._queue(_Answer(encode_refusal(arrival.id, arrival.refusal), refused=True))
        else:
            self._begin(tasks, arrival)

    def _begin(self, tasks: anyio.abc.TaskGroup, arrival: Arrival) -> None:
        call, size, scope = arrival.decode(self.cell), len(arrival.body), anyio.CancelScope()
        self._calls.add(scope)
        self._handling += 1
        self._bytes_under_way += size
        tasks.start_soon(self._answer, call, scope, size)

    async def _answer(self, call: RpcCall, scope: anyio.CancelScope, size: int) -> None:
        # Every call is answered, this one too when it is cancelled: a thread of the box may wait for it for ever.
        message, identity = b"", call.id
        try:
            with scope:
                message = await self._handled(call)
        finally:
            # Before its answer is sent: with it, the box counts on the place and the room of this call.
            del call
            self._calls.discard(scope)
            self._handling -= 1
            self._bytes_under_way -= size
        self._unsent += 1
        self._queue(_Answer(message or encode_refusal(identity, _CELL_OVER), refused=False))

    async def _handled(self, call: RpcCall) -> bytes:
        try:
            try:
                return self._fitting(encode_reply(call.id, await self._handler(call)))
            except RpcRefusal as refusal:
                return encode_refusal(call.id, refusal)
        except Exception:  # noqa: BLE001 - anybody may write a handler; one call it cannot answer must not end the box
            _log.exception("the handler of calls failed on %s", call.method)
            return encode_refusal(call.id, RpcRefusal("handler_failed", "the host could not answer this call"))

    def _fitting(self, message: bytes) -> bytes:
        # The box would take a longer one for an attack on itself, and hear no answer from then on.
        most = self._max_message + wire.MAX_HEAD
        if len(message) > most:
            raise ValueError(f"a reply of {len(message):,} bytes, and at most {most:,} can be sent")
        return message

    def _queue(self, answer: _Answer) -> None:
        self._answers.append(answer)
        self._answered.set()

    async def _write(self) -> None:
        """Send answers in the order they came to be, those that are ready at the same time in one piece.

        This task alone sends them, and is cancelled when the stream is closed and not before: a message that was cut
        off between two fragments would be joined with the next one.
        """
        try:
            while True:
                await self._answered.wait()
                self._answered = anyio.Event()
                while self._answers:
                    async with self._write_lock:
                        message = self._take_answer()
                        if len(message) < BURST_BYTES:
                            await self._stream.send(self._burst(message))
                        else:
                            for frame in wire.encode_fragments(message):
                                await self._stream.send(frame)
                    del message  # else a large one would be held until the next
        except anyio.BrokenResourceError:
            pass  # the reader learns of it too

    def _burst(self, message: bytes) -> bytes:
        """Return ``message``, and as many small ones of those that wait as make one piece, as frames."""
        frames = [*wire.encode_fragments(message)]
        room = BURST_BYTES - len(message)
        while self._answers and len(self._answers[0].message) < room:
            message = self._take_answer()
            room -= len(message)
            frames += wire.encode_fragments(message)
        return b"".join(frames)

    def _take_answer(self) -> bytes:
        # As it is taken and not when the whole piece is sent: the box counts on the place of each as it reads it.
        answer = self._answers.popleft()
        if answer.refused:
            self._refusals -= 1
        else:
            self._unsent -= 1
        return answer.message
