"""The stopped stay stopped: an attack on the freeze, beside the same with the second filter's part in it taken out."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from orchestrator.kernel.client import KernelClient
from orchestrator.transport.mux import Mux
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.support.bridge import POLICY, START_S, SUPERVISOR, bridge

pytestmark = pytest.mark.anyio

FROZEN = POLICY.override(["sandbox.freeze_between_cells=true"])
TIMEOUT = 30
BEATS = 10
# The answer to a call comes when its cell is over and everything is stopped. The line it comes on can be told to send
# its reader any signal then (fcntl(2), F_SETSIG); this one sets a stopped process going.
WOKEN_BY_AN_ANSWER = """
import fcntl, os, signal, threading, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(3, fcntl.F_SETOWN, os.getpid())
try: fcntl.fcntl(3, fcntl.F_SETSIG, signal.SIGCONT)
except PermissionError: pass
fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) | os.O_ASYNC)
def beat():
    with open(os.environ["HOME"] + "/beats", "ab", buffering=0) as file:
        while True:
            file.write(b"x")
            time.sleep(0.01)
def hang():
    try: llm_query("never answered")
    except QueryRefused: pass
for work in (beat, hang): threading.Thread(target=work, daemon=True).start()
budget()  # answered when the other call has arrived
"""


class Desk:
    """Answers no query; and anything else once one has arrived."""

    def __init__(self) -> None:
        self._asked = anyio.Event()

    async def __call__(self, call: RpcCall) -> RpcReply:
        if call.method == "llm_query":
            self._asked.set()
            await anyio.sleep_forever()
        await self._asked.wait()
        return RpcReply()


def without_the_filters_part(folder: Path) -> Path:
    """Return a supervisor whose kernels may send and ask for any signal."""
    package = folder / "weakened" / "sandbox_image"
    shutil.copytree(SUPERVISOR.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / "seccomp.py").read_text("utf-8")
    assert "NO_WAKING if freeze else ()" in source
    (package / "seccomp.py").write_text(source.replace("NO_WAKING if freeze else ()", "()"), "utf-8")
    return package / "supervisor.py"


@asynccontextmanager
async def attacked(folder: Path, program: Path) -> AsyncIterator[Path]:
    """Run the attack to the end of its cell; yield the file that grows while what it left behind runs."""
    async with bridge(folder, rpc=Desk(), policy=FROZEN, program=program) as (client, mux):
        assert (await executed(client, mux, WOKEN_BY_AN_ANSWER)) == "ok"
        yield folder / "scratch" / "beats"


async def executed(client: KernelClient, mux: Mux, code: str) -> str:
    """Run a cell as :meth:`orchestrator.interpreter.Sandbox.execute` does."""
    result = await client.execute(code, TIMEOUT, START_S)
    mux.cancel_calls()
    return result.status


def grown_meanwhile(still: Path, moving: Path) -> int:
    """Return what the one file grows while the other grows by some beats."""
    before, goal = still.stat().st_size, moving.stat().st_size + BEATS
    deadline = time.monotonic() + TIMEOUT
    while moving.stat().st_size < goal:
        assert time.monotonic() < deadline, "the twin did not move"
    return still.stat().st_size - before


async def test_no_file_wakes_what_is_stopped_and_without_the_filter_one_does(tmp_path: Path) -> None:
    held, twin, weakened = tmp_path / "held", tmp_path / "twin", without_the_filters_part(tmp_path)
    for folder in (held, twin):
        folder.mkdir()
    async with attacked(held, SUPERVISOR) as still, attacked(twin, weakened) as moving:
        assert await to_thread.run_sync(grown_meanwhile, still, moving) == 0
