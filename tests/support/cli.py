"""What the tests of the command line share."""

from __future__ import annotations

import io
from pathlib import Path


class Stdin:
    """Standard input that holds ``data``."""

    def __init__(self, data: bytes, *, tty: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


def write(folder: Path, **files: str | bytes) -> Path:
    """Make files in ``folder``; in a name, ``__`` stands for a slash and ``_dot_`` for a dot."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
