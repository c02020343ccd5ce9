"""Whether a box has left the host's namespaces: pure comparison, and the one look at where the orchestrator runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Of a box of its own: those that Docker makes anew for each container.
OWN = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
# Numbers that Linux gives its first namespaces (include/linux/proc_ns.h); those of mnt and net are counted up.
_FIRST = {
    "ipc": "ipc:[4026531839]",
    "uts": "uts:[4026531838]",
    "user": "user:[4026531837]",
    "pid": "pid:[4026531836]",
    "cgroup": "cgroup:[4026531835]",
}
# Linux's uid_map of a process that is in no user namespace of its own (user_namespaces(7)).
_IDENTITY = ["0", "0", "4294967295"]


@dataclass(frozen=True, slots=True)
class Host:
    """Where the orchestrator runs; unknown where there is no ``/proc``.

    Attributes:
        boot_id: the kernel's name for its own start: a box that gives the same one runs on this kernel.
        namespaces: the orchestrator's own, as ``/proc/self/ns`` names them.
    """

    boot_id: str = ""
    namespaces: Mapping[str, str] = field(default_factory=dict)


def host() -> Host:
    """Return where this process runs."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return Host(boot_id, {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in (*OWN, "user")})
    except OSError:
        return Host()


def all_left(boxed: Mapping[str, str], boot_id: str, host: Host) -> bool:
    """Whether each of a box's namespaces is another one than the host's.

    Numbers can be compared on one kernel alone; of another, whose engine is remote, only those of its first namespaces
    are known.

    Args:
        boxed: the box's namespaces, as its ``/proc/self/ns`` names them.
        boot_id: of the box's kernel.
        host: where the orchestrator runs.
    """
    here = host.namespaces if boot_id and boot_id == host.boot_id else {}
    return all(boxed.get(name) and boxed[name] not in (_FIRST.get(name), here.get(name)) for name in OWN)


def user_is_mapped(uid_map: str) -> bool:
    """Whether there is a user namespace: ids of the box are others on the host."""
    lines = [line.split() for line in uid_map.splitlines()]
    return bool(lines) and lines != [_IDENTITY]


def on_the_host(uid_map: str, user: int) -> int | None:
    """Return what a user (or group) of the box is outside of it; None where it is nobody.

    Args:
        uid_map: ``/proc/self/uid_map`` or ``gid_map`` of the box: lines of first id inside, first id outside, count.
        user: the id inside.

    Raises:
        ValueError: that is no such map.
    """
    for line in uid_map.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= user < inside + count:
            return outside + user - inside
    return None
