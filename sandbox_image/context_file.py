"""The file of a box's contexts, as its supervisor writes it: one behind the other, never rewritten.

Each part of the file is one context: its texts as UTF-8, the JSON of how they are laid out, and a trailer that says how
long both are. So the end of the file is all that a kernel has to know (:mod:`sandbox_image.contexts`).

The file belongs to the uid that model code has, too: who owns a file can make it writable and change it. Here it is
noticed when that was done, so that no cell passes off another context as one that the host sent.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from sandbox_image.descriptors import write_all

TRAILER = struct.Struct(">QQ")  # bytes of the texts, bytes of their layout
_STEP = 1 << 20


class ContextFile:
    """A file without a name, which nobody can replace; every kernel is given a read-only descriptor of it.

    Attributes:
        descriptor: to read it.
        end: how far it may be read, 0 where there is no context; None while one is under way.
    """

    def __init__(self, path: str) -> None:
        """Make the file, under a name that is gone when this returns."""
        self._write = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        self.descriptor = os.open(path, os.O_RDONLY)
        os.unlink(path)  # noqa: PTH108
        self.end: int | None = None
        self._began = self._size = 0
        self._changed_ns = 0
        self._digest: Any = None

    def append(self, data: bytes) -> bool:
        """Add bytes to the context under way, or begin one; return whether what was there before is as it was."""
        if self.end is not None:
            if not self._further():
                return False
            self.end = None
        self._put(data)
        return True

    def finish(self, layout: int | None) -> None:
        """End the context under way.

        Args:
            layout: how many of its bytes, the last ones, say how those before them are laid out; None for no context.
        """
        if layout is not None:
            self._put(TRAILER.pack(self._size - self._began - layout, layout))
        self.end = self._began = self._size
        self._changed_ns = os.fstat(self.descriptor).st_ctime_ns

    def is_intact(self) -> bool:
        """Return whether the file holds what was written here and nothing else. Nobody else may run in the box."""
        if self._digest is None:
            return self.end is None or self._is_untouched()
        return bool(self._digest.digest() == self._digest_of_file().digest())

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self._write)
        os.close(self.descriptor)

    def _further(self) -> bool:
        """Prepare for a context after others; return whether they are as they were.

        A box with one context pays for no digest: nobody runs while it is written, and whoever changes it later, or
        maps it to do so, moves the time of its last change on. While a further one is written, threads of earlier
        cells may run, and a change of theirs would hide behind those made here. Hence a digest of all that was
        written. What is read for it is what was sent, if the time is still the same afterwards.
        """
        if self._digest is None:
            self._digest = self._digest_of_file()
        return self._is_untouched()

    def _is_untouched(self) -> bool:
        return os.fstat(self.descriptor).st_ctime_ns == self._changed_ns

    def _digest_of_file(self) -> Any:
        import hashlib  # a box with one context does without

        digest, at = hashlib.sha256(), 0
        # The position of the descriptor is shared with the kernel.
        while piece := os.pread(self.descriptor, _STEP, at):
            digest.update(piece)
            at += len(piece)
        return digest

    def _put(self, data: bytes) -> None:
        if self._digest is not None:
            self._digest.update(data)
        self._size += len(data)
        write_all(self._write, data)
