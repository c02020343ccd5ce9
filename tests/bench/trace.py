"""Where every millisecond goes: one cold start, one start from a pool, and a cell, stage by stage.

Stages overlap, so each is told by when it began and how long it took. Beside it stands the physical floor: what the
same step costs without any of ours. Times are medians of some runs: ``python -m tests.bench trace``, or ``make bench``.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from anyio import to_thread

from orchestrator import prepared
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.client import KernelClient
from orchestrator.policy import Policy
from orchestrator.pool import Pool
from orchestrator.sandbox import attestation, image
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.mux import Mux
from sandbox_image.wire import Frame, Kind
from tests.bench.local_kernel import LocalKernel
from tests.support import policies

CONTEXT = "x" * 1_000_000
CELLS = 50
Table = list[tuple[str, ...]]


class Clock:
    """Notes when stages begin and how long they take, over several runs.

    Attributes:
        samples: of each stage: when it began since the run did, and how long it took, in milliseconds.
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._began = 0.0

    def start(self) -> None:
        """Begin a run."""
        self._began = time.perf_counter()

    def note(self, stage: str, began: float) -> None:
        """Note a stage that is over now."""
        now = time.perf_counter()
        self.samples[stage].append(((began - self._began) * 1000, (now - began) * 1000))

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its time noted."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*arguments: Any, **named: Any) -> Any:
                began = time.perf_counter()
                try:
                    return await function(*arguments, **named)
                finally:
                    self.note(stage, began)

            return wait

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.note(stage, began)

        return call

    def row(self, stage: str, floor: str = "") -> tuple[str, ...]:
        """Return a line of the table."""
        began, took = (statistics.median(values) for values in zip(*self.samples[stage], strict=True))
        return stage, f"{began:.1f}", f"{took:.2f}", floor


_STARTING = (
    ("image looked up", image, "find"),
    ("engine: create", Engine, "create"),
    ("engine: attach", Engine, "attach"),
    ("engine: start", Engine, "start"),
    ("supervisor up (HELLO awaited)", KernelClient, "hello"),
    ("engine: inspect", Engine, "inspect"),
    ("views compared with the policy", attestation, "verify"),
    ("context sent", prepared, "send_context"),
    ("kernel ready, holds the context", KernelClient, "_until_ready"),
    ("kernel_info answered", KernelClient, "handshake"),
)


@contextmanager
def _watched(clock: Clock, stages: tuple[tuple[str, Any, str], ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for stage, owner, name in stages:
            stack.enter_context(mock.patch.object(owner, name, clock.timed(stage, getattr(owner, name))))
        yield


async def cold(engine: Engine, runs: int, floors: dict[str, str]) -> Table:
    """Trace ``Sandbox.open`` to the first cell."""
    clock = Clock()
    with _watched(clock, _STARTING):
        for _ in range(runs):
            clock.start()
            began = time.perf_counter()
            async with Sandbox.open(policies.base(), CONTEXT, engine=engine) as box:
                opened = time.perf_counter()
                await box.execute("pass")
                clock.note("first cell", opened)
                clock.note("all: open to first cell done", began)
    return _table(clock, floors)


async def warm(engine: Engine, policy: Policy, runs: int, floors: dict[str, str]) -> Table:
    """Trace what is left to do when a box is taken from a pool."""
    clock = Clock()
    async with Pool.open(policy, 1, engine=engine) as pool:
        for _ in range(runs):
            await pool.filled()
            with _watched(clock, _STARTING[-3:]):
                clock.start()
                began = time.perf_counter()
                async with pool.box(policy, CONTEXT) as box:
                    clock.note("acquire", began)
                    opened = time.perf_counter()
                    await box.execute("pass")
                    clock.note("first cell", opened)
    return _table(clock, floors)


async def cell(engine: Engine, floors: dict[str, str]) -> Table:
    """Trace a trivial cell: encoded, sent, run in the box, and folded into its result."""
    clock = Clock()
    sent = replied = 0.0

    def frame(client: KernelClient, found: Frame) -> None:
        nonlocal replied
        replied = time.perf_counter()
        original_frame(client, found)
        clock.note("fold of one message", replied)

    async def send(mux: Mux, kind: Kind, payload: bytes = b"") -> None:
        nonlocal sent
        began = time.perf_counter()
        clock.note("encode", asked)
        await original_send(mux, kind, payload)
        clock.note("send", began)
        sent = time.perf_counter()

    original_frame, original_send = KernelClient.frame, Mux.send
    async with Sandbox.open(policies.base(), CONTEXT, engine=engine) as box:
        for _ in range(20):
            await box.execute("pass")
        with mock.patch.object(KernelClient, "frame", frame), mock.patch.object(Mux, "send", send):
            for _ in range(CELLS):
                clock.start()
                asked = time.perf_counter()
                await box.execute("pass")
                ended = time.perf_counter()
                clock.samples["stream, run in the box, stream"].append(((sent - asked) * 1000, (replied - sent) * 1000))
                clock.samples["result"].append(((replied - asked) * 1000, (ended - replied) * 1000))
                clock.note("all: one cell", asked)
    return _table(clock, floors)


def _table(clock: Clock, floors: dict[str, str]) -> Table:
    return [
        ("stage", "began ms", "took ms", "floor"),
        *(clock.row(name, floors.get(name, "")) for name in clock.samples),
    ]


def _ms(work: Callable[[], object], runs: int = 5) -> float:
    samples = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        samples.append((time.perf_counter() - began) * 1000)
    return statistics.median(samples)


def _run(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, capture_output=True)


def _pipe_ms() -> float:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        stdin, stdout = cat.stdin, cat.stdout

        def there_and_back() -> None:
            stdin.write(b"x" * 500)
            stdout.read(500)

        return _ms(there_and_back, 200)


def _runc_ms() -> float:
    """Return what the runtime alone takes: a container of its own defaults, on an empty root with the host's /usr."""
    with TemporaryDirectory() as bundle:
        root = Path(bundle, "rootfs")
        for folder in ("dev", "proc", "sys", "usr"):
            Path(root, folder).mkdir(parents=True)
        for folder in ("bin", "lib", "lib64"):
            Path(root, folder).symlink_to(f"usr/{folder}")
        _run("runc", "spec", "--bundle", bundle)()
        file = Path(bundle, "config.json")
        config = json.loads(file.read_text(encoding="utf-8"))
        config["process"] |= {"terminal": False, "args": ["/bin/true"]}
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        config["mounts"].append({"destination": "/usr", "source": "/usr", "options": ["bind", "ro"]})
        file.write_text(json.dumps(config), encoding="utf-8")
        return _ms(_run("runc", "run", "--bundle", bundle, f"rlm-sandbox-bench-{os.getpid()}"))


def measure_floors(image_id: str) -> dict[str, str]:
    """Measure what the stages cost without us, by the stage each belongs to."""
    container = ("docker", "run", "--rm", "--network=none", "--log-driver=none", "--entrypoint=/opt/box/python")
    bare = _ms(_run(*container, image_id, "-S", "-c", "pass"))
    python, kernel = (
        _run(sys.executable, "-I", "-c", "pass"),
        _run(sys.executable, "-I", "-c", "import ipykernel.ipkernel"),
    )
    pipe, data = _pipe_ms(), CONTEXT.encode()
    with LocalKernel() as local:
        for _ in range(20):
            local.execute("pass")
        local_cell = _ms(lambda: local.execute("pass"), CELLS)
    copy = f"{_ms(lambda: bytearray(data), 20):.2f} memcpy of the same bytes"
    return {
        "engine: start": f"{_runc_ms():.0f} runc run /bin/true, without an engine",
        "all: open to first cell done": f"{bare:.0f} docker run … python -c pass",
        "supervisor up (HELLO awaited)": f"{_ms(python):.1f} python -c pass",
        "kernel ready, holds the context": f"{_ms(kernel):.0f} python -c 'import ipykernel.ipkernel'",
        "context sent": copy,
        "acquire": copy,
        "kernel_info answered": f"{pipe:.2f} a pipe to another process and back",
        "stream, run in the box, stream": f"{pipe:.2f} a pipe to another process and back",
        "first cell": f"{local_cell:.2f} a cell in a bare local ipykernel",
        "all: one cell": f"{local_cell:.2f} a cell in a bare local ipykernel",
    }


async def measure(engine: Engine, runs: int = 5) -> list[tuple[str, Table]]:
    """Return the tables, each with its title."""
    found = await to_thread.run_sync(image.find, engine)
    floors = await to_thread.run_sync(measure_floors, found.id)
    frozen = policies.base().override(["sandbox.freeze_between_cells=true"])
    size = f"context of {len(CONTEXT):,} characters"
    return [
        (f"Cold start, {size}", await cold(engine, runs, floors)),
        (f"Start from a pool, {size}", await warm(engine, policies.base(), runs, floors)),
        (f"Start from a pool of boxes that freeze between cells, {size}", await warm(engine, frozen, runs, floors)),
        ("A trivial cell", await cell(engine, floors)),
    ]


def show(tables: list[tuple[str, Table]]) -> None:
    """Print them."""
    for title, table in tables:
        print(f"\n{title}")
        widths = [max(len(line[column]) for line in table) for column in range(4)]
        for line in table:
            print("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())
