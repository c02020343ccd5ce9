"""A cell always ends: within its timeout and 3 s, told apart by how, and the next one runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import anyio
import docker.errors
import pytest
from anyio import to_thread

from orchestrator.errors import SandboxGoneError, ungrouped
from orchestrator.kernel import client as clients
from orchestrator.kernel.client import KernelClient
from orchestrator.kernel.result import Step
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from sandbox_image.wire import Kind
from tests.support.hazards import DEATHS, HANGS, HARMLESS, KILLED, SIGNALS, Hazard
from tests.support.live import LADDER_S, POLICY, REMOVAL_S, TIMEOUT, box, outcome, value
from tests.support.policies import otherwise_under_gvisor

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

SHORT = 0.5
AT_ONCE = 3
# "The REPL is as it was", or it is a fresh one and nothing is left of the old; the context is there in any case.
KEPT, FRESH = (True, "the context", True), (False, "the context", True)
LOOK = """
import os
'kept' in globals(), context, 'kept' in globals() or sum(name.isdigit() for name in os.listdir('/proc')) == 2
"""

MANY_THREADS = """
import threading, time
def fill(): return [bytearray(10 ** 7) for _ in range(10 ** 4)]
for _ in range(8): threading.Thread(target=fill).start()
time.sleep(1000)
"""
FILL_SCRATCH = """
import os
file = open("/tmp/full", "wb")
try: file.write(b"x" * (1 << 30))
except OSError: pass
os._exit(0)
"""


async def hangs(call: RpcCall) -> RpcReply:
    """Answer no call."""
    if call.method == "batch_open":
        raise RpcRefusal("unknown_method", "no batches here")
    await anyio.sleep_forever()
    raise AssertionError


async def came_out(engine: Engine, hazard: Hazard, timeout: float) -> tuple[object, ...]:
    """Run one in a box of its own; return how it ended, what had to be done, and how the next cell finds the box."""
    async with box(engine, context="the context", rpc=hangs) as opened:
        await opened.execute("kept = 1")
        result = await opened.execute(hazard.code, timeout)
        assert result.elapsed_s < timeout + 1 + 2 * clients.INTERRUPT_GRACE_S + clients.KILL_GRACE_S
        words = f"{result.detail} {result.error}"
        found = hazard.words if hazard.words in words else words
        return (
            result.status,
            result.state_lost,
            result.ladder,
            found,
            None if opened.gone else await value(opened, LOOK),
        )


async def all_of(engine: Engine, hazards: dict[str, Hazard], timeout: float, patch: pytest.MonkeyPatch) -> None:
    """Check a whole table, a few boxes at a time."""
    found: dict[str, tuple[object, ...]] = {}
    few = anyio.CapacityLimiter(AT_ONCE)
    wanted = {
        name: (hazard.status, hazard.state_lost, hazard.ladder, hazard.words, FRESH if hazard.state_lost else KEPT)
        for name, hazard in hazards.items()
    }

    async def one(name: str, hazard: Hazard) -> None:
        async with few:
            found[name] = await came_out(engine, hazard, timeout)

    with ungrouped():
        async with anyio.create_task_group() as tasks:
            for name, hazard in hazards.items():
                tasks.start_soon(one, name, hazard)
    # All have kept their bound. On a host with much else to do a step may be taken before the one below had its chance:
    # what came out otherwise is tried again, by itself, with more patience.
    for grace in ("INTERRUPT_GRACE_S", "KILL_GRACE_S"):
        patch.setattr(clients, grace, 10 * getattr(clients, grace))
    for name in [name for name in hazards if found[name] != wanted[name]]:
        found[name] = await came_out(engine, hazards[name], timeout)
    assert found == wanted


class TestHangs:
    async def test_each_ends_by_the_step_it_takes_and_the_next_cell_runs(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await all_of(engine, HANGS, SHORT, monkeypatch)

    @pytest.mark.parametrize(("without", "ladder"), [(Kind.INTERRUPT, KILLED), (Kind.RESTART, (*KILLED, "destroy"))])
    async def test_without_a_step_the_next_one_has_to_end_it(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, without: Kind, ladder: tuple[Step, ...]
    ) -> None:
        order = KernelClient._order

        async def weakened(client: KernelClient, kind: Kind) -> None:
            if kind is not without:
                await order(client, kind)

        monkeypatch.setattr(KernelClient, "_order", weakened)
        name = "loop (TE01)" if without is Kind.INTERRUPT else "ignores interrupts (TE02)"
        async with box(engine) as opened:
            result = await outcome(opened, HANGS[name].code, SHORT)
            assert (result.status, result.state_lost, result.ladder) == ("timeout", True, ladder)
            assert opened.gone is ("destroy" in ladder)
            if opened.gone:  # it does not run on until somebody leaves its block
                with anyio.fail_after(TIMEOUT):
                    await to_thread.run_sync(gone_from, engine, opened.info.container)

    async def test_without_the_ladder_it_does_not_end(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        async def weakened(client: KernelClient, *_: object) -> None:
            while not client._over:
                await client._changed.wait()

        monkeypatch.setattr(KernelClient, "_ladder", weakened)
        async with box(engine) as opened:
            with anyio.move_on_after(SHORT + LADDER_S) as scope:
                await opened.execute(HANGS["loop (TE01)"].code, SHORT)
            assert scope.cancelled_caught


def gone_from(engine: Engine, container: str) -> None:
    with suppress(docker.errors.NotFound):
        engine._api.wait(container, timeout=REMOVAL_S, condition="removed")


class TestDeadlines:
    LOOP = HANGS["loop (TE01)"].code

    async def test_they_hold_on_a_busy_host(self, engine: Engine) -> None:
        done = threading.Event()

        def spin() -> None:
            while not done.is_set():
                sum(range(1000))

        spinners = [threading.Thread(target=spin) for _ in range(4)]
        async with box(engine) as opened:
            for spinner in spinners:
                spinner.start()
            try:
                result = await outcome(opened, self.LOOP, SHORT)
            finally:
                done.set()
                for spinner in spinners:
                    spinner.join()
            assert (result.status, result.ladder[:1]) == ("timeout", ("interrupt",))

    @pytest.mark.parametrize("jump", [-3600.0, 3600.0])
    async def test_they_do_not_follow_the_wall_clock(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, jump: float
    ) -> None:
        now = time.time
        async with box(engine) as opened:
            monkeypatch.setattr(time, "time", lambda: now() + jump)
            result = await outcome(opened, self.LOOP, SHORT)
            assert (result.status, result.ladder) == ("timeout", ("interrupt",))
            assert result.elapsed_s >= SHORT
            assert await value(opened, "1") == 1

    async def test_code_that_cannot_be_delivered_ends_with_its_box(self, engine: Engine) -> None:
        """A box that does not run reads nothing: the engine's pipe is full before all of the code is in it."""
        async with box(engine) as opened:
            engine._api.pause(opened.info.container)
            try:
                code = f"x = '{'x' * 900_000}'"
                result = await outcome(opened, code, SHORT)
            finally:
                engine._api.unpause(opened.info.container)
            assert (result.status, result.state_lost, opened.gone) == ("timeout", True, True)
            assert result.ladder[-1] == "destroy"

    async def test_code_that_is_large_for_its_time_does_not_cost_the_box(self, engine: Engine) -> None:
        async with box(engine) as opened:
            await opened.execute("kept = 1")
            for _ in range(20):
                result = await opened.execute(f"x = '{'x' * 300_000}'", 0.001)
                assert result.status in ("ok", "timeout")
            assert await value(opened, "kept") == 1


class TestDeaths:
    async def test_each_is_told_at_once_and_the_next_cell_runs(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await all_of(engine, DEATHS, TIMEOUT / 2, monkeypatch)

    async def test_what_only_looks_like_an_end_is_none(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        await all_of(engine, HARMLESS, TIMEOUT / 2, monkeypatch)

    @otherwise_under_gvisor("the first process is not immune to signals")
    async def test_a_signal_to_the_supervisor_is_no_end(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        await all_of(engine, SIGNALS, TIMEOUT / 2, monkeypatch)

    async def test_a_death_between_two_cells_is_told_by_the_second(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = "import os, threading; threading.Timer(0.2, os._exit, (7,)).start()"
            assert (await opened.execute(code)).ok
            with anyio.fail_after(TIMEOUT):
                while not opened._client._lost_between:
                    await opened._client._changed.wait()
            result = await opened.execute("1")
            assert (result.status, result.result, result.state_lost) == ("ok", "1", True)
            assert "exit code 7" in result.detail

    @otherwise_under_gvisor("running out of memory ends the box")
    @pytest.mark.parametrize(
        "code",
        [
            "x = [bytearray(10 ** 7) for _ in range(10 ** 4)]",
            MANY_THREADS,
            "x = 'x' * (1 << 40)\nx = bytearray(1 << 30)",
            "import sys; sys.setrecursionlimit(10 ** 9)\nf = lambda n: [f(n + 1) for _ in '1']\nf(0)",
        ],
        ids=["many pieces", "many threads", "one piece", "recursion without a limit (TE17)"],
    )
    async def test_running_out_of_memory_is_told_apart(self, engine: Engine, code: str) -> None:
        async with box(engine) as opened:
            result = await outcome(opened, code, TIMEOUT)
            if result.status == "error":  # refused by the allocator before the kernel had to kill
                assert result.error is not None
                assert result.error.name == "MemoryError"
                result = await outcome(opened, "x = bytearray(1 << 30)", TIMEOUT)
            assert (result.status, result.state_lost) == ("oom", True), result
            assert await value(opened, "1") == 1

    @otherwise_under_gvisor("running out of memory ends the box")
    async def test_a_child_that_runs_out_of_memory_does_not_take_the_repl_along(self, engine: Engine) -> None:
        code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = bytearray(1 << 30)']).returncode"
        async with box(engine) as opened:
            await opened.execute("x = 1")
            result = await outcome(opened, code, TIMEOUT)
            assert (result.status, result.result) == ("ok", "-9")
            assert await value(opened, "x") == 1

    @otherwise_under_gvisor("running out of memory ends the box")
    async def test_memory_that_ran_out_once_is_not_blamed_for_a_later_death(self, engine: Engine) -> None:
        async with box(engine) as opened:
            assert (await outcome(opened, "x = bytearray(1 << 30)", TIMEOUT)).status == "oom"
            assert (await outcome(opened, "import os; os.kill(os.getpid(), 9)", TIMEOUT)).status == "died"

    async def test_a_container_killed_from_outside_is_a_death_and_the_end_of_the_box(self, engine: Engine) -> None:
        async with box(engine) as opened:
            async with anyio.create_task_group() as tasks:
                results = []

                async def run() -> None:
                    results.append(await opened.execute("import time; time.sleep(1000)", TIMEOUT))

                tasks.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(engine._api.kill, opened.info.container)
            (result,) = results
            assert (result.status, result.state_lost, opened.gone) == ("died", True, True)
            assert result.elapsed_s < TIMEOUT / 2
            with pytest.raises(SandboxGoneError):
                await opened.execute("1")


class TestRestart:
    async def test_many_deaths_in_a_row_are_survived(self, engine: Engine) -> None:
        async with box(engine) as opened:
            for number in range(6):
                assert (await opened.execute(f"import os; os._exit({number})", TIMEOUT)).status == "died"
            assert await value(opened, "1") == 1

    async def test_poison_left_for_the_next_kernel_has_no_effect(self, engine: Engine) -> None:
        code = """
import os
os.makedirs("/run/box/ipython/profile_default/startup", exist_ok=True)
for path in ("/run/box/ipython/profile_default/startup/00.py", "/tmp/sitecustomize.py", "/tmp/ipykernel.py",
             "/run/box/ipython/startup/00.py"):
    open(path, "w").write("poison = 1; import builtins; builtins.poison = 1")
for number in range(2, 9):
    os.symlink("/tmp/elsewhere", f"/run/box/k{number}-9")
os._exit(0)
"""
        async with box(engine) as opened:
            assert (await opened.execute(code)).status == "died"
            assert await value(opened, "import os; 'poison' in globals(), os.listdir('/tmp')") == (False, [])

    @otherwise_under_gvisor("running out of memory ends the box")
    async def test_the_files_of_a_killed_cell_are_gone_and_its_room_is_free(self, engine: Engine) -> None:
        async with box(engine) as opened:
            for _ in range(2):
                assert (await outcome(opened, FILL_SCRATCH, TIMEOUT)).status in ("died", "oom")
            half = POLICY.limits.tmp_mb << 19
            assert await value(opened, f"open('/tmp/half', 'wb').write(b'x' * {half})") == half


async def test_a_daemon_ends_with_the_cell_that_started_it(engine: Engine) -> None:
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(10 ** 6)
    os._exit(0)
os.wait()
None
"""
    async with box(engine) as opened:
        assert (await opened.execute(code)).ok
        # Killed before the cell's reply; how soon the supervisor has reaped it is the scheduler's business.
        await value(opened, "while sum(n.isdigit() for n in os.listdir('/proc')) > 2: time.sleep(0.01)\nTrue")
