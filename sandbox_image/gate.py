"""The gate every cell's output passes on its way out of the box: capped, cut in the middle, reduced to what is used.

Pure: message parts in, message parts out. It runs in the supervisor, where the model's code cannot reach it. Nothing a
kernel can send raises out of it.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from sandbox_image import wire

DELIMITER = b"<IDS|MSG>"
# Rich results and errors a cell; model code seldom displays more than a handful. Those of one kind share one allowance.
MAX_MESSAGES = 500
# Pieces of one stream that leave as they come. The host parses each, so what a cell that flushes every character prints
# beyond that is held here, like the end of a long output.
MAX_PIECES = 1000
# A cell that printed this many times its allowance is a flood: it is stopped rather than drained.
FLOOD_FACTOR = 512
_SMALL = 512


class _Stream:
    """Head and tail of one output stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head_left = limit * 2 // 3
        self._sent = self._pieces = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self.seen = 0

    def take(self, text: str) -> str:
        """Return the part of ``text`` that still belongs to the head; keep the last of the rest."""
        self.seen += len(text)
        self._pieces += 1
        if self._pieces > MAX_PIECES:
            self._head_left = 0
        head, rest = text[: self._head_left], text[self._head_left :]
        self._head_left -= len(head)
        self._sent += len(head)
        if rest:
            # What the head did not use is the tail's; the head is closed, so this no longer changes.
            room = self._limit - self._sent
            rest = rest[-room:]
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= room:
                self._tail_size -= len(self._tail.popleft())
        return head

    def cut(self) -> dict[str, Any] | None:
        """Return what was held back: how many characters are lost for good, and the tail."""
        if not self._tail:
            return None
        tail = "".join(self._tail)[self._sent - self._limit :]
        return {"tail": tail, "lost": self.seen - self._sent - len(tail)}


class CellGate:
    """Counts and cuts the output of one cell at a time.

    Args:
        limit: characters that may leave of each of stdout and stderr, of all that is displayed, of all results, and of
            all errors.
    """

    def __init__(self, limit: int) -> None:
        """Start with no cell open: everything is dropped."""
        self._limit = limit
        self._id = self._reply = ""
        self._reset()

    def _reset(self) -> None:
        self._streams = {"stdout": _Stream(self._limit), "stderr": _Stream(self._limit)}
        self._left = dict.fromkeys(("execute_result", "display_data", "error"), self._limit)
        self._messages = 0
        self._dropped = 0
        self._flooded = False
        self._shortened = False
        self.idle = False

    def open(self, message_id: str, request: str) -> None:
        """Begin the cell, or other exchange, whose request has this id and type."""
        self._id = message_id
        self._reply = request.replace("_request", "_reply")
        self._reset()

    def close(self) -> dict[str, Any] | None:
        """End the cell; return what was cut from its output, if anything was."""
        cuts = {name: cut for name, stream in self._streams.items() if (cut := stream.cut())}
        facts = {"id": self._id, "dropped": self._dropped, "shortened": self._shortened, **cuts}
        self._id = ""
        self._reset()
        return facts if len(facts) > 3 or facts["dropped"] or facts["shortened"] else None  # noqa: PLR2004 - a stream

    def take_flood(self) -> bool:
        """Whether the open cell has become a flood; true once a cell."""
        if self._flooded or sum(stream.seen for stream in self._streams.values()) < self._limit * FLOOD_FACTOR:
            return False
        self._flooded = True
        return True

    def reply(self, parts: list[bytes]) -> list[bytes] | None:
        """Return the reply to the open request, reduced to what the host reads, or None if it is something else."""
        try:
            header, parent, content = _open(parts)
            if header["msg_type"] != self._reply or parent["msg_id"] != self._id or not self._id:
                return None
            if content["status"] not in ("ok", "error", "aborted"):
                return None
            body = {"status": content["status"], "execution_count": _count(content.get("execution_count"))}
            if content["status"] == "error":
                body |= self._error(content, self._limit)
            return _close(header, parent, body)
        except (wire.WireError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def iopub(self, parts: list[bytes]) -> list[bytes] | None:
        """Return what may leave of an iopub message, or None."""
        try:
            header, parent, content = _open(parts[1:] if parts and parts[0] != DELIMITER else parts)
            if parent.get("msg_id") != self._id or not self._id:
                return None  # a thread or child of an earlier cell; it has no one to speak to
            kind = header["msg_type"]
            if kind == "status":
                self.idle = self.idle or content["execution_state"] == "idle"
                return None
            body = self._body(kind, content)
            return None if body is None else _close(header, parent, body)
        except (wire.WireError, KeyError, TypeError, ValueError, AttributeError):
            self._dropped += 1
            return None

    def _body(self, kind: str, content: dict[str, Any]) -> dict[str, Any] | None:
        if kind == "stream":
            head = self._streams[content["name"]].take(_text(content["text"]))
            return {"name": content["name"], "text": head} if head else None
        if kind not in ("execute_result", "display_data", "error"):
            return None
        self._messages += 1
        if self._messages > MAX_MESSAGES or not self._left[kind]:
            self._dropped += 1
            return None
        if kind == "error":
            body = self._error(content, self._left[kind])
            self._left[kind] = max(self._left[kind] - sum(map(len, (body["evalue"], *body["traceback"]))), 0)
            return body
        plain = self._cut(content["data"].get("text/plain", ""), self._left[kind])
        self._left[kind] = max(self._left[kind] - len(plain), 0)
        count = _count(content.get("execution_count"))
        return {"data": {"text/plain": plain}, "metadata": {}, "execution_count": count}

    def _error(self, content: dict[str, Any], limit: int) -> dict[str, Any]:
        trace = "\n".join(_text(line) for line in content["traceback"])
        return {
            "ename": _text(content["ename"])[:_SMALL],
            "evalue": self._cut(content["evalue"], limit // 4),
            "traceback": [self._cut(trace, limit)],
        }

    def _cut(self, value: Any, limit: int) -> str:
        text = cut(_text(value), limit)
        self._shortened = self._shortened or text is not value
        return text


def _open(parts: list[bytes]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    if len(parts) < 6 or parts[0] != DELIMITER:  # noqa: PLR2004 - delimiter, signature, and four dictionaries
        raise wire.WireError("not a Jupyter message")
    return wire.loads(parts[2]), wire.loads(parts[3]), wire.loads(parts[5])


def _close(header: dict[str, Any], parent: dict[str, Any], content: dict[str, Any]) -> list[bytes]:
    # Only types and the request's own id are read on the host; ids, dates, user names and whatever else a kernel put
    # there stay behind.
    short = {"msg_id": "", "msg_type": _text(header["msg_type"])[:_SMALL], "version": "5.3"}
    frames: tuple[dict[str, Any], ...] = (short, {"msg_id": parent["msg_id"]}, {}, content)
    return [DELIMITER, b"", *map(pack, frames)]


def pack(facts: dict[str, Any]) -> bytes:
    """Return ``facts`` as JSON of at most 6 bytes a character; lone surrogates, which UTF-8 lacks, become ``?``."""
    return json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise wire.WireError("text expected")
    return value


def cut(text: str, limit: int) -> str:
    """Return ``text``, or, where it is longer than ``limit``, its head and tail with the cut marked between.

    The mark gives no count of what is missing: ``text`` may have been cut before.
    """
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[… cut here: longer than {limit:,} characters …]\n{text[head - limit :]}"
