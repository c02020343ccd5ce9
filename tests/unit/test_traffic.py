"""The gates to the providers: bounds that hold for a whole process, and turns that nobody is denied."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import anyio
import pytest

from orchestrator import traffic
from orchestrator.models.base import Message, ModelReply, ModelRequest
from orchestrator.policy import ModelSettings
from orchestrator.traffic import Gate, Gates, Lane, Limits
from tests.support.fakes import FakeClock, FakeModel

pytestmark = pytest.mark.anyio

BOUND_S = 30


class Crowd:
    """Requests at a gate, each of which leaves when it is told to.

    Attributes:
        entered: whose they were, in the order in which they were let in.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.entered: list[str] = []
        self._leave: list[anyio.Event] = []

    async def ask(self, who: str, limits: Limits, tokens: int = 1) -> None:
        async with self.gate.passing(who, limits, tokens):
            self.entered.append(who)
            event = anyio.Event()
            self._leave.append(event)
            await event.wait()

    async def one_leaves(self) -> None:
        self._leave.pop(0).set()
        await anyio.wait_all_tasks_blocked()


async def test_no_more_are_in_flight_than_the_policy_allows_whoever_asks() -> None:
    crowd, limits = Crowd(Gate()), Limits(in_flight=3)
    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(crowd.ask, f"run {number % 4}", limits)
        await anyio.wait_all_tasks_blocked()
        for left in range(12, 0, -1):
            assert crowd.gate.in_flight == min(left, 3)
            await crowd.one_leaves()
    assert (crowd.gate.in_flight, crowd.gate.waiting) == (0, 0)


async def test_a_greedy_run_delays_another_by_one_request_and_not_by_all_of_its_own() -> None:
    crowd, limits = Crowd(Gate()), Limits(in_flight=1)
    async with anyio.create_task_group() as tasks:
        for _ in range(9):
            tasks.start_soon(crowd.ask, "greedy", limits)
        await anyio.wait_all_tasks_blocked()
        for who in ("modest", "modest", "other"):
            tasks.start_soon(crowd.ask, who, limits)
        await anyio.wait_all_tasks_blocked()
        for _ in range(12):
            await crowd.one_leaves()
    assert crowd.entered[:7] == ["greedy", "greedy", "modest", "other", "greedy", "modest", "greedy"]


async def test_weakened_one_queue_for_all_lets_the_greedy_run_starve_the_other() -> None:
    crowd, limits = Crowd(Gate()), Limits(in_flight=1)
    entered: list[str] = []

    async def ask(who: str) -> None:
        async with crowd.gate.passing("everybody", limits, 1):
            entered.append(who)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask, "greedy")
        tasks.start_soon(ask, "modest")
    assert entered.index("modest") == 50


async def test_a_larger_request_is_waited_for_and_not_passed_over() -> None:
    crowd = Crowd(Gate(FakeClock()))
    limits = Limits(in_flight=9, tokens=10)
    async with anyio.create_task_group() as tasks:
        for who, tokens in (("a", 6), ("large", 9), ("b", 1)):
            tasks.start_soon(crowd.ask, who, limits, tokens)
            await anyio.wait_all_tasks_blocked()
        assert crowd.entered == ["a"]
        tasks.cancel_scope.cancel()


class TestMinutes:
    async def test_in_no_minute_do_more_requests_leave_than_the_policy_allows(self) -> None:
        clock = FakeClock()
        gate, limits = Gate(clock), Limits(in_flight=99, requests=5)
        left: list[float] = []

        async def ask() -> None:
            async with gate.passing("run", limits, 1):
                left.append(clock.now)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            while len(left) < 20:
                clock.now += 7
                gate._wake(next(iter(gate._queues.values()))[0])
                await anyio.wait_all_tasks_blocked()
        assert all(sum(begin <= at < begin + 60 for at in left) <= 5 for begin in left)
        assert left[-1] - left[0] < 4 * 70

    async def test_weakened_without_the_limit_all_leave_at_once(self) -> None:
        gate = Gate(FakeClock())
        for _ in range(20):
            async with gate.passing("run", Limits(in_flight=99), 1):
                pass
        assert gate._minute[0].requests == 20

    async def test_a_request_counts_with_its_worst_case_until_its_bill_is_known(self) -> None:
        clock = FakeClock()
        gate, limits = Gate(clock), Limits(in_flight=99, tokens=100)
        async with gate.passing("run", limits, 90) as passage:
            passage.used(10)
        crowd = Crowd(gate)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crowd.ask, "run", limits, 90)
            tasks.start_soon(crowd.ask, "run", limits, 1)
            await anyio.wait_all_tasks_blocked()
            assert len(crowd.entered) == 1
            tasks.cancel_scope.cancel()

    async def test_a_request_no_minute_allows_has_one_to_itself(self) -> None:
        crowd = Crowd(Gate(FakeClock()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crowd.ask, "run", Limits(in_flight=9, tokens=10), 1000)
            await anyio.wait_all_tasks_blocked()
            assert crowd.entered == ["run"]
            tasks.cancel_scope.cancel()

    async def test_who_waits_for_a_minute_to_pass_is_woken_by_a_timer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(traffic, "WINDOW_S", 0.05)
        monkeypatch.setattr(traffic, "STEP_S", 0.01)
        gate, limits = Gate(), Limits(in_flight=9, requests=1)
        with anyio.fail_after(BOUND_S):
            for _ in range(3):
                async with gate.passing("run", limits, 1):
                    pass

    async def test_what_is_remembered_of_a_minute_does_not_grow_with_its_requests(self) -> None:
        clock = FakeClock()
        gate = Gate(clock)
        for _ in range(5000):
            clock.now += 0.05
            async with gate.passing("run", Limits(in_flight=9), 1):
                pass
        assert len(gate._minute) <= traffic.WINDOW_S / traffic.STEP_S + 2


class TestEnds:
    async def test_one_that_is_cancelled_while_it_waits_leaves_its_turn_to_the_next(self) -> None:
        crowd, limits = Crowd(Gate()), Limits(in_flight=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crowd.ask, "first", limits)
            await anyio.wait_all_tasks_blocked()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(crowd.ask, "gone", limits)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
            tasks.start_soon(crowd.ask, "last", limits)
            await anyio.wait_all_tasks_blocked()
            await crowd.one_leaves()
            assert crowd.entered == ["first", "last"]
            await crowd.one_leaves()

    async def test_one_that_is_cancelled_as_it_is_let_in_gives_its_place_back(self) -> None:
        gate, limits = Gate(), Limits(in_flight=1)
        scope = anyio.CancelScope()

        async def ask() -> None:
            with scope:
                async with gate.passing("late", limits, 1):
                    await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            async with gate.passing("first", limits, 1):
                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
            scope.cancel()  # the place is its already, and it has not run since
        assert (gate.in_flight, gate.waiting) == (0, 0)

    async def test_runs_in_threads_and_loops_of_their_own_share_the_bound(self) -> None:
        gate, limits = Gate(), Limits(in_flight=2)
        most, done, lock = 0, 0, threading.Lock()

        async def ask(who: str) -> None:
            nonlocal most, done
            async with gate.passing(who, limits, 1):
                with lock:
                    most = max(most, gate.in_flight)
                await anyio.lowlevel.checkpoint()
            with lock:
                done += 1

        async def run(who: str) -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(ask, who)

        threads = [threading.Thread(target=anyio.run, args=(run, f"run {number}")) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, BOUND_S)
        assert (done, most, gate.in_flight) == (200, 2, 0)

    async def test_a_waiter_whose_loop_is_gone_keeps_no_place(self) -> None:
        gate, limits = Gate(), Limits(in_flight=1)
        loop = asyncio.new_event_loop()
        gate._queues["gone"] = deque([traffic._Waiter(limits, 1, loop, loop.create_future())])
        loop.close()
        async with gate.passing("alive", limits, 1):
            assert gate.in_flight == 1
        assert (gate.in_flight, gate.waiting) == (0, 0)


class TestLanes:
    def test_models_of_one_provider_share_a_gate_and_others_have_their_own(self) -> None:
        gates, one, two = Gates(), FakeModel(name="one"), FakeModel(name="two")
        assert gates.of(one) is gates.of(one)
        assert gates.of(one) is not gates.of(two)
        one.provider = two.provider = "Provider at host"  # type: ignore[attr-defined]
        assert gates.of(one) is gates.of(two)

    async def test_a_lane_takes_its_limits_from_the_policy(self) -> None:
        gates, model = Gates(), FakeModel(default=ModelReply("x"))
        lane = Lane(Limits.of(ModelSettings(provider_in_flight=7, requests_per_minute=8, tokens_per_minute=9)), gates)
        assert lane.limits == Limits(7, 8, 9)
        async with lane.passing(model, 1):
            await model.complete(ModelRequest((Message("user", "x"),), 16))
            assert gates.of(model).in_flight == 1
