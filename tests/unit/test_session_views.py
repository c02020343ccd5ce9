"""A question of a session as everything tells it that shows, checks or measures runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from orchestrator import events
from orchestrator.cli.main import main
from orchestrator.text import printable
from orchestrator.trajectory.html import page
from orchestrator.trajectory.listing import summarize
from orchestrator.trajectory.verify import Report, verify
from orchestrator.trajectory.view import Choice, render
from tests.support.fake_session import finals
from tests.support.runs import a_question, a_run
from tests.unit.test_dialogue import Desk, prints
from tests.unit.test_journal_verify import rewrite
from tests.unit.test_journal_view import write
from tests.unit.test_otel import Collected
from tests.unit.test_progress import feed, view

BOX = "box c0ffeec0ffeec0ffeec0ffee"

# Shown ----------------------------------------------------------------------------------------------------------------


def test_a_journal_tells_which_question_it_is_and_that_its_box_lives_on(tmp_path: Path) -> None:
    first = list(render(write(tmp_path, *a_question(1), run="s1-1")))
    second = list(render(write(tmp_path, *a_question(2), run="s1-2")))
    assert "  session  question 1 of session s1" in first
    assert "  session  question 2 of session s1, goes on from question 1" in second
    told = [line[10:] for line in second if BOX in line or "cell 2" in line]
    assert told == [
        f"{BOX} goes on, with the variables of the questions before",
        "cell 2, run by rlm-sandbox itself",
        "cell 2 ok in 0.50 s",
        f"{BOX} waits for the next question",
    ]
    assert not [line for line in first + second if "destroyed" in line]
    assert not [line for line in render(write(tmp_path, *a_run())) if "session" in line]


def test_turn_0_is_what_comes_before_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, *a_question(2), run="s1-2")
    text = "\n".join(render(path, Choice(turns=range(1))))
    assert "cell 2, run by rlm-sandbox itself" in text
    assert "cell 3" not in text


def test_a_page_tells_it_too_and_warns_of_nothing(tmp_path: Path) -> None:
    _, data = page.render(write(tmp_path, *a_question(2), run="s1-2"))
    (run,) = data["runs"]
    assert run["session"] == "question 2 of session s1, goes on from question 1"
    notes = [(item["text"], item["level"]) for item in run["items"] if item["k"] == "note"]
    assert notes == [
        ("sandbox c0ffeec0ffeec0ffeec0ffee goes on, with the variables of the questions before", ""),
        ("sandbox c0ffeec0ffeec0ffeec0ffee waits for the next question", ""),
    ]
    assert [item["turn"] for item in run["items"] if item["k"] == "cell"] == [0, 1]
    _, alone = page.render(write(tmp_path, *a_run()))
    assert alone["runs"][0]["session"] == ""


@pytest.mark.parametrize("session", [["s1", 2], 7, {"id": "s1"}, {"id": {}, "question": "2"}])
def test_a_place_in_a_session_that_is_malformed_is_no_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], session: object
) -> None:
    path = write(tmp_path, *a_question(2), run="s1-2")
    rewrite(path, lambda lines: lines[0].update(session=session))
    for verb in ("show", "verify", "html", "list"):
        arguments = ["--journal", str(tmp_path)] if verb == "list" else [str(path)]
        arguments += ["-o", str(tmp_path / "page.html")] if verb == "html" else []
        assert main(["journal", verb, *arguments]) in (0, 1, 2)
        assert "unexpected" not in capsys.readouterr().err
    assert summarize(path).session is None
    assert not verify(path).ok or not isinstance(session, dict)


def test_the_list_marks_questions_only_where_there_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *a_run())
    assert main(["journal", "list", "--journal", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("  answered    How many?\n")
    write(tmp_path, *a_question(2), run="s1-2")
    assert main(["journal", "list", "--journal", str(tmp_path)]) == 0
    told = [line.partition("answered")[2] for line in capsys.readouterr().out.splitlines()]
    assert sorted(told) == ["         How many?", "    q2   Question 2?"]


@pytest.mark.parametrize("live", [False, True])
def test_the_progress_of_a_further_question_shows_no_cell_of_ours(live: bool) -> None:  # noqa: FBT001
    progress, screen, _ = view(live=live)
    feed(progress, *a_question(2)[:3], run="s1-2")
    if live:
        assert [line for line in screen.shown() if line.startswith("going on in the sandbox  0 s")]
    feed(progress, *a_question(2)[3:], run="s1-2")
    progress.close()
    shown = [line for line in screen.shown() if line]
    assert shown[0] == "question 2: Question 2?"
    assert shown[2] == "sandbox of the questions before, with its variables"
    assert shown[3].startswith("turn 1")
    assert "globals" not in screen.getvalue()


def test_a_cell_of_ours_that_fails_is_told() -> None:
    progress, screen, _ = view(live=False)
    feed(progress, *a_question(2, cleared="died"), run="s1-2")
    assert "a cell of rlm-sandbox itself: died, variables lost\n" in printable(screen.getvalue())


# Measured -------------------------------------------------------------------------------------------------------------


def test_a_session_is_one_conversation_and_its_box_is_opened_once_and_counted_while_a_run_has_it() -> None:
    collected = Collected()
    for number in (1, 2, 3):
        happened = a_question(number)
        collected.run(*happened[:3], run=f"s1-{number}")
        assert [point.value for point in collected.metric("rlm.box.open")] == [1]
        collected.sink(events.Envelope(f"s1-{number}", None, 3, 0.0, 0.0, happened[-2]))
        collected.sink(events.Envelope(f"s1-{number}", None, 4, 0.0, 0.0, happened[-1]))
        assert [point.value for point in collected.metric("rlm.box.open")] == [0]
    assert [point.count for point in collected.metric("rlm.box.open.duration")] == [1]
    found = [span.attributes or {} for span in collected.spans("invoke_agent rlm-sandbox")]
    assert [(each["gen_ai.conversation.id"], each["rlm.run"], each["rlm.question"]) for each in found] == [
        ("s1", f"s1-{number}", number) for number in (1, 2, 3)
    ]
    boxes = collected.spans("rlm.box")
    assert [(span.attributes or {})["rlm.box.lent"] for span in boxes] == [False, True, True]
    assert all(span.status.status_code is StatusCode.UNSET for span in boxes)


# Checked --------------------------------------------------------------------------------------------------------------


async def a_session(folder: Path, questions: int = 3) -> list[Path]:
    desk = Desk(folder, [finals(str(number)) for number in range(questions)])
    async with desk.rlm.asession() as session:
        for number in range(questions):
            await session.ask(f"Question {number}?", "text" if not number else None)
    return desk.journals


def found(report: Report) -> list[str]:
    return [problem.what for problem in report.problems]


@pytest.mark.anyio
async def test_a_question_is_in_order_that_follows_on_the_one_before(tmp_path: Path) -> None:
    for path in await a_session(tmp_path):
        assert (found(verify(path)), verify(path).notes) == ([], [])


@pytest.mark.anyio
async def test_a_question_whose_predecessor_is_not_there_says_what_was_not_checked(tmp_path: Path) -> None:
    _, second, third = await a_session(tmp_path)
    second.unlink()
    report = verify(third)
    assert report.ok
    (note,) = report.notes
    assert note.what == "the journal of question 2 is not beside it: whether this one follows on that was not checked"


Change = Callable[[list[dict[str, Any]]], object]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changed", "change", "problem"),
    [
        (0, lambda lines: lines[-1].update(answer="other"), "does not follow on the journal of question 1: that one's"),
        (
            1,
            lambda lines: lines[0]["session"].update(previous="0" * 64),
            "does not follow on the journal of question 1",
        ),
        (1, lambda lines: lines[0]["session"].update(question=1), "which cannot be question 1 of session"),
        (1, lambda lines: lines[0]["session"].update(id="../x"), "which cannot be question 2 of session ../x"),
        (1, lambda lines: lines[0]["session"].update(previous=None), "its place in a session is not of this format"),
    ],
)
async def test_a_question_that_was_put_behind_another_is_found_though_every_chain_fits(
    tmp_path: Path, changed: int, change: Change, problem: str
) -> None:
    paths = await a_session(tmp_path, 2)
    rewrite(paths[changed], change)
    assert verify(paths[0]).ok or changed == 0
    assert any(problem in what for what in found(verify(paths[1]))), found(verify(paths[1]))


@pytest.mark.anyio
async def test_the_first_question_has_none_before_it_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    first, second = await a_session(tmp_path, 2)
    with first.open("ab") as file:
        file.write(b"noise\n")
    assert any("follows on a journal that cannot be read: " in what for what in found(verify(second)))
    rewrite(second, lambda lines: lines[0]["session"].update(previous=""))
    first.unlink()
    (only,) = await a_session(tmp_path / "other", 1)
    rewrite(only, lambda lines: lines[0]["session"].update(previous="0" * 64))
    assert found(verify(only)) == ["tells of a question before it, and there is none that it follows on"]


@pytest.mark.anyio
async def test_a_question_that_was_cut_off_and_left_is_passed_over_by_the_next(tmp_path: Path) -> None:
    first, second = await a_session(tmp_path, 2)
    second.write_bytes(b"".join(second.read_bytes().splitlines(keepends=True)[:3]))
    desk = Desk(tmp_path, [finals("0"), prints, finals("2")])
    async with desk.rlm.aresume_session(first, ["text"]) as session:
        assert session.unfinished == "Question 1?"
        await session.ask("Another?")
    third = desk.journals[-1]
    assert third.stem.endswith("-3")
    assert (found(verify(third)), verify(third).notes) == ([], [])
