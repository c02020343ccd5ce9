"""Running the real command, as a person would, and showing what it was."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def rlm_sandbox(arguments: list[str], *, stdin: str = "", show: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``rlm-sandbox``; its stdout is returned, its stderr goes to ours as it comes.

    Args:
        arguments: of the command.
        stdin: what it reads.
        show: the command as it is shown; made of the arguments if empty.
    """
    print(f"$ {show or shlex.join(['rlm-sandbox', *arguments])}", flush=True)
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=_ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
