"""The floor a cell is compared with: a bare local ipykernel, driven by jupyter_client as its own documentation does."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel


class LocalKernel:
    """A kernel on this machine, without a box."""

    def __enter__(self) -> Self:
        """Start it and wait until it is ready."""
        # Its warning that TCP is not encrypted is no news to a benchmark.
        self._manager, client = start_new_kernel(extra_arguments=["--log-level=50"])
        assert isinstance(client, BlockingKernelClient)
        self._client = client
        return self

    def execute(self, code: str) -> None:
        """Run one cell to its end."""
        self._client.execute_interactive(code, store_history=False, allow_stdin=False)

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Stop it."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
