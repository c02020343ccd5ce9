"""``freeze_between_cells``: while no cell is open, a box runs nothing but its supervisor; its twin has the key off."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import docker.errors
import pytest
from anyio import to_thread

from orchestrator import bundle
from orchestrator.interpreter import Sandbox
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from sandbox_image.wire import Kind
from tests.support.live import LADDER_S, REMOVAL_S, TIMEOUT, box, outcome, value
from tests.support.policies import otherwise_under_gvisor

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

FREEZE = "sandbox.freeze_between_cells=true"
SHORT = 0.5
# Nanoseconds of processor time: what the twin must use before the two are compared, and what the frozen box may use in
# the same time, from when it has come to rest: Linux books a thread's time a little after it ran.
MOVED, STILL = 300_000_000, 30_000_000

SPIN = """
import ctypes, os, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def spin(also=lambda: None):
    while True: also()
def left(also=lambda: None):
    threading.Thread(target=spin, args=(also,), daemon=True).start()
def tried(what):
    try: return what()
    except OSError: return None
left()
"""
# What a cell leaves running beside a thread that spins: first what only goes on, then what tries to wake the stopped.
LEFT_BEHIND = {
    "a thread": "",
    "threads": "for _ in range(8): left()",
    "a child": "os.fork() or spin()",
    "children": "for _ in range(4): os.fork() or spin()",
    "a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: spin()\n    os._exit(0)\nNone",
    "a child whose first thread is gone": "if os.fork() == 0:\n    left()\n    libc.syscall(60, 0)",
    "a thread that wakes": "left(lambda: tried(lambda: os.kill(os.getpid(), signal.SIGCONT)))",
    "a child that wakes": """
parent = os.getpid()
if os.fork() == 0: spin(lambda: tried(lambda: os.kill(parent, signal.SIGCONT)))
""",
    "children that wake one another": """
for _ in range(4): os.fork()
if os.getpid() != os.getsid(0): spin(lambda: tried(lambda: os.kill(-1, signal.SIGCONT)))
""",
    "children whose end wakes": """
for _ in range(8):
    if libc.syscall(56, int(signal.SIGCONT), 0, 0, 0, 0) == 0: spin()
""",
    # A group of processes that the end of one orphans is sent SIGHUP and SIGCONT if one in it is stopped (setpgid(2)).
    "a group that is orphaned": """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)
    for _ in range(4):
        if os.fork() == 0:
            os.setpgid(0, os.getsid(0))
            spin()
    spin()
time.sleep(0.1)
""",
}
NEEDS_NUMBERS = {"a child whose first thread is gone", "children whose end wakes"}


def processor_time(engine: Engine, opened: Sandbox) -> int:
    """Return the nanoseconds that a box's cgroup has used, all of its processes together."""
    found: Any = engine._api.stats(opened.info.container, stream=False, one_shot=True)
    return int(found["cpu_stats"]["cpu_usage"]["total_usage"])


async def used_meanwhile(engine: Engine, frozen: Sandbox, free: Sandbox) -> int:
    """Return what ``frozen`` uses while ``free`` uses :data:`MOVED`."""

    def compare() -> int:
        deadline = time.monotonic() + TIMEOUT
        before, still = -1, processor_time(engine, frozen)
        while before != still:
            assert time.monotonic() < deadline, "the frozen box does not come to rest"
            before, still = still, processor_time(engine, frozen)
        moving = processor_time(engine, free)
        while processor_time(engine, free) - moving < MOVED:
            assert time.monotonic() < deadline, "the twin did not move"
        return processor_time(engine, frozen) - still

    return await to_thread.run_sync(compare)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.skipif(platform.machine() != "x86_64", reason="it makes calls by their number")]
        )
        if name in NEEDS_NUMBERS
        else name
        for name in LEFT_BEHIND
    ],
)
async def test_nothing_runs_between_cells_and_in_its_twin_something_does(engine: Engine, name: str) -> None:
    async with box(engine, FREEZE) as frozen, box(engine) as free:
        for opened in (frozen, free):
            assert (await outcome(opened, SPIN + LEFT_BEHIND[name], TIMEOUT)).ok
        assert await used_meanwhile(engine, frozen, free) < STILL
        assert await value(frozen, "1 + 1") == 2


@otherwise_under_gvisor("the host does not see the threads of a box")
async def test_a_box_that_waits_for_its_first_cell_is_stopped(engine: Engine) -> None:
    async with box(engine, FREEZE, context="the context") as frozen:
        assert await states(engine, frozen) == {"T"}
        assert await value(frozen, "context") == "the context"
        assert await states(engine, frozen) == {"T"}
    async with box(engine) as free:
        assert "T" not in await states(engine, free)


async def states(engine: Engine, opened: Sandbox) -> set[str]:
    """Return the states of all threads of a box but its supervisor's, as the host sees them."""

    def look() -> set[str]:
        pids = [int(row[0]) for row in engine._api.top(opened.info.container, ps_args="-o pid")["Processes"]]
        supervisor = engine.inspect(opened.info.container)["State"]["Pid"]
        tasks = [task for pid in pids if pid != supervisor for task in Path(f"/proc/{pid}/task").iterdir()]
        return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}

    return await to_thread.run_sync(look)


class Desk:
    """Refuses queries, but for those that say ``hang``: it never answers them, and once one has arrived, ``budget``.

    Attributes:
        cells: the cell of each call that arrived.
    """

    def __init__(self) -> None:
        self.cells: list[int | None] = []
        self._more, self._hanging = anyio.Event(), anyio.Event()

    async def __call__(self, call: RpcCall) -> RpcReply:
        self.cells.append(call.cell)
        self._more.set()
        self._more = anyio.Event()
        if call.body == "hang":
            self._hanging.set()
            await anyio.sleep_forever()
        if call.method == "budget":
            await self._hanging.wait()
            return RpcReply()
        raise RpcRefusal("no_open_cell", "refused")

    async def heard(self, cell: int | None, times: int) -> None:
        """Wait until calls of a cell have arrived."""
        with anyio.fail_after(TIMEOUT):
            while self.cells.count(cell) < times:
                await self._more.wait()


# The functions of the box would refuse these by themselves, if the cell had left them as they were.
CALLING = """
get_ipython().kernel.guest_api.end_cell = lambda: None
import threading
def call():
    while True:
        try: llm_query("x")
        except QueryRefused: pass
threading.Thread(target=call, daemon=True).start()
"""
HANGING = """
import threading
reasons = []
def hang():
    try: llm_query("hang")
    except QueryRefused as error: reasons.append(error.reason)
thread = threading.Thread(target=hang)
thread.start()
budget()
"""


class TestCalls:
    async def test_none_are_made_between_cells_and_its_twin_makes_them(self, engine: Engine) -> None:
        still, moving = Desk(), Desk()
        async with box(engine, FREEZE, rpc=still) as frozen, box(engine, rpc=moving) as free:
            for opened in (frozen, free):
                assert (await outcome(opened, CALLING, TIMEOUT)).ok
            await moving.heard(None, times=100)
            assert None not in still.cells
            assert await value(frozen, "1") == 1
            assert None not in still.cells

    async def test_an_answer_that_comes_between_cells_is_there_in_the_next(self, engine: Engine) -> None:
        async with box(engine, FREEZE, rpc=Desk()) as frozen:
            assert (await outcome(frozen, HANGING, TIMEOUT)).ok
            assert await value(frozen, f"thread.join({TIMEOUT})\nreasons") == ["cell_over"]


# A cell that says it is over and goes on: the kernel's own socket is there for all the code in its process.
FORGED_END = """
kernel = get_ipython().kernel
reply = {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}
ident, parent = kernel._parent_ident["shell"], kernel.get_parent("shell")
kernel.session.send(kernel.shell_stream, "execute_reply", reply, parent, ident=ident)
kernel.shell_stream.flush()
while True:
    print("after the end")
    try: llm_query("x")
    except QueryRefused: pass
"""


class TestForgedEnd:
    async def test_the_code_behind_it_is_stopped_and_its_twin_gains_nothing(self, engine: Engine) -> None:
        still, moving = Desk(), Desk()
        async with box(engine, FREEZE, rpc=still) as frozen, box(engine, rpc=moving) as free:
            for opened in (frozen, free):
                result = await outcome(opened, FORGED_END, TIMEOUT)
                assert result.ok  # by its own word
            assert await used_meanwhile(engine, frozen, free) < STILL
            await moving.heard(None, times=10)
            assert None not in still.cells
            for opened in (frozen, free):
                # The code that pretended to be over is in the way of the next cell, whose time it uses up; it is ended
                # with that one, and no output of it is taken for that of another.
                result = await outcome(opened, "print('mine')", SHORT)
                assert result.status == "timeout"
                assert "after the end" not in result.stdout
                assert await value(opened, "1") == 1


LEAVES_ITS_GROUP = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
for n in range(20):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
time.sleep(1000)
"""


class TestLadder:
    @pytest.mark.parametrize(
        ("code", "status", "state_lost"),
        [
            ("while True: pass", "timeout", False),
            ("import time; time.sleep(1000)", "timeout", False),
            ("import asyncio; await asyncio.sleep(1000)", "timeout", False),
            ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", "timeout", True),
            ("sum(range(10 ** 13))", "timeout", True),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout", True),
            ("import os; os._exit(3)", "died", True),
            (LEAVES_ITS_GROUP, "timeout", True),
        ],
        ids=[
            "loop",
            "sleep",
            "await",
            "ignores interrupts",
            "holds the GIL",
            "stops itself",
            "exits",
            "leaves its group",
        ],
    )
    async def test_a_cell_ends_as_in_any_box_and_the_next_one_runs(
        self,
        engine: Engine,
        code: str,
        status: str,
        state_lost: bool,  # noqa: FBT001
    ) -> None:
        async with box(engine, FREEZE, context="the context") as frozen:
            await frozen.execute("x = 1")
            result = await outcome(frozen, code, SHORT if status == "timeout" else TIMEOUT)
            assert (result.status, result.state_lost) == (status, state_lost)
            assert await value(frozen, "context, 'x' in globals()") == ("the context", not state_lost)

    async def test_an_interrupt_that_comes_too_late_meets_no_later_cell(self, engine: Engine) -> None:
        async with box(engine, FREEZE) as frozen:
            await frozen.execute("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")
            await frozen._client._order(Kind.INTERRUPT)
            assert await value(frozen, "import time; time.sleep(0.2); 1") == 1

    @otherwise_under_gvisor("a thread whose starter waits for its end is stopped like any other")
    async def test_what_cannot_be_stopped_is_ended(self, engine: Engine) -> None:
        # The starter of a thread by CLONE_VFORK waits in the kernel until the thread ends, and is not stopped there.
        code = """
import ctypes, mmap, threading
libc = ctypes.CDLL(None)
stack = mmap.mmap(-1, 1 << 16)
top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 16)
thread_by_vfork = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x4000
start = lambda: libc.clone(libc.pause, ctypes.c_void_p(top), thread_by_vfork, None)
threading.Thread(target=start, daemon=True).start()
import time; time.sleep(0.2)
"""
        async with box(engine, FREEZE) as frozen, box(engine) as free:
            assert (await outcome(free, code, TIMEOUT)).ok
            result = await outcome(frozen, code, TIMEOUT)
            assert (result.status, result.state_lost) == ("died", True)
            assert await value(frozen, "1") == 1


OWNER = """
import anyio
from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
async def main():
    policy = Policy().override(["limits.memory_mb=384", "sandbox.freeze_between_cells=true"])
    async with Sandbox.open(policy) as opened:
        await opened.execute("1")
        print(opened.info.container, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


class TestEnd:
    async def test_a_frozen_box_closes_like_any_other(self, engine: Engine) -> None:
        async with box(engine, FREEZE) as frozen:
            await frozen.execute(SPIN)
            began = anyio.current_time()
        assert anyio.current_time() - began < LADDER_S

    async def test_a_frozen_box_whose_owner_is_killed_is_gone_at_once(self, engine: Engine) -> None:
        process = await anyio.open_process(
            [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, cwd=str(bundle.path("."))
        )
        assert process.stdout is not None
        name = (await process.stdout.receive()).decode().strip()
        assert engine.inspect(name)["State"]["Running"]
        process.send_signal(signal.SIGKILL)
        await process.aclose()

        def removed() -> None:
            with suppress(docker.errors.NotFound):
                engine._api.wait(name, timeout=REMOVAL_S, condition="removed")

        with anyio.fail_after(LADDER_S):
            await to_thread.run_sync(removed)
