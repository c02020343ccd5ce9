"""What the box can say of its own confinement, read by the supervisor before any model code runs.

The host compares it with the policy (:mod:`orchestrator.sandbox.attestation`). It is believed because nothing but the
image, which is used by id, has run so far.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import Any

_IDENTITY = ("Uid", "Gid", "Groups")
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_STATUS_FIELDS = frozenset((*_IDENTITY, *_CAPABILITIES, "NoNewPrivs", "Seccomp", "Seccomp_filters"))
_CGROUP_FILES = {
    # what: (cgroup v2, cgroup v1); Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/
    "memory": ("memory.max", "memory/memory.limit_in_bytes"),
    "swap": ("memory.swap.max", "memory/memory.memsw.limit_in_bytes"),
    "pids": ("pids.max", "pids/pids.max"),
    "cpu_quota": ("cpu.max", "cpu/cpu.cfs_quota_us"),
    "cpu_period": ("cpu.max", "cpu/cpu.cfs_period_us"),
}
# Asked of the kernel: not every release of gVisor has /proc/self/limits, whose names for them these are.
_LIMITS = {
    "Max open files": resource.RLIMIT_NOFILE,
    "Max core file size": resource.RLIMIT_CORE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max msgqueue size": resource.RLIMIT_MSGQUEUE,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max processes": resource.RLIMIT_NPROC,
}
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_PR_GET_NO_NEW_PRIVS = 39


def read(path: str, most: int = 65536) -> str:
    """Return the text of a small file, or an empty text where there is none to read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 10 ms of start-up
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def oom_kills() -> int:
    """Return how many processes the kernel has killed in this box for want of memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        for line in read(path).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
    return 0


def status_of(process: int | str) -> dict[str, str]:
    """Return of a process what the system says in ``/proc/PID/status``, as far as it is looked at."""
    lines = (line.split(":\t", 1) for line in read(f"/proc/{process}/status").splitlines() if ":\t" in line)
    return {name: value.strip() for name, value in lines if name in _STATUS_FIELDS}


def gather() -> dict[str, Any]:
    """Return the facts: identity, capabilities, seccomp, mounts, limits, interfaces, descriptors, environment."""
    status = status_of("self")
    if "NoNewPrivs" not in status:
        status["NoNewPrivs"] = _no_new_privileges()  # gVisor has no such line
    return {
        "status": status,
        "pid": os.getpid(),
        "mounts": [_mount(line) for line in read("/proc/self/mountinfo").splitlines()],
        "cgroup": {
            what: read(f"/sys/fs/cgroup/{v2}") or read(f"/sys/fs/cgroup/{v1}")
            for what, (v2, v1) in _CGROUP_FILES.items()
        },
        "cgroup_path": read("/proc/self/cgroup"),
        "limits": {name: [_limit(value) for value in resource.getrlimit(which)] for name, which in _LIMITS.items()},
        "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else [],  # noqa: PTH112, PTH208
        "inet_socket": _inet_socket(),
        "hostname": os.uname().nodename,
        "kernel": read("/proc/version"),
        "boot_id": read("/proc/sys/kernel/random/boot_id").strip(),
        "namespaces": {name: _link(f"/proc/self/ns/{name}") for name in _NAMESPACES},
        "uid_map": read("/proc/self/uid_map"),
        "gid_map": read("/proc/self/gid_map"),
        "security_module": read("/proc/self/attr/current").strip("\0\n"),
        "descriptors": _descriptors(),
        "environment": sorted(os.environ),
        "stream_in_reach": _stream_in_reach(),
    }


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _no_new_privileges() -> str:
    import ctypes

    return str(ctypes.CDLL(None).prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0))


def _stream_in_reach() -> bool:
    """Whether another process of this uid can open the stream to the host.

    Linux keeps it from all to whom the supervisor is not dumpable (proc(5)); gVisor does since its release 20251215.
    """
    answer, theirs = os.pipe()
    # Opened for both, so that nobody waits for the other end. The shell is reaped like every child.
    script = f": 3<>/proc/{os.getpid()}/fd/1 && echo y"
    streams = [(os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_CLOSE, 2)]
    os.posix_spawn("/bin/sh", ["/bin/sh", "-c", script], {}, file_actions=streams)
    os.close(theirs)
    found = os.read(answer, 1)
    os.close(answer)
    return found == b"y"


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""  # gVisor shows only some


def _inet_socket() -> str:
    # The number of filters says that there is one; only a refusal says that it is a filter of system calls like ours.
    try:
        socket.socket(socket.AF_INET).close()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "allowed"


def _mount(line: str) -> list[str]:
    # proc(5): id parent major:minor root mountpoint options [optional...] - type source super-options
    left, _, right = line.partition(" - ")
    fields, tail = left.split(" "), right.split(" ")
    return [fields[4], tail[0], fields[5], tail[-1]] if len(fields) > 5 and tail else ["?", "?", "?", "?"]  # noqa: PLR2004


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.append(f"{name} {os.readlink('/proc/self/fd/' + name)}")  # noqa: PTH115
        except OSError:
            continue  # the descriptor of this very listing
    return found
