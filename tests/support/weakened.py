"""Boxes with one control taken away: what a test compares with, to know that its attack is real."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import to_thread

from orchestrator import interpreter
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.policy import Policy
from orchestrator.sandbox import container, effective, hardening, image
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.mux import refuse_everything

Config = dict[str, Any]
Weaken = Callable[[Config], object]


@asynccontextmanager
async def weakened_box(policy: Policy, weaken: Weaken) -> AsyncIterator[Sandbox]:
    """Start a box as :meth:`Sandbox.open` does, but ``weaken`` changes its settings and nothing is verified.

    Args:
        policy: what the box may use.
        weaken: changes the body of the engine's ``POST /containers/create`` in place.
    """
    engine = await to_thread.run_sync(Engine.connect)
    try:
        found = await to_thread.run_sync(image.find, engine, policy.sandbox.image)
        labels = container.labels(policy.budget.wall_s)
        config = hardening.container_config(policy, found.id, effective.seccomp(), labels)
        weaken(config)
        async with (
            container.started(engine, config) as started,
            interpreter._served(started, policy, refuse_everything) as (client, mux),
        ):
            with anyio.fail_after(policy.limits.start_timeout_s):
                async with anyio.create_task_group() as starting:
                    starting.start_soon(interpreter._send_context, mux, None)
                    facts = await client.hello()
                await client.handshake()
            info = BoxInfo(
                container=started.id,
                image=found.id,
                runtime=policy.sandbox.runtime,
                kernel=str(facts.get("kernel", "")),
                controls={},
                opened_s=math.nan,
            )
            yield Sandbox(client, mux, policy, info)
    finally:
        engine.close()


def with_seccomp(profile: str | None) -> Weaken:
    """Return what gives a box another filter: a profile's JSON text, ``unconfined``, or None for the engine's own."""

    def weaken(config: Config) -> None:
        options = [option for option in config["HostConfig"]["SecurityOpt"] if not option.startswith("seccomp=")]
        config["HostConfig"]["SecurityOpt"] = options + ([] if profile is None else [f"seccomp={profile}"])

    return weaken
