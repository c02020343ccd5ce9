"""What model code can call: ``llm_query`` and its kin, as plain functions, each with an awaitable twin ``.aio``.

All of this lives in the kernel's process, so model code may read, patch or break it; that harms only itself. Every
budget, depth and limit is kept by the host.
"""

from __future__ import annotations

import asyncio
import functools
import json
import queue
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from sandbox_image import forms
from sandbox_image.calls import Connection, QueryRefused

# What a host whose handler knows plain queries alone says of a batch.
_NO_BATCHES = "unknown_method"
# Refusals of a batch whose limit is the number of items that would fit.
_COUNTED = frozenset(("calls", "tokens", "cost_usd", "children"))

Progress = Callable[[int, int], object]
Schema = dict[str, Any]


class FailedQuery(str):
    """Stands in a batch's results where an item failed; its text is ``[query failed: REASON]``.

    Attributes:
        reason: as of QueryRefused.
        message: a sentence; of a child run that reached a limit, with its partial answer.
    """

    __slots__ = ("message", "reason")
    reason: str
    message: str

    def __new__(cls, reason: str, message: str = "") -> Self:
        """Make one for ``reason``."""
        text = super().__new__(cls, f"[query failed: {reason}]")
        text.reason = reason
        text.message = message
        return text


class GuestApi:
    """The functions model code sees, bound to one connection and one namespace."""

    def __init__(self, connection: Connection, namespace: dict[str, Any]) -> None:
        """Bind; :meth:`names` gives what to put into the namespace."""
        self._connection = connection
        self._namespace = namespace
        self._refused: Any = None

    def begin_cell(self) -> None:
        """Tell calls of the cell that begins from those of what earlier cells left running."""
        self._connection.begin_cell()

    def end_cell(self) -> None:
        """Tell that the cell is over."""
        self._connection.end_cell()

    def names(self) -> dict[str, Any]:
        """Return the names to define in the REPL."""
        rlm_query = _with_aio(self.rlm_query, self._rlm_query_aio)
        return {
            "llm_query": _with_aio(self.llm_query, self._llm_query_aio),
            "llm_query_batched": _with_aio(self.llm_query_batched, _in_thread(self.llm_query_batched)),
            "rlm_query": rlm_query,
            "rlm_query_batched": _with_aio(self.rlm_query_batched, _in_thread(self.rlm_query_batched)),
            "sub_RLM": rlm_query,
            "budget": self.budget,
            "FINAL": self.final,
            "FINAL_VAR": self.final_var,
            "QueryRefused": QueryRefused,
            "FailedQuery": FailedQuery,
        }

    def tools(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the functions behind which stand those of the host, by name."""
        return {name: self._tool(name) for name in names}

    def _tool(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return json.loads(self._connection.call("tool", {"name": name}, _arguments(args, kwargs))[1])

        async def aio(*args: Any, **kwargs: Any) -> Any:
            return json.loads((await self._connection.acall("tool", {"name": name}, _arguments(args, kwargs)))[1])

        call.__name__ = call.__qualname__ = name
        call.__doc__ = "A function of the host; arguments and result are plain data. Raises QueryRefused when it fails."
        return _with_aio(call, aio)

    def llm_query(
        self, prompt: str, *, model: str | None = None, max_tokens: int | None = None, schema: Schema | None = None
    ) -> Any:
        """Ask a language model; returns its answer as text, or with a ``schema`` as the object it is.

        The model sees only ``prompt``, so put the text it needs into it. Raises QueryRefused when a budget is used up
        or the model could not answer. ``schema`` is a JSON Schema (a dict): the model is shown it, and a reply that
        does not fit is asked for again with what is wrong, twice, each time at the price of a call; then the reason is
        ``wrong_form``. ``await llm_query.aio(prompt)`` does the same beside others.
        """
        options = _options(model, max_tokens)

        def ask(text: str) -> str:
            return self._connection.call("llm_query", options, text)[1]

        return ask(_prompt(prompt)) if schema is None else forms.hold(forms.Form(schema).dialogue(_prompt(prompt)), ask)

    async def _llm_query_aio(
        self, prompt: str, *, model: str | None = None, max_tokens: int | None = None, schema: Schema | None = None
    ) -> Any:
        """Ask a language model and await its answer; see llm_query."""
        options = _options(model, max_tokens)

        async def ask(text: str) -> str:
            return (await self._connection.acall("llm_query", options, text))[1]

        if schema is None:
            return await ask(_prompt(prompt))
        return await forms.hold_async(forms.Form(schema).dialogue(_prompt(prompt)), ask)

    def llm_query_batched(
        self,
        prompts: Iterable[str],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        schema: Schema | None = None,
        partial: bool = False,
        progress: Progress | None = None,
    ) -> list[Any]:
        """Ask many prompts at once, concurrently; returns the answers in the order of the prompts.

        A prompt that fails leaves a FailedQuery (a str, with ``.reason``) in its place. A batch that is larger than the
        budget is refused whole: QueryRefused, whose ``.limit`` says how many prompts would fit; ``partial=True`` asks
        the first ones that fit and leaves a FailedQuery for each of the others. ``progress`` is called with the number
        of answers so far and that of prompts. With a ``schema``, as of llm_query, the answers are objects; what does
        not fit is asked again in further batches, and ends as a FailedQuery.
        """
        texts = [_prompt(prompt) for prompt in prompts]
        options = _options(model, max_tokens)

        def ask(asked: list[str], first: bool) -> list[str]:  # noqa: FBT001 - called by forms.hold_many alone
            told = progress if first else None
            batch = _Batch(self._connection, "llm_query", options, lambda index: ({}, asked[index]), told)
            return batch.run([len(text) for text in asked], partial=partial or not first)

        if schema is None:
            return ask(texts, True)  # noqa: FBT003 - as above
        form = forms.Form(schema)
        return forms.hold_many([form.dialogue(text) for text in texts], ask, FailedQuery)

    def rlm_query(self, query: str, context: str | list[str] | dict[str, str]) -> str:
        """Start a whole child run over ``context`` (a text, list or dict) in its own sandbox; returns its answer.

        Costs a model's several turns: use it for parts that need code of their own. Where no further depth is allowed,
        it is one plain model call. Raises QueryRefused when the child found no answer.
        """
        return self._connection.call("rlm_query", *_child(query, context))[1]

    async def _rlm_query_aio(self, query: str, context: str | list[str] | dict[str, str]) -> str:
        """Start a child run and await its answer; see rlm_query."""
        return (await self._connection.acall("rlm_query", *_child(query, context)))[1]

    def rlm_query_batched(
        self,
        query: str | Iterable[str],
        contexts: Iterable[str | list[str] | dict[str, str]],
        *,
        partial: bool = False,
        progress: Progress | None = None,
    ) -> list[str]:
        """Start a child run over each of ``contexts``, some at a time; returns the answers in their order.

        ``query`` is the question for all of them, or one for each. Failures, ``partial`` and ``progress`` are as of
        llm_query_batched.
        """
        each = list(contexts)
        queries = [query] * len(each) if isinstance(query, str) else list(query)
        if len(queries) != len(each):
            raise ValueError(f"{len(queries)} queries for {len(each)} contexts: give one query, or one for each")
        for number, context in enumerate(each):
            _child(queries[number], context)  # what is wrong with one is told before any is sent
        batch = _Batch(self._connection, "rlm_query", {}, lambda index: _child(queries[index], each[index]), progress)
        return batch.run([0] * len(each), partial=partial)

    def budget(self) -> dict[str, Any]:
        """Return what is left: calls, tokens, cost_usd, children, turns, wall_s, depth, and some more."""
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
        """Hand the value of ``Final`` to the host, if it is set, and drop calls of the cell that wait to be sent.

        Returns:
            Why it was not accepted, for the model to read: once for each value; else nothing.
        """
        self._connection.cell_over()
        value = self._namespace.get("Final")
        if value is None:
            return ""
        try:
            self._connection.call("final", {}, as_text(value))
        except BaseException as error:  # noqa: BLE001 - whatever str(Final) does, the cell still ends
            if getattr(error, "reason", "") == "wrong_form":
                # The model is told, and sets another; the next cell must not hand over this one again.
                self._namespace.pop("Final", None)
            told, self._refused = value is self._refused, value
            return "" if told else f"Final was not accepted: {type(error).__name__}: {error}\n"
        return ""


class _Batch:
    """Many calls behind one reservation: a window of them under way, the rest not even encoded.

    Args:
        connection: to the host.
        method: ``llm_query`` or ``rlm_query``.
        options: of all of them.
        item: gives one's own params and body, by its index.
        progress: is told of each answer.
    """

    def __init__(
        self,
        connection: Connection,
        method: str,
        options: dict[str, Any],
        item: Callable[[int], tuple[dict[str, Any], str]],
        progress: Progress | None,
    ) -> None:
        self._connection = connection
        self._method = method
        self._options = options
        self._item = item
        self._progress = progress
        self._replies: queue.SimpleQueue[tuple[int, dict[str, Any], str]] = queue.SimpleQueue()

    def run(self, sizes: list[int], *, partial: bool) -> list[str]:
        """Make the calls; return their answers in order.

        Raises:
            QueryRefused: the batch is larger than the budget; nothing was sent.
        """
        if not sizes:
            return []
        n, refused = len(sizes), ""
        while True:
            try:
                params, window = self._open(n, sum(sizes[:n]))
                break
            except QueryRefused as refusal:
                fitting = int(refusal.limit or 0) if refusal.reason in _COUNTED else 0
                if not partial or not 0 < fitting < n:
                    raise
                n, refused = fitting, refusal.reason
        try:
            answers = self._ask(n, params, window, len(sizes))
        finally:
            if "batch" in params:
                self._connection.call("batch_close", {"batch": params["batch"]})
        return answers + [FailedQuery(refused, "it did not fit into the budget") for _ in sizes[n:]]

    def _open(self, n: int, characters: int) -> tuple[dict[str, Any], int]:
        """Return what each call needs and how many to send at once; plain calls where the host knows no batches."""
        method = {} if self._method == "llm_query" else {"method": self._method}
        try:
            opened, _ = self._connection.call(
                "batch_open", {"n": n, "characters": characters, **method, **self._options}
            )
        except QueryRefused as refusal:
            if refusal.reason != _NO_BATCHES:
                raise
            return self._options, min(self._connection.window, n)
        return {"batch": opened["batch"], **self._options}, min(int(opened["window"]), n)

    def _ask(self, n: int, params: dict[str, Any], window: int, total: int) -> list[str]:
        answers: list[str] = [""] * n
        for index in range(window):
            self._send(index, params)
        for received in range(n):
            index, head, body = self._replies.get()
            error = head.get("error")
            answers[index] = FailedQuery(error["reason"], error["message"]) if error else body
            if received + window < n:
                self._send(received + window, params)
            if self._progress is not None:
                self._progress(received + 1, total)
        return answers

    def _send(self, index: int, params: dict[str, Any]) -> None:
        own, body = self._item(index)
        try:
            self._connection.submit(
                self._method, {**own, **params}, body, lambda head, text: self._replies.put((index, head, text))
            )
        except QueryRefused as refusal:
            error = {"reason": refusal.reason, "limit": refusal.limit, "message": str(refusal)}
            self._replies.put((index, {"error": error}, ""))


def _with_aio(function: Callable[..., Any], aio: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Return ``function`` with its awaitable twin as ``.aio``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.aio = aio  # type: ignore[attr-defined]
    return call


def _in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(function, *args, **kwargs)

    return call


def _child(query: str, context: Any) -> tuple[dict[str, Any], str]:
    layout, body = _lay_out(context)
    return {"query": _prompt(query), "layout": layout}, body


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


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return json.dumps({"args": args, "kwargs": kwargs}, ensure_ascii=False, allow_nan=False)


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
