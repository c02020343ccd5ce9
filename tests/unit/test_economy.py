"""What a run saves: cached history, questions that were answered before, and calls that would cost too much."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import anyio
import pytest

from orchestrator import RLM, Policy, Result
from orchestrator.cli import usage as usage_table
from orchestrator.errors import ConfigurationError, ModelAuthenticationError, PolicyError
from orchestrator.events import CellFinished, RootReplied, SubcallFinished, SubcallStarted
from orchestrator.kernel.result import ExecutionResult
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.models.openai import OpenAIModel
from orchestrator.policy import Budget
from orchestrator.transport.rpc import RpcRefusal
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel, MemoryJournal
from tests.support.model_dialects import PromptCache
from tests.support.model_server import Body, Fault, ModelServer, Reply, Responder, system_of

pytestmark = pytest.mark.anyio

KEY = "sk-very-secret-0123456789"
NAME = "claude-sonnet-5-5"
CODE = "I work.\n\n```repl\nwork()\n```\n"


def by_role(body: Body, n: int) -> Reply | Fault:
    """Answer as the root model, which always has code, or as a sub-model."""
    return Reply(CODE + "# " + "thought " * 40) if system_of(body) else Reply(f"answer {n}")


async def run(model: object, *cells: CellBody, settings: tuple[str, ...] = ()) -> tuple[Result, MemoryJournal]:
    journal = MemoryJournal()
    boxes = FakeBoxes([list(cells)])
    policy = Policy().override(list(settings))
    rlm = RLM(model=model, policy=policy, on_event=journal, open_box=boxes.open)  # type: ignore[arg-type]
    return await rlm.acomplete("some text", "What is it?"), journal


@asynccontextmanager
async def served(
    dialect: str, responder: Responder, **options: object
) -> AsyncIterator[tuple[ModelServer, AnthropicModel | OpenAIModel]]:
    with ModelServer(responder, **options) as server:  # type: ignore[arg-type]
        model: AnthropicModel | OpenAIModel
        if dialect == "anthropic":
            model = AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url})
        else:
            model = OpenAIModel(NAME, environ={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}/v1"})
        try:
            yield server, model
        finally:
            await model.aclose()


def prints(characters: int) -> CellBody:
    """Return the body of a cell that prints so much."""

    async def body(_box: FakeBox) -> ExecutionResult:
        return ExecutionResult("ok", stdout="data " * (characters // 5))

    return body


# The history of the root model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
async def test_of_a_long_history_nearly_all_is_read_from_the_cache_and_the_bills_agree(dialect: str) -> None:
    turns = [prints(8000) for _ in range(11)]
    async with served(dialect, by_role) as (server, model):
        result, journal = await run(model, *turns, finals("done"))
        books = [entry.usage or {} for entry in server.settled()]
    assert (result.status, result.turns) == ("answered", 12)
    read = sum(usage["cache_read_input_tokens"] for usage in books)
    written = sum(usage["cache_creation_input_tokens"] for usage in books)
    plain = sum(usage["input_tokens"] for usage in books)
    assert (result.usage["cache_read_tokens"], result.usage["cache_write_tokens"]) == (read, written)
    assert result.usage["input_tokens"] == plain
    share = read / (read + written + plain)
    assert share > 0.8
    # From its second turn on, every turn reads all that the turn before it sent.
    replies = journal.of(RootReplied)
    for before, after in pairwise(replies):
        sent = sum(before.usage[kind] for kind in ("input_tokens", "cache_read_tokens", "cache_write_tokens"))
        assert after.usage["cache_read_tokens"] == sent
    if dialect == "anthropic":
        cost, full = result.usage["cost_usd"], (read + written + plain) * 2e-6 + result.usage["output_tokens"] * 1e-5
        assert cost < full / 2, "what was read from the cache costs a twentieth"


async def test_without_marks_nothing_of_the_history_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = AnthropicModel.complete

    async def unmarked(self: AnthropicModel, request: ModelRequest) -> ModelReply:
        return await complete(self, ModelRequest(request.messages, request.max_tokens, request.system, request.purpose))

    monkeypatch.setattr(AnthropicModel, "complete", unmarked)
    async with served("anthropic", by_role) as (_, model):
        result, _ = await run(model, prints(8000), prints(8000), finals("done"))
    assert (result.usage["cache_read_tokens"], result.usage["cache_write_tokens"]) == (0, 0)


async def test_a_second_run_reads_the_standing_instructions_of_the_first() -> None:
    async with served("anthropic", by_role, cache=PromptCache(minimum=64)) as (_, model):
        await run(model, finals("one"))
        result, _ = await run(model, finals("two"))
    assert result.usage["cache_read_tokens"] > 200


async def test_a_question_that_is_answered_directly_pays_no_premium_for_a_cache_nobody_reads() -> None:
    async with served("anthropic", lambda _body, _n: Reply("directly")) as (_, model):
        result, _ = await run(model, settings=("models.direct_below_chars=1000",))
    assert (result.answer, result.usage["cache_write_tokens"]) == ("directly", 0)


async def test_what_expired_is_written_anew() -> None:
    now = [0.0]
    cache = PromptCache(minimum=64, clock=lambda: now[0])

    def slow(body: Body, n: int) -> Reply | Fault:
        now[0] += 200.0 if n < 4 else 301.0
        return by_role(body, n)

    async with served("anthropic", slow, cache=cache) as (_, model):
        _, journal = await run(model, *[prints(800)] * 4, finals("done"))
    read = [reply.usage["cache_read_tokens"] > 0 for reply in journal.of(RootReplied)]
    assert read == [False, True, True, False, False]


# Identical sub-calls ------------------------------------------------------------------------------------------------


def asks(*prompts: str, together: bool = False, **params: object) -> CellBody:
    """Return the body of a cell that asks and hands the answers over, refusals by their word."""

    async def body(box: FakeBox) -> None:
        answers: dict[int, str] = {}

        async def ask(index: int) -> None:
            try:
                answers[index] = await box.call("llm_query", prompts[index], **params)
            except RpcRefusal as refusal:
                answers[index] = f"{refusal.reason} {refusal.limit}"

        async with anyio.create_task_group() as tasks:
            for index in range(len(prompts)):
                if together:
                    tasks.start_soon(ask, index)
                else:
                    await ask(index)
        await box.call("final", "|".join(answers[index] for index in range(len(prompts))))

    return body


def numbered() -> FakeModel:
    """Return a model that drives a run and numbers its answers to sub-calls."""
    count = iter(range(1, 1000))

    def answer(request: ModelRequest) -> ModelReply:
        text = CODE if request.purpose == "root" else f"answer {next(count)}"
        return ModelReply(text, Usage(input_tokens=5, output_tokens=2))

    return FakeModel(default=answer)


@pytest.mark.parametrize("together", [False, True])
async def test_a_sub_call_that_repeats_another_is_answered_for_free_and_the_journal_says_of_which(
    together: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    model = numbered()
    result, journal = await run(model, asks("a", "b", "a", "a", together=together), settings=("models.memo=true",))
    assert result.answer is not None
    first, second, *again = result.answer.split("|")
    assert (first != second, again) == (True, [first, first])
    assert (result.usage["calls"], len(model.requests)) == (3, 3)
    hits = [event for event in journal.of(SubcallFinished) if event.memo_of is not None]
    assert [
        (hit.attempts, hit.cost_usd, sum(v for k, v in hit.usage.items() if k.endswith("tokens"))) for hit in hits
    ] == [(0, 0.0, 0)] * 2
    original = {event.call: event.prompt for event in journal.of(SubcallStarted)}
    assert [original[hit.memo_of or 0] for hit in hits] == ["a", "a"]
    assert [original[hit.call] for hit in hits] == ["a", "a"]


async def test_without_the_key_every_sub_call_is_asked() -> None:
    model = numbered()
    result, journal = await run(model, asks("a", "a"))
    assert (result.answer, len(model.requests)) == ("answer 1|answer 2", 3)
    assert [event.memo_of for event in journal.of(SubcallFinished)] == [None, None]


async def test_a_repeated_answer_goes_into_the_box_like_any_other_and_is_counted_there() -> None:
    result, _ = await run(numbered(), asks("a", "a", "b"), settings=("models.memo=true",))
    assert result.usage["bytes_in"] == 2 * len("answer 1") + len("answer 2")


async def test_an_answer_that_was_cut_is_asked_for_again() -> None:
    def answer(request: ModelRequest) -> ModelReply:
        return ModelReply(CODE) if request.purpose == "root" else ModelReply("half", Usage(), "max_tokens")

    model = FakeModel(default=answer)
    await run(model, asks("a", "a"), settings=("models.memo=true",))
    assert len(model.requests) == 3


async def test_other_limits_are_another_question_and_a_batch_gives_back_what_it_held() -> None:
    async def batch(box: FakeBox) -> None:
        await box.call("llm_query", "a", max_tokens=16)
        await box.call("batch_open", n=3, characters=3, max_tokens=16)
        answers = [await box.call("llm_query", "a", batch="b1") for _ in range(3)]
        await box.call("batch_close", batch="b1")
        await box.call("llm_query", "a", max_tokens=17)
        await box.call("final", "|".join(answers))

    result, journal = await run(numbered(), batch, settings=("models.memo=true",))
    assert (result.answer, result.usage["calls"]) == ("answer 1|answer 1|answer 1", 3)
    assert [event.memo_of for event in journal.of(SubcallFinished)] == [None, 1, 1, 1, None]


async def test_a_repetition_that_is_given_up_while_it_waits_gives_back_what_it_held() -> None:
    model = FakeModel(default=ModelReply(CODE))
    complete = model.complete

    async def stuck(request: ModelRequest) -> ModelReply:
        if request.purpose != "root":
            await anyio.sleep_forever()
        return await complete(request)

    model.complete = stuck  # type: ignore[method-assign]

    async def batch(box: FakeBox) -> None:
        await box.call("batch_open", n=2, characters=2, max_tokens=16)
        async with anyio.create_task_group() as both:
            for _ in range(2):
                both.start_soon(partial(box.call, "llm_query", "a", batch="b1"))
                await anyio.wait_all_tasks_blocked()
            both.cancel_scope.cancel()
        # The root model's turn and its last one take two calls; one left, and nobody knows whether it is billed.
        await box.call("batch_open", n=7, characters=7, max_tokens=16)
        with pytest.raises(RpcRefusal, match="calls"):
            await box.call("llm_query", "b")
        await box.call("final", "x")

    result, _ = await run(model, batch, settings=("models.memo=true", "budget.calls=10"))
    assert (result.answer, result.usage["calls"]) == ("x", 2)


# Prices -------------------------------------------------------------------------------------------------------------


def priced() -> FakeModel:
    model = numbered()
    model.name = "claude-opus-5-5"
    return model


# 1,000 output tokens of this model cost 0.02 US dollars.
CAP = 'models.price_caps={"claude-opus-5-5"=0.022}'


async def test_a_sub_call_that_may_cost_more_than_its_models_cap_is_refused_before_it_is_sent() -> None:
    model = priced()
    result, _ = await run(model, asks("a", max_tokens=2000), settings=(CAP,))
    assert (result.answer, len(model.requests)) == ("price_cap 0.022", 1)
    result, _ = await run(priced(), asks("a", max_tokens=1000), settings=(CAP,))
    assert result.answer == "answer 1"
    result, _ = await run(priced(), asks("a" * 20_000, max_tokens=1000), settings=(CAP,))
    assert result.answer == "price_cap 0.022", "a long prompt costs, too"


async def test_a_batch_of_calls_above_the_cap_is_refused_whole() -> None:
    async def batch(box: FakeBox) -> None:
        with pytest.raises(RpcRefusal) as caught:
            await box.call("batch_open", n=3, characters=3, max_tokens=2000)
        await box.call("final", f"{caught.value.reason} {caught.value.limit}")

    model = priced()
    result, _ = await run(model, batch, settings=(CAP,))
    assert (result.answer, len(model.requests)) == ("price_cap 0.022", 1)


async def test_the_cap_of_another_model_does_not_bind() -> None:
    settings = ('models.price_caps={"anthropic:claude-sonnet-5-5"=0.000001}',)
    assert (await run(priced(), asks("a"), settings=settings))[0].answer == "answer 1"


@pytest.mark.parametrize("cap", ["claude-opus-5-5", "anthropic:claude-opus-5-5-20260901", "claude-opus-5-5-20260901"])
async def test_a_cap_binds_a_model_whose_name_ends_in_a_date_as_its_price_does(cap: str) -> None:
    model = priced()
    model.name = "claude-opus-5-5-20260901"
    settings = (f'models.price_caps={{"{cap}"=0.022}}',)
    result, _ = await run(model, asks("a", max_tokens=2000), settings=settings)
    assert (result.answer, len(model.requests)) == ("price_cap 0.022", 1)


async def test_a_cap_on_a_model_without_a_price_is_told_before_anything_is_sent() -> None:
    model = numbered()
    with pytest.raises(ConfigurationError, match=r"models\.price_caps: no price is known for 'nobody'"):
        await run(model, finals("x"), settings=("models.price_caps={nobody=0.1}",))
    assert model.requests == []


def test_a_cap_that_is_no_amount_is_told() -> None:
    with pytest.raises(PolicyError, match=r"models\.price_caps"):
        Policy().override(['models.price_caps={"claude-opus-5-5"=-1.0}'])


def test_a_child_keeps_the_lower_cap_of_each_model() -> None:
    mine = Policy().override(["models.price_caps={a=0.1, b=0.2}", "models.request_timeout_s=60"])
    its = Policy().override(["models.price_caps={b=0.1, c=0.3}"])
    assert mine.narrow(its).models.price_caps == {"a": 0.1, "b": 0.1, "c": 0.3}
    assert mine.narrow(its).models.request_timeout_s == 60


# A refused key ------------------------------------------------------------------------------------------------------


async def test_a_refused_key_ends_a_run_at_once_with_one_line_and_interrupts_the_cell() -> None:
    async def asks_and_goes_on(box: FakeBox) -> None:
        with pytest.raises(RpcRefusal, match="the model cannot be used"):
            await box.call("llm_query", "q")
        await anyio.sleep_forever()

    def refuses_sub_calls(body: Body, _n: int) -> Reply | Fault:
        return Reply(CODE) if system_of(body) else Fault.status(403, message="no credit is left")

    async with served("anthropic", refuses_sub_calls) as (server, model):
        result, journal = await run(model, asks_and_goes_on)
        assert len(server.requests) == 2
    assert (result.status, type(result.error)) == ("failed", ModelAuthenticationError)
    told = "Anthropic refuses this account (HTTP 403): check ANTHROPIC_API_KEY and what it may use: no credit is left"
    assert result.reason == told
    assert result.error is not None
    assert result.error.exit_code == 5
    assert journal.of(CellFinished)[0].result["status"] == "cancelled"


# The table ----------------------------------------------------------------------------------------------------------


async def test_the_table_tells_what_each_model_took_at_each_depth() -> None:
    async def child(box: FakeBox) -> None:
        await box.child("a part", "some text")
        await box.call("final", "done")

    journal = MemoryJournal()
    boxes = FakeBoxes([[child], [finals("part")]])
    sub = FakeModel(name="sub-model")
    model = priced()
    result = await RLM(model=model, sub_model=sub, on_event=journal, open_box=boxes.open).acomplete("text", "What?")
    rows = {(row["depth"], row["model"]): row["calls"] for row in result.usage["by_depth_and_model"]}
    assert rows == {(0, "claude-opus-5-5"): 1, (1, "claude-opus-5-5"): 1}
    lines = usage_table.table(result.usage)
    assert [line.split() for line in lines] == [
        ["depth", "model", "calls", "input", "cached", "output", "cost"],
        ["0", "claude-opus-5-5", "1", "5", "2", "$0.0001"],
        ["1", "claude-opus-5-5", "1", "5", "2", "$0.0001"],
        ["all", "2", "10", "4", "$0.0001"],
    ]


def test_the_table_marks_what_is_estimated_cached_and_unpriced() -> None:
    from orchestrator.ledger import Amount, Bill, Scope

    scope = Scope.root(Budget())
    scope.reserve(Amount(3, 5000)).settle(
        Amount(3, 5000), Bill("m\x1b[2J", 1000, 1000, 3000, unpriced_calls=3, estimated_calls=1, estimated_tokens=900)
    )
    assert usage_table.table(scope.usage()) == [
        "depth  model  calls  input  cached  output       cost",
        "0      m          3  4.0k*     75%   1.0k*  no price*",
        "* 900 tokens are estimates: the provider sent no bill for them",
    ]
    assert usage_table.table(Scope.root(Budget()).usage()) == []
