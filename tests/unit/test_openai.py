"""The real SDK client against a real server that speaks chat completions."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from orchestrator.errors import (
    ConfigurationError,
    ModelAuthenticationError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
)
from orchestrator.models import retry
from orchestrator.models.base import Message, ModelReply, ModelRequest
from orchestrator.models.openai import OpenAIModel
from tests.support.model_server import Fault, ModelServer, Reply

pytestmark = pytest.mark.anyio

KEY = "sk-very-secret-0123456789"
ASK = ModelRequest((Message("user", "hello"),), max_tokens=50, system="be brief")


@asynccontextmanager
async def opened(server: ModelServer, key: str = KEY) -> AsyncIterator[OpenAIModel]:
    model = OpenAIModel("local", environ={"OPENAI_API_KEY": key, "OPENAI_BASE_URL": f"{server.url}/v1"})
    try:
        yield model
    finally:
        await model.aclose()


async def answer_of(decision: Reply | Fault, request: ModelRequest = ASK) -> ModelReply:
    with ModelServer(lambda _body, _n: decision) as server:
        async with opened(server) as model:
            return await model.complete(request)


async def failure_of(fault: Fault) -> ModelError:
    with ModelServer(lambda _body, _n: fault) as server:
        async with opened(server) as model:
            with pytest.raises(ModelError) as caught:
                await model.complete(ASK)
        assert len(server.requests) == 1, "the SDK must not retry"
    return caught.value


async def test_a_request_is_sent_in_the_dialect_all_servers_know() -> None:
    turns = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))
    with ModelServer() as server:
        async with opened(server) as model:
            reply = await model.complete(ModelRequest(turns, max_tokens=50, system="be brief"))
        (seen,) = server.requests
    assert seen.body == {
        "model": "local",
        "max_tokens": 50,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
    }
    assert (reply.text, reply.stop_reason) == ("echo: three", "end")


async def test_usage_is_the_servers_where_it_reports_some() -> None:
    usage = (await answer_of(Reply("x" * 40, output_tokens=11))).usage
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (4, 11, False)


async def test_usage_is_estimated_and_says_so_where_the_server_reports_none() -> None:
    usage = (await answer_of(Reply("x" * 40, usage=False))).usage
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (4, 10, True)


@pytest.mark.parametrize(("theirs", "ours"), [("max_tokens", "max_tokens"), ("refusal", "refusal"), (None, "end")])
async def test_each_finish_reason_has_its_word(theirs: str | None, ours: str) -> None:
    assert (await answer_of(Reply("text", stop_reason=theirs))).stop_reason == ours


async def test_a_reply_without_a_finish_reason_is_cut_short() -> None:
    reply = await answer_of(Fault.end_early())
    assert (reply.text, reply.stop_reason) == ("half an answer, and then", "cut_short")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.status(400), ModelRequestError),
        (Fault.status(401), ModelAuthenticationError),
        (Fault.status(403), ModelAuthenticationError),
        (Fault.status(404), ModelRequestError),
        (Fault.status(429), ModelUnavailableError),
        (Fault.status(500), ModelUnavailableError),
        (Fault.disconnect(), ModelUnavailableError),
        (Fault.drop(), ModelUnavailableError),
        (Fault.malformed(), ModelUnavailableError),
    ],
    ids=lambda value: f"{value.kind}{value.code}" if isinstance(value, Fault) else "",
)
async def test_each_failure_has_its_type(fault: Fault, kind: type[ModelError]) -> None:
    error = await failure_of(fault)
    assert type(error) is kind
    assert "\n" not in str(error)


async def test_the_providers_words_are_kept_without_the_key() -> None:
    error = await failure_of(Fault.status(400, message=f"bad\nrequest by {KEY}"))
    assert str(error) == "OpenAI answered HTTP 400: bad request by [key]"


async def test_the_wait_the_provider_asks_for_is_kept() -> None:
    error = await failure_of(Fault.status(429, retry_after=3))
    assert isinstance(error, ModelUnavailableError)
    assert error.retry_after_s == 3


async def test_cancelling_closes_the_connection() -> None:
    with ModelServer(lambda _body, _n: Fault.hang()) as server:
        async with opened(server) as model, anyio.create_task_group() as tasks:
            tasks.start_soon(model.complete, ASK)
            await anyio.to_thread.run_sync(server.wait_until, lambda: len(server.requests) == 1)
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(server.wait_until, lambda: server.dropped == 1)


async def test_a_rate_limit_is_retried_by_our_layer() -> None:
    with ModelServer(lambda _body, n: Fault.status(429, retry_after_ms=1) if n == 1 else Reply("ok")) as server:
        async with opened(server) as model:
            deadline = anyio.current_time() + 60
            told: list[retry.Retry] = []
            reply, attempts = await retry.complete(
                model, ASK, deadline=deadline, on_retry=told.append, random=lambda: 0.0
            )
    assert (reply.text, attempts, len(told)) == ("ok", 2, 1)


async def test_a_server_of_ones_own_needs_no_key() -> None:
    with ModelServer() as server:
        async with opened(server, key="") as model:
            assert (await model.complete(ASK)).text == "echo: hello"


def test_neither_key_nor_url_is_told_when_the_model_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY, or OPENAI_BASE_URL"):
        OpenAIModel("gpt", environ={})


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rlm-sandbox\[openai\]'"):
        OpenAIModel("gpt", environ={"OPENAI_API_KEY": KEY})


def test_openais_own_endpoint_is_sent_the_limit_by_its_new_name() -> None:
    import httpx2
    import openai

    sent: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.content)
        return httpx2.Response(500, json={})

    model = OpenAIModel("gpt", environ={"OPENAI_API_KEY": KEY})
    transport = httpx2.MockTransport(answer)
    client = openai.AsyncOpenAI(api_key=KEY, max_retries=0, http_client=httpx2.AsyncClient(transport=transport))
    model._clients._client = client

    with pytest.raises(ModelUnavailableError):
        anyio.run(model.complete, ASK)
    assert b'"max_completion_tokens":50' in sent[0]
    assert b'"max_tokens"' not in sent[0]
