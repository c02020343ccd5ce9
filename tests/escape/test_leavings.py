"""What a cell leaves: to the next kernel, to a log or a crash handler of the host, to the image, or as a file."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.errors import SandboxGoneError
from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox import hardening
from orchestrator.sandbox.engine import Engine
from orchestrator.transport import mux
from tests.escape.catalogue import case
from tests.support.live import ATTEMPT, POLICY, TIMEOUT, ask, box, value
from tests.support.policies import otherwise_under_gvisor
from tests.support.weakened import (
    Config,
    host,
    together,
    weakened_box,
    with_a_dumpable_supervisor,
    with_seccomp,
    without_clearing,
)

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

UNCONFINED = with_seccomp("unconfined")


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
                *("status", "state_lost", "stdout", "stderr", "result", "error", "truncated", "elapsed_s", "detail"),
                "ladder",
            }
            assert not [name for name in dir(opened) if "file" in name or "artifact" in name or "copy" in name]
            assert (await opened.execute("os._exit(0)")).status == "died"
            assert await value(opened, "import os; os.listdir('/tmp')") == []
        # No frame of the wire holds a file.
        frames = {"KERNEL", "RPC", "HELLO", "READY", "BOUND", "CUT", "DIED", "FAULT"}
        assert {kind.name for kind in mux.FROM_BOX} == frames
        assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - nobody waits
