"""The first benchmark: cold start, cells, sub-calls and bytes, each beside the floor it is compared with.

Every pair is sampled alternately in one run, so that both feel the same machine; what is quoted is a ratio of medians
with the spread of the samples. Run ``make bench``; ``--quick`` takes a third of the samples. ``python -m tests.bench
peers`` compares whole systems, and installs those it compares with (:mod:`tests.bench.peers.compare`); ``python -m
tests.bench density`` counts boxes and runs on one machine (:mod:`tests.bench.density`).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time

import anyio
from anyio import to_thread

from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
from orchestrator.pool import Pool
from orchestrator.sandbox import image
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.bench import density, subcalls, trace, transfers
from tests.bench.local_kernel import LocalKernel
from tests.bench.peers import compare
from tests.bench.rows import Row, timed
from tests.support import policies

MIB = 1 << 20
TRIVIAL = "pass"


async def _echo(call: RpcCall) -> RpcReply:
    """Answer at once: the instant model, without a provider, a ledger or a journal."""
    if call.method == "batch_open":
        return RpcReply({"batch": "b", "window": Policy().models.window})
    if call.method == "final":
        return RpcReply()
    return RpcReply({"stop": "end"}, call.body)


async def cold_start(engine: Engine, image_id: str, samples: int) -> Row:
    """Time ``Sandbox.open`` to the first cell done, against a bare container of the same image."""
    command = ["docker", "run", "--rm", "--network=none", "--log-driver=none", "--entrypoint=/opt/box/python"]
    command += [image_id, "-c", "pass"]

    async def bare() -> None:
        await to_thread.run_sync(lambda: subprocess.run(command, check=True, capture_output=True))

    async def ours() -> None:
        async with Sandbox.open(policies.base(), "text", engine=engine) as box:
            await box.execute(TRIVIAL)
            elapsed.append((time.perf_counter() - began) * 1000)

    elapsed: list[float] = []
    floor: list[float] = []
    for _ in range(samples):
        floor.append(await timed(bare))
        began = time.perf_counter()
        await ours()
    return Row("cold: open to first cell done", elapsed, floor, "≤ 2 ×", floor_name="docker run … python -c pass")


async def cells(engine: Engine, samples: int) -> list[Row]:
    """Time a trivial cell with contexts of several sizes, against the same cell in a local kernel without a box."""
    rows = []
    with LocalKernel() as local:
        for label, size in (("1 kB", 1000), ("1 MB", MIB), ("50 MB", 50 * MIB), ("500 MB", 500_000_000)):
            async with Sandbox.open(policies.base(), "x" * size, engine=engine) as box:
                ours, floor = [], []
                for _ in range(20):
                    await box.execute(TRIVIAL)
                    local.execute(TRIVIAL)
                for _ in range(samples):
                    ours.append(await timed(lambda: box.execute(TRIVIAL)))
                    began = time.perf_counter()
                    local.execute(TRIVIAL)
                    floor.append((time.perf_counter() - began) * 1000)
            rows.append(
                Row(f"a trivial cell, context of {label}", ours, floor, "≤ 1.1 ×", floor_name="local ipykernel")
            )
    return rows


async def calls(engine: Engine, samples: int) -> list[Row]:
    """Time sub-calls that are answered at once, without a broker, as the cell sees them."""
    async with Sandbox.open(policies.base(), "text", rpc=_echo, engine=engine) as box:

        async def measured(code: str) -> float:
            result = await box.execute(
                f"import time; t = time.perf_counter(); {code}; (time.perf_counter() - t) * 1000"
            )
            if result.result is None:
                raise SystemExit(f"the benchmark's cell failed: {result}")
            return float(result.result)

        one = [await measured("[llm_query('q') for _ in range(100)]") / 100 for _ in range(samples)]
        batch = [await measured("llm_query_batched(['q'] * 1000)") for _ in range(samples)]
    return [Row("one call over the wire alone", one, [], ""), Row("batch of 1,000 over the wire alone", batch, [], "")]


async def pooled(engine: Engine, samples: int) -> list[Row]:
    """Time taking a box from a pool, and its first cell, which runs while the pool makes another."""
    rows = []
    for name, settings, bar in (("", [], "≤ 15 ms"), (" (frozen)", ["sandbox.freeze_between_cells=true"], "≤ 60 ms")):
        policy = policies.base().override(settings)
        taken, first = [], []
        async with Pool.open(policy, 1, engine=engine) as pool:
            for _ in range(samples):
                await pool.filled()
                began = time.perf_counter()
                async with pool.box(policy, "text") as box:
                    taken.append((time.perf_counter() - began) * 1000)
                    first.append(await timed(lambda: box.execute(TRIVIAL)))
        rows += [Row(f"a box from the pool{name}", taken, [], bar), Row(f"its first cell{name}", first, [], "")]
    return rows


async def _opened(engine: Engine, context: str) -> float:
    began = time.perf_counter()
    async with Sandbox.open(policies.base(), context, engine=engine):
        return (time.perf_counter() - began) * 1000


async def measure(*, quick: bool) -> list[Row]:
    """Take all samples."""
    scale = 1 if quick else 3
    engine = await to_thread.run_sync(Engine.connect)
    try:
        found = await to_thread.run_sync(image.find, engine)
        await _opened(engine, "text")  # the first box after a start of the engine pays for its caches
        return [
            await cold_start(engine, found.id, 5 * scale),
            *await pooled(engine, 5 * scale),
            *await cells(engine, 100 * scale),
            *await calls(engine, 3 * scale),
            *await subcalls.measure(scale),
            *await transfers.measure(engine, 2 * scale),
        ]
    finally:
        engine.close()


async def traced() -> list[tuple[str, trace.Table]]:
    """Trace a cold start, starts from a pool and a cell."""
    engine = await to_thread.run_sync(Engine.connect)
    try:
        await _opened(engine, "text")
        return await trace.measure(engine)
    finally:
        engine.close()


def main() -> None:
    """Do the measurement that the first argument names."""
    if sys.argv[1:2] == ["peers"]:
        return compare.main(sys.argv[2:])
    if sys.argv[1:2] == ["density"]:
        return density.main(sys.argv[2:])
    return floors()


def floors() -> None:
    """Measure ours against the floors, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "trace"), default="all", help="trace: the stages alone")
    parser.add_argument("--quick", action="store_true", help="a third of the samples")
    parser.add_argument("--json", action="store_true", help="print the samples instead of the table")
    options = parser.parse_args()
    if not options.json:
        trace.show(anyio.run(traced))
    if options.what == "trace":
        return
    rows = anyio.run(lambda: measure(quick=options.quick))
    if options.json:
        json.dump(
            [{"what": row.what, "ours": row.ours, "floor": row.floor, "unit": row.unit} for row in rows], sys.stdout
        )
        return
    table = [("what", "median (10 % … 90 %)", "floor", "ratio", "bar"), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"\n{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
