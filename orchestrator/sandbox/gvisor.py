"""What is different when gVisor's kernel serves the box instead of the host's.

gVisor is a kernel in a process of the host: the box's system calls end in it, and it makes few of its own. So some
controls hold in another way, and some cannot be seen from inside; :data:`DIFFERENCES` declares each, and the report of
a box repeats it. Whether a box is under gVisor is what its kernel says of itself, never what the policy asked for; a
box that was asked for under gVisor and is not is refused (H31). ``policies/GVISOR.md`` is the guide for operators.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.text import one_line

# Names under which people register it (`runsc` is its program); a runtime of such a name must turn out to be gVisor.
_NAMES = ("runsc", "gvisor")
# What it calls itself (pkg/sentry/kernel/version in its sources): 4.4.0 until 2026-04, 4.19.0-gvisor since; the date of
# build is the same in all releases, and where Linux names its compiler they have nothing.
_VERSION = re.compile(r"Linux version (4\.4\.0 #1 SMP Sun Jan 10 15:06:54 PST 2016|\S+-gvisor #1 SMP [^()]+)")
# gVisor serves one process of the box with several of the host's: some 2 with its platform systrap, and with ptrace up
# to one for each of its own threads. The limit of the box is RLIMIT_NPROC, which gVisor keeps; this one is behind it.
HOST_TASKS = 16
# What it takes itself of the memory of a box (an idle one has 95 to 98 MiB under it, 68 without), and some to spare.
MEMORY_MB = 32
ENOSYS = 38
# Names of calls, and what they are called in releases of 2022.
_OTHER_NAMES = {"pselect6": "pselect"}
# What gVisor calls the stream's pipes, which it was handed by the host.
STREAM = ("0 host:[", "1 host:[", "2 host:[")

_OF_ITS_OWN = frozenset(("tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"))


@dataclass(frozen=True, slots=True)
class Difference:
    """How a control is different under gVisor.

    Attributes:
        inside: what its check from inside is worth: it is ``judged`` as elsewhere; or ``reported``, and refuses no box;
            or there is nothing to be seen from there, and only the engine's record is compared (``unseen``).
        why: what is different, for people.
    """

    inside: Literal["judged", "reported", "unseen"]
    why: str


_HOST_CGROUP = "the limit is on gVisor's processes, on the host; the box has no view of it"

DIFFERENCES: dict[str, Difference] = {
    "H9": Difference(
        inside="judged",
        why="it need not show nosuid and nodev, and releases before 2026-07 do not limit the number of files",
    ),
    "H11": Difference(inside="unseen", why="its kernel serves this box alone, so there is no IPC to share"),
    "H12": Difference(
        inside="unseen",
        why="the box sees none of the host's cgroups, but may see a tree of gVisor's with the container's id",
    ),
    "H13a": Difference(inside="unseen", why=_HOST_CGROUP + ", and running out ends the whole box"),
    "H13b": Difference(inside="unseen", why=_HOST_CGROUP),
    "H14": Difference(inside="unseen", why="what is killed for memory is the whole box"),
    "H16": Difference(
        inside="judged", why=f"gVisor keeps the limit (RLIMIT_NPROC); the host allows it {HOST_TASKS} tasks for each"
    ),
    "H17": Difference(inside="unseen", why=_HOST_CGROUP),
    "H19": Difference(
        inside="judged",
        why="gVisor itself applies the profile (--oci-seccomp), and one of its own to what it asks of the host",
    ),
    "H27": Difference(inside="unseen", why="its kernel serves this box alone and shares no namespace with the host's"),
    "P1": Difference(
        inside="reported",
        why="releases before 20251215 let a cell write frames to the host, which believes none, and take those meant "
        "for the supervisor, which costs it the box",
    ),
    "H25": Difference(inside="unseen", why="/proc is gVisor's own and tells nothing of the host; it knows no masks"),
}


def asked_for(runtime: str) -> bool:
    """Whether a runtime's name promises gVisor."""
    return runtime.startswith(_NAMES)


def kernel(facts: Any) -> str:
    """Return what the box's kernel says of itself (``/proc/version``), on one line; facts may be of any shape."""
    version = facts.get("kernel") if isinstance(facts, dict) else None
    return one_line(version.strip(), 200) if isinstance(version, str) else ""


def serves(facts: Any) -> bool:
    """Whether the box's kernel is gVisor, by its own word."""
    return _VERSION.fullmatch(kernel(facts)) is not None


def seccomp(profile: str) -> str:
    """Return the profile, a JSON text, as gVisor can express it.

    It knows no error number but EPERM (``runsc/specutils/seccomp``), and C libraries fall back from ``clone3`` only on
    ENOSYS. That is what a call answers that is left to a tracer when there is none; ptrace is not allowed in the box.
    Some calls have another name in its table (``pkg/sentry/syscalls/linux``); names it does not know, it passes over.
    """
    rules = json.loads(profile)
    for rule in rules.get("syscalls", ()):
        rule["names"] += [_OTHER_NAMES[name] for name in rule["names"] if name in _OTHER_NAMES]
        if rule["action"] == "SCMP_ACT_ERRNO" and rule.get("errnoRet") == ENOSYS:
            del rule["errnoRet"]
            rule["action"] = "SCMP_ACT_TRACE"
    return json.dumps(rules, separators=(",", ":"))


def nothing_of_the_host(mounts: Iterable[list[str]], engine_files: frozenset[str]) -> bool:
    """Whether all that a file server on the host serves (9p) is the image's root and the engine's own small files.

    Args:
        mounts: mount point, kind, options and superblock of each.
        engine_files: those files; they must be mounted read-only.
    """
    return all(
        kind in _OF_ITS_OWN or where == "/" or (where in engine_files and "ro" in options.split(","))
        for where, kind, options, _ in mounts
    )
