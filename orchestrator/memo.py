"""Answers of one run by what was asked, so that a sub-call that repeats another costs nothing (``models.memo``)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from orchestrator.models.base import Model, ModelRequest

# Characters of answers that are kept; the least recently used ones go first.
MOST_CHARACTERS: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Known:
    """An answer that was paid for.

    Attributes:
        call: number of the sub-call it came of.
        text: the answer.
    """

    call: int
    text: str


class Memo:
    """The answers of one run. Sub-calls that are identical and under way at once are asked one after another.

    Only whole answers are kept: one that was cut, refused or failed is asked for again.
    """

    def __init__(self, most_characters: int = MOST_CHARACTERS) -> None:
        self._most = most_characters
        self._size = 0
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._asking: dict[bytes, tuple[anyio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def turn(self, model: Model, request: ModelRequest) -> AsyncIterator[Slot]:
        """Wait for whoever asks the same, and yield its place in the memo."""
        key = _key(model, request)
        lock, holders = self._asking.setdefault(key, (anyio.Lock(), []))
        holders.append(None)
        try:
            async with lock:
                yield Slot(self, key)
        finally:
            holders.pop()
            if not holders:
                del self._asking[key]

    def get(self, key: bytes) -> Known | None:
        """Return what is known; it is then the most recently used."""
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def put(self, key: bytes, known: Known) -> None:
        """Keep an answer, and forget others where there are too many."""
        self._known[key] = known
        self._size += len(known.text)
        while self._size > self._most:
            _, forgotten = self._known.popitem(last=False)
            self._size -= len(forgotten.text)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one question in a memo."""

    memo: Memo
    key: bytes

    @property
    def known(self) -> Known | None:
        """The answer, if there is one."""
        return self.memo.get(self.key)

    def keep(self, known: Known) -> None:
        """Keep the answer."""
        self.memo.put(self.key, known)


def _key(model: Model, request: ModelRequest) -> bytes:
    digest = hashlib.sha256(f"{model.name}\0{request.max_tokens}\0{request.system}".encode())
    for message in request.messages:
        digest.update(f"\0{message.role}\0{len(message.text)}\0{message.text}".encode("utf-8", "surrogatepass"))
    return digest.digest()
