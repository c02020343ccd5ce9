"""Calls that come out of the box, and what goes back in: types and codec, no I/O.

On the wire a call is one message (:mod:`sandbox_image.wire` cuts it into frames): a length-prefixed JSON head and a raw
UTF-8 body, so that a prompt or an answer of many megabytes is never escaped, nested or parsed as JSON. The head comes
first, so a call that will be refused is known before its body has arrived, and nothing of that body is kept.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox_image import wire

_ID = re.compile(r"[0-9a-f]{32}")
_METHOD = re.compile(r"[a-z_]{1,32}")
# What a call may carry whose method is not known to carry text.
_OTHER_BODY = 4096


@dataclass(frozen=True, slots=True)
class RpcCall:
    """One call from the box: checked in shape, trusted in nothing.

    Attributes:
        id: 32 hexadecimal digits chosen by the guest; unique within its cell or refused.
        method: lower-case word; the broker decides whether it means anything.
        params: JSON values of the head.
        body: text of the call: the prompt, the answer, the child's context.
        cell: number of the cell that is open on the host, or None when none is. Never taken from the guest.
    """

    id: str
    method: str
    params: dict[str, Any]
    body: str
    cell: int | None


@dataclass(frozen=True, slots=True)
class RpcReply:
    """The answer to a call: small JSON facts and a text."""

    result: dict[str, Any] = field(default_factory=dict)
    body: str = ""


class RpcRefusal(Exception):  # noqa: N818 - named for what the guest sees: QueryRefused
    """A call is refused; this is all the box learns about why.

    Attributes:
        reason: stable word: a budget's key, ``invalid_params``, ``no_open_cell``, ``model_unavailable``, …
        limit: what would have been allowed, where that is a number.
        message: one plain sentence without host paths, model names or keys.
    """

    def __init__(self, reason: str, message: str, *, limit: float | None = None) -> None:
        """Hold the three facts."""
        super().__init__(message)
        self.reason = reason
        self.limit = limit
        self.message = message


RpcHandler = Callable[[RpcCall], Awaitable[RpcReply]]


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """How much text a call of one method may carry.

    Attributes:
        bytes: of UTF-8.
        reason: of the refusal when it has more.
    """

    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call that has arrived whole.

    Attributes:
        id: as in :class:`RpcCall`.
        method: likewise.
        params: likewise.
        body: its text in UTF-8, unchecked; empty when it is refused.
        refusal: why it is not to be answered, if it is not.
    """

    id: str
    method: str
    params: dict[str, Any]
    body: bytes | bytearray
    refusal: RpcRefusal | None

    def decode(self, cell: int | None) -> RpcCall:
        """Return the call.

        Raises:
            WireError: the body is not UTF-8.
        """
        try:
            return RpcCall(self.id, self.method, self.params, str(self.body, "utf-8"), cell)
        except UnicodeDecodeError as error:
            raise wire.WireError("rpc body is not UTF-8") from error


class Inbox:
    """Joins fragments into calls, keeping no byte of one that is refused.

    Args:
        max_message: bytes of the largest body there is; more is a violation, whatever the method.
        limits: what calls may carry, by method.
        admit: asked when a call's head has arrived, and again as its body grows, with the bytes of body so far; returns
            why there is no place for it, or None.
    """

    def __init__(
        self, max_message: int, limits: Mapping[str, BodyLimit], admit: Callable[[int], RpcRefusal | None]
    ) -> None:
        """Start between calls."""
        self._max_message = max_message + wire.MAX_HEAD
        self._limits = limits
        self._admit = admit
        self.reset()

    def reset(self) -> None:
        """Forget an unfinished call: its sender is gone."""
        self._parts = bytearray()
        self._head: tuple[str, str, dict[str, Any]] | None = None
        self._refusal: RpcRefusal | None = None
        self._seen = 0

    @property
    def partial(self) -> bool:
        """Whether a call has begun to arrive and is not to be forgotten already."""
        return bool(self._seen) and self._refusal is None

    @property
    def buffered(self) -> int:
        """Bytes held of an unfinished call."""
        return len(self._parts)

    def abandon(self, refusal: RpcRefusal) -> None:
        """Let go of an unfinished call's body: it will be refused, should it ever be finished."""
        if self.partial:
            self._refusal = refusal
            if self._head is not None:
                self._parts = bytearray()

    def feed(self, fragment: bytes) -> Arrival | None:
        """Take one fragment; return the call it completes, or None.

        Raises:
            WireError: it is not a call, or longer than any may be; nothing in it was believed.
        """
        last = wire.is_last(fragment)
        self._seen += len(fragment) - 1
        if self._seen > self._max_message:
            raise wire.WireError("rpc call longer than any may be")
        if self._refusal is None or self._head is None:
            with memoryview(fragment) as view:
                self._parts += view[1:]
            self._judge()
        if not last:
            return None
        if self._head is None:
            raise wire.WireError("rpc call without a head")
        arrival = Arrival(*self._head, self._parts, self._refusal)
        self.reset()
        return arrival

    def _judge(self) -> None:
        """Read the head once it is there; let go of the body as soon as it will not be wanted."""
        if self._head is None:
            unpacked = wire.unpack_head(self._parts)
            if unpacked is None:
                return
            self._head = _head(unpacked[0])
            del self._parts[: unpacked[1]]
        method = self._head[1]
        limit = self._limits.get(method, BodyLimit(_OTHER_BODY, "invalid_params"))
        if len(self._parts) > limit.bytes:
            message = f"{method} takes at most {limit.bytes:,} bytes of text"
            self._refusal = RpcRefusal(limit.reason, message, limit=limit.bytes)
        self._refusal = self._refusal or self._admit(len(self._parts))
        if self._refusal is not None:
            self._parts = bytearray()


def _head(head: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if set(head) - {"id", "method", "params"}:
        raise wire.WireError("rpc call with unknown fields")
    identity, method, params = head.get("id"), head.get("method"), head.get("params", {})
    if not (isinstance(identity, str) and _ID.fullmatch(identity)):
        raise wire.WireError("rpc call without a valid id")
    if not (isinstance(method, str) and _METHOD.fullmatch(method) and isinstance(params, dict)):
        raise wire.WireError("rpc call without a method")
    return identity, method, params


def encode_reply(identity: str, reply: RpcReply) -> bytes:
    """Return the message that answers call ``identity``."""
    return wire.pack_message({"id": identity, "result": reply.result}, reply.body.encode("utf-8", "replace"))


def encode_refusal(identity: str, refusal: RpcRefusal) -> bytes:
    """Return the message that refuses call ``identity``."""
    error = {"reason": refusal.reason, "limit": refusal.limit, "message": refusal.message}
    return wire.pack_message({"id": identity, "error": error}, b"")
