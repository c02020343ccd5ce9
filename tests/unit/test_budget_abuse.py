"""The cases of budget-abuse that are our own logic, by their numbers; ``tests/docker/test_abuse.py`` has the box's.

Where a bound refuses something, the case comes twice: the second time with that bound taken away, and the abuse works.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from orchestrator.accounts import Path
from orchestrator.errors import LimitExceededError
from orchestrator.ledger import Amount, Scope
from orchestrator.policy import Budget
from orchestrator.transport.rpc import RpcReply
from tests.support.broker_bench import Bench
from tests.support.fakes import FakeClock

pytestmark = pytest.mark.anyio

TEXT = {"kind": "text"}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the check from the ledger: what is asked for is booked."""

    def reserve(self: Path, amount: Amount) -> None:
        for account, share in self._shares(amount):
            account.reserved += share

    monkeypatch.setattr(Path, "reserve", reserve)
    monkeypatch.setattr(Scope, "exhausted", None)


class TestBu01Race:
    async def race(self, bench: Bench) -> int:
        outcomes = await bench.all_at_once([bench.ask] * 64)
        return sum(isinstance(outcome, RpcReply) for outcome in outcomes)

    async def test_bu01_of_64_calls_that_race_for_the_last_unit_exactly_one_wins(self) -> None:
        bench = Bench(budget__calls=1)
        assert await self.race(bench) == len(bench.model.requests) == 1

    @pytest.mark.usefixtures("unchecked")
    async def test_bu01_weakened_without_the_ledgers_check_all_of_them_do(self) -> None:
        assert await self.race(Bench(budget__calls=1)) == 64


class TestBu02Straddle:
    async def test_bu02_a_batch_that_straddles_the_limit_is_refused_whole_and_told_what_fits(self) -> None:
        bench = Bench(budget__calls=3)
        refusal = await bench.refusal("batch_open", {"n": 5, "characters": 5})
        assert (refusal.reason, refusal.limit, bench.reserved) == ("calls", 3, 0)

    async def test_bu02_so_is_one_of_child_runs(self) -> None:
        async def child(*_: Any) -> str:
            raise AssertionError("none may be started")

        bench = Bench(child=child, budget__children=3)
        refusal = await bench.refusal("batch_open", {"n": 5, "characters": 0, "method": "rlm_query"})
        assert (refusal.reason, refusal.limit) == ("children", 3)
        assert bench.scope.remaining()["children"] == 3

    @pytest.mark.usefixtures("unchecked")
    async def test_bu02_weakened_without_the_ledgers_check_it_is_let_through(self) -> None:
        await Bench(budget__calls=3).call("batch_open", {"n": 5, "characters": 5})


class TestBu03Depth:
    @pytest.mark.parametrize(
        "spoof", [{"depth": 0}, {"parent": None}, {"run": "r1"}, {"levels": 9}, {"budget": {"depth": 9}}], ids=str
    )
    async def test_bu03_there_is_no_parameter_for_depth_or_parent(self, spoof: dict[str, Any]) -> None:
        bench = Bench()
        refusal = await bench.refusal("rlm_query", {"query": "q", "layout": TEXT, **spoof}, "c")
        assert refusal.reason == "invalid_params"

    def test_bu03_depth_is_the_place_in_the_tree_and_a_child_cannot_ask_for_more_levels(self) -> None:
        scope = Scope.root(Budget(depth=2))
        child = scope.child(Budget(depth=99))
        grandchild = child.child(Budget(depth=99))
        assert (child.depth, grandchild.depth, grandchild.levels) == (1, 2, 0)
        with pytest.raises(LimitExceededError) as caught:
            grandchild.child(Budget(depth=99))
        assert caught.value.reason == "depth"


async def test_bu04_a_child_that_outlives_its_parents_call_is_cancelled_and_holds_nothing() -> None:
    ended = anyio.Event()

    async def child(*_: Any) -> str:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    bench = Bench(child=child)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.call, "rlm_query", {"query": "q", "layout": TEXT}, "c")
        await anyio.wait_all_tasks_blocked()
        assert bench.scope.remaining()["children"] == 31
        tasks.cancel_scope.cancel()
    assert ended.is_set()
    assert bench.scope.remaining()["children"] == 32


def explode(scope: Scope, fan_out: int, open_child: Callable[[Scope, Budget], Scope] = Scope.child) -> int:
    """Spend call after call, open as many children after each as there may be, and return the calls of all."""
    calls = 0
    while True:
        try:
            scope.spend(Amount(calls=1, tokens=1))
        except LimitExceededError:
            return calls
        calls += 1
        for _ in range(fan_out):
            try:
                child = open_child(scope, Budget(calls=1000, depth=9, children=1000, children_alive=1000))
            except LimitExceededError:
                break
            calls += explode(child, fan_out, open_child)
            child.close()


def test_bu05_fan_out_times_depth_spends_no_more_than_the_budget_of_the_tree() -> None:
    root = Scope.root(Budget(calls=50, depth=3, children=1000, children_alive=1000))
    assert explode(root, 4) == root.usage()["calls"] == 50


def test_bu05_weakened_with_a_ledger_of_its_own_for_each_child_the_tree_spends_many_times_as_much() -> None:
    def unlinked(scope: Scope, _budget: Budget) -> Scope:
        if not scope.levels:
            raise LimitExceededError("depth", 0)
        return Scope.root(Budget(calls=50, depth=scope.levels - 1))

    assert explode(Scope.root(Budget(calls=50, depth=1)), 1, unlinked) == 50 + 50 * 50


async def test_bu06_many_short_cells_share_one_wall_time() -> None:
    clock = FakeClock()
    bench = Bench(clock=clock, budget__wall_s=10.0)
    for cell in range(1, 11):
        assert (await bench.call("budget", cell=cell)).result["wall_s"] == 11 - cell
        bench.broker.cell_ended(cell)
        clock.now += 1
    assert (await bench.refusal("llm_query", {}, "p", cell=11)).reason == "wall_s"


@pytest.mark.parametrize("amount", [-1, 0, True, 1.5, 10**30, math.nan, math.inf, None, "9", [9]], ids=str)
async def test_bu10_an_amount_that_is_no_positive_whole_number_in_range_is_invalid(amount: object) -> None:
    bench = Bench()
    assert (await bench.refusal("llm_query", {"max_tokens": amount}, "p")).reason == "invalid_params"
    assert bench.scope.usage()["calls"] == 0


@pytest.mark.parametrize("value", [-1, True, 1.0, math.nan, None, "1"], ids=str)
def test_bu10_the_ledger_itself_takes_no_such_amount_either(value: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        Amount(tokens=value)


def test_bu11_sums_of_any_size_are_exact() -> None:
    many = 10**9
    scope = Scope.root(Budget(calls=2**53, tokens=2**53, cost_usd=1e6))
    held = scope.reserve(Amount(calls=many, tokens=many, cost_nano=many))
    held.settle(Amount(calls=many, tokens=many, cost_nano=many))
    for _ in range(1000):
        scope.spend(Amount(calls=1, tokens=1, cost_nano=1))
    usage = scope.usage()
    assert (usage["calls"], usage["tokens"], round(usage["cost_usd"] * 1e9)) == (many + 1000,) * 3


async def test_bu12_a_new_kernel_and_a_new_cell_find_the_budget_as_it_was_left() -> None:
    bench = Bench(budget__calls=2)
    await bench.call("llm_query", {}, "p", cell=1)
    bench.broker.cell_ended(1)
    await bench.call("llm_query", {}, "p", cell=2)
    assert (await bench.refusal("llm_query", {}, "p", cell=2)).reason == "calls"


async def test_bu13_no_time_of_the_boxs_is_asked_for_or_accepted() -> None:
    bench = Bench()
    for spoof in ({"deadline": 1e12}, {"now": 0}, {"timeout": 1e9}):
        assert (await bench.refusal("llm_query", spoof, "p")).reason == "invalid_params"


async def test_deadlines_compose_the_call_ends_with_the_first_of_its_own_time_its_cells_and_its_runs() -> None:
    own = Bench(limits__call_timeout_s=0.02)
    own.model._gate = anyio.Event()
    refusal = await own.refusal("llm_query", {}, "p")
    assert (refusal.reason, refusal.limit) == ("call_timeout_s", 0.02)
    cells = Bench(cell_ends=lambda: anyio.current_time() + 0.02)
    cells.model._gate = anyio.Event()
    assert (await cells.refusal("llm_query", {}, "p")).reason == "cell_timeout_s"
    runs = Bench(budget__wall_s=0.02)
    runs.model._gate = anyio.Event()
    assert (await runs.refusal("llm_query", {}, "p")).reason == "wall_s"
    for bench in (own, cells, runs):
        assert (bench.model.cancelled, bench.reserved, bench.scope.usage()["estimated_calls"]) == (1, 0, 1)
