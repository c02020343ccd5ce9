"""The life of one container: created, attached, started, and gone when its block is left, whatever happens in it.

Three nets catch a container whose owner could not clean up: it removes itself when its supervisor ends, which it does
when its owner's connection closes (so 0.1 s after ``kill -9``); it carries labels of owner and expiry; and
:func:`sweep` removes what a dead owner left where the engine was in the middle of creating it. Each process does that
once, beside its first box (:func:`sweep_once`).
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from orchestrator.errors import EngineUnavailableError
from orchestrator.policy import Policy
from orchestrator.sandbox import leftovers
from orchestrator.sandbox.attach import AttachStream
from orchestrator.sandbox.engine import ContainerInfo, Engine

OWNER_LABEL = "io.rlm-sandbox.owner"
EXPIRES_LABEL = "io.rlm-sandbox.expires"
# Added to what the policy grants: the box must outlive its run, and orphans must not live for ever.
LEASE_SLACK_S = 600
# A container goes in 0.1 s; on a machine that is full of work it has taken 3 s.
END_TIMEOUT_S = 10
ENDING = "end of a container"
REMOVE_TIMEOUT_S = 15
# Begun anywhere, so that the boxes of two orchestrators seldom have the same.
_turns = itertools.count(secrets.randbelow(1 << 20))
_taken: Counter[int] = Counter()
_taking = threading.Lock()  # runs may live in threads of their own


@dataclass(frozen=True, slots=True)
class Container:
    """A started container and the stream to it."""

    id: str
    stream: AttachStream


@contextmanager
def own_user(policy: Policy) -> Iterator[Policy]:
    """Yield the policy of one box: that of the run, with a uid that no other box of this process has meanwhile.

    Linux counts by user, whatever the container, the pages of pipes and the descriptors in flight between sockets
    (pipe(7), unix(7)), and more: what one box uses up is used up for every box of its uid. Where all of the policy's
    uids are taken, one is shared.
    """
    first, _, gid = policy.sandbox.user.partition(":")
    with _taking:
        turn = next(_turns)
        uids = [
            int(first) + (turn + step) % policy.sandbox.uids
            for step in range(min(policy.sandbox.uids, len(_taken) + 1))
        ]
        uid = next((uid for uid in uids if uid not in _taken), uids[0])
        _taken[uid] += 1
    try:
        yield policy.model_copy(update={"sandbox": policy.sandbox.model_copy(update={"user": f"{uid}:{gid}"})})
    finally:
        with _taking:
            _taken[uid] -= 1
            if not _taken[uid]:
                del _taken[uid]


def labels(lease_s: float) -> dict[str, str]:
    """Return the labels of a container of this process.

    Args:
        lease_s: seconds it is expected to live at most.
    """
    return {OWNER_LABEL: owner(), EXPIRES_LABEL: str(int(time.time() + lease_s + LEASE_SLACK_S))}


def owner() -> str:
    """Return an identity of this process that no later one has: boot, PID namespace, pid and start time (proc(5))."""
    return f"{_host()}:{os.getpid()}:{_start_time(os.getpid())}"


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}".replace(":[", "-").rstrip("]")
    except OSError:
        return f"unknown-{secrets.token_hex(8)}"  # not Linux: no other process can be judged alive or dead from here


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before it may hold spaces


def abandoned(container: ContainerInfo, now: float) -> bool:
    """Whether a container of ours may be removed: its owner is known to be dead, or cannot be asked and it expired."""
    host, _, process = container.labels.get(OWNER_LABEL, "").rpartition(":")
    host, _, pid = host.rpartition(":")
    if host == _host() and pid.isdigit():
        return _start_time(int(pid)) != process
    expires = container.labels.get(EXPIRES_LABEL, "")
    return expires.isdigit() and now > int(expires)


async def sweep(engine: Engine) -> list[str]:
    """Remove the containers that dead owners left; return their ids. Those of living owners are never touched."""

    def remove_abandoned() -> list[str]:
        now = time.time()
        found = [item.id for item in engine.containers(OWNER_LABEL) if abandoned(item, now)]
        for container in found:
            engine.end(container, END_TIMEOUT_S)
        return found

    return await to_thread.run_sync(remove_abandoned, abandon_on_cancel=True)


# Engines that this process has swept.
_swept: set[str] = set()


async def sweep_once(engine: Engine) -> None:
    """Remove what dead owners left on an engine, unless this process did so before; what fails is left to others."""
    if engine.address not in _swept:
        _swept.add(engine.address)
        with suppress(EngineUnavailableError):
            await sweep(engine)


@asynccontextmanager
async def started(engine: Engine, config: dict[str, Any]) -> AsyncIterator[Container]:
    """Create, attach to and start a container; kill and remove it when the block is left, however it is left.

    Raises:
        EngineUnavailableError: the engine refused a step or does not answer.
    """
    life = _Life(engine, config)
    try:
        # Not abandoned on cancellation: what the engine has begun to create must be known to be removed.
        stream = await to_thread.run_sync(life.create)
        await to_thread.run_sync(life.start)
        yield Container(life.name, stream)
    finally:
        with anyio.CancelScope(shield=True):
            await _bounded(life)


class _Life:
    """What is asked of the engine for one container: one step at a time, and none after its end.

    Anyio lets no cancellation leave a step behind that is under way in its thread. asyncio's own ``task.cancel()``
    does: then the end waits here for that step, and takes back what it made.
    """

    def __init__(self, engine: Engine, config: dict[str, Any]) -> None:
        self.name = f"rlm-sandbox-{secrets.token_hex(6)}"
        self._engine = engine
        self._config = config
        self._step = threading.Lock()
        self._identity = ""
        self._over = False
        self._stream: AttachStream | None = None

    def create(self) -> AttachStream:
        """Create the container, and attach to it."""
        with self._next():
            self._identity = self._engine.create(self._config, self.name)
            self._stream = AttachStream(self._engine.attach(self.name))
            return self._stream

    def start(self) -> None:
        """Start it."""
        with self._next():
            _start(self._engine, self.name, self._identity)

    def hang_up(self) -> None:
        """Close the stream, which ends the box; of a step under way, :meth:`end` will."""
        if self._stream is not None:
            self._stream.close()

    def end(self) -> None:
        """See it off."""
        with self._step:
            self._over = True
            self.hang_up()
            # Failing that, the closed stream ends the box all the same, and a later sweep takes what is left of it.
            with suppress(EngineUnavailableError):
                self._engine.end(self.name, END_TIMEOUT_S)

    @contextmanager
    def _next(self) -> Iterator[None]:
        with self._step:
            if self._over:
                raise EngineUnavailableError("the container was given up before it was there")
            yield


def _start(engine: Engine, name: str, identity: str) -> None:
    try:
        engine.start(name)
    except EngineUnavailableError as error:
        left = leftovers.end(identity)
        if left:
            pids = " ".join(map(str, left))
            raise EngineUnavailableError(
                f"{error}; its runtime left processes behind, for root to kill: {pids}"
            ) from error
        raise


async def _bounded(life: _Life) -> None:
    life.hang_up()
    # A thread of its own: it does its work even if this task is cancelled once more, and whoever waits for it.
    ending = threading.Thread(target=life.end, name=ENDING)
    ending.start()
    with anyio.move_on_after(REMOVE_TIMEOUT_S):
        await to_thread.run_sync(ending.join, REMOVE_TIMEOUT_S, abandon_on_cancel=True)
