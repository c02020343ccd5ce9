"""``rlm-sandbox journal``: what runs left behind."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from orchestrator.cli.common import EXIT_OK, Parser, add_json, journal_directory, out, out_json_array
from orchestrator.errors import ConfigurationError

_WIDTH = 120  # where no terminal sets one


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("journal", help="read the record of a run", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    show = verbs.add_parser(
        "show",
        help="show a run",
        description="Show the turns, cells and sub-calls of a run, its child runs among them.",
        allow_abbrev=False,
    )
    show.add_argument("run", metavar="FILE|RUN", help="a journal, or a run's id or its beginning")
    show.add_argument(
        "--journal", metavar="DIR", type=Path, help="folder to look for runs in (default: the user's state folder)"
    )
    show.add_argument("--full", action="store_true", help="show every sub-call, and texts whole")
    add_json(show, "the run's records")
    show.set_defaults(handler=handle_show)


def handle_show(args: argparse.Namespace) -> int:
    """Print a journal.

    Raises:
        ConfigurationError: there is no such run.
        JournalError: the file cannot be read.
    """
    from orchestrator.trajectory.journal import read
    from orchestrator.trajectory.view import render

    path = find(args.run, args.journal or journal_directory())
    if args.json:
        out_json_array(record.to_dict() for record in read(path))
        return EXIT_OK
    width = shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH
    for line in render(path, width=width, full=args.full):
        out(line)
    return EXIT_OK


def find(name: str, directory: Path) -> Path:
    """Return the journal that ``name`` is the path of, or the one in ``directory`` whose run id begins with it.

    Raises:
        ConfigurationError: there is none, or more than one.
    """
    from orchestrator.trajectory.journal import SUFFIX

    if Path(name).is_file():
        return Path(name)
    journals = sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []
    starting = [path for path in journals if path.stem.startswith(name)]
    # The id of a child run begins with its parent's: what is asked for is the parent.
    ids = [f"{path.stem}." for path in starting]
    starting = [path for path in starting if not any(path.stem.startswith(parent) for parent in ids)]
    found = [path for path in starting if path.stem == name] or starting
    if not found:
        raise ConfigurationError(f"no journal {name!r}: it is neither a file nor a run in {directory}")
    if len(found) > 1:
        raise ConfigurationError(f"{len(found)} runs in {directory} begin with {name!r}: give more of the id")
    return found[0]
