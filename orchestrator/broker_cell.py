"""What the broker remembers of one cell: ids seen, batches open, refusals told. All bounded, and gone with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import anyio

from orchestrator.broker_params import invalid
from orchestrator.events import Refused
from orchestrator.ledger import Amount, Reservation
from orchestrator.models.base import Model
from orchestrator.recording import Recorder
from orchestrator.transport.rpc import RpcCall, RpcRefusal

# Six batches of 10,000 prompts; about 10 MB of ids on the host.
MAX_CALLS: Final = 65_536
# A cell may be refused 65,536 times; its first ones of each kind tell the story, the rest is a number.
RECORDED_REFUSALS: Final = 32
# Answers to `budget` of one cell that are recorded, some 300 bytes each; later ones are given and not played back.
RECORDED_BUDGETS: Final = 1024
# Calls of a cell that cost nothing (refused, or asking what is left) and are answered at once; after those, each waits.
# A box has a window of calls and no more, so a flood of them costs this host a thousand or so a second.
FREE_CALLS: Final = 4096
FREE_CALL_S: Final = 0.02


@dataclass(slots=True)
class Batch:
    """A batch under way and what is held for the part of it that was not sent yet.

    Attributes:
        model: of every prompt in it; None for a batch of child runs.
        name: how the cell asked for that model; None when it left the choice to us.
        max_tokens: of every prompt.
        unsent: prompts that may still be sent.
        held: their calls and their input; or the child runs.
    """

    model: Model | None
    name: str | None
    max_tokens: int
    unsent: int
    held: Reservation

    def draw(self, known: Amount) -> Reservation:
        """Take one prompt's call, and what is held of its ``known`` cost, out of the batch.

        Raises:
            RpcRefusal: ``invalid_params``; all prompts were sent.
        """
        if not self.unsent:
            raise invalid("the batch has no prompt left to send", 0)
        self.unsent -= 1
        part = self.held.split(known.smaller(self.held.held))
        if not self.unsent:
            self.held.release()
        return part


@dataclass(slots=True)
class CellBooks:
    """The calls and batches of the cell that is open; cell numbers only grow."""

    _cell: int = -1
    _closed: int = -1
    _ids: dict[str, int] = field(default_factory=dict)
    _calls: Counter[str] = field(default_factory=Counter)
    _batches: dict[str, Batch] = field(default_factory=dict)
    _opened: int = 0
    _free: int = 0

    async def pace(self) -> None:
        """Note a call that costs nothing, and wait when the cell has made many."""
        self._free += 1
        if self._free > FREE_CALLS:
            await anyio.sleep(FREE_CALL_S)

    def admit(self, call: RpcCall) -> int:
        """Note a call and return its cell.

        Raises:
            RpcRefusal: ``no_open_cell``, ``duplicate_id`` or ``too_many_calls``.
        """
        cell = call.cell
        if cell is None or cell <= self._closed:
            raise RpcRefusal("no_open_cell", "calls are answered only while a cell runs")
        if cell > self._cell:
            self.close(cell - 1)
            self._cell = cell
        if call.id in self._ids:
            raise RpcRefusal("duplicate_id", "a call with this id was made already")
        if len(self._ids) >= MAX_CALLS:
            raise RpcRefusal("too_many_calls", f"one cell can make {MAX_CALLS:,} calls", limit=MAX_CALLS)
        self._calls[call.method] += 1
        self._ids[call.id] = self._calls[call.method]
        return cell

    def nth(self, call: RpcCall) -> int:
        """Return which call of its method in its cell an admitted one is, from 1; 0 of one that was not admitted."""
        return self._ids.get(call.id, 0)

    def add(self, batch: Batch) -> str:
        """Keep ``batch`` and return its id."""
        self._opened += 1
        identity = f"b{self._opened}"
        self._batches[identity] = batch
        return identity

    def batch(self, identity: str) -> Batch:
        """Return an open batch.

        Raises:
            RpcRefusal: ``invalid_params``; there is none of that id.
        """
        try:
            return self._batches[identity]
        except KeyError:
            raise invalid("there is no open batch of that id") from None

    def remove(self, identity: str) -> None:
        """Close a batch; what is held for prompts that were not sent is given back.

        Raises:
            RpcRefusal: ``invalid_params``; there is none of that id.
        """
        self.batch(identity).held.release()
        del self._batches[identity]

    def close(self, cell: int) -> None:
        """Close every cell up to ``cell``: forget the ids, release the batches, admit no call of it any more."""
        self._closed = max(self._closed, cell)
        if self._cell <= self._closed:
            self._ids.clear()
            self._calls.clear()
            self._free = 0
            for batch in self._batches.values():
                batch.held.release()
            self._batches.clear()


class RefusalLog:
    """Records refusals without letting a box fill the journal: the first of each kind singly, the rest as a number."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._seen: Counter[str] = Counter()
        self._last: dict[str, Refused] = {}

    def record(self, call: RpcCall, refusal: RpcRefusal, nth: int) -> None:
        """Record the refusal of the ``nth`` call of its method in the cell, or count it."""
        self._seen[refusal.reason] += 1
        more = self._seen[refusal.reason] - RECORDED_REFUSALS
        event = Refused(call.cell, call.method, refusal.reason, refusal.limit, max(more, 1), nth, str(refusal))
        if more <= 0:
            self._recorder.emit(event)
        else:
            self._last[refusal.reason] = event

    def flush(self) -> None:
        """Record the numbers, and begin anew."""
        left, self._last = self._last, {}
        self._seen.clear()
        for event in left.values():
            self._recorder.emit(event)
