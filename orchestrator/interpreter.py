"""A ready box: container, frames and kernel, verified against the policy before any model code can run."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from orchestrator import context as contexts
from orchestrator.context import Context, Taken
from orchestrator.errors import (
    ConfigurationError,
    ContextError,
    EngineUnavailableError,
    SandboxGoneError,
    SandboxStartError,
    ungrouped,
)
from orchestrator.kernel.client import KernelClient, preload
from orchestrator.kernel.result import CellError, ExecutionResult
from orchestrator.policy import Policy
from orchestrator.prepared import Prepared, prepared, send_context
from orchestrator.sandbox import gvisor, hardening
from orchestrator.sandbox.container import sweep_once
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.mux import Mux, refuse_everything
from orchestrator.transport.rpc import RpcHandler

MIB = 1 << 20
# The engine has been seen to tell of a container's end within 0.2 s of the end of its stream.
AUTOPSY_S = 2
# What supervisor and kernel take before they hold anything, and room for a cell to work in.
_KERNEL_MB = 96
_NOTHING = Taken()


@dataclass(frozen=True, slots=True)
class BoxInfo:
    """What is known of an open box.

    Attributes:
        container: name of the container.
        image: id of the image.
        runtime: OCI runtime that runs it.
        controls: what was found of every control, by id.
        opened_s: seconds from the request to the ready kernel.
        kernel: what the box's operating system kernel says of itself (``/proc/version``).
    """

    container: str
    image: str
    runtime: str
    controls: dict[str, str]
    opened_s: float
    kernel: str = ""


class Sandbox:
    """A Python REPL in a locked container; variables persist from cell to cell.

    Made by :meth:`open` alone, and gone when that block is left.
    """

    def __init__(
        self,
        client: KernelClient,
        mux: Mux,
        policy: Policy,
        info: BoxInfo,
        engine: Engine | None = None,
        *,
        taken: Taken = _NOTHING,
    ) -> None:
        """Wrap what :meth:`open` has put together."""
        self._client = client
        self._mux = mux
        self._policy = policy
        self._busy = anyio.Lock()
        self._cells = 0
        self._engine = engine
        self._taken = taken
        self.info = info

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        policy: str | Path | Policy | None = None,
        context: Context | None = None,
        *,
        rpc: RpcHandler | None = None,
        engine: Engine | None = None,
        tools: Sequence[str] = (),
    ) -> AsyncIterator[Sandbox]:
        """Start a box, verify it, and bring ``context`` into it as the variable of that name.

        Args:
            policy: what the box may use: a Policy, the name of a shipped one, or the path of a TOML file; the default
                profile if None.
            context: a text, or a list or dict of texts. Lone surrogates, which UTF-8 cannot carry, become ``?``. A box
                that is to have several is opened with the first, and given the others (:meth:`give`).
            rpc: answers the calls of the code in the box; without it every call is refused. It is a coroutine function
                that takes an RpcCall and returns an RpcReply, or raises RpcRefusal, which is the ``QueryRefused`` of
                the calling code; for anything else it raises, that reads ``handler_failed``, and the host's log tells
                why. ``models.window`` calls of a box are under way at once, each in a task of its own; those of a cell
                are cancelled when it ends. See below for what is asked.
            engine: a connection to share; one is made and closed if None.
            tools: names of functions that the code in the box finds, each a call of the method ``tool``.

        By ``method`` a call is (``body`` is a text, ``params`` what JSON holds, neither of them checked):

        - ``llm_query``: the prompt is the body, and so is the answer; params ``model``, ``max_tokens`` and ``batch``
          where there is one;
        - ``batch_open``: ``n`` prompts of so many ``characters`` together are about to be asked, with ``model`` and
          ``max_tokens``; or, with ``method`` ``rlm_query``, so many child runs. The result is
          ``{"batch": id, "window": how many to ask at once}``; a refusal, with a limit,
          refuses all of them. To refuse with ``unknown_method`` is to know no batches: their prompts
          then come as plain ``llm_query`` calls;
        - ``batch_close``: the ``batch`` is over, whatever came of it;
        - ``rlm_query``: the ``query``, and in the body the context, whose ``layout`` is ``{"kind": "text"}``,
          ``{"kind": "list", "lengths": [...]}`` or ``{"kind": "dict", "names": [...], "lengths": [...]}``, lengths in
          characters;
        - ``tool``: one of ``tools`` is called, whose ``name`` it is; the body is JSON, ``{"args": [...], "kwargs":
          {...}}``, and so is that of the answer, the result;
        - ``budget``: what is left, as the result;
        - ``final``: after each cell that leaves ``Final`` set, its value is the body.

        Raises:
            PolicyError: the policy does not load.
            ContextError: the context is of a wrong type or larger than the policy allows.
            EngineUnavailableError: no engine answers.
            ImageError: the image is missing or of another version.
            HardeningError: a control is not in force.
            SandboxStartError: the box did not become ready.
        """
        began = time.monotonic()
        policy = policy if isinstance(policy, Policy) else Policy.load(policy or "default")
        check_context(context, policy)
        # Outermost: whoever uses a box gets one plain exception, theirs or ours, and never a group of one.
        with ungrouped() as whole:
            async with anyio.create_task_group() as tasks, connection(engine) as connected:
                tasks.start_soon(to_thread.run_sync, preload)  # while the engine works
                async with prepared(connected, policy) as empty:
                    await empty.fill(context, rpc or refuse_everything, tools)
                    tasks.start_soon(sweep_once, connected)
                    try:
                        yield cls.of(empty, policy, connected, time.monotonic() - began)
                    except BaseException as error:
                        whole.append(error)
                        raise
                tasks.cancel_scope.cancel()  # nobody waits for the sweep

    @classmethod
    def of(cls, filled: Prepared, policy: Policy, engine: Engine, opened_s: float) -> Sandbox:
        """Return a box that has its context; whoever prepared it destroys it."""
        report = filled.report
        info = BoxInfo(filled.container, filled.image, filled.runtime, report.controls, opened_s, report.kernel)
        return cls(filled.client, filled.mux, policy, info, engine, taken=filled.taken)

    async def give(self, context: Context) -> None:
        """Bring one more context into the running box: ``context`` there from now on, and the last of ``contexts``.

        ``contexts`` is the list of all the contexts that were given, oldest first; it is made with the second one.
        All other variables stay but ``Final``, which answered what was asked before. A kernel that is started later,
        because this one died, has all contexts again. Waits for a cell that runs, and is none: what code in the box
        calls meanwhile belongs to no cell (``RpcCall.cell`` is None), for which a broker refuses it. Cancelling this
        destroys the box, which has a part of the context then.

        Args:
            context: as of :meth:`open`.

        Raises:
            ContextError: it is of a wrong type, or too large together with those that are there
                (``limits.context_mb``, ``limits.memory_mb``). Nothing was sent, and the box is as it was.
            SandboxGoneError: the box is dead.
            SandboxStartError: it was not taken in within ``limits.start_timeout_s``; the box is given up.
        """
        contexts.check(context)
        limits = self._policy.limits
        async with self._busy:
            if self.gone:
                raise self._gone("the box is gone")
            _check_size(context, self._policy, self._taken)
            deadline = anyio.current_time() + limits.start_timeout_s
            took = await self._sent_whole(context)
            self._taken = Taken(self._taken.file + took.file, self._taken.memory + took.memory)
            try:
                await self._client.load(max(deadline - anyio.current_time(), 0))
            finally:
                self._mux.cancel_calls()

    async def _sent_whole(self, context: Context) -> Taken:
        """Send a context. A part of one would make nonsense of what follows, so the box is given up instead."""
        limits = self._policy.limits
        try:
            with anyio.fail_after(limits.start_timeout_s):
                return await send_context(self._mux, context, limits.memory_mb, beside=self._taken.memory)
        except TimeoutError:
            self._client.give_up("it did not take a context")
            raise SandboxStartError(f"the box did not take the context within {limits.start_timeout_s:g} s") from None
        except SandboxGoneError as error:
            with anyio.move_on_after(AUTOPSY_S):
                await self._client.ended()  # why is among the last that is read from it
            gone = self._gone(str(error))
            self._client.give_up("a context was not sent whole")
            raise gone from error
        except BaseException:
            self._client.give_up("a context was not sent whole")
            raise

    async def execute(
        self, code: str, timeout: float | None = None, stop: anyio.Event | None = None
    ) -> ExecutionResult:
        """Run one cell to its end; cells wait for one another.

        Cancelling this call destroys the box: code that may still run in it is worth nothing to whoever gave it up.

        Args:
            code: Python source. Lone surrogates, which UTF-8 cannot carry, become ``?``.
            timeout: seconds until the cell is interrupted; the policy's ``cell_timeout_s`` if None, and at most that.
            stop: when set, the cell is interrupted and ends as ``cancelled``, with what it has printed.

        Returns:
            How it ended. Code that fails, hangs or kills its process is a result.

        Raises:
            ConfigurationError: ``code`` is not a str, or ``timeout`` not a positive number.
            SandboxGoneError: the box is dead; nothing was run.
        """
        if not isinstance(code, str):
            raise ConfigurationError(f"the code of a cell is a str, not {type(code).__name__}")
        limit = self._policy.limits.cell_timeout_s
        if timeout is not None:
            limit = min(limit, _seconds(timeout))
        most = hardening.frame_bytes(self._policy) // 8
        async with self._busy:
            self._cells += 1
            if len(code) > most:
                message = f"a cell has at most {most:,} characters; this one has {len(code):,}"
                return ExecutionResult("error", error=CellError("CellTooLarge", message, ""))
            self._mux.cell = self._cells
            try:
                result = await self._client.execute(code, limit, self._policy.limits.start_timeout_s, stop)
            finally:
                self._mux.cell = None
                self._mux.cancel_calls()
            return await self._explained(result)

    async def _explained(self, result: ExecutionResult) -> ExecutionResult:
        """Find out whether memory is what a whole box died of; that one, unlike its kernel's end, it cannot report."""
        if result.status != "died" or not self.gone or self._engine is None:
            return result
        oom = False
        with anyio.move_on_after(AUTOPSY_S), suppress(EngineUnavailableError):
            look = partial(self._engine.ran_out_of_memory, self.info.container, AUTOPSY_S)
            oom = await to_thread.run_sync(look, abandon_on_cancel=True)
        detail = "the box ended: its memory was used up"
        return replace(result, status="oom", detail=detail) if oom else result

    def _gone(self, what: str) -> SandboxGoneError:
        why = self._client.violation
        return SandboxGoneError(f"{what}: {why}" if why else what)

    @property
    def cells(self) -> int:
        """Cells that were run so far."""
        return self._cells

    @property
    def gone(self) -> bool:
        """Whether no further cell can run."""
        return self._client.gone


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(f"timeout={value!r}: give a positive number of seconds")
    return float(value)


def check_context(context: Context | None, policy: Policy) -> None:
    """Check that a context is one and that the policy has room for it.

    Raises:
        ContextError: it is of a wrong type, or larger than the policy allows.
    """
    if context is not None:
        _check_size(contexts.check(context), policy)


def room_for(context: Context, policy: Policy, before: Taken) -> Taken:
    """Return what all contexts of a box take with one more.

    Args:
        context: a further one.
        policy: of the box.
        before: what those that are there take.

    Raises:
        ContextError: it is of a wrong type, or the policy has no room for it.
    """
    _check_size(contexts.check(context), policy, before)
    more = contexts.expected(context, policy.limits.memory_mb, before.memory)
    return Taken(before.file + more.file, before.memory + more.memory)


def _room(policy: Policy) -> int:
    """Return the bytes of context for which a box of this policy has memory."""
    taken = _KERNEL_MB + (gvisor.MEMORY_MB if gvisor.asked_for(policy.sandbox.runtime) else 0)
    return (policy.limits.memory_mb - taken) * MIB


def _check_size(context: Context, policy: Policy, before: Taken = _NOTHING) -> None:
    # UTF-8 has at least one byte a character and at most four: most contexts need no exact count.
    limit = policy.limits.context_mb * MIB - before.file
    characters = sum(map(len, contexts.texts(context)))
    layout = contexts.layout_bytes(context)
    size = characters + layout
    room = _room(policy) - before.memory
    beside = f" beside the {before.file:,} bytes of earlier ones" if before.file else ""
    if characters * 4 + layout > min(limit, room):
        size = layout + sum(len(piece) for text in contexts.texts(context) for piece in contexts.encode(text))
    if room < size <= limit:
        raise ContextError(
            f"the context has {size:,} bytes, which the box holds in its memory, and limits.memory_mb = "
            f"{policy.limits.memory_mb} leaves {max(room, 0):,} for it{beside}"
        )
    if size > limit:
        raise ContextError(
            f"the context has {size:,} bytes and the policy allows limits.context_mb = {policy.limits.context_mb} "
            f"({policy.limits.context_mb * MIB:,} bytes){beside}"
        )


@asynccontextmanager
async def connection(engine: Engine | None) -> AsyncIterator[Engine]:
    """Yield an engine, or a connection of its own that is closed afterwards."""
    if engine is not None:
        yield engine
        return
    connected = await to_thread.run_sync(Engine.connect)
    try:
        yield connected
    finally:
        connected.close()
