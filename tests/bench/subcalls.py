"""Sub-calls from a cell to a model and back: box, wire, broker, ledger and journal, against the same calls without.

The floor is a bare asyncio client in this process: as many tasks as calls, a limiter of the same size, the same model.
Over an instant model it costs next to nothing, so that what is left of ours is our own; over one of 200 ms the bound on
calls in flight decides, and ours is to add nothing. That the bound is reached, and never passed, is checked each time.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from orchestrator.ledger import Scope
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.base import Message, Model, ModelReply, ModelRequest, Usage
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.session import Backing, Session, open_session
from orchestrator.trajectory.journal import JournalWriter
from tests.bench.rows import Row, timed
from tests.support import policies

IN_FLIGHT = 256
RUNS = 8
SLOW_S = 0.2
_FLOOR = "bare asyncio"
_PROMPT = "question {}"
_USAGE = Usage(input_tokens=5, output_tokens=1)


class BenchModel:
    """Answers after ``delay_s``, and remembers how many asked at once.

    Attributes:
        name: one that the price table knows to be free.
        peak: the most requests that were under way at the same moment.
    """

    name = "offline:bench"

    def __init__(self, delay_s: float = 0.0) -> None:
        self.peak = 0
        self._delay_s = delay_s
        self._now = 0

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Echo the prompt."""
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            if self._delay_s:
                await anyio.sleep(self._delay_s)
        finally:
            self._now -= 1
        return ModelReply(request.messages[-1].text, _USAGE)

    async def aclose(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True, slots=True)
class Bench:
    """An open run whose cells can be timed from within."""

    session: Session
    model: Model
    in_flight: int

    async def measure(self, code: str) -> list[float]:
        """Run a cell whose last expression is a list of milliseconds, and return it."""
        result = await self.session.run_cell(f"from time import perf_counter as now\n{code}", 1, 300.0)
        if result.result is None:
            raise SystemExit(f"the benchmark's cell failed: {result}")
        return [float(sample) for sample in ast.literal_eval(result.result)]

    async def batch(self, calls: int) -> float:
        """Return what a batch of so many calls takes; in milliseconds, like all that is returned here."""
        code = f"""
prompts = [{_PROMPT!r}.format(i) for i in range({calls})]
t = now(); answers = llm_query_batched(prompts); took = (now() - t) * 1000
assert answers == prompts, answers[:3]
[took]"""
        return (await self.measure(code))[0]

    async def singles(self, calls: int) -> list[float]:
        """Return what each of so many calls takes, one after the other."""
        code = f"""
took = []
for i in range({calls}):
    t = now(); llm_query({_PROMPT!r}.format(i)); took.append((now() - t) * 1000)
took"""
        return await self.measure(code)

    async def bare(self, calls: int) -> float:
        """Return what a batch of so many calls takes without all this."""
        limiter = anyio.CapacityLimiter(self.in_flight)

        async def one(number: int) -> None:
            async with limiter:
                await self.model.complete(_request(number))

        async def all_of_them() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(calls):
                    tasks.start_soon(one, number)

        return await timed(all_of_them)

    async def bare_singles(self, calls: int) -> list[float]:
        """Return what each of so many calls takes without all this, one after the other."""
        return [await timed(lambda: self.model.complete(_request(0))) for _ in range(calls)]

    def check_bound(self) -> None:
        """Make sure that the bound on calls in flight was reached and not passed."""
        if isinstance(self.model, BenchModel) and self.model.peak != self.in_flight:
            raise SystemExit(f"{self.model.peak} calls were in flight at once, and not {self.in_flight}")


def _request(number: int) -> ModelRequest:
    return ModelRequest((Message("user", _PROMPT.format(number)),), 256)


@asynccontextmanager
async def opened(model: Model, in_flight: int) -> AsyncIterator[Bench]:
    """Open a run with a box, a broker, a ledger and a journal of its own."""
    settings = [f"models.in_flight={in_flight}", "models.max_tokens=256"]
    settings += [f"budget.{key}={2**40}" for key in ("calls", "tokens")]
    policy: Policy = policies.base().override(settings)
    with tempfile.TemporaryDirectory() as folder:
        writer = JournalWriter.create(Path(folder), "bench")
        scope = Scope.root(policy.budget)
        backing = Backing(
            sub_model=model,
            open_named=lambda _name: model,
            prices=PriceTable.load(),
            limiter=anyio.CapacityLimiter(in_flight),
        )
        recorder = Recorder("bench", None, (writer,))
        try:
            async with open_session(
                policy=policy, context="text", scope=scope, recorder=recorder, backing=backing, child=None
            ) as session:
                yield Bench(session, model, in_flight)
        finally:
            scope.close()
            writer.close()


async def instant(samples: int) -> list[Row]:
    """Time single calls and batches over a model that answers at once."""
    async with opened(BenchModel(), Policy().models.in_flight) as bench:
        await bench.singles(50)
        ours = await bench.singles(100 * samples)
        rows = [Row("one llm_query, instant model", ours, await bench.bare_singles(1000), "≤ 1 ms", floor_name=_FLOOR)]
        for calls, bar in ((1000, "≤ 300 ms"), (10_000, "")):
            pairs = [(await bench.batch(calls), await bench.bare(calls)) for _ in range(samples)]
            rows.append(_row(f"batch of {calls:,}, instant model", pairs, bar))
    return rows


async def slow(samples: int) -> list[Row]:
    """Time batches over a model that takes 200 ms."""
    rows = []
    async with opened(BenchModel(SLOW_S), IN_FLIGHT) as bench:
        for calls in (1000, 10_000):
            pairs = [(await bench.batch(calls), await bench.bare(calls)) for _ in range(samples)]
            bench.check_bound()
            rows.append(_row(f"batch of {calls:,}, 200 ms model, {IN_FLIGHT} in flight", pairs, ""))
    return rows


async def many_runs(samples: int) -> Row:
    """Time eight runs at once, each with a batch of 1,000 over a model of 200 ms of its own."""
    calls, in_flight = 1000, IN_FLIGHT // RUNS * 2
    models = [BenchModel(SLOW_S) for _ in range(RUNS)]
    benches: list[Bench] = []
    ready, done = anyio.Event(), anyio.Event()

    async def hold(model: BenchModel) -> None:
        async with opened(model, in_flight) as bench:
            benches.append(bench)
            if len(benches) == RUNS:
                ready.set()
            await done.wait()

    async def all_batches() -> None:
        async with anyio.create_task_group() as tasks:
            for bench in benches:
                tasks.start_soon(bench.batch, calls)

    async def all_bare() -> None:
        async with anyio.create_task_group() as tasks:
            for bench in benches:
                tasks.start_soon(bench.bare, calls)

    async with anyio.create_task_group() as holders:
        for model in models:
            holders.start_soon(hold, model)
        await ready.wait()
        pairs = [(await timed(all_batches), await timed(all_bare)) for _ in range(samples)]
        for bench in benches:
            bench.check_bound()
        done.set()
    return _row(f"{RUNS} runs at once, each a batch of {calls:,}, 200 ms, {in_flight} in flight", pairs, "")


async def over_http(samples: int) -> Row:
    """Time a batch through the provider's SDK on a local server, against the SDK alone."""
    with _server() as url:
        model = AnthropicModel("offline", environ={"ANTHROPIC_API_KEY": "none", "ANTHROPIC_BASE_URL": url})
        try:
            async with opened(_Echoing(model), Policy().models.in_flight) as bench:
                await bench.bare(100)
                pairs = [(await bench.batch(1000), await bench.bare(1000)) for _ in range(samples)]
        finally:
            await model.aclose()
    return _row("batch of 1,000 through the SDK, local server", pairs, "", "bare SDK")


class _Echoing:
    """A model whose answers are stripped of what the server puts before the prompt."""

    name = "offline:http"

    def __init__(self, model: Model) -> None:
        self._model = model

    async def complete(self, request: ModelRequest) -> ModelReply:
        reply = await self._model.complete(request)
        return ModelReply(reply.text.removeprefix("echo: "), reply.usage, reply.stop_reason)

    async def aclose(self) -> None:
        await self._model.aclose()


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.model_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _row(what: str, pairs: list[tuple[float, float]], bar: str, floor: str = _FLOOR) -> Row:
    ours, bare = zip(*pairs, strict=True)
    return Row(what, list(ours), list(bare), bar, floor_name=floor)


async def measure(scale: int) -> list[Row]:
    """Take all samples; ``scale`` is 1 for a quick look."""
    return [
        *await instant(3 * scale),
        *await slow(scale),
        await many_runs(scale),
        await over_http(2 * scale),
    ]
