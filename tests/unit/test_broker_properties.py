"""Many runs of one tree, each with many clients, against one provider: whatever happens, the books hold.

Hypothesis writes the story: who asks, what the provider answers and when, who is cancelled, which cell or run ends, how
time jumps. The provider here keeps books of its own, and at the end both are compared.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.accounts import Path
from orchestrator.broker import Broker
from orchestrator.errors import LimitExceededError, ModelRequestError, ModelUnavailableError
from orchestrator.ledger import Amount, Scope
from orchestrator.models import retry
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.traffic import Gates, Lane, Limits
from orchestrator.transport.rpc import RpcCall, RpcRefusal
from tests.support.fakes import MemoryJournal

POLICY = Policy().override(
    [
        "budget.calls=25",
        "budget.tokens=12_000",
        "budget.depth=2",
        "budget.children=4",
        "budget.children_alive=3",
        "budget.bytes_out=400",
        "budget.bytes_in=200_000",
        "models.max_tokens=400",
        "limits.frame_kb=64",
        "models.in_flight=3",
    ]
)
FIELDS = ("calls", "tokens", "children", "bytes_in", "bytes_out")
HONEST = ("short", "long", "worst", "refused", "busy", "broken")
answers = st.sampled_from((*HONEST, "overbilled"))
picks = st.integers(0, 9)
actions = st.one_of(
    st.tuples(st.just("ask"), picks, st.integers(1, 60)),
    st.tuples(st.just("ask"), picks, st.integers(1, 60)),
    st.tuples(st.just("batch"), picks, st.integers(1, 8)),
    st.tuples(st.just("answer"), picks, answers),
    st.tuples(st.just("answer"), picks, st.sampled_from(HONEST)),
    st.tuples(st.just("cancel"), picks, st.none()),
    st.tuples(st.just("end_cell"), picks, st.none()),
    st.tuples(st.just("child"), picks, st.none()),
    st.tuples(st.just("close"), picks, st.none()),
    st.tuples(st.just("step"), picks, st.integers(0, 400)),
)


@dataclass(eq=False)
class Waiting:
    """A request at the provider, and what it will answer once it does."""

    request: ModelRequest
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: str = "short"


class Provider:
    """Answers what it is told to, when it is told to, and counts what it served.

    Attributes:
        served: requests that arrived.
        billed: tokens it billed, or would have for answers that broke off or that nobody waited for any more.
        most: requests it had at once.
    """

    name = "provider"

    def __init__(self) -> None:
        self.served = self.billed = self.most = 0
        self.waiting: list[Waiting] = []

    async def complete(self, request: ModelRequest) -> ModelReply:
        self.served += 1
        waiting = Waiting(request)
        self.waiting.append(waiting)
        self.most = max(self.most, len(self.waiting))
        worst = request.worst_case_input_tokens() + request.max_tokens
        try:
            await waiting.answered.wait()
        except anyio.get_cancelled_exc_class():
            self.billed += worst
            raise
        finally:
            self.waiting.remove(waiting)
        bills = {"short": 7, "long": 300, "worst": worst, "overbilled": worst + 500}
        if waiting.answer == "refused":
            raise ModelRequestError("no")
        if waiting.answer == "busy":
            raise ModelUnavailableError("later")
        if waiting.answer == "broken":
            self.billed += worst
            raise ModelUnavailableError("broke off", may_be_billed=True)
        self.billed += bills[waiting.answer]
        return ModelReply("an answer", Usage(output_tokens=bills[waiting.answer]))

    async def aclose(self) -> None:
        """Nothing to close."""


@dataclass(eq=False)
class Run:
    """One run of the tree: its scope, its broker, its open cell, its clients."""

    scope: Scope
    broker: Broker
    parent: Run | None = None
    cell: int = 1
    closed: bool = False
    clients: list[anyio.CancelScope] = field(default_factory=list)


class Story:
    """The tree, the provider, and the invariants."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.tasks = tasks
        self.provider = Provider()
        self.jumped = 0.0
        self.limiter = anyio.CapacityLimiter(POLICY.models.in_flight)
        self.lane = Lane(Limits(in_flight=2), Gates())
        self.ids = 0
        self.overbilled = False
        self.runs = [self.run(Scope.root(POLICY.budget, lambda: time.monotonic() + self.jumped))]

    def run(self, scope: Scope, parent: Run | None = None) -> Run:
        broker = Broker(
            scope=scope,
            policy=POLICY,
            sub_model=self.provider,
            open_named=lambda _name: self.provider,
            prices=PriceTable.load(),
            recorder=Recorder("r", None, (MemoryJournal(),)),
            limiter=self.limiter,
            child=None,
            complete=functools.partial(retry.complete, random=lambda: 0.0),
            lane=self.lane,
        )
        return Run(scope, broker, parent)

    def pick(self, number: int) -> Run:
        return self.runs[number % len(self.runs)]

    def call(self, run: Run, method: str, params: dict[str, Any], body: str = "") -> RpcCall:
        self.ids += 1
        return RpcCall(f"{self.ids:032x}", method, params, body, run.cell)

    async def client(self, run: Run, steps: Callable[[], Any]) -> None:
        scope = anyio.CancelScope()
        run.clients.append(scope)
        # RuntimeError: its run is closed, as the session would have ended it.
        with scope, contextlib.suppress(RpcRefusal, RuntimeError):
            await steps()

    def start(self, run: Run, steps: Callable[[], Any]) -> None:
        self.tasks.start_soon(self.client, run, steps)

    async def act(self, kind: str, number: int, detail: Any) -> None:
        await getattr(self, f"_{kind}")(self.pick(number), number, detail)
        await anyio.wait_all_tasks_blocked()
        self.check()

    async def _ask(self, run: Run, _number: int, size: int) -> None:
        self.start(run, lambda: run.broker(self.call(run, "llm_query", {}, "x" * size)))

    async def _batch(self, run: Run, _number: int, n: int) -> None:
        async def steps() -> None:
            opened = await run.broker(self.call(run, "batch_open", {"n": n, "characters": 20 * n}))
            async with anyio.create_task_group() as tasks:
                for _ in range(n):
                    call = self.call(run, "llm_query", {"batch": opened.result["batch"]}, "x" * 20)
                    tasks.start_soon(self.client, run, lambda call=call: run.broker(call))
            await run.broker(self.call(run, "batch_close", {"batch": opened.result["batch"]}))

        self.start(run, steps)

    async def _answer(self, _run: Run, number: int, answer: str) -> None:
        if self.provider.waiting:
            waiting = self.provider.waiting[number % len(self.provider.waiting)]
            waiting.answer = answer
            self.overbilled = self.overbilled or answer == "overbilled"
            waiting.answered.set()

    async def _cancel(self, run: Run, number: int, _detail: None) -> None:
        if run.clients:
            run.clients.pop(number % len(run.clients)).cancel()

    async def _end_cell(self, run: Run, _number: int, _detail: None) -> None:
        for scope in run.clients:  # as the mux does
            scope.cancel()
        run.clients.clear()
        run.broker.cell_ended(run.cell)
        run.cell += 1

    async def _child(self, run: Run, _number: int, _detail: None) -> None:
        with contextlib.suppress(LimitExceededError, RuntimeError):
            self.runs.append(self.run(run.scope.child(POLICY.budget), run))

    async def _close(self, run: Run, number: int, _detail: None) -> None:
        for below in self.runs:
            if below.parent is run:
                await self._close(below, number, None)
        await self._end_cell(run, number, None)
        if run.parent is not None:
            run.scope.close()
            run.closed = True

    async def _step(self, _run: Run, _number: int, seconds: int) -> None:
        self.jumped += seconds

    def check(self) -> None:
        assert self.provider.most <= 2
        for run in self.runs:
            account = run.scope._account
            for name in FIELDS:
                spent, reserved = getattr(account.spent, name), getattr(account.reserved, name)
                assert spent >= 0
                assert reserved >= 0
                if not self.overbilled:
                    assert spent + reserved <= getattr(account.limit, name)
            below = [each for each in self.runs if each.parent is run]
            assert account.spent.children == len(below) + sum(each.scope._account.spent.children for each in below)
            for name in ("calls", "tokens", "bytes_in", "bytes_out"):
                assert sum(getattr(each.scope._account.spent, name) for each in below) <= getattr(account.spent, name)

    async def end(self) -> None:
        self.check()
        for run in reversed(self.runs):
            await self._close(run, 0, None)
        await anyio.wait_all_tasks_blocked()
        self.check()
        root = self.runs[0].scope
        assert root._account.reserved == Amount()
        assert root.alive_children == 0
        usage = root.usage()
        assert usage["calls"] == self.provider.served
        assert usage["tokens"] == self.provider.billed


async def tell(story: list[tuple[str, int, Any]]) -> None:
    async with anyio.create_task_group() as tasks:
        told = Story(tasks)
        for kind, number, detail in story:
            await told.act(kind, number, detail)
        await told.end()


@settings(max_examples=40, deadline=None)
@given(st.lists(actions, min_size=5, max_size=40))
def test_whatever_happens_in_whatever_order_the_books_hold_and_agree_with_the_providers(
    story: list[tuple[str, int, Any]],
) -> None:
    anyio.run(tell, story)


def test_weakened_a_ledger_that_checks_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(self: Path, amount: Amount) -> None:
        for account, share in self._shares(amount):
            account.reserved += share

    monkeypatch.setattr(Path, "reserve", reserve)
    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(tell, [("ask", 0, 60)] * 10)
    assert caught.group_contains(AssertionError)
