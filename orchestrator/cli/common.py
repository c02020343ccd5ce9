"""What the subcommands share: the streams they write to, their common options, and what a failure is called."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from orchestrator.errors import ConfigurationError, RlmSandboxError
from orchestrator.text import json_text, printable

if TYPE_CHECKING:
    from orchestrator.policy import Policy

PROG = "rlm-sandbox"

EXIT_OK = 0
EXIT_NO_ANSWER = 1
EXIT_USAGE = 2
EXIT_LIMIT = 3
EXIT_SANDBOX = 4
EXIT_MODEL = 5
EXIT_INTERRUPTED = 130
EXIT_OF_STATUS = {"answered": EXIT_OK, "no_answer": EXIT_NO_ANSWER, "limit": EXIT_LIMIT, "failed": EXIT_NO_ANSWER}

_SURROGATE = re.compile("[\ud800-\udfff]")


class OutputError(RlmSandboxError):
    """Stdout does not take what the command has to give; the message is the short reason."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, in the form of every other error here.

    What it has parsed holds, as ``parser``, the parser of the subcommand that was named.

    Attributes:
        more_help: gives text that follows the options; called only when help is printed.
    """

    more_help: Callable[[], str] | None = None

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.set_defaults(parser=self)

    def print_help(self, file: Any = None) -> None:
        """Print the help on stdout, or on ``file``."""
        if file is None:
            out(self.format_help(), end="")
        else:
            super().print_help(file)

    def format_help(self) -> str:
        """Return the help, with what :attr:`more_help` gives."""
        return super().format_help() + (f"\n{self.more_help()}" if self.more_help is not None else "")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, and leave with the code for wrong usage."""
        say(f"{message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)


def say(message: str) -> None:
    """Write one line about this program to stderr, whatever is in ``message``."""
    note(f"{PROG}: {' '.join(printable(message).split())}")


def note(text: str) -> None:
    """Write ``text``, cleaned, and a newline to stderr."""
    tell(sys.stderr, printable(text) + "\n")


def out(text: str, *, end: str = "\n") -> None:
    """Write the result of the command to stdout: cleaned for a terminal, as it is for a file or a program.

    Raises:
        OutputError: stdout does not take it.
    """
    _give((printable(text) if is_terminal(sys.stdout) else _SURROGATE.sub("\ufffd", text)) + end)


def out_json(value: Any) -> None:
    """Write ``value`` as one JSON document to stdout.

    Raises:
        OutputError: stdout does not take it.
    """
    _give(json_text(value, indent=2) + "\n")


def out_json_line(value: Any) -> None:
    """Write ``value`` as JSON on one line of stdout, of which there may be several.

    Raises:
        OutputError: stdout does not take it.
    """
    _give(json_text(value) + "\n")


def out_json_array(items: Iterator[Any]) -> None:
    """Write a JSON array, an item a line, without holding all of it in memory.

    Raises:
        OutputError: stdout does not take it.
    """
    separator = "[\n"
    for item in items:
        _give(separator + json_text(item))
        separator = ",\n"
    _give("[]\n" if separator == "[\n" else "\n]\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is there, open, and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def tell(stream: TextIO | None, text: str) -> None:
    """Write to stderr, or to what stands for it. What cannot be said there is left unsaid: it never ends a command."""
    if stream is None:
        return
    try:
        _write(stream, text)
    except (OSError, ValueError):
        _discard(stream)


def _give(text: str) -> None:
    stream: TextIO | None = sys.stdout
    if stream is None or stream.closed:
        raise OutputError("stdout is closed")
    try:
        _write(stream, text)
    except BrokenPipeError:
        # A reader who has seen enough is no error; what follows goes nowhere, quietly.
        _discard(stream)
    except OSError as error:
        _discard(stream)
        raise OutputError(error.strerror or str(error)) from error


def _write(stream: TextIO, text: str) -> None:
    binary = getattr(stream, "buffer", None)
    if binary is None:
        stream.write(text)
    else:
        stream.flush()
        binary.write(text.encode("utf-8", "replace"))
    stream.flush()


def _discard(stream: TextIO) -> None:
    # Python flushes a stream once more at exit; without this that would complain and change the exit code.
    with suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def given(text: str) -> str:
    """Return the value of an option that must not be empty; for ``type=`` of an argument."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; leave the option out for its default")
    return text


def folder(text: str) -> Path:
    """Return the folder an option names; for ``type=`` of an argument."""
    return Path(given(text))


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--json``, which every subcommand has."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON on stdout, and nothing else there")


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add ``--policy`` and ``--set``."""
    parser.add_argument("--policy", default="default", metavar="P", help="a shipped policy's name or a TOML file")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="KEY=VALUE",
        help="override a policy key, such as budget.calls=100; may be repeated",
    )


def load_policy(name: str, assignments: list[str]) -> Policy:
    """Return the policy that ``--policy`` and ``--set`` ask for.

    Raises:
        PolicyError: it does not load, or an override does not fit.
    """
    from orchestrator.policy import Policy

    policy = Policy.load(name)
    return policy.override(assignments) if assignments else policy


def add_unpack(parser: argparse.ArgumentParser) -> None:
    """Add ``--unpack``."""
    parser.add_argument("--unpack", action="store_true", help="take the files in archives as documents, too")


def add_journal(parser: argparse.ArgumentParser) -> None:
    """Add ``--journal``."""
    parser.add_argument(
        "--journal",
        metavar="DIR",
        type=folder,
        help="folder of the journals (default: rlm-sandbox/journal in $XDG_STATE_HOME, or else in ~/.local/state)",
    )


def journal_directory() -> Path:
    """Return where journals go unless told otherwise: the user's state directory (XDG Base Directory).

    Raises:
        ConfigurationError: nothing says where that is.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    try:
        state = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ConfigurationError("no home folder is known: name the folder of the journals with --journal") from error
    return state / "rlm-sandbox" / "journal"


def stdin_bytes(limit: int = -1) -> bytes:
    """Read stdin, at most ``limit`` bytes of it unless that is negative.

    Raises:
        ConfigurationError: it is closed or cannot be read.
    """
    stream: TextIO | None = sys.stdin
    if stream is None:
        raise ConfigurationError("stdin is closed: name a FILE")
    try:
        data: bytes = stream.buffer.read(limit)
    except OSError as error:
        raise ConfigurationError(f"cannot read stdin ({error.strerror}): name a FILE") from error
    return data


def read_text(path: str, what: str) -> str:
    """Read a small text file, or stdin for ``-``.

    Raises:
        ConfigurationError: it cannot be read or is not UTF-8; the message begins with ``what``.
    """
    if not path:
        raise ConfigurationError(f"{what}: the name of the file is empty")
    try:
        data = stdin_bytes() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{what} {path}: not UTF-8 text (byte {error.start:,})") from error
