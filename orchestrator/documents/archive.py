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
from typing import IO, Any

from orchestrator.documents.text import Kind
from orchestrator.errors import ContextError

MAX_MEMBERS = 100_000
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
        for number, (name, file) in enumerate(_open_members(path, kind)):
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
    except _BROKEN as error:
        raise ContextError(f"cannot unpack {path}: {error}") from error
    except RuntimeError as error:  # zipfile's word for a password that is wanted
        raise ContextError(f"cannot unpack {path}: {error}") from error


def _open_members(path: Path, kind: Kind) -> Iterator[tuple[str, IO[bytes]]]:
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, archive.open(entry)
        return
    if kind == "tar" or _holds_a_tar(path, kind):
        with tarfile.open(path, "r:*") as tar:
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
