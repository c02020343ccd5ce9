"""A named fake: an attacker that holds the box's end of a real socket, and the host in a process of its own."""

from __future__ import annotations

import itertools
import json
import secrets
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from queue import SimpleQueue
from typing import Any

from sandbox_image import wire
from sandbox_image.wire import Channel, Kind
from tests.support.measured_host import Cost, Job

_ENGINE_HEADER = struct.Struct(">BxxxI")
_STDOUT = 1
_DELIMITER = b"<IDS|MSG>"
# What a host may take to end a box whatever it does: two turns, each within its ladder, on a machine full of work.
PATIENCE_S = 120


class HungUp(Exception):  # noqa: N818 - not an error: the end every attacker meets
    """The host has closed the stream."""


class RawGuest:
    """Says anything to a host, as fast as it takes it; reads what the host says on a thread.

    Attributes:
        requests: ids of the requests to the kernel, in order; None at the end.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self.requests: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        decoder = wire.Decoder(1 << 26, frozenset(Kind))
        try:
            while data := self._line.recv(1 << 20):
                for frame in decoder.feed(data):
                    if frame.kind is Kind.KERNEL:
                        _, parts = wire.unpack_parts(frame.payload)
                        self.requests.put(str(json.loads(parts[2])["msg_id"]))
        except OSError:
            pass
        self.requests.put(None)

    def request(self) -> str:
        """Return the id of the next request; raise when there will be none."""
        found = self.requests.get()
        if found is None:
            raise HungUp
        return found

    def raw(self, data: bytes) -> None:
        """Send any bytes as the engine would carry them."""
        try:
            self._line.sendall(_ENGINE_HEADER.pack(_STDOUT, len(data)) + data)
        except OSError as error:
            raise HungUp from error

    def send(self, kind: Kind, payload: bytes | dict[str, Any] = b"") -> None:
        """Send one frame."""
        self.raw(wire.encode(kind, payload if isinstance(payload, bytes) else json.dumps(payload).encode()))

    def message(
        self, kind: str, content: bytes | dict[str, Any], parent: str, channel: Channel = Channel.IOPUB
    ) -> None:
        """Send a kernel message; ``content`` may be bytes that are no JSON."""
        self.send(Kind.KERNEL, kernel_message(kind, content, parent, channel))

    def reply(self, parent: str, kind: str = "execute_reply") -> None:
        """End the request ``parent``."""
        self.message(kind, {"status": "ok"}, parent, Channel.SHELL)

    def print(self, text: str, parent: str) -> None:
        """Print in the cell ``parent``."""
        self.message("stream", {"name": "stdout", "text": text}, parent)

    def call(self, method: str, pieces: Iterable[bytes], *, ends: bool = True, **params: Any) -> None:
        """Make a call whose body is ``pieces``, one fragment each."""
        head = {"id": secrets.token_hex(16), "method": method, "params": params}
        for piece in itertools.chain((wire.pack_message(head, b""),), pieces):
            self.send(Kind.RPC, b"\x00" + piece)
        if ends:
            self.send(Kind.RPC, b"\x01")

    def greet(self) -> None:
        """Do what a box does until its first cell."""
        self.send(Kind.HELLO, {"protocol": wire.PROTOCOL_VERSION})
        self.send(Kind.READY, {"generation": 1})
        self.reply(self.request(), "kernel_info_reply")

    def each_cell(self) -> Iterator[str]:
        """Yield the id of each cell until the host hangs up."""
        while True:
            yield self.request()


def kernel_message(kind: str, content: bytes | dict[str, Any], parent: str, channel: Channel = Channel.IOPUB) -> bytes:
    """Return the payload of a KERNEL frame."""
    header = {"msg_id": "m", "msg_type": kind, "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (header, {"msg_id": parent}, {})]
    body = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    return wire.pack_parts(channel, [_DELIMITER, b"", *parts, body])


Attack = Callable[[RawGuest], None]


def suffer(attack: Attack, job: Job | None = None, *, greet: bool = True) -> Cost:
    """Let a host of its own process suffer ``attack``; return what it cost."""
    mine, its = socket.socketpair()
    with mine, started(replace(job or Job(), stream=its.fileno()), its) as process:
        its.close()
        guest = RawGuest(mine)
        try:
            if greet:
                guest.greet()
            attack(guest)
            while guest.requests.get() is not None:
                pass  # silence, until the host has had enough
        except HungUp:
            pass
        return finished(process)


def started(job: Job, *keep: socket.socket) -> subprocess.Popen[str]:
    """Start the host of ``job``."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.measured_host", json.dumps(asdict(job))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[line.fileno() for line in keep],
    )


def finished(process: subprocess.Popen[str]) -> Cost:
    """Return what a host says at its end, which must come."""
    try:
        said, complained = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, complained
    found = json.loads(said.splitlines()[-1])
    return Cost(**{**found, "cells": tuple(found["cells"])})
