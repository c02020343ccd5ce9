"""Three things the box and the ledger refuse, tried by the real command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.common import EXIT_OK
from orchestrator.text import one_line, printable
from tests.demo.commands import rlm_sandbox

_NETWORK = 'import socket; socket.create_connection(("1.1.1.1", 443))\n'
_FORKS = """\
import os
while True: os.fork()
# %%
import subprocess, threading
thread = threading.Thread(target=print); thread.start(); thread.join()
print("still here", subprocess.run(["echo", "and able"], capture_output=True, check=True, text=True).stdout)
"""
_SCRIPT = "tests/demo/overspend.toml"
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that must not work.

    Attributes:
        title: what is tried.
        holds: tries it, and tells whether it was refused as promised.
    """

    title: str
    holds: Callable[[], bool]


def refusals(journal: Path) -> list[Refusal]:
    """Return what is tried; a run among it leaves its journal in ``journal``."""
    return [
        Refusal("A cell that tries the network", _network),
        Refusal("A cell that forks without end, and the cell after it", _forks),
        Refusal("A thousand sub-calls on a budget of twenty calls", lambda: _overspend(journal)),
    ]


def _network() -> bool:
    cells = _execute(_NETWORK)
    return [cell["status"] for cell in cells] == ["error"] and cells[0]["error"]["name"] == "PermissionError"


def _forks() -> bool:
    cells = _execute(_FORKS, "--timeout", "2")
    # A process that hits the limit raises in the cell, or the cell runs until its time is up: either ends it.
    if len(cells) != len(_FORKS.split("# %%")) or cells[0]["status"] not in ("error", "timeout"):
        return False
    return cells[1]["status"] == "ok" and "still here and able" in cells[1]["stdout"]


def _overspend(journal: Path) -> bool:
    models = ["--model", f"scripted:{_SCRIPT}", "--sub-model", "offline"]
    limits = ["--set", "budget.calls=20", "--journal", str(journal)]
    done = rlm_sandbox(["run", _SCRIPT, "-q", "How many words are there?", *models, *limits])
    print(f"Answer    {printable(done.stdout).strip()}")
    return done.returncode == EXIT_OK and done.stdout.startswith("refused before anything was sent: calls")


def _execute(code: str, *options: str) -> list[dict[str, Any]]:
    """Run cells, and show how each ended."""
    typed = code.replace("%", "%%").replace("\n", "\\n")
    command = " ".join(["rlm-sandbox exec --json", *options])
    done = rlm_sandbox(["exec", "--json", *options], stdin=code, show=f"printf '{typed}' | {command}")
    try:
        cells: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        return []
    for number, cell in enumerate(cells, 1):
        error = cell["error"] or {"name": "", "value": ""}
        told = cell["detail"] or f"{error['name']}: {error['value']}" if cell["status"] != "ok" else cell["stdout"]
        print(f"Cell {number}    {cell['status']}, {cell['elapsed_s']:.1f} s: {one_line(told, _WIDTH)}")
    return cells
