"""What code in a real box can make the host hold: under 64 MiB and no disk but the journal's, with the default policy.

The host is a process of its own that drives a whole run; in ``tests/unit/test_host_memory.py`` the attacker has the
stream to himself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.sandbox.engine import Engine
from tests.support.measured_host import Cost, Job
from tests.support.policies import base
from tests.support.raw_guest import finished, started

pytestmark = pytest.mark.docker

MIB = 1 << 20
MOST = 64 * MIB
RAW = """
import json, os, socket, struct
line = socket.socket(fileno=os.dup(3))
def frame(payload, kind=17):
    return struct.pack(">IB", len(payload), kind) + payload
def head(method, **params):
    text = json.dumps({"id": os.urandom(16).hex(), "method": method, "params": params}).encode()
    return struct.pack(">I", len(text)) + text
def call(method, pieces, **params):
    line.sendall(frame(b"\\x00" + head(method, **params)))
    for piece in pieces: line.sendall(frame(b"\\x00" + piece))
    line.sendall(frame(b"\\x01"))
MIB = b"x" * (1 << 20)
"""
CELLS = {
    "10 GB of output": "import os\nfor _ in range(10_000): os.write(1, b'x' * 1_000_000)",
    "10 GB of output on both streams": """
import sys
text = "x" * 10_000_000
for _ in range(500):
    print(text); print(text, file=sys.stderr)
""",
    "one message of 600 MB": """
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
app.kernel.session.send(app.iopub_thread, "display_data", {"data": {"text/plain": "x" * 600_000_000}, "metadata": {}})
""",
    "500 rich results": """
from IPython.display import display
class Shown:
    def __repr__(self): return "x" * 262_144
for _ in range(500): display(Shown())
""",
    "tiny messages": "import sys\nfor _ in range(1_000_000): print(1, flush=True)",
    "calls without end": "while True: budget()",
    "calls without end from many threads": """
import threading
def ask():
    while True:
        try: llm_query("x")
        except QueryRefused: pass
for _ in range(40): threading.Thread(target=ask, daemon=True).start()
while True: pass
""",
    "raw calls that nobody waits for": RAW + "while True: call('budget', [])",
    "a prompt of 1 GB": "llm_query('x' * 1_000_000_000)",
    "raw prompts of 1 GB": RAW + "call('llm_query', [MIB] * 1000)",
    "wide prompts, each as large as may be": "for n in range(20):\n"
    "    try: llm_query('\\U0001f600' + str(n) + 'x' * 8_000_000)\n    except QueryRefused: pass",
    "wide prompts in a batch": "llm_query_batched(['\\U0001f600' + 'x' * 1_000_000] * 30)",
    "a Final of 1 GB": "Final = 'x' * 1_000_000_000",
    "a raw Final of 1 GB": RAW + "call('final', [MIB] * 1000)",
    "a wide Final, as large as may be": "Final = '\\U0001f600' + 'x' * 8_000_000",
    "a Final that is all escapes": "Final = '\\x7f' * 8_000_000",
}


@pytest.mark.parametrize("name", CELLS)
def test_an_attack_costs_the_host_less_than_64_mib_and_the_run_ends_typed(engine: Engine, name: str) -> None:
    memory = max(base().limits.memory_mb, 3000)
    settings = (f"limits.memory_mb={memory}", f"sandbox.runtime={base().sandbox.runtime}", "budget.turns=1")
    cost = finished(started(Job(cells=(CELLS[name],), settings=(*settings, "limits.cell_timeout_s=5"))))
    sys.stdout.write(told(cost))
    assert cost.status in ("answered", "limit", "no_answer", "failed")
    assert set(cost.cells) <= {"ok", "error", "timeout", "output_limit", "oom", "died", "protocol_error"}
    assert cost.memory < MOST
    assert cost.disk < 50 * MIB if "Final" in name else cost.disk < 200 * MIB
    assert cost.elapsed_s < 60


def told(cost: Cost) -> str:
    """Show the figure with ``pytest -rP``."""
    return f"{cost.memory / MIB:.1f} MiB, {cost.disk / MIB:.1f} MiB of journal, {cost.elapsed_s:.1f} s: {cost}\n"


def test_output_is_let_through_where_no_bound_is_and_then_it_costs_the_host_more(engine: Engine) -> None:
    # The gate's limit is the policy's: at its most generous, and with the host's own bounds gone, output gets through.
    code = "print('x' * 60_000_000)\nimport sys\nprint('y' * 60_000_000, file=sys.stderr)"
    settings = ("limits.output_kb=65536", "limits.memory_mb=3000", "limits.cell_timeout_s=20", "budget.turns=1")
    cost = finished(started(Job(cells=(code,), settings=settings, without="output limits")))
    assert cost.memory > MOST


def test_no_file_is_left_on_the_host(engine: Engine, tmp_path: Path) -> None:
    before = set(Path("/tmp").iterdir())  # noqa: S108 - that is where it would be
    finished(started(Job(cells=("open('/tmp/x', 'w').write('x' * 1000)\nFinal = 'done'",))))
    ours = {path for path in set(Path("/tmp").iterdir()) - before if path.name.startswith(("rlm", "tmp"))}  # noqa: S108
    assert not {path for path in ours if path.exists() and path.is_file()}
