"""Boxes with one control taken away: what a test compares with, to know that its attack is real."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import to_thread

from orchestrator import prepared
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.policy import Policy
from orchestrator.sandbox import container, effective, hardening, image
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.mux import refuse_everything

Config = dict[str, Any]
Weaken = Callable[[Config], object]

# Those that the attempts need, and those that root needs to run a supervisor in folders of another user.
CAPABILITIES = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER KILL SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT
SYS_CHROOT SYS_MODULE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_TIME SYS_TTY_CONFIG"""
_opened = 0


def opened() -> int:
    """Return how many boxes were weakened so far."""
    return _opened


@asynccontextmanager
async def weakened_box(policy: Policy, weaken: Weaken) -> AsyncIterator[Sandbox]:
    """Start a box as :meth:`Sandbox.open` does, but ``weaken`` changes its settings and nothing is verified.

    Args:
        policy: what the box may use.
        weaken: changes the body of the engine's ``POST /containers/create`` in place.
    """
    engine = await to_thread.run_sync(Engine.connect)
    _count()
    try:
        found = await to_thread.run_sync(image.find, engine, policy.sandbox.image)
        labels = container.labels(policy.budget.wall_s)
        with container.own_user(policy) as its:
            config = hardening.container_config(its, found.id, effective.seccomp(), labels)
        weaken(config)
        async with (
            container.started(engine, config) as started,
            prepared._served(started, policy, refuse_everything) as (client, mux),
        ):
            with anyio.fail_after(policy.limits.start_timeout_s):
                async with anyio.create_task_group() as starting:
                    starting.start_soon(prepared.send_context, mux, None, policy.limits.memory_mb)
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


async def run_program(engine: Engine, policy: Policy, program: str, weaken: Weaken) -> str:
    """Run a Python program in place of the supervisor, in a container that is weakened; return what it prints.

    For what takes away so much that no supervisor would run, or must not: it has itself be the first process.
    """
    found = image.find(engine)
    config = hardening.container_config(policy, found.id, effective.seccomp(), container.labels(policy.budget.wall_s))
    config["Entrypoint"] = [*hardening.ENTRYPOINT[:-1], "-c", program]
    weaken(config)
    _count()
    said = b""
    async with container.started(engine, config) as started:
        with anyio.fail_after(policy.limits.start_timeout_s):
            while data := await started.stream.receive():
                said += data
    return said.decode()


def _count() -> None:
    global _opened  # noqa: PLW0603 - one number for the whole run
    _opened += 1


def without_filter_and_with_capabilities(config: Config) -> None:
    """Have the code in the box be root with capabilities, and unfiltered."""
    with_seccomp("unconfined")(config)
    config["User"] = "0:0"
    config["HostConfig"].update(CapDrop=[], CapAdd=CAPABILITIES.split())


def without_clearing(config: Config) -> None:
    """Have the supervisor leave a kernel's files to the next one."""
    _patched(config, "supervisor.empty = lambda folder: None")


def with_a_dumpable_supervisor(config: Config) -> None:
    """Have the supervisor not hide itself from its own uid."""
    _patched(config, "supervisor.make_undumpable = lambda: None")


def _patched(config: Config, patch: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, '/opt/box')\nfrom sandbox_image import supervisor\n{patch}\nsupervisor.main()"
    )
    config["Entrypoint"] = [*hardening.ENTRYPOINT[:-1], "-c", program]


def together(*changes: Weaken) -> Weaken:
    """Return what makes several changes."""

    def weaken(config: Config) -> None:
        for change in changes:
            change(config)

    return weaken


def host(**settings: object) -> Weaken:
    """Return what changes settings of the engine's ``HostConfig``."""
    return lambda config: config["HostConfig"].update(settings)


def with_seccomp(profile: str | None) -> Weaken:
    """Return what gives a box another filter: a profile's JSON text, ``unconfined``, or None for the engine's own."""

    def weaken(config: Config) -> None:
        options = [option for option in config["HostConfig"]["SecurityOpt"] if not option.startswith("seccomp=")]
        config["HostConfig"]["SecurityOpt"] = options + ([] if profile is None else [f"seccomp={profile}"])

    return weaken


def with_supervisor(patch: str) -> Weaken:
    """Return what gives a box a supervisor changed by ``patch``: statements about the module ``supervisor``."""
    program = (
        f"import sys; sys.path.insert(0, '/opt/box'); from sandbox_image import supervisor; {patch}; supervisor.main()"
    )

    def weaken(config: Config) -> None:
        config["Entrypoint"] = [*config["Entrypoint"][:-1], "-c", program]

    return weaken
