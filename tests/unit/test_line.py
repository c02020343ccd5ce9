"""The supervisor's end of a kernel's line: never waits for the kernel, whatever that does with its own end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox_image import line, wire
from sandbox_image.line import Line
from sandbox_image.wire import Kind

MAX_FRAME = 1 << 16


@pytest.fixture
def ours() -> Iterator[Line]:
    made = Line(MAX_FRAME)
    yield made
    made.close()
    made.theirs.close()


def test_frames_arrive_as_they_were_sent(ours: Line) -> None:
    ours.theirs.sendall(wire.encode(Kind.READY) + wire.encode(Kind.RPC, b"call"))
    assert ours.receive() == [(Kind.READY, b""), (Kind.RPC, b"call")]
    ours.send(b"answer")
    assert ours.theirs.recv(100) == b"answer"
    assert not ours.has_more


def test_answers_that_are_not_read_are_kept_and_further_calls_wait(ours: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "MAX_UNREAD", 3_000_000)
    ours.send(b"x" * 3_000_000)
    assert (ours.has_more, ours.may_call) == (True, True)
    ours.send(b"y" * 1_000_000)
    assert (ours.has_more, ours.may_call) == (True, False)
    read = b""
    while len(read) < 4_000_000:
        read += ours.theirs.recv(1 << 20)
        ours.flush()
    assert read == b"x" * 3_000_000 + b"y" * 1_000_000
    assert (ours.has_more, ours.may_call) == (False, True)


@pytest.mark.parametrize(
    "said", [b"", b"\xff" * 10, wire.encode(Kind.HELLO), wire.HEADER.pack(MAX_FRAME + 1, Kind.RPC)]
)
def test_an_end_that_was_closed_or_broken_is_told(ours: Line, said: bytes) -> None:
    if said:
        ours.theirs.sendall(said)
    else:
        ours.theirs.close()
    assert ours.receive() is None


def test_what_is_sent_to_a_closed_end_is_dropped(ours: Line) -> None:
    ours.theirs.close()
    ours.send(b"x")
    assert not ours.has_more
    assert ours.may_call
