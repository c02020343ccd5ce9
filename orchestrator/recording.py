"""How a run's events are numbered and handed on, and what a resumed run has on record of its past."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from orchestrator.events import Envelope, Event, Observed, Refused, Sink


@dataclass(frozen=True, slots=True)
class Past:
    """How a request to a model went, in a part of the run that its journal has.

    Attributes:
        code: why it failed; empty for one that was answered.
        text: the reply.
        stop_reason: why it ended.
        usage: its bill, as plain data.
        cost_usd: what it cost then; None for a model that had no price.
    """

    code: str = ""
    text: str = ""
    stop_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None


class GivenUpError(Exception):
    """A call in a cell that is played back has no recorded outcome: it was given up, and is given up again.

    It asks nobody and has no answer. Whoever meets this holds nothing for it any more and lets it wait for the end of
    its cell.

    Attributes:
        stops: that cell was stopped then and did not end by itself, so it is to be stopped again.
    """

    def __init__(self, *, stops: bool) -> None:
        super().__init__("it was given up with its cell")
        self.stops = stops


@dataclass(slots=True)
class Recorder:
    """Numbers a run's events and hands each to every sink, in order, before it returns.

    A sink that raises stops the run: an event that cannot be recorded must not take effect.

    A run that is resumed has a recorder that knows its past (:mod:`orchestrator.trajectory.replay`); others have none.
    """

    run: str
    parent: str | None
    sinks: tuple[Sink, ...] = ()
    _seq: int = 0
    _began: float = field(default_factory=time.monotonic)

    def show(self, turn: int, text: str) -> str:
        """Record what the root model is shown of a turn, and return it."""
        self.emit(Observed(turn, text))
        return text

    def compacts(self, turn: int) -> bool | None:
        """Return whether that turn was one of :class:`Compacting`; None for one that is not recorded."""

    def recall(self, purpose: str, model: str, prompt: str, max_tokens: int) -> Past | None:
        """Return how such a request went, once for each that is recorded; None where it is to be made."""

    @property
    def tool_calls(self) -> int:
        """The highest number of a call of a tool that is recorded."""
        return 0

    def recall_tool(self, cell: int, tool: str, arguments: str) -> str | None:
        """Return the result of such a call, once for each that is recorded; None where it is to be made."""

    def refusal(self, cell: int, method: str, nth: int) -> Refused | None:
        """Return how the ``nth`` call of a method in a cell was refused; None if it was not."""

    def budget(self, cell: int, nth: int) -> dict[str, int | float] | None:
        """Return what the ``nth`` ``budget`` call of a cell was told is left; None where that is not recorded."""

    def begin_child(self, cell: int, *, interrupted: bool) -> None:
        """Note that a child run is about to begin, or to go on where it was interrupted or cut off.

        Raises:
            GivenUpError: it was given up with its cell.
            ResumeError: nothing may be asked.
        """

    def emit(self, event: Event) -> None:
        """Record ``event`` everywhere."""
        envelope = Envelope(self.run, self.parent, self._seq, time.monotonic() - self._began, time.time(), event)
        self._seq += 1
        for sink in self.sinks:
            sink(envelope)
