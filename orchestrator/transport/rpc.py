"""Calls that come out of the box, and what goes back in: types and codec, no I/O.

On the wire a call is one message (:mod:`sandbox_image.wire` cuts it into frames): a length-prefixed JSON head and a raw
UTF-8 body, so that a prompt or an answer of many megabytes is never escaped, nested or parsed as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox_image import wire

_ID = re.compile(r"[0-9a-f]{32}")
_METHOD = re.compile(r"[a-z_]{1,32}")


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


def decode_call(message: bytes | bytearray, cell: int | None) -> RpcCall:
    """Turn one whole message from the box into a call.

    Raises:
        WireError: it is not a call; nothing in it was believed.
    """
    head, body = wire.unpack_message(message)
    if set(head) - {"id", "method", "params"}:
        raise wire.WireError("rpc call with unknown fields")
    identity, method, params = head.get("id"), head.get("method"), head.get("params", {})
    if not (isinstance(identity, str) and _ID.fullmatch(identity)):
        raise wire.WireError("rpc call without a valid id")
    if not (isinstance(method, str) and _METHOD.fullmatch(method) and isinstance(params, dict)):
        raise wire.WireError("rpc call without a method")
    try:
        text = str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise wire.WireError("rpc body is not UTF-8") from error
    return RpcCall(identity, method, params, text, cell)


def encode_reply(identity: str, reply: RpcReply) -> bytes:
    """Return the message that answers call ``identity``."""
    return wire.pack_message({"id": identity, "result": reply.result}, reply.body.encode("utf-8", "replace"))


def encode_refusal(identity: str, refusal: RpcRefusal) -> bytes:
    """Return the message that refuses call ``identity``."""
    error = {"reason": refusal.reason, "limit": refusal.limit, "message": refusal.message}
    return wire.pack_message({"id": identity, "error": error}, b"")
