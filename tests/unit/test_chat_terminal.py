"""``rlm-sandbox chat`` on a real pseudo-terminal: the whole command line in a process of its own, over fakes."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40
PROMPT = "> "
# What readline sends to a terminal beside what it shows, and what the live view does.
_SEQUENCES = re.compile(r"\x1b\[[\x20-\x3f]*[\x40-\x7e]|[\r\a]")


class Seat:
    """A process on a pseudo-terminal and the person in front of it.

    Attributes:
        process: the chat.
        shown: everything that was shown, without control sequences.
    """

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.shown = ""
        self._raw = b""
        self._master = master
        self._read_to = 0

    def until(self, text: str) -> None:
        """Read until ``text`` is shown behind what was waited for before."""
        deadline = time.monotonic() + PATIENCE_S
        while (place := self.shown.find(text, self._read_to)) < 0:
            assert time.monotonic() < deadline, self.shown
            assert self._read(), self.shown
        self._read_to = place + len(text)

    def prompted(self) -> None:
        """Read until a line is waited for."""
        self.until(f"\n{PROMPT}")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, self.shown
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE_S)
        assert ready, self.shown
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self._raw += data
        self.shown = _SEQUENCES.sub("", self._raw.decode("utf-8", "replace"))
        return bool(data)


@contextmanager
def seated(folder: Path, *arguments: str, **environment: str) -> Iterator[Seat]:
    """Start a chat whose stdin and stderr are a terminal, and whose stdout is the file ``out``."""
    (folder / "text").write_text("a text")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tests.support.fake_chat", str(folder / "text")]
    command += ["--journal", str(folder / "journal"), *arguments]
    variables = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1", "INPUTRC": "/dev/null", **environment}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=slave, stdout=out, stderr=slave, start_new_session=True
        )
    os.close(slave)
    try:
        yield Seat(master, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)


def test_a_chat_from_its_first_prompt_to_its_last(tmp_path: Path) -> None:
    with seated(tmp_path) as seat:
        seat.until("ask, a line each; /help tells what else there is\n")
        seat.until(PROMPT)
        seat.type("Waht\b\b\bhat?\n")
        seat.until("question 1: What?")
        seat.prompted()
        seat.type("And?\n")
        seat.until("cell 3")
        seat.interrupt()
        seat.until("stopping; press Ctrl-C once more to leave at once")
        seat.until("rlm-sandbox: interrupted\n")
        seat.prompted()
        seat.type("half a quest")
        seat.until("half a quest")
        seat.interrupt()
        seat.prompted()
        seat.type("Or?\n")
        seat.until("question 3: Or?")
        seat.prompted()
        seat.interrupt()
        assert seat.finish() == 0
    assert "to go on: rlm-sandbox chat --resume " in seat.shown
    # The prompt and what is typed go to stderr, whatever stdout is.
    assert (tmp_path / "out").read_text() == "one\n\nthree\n"


def test_a_line_that_was_asked_comes_back_with_the_arrow_key_and_end_of_input_ends_it(tmp_path: Path) -> None:
    with seated(tmp_path, "--quiet") as seat:
        seat.until(PROMPT)
        seat.type("What?\n")
        seat.prompted()
        seat.type("/help\n")
        seat.until("/add FILE…   load a further context")
        seat.prompted()
        seat.type("\x1b[A\x1b[A")
        seat.until("What?")
        seat.type("\x15\x04")
        assert seat.finish() == 0
    assert (tmp_path / "out").read_text() == "one\n"


def test_interrupted_twice_it_leaves_at_once(tmp_path: Path) -> None:
    with seated(tmp_path, TERM="dumb") as seat:
        seat.until(PROMPT)
        seat.type("What?\n")
        seat.prompted()
        seat.type("And?\n")
        seat.until("│ look()")
        # Two of a kind that are pending together are one.
        os.kill(seat.process.pid, signal.SIGSTOP)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            os.kill(seat.process.pid, number)
        assert seat.finish() == 130


def test_a_terminal_that_hangs_up_ends_the_session(tmp_path: Path) -> None:
    with seated(tmp_path) as seat:
        seat.until(PROMPT)
        seat.type("What?\n")
        seat.prompted()
        seat.process.send_signal(signal.SIGHUP)
        assert seat.finish() == 130
    assert (tmp_path / "out").read_text() == "one\n"
