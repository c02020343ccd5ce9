"""What the subcommands share: the streams they write to, their common options, and what a failure is called."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from orchestrator.errors import ConfigurationError
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


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, in the form of every other error here.

    Attributes:
        more_help: gives text that follows the options; called only when help is printed.
    """

    more_help: Callable[[], str] | None = None

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
    """Write ``text``, cleaned, and a newline to stderr; a reader who has gone is no error."""
    write(sys.stderr, printable(text) + "\n")


def out(text: str, *, end: str = "\n") -> None:
    """Write the result of the command to stdout: cleaned for a terminal, as it is for a file or a program."""
    write(sys.stdout, (printable(text) if sys.stdout.isatty() else _SURROGATE.sub("\ufffd", text)) + end)


def out_json(value: Any) -> None:
    """Write ``value`` as one JSON document to stdout."""
    write(sys.stdout, json_text(value, indent=2) + "\n")


def out_json_array(items: Iterator[Any]) -> None:
    """Write a JSON array, an item a line, without holding all of it in memory."""
    separator = "[\n"
    for item in items:
        write(sys.stdout, separator + json_text(item))
        separator = ",\n"
    write(sys.stdout, "[]\n" if separator == "[\n" else "\n]\n")


def write(stream: TextIO, text: str) -> None:
    """Write to a standard stream as UTF-8. When its reader has gone, what follows goes nowhere, quietly."""
    try:
        binary = getattr(stream, "buffer", None)
        if binary is None:
            stream.write(text)
        else:
            stream.flush()
            binary.write(text.encode("utf-8", "replace"))
        stream.flush()
    except BrokenPipeError:
        # Python flushes the stream once more at exit; without this that would complain.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


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


def journal_directory() -> Path:
    """Return where journals go unless told otherwise: the user's state directory (XDG Base Directory)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    state = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return state / "rlm-sandbox" / "journal"


def read_text(path: str, what: str) -> str:
    """Read a small text file, or stdin for ``-``.

    Raises:
        ConfigurationError: it cannot be read or is not UTF-8; the message begins with ``what``.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{what} {path}: not UTF-8 text (byte {error.start:,})") from error
