"""Bytes: contexts in, answers out, output that is cut, a context read from its file; and what the host holds meanwhile.

A context goes into a box of a pool, so that what is measured is its way alone: encoded, sent, loaded, and the kernel's
word that it is there.
"""

from __future__ import annotations

import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
from orchestrator.pool import Pool
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.bench.local_kernel import LocalKernel
from tests.bench.rows import Row, timed
from tests.support import policies

MB = 10**6
_LINE = "0123456789abcde\n"
# Small enough that 500 MB and a str of them are more than half of it.
_TIGHT = "limits.memory_mb=900"


async def _echo(_call: RpcCall) -> RpcReply:
    return RpcReply()


async def measure(engine: Engine, samples: int) -> list[Row]:
    """Take all samples."""
    base = policies.base()
    return [
        *await into(engine, base, 100, samples),
        *await into(engine, base, 500, max(samples // 2, 1)),
        *await out(engine, samples),
        await printed(engine, samples),
        await read(engine, samples),
    ]


async def into(engine: Engine, policy: Policy, megabytes: int, samples: int) -> list[Row]:
    """Time a context of so many MB, and what the host's memory grows by meanwhile, beside the text it has."""
    text = _LINE * (megabytes * MB // len(_LINE))
    speed, held, floor = [], [], []
    async with Pool.open(policy, 1, engine=engine) as pool:
        for _ in range(samples):
            await pool.filled()
            before = _memory_mb("VmRSS", reset=True)
            async with AsyncExitStack() as stack:
                took = await timed(lambda: stack.enter_async_context(pool.box(policy, text)))
                held.append(_memory_mb("VmHWM") - before)
            speed.append(megabytes / took * 1000)
            began = time.perf_counter()
            text.encode()
            floor.append(megabytes / (time.perf_counter() - began))
    name = f"{megabytes} MB context into the box"
    return [
        Row(name, speed, floor, "≥ 150 MB/s", "MB/s", "encode in memory"),
        Row(f"{name}: the host's memory grows by", held, [], "≤ 64 MB", "MB"),
    ]


async def out(engine: Engine, samples: int) -> list[Row]:
    """Time an answer of 50 MB on its way out."""
    policy = policies.base().override(["limits.answer_mb=64"])
    async with Sandbox.open(policy, "text", rpc=_echo, engine=engine) as box:
        await box.execute("answer = 'x' * 50_000_000")
        speed = [50.0 / (await timed(lambda: box.execute("FINAL(answer)")) / 1000) for _ in range(samples)]
    return [Row("50 MB answer out", speed, [], "", "MB/s")]


async def printed(engine: Engine, samples: int) -> Row:
    """Time a cell that prints 20 MB, of which the policy lets a quarter of one out."""
    code = "for _ in range(200_000): print('x' * 99)"
    async with Sandbox.open(policies.base(), "text", engine=engine) as box:
        with LocalKernel() as local:
            ours, floor = [], []
            for _ in range(samples):
                ours.append(await timed(lambda: box.execute(code)))
                began = time.perf_counter()
                local.execute(f"import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n  {code}")
                floor.append((time.perf_counter() - began) * 1000)
    return Row("a cell prints 20 MB in 200,000 lines, cut at the source", ours, floor, "", floor_name="into a StringIO")


async def read(engine: Engine, samples: int) -> Row:
    """Time a search through 500 MB that are read from their file, against the same in a str."""
    text = _LINE * (500 * MB // len(_LINE))
    policy = policies.base().override([_TIGHT])
    async with Sandbox.open(policy, text, engine=engine) as box:
        ours = [await timed(lambda: box.execute("assert context.count('cde') > 31_000_000")) for _ in range(samples)]
    floor = []
    for _ in range(samples):
        began = time.perf_counter()
        text.count("cde")
        floor.append((time.perf_counter() - began) * 1000)
    return Row("count in 500 MB read from their file", ours, floor, "", floor_name="str.count on the host")


def _memory_mb(field: str, *, reset: bool = False) -> float:
    """Return what proc(5) says of this process's memory; ``reset`` lets the highest begin anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / MB if found else float("nan")
