"""The one box of a session: opened for the first question that needs it, lent to each, and gone when the session is.

A task of its own holds the box, so questions may be asked from wherever, and be cancelled: cancelling one in the middle
of a cell costs the box, as ever, and the next question finds a fresh one that holds all contexts again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import anyio
from anyio.abc import TaskGroup, TaskStatus

from orchestrator.context import Context
from orchestrator.errors import SandboxError, ungrouped
from orchestrator.policy import Policy
from orchestrator.session import Box, OpenBox
from orchestrator.transport.mux import refuse_everything
from orchestrator.transport.rpc import RpcCall, RpcHandler, RpcReply

# Whoever cannot see whether this process lives may sweep its box after this time, so it is longer than a person's day.
# A pool lends no box for longer than its own runs last: a session has one made for it.
LEASE_S = 86_400.0


class Lodging:
    """Keeps the box. Made by :meth:`opened` alone; one question at a time has it.

    Attributes:
        contexts: that the box is to hold, oldest first; whoever lends it adds to them.
    """

    def __init__(self, open_box: OpenBox, tasks: TaskGroup) -> None:
        self.contexts: list[Context] = []
        self._open_box = open_box
        self._tasks = tasks
        self._handler: RpcHandler = refuse_everything
        self._box: Box | None = None
        self._given = 0
        self._leave = anyio.Event()
        self._left = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def opened(cls, open_box: OpenBox) -> AsyncIterator[Self]:
        """Offer a box, which is destroyed when the block is left.

        Args:
            open_box: opens it.
        """
        with ungrouped() as whole:
            async with anyio.create_task_group() as tasks:
                lodging = cls(open_box, tasks)
                try:
                    yield lodging
                except BaseException as error:
                    whole.append(error)
                    raise
                finally:
                    lodging._leave.set()

    @asynccontextmanager
    async def lend(
        self, policy: Policy, context: Context, handler: RpcHandler, *, tools: Sequence[str] = ()
    ) -> AsyncIterator[Box]:
        """Lend the box to a question, with all contexts in it; an :data:`~orchestrator.session.OpenBox`.

        Args:
            policy: of the question; the box has that of the question it was opened for.
            context: the last of :attr:`contexts`.
            handler: answers the calls of the box until it is given back.
            tools: names of functions that its cells find.

        Raises:
            ContextError: the contexts are larger than the policy allows.
            SandboxError: the box did not come up, or did not take a context.
        """
        if not self.contexts or self.contexts[-1] is not context:
            raise ValueError("the context of a question is the last one of its session")
        try:
            box = await self._ready(policy, tools)
            self._handler = handler  # not before: what the box asks while it takes a context is asked by no question
            yield box
        finally:
            self._handler = refuse_everything
            if self._box is not None and self._box.gone:
                await self._dismiss()

    async def dismiss(self) -> None:
        """Destroy the box, if there is one: the next question gets a fresh one."""
        if self._box is not None:
            await self._dismiss()

    async def _ready(self, policy: Policy, tools: Sequence[str]) -> Box:
        if self._box is not None and self._box.gone:
            await self._dismiss()
        if self._box is None:
            self._leave, self._left = anyio.Event(), anyio.Event()
            self._box = await self._tasks.start(self._hold, policy, tools, self._leave, self._left)
            self._given = 1
        box = self._box
        while self._given < len(self.contexts):
            # Its time is bounded; a context that is taken in part would cost the box, and all variables with it.
            with anyio.CancelScope(shield=True):
                await box.give(self.contexts[self._given])
            self._given += 1
        return box

    async def _dismiss(self) -> None:
        self._box = None
        self._leave.set()
        with anyio.CancelScope(shield=True):
            await self._left.wait()

    async def _hold(
        self,
        policy: Policy,
        tools: Sequence[str],
        leave: anyio.Event,
        left: anyio.Event,
        *,
        task_status: TaskStatus[Box],
    ) -> None:
        started = False
        try:
            given = {"tools": tools} if tools else {}
            async with self._open_box(_leased(policy), self.contexts[0], self._answer, **given) as box:
                started = True
                task_status.started(box)
                await leave.wait()
        except SandboxError:
            # How it ended is told by the cell it ended in; nothing of it is left to be told of.
            if not started:
                raise
        finally:
            left.set()

    async def _answer(self, call: RpcCall) -> RpcReply:
        return await self._handler(call)


def _leased(policy: Policy) -> Policy:
    """Return the policy for a box that waits for questions as well; a question's time is held by its scope."""
    budget = policy.budget.model_copy(update={"wall_s": max(policy.budget.wall_s, LEASE_S)})
    return policy.model_copy(update={"budget": budget})
