"""A named fake: the box's end of the stream in the hands of an attacker, and no kernel at all."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio

from orchestrator import prepared
from orchestrator.broker import Broker
from orchestrator.errors import ConfigurationError
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.kernel.client import KernelClient
from orchestrator.ledger import Scope
from orchestrator.models.base import Model
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.sandbox.attach import AttachStream
from orchestrator.sandbox.container import Container
from orchestrator.transport.mux import Mux, refuse_everything
from orchestrator.transport.rpc import BodyLimit, RpcHandler
from orchestrator.transport.streams import ByteStream, MemoryByteStream, memory_pair
from sandbox_image import wire
from sandbox_image.wire import Channel, Frame, Kind
from tests.support.fakes import FakeModel, MemoryJournal

MAX_FRAME = 1 << 16
MAX_MESSAGE = 1 << 18
OUTPUT = 1000
WINDOW = 4
LIMITS = {
    "llm_query": BodyLimit(MAX_MESSAGE, "prompt_too_large"),
    "rlm_query": BodyLimit(MAX_MESSAGE, "context_too_large"),
    "final": BodyLimit(MAX_MESSAGE, "answer_too_large"),
}
DELIMITER = b"<IDS|MSG>"
TO_BOX = frozenset(kind for kind in Kind if kind < Kind.HELLO)


class HostileGuest:
    """Speaks the raw stream, well or badly.

    Args:
        stream: the box's end.
        bytewise: send every byte by itself.
    """

    def __init__(self, stream: MemoryByteStream, *, bytewise: bool = False) -> None:
        self._stream = stream
        self._bytewise = bytewise
        self._decoder = wire.Decoder(1 << 24, TO_BOX)
        self._assembler = wire.Assembler(1 << 24)
        self._frames: list[Frame] = []

    # Out of the box -------------------------------------------------------------------------------------------------

    async def raw(self, data: bytes) -> None:
        """Send any bytes; a host that has hung up is fine."""
        try:
            for piece in (bytes((byte,)) for byte in data) if self._bytewise else (data,):
                await self._stream.send(piece)
        except anyio.BrokenResourceError:
            pass

    async def send(self, kind: Kind, payload: bytes | dict[str, Any] = b"") -> None:
        """Send one frame, valid or not in what it carries."""
        await self.raw(wire.encode(kind, payload if isinstance(payload, bytes) else json.dumps(payload).encode()))

    async def message(self, kind: str, content: Any, parent: str, channel: Channel = Channel.IOPUB) -> None:
        """Send a kernel message that claims to belong to the request ``parent``."""
        header = {"msg_id": secrets.token_hex(16), "msg_type": kind, "version": "5.3"}
        parts = [json.dumps(part).encode() for part in (header, {"msg_id": parent}, {}, content)]
        await self.send(Kind.KERNEL, wire.pack_parts(channel, [DELIMITER, b"", *parts]))

    async def reply(self, parent: str, kind: str = "execute_reply", /, **content: Any) -> None:
        """Answer the request ``parent``."""
        await self.message(kind, {"status": "ok", **content}, parent, Channel.SHELL)

    async def print(self, text: str, parent: str) -> None:
        """Print ``text`` in the cell ``parent``."""
        await self.message("stream", {"name": "stdout", "text": text}, parent)

    async def died(self, **facts: Any) -> None:
        """Say that the kernel died."""
        await self.send(Kind.DIED, {"generation": 1, "code": -9, "oom": False, **facts})

    async def call(self, method: str, body: str = "", *, identity: str = "", **params: Any) -> str:
        """Make a call; return its id."""
        identity = identity or secrets.token_hex(16)
        message = wire.pack_message({"id": identity, "method": method, "params": params}, body.encode())
        for fragment in wire.encode_fragments(message, MAX_FRAME - 1):
            await self.raw(fragment)
        return identity

    async def greet(self) -> None:
        """Do what a box does until its first cell."""
        await self.send(Kind.HELLO, {"protocol": wire.PROTOCOL_VERSION})
        await self.send(Kind.READY, {"generation": 1})
        await self.reply(await self.request(), "kernel_info_reply")

    async def hang_up(self) -> None:
        """End the stream."""
        await self._stream.aclose()

    # Into the box ---------------------------------------------------------------------------------------------------

    async def receive(self, *kinds: Kind) -> Frame:
        """Return the next frame of one of ``kinds``; the others are thrown away."""
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if not kinds or frame.kind in kinds:
                    return frame
            data = await self._stream.receive()
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)

    async def request(self) -> str:
        """Return the id of the next request to the kernel."""
        _, parts = wire.unpack_parts((await self.receive(Kind.KERNEL)).payload)
        return str(json.loads(parts[2])["msg_id"])

    async def answer(self) -> tuple[dict[str, Any], str]:
        """Return head and body of the next answer to a call."""
        while (message := self._assembler.feed((await self.receive(Kind.RPC)).payload)) is None:
            pass
        head, body = wire.unpack_message(message)
        return head, str(body, "utf-8")


class StuckStream:
    """A stream whose other end neither reads nor writes: every send waits until it is closed."""

    def __init__(self) -> None:
        self.sending = anyio.Event()
        self._closed = anyio.Event()

    async def receive(self) -> bytes:
        await self._closed.wait()
        return b""

    async def send(self, _data: bytes) -> None:
        self.sending.set()
        await self._closed.wait()
        raise anyio.BrokenResourceError

    async def aclose(self) -> None:
        self._closed.set()


@asynccontextmanager
async def served(
    stream: ByteStream, handler: RpcHandler = refuse_everything
) -> AsyncIterator[tuple[KernelClient, Mux]]:
    """Join client and mux to ``stream``, as orchestrator/prepared.py does."""

    async def send(kind: Kind, payload: bytes) -> None:
        await mux.send(kind, payload)

    client = KernelClient(send, OUTPUT)
    mux = Mux(stream, client, handler, max_frame=MAX_FRAME, max_message=MAX_MESSAGE, window=WINDOW, limits=LIMITS)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mux.run)
        yield client, mux
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def faced(
    handler: RpcHandler = refuse_everything, *, bytewise: bool = False
) -> AsyncIterator[tuple[KernelClient, Mux, HostileGuest]]:
    """Put client and mux before a hostile guest."""
    host_end, box_end = memory_pair()
    guest = HostileGuest(box_end, bytewise=bytewise)
    try:
        async with served(host_end, handler) as (client, mux):
            yield client, mux, guest
    finally:
        await guest.hang_up()


class Desk:
    """The broker of a run and what it wrote down, over a model of this process.

    Attributes:
        model: answers sub-calls.
        journal: what was recorded.
        scope: what was spent.
        broker: the real one.
    """

    def __init__(self, policy: Policy, model: FakeModel | None = None) -> None:
        self.model = model or FakeModel()
        self.journal = MemoryJournal()
        self.scope = Scope.root(policy.budget)
        self.broker = Broker(
            scope=self.scope,
            policy=policy,
            sub_model=self.model,
            open_named=_no_named_model,
            prices=PriceTable.load(),
            recorder=Recorder("r", None, (self.journal,)),
            limiter=anyio.CapacityLimiter(policy.models.in_flight),
            child=None,
        )


def _no_named_model(name: str) -> Model:
    raise ConfigurationError(f"no model {name}")


@asynccontextmanager
async def hosted(
    *settings: str, model: FakeModel | None = None, bytewise: bool = False
) -> AsyncIterator[tuple[Sandbox, HostileGuest, Desk]]:
    """Open a box as the orchestrator does, broker and all, but a hostile guest holds the container's end."""
    policy = Policy().override(["models.in_flight=2", *settings])
    host_end, box_end = memory_pair()
    guest, desk = HostileGuest(box_end, bytewise=bytewise), Desk(policy, model)
    container = Container("attacker", cast("AttachStream", host_end))
    try:
        async with (
            anyio.create_task_group() as tasks,
            prepared._served(container, policy, desk.broker) as (client, mux),
        ):
            tasks.start_soon(guest.greet)
            with anyio.fail_after(10):
                await client.hello()
                await client.handshake()
            yield Sandbox(client, mux, policy, BoxInfo("attacker", "", "", {}, 0.0)), guest, desk
            tasks.cancel_scope.cancel()
    finally:
        await guest.hang_up()
