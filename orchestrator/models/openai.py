"""Any endpoint that speaks OpenAI's chat completions: OpenAI itself, vLLM, Ollama, llama.cpp and others.

``OPENAI_BASE_URL`` chooses the endpoint. Requests are not streamed: that is the part of the dialect all servers share,
and the only one in which most of them report usage; where usage is missing it is estimated and marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from orchestrator.errors import ConfigurationError
from orchestrator.models import estimate, provider
from orchestrator.models.base import ModelReply, ModelRequest, StopReason, Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 600.0  # a whole reply of a slow local server; the run's deadline ends it sooner

_KEY = "OPENAI_API_KEY"
_URL = "OPENAI_BASE_URL"
_OWN_HOST = "api.openai.com"
_NO_KEY = "no-key-is-set"  # long enough that taking it out of messages leaves their words alone

_STOP_REASONS: Final[dict[str, StopReason]] = {"length": "max_tokens", "content_filter": "refusal"}


class OpenAIModel:
    """A model behind a chat-completions endpoint.

    Attributes:
        name: the model id sent to the endpoint and looked up in the price table.
        provider: who answers for it: all models at one host fail and recover together.
    """

    def __init__(self, name: str, *, environ: Mapping[str, str]) -> None:
        """Open a client from ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``; with the latter, the key may be missing.

        Raises:
            ConfigurationError: neither is set, the package is not installed, or a variable is malformed.
        """
        self.name = name
        key = provider.checked_key(_KEY, environ.get(_KEY))
        url = provider.checked_url(_URL, environ.get(_URL))
        if key is None and url is None:
            raise ConfigurationError(
                f"no key for OpenAI: set {_KEY}, or {_URL} for a server that needs none, "
                "or choose another model with --model"
            )
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "the openai package is not installed: pip install 'rlm-sandbox[openai]'"
            ) from error
        self.provider = provider.named("OpenAI", url)
        self._clients = provider.PerLoop(lambda: _open(key, url))

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Send one request, once; see :meth:`orchestrator.models.base.Model.complete`."""
        import openai

        client = self._clients.get()
        endpoint = provider.endpoint("OpenAI", _KEY, str(client.base_url), client.api_key)
        try:
            completion = await self._send(client, request)
        except openai.APIStatusError as error:
            raise endpoint.refused(error.status_code, error.body, error.response.headers) from error
        except openai.APIConnectionError as error:
            raise endpoint.unreachable(error) from error
        except (openai.OpenAIError, ValueError) as error:
            raise endpoint.unusable("sent a reply that cannot be read") from error
        choice = _first(completion)
        if choice is None:
            raise endpoint.unusable("sent a reply that cannot be read")
        text, stop = _answer(choice)
        return ModelReply(text, _usage(completion, request, text), stop)

    async def aclose(self) -> None:
        """Give back connections. Calling it twice is fine."""
        client = self._clients.take()
        if client is not None:
            await client.close()

    async def _send(self, client: AsyncOpenAI, request: ModelRequest) -> ChatCompletion:
        import openai

        messages: list[ChatCompletionMessageParam] = []
        if request.system:
            messages.append({"role": "system", "content": provider.sendable(request.system)})
        for message in request.messages:
            text = provider.sendable(message.text)
            if message.role == "user":
                messages.append({"role": "user", "content": text})
            else:
                messages.append({"role": "assistant", "content": text})
        # OpenAI's own newer models refuse the old name of the limit; other servers may not know the new one.
        own = client.base_url.host == _OWN_HOST
        return await client.chat.completions.create(
            model=self.name,
            messages=messages,
            max_completion_tokens=request.max_tokens if own else openai.omit,
            max_tokens=openai.omit if own else request.max_tokens,
        )


def _open(key: str | None, url: str | None) -> AsyncOpenAI:
    import openai

    timeout = openai.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    return openai.AsyncOpenAI(
        # The SDK insists on a key; a server that needs none ignores it.
        api_key=key or _NO_KEY,
        # Named, so that the variable in another environment than the caller's cannot choose the endpoint.
        base_url=url or f"https://{_OWN_HOST}/v1",
        max_retries=0,
        timeout=timeout,
        # The SDK's own default client closes itself from __del__, in a task nobody waits for.
        http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, verify=provider.trusted()),
    )


def _first(completion: Any) -> Any:
    # A body that is not JSON comes back from the SDK as text, and one of another shape unvalidated.
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if getattr(choice, "message", None) is not None else None


def _answer(choice: Any) -> tuple[str, StopReason]:
    refusal = getattr(choice.message, "refusal", None)
    if isinstance(refusal, str) and refusal:
        return refusal, "refusal"
    content = getattr(choice.message, "content", None)
    reason = getattr(choice, "finish_reason", None)
    text = content if isinstance(content, str) else ""
    return text, _STOP_REASONS.get(reason, "end") if isinstance(reason, str) else "cut_short"


def _usage(completion: Any, request: ModelRequest, text: str) -> Usage:
    reported = getattr(completion, "usage", None)
    sent = provider.count(getattr(reported, "prompt_tokens", None))
    received = provider.count(getattr(reported, "completion_tokens", None))
    if sent is None or received is None:
        return estimate.usage(request, text)
    details = getattr(reported, "prompt_tokens_details", None)
    # Here, unlike in the Messages API, the cached tokens are a part of the prompt's.
    read = min(provider.count(getattr(details, "cached_tokens", None)) or 0, sent)
    written = min(provider.count(getattr(details, "cache_write_tokens", None)) or 0, sent - read)
    return Usage(sent - read - written, received, cache_read_tokens=read, cache_write_tokens=written)
