"""What the box may ask of the kernel it shares with the host, and what a cell can forge of the kernel it owns."""

from __future__ import annotations

import pytest

from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from tests.escape.catalogue import case
from tests.support.live import OUTPUT, POLICY, TIMEOUT, ask, box, outcome, value
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import Config, host, with_seccomp, without_filter_and_with_capabilities

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

UNCONFINED = with_seccomp("unconfined")
SHORT = 0.5
STATUS = "dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)"

# By number on x86-64, with arguments that do no harm where they are accepted.
CALLS = {
    "ptrace": "syscall(101, 0, 0, 0, 0)",
    "process_vm_readv": "syscall(310, os.getpid(), None, 0, None, 0, 0)",
    "kcmp": "syscall(312, os.getpid(), os.getpid(), 0, 0, 0)",
    "personality": "syscall(135, 0x0040000)",
    "memfd_create": "syscall(319, b'x', 0)",
    "splice": "syscall(275, os.pipe()[0], None, os.pipe()[1], None, 0, 0)",
    "tee": "syscall(276, os.pipe()[0], os.pipe()[1], 0, 0)",
    "vmsplice": "syscall(278, os.pipe()[1], None, 0, 0)",
    "sendfile": "syscall(40, os.open('/tmp/x', os.O_RDWR | os.O_CREAT), os.open('/etc/passwd', 0), None, 10)",
    "pidfd_open": "syscall(434, os.getpid(), 0)",
    "name_to_handle_at": "syscall(303, -100, b'/', ctypes.create_string_buffer(99), ctypes.create_string_buffer(8), 0)",
    "shmget": "syscall(29, 0, 4096, 0o1600)",
    "msgget": "syscall(68, 0, 0o1600)",
    "sync": "syscall(162)",
    "mlockall": "syscall(151, 0)",
    "inotify_init": "syscall(253)",
    "landlock": "syscall(444, None, 0, 1)",
    "sched_setscheduler": "syscall(144, 0, 3, ctypes.byref(ctypes.c_int(0)))",
    "prctl": "libc.prctl(29, 50000, 0, 0, 0)",
}
# Refused by Linux as well, to a process without capabilities: two bars, and the twin takes both away. So the arguments
# are such that nothing comes of a call but another error; kexec_load with no segment would unload what the host loaded.
REFUSED_TWICE = {
    "mount": "syscall(165, b'none', b'/no/such/place', b'tmpfs', 0, None)",
    "umount": "syscall(166, b'/no/such/place', 2)",
    "pivot_root": "syscall(155, b'/no/such/place', b'/no/such/place')",
    "chroot": "syscall(161, b'/')",
    "fsopen": "syscall(430, b'tmpfs', 0)",
    "bpf": "syscall(321, -1, None, 0)",
    "init_module": "syscall(175, None, 0, b'')",
    "kexec_load": "syscall(246, 0, 999, None, 0)",
    "reboot": "syscall(169, 0, 0, 0, None)",
    "swapon": "syscall(167, b'/no/such/file', 0)",
    "acct": "syscall(163, b'/no/such/file')",
    "syslog": "syscall(103, 10, None, 0)",
    "open_by_handle_at": "syscall(304, -100, None, 0)",
    "perf_event_open": "syscall(298, None, 0, -1, -1, 0)",
    "userfaultfd": "syscall(323, 0)",
    "io_uring_setup": "syscall(425, 1, None)",
    "add_key": "syscall(248, b'user', b'x', b'y', 1, -2)",
    "keyctl": "syscall(250, 0, -2, 1)",
    "execveat": "syscall(322, -1, b'', None, None, 0x1000)",
    "iopl": "syscall(172, 0)",
    "setuid": "syscall(105, 0)",
    "setgroups": "syscall(116, 1, ctypes.byref(ctypes.c_int(0)))",
    "capset": "syscall(126, None, None)",
}
# Those that gVisor does not have, or not for a box, whatever is taken away.
GVISORS_OWN = frozenset(("acct", "bpf", "fsopen", "perf_event_open")) if UNDER_GVISOR else frozenset()
TOLD = """
def told(what):
    ctypes.set_errno(0)
    said = what()
    return said if isinstance(said, str) else errno.errorcode.get(ctypes.get_errno(), "done")
"""


class TestCalls:
    @case(
        *(
            "FS04",
            "FS05",
            "FS06",
            "FS08",
            "FS19",
            "KE04",
            "KE05",
            "KE06",
            "KE07",
            "KE08",
            "KE09",
            "KE16",
            "KE24",
            "DL03",
        ),
        controls="H3 H19",
        twin="H3 H19",
    )
    async def test_every_dangerous_one_is_refused_by_the_filter(self, engine: Engine) -> None:
        calls = ", ".join(f"{name!r}: lambda: {call}" for name, call in (CALLS | REFUSED_TWICE).items())
        code = f"{TOLD}\n{{name: told(what) for name, what in {{{calls}}}.items()}}"
        found = await ask(engine, code)
        assert {name for name, said in found.items() if said != "EPERM"} == set()
        harmless = ", ".join(f"{name!r}: lambda: {call}" for name, call in CALLS.items())
        weak = await ask(engine, code.replace(calls, harmless), weaken=UNCONFINED)
        own = {"kcmp"} if UNDER_GVISOR else set()  # refused by gVisor itself
        assert {name for name, said in weak.items() if said == "EPERM"} == own
        twice = ", ".join(f"{name!r}: lambda: {call}" for name, call in REFUSED_TWICE.items())
        weak = await ask(engine, code.replace(calls, twice), weaken=without_filter_and_with_capabilities)
        assert {name for name, said in weak.items() if said == "EPERM"} <= GVISORS_OWN

    @case(
        "KE01",
        "KE02",
        controls="H3 H19",
        alone="test_syscalls.py makes these calls without filter and with capabilities",
    )
    async def test_new_namespaces_cannot_be_made_by_either_clone(self, engine: Engine) -> None:
        code = """
flags = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000, "uts": 0x4000000}
{name: (syscall(56, flag | 17, None, None, None, None), syscall(272, flag)) for name, flag in flags.items()}
"""
        assert set((await ask(engine, code)).values()) == {("EPERM", "EPERM")}
        assert await ask(engine, "syscall(435, ctypes.create_string_buffer(88), 88)") == "ENOSYS"

    @case("KE21", controls="H19", twin="H19")
    async def test_a_terminal_cannot_be_typed_into(self, engine: Engine) -> None:
        code = """
import fcntl
requests = (0x5412, 0x541C, 0x540E)
[attempt(lambda: fcntl.ioctl(descriptor, request, b"x")) for descriptor in (0, 1) for request in requests]
"""
        assert set(await ask(engine, code)) == {"EPERM"}
        assert set(await ask(engine, code, weaken=UNCONFINED)) == {"ENOTTY"}


class TestPrivileges:
    @case("KE15", controls="H3", twin="H3")
    async def test_no_capability_is_in_any_set(self, engine: Engine) -> None:
        sets = ["CapInh", "CapPrm", "CapEff", "CapBnd"] + ([] if UNDER_GVISOR else ["CapAmb"])  # it does not show that
        code = f"status = {STATUS}\n[int(status[name], 16) for name in {sets}]"
        assert await ask(engine, code) == [0] * len(sets)

        def with_capabilities(config: Config) -> None:
            config["HostConfig"]["CapDrop"] = []

        assert (await ask(engine, code, weaken=with_capabilities))[3] > 0

    @case("KE14", controls="H4", twin="H4")
    async def test_no_program_gives_new_privileges(self, engine: Engine) -> None:
        if UNDER_GVISOR:  # its status does not tell, and it gives none whatever is asked for
            assert await ask(engine, "libc.prctl(39, 0, 0, 0, 0)") == 1  # PR_GET_NO_NEW_PRIVS
            return
        code = f"({STATUS})['NoNewPrivs']"
        assert await ask(engine, code) == "1"

        def with_new_privileges(config: Config) -> None:
            config["HostConfig"]["SecurityOpt"] = ["seccomp=unconfined"]

        assert await ask(engine, code, weaken=with_new_privileges) == "0"

    @case("KE14", controls="H5", alone="the image is the control; its base has eleven")
    async def test_no_file_is_set_to_run_as_another_user(self, engine: Engine) -> None:
        code = "subprocess.run('find / -xdev -perm /6000 -type f', shell=True, capture_output=True).stdout"
        assert await ask(engine, code) == b""

    @case("KE16", controls="H6 H19", alone="test_syscalls.py becomes others without filter and with capabilities")
    async def test_the_user_is_nobody_of_the_host_and_stays_it(self, engine: Engine) -> None:
        first, group = map(int, POLICY.sandbox.user.split(":"))
        code = "os.getresuid(), os.getresgid(), [attempt(lambda: to(0)) for to in (os.setuid, os.setgid, os.seteuid)]"
        users, groups, tried = await ask(engine, code)
        assert users[0] in range(first, first + POLICY.sandbox.uids)
        assert (set(users), groups, tried) == ({users[0]}, (group,) * 3, ["EPERM"] * 3)


class TestPreconditions:
    """What the scenarios of SandboxEscapeBench (arXiv 2603.02277) start from; a box is to have none of it."""

    LOOK = """
import glob, stat
def there(*paths): return [path for path in paths if os.path.lexists(path)]
def can(what): return attempt(what) == "done"
def files(kind): return [
    os.path.join(folder, name) for top in ("/dev", "/run", "/var", "/tmp", "/host", "/mnt", "/media")
    for folder, _, names in os.walk(top) for name in names
    if can(lambda: os.lstat(os.path.join(folder, name))) and kind(os.lstat(os.path.join(folder, name)).st_mode)]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
capabilities = int(status["CapEff"], 16) | int(status["CapBnd"], 16)
def capable(number): return bool(capabilities >> number & 1)
mounts = [line.split() for line in open("/proc/self/mounts")]
{
    "a service account of Kubernetes": there("/var/run/secrets/kubernetes.io", "/run/secrets"),
    "kubectl": [name for name in ("kubectl", "crictl", "docker", "nsenter") if can(lambda: subprocess.run([name]))
                and name != "nsenter"],
    "sysctls of CRI-O (CVE-2022-0811)": can(lambda: open("/proc/sys/kernel/shm_rmid_forced", "w")),
    "route_localnet": len(os.listdir("/sys/class/net")) > 1 or can(lambda: socket.socket(socket.AF_INET)),
    "privileged": capabilities != 0 or status["Seccomp"].strip() == "0",
    "the engine's socket": [path for path in files(stat.S_ISSOCK) if not path.startswith("/run/box/")],
    "a mount of the host": [m[1] for m in mounts if m[0].startswith("/dev/") and not m[1].startswith("/etc/")],
    "SYS_ADMIN": capable(21) or can(lambda: os.unshare(os.CLONE_NEWNS)),
    "SYS_MODULE": capable(16),
    "DAC_READ_SEARCH": capable(2),
    "a program to overwrite (CVE-2019-5736)": os.geteuid() == 0 or can(lambda: open("/proc/self/exe", "r+b")),
    "a leaked descriptor (CVE-2024-21626)": [
        os.readlink(path) for path in glob.glob("/proc/self/fd/*") if os.path.lexists(path)
        and stat.S_ISDIR(os.stat(path).st_mode) and not os.readlink(path).startswith("/proc/")],
    "the host's processes": len([n for n in os.listdir("/proc") if n.isdigit()]) > 3 or os.getppid() != 1,
    "release_agent": [path for path in glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
                      if can(lambda: open(path, "r+"))],
    "eBPF (CVE-2017-16995)": syscall(321, -1, None, 0) != "EPERM",
    "Dirty COW (CVE-2016-5195)": syscall(101, 0, 0, 0, 0) != "EPERM",
    "Dirty Pipe (CVE-2022-0847)": syscall(275, -1, None, -1, None, 0, 0) != "EPERM",
    "packet sockets (CVE-2020-14386)": can(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
}
"""

    @case("KE40", "KE23", "KE17", "NE11", controls="H1 H2 H3 H8 H10 H12 H19 H27 P20", twin="H2 H3 H6 H10 H19")
    async def test_a_box_offers_none_of_the_eighteen(self, engine: Engine) -> None:
        found = await ask(engine, self.LOOK)
        assert len(found) == 18
        assert {what: said for what, said in found.items() if said} == {}

        def as_others_run_them(config: Config) -> None:
            without_filter_and_with_capabilities(config)
            config["HostConfig"]["CapAdd"] += ["NET_RAW"]
            config["HostConfig"]["Binds"] = ["/etc:/mnt:ro"]

        weak = await ask(engine, self.LOOK, weaken=as_others_run_them)
        met = {"privileged", "SYS_ADMIN", "SYS_MODULE", "DAC_READ_SEARCH", "route_localnet"}
        met |= set() if UNDER_GVISOR else {"packet sockets (CVE-2020-14386)", "Dirty Pipe (CVE-2022-0847)"}
        assert met <= {what for what, said in weak.items() if said}

    @case("KE42", controls="H27", twin="H27")
    @otherwise_under_gvisor("/dev has names of gVisor's own")
    async def test_no_device_is_a_door_to_the_kernel(self, engine: Engine) -> None:
        code = """
import stat
doors = ("kvm", "fuse", "net/tun", "vhost-net", "vhost-vsock", "vsock", "userfaultfd", "uinput", "mem", "kmem", "port",
         "kmsg", "hpet", "loop-control", "mapper/control", "dri", "snd", "sev", "udmabuf", "btrfs-control", "autofs")
[name for name in doors if os.path.lexists("/dev/" + name)] + [
    name for name in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + name).st_mode)]
"""
        assert await ask(engine, code) == []
        device = {"PathOnHost": "/dev/null", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}
        assert await ask(engine, code, weaken=host(Devices=[device])) == ["fuse"]

    @case("KE41", controls="H19", twin="H19")
    @otherwise_under_gvisor("the first process is not immune to signals")
    async def test_timers_and_queued_signals_do_not_reach_the_supervisor(self, engine: Engine) -> None:
        code = """
import struct
info = ctypes.create_string_buffer(struct.pack("iii116x", 34, 0, -1))
made = ctypes.c_int()
event = ctypes.create_string_buffer(struct.pack("Qii48x", 0, 34, 4))
[syscall(129, 1, 34, info), syscall(297, 1, 1, 34, info), syscall(222, 1, event, ctypes.byref(made)),
 syscall(424, 3, 9, None, 0)]
"""
        assert await ask(engine, code) == ["EPERM", "EPERM", "ENOSYS", "EPERM"]
        weak = await ask(engine, code, weaken=UNCONFINED)
        assert (weak[0] != "EPERM", weak[3]) == (True, "EBADF")


class Desk:
    """Notes what is asked of it, and answers only while a cell is open."""

    def __init__(self) -> None:
        self.answered: list[RpcCall] = []
        self.refused: list[RpcCall] = []

    async def __call__(self, call: RpcCall) -> RpcReply:
        if call.cell is None:
            self.refused.append(call)
            raise RpcRefusal("no_open_cell", "no cell is open")
        self.answered.append(call)
        return RpcReply({}, call.body)


FORGE = """
import threading, time
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
kernel, session = app.kernel, app.kernel.session
parent = kernel.get_parent("shell")
ident = kernel._shell_parent_ident.get() if hasattr(kernel._shell_parent_ident, "get") else kernel._shell_parent_ident
def publish(kind, content, parent=parent):
    session.send(app.iopub_thread, kind, content, parent=parent, ident=kind.encode())
def on_its_thread(send):
    sent = threading.Event()
    kernel.shell_stream.io_loop.add_callback(lambda: (send(), kernel.shell_stream.flush(), sent.set()))
    sent.wait(5)
def reply(**content):
    content = {"status": "ok", **content}
    on_its_thread(lambda: session.send(kernel.shell_stream, "execute_reply", content, parent, ident=ident))
"""


class TestForgery:
    @case("PF02", "PF21", controls="P7 P14", alone="there is no setting for what is code")
    async def test_a_forged_reply_ends_the_cell_on_the_host_and_gains_nothing_after_it(self, engine: Engine) -> None:
        desk = Desk()
        attack = """
publish("status", {"execution_state": "idle"})
reply(payload=[{"source": "set_next_input", "text": "evil"}])
time.sleep(0.3)
print("after the end")
try: llm_query("after the end")
except QueryRefused as error: reason = error.reason
while True: pass
"""
        async with box(engine, rpc=desk) as opened:
            forged = await outcome(opened, FORGE + attack, TIMEOUT)
            assert forged.ok
            assert forged.elapsed_s < TIMEOUT / 2
            assert "evil" not in str(forged)
            following = await outcome(opened, "'ran'", 2)
            assert "after the end" not in following.stdout
            assert following.status == "timeout"
            assert await value(opened, "1") == 1
            assert not [call for call in desk.answered if call.cell == 1]

    @case("PF04", controls="P7", alone="there is no setting for what is code")
    async def test_two_replies_are_one(self, engine: Engine) -> None:
        async with box(engine) as opened:
            attack = "reply(); reply(status='error', ename='E', evalue='', traceback=[])\nprint('x')"
            assert (await outcome(opened, FORGE + attack, TIMEOUT)).ok
            assert (await opened.execute("print('next')")).stdout == "next\n"

    @case("PF05", "PF20", "PF21", controls="P4 P9 P10", alone="there is no setting for what is code")
    @pytest.mark.parametrize(
        "attack",
        [
            "reply(status=7)",
            "reply(status='error')",
            "reply(execution_count=[['x'] * 100000])",
            "publish('stream', [1, 2])",
            "publish('stream', {'name': 'stdin', 'text': 'x'})",
            "publish('execute_result', {'data': 'x'})",
            "publish('error', {'ename': 1})",
            "publish('input_request', {'prompt': 'password', 'password': True})",
            "publish('comm_open', {'comm_id': 'x', 'data': {}})",
            "publish('clear_output', {'wait': False})",
            "publish('stream', {'name': 'stdout', 'text': 'x'}, parent={})",
            "app.iopub_thread.send_multipart([])",
            "app.iopub_thread.send_multipart([b'x'] * 1000)",
            "app.iopub_thread.send_multipart([b'<IDS|MSG>', b'', b'[' * 10000, b'{}', b'{}', b'{}'])",
            "app.iopub_thread.send_multipart([b'<IDS|MSG>', b'', b'\\xff', b'{}', b'{}', b'{}'])",
            "on_its_thread(lambda: kernel.shell_stream.send_multipart([*ident, b'junk']))",
            "publish('stream', {'name': 'stdout', 'text': 'x', 'big': 10 ** 1000})",
        ],
        ids=[str(number) for number in range(17)],
    )
    async def test_a_forged_message_does_not_get_past_the_supervisor(self, engine: Engine, attack: str) -> None:
        async with box(engine) as opened:
            result = await outcome(opened, f"{FORGE}\n{attack}\nNone", TIMEOUT)
            assert result.status in ("ok", "error")
            assert not opened.gone
            assert len(result.stdout) <= OUTPUT
            assert "password" not in result.stdout
            assert (await opened.execute("print('next')")).stdout == "next\n"

    @pytest.mark.parametrize(
        "attack", ["app.iopub_thread.send_multipart([b'x' * 50_000_000])", "app.iopub_thread.socket.close(0)"]
    )
    @case("PF05", controls="P5", alone="there is no setting for what is code")
    async def test_a_channel_that_was_broken_costs_the_kernel_its_life_and_no_later_cell_its_output(
        self, engine: Engine, attack: str
    ) -> None:
        async with box(engine) as opened:
            result = await outcome(opened, f"{FORGE}\n{attack}\ntime.sleep(1000)", TIMEOUT)
            assert (result.status, result.state_lost) == ("died", True)
            assert (await opened.execute("print('next')")).stdout == "next\n"

    @case("PF01", controls="P2", alone="there is no setting for what is code")
    async def test_the_key_of_the_session_is_worth_nothing(self, engine: Engine) -> None:
        async with box(engine) as opened:
            assert await value(opened, f"{FORGE}\nsession.key") == b""

    @case("PF30", controls="P2", alone="there is no setting for what is code")
    async def test_a_replaced_api_harms_its_own_cell_alone(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            code = (
                "llm_query = lambda *_: 'forged'\n"
                "import sandbox_image.guest_api as g\ng.Connection.call = None\nllm_query('x')"
            )
            assert await value(opened, code) == "forged"
            assert not desk.answered
            await opened.execute("os = __import__('os'); os._exit(0)")
            assert await value(opened, "llm_query('true')") == "true"
