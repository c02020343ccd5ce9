"""``llm-sandbox``: an interactive session, without a model; the argument is the image.

It has no loop and no way to a model, so its cells are timed here. The text is brought in as a file, which the first
cell reads, and stays a variable.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from llm_sandbox import InteractiveSandboxSession

from tests.bench.peers.drivers import loop

_READ = "context = open('/sandbox/context.txt').read(); x = 0"


def run(task: loop.Task) -> str:
    with (
        tempfile.NamedTemporaryFile("w", suffix=".txt") as file,
        InteractiveSandboxSession(lang="python", image=sys.argv[1]) as session,
    ):
        file.write(task.context)
        file.flush()
        session.copy_to_runtime(str(Path(file.name)), "/sandbox/context.txt")
        _cell(session, _READ)
        task.first = time.monotonic()
        for turn in range(task.turns):
            began = time.monotonic()
            _cell(session, f"x = {turn}")
            task.cells.append((time.monotonic() - began) * 1000)
        return "done"


def _cell(session: InteractiveSandboxSession, code: str) -> None:
    done = session.run(code)
    if done.exit_code:
        raise RuntimeError(f"the cell failed: {done.stderr.strip()[-200:]}")


if __name__ == "__main__":
    loop.serve(run)
