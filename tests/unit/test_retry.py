"""The retry layer, with a fake model, a fake sleep and chosen randomness."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import (
    LimitExceededError,
    ModelAuthenticationError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
    ProviderDownError,
)
from orchestrator.models import retry
from orchestrator.models.base import Message, ModelReply, ModelRequest
from orchestrator.models.circuit import Change, CircuitPolicy, Circuits
from tests.support.fakes import FakeClock

pytestmark = pytest.mark.anyio

ASK = ModelRequest((Message("user", "hello"),), max_tokens=50)


class BugError(Exception):
    """What is nobody's failure but ours."""


@dataclass
class FakeModel:
    """Raises what it is given, one a call; then answers, or never."""

    failures: Sequence[Exception] = ()
    hangs: bool = False
    name: str = "fake"
    asked: int = 0
    cancelled: bool = False

    async def complete(self, _request: ModelRequest) -> ModelReply:
        self.asked += 1
        if self.asked <= len(self.failures):
            raise self.failures[self.asked - 1]
        if self.hangs:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                self.cancelled = True
                raise
        return ModelReply("ok")

    async def aclose(self) -> None:
        """Nothing is held open."""


@dataclass
class Call:
    """One call of the layer, recorded."""

    model: FakeModel
    seconds: float = 1000.0
    random: Callable[[], float] = lambda: 1.0
    policy: retry.RetryPolicy = retry.DEFAULT
    circuits: Circuits | None = None
    changes: list[Change] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    told: list[retry.Retry] = field(default_factory=list)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    async def run(self) -> tuple[ModelReply, int]:
        return await retry.complete(
            self.model,
            ASK,
            deadline=anyio.current_time() + self.seconds,
            on_retry=self.told.append,
            on_circuit=self.changes.append,
            policy=self.policy,
            circuits=self.circuits,
            sleep=self._sleep,
            random=self.random,
        )

    async def fail(self) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.run()
        return caught.value


def unavailable(count: int, retry_after_s: float | None = None) -> list[ModelUnavailableError]:
    return [ModelUnavailableError(f"failure {n}", retry_after_s=retry_after_s) for n in range(1, count + 1)]


async def test_an_answer_at_once_takes_one_attempt_and_no_wait() -> None:
    call = Call(FakeModel())
    assert await call.run() == (ModelReply("ok"), 1)
    assert (call.slept, call.told) == ([], [])


async def test_waits_double_up_to_the_cap() -> None:
    call = Call(FakeModel(unavailable(9)), policy=retry.RetryPolicy(attempts=10))
    assert (await call.run())[1] == 10
    assert call.slept == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


async def test_waits_are_fully_jittered() -> None:
    numbers = iter([0.0, 0.5, 0.25])
    call = Call(FakeModel(unavailable(3)), random=lambda: next(numbers))
    await call.run()
    assert call.slept == [0, 0.5, 0.5]


async def test_every_retry_is_reported_before_its_wait() -> None:
    failures = unavailable(2)
    call = Call(FakeModel(failures))
    await call.run()
    assert call.told == [retry.Retry(1, failures[0], 0.5), retry.Retry(2, failures[1], 1)]


async def test_the_providers_wait_is_a_minimum_and_may_exceed_the_cap() -> None:
    call = Call(FakeModel(unavailable(2, retry_after_s=90)), random=lambda: 0.5)
    await call.run()
    assert call.slept == [90.25, 90.5]


async def test_the_last_attempts_error_is_raised_with_the_count() -> None:
    call = Call(FakeModel(unavailable(99)))
    error = await call.fail()
    assert (str(error), error.attempts, call.model.asked, len(call.told)) == ("failure 6", 6, 6, 5)


@pytest.mark.parametrize("kind", [ModelAuthenticationError, ModelRequestError])
async def test_what_cannot_succeed_is_not_repeated(kind: type[ModelError]) -> None:
    call = Call(FakeModel([*unavailable(1), kind("no")]))
    error = await call.fail()
    assert type(error) is kind
    assert (error.attempts, call.model.asked) == (2, 2)


async def test_a_wait_past_the_deadline_is_not_begun() -> None:
    call = Call(FakeModel(unavailable(9, retry_after_s=3600)), seconds=60)
    error = await call.fail()
    assert (str(error), error.attempts, call.slept, call.told) == ("failure 1", 1, [], [])


async def test_a_deadline_ends_the_attempt_under_way() -> None:
    call = Call(FakeModel(hangs=True), seconds=0.01)
    error = await call.fail()
    assert type(error) is ModelUnavailableError
    assert (str(error), error.attempts) == ("the deadline passed before fake answered", 1)
    assert call.model.cancelled


async def test_nothing_is_sent_after_the_deadline() -> None:
    call = Call(FakeModel(), seconds=-1)
    error = await call.fail()
    assert (error.attempts, call.model.asked) == (0, 0)


async def test_no_deadline_is_no_bound() -> None:
    assert (await Call(FakeModel(unavailable(3)), seconds=math.inf).run())[1] == 4


async def test_the_callback_may_refuse_to_pay_for_another_attempt() -> None:
    def refuse(_retry: retry.Retry) -> None:
        raise LimitExceededError("calls", 0)

    model = FakeModel(unavailable(9))
    with pytest.raises(LimitExceededError):
        await retry.complete(model, ASK, deadline=math.inf, on_retry=refuse)
    assert model.asked == 1


async def test_an_exception_that_is_no_models_passes_through() -> None:
    with pytest.raises(BugError):
        await Call(FakeModel([BugError()])).run()


async def test_cancelling_ends_an_attempt_without_another() -> None:
    call = Call(FakeModel(hangs=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (call.model.asked, call.model.cancelled, call.told) == (1, True, [])


@given(st.integers(1, 10**6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_wait_of_our_own_exceeds_the_cap(attempt: int, initial_s: float, cap_s: float) -> None:
    assert 0 <= retry.RetryPolicy(initial_s=initial_s, cap_s=cap_s).longest_wait_s(attempt) <= cap_s


class Slept(FakeClock):
    """A clock that sleeping moves."""

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


def outage(clock: Slept, failures: int, **policy: float) -> tuple[Call, Circuits]:
    """Return a call in an outage of so many failures; its sleep moves the circuits' clock."""
    circuits = Circuits(CircuitPolicy(failures=3, first_s=4.0, **policy), clock)
    call = Call(FakeModel(unavailable(failures)), random=lambda: 0.0, circuits=circuits)
    call._sleep = clock.sleep  # type: ignore[method-assign]
    return call, circuits


async def test_a_call_outlives_an_outage_for_which_its_circuit_is_open_and_that_takes_no_attempts() -> None:
    clock = Slept()
    call, _ = outage(clock, 5)
    assert (await call.run())[1] == 6
    assert [change.state for change in call.changes] == ["open", "half_open"] * 3 + ["closed"]
    assert [change.wait_s for change in call.changes if change.state == "open"] == [4, 8, 16]
    assert clock.now == 1000.0 + 4 + 8 + 16


async def test_a_provider_that_is_down_for_long_is_asked_no_more_and_that_costs_no_attempt() -> None:
    clock = Slept()
    call, circuits = outage(clock, 99, patience_s=10.0)
    assert type(await call.fail()) is ProviderDownError
    asked = call.model.asked
    other = Call(FakeModel(), circuits=circuits)
    error = await other.fail()
    assert (type(error), error.attempts, other.model.asked) == (ProviderDownError, 0, 0)
    assert call.model.asked == asked == 4


async def test_a_probe_that_comes_after_the_deadline_is_not_waited_for() -> None:
    circuits = Circuits(CircuitPolicy(failures=1, first_s=60.0), FakeClock())
    first = Call(FakeModel(unavailable(1)), circuits=circuits, seconds=50, random=lambda: 0.0)
    error = await first.fail()
    assert (type(error), error.attempts, first.slept) == (ProviderDownError, 1, [0])


async def test_a_refusal_shows_that_the_provider_is_up_and_a_cancelled_attempt_shows_nothing() -> None:
    circuits = Circuits(CircuitPolicy(failures=2))
    for failure in (*unavailable(1), ModelRequestError("no"), *unavailable(1)):
        await Call(FakeModel([failure]), circuits=circuits, policy=retry.RetryPolicy(attempts=1)).fail()
    late = Call(FakeModel(hangs=True), circuits=circuits, seconds=0.01)
    await late.fail()
    assert late.changes == []


class Told:
    """What hears of retries, and stands here for all a request holds."""

    def __call__(self, failed: retry.Retry) -> None:
        """Nothing is done about it."""


@pytest.mark.parametrize("ends", ["answered", "refused", "unavailable", "cancelled"])
async def test_nothing_of_a_request_outlives_it_even_until_the_next_collection(ends: str) -> None:
    failures: dict[str, list[Exception]] = {"refused": [ModelRequestError("no")], "unavailable": [*unavailable(2)]}
    model = FakeModel(failures.pop(ends, []), hangs=ends == "cancelled")

    async def ask() -> weakref.ref[Told]:
        told = Told()
        policy = retry.RetryPolicy(attempts=2)
        with suppress(ModelError), anyio.move_on_after(0.05):
            await retry.complete(model, ASK, deadline=math.inf, on_retry=told, policy=policy, sleep=no_sleep)
        model.failures = ()  # which hold where they were raised
        return weakref.ref(told)

    async def no_sleep(_seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    gc.collect()
    gc.disable()
    try:
        held = await ask()
        for _ in range(5):  # a cancelled wait is forgotten in the next step of the event loop
            await anyio.lowlevel.checkpoint()
        assert held() is None
    finally:
        gc.enable()
