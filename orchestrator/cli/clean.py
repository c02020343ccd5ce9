"""``rlm-sandbox clean``: remove what a process that died could not."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.cli.common import EXIT_OK, add_json, out, out_json


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "clean",
        help="remove sandboxes that were left behind",
        description="Remove sandboxes whose owner is no longer alive. Those of living processes are left alone.",
        allow_abbrev=False,
    )
    add_json(parser, "the ids of what was removed")
    parser.set_defaults(handler=handle)


def handle(args: argparse.Namespace) -> int:
    """Remove orphans and say which.

    Raises:
        EngineUnavailableError: no engine answers.
    """
    import anyio

    from orchestrator.sandbox.container import sweep
    from orchestrator.sandbox.engine import Engine

    removed = anyio.run(sweep, Engine.connect())
    if args.json:
        out_json({"removed": removed})
    else:
        for container in removed:
            out(f"removed {container[:12]}")
        if not removed:
            out("nothing to remove")
    return EXIT_OK
