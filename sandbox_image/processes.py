"""What the supervisor does to the rest of its box: end every process, and clear away every file they left."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def kill_everyone() -> None:
    """Kill every process but this one: kill(2), pid -1."""
    _must_be_init()
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def end_others(kernel: int) -> None:
    """Kill every process but this one and ``kernel``: what a cell leaves behind must not meet the next one.

    They are stopped first, so that none forks while others are being killed. The number of rounds is bounded by that of
    processes: each finds one more that an earlier round did not, or is the last.
    """
    _must_be_init()
    stopped: set[int] = set()
    while found := _processes() - stopped - {os.getpid(), kernel}:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _must_be_init() -> None:
    # In any other place "everyone" would be the host's processes.
    if os.getpid() != 1:
        raise RuntimeError("only the init of a PID namespace may kill everyone in it")


def _processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - each cell pays for it


def empty(folder: str) -> None:
    """Remove everything in ``folder``.

    What lies in a subfolder is moved up before the subfolder goes, so neither a depth that no path or descriptor limit
    reaches nor permissions can save it. Ends when a round removes nothing more.
    """
    removed = True
    while removed:
        removed = False
        for entry in _entries(folder):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    _flatten(entry.path, folder)
                    os.rmdir(entry.path)  # noqa: PTH106
                else:
                    os.unlink(entry.path)  # noqa: PTH108
                removed = True


def _flatten(subfolder: str, folder: str) -> None:
    os.chmod(subfolder, 0o700)  # noqa: PTH101
    for entry in _entries(subfolder):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)  # noqa: PTH101 - whoever moves a folder must be able to write to it
            os.rename(entry.path, f"{folder}/{os.urandom(16).hex()}")  # noqa: PTH104
        else:
            os.unlink(entry.path)  # noqa: PTH108


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
