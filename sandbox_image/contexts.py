"""The contexts in a kernel: found in their file, and put into the namespace of the REPL.

``context`` is the last one. Where there are several, ``contexts`` lists them, oldest first. Like all of the kernel's
process this is in the hands of model code, and trusted by nobody.
"""

from __future__ import annotations

import json
import mmap
import os
from itertools import accumulate, pairwise, zip_longest
from typing import Any, NamedTuple

from sandbox_image.context_file import TRAILER


class _Part(NamedTuple):
    """Where one context lies in the file, in bytes, and what became of it."""

    start: int
    texts_end: int
    layout_end: int
    kind: Any = None
    length: int = 0

    def made(self, value: Any) -> _Part:
        return self._replace(kind=type(value), length=len(value))

    def is_of(self, value: Any) -> bool:
        return type(value) is self.kind and len(value) == self.length


class Contexts:
    """What the host has sent into this box.

    Args:
        descriptor: of the file (:mod:`sandbox_image.context_file`).
        namespace: of the REPL.
    """

    def __init__(self, descriptor: int, namespace: dict[str, Any]) -> None:
        """Begin with none."""
        self._descriptor = descriptor
        self._namespace = namespace
        self._parts: list[_Part] = []
        self._end = 0

    def load_new(self) -> bool:
        """Load what came since the last time; return whether anything did.

        Raises:
            ValueError: what is there is no context: a cell wrote to the file.
        """
        size = os.fstat(self._descriptor).st_size
        if size == self._end:
            return False
        self.load(size)
        self._namespace.pop("Final", None)  # it answered what was asked of the contexts before
        return True

    def load(self, end: int) -> list[str]:
        """Put the contexts that lie in the file up to ``end`` into the namespace.

        Those that are there already are not made again, unless a cell put something else in their place.

        Returns:
            The names of the host's functions that came with them.

        Raises:
            ValueError: it holds anything else.
        """
        tools: list[str] = []
        parts, values = [], []
        for part in self._between(self._end, end):
            layout, value = self._read(part)
            tools += layout.get("tools", ())
            if layout["kind"] != "none":
                parts.append(part.made(value))
                values.append(value)
        if values:
            values = [*self._earlier(), *values]
            self._namespace["context"] = values[-1]
        if len(values) > 1:
            self._namespace["contexts"] = values
        self._parts += parts
        self._end = end
        return tools

    def _between(self, start: int, end: int) -> list[_Part]:
        """Return the parts of the file between two ends of parts, oldest first."""
        found = []
        while end > start:
            trailer = os.pread(self._descriptor, TRAILER.size, max(end - TRAILER.size, 0))
            texts, layout = TRAILER.unpack(trailer) if len(trailer) == TRAILER.size else (end, end)
            begin = end - TRAILER.size - layout - texts
            if begin < start:
                raise ValueError("the file of the contexts was changed by a cell")
            found.append(_Part(begin, begin + texts, begin + texts + layout))
            end = begin
        return found[::-1]

    def _earlier(self) -> list[Any]:
        """Return the contexts that were loaded before, as the namespace has them."""
        there = self._namespace.get("contexts") if len(self._parts) > 1 else [self._namespace.get("context")]
        held = there[: len(self._parts)] if type(there) is list else []
        return [value if part.is_of(value) else self._read(part)[1] for part, value in zip_longest(self._parts, held)]

    def _read(self, part: _Part) -> tuple[dict[str, Any], Any]:
        """Return the layout of a context, and what it becomes.

        The file is mapped, not read: decoding makes the only copy. Where the layout says ``lazy``, there is no copy at
        all (:mod:`sandbox_image.lazy`).
        """
        mapped = mmap.mmap(self._descriptor, part.layout_end, prot=mmap.PROT_READ)
        layout = json.loads(mapped[part.texts_end : part.layout_end])
        if "lazy" in layout:
            return layout, _lazy(mapped, part, layout)
        with mapped, memoryview(mapped) as view:
            return layout, _decoded(view, part, layout)


def _spans(part: _Part, layout: dict[str, Any]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(layout["sizes"], initial=part.start)))


def _decoded(view: memoryview, part: _Part, layout: dict[str, Any]) -> Any:
    if layout["kind"] == "none":
        return None
    if layout["kind"] == "text":
        return str(view[part.start : part.texts_end], "utf-8")
    texts = [str(view[start:end], "utf-8") for start, end in _spans(part, layout)]
    return texts if layout["kind"] == "list" else dict(zip(layout["names"], texts, strict=True))


def _lazy(mapped: mmap.mmap, part: _Part, layout: dict[str, Any]) -> Any:
    from sandbox_image.lazy import LazyDict, LazyList, LazyText

    if layout["kind"] == "text":
        return LazyText(mapped, part.start, part.texts_end, layout["lazy"])
    documents = LazyList(mapped, _spans(part, layout), layout["lazy"])
    return documents if layout["kind"] == "list" else LazyDict(layout["names"], documents)
