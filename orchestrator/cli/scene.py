"""What the live view shows of a tree of runs at a moment, from events and a clock to lines; no terminal is needed.

From top to bottom: what the root run does, its current code, the child runs, the sub-calls that have waited longest,
spending against the budgets, and a line of totals. What there is no room for goes, least important first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count, islice

from orchestrator import events
from orchestrator.cli.region import Line, line
from orchestrator.cli.tally import Tally, clock_time, compact, fit
from orchestrator.events import Envelope
from orchestrator.text import columns, counted, one_line, printable

MOST_ROWS = 14
CODE_ROWS = 5
CHILD_ROWS = 4
CALL_ROWS = 3
BAR = 10
BAR_COLUMNS = 36
NARROW = 40
_EXCERPT = 400  # characters of a prompt or a line of code that are kept: no terminal shows more of one


@dataclass(slots=True)
class Call:
    """A sub-call that is under way."""

    number: int
    prompt: str
    since: float


@dataclass(slots=True)
class Run:
    """A run that is under way.

    Attributes:
        label: ``child 2``; empty for the run a person started.
        depth: 0 for that one.
        query: its question, an excerpt.
        turn: of its last reply.
        doing: what it does now, in few words.
        since: when it began to.
        code: the running cell's, by lines.
        calls: sub-calls under way, by number, in the order in which they began.
    """

    label: str
    depth: int
    query: str
    since: float
    turn: int = 0
    doing: str = "opening a sandbox"
    code: list[str] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)


@dataclass(slots=True)
class Scene:
    """Everything that is under way.

    Attributes:
        tally: totals.
        began: when the first event came.
        budget: the run's, by policy key.
    """

    tally: Tally = field(default_factory=Tally)
    began: float | None = None
    budget: dict[str, float] = field(default_factory=dict)
    _runs: dict[str, Run] = field(default_factory=dict)
    _rows: int = 0
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def add(self, envelope: Envelope, now: float) -> Run:
        """Take in an event that came at ``now``; return the run it is of."""
        if self.began is None:
            self.began = now
        run = self._runs.get(envelope.run)
        if run is None:
            above = self._runs.get(envelope.parent or "")
            label = f"child {next(self._numbers)}" if above else ""
            run = self._runs[envelope.run] = Run(label, above.depth + 1 if above else 0, "", now)
        self.tally.add(envelope.event)
        self._change(run, envelope.event, now)
        if isinstance(envelope.event, events.RunFinished) and run.depth:
            del self._runs[envelope.run]
        return run

    def _change(self, run: Run, event: events.Event, now: float) -> None:
        match event:
            case events.RunStarted():
                self._begin(run, event)
            case events.SubcallStarted():
                run.calls[event.call] = Call(event.call, one_line(event.prompt, _EXCERPT), now)
            case events.SubcallFinished() | events.SubcallFailed():
                run.calls.pop(event.call, None)
            case events.CellStarted() if event.turn:
                run.code = code_lines(event.code)
            case events.CellFinished():
                run.code = []
                run.calls.clear()
                self._rows = 0 if not run.depth else self._rows
            case events.RootReplied():
                run.turn = event.turn
                if not run.depth:
                    self.tally.turn = event.turn
        doing = _doing(event)
        if doing:
            run.doing, run.since = doing, now

    def _begin(self, run: Run, event: events.RunStarted) -> None:
        run.query = one_line(event.query, _EXCERPT)
        if event.session.get("question", 1) > 1:
            run.doing = "going on in the sandbox"
        if not run.depth:
            budget = event.policy.get("budget", {})
            self.budget = {key: value for key, value in budget.items() if isinstance(value, int | float)}

    def lines(self, width: int, height: int, now: float) -> list[Line]:
        """Return what a terminal of ``width`` by ``height`` shows now, the last column left free."""
        width, room = max(width - 1, 1), min(height - 2, MOST_ROWS)
        elapsed = 0.0 if self.began is None else now - self.began
        last = line(("dim", fit([*self.tally.parts(), clock_time(elapsed)], width)), width=width)
        root = next(iter(self._runs.values()), None)
        if room < 3 or root is None or width < NARROW // 2:  # noqa: PLR2004 - head, bars and totals
            return [last]
        room -= 2  # the head and the totals
        bars = self._bars(width, elapsed)[: max(room // 2, 1)]
        room -= len(bars)
        waiting = [*self._children(width, now), *self._calls(width, now)][:room]
        # What comes and goes many times a second must not make everything below it jump.
        self._rows = max(self._rows, len(waiting))
        waiting += [()] * (min(self._rows, room) - len(waiting))
        code = self._code(root, width)[: room - len(waiting)]
        return [self._head(root, width, now), *code, *waiting, *bars, last]

    def _head(self, root: Run, width: int, now: float) -> Line:
        turn = f"turn {root.turn} · " if root.turn else ""
        waited = ("dim", f"  {_waited(now - root.since)}")
        return line(("bold", f"{turn}{root.doing}"), waited, width=width)

    def _code(self, root: Run, width: int) -> list[Line]:
        rows = [line(("dim", "│ "), ("", text), width=width) for text in root.code[:CODE_ROWS]]
        if len(root.code) > CODE_ROWS:
            rows.append(line(("dim", f"│ … {counted(len(root.code) - CODE_ROWS, 'line')} more"), width=width))
        return rows

    def _children(self, width: int, now: float) -> list[Line]:
        runs = [run for run in self._runs.values() if run.depth]
        rows = []
        for run in runs[:CHILD_ROWS]:
            turn = f"turn {run.turn}, " if run.turn else ""
            asked = f", {len(run.calls):,} in flight" if run.calls else ""
            head = f"{'  ' * (run.depth - 1)}{run.label}"
            doing = f"  {turn}{run.doing} {_waited(now - run.since)}{asked}"
            rows.append(line(("cyan", head), ("", doing), ("dim", f"  {run.query}"), width=width))
        if len(runs) > CHILD_ROWS:
            rows.append(line(("dim", f"… and {counted(len(runs) - CHILD_ROWS, 'child run')} more"), width=width))
        return rows

    def _calls(self, width: int, now: float) -> list[Line]:
        under_way = [call for run in self._runs.values() for call in islice(run.calls.values(), CALL_ROWS)]
        under_way = sorted(under_way, key=lambda call: call.since)[:CALL_ROWS]
        rows = []
        for call in under_way:
            head = f"→ {call.number}  {_waited(now - call.since)}  "
            rows.append(line(("dim", head), ("", call.prompt), width=width))
        rest = sum(len(run.calls) for run in self._runs.values()) - len(under_way)
        if rest > 0:
            rows.append(line(("dim", f"→ … and {rest:,} more in flight"), width=width))
        return rows

    def _bars(self, width: int, elapsed: float) -> list[Line]:
        tally = self.tally
        used = {
            "calls": ("calls", tally.calls, f"{tally.calls:,}"),
            "cost_usd": ("cost", tally.cost_usd, f"${tally.cost_usd:.2f}"),
            "wall_s": ("time", elapsed, clock_time(elapsed)),
            "tokens": ("tokens", tally.tokens, compact(tally.tokens)),
        }
        shares = [
            (name, min(amount / self.budget[key], 1.0), f"{said} of {_allowed(key, self.budget[key])}")
            for key, (name, amount, said) in used.items()
            if self.budget.get(key, 0) > 0 and not (key == "cost_usd" and tally.unpriced and not tally.cost_usd)
        ]
        if not shares:
            return []
        if width < NARROW:
            return [line(("dim", fit([f"{name} {share:.0%}" for name, share, _ in shares], width)), width=width)]
        each = max(min(width // BAR_COLUMNS, len(shares)), 1)
        return [_bar_row(shares[place : place + each], width) for place in range(0, len(shares), each)]


def _bar_row(shares: list[tuple[str, float, str]], width: int) -> Line:
    pieces: list[tuple[str, str]] = []
    for place, (name, share, said) in enumerate(shares):
        filled = round(share * BAR) if share < 1 else BAR
        filled = max(filled, 1) if share > 0 else 0
        style = "red" if share >= 1 else "yellow" if share > 0.8 else "green"  # noqa: PLR2004 - nearly all of it
        text = f" {said}"
        gap = BAR_COLUMNS - 7 - BAR - columns(text)
        pieces += [("dim", f"{name:7}"), (style, "━" * filled), ("dim", "─" * (BAR - filled)), ("", text)]
        if place < len(shares) - 1:
            pieces.append(("", " " * max(gap, 2)))
    return line(*pieces, width=width)


def _doing(event: events.Event) -> str:
    """Return what a run does from this event on, in few words; nothing where that does not change."""
    match event:
        case events.Observed():
            return "the root model is asked"
        case events.RootReplied():
            return "reading the reply"
        case events.CellStarted() if event.turn:
            return f"cell {event.cell}"
        case events.CellFinished() if event.turn:
            return f"after cell {event.cell}"
        case events.RunFinished():
            return event.status.replace("_", " ")
    return ""


def _allowed(key: str, most: float) -> str:
    if key == "cost_usd":
        return f"${most:,.2f}"
    return clock_time(most) if key == "wall_s" else compact(int(most))


def code_lines(code: str) -> list[str]:
    """Return the lines of a cell that are not empty, cleaned and cut, for a view of its beginning."""
    lines = (text.expandtabs(4).rstrip() for text in printable(code[: 64 * _EXCERPT]).split("\n"))
    return [text[:_EXCERPT] for text in lines if text]


def _waited(seconds: float) -> str:
    """Return a wait in whole seconds, so that what is drawn changes once a second at most."""
    return f"{int(seconds)} s" if seconds < 60 else clock_time(seconds)  # noqa: PLR2004 - a minute
