"""A real HTTP server that speaks the providers' dialects, for tests and for trials by hand.

It answers ``POST /v1/messages`` (JSON, or server-sent events when ``stream`` is set), ``/v1/messages/count_tokens`` and
``/v1/chat/completions``. What it answers is decided by a *responder*: a function of the request's body and its number
(1, 2, …) that returns a :class:`Reply` or a :class:`Fault`::

    def responder(body: dict[str, Any], n: int) -> Reply | Fault:
        return Fault.status(529, retry_after=2) if n == 1 else Reply(f"echo: {prompt_of(body)}")

    with ModelServer(responder) as server:
        client = anthropic.AsyncAnthropic(base_url=server.url, api_key="any")   # openai: server.url + "/v1"
        ...
    assert server.peak <= 8 and len(server.requests) == 100

It is one thread with one event loop, so a thousand requests may wait at once; a responder must therefore not block. An
exception it raises is answered with a 400 and raised again when the server closes. Four bytes are one token.
``python -m tests.support.model_server --port 0`` prints the URL and serves :func:`demo` until interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from tests.support import model_dialects as dialects
from tests.support.model_dialects import Body, Fault, Reply, Request, Responder, prompt_of, system_of

__all__ = [
    "Body",
    "Entry",
    "Fault",
    "ModelServer",
    "Reply",
    "Request",
    "Responder",
    "demo",
    "echo",
    "prompt_of",
    "system_of",
]

_SECONDS_TO_STOP = 10
_PARTS = 16  # of an answer that drips


def echo(body: Body, _n: int) -> Reply:
    """Answer with the beginning of the prompt."""
    return Reply(f"echo: {prompt_of(body)[:200]}")


def demo(body: Body, n: int) -> Reply:
    """Drive a whole run by hand: ask a root model's question of the context's beginning, else :func:`echo`."""
    if "```repl" in system_of(body) or "llm_query" in system_of(body):
        return Reply("```repl\nFinal = llm_query('Say what this begins with: ' + str(context)[:500])\n```")
    return echo(body, n)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one request.

    Attributes:
        number: of the request, from 1.
        key: whose it was.
        outcome: ``billed``: answered whole, with a bill; ``unbilled``: answered whole, with none or one that cannot be
            true; ``broken``: the answer broke off or cannot be read, or was none at all; ``refused``: with an HTTP
            status; ``given_up``: the client went away first.
        usage: what its tokens come to, in the Messages API's words; None of a refusal.
    """

    number: int
    key: str
    outcome: dialects.Outcome
    usage: dict[str, int] | None

    @property
    def tokens(self) -> int:
        """All of them together."""
        return sum((self.usage or {}).values())


class ModelServer:
    """The server, as a context manager; safe to ask from any thread.

    Attributes:
        url: where it listens, such as ``http://127.0.0.1:40123``.
        requests: every request so far, in order of arrival; those refused for their key or shape, too.
        peak: the most requests that were being answered at the same moment; replies need a ``delay_s`` to overlap.
        dropped: how many clients went away while they waited for an answer.
        books: what became of each request, in the order in which they ended.
    """

    def __init__(
        self,
        responder: Responder = echo,
        *,
        port: int = 0,
        key: str | None = None,
        cache: dialects.PromptCache | None = None,
    ) -> None:
        """Listen on 127.0.0.1:``port`` (0 for any); with a ``key``, requests without it are answered with a 401."""
        self.url = ""
        self.requests: list[Request] = []
        self.peak = 0
        self.dropped = 0
        self.books: list[Entry] = []
        self._responder = responder
        self._port = port
        self._key = key
        self._cache = cache or dialects.PromptCache()
        self._in_flight = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="model-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_until(lambda: bool(self.url) or self._error is not None)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_SECONDS_TO_STOP)
        if self._error is not None and kind is None:
            raise self._error

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Block the calling thread until ``condition`` holds; it is tried again whenever something happens here.

        Raises:
            TimeoutError: it did not come to hold.
        """
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"still not so after {timeout_s:g} s, with {len(self.requests)} requests seen")

    def settled(self) -> list[Entry]:
        """Wait until every request is in the books, and return them; a client may have its answer a moment before.

        Raises:
            TimeoutError: one is still under way.
        """
        self.wait_until(lambda: len(self.books) == len(self.requests))
        return list(self.books)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._note(_error=error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port)
        self._note(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await self._stop.wait()
        # Not waited for: connections kept alive would hold it up. The end of the loop cancels them.
        server.close()

    def _note(self, **changes: object) -> None:
        with self._changed:
            for name, value in changes.items():
                setattr(self, name, value)
            self._changed.notify_all()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the server is closing
        except Exception as error:  # noqa: BLE001 - the end of a task; what is wrong here is raised on closing
            self._note(_error=error)
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection is good for another."""
        request = await _read_request(reader)
        async with self._counted(request) as number:
            answer = self._decide(request, number)
            outcome: dialects.Outcome = "given_up"
            try:
                if await _client_waits(reader, answer.delay_s) and await _sent(reader, writer, answer):
                    outcome = answer.outcome
            finally:
                self.books.append(Entry(number, request.key, outcome, answer.usage))
                self._note(dropped=self.dropped + (outcome == "given_up"))
        return answer.keep and outcome != "given_up"

    @asynccontextmanager
    async def _counted(self, request: Request) -> AsyncIterator[int]:
        self._in_flight += 1
        self.requests.append(request)
        number = len(self.requests)
        self._note(peak=max(self.peak, self._in_flight))
        try:
            yield number
        finally:
            self._in_flight -= 1

    def _decide(self, request: Request, number: int) -> dialects.Answer:
        refusal = self._refusal(request)
        if refusal is None and request.path == dialects.COUNT:
            return dialects.count(request.body)
        decision = refusal or self._respond(request.body, number)
        if isinstance(decision, Reply):
            return dialects.answer(request, decision, self._cache, number)
        return dialects.failure(request, decision, self._cache, number)

    def _refusal(self, request: Request) -> Fault | None:
        if self._key is not None and request.key != self._key:
            return Fault.status(401, message="invalid x-api-key")
        if request.path not in (dialects.MESSAGES, dialects.COUNT, dialects.CHAT):
            return Fault.status(404, message=f"no such endpoint: {request.path}")
        problem = dialects.problem(request)
        return Fault.status(400, message=problem) if problem else None

    def _respond(self, body: Body, number: int) -> Reply | Fault:
        try:
            return self._responder(body, number)
        except Exception as error:  # noqa: BLE001 - a responder is a test's own code; its error is raised on closing
            self._error = error
            return Fault.status(400, message=f"the responder raised {error!r}")


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.split("\r\n")[:-2]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    return Request(start.split(" ")[1].partition("?")[0], headers, data if isinstance(data, dict) else {})


async def _sent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: dialects.Answer) -> bool:
    """Send the answer; return whether the client was there to the end."""
    # Head and body in one write: two would meet Nagle's algorithm and delayed acknowledgements, 40 ms a call.
    size = -(-len(answer.data) // _PARTS) if answer.drip_s else max(len(answer.data), 1)
    for at in range(0, len(answer.data), size):
        if at and not await _client_waits(reader, answer.drip_s):
            return False
        writer.write(answer.data[at : at + size])
        await writer.drain()
    if answer.reset:
        linger = struct.pack("ii", 1, 0)  # closing then discards what is unsent and sends a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    return True


async def _client_waits(reader: asyncio.StreamReader, delay_s: float | None) -> bool:
    """Wait, for ever when ``delay_s`` is None; return False as soon as the client closes its side."""
    if delay_s == 0:
        return True
    try:
        async with asyncio.timeout(delay_s):
            await reader.read(1)  # a client that waits sends nothing: whatever comes is the end of the connection
    except TimeoutError:
        return True
    except ConnectionError:
        pass
    return False


def main() -> None:
    """Serve until interrupted; the URL is printed on a line of its own."""
    parser = argparse.ArgumentParser(description="a local server that speaks the Messages API and chat completions")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 for any")
    parser.add_argument("--fault-every", type=int, default=0, metavar="N", help="answer each Nth request with a 529")
    options = parser.parse_args()

    def responder(body: Body, n: int) -> Reply | Fault:
        if options.fault_every and n % options.fault_every == 0:
            return Fault.status(529, retry_after=1)
        return demo(body, n)

    with ModelServer(responder, port=options.port) as server:
        print(server.url, flush=True)  # noqa: T201 - the one line a caller reads
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
