from __future__ import annotations

import io
import os
import re

import pytest

from orchestrator import events
from orchestrator.cli.progress import HEARTBEAT_S, Progress
from orchestrator.cli.tally import Tally, clock_time, compact, fit
from orchestrator.events import Envelope, Event
from orchestrator.text import columns, printable
from tests.support.runs import a_run, answered, asked, cell_result, finished, replied, started
from tests.support.terminal import Terminal

HOSTILE = "\x1b]0;title\x07\x9b31m\u202eevil\nsecond\rline\x1b[2J"


class Screen(io.StringIO):
    """A stream that says whether it is a terminal, and is one if it does."""

    def __init__(self, *, tty: bool, width: int = 80, height: int = 24) -> None:
        super().__init__()
        self._tty = tty
        self.terminal = Terminal(width, height)

    def isatty(self) -> bool:
        return self._tty

    def write(self, text: str) -> int:
        if self._tty:
            self.terminal.write(text)
        return super().write(text)

    def shown(self) -> list[str]:
        """Return the lines that a person sees, those that have scrolled away among them."""
        return self.terminal.text() if self._tty else self.getvalue().split("\n")

    def size(self) -> os.terminal_size:
        return os.terminal_size((self.terminal.width, self.terminal.height))


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def view(*, live: bool, width: int = 80, height: int = 24, color: bool = False) -> tuple[Progress, Screen, Clock]:
    screen, clock = Screen(tty=live, width=width, height=height), Clock()
    return Progress(screen, live, color=color, clock=clock, size=screen.size if live else None), screen, clock


def feed(progress: Progress, *happened: Event, run: str = "r1", parent: str | None = None) -> None:
    for number, event in enumerate(happened):
        progress(Envelope(run, parent, number, 0.0, 0.0, event))


def test_without_a_terminal_there_are_plain_lines_only() -> None:
    progress, screen, _ = view(live=False)
    feed(progress, *a_run())
    progress.close()
    assert screen.getvalue().splitlines() == [
        "question: How many?",
        "context: dict, 3 documents, 12,345 characters, 99 lines; models: root-model, sub-calls sub-model",
        "sandbox ready in 0.40 s (runc)",
        "turn 1  1.5 s",
        "│ print(1)",
        "sub: model_unavailable, trying again in 0.5 s",
        "Anthropic: 8 failures in a row, asked again in 2 s",
        "refused llm_query: calls (0 left)",
        "child run: A smaller question",
        "child run answered",
        "  1",
        "ok  0.5 s, 2 sub-calls, 1 failed",
        "limit reached: calls (0 left)",
        "turn 2 failed: model_request (2 attempts, 1.5 s)",
        "answered · 1 turn · 2 sub-calls · $0.0130 · 0:09",
    ]


def test_on_a_terminal_the_status_line_stands_last_and_leaves_no_trace() -> None:
    progress, screen, clock = view(live=True)
    feed(progress, *a_run()[:6])
    assert screen.shown()[-1] == "turn 1 · 1 in flight · $0.0100 · 0:00"
    clock.now += 61
    progress.refresh()
    assert screen.shown()[-1] == "turn 1 · 1 in flight · $0.0100 · 1:01"
    feed(progress, *a_run()[6:])
    progress.close()
    lines = screen.shown()
    assert lines[-1] == "answered · 1 turn · 2 sub-calls · $0.0130 · 0:09"
    assert not [line for line in lines if "in flight" in line or "━" in line]


def test_nothing_is_redrawn_when_nothing_changed() -> None:
    progress, screen, _ = view(live=True)
    feed(progress, started())
    before = screen.getvalue()
    progress.refresh()
    assert screen.getvalue() == before


def test_thousands_of_sub_calls_are_drawn_by_the_tick_and_not_one_by_one() -> None:
    progress, screen, _ = view(live=True)
    feed(progress, started())
    before = screen.getvalue()
    for call in range(5000):
        feed(progress, asked(call), answered(call))
    assert screen.getvalue() == before
    progress.refresh()
    assert "5,000 sub-calls" in screen.shown()[-1]


def refused(limit: float = 18, count: int = 1) -> Event:
    return events.Refused(1, "batch_open", "calls", limit, count)


@pytest.mark.parametrize("live", [False, True])
def test_equal_refusals_in_a_row_are_one_line_with_a_count(live: bool) -> None:  # noqa: FBT001
    progress, screen, _ = view(live=live)
    feed(progress, started(), *[refused()] * 37, refused(count=5), refused(3), *a_run()[3:4])
    progress.close()
    assert [line for line in screen.shown() if "refused" in line] == [
        "refused batch_open: calls (18 left), 42 times",
        "refused batch_open: calls (3 left)",
    ]


def test_refusals_are_shown_when_no_more_of_them_come() -> None:
    progress, screen, _ = view(live=False)
    feed(progress, started(), refused())
    progress.refresh()
    feed(progress, refused())
    progress.refresh()
    assert "refused" not in screen.getvalue()
    progress.refresh()
    assert screen.getvalue().endswith("refused batch_open: calls (18 left), 2 times\n")


def test_refusals_that_nothing_follows_are_shown_at_the_end() -> None:
    progress, screen, _ = view(live=False)
    feed(progress, started(), refused())
    progress.close()
    assert screen.getvalue().endswith("refused batch_open: calls (18 left)\n")


def test_without_a_stream_nothing_is_drawn_and_nothing_fails() -> None:
    progress = Progress.on(None)
    feed(progress, *a_run())
    progress.close()
    assert progress.tally.done == 2


@pytest.mark.parametrize("width", [1, 12, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 4, 24])
def test_no_line_of_the_live_view_reaches_the_last_column_or_wraps(width: int, height: int) -> None:
    progress, screen, _ = view(live=True, width=width, height=height)
    wide = "\u6f22\u5b57 e\u0301 " * 100
    feed(progress, events.SubcallStarted(0, 1, "m", wide, 1))
    for call in range(1, 4):
        feed(progress, replied(), asked(call), answered(call), events.ChildStarted("c", 1, wide))
        feed(progress, events.CellStarted(1, 1, wide), events.CellFinished(1, 1, cell_result()))
        feed(progress, started(wide, 1), replied(), run="c", parent="r1")
        progress.refresh()
    for frame in screen.terminal.frames:
        assert len(frame) <= height
        assert max(map(columns, frame[-1:])) <= max(width - 1, 1)
    if width > 20:
        assert screen.terminal.wraps == 0


@pytest.mark.parametrize("live", [True, False])
def test_guest_text_is_cleaned_and_kept_on_its_line(live: bool) -> None:  # noqa: FBT001 - a test's parameter
    progress, screen, _ = view(live=live)
    error = {"name": HOSTILE, "value": HOSTILE, "traceback": ""}
    feed(
        progress,
        started(HOSTILE),
        replied(text=HOSTILE),
        events.CellStarted(1, 1, HOSTILE),
        events.Refused(1, "llm_query", HOSTILE, None),
        events.ChildStarted("c", 1, HOSTILE),
        events.ChildFinished("c", "failed", HOSTILE),
        events.CellFinished(1, 1, cell_result(status="error", stdout=HOSTILE, error=error)),
        events.CellFinished(1, 2, cell_result(status="died", detail=HOSTILE)),
    )
    # The terminal of these tests refuses every sequence that the view itself does not use.
    left = re.sub(r"\x1b\[(\?7[hl]|\?2026[hl]|\d*A|K|J)|\r", "", screen.getvalue())
    assert printable(left) == left
    assert not any(word in left for word in ("title", "\u202e", "31m", "2J"))


def test_twin_without_cleaning_a_strangers_text_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.scene.printable", str)
    progress, _, _ = view(live=True)
    with pytest.raises(AssertionError, match="the terminal was sent"):
        feed(progress, started(), events.CellStarted(1, 1, HOSTILE))


def test_long_code_and_output_are_cut() -> None:
    progress, screen, _ = view(live=True, width=60)
    feed(progress, events.CellStarted(1, 1, "a = 1\n" * 500 + "b" * 500))
    feed(progress, events.CellFinished(1, 1, cell_result(stdout="x" * 50_000_000)))
    lines = screen.shown()
    assert len(lines) < 15
    assert max(map(len, lines)) <= 60


def test_child_runs_are_set_in_by_their_depth() -> None:
    progress, screen, _ = view(live=False)
    feed(progress, started(), events.ChildStarted("c1", 1, "q"))
    feed(progress, started("q", 1), replied(7), run="c1", parent="r1")
    feed(progress, started("qq", 2), replied(9), run="c2", parent="c1")
    lines = screen.getvalue().splitlines()
    assert "    turn 7  1.5 s" in lines
    assert "        turn 9  1.5 s" in lines
    assert progress.tally.turn == 0


def test_without_a_terminal_a_long_wait_gives_signs_of_life() -> None:
    progress, screen, clock = view(live=False)
    feed(progress, started(), asked())
    before = screen.getvalue()
    progress.refresh()
    assert screen.getvalue() == before
    clock.now += HEARTBEAT_S
    progress.refresh()
    assert screen.getvalue()[len(before) :] == "… starting · 1 in flight · $0.0000 · 0:15\n"
    clock.now += HEARTBEAT_S
    progress.refresh()
    assert screen.getvalue().count("\n…") == 1


def test_after_close_nothing_is_drawn() -> None:
    progress, screen, _ = view(live=True)
    feed(progress, started())
    progress.close()
    before = screen.getvalue()
    feed(progress, *a_run())
    progress.refresh()
    progress.close()
    assert screen.getvalue() == before


def test_before_the_first_event_nothing_is_drawn() -> None:
    progress, screen, _ = view(live=True)
    progress.refresh()
    progress.close()
    assert screen.getvalue() == ""


def test_a_message_does_not_mix_with_the_status_line() -> None:
    progress, screen, _ = view(live=True)
    feed(progress, started())
    progress.message("stopping")
    assert screen.shown()[2] == "stopping"
    assert screen.shown()[-1] == "starting · $0.0000 · 0:00"


@pytest.mark.parametrize(
    ("tty", "term", "no_color", "live", "color"),
    [
        (True, "xterm-256color", "", True, True),
        (True, "xterm", "1", True, False),
        (True, "dumb", "", False, False),
        (True, "", "", False, False),
        (False, "xterm", "", False, False),
    ],
)
def test_control_sequences_go_only_where_they_are_understood(  # noqa: PLR0917 - a table
    monkeypatch: pytest.MonkeyPatch,
    tty: bool,  # noqa: FBT001
    term: str,
    no_color: str,
    live: bool,  # noqa: FBT001
    color: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    progress = Progress.on(Screen(tty=tty))
    assert (progress.live, progress.color) == (live, color)


def test_color_is_always_ended() -> None:
    progress, screen, _ = view(live=True, color=True)
    feed(progress, *a_run())
    for line in screen.getvalue().split("\n"):
        assert len(re.findall(r"\x1b\[[1-9]\d*m", line)) == line.count("\x1b[0m")


def test_spend_is_in_dollars_where_there_is_a_price_and_in_tokens_where_there_is_none() -> None:
    tally = Tally()
    assert tally.spend() == "$0.0000"
    tally.add(answered(cost_usd=None))
    assert tally.spend() == "1.2k tokens"
    tally.add(answered(cost_usd=0.5))
    assert tally.spend() == "$0.5000+"


def test_sub_calls_are_counted_whatever_their_end() -> None:
    tally = Tally()
    for event in a_run():
        tally.add(event)
    assert (tally.in_flight, tally.done, tally.failed, tally.children) == (0, 2, 1, 0)
    assert tally.tokens == 2 * 1250 + 750


def test_a_status_line_loses_its_least_important_part_first() -> None:
    parts = ["turn 1", "5 in flight", "$1.00", "0:05"]
    assert fit(parts, 80) == "turn 1 · 5 in flight · $1.00 · 0:05"
    assert fit(parts, 30) == "turn 1 · 5 in flight · 0:05"
    assert fit(parts, 14) == "turn 1 · 0:05"
    assert fit(parts, 6) == "0:05"
    assert fit(parts, 2) == "0:"


def test_durations_and_counts_are_short() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.9, 61, 3661)] == ["0:00", "0:59", "1:01", "1:01:01"]
    assert [compact(number) for number in (0, 999, 12_345, 4_500_000)] == ["0", "999", "12.3k", "4.5M"]


@pytest.mark.anyio
async def test_the_tick_draws_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    import anyio

    progress, screen, clock = view(live=True)
    feed(progress, started())
    drawn = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def pause(_: float) -> None:
            if clock.now > 100:
                drawn.set()
                tasks.cancel_scope.cancel()
            clock.now += 5
            await anyio.lowlevel.checkpoint()

        monkeypatch.setattr(anyio, "sleep", pause)
        tasks.start_soon(progress.tick)
    assert drawn.is_set()
    assert screen.shown()[-1].endswith("0:05")


# The live view -------------------------------------------------------------------------------------------------------

BUDGET = {"calls": 2000, "tokens": 20_000_000, "cost_usd": 10.0, "wall_s": 1800.0}


def under_way(progress: Progress, clock: Clock) -> None:
    """A run with a cell that waits for many sub-calls and one child run."""
    context = {"kind": "dict", "documents": 3}
    feed(progress, events.RunStarted("How many?", context, {"budget": BUDGET}, "root", "sub", 0), replied())
    feed(progress, events.CellStarted(1, 1, "names = sorted(context)\n\nask(names)"))
    for call in range(20):
        feed(progress, asked(call, f"What does part {call} say?"))
        clock.now += 0.25
    feed(progress, events.ChildStarted("c1", 1, "A smaller question"))
    child = [started("A smaller question", 1), replied(2), events.CellStarted(2, 3, "x")]
    feed(progress, *child, run="c1", parent="r1")


def test_the_live_view_tells_what_is_under_way() -> None:
    progress, screen, clock = view(live=True, width=100)
    under_way(progress, clock)
    clock.now += 60
    progress.refresh()
    assert screen.shown() == [
        "question: How many?",
        "context: dict, 3 documents; models: root, sub-calls sub",
        "turn 1  1.5 s",
        "turn 1 · cell 1  1:05",
        "│ names = sorted(context)",
        "│ ask(names)",
        "child 1  turn 2, cell 3 1:00  A smaller question",
        "→ 0  1:05  What does part 0 say?",
        "→ 1  1:04  What does part 1 say?",
        "→ 2  1:04  What does part 2 say?",
        "→ … and 17 more in flight",
        "calls  ━───────── 2 of 2.0k         cost   ━───────── $0.02 of $10.00",
        "time   ━───────── 1:05 of 30:00     tokens ━───────── 2.5k of 20.0M",
        "turn 1 · 20 in flight · 1 child run · $0.0200 · 1:05",
    ]


def test_what_is_over_stays_above_and_what_was_under_way_goes() -> None:
    progress, screen, clock = view(live=True, width=100)
    under_way(progress, clock)
    feed(progress, *[answered(call) for call in range(20)])
    feed(progress, finished(), run="c1", parent="r1")
    feed(progress, events.ChildFinished("c1", "answered", ""))
    feed(progress, events.CellFinished(1, 1, cell_result(stdout="so many\n")), finished())
    progress.close()
    assert screen.shown() == [
        "question: How many?",
        "context: dict, 3 documents; models: root, sub-calls sub",
        "turn 1  1.5 s",
        "child run answered · A smaller question",
        "│ names = sorted(context)",
        "│ ask(names)",
        "  so many",
        "ok  0.5 s, 20 sub-calls",
        "answered · 1 turn · 20 sub-calls · $0.0400 · 0:09",
    ]


def test_the_totals_do_not_jump_while_sub_calls_come_and_go() -> None:
    progress, screen, _ = view(live=True, width=100)
    feed(progress, started(), replied(), events.CellStarted(1, 1, "ask()"))
    heights = []
    for call in range(30):
        feed(progress, asked(call))
        progress.refresh()
        feed(progress, answered(call))
        progress.refresh()
        heights.append(len(screen.shown()))
    assert len(set(heights[1:])) == 1


def test_a_frame_is_one_write_and_sends_only_what_changed() -> None:
    progress, screen, clock = view(live=True, width=100)
    under_way(progress, clock)
    progress.refresh()
    before = len(screen.getvalue())
    clock.now += 1
    progress.refresh()
    frame = screen.getvalue()[before:]
    assert frame.startswith("\x1b[?2026h\x1b[?7l")
    assert frame.endswith("\x1b[?7h\x1b[?2026l")
    assert frame.count("\x1b[?2026h") == 1
    assert "names = sorted" not in frame
    assert "\x1b[J" not in frame.rpartition("\n")[0]


@pytest.mark.parametrize(
    "sizes", [[(100, 30), (60, 30), (30, 30), (100, 30)], [(80, 24), (79, 20), (60, 16), (120, 40)]]
)
def test_after_a_resize_nothing_of_the_old_frame_is_left(sizes: list[tuple[int, int]]) -> None:
    (width, height), *others = sizes
    progress, screen, clock = view(live=True, width=width, height=height)
    under_way(progress, clock)
    for columns_now, lines_now in others:
        screen.terminal.resize(columns_now, lines_now)
        clock.now += 1
        progress.refresh()
        text = screen.terminal.text()
        assert sum("20 in flight" in row for row in text) == 1
        assert sum("│ ask(names)" in row for row in text) <= 1
    progress.close()
    assert not [row for row in screen.shown() if "in flight" in row or "━" in row or row.startswith(("→", "│"))]


def test_a_terminal_that_is_too_small_gets_the_totals_alone() -> None:
    for width, height in ((100, 4), (15, 30)):
        progress, screen, clock = view(live=True, width=width, height=height)
        under_way(progress, clock)
        progress.refresh()
        assert len(progress.scene.lines(width, height, clock.now)) == 1
        assert "turn 1" in screen.shown()[-1]


def test_many_children_and_a_flood_of_sub_calls_stay_within_their_rows() -> None:
    progress, _, clock = view(live=True, width=90, height=50)
    under_way(progress, clock)
    for child in range(40):
        feed(progress, started(f"q{child}", 1), replied(), run=f"x{child}", parent="r1")
        feed(progress, *[asked(call) for call in range(100)], run=f"x{child}", parent="r1")
    lines = progress.scene.lines(90, 50, clock.now)
    assert len(lines) <= 14
    told = ["".join(text for _, text in pieces) for pieces in lines]
    assert "… and 37 child runs more" in told
    assert "→ … and 4,017 more in flight" in told


@pytest.mark.parametrize(("spent", "style"), [(1, "green"), (1700, "yellow"), (2000, "red"), (5000, "red")])
def test_a_bar_warns_before_its_budget_is_gone(spent: int, style: str) -> None:
    progress, _, clock = view(live=True, width=100)
    under_way(progress, clock)
    progress.tally.calls = spent
    (row,) = [line for line in progress.scene.lines(100, 30, clock.now) if line[0][1].startswith("calls")]
    assert row[1][0] == style
    assert len(row[1][1]) == max(round(min(spent / 2000, 1) * 10), 1)
