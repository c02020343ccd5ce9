"""The root model's side of a run: its history, and what its turns cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator.errors import LimitExceededError
from orchestrator.events import RootReplied
from orchestrator.ledger import Amount, Reservation
from orchestrator.metering import Complete, Exchange, Till
from orchestrator.models.base import Message, Model, ModelReply, ModelRequest
from orchestrator.models.circuit import Change
from orchestrator.models.retry import Retry
from orchestrator.text import head_and_tail

# Room for an answer in plain words, or for a block that sets `Final` from variables.
LAST_TURN_TOKENS = 2048
# What a history may grow by before the last turn, beyond what is measured at each turn: the request for an answer.
_NOTICE_TOKENS = 500
# A reply longer than any real one is not repeated to the model whole, or every later turn would pay for it again.
_REPLY_CHARS = 100_000
# Providers refuse an empty message.
_NOTHING = "(empty reply)"


@dataclass(slots=True)
class Conversation:
    """A root model, asked turn by turn; the history only grows, so that a provider can cache it.

    From the first turn on, the cost of one more is kept back, where the budget has room for that: whatever the
    sub-calls spend, the model can still be asked for an answer when a limit is reached.

    Attributes:
        model: the root model.
        system: its standing instructions.
        till: where its turns are paid, and recorded.
        max_tokens: of a reply.
        growth_tokens: upper estimate of what one turn's observation adds to the history.
        ask_by: when an unanswered request is given up, on the event loop's clock.
        cache: have the provider cache the history; a conversation of one turn gains nothing by it.
        turns: replies so far.
    """

    model: Model
    system: str
    till: Till
    max_tokens: int
    growth_tokens: int
    ask_by: float
    cache: bool = True
    turns: int = 0
    _history: list[Message] = field(default_factory=list)
    _kept: Reservation | None = None

    def say(self, text: str) -> None:
        """Add to what the model is told next."""
        if self._history and self._history[-1].role == "user":
            text = f"{self._history.pop().text}\n\n{text}"
        self._history.append(Message("user", text))

    async def ask(self) -> ModelReply:
        """Take one turn.

        Raises:
            LimitExceededError: the budget does not allow it.
            ModelError: the model did not answer.
        """
        request = self._request(self.max_tokens)
        with self.till.scope.reserve(self._cost(request)) as held:
            self._keep_back()
            return await self._exchange(request, held)

    async def ask_last(self, notice: str) -> ModelReply | None:
        """Take the turn that was kept back, or one that still fits, after telling the model that it is the last.

        Returns:
            The reply, or None when there is no budget for it.

        Raises:
            ModelError: the model did not answer.
        """
        self.say(notice)
        request = self._request(min(self.max_tokens, LAST_TURN_TOKENS))
        held = self._last_reservation(self._cost(request))
        if held is None:
            return None
        with held:
            return await self._exchange(request, held)

    def close(self) -> None:
        """Give back what was kept for the last turn."""
        if self._kept is not None:
            self._kept.release()
            self._kept = None

    def _request(self, max_tokens: int) -> ModelRequest:
        return ModelRequest(tuple(self._history), max_tokens, self.system, purpose="root", cache=self.cache)

    def _cost(self, request: ModelRequest) -> Amount:
        return self.till.worst_case(self.model, request) + Amount(turns=1)

    def _keep_back(self) -> None:
        tokens = self._request(0).worst_case_input_tokens() + self.growth_tokens + _NOTICE_TOKENS
        output = min(self.max_tokens, LAST_TURN_TOKENS)
        cost = self.till.bound(self.model, tokens, output)
        wanted = cost + Amount(turns=1)
        if self._kept is None:
            # Only where as much again is left for the work itself.
            if self.till.scope.fits(wanted + cost, 1):
                self._kept = self.till.scope.reserve(wanted)
            return
        missing = wanted.minus(self._kept.held)
        if missing != Amount() and self.till.scope.fits(missing, 1):
            self._kept.extend(missing)

    def _last_reservation(self, cost: Amount) -> Reservation | None:
        if self.till.scope.exhausted:
            return None
        kept, self._kept = self._kept, None
        try:
            if kept is None:
                return self.till.scope.reserve(cost)
            missing = cost.minus(kept.held)
            if missing != Amount():
                kept.extend(missing)
        except LimitExceededError:
            if kept is not None:
                kept.release()
            return None
        return kept

    async def _exchange(self, request: ModelRequest, held: Reservation) -> ModelReply:
        till = replace(self.till, complete=_until(self.ask_by, self.till.complete))
        answer = await Exchange(self.model, request, held, till).run()
        # A lone surrogate in a reply could neither be recorded, sent back, nor run.
        text = answer.reply.text.encode("utf-8", "replace").decode()
        self.turns += 1
        self._history.append(Message("assistant", head_and_tail(text, _REPLY_CHARS) if text.strip() else _NOTHING))
        stop_reason = answer.reply.stop_reason
        usage = answer.reply.usage.to_dict()
        self.till.recorder.emit(RootReplied(self.turns, text, stop_reason, usage, answer.cost_usd, answer.elapsed_s))
        return ModelReply(text, answer.reply.usage, stop_reason)


def _until(latest: float, complete: Complete) -> Complete:
    """Return ``complete`` with an earlier deadline."""

    async def bounded(
        model: Model,
        request: ModelRequest,
        *,
        deadline: float,
        on_retry: Callable[[Retry], None],
        on_circuit: Callable[[Change], None],
    ) -> tuple[ModelReply, int]:
        return await complete(model, request, deadline=min(deadline, latest), on_retry=on_retry, on_circuit=on_circuit)

    return bounded
