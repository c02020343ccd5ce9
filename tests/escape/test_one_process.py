"""``allow_subprocess = false``: a box of one process, whatever the way; its twin has the key at true."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from orchestrator.errors import HardeningError
from orchestrator.policy import Policy
from orchestrator.sandbox import effective, hardening
from orchestrator.sandbox.engine import Engine
from tests.escape.catalogue import case
from tests.support.live import ATTEMPT, POLICY, TIMEOUT, ask, box, outcome, value
from tests.support.weakened import Config, with_seccomp

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

NO_SUBPROCESS = "sandbox.allow_subprocess=false"
HELD, DONE = "EPERM", "done"
WAYS = """
import multiprocessing, concurrent.futures
def child(start):
    pid = start()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
holding = ctypes.PyDLL(None, use_errno=True)  # a fork while another thread has the GIL would wait for it for ever
def raw(number, *arguments):
    pid = holding.syscall(number, *arguments)
    if pid == -1:
        raise OSError(ctypes.get_errno(), "syscall")
    return pid
def by_libc():
    pid, end = ctypes.c_int(), (ctypes.c_char_p * 2)(b"true", None)
    failure = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", None, None, end, end)
    if failure:
        raise OSError(failure, "posix_spawn")
    os.waitpid(pid.value, 0)
def by_shell():
    if libc.system(b"true") != 0:  # it says no more than a shell that was not found would
        raise OSError(errno.EPERM, "system")
def by_process(method):
    process = multiprocessing.get_context(method).Process(target=int)
    process.start()
    process.join()
def another_filter():
    import struct
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    raw(317, 1, 0, ctypes.create_string_buffer(struct.pack("H6xQ", 1, ctypes.addressof(allow))))
def exec_nothing():
    try: os.execv("/nowhere", ["x"])
    except FileNotFoundError: pass
def by_pool():
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        pool.submit(abs, -1).result()
"""
WAYS_TO_START = {
    "run": "subprocess.run(['true'])",
    "shell": "os.system('true')",
    "popen": "os.popen('true').read()",
    "output": "get_ipython().getoutput('true')",
    "shell line": "get_ipython().system('true')",
    "spawn": "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "exec": "exec_nothing()",
    "fork": "child(os.fork)",
    "process": "by_process('fork')",
    "spawned process": "by_process('spawn')",
    "pool": "by_pool()",
    "libc's shell": "by_shell()",
    "libc's spawn": "by_libc()",
}
RAW_WAYS_TO_START = {
    "raw fork": "child(lambda: raw(57))",
    "raw clone": "child(lambda: raw(56, 17, 0, 0, 0, 0))",
    "raw clone without a signal": "child(lambda: raw(56, 0x80000000, 0, 0, 0, 0))",
    # A filter of its own could hand its calls to a listener.
    "another filter": "another_filter()",
}


@case("KE44", controls="H19b", twin="H19b")
@pytest.mark.parametrize("way", WAYS_TO_START)
async def test_no_process_is_started_and_its_twin_starts_one(engine: Engine, way: str) -> None:
    code = f"{WAYS}\nattempt(lambda: {WAYS_TO_START[way]})"
    assert await ask(engine, code, NO_SUBPROCESS) == HELD
    assert await ask(engine, code) == DONE


@case("KE44", controls="H19b", twin="H19b")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64")
@pytest.mark.parametrize("way", RAW_WAYS_TO_START)
async def test_no_call_of_the_kernel_starts_one_either(engine: Engine, way: str) -> None:
    code = f"{WAYS}\nattempt(lambda: {RAW_WAYS_TO_START[way]})"
    if way == "raw clone without a signal":  # whose end nobody can wait for without __WALL
        code = code.replace("os.waitpid(pid, 0)", "os.waitpid(pid, 0x40000000)")
    assert await ask(engine, code, NO_SUBPROCESS) == HELD
    assert await ask(engine, code) == DONE


@case("KE44", controls="H19b", alone="the tests before it have the twins")
async def test_the_code_is_told_why(engine: Engine) -> None:
    async with box(engine, NO_SUBPROCESS) as opened:
        for code in ("import subprocess; subprocess.run(['ls'])", "import os; os.fork()", "!ls"):
            result = await opened.execute(code, TIMEOUT)
            assert result.error is not None
            assert result.error.name == "PermissionError"
            assert "sandbox.allow_subprocess" in result.error.value


@case(controls="H19b", alone="nothing is attacked")
async def test_what_needs_no_process_works(engine: Engine) -> None:
    code = """
import asyncio, concurrent.futures, sqlite3, tempfile, threading
import numpy, pandas
with concurrent.futures.ThreadPoolExecutor(4) as pool: found = list(pool.map(abs, range(-4, 0)))
thread = threading.Thread(target=found.append, args=(5,)); thread.start(); thread.join()
found.append(await asyncio.to_thread(lambda: 6))
found.append(int(pandas.DataFrame({"a": numpy.arange(4)})["a"].sum()))
found.append(sqlite3.connect(":memory:").execute("select 1").fetchone()[0])
with tempfile.TemporaryFile() as file: found.append(file.write(b"x"))
import platform, uuid; platform.platform(), platform.processor(), uuid.uuid1()
found
"""
    async with box(engine, NO_SUBPROCESS) as opened:
        assert await value(opened, code) == [4, 3, 2, 1, 5, 6, 6, 1, 1]


@case("KE44", controls="H19b", alone="the tests before it have the twins")
async def test_a_fresh_interpreter_is_as_confined_as_the_first(engine: Engine) -> None:
    code = f"{ATTEMPT}\n{WAYS}\nattempt(lambda: child(os.fork)), attempt(by_libc)"
    async with box(engine, NO_SUBPROCESS) as opened:
        assert (await outcome(opened, "import os; os._exit(0)", TIMEOUT)).status == "died"
        assert await value(opened, code) == (HELD, HELD)
        hang = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
        assert (await outcome(opened, hang, 0.5)).state_lost
        assert await value(opened, code) == (HELD, HELD)


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    made = hardening.container_config

    def config(*arguments: Any) -> Config:
        found = made(*arguments)
        change(found)
        return found

    monkeypatch.setattr(hardening, "container_config", config)


@case(controls="H19b H32", alone="the box without it is the one refused")
@pytest.mark.parametrize("setting", [NO_SUBPROCESS, "sandbox.freeze_between_cells=true"])
async def test_a_box_whose_interpreter_kept_what_it_was_to_give_up_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    changed(monkeypatch, lambda config: config.update(Cmd=hardening.arguments(Policy())))
    with pytest.raises(HardeningError) as caught:
        async with box(engine, setting):
            pytest.fail("code could have run")
    seen = [line.partition(" ")[0] for line in caught.value.controls]
    assert seen == ["H19b", "H19b"]  # from the engine, and from inside


@case(controls="H19b H32", alone="the box without it is the one refused")
async def test_a_box_whose_interpreter_cannot_confine_itself_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = effective.seccomp().replace('"seccomp"', '"no_such_call"')
    changed(monkeypatch, with_seccomp(hardening.seccomp_profile(POLICY, without)))
    with pytest.raises(HardeningError, match="H19b"):
        async with box(engine, NO_SUBPROCESS):
            pytest.fail("code could have run")
