"""Whether a journal is whole, unchanged, and of one mind with those of its child runs and with its own ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.text import counted, one_line
from orchestrator.trajectory.books import Books
from orchestrator.trajectory.chain import Chain, sealed
from orchestrator.trajectory.following import following
from orchestrator.trajectory.journal import RUN_ID, SUFFIX
from orchestrator.trajectory.reading import Line, Reader, Record

# Far more levels than a policy may allow: what goes deeper was made to be read for ever.
_MOST_LEVELS = 64
_WORD_CHARS = 80
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
# How a child run ends of which its parent alone may know: it was cancelled before its journal was made.
_NEVER_BEGAN = ("failed", "interrupted")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: in which journal.
        line: where, from 1; None where it is no single line.
        what: a sentence without its full stop.
    """

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        """Return it as one line for a person."""
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


@dataclass(slots=True)
class Report:
    """What :func:`verify` found.

    Attributes:
        file: the journal.
        run: id of its run; empty where no event tells.
        head: value of the hash chain behind its last event; empty without a chain.
        events: how many it and the journals of its child runs hold.
        journals: how many were read.
        problems: what is wrong.
        notes: what could not be checked, and why.
    """

    file: str
    run: str = ""
    head: str = ""
    events: int = 0
    journals: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``journal verify --json`` prints it."""
        plain = {name: getattr(self, name) for name in ("file", "run", "head", "events", "journals")}
        found = {
            name: [{"file": each.file, "line": each.line, "what": each.what} for each in getattr(self, name)]
            for name in ("problems", "notes")
        }
        return {"ok": self.ok, **plain, **found}


def verify(path: Path, head: str | None = None) -> Report:
    """Check a journal and those of its child runs, which are looked for beside it.

    Numbers without a gap; the hash chain; each text's hash; pairs of start and end; child runs against their own
    journals; a question of a session against the one before; and what was spent, by the events, against the ledger's
    last word. A line torn off at the end is no problem, nor is a run that has not ended; what cannot be checked for
    that is a note.

    Args:
        path: the journal.
        head: what its chain has to end with, in hexadecimal, as it was told when the run ended.
    """
    report = Report(str(path))
    checked = _Run(path, report, frozenset())
    checked.check()
    report.run, report.head = checked.id, checked.chain.head
    if head is not None:
        checked.compare_head(head.lower())
    return report


class _Run:
    """One journal under examination."""

    def __init__(self, path: Path, report: Report, above: frozenset[str]) -> None:
        self.id = ""
        self.parent: str | None = None
        self.depth = 0
        self.end: Record | None = None
        self.books = Books()
        self.chain = Chain()
        self.readable = True
        self._path = path
        self._report = report
        self._above = above
        self._line = 0
        self._sealed_at = 0
        self._events = 0
        self._heads: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._calls: dict[int, str | None] = {}
        self._children: dict[str, Record | None] = {}
        self._resumed = False
        self._read_to = 0
        self._next = 0
        self._session: dict[str, Any] = {}

    def check(self) -> None:
        """Go through the journal, then through those of its child runs."""
        self._report.journals += 1
        try:
            with self._path.open("rb") as file:
                self._read(Reader(self._path, file))
            if self.readable:
                self._torn(self._path.stat().st_size)
        except OSError as error:
            self.readable = False
            self._problem(f"cannot be read: {error.strerror}", None)
        self._report.events += self._events
        if not self._events and self.readable:
            self._problem("holds no event", None)
        if self._events and not self.chain.head:
            self._note("has no hash chain: it is from before there was one, or it was taken out")
        for child, finished in self._children.items():
            self._child(child, finished)
        if self._session:
            for what in following(self._path, self.id, self._session, self._note):
                self._problem(what, None)
        self._end()

    def compare_head(self, head: str) -> None:
        """Compare the chain's last value with what it is to be."""
        if head == self.chain.head:
            return
        if not self.chain.head:
            self._problem("has no hash chain to compare the head with", None)
        elif head in self._heads:
            since = self._events - self._heads[head]
            self._problem(f"goes on behind the head that was given: {counted(since, 'event')} more", None)
        else:
            self._problem(f"its head is {self.chain.head}, not the one that was given", None)

    def _read(self, reader: Reader) -> None:
        try:
            self._lines(reader)
        except JournalError as error:
            self.readable = False
            self._line = reader.number
            self._problem(_without_place(str(error), self._path, self._line))

    def _lines(self, reader: Reader) -> None:
        for line in reader.lines():
            self._line = line.number
            self._read_to = line.offset + len(line.raw)
            if line.blob:
                self.chain.update(line.raw)
                if line.blob in self._texts:
                    self._problem(f"holds the text of line {self._texts[line.blob]} once more")
                self._texts.setdefault(line.blob, line.number)
                continue
            self._check_chain(line)
            record = reader.record(line)
            try:
                self._event(record)
            except _MALFORMED as error:
                detail = one_line(f"{type(error).__name__}: {error}", _WORD_CHARS)
                kind = one_line(record.kind, _WORD_CHARS)
                raise JournalError(
                    f"{self._path}, line {line.number} is no {kind} of this format ({detail})"
                ) from error

    def _check_chain(self, line: Line) -> None:
        if not self.chain.check(line.raw):
            since = f"a line since line {self._sealed_at}" if self._sealed_at else "a line before it"
            lost = sealed(line.raw) is None
            self._problem(
                "has no value of the hash chain, which was begun before"
                if lost
                else f"the hash chain breaks: it or {since} was changed, removed, inserted or moved"
            )
        self._sealed_at = line.number
        self._events += 1
        if self.chain.head:
            self._heads[self.chain.head] = self._events

    def _event(self, record: Record) -> None:
        first = self._events == 1
        if first:
            self.id, self.parent = record.run, record.parent
            # A run that was stopped before it began has an end alone.
            if record.kind not in ("run_started", "run_finished"):
                self._problem("the first event is no run_started")
        elif (record.run, record.parent) != (self.id, self.parent):
            self._problem(f"belongs to another run, {one_line(record.run, _WORD_CHARS)}")
        if record.seq != self._next:
            self._problem(f"has the number {record.seq} in the run where {self._next} was to come")
        self._next = record.seq + 1
        if self.end is not None and record.kind != "resumed":
            self._problem(f"{one_line(record.kind, _WORD_CHARS)} behind the end of the run")
        self.end = None
        for what in self._told(record):
            self._problem(what)
        self.books.add(record)

    def _told(self, record: Record) -> Iterator[str]:
        """Take in what an event tells; yield what is wrong with it."""
        said = record.fields
        match record.kind:
            case "run_started":
                self.depth = int(said["depth"])
                self._session = dict(said.get("session") or {})
                if self._events > 1:
                    yield "the run begins once more"
            case "resumed":
                self._resumed = True
            case "run_finished":
                self.end = record
            case "child_started" | "child_finished":
                yield from self._child_told(record.kind, said["child"], record)
            case "subcall_started" | "subcall_finished" | "subcall_failed":
                yield from self._call_told(record.kind, said)

    def _child_told(self, kind: str, child: str, record: Record) -> Iterator[str]:
        if kind == "child_started":
            if child in self._children and not self._resumed:
                yield f"child run {one_line(child, _WORD_CHARS)} begins once more"
            self._children[child] = None
        else:
            if not _open(self._children, child, again=self._resumed):
                yield f"child run {one_line(child, _WORD_CHARS)} ends without a beginning"
            self._children[child] = record

    def _call_told(self, kind: str, said: dict[str, Any]) -> Iterator[str]:
        call, source, text = said["call"], said.get("memo_of"), said.get("text", "")
        if kind == "subcall_started":
            if call in self._calls and not self._resumed:
                yield f"sub-call {call} begins once more"
            self._calls[call] = None
            return
        if not _open(self._calls, call, again=self._resumed):
            yield f"sub-call {call} ends without a beginning"
        if source is not None and self._calls.get(source) != _mark(text):
            yield f"sub-call {call} does not have the answer of sub-call {source}, of which it tells"
        self._calls[call] = _mark(text)

    def _child(self, child: str, finished: Record | None) -> None:
        path = self._path.parent / f"{child}{SUFFIX}"
        if not RUN_ID.fullmatch(child):
            self._problem(f"child run {one_line(child, _WORD_CHARS)!r} has a name that no run can have", None)
        elif child in self._above | {self.id} or len(self._above) > _MOST_LEVELS:
            self._problem(f"child run {child} is its own ancestor, or nested too deep", None)
        elif not path.exists():
            if not self._may_be_missing(finished):
                self._problem(f"the journal of child run {child} is missing", None)
        else:
            run = _Run(path, self._report, self._above | {self.id})
            run.check()
            self._compare(run, child, finished)
            return
        self.readable &= self._may_be_missing(finished)

    def _may_be_missing(self, finished: Record | None) -> bool:
        """Tell whether a child run may have left no journal: it, or its parent, ended before there was one."""
        if finished is None:
            return self._resumed or self.end is None
        return (finished.fields.get("status"), finished.fields.get("reason")) == _NEVER_BEGAN

    def _compare(self, run: _Run, child: str, finished: Record | None) -> None:
        if run.readable and (run.id, run.parent, run.depth) != (child, self.id, self.depth + 1) and run.depth:
            told = f"run {run.id}, child of {run.parent}, at depth {run.depth}"
            self._report.problems.append(
                Problem(str(run._path), None, f"is of {told}; it is to be of run {child}, child of {self.id}")
            )
        if finished is not None and run.readable:
            ends = None if run.end is None else {name: run.end.fields.get(name) for name in ("status", "reason")}
            told_end = {name: finished.fields[name] for name in ("status", "reason")}
            if ends != told_end and not (ends is None and told_end["status"] == "failed"):
                its = "has no end" if ends is None else f"ended as {_end_text(ends)}"
                self._problem(f"child run {child} ended as {_end_text(told_end)}; in its own journal it {its}", None)
        self.readable &= run.readable and run.end is not None
        self.books.include(run.books)

    def _end(self) -> None:
        if self.end is None:
            if self._events and self.readable:
                self._note("the run has no end: it was cut off, or goes on; its totals were not compared")
            return
        if not self._resumed:
            open_ones = [f"sub-call {call}" for call, answer in self._calls.items() if answer is None]
            open_ones += [f"child run {child}" for child, finished in self._children.items() if finished is None]
            for what in open_ones:
                self._problem(f"{what} has no end, and the run has one", None)
        if not self.books.countable or not self.readable:
            why = "not all journals of the tree are whole" if self.books.countable else "the run was resumed"
            self._note(f"{why}: its totals were not compared")
            return
        try:
            for difference in self.books.differences(self.end.fields["usage"]):
                self._problem(difference, None)
        except _MALFORMED as error:
            self._problem(f"the usage at the run's end is not of this format ({type(error).__name__})", None)

    def _torn(self, size: int) -> None:
        if size > self._read_to:
            self._note(
                f"the last {counted(size - self._read_to, 'byte')} are a line that was torn off, and count for nothing"
            )

    def _problem(self, what: str, line: int | None = -1) -> None:
        self._report.problems.append(Problem(str(self._path), self._line if line == -1 else line, what))

    def _note(self, what: str) -> None:
        self._report.notes.append(Problem(str(self._path), None, what))


def _open(begun: dict[Any, Any], key: object, *, again: bool) -> bool:
    """Tell whether what ends has begun, and not ended; or ended before, where the run was resumed."""
    return key in begun and (again or begun[key] is None)


def _mark(text: str) -> str:
    """Return what tells one answer from another without keeping it."""
    return str(hash(text))


def _end_text(end: dict[str, Any]) -> str:
    return one_line(" ".join(str(part) for part in end.values() if part), _WORD_CHARS)


def _without_place(message: str, path: Path, line: int) -> str:
    return message.removeprefix(f"{path}, line {line} ").removeprefix(f"{path} ")
