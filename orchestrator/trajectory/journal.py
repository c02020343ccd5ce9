"""The record of a run: one append-only file of JSON lines (format: ``JOURNAL.md``, beside this file).

A writer is a :data:`~orchestrator.events.Sink`: each event is written before it takes effect, so a process killed at
any moment leaves a file that tells all that happened. A text that is long is written once, as a *blob*, and referred to
by its hash from then on. It goes out in pieces: what a box hands over is not held a second time to be recorded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

from orchestrator.errors import JournalError
from orchestrator.events import SCHEMA_VERSION, Envelope
from orchestrator.text import json_string, json_text

# A reference and the frame of a blob line cost about 200 bytes together: below this, hashing would make files larger.
INLINE_CHARS = 1024
SUFFIX = ".jsonl"

# Characters, and about as many bytes, that are prepared at a time.
_PIECE = 1 << 18

_BEGINNING = b'{"v":'
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# JSON cannot tell two lone surrogates, high then low, from the one character they would encode.
_FALSE_PAIR = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")
_SECRETS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY")
_SECRET_MIN = 8  # A shorter value is a placeholder such as "none", and would be struck out of ordinary words.
_STRUCK_OUT = "[secret removed]"


@dataclass(frozen=True, slots=True)
class Record:
    """One event as the journal tells it.

    Attributes:
        run: id of the run.
        parent: id of the run that started it, or None.
        seq: position in the run, from 0.
        elapsed_s: seconds since the run began, on the monotonic clock.
        time: Unix time in seconds.
        kind: name of the event's type; kinds that this version does not know are passed on.
        fields: what the event says, texts in full.
    """

    run: str
    parent: str | None
    seq: int
    elapsed_s: float
    time: float
    kind: str
    fields: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the record under the names its line has, as ``journal show --json`` prints it."""
        head = {"v": SCHEMA_VERSION, "run": self.run, "parent": self.parent, "seq": self.seq}
        return {**head, "t": self.elapsed_s, "time": self.time, "kind": self.kind, **self.fields}


class JournalWriter:
    """Appends the events of one run to its file; call it with each envelope.

    An event reaches the operating system before the call returns: it survives the death of this process, whatever
    kills it. It is forced to the disk only by :meth:`close`, because a flush to disk a sub-call would cost more than
    the sub-calls; what a power cut can take is the last seconds of a run, and the rest stays readable.

    Once a write failed nothing more is written, since a journal with a hole would tell a false story: every later call
    raises the same :class:`~orchestrator.errors.JournalError`.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, descriptor: int, secrets: tuple[str, ...], wrote: Callable[[int], None]) -> None:
        """Wrap an open file; :meth:`create` is the way in."""
        self.path = path
        self._wrote = wrote
        self._descriptor = descriptor
        self._secrets = secrets
        self._size = 0
        self._stored: set[bytes] = set()
        self._failure: str | None = None

    @classmethod
    def create(cls, directory: Path, run: str, wrote: Callable[[int], None] = lambda _: None) -> JournalWriter:
        """Make the journal of ``run``, readable by its owner only, in ``directory``, which is made when missing.

        Args:
            directory: where.
            run: id of the run.
            wrote: told after each event how many bytes it took.

        Raises:
            JournalError: the id is not fit for a file name, the journal exists, or it cannot be made.
        """
        if not _RUN_ID.fullmatch(run):
            raise JournalError(f"run id {run!r} is not 1 to 128 letters, digits, dots, dashes or underscores")
        path = directory / f"{run}{SUFFIX}"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalError(f"cannot create the journal {path}: {error.strerror}") from error
        return cls(path, descriptor, _secrets(os.environ), wrote)

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
        for field in fields(event):
            line[field.name] = encoder.value(getattr(event, field.name))
        blobs = (piece for reference, text in encoder.blobs for piece in _blob_line(reference, text))
        self._write(itertools.chain(blobs, (json_text(line), "\n")))

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

    def _write(self, pieces: Iterator[str]) -> None:
        size = 0
        try:
            for data in _buffered(pieces):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                size += len(data)
        except OSError as error:
            self._fail(error)
        self._size += size
        self._wrote(size)

    def _fail(self, error: OSError) -> NoReturn:
        self._failure = f"cannot write the journal {self.path}: {error.strerror}"
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as second:
            error.add_note(f"the torn last line stays: {second.strerror}")
        raise JournalError(self._failure) from error


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
        digest = _digest(text)
        reference = f"sha256:{digest.hex()}"
        if digest not in self._stored:
            self._stored.add(digest)
            self.blobs.append((reference, text))
        return {"$blob": reference}

    def _mapping(self, mapping: Mapping[Any, Any]) -> Any:
        if all(map(_plain_key, mapping)):
            return {key: self.value(item) for key, item in mapping.items()}
        return {"$items": [[self.value(key), self.value(item)] for key, item in mapping.items()]}


def read(path: str | Path) -> Iterator[Record]:
    """Yield the records of a journal in order, long texts put back in place.

    A last line without its newline was being written when the process died: it is left out. The file is read as it is
    asked for, so a journal of any size takes the memory of its largest event.

    Raises:
        JournalError: the file cannot be read, is no journal, is of another version, or is damaged; the line is named.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            yield from _Reader(path, file).records()
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._number = 0
        self._places: dict[str, tuple[int, int]] = {}
        # Most references follow their blob at once; older ones are read again from the file instead of being kept.
        self._fresh: dict[str, str] = {}

    def records(self) -> Iterator[Record]:
        offset = 0
        for line in self._file:
            self._number += 1
            if not line.endswith(b"\n"):
                # A first line cut short is still the beginning of one; anything else was never a journal.
                if self._number == 1 and line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
                    self._damaged("is not a line of a journal")
                return
            data = self._parse(line)
            if data["kind"] == "blob":
                reference, text = self._blob(data)
                self._places[reference] = (offset, len(line))
                self._fresh[reference] = text
            else:
                yield self._record(data)
                self._fresh.clear()
            offset += len(line)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._damaged("is not JSON", error)
        if not isinstance(data, dict) or "v" not in data or not isinstance(data.get("kind"), str):
            self._damaged("is not a line of a journal")
        if data["v"] != SCHEMA_VERSION or isinstance(data["v"], bool):
            raise JournalError(
                f"{self._path} is a journal of format {data['v']!r}; this version reads format {SCHEMA_VERSION}"
            )
        return data

    def _record(self, data: dict[str, Any]) -> Record:
        del data["v"]
        try:
            head = {key: data.pop(key) for key in ("run", "parent", "seq", "t", "time", "kind")}
        except KeyError as error:
            self._damaged(f"lacks {error.args[0]!r}", error)
        if not _fits_head(head):
            self._damaged("has a head of the wrong types")
        values = {key: self._value(item) for key, item in data.items()}
        return Record(
            run=head["run"],
            parent=head["parent"],
            seq=head["seq"],
            elapsed_s=float(head["t"]),
            time=float(head["time"]),
            kind=head["kind"],
            fields=values,
        )

    def _blob(self, data: dict[str, Any]) -> tuple[str, str]:
        text = self._value(data.get("text"))
        if not isinstance(text, str):
            self._damaged("is a blob without text")
        reference = f"sha256:{_digest(text).hex()}"
        if data.get("hash") != reference:
            self._damaged("is a blob whose text does not have its hash")
        return reference, text

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if not isinstance(value, dict):
            return value
        for key, item in value.items():
            if key.startswith("$"):
                return self._special(key if len(value) == 1 else "mixture of keys", item)
        return {key: self._value(item) for key, item in value.items()}

    def _special(self, key: str, item: Any) -> Any:
        if key == "$blob" and isinstance(item, str):
            return self._resolve(item)
        if key == "$join" and isinstance(item, list) and all(isinstance(part, str) for part in item):
            return "".join(item)
        if key == "$float" and item in ("nan", "inf", "-inf"):
            return float(item)
        if key == "$items" and isinstance(item, list) and all(map(_is_pair, item)):
            return {self._value(name): self._value(value) for name, value in item}
        return self._damaged(f"holds a {key} that this version cannot read")

    def _resolve(self, reference: str) -> str:
        if reference in self._fresh:
            return self._fresh[reference]
        if reference not in self._places:
            self._damaged(f"refers to {reference}, which no earlier line holds")
        offset, length = self._places[reference]
        return self._blob(self._parse(os.pread(self._file.fileno(), length, offset)))[1]

    def _damaged(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise JournalError(f"{self._path}, line {self._number} {what}") from cause


def _fits_head(head: dict[str, Any]) -> bool:
    return (
        isinstance(head["run"], str)
        and isinstance(head["parent"], str | None)
        and type(head["seq"]) is int
        and all(type(head[key]) in (int, float) for key in ("t", "time"))
    )


def _plain_key(key: object) -> bool:
    return isinstance(key, str) and len(key) <= INLINE_CHARS and not key.startswith("$") and not _FALSE_PAIR.search(key)


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str | dict)  # noqa: PLR2004 - key and value


def _joined(text: str) -> Any:
    parts = _FALSE_PAIR.split(text)
    return text if len(parts) == 1 else {"$join": parts}


def _digest(text: str) -> bytes:
    found = hashlib.sha256()
    for start in range(0, len(text), _PIECE):
        found.update(text[start : start + _PIECE].encode("utf-8", "surrogatepass"))
    return found.digest()


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


def _secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    values = {environ.get(name, "") for name in _SECRETS}
    return tuple(sorted(value for value in values if len(value) >= _SECRET_MIN))
