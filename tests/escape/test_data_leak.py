"""Two boxes are two worlds: no file, process, memory, count, call or failure of one is to be had in another."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from orchestrator.errors import SandboxGoneError
from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from tests.escape.catalogue import case
from tests.support.canaries import LOOK, Canaries
from tests.support.live import ATTEMPT, POLICY, TIMEOUT, ask, box, value
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import Config, weakened_box

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

# What a tenant leaves wherever it can.
RESIDUE = """
import subprocess
def leave(secret):
    os.environ["SECRET"] = secret
    for folder in ("/tmp", "/run/box", "/dev/shm", "/work", "/home", "/root", "/var/tmp", "/run/lock", "/dev/mqueue"):
        attempt(lambda: open(f"{folder}/{secret}", "w").write(secret))
        attempt(lambda: os.symlink(secret, f"{folder}/link"))
    global held
    held = socket.socket(socket.AF_UNIX); held.bind("\\0" + secret); held.listen()
    return sum(secret in names for _, _, names in os.walk("/"))
"""


class TestTenants:
    @case("DL01", "DL02", "DL03", controls="P22", twin="P22")
    async def test_nothing_of_one_is_there_for_the_next(self, engine: Engine, planted: Canaries) -> None:
        """The twin is the one box given to both, as it was left."""
        secret = planted.plant("another box")
        memory = not UNDER_GVISOR
        code = f"{LOOK}\nfound, *_ = look({memory})\nfound"
        async with box(engine, "limits.cell_timeout_s=60") as first:
            halves = f"{secret[:9]!r} + {secret[9:]!r}"
            assert await value(first, f"{ATTEMPT}{RESIDUE}\nleave({halves})") >= 3
            async with box(engine, "limits.cell_timeout_s=60") as second:  # while the first is there ...
                assert await value(second, ATTEMPT + code) == []
            assert await value(first, ATTEMPT + code) == [secret]
        assert set(planted.take()) == {"out of a box: another box"}
        async with box(engine, "limits.cell_timeout_s=60") as third:  # ... and when it is gone
            assert await value(third, ATTEMPT + code) == []

    @case("DL02", "DL03", "HI05", controls="H11 H27", alone="the test before it has the twin")
    async def test_a_fresh_box_has_its_own_two_processes_no_ipc_and_no_key(self, engine: Engine) -> None:
        code = """
texts = {path: len(open(path).read().splitlines()) for path in
         ("/proc/sysvipc/shm", "/proc/sysvipc/msg", "/proc/sysvipc/sem", "/proc/keys") if os.path.exists(path)}
names = [line.split()[-1] for line in open("/proc/net/unix") if line.split()[-1].startswith(("@", "/"))] \
    if os.path.exists("/proc/net/unix") else []
left = [os.path.join(folder, name) for top in ("/tmp", "/dev/shm", "/work", "/var/tmp", "/home")
        for folder, folders, files in os.walk(top) for name in folders + files]
others = [n for n in os.listdir("/proc") if n.isdigit() and n not in ("1", str(os.getpid()))]
others, max(texts.values(), default=0) < 2, [name for name in names if not name.startswith("/run/box/")], left
"""
        assert await ask(engine, code) == ([], True, [], [])

    @case("DL04", controls="H9 H10", twin="H10")
    async def test_no_writable_mount_is_shared_by_two(self, engine: Engine, tmp_path: Any) -> None:
        code = """
sorted({os.stat(path).st_dev for path in ("/tmp", "/run/box", "/dev/shm", "/dev/mqueue", "/dev/pts", "/host")
        if os.path.isdir(path)})
"""
        async with box(engine) as first, box(engine) as second:
            numbers = [set(await value(opened, ATTEMPT + code)) for opened in (first, second)]
        if not UNDER_GVISOR:  # its numbers are its own, and so the same
            assert numbers[0] & numbers[1] == set()
        write = "attempt(lambda: open('/host/x', 'a').write('x')), os.path.exists('/host/x')"
        assert await ask(engine, write) == ("ENOENT", False)
        tmp_path.chmod(0o777)

        def sharing(config: Config) -> None:
            config["HostConfig"]["Binds"] = [f"{tmp_path}:/host"]

        assert await ask(engine, write, weaken=sharing) == ("done", True)
        assert await ask(engine, "os.path.exists('/host/x')", weaken=sharing) is True

    @case("DL05", controls="H2 H8 H19", twin="H19")
    async def test_no_page_of_a_shared_file_can_be_written(self, engine: Engine) -> None:
        code = """
import mmap
file = os.open("/etc/passwd", os.O_RDONLY)
pipe = os.pipe()
[attempt(lambda: os.splice(file, pipe[1], 10)), attempt(lambda: socket.socket(38, socket.SOCK_SEQPACKET)),
 attempt(lambda: mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)), attempt(lambda: open("/etc/passwd", "r+b")),
 attempt(lambda: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED))]
"""
        found = await ask(engine, code)
        assert (found[:3], found[4]) == (["EPERM", "EPERM", "EACCES"], "EPERM")
        assert found[3] in ("EACCES", "EROFS")
        weak = await ask(engine, code, weaken=unfiltered)
        assert weak[4] == "done"
        assert UNDER_GVISOR or weak[0] == "done"
        assert "done" not in weak[2:4]


def unfiltered(config: Config) -> None:
    config["HostConfig"]["SecurityOpt"] = ["no-new-privileges", "seccomp=unconfined"]


class TestSharedUser:
    """Linux counts pages of pipes and descriptors in flight by user, whatever the container."""

    USE_UP = """
import fcntl
pipes = [os.pipe() for _ in range(100)]
widened = [attempt(lambda: fcntl.fcntl(pipe[1], 1031, 1 << 20)) for pipe in pipes]
null, held = os.open("/dev/null", 0), []
def send():
    for _ in range(50):
        held.append(socket.socketpair())
        for _ in range(3): socket.send_fds(held[-1][0], [b"x"], [null] * 250)
attempt(send), "EPERM" in widened
"""
    USE = """
import fcntl
a, b = socket.socketpair()
pipe = os.pipe()
attempt(lambda: socket.send_fds(a, [b"x"], [0])), attempt(lambda: fcntl.fcntl(pipe[1], 1031, 1 << 20))
"""

    @case("DL40", controls="H6", twin="H6")
    @otherwise_under_gvisor("its kernel counts for one box alone")
    async def test_what_one_box_uses_up_another_still_has(self, engine: Engine) -> None:
        async with box(engine) as hostile, box(engine) as victim:
            assert await value(hostile, ATTEMPT + self.USE_UP) == ("ETOOMANYREFS", True)
            assert await value(victim, ATTEMPT + self.USE) == ("done", "done")
            # The twin: another box of the same user, as all would be if each had the policy's first.
            users = {(await value(opened, "import os; os.getuid()")) for opened in (hostile, victim)}
            assert len(users) == 2
            same = POLICY.override(["sandbox.uids=1", f"sandbox.user='{await value(hostile, 'os.getuid()')}:64000'"])
            async with weakened_box(same, lambda _config: None) as twin:
                assert await value(twin, ATTEMPT + self.USE) == ("ETOOMANYREFS", "EPERM")


class TestCrossTalk:
    NUMBER = 4

    @case("DL08", controls="H11 P2", alone="each has a stream of its own; there is none to share")
    async def test_output_of_many_at_once_is_each_ones_own(self, engine: Engine) -> None:
        results: dict[int, list[ExecutionResult]] = {}

        async def run(number: int) -> None:
            async with box(engine) as opened:
                both = f"print('marker{number}', n); print('error{number}', file=sys.stderr)"
                code = f"import sys\nfor n in range(200): {both}"
                results[number] = [await opened.execute(code, TIMEOUT) for _ in range(3)]

        await all_of(run, self.NUMBER)
        for number, found in results.items():
            for result in found:
                assert result.ok
                assert {line.split()[0] for line in result.stdout.splitlines()} == {f"marker{number}"}
                assert {line.split()[0] for line in result.stderr.splitlines()} == {f"error{number}"}

    @case("DL11", controls="P2 P18", alone="each has a stream of its own; there is none to share")
    async def test_failures_of_many_at_once_are_each_ones_own(self, engine: Engine) -> None:
        found: dict[int, str] = {}

        async def run(number: int) -> None:
            async with box(engine) as opened:
                said = [await opened.execute(f"secret = 'mark{number}'\nraise ValueError('mark{number}')", TIMEOUT)]
                speak = f"import os, time\nprint('mark{number}', flush=True)\n"
                said.append(await opened.execute(f"{speak}time.sleep(99)", 0.3))
                said.append(await opened.execute(f"{speak}os._exit({number})"))
                said.append(await opened.execute(f"'mark{number}'"))
                assert [result.status for result in said] == ["error", "timeout", "died", "ok"]
                found[number] = repr(said)

        await all_of(run, self.NUMBER)
        for number, said in found.items():
            assert [other for other in range(self.NUMBER) if f"mark{other}" in said] == [number]
            assert f"exit code {number}" in said

    @case("DL07", controls="P2 P14", alone="identity is the connection; there is no token to take away")
    async def test_calls_with_the_same_ids_are_answered_to_the_box_that_made_them(self, engine: Engine) -> None:
        """All boxes choose the same ids; each host answers its own, and refuses what it is asked by a refused one."""
        cell = """
import os, threading
os.urandom = lambda n: bytes(n - 1) + bytes([len(made)])
made = []
import sandbox_image.guest_api as api
answers = []
for n in range(20):
    made.append(n)
    try: answers.append(llm_query(str(n)))
    except QueryRefused as error: answers.append(str(error))
answers
"""
        found: dict[int, list[str]] = {}

        async def run(number: int) -> None:
            async def desk(call: RpcCall) -> RpcReply:
                await anyio.lowlevel.checkpoint()
                if call.body.endswith("7"):
                    raise RpcRefusal("calls", f"refusal of {number}")
                return RpcReply({}, f"{call.body} by {number} to {call.id[-2:]}")

            async with box(engine, rpc=desk) as opened:
                found[number] = await value(opened, cell)

        await all_of(run, self.NUMBER)
        for number, answers in found.items():
            expected = [f"{n} by {number} to {n + 1:02x}" for n in range(20) if n not in (7, 17)]
            assert [answer for answer in answers if "refusal" not in answer] == expected
            assert sum(f"refusal of {number} " in answer for answer in answers) == 2

    @case("DL10", controls="P22 P23 P24", alone="boxes are made, not handed over; none can be handed twice")
    async def test_a_box_that_is_being_closed_is_nobody_elses(self, engine: Engine) -> None:
        names: list[str] = []

        async def run(number: int) -> None:
            async with box(engine) as opened:
                names.append(opened.info.container)
                assert await value(opened, "'mine' not in globals()") is True
                assert await value(opened, f"mine = {number}; mine") == number
            with pytest.raises(SandboxGoneError):
                await opened.execute("mine")

        for _ in range(2):
            await all_of(run, self.NUMBER)
        assert len(set(names)) == 2 * self.NUMBER


async def all_of(run: Any, number: int) -> None:
    """Run as many at once."""
    async with anyio.create_task_group() as tasks:
        for n in range(number):
            tasks.start_soon(run, n)
