"""Out of the box there is one stream and no network: attacks, and what each does where its one control is off."""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path

import pytest

from orchestrator.sandbox import hardening
from orchestrator.sandbox.engine import Engine
from tests.escape.catalogue import case
from tests.support.live import POLICY, ask, box, value
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import Config, host, run_program, together, weakened_box, with_seccomp

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

UNCONFINED = with_seccomp("unconfined")


def without_a_name(config: Config) -> None:
    config["Hostname"] = ""
    config["NetworkDisabled"] = False


def on_the_hosts_network(config: Config) -> None:
    config["HostConfig"]["NetworkMode"] = "host"
    config["NetworkDisabled"] = False


class TestSockets:
    @case("NE02", "NE07", "NE08", "NE09", controls="H2", twin="H2")
    @pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW", "SOCK_SEQPACKET"])
    async def test_of_all_families_only_unix_sockets_can_be_made(self, engine: Engine, kind: str) -> None:
        code = f"{{n: attempt(lambda: socket.socket(n, socket.{kind}).close()) for n in range(46)}}"
        found = await ask(engine, code)
        others = {family: said for family, said in found.items() if family != socket.AF_UNIX}
        assert set(others.values()) == {"EPERM"}
        assert found[socket.AF_UNIX] in ("done", "ESOCKTNOSUPPORT")
        weak = await ask(engine, code, weaken=UNCONFINED)
        if kind in ("SOCK_STREAM", "SOCK_DGRAM"):
            assert weak[socket.AF_INET] == "done"
        assert weak != found

    @otherwise_under_gvisor("there is no network whatever is taken away")
    @case("NE02", "NE04", "NE05", "NE06", controls="H1 H2", twin="H2")
    async def test_a_connection_to_anywhere_fails_at_its_socket(self, engine: Engine) -> None:
        code = """
addresses = ["1.1.1.1", "169.254.169.254", "172.17.0.1", "192.168.65.7", "127.0.0.1"]
[attempt(lambda: socket.create_connection((address, 80), 1)) for address in addresses]
"""
        assert set(await ask(engine, code)) == {"EPERM"}
        weak = await ask(engine, code, weaken=UNCONFINED)
        assert set(weak) == {"ENETUNREACH", "ECONNREFUSED"}

    @case("NE03", controls="H1 H2", alone="without the filter there is still no server to ask")
    async def test_no_name_is_resolved(self, engine: Engine) -> None:
        assert await ask(engine, "attempt(lambda: socket.getaddrinfo('example.com', 80))") != "done"
        assert await ask(engine, "attempt(lambda: socket.gethostbyname('example.com'))") != "done"

    @case("NE02", "NE13", controls="H2", twin="H2")
    async def test_no_port_can_be_opened(self, engine: Engine) -> None:
        code = "attempt(lambda: socket.create_server(('0.0.0.0', 8888)).close())"
        assert await ask(engine, code) == "EPERM"
        assert await ask(engine, code, weaken=UNCONFINED) == "done"

    @otherwise_under_gvisor("a socket of the host cannot be reached whatever is taken away (--host-uds)")
    @case("NE11", controls="H10", twin="H10")
    async def test_no_socket_of_the_host_is_in_reach(self, engine: Engine, tmp_path: Path) -> None:
        code = """
import stat
found = []
for folder, _, names in os.walk("/"):
    for name in names:
        path = os.path.join(folder, name)
        if attempt(lambda: os.lstat(path)) == "done" and stat.S_ISSOCK(os.lstat(path).st_mode):
            found.append(path)
[path for path in found if not path.startswith(("/run/box/", "/proc/"))]
"""
        assert await ask(engine, code) == []
        tmp_path.chmod(0o755)  # noqa: ASYNC240 - nobody waits
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "engine.sock"))

            def with_a_socket(config: Config) -> None:
                config["HostConfig"]["Binds"] = [f"{tmp_path}:/host"]

            assert await ask(engine, code, weaken=with_a_socket) == ["/host/engine.sock"]


@otherwise_under_gvisor("there is no network whatever is taken away")
@case("NE01", controls="H1", twin="H1")
async def test_there_is_no_interface_but_loopback(engine: Engine) -> None:
    code = "sorted(os.listdir('/sys/class/net')), len(open('/proc/net/route').readlines())"
    assert await ask(engine, code) == (["lo"], 1)
    names, _ = await ask(engine, code, weaken=on_the_hosts_network)
    assert sorted(names) == sorted(path.name for path in Path("/sys/class/net").iterdir())  # noqa: ASYNC240 - nobody waits


class TestSecrets:
    LOOK = """
def look(folder):
    found = b""
    for name in ("environ", "cmdline", "comm", "mountinfo"):
        try: found += open(f"/proc/{folder}/{name}", "rb").read()
        except OSError: pass
    return found
seen = b"".join(look(n) for n in os.listdir("/proc") if n.isdigit())
seen += repr((dict(os.environ), os.uname(), os.getcwd(), sys.argv, sys.path)).encode()
seen += b"".join(open(p, "rb").read() for p in ("/etc/hostname", "/etc/hosts", "/etc/passwd") if os.path.exists(p))
"""

    @case("HI04", "HI01", controls="H26", twin="H26")
    async def test_a_secret_in_the_hosts_environment_is_nowhere_in_the_box(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        canary = "canary" + secrets.token_hex(8)
        monkeypatch.setenv("ANTHROPIC_API_KEY", canary)
        monkeypatch.setenv("HTTP_PROXY", f"http://{canary}@proxy")
        halves = f"{canary[:10]!r} + {canary[10:]!r}"  # the whole is in the cell alone, and so in the kernel's memory
        assert await ask(engine, f"{self.LOOK}\nseen.count(({halves}).encode())") == 0

        def named_after_it(config: Config) -> None:
            config["Hostname"] = canary

        assert await ask(engine, f"{self.LOOK}\nseen.count(({halves}).encode())", weaken=named_after_it) > 0

    @case("HI04", controls="H26", alone="the test before it has the twin")
    async def test_the_environment_is_exactly_what_the_supervisor_sets(self, engine: Engine) -> None:
        found = await ask(engine, "dict(os.environ)")
        # Below the line: what ipykernel sets for the programs a cell starts.
        assert set(found) == {
            *("PATH", "HOME", "TMPDIR", "LANG", "TZ", "IPYTHONDIR", "JUPYTER_NO_CONFIG"),
            *("PYDEVD_DISABLE_FILE_VALIDATION", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
            "USER",
            *("TERM", "CLICOLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PAGER", "GIT_PAGER"),
        }
        assert found["HOME"] == hardening.SCRATCH

    @case("HI01", "HI03", controls="H12 H26", alone="test_host_info.py has the twin")
    async def test_host_names_and_paths_are_neutral(self, engine: Engine) -> None:
        code = "socket.gethostname(), os.getcwd(), open('/proc/self/cgroup').read(), open('/proc/1/cmdline').read()"
        name, folder, cgroup, command = await ask(engine, code)
        assert name == hardening.HOSTNAME
        assert folder == hardening.SCRATCH
        assert all(line.endswith(":/") for line in cgroup.splitlines())
        settings = json.loads(command.split("\0")[-2])
        assert all(type(number) in (int, bool) for number in settings.values())

    @case("HI05", controls="H27 H22", twin="H27")
    @otherwise_under_gvisor("the box has processes of its own whatever is taken away")
    async def test_processes_of_the_host_are_not_there(self, engine: Engine) -> None:
        look = "sorted(int(n) for n in os.listdir('/proc') if n.isdigit())"
        assert len(await ask(engine, look)) == 2
        # No supervisor may run among the host's processes, so this twin is a program that looks and ends.
        program = f"import os; print({look}, os.getpid())"
        seen, _, own = (await run_program(engine, POLICY, program, host(PidMode="host"))).rpartition(" ")
        assert int(own) != 1
        assert os.getpid() in json.loads(seen)


@case("NE14", "NE40", controls="H1", twin="H1")
async def test_two_boxes_cannot_reach_each_other(engine: Engine) -> None:
    async with box(engine) as first, box(engine) as second:
        listen = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0meeting'); s.listen(); 1"
        assert await value(first, listen) == 1
        connect = """
import socket
try: socket.socket(socket.AF_UNIX).connect("\\0meeting"); found = "done"
except OSError as error: found = error.strerror
found
"""
        assert await value(second, connect) == "Connection refused"
        assert await value(first, connect) == "done"
        if not UNDER_GVISOR:  # there is no network namespace to join
            joined = host(NetworkMode=f"container:{first.info.container}")
            async with weakened_box(POLICY, together(joined, without_a_name)) as third:
                assert await value(third, connect) == "done"
