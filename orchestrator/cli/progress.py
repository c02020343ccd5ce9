"""What a person sees on stderr while a run works, drawn from its events.

On a terminal: a line for each thing worth keeping, and below them one status line, redrawn in place. Elsewhere: plain
lines only, and now and then one that says where a long wait stands. Text of models and boxes is cleaned before it is
shown.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from orchestrator import events
from orchestrator.cli.common import is_terminal, tell
from orchestrator.cli.tally import Tally, clock_time, fit
from orchestrator.events import Envelope, Event
from orchestrator.models.base import Usage
from orchestrator.text import counted, one_line, printable
from orchestrator.trajectory.wording import circuit_text, context_facts

if TYPE_CHECKING:
    from orchestrator.models.prices import PriceTable

CODE_LINES = 6
OUTPUT_LINES = 4
REDRAW_S = 0.5
# Where there is no status line, a sign of life this often, if anything changed.
HEARTBEAT_S = 15.0

_OFTEN = (events.SubcallStarted, events.SubcallFinished, events.SubcallFailed)
_UNPRICED = "no price is known for {}: budget.cost_usd does not bound it"
_CLEAR_LINE = "\r\x1b[2K"
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


@dataclass(slots=True)
class _Run:
    """What must be remembered of one run to draw it."""

    depth: int = 0
    calls_before_cell: int = 0
    failed_before_cell: int = 0


@dataclass(slots=True)
class _Refusals:
    """Refusals that are equal and came one after the other, not shown yet.

    Attributes:
        run: whose.
        event: the first of them.
        count: how many.
        told: how many there were when it was last looked whether more had come.
    """

    run: _Run
    event: events.Refused
    count: int
    told: int = 0

    def take(self, run: _Run, event: events.Refused) -> bool:
        """Count one more if it is like these; return whether it is."""
        mine = (self.event.method, self.event.reason, self.event.limit)
        if run is not self.run or (event.method, event.reason, event.limit) != mine:
            return False
        self.count += event.count
        return True


@dataclass(slots=True)
class Progress:
    """A sink that draws a tree of runs on a stream.

    Attributes:
        stream: where to; stderr, in practice. One that is closed or fails is left alone.
        live: whether the stream is a terminal that understands control sequences.
        color: whether to use color there.
        clock: seconds, monotonic.
        width: columns the terminal has now.
        tally: what was counted.
        prices: tells which models have no price, to say so when a run begins; without it nothing is said.
    """

    stream: TextIO | None
    live: bool
    color: bool = False
    clock: Callable[[], float] = time.monotonic
    width: Callable[[], int] = field(default=lambda: shutil.get_terminal_size().columns)
    tally: Tally = field(default_factory=Tally)
    prices: PriceTable | None = None
    _runs: dict[str, _Run] = field(default_factory=dict)
    _began: float | None = None
    _status: str = ""
    _told: tuple[float, str] = (0.0, "")
    _refusals: _Refusals | None = None
    _open: bool = True

    @classmethod
    def on(cls, stream: TextIO | None, prices: PriceTable | None = None) -> Progress:
        """Return a view fit for ``stream``: live on a capable terminal, in color unless ``NO_COLOR`` is set."""
        live = is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("", "dumb")
        return cls(stream, live, color=live and not os.environ.get("NO_COLOR"), prices=prices)

    def __call__(self, envelope: Envelope) -> None:
        """Draw one event."""
        if not self._open:
            return
        if self._began is None:
            self._began = self.clock()
            self._told = (self._began, "")
        parent = self._runs.get(envelope.parent or "")
        run = self._runs.setdefault(envelope.run, _Run(depth=parent.depth + 1 if parent else 0))
        self.tally.add(envelope.event)
        if run.depth == 0 and isinstance(envelope.event, events.RootReplied):
            self.tally.turn = envelope.event.turn
        if isinstance(envelope.event, events.Refused):
            self._refused(envelope.event, run)
            return
        lines = self._lines(envelope.event, run)
        margin = "    " * run.depth
        if lines:
            self._put("".join(f"{margin}{line}\n" for line in lines))
        elif self.live and isinstance(envelope.event, _OFTEN):
            return  # Thousands come a second; the next tick shows them.
        if self.live:
            self._draw()

    async def tick(self) -> None:
        """Keep the status line, or the signs of life, up to date until cancelled."""
        import anyio

        while True:
            await anyio.sleep(REDRAW_S)
            self.refresh()

    def refresh(self) -> None:
        """Show how things stand now."""
        if self._began is None or not self._open:
            return
        self._look_for_more_refusals()
        if self.live:
            self._draw()
            return
        now, state = self.clock(), " · ".join(self.tally.parts())
        if now - self._told[0] >= HEARTBEAT_S and state != self._told[1]:
            self._told = (now, state)
            self._put(f"… {state} · {clock_time(now - self._began)}\n")

    def message(self, text: str) -> None:
        """Show a line that is about this program and not about the run."""
        self._put(f"{text}\n")

    def close(self) -> None:
        """Take the status line away; events that still come are not shown."""
        if self._open and (self._status or self._refusals):
            self._put("")
        self._open = False
        self._status = ""

    def _lines(self, event: Event, run: _Run) -> list[str]:
        match event:
            case events.RunStarted() if run.depth == 0:
                models = f"{event.root_model}, sub-calls {event.sub_model}"
                return [
                    self._line(f"question: {event.query}", "bold", run),
                    self._line(f"context: {context_facts(event.context)}; models: {models}", "dim", run),
                    *(self._line(_UNPRICED.format(name), "yellow", run) for name in self._unpriced(event)),
                ]
            case events.RootReplied():
                return [self._paint("bold", f"turn {event.turn}") + self._paint("dim", f"  {event.elapsed_s:.1f} s")]
            case events.CellStarted():
                run.calls_before_cell, run.failed_before_cell = self.tally.done, self.tally.failed
                return self._excerpt(event.code, CODE_LINES, "│ ", run)
            case events.CellFinished():
                return self._outcome(event, run)
            case events.RunFinished() if run.depth == 0:
                spent = [counted(self.tally.done, "sub-call"), self.tally.spend(), clock_time(event.elapsed_s)]
                facts = [event.status.replace("_", " "), counted(event.turns, "turn"), *spent]
                return [self._paint("bold", " · ".join(facts))]
        said = _said(event)
        return [] if said is None else [self._line(*said, run)]

    def _outcome(self, event: events.CellFinished, run: _Run) -> list[str]:
        result = event.result
        facts = [f"{result['elapsed_s']:.1f} s"]
        if calls := self.tally.done - run.calls_before_cell:
            facts.append(counted(calls, "sub-call"))
        if failed := self.tally.failed - run.failed_before_cell:
            facts.append(f"{failed:,} failed")
        if result["state_lost"]:
            facts.append("variables lost")
        ok = result["status"] == "ok"
        head = self._paint("green" if ok else "red", result["status"]) + self._paint("dim", "  " + ", ".join(facts))
        lines = self._excerpt(result["stdout"], OUTPUT_LINES, "  ", run)
        if result["error"]:
            lines.append(self._line(f"{result['error']['name']}: {result['error']['value']}", "red", run))
        elif not ok and result["detail"]:
            lines.append(self._line(result["detail"], "red", run))
        return [*lines, head]

    def _excerpt(self, text: str, most: int, mark: str, run: _Run) -> list[str]:
        # A cell's output can be megabytes; the lines shown are near its beginning.
        lines = [line.expandtabs(4).rstrip() for line in printable(text[: most * 4096]).split("\n")]
        lines = [line for line in lines if line]
        room = self._room(run) - len(mark)
        shown = [line if len(line) <= room else line[: room - 1] + "…" for line in lines[:most]]
        if len(lines) > most or len(text) > most * 4096:
            shown.append("…")
        return [self._paint("dim", mark + line) for line in shown]

    def _line(self, text: str, style: str, run: _Run) -> str:
        return self._paint(style, one_line(text, self._room(run)))

    def _room(self, run: _Run) -> int:
        return max((self.width() if self.live else 120) - 4 * run.depth - 1, 20)

    def _paint(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.color else text

    def _unpriced(self, event: events.RunStarted) -> list[str]:
        names = dict.fromkeys((event.root_model, event.sub_model))
        return [name for name in names if self.prices and self.prices.cost_nano(name, Usage()) is None]

    def _refused(self, event: events.Refused, run: _Run) -> None:
        # Code that tries again and again would fill the screen: a line is drawn when the last of a kind has come.
        if self._refusals is None or not self._refusals.take(run, event):
            if self._refusals is not None:
                self._put("")
            self._refusals = _Refusals(run, event, event.count)

    def _look_for_more_refusals(self) -> None:
        if (refusals := self._refusals) is not None:
            if refusals.told == refusals.count:
                self._put("")
            refusals.told = refusals.count

    def _put(self, text: str) -> None:
        if (refusals := self._refusals) is not None:
            self._refusals = None
            line = self._line(_refusal(refusals.event, refusals.count), "yellow", refusals.run)
            text = f"{'    ' * refusals.run.depth}{line}\n{text}"
        tell(self.stream, (_CLEAR_LINE if self._status else "") + text)
        self._status = ""

    def _draw(self) -> None:
        elapsed = clock_time(self.clock() - (self._began or 0.0))
        # The last column stays free: writing to it makes some terminals wrap.
        status = fit([*self.tally.parts(), elapsed], max(self.width() - 1, 1))
        if status != self._status:
            tell(self.stream, _CLEAR_LINE + self._paint("dim", status))
            self._status = status


def _refusal(event: events.Refused, count: int) -> str:
    left = "" if event.limit is None else f" ({event.limit:g} left)"
    times = f", {count:,} times" if count > 1 else ""
    return f"refused {event.method}: {event.reason}{left}{times}"


def _said(event: Event) -> tuple[str, str] | None:
    """Return the one line that some events are worth, and its style."""
    match event:
        case events.SandboxOpened():
            return f"sandbox ready in {event.elapsed_s:.2f} s ({event.runtime or 'default runtime'})", "dim"
        case events.RetryScheduled():
            return f"{event.purpose}: {event.code}, trying again in {event.wait_s:.1f} s", "yellow"
        case events.CircuitChanged():
            return circuit_text(event.provider, event.state, event.failures, event.wait_s), "yellow"
        case events.ChildStarted() | events.ChildFinished():
            return _of_child(event), "bold"
        case events.LimitReached():
            more = f"; for more: {event.more}" if event.more else ""
            return f"limit reached: {event.reason} ({event.limit:g} left){more}", "yellow"
    return None


def _of_child(event: events.ChildStarted | events.ChildFinished) -> str:
    if isinstance(event, events.ChildStarted):
        return f"child run: {event.query}"
    return f"child run {event.status}" + (f": {event.reason}" if event.reason else "")
