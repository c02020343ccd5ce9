"""A box that is verified and empty: what a :class:`~orchestrator.interpreter.Sandbox` is made of, now or later.

Between the container's start and its first cell lie the proof that it is as the policy wants it, and the context. The
proof comes first: nothing of the user's is sent into a box that was not found in order.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
from anyio import to_thread

from orchestrator import context as contexts
from orchestrator.context import Context, Taken
from orchestrator.errors import HardeningError, ImageError, SandboxGoneError, SandboxStartError, ungrouped
from orchestrator.kernel.client import KernelClient
from orchestrator.policy import Policy
from orchestrator.sandbox import attestation, effective, hardening, image, namespaces
from orchestrator.sandbox import container as containers
from orchestrator.sandbox.container import Container
from orchestrator.sandbox.engine import Engine
from orchestrator.text import one_line
from orchestrator.transport.mux import Mux, refuse_everything
from orchestrator.transport.rpc import BodyLimit, RpcCall, RpcHandler, RpcReply
from sandbox_image import wire
from sandbox_image.wire import Kind

MIB = 1 << 20


class Prepared:
    """A box without a context: verified, its kernel up (:meth:`up`) or on its way. It is filled once.

    Attributes:
        container: name of the container.
        image: id of the image.
        runtime: OCI runtime that runs it.
        report: what was found of its controls.
        client: to its kernel.
        mux: to its supervisor.
        taken: what its context takes, once it is filled.
    """

    def __init__(
        self, container: Container, wanted: hardening.Wanted, client: KernelClient, mux: Mux, desk: Desk
    ) -> None:
        """Wrap what :func:`prepared` has put together."""
        self.container = container.id
        self.image = wanted.image
        self.runtime = ""
        self.report = attestation.Report({}, [])
        self.client = client
        self.mux = mux
        self.taken = Taken()
        self._box = container
        self._wanted = wanted
        self._desk = desk
        self._ready_by = anyio.current_time() + self._start_timeout_s

    @property
    def _start_timeout_s(self) -> float:
        return self._wanted.policy.limits.start_timeout_s

    async def verify(self, engine: Engine) -> None:
        """Compare the engine's record and the view from inside with the policy.

        Raises:
            HardeningError: a control is not in force.
            ImageError: the image speaks another version of the protocol.
            SandboxStartError: the box ended first, or did not report in time.
        """
        async with self._in_time():
            record = await to_thread.run_sync(engine.inspect, self.container)
            self.report = _verified(record, await self.client.hello(), self._wanted)
            self.runtime = str(record["HostConfig"].get("Runtime", ""))

    async def up(self) -> None:
        """Wait until its kernel is up, so that nothing is left to do but to fill it.

        Raises:
            SandboxStartError: the box ended first, or was not up in time.
        """
        async with self._in_time():
            await self.client.bound()

    async def fill(
        self, context: Context | None, rpc: RpcHandler, tools: Sequence[str] = (), *, waited: bool = False
    ) -> None:
        """Send the context, and wait until the kernel holds it and is ready.

        Args:
            context: becomes the variable of that name; None makes none.
            rpc: answers the calls of the code in the box from now on.
            tools: names of functions behind which stand calls of the method ``tool``.
            waited: the box was up and waited for this: its time to become ready begins anew.

        Raises:
            SandboxStartError: the box ended first, or was not ready in time.
        """

        async def send() -> None:
            self.taken = await send_context(self.mux, context, self._wanted.policy.limits.memory_mb, tools)

        self._desk.handler = rpc
        if waited:
            self._ready_by = anyio.current_time() + self._start_timeout_s
        async with self._in_time(), anyio.create_task_group() as filling:
            filling.start_soon(send)
            await self.client.handshake()

    def give_up(self) -> None:
        """Let nothing more of it reach anybody, nor anything reach it: its run is over, and it is about to be ended."""
        self._desk.handler = refuse_everything
        self.client.closed("")

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            with ungrouped(), anyio.fail_after(max(self._ready_by - anyio.current_time(), 0)):
                yield
        except TimeoutError:
            message = f"the box was not ready after {self._start_timeout_s:g} s{self._said()}"
            raise SandboxStartError(message) from None
        except (SandboxStartError, SandboxGoneError) as error:
            # A cancellation closes the stream, too; then it is no news that the box has ended.
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise SandboxStartError(f"{error}{self._said()}") from error

    def _said(self) -> str:
        said = self._box.stream.stderr.strip()
        return f" (it said: …{one_line(said[-300:], 300)})" if said else ""


@dataclass(slots=True)
class Desk:
    """Where calls from a box arrive; who answers them is known when it is filled."""

    handler: RpcHandler = refuse_everything

    async def __call__(self, call: RpcCall) -> RpcReply:
        """Pass a call on."""
        return await self.handler(call)


@asynccontextmanager
async def prepared(engine: Engine, policy: Policy, lease_s: float = 0.0) -> AsyncIterator[Prepared]:
    """Start a box and verify it; it is destroyed when the block is left.

    Args:
        engine: where.
        policy: what the box may use.
        lease_s: seconds it may wait before its run begins.

    Raises:
        EngineUnavailableError: no engine answers.
        ImageError: the image is missing or of another version.
        HardeningError: a control is not in force.
        SandboxStartError: it did not come up.
    """
    desk = Desk()
    async with (
        _box(engine, policy, lease_s) as (container, wanted),
        _served(container, policy, desk) as (client, mux),
    ):
        empty = Prepared(container, wanted, client, mux, desk)
        await empty.verify(engine)
        yield empty


@asynccontextmanager
async def _box(engine: Engine, policy: Policy, lease_s: float) -> AsyncIterator[tuple[Container, hardening.Wanted]]:
    found = await to_thread.run_sync(image.find, engine, policy.sandbox.image)
    seccomp = effective.seccomp()
    labels = containers.labels(lease_s + policy.budget.wall_s)
    with containers.own_user(policy) as its:
        config = hardening.container_config(its, found.id, seccomp, labels)
        async with containers.started(engine, config) as container:
            yield container, hardening.Wanted(its, found.id, seccomp, namespaces.host())


@asynccontextmanager
async def _served(container: Container, policy: Policy, rpc: RpcHandler) -> AsyncIterator[tuple[KernelClient, Mux]]:
    async def send(kind: Kind, payload: bytes) -> None:
        await mux.send(kind, payload)

    client = KernelClient(send, policy.limits.output_kb * 1024)
    mux = Mux(
        container.stream,
        client,
        rpc,
        max_frame=hardening.output_frame_bytes(policy),
        max_message=hardening.message_bytes(policy),
        window=policy.models.window,
        limits=_body_limits(policy),
    )
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mux.run)
            tasks.start_soon(_end_when_given_up, client, container)
            yield client, mux
            tasks.cancel_scope.cancel()
    finally:
        client.closed("")  # for whoever kept the box after its block was left


def _body_limits(policy: Policy) -> dict[str, BodyLimit]:
    """Return what calls may carry: the transport keeps no more of one than can be answered."""
    limits = policy.limits
    return {
        "llm_query": BodyLimit(limits.frame_kb * 1024, "prompt_too_large"),
        "rlm_query": BodyLimit(min(limits.answer_mb, limits.context_mb) * MIB, "context_too_large"),
        "tool": BodyLimit(limits.frame_kb * 1024, "arguments_too_large"),
        "final": BodyLimit(limits.answer_mb * MIB, "answer_too_large"),
    }


async def _end_when_given_up(client: KernelClient, container: Container) -> None:
    # Closed, its stream ends the box: what was given up must not run on until its block is left.
    await client.given_up()
    await container.stream.aclose()


def _verified(record: dict[str, Any], facts: dict[str, Any], wanted: hardening.Wanted) -> attestation.Report:
    if facts.get("protocol") != wire.PROTOCOL_VERSION:
        raise ImageError("the image speaks another protocol version: run `rlm-sandbox image build`")
    report = attestation.verify(record, facts, wanted)
    if report.deviations:
        raise HardeningError(report.deviations)
    return report


async def send_context(
    mux: Mux, context: Context | None, memory_mb: int, tools: Sequence[str] = (), beside: int = 0
) -> Taken:
    """Stream a context into a box; one piece of it is encoded at a time.

    Args:
        mux: to the box.
        context: what is sent; None for a box without one.
        memory_mb: ``limits.memory_mb`` of the box.
        tools: names of functions that are to be there.
        beside: bytes of that memory which earlier contexts take.

    Returns:
        What it takes of the box.

    Raises:
        SandboxGoneError: the box ended meanwhile.
    """
    try:
        if context is None and not tools:
            await mux.send(Kind.CONTEXT_END, b"null")
            return Taken()
        sizes: list[int] = []
        for piece in () if context is None else contexts.pieces(context, sizes):
            await mux.send(Kind.CONTEXT, piece)
        facts = {"kind": "none"} if context is None else contexts.layout(context, sizes)
        most = None if context is None else contexts.lazy_most(context, memory_mb, beside)
        facts |= {} if most is None else {"lazy": most}
        layout = json.dumps(facts | {"tools": list(tools)} if tools else facts).encode()
        for start in range(0, len(layout), wire.CHUNK):
            await mux.send(Kind.CONTEXT, layout[start : start + wire.CHUNK])
        await mux.send(Kind.CONTEXT_END, str(len(layout)).encode())
    except anyio.BrokenResourceError as error:
        raise SandboxGoneError("the box ended while the context was being sent") from error
    return contexts.taken(context or "", sizes, len(layout), lazy=most is not None)
