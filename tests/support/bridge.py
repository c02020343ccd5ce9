"""The real supervisor and a real kernel on this machine, in namespaces of their own instead of a container.

The supervisor kills every process of its PID namespace and empties /dev/shm, so it must never run outside of one. What
runs in the kernel here is not confined: these tests run harmless cells only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import anyio
from anyio.abc import Process

import sandbox_image
from orchestrator import prepared
from orchestrator.context import Context
from orchestrator.kernel.client import KernelClient
from orchestrator.policy import Policy
from orchestrator.sandbox import hardening
from orchestrator.sandbox.attach import AttachStream
from orchestrator.sandbox.container import Container
from orchestrator.transport.mux import Mux, refuse_everything
from orchestrator.transport.rpc import RpcHandler

POLICY = Policy().override(["limits.output_kb=4", "limits.answer_mb=4", "limits.frame_kb=2048", "models.in_flight=2"])
START_S = 60
SUPERVISOR = Path(sandbox_image.__file__).with_name("supervisor.py")
# The tmpfs is there before the supervisor is, and so is the /proc of its own PID namespace.
_ENTER = ("unshare", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--mount-proc", "--")
_RUN = 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"'


def missing() -> str:
    """Return why nothing can be run in namespaces of its own here, or nothing."""
    if shutil.which("unshare") is None:
        return "there is no unshare(1)"
    tried = subprocess.run([*_ENTER, "sh", "-c", _RUN, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no namespace of its own for the supervisor: {tried.stderr.strip()}"


class ProcessStream:
    """Stdin and stdout of a process as a byte stream."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def receive(self) -> bytes:
        if self._process.stdout is None:
            return b""
        try:
            return await self._process.stdout.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        if self._process.stdin is None:
            raise anyio.BrokenResourceError
        try:
            await self._process.stdin.send(data)
        except anyio.ClosedResourceError as error:
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        if self._process.stdin is not None:
            with suppress(anyio.BrokenResourceError):
                await self._process.stdin.aclose()


@asynccontextmanager
async def supervisor(
    folder: Path, policy: Policy = POLICY, program: Path = SUPERVISOR
) -> AsyncIterator[tuple[ProcessStream, Process]]:
    """Start a supervisor; its end is awaited when the block is left."""
    (folder / "scratch").mkdir()
    settings = json.dumps(hardening.supervisor_settings(policy))
    environment = {
        "PATH": os.environ["PATH"],
        "RLM_SANDBOX_RUN_DIR": str(folder / "run"),
        "RLM_SANDBOX_SCRATCH": str(folder / "scratch"),
    }
    command = [*_ENTER, "sh", "-c", _RUN, sys.executable, "-I", "-B", "-u", str(program), settings]
    process = await anyio.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    stream = ProcessStream(process)
    try:
        yield stream, process
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()
            with anyio.move_on_after(START_S):
                await process.wait()
            if process.returncode is None:
                process.kill()  # unshare(1), and with it its child
            await process.aclose()


@asynccontextmanager
async def bridge(
    folder: Path,
    context: Context | None = None,
    rpc: RpcHandler = refuse_everything,
    *,
    policy: Policy = POLICY,
    program: Path = SUPERVISOR,
) -> AsyncIterator[tuple[KernelClient, Mux]]:
    """Start a supervisor and join client and mux to it, as orchestrator/prepared.py does with a container."""
    async with supervisor(folder, policy, program) as (stream, _):
        stand_in = Container("bridge", cast("AttachStream", stream))
        async with prepared._served(stand_in, policy, rpc) as (client, mux):
            with anyio.fail_after(START_S):
                async with anyio.create_task_group() as starting:
                    starting.start_soon(prepared.send_context, mux, context, policy.limits.memory_mb)
                    await client.hello()
                await client.handshake()
            yield client, mux
