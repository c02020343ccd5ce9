"""A cell that is over is over: what it leaves neither lives on, nor prints into, nor asks in the name of the next."""

from __future__ import annotations

import ast

import anyio
import pytest

from orchestrator.interpreter import Sandbox
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from tests.support.live import LADDER_S, POLICY, TIMEOUT, box, outcome, value
from tests.support.weakened import weakened_box, with_supervisor

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

COUNT = "import os; sum(name.isdigit() for name in os.listdir('/proc'))"
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(10 ** 6)
    os._exit(0)
os.wait()
None
"""
CHAIN = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        if os.fork(): os._exit(0)
time.sleep(0.1)
"""
# Each has its child continued when it is killed itself, by the kernel: prctl(2), PR_SET_PDEATHSIG.
CONTINUED_CHAIN = """
import ctypes, os, signal, time
prctl = ctypes.CDLL(None).prctl
if os.fork() == 0:
    while True:
        prctl(1, signal.SIGCONT, 0, 0, 0)
        if os.fork(): time.sleep(0.001)
time.sleep(0.1)
"""


async def alone(opened: Sandbox) -> None:
    """Wait until supervisor and REPL are all there is; each waits for its children, the REPL before each cell."""
    with anyio.fail_after(TIMEOUT):
        while await value(opened, COUNT) != 2:
            pass


class TestProcesses:
    @pytest.mark.parametrize("code", [DAEMON, CHAIN], ids=["daemon (TE18)", "chain of forks"])
    async def test_they_end_with_the_cell_that_started_them(self, engine: Engine, code: str) -> None:
        async with box(engine) as opened:
            assert (await opened.execute("kept = 1")).ok
            assert (await outcome(opened, code, TIMEOUT)).ok
            await alone(opened)
            assert await value(opened, "kept") == 1

    async def test_those_that_cannot_be_ended_one_by_one_take_the_repl_along(self, engine: Engine) -> None:
        # As much memory as all of them may need, so that it is not for want of it that they end.
        async with box(engine, "limits.memory_mb=2048") as opened:
            result = await outcome(opened, CONTINUED_CHAIN, TIMEOUT)
            assert (result.status, result.state_lost) in (("ok", False), ("died", True))
            await alone(opened)
        gives_up = (
            "from sandbox_image import processes; "
            "supervisor.end_others = lambda kernel: not processes._processes() - {1, kernel}"
        )
        async with weakened_box(POLICY, with_supervisor(gives_up)) as opened:
            result = await outcome(opened, DAEMON + "print('said')", TIMEOUT)
            assert (result.status, result.state_lost, result.stdout) == ("died", True, "said\n")
            assert "could not be ended one by one" in result.detail
            await alone(opened)

    @pytest.mark.usefixtures("engine")
    async def test_nothing_else_ends_them(self) -> None:
        async with weakened_box(POLICY, with_supervisor("supervisor.end_others = lambda kernel: True")) as opened:
            assert (await opened.execute(DAEMON)).ok
            assert await value(opened, COUNT) == 3

    HOLD = """
import multiprocessing, os, subprocess
sleeps, failed = subprocess.Popen(["sleep", "1000"]), subprocess.Popen(["sh", "-c", "exit 3"])
process = multiprocessing.get_context("fork").Process(target=__import__("time").sleep, args=(1000,))
process.start()
forked = os.fork()
if forked == 0:
    __import__("time").sleep(1000)
os.waitid(os.P_PID, failed.pid, os.WEXITED | os.WNOWAIT)
None
"""
    ASK = """
process.join()
try: end = os.waitpid(forked, 0)[1]
except ChildProcessError: end = "ended"
sleeps.wait(), failed.wait(), process.exitcode, process.is_alive(), end
"""

    async def test_whoever_holds_one_is_told_how_it_ended(self, engine: Engine) -> None:
        async with box(engine) as opened:
            assert (await opened.execute(self.HOLD)).ok
            await alone(opened)
            assert await value(opened, self.ASK) == (-9, 3, -9, False, "ended")

    async def test_without_that_care_a_kill_would_be_called_a_success(self, engine: Engine) -> None:
        async with box(engine) as opened:
            forget = "get_ipython().kernel.do_execute.__globals__['_popens'].clear()"
            assert (await opened.execute(self.HOLD + forget)).ok
            await alone(opened)
            assert await value(opened, "sleeps.wait()") == 0

    MAKE = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
executor, pool = ProcessPoolExecutor(2, mp_context=get_context("fork")), get_context("fork").Pool(2)
threads = ThreadPool(2)
pool.map(abs, executor.map(abs, threads.map(abs, [-1, -2])))
"""

    async def test_a_pool_of_processes_refuses_work_and_one_of_threads_works_on(self, engine: Engine) -> None:
        async with box(engine) as opened:
            assert await value(opened, self.MAKE) == [1, 2]
            for code, error in (("pool", "ValueError"), ("executor", "BrokenProcessPool")):
                result = await outcome(opened, f"list({code}.map(abs, [-1]))", TIMEOUT / 2)
                assert result.error is not None
                assert result.error.name == error
            assert await value(opened, "threads.map(abs, [-1])") == [1]


LEAVE = """
import _thread, asyncio, threading, time
asked, said = {}, {}
def talk(name):
    while True:
        said[name] = said.get(name, 0) + 1
        print("from", name, flush=True)
        try: llm_query("late")
        except QueryRefused as error: asked.setdefault(name, set()).add(error.reason)
        time.sleep(0.001)
async def task():
    while True:
        said["task"] = said.get("task", 0) + 1
        print("from task")
        try: llm_query("late")
        except QueryRefused as error: asked.setdefault("task", set()).add(error.reason)
        await asyncio.sleep(0.001)
"""
START = """
threading.Thread(target=talk, args=("thread",)).start()
_thread.start_new_thread(talk, ("raw",))
from concurrent.futures import ThreadPoolExecutor
executor = ThreadPoolExecutor(1)
executor.submit(talk, "executor")
running = asyncio.create_task(task())
"""
NEXT = """
before = dict(said)
for _ in range(100): await asyncio.sleep(0.005)
print("only this")
sorted(name for name in said if said[name] > before[name]), [sorted(asked[name]) for name in sorted(asked)]
"""


class Desk:
    """Answers the calls of cells, and notes who asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int | None, str]] = []
        self.late = anyio.Event()

    async def __call__(self, call: RpcCall) -> RpcReply:
        self.asked.append((call.cell, call.body))
        if call.cell is None:
            self.late.set()
        if call.cell is None:
            raise RpcRefusal("no_open_cell", "there is no open cell")
        return RpcReply({}, "answer")


class TestThreads:
    async def test_what_they_print_and_ask_later_is_nobodys(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            assert (await opened.execute(LEAVE + START)).ok
            names = ["executor", "raw", "task", "thread"]
            for _ in range(2):
                result = await opened.execute(NEXT)
                assert (result.status, result.stdout) == ("ok", "only this\n")
                # They go on, all of them, and are refused.
                assert ast.literal_eval(result.result or "") == (names, [["cell_over"]] * 4)
            assert {cell for cell, _ in desk.asked} <= {1, None}

    async def test_without_a_cell_to_belong_to_they_would_speak_in_the_next(self, engine: Engine) -> None:
        desk = Desk()
        forget = """
from contextvars import Context
_thread.start_new_thread(lambda: Context().run(talk, "nobody"), ())
"""
        async with box(engine, rpc=desk) as opened:
            assert (await opened.execute(LEAVE + forget)).ok
            result = await opened.execute("before = 0\nfor _ in range(100): await asyncio.sleep(0.005)")
            assert "from nobody" in result.stdout
            assert (2, "late") in desk.asked

    async def test_a_thread_works_on_in_the_next_cell(self, engine: Engine) -> None:
        start = """
import threading
go, result = threading.Event(), []
def work():
    go.wait()
    result.append(6 * 7)
worker = threading.Thread(target=work)
worker.start()
"""
        async with box(engine) as opened:
            assert (await opened.execute(start)).ok
            assert await value(opened, "go.set(); worker.join(); result") == [42]

    # More threads than there are descriptors, one after the other; then many at once that wait for what they said.
    PRINT = """
import threading
for number in range(700):
    thread = threading.Thread(target=print, args=(number,), kwargs={"flush": True})
    thread.start()
    thread.join()
def say():
    for _ in range(50): print(end="x", flush=True)
threads = [threading.Thread(target=say) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

    async def test_any_number_of_them_can_print(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await outcome(opened, self.PRINT, TIMEOUT)
            assert (result.status, result.stderr) == ("ok", "")
            assert result.stdout.count("x") == 1000
            assert result.stdout.split("x")[0].split() == [str(number) for number in range(700)]

    async def test_with_a_socket_for_each_they_could_not(self, engine: Engine) -> None:
        as_in_ipykernel = """
from ipykernel.iostream import IOPubThread
from ipykernel.kernelapp import IPKernelApp
IPKernelApp.instance().iopub_thread.__class__ = IOPubThread
"""
        async with box(engine) as opened:
            assert (await opened.execute(as_in_ipykernel)).ok
            result = await opened.execute(self.PRINT, 5)
            assert not result.ok or result.stdout.count("x") < 1000 or result.stderr


FORGE = """
import time
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
kernel, parent = app.kernel, app.kernel.get_parent("shell")
reply = {"status": "ok", "execution_count": 1}
kernel.session.send(kernel.shell_stream, "execute_reply", reply, parent, ident=kernel._shell_parent_ident.get())
kernel.session.send(app.iopub_thread, "status", {"execution_state": "idle"}, parent=parent)
"""


class TestForgedEnd:
    async def test_it_gains_nothing(self, engine: Engine) -> None:
        desk = Desk()
        run_on = """
while True:
    print("still here", flush=True)
    try: llm_query("late")
    except QueryRefused as error: reason = error.reason
    time.sleep(0.001)
"""
        async with box(engine, rpc=desk) as opened:
            first = await outcome(opened, FORGE + run_on, TIMEOUT)
            assert first.status == "ok"
            assert first.elapsed_s < TIMEOUT / 2  # it was believed, and so the cell is over
            with anyio.fail_after(TIMEOUT):
                await desk.late.wait()
            # Whatever it asks for now is refused, for the host has no cell open.
            assert desk.asked[-1] == (None, "late")
            # It keeps the REPL from the next cell, until that one's deadline.
            second = await outcome(opened, "mine = 1; print('mine')", 0.5)
            assert (second.status, second.ladder[:1]) == ("timeout", ("interrupt",))
            assert "still here" not in second.stdout
            assert second.elapsed_s < 0.5 + LADDER_S
            await alone(opened)
            assert (await opened.execute("print('mine')")).stdout == "mine\n"
