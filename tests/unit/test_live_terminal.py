"""The live view on a real pseudo-terminal: the whole command line in a process of its own, with fake box and models."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from orchestrator.text import columns
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40


class Session:
    """A process on a pseudo-terminal, and the terminal.

    Attributes:
        terminal: what a person sees.
        raw: every character that was written to it.
    """

    def __init__(self, master: int, process: subprocess.Popen[bytes], gate: Path, size: tuple[int, int]) -> None:
        self.terminal = Terminal(*size)
        self.raw = ""
        self.process = process
        self._master = master
        self._gate = gate
        self._rest = b""

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """Read until the screen fulfils a condition at the end of a frame; return it."""
        deadline = time.monotonic() + PATIENCE_S
        while not seen(self.terminal.screen()):
            assert time.monotonic() < deadline, "\n".join(self.terminal.screen())
            assert self._read(), "\n".join(self.terminal.screen())
        return self.terminal.screen()

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.terminal.resize(columns, lines)

    def go_on(self) -> None:
        """Let what waits at the gate pass."""
        self._gate.open("w").close()

    def finish(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, "\n".join(self.terminal.screen())
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE_S)
        assert ready, "\n".join(self.terminal.screen())
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        # A character, or a sequence of control characters, may have come in part.
        whole = (self._rest + data).decode("utf-8", "surrogateescape")
        cut = re.search(r"(\x1b[^A-Za-z]*|[\udc80-\udcff]{1,3})$", whole)
        end = cut.start() if cut else len(whole)
        self._rest = whole[end:].encode("utf-8", "surrogateescape")
        text = whole[:end]
        self.raw += text
        self.terminal.write(text)
        return bool(data)


@contextmanager
def running(folder: Path, *arguments: str, size: tuple[int, int] = (100, 30), **environment: str) -> Iterator[Session]:
    gate = folder / "gate"
    os.mkfifo(gate)
    (folder / "text").write_text("a text")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    command = [
        sys.executable,
        "-m",
        "tests.support.fake_run",
        str(gate),
        "run",
        str(folder / "text"),
        "-q",
        "How many?",
    ]
    command += ["--journal", str(folder / "journal"), "--set", "models.in_flight=64", *arguments]
    variables = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "", **environment}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=slave, start_new_session=True
        )
    os.close(slave)
    try:
        yield Session(master, process, gate, size)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)


def in_flight(rows: list[str]) -> bool:
    return any("20 in flight" in row and "child run" in row for row in rows)


def test_a_run_on_a_terminal_from_its_first_frame_to_its_last(tmp_path: Path) -> None:
    with running(tmp_path) as session:
        shown = session.until(in_flight)
        assert any(row.startswith("turn 1 · cell 1  ") for row in shown)
        assert any(row.startswith("│     ask(part)") for row in shown)
        assert any(row.startswith("child 1  ") and "Smaller?" in row for row in shown)
        assert sum(row.startswith("→ ") for row in shown) == 4
        assert any(re.match("calls  ━+─+ [0-9]+ of 2.0k", row) for row in shown)
        session.go_on()
        assert session.finish() == 0
    assert (tmp_path / "out").read_text() == "42\n"
    text = session.terminal.text()
    assert not [row for row in text if "in flight" in row or "━" in row or row.startswith(("→", "child 1"))]
    assert any(row.startswith("child run answered · Smaller?") for row in text)
    assert any(row.startswith("answered · 1 turn · 40 sub-calls") for row in text)
    # The journal's path may be longer than the terminal is wide; nothing else is.
    path = next(number for number, row in enumerate(text) if row.startswith("journal: "))
    head = next(number for number, row in enumerate(text) if row.startswith("journal head: "))
    assert session.terminal.wraps == head - path - 1


def test_a_strangers_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    with running(tmp_path) as session:
        session.until(in_flight)
        session.go_on()
        assert session.finish() == 0
    # The terminal of these tests raises at anything but the view's own sequences; what a stranger sent is cleaned away.
    assert "pwned" not in session.raw
    assert "\u202e" not in session.raw
    assert "\x1b[2J" not in session.raw
    assert "漢字 part" in session.raw


def test_a_terminal_that_is_resized_shows_one_right_frame(tmp_path: Path) -> None:
    with running(tmp_path) as session:
        session.until(in_flight)
        for width, height in ((70, 30), (44, 30), (120, 40)):
            session.resize(width, height)
            session.until(partial(one_frame, width=width))
        session.go_on()
        assert session.finish() == 0
    assert not [row for row in session.terminal.text() if "in flight" in row or "━" in row]


def one_frame(rows: list[str], width: int) -> bool:
    once = sum("in flight" in row and "turn" in row for row in rows) == 1
    return once and all(columns(row) < width for row in rows[-8:])


def test_every_frame_is_whole_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with running(tmp_path) as session:
        session.until(in_flight)
        session.process.kill()
        session.finish()
    assert session.raw.count("\x1b[?7l") == session.raw.count("\x1b[?7h")
    assert session.raw.count("\x1b[?2026h") == session.raw.count("\x1b[?2026l")
    assert "\x1b[?25l" not in session.raw
    assert "\x1b[?1049h" not in session.raw


def test_one_interrupt_ends_the_view_and_the_run(tmp_path: Path) -> None:
    with running(tmp_path) as session:
        session.until(in_flight)
        session.process.send_signal(signal.SIGINT)
        assert session.finish() == 130
    text = session.terminal.text()
    assert any("stopping; press Ctrl-C once more to leave at once" in row for row in text)
    assert not [row for row in text if "in flight" in row or "━" in row]


def test_a_terminal_that_understands_nothing_gets_plain_lines(tmp_path: Path) -> None:
    with running(tmp_path, TERM="dumb") as session:
        session.until(lambda rows: any("│     ask(part)" in row for row in rows))
        session.go_on()
        assert session.finish() == 0
    assert "\x1b" not in session.raw
    assert any(row.startswith("answered · 1 turn") for row in session.terminal.text())
