"""The host's files and the box's own: what can be read, written and run, and what could be with one control off."""

from __future__ import annotations

import os
import secrets
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator import bundle
from orchestrator.errors import SandboxGoneError
from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox import hardening
from orchestrator.sandbox.engine import Engine
from orchestrator.transport import mux
from tests.escape.catalogue import case
from tests.support.live import ATTEMPT, POLICY, TIMEOUT, ask, box, value
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import (
    Config,
    Weaken,
    host,
    together,
    weakened_box,
    with_a_dumpable_supervisor,
    with_seccomp,
    without_clearing,
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

    @otherwise_under_gvisor("fewer of these files are there")
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
        assert len(found) > 7
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
            config["HostConfig"]["ShmSize"] = 64 << 20

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


POISON = """
import signal
code = "open('/tmp/ran', 'a').write(__file__ + ' ')"
for folder in ("/tmp", "/run/box", "/run/box/ipython", "/run/box/ipython/profile_default/startup", "/dev/shm"):
    os.makedirs(folder, exist_ok=True)
    for name in ("sitecustomize.py", "usercustomize.py", "json.py", "numpy.py", "ipykernel.py", "zmq.py", "00.py",
                 "ipython_config.py", "ipython_kernel_config.py", "jupyter_config.py", "jupyter_application_config.py",
                 "python313.zip", "pyvenv.cfg", "x.pth", ".pythonrc", ".pdbrc", "ld.so.preload"):
        open(f"{folder}/{name}", "w").write(code)
os.environ.update(LD_PRELOAD="/tmp/x.so", PYTHONPATH="/tmp", PYTHONSTARTUP="/tmp/00.py", PYTHONHOME="/tmp",
                  IPYTHONDIR="/tmp", JUPYTER_CONFIG_DIR="/tmp", JUPYTER_PATH="/tmp", BASH_ENV="/tmp/00.py")
for folder in ("/tmp", "/run/box"):
    os.chmod(folder, 0o300)  # nobody may list it
os._exit(0)
"""
FRESH = """
for folder in ("/tmp", "/run/box"):
    os.chmod(folder, 0o700)
import json, numpy, zmq
left = [os.path.join(folder, name) for top in ("/tmp", "/run/box", "/dev/shm") for folder, _, names in os.walk(top)
        for name in names if name not in ("k2-1", "k2-2", "k2-3", "k2-4", "README")]
files = {name: getattr(module, "__file__", None) or "/" for name, module in sys.modules.items()}
modules = sorted(name for name, file in files.items() if file.startswith(("/tmp", "/run")))
left, modules, [n for n in os.environ if n.startswith(("LD_", "PYTHON", "JUPYTER_P", "JUPYTER_CONF", "BASH"))]
"""


class TestNextKernel:
    @case("FS25", "FS40", controls="P1", twin="P1")
    async def test_it_finds_nothing_of_what_the_last_one_planted(self, engine: Engine) -> None:
        """The twin's supervisor, which is the control here, does not clear away what a kernel left."""
        async with box(engine) as opened:
            assert (await opened.execute(ATTEMPT + POISON)).status == "died"
            assert await value(opened, ATTEMPT + FRESH) == ([], [], [])
        async with weakened_box(POLICY, without_clearing) as opened:
            assert (await opened.execute(ATTEMPT + POISON)).status == "died"
            left, _, environment = await value(opened, ATTEMPT + FRESH)
            assert {"/tmp/sitecustomize.py", "/run/box/ipython/profile_default/startup/00.py"} <= set(left)  # noqa: S108
            assert environment == []

    @case("FS42", controls="P1", alone="to look is code of the supervisor, and no setting")
    async def test_its_context_is_the_one_that_was_sent_or_the_box_is_burnt(self, engine: Engine) -> None:
        code = """
path = "/proc/self/fd/4"
said = attempt(lambda: open(path, "r+b").write(b"another"))
os.fchmod(4, 0o600)
open(path, "r+b").write(b"another")
said
"""
        async with box(engine, context="the context") as opened:
            assert await value(opened, ATTEMPT + code) == "EACCES"
            # What is noticed comes just after the death that is told, or before it.
            assert (await opened.execute("os._exit(0)")).status in ("protocol_error", "died")
            with pytest.raises(SandboxGoneError, match="the context was changed in the box"):
                await opened.execute("context")
            assert opened.gone

    @case("FS23", controls="H18b H19", twin="H18b H19")
    async def test_no_core_is_dumped_to_a_file_or_to_the_hosts_crash_handler(self, engine: Engine) -> None:
        # The handler is started whatever the limit is, but for the value 1, so no cell may make it another.
        code = """
import resource
def to(soft, hard): return attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (soft, hard)))
limits = resource.getrlimit(resource.RLIMIT_CORE)
tried = [to(*pair) for pair in ((0, 0), (0, 1), (1, 1), (-1, -1))] + [
    syscall(160, 4, ctypes.byref((ctypes.c_ulong * 2)(0, 1))),
    syscall(302, 0, ctypes.c_ulong(4 | 1 << 32), ctypes.byref((ctypes.c_ulong * 2)(0, 1)), None),
]
child = os.fork()
if child == 0: os.chdir("/tmp"); os.abort()
limits, tried, os.WCOREDUMP(os.waitpid(child, 0)[1]), [n for n in os.listdir("/tmp") if n.startswith("core")]
"""
        one = hardening.CORE_BYTES
        assert await ask(engine, code) == ((one, one), ["ValueError"] * 4 + ["EPERM"] * 2, False, [])

        def with_cores(config: Config) -> None:
            (limit,) = (found for found in config["HostConfig"]["Ulimits"] if found["Name"] == "core")
            limit.update(Soft=1 << 20, Hard=1 << 20)

        without = together(with_cores, UNCONFINED)
        limits, tried, *_ = await ask(engine, code.replace("(0, 0), (0, 1), (1, 1)", "(9, 9)"), weaken=without)
        assert limits == (1 << 20, 1 << 20)
        assert tried[0] == "done"


class TestLog:
    @case("FS22", controls="H23 P1", twin="H23 P1")
    @otherwise_under_gvisor("the supervisor is less protected (P1)")
    async def test_nothing_is_written_to_a_log_of_the_host(self, engine: Engine) -> None:
        code = """
def flood():
    out = os.open("/proc/1/fd/2", os.O_WRONLY)
    for _ in range(100): os.write(out, b"x" * 10_000)
attempt(flood)
"""
        async with box(engine) as opened:
            assert await value(opened, ATTEMPT + code) == "EACCES"
            assert engine.inspect(opened.info.container)["LogPath"] == ""
        logged = host(LogConfig={"Type": "json-file", "Config": {}})
        async with weakened_box(POLICY, together(logged, with_a_dumpable_supervisor)) as opened:
            assert await value(opened, ATTEMPT + code) == "done"
            log = engine.inspect(opened.info.container)["LogPath"]
            assert log.endswith("-json.log")
            if os.access(Path(log).parent, os.X_OK):  # the engine is here, and we are root
                assert Path(log).stat().st_size > 0  # noqa: ASYNC240 - nobody waits


class TestImage:
    @case(
        "FS43", "KE22", controls="H8", alone="Linux itself copies what is written; it has not since CVE-2016-5195 alone"
    )
    async def test_its_files_cannot_be_changed_through_a_mapping_of_them(self, engine: Engine) -> None:
        code = """
import mmap
with open("/etc/passwd", "rb") as file:
    page = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    shared = attempt(lambda: mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE))
before = page[:]
def through_memory():
    for line in open("/proc/self/maps"):
        if line.rstrip().endswith("/etc/passwd"):
            with open("/proc/self/mem", "r+b", 0) as memory:
                memory.seek(int(line.split("-")[0], 16))
                memory.write(b"evil")
said = attempt(through_memory)
shared, page[:4] == b"evil" or said, open("/etc/passwd", "rb").read() == before
"""
        shared, said, same = await ask(engine, code)
        assert (shared, same) == ("EACCES", True)
        assert said is True or said != "done"
        read = "open('/etc/passwd', 'rb').read(4)"
        assert await ask(engine, read) == b"root"

    @case("KE14", controls="H4 H5", alone="the image has none to strip H4 from; test_kernel.py shows H4's twin")
    async def test_no_program_runs_as_another_user(self, engine: Engine) -> None:
        code = """
import glob
def run(*command): return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode
paths = [path for path in ("/bin/su", "/bin/mount", "/usr/bin/passwd", "/usr/bin/newgrp") if os.path.exists(path)]
modes = [oct(os.stat(path).st_mode & 0o6000) for path in paths]
set(modes) <= {"0o0"}, [run(path, "-c", "id") for path in paths if path.endswith("su")], os.geteuid() == os.getuid()
"""
        none, ran, same = await ask(engine, code)
        assert (none, same) == (True, True)
        assert 0 not in ran


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


class TestArtifacts:
    """There is no channel for files: what leaves a box is text, and a file is at most a name in it."""

    @case("FS09", "FS10", "FS12", "FS13", "FS14", "FS16", controls="P20 H10", alone="there is no channel to open")
    async def test_no_file_leaves_a_box_whatever_it_is(self, engine: Engine, tmp_path: Path) -> None:
        code = """
os.symlink("/etc/shadow", "/tmp/a.txt")
os.symlink("/proc/1/root", "/tmp/root")
with open("/tmp/sparse", "wb") as file: sparse = attempt(lambda: os.truncate(file.fileno(), 1 << 40))
os.chdir("/tmp")
made = 0
def deep():
    global made
    for made in range(200): os.mkdir("d"); os.chdir("d")
attempt(deep)
os.chdir("/tmp")
names = [attempt(lambda: open("/tmp/" + name, "w").close()) for name in ("..\\\\..\\\\x", "x" * 300, "a\\nb")]
socket.socket(socket.AF_UNIX).bind("/tmp/socket")
class Artifact:
    def _repr_mimebundle_(self, **_): return {"text/plain": "text", "text/uri-list": "file:///etc/shadow"}
from IPython.display import display
display(Artifact())
made > 100
"""
        async with box(engine) as opened:
            result = await opened.execute(ATTEMPT + code, TIMEOUT)
            assert result.ok, result
            assert result.result == "True"
            assert {field.name for field in fields(ExecutionResult)} == {
                *("status", "state_lost", "stdout", "stderr", "result", "error", "truncated", "elapsed_s", "detail")
            }
            assert not [name for name in dir(opened) if "file" in name or "artifact" in name or "copy" in name]
            assert (await opened.execute("os._exit(0)")).status == "died"
            assert await value(opened, "import os; os.listdir('/tmp')") == []
        # No frame of the wire holds a file.
        assert {kind.name for kind in mux.FROM_BOX} == {"KERNEL", "RPC", "HELLO", "READY", "CUT", "DIED", "FAULT"}
        assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - nobody waits
