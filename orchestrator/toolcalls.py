"""Calls of one run's tools: paid for, bounded in time and number, recorded before anyone sees what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio import to_thread

from orchestrator.errors import LimitExceededError
from orchestrator.events import ToolFailed, ToolFinished, ToolStarted
from orchestrator.ledger import Amount, Scope
from orchestrator.recording import Recorder
from orchestrator.text import one_line, size
from orchestrator.tools import BadArgumentsError, Tool, Toolbox, ToolError
from orchestrator.transport.rpc import RpcRefusal, RpcReply

_TOLD_CHARS: Final = 500
_DETAIL_CHARS: Final = 1000
_FAILED: Final = "the tool failed"


class Toolcalls:
    """Calls tools on one run's account.

    Args:
        tools: those of the run.
        scope: pays.
        recorder: the run's events.
        limiter: calls under way in the whole tree, and threads that still run after their call was given up: a function
            that hangs keeps its place until it returns, however often the box asks again.
        max_bytes: the largest result, as JSON in UTF-8.
        timeout_s: seconds one may take.
        cell_ends: gives when the open cell will be stopped, on the event loop's clock.
    """

    def __init__(
        self,
        tools: Toolbox,
        *,
        scope: Scope,
        recorder: Recorder,
        limiter: anyio.CapacityLimiter,
        max_bytes: int,
        timeout_s: float,
        cell_ends: Callable[[], float],
    ) -> None:
        self._tools = tools
        self._scope = scope
        self._recorder = recorder
        self._limiter = limiter
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._cell_ends = cell_ends
        self._number = recorder.tool_calls

    async def call(self, name: str, text: str, cell: int) -> RpcReply:
        """Call the tool ``name`` and return its result as JSON, recorded and paid for.

        Args:
            name: as the box has it.
            text: its arguments, as the box sent them.
            cell: the cell that asks.

        Raises:
            RpcRefusal: ``unknown_tool``, ``invalid_arguments``, ``tool_failed`` or ``result_too_large``.
            LimitExceededError: the budget does not allow it, or it took too long.
            JournalError: it cannot be recorded.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise RpcRefusal("unknown_tool", f"there is no such tool; there is {', '.join(self._tools) or 'none'}")
        try:
            arguments = tool.arguments(text)
        except BadArgumentsError as error:
            raise RpcRefusal("invalid_arguments", str(error)) from error
        past = self._recorder.recall_tool(cell, name, text)
        if past is not None:
            self._scope.spend(Amount(tool_calls=1, bytes_in=size(past)))
            return RpcReply({}, past)
        token = object()
        await self._limiter.acquire_on_behalf_of(token)
        place = _Place(self._limiter, token)
        try:
            self._scope.spend(Amount(tool_calls=1))
            self._number += 1
            return await self._recorded(
                self._number, tool, arguments, ToolStarted(self._number, cell, name, text), place
            )
        finally:
            if not place.in_thread:
                place.leave()

    async def _recorded(
        self, number: int, tool: Tool, arguments: dict[str, Any], started: ToolStarted, place: _Place
    ) -> RpcReply:
        self._recorder.emit(started)
        began = anyio.current_time()
        code, detail = "cancelled", "the cell or the run ended first"
        try:
            text = await self._in_time(tool, arguments, place)
            self._scope.spend(Amount(bytes_in=size(text)))
            code = ""
        except LimitExceededError as error:
            code, detail = error.reason, str(error)
            raise
        except RpcRefusal as refusal:
            cause = refusal.__cause__
            code, detail = refusal.reason, refusal.message if cause is None else f"{type(cause).__name__}: {cause}"
            raise
        finally:
            elapsed = anyio.current_time() - began
            if code:
                self._recorder.emit(ToolFailed(number, code, one_line(detail, _DETAIL_CHARS), elapsed))
        self._recorder.emit(ToolFinished(number, text, elapsed))
        return RpcReply({}, text)

    async def _in_time(self, tool: Tool, arguments: dict[str, Any], place: _Place) -> str:
        call_ends, cell_ends = anyio.current_time() + self._timeout_s, self._cell_ends()
        with anyio.CancelScope(deadline=min(call_ends, cell_ends)):
            return await self._result(tool, arguments, place)
        late = ("call_timeout_s", self._timeout_s) if call_ends <= cell_ends else ("cell_timeout_s", 0.0)
        raise LimitExceededError(*late)

    async def _result(self, tool: Tool, arguments: dict[str, Any], place: _Place) -> str:
        """Return the result as JSON. Whatever a tool raises is its failure, even what would mean something here."""
        from pydantic_core import to_json

        try:
            result = await _run(tool, arguments, place)
            text = to_json(result, inf_nan_mode="null").decode()
        except ToolError as error:
            raise RpcRefusal("tool_failed", one_line(str(error), _TOLD_CHARS) or _FAILED) from error
        except (Exception, SystemExit) as error:
            raise RpcRefusal("tool_failed", _FAILED) from error
        if len(text) > self._max_bytes or size(text) > self._max_bytes:
            told = f"the result has more than {self._max_bytes:,} bytes of JSON"
            raise RpcRefusal("result_too_large", told, limit=self._max_bytes)
        return text


class _Place:
    """A place among the calls under way; it is left once, by the call or by the thread that outlives it."""

    def __init__(self, limiter: anyio.CapacityLimiter, token: object) -> None:
        self._limiter = limiter
        self._token: object | None = token
        self.in_thread = False

    def leave(self) -> None:
        if self._token is not None:
            self._limiter.release_on_behalf_of(self._token)
            self._token = None


async def _run(tool: Tool, arguments: dict[str, Any], place: _Place) -> Any:
    if tool.is_async:
        return await tool.function(**arguments)
    loop = asyncio.get_running_loop()

    def work() -> Any:
        place.in_thread = True
        try:
            return tool.function(**arguments)
        finally:
            # The loop may be over when a function returns that was given up long ago.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(place.leave)

    # What bounds the threads is the place; a limiter of threads would forget those that were given up.
    return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
