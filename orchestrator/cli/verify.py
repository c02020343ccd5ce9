"""``rlm-sandbox journal verify``: whether the record of a run is whole and unchanged."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.cli.common import (
    EXIT_NO_ANSWER,
    EXIT_OK,
    add_journal,
    add_json,
    journal_directory,
    note,
    out,
    out_json,
)

_HEAD_CHARS = 64  # of SHA-256 in hexadecimal
_PROBLEM_CHARS = 1000


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb to those of ``journal``."""
    check = verbs.add_parser(
        "verify",
        help="check that the record of a run is whole and unchanged",
        description="Check a journal and those of its child runs: numbers, hash chain, texts, starts and ends, and "
        "what was spent against the ledger. One line a problem; exit code 1 when there is one.",
        allow_abbrev=False,
    )
    check.add_argument("run", metavar="FILE|RUN", help="a journal, a run's id or its beginning, or last")
    check.add_argument(
        "--head", metavar="HASH", type=_head, help="what its hash chain has to end with, as the run told at its end"
    )
    add_journal(check)
    add_json(check, "what was found")
    check.set_defaults(handler=handle)


def handle(args: argparse.Namespace) -> int:
    """Check a journal.

    Raises:
        ConfigurationError: there is no such run.
    """
    from orchestrator.cli.runs import find
    from orchestrator.text import counted, one_line
    from orchestrator.trajectory.verify import verify

    report = verify(find(args.run, args.journal or journal_directory()), args.head)
    if args.json:
        out_json(report.to_dict())
        return EXIT_OK if report.ok else EXIT_NO_ANSWER
    for each in report.notes:
        note(one_line(str(each), _PROBLEM_CHARS))
    for each in report.problems:
        out(one_line(str(each), _PROBLEM_CHARS))
    read = f"{counted(report.events, 'event')} in {counted(report.journals, 'journal')}"
    found = "nothing is wrong" if report.ok else counted(len(report.problems), "problem")
    out(f"{found}: {read}{f', head {report.head}' if report.head else ''}")
    return EXIT_OK if report.ok else EXIT_NO_ANSWER


def _head(text: str) -> str:
    if len(text) != _HEAD_CHARS or set(text.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no hash: give the 64 hexadecimal digits that the run told")
    return text.lower()
