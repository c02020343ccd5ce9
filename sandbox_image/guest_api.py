"""What model code can call: ``llm_query`` and its kin, as plain functions over one connection to the supervisor.

All of this lives in the kernel's process, so model code may read, patch or break it; that harms only itself. Every
budget, depth and limit is kept by the host.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Self

from sandbox_image import wire
from sandbox_image.wire import Kind

_Reply = tuple[dict[str, Any], str]

# What a host whose handler knows plain queries alone says of a batch.
_NO_BATCHES = "unknown_method"


class QueryRefused(Exception):  # noqa: N818 - the name model code is told
    """A call was refused or failed.

    Attributes:
        reason: stable word, such as ``calls``, ``tokens``, ``depth``, ``model_unavailable`` or ``invalid_params``.
        limit: what would have been allowed, where that is a number; else None.
    """

    def __init__(self, reason: str, limit: float | None, message: str) -> None:
        """Hold the facts; the text names reason and limit too, because models read tracebacks."""
        super().__init__(f"{message} (reason={reason!r}, limit={limit!r})")
        self.reason = reason
        self.limit = limit


class FailedQuery(str):
    """Stands in a batch's results where an item failed; its text is ``[query failed: REASON]``."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, reason: str) -> Self:
        """Make one for ``reason``."""
        text = super().__new__(cls, f"[query failed: {reason}]")
        text.reason = reason
        return text


class Connection:
    """Calls to the host, many at once, from any thread.

    Two threads do the I/O: neither is the main thread, so an interrupt never cuts a message in half. The writer takes a
    slot, and room for the text, for every call it sends, and the reader gives them back with the answer, so no more are
    under way than the host accepts; the host answers every call, if only to say that its cell is over.

    Attributes:
        window: calls under way at once, at most.
    """

    def __init__(self, sock: socket.socket, max_frame: int, max_message: int, window: int) -> None:
        """Take over ``sock``; the I/O threads start with the first call."""
        self.window = window
        self._slots = threading.Semaphore(window)
        self._sock = sock
        self._max_frame = max_frame
        self._max_message = max_message
        self._pid = os.getpid()
        self._start_lock = threading.Lock()
        self._started = False
        self._outgoing: queue.SimpleQueue[tuple[bytes, int]] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[Callable[[dict[str, Any], str], None], int]] = {}
        self._room = threading.Condition()
        self._unanswered = 0

    def submit(
        self, method: str, params: dict[str, Any], body: str, done: Callable[[dict[str, Any], str], None]
    ) -> None:
        """Send a call when there is room; ``done`` gets the reply's head and body on the reader's thread."""
        if os.getpid() != self._pid:
            raise QueryRefused("forked_process", None, "only the process of the REPL itself can make calls")
        encoded = body.encode("utf-8", "replace")
        if len(encoded) > self._max_message:
            limit = self._max_message
            raise QueryRefused(
                "too_large", limit, f"the text has {len(encoded):,} bytes; at most {limit:,} can be sent"
            )
        with self._start_lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._write, daemon=True, name="rpc-writer").start()
                threading.Thread(target=self._read, daemon=True, name="rpc-reader").start()
        identity = os.urandom(16).hex()
        self._waiting[identity] = done, len(encoded)
        message = wire.pack_message({"id": identity, "method": method, "params": params}, encoded)
        self._outgoing.put((message, len(encoded)))

    def call(self, method: str, params: dict[str, Any] | None = None, body: str = "") -> _Reply:
        """Make a call and wait for its answer.

        Raises:
            QueryRefused: the host refused, or the call failed.
        """
        replies: queue.SimpleQueue[tuple[dict[str, Any], str]] = queue.SimpleQueue()
        self.submit(method, params or {}, body, lambda head, text: replies.put((head, text)))
        return unwrap(*replies.get())

    def _write(self) -> None:
        while True:
            message, size = self._outgoing.get()
            self._slots.acquire()
            with self._room:
                while self._unanswered + size > self._max_message:
                    self._room.wait()
                self._unanswered += size
            for frame in wire.encode_fragments(message, min(wire.CHUNK, self._max_frame - 1)):
                self._sock.sendall(frame)

    def _read(self) -> None:
        decoder = wire.Decoder(self._max_frame, frozenset((Kind.RPC,)))
        assembler = wire.Assembler(self._max_message + wire.MAX_HEAD)
        while data := self._sock.recv(1 << 20):
            for frame in decoder.feed(data):
                message = assembler.feed(frame.payload)
                if message is None:
                    continue
                head, body = wire.unpack_message(message)
                found = self._waiting.pop(head["id"], None)
                if found is not None:  # None: it answers a call of the kernel before this one
                    done, size = found
                    self._slots.release()
                    with self._room:
                        self._unanswered -= size
                        self._room.notify()
                    done(head, str(body, "utf-8"))


def unwrap(head: dict[str, Any], body: str) -> _Reply:
    """Return result and body of a reply.

    Raises:
        QueryRefused: it is a refusal.
    """
    error = head.get("error")
    if error is not None:
        raise QueryRefused(error["reason"], error["limit"], error["message"])
    return head["result"], body


class GuestApi:
    """The functions model code sees, bound to one connection and one namespace."""

    def __init__(self, connection: Connection, namespace: dict[str, Any]) -> None:
        """Bind; :meth:`names` gives what to put into the namespace."""
        self._connection = connection
        self._namespace = namespace
        self._refused: Any = None

    def names(self) -> dict[str, Any]:
        """Return the names to define in the REPL."""
        return {
            "llm_query": self.llm_query,
            "llm_query_batched": self.llm_query_batched,
            "rlm_query": self.rlm_query,
            "sub_RLM": self.rlm_query,
            "budget": self.budget,
            "FINAL": self.final,
            "FINAL_VAR": self.final_var,
            "QueryRefused": QueryRefused,
            "FailedQuery": FailedQuery,
        }

    def llm_query(self, prompt: str, *, model: str | None = None, max_tokens: int | None = None) -> str:
        """Ask a language model; returns its answer as text.

        The model sees only ``prompt``, so put the text it needs into it. Raises QueryRefused when a budget is used up
        or the model could not answer.
        """
        return self._connection.call("llm_query", _options(model, max_tokens), _prompt(prompt))[1]

    def llm_query_batched(
        self, prompts: Iterable[str], *, model: str | None = None, max_tokens: int | None = None
    ) -> list[str]:
        """Ask many prompts at once, concurrently; returns the answers in the order of the prompts.

        A prompt that fails leaves a FailedQuery (a str, with ``.reason``) in its place. A batch that is larger than the
        budget is refused whole: QueryRefused, whose ``.limit`` says how many prompts would fit.
        """
        texts = [_prompt(prompt) for prompt in prompts]
        if not texts:
            return []
        params, window = self._open_batch(texts, _options(model, max_tokens))
        answers: list[str] = [""] * len(texts)
        replies: queue.SimpleQueue[tuple[int, dict[str, Any], str]] = queue.SimpleQueue()

        def send(index: int) -> None:
            self._connection.submit(
                "llm_query", params, texts[index], lambda head, body: replies.put((index, head, body))
            )

        try:
            for index in range(window):
                send(index)
            for received in range(len(texts)):
                index, head, body = replies.get()
                error = head.get("error")
                answers[index] = FailedQuery(error["reason"]) if error else body
                if received + window < len(texts):
                    send(received + window)
        finally:
            if "batch" in params:
                self._connection.call("batch_close", {"batch": params["batch"]})
        return answers

    def _open_batch(self, texts: list[str], options: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return what each call needs and how many to send at once; plain calls where the host knows no batches."""
        characters = sum(map(len, texts))
        try:
            opened, _ = self._connection.call("batch_open", {"n": len(texts), "characters": characters, **options})
        except QueryRefused as refusal:
            if refusal.reason != _NO_BATCHES:
                raise
            return options, min(self._connection.window, len(texts))
        return {"batch": opened["batch"], **options}, min(int(opened["window"]), len(texts))

    def rlm_query(self, query: str, context: str | list[str] | dict[str, str]) -> str:
        """Start a whole child run over ``context`` (a text, list or dict) in its own sandbox; returns its answer.

        Costs a model's several turns: use it for parts that need code of their own. Where no further depth is allowed,
        it is one plain model call.
        """
        layout, body = _lay_out(context)
        return self._connection.call("rlm_query", {"query": _prompt(query), "layout": layout}, body)[1]

    def budget(self) -> dict[str, Any]:
        """Return what is left: calls, tokens, cost_usd, children, turns, wall_s, depth."""
        return self._connection.call("budget")[0]

    def final(self, value: Any) -> None:
        """Set ``Final``: the run ends after this cell, with ``value`` as its answer."""
        self._namespace["Final"] = value

    def final_var(self, name: str) -> None:
        """Set ``Final`` to the value of the variable called ``name``."""
        if name not in self._namespace:
            raise NameError(f"no variable {name!r} in this REPL")
        self._namespace["Final"] = self._namespace[name]

    def deliver_final(self) -> str:
        """Hand the value of ``Final`` to the host, if it is set.

        Returns:
            Why it was not accepted, for the model to read: once for each value; else nothing.
        """
        value = self._namespace.get("Final")
        if value is None:
            return ""
        try:
            self._connection.call("final", {}, as_text(value))
        except BaseException as error:  # noqa: BLE001 - whatever str(Final) does, the cell still ends
            told, self._refused = value is self._refused, value
            return "" if told else f"Final was not accepted: {type(error).__name__}: {error}\n"
        return ""


def as_text(value: Any) -> str:
    """Return a final value as text: texts as they are, plain data as JSON, anything else by ``str``."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (dict, list, tuple, int, float)):
        try:
            return json.dumps(value, ensure_ascii=False, indent=2 if isinstance(value, (dict, list)) else None)
        except (TypeError, ValueError, RecursionError):
            pass  # it holds something JSON has no word for
    return str(value)


def _prompt(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a prompt is a str, not {type(value).__name__}")
    return value


def _options(model: str | None, max_tokens: int | None) -> dict[str, Any]:
    given = {"model": model, "max_tokens": max_tokens}
    return {name: value for name, value in given.items() if value is not None}


def _lay_out(context: Any) -> tuple[dict[str, Any], str]:
    if isinstance(context, str):
        return {"kind": "text"}, context
    if isinstance(context, (list, tuple)):
        texts = [_prompt(text) for text in context]
        return {"kind": "list", "lengths": [len(text) for text in texts]}, "".join(texts)
    if isinstance(context, dict):
        names = [_prompt(name) for name in context]
        texts = [_prompt(text) for text in context.values()]
        return {"kind": "dict", "names": names, "lengths": [len(text) for text in texts]}, "".join(texts)
    raise TypeError("a context is a str, or a list or dict of str")
