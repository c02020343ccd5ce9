from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.errors import JournalError
from orchestrator.events import Event
from orchestrator.recording import Recorder
from orchestrator.text import columns, printable
from orchestrator.trajectory.journal import JournalWriter
from orchestrator.trajectory.listing import summarize
from orchestrator.trajectory.spend import Spend
from orchestrator.trajectory.view import CALLS_A_CELL, CODE_LINES, Choice, render
from tests.support.runs import a_run, answered, asked, cell_result, finished, replied, started

HOSTILE = "\x1b]0;title\x07\x9b31m\u202eevil\nsecond\rline"


def write(folder: Path, *happened: Event, run: str = "r1", parent: str | None = None) -> Path:
    with JournalWriter.create(folder, run) as writer:
        recorder = Recorder(run, parent, (writer,))
        for event in happened:
            recorder.emit(event)
    return writer.path


def show(path: Path, *, width: int = 100, full: bool = False) -> str:
    return "\n".join(line.rstrip() for line in render(path, Choice(width, full=full)))


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
        for line in render(path, Choice(full=full)):
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


def test_the_end_tells_what_was_used_of_each_budget_and_spent_by_model_and_depth(tmp_path: Path) -> None:
    table = {"calls": 3, "input_tokens": 1000, "output_tokens": 50, "cache_read_tokens": 200, "cost_usd": 0.5}
    usage = {"calls": 3, "cost_usd": 0.5, "by_model": {"root-model": table}, "by_depth": {"0": table, "1": table}}
    policy = {"name": "default", "budget": {"calls": 20, "cost_usd": 10.0}}
    begin = events.RunStarted("How many?", {"kind": "text"}, policy, "root-model", "sub-model", 0)
    text = show(write(tmp_path, begin, *a_run()[1:-1], events.RunFinished("limit", None, "calls", usage, 1, 9.5)))
    assert text.splitlines()[-9:] == [
        "limits    reached: calls (0 left)",
        "          refused llm_query: calls, 1 time",
        "used      calls 3 of 20 · cost_usd 0.5 of 10",
        "spent",
        f"{'  by model':40}       calls   tokens in      cached         out        cost",
        f"{'  root-model':40}           3       1,200         200          50     $0.5000",
        f"{'  by depth':40}       calls   tokens in      cached         out        cost",
        f"{'  depth 0':40}           3       1,200         200          50     $0.5000",
        f"{'  depth 1':40}           3       1,200         200          50     $0.5000",
    ]


def test_a_run_cut_off_is_counted_with_its_children(tmp_path: Path) -> None:
    write(tmp_path, started("A smaller question", 1), replied(), run="child-1", parent="r1")
    path = write(tmp_path, *a_run()[:-1])
    for choice in (Choice(), Choice(summary=True)):
        lines = list(render(path, choice))
        assert "spent; no closing account, so counted from what was recorded" in lines
        assert [line.split()[:3] for line in lines if "root-model  " in line] == [["root-model", "2", "2,400"]]
        assert [line.split()[:3] for line in lines if line.startswith("  depth")] == [
            ["depth", "0", "3"],
            ["depth", "1", "1"],
        ]


def turn(number: int) -> list[Event]:
    code = f"step({number})"
    return [
        replied(number, f"Say {number}"),
        events.CellStarted(number, number, code),
        events.CellFinished(number, number, cell_result()),
    ]


@pytest.mark.parametrize(
    ("turns", "there"), [(range(2, 3), [2]), (range(2, 4), [2, 3]), (range(1), []), (None, [1, 2, 3])]
)
def test_turns_can_be_chosen(tmp_path: Path, turns: range | None, there: list[int]) -> None:
    path = write(tmp_path, *a_run()[:2], *turn(1), *turn(2), *turn(3), finished())
    text = "\n".join(render(path, Choice(turns=turns)))
    assert [number for number in (1, 2, 3) if f"> step({number})" in text] == there
    assert ("controls read back" in text or "control read back" in text) == (turns is None or 0 in turns)
    assert "query    How many?" in text
    assert "answer\n  42" in text


def test_a_summary_has_no_turns(tmp_path: Path) -> None:
    text = "\n".join(render(write(tmp_path, *a_run()), Choice(summary=True)))
    assert "query    How many?" in text
    assert "limits    reached: calls (0 left)" in text
    assert "answer\n  42" in text
    assert "turn 1 ·" not in text
    assert "print(1)" not in text


def test_calls_can_be_shown_all_without_their_texts(tmp_path: Path) -> None:
    calls = [event for call in range(50) for event in (asked(call, "p" * 900), answered(call))]
    path = write(tmp_path, started(), events.CellStarted(1, 1, "x"), *calls, events.CellFinished(1, 1, cell_result()))
    lines = [line for line in render(path, Choice(calls=True)) if "sub-call " in line]
    assert len(lines) == 50
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("width", [40, 80, 100])
def test_on_a_terminal_no_line_is_wider_than_it(tmp_path: Path, width: int) -> None:
    wide = "\u6f22\u5b57 e\u0301\t" * 200
    error = {"name": wide, "value": wide, "traceback": wide}
    result = cell_result(status="error", stdout=wide, stderr=wide, result=wide, error=error, detail=wide)
    write(tmp_path, started(wide, 1), finished(answer=wide), run="child-1", parent="r1")
    path = write(
        tmp_path,
        started(wide),
        replied(text=wide),
        events.CellStarted(1, 1, wide),
        asked(prompt=wide),
        answered(text=wide),
        events.ChildStarted("child-1", 1, wide),
        events.CellFinished(1, 1, result),
        finished(answer=wide, reason=wide),
    )
    for full in (False, True):
        lines = list(render(path, Choice(width, wrap=True, full=full)))
        assert max(map(columns, lines)) <= width


def test_texts_that_are_broken_at_the_width_are_whole(tmp_path: Path) -> None:
    code = "".join(chr(0x4E00 + n) for n in range(150))
    path = write(tmp_path, started(), events.CellStarted(1, 1, code))
    lines = render(path, Choice(80, wrap=True))
    assert "".join(line[12:] for line in list(lines)[5:] if line.startswith(" " * 10)) == code


@pytest.mark.parametrize("width", [40, 64, 80, 200])
def test_the_table_of_spending_fits_and_its_columns_stand_in_line(width: int) -> None:
    spend = Spend()
    spend.add("\u6f22" * 90 + HOSTILE, 0, {"usage": {"input_tokens": 12_345_678}, "cost_usd": 1234.5})
    spend.add("plain", 1, {"usage": {}, "cost_usd": None})
    lines = list(spend.lines(width))
    assert max(map(columns, lines)) <= width
    assert len({columns(line) for line in lines[1:]}) == 1
    assert printable("\n".join(lines)) == "\n".join(lines)
    assert lines[2].endswith("$1234.5000")
    assert lines[3].endswith("–")
