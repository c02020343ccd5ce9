"""What a run has recorded, given out again in the course of a resumed one.

A resumed run is the same program over the same context: its loop asks the root model, runs cells, and cells ask
sub-models. Whatever of that the journal holds an answer to is answered from here, without asking or paying anyone, and
is not recorded a second time. Prompts are kept as hashes: a tape has the size of the answers.

A call is known by what it asks (model, prompt, reply length), not by its number: threads of a cell ask in any order.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator.errors import JournalError
from orchestrator.events import Refused
from orchestrator.ledger import Amount, Bill, Paid
from orchestrator.trajectory.books import Books
from orchestrator.trajectory.journal import SUFFIX, Record, read

_REFUSED = tuple(name.name for name in fields(Refused))
CANCELLED: Final = "cancelled"
"""Code of a call that was given up because its cell or run ended, and status of a cell that its run ended."""
LATE: Final = "cell_timeout_s"
"""Code of a call that was given up because its cell was about to be stopped."""
STOPPED: Final = frozenset((CANCELLED, "timeout"))
"""Status of a cell that did not end by itself."""


@dataclass(frozen=True, slots=True)
class TapedCell:
    """A cell that was sent into a box.

    Attributes:
        code: what was sent.
        result: how it ended, as recorded; None when the run was cut off first.
    """

    code: str
    result: dict[str, Any] | None

    @property
    def stopped(self) -> bool:
        """Whether it was stopped: what it waited for then, it does not get."""
        return self.result is not None and self.result.get("status") in STOPPED


@dataclass(frozen=True, slots=True)
class TapedCall:
    """A sub-call that ended.

    Attributes:
        cell: that asked.
        answer: the fields of its ``subcall_finished``, or None where it failed.
        code: why it failed; empty where it did not.
        model: that was asked.
    """

    cell: int
    answer: dict[str, Any] | None
    code: str = ""
    model: str = ""

    @property
    def paid(self) -> bool:
        """Whether its answer was paid for, and is paid for again when it is played back."""
        return self.answer is not None and self.answer.get("memo_of") is None


@dataclass(frozen=True, slots=True)
class TapedTool:
    """A call of a tool that returned.

    Attributes:
        cell: that asked.
        result: as JSON.
    """

    cell: int
    result: str


@dataclass(frozen=True, slots=True)
class TapedChild:
    """A child run that began.

    Attributes:
        id: of the run.
        cell: that asked for it.
        query: its question.
    """

    id: str
    cell: int
    query: str


_Taped = TypeVar("_Taped", TapedCall, TapedTool, TapedChild)


@dataclass(slots=True)
class TapedBox:
    """A box that a run had.

    Attributes:
        lent: it was that of the question before.
        closed: why it was given back; empty where that is not recorded.
    """

    lent: bool
    closed: str = ""


@dataclass(slots=True)
class Tape:
    """The record of one run, to be played back once.

    Attributes:
        path: of the journal.
        whole: as of :meth:`of`.
        run: id of the run.
        parent: id of the run that asked for it, or None.
        started: the fields of its ``run_started``.
        ended: those of its ``run_finished``, or None when it was cut off.
        replies: of the root model by turn, as recorded.
        shown: what the root model was shown after each turn.
        talk: all that was said between the root model and the run, in order: ``ask`` (the question), ``say``,
            ``reply``, and ``compact`` (a reply that is a summary), each with its text.
        boxes: in order.
        cells: by number.
        children: that began.
        after: seq of the last record that the course of the run follows; what stands behind it (the end of a run at a
            limit, and the notice before it) was paid for and does not count otherwise.
        next_seq: seq of the next record.
        head: value of the journal's hash chain behind the last record; empty without one.
        elapsed_s: seconds the run had taken, over all its parts.
        budget: what the whole run could spend when it last went on, by policy key; empty for one that never did.
        unplayed: what was paid for and is not played back: calls that were cut off, attempts that failed, last turns.
        last_call: the highest number of a sub-call.
        last_child: the highest number of a child run.
        last_tool: the highest number of a call of a tool.
    """

    path: Path
    whole: bool = False
    run: str = ""
    parent: str | None = None
    started: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] | None = None
    replies: dict[int, dict[str, Any]] = field(default_factory=dict)
    shown: dict[int, str] = field(default_factory=dict)
    talk: list[tuple[str, str]] = field(default_factory=list)
    boxes: list[TapedBox] = field(default_factory=list)
    cells: dict[int, TapedCell] = field(default_factory=dict)
    children: list[TapedChild] = field(default_factory=list)
    after: int = -1
    next_seq: int = 0
    head: str = ""
    elapsed_s: float = 0.0
    budget: dict[str, Any] = field(default_factory=dict)
    unplayed: list[Paid] = field(default_factory=list)
    last_call: int = 0
    last_child: int = 0
    last_tool: int = 0
    _calls: dict[bytes, deque[TapedCall]] = field(default_factory=lambda: defaultdict(deque))
    _refused: dict[tuple[int, str, int], Refused] = field(default_factory=dict)
    _budgets: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    _given_up: set[tuple[int, bytes]] = field(default_factory=set)
    _tools: dict[bytes, deque[TapedTool]] = field(default_factory=lambda: defaultdict(deque))

    @classmethod
    def of(cls, path: Path, *, whole: bool = False) -> Tape:
        """Read a journal.

        Args:
            path: of the journal.
            whole: take what a limit put behind the course, and a cell in which it was interrupted, as a part of it:
                the run is not to go on, but to be retold.

        Raises:
            JournalError: it cannot be read, is damaged, or holds no beginning of a run.
        """
        tape = cls(path, whole)
        tape._take(read(path))
        if not tape.started:
            raise JournalError(f"{path} holds no beginning of a run: there is nothing to resume")
        return tape

    def child(self, child: TapedChild) -> Tape:
        """Return the tape of a child run, whose journal lies beside this one.

        Raises:
            JournalError: it is missing or damaged.
        """
        return Tape.of(self.path.with_name(f"{child.id}{SUFFIX}"))

    # Playing --------------------------------------------------------------------------------------------------------

    def finished(self, cell: int) -> bool:
        """Whether a cell was run to its end."""
        found = self.cells.get(cell)
        return found is not None and found.result is not None

    def stopped(self, cell: int) -> bool:
        """Whether a cell was run and did not end by itself."""
        found = self.cells.get(cell)
        return found is not None and found.stopped

    def claim(self, cell: int, model: str, prompt: str, max_tokens: int) -> TapedCall | None:
        """Take the next recorded outcome of such a sub-call of a cell, or None where there is none (left)."""
        return self._next(cell, self._calls.get(_key(model, prompt, max_tokens)))

    def claim_tool(self, cell: int, tool: str, arguments: str) -> str | None:
        """Take the next recorded result of such a call of a tool, or None where there is none (left)."""
        found = self._next(cell, self._tools.get(_key(tool, arguments, 0)))
        return None if found is None else found.result

    def gave_up(self, cell: int, model: str, prompt: str, max_tokens: int) -> bool:
        """Whether a finished cell did not wait for the answer to such a sub-call."""
        return (cell, _key(model, prompt, max_tokens)) in self._given_up

    def refusal(self, cell: int, method: str, nth: int) -> Refused | None:
        """Take how the ``nth`` call of a method in a finished cell was refused, if it was."""
        return self._refused.pop((cell, method, nth), None) if self.finished(cell) else None

    def told(self, cell: int, nth: int) -> dict[str, Any] | None:
        """Return what the ``nth`` ``budget`` call of a cell was told, if that is recorded."""
        return self._budgets.get((cell, nth))

    def claim_child(self, cell: int, query: str) -> TapedChild | None:
        """Take the next recorded child run of that question, or None."""
        found = self._next(cell, deque(child for child in self.children if child.query == query))
        if found is not None:
            self.children.remove(found)
        return found

    def _next(self, cell: int, waiting: deque[_Taped] | None) -> _Taped | None:
        """Take the first of a cell's own; else of any other's, but what a stopped cell did not get it does not get."""
        if not waiting or (self.stopped(cell) and all(taped.cell != cell for taped in waiting)):
            return None
        found = next((taped for taped in waiting if taped.cell == cell), waiting[0])
        waiting.remove(found)
        return found

    def left_over(self, turns: int) -> list[Paid]:
        """Return what is still to be paid of what could have been played back, where ``turns`` replies were.

        A run that goes on may end before all of that is asked for, or ask for something else.
        """
        books = Books(self._depth)
        for turn, said in self.replies.items():
            if turn > turns:
                books.answer(str(self.started["root_model"]), said, turns=1)
        for call in chain.from_iterable(self._calls.values()):
            if call.answer is not None and call.paid:
                books.answer(call.model, call.answer)
        trees = [Books.of_tree(self.path.with_name(f"{child.id}{SUFFIX}")) for child in self.children]
        begun = Paid(Amount(children=sum(1 + tree.children for tree in trees)), Bill(""), self._depth)
        return [*books.paid(), *chain.from_iterable(tree.paid() for tree in trees), begun]

    @property
    def _depth(self) -> int:
        return int(self.started["depth"])

    # Reading --------------------------------------------------------------------------------------------------------

    def _take(self, records: Iterable[Record]) -> None:
        course: list[Record] = []
        books = Books()
        limited = False
        for record in records:
            self.run, self.parent = record.run, record.parent
            self.next_seq, self.head = record.seq + 1, record.chain
            self.elapsed_s = max(self.elapsed_s, record.elapsed_s)
            books.add(record)
            if record.kind == "resumed":
                # What a limit or a failure had put behind the course is paid for, and gone from it.
                course = [item for item in course if item.seq <= record.fields["after"]]
                limited, self.ended = False, None
                self.budget = record.fields["budget"]
            elif record.kind == "run_finished":
                self.ended = record.fields
            elif record.kind == "limit_reached" or _fetches_draft(record, course):
                limited = True
            elif record.kind == "subcall_started":
                self.last_call = max(self.last_call, record.fields["call"])
            elif record.kind == "tool_started":
                self.last_tool = max(self.last_tool, record.fields["call"])
            elif record.kind == "child_started":
                self.last_child = max(self.last_child, _number(record.fields["child"]))
            if self.whole or (not limited and record.kind not in ("run_finished", "sandbox_closed")):
                self.after = record.seq
            course.append(record)
        books.cut_off()
        self._play([record for record in course if record.seq <= self.after])
        if self.started:
            self._pay(books)

    def _pay(self, books: Books) -> None:
        """Find out what was paid for and is not played back; an answer is played back as one request without turns."""
        for said in self.replies.values():
            books.answer(str(self.started["root_model"]), said, times=-1)
        for call in chain.from_iterable(self._calls.values()):
            if call.answer is not None and call.paid:
                books.answer(call.model, call.answer, times=-1)
        unplayed = [replace(paid, amount=paid.amount._replace(turns=0)) for paid in books.paid()]
        self.unplayed = [paid for paid in unplayed if any(paid.amount)]

    def _play(self, course: list[Record]) -> None:
        asked: dict[int, Record] = {}
        called: dict[int, dict[str, Any]] = {}
        outcomes: list[tuple[dict[str, Any], Record]] = []
        for record in course:
            if record.kind == "subcall_started":
                asked[record.fields["call"]] = record
            elif record.kind in ("subcall_finished", "subcall_failed"):
                outcomes.append((asked.pop(record.fields["call"]).fields, record))
            elif record.kind == "tool_started":
                called[record.fields["call"]] = record.fields
            elif record.kind == "tool_finished":
                said = called[record.fields["call"]]
                taped = TapedTool(said["cell"], record.fields["result"])
                self._tools[_key(said["tool"], said["arguments"], 0)].append(taped)
            else:
                self._play_one(record.kind, record.fields)
        for started, outcome in outcomes:
            self._add_call(started, outcome)

    def _play_one(self, kind: str, said: dict[str, Any]) -> None:
        match kind:
            case "run_started":
                self.started = said
            case "sandbox_opened":
                self.boxes.append(TapedBox(said.get("lent", False)))
            case "sandbox_closed":
                self.boxes[-1].closed = said["reason"]
            case "root_replied" | "observed":
                self._hear(kind, said["turn"], said)
            case "cell_started":
                self.cells[said["cell"]] = TapedCell(said["code"], None)
            case "cell_finished" if self.whole or said["result"].get("status") != CANCELLED:
                # In one that is not retold the run was interrupted: it is to be run again.
                self.cells[said["cell"]] = TapedCell(self.cells[said["cell"]].code, said["result"])
            case "refused" if said["cell"] is not None and said.get("nth"):
                refused = Refused(**{name: said[name] for name in _REFUSED if name in said})
                self._refused[refused.cell or 0, refused.method, refused.nth] = refused
            case "budget_told":
                self._budgets[said["cell"], said["nth"]] = said["left"]
            case "child_started":
                self.children.append(TapedChild(said["child"], said["cell"], said["query"]))

    def _hear(self, kind: str, turn: int, said: dict[str, Any]) -> None:
        if kind == "root_replied":
            self.replies[turn] = said
            self.talk.append(("compact" if said.get("summary") else "reply", said["text"]))
        else:
            self.shown[turn] = said["text"]
            self.talk.append(("say" if turn else "ask", said["text"]))

    def _add_call(self, started: dict[str, Any], outcome: Record) -> None:
        said, cell = outcome.fields, started["cell"]
        key = _key(started["model"], started["prompt"], started["max_tokens"])
        if outcome.kind == "subcall_finished":
            self._calls[key].append(TapedCall(cell, said, model=str(started["model"])))
        elif said["code"] == CANCELLED:
            self._given_up.add((cell, key))
        elif self.finished(cell) and not (said["code"] == LATE and self.stopped(cell)):
            self._calls[key].append(TapedCall(cell, None, said["code"]))


def _fetches_draft(record: Record, course: list[Record]) -> bool:
    """Whether a run that found no answer asks its box for what it has so far: a cell of ours behind a reply."""
    ours = record.kind == "cell_started" and record.fields["turn"] == 0
    return ours and any(before.kind == "root_replied" for before in course)


def _number(child: str) -> int:
    number = child.rpartition(".")[2]
    return int(number) if number.isdigit() else 0


def _key(model: str, prompt: str, max_tokens: int) -> bytes:
    text = f"{model}\0{max_tokens}\0{prompt}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()
