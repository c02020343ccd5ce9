"""A resumed run's events: what the journal has already is not recorded again, and what differs from it is noticed."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator import events
from orchestrator.errors import ResumeError
from orchestrator.events import Event, Sink
from orchestrator.ledger import Paid
from orchestrator.recording import GivenUpError, Past, Recorder
from orchestrator.trajectory.tape import CANCELLED, LATE, STOPPED, Tape, TapedCall

OnDivergence = Literal["stop", "live"]


@dataclass(slots=True)
class Replay(Recorder):
    """Numbers on where the journal ends. Until then it compares, and lets through only what is new.

    Attributes:
        tape: what is recorded.
        on_divergence: whether a cell that does something else this time ends the run (``stop``), or is recorded, and
            what it asks is asked live (``live``).
        otherwise: what whoever wants to go on all the same is told to ask for.
        live: whether what has no recorded outcome may be asked; where it may not, that is something else than it did.
        went_live: called once, before the first request that is new: what was paid for and is not played back is to be
            paid now. What it raises refuses the request.
    """

    tape: Tape = field(kw_only=True)
    on_divergence: OnDivergence = field(kw_only=True, default="stop")
    otherwise: str = field(kw_only=True, default="--on-divergence live")
    live: bool = field(kw_only=True, default=True)
    went_live: Callable[[], object] | None = field(kw_only=True, default=None)
    _claimed: dict[tuple[str, str, int], deque[TapedCall]] = field(default_factory=lambda: defaultdict(deque))
    _turn: int = 0
    _stopped: ResumeError | None = None
    _playing: set[int] = field(default_factory=set)
    _numbers: dict[int, int] = field(default_factory=dict)
    _shown: set[int] = field(default_factory=set)
    _open_cells: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, tape: Tape, sinks: tuple[Sink, ...], on_divergence: OnDivergence) -> Replay:
        """Go on with the journal that ``tape`` was made of; ``sinks`` append to it."""
        recorder = cls(tape.run, tape.parent, sinks, tape=tape, on_divergence=on_divergence)
        recorder._seq = tape.next_seq
        recorder._began = time.monotonic() - tape.elapsed_s
        recorder._shown = set(tape.shown)
        recorder._open_cells = set(tape.cells)
        return recorder

    def emit(self, event: Event) -> None:
        """Record what is new of it.

        Raises:
            ResumeError: a cell does something else than it did, and that is to end the run.
        """
        new = self._new(event)
        if new is not None:
            Recorder.emit(self, new)

    def show(self, turn: int, text: str) -> str:
        """Record what the root model is shown; return what it was shown then, where that is recorded."""
        if turn in self._shown:
            self._shown.remove(turn)
            return self.tape.shown[turn]
        Recorder.show(self, turn, text)
        return text

    def compacts(self, turn: int) -> bool | None:
        """Return whether that turn made a summary of the history, where it is recorded."""
        reply = self.tape.replies.get(turn)
        return None if reply is None else bool(reply.get("summary"))

    def recall(self, purpose: str, model: str, prompt: str, max_tokens: int) -> Past | None:
        """Return the root model's replies in their order, and the outcome of a sub-call that was just started.

        Raises:
            ResumeError: there is none, and nothing may be asked.
        """
        past = self._reply() if purpose == "root" else self._outcome(model, prompt, max_tokens)
        if past is None and not self.live:
            raise ResumeError("what is not recorded was asked for")
        if past is None and self.went_live is not None:
            went_live, self.went_live = self.went_live, None
            went_live()
        return past

    def unpaid(self) -> list[Paid]:
        """Return what was paid for in earlier parts of the run and is in no account of this one, at its end."""
        unplayed = [] if self.went_live is None else self.tape.unplayed
        return [*unplayed, *self.tape.left_over(self._turn)]

    def _reply(self) -> Past | None:
        self._turn += 1
        reply = self.tape.replies.get(self._turn)
        return None if reply is None else _past(reply)

    def _outcome(self, model: str, prompt: str, max_tokens: int) -> Past | None:
        waiting = self._claimed.get((model, prompt, max_tokens))
        if not waiting:
            return None
        taped = waiting.popleft()
        return Past(taped.code) if taped.answer is None else _past(taped.answer)

    @property
    def tool_calls(self) -> int:
        """The highest number that is recorded."""
        return self.tape.last_tool

    def recall_tool(self, cell: int, tool: str, arguments: str) -> str | None:
        """Return the result of such a call, as recorded.

        Raises:
            GivenUpError: it was given up with its cell.
            ResumeError: a finished cell calls what it did not call then, and that is to end the run.
        """
        result = self.tape.claim_tool(cell, tool, arguments)
        if result is None:
            self._unrecorded(cell, "it called a tool otherwise than it did then")
        return result

    def refusal(self, cell: int, method: str, nth: int) -> events.Refused | None:
        """Return how a call in a finished cell was refused.

        Raises:
            GivenUpError: because the cell was about to be stopped, and it was.
        """
        refused = self.tape.refusal(cell, method, nth)
        if refused is not None and refused.reason == LATE and self.tape.stopped(cell):
            raise GivenUpError(stops=True)
        return refused

    def budget(self, cell: int, nth: int) -> dict[str, Any] | None:
        """Return what a call was told is left, so that what goes by it goes the same way."""
        return self.tape.told(cell, nth)

    def begin_child(self, cell: int, *, interrupted: bool) -> None:
        """Let a child run begin or go on where it may; one whose journal is lost is carried out anew."""
        if self.tape.stopped(cell) or interrupted or not self.live:
            self._unrecorded(cell, "it asked for a child run that has no recorded answer", given_up=interrupted)

    def _new(self, event: Event) -> Event | None:
        """Return what is to be recorded of an event: itself, itself under another number, or nothing."""
        match event:
            case events.CellStarted() | events.CellFinished() | events.FinalSet():
                return self._of_cell(event)
            case events.SubcallStarted():
                return self._subcall_started(event)
            case events.Refused(cell=cell) if cell is not None and self.tape.finished(cell):
                return None
            case events.SubcallFinished() | events.SubcallFailed():
                return self._subcall_ended(event)
        return None if self._is_played(event) else event

    def _is_played(self, event: Event) -> bool:
        match event:
            case events.RootReplied() | events.Compacting():
                return event.turn in self.tape.replies
        return isinstance(event, events.RunStarted)

    def _of_cell(self, event: events.CellStarted | events.CellFinished | events.FinalSet) -> Event | None:
        cell = event.cell
        if isinstance(event, events.CellStarted) and cell in self._open_cells:
            self._open_cells.remove(cell)
            if event.code != self.tape.cells[cell].code:
                self._diverged(cell, "its code is another")
            return None
        if not self.live and isinstance(event, events.CellStarted):
            self._diverged(cell, "it was not run then")
        if not self.tape.finished(cell):
            return event
        if isinstance(event, events.CellFinished):
            self._compare(cell, event.result)
        return None

    def _compare(self, cell: int, now: dict[str, Any]) -> None:
        then = self.tape.cells[cell].result or {}
        if now.get("status") == CANCELLED or (self.tape.stopped(cell) and now.get("status") in STOPPED):
            return  # that is no doing of the cell's own, and how far it came is a matter of time
        if then.get("status") != now.get("status"):
            self._diverged(cell, f"it ended as {now.get('status')}, and as {then.get('status')} then")
        elif any(then.get(name) != now.get(name) for name in ("stdout", "result")):
            self._diverged(cell, "it printed something else", harmless=True)

    def _subcall_started(self, event: events.SubcallStarted) -> Event | None:
        asked = event.cell, event.model, event.prompt, event.max_tokens
        taped = self.tape.claim(*asked)
        if taped is not None:
            self._claimed[event.model, event.prompt, event.max_tokens].append(taped)
            self._playing.add(event.call)
            return None
        self._unrecorded(event.cell, "it asked something that it did not ask then", given_up=self.tape.gave_up(*asked))
        self.tape.last_call += 1
        self._numbers[event.call] = self.tape.last_call
        return replace(event, call=self.tape.last_call)

    def _subcall_ended(self, event: events.SubcallFinished | events.SubcallFailed) -> Event | None:
        if event.call in self._playing:
            self._playing.remove(event.call)
            return None
        return replace(event, call=self._numbers.get(event.call, event.call))

    def _unrecorded(self, cell: int, what: str, *, given_up: bool = False) -> None:
        """Deal with a request that has no recorded outcome; return where it is to be made.

        Args:
            cell: that asks.
            what: it did, if that is something else than it did then.
            given_up: it is recorded that this request was, with its cell or run.

        Raises:
            GivenUpError: the cell was stopped, or came to its end, before it had one.
            ResumeError: the cell had come to its end without it, or nothing may be asked.
        """
        stopped, finished = self.tape.stopped(cell), self.tape.finished(cell)
        if stopped or (given_up and finished):
            raise GivenUpError(stops=stopped)
        if finished or not self.live:
            self._diverged(cell, what)

    def _diverged(self, cell: int, what: str, *, harmless: bool = False) -> None:
        Recorder.emit(self, events.Diverged(cell, what))
        if self.on_divergence == "stop" and not harmless:
            told = f"cell {cell} does something else than it did: {what}; go on all the same with {self.otherwise}"
            # What comes of the first is no news of its own.
            self._stopped = self._stopped or ResumeError(told)
            raise self._stopped


def _past(said: dict[str, Any]) -> Past:
    return Past("", said["text"], said["stop_reason"], said["usage"], said["cost_usd"])
