"""The wire between the host and a box: bytes in, frames out, and no I/O.

Both sides use this one file; it imports the standard library alone. ``PROTOCOL.md`` beside it says who sends what when.
A frame is a 5-byte header (payload length, big-endian unsigned 32 bits; kind, 8 bits) and the payload. The declared
length is refused before anything is buffered. A violation poisons the decoder: what follows is never looked at.

Invariant (fuzzed): any bytes, in any chunking, give frames or exactly one :class:`WireError`, never another exception.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

PROTOCOL_VERSION = 3

HEADER = struct.Struct(">IB")
_U32 = struct.Struct(">I")

# A text prompt of a sub-call rides in one frame or several; 1 MiB keeps a frame within one pipe-sized burst of reads
# while the cost of a header stays below one part in 100,000.
CHUNK = 1 << 20
MAX_PARTS = 32  # a Jupyter message has 6 parts and, with rich output, a few buffers
MAX_DEPTH = 32  # notebook metadata nests 4 deep; model-made JSON seldom 10
# An empty object takes 3 bytes on the wire and 64 in memory. What both sides say has some hundred values; the lengths
# of a list of documents, the longest of all, are a few thousand in a head.
MAX_VALUES = 10_000
MAX_HEAD = 64 * 1024  # the JSON head of a message carries facts, never texts
MAX_INT_DIGITS = 20  # 64 bits


class WireError(Exception):
    """What came over the wire is not what the protocol allows."""


class Kind(IntEnum):
    """What a frame is. Below 16: towards the box. From 32: out of it. Between: both ways."""

    CONTEXT = 1
    CONTEXT_END = 2
    INTERRUPT = 3
    RESTART = 4
    KERNEL = 16
    RPC = 17
    HELLO = 32
    READY = 33
    CUT = 34
    DIED = 35
    FAULT = 36
    BOUND = 37


class Channel(IntEnum):
    """The kernel's channels that are carried.

    Not stdin, so nobody can be asked for input; nor control, since its thread dies with whoever holds the GIL: a kernel
    is interrupted and killed by signals.
    """

    SHELL = 1
    IOPUB = 2


class Frame(NamedTuple):
    """One frame."""

    kind: Kind
    payload: bytes


class Decoder:
    """Cuts a byte stream into frames.

    Args:
        max_payload: the largest payload accepted, in bytes.
        allowed: the kinds the peer may send; any other is a violation.
        smaller: kinds whose payload is smaller than that, and how large it is at most.
    """

    def __init__(self, max_payload: int, allowed: frozenset[Kind], smaller: Mapping[Kind, int] | None = None) -> None:
        """Start with an empty buffer."""
        most = dict.fromkeys(allowed, max_payload) | dict(smaller or {})
        self._most: dict[int, int] = {int(kind): min(size, max_payload) for kind, size in most.items()}
        self._buffer = bytearray()
        self._poisoned = False

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished frame; never more than its kind may have and one read."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes.

        Raises:
            WireError: a header declares an unknown kind or too large a payload, or the decoder is poisoned already.
        """
        if self._poisoned:
            raise WireError("the stream was already broken")
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER.size:
            length, number = HEADER.unpack_from(buffer)
            if length > self._most.get(number, -1):
                self._poisoned = True
                buffer.clear()
                raise WireError(f"frame of kind {number} and {length} bytes refused")
            end = HEADER.size + length
            if len(buffer) < end:
                return
            with memoryview(buffer) as view:
                payload = bytes(view[HEADER.size : end])
            del buffer[:end]
            yield Frame(Kind(number), payload)


class Assembler:
    """Joins the fragments of messages; fragments of one direction never interleave.

    Args:
        max_message: the largest message accepted, in bytes.
    """

    def __init__(self, max_message: int) -> None:
        """Start between messages."""
        self._max_message = max_message
        self._parts = bytearray()

    def feed(self, fragment: bytes) -> bytes | bytearray | None:
        """Take one fragment; return the message it completes, or None.

        Raises:
            WireError: the fragment is malformed or the message too large. The message is forgotten.
        """
        try:
            last = is_last(fragment)
        except WireError:
            self.reset()
            raise
        if len(self._parts) + len(fragment) - 1 > self._max_message:
            self.reset()
            raise WireError(f"message of more than {self._max_message} bytes")
        if last and not self._parts:
            return fragment[1:]
        with memoryview(fragment) as view:
            self._parts += view[1:]
        if not last:
            return None
        message, self._parts = self._parts, bytearray()
        return message

    def reset(self) -> None:
        """Forget an unfinished message: its sender is gone."""
        self._parts = bytearray()


def is_last(fragment: bytes) -> bool:
    """Return whether ``fragment`` ends its message; what it carries follows its first byte.

    Raises:
        WireError: it is malformed, or neither carries nor ends anything and so could be repeated for ever.
    """
    if not fragment or fragment[0] > 1 or fragment == b"\x00":
        raise WireError("malformed fragment")
    return fragment[0] == 1


def encode(kind: Kind, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """Return one frame as bytes."""
    return b"".join((HEADER.pack(len(payload), kind), payload))


def encode_fragments(message: bytes | bytearray | memoryview, chunk: int = CHUNK) -> Iterator[bytes]:
    """Yield the RPC frames that carry ``message``."""
    view = memoryview(message)
    for start in range(0, max(len(view), 1), chunk):
        part = view[start : start + chunk]
        last = b"\x01" if start + chunk >= len(view) else b"\x00"
        yield b"".join((HEADER.pack(len(part) + 1, Kind.RPC), last, part))


def pack_parts(channel: Channel, parts: Sequence[bytes]) -> bytes:
    """Return the payload of a KERNEL frame: channel, number of parts, and each part behind its length."""
    packed = [bytes((channel, len(parts)))]
    for part in parts:
        packed += (_U32.pack(len(part)), part)
    return b"".join(packed)


def unpack_parts(payload: bytes) -> tuple[Channel, list[bytes]]:
    """Return channel and parts of a KERNEL frame.

    Raises:
        WireError: lengths that do not add up, too many parts, an unknown channel.
    """
    if len(payload) < 2 or payload[1] > MAX_PARTS:  # noqa: PLR2004 - channel and count
        raise WireError("kernel message with a malformed envelope")
    try:
        channel = Channel(payload[0])
    except ValueError as error:
        raise WireError("kernel message on an unknown channel") from error
    parts, position = [], 2
    for _ in range(payload[1]):
        if position + 4 > len(payload):
            raise WireError("kernel message cut short")
        (length,) = _U32.unpack_from(payload, position)
        position += 4
        if position + length > len(payload):
            raise WireError("kernel message cut short")
        parts.append(payload[position : position + length])
        position += length
    if position != len(payload):
        raise WireError("kernel message with bytes left over")
    return channel, parts


def pack_message(head: dict[str, Any], body: bytes) -> bytes:
    """Return a message: the length of its JSON head, the head, and the raw body."""
    encoded = _ENCODER.encode(head).encode()
    return b"".join((_U32.pack(len(encoded)), encoded, body))


def unpack_message(message: bytes | bytearray) -> tuple[dict[str, Any], memoryview]:
    """Return head and body of a message.

    Raises:
        WireError: the head is missing, too large, or not a strict JSON object.
    """
    unpacked = unpack_head(message)
    if unpacked is None:
        raise WireError("message with a malformed head")
    head, size = unpacked
    return head, memoryview(message)[size:]


def unpack_head(message: bytes | bytearray) -> tuple[dict[str, Any], int] | None:
    """Return the head of the message that begins with these bytes, and where its body begins; None if more are needed.

    Raises:
        WireError: the head is too large, or not a strict JSON object.
    """
    if len(message) < _U32.size:
        return None
    (length,) = _U32.unpack_from(message)
    if length > MAX_HEAD:
        raise WireError("message with a malformed head")
    size = _U32.size + length
    if len(message) < size:
        return None
    head = loads(bytes(message[_U32.size : size]))
    if not isinstance(head, dict):
        raise WireError("message head is not an object")
    return head, size


def loads(data: bytes | str) -> Any:
    """Parse JSON from a stranger: UTF-8, no NaN or infinity, 64-bit integers, unique keys, bounded nesting and number.

    Raises:
        WireError: it is anything else.
    """
    try:
        text = data if isinstance(data, str) else str(data, "utf-8")
        _check_values(text)
        value = _DECODER.decode(text)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"malformed JSON: {type(error).__name__}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise WireError("JSON nested too deeply")
    return value


def _check_values(text: str) -> None:
    # What is in a text counts for nothing; it is looked at twice only where there is much.
    if _values(text) > MAX_VALUES and _values(_STRING.sub("", text)) > MAX_VALUES:
        raise WireError("JSON of too many values")


def _values(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [
            item
            for parent in level
            if isinstance(parent, (dict, list))
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth


def _integer(text: str) -> int:
    if len(text) > MAX_INT_DIGITS or not -(2**63) <= int(text) < 2**64:
        raise WireError("integer of more than 64 bits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise WireError("number out of range")
    return value


def _constant(text: str) -> Any:
    raise WireError(f"{text} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise WireError("an object with a key twice")
    return value


# Made once: ``json.dumps`` makes an encoder for every text that is not written its own way.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
# Matches from every quotation mark on, ended or not: no input takes quadratic time.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
