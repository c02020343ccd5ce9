"""The engine's attach stream: cut from its multiplexing, fair to the event loop, and closed without a trap."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sandbox.attach import AttachStream

pytestmark = pytest.mark.anyio

BOUND = 5
STDOUT, STDERR = 1, 2


def piece(data: bytes, stream: int = STDOUT) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


@pytest.fixture
def ends() -> Iterator[tuple[AttachStream, socket.socket]]:
    ours, engines = socket.socketpair()
    stream = AttachStream(ours)
    yield stream, engines
    engines.close()
    ours.close()


async def everything(stream: AttachStream) -> bytes:
    found = b""
    while data := await stream.receive():
        found += data
    return found


class TestReceiving:
    @settings(deadline=None, max_examples=50)
    @given(
        pieces=st.lists(st.tuples(st.sampled_from((STDOUT, STDERR)), st.binary(max_size=30)), max_size=8),
        chunk=st.integers(1, 40),
    )
    def test_stdout_comes_out_whatever_the_chunking(self, pieces: list[tuple[int, bytes]], chunk: int) -> None:
        async def feed() -> tuple[bytes, str]:
            ours, engines = socket.socketpair()
            stream = AttachStream(ours)
            data = b"".join(piece(text, kind) for kind, text in pieces)
            found = b""
            with engines:
                for start in range(0, len(data), chunk):
                    engines.send(data[start : start + chunk])
                engines.shutdown(socket.SHUT_WR)
                found = await everything(stream)
            await stream.aclose()
            return found, stream.stderr

        found, stderr = anyio.run(feed)
        assert found == b"".join(text for kind, text in pieces if kind == STDOUT)
        assert stderr == b"".join(text for kind, text in pieces if kind == STDERR).decode("utf-8", "replace")

    async def test_of_stderr_only_the_end_is_kept(self, ends: tuple[AttachStream, socket.socket]) -> None:
        stream, engines = ends
        engines.sendall(piece(b"x" * 20_000 + b"the end", STDERR) + piece(b"out"))
        assert await stream.receive() == b"out"
        assert len(stream.stderr) == 8192
        assert stream.stderr.endswith("the end")

    async def test_data_without_end_leaves_a_deadline_its_turn(
        self, ends: tuple[AttachStream, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream, _ = ends
        loop = __import__("asyncio").get_running_loop()

        async def always_there(_sock: socket.socket, buffer: bytearray) -> int:
            data = piece(b"x" * 100)
            buffer[: len(data)] = data
            return len(data)

        monkeypatch.setattr(loop, "sock_recv_into", always_there)
        received = 0
        with anyio.move_on_after(0.05) as scope:
            while await stream.receive() and received < 10_000_000:
                received += 1
        assert scope.cancelled_caught
        assert received

    async def test_an_engine_that_goes_away_ends_the_stream(self, ends: tuple[AttachStream, socket.socket]) -> None:
        stream, engines = ends
        engines.sendall(piece(b"last"))
        engines.close()
        assert await everything(stream) == b"last"
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")


class TestClosing:
    async def test_closing_wakes_who_waits_to_receive(self, ends: tuple[AttachStream, socket.socket]) -> None:
        stream, _ = ends
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await stream.receive())

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await stream.aclose()
        assert received == [b""]

    async def test_closing_wakes_who_waits_to_send(self, ends: tuple[AttachStream, socket.socket]) -> None:
        stream, _ = ends
        broken: list[bool] = []

        async def send() -> None:
            try:
                await stream.send(b"x" * 10_000_000)
            except anyio.BrokenResourceError:
                broken.append(True)

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                await stream.aclose()
        assert broken == [True]

    async def test_a_closed_stream_gives_nothing_and_takes_nothing(
        self, ends: tuple[AttachStream, socket.socket]
    ) -> None:
        stream, engines = ends
        await stream.aclose()
        await stream.aclose()
        assert await stream.receive() == b""
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        assert engines.recv(1) == b""
