"""Providers that misbehave, in both dialects: the real SDKs on a real server, and what the ledger makes of it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from orchestrator.errors import ModelAuthenticationError, ModelError, ProviderDownError
from orchestrator.events import CircuitChanged, EstimateCharged, RetryScheduled
from orchestrator.ledger import Scope
from orchestrator.metering import Answer, Exchange, Till
from orchestrator.models import retry
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.base import Message, Model, ModelRequest
from orchestrator.models.circuit import CircuitPolicy, Circuits
from orchestrator.models.openai import OpenAIModel
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Budget
from orchestrator.recording import Recorder
from tests.support.fakes import MemoryJournal
from tests.support.model_server import Fault, ModelServer, Reply, Responder

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("dialect", ["anthropic", "openai"])]

KEY = "sk-very-secret-0123456789"
ASK = ModelRequest((Message("user", "hello, " * 20),), max_tokens=50)

# What a provider says with a status has cost no tokens; what broke off, made no sense or never came may have.
REFUSED = [
    Fault.status(408),
    Fault.status(409),
    Fault.status(429, retry_after=0),
    Fault.status(429, retry_after_ms=1),
    Fault.status(500),
    Fault.status(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    Fault.status(529, retry_after="soon"),
]
LOST = [
    Fault.disconnect(),
    Fault.drop(),
    Fault.reset(),
    Fault.malformed(),
]


@dataclass
class Bench:
    """One model of one dialect on one server, and a till."""

    model: Model
    server: ModelServer
    circuits: Circuits | None
    request_s: float

    def __post_init__(self) -> None:
        self.journal = MemoryJournal()
        self.scope = Scope.root(Budget(wall_s=60))
        complete = functools.partial(retry.complete, random=lambda: 0.0, circuits=self.circuits)
        recorder = Recorder("r", None, (self.journal,))
        self.till = Till(self.scope, PriceTable.load(), recorder, complete, request_s=self.request_s)

    async def ask(self, request: ModelRequest = ASK) -> Answer:
        held = self.scope.reserve(self.till.worst_case(self.model, request))
        return await Exchange(self.model, request, held, self.till, call=7).run()

    async def fail(self) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.ask()
        assert KEY not in str(caught.value)
        assert "\n" not in str(caught.value)
        return caught.value

    def exact_tokens(self) -> int:
        usage = self.scope.usage()
        return int(usage["tokens"] - usage["estimated_tokens"])

    def outcomes(self) -> list[str]:
        return [entry.outcome for entry in self.server.books]


@asynccontextmanager
async def opened(
    dialect: str, responder: Responder, *, circuits: Circuits | None = None, request_s: float = 30.0
) -> AsyncIterator[Bench]:
    with ModelServer(responder) as server:
        model = model_at(dialect, server)
        try:
            yield Bench(model, server, circuits, request_s)
        finally:
            await model.aclose()


def model_at(dialect: str, server: ModelServer) -> AnthropicModel | OpenAIModel:
    if dialect == "anthropic":
        environ = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url}
        return AnthropicModel("claude-haiku-5-5", environ=environ)
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}/v1"}
    return OpenAIModel("claude-haiku-5-5", environ=environ)


def first(fault: Fault | Reply) -> Responder:
    return lambda _body, n: fault if n == 1 else Reply("at last")


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: f"{fault.code} {dict(fault.headers)}")
async def test_a_refusal_that_may_pass_costs_its_call_and_no_token(dialect: str, fault: Fault) -> None:
    async with opened(dialect, first(fault)) as bench:
        answer = await bench.ask()
    usage = bench.scope.usage()
    assert (answer.reply.text, usage["calls"], len(bench.server.requests)) == ("at last", 2, 2)
    assert (usage["tokens"], usage["estimated_tokens"]) == (bench.server.books[1].tokens, 0)
    (told,) = bench.journal.of(RetryScheduled)
    assert (told.attempt, told.call, told.code) == (1, 7, "model_unavailable")
    assert f"HTTP {fault.code}" in told.detail


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault.kind)
async def test_an_answer_that_broke_off_is_charged_at_its_worst_case_and_asked_for_again(
    dialect: str, fault: Fault
) -> None:
    async with opened(dialect, first(fault)) as bench:
        answer = await bench.ask()
    worst = bench.till.worst_case(bench.model, ASK).tokens
    usage = bench.scope.usage()
    assert (answer.reply.text, usage["calls"], bench.outcomes()) == ("at last", 2, ["broken", "billed"])
    assert (bench.exact_tokens(), usage["estimated_tokens"]) == (bench.server.books[1].tokens, worst)
    assert worst >= bench.server.books[0].tokens, "whatever it bills for the half it sent is covered"
    assert [event.tokens for event in bench.journal.of(EstimateCharged)] == [worst]


async def test_an_answer_that_does_not_say_why_it_stopped_is_lost_where_it_must_say_so(dialect: str) -> None:
    async with opened(dialect, first(Fault.end_early())) as bench:
        reply = (await bench.ask()).reply
    if dialect == "anthropic":
        assert (reply.text, bench.outcomes()) == ("at last", ["broken", "billed"])
    else:
        assert (reply.text, reply.stop_reason) == ("half an answer, and then", "cut_short")
        assert (bench.exact_tokens(), bench.outcomes()) == (bench.server.books[0].tokens, ["billed"])


async def test_an_overload_in_mid_stream_may_be_billed_and_one_before_it_may_not(dialect: str) -> None:
    async with opened(dialect, first(Fault.overloaded())) as bench:
        await bench.ask()
    streamed = dialect == "anthropic"
    assert bench.scope.usage()["estimated_calls"] == streamed
    assert bench.outcomes() == ["broken" if streamed else "refused", "billed"]


@pytest.mark.parametrize("fault", [Reply("drip, drip, drip", drip_s=0.2), Fault.hang()], ids=["drips", "hangs"])
async def test_a_reply_that_takes_too_long_is_given_up_and_the_server_is_told(
    dialect: str, fault: Reply | Fault
) -> None:
    async with opened(dialect, first(fault), request_s=0.5) as bench:
        answer = await bench.ask()
        await anyio.to_thread.run_sync(bench.server.wait_until, lambda: bench.server.dropped == 1)
    assert answer.reply.text == "at last"
    assert sorted(bench.outcomes()) == ["billed", "given_up"]
    assert bench.scope.usage()["estimated_calls"] == 1
    assert "no whole answer from claude-haiku-5-5 within 0.5 s" in bench.journal.of(RetryScheduled)[0].detail


async def test_a_reply_that_drips_within_its_time_is_whole(dialect: str) -> None:
    async with opened(dialect, lambda _body, _n: Reply("slowly but surely", drip_s=0.005)) as bench:
        answer = await bench.ask()
    assert (answer.reply.text, answer.attempts) == ("slowly but surely", 1)


@pytest.mark.parametrize(
    "reply",
    [
        Reply("text", usage=False),
        Reply("text", output_tokens=-5),
        Reply("text", input_tokens=-5),
        Reply("text", output_tokens=2**60),
        Reply("text", input_tokens=10**400),
    ],
    ids=["absent", "negative output", "negative input", "huge output", "huge input"],
)
async def test_usage_that_is_absent_or_cannot_be_true_is_estimated_and_says_so(dialect: str, reply: Reply) -> None:
    async with opened(dialect, lambda _body, _n: reply) as bench:
        answer = await bench.ask()
    assert answer.reply.text == "text"
    assert answer.reply.usage.estimated
    assert bench.outcomes() == ["unbilled"]
    usage = bench.scope.usage()
    assert usage["tokens"] == usage["estimated_tokens"] == answer.reply.usage.total > 0
    assert bench.scope.exhausted is None


async def test_a_bill_above_what_was_reserved_is_paid_as_it_is_and_ends_the_spending(dialect: str) -> None:
    async with opened(dialect, lambda _body, _n: Reply("text", output_tokens=10**9)) as bench:
        await bench.ask()
    assert bench.exact_tokens() == bench.server.books[0].tokens > 10**9
    assert bench.scope.exhausted == "tokens"


@pytest.mark.parametrize(
    ("reply", "text", "stop"),
    [
        (Reply("I cannot help with that.", stop_reason="refusal"), "I cannot help with that.", "refusal"),
        (Reply("x" * 400), "x" * 200, "max_tokens"),
        (Reply(""), "", "end"),
    ],
    ids=["refusal", "max_tokens", "empty"],
)
async def test_a_refusal_a_cut_and_nothing_are_replies_and_paid_as_such(
    dialect: str, reply: Reply, text: str, stop: str
) -> None:
    async with opened(dialect, lambda _body, _n: reply) as bench:
        answer = await bench.ask()
    assert (answer.reply.text, answer.reply.stop_reason) == (text, stop)
    assert (bench.exact_tokens(), bench.scope.usage()["calls"]) == (bench.server.books[0].tokens, 1)


@pytest.mark.parametrize("code", [401, 402, 403])
async def test_a_refused_key_or_account_is_one_line_that_names_the_variable_and_is_not_tried_again(
    dialect: str, code: int
) -> None:
    async with opened(dialect, lambda _body, _n: Fault.status(code, message=f"no access for {KEY}")) as bench:
        error = await bench.fail()
    assert type(error) is ModelAuthenticationError
    assert f"{dialect.upper()}_API_KEY" in str(error)
    assert (len(bench.server.requests), bench.scope.usage()["calls"]) == (1, 1)


async def test_a_server_that_is_not_there_costs_calls_and_no_tokens(dialect: str) -> None:
    with ModelServer() as server:
        model = model_at(dialect, server)
    bench = Bench(model, server, Circuits(CircuitPolicy(failures=2, first_s=60.0, patience_s=30.0)), 30.0)
    error = await bench.fail()
    await model.aclose()
    assert type(error) is ProviderDownError
    usage = bench.scope.usage()
    assert (usage["calls"], usage["tokens"]) == (2, 0)
    assert server.url.removeprefix("http://") in bench.journal.of(RetryScheduled)[0].detail


async def test_a_storm_opens_the_circuit_for_all_calls_and_nothing_is_lost_when_it_is_over(dialect: str) -> None:
    # Of twenty requests at once, eight failures open it; then one at a time goes out until one is answered.
    circuits = Circuits(CircuitPolicy(failures=8, first_s=0.01, longest_s=0.02))

    def storm(_body: object, n: int) -> Reply | Fault:
        return Fault.status(429 if n % 2 else 529, retry_after_ms=1) if n <= 24 else Reply("calm")

    async with opened(dialect, storm, circuits=circuits) as bench:
        texts: list[str] = []

        async def ask() -> None:
            texts.append((await bench.ask()).reply.text)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert texts == ["calm"] * 20
    assert bench.scope.usage()["calls"] == len(bench.server.requests) == 44
    states = [event.state for event in bench.journal.of(CircuitChanged)]
    assert states[0] == "open"
    assert states[-1] == "closed"
    assert {"open", "half_open", "closed"} == set(states)


async def test_a_provider_that_stays_down_is_asked_no_more(dialect: str) -> None:
    circuits = Circuits(CircuitPolicy(failures=3, first_s=60.0, patience_s=30.0))
    async with opened(dialect, lambda _body, _n: Fault.status(503), circuits=circuits) as bench:
        assert type(await bench.fail()) is ProviderDownError
        asked = len(bench.server.requests)
        error = await bench.fail()
    assert (type(error), error.code) == (ProviderDownError, "provider_down")
    assert isinstance(error, ProviderDownError)
    assert 0 < (error.retry_after_s or 0) <= 60
    assert len(bench.server.requests) == asked == bench.scope.usage()["calls"] == 3


async def test_weakened_without_a_circuit_a_provider_that_is_down_is_asked_by_every_attempt_of_every_call(
    dialect: str,
) -> None:
    async with opened(dialect, lambda _body, _n: Fault.status(503), circuits=None) as bench:
        for _ in range(3):
            await bench.fail()
    assert len(bench.server.requests) == 3 * retry.DEFAULT.attempts
