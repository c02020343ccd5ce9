"""From the bytes of a file to its text, or to what it is instead."""

from __future__ import annotations

import codecs
from typing import Literal

from orchestrator.errors import ContextError

Kind = Literal["text", "pdf", "zip", "tar", "gzip", "bzip2", "xz"]
# As many bytes of a file are looked at to tell what it is,
SNIFF = 8192
# and to tell its encoding; from fewer than the least no encoding can be told.
_DETECT_LEAST, _DETECT_MOST = 64, 1 << 18
_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"%PDF-", "pdf"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),  # an empty one
    (257, b"ustar", "tar"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (4, b"1AY&SY", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
)
# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class NotTextError(ContextError):
    """The bytes are no text."""


def kind_of(head: bytes) -> Kind:
    """Tell by its first bytes what a file is; what nothing else is known of may be text."""
    return next((kind for offset, magic, kind in _MAGIC if head.startswith(magic, offset)), "text")


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes of a file are those of no text."""
    return b"\0" in head and _marked(head) is None


def decode(data: bytes, what: str) -> tuple[str, str]:
    """Return the text and the name of its encoding: a byte order mark's, UTF-8, or the likeliest by detection.

    Raises:
        NotTextError: it is no text in any of them.
    """
    encoding = _marked(data) or "utf-8"
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError as error:
        guess = None if encoding != "utf-8" or b"\0" in data else _detected(data)
        if guess is None:
            raise NotTextError(
                f"{what} is not {encoding.upper()} text (byte {error.start:,}); convert it first"
            ) from error
    try:
        return data.decode(guess), guess
    except UnicodeDecodeError as error:
        message = f"{what} begins as {guess} text and goes on otherwise (byte {error.start:,}); convert it first"
        raise NotTextError(message) from error


def _marked(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def _detected(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    if len(data) < _DETECT_LEAST:
        return None
    best = from_bytes(data[:_DETECT_MOST]).best()
    return None if best is None else best.encoding
