"""Questions, a line each: typed at a terminal, or piped in."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Protocol

from orchestrator.cli.common import is_terminal, note, tell
from orchestrator.errors import ConfigurationError

# Of a line in UTF-8. A question may have a quarter of that in characters, of which none takes more than four bytes.
MOST_BYTES = 400_000
PROMPT = "> "
_WAKE_S = 0.05


class Lines(Protocol):
    """Where questions come from.

    Attributes:
        typed: a person sits there.
    """

    typed: bool

    def next(self) -> str | None:
        """Return the next line without its end, or None where there is none.

        Raises:
            ConfigurationError: it is too long, or no text in UTF-8; the line behind it is the next.
        """

    @property
    def begun(self) -> bool:
        """Whether something stood on the line in whose middle :meth:`next` was interrupted, as far as is known."""


def questions() -> Lines:
    """Return where the questions of this process come from.

    Raises:
        ConfigurationError: stdin is closed.
    """
    if sys.stdin is None:
        raise ConfigurationError("stdin is closed: the questions come from there, one a line")
    if not is_terminal(sys.stdin):
        return Piped(sys.stdin.buffer)
    usual = sys.stdout is not None and sys.stderr is not None and (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    if usual and (is_terminal(sys.stderr) or is_terminal(sys.stdout)):
        return Typed()
    return Piped(sys.stdin.buffer, prompt=PROMPT)


class Piped:
    """Lines of a stream; with a prompt, those of a terminal that shows nothing else of ours."""

    begun = False

    def __init__(self, stream: BinaryIO, prompt: str = "") -> None:
        """Hold the stream."""
        self.typed = bool(prompt)
        self._stream = stream
        self._prompt = prompt
        self._number = 0

    def next(self) -> str | None:
        """Return the next line."""
        tell(sys.stderr, self._prompt)
        self._number += 1
        try:
            data = self._stream.readline(MOST_BYTES + 1)
            rest = data
            while len(rest) > MOST_BYTES and not rest.endswith(b"\n"):
                rest = self._stream.readline(MOST_BYTES + 1)
        except OSError as error:
            raise ConfigurationError(f"cannot read the questions from stdin: {error.strerror}") from error
        if not data:
            return None
        if len(data) > MOST_BYTES:
            raise ConfigurationError(
                f"line {self._number} of stdin is longer than {MOST_BYTES:,} bytes, as no question is"
            )
        try:
            return data.decode("utf-8-sig" if self._number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"line {self._number} of stdin is not UTF-8 text (byte {error.start:,}): it was not asked"
            ) from error


class Typed:
    """Lines that are edited at a terminal, with what was typed before at hand."""

    typed = True

    def __init__(self) -> None:
        """Have ``input`` edit its lines, where Python was built with readline."""
        self._typed: Callable[[], str] = str
        with suppress(ImportError):
            import readline

            self._typed = readline.get_line_buffer

    @property
    def begun(self) -> bool:
        """Whether something stood on the line."""
        return bool(self._typed())

    def next(self) -> str | None:
        """Return the next line."""
        try:
            with _shown_on_stderr(), _woken_by_signals():
                return input(PROMPT)
        except (EOFError, OSError):  # the second: a terminal that has gone
            note("")  # the prompt's line has no end yet
            return None
        except UnicodeDecodeError as error:
            raise ConfigurationError("what was typed is not text in this terminal's encoding") from error


@contextmanager
def _shown_on_stderr() -> Iterator[None]:
    """Have what ``input`` shows go to stderr: to descriptor 1 goes the answer, perhaps into a file.

    There is no other way to tell ``input`` so: it edits lines on the terminal that descriptor 1 is, or not at all.
    """
    if not is_terminal(sys.stderr):
        yield
        return
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(answers, 1)
        os.close(answers)


@contextmanager
def _woken_by_signals() -> Iterator[None]:
    """Have a signal interrupt ``input`` even where it comes just before that begins to wait.

    readline waits by select(2) and does not look whether a signal has come since it last did: such a one would be heard
    with the next key. A second signal, which readline itself catches and nobody else asks for, ends that wait.
    """
    heard, tell = socket.socketpair()
    tell.settimeout(0)  # as set_wakeup_fd() asks for
    main, over = threading.get_ident(), threading.Event()

    def wake() -> None:
        while heard.recv(1) and not over.is_set():
            while not over.wait(_WAKE_S):
                signal.pthread_kill(main, signal.SIGWINCH)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    waker = threading.Thread(target=wake, daemon=True)
    waker.start()  # with all of them blocked: they are for this thread
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    last = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(last)
        over.set()
        tell.close()
        waker.join()
        heard.close()
