from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.errors import JournalError
from orchestrator.events import Event, Recorder
from orchestrator.text import printable
from orchestrator.trajectory.journal import JournalWriter
from orchestrator.trajectory.view import CALLS_A_CELL, CODE_LINES, render, summarize
from tests.support.runs import a_run, answered, asked, cell_result, finished, replied, started

HOSTILE = "\x1b]0;title\x07\x9b31m\u202eevil\nsecond\rline"


def write(folder: Path, *happened: Event, run: str = "r1", parent: str | None = None) -> Path:
    with JournalWriter.create(folder, run) as writer:
        recorder = Recorder(run, parent, (writer,))
        for event in happened:
            recorder.emit(event)
    return writer.path


def show(path: Path, *, width: int = 100, full: bool = False) -> str:
    return "\n".join(line.rstrip() for line in render(path, width=width, full=full))


def test_a_run_reads_from_question_to_answer(tmp_path: Path) -> None:
    text = show(write(tmp_path, *a_run()))
    for part in (
        "query    How many?",
        "context  dict, 3 documents, 12,345 characters, 99 lines, sha256 abababababab",
        "models   root root-model, sub-calls sub-model; policy default",
        "box c0ffeec0ffeec0ffeec0ffee open under runc in 0.40 s, 1 control read back",
        "turn 1 · 1,200 tokens in (200 cached), 50 out · $0.0100 · 1.5 s",
        "│ I look.",
        "> print(1)",
        "sub: attempt 1 failed (model_unavailable), again in 0.5 s",
        "sub-call 1 What is here? → A word. (0.25 s, $0.0010, 2 attempts)",
        "sub-call 2 And here? failed: model_unavailable 503 from the provider (2.00 s, 3 attempts)",
        "refused llm_query: calls (0 left)",
        "child run child-1: A smaller question",
        "child run child-1 answered",
        "Final set, 2 characters",
        "cell 1 ok in 0.50 s",
        "limit reached: calls (0 left)",
        "box c0ffeec0ffeec0ffeec0ffee destroyed",
        "answered, 1 turn, 9.5 s",
        "tokens 3,750",
        "answer\n  42",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("happened", "torn", "status"),
    [
        (a_run(), b"", "answered"),
        ([started("How many?")], b"", "unfinished"),
        (a_run()[:-1], b'{"v":1,"kind":"run_finished","stat', "unfinished"),
    ],
)
def test_a_summary_tells_how_a_run_ended(tmp_path: Path, happened: list[Event], torn: bytes, status: str) -> None:
    path = write(tmp_path, *happened)
    with path.open("ab") as file:
        file.write(torn)
    told = summarize(path)
    assert (told.run, told.parent, told.status, told.query) == ("r1", None, status, "How many?")


def test_a_question_that_is_long_is_summarized_whole(tmp_path: Path) -> None:
    assert summarize(write(tmp_path, started("long " * 1000))).query == "long " * 1000


@pytest.mark.parametrize("happened", [[], [replied()]])
def test_what_does_not_begin_with_a_run_has_no_summary(tmp_path: Path, happened: list[Event]) -> None:
    with pytest.raises(JournalError, match="does not begin with a run"):
        summarize(write(tmp_path, *happened))


def test_a_time_that_cannot_be_is_no_crash(tmp_path: Path) -> None:
    path = write(tmp_path, started())
    path.write_text(re.sub(r'"time":[0-9.]+', '"time":1e300', path.read_text()))
    assert "begun at no time that can be" in show(path)


def test_code_is_shown_as_a_cell_and_not_again_in_the_reply(tmp_path: Path) -> None:
    path = write(tmp_path, started(), *a_run()[2:4])
    assert show(path).count("print(1)") == 1
    assert show(path, full=True).count("print(1)") == 2


def test_what_a_model_or_a_box_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    error = {"name": HOSTILE, "value": HOSTILE, "traceback": HOSTILE}
    path = write(
        tmp_path,
        started(HOSTILE),
        replied(text=HOSTILE),
        events.CellStarted(1, 1, HOSTILE),
        asked(prompt=HOSTILE),
        answered(text=HOSTILE),
        asked(2),
        events.SubcallFailed(2, "x", HOSTILE, 1, 0.1),
        events.Refused(1, HOSTILE, HOSTILE, None),
        events.ChildStarted("c", 1, HOSTILE),
        events.CellFinished(
            1, 1, cell_result(status="error", stdout=HOSTILE, stderr=HOSTILE, result=HOSTILE, error=error)
        ),
        events.Observed(1, HOSTILE),
        finished(answer=HOSTILE, reason=HOSTILE),
    )
    for full in (False, True):
        for line in render(path, full=full):
            assert printable(line) == line
            assert "\n" not in line


def test_many_sub_calls_are_counted_and_full_shows_them_all(tmp_path: Path) -> None:
    calls = [event for call in range(1000) for event in (asked(call), answered(call))]
    path = write(tmp_path, started(), events.CellStarted(1, 1, "x"), *calls, events.CellFinished(1, 1, cell_result()))
    text = show(path)
    assert text.count("sub-call ") == CALLS_A_CELL
    assert f"… and {1000 - CALLS_A_CELL} sub-calls more" in text
    assert show(path, full=True).count("sub-call ") == 1000


def test_long_texts_are_cut_with_the_rest_counted_and_full_shows_them_whole(tmp_path: Path) -> None:
    path = write(tmp_path, started(), events.CellStarted(1, 1, "line\n" * 1000 + "y" * 5000))
    text = show(path)
    assert text.count("> line") == CODE_LINES
    assert f"… {1001 - CODE_LINES} more lines" in text
    assert "y" * 5000 in show(path, full=True)


@pytest.mark.parametrize("width", [10, 40, 79, 200])
def test_summary_lines_fit_the_width(tmp_path: Path, width: int) -> None:
    path = write(
        tmp_path, started("long " * 100), asked(prompt="p" * 500), answered(text="a" * 500), finished(reason="r" * 300)
    )
    assert max(map(len, show(path, width=width).splitlines())) <= max(width, 80)


def test_a_child_run_is_set_in_below_its_start(tmp_path: Path) -> None:
    write(tmp_path, started("A smaller question", 1), finished(answer="7"), run="child-1", parent="r1")
    text = show(write(tmp_path, *a_run()))
    assert "    run child-1, begun" in text
    assert "      query    A smaller question" in text
    assert text.index("run child-1, begun") < text.index("child run child-1 answered")


def test_a_childs_journal_that_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, *a_run())
    assert "cannot read the journal" in show(path)
    (tmp_path / "child-1.jsonl").write_text("{}\n")
    assert "line 1 is not a line of a journal" in show(path)
    assert "answered, 1 turn" in show(path)


def test_a_child_that_names_its_parent_does_not_recurse(tmp_path: Path) -> None:
    assert show(write(tmp_path, started(), events.ChildStarted("r1", 1, "again"))).count("query") == 1


@pytest.mark.parametrize("child", ["../r1", "a/b", "/etc/passwd"])
def test_a_childs_name_never_leads_out_of_the_folder(tmp_path: Path, child: str) -> None:
    folder = tmp_path / "journals"
    write(tmp_path, started("outside"))
    assert "outside" not in show(write(folder, started(), events.ChildStarted(child, 1, "q")))


def test_sub_calls_a_cut_left_open_are_counted(tmp_path: Path) -> None:
    done = [event for call in range(8) for event in (asked(call), answered(call))]
    path = write(tmp_path, started(), events.CellStarted(1, 1, "x"), *done, asked(8), asked(9))
    text = show(path)
    assert "… and 3 sub-calls more" in text
    assert "2 sub-calls without an answer" in text


def test_a_run_cut_off_says_so(tmp_path: Path) -> None:
    assert show(write(tmp_path, started())).endswith("the run did not finish, or is still going on")
    assert "did not finish" not in show(write(tmp_path, started(), finished(), run="r2"))


def test_a_cell_that_did_not_end_well_says_how(tmp_path: Path) -> None:
    lost = cell_result(status="timeout", state_lost=True, truncated=True, detail="the processes were killed")
    text = show(write(tmp_path, started(), events.CellFinished(1, 1, lost)))
    assert "cell 1 timeout in 0.50 s, its variables are lost, output cut: the processes were killed" in text


def test_a_kind_of_a_later_version_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, started())
    line = {**json.loads(path.read_text("utf-8").splitlines()[-1]), "kind": "tool_called"}
    path.write_text(json.dumps(line) + "\n")
    assert "tool_called (this version has no text for it)" in show(path)


@pytest.mark.parametrize("broken", [{"query": 1, "policy": 2}, {"context": None}])
def test_a_record_of_wrong_shape_is_a_journal_error(tmp_path: Path, broken: dict[str, object]) -> None:
    path = write(tmp_path, started())
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **broken}) + "\n")
    with pytest.raises(JournalError, match="run_started"):
        show(path)
