"""Descriptors: those that the supervisor hands to the kernel's process beside the three of every process; and bytes."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

# Its end of the line for calls.
RPC_FD = 3
# The contexts, read-only.
CONTEXT_FD = 4


def widen(pipe: int, size: int) -> None:
    """Have a pipe hold so many bytes; a descriptor that is no pipe stays as it is.

    With a megabyte there is one wake-up for it instead of sixteen; fcntl(2), F_SETPIPE_SZ.
    """
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
