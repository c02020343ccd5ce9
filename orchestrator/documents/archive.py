"""The files in an archive, read in memory and within bounds; nothing is ever written to a disk.

Names in an archive are labels here and never paths, so it cannot reach out of a folder. What it may hold is counted as
it is unpacked, since what it says of its own sizes need not be true.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from orchestrator.documents.text import Kind
from orchestrator.errors import ContextError

MAX_MEMBERS = 100_000
# Of a tar, in all: what names and dates of so many files take, padded.
HEADERS = MAX_MEMBERS * 2048
_OPENERS: dict[Kind, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, NotImplementedError)


def members(path: Path, kind: Kind, limit: int) -> Iterator[tuple[str, bytes]]:
    """Yield the regular files of an archive, or the one that is only compressed: name and bytes.

    Hidden files and folders are left out, as they are in folders.

    Args:
        path: the archive.
        kind: what it is.
        limit: bytes that all of them may have together, unpacked.

    Raises:
        ContextError: it is broken, encrypted, or larger than the limit.
    """
    left = limit
    try:
        for number, (name, file) in enumerate(_open_members(path, kind, limit)):
            with file:
                if number >= MAX_MEMBERS:
                    raise ContextError(f"{path} holds more than {MAX_MEMBERS:,} files")
                if _hidden(name):
                    continue
                data = file.read(left + 1)
            left -= len(data)
            if left < 0:
                raise ContextError(f"{path} unpacks to more than the policy allows (limits.context_mb)")
            yield name, data
    except _TooMuchError as error:
        raise ContextError(f"{path} unpacks to more than the policy allows (limits.context_mb): {error}") from error
    except _BROKEN as error:
        raise ContextError(f"cannot unpack {path}: {error}") from error
    except RuntimeError as error:  # zipfile's word for a password that is wanted
        raise ContextError(f"cannot unpack {path}: {error}") from error


class _TooMuchError(Exception):
    """More was unpacked than there may be."""


class _Bounded:
    """A file of which only so many bytes are read: a tar's headers may be of any size, and all of them are kept."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._left = most
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read on.

        Raises:
            _TooMuchError: that is more than there may be.
        """
        data = self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise _TooMuchError("its headers alone are large")
        return data


def _open_members(path: Path, kind: Kind, limit: int) -> Iterator[tuple[str, IO[bytes]]]:
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, archive.open(entry)
        return
    if kind == "tar" or _holds_a_tar(path, kind):
        opened = _OPENERS.get(kind, open)(path, "rb")
        with opened, tarfile.open(fileobj=cast("IO[bytes]", _Bounded(opened, limit + HEADERS)), mode="r:") as tar:
            for member in tar:
                if member.isreg() and (file := tar.extractfile(member)) is not None:
                    yield member.name, file
        return
    yield path.stem, _OPENERS[kind](path, "rb")


def _holds_a_tar(path: Path, kind: Kind) -> bool:
    with _OPENERS[kind](path, "rb") as file:
        head: bytes = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
