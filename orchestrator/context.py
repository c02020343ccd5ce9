"""The prompt of a run: what it may be, what is told of it, and how it travels into the box."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

from orchestrator.errors import ContextError

Context = str | list[str] | dict[str, str]

# Encoding a piece at a time keeps the second copy small, whatever the context's size; as UTF-8 it has at most 1 MiB,
# which every policy's frames can carry.
PIECE = 1 << 18
PREFIX_CHARS = 500
NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """Constant-size facts of a context: all a root model is told of it.

    Attributes:
        kind: ``text``, ``list`` (of texts) or ``dict`` (name to text).
        characters: length of all texts together.
        bytes: their length as UTF-8.
        lines: their lines.
        sha256: of all texts together as UTF-8; what a resumed run checks.
        documents: how many texts; 1 for ``text``.
        prefix: the beginning of the first text.
        names: the first names of a ``dict``.
        smallest: characters of the shortest document.
        median: characters of the middle document.
        largest: characters of the longest document.
        layout: hash of how the texts are divided, and of their names; empty for ``text``.
    """

    kind: Literal["text", "list", "dict"]
    characters: int
    bytes: int
    lines: int
    sha256: str
    documents: int
    prefix: str
    names: tuple[str, ...]
    smallest: int
    median: int
    largest: int
    layout: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the journal."""
        return asdict(self)


def check(context: object) -> Context:
    """Return ``context`` if it is one.

    Raises:
        ContextError: it is neither a text nor a list or dict of texts; the message says what was found.
    """
    if isinstance(context, str):
        return context
    if isinstance(context, list):
        wrong = [type(item).__name__ for item in context if not isinstance(item, str)]
        if not wrong:
            return context
        raise ContextError(f"a context list holds texts; this one holds a {wrong[0]}")
    if isinstance(context, dict):
        wrong = [type(item).__name__ for item in chain(context, context.values()) if not isinstance(item, str)]
        if not wrong:
            return context
        raise ContextError(f"a context dict maps names to texts; this one holds a {wrong[0]}")
    raise ContextError(f"a context is a str, a list of str or a dict of str to str, not {type(context).__name__}")


def texts(context: Context) -> Iterable[str]:
    """Return the texts of ``context`` in order."""
    if isinstance(context, str):
        return (context,)
    return context.values() if isinstance(context, dict) else context


def describe(context: Context) -> ContextInfo:
    """Measure ``context``: one pass over it, with a copy of one piece at a time."""
    digest = hashlib.sha256()
    size = lines = 0
    lengths = []
    prefix = ""
    for text in texts(context):
        lengths.append(len(text))
        prefix = prefix or text[:PREFIX_CHARS]
        lines += text.count("\n") + (not text.endswith("\n") and bool(text))
        for piece in encode(text):
            digest.update(piece)
            size += len(piece)
    ordered = sorted(lengths) or [0]
    kind: Literal["text", "list", "dict"] = "text"
    names: tuple[str, ...] = ()
    if isinstance(context, dict):
        kind = "dict"
        names = tuple(name[:200] for name, _ in zip(context, range(NAMES_SHOWN), strict=False))
    elif isinstance(context, list):
        kind = "list"
    return ContextInfo(
        kind=kind,
        characters=sum(lengths),
        bytes=size,
        lines=lines,
        sha256=digest.hexdigest(),
        documents=len(lengths),
        prefix=prefix,
        names=names,
        smallest=ordered[0],
        median=ordered[len(ordered) // 2],
        largest=ordered[-1],
        layout="" if isinstance(context, str) else _layout_hash(context, lengths),
    )


def _layout_hash(context: list[str] | dict[str, str], lengths: list[int]) -> str:
    digest = hashlib.sha256()
    for number, name in zip(lengths, context if isinstance(context, dict) else [""] * len(lengths), strict=True):
        digest.update(f"{number} {len(name)} {name}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def encode(text: str) -> Iterator[bytes]:
    """Yield ``text`` as UTF-8, a piece at a time; lone surrogates, which UTF-8 cannot carry, become ``?``."""
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE].encode("utf-8", "replace")


def pieces(context: Context, sizes: list[int]) -> Iterator[bytes]:
    """Yield all texts as UTF-8 in pieces of at most 1 MiB, short ones together; add to ``sizes`` the bytes of each."""
    waiting: list[bytes] = []
    held = 0
    for text in texts(context):
        sizes.append(0)
        for piece in encode(text):
            sizes[-1] += len(piece)
            if waiting and held + len(piece) > PIECE * 4:
                yield b"".join(waiting)
                waiting, held = [], 0
            waiting.append(piece)
            held += len(piece)
    if waiting:
        yield b"".join(waiting)


class Taken(NamedTuple):
    """What contexts take of a box.

    Attributes:
        file: bytes of their file: the texts as UTF-8, and how they are laid out.
        memory: bytes of memory for the texts in that file, and for a ``str`` of each where one is made.
    """

    file: int = 0
    memory: int = 0


def lazy_most(context: Context, memory_mb: int, beside: int = 0) -> int | None:
    """Return how many bytes of the context may become a ``str`` in one step, or None when all of it does, once.

    A box keeps the context's file in its memory, and a ``str`` of each text beside it: one byte a character, or two or
    four for all of a text in which one needs them. Where both together take more than half of ``limits.memory_mb``, no
    ``str`` is made, and ``context`` is read from the file as it is asked for (:mod:`sandbox_image.lazy`); then the
    largest text that is made into a ``str`` at a time has an eighth, and takes half of the memory at worst.

    Args:
        context: the one in question.
        memory_mb: ``limits.memory_mb``.
        beside: bytes of memory that earlier contexts of the box take already.
    """
    memory = memory_mb << 20
    half = memory // 2 - beside
    held = _held(context)
    # UTF-8 takes at most four bytes a character: of most contexts, nothing more has to be known.
    if held + 4 * sum(map(len, texts(context))) <= half:
        return None
    return memory // 8 if held + _size(context) > half else None


def lazies(given: Iterable[Context], memory_mb: int) -> list[int | None]:
    """Return what :func:`lazy_most` says of each context of a box, which came to it in this order."""
    found: list[int | None] = []
    beside, last = 0, None
    for context in given:
        if last is not None:
            beside += expected(last, memory_mb, beside).memory
        found.append(lazy_most(context, memory_mb, beside))
        last = context
    return found


def expected(context: Context, memory_mb: int, beside: int) -> Taken:
    """Return what a context will take, as far as it is known before it is sent; arguments as of :func:`lazy_most`."""
    size = _size(context)
    lazy = lazy_most(context, memory_mb, beside) is not None
    return Taken(size + layout_bytes(context), size + (0 if lazy else _held(context)))


def _held(context: Context) -> int:
    return sum(map(sys.getsizeof, texts(context)))


def _size(context: Context) -> int:
    return sum(len(piece) for text in texts(context) for piece in ((text,) if text.isascii() else encode(text)))


def taken(context: Context, sizes: list[int], layout_bytes: int, *, lazy: bool) -> Taken:
    """Return what a context takes that was sent: ``sizes`` are those of its texts in bytes."""
    size = sum(sizes)
    return Taken(size + layout_bytes, size + (0 if lazy else _held(context)))


def layout_bytes(context: Context) -> int:
    """Return about how many bytes :func:`layout` takes: every document costs a few, and its name those of the name."""
    if isinstance(context, str):
        return 0
    names = len(json.dumps(list(context))) if isinstance(context, dict) else 0
    return names + 12 * len(context)


def layout(context: Context, sizes: list[int]) -> dict[str, Any]:
    """Return what the box needs to rebuild ``context`` from its bytes; ``sizes`` are those of its texts in bytes."""
    if isinstance(context, str):
        return {"kind": "text"}
    if isinstance(context, dict):
        return {"kind": "dict", "names": list(context), "sizes": sizes}
    return {"kind": "list", "sizes": sizes}
