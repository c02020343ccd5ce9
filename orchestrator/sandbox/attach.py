"""The engine's attach stream as a :class:`~orchestrator.transport.streams.ByteStream`.

Without a terminal the engine multiplexes: every piece of output comes behind 8 bytes, of which the first says which
stream it is (1 stdout, 2 stderr) and the last four its length (Engine API, *ContainerAttach*, "Stream format").
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.lowlevel

_HEADER = struct.Struct(">BxxxI")
_STDOUT, _STDERR = 1, 2
_READ = 1 << 18
_STDERR_KEPT = 8192


class AttachStream:
    """The stdin and stdout of a container; what its supervisor says on stderr is kept for error messages.

    The headers are the engine's, not the box's, so a malformed one means the engine failed: the stream just ends.
    """

    def __init__(self, raw: socket.socket) -> None:
        """Take over a connected socket."""
        raw.settimeout(0)
        self._raw = raw
        self._buffer = bytearray(_READ)
        self._header = bytearray()
        self._left = 0
        self._kind = _STDOUT
        self._stderr = bytearray()
        self._closed = False
        self._users = 0

    @property
    def stderr(self) -> str:
        """The end of what the supervisor wrote to stderr: nothing, unless it failed."""
        return self._stderr.decode("utf-8", "replace")

    async def receive(self) -> bytes:
        """Return the next bytes of stdout."""
        loop = asyncio.get_running_loop()
        with self._in_use():
            while not self._closed:
                # What is there already is read without waiting: a flood would keep every deadline from being noticed.
                await anyio.lowlevel.checkpoint()
                try:
                    size = await loop.sock_recv_into(self._raw, self._buffer)
                except OSError:
                    size = 0
                if size == 0:
                    break
                data = self._demultiplex(size)
                if data:
                    return data
        return b""

    def _demultiplex(self, size: int) -> bytes:
        found: list[bytes] = []
        with memoryview(self._buffer) as view:
            position = 0
            while position < size:
                if self._left == 0:
                    missing = _HEADER.size - len(self._header)
                    self._header += view[position : min(position + missing, size)]
                    position = min(position + missing, size)
                    if len(self._header) == _HEADER.size:
                        self._kind, self._left = _HEADER.unpack(self._header)
                        self._header.clear()
                    continue
                end = min(position + self._left, size)
                if self._kind == _STDERR:
                    self._stderr = (self._stderr + view[position:end])[-_STDERR_KEPT:]
                else:
                    found.append(bytes(view[position:end]))
                self._left -= end - position
                position = end
        return found[0] if len(found) == 1 else b"".join(found)

    async def send(self, data: bytes) -> None:
        """Write all of ``data`` to stdin."""
        with self._in_use():
            if self._closed:
                raise anyio.BrokenResourceError
            try:
                await asyncio.get_running_loop().sock_sendall(self._raw, data)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close the connection: to the supervisor this is the end of its input, and so of the box."""
        self.close()

    def close(self) -> None:
        """Do so without an event loop."""
        if not self._closed:
            with self._in_use(), suppress(OSError):  # the engine may have closed it first
                self._closed = True
                self._raw.shutdown(socket.SHUT_RDWR)  # wakes who waits to receive or send, which closing would not

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the descriptor until the last to use it is done: the event loop never hears of one that was closed."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._closed and not self._users:
                self._raw.close()
