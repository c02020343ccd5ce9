"""One process at a time has a session: what two of them added to its journals would not follow on one another."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import JournalError

SUFFIX = ".lock"


@contextmanager
def held(folder: Path, session: str) -> Iterator[None]:
    """Keep a session to this process until the block is left; that a process died frees it, too (flock(2)).

    Args:
        folder: of its journals; it is made when missing.
        session: its id.

    Raises:
        JournalError: another process, or another part of this one, has it; or the lock cannot be made.
    """
    path = folder / f"{session}{SUFFIX}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = _locked(path)
    except BlockingIOError as error:
        raise JournalError(f"somebody else goes on with the session {session}") from error
    except OSError as error:
        raise JournalError(f"cannot lock the session {session} in {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Return a descriptor of the file that is there now, locked: who had it before may have removed it meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
