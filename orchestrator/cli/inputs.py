"""From command-line arguments to a context: one text, or a dict of documents by name."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orchestrator.cli.common import stdin_bytes
from orchestrator.errors import ContextError
from orchestrator.text import counted

MIB = 1 << 20
_SNIFF = 8192
_NAMES_TOLD = 3


@dataclass(frozen=True, slots=True)
class Loaded:
    """A context read from files.

    Attributes:
        context: one text, or documents by name.
        skipped: files found in a folder that are not UTF-8 text, by name.
    """

    context: str | dict[str, str]
    skipped: tuple[str, ...] = ()

    def left_out(self) -> str:
        """Say in one line what was skipped; empty when nothing was."""
        if not self.skipped:
            return ""
        names = ", ".join(self.skipped[:_NAMES_TOLD]) + (", …" if len(self.skipped) > _NAMES_TOLD else "")
        return f"left out {counted(len(self.skipped), 'file')} that cannot be read as text: {names}"


def load_context(arguments: list[str], limit_mb: int) -> Loaded:
    """Read what the arguments name: nothing or ``-`` is stdin; one file is a text; more, or a folder, are documents.

    Documents are named by their path below the folder, or below what several arguments have in common, and sorted.
    Inside a folder, hidden files and folders, links, and what is no regular file are left out, and files that are not
    UTF-8 text are skipped; whatever an argument itself names is read.

    Args:
        arguments: files, folders, or ``-`` alone.
        limit_mb: the most MiB of UTF-8 the policy allows; checked before anything is read whole.

    Raises:
        ContextError: something is missing, unreadable, not text, or too large.
    """
    limit = limit_mb * MIB
    if not arguments or arguments == ["-"]:
        return Loaded(_read_stdin(explicit=bool(arguments), limit=limit))
    if "-" in arguments:
        raise ContextError("- (stdin) cannot be combined with files")
    if "" in arguments:
        raise ContextError("the name of a FILE is empty")
    paths = [Path(argument) for argument in arguments]
    for path in paths:
        if not path.exists():
            raise ContextError(f"no such file or folder: {path}")
    if len(paths) == 1 and not paths[0].is_dir():
        return Loaded(_read_one(paths[0], limit))
    return _read_documents(paths, limit)


def _read_stdin(*, explicit: bool, limit: int) -> str:
    stdin: TextIO | None = sys.stdin
    if stdin is not None and stdin.isatty() and not explicit:
        raise ContextError("nothing to read: name a FILE or a folder, or pipe a text in")
    data = stdin_bytes(limit + 1)
    if len(data) > limit:
        raise ContextError(f"stdin holds more than {_mib(limit)}; raise limits.context_mb to allow it")
    return _decode(data, "stdin")


def _read_one(path: Path, limit: int) -> str:
    _check_size(_size(path), limit, str(path))
    data = _read(path, limit)
    _check_size(len(data), limit, str(path))
    return _decode(data, str(path))


def _read(path: Path, most: int) -> bytes:
    """Read at most ``most`` bytes and one that tells of more."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}") from error


def _read_documents(paths: list[Path], limit: int) -> Loaded:
    named = {Path(os.path.abspath(path)) for path in paths}  # noqa: PTH100 - resolve() would follow links
    found = dict(sorted(_documents(paths)))
    texts = {name: path for name, path in found.items() if path in named or _looks_like_text(path)}
    together = f"{counted(len(texts), 'document')} together"
    _check_size(sum(_size(path) for path in texts.values()), limit, together)
    documents: dict[str, str] = {}
    left = limit
    for name, path in texts.items():
        data = _read(path, left)
        _check_size(limit - left + len(data), limit, together)
        try:
            documents[name] = _decode(data, str(path))
        except _NotTextError:
            if path in named:
                raise
            continue
        left -= len(data)
    if not documents:
        raise ContextError(f"no UTF-8 text in {', '.join(map(str, paths))} ({counted(len(found), 'file')} looked at)")
    return Loaded(documents, tuple(name for name in found if name not in documents))


def _documents(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() would follow links
    base = absolute[0] if len(absolute) == 1 else Path(os.path.commonpath([path.parent for path in absolute]))
    for path in absolute:
        for file in _walk(path) if path.is_dir() else [path]:
            # A name whose bytes are no UTF-8 could not be told to anyone; its bytes are shown instead.
            name = os.fsencode(file.relative_to(base).as_posix()).decode("utf-8", "backslashreplace")
            yield name, file


def _walk(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ContextError(f"cannot read folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _looks_like_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(_SNIFF)
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}") from error


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}") from error
    # A pipe such as <(command) has no size to check before it is read.
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        has, most = _mib(size), _mib(limit)
        if has == most:
            has, most = f"{size:,} bytes", f"{limit:,} bytes"
        raise ContextError(f"{what}: {has} is more than the {most} the policy allows (limits.context_mb)")


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


class _NotTextError(ContextError):
    """The bytes are not UTF-8."""


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NotTextError(f"{what} is not UTF-8 text (byte {error.start:,}); convert it first") from error
