"""The real SDK client against a real server that speaks its API."""

from __future__ import annotations

import gc
import json
import time
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
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.base import Message, ModelReply, ModelRequest, Role
from tests.support.model_server import Body, Fault, ModelServer, Reply, Responder

pytestmark = pytest.mark.anyio

KEY = "sk-ant-very-secret-0123456789"
NAME = "claude-haiku-5-5"


def ask(text: str = "hello", **changes: object) -> ModelRequest:
    return ModelRequest(**({"messages": (Message("user", text),), "max_tokens": 1000} | changes))  # type: ignore[arg-type]


def always(decision: Reply | Fault) -> Responder:
    return lambda _body, _n: decision


@asynccontextmanager
async def opened(server: ModelServer, **environ: str) -> AsyncIterator[AnthropicModel]:
    model = AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url} | environ)
    try:
        yield model
    finally:
        await model.aclose()


async def answer_of(decision: Reply | Fault, request: ModelRequest | None = None) -> ModelReply:
    with ModelServer(always(decision)) as server:
        async with opened(server) as model:
            return await model.complete(request or ask())


async def failure_of(fault: Fault) -> ModelError:
    with ModelServer(always(fault)) as server:
        async with opened(server) as model:
            with pytest.raises(ModelError) as caught:
                await model.complete(ask())
        assert len(server.requests) == 1, "the SDK must not retry"
    return caught.value


async def test_a_reply_comes_whole_with_its_bill() -> None:
    text = "naïve 𝛑 " * 500
    reply = await answer_of(Reply(text, input_tokens=7, output_tokens=9), ask(max_tokens=100_000))
    assert reply.text == text
    assert reply.stop_reason == "end"
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated) == (7, 9, False)


async def test_the_request_says_what_was_asked_and_nothing_else() -> None:
    history = (("user", "one"), ("assistant", "two"), ("user", "three"))
    roles: tuple[tuple[Role, str], ...] = history  # type: ignore[assignment]
    request = ask(messages=tuple(Message(*turn) for turn in roles), system="be brief", max_tokens=77)
    with ModelServer() as server:
        async with opened(server) as model:
            await model.complete(request)
        (seen,) = server.requests
    assert seen.body == {
        "model": NAME,
        "max_tokens": 77,
        "system": "be brief",
        "messages": [{"role": role, "content": text} for role, text in history],
        "stream": True,
    }
    assert seen.headers["authorization"] == f"Bearer {KEY}"


async def test_a_long_limit_of_output_is_sent_as_it_is() -> None:
    with ModelServer() as server:
        async with opened(server) as model:
            await model.complete(ask(max_tokens=128_000))
        assert server.requests[0].body["max_tokens"] == 128_000


async def test_lone_surrogates_are_replaced_and_do_not_fail_the_request() -> None:
    assert (await answer_of(Reply("fine"), ask("a\ud800b\U0001f600"))).text == "fine"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "end"),
        ("stop_sequence", "end"),
        ("max_tokens", "max_tokens"),
        ("refusal", "refusal"),
        ("model_context_window_exceeded", "context_window"),
        ("something_new", "end"),
    ],
)
async def test_each_stop_reason_has_its_word(theirs: str, ours: str) -> None:
    assert (await answer_of(Reply("text", stop_reason=theirs))).stop_reason == ours


async def test_a_reply_longer_than_the_limit_is_cut_and_says_so() -> None:
    reply = await answer_of(Reply("x" * 400), ask(max_tokens=10))
    assert (reply.text, reply.stop_reason) == ("x" * 40, "max_tokens")


async def test_a_growing_history_is_read_from_the_cache() -> None:
    first = ask("a" * 4000, cache=True, system="s" * 400)
    second = ask(
        messages=(*first.messages, Message("assistant", "b" * 40), Message("user", "c" * 80)),
        system=first.system,
        cache=True,
    )
    with ModelServer() as server:
        async with opened(server) as model:
            before = (await model.complete(first)).usage
            after = (await model.complete(second)).usage
        mark = {"type": "ephemeral"}
        assert server.requests[1].body["system"] == [{"type": "text", "text": "s" * 400, "cache_control": mark}]
        *earlier, last = server.requests[1].body["messages"]
        assert [message["content"] for message in earlier] == ["a" * 4000, "b" * 40]
        assert last["content"] == [{"type": "text", "text": "c" * 80, "cache_control": mark}]
    assert (before.input_tokens, before.cache_write_tokens, before.cache_read_tokens) == (0, 1100, 0)
    assert (after.input_tokens, after.cache_write_tokens, after.cache_read_tokens) == (0, 30, 1100)


async def test_a_reply_without_usage_is_estimated_and_says_so() -> None:
    reply = await answer_of(Reply("y" * 40, usage=False), ask("x" * 400))
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated) == (100, 10, True)


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 529])
async def test_a_passing_failure_is_unavailable(code: int) -> None:
    error = await failure_of(Fault.status(code, message="later, please"))
    assert type(error) is ModelUnavailableError
    assert str(error) == f"Anthropic answered HTTP {code}: later, please"


@pytest.mark.parametrize("code", [400, 404, 413, 422])
async def test_a_request_that_is_refused_is_not_worth_repeating(code: int) -> None:
    error = await failure_of(Fault.status(code, message="prompt is too long"))
    assert type(error) is ModelRequestError
    assert str(error) == f"Anthropic answered HTTP {code}: prompt is too long"


async def test_the_provider_may_forbid_a_retry() -> None:
    assert type(await failure_of(Fault.status(429, x_should_retry="false"))) is ModelRequestError


@pytest.mark.parametrize("code", [401, 402, 403])
async def test_a_refused_key_or_account_is_an_authentication_error(code: int) -> None:
    error = await failure_of(Fault.status(code, message=f"no access for {KEY}"))
    assert type(error) is ModelAuthenticationError
    assert KEY not in str(error)
    assert "\n" not in str(error)


async def test_a_wrong_key_names_the_variable_to_check() -> None:
    with ModelServer(key="another") as server:
        async with opened(server) as model:
            with pytest.raises(ModelAuthenticationError, match="check ANTHROPIC_API_KEY"):
                await model.complete(ask())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
    ],
)
async def test_the_wait_the_provider_asks_for_is_kept(headers: dict[str, str], expected: float | None) -> None:
    error = await failure_of(Fault("status", 429, tuple(headers.items())))
    assert isinstance(error, ModelUnavailableError)
    assert error.retry_after_s == expected


@pytest.mark.parametrize(
    "fault",
    [Fault.drop(), Fault.disconnect(), Fault.end_early(), Fault.malformed(), Fault.overloaded()],
    ids=lambda fault: fault.kind,
)
async def test_half_an_answer_is_no_answer(fault: Fault) -> None:
    error = await failure_of(fault)
    assert type(error) is ModelUnavailableError
    assert "\n" not in str(error)
    assert KEY not in str(error)


async def test_an_error_inside_a_stream_is_told_as_what_it_is() -> None:
    error = await failure_of(Fault.overloaded())
    assert str(error) == "Anthropic answered overloaded_error in the middle of a reply: Overloaded"


async def test_a_server_that_does_not_stream_is_understood() -> None:
    def whole(body: Body, _n: int) -> Reply:
        body["stream"] = False
        return Reply("in one piece", input_tokens=3, output_tokens=4)

    with ModelServer(whole) as server:
        async with opened(server) as model:
            reply = await model.complete(ask())
    assert (reply.text, reply.usage.input_tokens, reply.usage.output_tokens) == ("in one piece", 3, 4)


@pytest.mark.parametrize("fault", [Fault.malformed(), Fault.end_early(), Fault.drop()], ids=lambda fault: fault.kind)
async def test_half_an_answer_in_one_piece_is_no_answer_either(fault: Fault) -> None:
    def whole(body: Body, _n: int) -> Fault:
        body["stream"] = False
        return fault

    with ModelServer(whole) as server:
        async with opened(server) as model:
            with pytest.raises(ModelUnavailableError):
                await model.complete(ask())


async def test_a_server_that_is_not_there_is_unavailable_and_named() -> None:
    with ModelServer() as server:
        url = server.url
    model = AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": url})
    with pytest.raises(ModelUnavailableError, match=url.removeprefix("http://")) as caught:
        await model.complete(ask())
    await model.aclose()
    assert "\n" not in str(caught.value)


async def test_a_password_in_the_base_url_is_not_repeated() -> None:
    with ModelServer(always(Fault.disconnect())) as server:
        url = server.url.replace("//", "//user:hunter2@")
        async with opened(server, ANTHROPIC_BASE_URL=url) as model:
            with pytest.raises(ModelUnavailableError) as caught:
                await model.complete(ask())
    assert "hunter2" not in str(caught.value)


async def test_cancelling_closes_the_connection() -> None:
    with ModelServer(always(Fault.hang())) as server:
        async with opened(server) as model, anyio.create_task_group() as tasks:
            tasks.start_soon(model.complete, ask())
            await anyio.to_thread.run_sync(server.wait_until, lambda: len(server.requests) == 1)
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(server.wait_until, lambda: server.dropped == 1)


async def test_retries_end_in_an_answer() -> None:
    faults = {1: Fault.status(429, retry_after_ms=20), 2: Fault.drop(), 3: Fault.status(500), 4: Fault.overloaded()}
    told: list[retry.Retry] = []

    async def no_wait(_seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    with ModelServer(lambda _body, n: faults.get(n, Reply("at last"))) as server:
        async with opened(server) as model:
            deadline = anyio.current_time() + 60
            reply, attempts = await retry.complete(
                model, ask(), deadline=deadline, on_retry=told.append, sleep=no_wait, random=lambda: 0.0
            )
        assert len(server.requests) == attempts == 5
    assert reply.text == "at last"
    assert [item.wait_s for item in told] == [0.02, 0, 0, 0]


async def test_a_deadline_ends_a_slow_reply_and_frees_the_server() -> None:
    with ModelServer(always(Fault.hang())) as server:
        async with opened(server) as model:
            began = time.monotonic()
            with pytest.raises(ModelUnavailableError, match="deadline") as caught:
                await retry.complete(model, ask(), deadline=anyio.current_time() + 0.2, on_retry=lambda _retry: None)
        await anyio.to_thread.run_sync(server.wait_until, lambda: server.dropped == 1)
    assert caught.value.attempts == 1
    assert time.monotonic() - began < 2


async def test_many_requests_are_at_the_provider_at_once() -> None:
    with ModelServer(always(Fault.hang())) as server:
        async with opened(server) as model, anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(model.complete, ask(str(number)))
            await anyio.to_thread.run_sync(server.wait_until, lambda: server.peak == 200)
            tasks.cancel_scope.cancel()


async def test_a_closed_model_may_be_closed_again_and_used_again() -> None:
    with ModelServer() as server:
        async with opened(server) as model:
            await model.complete(ask())
            await model.aclose()
            await model.aclose()
            assert (await model.complete(ask())).text == "echo: hello"


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("API_KEY", "AUTH_TOKEN", "PROFILE", "CONFIG_DIR", "IDENTITY_TOKEN", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"ANTHROPIC_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("environ", [{}, {"ANTHROPIC_API_KEY": ""}, {"ANTHROPIC_API_KEY": "  \n"}])
def test_a_missing_key_is_told_when_the_model_is_opened(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="set ANTHROPIC_API_KEY, or choose another model with --model"):
        AnthropicModel(NAME, environ=environ)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "clé"])
def test_a_malformed_key_is_told_without_repeating_it(key: str) -> None:
    with pytest.raises(ConfigurationError, match="ANTHROPIC_API_KEY") as caught:
        AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": key})
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://[::1", "http://host:99999", "//x"])
def test_a_malformed_base_url_is_told_when_the_model_is_opened(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ANTHROPIC_BASE_URL is not a URL"):
        AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": url})


async def test_an_auth_token_serves_instead_of_a_key() -> None:
    with ModelServer(key="token") as server:
        environ = {"ANTHROPIC_AUTH_TOKEN": "token", "ANTHROPIC_BASE_URL": server.url}
        model = AnthropicModel(NAME, environ=environ)
        assert (await model.complete(ask())).text == "echo: hello"
        await model.aclose()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_model_serves_one_event_loop_after_another() -> None:
    with ModelServer() as server:
        model = AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url})
        assert anyio.run(model.complete, ask()).text == "echo: hello"
        assert anyio.run(model.complete, ask()).text == "echo: hello"
        # The loops left their connections behind, which is the point; they are collected while the warning is ignored.
        del model
        gc.collect()


def test_the_key_is_in_no_representation() -> None:
    model = AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": KEY})
    assert KEY not in repr(model)
    assert KEY not in json.dumps(vars(model), default=repr)
