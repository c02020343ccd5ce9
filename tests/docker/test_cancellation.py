"""A box that is cancelled at any await of its life, in either way there is, leaves nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
import pytest
from anyio import to_thread

from orchestrator.sandbox import container
from orchestrator.sandbox.engine import Engine
from tests.support.live import TIMEOUT, box, left_behind
from tests.support.steps import Steps

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

AT_ONCE = 6
# Their number varies a little from box to box; a try beyond the last is one that is not cancelled.
SPARE = 5


async def life(engine: Engine) -> None:
    async with box(engine, context="x" * 3_000_000) as opened:
        assert (await opened.execute("len(context)")).ok
        assert (await opened.execute("while True: pass", 0.05)).status == "timeout"


async def by_scope(engine: Engine, step: int) -> None:
    with anyio.CancelScope() as scope:
        await Steps(frozenset((step,)), scope.cancel).run(life(engine))


async def by_task(engine: Engine, step: int, *, times: int) -> None:
    def cancel() -> None:
        if (task := asyncio.current_task()) is not None:
            task.cancel()

    with suppress(asyncio.CancelledError):
        await Steps(frozenset(range(step, step + times)), cancel).run(life(engine))


WAYS: dict[str, Callable[[Engine, int], Awaitable[None]]] = {
    "a scope": by_scope,
    "asyncio, once": partial(by_task, times=1),
    "asyncio, again while it is cleaning up": partial(by_task, times=2),
}


async def descriptors() -> int:
    return len(await to_thread.run_sync(os.listdir, "/proc/self/fd"))


@pytest.mark.parametrize("way", WAYS)
async def test_at_every_await(engine: Engine, way: str) -> None:
    steps = Steps()
    await steps.run(life(engine))
    assert left_behind(engine) == []  # asked before anything is counted: it may take one more connection
    before, few, tasks = await descriptors(), asyncio.Semaphore(AT_ONCE), asyncio.all_tasks()
    own = await to_thread.run_sync(Engine.connect)

    async def one(step: int) -> None:
        async with few, asyncio.timeout(3 * TIMEOUT):
            await WAYS[way](own, step)

    # Not tasks of anyio's: how those take a cancellation that is not anyio's is not the question.
    await asyncio.gather(*(asyncio.create_task(one(step)) for step in range(1, steps.taken + SPARE)))
    assert left_behind(engine) == []
    assert asyncio.all_tasks() == tasks
    assert not [thread for thread in threading.enumerate() if thread.name == container.ENDING]
    assert steps.taken > 20
    own.close()
    assert await descriptors() == before
