"""How many boxes a machine holds, and how many runs it serves: ``python -m tests.bench density``.

An idle box of a pool weighs what its cgroup is charged (by the engine's statistics, which read the cgroup's files) and
what the engine's process beside it, its shim, holds for itself (``Pss``, proc(5)); that takes root on the engine's
machine. What 16 GiB hold is extrapolated from the slope. Then fifty small runs begin at once, four in boxes at a time,
each with a deadline that counts its waiting too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from orchestrator import RLM
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.policy import Policy
from orchestrator.pool import Pool
from orchestrator.sandbox import container, image
from orchestrator.sandbox.engine import Engine
from tests.support import policies

COUNTS = (1, 5, 10, 20)
HOST_MB = 16 * 1024
RUNS, AT_ONCE = 50, 4
DEADLINE_S = 60.0
_SETTLE_S = 2.0
_MIB = 1 << 20
_CELLS = ("words = context.split()\nanswers = llm_query_batched(words[:8])", "Final = str(len(answers))")


class _Root:
    """Writes the two cells of a small run, each after ``delay_s``, as a model would take time."""

    name = "offline:root"

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    async def complete(self, request: ModelRequest) -> ModelReply:
        await anyio.sleep(self._delay_s)
        turn = sum(message.role == "assistant" for message in request.messages)
        cell = _CELLS[min(turn, len(_CELLS) - 1)]
        return ModelReply(f"```repl\n{cell}\n```", Usage(input_tokens=100, output_tokens=20))

    async def aclose(self) -> None:
        """Nothing is held open."""


class _Sub(_Root):
    name = "offline:sub"

    async def complete(self, request: ModelRequest) -> ModelReply:
        await anyio.sleep(self._delay_s)
        return ModelReply(request.messages[-1].text, Usage(input_tokens=5, output_tokens=1))


@dataclass(frozen=True, slots=True)
class Weight:
    """What so many idle boxes weigh, in MiB."""

    boxes: int
    charged: float
    shims: float

    @property
    def whole(self) -> float:
        """Both together."""
        return self.charged + self.shims


async def weigh(engine: Engine, policy: Policy) -> list[Weight]:
    """Weigh pools of several sizes, each filled from nothing."""
    weights = []
    for boxes in COUNTS:
        async with Pool.open(policy, boxes, engine=engine) as pool:
            await pool.filled()
            await anyio.sleep(_SETTLE_S)
            weights.append(await to_thread.run_sync(_weight, engine, boxes))
    return weights


def _weight(engine: Engine, boxes: int) -> Weight:
    mine = [found.id for found in engine.containers(f"{container.OWNER_LABEL}={container.owner()}")]
    stats = [engine._api.stats(box, stream=False, one_shot=True) for box in mine]
    charged = sum(int(each["memory_stats"]["usage"]) for each in stats) / _MIB
    try:
        return Weight(boxes, charged, sum(_shim(engine, box) for box in mine))
    except OSError as error:
        raise SystemExit(f"the shims cannot be weighed ({error}): run as root on the engine's machine") from None


def _shim(engine: Engine, box: str) -> float:
    init = int(engine._api.inspect_container(box)["State"]["Pid"])
    return _field(f"/proc/{_field(f'/proc/{init}/status', 'PPid')}/smaps_rollup", "Pss") / 1024


def _field(path: str, name: str) -> int:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line of least squares: what one more box weighs."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


@dataclass(frozen=True, slots=True)
class Served:
    """One run: seconds from the moment all began, and what was said."""

    waited: float
    took: float
    status: str
    reason: str


async def serve(engine: Engine, policy: Policy, delay_s: float) -> list[Served]:
    """Begin fifty runs at once; four have a box at any time, the others wait."""
    served: list[Served] = []
    seats = anyio.CapacityLimiter(AT_ONCE)
    began = time.monotonic()

    async def one(rlm: RLM, number: int) -> None:
        async with seats:
            start = time.monotonic()
            # What it waited for its seat counts: the rest of its deadline is all it may take.
            with anyio.move_on_after(DEADLINE_S - (start - began)):
                result = await rlm.acomplete(f"word{number} " * 1000, "How many?")
                served.append(Served(start - began, time.monotonic() - start, result.status, result.reason))
                return
            served.append(Served(start - began, time.monotonic() - start, "late", ""))

    async with Pool.open(policy, AT_ONCE, engine=engine) as pool:
        await pool.filled()
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for number in range(RUNS):
                tasks.start_soon(one, RLM(_Root(delay_s), _Sub(delay_s), policy, open_box=pool.box), number)
    return served


async def measure(delay_s: float) -> None:
    """Measure, and print what came of it."""
    policy = policies.base()
    engine = await to_thread.run_sync(Engine.connect)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} cores, load averages {load}, boxes of at most {policy.limits.memory_mb} MB\n")
    try:
        await to_thread.run_sync(image.find, engine)  # a pool would wait for it to be built
        weights = await weigh(engine, policy)
        _print_weights(weights)
        began = time.monotonic()
        _print_runs(await serve(engine, policy, delay_s), delay_s, time.monotonic() - began)
    finally:
        engine.close()


def _print_weights(weights: list[Weight]) -> None:
    print("idle boxes   in their cgroups   in the engine's shims   each")
    for each in weights:
        print(
            f"{each.boxes:10}   {each.charged:11.0f} MiB   {each.shims:17.0f} MiB   {each.whole / each.boxes:.0f} MiB"
        )
    one = slope([(each.boxes, each.whole) for each in weights])
    print(f"one more: {one:.0f} MiB; extrapolated, 16 GiB hold {HOST_MB / one:.0f}")


def _print_runs(served: list[Served], delay_s: float, whole_s: float) -> None:
    # Each run waits for its models three times: a turn, its batch, another turn.
    models_s = 3 * delay_s
    answered = [each for each in served if each.status == "answered"]
    print(f"\n{RUNS} runs begun at once, {AT_ONCE} in boxes at a time, models of {delay_s * 1000:.0f} ms:")
    print(
        f"{len(answered)} answered within {DEADLINE_S:.0f} s, all done after {whole_s:.1f} s with the pool's own time"
    )
    if answered:
        took = sorted(each.took - models_s for each in answered)
        print(f"a run beside its models: median {statistics.median(took):.2f} s, slowest {took[-1]:.2f} s")
    for each in served:
        if each.status != "answered":
            print(
                f"missed: {each.status} {each.reason} after {each.took:.1f} s in a box, {each.waited:.1f} s before it"
            )
    if len(answered) < RUNS:
        raise SystemExit(1)


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench density", description=__doc__)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds a model takes to answer (default 0.2)")
    options = parser.parse_args(arguments)
    if not 0 <= options.delay <= 10:
        parser.error(f"--delay takes 0 to 10 seconds, not {options.delay:g}")
    anyio.run(measure, options.delay)
