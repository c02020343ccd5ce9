"""The supervisor's end of the line on which one kernel makes its calls and hears the answers: a pair of Unix sockets.

Nothing here waits for the kernel: one that does not read its answers, or breaks the line, must not keep an interrupt
from being carried. What it leaves unread is bounded by not taking its further calls.
"""

from __future__ import annotations

import socket
from collections import deque

from sandbox_image import wire
from sandbox_image.wire import Frame, Kind

READ_SIZE = 1 << 20
# Bytes of answers a kernel may leave unread before its further calls wait: without end they would fill this process.
MAX_UNREAD = 4 << 20


class Line:
    """One kernel's line.

    Args:
        max_frame: bytes of the largest frame the kernel may send.

    Attributes:
        theirs: the kernel's end, to be closed here once the kernel has it.
    """

    def __init__(self, max_frame: int) -> None:
        """Make both ends."""
        self._ours, self.theirs = socket.socketpair()
        self._decoder = wire.Decoder(max_frame, frozenset((Kind.RPC, Kind.READY)))
        self._outbox: deque[memoryview] = deque()
        self._unread = 0

    def fileno(self) -> int:
        """Return the descriptor of this end, or -1 once it is closed."""
        return self._ours.fileno()

    @property
    def has_more(self) -> bool:
        """Whether something waits for room to be sent."""
        return bool(self._outbox)

    @property
    def may_call(self) -> bool:
        """Whether what the kernel sends should be read."""
        return self._unread <= MAX_UNREAD

    def first(self, within_s: float) -> bytes:
        """Return the payload of the very first frame, which comes in one small write; nothing if it does not come."""
        self._ours.settimeout(within_s)
        try:
            header = self._ours.recv(wire.HEADER.size)
            return self._ours.recv(wire.HEADER.unpack(header)[0]) if header else b""
        except TimeoutError:
            return b""
        finally:
            self._ours.settimeout(None)

    def receive(self) -> list[Frame] | None:
        """Return the frames that have come, or None when the kernel closed its end or broke the protocol."""
        try:
            data = self._ours.recv(READ_SIZE, socket.MSG_DONTWAIT)
            return list(self._decoder.feed(data)) if data else None
        except BlockingIOError:
            return []
        except (OSError, wire.WireError):
            return None

    def send(self, data: bytes) -> None:
        """Send ``data`` as far as there is room, and keep the rest for :meth:`flush`."""
        self._outbox.append(memoryview(data))
        self._unread += len(data)
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as there is room now."""
        try:
            while self._outbox:
                sent = self._ours.send(self._outbox[0], socket.MSG_DONTWAIT)
                self._unread -= sent
                self._outbox[0] = self._outbox[0][sent:]
                if not self._outbox[0]:
                    self._outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._forget()  # the kernel closed its end; its death is reported on its own

    def close(self) -> None:
        """Close this end; what was kept is lost."""
        self._ours.close()
        self._forget()

    def _forget(self) -> None:
        self._outbox.clear()
        self._unread = 0
