"""Two hundred runs on a provider of which nearly every third answer is a failure, of every kind there is.

The loop, the broker, the ledger, the retries and the SDKs are the real ones; the box is a fake whose cells make the
calls that code in a box makes. :mod:`tests.support.chaos` says what has to hold.
"""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import pytest

from orchestrator import metering
from orchestrator.context import Context
from orchestrator.events import CircuitChanged, Envelope
from orchestrator.ledger import Amount, Scope
from orchestrator.models import retry
from orchestrator.models.base import Model
from orchestrator.models.circuit import CircuitPolicy, Circuits
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Budget, Policy
from orchestrator.rlm.recursion import Run
from orchestrator.rlm.tree import Tree
from orchestrator.session import Backing
from orchestrator.transport.rpc import RpcHandler, RpcRefusal
from tests.support.chaos import FAULTS, Provider, Ran, by_key, check_run, open_model
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes
from tests.support.model_server import Entry, ModelServer

pytestmark = pytest.mark.anyio

RUNS = {"anthropic": 200, "openai": 30}
AT_ONCE = 100
REQUEST_S = 3.0
PATIENCE = retry.RetryPolicy(attempts=5, initial_s=0.02, cap_s=0.1)
CIRCUIT = CircuitPolicy(failures=8, first_s=0.02, longest_s=0.05, patience_s=20.0)
CODE = "I work.\n\n```repl\nwork()\n```\n"


async def asks(box: FakeBox, number: int, **params: object) -> None:
    """Ask so many questions at once, as threads in a cell do; what fails is the cell's business."""

    async def ask(index: int) -> None:
        with suppress(RpcRefusal):
            await box.call("llm_query", f"question {index} of {box.cell}: " + "x" * (50 * index), **params)

    async with anyio.create_task_group() as tasks:
        for index in range(number):
            tasks.start_soon(ask, index)


def cells(choose: random.Random, depth: int) -> Iterator[CellBody]:
    """Yield the cells of one box."""

    async def few(box: FakeBox) -> None:
        await asks(box, choose.randint(1, 6))

    async def batch(box: FakeBox) -> None:
        number = choose.randint(2, 12)
        try:
            await box.call("batch_open", n=number, characters=number * 300, max_tokens=64)
        except RpcRefusal:
            return
        await asks(box, number, batch="b1")
        await box.call("batch_close", batch="b1")

    async def child(box: FakeBox) -> None:
        with suppress(RpcRefusal):
            await box.child("a part of it", "some text")

    async def final(box: FakeBox) -> None:
        await box.call("final", f"the answer of depth {depth}")

    yield few
    yield batch
    if depth == 0 and choose.random() < 0.5:
        yield child
    if choose.random() < 0.9:  # else it works until a budget is used up
        yield final


@dataclass
class Boxes(FakeBoxes):
    """Fake boxes for one run and its children."""

    seed: int = 0

    @asynccontextmanager
    async def open(self, policy: Policy, context: Context, rpc: RpcHandler) -> AsyncIterator[FakeBox]:
        choose = random.Random(f"{self.seed}/{len(self.opened)}")  # noqa: S311 - nothing here is a secret
        self.cells.append(list(cells(choose, depth=min(len(self.opened), 1))))
        async with super().open(policy, context, rpc) as box:
            yield box


def budget_of(seed: int) -> Budget:
    choose = random.Random(seed)  # noqa: S311 - nothing here is a secret
    return Budget(
        calls=choose.choice([4, 15, 60, 2000]),
        tokens=choose.choice([6_000, 60_000, 20_000_000]),
        cost_usd=choose.choice([0.002, 0.02, 10.0]),
        turns=choose.choice([3, 8]),
        wall_s=60.0,
        depth=1,
        children=3,
    )


async def run(seed: int, model: Model, circuits: Circuits, prices: PriceTable) -> Ran:
    budget, events = budget_of(seed), list[Envelope]()
    policy = Policy().model_copy(update={"budget": budget})
    policy = policy.override(
        [
            "models.max_tokens=256",
            f"models.request_timeout_s={REQUEST_S}",
            f"models.in_flight={seed % 7 + 1}",
            f"models.memo={'true' if seed % 3 else 'false'}",
        ]
    )
    backing = Backing(
        sub_model=model,
        open_named=lambda _name: model,
        prices=prices,
        limiter=anyio.CapacityLimiter(policy.models.in_flight),
        open_box=Boxes(seed=seed).open,
        complete=functools.partial(retry.complete, policy=PATIENCE, circuits=circuits),
    )
    scope = Scope.root(budget)
    tree = Tree(model, backing, None, events.append)
    result = await Run(tree, scope, policy, "some text", "What is it?", f"run-{seed}").complete()
    account = scope._account
    assert (account.reserved, account.closed, account.alive) == (Amount(), True, 0)
    return Ran(f"run-{seed}", budget, result, events)


async def all_runs(dialect: str, server: ModelServer, runs: int) -> list[Ran]:
    ran: list[Ran] = []
    circuits, prices, places = Circuits(CIRCUIT), PriceTable.load(), anyio.CapacityLimiter(AT_ONCE)

    async def one(seed: int) -> None:
        async with places:
            model = open_model(dialect, server, f"run-{seed}")
            try:
                ran.append(await run(seed, model, circuits, prices))
            finally:
                await model.aclose()

    async with anyio.create_task_group() as tasks:
        for seed in range(runs):
            tasks.start_soon(one, seed)
    return ran


async def served(dialect: str, runs: int) -> tuple[list[Ran], dict[str, list[Entry]], Provider]:
    """Carry out so many runs; return them, the server's books by run, and what the provider did."""
    provider = Provider(seed=runs, storm=range(3 * runs, 3 * runs + min(80, runs)), root=lambda _body: CODE)
    with ModelServer(provider) as server:
        ran = await all_runs(dialect, server, runs)
        books = by_key(await anyio.to_thread.run_sync(server.settled))
    return ran, books, provider


@pytest.mark.parametrize("dialect", list(RUNS))
async def test_whatever_a_provider_does_every_run_ends_typed_within_its_budget_and_the_books_agree(
    dialect: str,
) -> None:
    ran, books, provider = await served(dialect, RUNS[dialect])
    exact = [check_run(one, books[one.key]) for one in ran]
    assert len(ran) == RUNS[dialect]
    assert sum(exact) > len(ran) / 2, "the strict comparison must be the rule"
    assert sum(provider.failed.values()) / sum(map(len, books.values())) > 0.25
    if len(ran) < max(RUNS.values()):
        return
    # The test is worth something only if all of it happened.
    assert {"answered", "limit", "failed"} <= {one.result.status for one in ran}
    assert {"open", "half_open", "closed"} <= {event.state for one in ran for event in one.of(CircuitChanged)}
    assert len(provider.failed) == len(FAULTS) + 1, "every fault, and the storm"


async def test_without_a_charge_for_answers_that_broke_off_the_books_would_not_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none_lost = property(lambda _self: 0, lambda _self, _value: None)
    monkeypatch.setattr(metering._Watched, "lost", none_lost, raising=False)
    ran, books, _ = await served("anthropic", 10)
    with pytest.raises(AssertionError):
        all(check_run(one, books[one.key]) or True for one in ran)
