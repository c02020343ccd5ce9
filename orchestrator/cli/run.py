"""``rlm-sandbox run``: one question over one context, answered by a run in a sandbox."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli import usage
from orchestrator.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_NO_ANSWER,
    EXIT_OF_STATUS,
    EXIT_OK,
    PROG,
    OutputError,
    add_journal,
    add_json,
    add_policy,
    add_unpack,
    given,
    journal_directory,
    load_policy,
    note,
    out,
    out_json,
    read_text,
    say,
)
from orchestrator.errors import ConfigurationError

if TYPE_CHECKING:
    import anyio

    from orchestrator.cli.progress import Progress
    from orchestrator.events import Envelope, Sink
    from orchestrator.policy import Policy
    from orchestrator.rlm.api import RLM
    from orchestrator.rlm.result import Result


_END = {
    "answered": "answered early, at a limit",
    "no_answer": "no answer",
    "limit": "a limit ended the run",
    "failed": "the run failed",
}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="answer a question over a text of any size",
        description="Answer a question over a text, or over many documents: several FILEs or a folder.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="files or folders; none or - reads stdin")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("-q", "--query", metavar="QUERY", help="the question")
    question.add_argument("--query-file", metavar="FILE", help="read the question from a file")
    add_models(parser, "Anthropic when a key is set, else offline")
    parser.add_argument("--schema", metavar="FILE", help="JSON Schema that the answer must fit")
    add_unpack(parser)
    add_policy(parser)
    add_journal(parser)
    add_redact(parser)
    add_quiet(parser)
    add_json(parser, "the result")
    parser.more_help = offline_help
    parser.set_defaults(handler=handle)


def add_models(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--model`` and ``--sub-model``."""
    parser.add_argument(
        "--model",
        metavar="SPEC",
        type=given,
        help=f"root model: anthropic:NAME, openai:NAME, offline[:NAME] or scripted:FILE (default: {default})",
    )
    parser.add_argument(
        "--sub-model", metavar="SPEC", type=given, help="model of the sub-calls (default: the root model)"
    )


def add_redact(parser: argparse.ArgumentParser) -> None:
    """Add ``--redact``."""
    parser.add_argument(
        "--redact", action="store_true", help="write lengths and hashes in the place of texts into the journal"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``."""
    parser.add_argument("--quiet", action="store_true", help="show no progress, only errors")


def offline_help() -> str:
    """Return what the help tells of the offline model, after the options."""
    from orchestrator.models.offline import HELP

    return HELP


def handle(args: argparse.Namespace) -> int:
    """Run the subcommand; return its exit code.

    Raises:
        ConfigurationError: something asked for cannot be.
        RlmSandboxError: a part failed before there was a result.
    """
    from orchestrator.cli.inputs import load_context

    policy = load_policy(args.policy, args.assignments)
    query = _question(args)
    schema = _schema(args.schema)
    journal = writable(args.journal or journal_directory())
    loaded = load_context(args.files, policy.limits.context_mb, unpack=args.unpack)
    for line in () if args.quiet else loaded.notes():
        note(line)
    origin = origin_of(args.files, unpack=args.unpack)

    async def start(rlm: RLM, stop: anyio.Event) -> Result:
        return await rlm.acomplete(loaded.context, query, schema, stop=stop, origin=origin)

    result, interrupted = carry_out(args, policy, journal, start, redact=args.redact)
    return report(args, result, policy, interrupted=interrupted)


def origin_of(files: list[str], *, unpack: bool) -> dict[str, Any]:
    """Return what names a context's files from any folder, for the journal; stdin stays what it is."""
    return {"files": [file if file == "-" else str(Path(file).absolute()) for file in files], "unpack": unpack}


def _question(args: argparse.Namespace) -> str:
    if args.query_file is None:
        if not args.query.strip():
            raise ConfigurationError("the question is empty: give one with -q")
        return str(args.query)
    query = read_text(args.query_file, "--query-file")
    if not query.strip():
        raise ConfigurationError(f"--query-file {args.query_file}: the file is empty")
    return query


def _schema(file: str | None) -> dict[str, Any] | None:
    if file is None:
        return None
    from orchestrator.rlm.form import AnswerForm

    try:
        schema = json.loads(read_text(file, "--schema"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--schema {file}: it is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ConfigurationError(f'--schema {file}: a JSON Schema is an object, such as {{"type": "array"}}')
    try:
        AnswerForm(schema)
    except ConfigurationError as error:
        raise ConfigurationError(f"--schema {file}: {error}") from error
    return schema


def carry_out(
    args: argparse.Namespace,
    policy: Policy,
    journal: Path | None,
    start: Callable[[RLM, anyio.Event], Awaitable[Result]],
    *,
    redact: bool = False,
) -> tuple[Result, bool]:
    """Carry out a run under the eyes of whoever sits at the terminal.

    Args:
        args: with ``model``, ``sub_model`` and ``quiet``.
        policy: of the run.
        journal: folder of its journal, or None where that is known otherwise.
        start: begins it; given what sets its end when somebody asks for that.
        redact: as of :class:`~orchestrator.rlm.api.RLM`.

    Returns:
        The result, and whether somebody asked for its end.
    """
    from orchestrator.cli.interrupt import Interrupt
    from orchestrator.cli.progress import Progress
    from orchestrator.models.prices import PriceTable
    from orchestrator.rlm.api import RLM

    progress = None if args.quiet else Progress.on(sys.stderr, PriceTable.load())
    told = heard_by(progress, traced())
    rlm = RLM(
        model=args.model,
        sub_model=args.sub_model,
        policy=policy,
        journal=journal,
        on_event=told,
        redact=redact,
    )
    results: list[Result] = []

    async def work(stop: anyio.Event) -> None:
        results.append(await watched(progress, partial(start, rlm, stop)))

    try:
        with Interrupt(note if progress is None else progress.message) as interrupt:
            interrupt.run(work)
    finally:
        if progress is not None:
            progress.close()
    return results[0], interrupt.requested


async def watched(progress: Progress | None, carry_out: Callable[[], Awaitable[Result]]) -> Result:
    """Carry out a run while its progress is kept up to date."""
    import anyio

    async with anyio.create_task_group() as tasks:
        if progress is not None:
            tasks.start_soon(progress.tick)
        result = await carry_out()
        tasks.cancel_scope.cancel()
    return result


def traced() -> Sink | None:
    """Return what makes spans of events, where the process was started under OpenTelemetry's own launcher."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return None
    from orchestrator.trajectory.otel import Telemetry

    return Telemetry()


def heard_by(*sinks: Sink | None) -> Sink | None:
    """Return one sink for those there are; None for none."""
    told = [sink for sink in sinks if sink is not None]

    def tell(envelope: Envelope) -> None:
        for sink in told:
            sink(envelope)

    return tell if told else None


def report(args: argparse.Namespace, result: Result, policy: Policy, *, interrupted: bool) -> int:
    """Print how a run ended, and how it can go on where it did not; return the exit code."""
    # First what was paid for; a stream that fails takes nothing else with it.
    if not given_out(result, (lambda: out_json(result.to_dict())) if args.json else None):
        return EXIT_NO_ANSWER
    if end := end_of(result, interrupted=interrupted):
        more = more_for(result, policy)
        if interrupted or more:
            end += f"; to go on: {PROG} journal resume {result.run} {more}".rstrip()
        say(end)
    if not args.quiet:
        for line in usage.table(result.usage):
            note(line)
        note(f"journal: {result.journal}")
        if result.journal_head:
            note(f"journal head: {result.journal_head}")
    return exit_code(result, interrupted=interrupted)


def given_out(result: Result, as_json: Callable[[], None] | None) -> bool:
    """Print a result, by ``as_json`` or as its answer; return whether stdout took it, and say where it is if not."""
    try:
        if as_json is not None:
            as_json()
        elif result.answer is not None:
            out(result.answer)
    except OutputError as error:
        what = "result" if result.answer is None else "answer"
        say(f"cannot write the {what}: {error}; it is in {result.journal}")
        return False
    return True


def end_of(result: Result, *, interrupted: bool) -> str:
    """Return in words how a run ended, or nothing where it simply was answered."""
    if result.status == "answered" and not result.reason:
        return ""
    in_part = "; the answer is a partial one" if result.answer is not None and result.status != "answered" else ""
    return ("interrupted" if interrupted else f"{_END[result.status]}: {result.reason}") + in_part


def more_for(result: Result, policy: Policy) -> str:
    """Return the setting that gives more of what ended a run, where that was a budget."""
    from orchestrator.rlm.result import more_of

    return more_of(result.reason, policy.budget.model_dump()) if result.status in ("limit", "answered") else ""


def exit_code(result: Result, *, interrupted: bool) -> int:
    """Return the exit code that tells how a run ended."""
    if not end_of(result, interrupted=interrupted):
        return EXIT_OK
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OF_STATUS[result.status] if result.error is None else result.error.exit_code


def writable(folder: Path) -> Path:
    """Return the folder of the journals, made if it was not there.

    Raises:
        ConfigurationError: it cannot be made, or nobody may write in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the journal folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"cannot write in the journal folder {folder}; choose another with --journal")
    return folder.absolute()
