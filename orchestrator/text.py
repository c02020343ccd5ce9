"""Making text from strangers fit for a terminal, a log line or a model's context."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

# Strings of ECMA-48 (OSC, DCS, SOS, PM, APC) are removed whole only when they end on their own line: an introducer
# alone must not hide all that follows it. The classes stop at the next introducer, so no input takes quadratic time.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n]*+(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"
    r"|\x1b[\]PX^_]"
    r"|\x1b[ -/]*+[0-~]?"
)
_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Default-ignorable code points (Unicode, DerivedCoreProperties), bidirectional controls and interlinear marks: they
# reorder or hide what a person reads. As ranges of hexadecimal numbers, because they would be invisible here, too.
_IGNORABLE = (
    "ad-ad 34f-34f 61c-61c 115f-1160 17b4-17b5 180b-180f 200b-200f 202a-202e 2060-206f 3164-3164 fe00-fe0f feff-feff "
    "ffa0-ffa0 fff0-fffb 1bca0-1bca3 1d173-1d17a e0000-e0fff"
)
_HIDDEN = "".join(f"{chr(int(a, 16))}-{chr(int(b, 16))}" for a, b in (pair.split("-") for pair in _IGNORABLE.split()))
_UNSHOWN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_HIDDEN}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What JSON text holds as escapes beside what its standard demands.
_JSON_UNSAFE = frozenset(
    chr(code)
    for first, last in (pair.split("-") for pair in f"7f-9f 2028-2029 d800-dfff {_IGNORABLE}".split())
    for code in range(int(first, 16), int(last, 16) + 1)
)
# Characters that are escaped at a time, and different unsafe ones among them that are replaced one by one.
_PIECE = 1 << 16
_MANY = 8


def printable(text: str) -> str:
    """Return ``text`` without anything that could move a cursor, set a title, reorder or hide.

    Other line breaks become newlines; lone surrogates become U+FFFD, so the result always encodes.
    """
    text = _UNSHOWN.sub("", _ESCAPES.sub("", _BREAKS.sub("\n", text)))
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def one_line(text: str, width: int) -> str:
    """Return ``text`` cleaned, on one line, cut to at most ``width`` characters with an ellipsis."""
    if width <= 0:
        return ""
    start = text[: width * 8]
    line = " ".join(printable(start).split())
    if len(line) <= width and len(start) == len(text):
        return line
    return line[: width - 1] + "…"


def columns(text: str) -> int:
    """Return how many columns of a terminal cleaned text takes: a wide character (UAX #11) 2, a combining one none."""
    if text.isascii():
        return len(text)
    return sum(map(_column, text))


def fitted(text: str, width: int) -> str:
    """Return cleaned text of one line, cut to ``width`` columns of a terminal, with an ellipsis where it was."""
    if columns(text) <= width:
        return text
    return f"{_head(text, width - 1)}…" if width > 0 else ""


def folded(text: str, width: int, *, words: bool = False) -> list[str]:
    """Return cleaned text of one line in pieces of at most ``width`` columns, at least one.

    Args:
        text: as said.
        width: at least 2 is taken.
        words: break after a space where there is one; else wherever the width ends.
    """
    pieces, start = [], 0
    while start < len(text):
        end = start + len(_head(text[start : start + 3 * width], max(width, 2)))
        if words and end < len(text):
            end = text.rfind(" ", start + 1, end + 1) + 1 or end
        pieces.append(text[start:end])
        start = end
    return [piece.rstrip(" ") if words else piece for piece in pieces] or [""]


def _head(text: str, width: int) -> str:
    if text.isascii():
        return text[:width]
    left = width
    for place, character in enumerate(text):
        left -= _column(character)
        if left < 0:
            return text[:place]
    return text


def _column(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def head_and_tail(text: str, limit: int) -> str:
    """Return at most about ``limit`` characters of ``text``: its beginning and its end, with the cut marked between."""
    if len(text) <= limit:
        return text
    limit = max(limit, 0)
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n[… {len(text) - limit:,} characters cut …]\n{text[len(text) - tail :]}"


def cut_to_bytes(text: str, limit: int) -> str:
    """Return ``text`` in at most ``limit`` bytes of UTF-8: whole, or beginning and end with the cut marked between."""
    if len(text) <= limit and size(text) <= limit:
        return text
    data = text.encode("utf-8", "replace")
    mark = f"\n[… {len(data) - limit:,} bytes cut …]\n"
    room = max(limit - size(mark), 0)
    head = data[: room * 2 // 3].decode("utf-8", "ignore")
    tail = data[len(data) - (room - room * 2 // 3) :].decode("utf-8", "ignore")
    return f"{head}{mark}{tail}"


def size(text: str) -> int:
    """Return the length of ``text`` in UTF-8; a lone surrogate counts as the one byte that replaces it."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def counted(number: int, noun: str) -> str:
    """Return ``1 turn``, ``2,000 turns``: a number with the noun it counts, whose plural takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# Made once: ``json.dumps`` makes an encoder for every text that is not written its own way.
_ONE_LINE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as JSON that always encodes as UTF-8 and that a terminal shows as it is.

    Characters that :func:`printable` would remove are written as escapes. Without ``indent`` it is one line.

    Raises:
        ValueError: a number in it is not finite.
        TypeError: something in it is not JSON.
    """
    if indent is None:
        text = _ONE_LINE.encode(value)
    else:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return "".join(_escaped(text))


def json_string(text: str) -> Iterator[str]:
    """Yield ``text`` as :func:`json_text` writes it, in pieces: a large one is never there twice."""
    yield '"'
    for start in range(0, len(text), _PIECE):
        yield from _escaped(json.dumps(text[start : start + _PIECE], ensure_ascii=False)[1:-1])
    yield '"'


def _escaped(text: str) -> Iterator[str]:
    """Yield JSON text with what is unsafe in it escaped.

    A text from a box may be made of nothing else, and the work must not be done by a function a character. People
    write few different ones, each of which is one replacement; a table does the rest.
    """
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        if piece.isascii():
            yield piece.replace("\x7f", "\\u007f")
            continue
        unsafe = _JSON_UNSAFE.intersection(piece)
        if len(unsafe) <= _MANY:
            for character in unsafe:
                piece = piece.replace(character, _escapes()[ord(character)])
            yield piece
        else:
            yield piece.translate(_escapes())


@functools.cache
def _escapes() -> dict[int, str]:
    return {ord(character): json.dumps(character)[1:-1] for character in _JSON_UNSAFE} | {0x7F: "\\u007f"}
