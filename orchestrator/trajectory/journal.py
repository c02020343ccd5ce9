"""The record of a run: one append-only file of JSON lines (format: ``JOURNAL.md``, beside this file).

A writer is a :data:`~orchestrator.events.Sink`: each event is written before it takes effect, so a process killed at
any moment leaves a file that tells all that happened. A text that is long is written once, as a *blob*, and referred to
by its hash from then on. It goes out in pieces: what a box hands over is not held a second time to be recorded.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from orchestrator.errors import JournalError
from orchestrator.events import SCHEMA_VERSION, Envelope, Event
from orchestrator.text import json_string, json_text
from orchestrator.trajectory.chain import Chain
from orchestrator.trajectory.reading import REDACTED, Reader, Record, digest, is_redacted, read
from orchestrator.trajectory.redact import redacted

__all__ = ["INLINE_CHARS", "REDACTED", "RUN_ID", "SUFFIX", "JournalWriter", "Record", "is_redacted", "read"]

# A reference and the frame of a blob line cost about 200 bytes together: below this, hashing would make files larger.
INLINE_CHARS = 1024
SUFFIX = ".jsonl"

# Characters, and about as many bytes, that are prepared at a time.
_PIECE = 1 << 18

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# JSON cannot tell two lone surrogates, high then low, from the one character they would encode.
_FALSE_PAIR = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")
_SECRETS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY")
_SECRET_MIN = 8  # A shorter value is a placeholder such as "none", and would be struck out of ordinary words.
_STRUCK_OUT = "[secret removed]"


@dataclass(slots=True)
class _End:
    """Where a journal is to go on."""

    size: int = 0
    next_seq: int = 0
    chain: Chain = field(default_factory=Chain)
    stored: set[bytes] = field(default_factory=set)
    redact: bool = False


class JournalWriter:
    """Appends the events of one run to its file; call it with each envelope.

    An event reaches the operating system before the call returns: it survives the death of this process, whatever
    kills it. It is forced to the disk only by :meth:`close`, because a flush to disk a sub-call would cost more than
    the sub-calls; what a power cut can take is the last seconds of a run, and the rest stays readable.

    Once a write failed nothing more is written, since a journal with a hole would tell a false story: every later call
    raises the same :class:`~orchestrator.errors.JournalError`.

    While it is open nobody else can write the file: :meth:`append` refuses.

    Attributes:
        path: the file.
        next_seq: position in the run of the event that is to come; right from the start in one of :meth:`append`.
        size: bytes in the file.
    """

    def __init__(self, path: Path, descriptor: int, at: _End, wrote: Callable[[int], None]) -> None:
        """Wrap an open file; :meth:`create` and :meth:`append` are the ways in."""
        self.path = path
        self.next_seq = at.next_seq
        self.size = at.size
        self._chain = at.chain
        self._stored = at.stored
        self._redact = at.redact
        self._wrote = wrote
        self._descriptor = descriptor
        self._secrets = _secrets(os.environ)
        self._names: dict[str, tuple[str, ...]] = {}
        self._failure: str | None = None

    @property
    def head(self) -> str:
        """The hash chain's value behind the last event, in hexadecimal; empty before the first."""
        return self._chain.head

    @classmethod
    def create(
        cls, directory: Path, run: str, wrote: Callable[[int], None] = lambda _: None, *, redact: bool = False
    ) -> JournalWriter:
        """Make the journal of ``run``, readable by its owner only, in ``directory``, which is made when missing.

        Args:
            directory: where.
            run: id of the run.
            wrote: told after each event how many bytes it took.
            redact: write no texts, but their lengths and hashes (:mod:`orchestrator.trajectory.redact`).

        Raises:
            JournalError: the id is not fit for a file name, the journal exists, or it cannot be made.
        """
        if not RUN_ID.fullmatch(run):
            raise JournalError(f"run id {run!r} is not 1 to 128 letters, digits, dots, dashes or underscores")
        path = directory / f"{run}{SUFFIX}"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalError(f"cannot create the journal {path}: {error.strerror}") from error
        with _owned(path, descriptor):
            return cls(path, descriptor, _End(redact=redact), wrote)

    @classmethod
    def append(cls, path: Path, wrote: Callable[[int], None] = lambda _: None) -> JournalWriter:
        """Open the journal of a run that goes on: numbers, hash chain and texts that it holds are carried on.

        What a writer left that died, a line without an end or texts that no event refers to yet, is cut off. Read the
        journal after this, not before: from here on it is nobody else's.

        Args:
            path: the file.
            wrote: told after each new event how many bytes it took.

        Raises:
            JournalError: somebody else is writing it; or it cannot be opened, holds no event, is damaged, was
                changed, or is redacted. It is left as it was.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise JournalError(f"cannot open the journal {path}: {error.strerror}") from error
        with _owned(path, descriptor):
            end = _end(path, descriptor)
            os.ftruncate(descriptor, end.size)
            return cls(path, descriptor, end, wrote)

    def __call__(self, envelope: Envelope) -> None:
        """Write one event, preceded by the texts it is the first to hold.

        Raises:
            JournalError: the event is not recorded, so it must not take effect.
        """
        if self._failure is not None:
            raise JournalError(self._failure)
        event = envelope.event
        encoder = _Encoder(self._stored, self._secrets)
        line = {
            "v": SCHEMA_VERSION,
            "run": envelope.run,
            "parent": envelope.parent,
            "seq": envelope.seq,
            "t": round(envelope.elapsed_s, 6),
            "time": round(envelope.time, 3),
            "kind": event.kind,
        }
        for name in self._names_of(event):
            value = getattr(event, name)
            line[name] = encoder.value(redacted(event.kind, name, value) if self._redact else value)
        if self._redact and not self.size:
            line[REDACTED] = True
        blobs = (piece for reference, text in encoder.blobs for piece in _blob_line(reference, text))
        self._write(itertools.chain(blobs, (json_text(line)[:-1],)))
        self.next_seq = envelope.seq + 1

    def close(self) -> None:
        """Force the file to the disk and give it back. Calling it twice is fine.

        Raises:
            JournalError: the disk did not take what was written.
        """
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        self._failure = self._failure or f"the journal {self.path} is closed"
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise JournalError(f"cannot finish the journal {self.path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        """Return the writer itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def _names_of(self, event: Event) -> tuple[str, ...]:
        if event.kind not in self._names:
            self._names[event.kind] = tuple(field.name for field in fields(event))
        return self._names[event.kind]

    def _write(self, pieces: Iterator[str]) -> None:
        size, head = 0, self._chain.head
        try:
            for data in _sealed(_buffered(pieces), self._chain):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                size += len(data)
        except OSError as error:
            self._chain = Chain(head)
            self._fail(error)
        self.size += size
        self._wrote(size)

    def _fail(self, error: OSError) -> NoReturn:
        self._failure = f"cannot write the journal {self.path}: {error.strerror}"
        try:
            os.ftruncate(self._descriptor, self.size)
        except OSError as second:
            error.add_note(f"the torn last line stays: {second.strerror}")
        raise JournalError(self._failure) from error


@contextmanager
def _owned(path: Path, descriptor: int) -> Iterator[None]:
    """Lock a journal for as long as it is open; close it when the block is left by an exception."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"cannot write the journal {path}: another process or run is writing it") from error
        yield
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise JournalError(f"cannot write the journal {path}: {error.strerror}") from error
        raise


def _end(path: Path, descriptor: int) -> _End:
    """Return what a journal is to go on with, behind its last whole event."""
    end, chain, waiting = _End(), Chain(), set[bytes]()
    with os.fdopen(os.dup(descriptor), "rb") as file:
        reader = Reader(path, file)
        for line in reader.lines():
            if line.blob:
                chain.update(line.raw)
                waiting.add(bytes.fromhex(line.blob.removeprefix("sha256:")))
                continue
            if not chain.check(line.raw):
                raise JournalError(f"{path}, line {line.number} or one before it was changed since it was written")
            record = reader.record(line)
            if not end.size and record.fields.get(REDACTED) is True:
                raise JournalError(
                    f"the journal {path} is redacted: what was said in its run is not there to go on with"
                )
            end.next_seq = record.seq + 1
            end.size = line.offset + len(line.raw)
            end.chain = chain.copy()
            end.stored |= waiting
            waiting.clear()
    if not end.size:
        raise JournalError(f"the journal {path} holds no event: there is nothing to carry on")
    return end


class _Encoder:
    """Turns the values of one event into JSON, and sets aside the long texts that the file does not hold yet."""

    def __init__(self, stored: set[bytes], secrets: tuple[str, ...]) -> None:
        self.blobs: list[tuple[str, str]] = []
        self._stored = stored
        self._secrets = secrets

    def value(self, value: Any) -> Any:
        """Encode anything an event may hold.

        Raises:
            TypeError: the value is of no type that JSON has.
        """
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": str(value)}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return self._mapping(value)
        raise TypeError(f"an event cannot hold a {type(value).__name__}")

    def _text(self, text: str) -> Any:
        for secret in self._secrets:
            text = text.replace(secret, _STRUCK_OUT)
        if len(text) <= INLINE_CHARS:
            return _joined(text)
        found = digest(text)
        reference = f"sha256:{found.hex()}"
        if found not in self._stored:
            self._stored.add(found)
            self.blobs.append((reference, text))
        return {"$blob": reference}

    def _mapping(self, mapping: Mapping[Any, Any]) -> Any:
        if all(map(_plain_key, mapping)):
            return {key: self.value(item) for key, item in mapping.items()}
        return {"$items": [[self.value(key), self.value(item)] for key, item in mapping.items()]}


def _plain_key(key: object) -> bool:
    return isinstance(key, str) and len(key) <= INLINE_CHARS and not key.startswith("$") and not _FALSE_PAIR.search(key)


def _joined(text: str) -> Any:
    parts = _FALSE_PAIR.split(text)
    return text if len(parts) == 1 else {"$join": parts}


def _blob_line(reference: str, text: str) -> Iterator[str]:
    yield f'{{"v":{SCHEMA_VERSION},"kind":"blob","hash":"{reference}","text":'
    if _FALSE_PAIR.search(text):
        yield json_text(_joined(text))
    else:
        yield from json_string(text)
    yield "}\n"


def _buffered(pieces: Iterator[str]) -> Iterator[bytes]:
    """Yield what ``pieces`` say together, in UTF-8, in few portions of bounded size."""
    waiting: list[str] = []
    characters = 0
    for piece in pieces:
        waiting.append(piece)
        characters += len(piece)
        if characters >= _PIECE:
            yield "".join(waiting).encode()
            waiting, characters = [], 0
    yield "".join(waiting).encode()


def _sealed(portions: Iterator[bytes], chain: Chain) -> Iterator[bytes]:
    """Yield the portions of an event's lines, the last one with the chain's value at its end."""
    last = b""
    for portion in portions:
        if last:
            yield last
        chain.update(portion)
        last = portion
    yield last + chain.seal()


def _secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    values = {environ.get(name, "") for name in _SECRETS}
    return tuple(sorted(value for value in values if len(value) >= _SECRET_MIN))
