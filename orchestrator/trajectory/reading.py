"""Reading a journal: lines, what they say, and long texts put back in place (format: ``JOURNAL.md``)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from orchestrator.errors import JournalError
from orchestrator.events import SCHEMA_VERSION
from orchestrator.trajectory.chain import sealed

# In the first event of a journal that is redacted, and only there.
REDACTED = "redacted"

_BEGINNING = b'{"v":'
# Characters that are hashed at a time.
_PIECE = 1 << 18


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
        chain: the hash chain's value behind it; empty in a journal from before there was one.
    """

    run: str
    parent: str | None
    seq: int
    elapsed_s: float
    time: float
    kind: str
    fields: dict[str, Any]
    chain: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record under the names its line has, as ``journal show --json`` prints it."""
        head = {"v": SCHEMA_VERSION, "run": self.run, "parent": self.parent, "seq": self.seq}
        tail = {"chain": self.chain} if self.chain else {}
        return {**head, "t": self.elapsed_s, "time": self.time, "kind": self.kind, **self.fields, **tail}


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
            yield from Reader(path, file).records()
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error


def is_redacted(path: str | Path) -> bool:
    """Tell whether a journal holds lengths and hashes in the place of texts.

    Raises:
        JournalError: as :func:`read`, of its beginning.
    """
    first = next(read(path), None)
    return first is not None and first.fields.get(REDACTED) is True


@dataclass(frozen=True, slots=True)
class Line:
    """A whole line of a journal.

    Attributes:
        number: from 1.
        offset: of its first byte in the file.
        raw: its bytes, the newline with them.
        blob: the hash whose text it holds; empty for an event.
        data: what it says, values not decoded; of a blob nothing.
    """

    number: int
    offset: int
    raw: bytes
    blob: str
    data: dict[str, Any]


class Reader:
    """Reads one open journal, once.

    Args:
        path: the file's, for messages.
        file: it, at its beginning.

    Attributes:
        number: of the line that was read last, from 1; 0 before the first.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Nothing is read yet."""
        self._path = path
        self._file = file
        self.number = 0
        self._places: dict[str, tuple[int, int]] = {}
        # Most references follow their blob at once; older ones are read again from the file instead of being kept.
        self._fresh: dict[str, str] = {}

    def records(self) -> Iterator[Record]:
        """Yield the events, texts in full; see :func:`read`."""
        for line in self.lines():
            if not line.blob:
                yield self.record(line)

    def lines(self) -> Iterator[Line]:
        """Yield the whole lines, each blob's text compared with its hash.

        Raises:
            JournalError: as :func:`read`.
        """
        offset = 0
        for raw in self._file:
            self.number += 1
            if not raw.endswith(b"\n"):
                # A first line cut short is still the beginning of one; anything else was never a journal.
                if self.number == 1 and raw[: len(_BEGINNING)] != _BEGINNING[: len(raw)]:
                    self._damaged("is not a line of a journal")
                return
            data, reference = self._parse(raw), ""
            if data["kind"] == "blob":
                reference, text = self._blob(data)
                self._places[reference] = (offset, len(raw))
                self._fresh[reference] = text
                data = {}
            yield Line(self.number, offset, raw, reference, data)
            offset += len(raw)

    def record(self, line: Line) -> Record:
        """Return the event that a line which :meth:`lines` yielded last tells of.

        Raises:
            JournalError: it is none of this format, or refers to a text that no earlier line holds.
        """
        data = dict(line.data)
        chain = sealed(line.raw) or ""
        data.pop("chain", None)
        record = self._record(data, chain)
        self._fresh.clear()
        return record

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

    def _record(self, data: dict[str, Any], chain: str) -> Record:
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
            chain=chain,
        )

    def _blob(self, data: dict[str, Any]) -> tuple[str, str]:
        text = self._value(data.get("text"))
        if not isinstance(text, str):
            self._damaged("is a blob without text")
        reference = f"sha256:{digest(text).hex()}"
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
        raise JournalError(f"{self._path}, line {self.number} {what}") from cause


def _fits_head(head: dict[str, Any]) -> bool:
    return (
        isinstance(head["run"], str)
        and isinstance(head["parent"], str | None)
        and type(head["seq"]) is int
        and all(type(head[key]) in (int, float) for key in ("t", "time"))
    )


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str | dict)  # noqa: PLR2004 - key and value


def digest(text: str) -> bytes:
    """Return the hash that a text is referred to by: SHA-256 over its UTF-8, lone surrogates as if characters."""
    found = hashlib.sha256()
    for start in range(0, len(text), _PIECE):
        found.update(text[start : start + _PIECE].encode("utf-8", "surrogatepass"))
    return found.digest()
