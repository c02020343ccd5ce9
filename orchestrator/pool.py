"""Ready boxes, ahead of demand: each is used by one run and destroyed, and another takes its place.

A box in the pool is verified, has its kernel up, and holds nothing: no context, no line of model code. It waits for
input and so takes no processor time. What is left to do when it is taken is to send the context.

Each box lives in a task of the pool, which ends it; so the run that took it may be cancelled at any moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
from anyio import to_thread

from orchestrator.context import Context
from orchestrator.errors import ConfigurationError, SandboxError, ungrouped
from orchestrator.interpreter import Sandbox, check_context, connection
from orchestrator.kernel.client import preload
from orchestrator.policy import Policy
from orchestrator.prepared import Prepared, prepared
from orchestrator.sandbox.container import sweep_once
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.mux import refuse_everything
from orchestrator.transport.rpc import RpcHandler

MAX_SIZE = 256
# A box that has waited so long makes way for a fresh one: leases end, and hosts change.
MAX_AGE_S = 600.0
# What went wrong when a box was made may go wrong at once again.
RETRY_S = 5.0

_log = logging.getLogger(__name__)


class _Slot:
    """One box and where it stands."""

    def __init__(self) -> None:
        self.empty: Prepared | None = None
        self.taken = False
        self.done = anyio.Event()


class Pool:
    """Boxes of one policy for the runs of one event loop. Made by :meth:`open` alone.

    :meth:`box` is an :data:`~orchestrator.session.OpenBox`: give it to ``RLM(open_box=pool.box)``.
    """

    def __init__(self, policy: Policy, size: int, engine: Engine, tasks: anyio.abc.TaskGroup) -> None:
        self._policy = policy
        self._size = size
        self._engine = engine
        self._tasks = tasks
        self._slots: list[_Slot] = []
        self._changed = anyio.Event()
        self._filling = anyio.Lock()
        self._opening = 0
        self._waiting = 0
        self._retry_at = 0.0
        self._failure: SandboxError | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, policy: str | Path | Policy | None = None, size: int = 2, *, engine: Engine | None = None
    ) -> AsyncIterator[Pool]:
        """Begin to fill a pool; leaving the block destroys every box of it.

        Args:
            policy: of the boxes: a Policy, the name of a shipped one, or a path; the default profile if None.
            size: boxes that are kept ready. Fewer are, while the host has less memory to give than one may use.
            engine: a connection to share; one is made and closed if None.

        Raises:
            PolicyError: the policy does not load.
            ConfigurationError: the size is no number from 1 to 256.
            EngineUnavailableError: no engine answers.
        """
        if type(size) is not int or not 1 <= size <= MAX_SIZE:
            raise ConfigurationError(f"a pool has 1 to {MAX_SIZE} boxes, not {size!r}")
        policy = policy if isinstance(policy, Policy) else Policy.load(policy or "default")
        with ungrouped() as whole:
            async with connection(engine) as connected, anyio.create_task_group() as tasks:
                tasks.start_soon(to_thread.run_sync, preload)
                pool = cls(policy, size, connected, tasks)
                pool._refill()
                tasks.start_soon(sweep_once, connected)
                try:
                    yield pool
                except BaseException as error:
                    whole.append(error)
                    raise
                finally:
                    tasks.cancel_scope.cancel()

    @property
    def ready(self) -> int:
        """Boxes that could be taken now."""
        return sum(not slot.taken and slot.empty is not None and not slot.empty.client.gone for slot in self._slots)

    async def filled(self, number: int | None = None) -> None:
        """Wait until so many boxes are ready; all of them if None. Where the host lacks the memory, that may be never.

        Raises:
            SandboxError: the last one could not be made; the pool tries again, but why should it then succeed?
        """
        wanted = self._size if number is None else min(number, self._size)
        while self.ready < wanted:
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()

    @asynccontextmanager
    async def box(
        self, policy: Policy, context: Context, rpc: RpcHandler | None = None, *, tools: Sequence[str] = ()
    ) -> AsyncIterator[Sandbox]:
        """Take a box, bring ``context`` into it, and have it destroyed when the block is left.

        That takes the engine a tenth of a second, for which nobody waits but the end of the pool's own block: the
        stream to the box, and all that runs in it, ends at once.

        A policy that asks for another kind of box than the pool's gets a fresh one of its own, as does whoever comes
        when none is ready or on its way.

        Raises:
            ContextError: the context is of a wrong type or larger than the policy allows.
            SandboxError: there was no box to be had.
        """
        began = time.monotonic()
        check_context(context, policy)
        slot = await self._take() if _same_box(policy, self._policy) else None
        if slot is None or slot.empty is None:
            async with Sandbox.open(policy, context, rpc=rpc, engine=self._engine, tools=tools) as opened:
                yield opened
            return
        try:
            # While somebody waits for a box to be filled, none is made: that would take the processor from it.
            self._opening += 1
            try:
                await slot.empty.fill(context, rpc or refuse_everything, tools, waited=True)
            finally:
                self._opening -= 1
                self._refill()
            yield Sandbox.of(slot.empty, policy, self._engine, time.monotonic() - began)
        finally:
            slot.empty.give_up()
            slot.done.set()

    async def _take(self) -> _Slot | None:
        while True:
            for slot in self._slots:
                if not slot.taken and slot.empty is not None and not slot.empty.client.gone:
                    slot.taken = True
                    return slot
            # One that is being made will be there before one that is begun now, but serves one run alone.
            if self._waiting >= sum(slot.empty is None for slot in self._slots):
                self._refill()
                return None
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1

    def _refill(self) -> None:
        self._tasks.start_soon(self._fill)

    async def _fill(self) -> None:
        """Make what is missing, one box at a time."""
        if self._filling.locked():
            return
        async with self._filling:
            while sum(not slot.taken for slot in self._slots) < self._size and not self._opening:
                if time.monotonic() < self._retry_at or not await to_thread.run_sync(_has_memory_for, self._policy):
                    await anyio.sleep(RETRY_S)
                    continue
                slot = _Slot()
                self._slots.append(slot)
                await self._tasks.start(self._keep, slot)

    async def _keep(self, slot: _Slot, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Make a box, and keep it until its run is over, or it ends, or nobody came for it."""
        made = False
        try:
            with ungrouped():
                async with prepared(self._engine, self._policy, MAX_AGE_S) as empty:
                    await empty.up()
                    slot.empty, made, self._failure = empty, True, None
                    self._notify()
                    task_status.started()
                    with anyio.move_on_after(MAX_AGE_S):
                        await self._until_over(slot, empty)
                    if slot.taken:
                        await slot.done.wait()
                    slot.taken = True
        except SandboxError as error:
            _log.warning("a box for the pool was not made: %s", error)
            self._retry_at, self._failure = time.monotonic() + RETRY_S, error
        finally:
            self._slots.remove(slot)
            self._notify()
            if not made:
                task_status.started()
        self._refill()

    async def _until_over(self, slot: _Slot, empty: Prepared) -> None:
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(_cancel_after, empty.client.ended, waiting.cancel_scope)
            await slot.done.wait()
            waiting.cancel_scope.cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _same_box(one: Policy, other: Policy) -> bool:
    """Whether a box of the second policy, the pool's, will do for the first; the rest is held by the host.

    The pool's time is in the lease of its boxes: one that outlived it could be swept from another machine.
    """
    same = (one.limits, one.sandbox, one.models.window) == (other.limits, other.sandbox, other.models.window)
    return same and one.budget.wall_s <= other.budget.wall_s


def _has_memory_for(policy: Policy) -> bool:
    """Whether this host could give one more box all that it may use; True where it does not say (proc(5), meminfo)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    available = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return available is None or available // 1024 >= policy.limits.memory_mb


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
