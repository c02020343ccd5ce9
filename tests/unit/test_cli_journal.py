"""``journal html`` and the choices of ``journal show`` as a person types them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.support.journals import with_calls, write_at
from tests.support.runs import a_run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command line in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    folder = tmp_path / "state" / "rlm-sandbox" / "journal"
    return write_at(folder, "run-abc", [(n / 10, event) for n, event in enumerate(a_run())])


@pytest.mark.usefixtures("journal")
def test_html_writes_a_page_only_its_owner_can_read_and_prints_where(cli: Run, tmp_path: Path) -> None:
    assert cli("journal", "html", "run-a") == (0, "run-abc.html\n", "")
    page = tmp_path / "run-abc.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-abc.html", "state"]


@pytest.mark.usefixtures("journal")
def test_html_with_json_tells_what_the_page_holds(cli: Run, tmp_path: Path) -> None:
    code, out, err = cli("journal", "html", "run-abc", "-o", "page.html", "--json")
    size = (tmp_path / "page.html").stat().st_size
    assert (code, err) == (0, "")
    assert json.loads(out) == {"file": "page.html", "bytes": size, "run": "run-abc", "runs": 2, "subcalls": 2}


@pytest.mark.usefixtures("journal")
def test_html_to_stdout_is_the_page_and_nothing_else(cli: Run) -> None:
    code, out, err = cli("journal", "html", "run-abc", "-o", "-")
    assert (code, err) == (0, "")
    assert out.startswith("<!DOCTYPE html>")
    assert out.endswith("</html>\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no-such-run"], "no journal 'no-such-run'"),
        (["run-abc", "-o", "-", "--json"], "--json and -o - cannot both have stdout"),
        (["run-abc", "-o", ""], "argument -o/--output: the value is empty"),
        (["run-abc", "-o", "missing/page.html"], "cannot write the page missing/page.html: No such file or directory"),
        (["run-abc", "-o", "state"], "cannot write the page state: Is a directory"),
        (["run-abc", "-o", "run.jsonl"], "-o run.jsonl: that is the name of a journal; give one that ends in .html"),
    ],
)
def test_html_that_cannot_be_is_one_line_and_loses_nothing(
    cli: Run, journal: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    before = journal.read_bytes()
    code, out, err = cli("journal", "html", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert journal.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_html_of_a_damaged_journal_is_a_page_and_a_complaint(cli: Run, journal: Path, tmp_path: Path) -> None:
    with journal.open("ab") as file:
        file.write(b"noise\n")
    code, out, err = cli("journal", "html", "run-abc")
    assert (code, out) == (1, "run-abc.html\n")
    assert "is not JSON; the page holds what stands before" in err
    assert "How many?" in (tmp_path / "run-abc.html").read_text("utf-8")


def test_html_leaves_an_older_page_alone_when_it_fails(cli: Run, journal: Path, tmp_path: Path) -> None:
    page = tmp_path / "run-abc.html"
    page.write_text("older")
    journal.write_text('{"v":1,"run":"r","parent":null,"seq":0,"t":0,"time":0,"kind":"observed","turn":0,"text":""}\n')
    code, out, err = cli("journal", "html", "run-abc")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert page.read_text() == "older"


def test_html_of_ten_thousand_sub_calls_is_made(cli: Run, tmp_path: Path) -> None:
    path = with_calls(tmp_path / "many", 10_000)
    code, out, _ = cli("journal", "html", str(path), "--json")
    assert (code, json.loads(out)["subcalls"]) == (0, 10_000)


@pytest.mark.usefixtures("journal")
def test_show_can_be_narrowed_to_turns_as_text_and_as_json(cli: Run) -> None:
    code, out, _ = cli("journal", "show", "run-abc", "--turn", "0")
    assert code == 0
    assert "control read back" in out
    assert "print(1)" not in out
    code, out, _ = cli("journal", "show", "run-abc", "--turn", "0-0", "--json")
    assert [item["kind"] for item in json.loads(out)] == ["run_started", "sandbox_opened", "run_finished"]


@pytest.mark.usefixtures("journal")
def test_show_with_summary_tells_question_answer_and_spending(cli: Run) -> None:
    code, out, err = cli("journal", "show", "run-abc", "--summary")
    assert (code, err) == (0, "")
    assert "How many?" in out
    assert "limits    reached: calls (0 left)" in out
    assert "print(1)" not in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--turn", "x"], "'x' is neither a turn, such as 3, nor turns, such as 3-5"),
        (["--turn", "5-3"], "'5-3' is neither a turn"),
        (["--turn", "3-"], "'3-' is neither a turn"),
        (["--summary", "--calls"], "--summary shows no turns: leave out --turn, --calls and --full"),
        (["--json", "--full"], "--json has every record whole: leave out --summary, --calls and --full"),
    ],
)
@pytest.mark.usefixtures("journal")
def test_show_refuses_choices_that_make_no_sense(cli: Run, arguments: list[str], complaint: str) -> None:
    code, out, err = cli("journal", "show", "run-abc", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


def test_last_is_the_run_that_was_recorded_last_and_no_child(cli: Run, journal: Path) -> None:
    code, _, err = cli("journal", "show", "last", "--journal", str(journal.parent / "none"))
    assert (code, err.count("nothing was recorded yet")) == (2, 1)
    for number, name in enumerate(("run-xyz", "run-xyz.1", "run-def"), 1):
        path = write_at(journal.parent, name, [(n / 10, event) for n, event in enumerate(a_run())])
        os.utime(path, (1000 * number, 1000 * number))
    os.utime(journal, (5000, 5000))
    os.utime(journal.parent / "run-xyz.1.jsonl", (6000, 6000))
    assert "run run-abc, begun" in cli("journal", "show", "last")[1]
    assert cli("journal", "html", "last")[1] == "run-abc.html\n"
    code, _, err = cli("chat", "--resume", "last")
    assert (code, "nothing was recorded yet" in err) == (2, True)
