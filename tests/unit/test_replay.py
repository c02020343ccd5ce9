"""A journal played back: what it has is given out once and not recorded again; what is new or differs is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import events
from orchestrator.errors import JournalError, ResumeError
from orchestrator.events import Envelope, Event
from orchestrator.ledger import NANO
from orchestrator.recording import GivenUpError, Recorder
from orchestrator.trajectory.journal import JournalWriter
from orchestrator.trajectory.replay import OnDivergence, Replay
from orchestrator.trajectory.tape import LATE, Tape
from tests.support import runs


def unplayed(tape: Tape) -> tuple[int, int, float]:
    """Return calls, tokens and dollars that are paid when the run goes live."""
    amounts = [paid.amount for paid in tape.unplayed]
    dollars = sum(amount.cost_nano for amount in amounts) / NANO
    return sum(amount.calls for amount in amounts), sum(amount.tokens for amount in amounts), dollars


def journal(folder: Path, *happened: Event, run: str = "r1") -> Tape:
    """Record a run, and read it as a tape."""
    with JournalWriter.create(folder, run) as writer:
        recorder = Recorder(run, None, (writer,))
        for event in happened:
            recorder.emit(event)
    return Tape.of(folder / f"{run}.jsonl")


def failed(call: int = 1, code: str = "model_unavailable", attempts: int = 1) -> Event:
    return events.SubcallFailed(call, code, "detail", attempts, 0.1)


def asked_by(cell: int) -> Event:
    return events.SubcallStarted(2, cell, "sub-model", "new", 512)


def turn_with_a_cell(*calls: Event, stdout: str = "") -> list[Event]:
    """Return a run of one whole turn."""
    ends = events.CellFinished(1, 1, runs.cell_result(stdout=stdout))
    return [runs.started(), runs.replied(), events.CellStarted(1, 1, "code"), *calls, ends, events.Observed(1, "seen")]


def cell_that(ended: str, *calls: Event) -> list[Event]:
    """Return a run whose first cell ended in a way."""
    ends = events.CellFinished(1, 1, runs.cell_result(status=ended))
    return [runs.started(), runs.replied(), events.CellStarted(1, 1, "code"), *calls, ends]


def retold(folder: Path, *happened: Event) -> Tape:
    """Record a run, and read it as a tape that is not to go on."""
    return Tape.of(journal(folder, *happened).path, whole=True)


class Played:
    """A recorder that plays a tape back, and what it lets through."""

    def __init__(self, tape: Tape, on_divergence: OnDivergence = "stop") -> None:
        self.heard: list[Envelope] = []
        self.live = 0
        self.recorder = Replay.of(tape, (self.heard.append,), on_divergence)
        self.recorder.went_live = self.went_live

    def went_live(self) -> None:
        self.live += 1

    def emit(self, *happened: Event) -> list[Event]:
        """Emit events; return those that were new."""
        before = len(self.heard)
        for event in happened:
            self.recorder.emit(event)
        return [envelope.event for envelope in self.heard[before:]]


class TestTape:
    def test_an_answer_is_given_out_as_often_as_it_was_recorded_whatever_the_order(self, tmp_path: Path) -> None:
        tape = journal(
            tmp_path,
            *turn_with_a_cell(
                runs.asked(1, "a"),
                runs.asked(2, "b"),
                runs.asked(3, "a"),
                runs.answered(2, "B"),
                runs.answered(1, "A1"),
                runs.answered(3, "A2"),
            ),
        )
        found = [tape.claim(1, "sub-model", prompt, 512) for prompt in ("b", "a", "a", "a")]
        assert [call and call.answer and call.answer["text"] for call in found] == ["B", "A1", "A2", None]
        assert tape.claim(1, "other-model", "a", 512) is None
        assert tape.last_call == 3

    def test_what_was_paid_for_and_is_not_played_back_is_counted(self, tmp_path: Path) -> None:
        tape = journal(
            tmp_path,
            *turn_with_a_cell(runs.asked(1), runs.answered(1, attempts=3), runs.asked(2), failed(2, attempts=2)),
            events.CellStarted(2, 2, "code"),
            runs.asked(3, "lost"),
            runs.asked(4, "given up"),
            failed(4, "cancelled"),
        )
        assert unplayed(tape) == (2 + 2 + 1 + 1, 0, 0)
        assert not tape.finished(2)

    def test_the_end_at_a_limit_is_paid_for_and_gone_from_the_course(self, tmp_path: Path) -> None:
        tape = journal(
            tmp_path,
            *turn_with_a_cell(),
            events.LimitReached("calls", 0.0),
            events.Observed(1, "last turn"),
            runs.replied(2, "I guess.", cost_usd=0.5),
            events.SandboxClosed("box"),
            runs.finished("limit", "I guess.", "calls"),
        )
        assert (set(tape.replies), tape.shown, tape.after, tape.next_seq) == ({1}, {1: "seen"}, 4, 10)
        assert tape.ended is not None
        assert tape.ended["reason"] == "calls"
        assert unplayed(tape) == (1, 1250, 0.5)

    def test_a_run_that_was_resumed_before_is_one_course(self, tmp_path: Path) -> None:
        tape = journal(
            tmp_path,
            *turn_with_a_cell(),
            events.LimitReached("calls", 0.0),
            runs.replied(2, "I guess."),
            runs.finished("limit", "I guess.", "calls"),
            events.Resumed(4, {}),
            runs.replied(2, "I go on."),
            events.CellStarted(2, 2, "more"),
        )
        assert tape.replies[2]["text"] == "I go on."
        assert tape.cells[2].result is None
        assert tape.ended is None
        assert unplayed(tape) == (1, 1250, 0.01)

    def test_a_refusal_is_found_by_its_place_in_the_cell_alone(self, tmp_path: Path) -> None:
        tape = journal(tmp_path, *turn_with_a_cell(events.Refused(1, "batch_open", "calls", 18.0, nth=2, message="no")))
        assert tape.refusal(1, "batch_open", 1) is None
        assert tape.refusal(1, "llm_query", 2) is None
        assert tape.refusal(1, "batch_open", 2) == events.Refused(1, "batch_open", "calls", 18.0, 1, 2, "no")
        assert tape.refusal(1, "batch_open", 2) is None

    @pytest.mark.parametrize("happened", [[], [runs.replied()]], ids=["empty", "no beginning"])
    def test_what_is_no_beginning_of_a_run_is_refused(self, tmp_path: Path, happened: list[Event]) -> None:
        with pytest.raises(JournalError, match="nothing to resume"):
            journal(tmp_path, *happened)


class TestReplay:
    def test_a_run_that_does_the_same_again_records_nothing(self, tmp_path: Path) -> None:
        whole = turn_with_a_cell(runs.asked(), runs.answered())
        played = Played(journal(tmp_path, *whole))
        assert played.emit(*whole[:-1]) == []
        assert played.recorder.show(1, "seen at another time") == "seen"
        assert (played.heard, played.live) == ([], 0)

    def test_what_goes_on_is_numbered_on(self, tmp_path: Path) -> None:
        whole = turn_with_a_cell(runs.asked(7), runs.answered(7))
        played = Played(journal(tmp_path, *whole))
        played.emit(*whole[:-1])
        new = played.emit(runs.replied(2), events.CellStarted(2, 2, "x"), asked_by(2), runs.answered(2))
        assert [
            event.call for event in new[2:] if isinstance(event, events.SubcallStarted | events.SubcallFinished)
        ] == [
            8,
            8,
        ]
        assert [envelope.seq for envelope in played.heard] == [7, 8, 9, 10]

    def test_what_was_paid_for_before_is_paid_when_the_first_new_request_is_made(self, tmp_path: Path) -> None:
        played = Played(journal(tmp_path, *turn_with_a_cell()))
        assert played.recorder.recall("root", "root-model", "", 100) is not None
        assert played.live == 0
        assert played.recorder.recall("root", "root-model", "", 100) is None
        assert played.recorder.recall("sub", "sub-model", "new", 100) is None
        assert played.live == 1

    def test_a_cell_that_was_cut_off_asks_only_for_what_is_missing(self, tmp_path: Path) -> None:
        cut_off = [runs.started(), runs.replied(), events.CellStarted(1, 1, "c"), runs.asked(1, "a"), runs.answered(1)]
        played = Played(journal(tmp_path, *cut_off))
        assert played.emit(*cut_off[:-1]) == []
        past = played.recorder.recall("sub", "sub-model", "a", 512)
        assert past is not None
        assert past.text == "A word."
        assert played.emit(runs.answered(1)) == []
        assert len(played.emit(runs.asked(2, "b"), runs.answered(2))) == 2
        assert played.recorder.recall("sub", "sub-model", "b", 512) is None

    @pytest.mark.parametrize(
        ("differs", "what"),
        [
            ([events.CellStarted(1, 1, "other code")], "its code is another"),
            ([runs.asked(1, "something else")], "it asked something that it did not ask then"),
            ([events.CellFinished(1, 1, runs.cell_result(status="error"))], "it ended as error, and as ok then"),
        ],
    )
    def test_a_cell_that_does_something_else_is_noticed(self, tmp_path: Path, differs: list[Event], what: str) -> None:
        whole = turn_with_a_cell(runs.asked(), runs.answered())
        stopped = Played(journal(tmp_path, *whole))
        with pytest.raises(ResumeError, match=what):
            stopped.emit(*differs)
        assert [envelope.event for envelope in stopped.heard] == [events.Diverged(1, what)]
        live = Played(journal(tmp_path, *whole, run="r2"), "live")
        assert live.emit(*differs)[0] == events.Diverged(1, what)

    @pytest.mark.parametrize("then", ["timeout", "cancelled"])
    def test_what_a_stopped_cell_did_not_get_it_does_not_get_and_that_is_no_news(
        self, tmp_path: Path, then: str
    ) -> None:
        tape = retold(
            tmp_path,
            *cell_that(then, runs.asked(1, "given up"), failed(1, "cancelled"), runs.asked(2, "late"), failed(2, LATE)),
            events.Refused(1, "llm_query", LATE, 0.0, nth=2, message="late"),
            events.CellStarted(2, 2, "asks again"),
            events.SubcallStarted(3, 2, "sub-model", "given up", 512),
            runs.answered(3, "only the second time"),
            events.CellFinished(2, 2, runs.cell_result()),
        )
        played = Played(tape)
        for prompt in ("given up", "late", "had not left"):
            with pytest.raises(GivenUpError) as caught:
                played.emit(runs.asked(1, prompt))
            assert caught.value.stops
        for ask in (
            lambda: played.recorder.recall_tool(1, "lookup", "{}"),
            lambda: played.recorder.refusal(1, "llm_query", 2),
            lambda: played.recorder.begin_child(1, interrupted=True),
            lambda: played.recorder.begin_child(1, interrupted=False),
        ):
            with pytest.raises(GivenUpError):
                ask()
        assert played.emit(events.SubcallStarted(4, 2, "sub-model", "given up", 512)) == []
        for now in ("cancelled", "timeout"):
            assert played.emit(events.CellFinished(1, 1, runs.cell_result(status=now, stdout="further"))) == []
        with pytest.raises(ResumeError, match=f"it ended as ok, and as {then} then"):
            played.emit(events.CellFinished(1, 1, runs.cell_result()))

    def test_a_call_that_a_cell_did_not_wait_for_is_given_up_again_and_the_cell_goes_on(self, tmp_path: Path) -> None:
        played = Played(journal(tmp_path, *turn_with_a_cell(runs.asked(1, "thread"), failed(1, "cancelled"))))
        with pytest.raises(GivenUpError) as caught:
            played.emit(runs.asked(1, "thread"))
        assert not caught.value.stops
        with pytest.raises(GivenUpError) as caught:
            played.recorder.begin_child(1, interrupted=True)
        assert not caught.value.stops
        played.recorder.begin_child(1, interrupted=False)  # its journal is lost

    def test_a_cell_in_which_the_run_was_interrupted_is_not_over_for_one_that_goes_on(self, tmp_path: Path) -> None:
        happened = cell_that("cancelled", runs.asked(1, "a"), failed(1, "cancelled"))
        assert retold(tmp_path / "retold", *happened).finished(1)
        tape = journal(tmp_path, *happened)
        assert not tape.finished(1)
        new = Played(tape).emit(runs.asked(1, "a"), events.CellFinished(1, 1, runs.cell_result()))
        assert [event.kind for event in new] == ["subcall_started", "cell_finished"]
        assert not journal(tmp_path, *cell_that("timeout"), run="r2").stopped(2)

    def test_one_that_is_not_live_asks_nobody_whatever_the_cell(self, tmp_path: Path) -> None:
        played = Played(journal(tmp_path, *turn_with_a_cell(), events.CellStarted(2, 2, "cut off")))
        played.recorder.live = False
        for cell in (1, 2, 3):
            for ask in (
                lambda cell=cell: played.emit(asked_by(cell)),
                lambda cell=cell: played.recorder.recall_tool(cell, "lookup", "{}"),
                lambda cell=cell: played.recorder.begin_child(cell, interrupted=False),
                lambda cell=cell: played.recorder.begin_child(cell, interrupted=True),
            ):
                with pytest.raises((ResumeError, GivenUpError)):
                    ask()
        assert played.live == 0
        played = Played(played.recorder.tape)
        played.recorder.live = False
        with pytest.raises(ResumeError, match="was not run then"):
            played.emit(events.CellStarted(0, 3, "code"))
        with pytest.raises(ResumeError, match="not recorded"):
            played.recorder.recall("sub", "sub-model", "new", 512)
        assert played.live == 0

    def test_what_is_left_is_told_as_it_was_told_then(self, tmp_path: Path) -> None:
        told = events.BudgetTold(1, 2, {"calls": 7, "wall_s": 1.5})
        played = Played(journal(tmp_path, *turn_with_a_cell(told)))
        assert played.recorder.budget(1, 2) == told.left
        assert played.recorder.budget(1, 1) is None
        assert played.recorder.budget(2, 2) is None

    def test_one_that_only_prints_something_else_goes_on_and_is_told(self, tmp_path: Path) -> None:
        played = Played(journal(tmp_path, *turn_with_a_cell(stdout="now: 1\n")))
        (new,) = played.emit(events.CellFinished(1, 1, runs.cell_result(stdout="now: 2\n")))
        assert new == events.Diverged(1, "it printed something else")


def test_elapsed_time_goes_on(tmp_path: Path) -> None:
    tape = journal(tmp_path, *turn_with_a_cell())
    tape.elapsed_s = 100.0
    played = Played(tape)
    played.emit(runs.replied(2))
    assert 100 <= played.heard[0].elapsed_s < 160


def test_events_of_another_kind_pass(tmp_path: Path) -> None:
    played = Played(journal(tmp_path, *turn_with_a_cell()))
    opened: Any = events.SandboxOpened("box", "image", "runc", 0.1, {})
    assert played.emit(opened, events.LimitReached("calls", 0.0)) == [opened, events.LimitReached("calls", 0.0)]
