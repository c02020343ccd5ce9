"""A root model's whole run without a box: the real messages, and a namespace in this process instead of the REPL."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Self

import anyio

from orchestrator.context import Context, describe
from orchestrator.kernel.result import CellError, ExecutionResult, Status
from orchestrator.models.base import Message, Model, ModelReply, ModelRequest
from orchestrator.rlm import prompt
from orchestrator.rlm.parse import parse_reply

TAG = "5f0c"


class QueryRefused(Exception):  # noqa: N818 - the name in the box
    def __init__(self, reason: str, limit: float | None) -> None:
        super().__init__(f"refused (reason={reason!r}, limit={limit!r})")
        self.reason = reason
        self.limit = limit


class FailedQuery(str):
    __slots__ = ("reason",)
    reason: str

    def __new__(cls, reason: str) -> Self:
        text = super().__new__(cls, f"[query failed: {reason}]")
        text.reason = reason
        return text


class FakeRepl:
    """Runs a root model's cells in a dict of this process, and its sub-calls on a second model.

    Args:
        root: the root model.
        context: what its cells find as ``context``.
        sub: answers sub-calls; the root model if absent.
        calls: model calls of the run.
        max_tokens: of each reply.
        observation_chars: of a turn's output that the root model is shown.
        largest_prompt: characters of a sub-call's prompt; a larger one is refused.
        fault: makes a sub-call fail: called with its number from 1 and its prompt, returns a reason or None.
        end_cell: makes a cell end differently: called with its number from 1, returns a status or None.

    Attributes:
        prompts: of all sub-calls.
        cells: all code that ran.
        history: the conversation.
        namespace: the REPL's variables.
    """

    def __init__(
        self,
        root: Model,
        context: Context,
        *,
        sub: Model | None = None,
        calls: int = 2000,
        max_tokens: int = 8192,
        observation_chars: int = 12_000,
        largest_prompt: int = 8_000_000,
        fault: Callable[[int, str], str | None] = lambda _number, _prompt: None,
        end_cell: Callable[[int], Status | None] = lambda _number: None,
    ) -> None:
        self.root = root
        self.sub = sub or root
        self.left = calls
        self.max_tokens = max_tokens
        self.observation_chars = observation_chars
        self.largest_prompt = largest_prompt
        self.context = context
        self.prompts: list[str] = []
        self.cells: list[str] = []
        self.history: list[Message] = []
        self.namespace: dict[str, Any] = {}
        self._fault = fault
        self._end_cell = end_cell
        self._fill_namespace()

    def run(self, query: str, *, turns: int = 30, last_turn: int | None = None) -> str | None:
        """Take turns until ``Final`` is set; before turn ``last_turn`` the model is told that it is its last."""
        first = prompt.first(query, describe(self.context), self._left(), tag=TAG)
        self.history.append(Message("user", first))
        for turn in range(1, turns + 1):
            if turn == last_turn:
                text = self.history.pop().text
                self.history.append(Message("user", f"{text}\n\n{prompt.last_turn('turns')}"))
            reply = self._ask(self.root, tuple(self.history), "root")
            self.left -= 1
            self.history.append(Message("assistant", reply.text))
            parsed = parse_reply(reply.text, complete=reply.stop_reason == "end")
            if not parsed.blocks:
                return parsed.prose
            ran = self._execute(parsed.blocks)
            if self.namespace.get("Final") is not None:
                return str(self.namespace["Final"])
            shown = prompt.observation(ran, [], turn=turn, left=self._left(), limit=self.observation_chars, tag=TAG)
            self.history.append(Message("user", shown))
        return None

    def _execute(self, blocks: Iterable[str]) -> list[tuple[int, ExecutionResult]]:
        ran: list[tuple[int, ExecutionResult]] = []
        for block in blocks:
            self.cells.append(block)
            result = self._run_cell(block, len(self.cells))
            ran.append((len(self.cells), result))
            if not result.ok:
                break
        return ran

    def _run_cell(self, code: str, number: int) -> ExecutionResult:
        ended = self._end_cell(number)
        if ended in ("died", "oom"):
            self._fill_namespace()
            return ExecutionResult(ended, state_lost=True)
        if ended is not None:
            return ExecutionResult(ended)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(code, f"<cell {number}>", "exec"), self.namespace)  # noqa: S102 - that is what a REPL does
        except Exception as error:  # noqa: BLE001 - whatever the cell raises is its result
            told = CellError(type(error).__name__, str(error), traceback.format_exc(limit=-2))
            return ExecutionResult("error", stdout=output.getvalue(), error=told)
        return ExecutionResult("ok", stdout=output.getvalue())

    def _fill_namespace(self) -> None:
        self.namespace.clear()
        self.namespace.update(
            context=self.context,
            llm_query=self._llm_query,
            llm_query_batched=self._llm_query_batched,
            budget=self._left,
            QueryRefused=QueryRefused,
            FailedQuery=FailedQuery,
        )

    def _left(self) -> dict[str, int | float]:
        wall: dict[str, int | float] = {"turns": 30, "calls": self.left, "tokens": 20_000_000, "cost_usd": 10.0}
        return wall | {"wall_s": 1800.0, "depth": 1, "children": 32}

    def _llm_query(self, text: str, *, max_tokens: int | None = None) -> str:
        if self.left < 1:
            raise QueryRefused("calls", 0)
        if len(text) > self.largest_prompt:
            raise QueryRefused("too_large", self.largest_prompt)
        self.left -= 1
        self.prompts.append(text)
        reason = self._fault(len(self.prompts), text)
        if reason is not None:
            return FailedQuery(reason)
        return self._ask(self.sub, (Message("user", text),), "sub", max_tokens).text

    def _llm_query_batched(self, prompts: Iterable[str], *, max_tokens: int | None = None) -> list[str]:
        texts = list(prompts)
        if len(texts) > self.left:
            raise QueryRefused("calls", self.left)
        return [self._llm_query(text, max_tokens=max_tokens) for text in texts]

    def _ask(self, model: Model, messages: tuple[Message, ...], purpose: Any, most: int | None = None) -> ModelReply:
        request = ModelRequest(messages, min(most or self.max_tokens, self.max_tokens), purpose=purpose)
        return run_now(model, request)


def run_now(model: Model, request: ModelRequest) -> ModelReply:
    """Ask a model from code that has no event loop."""
    return anyio.run(model.complete, request)
