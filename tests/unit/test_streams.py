"""What the kernel publishes, without a kernel: whoever subscribes is welcomed."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session

from sandbox_image.streams import BoxIOPubThread

WAIT_S = 10


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def publisher(context: zmq.Context[Any]) -> Iterator[BoxIOPubThread]:
    """One whose thread is not started: its event loop turns where the test lets it."""
    socket = context.socket(zmq.XPUB)
    socket.bind("inproc://iopub")
    made = BoxIOPubThread(socket, pipe=False, session=Session(key=b""))  # type: ignore[no-untyped-call]
    yield made
    for stream in (made._xpub_stream, made._event_puller):
        stream.close(linger=0)
    made.io_loop.close()


def test_a_subscription_that_comes_while_something_is_published_is_welcomed(
    context: zmq.Context[Any], publisher: BoxIOPubThread
) -> None:
    subscriber = context.socket(zmq.SUB)
    subscriber.subscribe(b"")

    async def publish() -> None:
        subscriber.connect("inproc://iopub")
        # libzmq has announced it; the send takes the announcement up, and the event loop never sees it.
        assert select.select([publisher.socket.fd], [], [], WAIT_S)[0]
        publisher._events.append(lambda: publisher.socket.send(b"published"))
        publisher._handle_event(None)
        for _ in range(100):
            await asyncio.sleep(0)

    publisher.io_loop.run_sync(publish)
    received = []
    while subscriber.poll(0):
        received.append(b"".join(subscriber.recv_multipart()))
    subscriber.close(linger=0)
    assert received[0] == b"published"
    assert b"iopub_welcome" in received[1]
