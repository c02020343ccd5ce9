"""``rlm-sandbox image``: the image that boxes are made of."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from orchestrator.cli.common import EXIT_OK, Parser, add_json, note, out, out_json


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("image", help="build the sandbox image", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    build = verbs.add_parser(
        "build",
        help="build the image unless it is there",
        description="Build the sandbox image unless the engine already has the one of these very sources.",
        allow_abbrev=False,
    )
    build.add_argument("--force", action="store_true", help="build all of it anew, the base included")
    add_json(build, "id, content hash and protocol of the image")
    build.set_defaults(handler=handle_build)


def handle_build(args: argparse.Namespace) -> int:
    """Build; print the image's id.

    Raises:
        EngineUnavailableError: no engine answers.
        ImageError: it cannot be built.
    """
    from orchestrator.sandbox import image
    from orchestrator.sandbox.engine import Engine

    built = image.build(Engine.connect(), force=args.force, report=note)
    if args.json:
        out_json(asdict(built))
    else:
        out(built.id)
    return EXIT_OK
