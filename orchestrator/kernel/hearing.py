"""What a box says of its kernel, as the host hears it; nothing in it raises, whatever the box sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from orchestrator.kernel.outputs import CellFold
from sandbox_image import wire
from sandbox_image.wire import Channel, Frame, Kind

if TYPE_CHECKING:
    from jupyter_client.session import Session

MAX_LATE_MESSAGES = 100_000
# What the supervisor gives up for, and what that means.
_FATAL = {"no_start": "its kernel does not start", "context_changed": "the context was changed in the box"}


def _session() -> Session:
    from jupyter_client.session import Session

    # Without a key Session warns of what is meant here (see ARCHITECTURE.md). Without ``auth`` it signs nothing.
    session = Session(key=b"-", username="host")
    session.auth = None
    session.unpack = wire.loads
    return session


class Hearing:
    """The receiving half of a kernel's client, a :class:`~orchestrator.transport.mux.Listener`.

    It keeps what has come, and wakes whoever waits for more.
    """

    def __init__(self) -> None:
        """Begin before anything has come."""
        self._session = _session()
        self._ready = anyio.Event()
        self._changed = anyio.Event()
        self._generation = 0
        self._hello: dict[str, Any] | None = None
        self._bound = anyio.Event()
        self._closed = False
        self._violation = ""
        self._fold: CellFold | None = None
        self._message_id = ""
        self._replied = False
        self._flooded = False
        self._death: dict[str, Any] | None = None
        self._lost_between = ""
        self._late = 0

    def frame(self, frame: Frame) -> None:
        """Take one frame; a malformed one is a violation, which ends the box."""
        try:
            self._take(frame)
        except wire.WireError as error:
            self.give_up(str(error))
        self._wake()

    def closed(self, violation: str) -> None:
        """Learn that the stream has ended."""
        self._closed = True
        self._violation = self._violation or violation
        self._wake()

    @property
    def gone(self) -> bool:
        """Whether the box can run no further cell."""
        return self._closed or bool(self._violation)

    @property
    def violation(self) -> str:
        """Why the box is at its end: what it did wrong, or why it was given up; empty if for neither."""
        return self._violation

    async def ended(self) -> None:
        """Wait until the box can run no further cell."""
        while not self.gone:
            await self._changed.wait()

    async def given_up(self) -> None:
        """Wait until the box is of no use any more though its stream may be open: whatever runs in it must be ended."""
        while not self._violation:
            await self._changed.wait()

    def give_up(self, why: str) -> None:
        """Have no further cell run in the box, and the box ended."""
        self._violation = self._violation or why
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.KERNEL:
            self._take_message(*wire.unpack_parts(frame.payload))
            return
        facts = wire.loads(frame.payload)
        if not isinstance(facts, dict):
            raise wire.WireError("a frame's facts are not an object")
        if frame.kind is Kind.HELLO:
            self._hello = facts
        elif frame.kind in (Kind.BOUND, Kind.READY):
            self._came_up(frame.kind, facts)
        elif frame.kind is Kind.CUT:
            if self._fold is not None and facts.get("id") == self._message_id:
                self._fold.cut(facts)
        elif frame.kind is Kind.DIED:
            self._ready = anyio.Event()
            self._death = facts
            if self._fold is None:
                self._lost_between = describe_death(facts)
        elif frame.kind is Kind.FAULT:
            fault = facts.get("fault")
            self._flooded = self._flooded or fault == "flood"
            self._violation = self._violation or _FATAL.get(str(fault), "")

    def _came_up(self, kind: Kind, facts: dict[str, Any]) -> None:
        if kind is Kind.BOUND:
            self._bound.set()
            return
        generation = facts.get("generation")
        self._generation = generation if type(generation) is int else 0
        self._ready.set()

    def _take_message(self, channel: Channel, parts: list[bytes]) -> None:
        message = self._parse(parts)
        header, parent, content = message["header"], message["parent_header"], message["content"]
        if not all(isinstance(part, dict) for part in (header, parent, content)):
            raise wire.WireError("a message's parts are not objects")
        if not self._message_id or parent.get("msg_id") != self._message_id:
            self._late += 1
            if self._late > MAX_LATE_MESSAGES:
                raise wire.WireError("messages of no cell without end")
            return
        kind = header.get("msg_type")
        if channel is Channel.SHELL:
            if kind == "execute_reply" and self._fold is not None and not self._replied:
                self._fold.message(kind, content)
                self._replied = True
            elif kind == "kernel_info_reply" and self._fold is None:
                self._replied = True
        elif self._fold is not None and not self._replied and isinstance(kind, str) and kind != "execute_reply":
            self._fold.message(kind, content)

    def _parse(self, parts: list[bytes]) -> dict[str, Any]:
        try:
            _, rest = self._session.feed_identities(parts)
            message: dict[str, Any] = self._session.deserialize(rest)
        except wire.WireError:
            raise
        except Exception as error:  # a library that was written for messages of kernels one trusts
            raise wire.WireError(f"malformed kernel message: {type(error).__name__}") from error
        return message


def describe_death(facts: dict[str, Any]) -> str:
    """Say how a kernel died, by the facts of a ``DIED``."""
    code = facts.get("code")
    if facts.get("strays") is True:
        return "the processes it left behind could not be ended one by one, so the REPL was ended with them"
    if facts.get("oom") is True:
        return "the REPL process was killed because the sandbox's memory was used up"
    if type(code) is int and code < 0:
        return f"the REPL process was killed by signal {-code}"
    return f"the REPL process ended with exit code {code if type(code) is int else 'unknown'}"
