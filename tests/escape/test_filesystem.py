"""The host's files and the box's own: what can be read, written and run, and what could be with one control off."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from orchestrator import bundle
from orchestrator.sandbox.engine import Engine
from tests.escape.catalogue import case
from tests.support.live import ATTEMPT, POLICY, ask, box, value
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import (
    Config,
    Weaken,
    with_a_dumpable_supervisor,
    with_seccomp,
    without_filter_and_with_capabilities,
)

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

UNCONFINED = with_seccomp("unconfined")
SCRATCH = "/tmp"  # noqa: S108 - the box's


def scratch(old: str, new: str) -> Weaken:
    def weaken(config: Config) -> None:
        mounts = config["HostConfig"]["Tmpfs"]
        assert old in mounts[SCRATCH]
        mounts[SCRATCH] = mounts[SCRATCH].replace(old, new)

    return weaken


def with_a_writable_root(config: Config) -> None:
    config["HostConfig"]["ReadonlyRootfs"] = False


def open_in(pid: int) -> int:
    """Return how many descriptors a process of this host has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class TestRoot:
    @case("FS02", controls="H8", twin="H8")
    async def test_nothing_of_the_image_can_be_written(self, engine: Engine) -> None:
        code = """
folders = ["/", "/etc", "/usr", "/bin", "/lib", "/opt", "/opt/box", "/opt/box/sandbox_image", "/work", "/root", "/home",
           "/var", "/var/tmp", "/run", "/run/lock", "/dev", "/proc", "/sys", "/sys/fs/cgroup"]
{folder: attempt(lambda: open(folder + "/x", "w").close()) for folder in folders}
"""
        found = await ask(engine, code)
        assert set(found.values()) <= {"EROFS", "EACCES", "ENOENT"}
        assert found["/var/tmp"] == "EROFS"  # noqa: S108 - open to all but for the flag
        weak = await ask(engine, code, weaken=with_a_writable_root)
        assert weak["/var/tmp"] == "done"  # noqa: S108

    @case("FS02", controls="H8 H9 H10", alone="nine folders more, or one, is what its twin in the test before shows")
    async def test_only_three_folders_in_memory_can_be_written(self, engine: Engine) -> None:
        code = """
found = set()
for folder, folders, _ in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys")]
    if attempt(lambda: open(folder + "/.x", "w").close()) == "done":
        os.unlink(folder + "/.x")
        found.add(folder)
sorted(folder for folder in found if not folder.startswith("/run/box/"))
"""
        assert await ask(engine, code) == ["/dev/shm", "/run/box", SCRATCH]  # noqa: S108 - the box's

    @case("KE17", "KE18", "KE19", controls="H6 H8 H25", alone="to write these would change the host")
    async def test_settings_of_the_kernel_and_the_cgroup_cannot_be_written(self, engine: Engine) -> None:
        code = """
import glob
paths = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory",
         "/proc/sysrq-trigger", "/proc/1/oom_score_adj", "/sys/kernel/uevent_helper"]
paths += glob.glob("/sys/fs/cgroup/**/memory.limit_in_bytes", recursive=True)
for name in ("*.max", "cgroup.procs", "release_agent"):
    paths += glob.glob("/sys/fs/cgroup/**/" + name, recursive=True)
{path: attempt(lambda: open(path, "w").write("1")) for path in paths}
"""
        found = await ask(engine, code)
        assert len(found) > (5 if UNDER_GVISOR else 7)
        assert set(found.values()) <= {"EROFS", "EACCES", "ENOENT"}


class TestHost:
    @case("FS01", "HI02", controls="H10", twin="H10")
    async def test_a_file_of_the_host_is_nowhere(self, engine: Engine, tmp_path: Path) -> None:
        canary = "canary" + secrets.token_hex(8)
        (tmp_path / canary).write_text(canary, "ascii")
        code = f"""
name = {canary[:10]!r} + {canary[10:]!r}
found = [folder for folder, _, names in os.walk("/") if name in names]
found += [p for p in ({str(tmp_path)!r}, "/proc/1/root" + {str(tmp_path)!r}, "/host") if os.path.isdir(p)]
found
"""
        assert await ask(engine, code) == []

        def with_a_folder(config: Config) -> None:
            config["HostConfig"]["Binds"] = [f"{tmp_path}:/host:ro"]

        assert "/host" in await ask(engine, code, weaken=with_a_folder)

    @case("HI02", controls="H10", alone="the twin of the test before is one that is told")
    async def test_no_path_of_this_project_is_told(self, engine: Engine) -> None:
        told = await ask(engine, "open('/proc/self/mountinfo').read() + open('/proc/cmdline').read()")
        assert str(bundle.path(".").resolve()) not in told

    @otherwise_under_gvisor("/dev has names of gVisor's own")
    @case("FS07", "KE42", controls="H3 H19 H27", twin="H3 H19")
    async def test_there_is_no_device_and_none_can_be_made(self, engine: Engine) -> None:
        devices = "sorted(n for n in os.listdir('/dev') if not os.path.islink('/dev/' + n))"
        assert set(await ask(engine, devices)) <= {
            *("full", "null", "random", "tty", "urandom", "zero", "console"),
            *("mqueue", "pts", "shm", "ptmx"),
        }
        make = "attempt(lambda: os.mknod('/tmp/sda', 0o600 | 0o060000, os.makedev(8, 0)))"
        assert await ask(engine, make) == "EPERM"

        def able_to(config: Config) -> None:
            without_filter_and_with_capabilities(config)
            config["HostConfig"]["CapAdd"].append("MKNOD")

        # Made, but not opened: scratch is mounted nodev, and the cgroup allows the box no disk.
        assert await ask(engine, make, weaken=able_to) == "done"

    @pytest.mark.parametrize("call", ["os.chroot('/tmp')", "os.unshare(os.CLONE_NEWNS)", "os.setns(0)"])
    @case(
        "FS06",
        "KE01",
        "KE03",
        controls="H3 H19",
        alone="test_syscalls.py makes these calls without filter and with capabilities",
    )
    async def test_the_root_cannot_be_changed(self, engine: Engine, call: str) -> None:
        assert await ask(engine, f"attempt(lambda: {call})") == "EPERM"


class TestScratch:
    RUN = """
import shutil
def run(folder):
    path = shutil.copy("/bin/true", folder + "/program")
    os.chmod(path, 0o700)
    return attempt(lambda: subprocess.run([path], check=True))
"""

    @case("FS18", controls="H9", twin="H9")
    async def test_a_program_put_there_does_not_run(self, engine: Engine) -> None:
        code = f"{self.RUN}\n[run(folder) for folder in ('/tmp', '/dev/shm', '/run/box')]"
        assert await ask(engine, code) == ["EACCES"] * 3
        weak = await ask(engine, code, weaken=scratch("noexec", "exec"))
        assert weak == ["done", "EACCES", "EACCES"]

    @case("FS19", controls="H19", twin="H19")
    async def test_a_program_in_memory_does_not_run(self, engine: Engine) -> None:
        code = """
def run():
    file = os.memfd_create("x")
    os.write(file, open("/bin/true", "rb").read())
    subprocess.run([f"/proc/self/fd/{file}"], check=True, pass_fds=[file])
attempt(run)
"""
        assert await ask(engine, code) == "EPERM"
        assert await ask(engine, code, weaken=UNCONFINED) == "done"

    @case("RE03", controls="H9", twin="H9")
    async def test_it_holds_what_the_policy_says_and_no_more(self, engine: Engine) -> None:
        code = """
written = 0
def fill():
    global written
    with open("/tmp/full", "wb", buffering=0) as file:
        while written < 64 << 20:
            written += file.write(b"x" * (1 << 20))
attempt(fill), written
"""
        assert await ask(engine, code) == ("ENOSPC", POLICY.limits.tmp_mb << 20)
        assert await ask(engine, code, weaken=scratch("size=8m", "size=128m")) == ("done", 64 << 20)

    @otherwise_under_gvisor("releases before 2026-07 do not limit the number of files")
    @case("RE10", controls="H9", twin="H9")
    async def test_it_holds_so_many_files_and_no_more(self, engine: Engine) -> None:
        code = """
made = 0
def make():
    global made
    while made < 2000:
        open(f"/tmp/{made}", "w").close()
        made += 1
attempt(make), made
"""
        said, made = await ask(engine, code)
        assert said == "ENOSPC"
        assert POLICY.limits.tmp_inodes - 10 < made < POLICY.limits.tmp_inodes
        assert await ask(engine, code, weaken=scratch("nr_inodes=256", "nr_inodes=4096")) == ("done", 2000)

    @pytest.mark.parametrize(("folder", "most"), [("/dev/shm", 1024), ("/run/box", 256)])  # noqa: S108 - the box's
    @otherwise_under_gvisor("releases before 2026-07 do not limit the number of files")
    @case("RE10", controls="H9", twin="H9")
    async def test_the_other_two_hold_so_many_as_well(self, engine: Engine, folder: str, most: int) -> None:
        code = f"""
made = 0
def make():
    global made
    while made < 100_000:
        os.close(os.open(f"{folder}/many-{{made}}", os.O_CREAT | os.O_WRONLY))
        made += 1
attempt(make), made
"""

        def without_a_limit(config: Config) -> None:
            mounts = config["HostConfig"]["Tmpfs"]
            mounts[folder] = mounts[folder].replace(f"nr_inodes={most}", "nr_inodes=200000")

        async with box(engine) as opened:
            said, made = await value(opened, ATTEMPT + code)
            assert said == "ENOSPC"
            assert most / 2 < made < most
            # They are no hindrance to the kernel that follows, nor to the supervisor that clears them away.
            assert (await opened.execute("os._exit(0)")).status == "died"
            assert await value(opened, "import os; os.listdir('/dev/shm')") == []
        assert await ask(engine, code, weaken=without_a_limit) == ("done", 100_000)

    @case("FS17", controls="H9", twin="H9")
    async def test_shared_memory_is_bounded_as_well(self, engine: Engine) -> None:
        code = """
def fill():
    with open("/dev/shm/full", "wb", buffering=0) as file:
        for _ in range(32): file.write(b"x" * (1 << 20))
attempt(fill)
"""
        assert await ask(engine, code) == "ENOSPC"

        def larger(config: Config) -> None:
            shm = config["HostConfig"]["Tmpfs"]
            shm["/dev/shm"] = shm["/dev/shm"].replace("size=16m", "size=64m")  # noqa: S108 - the box's

        assert await ask(engine, code, weaken=larger) == "done"


class TestSupervisor:
    LOOK = """
paths = ["mem", "environ", "maps", "fd/0", "fd/1", "exe", "cwd/x", "root/x", "auxv", "stack", "syscall", "io"]
found = {path: attempt(lambda: open("/proc/1/" + path, "rb").close()) for path in paths}
found | {"fd": attempt(lambda: os.listdir("/proc/1/fd"))}
"""

    @otherwise_under_gvisor("the supervisor is less protected (P1)")
    @case("FS01", "FS20", "FS21", controls="P1", twin="P1")
    async def test_its_memory_environment_and_descriptors_are_out_of_reach(self, engine: Engine) -> None:
        found = await ask(engine, self.LOOK)
        assert set(found.values()) == {"EACCES"}
        weak = await ask(engine, self.LOOK, weaken=with_a_dumpable_supervisor)
        assert {weak[path] for path in ("mem", "environ", "maps", "fd", "fd/1")} == {"done"}

    @otherwise_under_gvisor("the supervisor is less protected (P1)")
    @case("PF15", "FS22", controls="P1", twin="P1")
    async def test_its_stream_to_the_host_cannot_be_written_to(self, engine: Engine) -> None:
        code = "attempt(lambda: os.close(os.open('/proc/1/fd/1', os.O_WRONLY)))"
        assert await ask(engine, code) == "EACCES"
        assert await ask(engine, code, weaken=with_a_dumpable_supervisor) == "done"

    @otherwise_under_gvisor("the first process is not immune to signals")
    @case("KE41", controls="H22", alone="where it is no init it would be the host that is signalled")
    async def test_no_signal_from_inside_does_anything_to_it(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = """
import os, signal
sent = [number for number in signal.valid_signals() if not os.kill(1, number)]
len(sent)
"""
            assert await value(opened, code) > 60
            assert await value(opened, "1") == 1
            assert (await opened.execute("os._exit(0)")).status == "died"
            assert await value(opened, "2") == 2

    @case("KE43", controls="H22", alone="where it is no init it would be the host that is signalled")
    @otherwise_under_gvisor("the first process is not immune to signals")
    async def test_no_signal_that_the_kernel_sends_for_the_box_does_either(self, engine: Engine) -> None:
        code = """
import fcntl, signal
ends, F_SETSIG = [], 10
for number in (0, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, 34, signal.SIGIO):
    one, other = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, 1)
    fcntl.fcntl(one, F_SETSIG, number)
    fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    ends += [one, other]
    for _ in range(5): other.send(b"x")
len(ends)
"""
        async with box(engine) as opened:
            assert await value(opened, ATTEMPT + code) == 14
            assert await value(opened, "1") == 1
            assert (await opened.execute("os._exit(0)")).status == "died"  # and PID 1 saw that
            assert await value(opened, "2") == 2

    @case("KE41", controls="H19", twin="H19")
    async def test_its_limits_priority_and_processors_cannot_be_set(self, engine: Engine) -> None:
        code = """
import resource
[attempt(what) for what in (
    lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)),
    lambda: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)),
    lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    lambda: os.sched_setaffinity(1, {0}),
)]
"""
        assert await ask(engine, code) == ["EPERM"] * 4
        assert "done" in await ask(engine, code.replace("(0, 0)", "(512, 512)"), weaken=UNCONFINED)

    @case("FS25", "KE22", controls="H8 H6", twin="H6 H8")
    async def test_its_program_and_that_of_the_next_kernel_cannot_be_changed(self, engine: Engine) -> None:
        code = """
paths = ["/opt/box/sandbox_image/supervisor.py", "/opt/box/sandbox_image/startup.py", "/opt/box/python"]
[attempt(lambda: open(path, "r+b").close()) for path in paths]
"""
        assert set(await ask(engine, code)) <= {"EROFS", "EACCES"}

        def with_a_writable_root_of_its_own(config: Config) -> None:
            with_a_writable_root(config)
            without_filter_and_with_capabilities(config)

        assert set(await ask(engine, code, weaken=with_a_writable_root_of_its_own)) <= {"done", "ETXTBSY"}


class TestProc:
    @case("FS41", controls="P1", twin="P1")
    @otherwise_under_gvisor("the supervisor is less protected (P1)")
    async def test_no_file_of_the_supervisor_can_be_written(self, engine: Engine) -> None:
        code = """
import glob
paths = [path for folder in ("/proc/1", "/proc/1/task/1") for path in glob.glob(folder + "/*") if os.path.isfile(path)]
opened = {path.rpartition("/")[2] for path in paths if attempt(lambda: os.close(os.open(path, os.O_WRONLY))) == "done"}
sorted(opened), attempt(lambda: open("/proc/1/timerslack_ns", "w", buffering=1).write("1\\n"))
"""
        found = await ask(engine, code)
        weak = await ask(engine, code, weaken=with_a_dumpable_supervisor)
        assert found == (["timerslack_ns"], "EPERM")  # open to all, and still not to be written
        weak, _ = weak
        assert {"mem", "oom_score_adj", "coredump_filter", "clear_refs"} <= set(weak)

    @case("FS44", controls="P1", alone="that nothing receives them is how sockets are read, and no setting")
    async def test_descriptors_handed_to_the_supervisor_are_not_taken(self, engine: Engine) -> None:
        code = """
line = socket.socket(fileno=os.dup(3))
import json, struct
head = json.dumps({"id": os.urandom(16).hex(), "method": "budget"}).encode()
payload = b"\\x01" + struct.pack(">I", len(head)) + head
frame = struct.pack(">IB", len(payload), 17) + payload
for _ in range(20):
    attempt(lambda: socket.send_fds(line, [frame], [2] * 200))  # until too many are on their way
import glob
for path in glob.glob("/run/box/k*-1"):
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as peer:
            attempt(lambda: (peer.connect(path), socket.send_fds(peer, [b"x" * 64], [2] * 200)))
"""
        async with box(engine) as opened:
            pid = engine.inspect(opened.info.container)["State"]["Pid"]
            watching = os.access(f"/proc/{pid}/fd", os.X_OK) and not UNDER_GVISOR  # as root of the engine's machine
            before = open_in(pid) if watching else 0
            for _ in range(3):
                assert (await opened.execute(ATTEMPT + code)).ok
            assert await value(opened, "1") == 1
            if watching:
                assert open_in(pid) <= before + 2

    @case("FS45", "KE21", controls="H19 H27", twin="H19")
    async def test_a_terminal_from_ptmx_is_of_no_use(self, engine: Engine) -> None:
        code = """
attempt(lambda: os.close(os.open("/dev/tty", os.O_RDWR))), attempt(lambda: os.openpty())
"""
        tty, pair = await ask(engine, code)
        assert tty in ("ENXIO", "ENODEV", "EIO", "ENOENT")
        assert pair in ("EPERM", "EIO", "ENOENT", "EACCES")
        assert (await ask(engine, code, weaken=UNCONFINED))[1] == "done"
