"""Boxes on a real engine: small, and every one accounted for when its test is over."""

from __future__ import annotations

import ast
import functools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from orchestrator.context import Context
from orchestrator.errors import EngineUnavailableError, ImageError
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox import container, image
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcHandler
from tests.support import policies
from tests.support.weakened import Weaken, weakened_box

# Small, so that limits are reached soon; tests take their numbers from here.
POLICY = policies.base().override(
    [
        f"limits.memory_mb={768 if policies.UNDER_GVISOR else 384}",  # gVisor needs more for each process
        "limits.output_kb=16",
        "limits.pids=64",
        "limits.tmp_mb=8",
        "limits.tmp_inodes=256",
    ]
)
OUTPUT = POLICY.limits.output_kb * 1024
# What the ladder may add to a cell's timeout.
LADDER_S = 3.0
TIMEOUT = 20.0
REMOVAL_S = 15

# Cells ask for something forbidden through this, and say what came of it.
ATTEMPT = """
import ctypes, errno, json, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return type(error).__name__
    return "done"
def syscall(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(number, *arguments) == -1:
        return errno.errorcode[ctypes.get_errno()]
    return "done"
"""


def connect() -> Iterator[Engine]:
    """Yield a connection for a module's tests, or skip them and say why."""
    try:
        engine = Engine.connect()
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    try:
        image.find(engine)
    except ImageError as error:
        pytest.skip(str(error))
    yield engine
    engine.close()


def left_behind(engine: Engine) -> list[str]:
    """Return the containers of this process that are still there once removals under way have had their time."""
    mine = f"{container.OWNER_LABEL}={container.owner()}"
    for found in engine.containers(mine):
        # docker.errors has both: gone in the meantime, or not gone in time.
        with suppress(docker.errors.APIError, OSError):
            engine._api.wait(found.id, timeout=REMOVAL_S, condition="removed")
    return [found.id for found in engine.containers(mine)]


@asynccontextmanager
async def box(
    engine: Engine,
    *settings: str,
    context: Context | None = None,
    rpc: RpcHandler | None = None,
    tools: Sequence[str] = (),
) -> AsyncIterator[Sandbox]:
    """Open a small box; ``settings`` override its policy."""
    async with Sandbox.open(POLICY.override(list(settings)), context, rpc=rpc, engine=engine, tools=tools) as opened:
        yield opened


async def value(opened: Sandbox, code: str) -> Any:
    """Run a cell that must go well, and return the plain value of its last expression."""
    result = await opened.execute(code, TIMEOUT)
    assert result.ok, result
    return None if result.result is None else ast.literal_eval(result.result)


async def ask(engine: Engine, code: str, *settings: str, weaken: Weaken | None = None) -> Any:
    """Run an attack in a box of its own, or in one with a control taken away; return what it says."""
    if weaken is None:
        async with box(engine, *settings) as opened:
            return await value(opened, ATTEMPT + code)
    async with weakened_box(POLICY.override(list(settings)), weaken) as opened:
        return await value(opened, ATTEMPT + code)


async def outcome(opened: Sandbox, code: str, timeout: float) -> ExecutionResult:
    """Run a cell and check that it ended within its bound."""
    result = await opened.execute(code, timeout)
    assert result.elapsed_s < timeout + LADDER_S
    return result


@functools.cache
def page_size() -> int:
    """Return the bytes of a page of memory."""
    import os

    return os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Return the bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page_size()
