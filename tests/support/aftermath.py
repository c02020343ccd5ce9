"""What a module's boxes left on the host when they were done: it must be nothing."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import bundle
from orchestrator.sandbox.engine import Engine

# The engine's own processes end a little after it has said that the container is gone.
PATIENCE_S = 15.0
PAUSE_S = 0.05
_ENGINES_OWN = Path("/var/lib/docker/containers")


def descriptors() -> Counter[str]:
    """Return what this process has open, without numbers; of its own making alone, and not the tests' machinery's."""
    found: Counter[str] = Counter()
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # that of this very listing
        found[re.sub(r"\[\d+\]", "", target)] += 1
    return found


def fingerprint(paths: Iterable[Path]) -> dict[str, tuple[int, int, str]]:
    """Return time of change, mode and hash of each file under ``paths``."""
    files = (file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))))
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_mode, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }


def traces(container: str) -> list[str]:
    """Return what is on this host of a container that should be gone; with an engine elsewhere, there is none."""
    found = [f"a process: {path.parent.name}" for path in Path("/proc").glob("[0-9]*/cmdline") if _in(path, container)]
    if _in(Path("/proc/self/mountinfo"), container):
        found.append("a mount")
    for pattern in ("*/docker", "docker", "*/system.slice", "system.slice"):
        found += [f"a cgroup: {path}" for path in Path("/sys/fs/cgroup").glob(f"{pattern}/*{container}*")]
    if os.access(_ENGINES_OWN, os.X_OK) and (_ENGINES_OWN / container).exists():
        found.append(f"a folder: {_ENGINES_OWN / container}")
    return found


def _in(path: Path, container: str) -> bool:
    try:
        return container.encode() in path.read_bytes()
    except OSError:
        return False


@contextmanager
def nothing_left(watched: Iterable[Path]) -> Iterator[None]:
    """Check when the block is left that all boxes made in it are gone without a trace, and the host is as it was.

    Args:
        watched: files and folders of the host that no box may change; those of this project are watched anyway.
    """
    paths = [*watched, bundle.path("policies"), bundle.path("Dockerfile.sandbox"), Path("/etc/passwd")]
    made: list[str] = []
    create = Engine.create

    def noting(engine: Engine, config: dict[str, Any], name: str) -> str:
        made.append(create(engine, config, name))
        return made[-1]

    files, folder = fingerprint(paths), Path.cwd()
    opened = descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "create", noting)
        yield
    deadline = time.monotonic() + PATIENCE_S
    left = [trace for container in made for trace in traces(container)]
    while left and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
        left = [trace for container in made for trace in traces(container)]
    assert not left, f"of boxes that are gone, the host still has {left}"
    changed = sorted(name for name, _ in set(fingerprint(paths).items()) ^ set(files.items()))
    assert not changed, f"a file of the host was changed: {changed}"
    cores = [path.name for path in folder.glob("core*")]
    assert not cores, f"a core was dumped: {cores}"
    more = descriptors() - opened
    assert not more, f"descriptors were left open: {sorted(more)}"
