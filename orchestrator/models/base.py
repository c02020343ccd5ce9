"""What a model is to this system: one text in, one text out, with a truthful bill.

A provider's module maps its SDK to these types and its errors to :class:`orchestrator.errors.ModelError`.
It never retries: :mod:`orchestrator.models.retry` is the only layer that does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from orchestrator.text import size

Role = Literal["user", "assistant"]
Purpose = Literal["root", "sub"]
StopReason = Literal["end", "max_tokens", "refusal", "context_window", "cut_short"]

HIDDEN_TOKENS: Final = 256
"""Input tokens a provider may add of its own to a request: the longest default system messages and chat templates of
open models that we know have about a hundred."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is asked of a model.

    Attributes:
        messages: the conversation, oldest first; the last is the user's.
        system: standing instructions.
        max_tokens: the most output tokens the reply may have; the ledger reserves for it.
        purpose: ``root`` for the model that drives the REPL, ``sub`` for an ``llm_query``.
        cache: ask the provider to cache the prefix, because the next request repeats it.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    system: str = ""
    purpose: Purpose = "sub"
    cache: bool = False

    @property
    def characters(self) -> int:
        """Length of all that is sent."""
        return len(self.system) + sum(len(message.text) for message in self.messages)

    def worst_case_input_tokens(self) -> int:
        """The most input tokens that this can be billed for: what is reserved before it leaves.

        A tokenizer over bytes never gives more than one token for a byte, whatever the text. :data:`HIDDEN_TOKENS` and
        16 a message cover what stands around it. The provider's own count replaces all that when the call is settled.
        """
        texts = [self.system, *(message.text for message in self.messages)]
        return HIDDEN_TOKENS + sum(size(text) + 16 for text in texts)

    def likely_input_tokens(self) -> int:
        """An estimate of the input tokens that is seldom passed: half of the bytes. Prose has three or four a token."""
        texts = [self.system, *(message.text for message in self.messages)]
        return sum(size(text) // 2 + 16 for text in texts)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply, as the provider billed them.

    Attributes:
        input_tokens: uncached input.
        output_tokens: output, thinking included.
        cache_read_tokens: input served from the provider's cache.
        cache_write_tokens: input written to it.
        estimated: the provider did not say, and these are our own estimates.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        """All tokens, cached or not: what the token budget counts."""
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as events have it."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "estimated": self.estimated,
        }


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A model's answer.

    Attributes:
        text: the answer; may be empty.
        usage: the bill.
        stop_reason: why it ended; ``cut_short`` when the provider gave no reason.
    """

    text: str
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason = "end"


class Model(Protocol):
    """A model that can be asked.

    ``name`` is the provider's own name of it and the key into the price table. It never enters a box. A model may also
    have a ``provider``, a text that names who answers for it: models of one provider share its gate and its circuit.
    """

    @property
    def name(self) -> str:
        """The provider's name for the model."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Send one request, once.

        Cancelling the call cancels the request upstream.

        Raises:
            ModelError: the provider did not answer; its subclass says whether trying again makes sense.
        """

    async def aclose(self) -> None:
        """Give back connections. Calling it twice is fine."""
