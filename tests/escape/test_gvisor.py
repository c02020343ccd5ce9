"""Boxes under gVisor: asked of the box and of the host, whatever profile the other live tests run with."""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from orchestrator.errors import EngineUnavailableError, SandboxGoneError
from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor, hardening, leftovers
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.sandbox.engine import Engine
from tests.escape import sweep
from tests.escape.catalogue import case
from tests.escape.forbidden import ATTEMPTS
from tests.support.live import ATTEMPT, LADDER_S, TIMEOUT, outcome, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

POLICY = Policy.load("gvisor").override(["limits.memory_mb=640", "limits.context_mb=32", "limits.pids=32"])
RUNTIME = POLICY.sandbox.runtime
SHORT = 0.5
# Attempts for which gVisor lacks something, made without it: files of namespaces, and files without a name.
AS_IT_CAN_BE_ASKED = {
    "setns": ("invoke('setns', -1, 0)", "EPERM"),
    "ioctl NS_GET_USERNS": ("invoke('ioctl', 0, 0xB701, 0)", "EPERM"),
    "splice": ("invoke('splice', -1, 0, -1, 0, 1, 0)", "EPERM"),
    "sendfile": ("invoke('sendfile', -1, -1, 0, 1)", "EPERM"),
    "copy_file_range": ("invoke('copy_file_range', -1, 0, -1, 0, 1, 0)", "EPERM"),
    # It has no 32-bit calls. What comes by that door is one of its own, through the same filter, or a fault: 39 is
    # getpid, 41 socket, 165 mount.
    "int 0x80 getpid": ("assert int80(39) == os.getpid()", "ok|SIGSYS|SIGSEGV|SIGILL"),
    "int 0x80 socketcall AF_ALG": ("int80(165)", "EPERM|SIGSYS|SIGSEGV|SIGILL"),
    "int 0x80 socket AF_INET": ("int80(41)", "EPERM|SIGSYS|SIGSEGV|SIGILL"),
    "x32 getpid": ("if raw(39 | 1 << 30)[0] == -1: raise OSError(38, '')", "ENOSYS|SIGSYS"),
}
GONE_S = 15.0


@pytest.fixture(scope="module")
def gvisor_engine(live_engine: Engine) -> Engine:
    """The engine, if it has the runtime; says loudly what was not tested if it has not."""
    if RUNTIME not in live_engine.info().runtimes:
        pytest.skip(f"NOTHING OF GVISOR WAS TESTED: the engine has no runtime {RUNTIME!r}; run .ci/gvisor")
    return live_engine


@pytest.fixture
def engine(gvisor_engine: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A connection for a test after which nothing of its boxes is left, container or process."""
    made: list[str] = []

    def create(config: dict[str, Any], name: str) -> str:
        made.append(Engine.create(engine, config, name))
        return made[-1]

    monkeypatch.setattr(engine, "create", create)
    yield engine
    assert made == [container for container in made if _ended(container)]


@asynccontextmanager
async def box(engine: Engine, *settings: str, context: str | None = None) -> AsyncIterator[Sandbox]:
    async with Sandbox.open(POLICY.override(list(settings)), context, engine=engine) as opened:
        yield opened


def _processes(container: str) -> list[int]:
    """Return those on this host that work for a container; a remote engine's are out of sight."""
    return [pid for pid in leftovers._pids() if leftovers._works_for(pid, container)]


def _ended(container: str) -> bool:
    """Wait a while for the end of all processes of a container."""
    deadline = time.monotonic() + GONE_S
    for pid in _processes(container):
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid)) as handle:
            select.select([handle], [], [], max(0.0, deadline - time.monotonic()))  # readable when it has ended
    return not _processes(container)


def _sandbox_process(engine: Engine, container: str) -> int:
    """Return the process that is gVisor's kernel of a box, or skip: it is out of sight of a remote engine's client."""
    state = engine.inspect(container)
    if state["State"]["Pid"] not in _processes(state["Id"]):
        pytest.skip("the engine's processes are on another machine")
    return int(state["State"]["Pid"])


def _host(pid: int, file: str) -> str:
    return Path(f"/proc/{pid}/{file}").read_text(encoding="ascii")


class TestKernel:
    @case(controls="H31", alone="the test after it has the twin")
    async def test_the_box_says_that_its_kernel_is_gvisors(self, engine: Engine) -> None:
        async with box(engine) as opened:
            assert gvisor.serves({"kernel": opened.info.kernel})
            assert opened.info.runtime == RUNTIME
            assert await value(opened, "open('/proc/version').read().strip()") == opened.info.kernel

    @case("HI06", controls="H31", twin="H31")
    async def test_it_tells_nothing_of_the_hosts(self, engine: Engine) -> None:
        release = engine.info().kernel
        everything = """
import glob, platform
texts = [str(platform.uname())]
for pattern in ("/proc/*", "/proc/sys/kernel/*", "/sys/kernel/*", "/sys/class/*/*"):
    for path in glob.glob(pattern):
        try:
            texts.append(open(path, errors="replace").read(1 << 16))
        except OSError:
            pass
"\\n".join(texts)
"""
        async with box(engine, "limits.output_kb=1024") as opened:
            assert release not in await value(opened, everything)
        # The twin: without gVisor the same look finds it at once.
        async with box(engine, "limits.output_kb=1024", "sandbox.runtime=''") as opened:
            assert release in await value(opened, everything)

    @case(controls="H32", alone="nothing is attacked")
    async def test_every_control_is_reported_and_what_cannot_be_seen_is_said_so(self, engine: Engine) -> None:
        async with box(engine) as opened:
            controls = opened.info.controls
            assert set(controls) == {control.id for control in CONTROLS}
            assert {name for name, found in controls.items() if "held" not in found} <= {"P1"}
            for name, difference in gvisor.DIFFERENCES.items():
                assert difference.why in controls[name]

    @case(controls="H31", alone="nothing is attacked")
    async def test_a_runtime_that_the_engine_lacks_is_one_clear_error(self, engine: Engine) -> None:
        with pytest.raises(
            EngineUnavailableError, match=r"no runtime 'runsc-none': register it .*GVISOR.md.*runsc"
        ) as e:
            async with box(engine, "sandbox.runtime=runsc-none"):
                pass
        assert "\n" not in str(e.value)


class TestHost:
    """What cannot be seen from inside, seen from the host."""

    @case("RE01", "RE06", controls="H13a H15 H16 H17", alone="what the host has set is read")
    async def test_the_limits_are_on_gvisors_processes(self, engine: Engine) -> None:
        limits = POLICY.limits
        async with box(engine) as opened:
            pid = _sandbox_process(engine, opened.info.container)
            assert _cgroup(pid, "memory", "memory.max", "memory.limit_in_bytes") == str(limits.memory_mb << 20)
            assert _cgroup(pid, "pids", "pids.max", "pids.max") == str(limits.pids * gvisor.HOST_TASKS)
            quota = _cgroup(pid, "cpu", "cpu.max", "cpu.cfs_quota_us").split()[0]
            assert quota == str(int(limits.cpus * hardening.CPU_PERIOD_US))
            assert int(_host(pid, "oom_score_adj")) == hardening.OOM_SCORE_ADJ

    @case(controls="H31", alone="what the host has set is read")
    async def test_gvisor_itself_is_confined(self, engine: Engine) -> None:
        async with box(engine) as opened:
            status = _host(_sandbox_process(engine, opened.info.container), "status").splitlines()
            fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
            assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
            assert fields["Uid"].split()[0] != "0"


def _cgroup(pid: int, controller: str, v2: str, v1: str) -> str:
    for line in _host(pid, "cgroup").splitlines():
        number, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}/{v1}").read_text(encoding="ascii").strip()
        if number == "0" and Path(f"/sys/fs/cgroup{path}/{v2}").exists():
            return Path(f"/sys/fs/cgroup{path}/{v2}").read_text(encoding="ascii").strip()
    raise AssertionError(f"no cgroup for {controller}")


class TestContainment:
    @case("KE01", "KE02", "KE06", "NE02", controls="H2 H19", alone="the suite under gVisor has the twins")
    async def test_our_own_profile_is_in_force_and_libc_falls_back_as_elsewhere(self, engine: Engine) -> None:
        code = """
CLONE3, UNSHARE, MOUNT, IO_URING_SETUP, MEMFD_CREATE = 435, 272, 165, 425, 319
[syscall(n, 0, 0, 0, 0, 0) for n in (CLONE3, UNSHARE, MOUNT, IO_URING_SETUP, MEMFD_CREATE)] + [
    attempt(lambda: socket.socket(family)) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, 38, 40)
] + [attempt(lambda: socket.socket(socket.AF_UNIX))]
"""
        async with box(engine) as opened:
            if await value(opened, "import platform; platform.machine()") != "x86_64":
                pytest.skip("the numbers of the calls are those of x86_64")
            assert await value(opened, ATTEMPT + code) == ["ENOSYS", *["EPERM"] * 9, "done"]

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64")
    @case(
        *("KE01", "KE02", "KE03", "KE04", "KE05", "KE06", "KE07", "KE08", "KE09", "KE11", "KE12", "KE15", "KE16"),
        *("KE21", "KE24", "FS04", "FS05", "FS06", "FS07", "FS08", "FS19", "DL03", "DL05", "NE07", "NE08"),
        controls="H2 H3 H19 H21",
        alone="the suite on Linux has the twins",
    )
    async def test_every_forbidden_call_is_refused_as_on_linux(self, engine: Engine) -> None:
        wanted = {attempt.name: (attempt.code, attempt.refusal) for attempt in ATTEMPTS} | AS_IT_CAN_BE_ASKED
        codes = [code for code, _ in wanted.values()]
        async with box(engine, "limits.cell_timeout_s=60.0") as opened:
            said = await sweep.run_in(opened, f"found = [attempt(code) for code in {codes}]")
        found = dict(zip(wanted, said, strict=True))
        assert {name: said for name, said in found.items() if said not in wanted[name][1].split("|")} == {}

    @case("FS02", "FS18", "RE03", controls="H8 H9", alone="the suite under gVisor has the twins")
    async def test_its_files_are_the_images_and_scratch_is_sized_and_not_executable(self, engine: Engine) -> None:
        code = """
def fill():
    with open("/tmp/full", "wb") as file:
        for _ in range(1 << 10): file.write(bytes(1 << 20))
def run():
    with open("/tmp/program", "w") as file: file.write("#!/bin/sh\\n")
    os.chmod("/tmp/program", 0o700)
    subprocess.run(["/tmp/program"])
[attempt(lambda: open("/etc/x", "w")), attempt(lambda: open("/opt/box/x", "w")), attempt(run), attempt(fill)]
"""
        async with box(engine, "limits.tmp_mb=16") as opened:
            found = await value(opened, ATTEMPT + code)
            assert found[0] in ("EROFS", "EACCES")
            assert found[1] in ("EROFS", "EACCES")
            assert found[2:] == ["EACCES", "ENOSPC"]

    @case("RE06", "RE07", controls="H16", alone="the host would have to bear it")
    async def test_processes_and_threads_end_at_the_policys_limit_and_the_box_lives(self, engine: Engine) -> None:
        code = """
import os, threading, time
stop, made = threading.Event(), 0
try:
    while made < 200:
        threading.Thread(target=stop.wait, daemon=True).start(); made += 1
except RuntimeError as error:
    print(error)
stop.set()
made
"""
        async with box(engine) as opened:
            threads = await value(opened, code)
            assert 0 < threads < POLICY.limits.pids
            fork = "pid = os.fork(); pid or (stop.wait(5), os._exit(0))"
            thread = "threading.Thread(target=stop.wait, daemon=True).start()"
            forks = await value(opened, code.replace(thread, fork).replace("RuntimeError", "OSError"))
            assert 0 < forks < POLICY.limits.pids
            assert await value(opened, "made") == forks

    @case("PF15", controls="P1 P3 P4", alone="older releases are the twin")
    async def test_a_cell_that_writes_to_the_supervisors_stream_wins_nothing(self, engine: Engine) -> None:
        # Until 20251215 gVisor let it; what comes out then is a frame of no kind, and the box is burnt.
        code = "import os\nos.write(os.open('/proc/1/fd/1', os.O_WRONLY), b'X' * 64)"
        async with box(engine) as opened:
            result = await outcome(opened, code, TIMEOUT)
            if "NOT IN FORCE" in opened.info.controls["P1"]:
                assert (result.status, opened.gone) == ("protocol_error", True)
                with pytest.raises(SandboxGoneError):
                    await opened.execute("1")
            else:
                assert result.error is not None
                assert result.error.name == "PermissionError"

    @case("PF15", controls="P17", alone="older releases are the twin")
    async def test_a_cell_that_takes_the_supervisors_orders_still_ends_in_time(self, engine: Engine) -> None:
        code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    stream = os.open("/proc/1/fd/0", os.O_RDONLY)
    while True: os.read(stream, 1 << 16)
except OSError:
    while True: pass
"""
        async with box(engine) as opened:
            assert (await outcome(opened, code, SHORT)).status in ("timeout", "protocol_error")


class TestEnds:
    @case(controls="P7 P17", alone="the host's own clock ends a cell")
    @pytest.mark.parametrize(
        "code",
        [
            "while True: pass",
            "import time; time.sleep(10 ** 6)",
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
            "sum(range(10 ** 13))",
            "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
            "import subprocess; subprocess.run(['sleep', '1000'])",
        ],
        ids=["loop", "sleep", "ignores interrupts", "holds the GIL", "stops itself", "child"],
    )
    async def test_a_cell_ends_within_its_time_and_3_s(self, engine: Engine, code: str) -> None:
        async with box(engine, context="the context") as opened:
            result = await outcome(opened, code, SHORT)
            assert result.status == "timeout"
            assert await value(opened, "context") == "the context"

    @case(controls="H22", alone="nothing is attacked")
    async def test_a_dead_interpreter_is_replaced(self, engine: Engine) -> None:
        async with box(engine, context="the context") as opened:
            result = await outcome(opened, "import os; os._exit(7)", TIMEOUT)
            assert (result.status, "exit code 7" in result.detail) == ("died", True)
            assert await value(opened, "context") == "the context"

    @case("RE01", controls="H13a", alone="the host would have to bear it")
    async def test_running_out_of_memory_ends_the_box_and_is_called_by_its_name(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await outcome(opened, "x = []\nwhile True: x.append(b'a' * (1 << 24))", TIMEOUT)
            assert (result.status, result.state_lost, opened.gone) == ("oom", True, True)
            assert "memory" in result.detail
            assert result.elapsed_s < TIMEOUT

    @pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 15, 19])
    @case("KE41", controls="H31", alone="Linux is the twin: its init is immune")
    async def test_the_end_of_its_first_process_is_the_end_of_the_box_and_not_one_of_memory(
        self, engine: Engine, number: int
    ) -> None:
        # On Linux it is immune to signals from inside; gVisor delivers them. One that is stopped hears no order.
        stops = number == signal.SIGSTOP
        async with box(engine) as opened:
            code = f"import os; os.kill(1, {number}); import time; time.sleep(1000)"
            result = await outcome(opened, code, SHORT if stops else TIMEOUT)
            assert (result.status, opened.gone) == ("timeout" if stops else "died", True)
            assert result.elapsed_s < TIMEOUT / 2

    @case(controls="P23", alone="nothing is attacked")
    async def test_gvisor_killed_on_the_host_is_the_end_of_the_box(self, engine: Engine) -> None:
        async with box(engine) as opened:
            pid = _sandbox_process(engine, opened.info.container)
            results = []

            async def run() -> None:
                results.append(await opened.execute("import time; time.sleep(1000)", TIMEOUT))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                os.kill(pid, signal.SIGKILL)
            (result,) = results
            assert (result.status, opened.gone) == ("died", True)
            assert result.elapsed_s < LADDER_S

    @case(controls="P23", alone="nothing is attacked")
    async def test_an_orchestrator_killed_leaves_neither_container_nor_process(self, engine: Engine) -> None:
        program = f"""
import anyio, json, sys
from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
async def main():
    policy = Policy.from_data(json.loads({POLICY.model_dump_json()!r}))
    async with Sandbox.open(policy) as box:
        print(box.info.container, flush=True)
        await box.execute("while True: pass")
anyio.run(main)
"""
        command = [sys.executable, "-c", program]
        async with await anyio.open_process(command, stdin=subprocess.DEVNULL, stderr=None) as process:
            assert process.stdout is not None
            name = (await process.stdout.receive()).decode().strip()
            process.kill()
        with anyio.fail_after(GONE_S):
            await to_thread.run_sync(lambda: _wait_until_removed(engine, name))


def _wait_until_removed(engine: Engine, name: str) -> None:
    import docker.errors

    try:
        engine._api.wait(name, timeout=int(GONE_S), condition="removed")
    except docker.errors.NotFound:
        return


@case(controls="H31", alone="nothing is attacked")
def test_the_profile_is_the_default_one_in_all_but_its_runtime() -> None:
    data, default = Policy.load("gvisor").model_dump(), Policy.load().model_dump()
    assert data.pop("name") != default.pop("name")
    assert data.pop("sandbox") == {**default.pop("sandbox"), "runtime": RUNTIME}
    assert json.dumps(data) == json.dumps(default)
