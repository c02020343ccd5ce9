"""The kernel that a Jupyter client talks to: on the host, with no interpreter of its own; each cell goes into a box.

The box is opened by the first cell, so that a client that only looks pays nothing, and destroyed with the kernel. What
a cell prints is published when the cell ends. Calls of models are refused, as in any box that was opened alone.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

import orchestrator
from orchestrator.errors import PolicyError, RlmSandboxError, SandboxGoneError
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.result import ExecutionResult
from orchestrator.policy import Policy
from orchestrator.text import printable


class SandboxKernel(Kernel):
    """Runs cells in one box of the policy that :func:`main` was given."""

    implementation = "rlm-sandbox"
    implementation_version = orchestrator.__version__
    language_info = {  # noqa: RUF012 - a trait of the class above it
        "name": "python",
        "version": platform.python_version(),
        "mimetype": "text/x-python",
        "file_extension": ".py",
        "pygments_lexer": "ipython3",
        "codemirror_mode": {"name": "ipython", "version": 3},
    }
    banner = "Python in a box: no network, no files of this machine, nothing kept."
    policy = Policy()

    def __init__(self, **kwargs: Any) -> None:
        """Set up; no box yet."""
        super().__init__(**kwargs)
        self._box: Sandbox | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._stop: anyio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def do_execute(self, code: str, silent: bool, *_: Any, **__: Any) -> dict[str, Any]:  # noqa: FBT001 - theirs
        """Run one cell in the box, and publish what came of it."""
        try:
            result = await self._execute(code)
        except RlmSandboxError as error:
            return self._failed(type(error).__name__, str(error), "", silent=silent)
        if not silent:
            self._publish(result)
        if (raised := result.error) is not None:
            return self._failed(raised.name, raised.value, raised.traceback, silent=silent)
        if not result.ok:
            return self._failed(result.status, result.detail or result.status, "", silent=silent)
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}

    async def interrupt_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Interrupt the cell in the box; it comes on a thread of its own."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self.session is not None:
            self.session.send(stream, "interrupt_reply", {"status": "ok"}, parent, ident=ident)

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature is the library's
        """Destroy the box. The request comes on a thread of its own, and the box belongs to that of the cells."""
        if self._loop is not None:
            closing = self._close()
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(closing, self._loop))
        return {"status": "ok", "restart": restart}

    async def do_is_complete(self, code: str) -> dict[str, Any]:
        """Say whether the code is a whole cell, as a console asks before it sends one."""
        from IPython.core.inputtransformer2 import TransformerManager

        status, indent = TransformerManager().check_complete(code)
        return {"status": status, **({"indent": " " * indent} if indent else {})}

    async def _execute(self, code: str) -> ExecutionResult:
        self._loop = asyncio.get_running_loop()
        self._stop = anyio.Event()
        try:
            box = await self._open()
            return await box.execute(code, stop=self._stop)
        except SandboxGoneError:
            await self._close()
            raise
        finally:
            self._stop = None

    async def _open(self) -> Sandbox:
        if self._box is not None and not self._box.gone:
            return self._box
        await self._close()
        opened: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(opened))
        self._box = await opened
        return self._box

    async def _keep(self, opened: asyncio.Future[Sandbox]) -> None:
        # In a task of its own: a box is to be closed by the task that opened it, and each cell is run in another.
        async with AsyncExitStack() as stack:
            try:
                opened.set_result(await stack.enter_async_context(Sandbox.open(self.policy)))
            except Exception as error:  # noqa: BLE001 - whoever waits for the box is told, whatever it is
                opened.set_exception(error)
                return
            await self._closing.wait()

    async def _close(self) -> None:
        self._closing.set()
        keeper, self._keeper, self._box = self._keeper, None, None
        if keeper is not None:
            with suppress(RlmSandboxError):
                await keeper

    def _publish(self, result: ExecutionResult) -> None:
        for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            if text:
                self._send("stream", {"name": name, "text": printable(text)})
        if result.state_lost:
            self._send("stream", {"name": "stderr", "text": f"[{result.detail}: all variables are lost]\n"})
        if result.result is not None:
            data = {"text/plain": printable(result.result)}
            content = {"execution_count": self.execution_count, "data": data, "metadata": {}}
            self._send("execute_result", content)

    def _failed(self, name: str, value: str, traceback: str, *, silent: bool) -> dict[str, Any]:
        lines = printable(traceback).splitlines() or [f"{printable(name)}: {printable(value)}"]
        content = {"ename": printable(name), "evalue": printable(value), "traceback": lines}
        if not silent:
            self._send("error", content)
        return {"status": "error", "execution_count": self.execution_count, **content}

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        self.send_response(self.iopub_socket, kind, content)


def main() -> None:
    """Serve one client: ``python -m orchestrator.jupyter.kernel -f CONNECTION_FILE --policy NAME|PATH``."""
    parser = argparse.ArgumentParser(prog="orchestrator.jupyter.kernel", allow_abbrev=False)
    parser.add_argument("-f", dest="connection_file", required=True, help="written by the client")
    parser.add_argument("--policy", default="default", help="a shipped policy's name, or a file")
    args = parser.parse_args()
    try:
        SandboxKernel.policy = Policy.load(args.policy)
    except PolicyError as error:
        sys.exit(str(error))
    IPKernelApp.launch_instance(["-f", args.connection_file], kernel_class=SandboxKernel)


if __name__ == "__main__":
    main()
