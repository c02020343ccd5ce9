from __future__ import annotations

import functools
from dataclasses import replace

import anyio
import pytest

from orchestrator.errors import LimitExceededError, ModelError, ModelRequestError, ModelUnavailableError
from orchestrator.events import EstimateCharged, RetryScheduled
from orchestrator.ledger import Amount, Reservation, Scope
from orchestrator.metering import Exchange, Till
from orchestrator.models import retry
from orchestrator.models.base import Message, Model, ModelReply, ModelRequest, Usage
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Budget
from orchestrator.recording import Past, Recorder
from orchestrator.traffic import Gates, Lane, Limits
from tests.support.fakes import FakeModel, MemoryJournal

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest((Message("user", "go"),), max_tokens=100, purpose="root")


class Counter:
    """A till, and what was recorded at it."""

    def __init__(self, cost_usd: float = 10.0, tokens: int = 20_000_000) -> None:
        self.journal = MemoryJournal()
        self.scope = Scope.root(Budget(turns=3, cost_usd=cost_usd, tokens=tokens))
        self.till = Till(
            self.scope,
            PriceTable.load(),
            Recorder("r", None, (self.journal,)),
            functools.partial(retry.complete, random=lambda: 0.0),
        )

    def exchange(self, model: Model) -> tuple[Exchange, Reservation]:
        held = self.scope.reserve(self.till.worst_case(model, REQUEST) + Amount(turns=1))
        return Exchange(model, REQUEST, held, self.till), held


async def test_a_root_turn_costs_its_bill_and_one_turn() -> None:
    counter = Counter()
    bill = Usage(input_tokens=1, output_tokens=2, cache_read_tokens=30, cache_write_tokens=4, estimated=True)
    exchange, held = counter.exchange(FakeModel([ModelReply("code", bill)]))
    answer = await exchange.run()
    assert (answer.reply.text, answer.attempts, answer.cost_usd) == ("code", 1, None)
    usage = counter.scope.usage()
    assert (usage["tokens"], usage["cache_read_tokens"], usage["turns"]) == (37, 30, 1)
    assert (usage["estimated_calls"], usage["unpriced_calls"]) == (1, 1)
    assert held.held == Amount()


async def test_a_priced_answer_costs_what_the_table_says() -> None:
    counter = Counter()
    exchange, _ = counter.exchange(FakeModel([ModelReply("x", Usage(input_tokens=200))], name="claude-sonnet-5-5"))
    answer = await exchange.run()
    assert answer.cost_usd == counter.scope.usage()["cost_usd"] > 0


@pytest.mark.parametrize("cost_usd", [0.25, None])
async def test_an_answer_that_is_played_back_costs_what_it_cost_then(cost_usd: float | None) -> None:
    class Remembers(Recorder):
        def recall(self, *_: object) -> Past:
            return Past("", "x", "end", Usage(input_tokens=200).to_dict(), cost_usd)

    counter = Counter()
    counter.till = replace(counter.till, recorder=Remembers("r", None, (counter.journal,)))
    exchange, _ = counter.exchange(FakeModel(name="claude-sonnet-5-5"))
    assert (await exchange.run()).cost_usd == cost_usd
    usage = counter.scope.usage()
    assert (usage["cost_usd"], usage["unpriced_calls"]) == (cost_usd or 0, cost_usd is None)


async def test_a_budget_in_dollars_does_not_bind_a_model_without_a_price_and_its_calls_are_counted() -> None:
    counter = Counter(cost_usd=0.0)
    for _ in range(2):
        exchange, _ = counter.exchange(FakeModel([ModelReply("x", Usage(input_tokens=200))]))
        await exchange.run()
    usage = counter.scope.usage()
    assert (usage["cost_usd"], usage["unpriced_calls"], counter.scope.exhausted) == (0, 2, None)


async def test_retries_are_paid_one_call_each_and_the_turn_once() -> None:
    counter = Counter()
    exchange, _ = counter.exchange(FakeModel([ModelUnavailableError("busy")] * 2))
    assert (await exchange.run()).attempts == 3
    usage = counter.scope.usage()
    assert (usage["calls"], usage["turns"]) == (3, 1)
    assert [event.purpose for event in counter.journal.of(RetryScheduled)] == ["root", "root"]


async def test_a_request_the_provider_refuses_costs_its_call() -> None:
    counter = Counter()
    exchange, held = counter.exchange(FakeModel([ModelRequestError("too long")]))
    with pytest.raises(ModelRequestError):
        await exchange.run()
    usage = counter.scope.usage()
    assert (usage["calls"], usage["tokens"]) == (1, 0)
    assert held.held == Amount()


async def test_an_answer_that_never_came_costs_the_worst_case_and_says_so() -> None:
    counter = Counter()
    model = FakeModel(gate=anyio.Event())
    exchange, held = counter.exchange(model)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        await model.arrived.wait()
        tasks.cancel_scope.cancel()
    usage = counter.scope.usage()
    assert usage["tokens"] == counter.till.worst_case(model, REQUEST).tokens
    assert (usage["calls"], usage["turns"], usage["estimated_calls"]) == (1, 1, 1)
    assert held.held == Amount()


async def test_a_request_that_never_left_costs_nothing() -> None:
    counter = Counter()
    model = FakeModel()
    exchange, held = counter.exchange(model)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await exchange.run()
    assert counter.scope.usage()["calls"] == len(model.requests)
    assert held.held == Amount()


class Returns:
    """A model of a caller's own that answers with whatever it was given."""

    name = "own"

    def __init__(self, reply: object) -> None:
        self._reply = reply

    async def complete(self, request: ModelRequest) -> ModelReply:
        del request
        return self._reply  # type: ignore[return-value]

    async def aclose(self) -> None:
        """Nothing is held open."""


async def test_a_model_that_raises_what_is_no_model_error_is_paid_for_and_told_as_one() -> None:
    counter = Counter()
    bug = ValueError("a bug\non two lines")
    exchange, held = counter.exchange(FakeModel([bug]))
    with pytest.raises(ModelError, match=r"^the model raised ValueError: a bug on two lines$") as caught:
        await exchange.run()
    assert (type(caught.value), caught.value.__cause__) == (ModelError, bug)
    usage = counter.scope.usage()
    assert (usage["calls"], usage["estimated_calls"], usage["unpriced_calls"]) == (1, 1, 1)
    assert held.held == Amount()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "returned a NoneType and no ModelReply"),
        ("text", "returned a str and no ModelReply"),
        (ModelReply(5), "a ModelReply of int and Usage"),  # type: ignore[arg-type]
        (ModelReply("x", {"input_tokens": 5}), "a ModelReply of str and dict"),  # type: ignore[arg-type]
        (ModelReply("x", stop_reason="stop"), "none of end, max_tokens"),  # type: ignore[arg-type]
    ],
)
async def test_a_model_that_returns_what_is_no_reply_is_paid_for_and_told_as_a_model_error(
    reply: object, words: str
) -> None:
    counter = Counter()
    exchange, held = counter.exchange(Returns(reply))
    with pytest.raises(ModelError, match=words):
        await exchange.run()
    assert counter.scope.usage()["estimated_calls"] == 1
    assert held.held == Amount()


async def test_a_bill_that_cannot_be_true_is_told_as_the_worst_case_that_is_paid() -> None:
    counter = Counter()
    exchange, _ = counter.exchange(FakeModel([ModelReply("x", Usage(input_tokens="7"))]))  # type: ignore[arg-type]
    answer = await exchange.run()
    assert answer.reply.usage == Usage(REQUEST.worst_case_input_tokens(), REQUEST.max_tokens, estimated=True)
    assert counter.scope.usage()["tokens"] == answer.reply.usage.total
    assert answer.cost_usd is None


class TestReplyThatBreaksOff:
    """A reply that broke off may be billed, and nobody will say for how much."""

    WORST = REQUEST.worst_case_input_tokens() + REQUEST.max_tokens

    async def test_it_costs_its_worst_case_and_the_next_attempt_its_bill(self) -> None:
        counter = Counter()
        broken = ModelUnavailableError("broke off", may_be_billed=True)
        exchange, held = counter.exchange(FakeModel([broken, broken, ModelReply("x", Usage(5, 2))]))
        answer = await exchange.run()
        assert (answer.attempts, answer.reply.usage) == (3, Usage(5, 2))
        usage = counter.scope.usage()
        assert (usage["calls"], usage["tokens"], usage["estimated_calls"]) == (3, 2 * self.WORST + 7, 2)
        assert (counter.scope.exhausted, held.held) == (None, Amount())

    async def test_it_costs_its_worst_case_when_no_other_follows(self) -> None:
        counter = Counter()
        exchange, _ = counter.exchange(FakeModel([ModelError("no")]))
        exchange._model._model._script[0].may_be_billed = True  # type: ignore[attr-defined]
        with pytest.raises(ModelError):
            await exchange.run()
        assert counter.scope.usage()["tokens"] == self.WORST

    async def test_another_attempt_is_not_made_where_both_could_not_be_paid(self) -> None:
        counter = Counter()
        counter.scope.spend(Amount(calls=1, tokens=20_000_000 - self.WORST - 10))
        model = FakeModel(default=ModelUnavailableError("broke off", may_be_billed=True))
        exchange, _ = counter.exchange(model)
        with pytest.raises(LimitExceededError) as caught:
            await exchange.run()
        assert (caught.value.reason, len(model.requests)) == ("tokens", 1)
        assert counter.scope.remaining()["tokens"] == 10

    async def test_weakened_taken_for_an_answer_it_would_cost_nothing(self) -> None:
        counter = Counter()
        exchange, _ = counter.exchange(FakeModel([ModelUnavailableError("a status")] * 3))
        await exchange.run()
        assert counter.scope.usage()["tokens"] == 7


async def test_every_attempt_waits_for_its_turn_at_the_provider_and_is_counted_there_with_its_bill() -> None:
    counter, gates = Counter(), Gates()
    lane = Lane(Limits(in_flight=1), gates)
    counter.till = replace(counter.till, lane=lane)
    model = FakeModel([ModelUnavailableError("busy"), ModelReply("x", Usage(5, 2))])
    exchange, _ = counter.exchange(model)
    await exchange.run()
    steps = gates.of(model)._minute
    assert (sum(step.requests for step in steps), sum(step.tokens for step in steps)) == (2, 7)
    assert gates.of(model).in_flight == 0


def broken() -> ModelUnavailableError:
    return ModelUnavailableError("it broke off", may_be_billed=True)


async def test_a_reply_that_broke_off_is_charged_at_its_worst_case_beside_the_bill_of_the_next() -> None:
    counter = Counter()
    bill = Usage(input_tokens=7, output_tokens=3)
    model = FakeModel([broken(), ModelUnavailableError("busy"), ModelReply("x", bill)], name="claude-sonnet-5-5")
    exchange, _ = counter.exchange(model)
    answer = await exchange.run()
    worst = counter.till.worst_case(model, REQUEST)
    usage = counter.scope.usage()
    assert (usage["calls"], usage["tokens"], usage["estimated_tokens"]) == (3, 10 + worst.tokens, worst.tokens)
    assert usage["cost_usd"] == pytest.approx((answer.cost_usd or 0) + worst.cost_nano / 1e9)
    assert counter.journal.of(EstimateCharged) == [
        EstimateCharged("root", None, 1, worst.tokens, worst.cost_nano / 1e9)
    ]
    told = counter.journal.of(RetryScheduled)
    assert [(event.attempt, event.detail) for event in told] == [(1, "it broke off"), (2, "busy")]


async def test_replies_that_break_off_again_and_again_cannot_pass_the_budget() -> None:
    worst = Counter().till.worst_case(FakeModel(), REQUEST).tokens
    counter = Counter(tokens=2 * worst + worst // 2)
    model = FakeModel([broken() for _ in range(9)])
    exchange, held = counter.exchange(model)
    with pytest.raises(LimitExceededError) as caught:
        await exchange.run()
    assert (caught.value.reason, len(model.requests)) == ("tokens", 2)
    assert counter.scope.usage()["tokens"] == counter.scope.usage()["estimated_tokens"] == 2 * worst
    assert held.held == Amount()


async def test_a_bill_beyond_all_counting_is_not_believed() -> None:
    counter = Counter()
    exchange, _ = counter.exchange(FakeModel([ModelReply("x", Usage(output_tokens=10**4000))]))
    assert (await exchange.run()).reply.usage.estimated
    assert counter.scope.exhausted is None


async def test_a_reply_that_takes_too_long_is_given_up_charged_and_asked_for_again() -> None:
    class SlowOnce(FakeModel):
        async def complete(self, request: ModelRequest) -> ModelReply:
            if not self.requests:
                self.requests.append(request)
                await anyio.sleep_forever()
            return await super().complete(request)

    counter = Counter()
    counter.till = replace(counter.till, request_s=0.01)
    model = SlowOnce()
    exchange, _ = counter.exchange(model)
    assert (await exchange.run()).attempts == 2
    (told,) = counter.journal.of(RetryScheduled)
    assert told.detail == f"no whole answer from {model.name} within 0.01 s"
    assert counter.scope.usage()["estimated_calls"] == 1


async def test_the_time_at_the_providers_gate_is_not_the_replys() -> None:
    counter, gates = Counter(), Gates()
    lane = Lane(Limits(in_flight=1), gates)
    go_on = anyio.Event()
    first, second = FakeModel(gate=go_on), FakeModel()
    first.provider = second.provider = "it"  # type: ignore[attr-defined]
    patient = replace(counter.till, lane=lane)
    hurried = replace(counter.till, lane=lane, request_s=0.5)
    held = [counter.scope.reserve(counter.till.worst_case(model, REQUEST)) for model in (first, second)]
    answers = []

    async def run(exchange: Exchange) -> None:
        answers.append((await exchange.run()).attempts)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, Exchange(first, REQUEST, held[0], patient))
        await first.arrived.wait()
        tasks.start_soon(run, Exchange(second, REQUEST, held[1], hurried))
        await anyio.sleep(0.6)
        assert second.requests == []
        go_on.set()
    assert answers == [1, 1]
