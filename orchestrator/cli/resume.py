"""``rlm-sandbox journal resume``: go on with a run that was cut off, or that ended at a limit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli import run
from orchestrator.cli.common import add_journal, add_json, add_set, add_unpack, journal_directory, note
from orchestrator.errors import ConfigurationError

if TYPE_CHECKING:
    import anyio

    from orchestrator.rlm.api import RLM
    from orchestrator.rlm.result import Result


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "resume",
        help="go on with a run that was cut off or ended at a limit",
        description="Go on with a run: what its journal has is played back in a fresh box, without asking or paying "
        "any model again, and from where it ends the run goes on. The policy is the run's own; --set gives it more.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="FILE|RUN", help="a journal, a run's id or its beginning, or last")
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="the context, where it is no longer where the run found it"
    )
    parser.add_argument(
        "--on-divergence",
        choices=("stop", "live"),
        default="stop",
        help="when a cell that is run again does something else than it did: end the run, or record that and go on",
    )
    run.add_models(parser, "the one the run had")
    add_unpack(parser)
    add_set(parser)
    add_journal(parser)
    run.add_quiet(parser)
    add_json(parser, "the result")
    parser.set_defaults(handler=handle)


def handle(args: argparse.Namespace) -> int:
    """Resume; return the exit code of the run.

    Raises:
        ConfigurationError: there is no such run, its context is not found, or something asked for cannot be.
        RlmSandboxError: a part failed before there was a result.
    """
    from orchestrator.cli.inputs import load_context
    from orchestrator.cli.runs import find
    from orchestrator.rlm.resume import Resumable, result_of

    path = find(args.run, args.journal or journal_directory())
    found = Resumable.of(path, args.assignments)
    if found.is_over:
        return run.report(args, result_of(found.tape), found.policy, interrupted=False)
    origin = found.tape.started.get("origin") or {}
    args.model = args.model or origin.get("model") or None
    args.sub_model = args.sub_model or origin.get("sub_model") or None
    files = args.files or origin.get("files") or []
    if not files or files == ["-"] != args.files:
        raise ConfigurationError(f"{path} does not say where its context came from: name its FILE again")
    missing = [file for file in files if file != "-" and not args.files and not Path(file).exists()]
    if missing:
        raise ConfigurationError(f"the run's context is no longer at {missing[0]}: name its FILE again")
    unpack = args.unpack or bool(origin.get("unpack"))
    loaded = load_context(files, found.policy.limits.context_mb, unpack=unpack)
    for line in () if args.quiet else loaded.notes():
        note(line)

    async def start(rlm: RLM, stop: anyio.Event) -> Result:
        return await rlm.aresume(
            path, loaded.context, settings=args.assignments, on_divergence=args.on_divergence, stop=stop
        )

    result, interrupted = run.carry_out(args, found.policy, None, start)
    return run.report(args, result, found.policy, interrupted=interrupted)
