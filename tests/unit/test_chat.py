"""``rlm-sandbox chat``: the real command line, session, loop and journal, over fake boxes and models."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.interrupt import Interrupt
from orchestrator.errors import JournalError
from orchestrator.events import Envelope
from orchestrator.rlm import api
from orchestrator.rlm.sitting import CLEAR
from orchestrator.trajectory.journal import read
from tests.support.cli import HOSTILE, Run, Stdin, one_complaint
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.unit.test_dialogue import asks
from tests.unit.test_journal_verify import rewrite
from tests.unit.test_resume import FakeProvider

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every journal of these tests in a folder of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "rlm-sandbox" / "journal"


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Return the path of a small text."""
    path = tmp_path / "text.txt"
    path.write_text("some text")
    return str(path)


class Desk:
    """What stands behind the command line of a test.

    Attributes:
        boxes: those of the last chat.
        made: what the command line gave the library, a chat each.
    """

    def __init__(self, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boxes = FakeBoxes()
        self.root, self.sub = FakeProvider("root"), FakeProvider("sub")
        self.made: list[dict[str, Any]] = []
        self._cli = cli
        self._patch = monkeypatch
        make = api.RLM.__init__

        def with_fakes(rlm: api.RLM, **given: Any) -> None:
            self.made.append(given)
            make(rlm, **{**given, "model": self.root, "sub_model": self.sub, "open_box": self.boxes.open})

        monkeypatch.setattr(api.RLM, "__init__", with_fakes)

    @property
    def served(self) -> int:
        return len(self.root.served) + len(self.sub.served)

    def chat(
        self,
        *arguments: str,
        cells: Iterable[CellBody] = (),
        again: Iterable[CellBody] = (),
        asked: str | bytes = "",
    ) -> tuple[int, str, str]:
        """Run the command with ``asked`` on stdin over a box with ``cells``, and a next one with those of ``again``."""
        self.boxes.cells, self.boxes.opened = [list(cells), list(again)], []
        data = asked.encode() if isinstance(asked, str) else asked
        self._patch.setattr(sys, "stdin", Stdin(data))
        return self._cli("chat", *arguments)


@pytest.fixture
def desk(cli: Run, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Return a desk with fake boxes and models."""
    return Desk(cli, monkeypatch)


def signalled(number: signal.Signals) -> CellBody:
    """Return a cell that never ends, in the middle of which this process gets a signal."""

    async def body(box: FakeBox) -> None:
        import anyio

        del box
        os.kill(os.getpid(), number)
        await anyio.sleep_forever()

    return body


def session_in(folder: Path) -> str:
    return min(path.stem for path in folder.iterdir()).rpartition("-")[0]


# Questions ------------------------------------------------------------------------------------------------------------


def test_every_line_of_stdin_is_a_question_to_the_same_box(desk: Desk, text: str, state: Path) -> None:
    code, out, err = desk.chat(text, cells=[asks("a", "one"), finals("two\nlines")], asked="What?\n\n  \nAnd then?")
    assert (code, out) == (0, "one: <a>\n\ntwo\nlines\n")
    (box,) = desk.boxes.opened
    assert (box.contexts, box.codes.count(CLEAR), desk.boxes.closed) == (["some text"], 1, 1)
    assert "question 1: What?\n" in err
    assert "question 2: And then?\n" in err
    assert "sandbox ready in 0.25 s (fake)\n" in err
    assert "sandbox of the questions before, with its variables\n" in err
    assert CLEAR not in err
    assert "2 calls · 150 tokens in, 15 out · no price · " in err
    identity = session_in(state)
    assert f"journals: {state}/{identity}-*.jsonl\n" in err
    head = list(read(state / f"{identity}-2.jsonl"))[-1].chain
    assert f"head of the last, which stands for all: {head}\n" in err
    assert err.endswith(f"to go on: rlm-sandbox chat --resume {identity}\n")
    origins = [next(read(state / f"{identity}-{number}.jsonl")).fields["origin"] for number in (1, 2)]
    assert [origin.get("files") for origin in origins] == [[text], None]


def test_quiet_and_json_leave_one_result_a_line_and_nothing_else(desk: Desk, text: str) -> None:
    answers = [finals("one"), finals("two\nlines")]
    code, out, err = desk.chat(text, "--quiet", "--json", cells=answers, asked="What?\nAnd?\n")
    assert (code, err) == (0, "")
    assert [json.loads(line)["answer"] for line in out.splitlines()] == ["one", "two\nlines"]
    assert json.loads(out.splitlines()[1])["run"].endswith("-2")


def test_what_the_options_say_is_handed_on(desk: Desk, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    options = ["--policy", "strict", "--set", "budget.calls=7", "--journal", str(folder), "--model", "offline"]
    code, _, err = desk.chat(text, *options, "--redact", cells=[finals("1")], asked="What?\n")
    (made,) = desk.made
    assert (code, made["model"], made["sub_model"], made["journal"]) == (0, "offline", None, folder)
    assert (made["policy"].name, made["policy"].budget.calls, made["redact"]) == ("strict", 7, True)
    assert "What?" not in (folder / f"{session_in(folder)}-1.jsonl").read_text()
    assert "to go on" not in err


def test_the_exit_code_is_that_of_the_last_question(desk: Desk, text: str) -> None:
    async def nothing(box: FakeBox) -> None:
        del box

    once = [text, "--set", "budget.turns=1", "--quiet"]
    code, out, err = desk.chat(*once, cells=[finals("one"), nothing], asked="What?\nAnd?\n")
    assert (code, out) == (3, "one\n")
    assert one_complaint(err)
    assert "a limit ended the run: turns; for more: rlm-sandbox chat --resume " in err
    assert err.endswith(" --set budget.turns=2\n")
    assert desk.chat(*once, cells=[nothing, finals("two")], asked="What?\nAnd?\n")[:2] == (0, "two\n")


@pytest.mark.parametrize("asked", ["", "\n \n", "/help\n"])
def test_no_question_on_stdin_is_a_matter_of_usage(desk: Desk, text: str, asked: str) -> None:
    code, out, err = desk.chat(text, asked=asked)
    assert (code, out) == (2, "")
    assert err.endswith("rlm-sandbox: there was no question on stdin: give one a line\n")
    assert desk.boxes.opened == []


def test_a_closed_stdin_is_a_matter_of_usage(cli: Run, desk: Desk, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli("chat", text) == (2, "", "rlm-sandbox: stdin is closed: the questions come from there, one a line\n")
    assert desk.made == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"caf\xe9?", "line 1 of stdin is not UTF-8 text (byte 3): it was not asked"),
        (b"x" * 1_000_001, "line 1 of stdin is longer than 400,000 bytes, as no question is"),
        (b"x" * 100_001, "the query has 100,001 characters and may have 100,000"),
    ],
)
def test_a_line_that_cannot_be_asked_is_told_and_the_next_is_asked(
    desk: Desk, text: str, line: bytes, complaint: str
) -> None:
    code, out, err = desk.chat(text, "--quiet", cells=[finals("1")], asked=line + b"\nWhat?\n")
    assert (code, out) == (0, "1\n")
    assert one_complaint(err)
    assert complaint in err
    code, out, _ = desk.chat(text, "--quiet", cells=[finals("1")], asked=b"What?\n" + line)
    assert (code, out) == (2, "1\n")


def test_an_answer_that_stdout_does_not_take_ends_the_session(
    desk: Desk, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = desk.chat(text, "--quiet", cells=[finals("1"), finals("2")], asked="What?\nAnd?\n")
    assert code == 1
    assert "rlm-sandbox: cannot write the answer: No space left on device; it is in " in err
    assert len(desk.root.served) == 1


def test_a_journal_that_is_lost_ends_the_session(desk: Desk, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(envelope: Envelope) -> None:
        if envelope.event.kind == "root_replied":
            raise JournalError("disk full")

    monkeypatch.setattr("orchestrator.cli.run.traced", lambda: full)
    code, out, err = desk.chat(text, "--quiet", cells=[finals("1"), finals("2")], asked="What?\nAnd?\nOr?\n")
    assert (code, out) == (1, "")
    assert err == "rlm-sandbox: the run failed: disk full\nrlm-sandbox: disk full\n"
    assert desk.boxes.closed == 1


# Commands -------------------------------------------------------------------------------------------------------------


def test_add_brings_a_further_context_to_the_next_question(desk: Desk, text: str, tmp_path: Path, state: Path) -> None:
    (tmp_path / "more notes.txt").write_text("more")
    asked = f"What?\n/add '{tmp_path}/more notes.txt'\nAnd?\nOr?\n"
    code, out, _ = desk.chat(text, cells=[finals(str(number)) for number in (1, 2, 3)], asked=asked)
    assert (code, out) == (0, "1\n\n2\n\n3\n")
    (box,) = desk.boxes.opened
    assert box.contexts == ["some text", "more"]
    told = [next(read(path)).fields for path in sorted(state.iterdir())]
    assert [len(one["session"]["contexts"]) for one in told] == [1, 2, 2]
    assert told[1]["origin"]["files"] == [str(tmp_path / "more notes.txt")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/add", "/add takes files or folders, as the command line does"),
        ("/add -", "/add takes files or folders, as the command line does"),
        ("/add missing.txt", "no such file or folder: missing.txt"),
        ("/add 'half", "/add 'half: No closing quotation"),
        ("/add {big}", "limits.context_mb"),
        ("/ad x", "there is no command /ad: there are /add FILE…, /help and /quit; a question may begin with a space"),
        (f"/{HOSTILE}", "there is no command /"),
    ],
)
def test_a_command_that_fails_is_one_line_and_the_session_goes_on(
    desk: Desk, text: str, tmp_path: Path, line: str, complaint: str
) -> None:
    (tmp_path / "big").write_text("x" * (2 << 20))
    asked = f"What?\n{line.replace('{big}', str(tmp_path / 'big'))}\nAnd?\n"
    options = [text, "--quiet", "--set", "limits.context_mb=1"]
    code, out, err = desk.chat(*options, cells=[finals("1"), finals("2")], asked=asked)
    assert (code, out) == (0, "1\n\n2\n")
    assert one_complaint(err)
    assert complaint in err
    assert "\x1b" not in err
    assert desk.boxes.opened[0].contexts == ["some text"]


def test_a_question_may_begin_with_a_slash_behind_a_space_and_quit_asks_no_more(desk: Desk, text: str) -> None:
    code, out, err = desk.chat(text, cells=[finals("1"), finals("2")], asked=" /etc is what?\n/help\n/quit\nMore?\n")
    assert (code, out) == (0, "1\n")
    assert "question 1: /etc is what?" in err
    assert "/add FILE…   load a further context" in err
    assert len(desk.root.served) == 1


def test_a_second_add_takes_the_place_of_the_first_and_says_so(desk: Desk, text: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    asked = f"/add {tmp_path / 'a'}\n/add {tmp_path / 'b'}\nWhat?\n"
    _, _, err = desk.chat(text, cells=[finals("1")], asked=asked)
    assert f"in the place of {text}, which no question was asked about\n" in err
    assert f"in the place of {tmp_path / 'a'}, which no question was asked about\n" in err
    assert desk.boxes.opened[0].contexts == ["b"]


# Signals --------------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_a_question_and_not_the_session(desk: Desk, text: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupted = signalled(signal.SIGINT)
    cells = [finals("1"), interrupted, interrupted, finals("4")]
    code, out, err = desk.chat(text, cells=cells, asked="What?\nAnd?\nOr?\nReally?\n")
    assert (code, out, len(desk.boxes.opened)) == (0, "1\n\n4\n", 1)
    assert err.count("stopping; press Ctrl-C once more to leave at once\n") == 2
    assert err.count("rlm-sandbox: interrupted\n") == 2
    assert signal.getsignal(signal.SIGINT) is before
    assert desk.chat(text, "--quiet", cells=[interrupted], asked="What?\n")[0] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_the_question_and_end_the_session(desk: Desk, text: str, number: signal.Signals) -> None:
    code, out, err = desk.chat(text, "--quiet", cells=[signalled(number), finals("2")], asked="What?\nAnd?\n")
    assert (code, out, desk.boxes.closed) == (130, "", 1)
    assert "rlm-sandbox: interrupted\n" in err
    assert "to go on: rlm-sandbox chat --resume " in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 130)])
def test_a_signal_while_a_line_is_waited_for_ends_the_session(  # noqa: PLR0917 - fixtures and a table
    cli: Run, desk: Desk, text: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    class Interrupted(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            if not line:
                os.kill(os.getpid(), number)
            return line

    stdin = Stdin(b"")
    stdin.buffer = Interrupted(b"What?\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    desk.boxes.cells = [[finals("1")]]
    assert cli("chat", text, "--quiet")[:2] == (code, "1\n")
    assert desk.boxes.closed == 1


@pytest.mark.parametrize("apart", [True, False])
def test_threads_of_the_session_leave_the_signals_to_the_one_that_handles_them(apart: bool) -> None:  # noqa: FBT001
    masks: list[set[int]] = []
    thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    with Interrupt(print) as interrupt, interrupt.undivided() if apart else nullcontext():
        thread.start()
    thread.join()
    assert ({signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= masks[0]) is apart
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_session_goes_on_with_its_files_and_its_variables(desk: Desk, text: str, tmp_path: Path, state: Path) -> None:
    (tmp_path / "more").write_text("more")
    cells = [asks("a", "one"), finals("two"), finals("three")]
    desk.chat(text, "--set", "budget.calls=40", cells=cells, asked=f"What?\n/add {tmp_path / 'more'}\nAnd?\n")
    identity, served = session_in(state), desk.served
    for number, name in enumerate((identity, identity[:20], str(state / f"{identity}-1.jsonl")), start=3):
        code, out, err = desk.chat("--resume", name, cells=[*cells, finals("four"), finals("five")], asked="Or?\n")
        assert (code, out) == (0, f"{['three', 'four', 'five'][number - 3]}\n"), err
        assert f"going on with the session {identity}\n" in err
        assert f"question {number}: Or?\n" in err
        assert desk.boxes.opened[0].contexts == ["some text", "more"]
        assert desk.served == served + number - 2
    first = next(read(state / f"{identity}-4.jsonl")).fields
    assert first["policy"]["budget"]["calls"] == 40


def test_a_question_that_was_cut_off_is_gone_on_with_first(desk: Desk, text: str, state: Path) -> None:
    cells = [finals("one"), asks("a", "two"), finals("three")]
    desk.chat(text, cells=cells, asked="What?\nAnd?\n")
    last = state / f"{session_in(state)}-2.jsonl"
    lines = last.read_bytes().splitlines(keepends=True)
    cut = next(n for n, line in enumerate(lines) if b'"kind":"subcall_finished"' in line)
    last.write_bytes(b"".join(lines[: cut + 1]))
    served = desk.served
    code, out, err = desk.chat("--resume", session_in(state), cells=cells, asked="Or?\n")
    assert (code, out) == (0, "two: <a>\n\nthree\n")
    assert "the last question was cut off: going on with it first\n" in err
    assert desk.served == served + 1
    last.write_bytes(b"".join(lines[: cut + 1]))
    (state / f"{session_in(state)}-3.jsonl").unlink()
    assert desk.chat("--resume", session_in(state), "--quiet", cells=cells)[:2] == (0, "two: <a>\n")


def test_files_that_were_moved_are_named_again(desk: Desk, text: str, tmp_path: Path, state: Path) -> None:
    desk.chat(text, cells=[finals("one")], asked="What?\n")
    identity = session_in(state)
    moved = Path(text).rename(tmp_path / "moved.txt")
    code, out, err = desk.chat("--resume", identity, asked="And?\n")
    assert (code, out, err) == (
        2,
        "",
        f"rlm-sandbox: what question 1 was about is no longer at {text}: name its FILE again\n",
    )
    code, out, _ = desk.chat("--resume", identity, str(moved), cells=[finals("1"), finals("2")], asked="And?\n")
    assert (code, out) == (0, "2\n")
    (tmp_path / "other").write_text("another text")
    code, _, err = desk.chat("--resume", identity, str(tmp_path / "other"), asked="And?\n")
    assert code == 2
    assert "the FILEs hold none of the session's contexts, but a text of 12 characters: /add brings a further" in err
    Path(text).write_text("changed")
    code, _, err = desk.chat("--resume", identity, asked="And?\n")
    assert code == 1
    assert "a context of the session is missing: the one that came with question 1, a text with the hash" in err


def test_a_cell_that_does_something_else_stops_it_or_gives_a_fresh_box(desk: Desk, text: str, state: Path) -> None:
    desk.chat(text, cells=[asks("a", "one")], asked="What?\n")
    other = [asks("b", "other")]
    code, _, err = desk.chat("--resume", session_in(state), "--quiet", cells=other, asked="And?\n")
    assert code == 1
    assert one_complaint(err)
    fresh = ["--resume", session_in(state), "--quiet", "--on-divergence", "fresh"]
    assert desk.chat(*fresh, cells=other, again=[finals("2")], asked="And?\n")[:2] == (0, "2\n")
    assert len(desk.boxes.opened) == 2


def test_a_signal_while_a_session_is_brought_back_ends_that(desk: Desk, text: str, state: Path) -> None:
    desk.chat(text, cells=[finals("one")], asked="What?\n")
    code, out, err = desk.chat(
        "--resume", session_in(state), "--quiet", cells=[signalled(signal.SIGINT)], asked="And?\n"
    )
    assert (code, out, err) == (130, "", "rlm-sandbox: interrupted\n")
    assert desk.boxes.closed == 2


def test_what_is_no_session_that_can_go_on_is_one_line(cli: Run, desk: Desk, text: str, state: Path) -> None:
    for _ in range(2):
        desk.chat(text, "--redact", cells=[finals("one")], asked="What?\n")
    code, _, err = desk.chat("--resume", "20", asked="And?\n")
    assert (code, one_complaint(err)) == (2, True)
    assert "2 sessions in " in err
    assert "begin with '20': give more of the id" in err
    code, _, err = desk.chat("--resume", session_in(state), asked="And?\n")
    assert (code, one_complaint(err)) == (1, True)
    assert "is redacted" in err
    desk.boxes.cells, desk.boxes.opened = [[finals("1")]], []
    assert cli("run", text, "-q", "What?", "--journal", str(state / "runs"), "--quiet")[0] == 0
    (path,) = (state / "runs").iterdir()
    for name in (str(path), path.stem):
        code, _, err = desk.chat("--resume", name, "--journal", str(state / "runs"), asked="And?\n")
        assert one_complaint(err)
        assert "is a run of its own and of no session: rlm-sandbox journal resume goes on with it" in err
    for place in (text, str(path.parent), "", "r\0"):
        code, _, err = desk.chat("--resume", place, asked="And?\n")
        assert code in (1, 2)
        assert one_complaint(err)


def test_a_journal_cannot_name_a_session_elsewhere(desk: Desk, text: str, tmp_path: Path) -> None:
    desk.chat(text, "--journal", str(tmp_path / "a"), cells=[finals("one")], asked="What?\n")
    (path,) = (tmp_path / "a").iterdir()
    (tmp_path / "a" / "b").mkdir()
    inner = tmp_path / "a" / "b" / "x.jsonl"
    inner.write_bytes(path.read_bytes())
    rewrite(inner, lambda lines: lines[0]["session"].update(id=f"../{path.stem[:-2]}"))
    code, _, err = desk.chat("--resume", str(inner), asked="And?\n")
    assert (code, one_complaint(err)) == (1, True)
    assert "is a run of its own and of no session" in err


def test_journal_resume_points_to_chat(cli: Run, desk: Desk, text: str, state: Path) -> None:
    desk.chat(text, cells=[finals("one")], asked="What?\n")
    identity = session_in(state)
    code, out, err = cli("journal", "resume", f"{identity}-1")
    assert (code, out) == (1, "")
    assert one_complaint(err)
    assert f"is question 1 of a session, which goes on as a whole: rlm-sandbox chat --resume {identity};" in err


def test_the_list_tells_the_questions_of_a_session(cli: Run, desk: Desk, text: str, state: Path) -> None:
    desk.chat(text, cells=[finals("one"), finals("two")], asked="What?\nAnd?\n")
    _, out, _ = cli("journal", "list")
    assert [line.rpartition("answered")[2].split() for line in out.splitlines()] == [["q2", "And?"], ["q1", "What?"]]
    told = json.loads(cli("journal", "list", "--json")[1])
    assert [run["session"] for run in told] == [{"id": session_in(state), "question": number} for number in (2, 1)]
