"""What a box is told of its host: its name, its paths, its processes, its secrets, by files and by failures."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator import RLM, bundle
from orchestrator.context import Context
from orchestrator.errors import EngineUnavailableError, HardeningError, ImageError, JournalError, SandboxStartError
from orchestrator.events import Envelope, SubcallStarted
from orchestrator.interpreter import Sandbox
from orchestrator.models.base import ModelReply
from orchestrator.policy import Policy
from orchestrator.sandbox import hardening
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcHandler, RpcReply
from tests.escape.catalogue import case
from tests.support import canaries
from tests.support.canaries import LOOK, Canaries
from tests.support.fakes import FakeModel
from tests.support.live import ATTEMPT, POLICY, TIMEOUT, ask, box, value
from tests.support.model_server import Body, Fault, ModelServer, Reply, prompt_of
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import Config, host, together, weakened_box, without_filter_and_with_capabilities

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


def without_a_name(config: Config) -> None:
    config["Hostname"] = ""


class TestNames:
    @case("HI01", controls="H26 H27", twin="H26 H27")
    @otherwise_under_gvisor("the name of the host is gVisor's to give, whatever is taken away")
    async def test_the_hosts_name_is_not_told(self, engine: Engine) -> None:
        code = "[os.uname().nodename, socket.gethostname(), open('/proc/sys/kernel/hostname').read().strip()]"
        assert await ask(engine, code) == [hardening.HOSTNAME] * 3
        weak = await ask(engine, code, weaken=together(host(UTSMode="host"), without_a_name))
        assert weak == [os.uname().nodename] * 3

    @case("HI01", controls="H25 H28", alone="whether the host has these is its own business")
    async def test_no_number_of_the_machine_is_told(self, engine: Engine) -> None:
        code = """
import glob
paths = ["/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/device-tree/serial-number"]
for pattern in ("class/dmi/id/*", "devices/virtual/dmi/id/*", "block/*/serial", "class/net/[!l]*/address"):
    paths += glob.glob("/sys/" + pattern)
def read(path):
    try: return open(path).read().strip()
    except OSError: return ""
{path: read(path) for path in paths if read(path)}
"""
        assert await ask(engine, code) == {}

    @case("HI02", controls="H10", twin="H10")
    async def test_no_path_and_no_users_name_is_told(self, engine: Engine, planted: Canaries) -> None:
        code = """
texts = [open(path).read() for path in ("/proc/self/mountinfo", "/proc/self/mounts", "/proc/1/cmdline", "/etc/passwd")]
texts += [repr(sys.path), repr(sys.argv), os.getcwd(), repr(dict(os.environ))]
"\\n".join(texts)
"""
        told = await ask(engine, code, "limits.output_kb=64")
        assert planted.find(told) == set()
        assert [fact for fact in canaries.told_of_the_host() if fact in told] == []

        def with_a_folder(config: Config) -> None:
            config["HostConfig"]["Binds"] = [f"{Path.cwd()}:/host:ro"]

        if not UNDER_GVISOR:  # it tells no path of a mount
            weak = await ask(engine, code, "limits.output_kb=64", weaken=with_a_folder)
            assert planted.find(weak) == {"the path of the current folder"}
            assert planted.take() == ["out of a box: the path of the current folder"]  # the watch saw it as well
        else:
            assert "/host" in await ask(engine, code, "limits.output_kb=64", weaken=with_a_folder)

    @case("HI03", controls="H12", twin="H12")
    @otherwise_under_gvisor("the box has no view of the host's cgroups")
    async def test_the_id_of_the_container_is_not_told_by_its_cgroup(self, engine: Engine) -> None:
        code = "open('/proc/self/cgroup').read() + open('/proc/1/cgroup').read()"
        assert re.findall("[0-9a-f]{64}", await ask(engine, code)) == []
        assert re.findall("[0-9a-f]{64}", await ask(engine, code, weaken=host(CgroupnsMode="host")))

    @case("HI40", "HI04", controls="H26", twin="H26")
    async def test_nobodys_name_is_the_boxs(self, engine: Engine) -> None:
        code = "import getpass\ngetpass.getuser(), os.path.expanduser('~'), os.environ.get('HOSTNAME', '')"
        assert await ask(engine, code) == ("box", hardening.SCRATCH, "")

        def named(config: Config) -> None:
            config["Hostname"] = "build-server"

        assert await ask(engine, "socket.gethostname()", weaken=named) == "build-server"


class TestKernel:
    MASKED = """
paths = ["/proc/cmdline", "/proc/kallsyms", "/proc/modules", "/proc/diskstats", "/proc/partitions", "/proc/keys",
         "/proc/interrupts", "/proc/key-users", "/proc/swaps", "/proc/timer_list", "/proc/kcore"]
told = [path for path in paths if attempt(lambda: open(path, "rb").read(64)) == "done" and open(path, "rb").read(64)]
folders = [path for path in ("/sys/devices", "/sys/firmware", "/sys/kernel", "/sys/module", "/proc/bus", "/proc/fs")
           if os.path.isdir(path) and os.listdir(path)]
told, folders
"""

    @case("HI06", "HI01", controls="H25", twin="H25")
    @otherwise_under_gvisor("/proc is gVisor's own")
    async def test_its_command_line_symbols_disks_and_modules_are_masked(self, engine: Engine) -> None:
        assert await ask(engine, self.MASKED) == ([], [])
        told, folders = await ask(engine, self.MASKED, weaken=host(MaskedPaths=[], ReadonlyPaths=[]))
        assert {"/proc/cmdline", "/proc/kallsyms"} <= set(told)
        assert {"/sys/devices", "/sys/kernel"} <= set(folders)

    @case("HI06", controls="H19 H27", twin="H3 H19")
    async def test_its_log_is_not_told(self, engine: Engine) -> None:
        code = """
page = ctypes.create_string_buffer(64)
syscall(103, 3, page, 64), syscall(103, 10, None, 0), attempt(lambda: open("/dev/kmsg", "rb"))
"""
        read, size, device = await ask(engine, code)
        assert (read, size) == ("EPERM", "EPERM")
        assert device in ("ENOENT", "EPERM", "EACCES")
        weak = await ask(engine, code, weaken=without_filter_and_with_capabilities)
        assert weak[1] == "done"

    @case("HI10", "HI42", controls="H17", alone="a known residual: it is told, and the threat model says so")
    async def test_what_is_told_all_the_same_is_in_the_threat_model(self, engine: Engine) -> None:
        code = """
told = {"/proc/stat": "load", "/proc/loadavg": "load", "/proc/uptime": "uptime", "/proc/meminfo": "memory",
        "/proc/sys/kernel/random/boot_id": "boot_id", "/proc/version": "kernel version"}
found = {word for path, word in told.items() if attempt(lambda: open(path).read()) == "done"}
sorted(found | ({"statvfs"} if os.statvfs("/").f_blocks else set()))
"""
        model = " ".join(bundle.path("policies/THREAT_MODEL.md").read_text("utf-8").split())
        residual = model.partition("## Residual risks")[2].partition("## ")[0]
        assert [word for word in await ask(engine, code) if word not in residual] == []
        assert "timing channels exist" in residual


class TestSecrets:
    """Every canary of the host is looked for in all that the box can see, and in the memory of its kernel."""

    @case("HI09", "HI41", "HI04", "HI05", controls="H10 H26 H27 P1 P2", twin="P2")
    async def test_none_is_in_the_files_processes_or_memory_of_a_box_and_one_put_there_is_found(
        self, engine: Engine, planted: Canaries
    ) -> None:
        """The twin is a box that holds a token: what P2 says no box does."""
        memory = not UNDER_GVISOR  # its releases of 2022 have no /proc/self/mem
        code = f"{LOOK}\nfound, files, scanned = look({memory})\nfound, files, scanned"
        async with box(engine, "limits.cell_timeout_s=60", context="the context") as opened:
            found, files, scanned = await value(opened, ATTEMPT + code)
            assert found == []
            assert files > (50 if UNDER_GVISOR else 300)
            assert scanned >= (0 if UNDER_GVISOR else 20 << 20)

            in_memory, in_a_file = canaries.new(), planted.plant("a file of the box")
            await value(opened, f"import os\ntoken = {in_memory!r}\nopen('/tmp/{in_a_file}', 'w').close()")
            found, _, _ = await value(opened, ATTEMPT + code)
            assert set(found) >= {in_a_file} | ({in_memory} if memory else set())
            assert planted.take() != []  # the watch saw it leave, too

    @case("HI09", controls="P2 P18", alone="the test before it has the twin")
    async def test_a_key_that_a_client_holds_is_in_no_call_and_no_answer(
        self, engine: Engine, planted: Canaries
    ) -> None:
        assert planted.model is not None

        async def desk(call: RpcCall) -> RpcReply:
            raise RuntimeError(f"{planted.model!r} {os.environ['ANTHROPIC_API_KEY']} at {Path.cwd()}")

        async with box(engine, rpc=desk) as opened:
            result = await opened.execute("llm_query('x')", TIMEOUT)
            assert result.error is not None
            assert "handler_failed" in result.error.value
            assert planted.find(repr(result)) == set()


# Every way of having a call refused that a cell can think of; what was said is kept, and told at the end.
ERRORS = """
import gc, traceback
said = []
def attempt(what):
    try:
        said.append(str(what()))
    except BaseException as error:
        said.append("".join(traceback.format_exception(error)))
        said.append(repr((error, error.args, getattr(error, "reason", None), getattr(error, "limit", None))))
call = next(found for found in gc.get_objects() if type(found).__name__ == "Connection" and hasattr(found, "call")).call
for arguments in ({"model": "gpt"}, {"model": []}, {"model": {"a": 1}}, {"model": "x" * 500}, {"model": "__class__"},
                  {"model": "../../etc"}, {"max_tokens": -1}, {"max_tokens": True}, {"max_tokens": 2 ** 62},
                  {"max_tokens": 0.5}, {"max_tokens": "1"}, {"model": "openai:no-key"}, {"model": "no-provider"}):
    attempt(lambda: llm_query("x", **arguments))
for prompt in ("", " ", 1, None, "x" * 20_000_000):
    attempt(lambda: llm_query(prompt))
for method in ("nothing", "__class__", "a.b", "_broker", "x" * 32, "batch_close", "batch_open"):
    if "." not in method:
        attempt(lambda: call(method, {}, ""))
for params in ({"depth": 0}, {"parent": None}, {"run": "x"}, {"batch": "x"}, {"batch": 1}, {"n": 1}, {"": ""}):
    for method in ("llm_query", "rlm_query", "budget", "final", "batch_open"):
        attempt(lambda: call(method, params, "x"))
for layout in ({"kind": "list", "lengths": [-1]}, {"kind": "dict", "names": ["a", "a"], "lengths": [1, 1]}, {}, 7):
    attempt(lambda: call("rlm_query", {"query": "q", "layout": layout}, "x"))
attempt(lambda: llm_query_batched(["x"] * 100_000))
attempt(lambda: llm_query_batched(["fault 400", "fault 413", "fault 500"]))
for fault in FAULTS:
    attempt(lambda: llm_query(fault))
for _ in range(4):
    attempt(lambda: rlm_query("a child that fails", "its context"))
"""


class TestErrors:
    """Whatever fails on the host, the box learns a word and a plain sentence."""

    FAULTS = ("fault 400", "fault 404", "fault 413", "fault 422", "fault 429", "fault 500", "fault 529", "junk")

    @case("HI08", controls="P18 P19", alone="what is told is code; test_none_is_in_the_files has the watch's twin")
    async def test_no_failure_tells_a_secret_a_path_or_a_models_name(
        self, engine: Engine, planted: Canaries, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The provider quotes the key, paths and the model's name; children fail with all of it in their message."""
        secrets = " ".join(planted.places)
        name = next(canary for canary, place in planted.places.items() if place == "the name of a model")

        def provider(body: Body, _n: int) -> Reply | Fault:
            word, _, status = prompt_of(body).partition(" ")
            if word == "fault":
                return Fault.status(int(status), message=f"{secrets} {body.get('model')}", x_should_retry="false")
            return Fault.malformed() if word == "junk" else Reply("an answer")

        kinds = EngineUnavailableError, ImageError, SandboxStartError
        failures = iter((*(kind(secrets) for kind in kinds), HardeningError([secrets])))

        @asynccontextmanager
        async def open_box(policy: Policy, context: Context, rpc: RpcHandler) -> AsyncIterator[Sandbox]:
            if context == "its context":
                raise next(failures)
            async with Sandbox.open(policy, context, rpc=rpc, engine=engine) as opened:
                yield opened

        report = f"{ERRORS.replace('FAULTS', repr(self.FAULTS))}\nFinal = '\\n'.join(said)"
        look = f"{LOOK}\nfound, *_ = look({not UNDER_GVISOR})\nprint('looked', found)"
        # What is looked for last is what all of it left in the memory of the kernel.
        root = FakeModel([ModelReply(f"```repl\n{report}\n{look}\n```")], name=name)
        policy = POLICY.override(["models.allowed=['openai:no-key','no-provider']", "limits.output_kb=512"])
        with ModelServer(provider) as server:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            monkeypatch.delenv("OPENAI_API_KEY")
            rlm = RLM(model=root, sub_model=f"anthropic:{name}", policy=policy, journal=tmp_path, open_box=open_box)
            result = await rlm.acomplete("the context", "What is it?")
        assert result.status == "answered", result
        assert result.answer is not None
        for word in ("invalid_params", "unknown_method", "model_not_allowed", "model_request", "child_failed"):
            assert word in result.answer
        assert planted.find(result.answer) == set()
        assert result.journal is not None
        journal = result.journal.read_text("utf-8")
        assert "looked []" in journal
        # The journal is the operator's: it names models. It holds no key, no password and no path.
        told = {place for place in planted.find(journal) if "key" in place or "password" in place}
        assert told <= {"another key in the environment", "a password in the environment"}, told

    @case("HI08", controls="P18 P25", alone="what is told is code")
    @pytest.mark.usefixtures("engine")
    async def test_neither_does_a_journal_that_cannot_be_written(self) -> None:
        def sink(envelope: Envelope) -> None:
            if isinstance(envelope.event, SubcallStarted):
                raise JournalError(f"no space left on device: {Path.cwd()}")

        code = "import time\ntry: llm_query('x')\nexcept BaseException as error: print(repr(error))\ntime.sleep(0.2)"
        root = FakeModel([ModelReply(f"```repl\n{code}\n```")])
        result = await RLM(model=root, policy=POLICY, on_event=sink).acomplete("the context", "What is it?")
        assert result.status == "failed"
        assert isinstance(result.error, JournalError)

    @case("HI08", controls="H29", alone="what is told is code")
    async def test_a_box_that_does_not_start_is_told_of_to_the_operator_alone(
        self, engine: Engine, planted: Canaries, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hardening, "supervisor_settings", lambda _policy: {"nonsense": 1})
        with pytest.raises(SandboxStartError) as caught:
            async with box(engine):
                pytest.fail("it cannot have started")
        # What its supervisor says is of the box: no path or name of the host is in it.
        assert planted.find(str(caught.value)) == set()
        assert planted.find("".join(traceback.format_exception_only(caught.value))) == set()


class TestMarkOfTheWatch:
    @case("HI41", controls="P18", twin="P18")
    async def test_a_secret_that_is_told_inward_is_seen_by_the_watch(self, engine: Engine, planted: Canaries) -> None:
        """The twin is a host whose answer tells what it should not, in both directions."""

        async def telling(call: RpcCall) -> RpcReply:
            return RpcReply({}, os.environ["ANTHROPIC_API_KEY"])

        async with box(engine, rpc=telling) as opened:
            assert await value(opened, "len(llm_query('x'))") > 0
            assert planted.take() == ["into a box: the key in the environment"]
            assert await value(opened, "print(llm_query('x'))") is None
            assert set(planted.take()) == {f"{way} a box: the key in the environment" for way in ("into", "out of")}


@case("HI41", controls="P2", twin="P2")
async def test_a_weakened_box_is_watched_as_well(engine: Engine, planted: Canaries) -> None:
    secret = os.environ["DEPLOYMENT_PASSWORD"]
    async with weakened_box(POLICY, lambda _config: None) as opened:
        await opened.execute(f"print({secret[:9]!r} + {secret[9:]!r})")
    assert planted.take() == ["out of a box: a password in the environment"]
