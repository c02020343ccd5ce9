"""What one box may use up: each bound is the policy's, and where it is lifted more is used."""

from __future__ import annotations

import pytest

from orchestrator.sandbox import hardening
from orchestrator.sandbox.engine import Engine
from tests.escape.catalogue import case
from tests.support.live import ATTEMPT, POLICY, TIMEOUT, ask, box, outcome, value
from tests.support.policies import otherwise_under_gvisor
from tests.support.weakened import Config, host, weakened_box

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

LIMITS = POLICY.limits


class TestProcesses:
    FORK = """
import signal, time
started = []
def bomb():
    while len(started) < 150:
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
            os._exit(0)
        started.append(pid)
said = attempt(bomb)
for pid in started:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
said, len(started)
"""
    THREADS = """
import threading
done, started = threading.Event(), []
def bomb():
    while len(started) < 150:
        thread = threading.Thread(target=done.wait)
        thread.start()
        started.append(thread)
said = attempt(bomb)
done.set()
said, len(started)
"""

    @otherwise_under_gvisor("the limit is RLIMIT_NPROC")
    @case("RE06", controls="H16", twin="H16")
    async def test_a_fork_bomb_stops_at_the_limit_and_the_box_works_on(self, engine: Engine) -> None:
        async with box(engine) as opened:
            said, forks = await value(opened, ATTEMPT + self.FORK)
            assert said == "EAGAIN"
            assert LIMITS.pids / 2 < forks < LIMITS.pids
            assert await value(opened, "2") == 2
        assert await ask(engine, self.FORK, weaken=host(PidsLimit=250)) == ("done", 150)

    @otherwise_under_gvisor("the limit is RLIMIT_NPROC")
    @case("RE07", controls="H16", twin="H16")
    async def test_a_thread_bomb_does_too(self, engine: Engine) -> None:
        async with box(engine) as opened:
            said, threads = await value(opened, ATTEMPT + self.THREADS)
            assert said == "RuntimeError"
            assert LIMITS.pids / 2 < threads < LIMITS.pids
            assert await value(opened, "2") == 2
        assert await ask(engine, self.THREADS, weaken=host(PidsLimit=250)) == ("done", 150)

    @otherwise_under_gvisor("it may use up the memory first, which ends the box")
    @case("RE06", controls="H16 H22", alone="without its limit the host would have to bear it")
    async def test_a_fork_bomb_without_end_ends_with_its_cell(self, engine: Engine) -> None:
        code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    try: os.fork()
    except OSError: pass
"""
        async with box(engine) as opened:
            result = await outcome(opened, code, 1)
            assert (result.status, result.state_lost) == ("timeout", True)
            if opened.gone:
                return  # on a machine full of other work, by the ladder's last step: the box ended with all of them
            # Killed before the cell's reply; how soon the supervisor has reaped them is the scheduler's business.
            left = "sum(n.isdigit() for n in os.listdir('/proc'))"
            await value(opened, f"import os, time\nwhile {left} > 2: time.sleep(0.01)\nTrue")


@otherwise_under_gvisor("running out of memory ends the box")
class TestMemory:
    FILL = f"x = bytearray({LIMITS.memory_mb + 100} << 20)\nlen(x) >> 20"

    @case("RE01", controls="H13a H14", twin="H13a")
    async def test_more_than_the_limit_is_a_kill_that_is_told_apart(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await outcome(opened, self.FILL, TIMEOUT)
            assert (result.status, result.state_lost) == ("oom", True)
            assert await value(opened, "2") == 2
        more = host(Memory=1 << 30, MemorySwap=1 << 30)
        assert await ask(engine, self.FILL, weaken=more) == LIMITS.memory_mb + 100

    @case("RE03", controls="H13a", alone="the test before it has the twin")
    async def test_files_in_memory_count_as_well(self, engine: Engine) -> None:
        code = f"""
import os
with open("/run/box/full", "wb", buffering=0) as file:
    for _ in range({LIMITS.memory_mb + 50}): file.write(b"x" * (1 << 20))
"""
        async with box(engine) as opened:
            result = await outcome(opened, code, TIMEOUT)
            assert result.status == "oom"
            # The file went with the kernel that wrote it, and its memory with the file.
            assert await value(opened, f"len(bytearray({LIMITS.memory_mb // 2} << 20)) >> 20") == LIMITS.memory_mb // 2

    @case("RE02", controls="H13a H15", alone="which process the kernel kills without it is chance")
    async def test_the_supervisor_is_not_the_one_that_is_killed(self, engine: Engine) -> None:
        code = """
import os, time
open("/proc/self/oom_score_adj", "w").write("900")
for _ in range(10):
    if os.fork() == 0:
        x = [bytearray(1 << 20) for _ in range(1000)]
        time.sleep(1000)
x = [bytearray(1 << 20) for _ in range(1000)]
"""
        async with box(engine) as opened:
            for _ in range(3):
                result = await outcome(opened, code, 5)
                assert result.status in ("oom", "ok", "error", "timeout")
                assert not opened.gone
            assert await value(opened, "2") == 2

    @case("RE22", controls="H13b", alone="a box that may swap would do so to the host's disk")
    async def test_there_is_no_swap(self, engine: Engine) -> None:
        code = """
paths = ("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/memory.swap.max")
[int(open(path).read()) for path in paths if os.path.exists(path)]
"""
        (found,) = await ask(engine, code)
        assert found in (0, LIMITS.memory_mb << 20)


class TestDescriptors:
    OPEN = """
opened = []
def open_all():
    while len(opened) < 2000: opened.append(os.open("/dev/null", 0))
said = attempt(open_all)
for descriptor in opened: os.close(descriptor)
said, len(opened)
"""

    @case("RE11", controls="H18a", twin="H18a")
    async def test_descriptors_run_out_at_the_limit_and_the_box_works_on(self, engine: Engine) -> None:
        async with box(engine) as opened:
            said, number = await value(opened, ATTEMPT + self.OPEN)
            assert said == "EMFILE"
            assert LIMITS.open_files / 2 < number < LIMITS.open_files
            assert await value(opened, "2") == 2

        def more(config: Config) -> None:
            (limit,) = (found for found in config["HostConfig"]["Ulimits"] if found["Name"] == "nofile")
            limit.update(Soft=4096, Hard=4096)

        assert await ask(engine, self.OPEN, weaken=more) == ("done", 2000)

    @case("RE11", controls="H18a H3", alone="only root with a capability can raise it")
    async def test_the_limit_cannot_be_raised(self, engine: Engine) -> None:
        code = """
import resource
more = (1 << 20, 1 << 20)
resource.getrlimit(resource.RLIMIT_NOFILE), attempt(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, more))
"""
        assert await ask(engine, code) == ((LIMITS.open_files,) * 2, "ValueError")

    @case("RE11", controls="H18a", alone="the test before the last has the twin")
    async def test_a_cell_that_holds_all_of_them_does_not_keep_the_next_from_running(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = (
                "import os\nheld = []\ntry:\n    while True: held.append(os.open('/dev/null', 0))\nexcept OSError: pass"
            )
            assert (await opened.execute(code, TIMEOUT)).ok
            assert await value(opened, "len(held) > 100") is True
            assert (await opened.execute("os._exit(0)")).status == "died"
            assert await value(opened, "2") == 2


class TestProcessor:
    SPIN = """
import threading, time
def spin(until):
    while time.monotonic() < until: pass
for _ in range(4):
    if os.fork() == 0:
        spin(time.monotonic() + 1)
        os._exit(0)
for _ in range(4): os.wait()
paths = ("/sys/fs/cgroup/cpu/cpu.stat", "/sys/fs/cgroup/cpu.stat")
stat = dict(line.split() for path in paths if os.path.exists(path) for line in open(path))
int(stat["nr_throttled"])
"""

    @otherwise_under_gvisor("the box does not see its cgroup")
    @case("RE09", controls="H17", twin="H17")
    async def test_a_box_that_spins_is_throttled(self, engine: Engine) -> None:
        # A quarter of a core: four spinners ask for more even on a machine that has other work.
        assert await ask(engine, self.SPIN, "limits.cpus=0.25") > 0
        assert await ask(engine, self.SPIN, "limits.cpus=0.25", weaken=host(CpuQuota=-1)) == 0


class TestCores:
    @case("FS23", controls="H18b", alone="test_filesystem.py has the twin")
    async def test_no_core_is_dumped(self, engine: Engine) -> None:
        code = """
import resource
resource.getrlimit(resource.RLIMIT_CORE), attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)))
"""
        assert await ask(engine, code.replace("(1, 1)", "(9, 9)")) == ((hardening.CORE_BYTES,) * 2, "ValueError")


@case(controls="P23", twin="P23")
async def test_a_weakened_box_is_used_once_and_gone(engine: Engine) -> None:
    async with weakened_box(POLICY, host(PidsLimit=100)) as opened:
        assert await value(opened, "1") == 1
