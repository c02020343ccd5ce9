"""A second seccomp filter, for the kernel's process alone: what a policy takes away from the code in a box.

The box's own filter, which the engine installs, holds for every policy and for the supervisor too. This one is put on
top of it by ``confine.py`` before the first thread and the first cell; threads inherit it, nothing takes it off again,
and the strictest of two filters decides (seccomp(2)). It repeats nothing that the first one refuses already.

The numbers of calls are those of the kernel's ``syscall_64.tbl`` and ``asm-generic/unistd.h``.
"""

from __future__ import annotations

import errno
import platform
import signal
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Name of a machine: its AUDIT_ARCH_* (linux/audit.h), and the numbers of the calls that are looked at.
MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "clone": 56,
            "fork": 57,
            "vfork": 58,
            "execve": 59,
            "kill": 62,
            "fcntl": 72,
            "tkill": 200,
            "tgkill": 234,
            "seccomp": 317,
            "execveat": 322,
            "clone3": 435,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "fcntl": 25,
            "kill": 129,
            "tkill": 130,
            "tgkill": 131,
            "clone": 220,
            "execve": 221,
            "seccomp": 277,
            "execveat": 281,
            "clone3": 435,
        },
    ),
}
CLONE_SIGHAND = 0x800
CLONE_THREAD = 0x10000
F_SETSIG = 10
_X32_BIT = 0x40000000
_WHOLE = 0xFFFFFFFF
_SIGNAL_OF_CLONE = 0xFF


class Rule(NamedTuple):
    """A call that is refused: if the low half of an argument, masked, is a value; whatever its arguments, without mask.

    Low halves are all that matters: the kernel takes these arguments for 32-bit numbers, or has no flag above them.
    """

    call: str
    argument: int = 0
    mask: int = 0
    value: int = 0
    error: int = errno.EPERM


# Who may add filters could hand the calls of another thread to a listener of their own. clone3 keeps its flags where no
# filter sees them; libc does without it when there is none.
ALWAYS = (Rule("seccomp"), Rule("clone3", error=errno.ENOSYS))
# One process and its threads, and no program but this interpreter.
NO_SUBPROCESS = (
    Rule("execve"),
    Rule("execveat"),
    Rule("fork"),
    Rule("vfork"),
    Rule("clone", 0, CLONE_THREAD, 0),
)
# A process that the supervisor stopped stays stopped: no SIGCONT from another one on its way or at its end, and none
# from the system when something can be read.
NO_WAKING = (
    Rule("kill", 1, _WHOLE, signal.SIGCONT),
    Rule("tkill", 1, _WHOLE, signal.SIGCONT),
    Rule("tgkill", 2, _WHOLE, signal.SIGCONT),
    Rule("clone", 0, _SIGNAL_OF_CLONE, signal.SIGCONT),
    Rule("fcntl", 1, _WHOLE, F_SETSIG),
)
# Calls that fail in another way, and do no harm, where no filter refuses them.
_PROBES: dict[str, tuple[int, ...]] = {
    "seccomp": (_WHOLE, 0, 0),
    "execve": (0, 0, 0),
    "clone": (CLONE_SIGHAND, 0, 0, 0, 0),
    "kill": (0x7FFFFFFF, signal.SIGCONT),
    "fcntl": (-1, F_SETSIG, 0),
}

_LOAD, _EQUALS, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; both machines are little-endian
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*; the last one ends the process
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # SECCOMP_FILTER_FLAG_TSYNC

Step = tuple[int, int, int, int]


def rules(*, subprocesses: bool, freeze: bool) -> tuple[Rule, ...]:
    """Return what is refused.

    Args:
        subprocesses: whether the code in the box may start processes.
        freeze: whether it is stopped between cells.
    """
    chosen = (() if subprocesses else NO_SUBPROCESS) + (NO_WAKING if freeze else ())
    return chosen and ALWAYS + chosen


def program(refused: Iterable[Rule], machine: str) -> bytes:
    """Return the filter as an array of ``struct sock_filter``.

    Raises:
        OSError: the numbers of this machine are not known.
    """
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no system call numbers of {machine} are known")
    architecture, numbers = MACHINES[machine]
    steps: list[Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUALS, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    for rule in refused:
        if rule.call in numbers:
            steps += _steps(rule, numbers[rule.call])
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _steps(rule: Rule, number: int) -> Iterator[Step]:
    refuse = (_RETURN, 0, 0, _ERRNO | rule.error)
    if not rule.mask:
        yield (_EQUALS, 0, 1, number)
        yield refuse
        return
    yield (_EQUALS, 0, 5, number)
    yield (_LOAD, 0, 0, _ARGUMENTS + 8 * rule.argument)
    yield (_AND, 0, 0, rule.mask)
    yield (_EQUALS, 0, 1, rule.value)
    yield refuse
    yield (_LOAD, 0, 0, _NUMBER)


def install(refused: Iterable[Rule]) -> dict[str, str]:
    """Put the filter on every thread of this process, for good; return what then came of forbidden calls, by name.

    Raises:
        OSError: it cannot be installed.
    """
    import ctypes

    refused = tuple(refused)
    machine = platform.machine()
    code = program(refused, machine)
    numbers = MACHINES[machine][1]
    system = ctypes.CDLL(None, use_errno=True).syscall
    held = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(held)))
    if system(numbers["seccomp"], _SET_MODE_FILTER, _ALL_THREADS, header) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    called = {rule.call for rule in refused}
    found = {}
    for call, arguments in _PROBES.items():
        if call in called:
            ctypes.set_errno(0)
            system(numbers[call], *map(ctypes.c_long, arguments))
            found[call] = errno.errorcode.get(ctypes.get_errno(), "allowed")
    return found
