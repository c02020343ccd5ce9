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
from typing import TextIO

from orchestrator import events
from orchestrator.cli.common import write
from orchestrator.cli.tally import Tally, clock_time, fit
from orchestrator.events import Envelope, Event
from orchestrator.text import counted, one_line, printable
from orchestrator.trajectory.view import context_facts

CODE_LINES = 6
OUTPUT_LINES = 4
REDRAW_S = 0.5
# Where there is no status line, a sign of life this often, if anything changed.
HEARTBEAT_S = 15.0

_OFTEN = (events.SubcallStarted, events.SubcallFinished, events.SubcallFailed)
_CLEAR_LINE = "\r\x1b[2K"
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


@dataclass(slots=True)
class _Run:
    """What must be remembered of one run to draw it."""

    depth: int = 0
    calls_before_cell: int = 0
    failed_before_cell: int = 0


@dataclass(slots=True)
class Progress:
    """A sink that draws a tree of runs on a stream.

    Attributes:
        stream: where to; stderr, in practice.
        live: whether the stream is a terminal that understands control sequences.
        color: whether to use color there.
        clock: seconds, monotonic.
        width: columns the terminal has now.
        tally: what was counted.
    """

    stream: TextIO
    live: bool
    color: bool = False
    clock: Callable[[], float] = time.monotonic
    width: Callable[[], int] = field(default=lambda: shutil.get_terminal_size().columns)
    tally: Tally = field(default_factory=Tally)
    _runs: dict[str, _Run] = field(default_factory=dict)
    _began: float | None = None
    _status: str = ""
    _told: tuple[float, str] = (0.0, "")
    _open: bool = True

    @classmethod
    def on(cls, stream: TextIO) -> Progress:
        """Return a view fit for ``stream``: live on a capable terminal, in color unless ``NO_COLOR`` is set."""
        live = stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
        return cls(stream, live, color=live and not os.environ.get("NO_COLOR"))

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
        if self._open and self._status:
            write(self.stream, _CLEAR_LINE)
        self._open = False
        self._status = ""

    def _lines(self, event: Event, run: _Run) -> list[str]:
        match event:
            case events.RunStarted() if run.depth == 0:
                models = f"{event.root_model}, sub-calls {event.sub_model}"
                return [
                    self._line(f"question: {event.query}", "bold", run),
                    self._line(f"context: {context_facts(event.context)}; models: {models}", "dim", run),
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

    def _put(self, text: str) -> None:
        write(self.stream, (_CLEAR_LINE if self._status else "") + text)
        self._status = ""

    def _draw(self) -> None:
        elapsed = clock_time(self.clock() - (self._began or 0.0))
        # The last column stays free: writing to it makes some terminals wrap.
        status = fit([*self.tally.parts(), elapsed], max(self.width() - 1, 1))
        if status != self._status:
            write(self.stream, _CLEAR_LINE + self._paint("dim", status))
            self._status = status


def _said(event: Event) -> tuple[str, str] | None:  # noqa: PLR0911 - one a kind of event
    """Return the one line that some events are worth, and its style."""
    match event:
        case events.SandboxOpened():
            return f"sandbox ready in {event.elapsed_s:.2f} s ({event.runtime or 'default runtime'})", "dim"
        case events.RetryScheduled():
            return f"{event.purpose}: {event.code}, trying again in {event.wait_s:.1f} s", "yellow"
        case events.Refused():
            left = "" if event.limit is None else f" ({event.limit:g} left)"
            times = f", {event.count:,} times" if event.count > 1 else ""
            return f"refused {event.method}: {event.reason}{left}{times}", "yellow"
        case events.ChildStarted():
            return f"child run: {event.query}", "bold"
        case events.ChildFinished():
            return f"child run {event.status}" + (f": {event.reason}" if event.reason else ""), "bold"
        case events.LimitReached():
            return f"limit reached: {event.reason} ({event.limit:g} left)", "yellow"
    return None
