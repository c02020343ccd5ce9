"""The soak: hundreds of boxes with random hazards, some at a time, and then nothing that was not there before.

Run ``make soak``; ``--seed`` repeats one. The exit code is 0 only if every cell ended within its bound with a word for
how it ended, and nothing is left of any box.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import get_args

import anyio
from anyio import to_thread

from orchestrator.errors import RlmSandboxError
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.result import ExecutionResult, Status
from orchestrator.policy import Policy
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.soak import figures
from tests.soak.figures import Figures
from tests.soak.hazards import CELLS, TIMEOUT_S, Plan, plans
from tests.support import policies

# The bound of a cell: its timeout and the ladder's 3 s. On a machine that others use as well, some may take longer:
# they are counted, and past the second bound they fail.
LADDER_S, LATEST_S = 3.0, 15.0
# Seconds one box may take from end to end before it is said to hang.
BOX_S = 120.0
WARM = 8


class Left(Exception):  # noqa: N818 - it is no error
    """Raised in the block of a box to leave it."""


@dataclass(slots=True)
class Log:
    """What happened.

    Attributes:
        identities: full ids of the containers.
        ends: how cells ended.
        left: how boxes were left.
        late: cells that took longer than their bound.
        slowest_s: how long past its timeout the slowest cell ended.
        failures: what should not have been.
    """

    identities: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    late: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a soak.

    Attributes:
        seed: repeats it.
        boxes: how many.
        elapsed_s: for all.
        before: counts after the first boxes, which warm everything up.
        after: counts at the end.
        tasks: of the event loop, before and after.
        log: what happened.
    """

    seed: str
    boxes: int
    elapsed_s: float
    before: Figures
    after: Figures
    tasks: tuple[int, int]
    log: Log

    @property
    def failures(self) -> list[str]:
        """What should not have been, all of it."""
        tasks = [f"tasks: {self.tasks[0]} before, {self.tasks[1]} after"] if self.tasks[1] > self.tasks[0] else []
        return [*self.log.failures, *figures.leaks(self.before, self.after), *tasks]


async def answer(call: RpcCall) -> RpcReply:
    """Answer a box: those who ask for it are left to hang."""
    if call.body.startswith("hang"):
        await anyio.sleep_forever()
    if call.method == "batch_open":
        return RpcReply({"batch": "b", "window": 8})
    return RpcReply({"stop": "end"}, call.body)


async def live(plan: Plan, policy: Policy, engine: Engine, log: Log) -> None:
    """Open a box, let its cells run, and leave it as planned."""
    scope = anyio.CancelScope()
    try:
        with anyio.fail_after(BOX_S), scope:
            if plan.end == "cancelled while it opens":
                scope.deadline = anyio.current_time() + plan.after_s
            async with Sandbox.open(policy, "a context", rpc=answer, engine=engine) as box:
                record = await to_thread.run_sync(engine.inspect, box.info.container)
                log.identities.add(record["Id"])
                if plan.end == "cancelled":
                    scope.deadline = anyio.current_time() + plan.after_s
                for name in plan.cells:
                    if not box.gone:
                        note(await box.execute(CELLS[name], TIMEOUT_S), name, log)
                if plan.end == "raised":
                    raise Left  # noqa: TRY301 - as a caller's code would
    except Left:
        pass
    except TimeoutError:
        log.failures.append(f"box {plan.number} ({', '.join(plan.cells)}; {plan.end}) took more than {BOX_S:g} s")
    except RlmSandboxError as error:
        log.failures.append(f"box {plan.number} ({', '.join(plan.cells)}; {plan.end}): {type(error).__name__}: {error}")
    log.left["cancelled" if scope.cancelled_caught else plan.end] += 1


def note(result: ExecutionResult, name: str, log: Log) -> None:
    """Judge one cell."""
    over = result.elapsed_s - TIMEOUT_S
    log.ends[result.status] += 1
    log.late += over > LADDER_S
    log.slowest_s = max(log.slowest_s, over)
    if result.status not in get_args(Status) or over > LATEST_S:
        log.failures.append(f"{name}: {result.status} after {result.elapsed_s:.1f} s")


async def together(todo: list[Plan], parallel: int, engine: Engine, log: Log) -> tuple[int, int]:
    """Let ``parallel`` boxes live at a time; return how many tasks there were before and after."""
    before = len(asyncio.all_tasks())
    policy = policies.base().override(
        ["limits.memory_mb=256", "limits.context_mb=8", "limits.pids=48", "limits.output_kb=16", "limits.tmp_mb=8"]
    )
    waiting: Iterator[Plan] = iter(todo)

    async def work() -> None:
        for plan in waiting:
            await live(plan, policy, engine, log)
            if plan.number % 50 == 0:
                print(f"{plan.number} boxes", file=sys.stderr, flush=True)

    async with anyio.create_task_group() as tasks:
        for _ in range(parallel):
            tasks.start_soon(work)
    return before, len(asyncio.all_tasks())


def soak(boxes: int, parallel: int, seed: str, limit_s: float) -> Report:
    """Let them live; return what came of it.

    Raises:
        TimeoutError: all of it took more than ``limit_s`` seconds.
    """
    log, began = Log(), time.monotonic()
    todo = plans(WARM + boxes, seed)

    async def bounded(part: list[Plan], engine: Engine) -> tuple[int, int]:
        with anyio.fail_after(limit_s - (time.monotonic() - began)):
            return await together(part, parallel, engine, log)

    def lived(part: list[Plan]) -> tuple[int, int]:
        # A connection for each part: its idle sockets are kept to be used again, and are no leak.
        with closing(Engine.connect()) as engine:
            return anyio.run(bounded, part, engine)

    def counted() -> Figures:
        with closing(Engine.connect()) as engine:
            return figures.take(engine, log.identities)

    with own_temporary_folder():
        lived(todo[:WARM])
        before = counted()
        tasks = lived(todo[WARM:])
        after = figures.settled(counted, before)
    return Report(seed, boxes, time.monotonic() - began, before, after, tasks, log)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Give this process a folder of its own for temporary files: what others make is not counted."""
    with tempfile.TemporaryDirectory(prefix="rlm-sandbox-soak-") as folder:
        former, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = former


def show(report: Report) -> None:
    """Print the report for people."""
    rows = [("what", "before", "after")]
    after = asdict(report.after)
    rows += [(name.replace("_", " "), str(value), str(after[name])) for name, value in asdict(report.before).items()]
    rows.append(("tasks", str(report.tasks[0]), str(report.tasks[1])))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for what, before, now in rows:
        print(f"{what.ljust(widths[0])}  {before.rjust(widths[1])}  {now.rjust(widths[2])}")
    log = report.log
    told = [", ".join(f"{count} {word}" for word, count in counts.most_common()) for counts in (log.ends, log.left)]
    print(f"\n{report.boxes} boxes in {report.elapsed_s:.0f} s (and {WARM} to warm up); seed {report.seed}")
    print(f"cells ended: {told[0]}\nboxes were: {told[1]}")
    print(f"past its timeout the slowest cell ended by {log.slowest_s:.1f} s; {log.late} took over {LADDER_S:g} s more")
    for failure in report.failures:
        print(f"FAILED  {failure}")


def vars_of(record: object) -> dict[str, object]:
    """Return the fields of a dataclass as they are; ``asdict`` cannot copy a Counter."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}  # type: ignore[attr-defined]


def plain(value: object) -> object:
    """Return what JSON has for it."""
    return sorted(value) if isinstance(value, set) else vars_of(value)


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--boxes", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--parallel", type=int, default=4, help="how many at a time (default: 4)")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of an earlier soak, to repeat it")
    parser.add_argument("--limit", type=float, help="seconds for all of it (default: 60, and 10 a box)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    options = parser.parse_args(arguments)
    if options.boxes < 1 or options.parallel < 1:
        parser.error("--boxes and --parallel are whole numbers of at least 1")
    print(f"seed {options.seed}: {options.boxes} boxes, {options.parallel} at a time", file=sys.stderr, flush=True)
    limit_s = options.limit or 60 + 10 * (options.boxes + WARM)
    report = soak(options.boxes, options.parallel, options.seed, limit_s)
    if options.json:
        log = {**vars_of(report.log), "ends": dict(report.log.ends), "left": dict(report.log.left)}
        json.dump({**vars_of(report), "log": log, "failures": report.failures}, sys.stdout, default=plain)
    else:
        show(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
