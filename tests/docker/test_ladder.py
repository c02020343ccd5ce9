"""A cell always ends: within its timeout and 3 s, told apart by how, and the next one runs."""

from __future__ import annotations

import anyio
import pytest

from orchestrator.errors import SandboxGoneError
from orchestrator.sandbox.engine import Engine
from tests.support.live import POLICY, TIMEOUT, box, outcome, value
from tests.support.policies import otherwise_under_gvisor

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

SHORT = 0.5
KEPT, LOST = False, True


LEAVES_ITS_GROUP = """
import os, signal, time
for n in range(20):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(1000)
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(1000)
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


class TestHangs:
    @pytest.mark.parametrize(
        ("code", "state_lost"),
        [
            ("while True: pass", KEPT),
            ("import time; time.sleep(10 ** 6)", KEPT),
            ("10 ** 10 ** 8", KEPT),
            ("import re; re.match('(a+)+$', 'a' * 64 + 'b')", KEPT),
            ("import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", KEPT),
            ("import subprocess; subprocess.run(['sleep', '1000'])", KEPT),
            ("!sleep 1000", KEPT),
            ("import asyncio; await asyncio.sleep(10 ** 6)", KEPT),
            ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", LOST),
            ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", LOST),
            ("sum(range(10 ** 13))", LOST),
            ("import itertools; max(itertools.repeat(1))", LOST),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", LOST),
            ("import os; os.kill(0, 19)", LOST),
            (LEAVES_ITS_GROUP, LOST),
        ],
        ids=[
            "loop",
            "sleep",
            "power",
            "regex",
            "deadlock",
            "child",
            "shell",
            "await",
            "ignores interrupts",
            "catches everything",
            "holds the GIL",
            "holds it in C",
            "stops itself",
            "stops its group",
            "leaves its group",
        ],
    )
    async def test_it_ends_and_the_next_cell_runs(self, engine: Engine, code: str, state_lost: bool) -> None:  # noqa: FBT001
        async with box(engine, context="the context") as opened:
            await opened.execute("x = 1")
            result = await outcome(opened, code, SHORT)
            assert (result.status, result.state_lost) == ("timeout", state_lost), result
            assert await value(opened, "'x' in globals(), context") == (not state_lost, "the context")
            processes = "import os; sum(name.isdigit() for name in os.listdir('/proc'))"
            assert not state_lost or await value(opened, processes) == 2


class TestDeaths:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("import os; os._exit(3)", "exit code 3"),
            ("import ctypes; ctypes.string_at(0)", "signal 11"),
            ("import os; os.abort()", "signal 6"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
            ("import os\ntry: os.kill(-1, 9)\nfinally: os.kill(os.getpid(), 9)", "signal 9"),
            ("import os; os.close(3); import time; time.sleep(1000)", "signal 9"),
            ("import os; os.closerange(0, 65536)", "signal"),  # the supervisor's, or libzmq's own abort
            ("import os; os.write(3, b'\\xff' * 100); import time; time.sleep(1000)", "signal 9"),
        ],
        ids=["exit", "segfault", "abort", "kill", "kill all", "closes its line", "closes all", "breaks its line"],
    )
    async def test_it_is_told_at_once_and_the_next_cell_runs(self, engine: Engine, code: str, words: str) -> None:
        async with box(engine, context="the context") as opened:
            result = await outcome(opened, code, TIMEOUT)
            assert (result.status, result.state_lost) == ("died", True)
            assert words in result.detail
            assert result.elapsed_s < TIMEOUT / 2
            assert await value(opened, "context") == "the context"

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
        ],
        ids=["many pieces", "many threads", "one piece"],
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
