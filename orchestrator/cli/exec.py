"""``rlm-sandbox exec``: cells of Python in one fresh sandbox, without any model."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_NO_ANSWER,
    EXIT_OK,
    add_json,
    add_policy,
    add_unpack,
    load_policy,
    note,
    out,
    out_json,
    read_text,
    say,
)
from orchestrator.errors import ConfigurationError, SandboxError
from orchestrator.text import counted, printable

if TYPE_CHECKING:
    import anyio

    from orchestrator.context import Context
    from orchestrator.kernel.result import ExecutionResult
    from orchestrator.policy import Policy

_TIMEOUT = "seconds a cell may take: at most, and by default, the policy's limits.cell_timeout_s"
_MARKER = re.compile(r"^# %%.*\n?", re.MULTILINE)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "exec",
        help="run Python in a fresh sandbox",
        description="Run cells of Python, split at lines '# %%', one after the other in one fresh sandbox. "
        "A cell that fails does not keep the next from running.",
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="the code; none or - reads stdin")
    parser.add_argument("--context", metavar="FILE", help="a file or folder to load into the variable `context`")
    add_unpack(parser)
    add_policy(parser)
    parser.add_argument("--timeout", type=_seconds, metavar="S", help=_TIMEOUT)
    add_json(parser, "a list with the result of each cell")
    parser.set_defaults(handler=handle)


def handle(args: argparse.Namespace) -> int:
    """Run the subcommand; return its exit code.

    Raises:
        ConfigurationError: something asked for cannot be.
        SandboxError: there was no sandbox to run in.
    """
    from orchestrator.cli.inputs import load_context
    from orchestrator.cli.interrupt import Interrupt

    policy = load_policy(args.policy, args.assignments)
    most = policy.limits.cell_timeout_s
    if args.timeout is not None and args.timeout > most:
        raise ConfigurationError(
            f"--timeout {args.timeout:g} is more than the policy's limits.cell_timeout_s = {most:g}; "
            f"raise that too: --set limits.cell_timeout_s={args.timeout:g}"
        )
    if args.file == args.context == "-":
        raise ConfigurationError("stdin cannot be both the code and the context")
    cells = split_cells(read_text(args.file, "code"))
    if not cells:
        raise ConfigurationError("there is no code to run")
    context: Context | None = None
    if args.context is not None:
        loaded = load_context([args.context], policy.limits.context_mb, unpack=args.unpack)
        context = loaded.context
        for line in loaded.notes():
            note(line)

    session = _Session(cells, args.timeout, echo=not args.json)
    with Interrupt(note) as interrupt:
        interrupt.run(partial(session.run, policy, context))
    if args.json:
        out_json([result.to_dict() for result in session.results])
    if interrupt.requested:
        say(session.interrupted())
        return EXIT_INTERRUPTED
    if session.failure is not None:
        raise session.failure
    return EXIT_OK if all(result.ok for result in session.results) else EXIT_NO_ANSWER


@dataclass(slots=True)
class _Session:
    """Cells on their way through one box.

    Attributes:
        cells: the code of each.
        timeout: seconds each may take, or None for the policy's.
        echo: print each result as it comes.
        results: of those that ran.
        failure: why the rest did not.
        opened: cells can run; before that there is nothing to keep.
    """

    cells: list[str]
    timeout: float | None
    echo: bool
    results: list[ExecutionResult] = field(default_factory=list)
    failure: SandboxError | None = None
    opened: bool = False

    async def run(self, policy: Policy, context: Context | None, stop: anyio.Event) -> None:
        """Run the cells until ``stop`` is set. When the box fails between them, what ran before stays true.

        The cell that runs when ``stop`` is set is interrupted, and what it has printed is kept.
        """
        import anyio

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._abandon_at, stop, tasks.cancel_scope)
            await self._run(policy, context, stop)
            tasks.cancel_scope.cancel()

    def interrupted(self) -> str:
        """Say where the cells were when they were interrupted."""
        done, all_ = len(self.results), len(self.cells)
        if self.results and self.results[-1].status == "cancelled":
            return f"interrupted in cell {done:,} of {all_:,}"
        return f"interrupted after {done:,} of {counted(all_, 'cell')}"

    async def _abandon_at(self, stop: anyio.Event, scope: anyio.CancelScope) -> None:
        await stop.wait()
        if not self.opened:
            scope.cancel()

    async def _run(self, policy: Policy, context: Context | None, stop: anyio.Event) -> None:
        from orchestrator.interpreter import Sandbox

        async with Sandbox.open(policy, context) as box:
            self.opened = True
            for number, cell in enumerate(self.cells, 1):
                if stop.is_set():
                    return
                try:
                    result = await box.execute(cell, self.timeout, stop)
                except SandboxError as error:
                    self.failure = error
                    return
                self.results.append(result)
                if self.echo:
                    show(result, f"cell {number}: " if len(self.cells) > 1 else "")


def show(result: ExecutionResult, name: str) -> None:
    """Print a cell's result for a person: its streams, its value, and its end unless that is a good one."""
    if result.stdout:
        out(printable(result.stdout), end="" if result.stdout.endswith("\n") else "\n")
    if result.stderr:
        note(result.stderr.removesuffix("\n"))
    if result.result is not None:
        out(printable(result.result))
    if result.error is not None:
        note((result.error.traceback or f"{result.error.name}: {result.error.value}").removesuffix("\n"))
    if not result.ok:
        lost = "; its variables are lost" if result.state_lost else ""
        detail = f" ({result.detail})" if result.detail else ""
        say(f"{name}{result.status} after {result.elapsed_s:.1f} s{detail}{lost}")


def split_cells(source: str) -> list[str]:
    """Split at lines that begin with ``# %%``; parts without anything but white space are no cells."""
    return [cell for cell in _MARKER.split(source.replace("\r\n", "\n")) if cell.strip()]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
