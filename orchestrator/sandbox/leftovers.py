"""Processes that a runtime leaves on the host when it does not get a container started.

``runsc`` has been seen to hang in its first step for ever (platform kvm, on a host whose virtualisation is broken), and
the engine waits with it: until those processes are gone, it neither reports a failure nor removes the container.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Names that gVisor's processes on the host give themselves: runsc, runsc-sandbox, runsc-gofer.
_PREFIX = b"runsc"


def end(container: str) -> list[int]:
    """Kill what gVisor left behind of a container that did not start.

    Args:
        container: its full id; the command line of each of those processes holds it.

    Returns:
        The processes that are still there, because they are not this user's to kill.
    """
    left = []
    for pid in _pids():
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue  # gone in the meantime
        # Asked after the handle was taken: whatever has this number later is not what is killed.
        if _works_for(pid, container) and not _killed(handle):
            left.append(pid)
        os.close(handle)
    return left


def _pids() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return []  # not Linux: the engine's processes are on a machine of its own


def _works_for(pid: int, container: str) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    program = arguments[0].rpartition(b"/")[2]
    return program.startswith(_PREFIX) and any(container.encode() in argument for argument in arguments[1:])


def _killed(handle: int) -> bool:
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass  # it ended by itself
    return True
