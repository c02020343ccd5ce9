"""A few representative attacks, tried on an open box: the quick answer to "does it hold on this machine?".

Each is an ordinary cell that tries one thing and says what came of it. It is contained when that is what the control
named with it gives, and nothing else: a refusal for another reason says nothing of the control. In a box with its
controls taken away every one of them says something else (``tests/docker/test_selfcheck.py``). What a box is proven
against is the escape suite; this is a look.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.interpreter import Sandbox
from orchestrator.kernel.result import ExecutionResult
from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor
from orchestrator.text import one_line

# Each takes some milliseconds; under gVisor, and on a loaded machine, more.
CELL_S = 30.0
HANG_S = 0.2
# What the ladder may add to a cell's timeout (orchestrator/kernel/client.py), a busy host included.
LADDER_S = 3.0
_SAID_MOST = 60

_PREAMBLE = """
import ctypes, errno, os, signal, socket
_libc = ctypes.CDLL(None, use_errno=True)
def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return type(error).__name__
    return "done"
def call(name, *arguments):
    if getattr(_libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def all_of(whats):
    return " ".join(sorted({attempt(what) for what in whats}))
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """Something a box must not be able to do.

    Attributes:
        what: what is tried.
        controls: what stops it.
        code: its last expression is a text, an error's name for a refusal; ``{pids}`` and ``{canary!r}`` are filled in.
        contained: the texts of a box that holds.
    """

    what: str
    controls: tuple[str, ...]
    code: str
    contained: frozenset[str]


def _attack(what: str, controls: str, code: str, contained: str = "EPERM") -> Attack:
    return Attack(what, tuple(controls.split()), code, frozenset(contained.split("|")))


# In a child: a kernel that has become its parent's tracee would stop at its next signal.
_TRACED = """
def traced():
    try:
        child = os.fork()
    except OSError as error:
        return errno.errorcode[error.errno]
    if not child:
        os._exit(ctypes.get_errno() if _libc.ptrace(0, 0, None, None) == -1 else 0)
    return errno.errorcode.get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "done")
"""
# The limit is on both, and threads take no memory to speak of: under gVisor forks would end the box before it is met.
_THREADS = """
def threads():
    import threading
    enough = threading.Event()
    try:
        for _ in range({pids} + 8):
            threading.Thread(target=enough.wait).start()
    except RuntimeError:
        return "refused"
    finally:
        enough.set()
    return "done"
"""
_DROPPED = """
def dropped():
    with open("/tmp/doctor", "w") as program:
        program.write("#!/bin/sh\\n")
    os.chmod("/tmp/doctor", 0o700)
    try:
        return attempt(lambda: os.waitpid(os.posix_spawn("/tmp/doctor", ["doctor"], {}), 0))
    finally:
        os.unlink("/tmp/doctor")
"""
_REACHED = """
def reached():
    places = [root + {canary!r} for root in ("", "/host", "/proc/1/root")] + ["/var/run/docker.sock"]
    return ", ".join(place for place in places if attempt(lambda: os.stat(place)) == "done") or "nothing"
"""

ATTACKS: tuple[Attack, ...] = (
    _attack(
        "open a socket to the network",
        "H1 H2",
        "all_of([lambda: socket.socket(socket.AF_INET), lambda: socket.socket(socket.AF_INET6)])",
    ),
    _attack(
        "open sockets into the kernel (AF_ALG, netlink, vsock, packet, RxRPC)",
        "H2",
        "all_of([lambda f=f: socket.socket(f, 2) for f in (38, 16, 40, 17, 33)])",
    ),
    _attack(
        "splice pages of a file into a pipe",
        "H19",
        "attempt(lambda: os.splice(os.open('/etc/passwd', 0), os.pipe()[1], 1))",
    ),
    _attack("mount a file system", "H3 H19", "attempt(lambda: call('mount', b'none', b'/tmp', b'tmpfs', 0, None))"),
    _attack("make a user namespace", "H19", "attempt(lambda: call('unshare', 0x10000000))"),
    _attack("be traced by another process", "H19", f"{_TRACED}\ntraced()"),
    _attack("become root", "H3 H6", "attempt(lambda: os.setuid(0))"),
    _attack("write to the root file system", "H8", "attempt(lambda: os.mkdir('/var/tmp/doctor'))", "EROFS"),
    _attack("run a program dropped in /tmp", "H9", f"{_DROPPED}\ndropped()", "EACCES|EPERM"),
    _attack("reach a file of the host, or the engine's socket", "H10", f"{_REACHED}\nreached()", "nothing"),
    _attack(
        "open the supervisor's stream and memory",
        "P1",
        "all_of([lambda f=f: open('/proc/1/' + f, 'rb').close() for f in ('fd/0', 'mem')])",
        "EACCES",
    ),
    _attack("start threads without end", "H16", f"{_THREADS}\nthreads()", "refused"),
)
HANG = Attack(
    "hang, deaf to interrupts",
    ("P7", "P17"),
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    frozenset(("ended",)),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attack.

    Attributes:
        attack: which.
        said: what the box said came of it; of a stranger's making if the box does not hold.
        contained: whether that is what a box says that holds.
        known: why it is no finding that it was not contained, under the runtime of this box; else empty.
        elapsed_s: seconds it took.
    """

    attack: Attack
    said: str
    contained: bool
    known: str
    elapsed_s: float

    @property
    def failed(self) -> bool:
        """Whether a box that is as the policy demands would not have said that."""
        return not self.contained and not self.known


async def boot_id(box: Sandbox, policy: Policy) -> str:
    """Return what a fresh box says its kernel's start is called (random(4)); empty if it does not say."""
    result = await box.execute(
        "open('/proc/sys/kernel/random/boot_id').read().strip()", min(CELL_S, policy.limits.cell_timeout_s)
    )
    return _said(result) if result.ok else ""


async def run(box: Sandbox, policy: Policy) -> AsyncIterator[Outcome]:
    """Try every attack, then a cell that hangs; the box is of no further use.

    Args:
        box: a fresh one.
        policy: it was opened with.

    Raises:
        SandboxGoneError: the box died of an attack.
    """
    limit = min(CELL_S, policy.limits.cell_timeout_s)
    under_gvisor = gvisor.serves({"kernel": box.info.kernel})
    prepared = await box.execute(_PREAMBLE, limit)
    with _canary() as canary:
        for attack in ATTACKS:
            code = attack.code.replace("{pids}", str(policy.limits.pids)).replace("{canary!r}", repr(canary))
            result = await box.execute(code, limit) if prepared.ok else prepared
            said = _said(result)
            contained = said in attack.contained
            known = _known_of_gvisor(attack) if under_gvisor and not contained else ""
            yield Outcome(attack, said, contained, known, result.elapsed_s)
    yield await _hang(box, limit)


async def _hang(box: Sandbox, limit: float) -> Outcome:
    timeout = min(HANG_S, limit)
    result = await box.execute(HANG.code, timeout)
    ended = result.status == "timeout" and result.elapsed_s < timeout + LADDER_S
    said = "ended" if ended else f"{result.status} after {result.elapsed_s:.1f} s"
    return Outcome(HANG, said, ended, "", result.elapsed_s)


def _known_of_gvisor(attack: Attack) -> str:
    found = (gvisor.DIFFERENCES.get(control) for control in attack.controls)
    return next((difference.why for difference in found if difference and difference.inside == "reported"), "")


def _said(result: ExecutionResult) -> str:
    """Return what the expression's value was, on one line: it is a text of the box, whatever it holds."""
    if result.status != "ok" or result.result is None:
        return result.error.name if result.error is not None else result.status
    return one_line(result.result.strip("'\""), _SAID_MOST)


@contextmanager
def _canary() -> Iterator[str]:
    """Yield the path of a file on this host whose name nobody can know."""
    with tempfile.TemporaryDirectory(prefix="rlm-sandbox-") as folder:
        path = Path(folder) / secrets.token_hex(8)
        path.write_text(json.dumps(secrets.token_hex(16)), encoding="ascii")
        yield str(path)
