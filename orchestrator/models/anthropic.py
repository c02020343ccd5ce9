"""Anthropic's Messages API, through its own SDK with the SDK's retries off.

Every request is streamed: a long reply then never meets a read timeout, and there is no ceiling on ``max_tokens``.
A server that answers a streamed request with one JSON message is understood too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from orchestrator.errors import ConfigurationError, ModelAuthenticationError, ModelError
from orchestrator.models import estimate, provider
from orchestrator.models.base import Message, ModelReply, ModelRequest, StopReason, Usage
from orchestrator.text import one_line

if TYPE_CHECKING:
    from anthropic import APIStatusError, AsyncAnthropic, AsyncStream
    from anthropic.types import MessageParam, RawMessageStreamEvent, TextBlockParam

CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 120.0  # between two events; the API sends pings while a model thinks

_KEY = "ANTHROPIC_API_KEY"
_TOKEN = "ANTHROPIC_AUTH_TOKEN"  # noqa: S105 - the name of a variable
_URL = "ANTHROPIC_BASE_URL"
_REMEDY = f"set {_KEY}, or choose another model with --model"

_INPUT_COUNTS: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_STOP_REASONS: Final[dict[str, StopReason]] = {
    "max_tokens": "max_tokens",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_window",
}
# An error inside a stream comes after a status of 200; its type stands for the status it would have had.
_ERROR_STATUS: Final[dict[str, int]] = {
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicModel:
    """A model of Anthropic's, or of a server that speaks its Messages API.

    Attributes:
        name: the model id sent to the API and looked up in the price table.
        provider: who answers for it: all models at one host fail and recover together.
    """

    def __init__(self, name: str, *, environ: Mapping[str, str]) -> None:
        """Open a client from the SDK's own variables: ``ANTHROPIC_API_KEY``, ``_AUTH_TOKEN``, ``_BASE_URL``.

        With neither key nor token the SDK looks for its other credentials (profiles, workload identity) itself.

        Raises:
            ConfigurationError: no credentials are set, they cannot be used, or a variable is malformed.
        """
        self.name = name
        key = provider.checked_key(_KEY, environ.get(_KEY))
        token = None if key else provider.checked_key(_TOKEN, environ.get(_TOKEN))
        url = provider.checked_url(_URL, environ.get(_URL))
        self.provider = provider.named("Anthropic", url)
        self._clients = provider.PerLoop(lambda: _open(key, token, url))

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Send one request, once; see :meth:`orchestrator.models.base.Model.complete`."""
        import anthropic
        import httpx2

        client = self._clients.get()
        endpoint = provider.endpoint("Anthropic", _KEY, str(client.base_url), client.api_key or client.auth_token or "")
        try:
            async with await self._send(client, request) as stream:
                reply = await _read(stream)
        except anthropic.APIStatusError as error:
            raise _refused(endpoint, error) from error
        except anthropic.CredentialsError as error:
            raise ModelAuthenticationError(_unusable_credentials(error)) from error
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            # A connection that drops in mid-stream is reported by the HTTP library, not by the SDK.
            raise endpoint.unreachable(error) from error
        except (anthropic.AnthropicError, ValueError) as error:
            raise endpoint.unusable("sent a reply that cannot be read") from error
        if reply.stop is None:
            raise endpoint.unusable("ended its reply without saying why it stopped: it was cut short")
        return ModelReply(reply.text, reply.usage(request), _STOP_REASONS.get(reply.stop, "end"))

    async def aclose(self) -> None:
        """Give back connections. Calling it twice is fine."""
        client = self._clients.take()
        if client is not None:
            await client.close()

    async def _send(self, client: AsyncAnthropic, request: ModelRequest) -> AsyncStream[RawMessageStreamEvent]:
        import anthropic

        return await client.messages.create(
            model=self.name,
            max_tokens=request.max_tokens,
            system=_system(request) if request.system else anthropic.omit,
            messages=_messages(request),
            stream=True,
        )


class _Reply:
    """The fold over a stream of events; total, because a stream may hold anything.

    Attributes:
        stop: why it ended, in the API's word; None while it has not.
        characters: of text so far.
    """

    def __init__(self) -> None:
        self.stop: str | None = None
        self.characters = 0
        self._texts: list[str] = []
        self._counts: dict[str, int] = {}
        self._believed = True

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def event(self, event: Any) -> None:
        kind = _get(event, "type")
        if kind == "message_start":
            # The output it tells of is what there is so far; only the last word on it counts.
            self._usage(_get(_get(event, "message"), "usage"), *_INPUT_COUNTS)
        elif kind == "content_block_start":
            self._text(_get(event, "content_block"))
        elif kind == "content_block_delta":
            self._text(_get(event, "delta"))
        elif kind == "message_delta":
            self._stopped(_get(event, "delta"))
            self._usage(_get(event, "usage"), "output_tokens", *_INPUT_COUNTS)

    def message(self, message: Any) -> None:
        content = _get(message, "content")
        for block in content if isinstance(content, list) else ():
            self._text(block)
        self._stopped(message)
        self._usage(_get(message, "usage"), "output_tokens", *_INPUT_COUNTS)

    def usage(self, request: ModelRequest) -> Usage:
        """The provider's counts, or estimates when it sent none or one that cannot be true."""
        if not self._believed or not {"input_tokens", "output_tokens"} <= self._counts.keys():
            return estimate.usage(request, self.text)
        return Usage(
            input_tokens=self._counts["input_tokens"],
            output_tokens=self._counts["output_tokens"],
            cache_read_tokens=self._counts.get("cache_read_input_tokens", 0),
            cache_write_tokens=self._counts.get("cache_creation_input_tokens", 0),
        )

    def _text(self, part: Any) -> None:
        text = _get(part, "text")
        if _get(part, "type") in ("text", "text_delta") and isinstance(text, str):
            self._texts.append(text)
            self.characters += len(text)

    def _stopped(self, source: Any) -> None:
        reason = _get(source, "stop_reason")
        if isinstance(reason, str):
            self.stop = reason

    def _usage(self, usage: Any, *keys: str) -> None:
        # Counts in a later event are totals: they replace, and one that is absent leaves the earlier one standing.
        for key in keys:
            told = _get(usage, key)
            number = provider.count(told)
            if number is not None:
                self._counts[key] = number
            elif told is not None:
                self._believed = False


def _open(key: str | None, token: str | None, url: str | None) -> AsyncAnthropic:
    import anthropic

    timeout = anthropic.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        client = anthropic.AsyncAnthropic(
            api_key=key,
            auth_token=token,
            base_url=url,
            max_retries=0,
            timeout=timeout,
            # The SDK's own default client closes itself from __del__, in a task nobody waits for.
            http_client=anthropic.DefaultAsyncHttpxClient(timeout=timeout, verify=provider.trusted()),
        )
    except anthropic.AnthropicError as error:
        raise ConfigurationError(f"{_unusable_credentials(error)}; {_REMEDY}") from error
    if not (client.api_key or client.auth_token or client.credentials):
        raise ConfigurationError(f"no key for Anthropic: {_REMEDY}")
    return client


async def _read(stream: AsyncStream[RawMessageStreamEvent]) -> _Reply:
    reply = _Reply()
    if stream.response.headers.get("content-type", "").startswith("application/json"):
        reply.message(json.loads(await stream.response.aread()))
        return reply
    async for event in stream:
        reply.event(event)
        if reply.characters > provider.MOST_CHARACTERS:
            raise ValueError("a reply without end")
    return reply


# A request whose prefix the next one repeats is marked twice: after the standing instructions, which all runs of a kind
# have in common, and at its end, up to where the next turn of this run reads it.
def _system(request: ModelRequest) -> str | list[TextBlockParam]:
    text = provider.sendable(request.system)
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}] if request.cache else text


def _messages(request: ModelRequest) -> list[MessageParam]:
    messages = [_message(message) for message in request.messages]
    if request.cache and messages:
        text = provider.sendable(request.messages[-1].text)
        messages[-1]["content"] = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]
    return messages


def _message(message: Message) -> MessageParam:
    text = provider.sendable(message.text)
    return {"role": "user", "content": text} if message.role == "user" else {"role": "assistant", "content": text}


def _get(source: Any, key: str) -> Any:
    return source.get(key) if isinstance(source, dict) else getattr(source, key, None)


def _refused(endpoint: provider.Endpoint, error: APIStatusError) -> ModelError:
    headers = error.response.headers
    if not error.response.is_success:
        return endpoint.refused(error.status_code, error.body, headers)
    kind = one_line(str(error.type), 60)
    refusal = endpoint.refused(
        _ERROR_STATUS.get(kind, 500), error.body, headers, instead=f"{kind} in the middle of a reply"
    )
    refusal.may_be_billed = True
    return refusal


def _unusable_credentials(error: Exception) -> str:
    return f"Anthropic's credentials cannot be used: {one_line(str(error), 200)}"
