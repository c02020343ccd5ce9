"""What the supervisor does to the rest of its box: stop and end processes, and clear away every file they left."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from sandbox_image.attest import read

# A killed process needs no time to be killed; what is not, after so many rounds, is being forked faster than that.
END_S = 0.25
# Seconds between two looks at whether a process has stopped: first as long as it takes on a machine that is not busy,
# then twice the last time, up to this.
_FIRST_LOOK_S, _LAST_LOOK_S = 50e-6, 0.01


def kill_everyone() -> None:
    """Kill every process but this one: kill(2), pid -1."""
    _must_be_init()
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def end_others(kernel: int, within_s: float = END_S) -> bool:
    """Kill every process but this one and ``kernel``: what a cell leaves behind must not meet the next one.

    All are stopped first, with one signal to everyone: it reaches also what is being forked at this moment, so nobody
    can fork away from under the list of those to kill. The kernel is stopped for as long as that takes. Another round
    is needed where somebody had arranged to be continued (by a timer, or as a parent's last signal).

    Args:
        kernel: process id of the one to spare.
        within_s: seconds it may take.

    Returns:
        Whether none is left. If not, only :func:`kill_everyone` can be sure of them.
    """
    _must_be_init()
    deadline = time.monotonic() + within_s
    spared, killed = {os.getpid(), kernel}, set[int]()
    while _processes() - killed - spared:
        if time.monotonic() > deadline:
            return False
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
        found = _processes() - spared
        for pid in found - killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        with suppress(ProcessLookupError):
            os.kill(kernel, signal.SIGCONT)
    return True


def freeze(kernel: int, patience_s: float) -> bool:
    """Stop ``kernel`` and kill every other process; return whether nothing but this process can run any more.

    ``kill(-1)`` reaches all processes in one step that no fork falls between, and a process that has stopped does
    nothing, so only one that still dies can wake another (its end may send SIGCONT to those it leaves behind). Hence
    the order: all are stopped, none is left but the kernel, and then the kernel is found stopped, every thread of it.
    ``seccomp.NO_WAKING`` keeps SIGCONT from whoever was about to send it.

    Args:
        kernel: a child of this process.
        patience_s: how long to wait, at least; on a machine that is full of work each wait takes longer than it was to.
    """
    _must_be_init()
    waited, pause = 0.0, _FIRST_LOOK_S
    while True:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
        others = [pid for pid in _processes() - {os.getpid(), kernel} if _lives(pid)]
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not others and _stopped(kernel):
            return True
        if waited >= patience_s:
            return False
        time.sleep(pause)
        waited, pause = waited + pause, min(2 * pause, _LAST_LOOK_S)


def thaw(kernel: int) -> None:
    """Let a stopped kernel go on."""
    with suppress(ProcessLookupError):
        os.kill(kernel, signal.SIGCONT)


def _stopped(child: int) -> bool:
    try:
        # waitid(2) tells of a stop when the last thread has stopped; WNOWAIT leaves it to be told again.
        return os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # dead and reaped


def _lives(pid: int) -> bool:
    # proc(5): state is field 3, the number of threads field 20. The state is that of the first thread alone, which can
    # end before others do.
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return len(fields) > 17 and not (fields[0] in "ZX" and int(fields[17]) <= 1)  # noqa: PLR2004


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
    with suppress(OSError):  # one that is not ours, such as /dev/shm, nobody else in the box could close to us either
        os.chmod(folder, 0o700)  # noqa: PTH101
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
