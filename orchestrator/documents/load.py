"""From what people name to a context: one text, or a dict of documents by name."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.documents import archive, pdf
from orchestrator.documents.text import SNIFF, NotTextError, decode, kind_of, looks_binary
from orchestrator.errors import ContextError
from orchestrator.text import counted

MIB = 1 << 20
_NAMES_TOLD = 3
_PATTERN = frozenset("*?[")


@dataclass(slots=True)
class Loaded:
    """A context read from files.

    Attributes:
        context: one text, or documents by name.
        skipped: files that were found and cannot be read as text, by name.
        packed: archives that were found and not asked to be unpacked, by name.
        converted: documents that are not UTF-8, by name, and what they were taken for.
    """

    context: str | dict[str, str] = ""
    skipped: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Say what a person should know of it, a line each."""
        notes = []
        if self.skipped:
            notes.append(
                f"left out {counted(len(self.skipped), 'file')} that cannot be read as text: {_few(self.skipped)}"
            )
        if self.packed:
            notes.append(f"left out {counted(len(self.packed), 'archive')} (see --unpack): {_few(self.packed)}")
        if self.converted:
            taken = [f"{name} as {encoding}" for name, encoding in self.converted.items()]
            notes.append(f"read {counted(len(taken), 'file')} in an encoding that was guessed: {_few(taken)}")
        return notes


def load_context(
    arguments: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], limit_mb: int = 512, *, unpack: bool = False
) -> Loaded:
    """Read files, folders and patterns: one file is a text; more, or a folder, are documents.

    A pattern (``notes/**/*.md``) is what is no file's name and has ``*``, ``?`` or ``[``. Documents are named by their
    path below the folder, or below what several arguments have in common, and sorted. Inside a folder, hidden files and
    folders, links, and what is no regular file are left out, and files that are no text are skipped; whatever an
    argument itself names is read. Texts are UTF-8, or what their byte order mark says, or what detection takes them
    for. The text of a PDF is read where the extra ``pdf`` is installed, its pages parted by form feeds.

    Args:
        arguments: paths and patterns.
        limit_mb: the most MiB of UTF-8 together; checked before anything is read whole.
        unpack: whether the files in archives (zip, tar, gzip, bzip2, xz) are documents, too, named below the archive;
            an archive in an archive is none.

    Raises:
        ContextError: something is missing, unreadable, no text, or too large.
    """
    names = [arguments] if isinstance(arguments, (str, os.PathLike)) else list(arguments)
    paths = [path for name in names for path in _named(os.fspath(name))]
    if not paths:
        raise ContextError("no file is named")
    reader = _Reader(limit_mb * MIB, unpack=unpack)
    if len(names) == len(paths) == 1 and not paths[0].is_dir() and not (unpack and reader.is_archive(paths[0])):
        return reader.one(paths[0])
    return reader.documents(paths)


def check_size(size: int, limit: int, what: str) -> None:
    """Raise ContextError for more bytes than the policy allows."""
    if size > limit:
        has, most = _mib(size), _mib(limit)
        if has == most:
            has, most = f"{size:,} bytes", f"{limit:,} bytes"
        raise ContextError(f"{what}: {has} is more than the {most} the policy allows (limits.context_mb)")


class _Reader:
    """Reads documents, and counts what they have together."""

    def __init__(self, limit: int, *, unpack: bool) -> None:
        self._limit = limit
        self._left = limit
        self._unpack = unpack
        self._together = ""
        self._loaded = Loaded()

    def one(self, path: Path) -> Loaded:
        """Read one file as the text."""
        self._together = str(path)
        check_size(_size(path), self._limit, str(path))
        for _, text in self._texts(str(path), path, named=True):
            self._loaded.context = text
        return self._loaded

    def documents(self, paths: list[Path]) -> Loaded:
        """Read several, each a document."""
        named = {Path(os.path.abspath(path)) for path in paths}  # noqa: PTH100 - resolve() would follow links
        found = dict(sorted(_found(paths)))
        texts = {name: path for name, path in found.items() if path in named or self._is_wanted(name, path)}
        self._together = f"{counted(len(texts), 'document')} together"
        check_size(sum(_size(path) for path in texts.values()), self._limit, self._together)
        documents = {
            below: text for name, path in texts.items() for below, text in self._texts(name, path, named=path in named)
        }
        if not documents:
            looked_at = counted(len(found), "file")
            raise ContextError(f"no text in {', '.join(map(str, paths))} ({looked_at} looked at)")
        self._loaded.skipped.sort()
        self._loaded.context = documents
        return self._loaded

    def is_archive(self, path: Path) -> bool:
        """Whether a file is an archive, by its first bytes."""
        return stat.S_ISREG(_status(path).st_mode) and kind_of(_head(path)) not in ("text", "pdf")

    def _is_wanted(self, name: str, path: Path) -> bool:
        head = _head(path)
        kind = kind_of(head)
        if kind == "pdf":
            wanted = pdf.available()
        elif kind == "text":
            wanted = not looks_binary(head)
        else:
            wanted = self._unpack
            if not wanted:
                self._loaded.packed.append(name)
                return False
        if not wanted:
            self._loaded.skipped.append(name)
        return wanted

    def _texts(self, name: str, path: Path, *, named: bool) -> Iterator[tuple[str, str]]:
        """Yield the documents in one file; what cannot be read is an error if it was named, else skipped."""
        if self.is_archive(path):
            kind = kind_of(_head(path))
            if not self._unpack:
                raise ContextError(f"{path} is an archive ({kind}): unpack it, or let it be unpacked with --unpack")
            for below, data in archive.members(path, kind, self._left):
                yield from self._text(f"{name}/{_label(below)}", data, f"{path}/{_label(below)}", named=False)
        else:
            yield from self._text(name, self._read(path), str(path), named=named)

    def _text(self, name: str, data: bytes, what: str, *, named: bool) -> Iterator[tuple[str, str]]:
        try:
            text, size = self._decoded(name, data, what)
        except NotTextError:
            if named:
                raise
            self._loaded.skipped.append(name)
        else:
            self._left -= size
            check_size(self._limit - self._left, self._limit, self._together)
            yield name, text

    def _decoded(self, name: str, data: bytes, what: str) -> tuple[str, int]:
        """Return a document's text, and how many bytes it has as UTF-8."""
        kind = kind_of(data)
        if kind == "pdf":
            text = pdf.text(data, what, self._left)
        elif kind == "text":
            text, encoding = decode(data, what)
            if encoding == "utf-8":
                return text, len(data)
            if not encoding.startswith("utf"):
                self._loaded.converted[name] = encoding
        else:
            raise NotTextError(f"{what} is an archive ({kind}) in an archive")
        return text, len(text.encode("utf-8", "replace"))

    def _read(self, path: Path) -> bytes:
        data = _bytes(path, self._left)
        check_size(self._limit - self._left + len(data), self._limit, self._together)
        return data


def _named(argument: str) -> list[Path]:
    if not argument:
        raise ContextError("the name of a FILE is empty")
    path = Path(argument)
    if path.exists():
        return [path]
    if not _PATTERN & set(argument):
        raise ContextError(f"no such file or folder: {path}")
    found = sorted(Path(name) for name in glob.iglob(argument, recursive=True))  # noqa: PTH207 - of any folder
    if not found:
        raise ContextError(f"no such file or folder, and as a pattern it matches nothing: {path}")
    # A pattern that ends in ** gives folders beside what is in them; to walk those would give each file twice.
    return [path for path in found if not path.is_dir()] or found


def _found(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() would follow links
    base = absolute[0] if len(absolute) == 1 and absolute[0].is_dir() else None
    base = base or Path(os.path.commonpath([path.parent for path in absolute]))
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


def _label(name: str) -> str:
    """Return the name of a file in an archive as a label: nothing in it leads anywhere."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts).encode("utf-8", "backslashreplace").decode() or "?"


def _head(path: Path) -> bytes:
    # Of a pipe nothing is looked at ahead: what is taken out of it is gone.
    return _bytes(path, SNIFF - 1) if stat.S_ISREG(_status(path).st_mode) else b""


def _bytes(path: Path, most: int) -> bytes:
    """Read at most ``most`` bytes and one that tells of more."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}") from error


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}") from error


def _size(path: Path) -> int:
    status = _status(path)
    # A pipe such as <(command) has no size to check before it is read.
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_TOLD]) + (", …" if len(names) > _NAMES_TOLD else "")


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
