"""From command-line arguments to a context: files as :mod:`orchestrator.documents` reads them, or stdin."""

from __future__ import annotations

import sys
from typing import TextIO

from orchestrator.cli.common import stdin_bytes
from orchestrator.documents.load import MIB, Loaded, check_size
from orchestrator.documents.load import load_context as load_files
from orchestrator.documents.text import decode
from orchestrator.errors import ContextError


def load_context(arguments: list[str], limit_mb: int, *, unpack: bool = False) -> Loaded:
    """Read what the arguments name: nothing or ``-`` is stdin, all else is :func:`orchestrator.documents.load`'s.

    Args:
        arguments: files, folders and patterns, or ``-`` alone.
        limit_mb: the most MiB of UTF-8 the policy allows; checked before anything is read whole.
        unpack: whether archives are unpacked.

    Raises:
        ContextError: something is missing, unreadable, no text, or too large.
    """
    if not arguments or arguments == ["-"]:
        return Loaded(_read_stdin(explicit=bool(arguments), limit=limit_mb * MIB))
    if "-" in arguments:
        raise ContextError("- (stdin) cannot be combined with files")
    return load_files(arguments, limit_mb, unpack=unpack)


def _read_stdin(*, explicit: bool, limit: int) -> str:
    stdin: TextIO | None = sys.stdin
    if stdin is not None and stdin.isatty() and not explicit:
        raise ContextError("nothing to read: name a FILE or a folder, or pipe a text in")
    data = stdin_bytes(limit + 1)
    if len(data) > limit:
        raise ContextError(f"stdin holds more than {limit / MIB:,.1f} MiB; raise limits.context_mb to allow it")
    text, _ = decode(data, "stdin")
    check_size(len(text.encode("utf-8", "replace")), limit, "stdin")
    return text
