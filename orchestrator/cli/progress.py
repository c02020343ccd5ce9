"""What a person sees on stderr while a run works, drawn from its events.

On a terminal: a line for each thing that is over and worth keeping, and below them what is under way, drawn anew in
place (:mod:`orchestrator.cli.scene`, :mod:`orchestrator.cli.region`). Elsewhere: plain lines only, in the order in
which things happen, and now and then one that says where a long wait stands. Text of models and boxes is cleaned before
it is shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from orchestrator import events
from orchestrator.cli.common import is_terminal, tell
from orchestrator.cli.region import Region, painted
from orchestrator.cli.scene import Scene
from orchestrator.cli.tally import Tally, clock_time
from orchestrator.events import Envelope, Event
from orchestrator.models.base import Usage
from orchestrator.text import counted, fitted, one_line, printable
from orchestrator.trajectory.wording import circuit_text, context_facts

if TYPE_CHECKING:
    from orchestrator.models.prices import PriceTable

CODE_LINES = 6
OUTPUT_LINES = 4
REDRAW_S = 0.25
# Where there is no status line, a sign of life this often, if anything changed.
HEARTBEAT_S = 15.0

_OFTEN = (events.SubcallStarted, events.SubcallFinished, events.SubcallFailed)
_UNPRICED = "no price is known for {}: budget.cost_usd does not bound it"
# Of these the live view tells what is under way; a line that stays is drawn of the first run's alone, and at their end.
_UNDER_WAY = (events.SandboxOpened, events.RootReplied, events.CellStarted, events.CellFinished, events.ChildStarted)
_BEGINNINGS = (events.CellStarted, events.ChildStarted)
_NO_TERMINAL = os.terminal_size((120, 24))
_UNKNOWN = os.terminal_size((80, 24))


@dataclass(slots=True)
class _Run:
    """What must be remembered of one run to draw it."""

    depth: int = 0
    code: str = ""
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
        size: columns and lines the terminal has now.
        prices: tells which models have no price, to say so when a run begins; without it nothing is said.
        scene: what is under way.
    """

    stream: TextIO | None
    live: bool
    color: bool = False
    clock: Callable[[], float] = time.monotonic
    size: Callable[[], os.terminal_size] | None = None
    prices: PriceTable | None = None
    scene: Scene = field(default_factory=Scene)
    _runs: dict[str, _Run] = field(default_factory=dict)
    _questions: dict[str, str] = field(default_factory=dict)
    _told: tuple[float, str] = (0.0, "")
    _refusals: _Refusals | None = None
    _open: bool = True
    _region: Region = field(init=False)

    def __post_init__(self) -> None:
        """Make the region that is drawn anew."""
        self._region = Region(self.stream, self.color)

    @classmethod
    def on(cls, stream: TextIO | None, prices: PriceTable | None = None) -> Progress:
        """Return a view fit for ``stream``: live on a capable terminal, in color unless ``NO_COLOR`` is set."""
        live = is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("", "dumb")
        return cls(stream, live, color=live and not os.environ.get("NO_COLOR"), prices=prices)

    @property
    def tally(self) -> Tally:
        """What was counted."""
        return self.scene.tally

    def __call__(self, envelope: Envelope) -> None:
        """Draw one event."""
        if not self._open:
            return
        if self.scene.began is None:
            self._told = (self.clock(), "")
        self.scene.add(envelope, self.clock())
        event, parent = envelope.event, self._runs.get(envelope.parent or "")
        run = self._runs.setdefault(envelope.run, _Run(depth=parent.depth + 1 if parent else 0))
        if isinstance(event, events.Refused):
            self._refused(event, run)
            return
        lines = self._lines(event, run)
        margin = "    " * run.depth
        if lines:
            self._put("".join(f"{margin}{text}\n" for text in lines))
        elif self.live and not isinstance(event, _OFTEN):
            self._draw()  # Of those that come by the thousand a second, the next tick tells.

    async def tick(self) -> None:
        """Keep the status line, or the signs of life, up to date until cancelled."""
        import anyio

        while True:
            await anyio.sleep(REDRAW_S)
            self.refresh()

    def refresh(self) -> None:
        """Show how things stand now."""
        if self.scene.began is None or not self._open:
            return
        self._look_for_more_refusals()
        if self.live:
            self._draw()
            return
        now, state = self.clock(), " · ".join(self.tally.parts())
        if now - self._told[0] >= HEARTBEAT_S and state != self._told[1]:
            self._told = (now, state)
            self._put(f"… {state} · {clock_time(now - self.scene.began)}\n")

    def message(self, text: str) -> None:
        """Show a line that is about this program and not about the run."""
        self._put(f"{text}\n")

    def close(self) -> None:
        """Take away what is drawn anew; events that still come are not shown."""
        if self._open:
            if self._refusals:
                self._put("")
            self._region.clear()
        self._open = False

    def _lines(self, event: Event, run: _Run) -> list[str]:
        if isinstance(event, events.CellStarted):
            run.calls_before_cell, run.failed_before_cell = self.tally.done, self.tally.failed
            run.code = event.code[: CODE_LINES * 4096 + 1]
        if isinstance(event, events.ChildStarted):
            self._questions[event.child] = event.query[:512]
        if self.live and isinstance(event, _UNDER_WAY) and (run.depth or isinstance(event, _BEGINNINGS)):
            return []
        match event:
            case events.CellStarted(turn=0) | events.CellFinished(turn=0):
                lines = self._of_ours(event, run)
            case events.RunStarted() if run.depth == 0:
                lines = self._question(event, run)
            case events.RootReplied():
                lines = [self._paint("bold", f"turn {event.turn}") + self._paint("dim", f"  {event.elapsed_s:.1f} s")]
            case events.CellStarted():
                lines = self._excerpt(run.code, CODE_LINES, "│ ", run)
            case events.CellFinished():
                code = self._excerpt(run.code, CODE_LINES, "│ ", run) if self.live else []
                lines = [*code, *self._outcome(event, run)]
            case events.RunFinished() if run.depth == 0:
                spent = [counted(self.tally.done, "sub-call"), self.tally.spend(), clock_time(event.elapsed_s)]
                facts = [event.status.replace("_", " "), counted(event.turns, "turn"), *spent]
                lines = [self._paint("bold", " · ".join(facts))]
            case _:
                lines = self._said(event, run)
        return lines

    def _of_ours(self, event: events.CellStarted | events.CellFinished, run: _Run) -> list[str]:
        # No model wrote it, and nobody wants to read it: that it failed is all there is to tell.
        if isinstance(event, events.CellStarted) or event.result["status"] == "ok":
            return []
        lost = ", variables lost" if event.result["state_lost"] else ""
        return [self._line(f"a cell of rlm-sandbox itself: {event.result['status']}{lost}", "yellow", run)]

    def _question(self, event: events.RunStarted, run: _Run) -> list[str]:
        models = f"{event.root_model}, sub-calls {event.sub_model}"
        number = f" {event.session['question']}" if event.session else ""
        return [
            self._line(f"question{number}: {event.query}", "bold", run),
            self._line(f"context: {context_facts(event.context)}; models: {models}", "dim", run),
            *(self._line(_UNPRICED.format(name), "yellow", run) for name in self._unpriced(event)),
        ]

    def _said(self, event: Event, run: _Run) -> list[str]:
        said = _said(event)
        if said is None:
            return []
        text, style = said
        if isinstance(event, events.ChildFinished):
            question = self._questions.pop(event.child, "")
            # Elsewhere than on a live terminal it stands at the child's beginning.
            text += f" · {question}" if self.live and question else ""
        return [self._line(text, style, run)]

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
        rows = [row.expandtabs(4).rstrip() for row in printable(text[: most * 4096]).split("\n")]
        rows = [row for row in rows if row]
        room = self._room(run) - len(mark)
        shown = [fitted(row, room) for row in rows[:most]]
        if len(rows) > most or len(text) > most * 4096:
            shown.append("…")
        return [self._paint("dim", mark + row) for row in shown]

    def _line(self, text: str, style: str, run: _Run) -> str:
        room = self._room(run)
        return self._paint(style, fitted(one_line(text, room), room))

    def _room(self, run: _Run) -> int:
        return max(self._size().columns - 4 * run.depth - 1, 20)

    def _size(self) -> os.terminal_size:
        if self.size is not None:
            return self.size()
        if not self.live or self.stream is None:
            return _NO_TERMINAL
        try:
            # Of this stream: the answer, on stdout, may go elsewhere.
            size = os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError):
            return _UNKNOWN
        return size if size.columns and size.lines else _UNKNOWN  # A terminal that was told no size has 0 of both.

    def _paint(self, style: str, text: str) -> str:
        return painted(((style, text),), color=self.color)

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
            told = self._line(_refusal(refusals.event, refusals.count), "yellow", refusals.run)
            text = f"{'    ' * refusals.run.depth}{told}\n{text}"
        if not self.live:
            tell(self.stream, text)
            return
        self._draw(text)

    def _draw(self, above: str = "") -> None:
        size = self._size()
        # Before a run has begun there is nothing under way.
        lines = self.scene.lines(size.columns, size.lines, self.clock()) if self.scene.began is not None else []
        self._region.draw(lines, size.columns, above)


def _refusal(event: events.Refused, count: int) -> str:
    left = "" if event.limit is None else f" ({event.limit:g} left)"
    times = f", {count:,} times" if count > 1 else ""
    return f"refused {event.method}: {event.reason}{left}{times}"


def _said(event: Event) -> tuple[str, str] | None:
    """Return the one line that some events are worth, and its style."""
    match event:
        case events.SandboxOpened():
            ready = f"ready in {event.elapsed_s:.2f} s ({event.runtime or 'default runtime'})"
            return f"sandbox {'of the questions before, with its variables' if event.lent else ready}", "dim"
        case events.RootFailed() | events.RetryScheduled():
            return _of_failure(event), "yellow"
        case events.CircuitChanged():
            return circuit_text(event.provider, event.state, event.failures, event.wait_s), "yellow"
        case events.ChildStarted() | events.ChildFinished():
            return _of_child(event), "bold"
        case events.LimitReached():
            more = f"; for more: {event.more}" if event.more else ""
            return f"limit reached: {event.reason} ({event.limit:g} left){more}", "yellow"
    return None


def _of_failure(event: events.RootFailed | events.RetryScheduled) -> str:
    if isinstance(event, events.RetryScheduled):
        return f"{event.purpose}: {event.code}, trying again in {event.wait_s:.1f} s"
    return f"turn {event.turn} failed: {event.code} ({counted(event.attempts, 'attempt')}, {event.elapsed_s:.1f} s)"


def _of_child(event: events.ChildStarted | events.ChildFinished) -> str:
    if isinstance(event, events.ChildStarted):
        return f"child run: {event.query}"
    return f"child run {event.status}" + (f": {event.reason}" if event.reason else "")
