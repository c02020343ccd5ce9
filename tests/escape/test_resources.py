"""What one box may use up: each bound is the policy's, and where it is lifted more is used."""

from __future__ import annotations

import time
from collections.abc import Awaitable

import anyio
import pytest
from anyio import to_thread

from orchestrator.interpreter import Sandbox
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


# Fills children with one kind of what the operating system keeps for them, and tells how many MiB those hold that live.
IN_CHILDREN = """
import select, signal, struct, time
def hold(fill):
    ends = []
    for _ in range(CHILDREN):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try: held = fill()
            except (OSError, MemoryError): held = 0
            os.write(write, struct.pack("d", held))
            time.sleep(1000)
        os.close(write)
        told = os.read(read, 8)  # or nothing, of one that was killed
        ends.append((child, struct.unpack("d", told)[0] if told else 0))
    time.sleep(0.1)  # one that is being killed for another's sake needs a moment
    return sum(held for child, held in ends if os.waitpid(child, os.WNOHANG) == (0, 0))
def sockets():
    held = 0
    keep.extend(socket.socketpair() for _ in range(220))
    for end in sum(keep, ()):
        end.setblocking(False)
        try:
            while True: held += end.send(b"x" * 65536)
        except BlockingIOError: pass
    return held / (1 << 20)
def pages():
    import mmap
    # One byte in each 2 MiB: half of what this costs is the tables that map it.
    area = mmap.mmap(-1, 25 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
    area.madvise(mmap.MADV_NOHUGEPAGE)
    keep.append(area)
    for offset in range(0, 25 << 30, 2 << 20): area[offset] = 1
    return 100
def plain():
    keep.append(bytearray(100 << 20))
    return 100
def slow():
    for _ in range(100):
        keep.append(bytearray(1 << 20))
        time.sleep(0.001)
    return 100
keep = []
"""


@otherwise_under_gvisor("memory is that of the sandbox's own kernel")
class TestMemoryOfAllKinds:
    """Whatever holds it, it is the box's own: the limit is never passed, and more is held where it is higher."""

    CHILDREN = 5  # of some 100 MiB each

    @pytest.mark.parametrize("kind", ["plain", "slow", "sockets", "pages"])
    @case("RE01", "RE02", controls="H13a", twin="H13a")
    async def test_children_cannot_hold_more_than_the_limit(self, engine: Engine, kind: str) -> None:
        code = IN_CHILDREN.replace("CHILDREN", str(self.CHILDREN)) + f"hold({kind})"
        async with box(engine, "limits.pids=96") as opened:
            result = await outcome(opened, ATTEMPT + code, TIMEOUT)
            assert result.status in ("ok", "oom")  # the REPL may be among those that are killed
            if result.ok:
                assert float(result.result or "nan") < LIMITS.memory_mb
            assert await value(opened, "1") == 1
        more = host(Memory=1 << 30, MemorySwap=1 << 30)
        assert await ask(engine, code, weaken=more) > LIMITS.memory_mb

    @case("RE01", controls="H13a", alone="the kernel's own bound for the pipes of a user comes before the box's")
    async def test_the_memory_of_pipes_is_bounded_twice(self, engine: Engine) -> None:
        """By the box's limit, and before that by the kernel's own for all pipes of a user: pipe(7), pipe-user-pages."""
        code = """
import fcntl, struct, time
def fill():
    held = 0
    for _ in range(200):
        read, write = os.pipe()
        keep.append((read, write))
        os.set_blocking(write, False)
        try:
            while True: held += os.write(write, b"x" * 65536)
        except BlockingIOError: pass
    return held / (1 << 20)
hold(fill)
"""
        prepared = IN_CHILDREN.replace("CHILDREN", str(self.CHILDREN))
        assert 0 < await ask(engine, prepared + code, "limits.pids=96") < LIMITS.memory_mb


class TestOutOfMemoryOrNot:
    CHILD_DIES_AND_THEN = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "x = bytearray(1 << 30)"])
"""

    @otherwise_under_gvisor("running out of memory ends the box")
    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("import os; os.kill(os.getpid(), 9)", "died"),
            ("import os; os.abort()", "died"),
            ("import ctypes; ctypes.string_at(0)", "died"),
            ("import os; os._exit(137)", "died"),
            (CHILD_DIES_AND_THEN + "import os; os._exit(1)", "died"),
            (CHILD_DIES_AND_THEN + "while True: pass", "timeout"),
            ("x = bytearray(1 << 30)", "oom"),
        ],
        ids=["kill", "abort", "segfault", "its exit code", "after a child's", "deadline after a child's", "memory"],
    )
    @case("RE01", controls="H13a", alone="what is tested is how an end is told, not that it comes")
    async def test_only_the_kernel_of_the_host_is_believed(self, engine: Engine, code: str, status: str) -> None:
        async with box(engine) as opened:
            assert (await outcome(opened, code, 3)).status == status
            assert await value(opened, "1") == 1


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


FORKS = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    try: os.fork()
    except OSError: pass
"""
SPINS = """
import multiprocessing
def spin(_):
    while True: pass
multiprocessing.get_context("fork").Pool(40).map(spin, range(40))
"""
ATTACKS = {
    "forks": FORKS,
    "spins": SPINS,
    "memory": "held = []\nwhile True: held.append(bytearray(1 << 24))",
    "output": "while True: print('x' * 100_000)",
    "one message": "from IPython.display import display\ndisplay({'text/plain': 'x' * 200_000_000}, raw=True)",
    "descriptors": "import os\nwhile True:\n    try: os.open('/dev/null', 0)\n    except OSError: pass",
    "files": "import os\nfor n in range(10 ** 9):\n    try: open(f'/tmp/{n}', 'w').close()\n    except OSError: pass",
    "syncs": "import os\nwhile True:\n    try: os.sync()\n    except OSError: pass",
}


@otherwise_under_gvisor("running out of memory ends the box")
class TestNeighbours:
    """What one box does, the others do not feel: a cell of theirs takes what it takes, give or take a busy host."""

    # On two cores a trivial cell takes 3 ms; beside a box that may take one of them for itself, some ten times that.
    NORMAL_S = 1.0

    async def served(self, neighbour: Sandbox, attack: Awaitable[object]) -> float:
        """Run cells in a box until an attack is over; return how long the slowest took, in seconds."""
        slowest, over = 0.0, anyio.Event()

        async def run() -> None:
            await attack
            over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            while not over.is_set():
                began = time.monotonic()
                assert await value(neighbour, "1 + 1") == 2
                slowest = max(slowest, time.monotonic() - began)
        return slowest

    @case(
        "RE01",
        "RE06",
        "RE09",
        "RE10",
        controls="H13a H16 H17",
        alone="the next test is its twin",
    )
    async def test_a_neighbour_is_served_throughout_and_so_is_the_engine(self, engine: Engine) -> None:
        slow: dict[str, float] = {}
        async with box(engine) as attacker, box(engine) as neighbour:
            for name, code in ATTACKS.items():
                taken = await self.served(neighbour, outcome(attacker, code, 1.5))
                if taken > self.NORMAL_S:
                    slow[name] = taken
                began = time.monotonic()
                assert await to_thread.run_sync(engine._api.ping)
                assert time.monotonic() - began < self.NORMAL_S
            assert await value(attacker, "1") == 1
        assert slow == {}

    @case("RE09", controls="H17", alone="it is the twin of the test before")
    async def test_its_own_cells_are_not(self, engine: Engine) -> None:
        """The attacks are real: who shares the box with one waits for it."""
        async with box(engine) as attacker:
            assert await self.served(attacker, outcome(attacker, ATTACKS["spins"], 1.5)) > self.NORMAL_S
