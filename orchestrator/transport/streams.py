"""What a byte stream is to this package, and two of them joined in memory for tests of our own logic."""

from __future__ import annotations

import math
from typing import Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream


class ByteStream(Protocol):
    """An ordered stream of bytes in both directions."""

    async def receive(self) -> bytes:
        """Return the next bytes, or an empty value once the peer has closed. One caller at a time."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``. One caller at a time.

        Raises:
            anyio.BrokenResourceError: the peer is gone.
        """

    async def aclose(self) -> None:
        """Close both directions; waiting receivers get the end of the stream."""


class MemoryByteStream:
    """One end of a pair made by :func:`memory_pair`."""

    def __init__(self, outgoing: MemoryObjectSendStream[bytes], incoming: MemoryObjectReceiveStream[bytes]) -> None:
        """Join two object streams; use :func:`memory_pair`."""
        self._outgoing = outgoing
        self._incoming = incoming

    async def receive(self) -> bytes:
        """Return what the other end sent, in its pieces."""
        try:
            return await self._incoming.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        """Hand ``data`` to the other end."""
        try:
            await self._outgoing.send(bytes(data))
        except anyio.ClosedResourceError as error:
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close this end."""
        await self._outgoing.aclose()
        self._incoming.close()


def memory_pair() -> tuple[MemoryByteStream, MemoryByteStream]:
    """Return two connected streams."""
    to_right, from_left = anyio.create_memory_object_stream[bytes](math.inf)
    to_left, from_right = anyio.create_memory_object_stream[bytes](math.inf)
    return MemoryByteStream(to_right, from_right), MemoryByteStream(to_left, from_left)
