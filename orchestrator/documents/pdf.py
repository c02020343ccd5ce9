"""The text of a PDF, taken out of it in a process of its own: without secrets, and with bounds on time and memory.

A PDF comes from strangers, and a parser of PDF is a large program. The child has an empty environment, may write no
file, and is killed when its time is over. It needs the extra ``pdf`` (pypdf).
"""

from __future__ import annotations

import importlib.util
import io
import logging
import resource
import subprocess
import sys
import threading

from orchestrator.errors import ContextError

MEMORY_BYTES = 2 << 30
TIME_S = 120
# Between pages, as text files have it.
PAGE_BREAK = "\f"


def available() -> bool:
    """Whether the library that reads them is installed."""
    return importlib.util.find_spec("pypdf") is not None


def text(data: bytes, what: str, limit: int) -> str:
    """Return the text of a PDF, its pages parted by form feeds.

    Args:
        data: the file.
        what: its name, for errors.
        limit: bytes of UTF-8 the text may have.

    Raises:
        ContextError: the library is missing, or it is broken, encrypted, too large or takes too long.
    """
    if not available():
        raise ContextError(f"{what} is a PDF: install rlm-sandbox[pdf] to read it, or convert it to text")
    command = [sys.executable, "-I", "-m", __name__, str(limit)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={}) as child:
        late = threading.Timer(TIME_S, child.kill)
        late.start()
        try:
            out, said = child.communicate(data)
        finally:
            late.cancel()
            child.kill()
    if child.returncode != 0:
        lines = said.decode("utf-8", "replace").strip().splitlines()
        why = lines[-1][:200] if lines else f"its reader ended with {child.returncode}"
        raise ContextError(f"cannot read the PDF {what}: {why}")
    return out.decode("utf-8", "replace")


def extract(data: bytes, limit: int) -> str:
    """Return the text of a PDF; in the child.

    Raises:
        ValueError: it is encrypted, or has more text than the limit.
    """
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise ValueError("it is encrypted")
    pages, size = [], 0
    for page in reader.pages:
        pages.append(page.extract_text())
        size += len(pages[-1])
        if size > limit:
            raise ValueError(f"its text has more than the {limit:,} bytes the policy allows (limits.context_mb)")
    return PAGE_BREAK.join(pages)


def main() -> None:
    """Read a PDF from stdin, and write its text to stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIME_S, TIME_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()  # a hostile file has as much to be warned of as it likes, and nobody reads it
    try:
        found = extract(sys.stdin.buffer.read(), int(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - whatever a library makes of a stranger's file, it is one line here
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(found.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
