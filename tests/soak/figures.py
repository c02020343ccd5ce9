"""What this process holds, on the host and in the engine, as numbers that must be the same afterwards."""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.sandbox import container
from orchestrator.sandbox.engine import Engine

MIB = 1 << 20
# What an allocator that has served hundreds of boxes may keep; a leak of 64 KiB a box shows in 500 of them.
MEMORY_SLACK_MIB = 32
SETTLE_S = 20


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts at one moment.

    Attributes:
        containers: of this process that the engine knows, running or not.
        shims: processes of the engine's (containerd-shim, runc) for containers of this process.
        cgroups: of such containers.
        children: child processes.
        threads: of this process.
        descriptors: open here.
        temporary_files: in this process's folder for them.
        memory_mib: resident, in MiB.
    """

    containers: int
    shims: int
    cgroups: int
    children: int
    threads: int
    descriptors: int
    temporary_files: int
    memory_mib: int


def take(engine: Engine, identities: Iterable[str]) -> Figures:
    """Count.

    Args:
        engine: the engine.
        identities: full ids of the containers there have been.
    """
    known = set(identities)
    _give_memory_back()
    return Figures(
        containers=len(engine.containers(f"{container.OWNER_LABEL}={container.owner()}")),
        shims=_processes_for(known),
        cgroups=sum(path.name in known for path in _cgroups()),
        children=len(_children()),
        threads=threading.active_count(),
        descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        temporary_files=sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        memory_mib=_resident() // MIB,
    )


def settled(count: Callable[[], Figures], before: Figures) -> Figures:
    """Count until nothing is left over, for as long as ends that are under way may take."""
    deadline = time.monotonic() + SETTLE_S
    while leaks(before, found := count()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def leaks(before: Figures, after: Figures) -> list[str]:
    """Return what there is more of than before; memory may have grown a little."""
    slack = {"memory_mib": MEMORY_SLACK_MIB}
    return [
        f"{name.replace('_', ' ')}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name in Figures.__dataclass_fields__
        if getattr(after, name) > getattr(before, name) + slack.get(name, 0)
    ]


def _give_memory_back() -> None:
    gc.collect()
    with suppress(AttributeError, OSError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def _processes_for(identities: set[str]) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += not identities.isdisjoint(path.read_bytes().decode("utf-8", "replace").split("\0"))
    return found


def _cgroups() -> Iterable[Path]:
    # cgroup v1 has a tree a controller; v2 one for all, with names of systemd's making where it drives them.
    root = Path("/sys/fs/cgroup")
    for pattern in ("docker/*", "*/docker/*"):
        yield from root.glob(pattern)
    for path in root.glob("system.slice/docker-*.scope"):
        yield path.with_name(path.stem.removeprefix("docker-"))


def _children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text("ascii").split()]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
