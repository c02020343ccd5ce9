"""This project, by its front door; with ``pool``, out of a pool that is full when the clock starts."""

from __future__ import annotations

import os
import sys

import anyio

from orchestrator import RLM
from orchestrator.pool import Pool
from tests.bench.peers.drivers import loop

_MODELS = ("openai:root", "openai:sub")


async def _run(task: loop.Task) -> str:
    # Read when a run opens its models.
    os.environ |= {"OPENAI_BASE_URL": f"{task.url}/v1", "OPENAI_API_KEY": "none"}
    if "pool" not in sys.argv[1:]:
        result = await RLM(*_MODELS).acomplete(task.context, loop.QUERY)
        return result.answer or result.reason
    async with Pool.open(size=1) as pool:
        await pool.filled()
        task.begin()
        result = await RLM(*_MODELS, open_box=pool.box).acomplete(task.context, loop.QUERY)
    return result.answer or result.reason


if __name__ == "__main__":
    loop.serve(lambda task: anyio.run(_run, task))
