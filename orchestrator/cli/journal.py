"""``rlm-sandbox journal``: what runs left behind."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from orchestrator.cli import resume, verify
from orchestrator.cli.common import (
    EXIT_OK,
    Parser,
    add_journal,
    add_json,
    given,
    is_terminal,
    journal_directory,
    note,
    out,
    out_json,
    out_json_array,
)
from orchestrator.cli.runs import find, journals
from orchestrator.errors import ConfigurationError, JournalError

_WIDTH = 120  # where no terminal sets one


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("journal", help="list the runs, or read the record of one", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    show = verbs.add_parser(
        "show",
        help="show a run",
        description="Show the turns, cells and sub-calls of a run, its child runs among them.",
        allow_abbrev=False,
    )
    show.add_argument("run", metavar="FILE|RUN", help="a journal, a run's id or its beginning, or last")
    add_journal(show)
    show.add_argument(
        "--turn", metavar="N|N-M", type=_turns, help="show these turns alone; 0 is what comes before the first"
    )
    show.add_argument("--calls", action="store_true", help="show every sub-call, a line each")
    show.add_argument("--full", action="store_true", help="show every sub-call, and texts whole")
    show.add_argument("--summary", action="store_true", help="show question, answer and what was spent, no turns")
    add_json(show, "the run's records")
    show.set_defaults(handler=handle_show)
    resume.add_parser(verbs)
    verify.add_parser(verbs)
    page = verbs.add_parser(
        "html",
        help="write a run as one HTML file",
        description="Write a run and its child runs as one HTML file that any browser shows and that loads nothing: "
        "turns, cells, sub-calls, a timeline, what was spent, and a search.",
        allow_abbrev=False,
    )
    page.add_argument("run", metavar="FILE|RUN", help="a journal, a run's id or its beginning, or last")
    page.add_argument(
        "-o", "--output", metavar="FILE", type=given, help="where to; - is stdout (default: RUN.html in this folder)"
    )
    add_journal(page)
    add_json(page, "the file's path and what it holds")
    page.set_defaults(handler=handle_html)
    listing = verbs.add_parser(
        "list",
        help="list the runs",
        description="List the runs of a folder, the newest first: id, time, status and question; q2 marks the "
        "second question of a session. Child runs are not listed; `journal show` has them in their parent's place.",
        allow_abbrev=False,
    )
    add_journal(listing)
    add_json(listing, "the list")
    listing.set_defaults(handler=handle_list)


def handle_show(args: argparse.Namespace) -> int:
    """Print a journal.

    Raises:
        ConfigurationError: there is no such run, or the file is no journal.
        JournalError: the journal is damaged further on.
    """
    from orchestrator.trajectory.journal import read
    from orchestrator.trajectory.view import Choice, of_turns, render

    if args.summary and (args.turn or args.calls or args.full):
        raise ConfigurationError("--summary shows no turns: leave out --turn, --calls and --full")
    if args.json and (args.summary or args.calls or args.full):
        raise ConfigurationError("--json has every record whole: leave out --summary, --calls and --full")
    path = find(args.run, args.journal or journal_directory())
    _check_beginning(path)
    if args.json:
        out_json_array(record.to_dict() for record in of_turns(read(path), args.turn))
        return EXIT_OK
    wrap = is_terminal(sys.stdout)
    choice = Choice(_width(), wrap, full=args.full, calls=args.calls, turns=args.turn, summary=args.summary)
    for line in render(path, choice):
        out(line)
    return EXIT_OK


def _turns(text: str) -> range:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a turn, such as 3, nor turns, such as 3-5")
    return range(int(first), int(last or first) + 1)


def handle_html(args: argparse.Namespace) -> int:
    """Write a run as a page.

    Raises:
        ConfigurationError: there is no such run, the file is no journal, or the page cannot be written there.
        JournalError: the journal is damaged further on; the page holds what stands before.
    """
    from orchestrator.trajectory.html.page import render

    path = find(args.run, args.journal or journal_directory())
    _check_beginning(path)
    target = Path(args.output or f"{path.stem}.html")
    if args.output == "-" and args.json:
        raise ConfigurationError("--json and -o - cannot both have stdout: name a file with -o")
    if target.suffix == path.suffix:
        raise ConfigurationError(f"-o {target}: that is the name of a journal; give one that ends in .html")
    page, data = render(path)
    if args.output == "-":
        out(page, end="")
    else:
        _write_page(target, page)
        runs = data["runs"]
        if args.json:
            calls = sum(len(item.get("calls", ())) for run in runs for item in run["items"])
            size = target.stat().st_size
            out_json({"file": str(target), "bytes": size, "run": runs[0]["id"], "runs": len(runs), "subcalls": calls})
        else:
            out(str(target))
    if "damage" in data["runs"][0]:
        raise JournalError(f"{data['runs'][0]['damage']}; the page holds what stands before")
    return EXIT_OK


def _write_page(target: Path, page: str) -> None:
    """Put ``page`` in the place of ``target`` in one step, readable by its owner only, as the journal is."""
    import tempfile

    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(page)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot write the page {target}: {error.strerror}") from error


def handle_list(args: argparse.Namespace) -> int:
    """List the runs of a folder.

    Raises:
        ConfigurationError: there is no such folder.
    """
    from orchestrator.text import one_line
    from orchestrator.trajectory.listing import summarize
    from orchestrator.trajectory.wording import local_time

    directory: Path = args.journal or journal_directory()
    if args.journal is not None and not directory.is_dir():
        raise ConfigurationError(f"no such folder: {directory}")
    runs = []
    for path in journals(directory):
        try:
            runs.append(summarize(path))
        except JournalError as error:
            note(f"left out: {error}")
    # A child run stands in the journal of its parent.
    runs = sorted((run for run in runs if run.parent is None), key=lambda run: (run.time, run.run), reverse=True)
    if args.json:
        out_json([run.to_dict() for run in runs])
        return EXIT_OK
    if not runs:
        note(f"no runs in {directory}")
    in_sessions = any(run.session for run in runs)
    for run in runs:
        place = f"q{run.session['question']:<4}" if run.session else " " * 5 * in_sessions
        head = f"{one_line(run.run, 128)}  {local_time(run.time)}  {one_line(run.status, 10):10}  {place}"
        out(head + one_line(run.query, max(_width() - len(head), 20)))
    return EXIT_OK


def _width() -> int:
    return shutil.get_terminal_size((_WIDTH, 24)).columns if is_terminal(sys.stdout) else _WIDTH


def _check_beginning(path: Path) -> None:
    from orchestrator.trajectory.journal import read

    try:
        if path.stat().st_size == 0:
            raise ConfigurationError(f"{path} is empty: not a journal")
        next(read(path), None)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except JournalError as error:
        raise ConfigurationError(f"not a journal: {error}") from error
