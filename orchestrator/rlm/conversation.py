"""The root model's side of a run: its turns, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator.errors import LimitExceededError, ModelError
from orchestrator.events import Compacting, RootFailed, RootReplied
from orchestrator.ledger import Amount, Reservation
from orchestrator.metering import Complete, Exchange, Till
from orchestrator.models.base import Model, ModelReply, ModelRequest
from orchestrator.models.circuit import Change
from orchestrator.models.retry import Retry
from orchestrator.rlm import prompt
from orchestrator.rlm.history import History
from orchestrator.text import one_line, size

# Room for an answer in plain words, or for a block that sets `Final` from variables.
LAST_TURN_TOKENS = 2048
# What a history may grow by before the last turn, beyond what is measured at each turn: the request for an answer.
_NOTICE_TOKENS = 500
# Room for a summary of about a page.
SUMMARY_TOKENS = 4096
# Prose has three or four bytes a token.
_BYTES_A_TOKEN = 3
_DETAIL_WIDTH = 240


@dataclass(slots=True)
class Conversation:
    """A root model, asked turn by turn.

    Where its history has grown to ``history_tokens``, the model is asked for a summary first, which takes the history's
    place: a turn like any other, recorded and paid for.

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
        history_tokens: from which on the history is compacted; 0 for never.
        history: what was said so far.
        turns: replies so far.
    """

    model: Model
    system: str
    till: Till
    max_tokens: int
    growth_tokens: int
    ask_by: float
    cache: bool = True
    history_tokens: int = 0
    history: History = field(default_factory=History)
    turns: int = 0
    _measured: int = 0
    _kept: Reservation | None = None

    def say(self, text: str) -> None:
        """Add to what the model is told next."""
        self.history.say(text)

    async def ask(self) -> ModelReply:
        """Take one turn, and one before it where the history is to be compacted.

        Raises:
            LimitExceededError: the budget does not allow it.
            ModelError: the model did not answer.
        """
        if self._is_too_long():
            await self._compact()
        request = self._request(self.max_tokens)
        with self.till.scope.reserve(self._cost(request)) as held:
            self._keep_back()
            return await self._answered(request, held)

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
            return await self._answered(request, held)

    def close(self) -> None:
        """Give back what was kept for the last turn."""
        if self._kept is not None:
            self._kept.release()
            self._kept = None

    def _request(self, max_tokens: int) -> ModelRequest:
        return ModelRequest(tuple(self.history.messages), max_tokens, self.system, purpose="root", cache=self.cache)

    def _cost(self, request: ModelRequest) -> Amount:
        return self.till.worst_case(self.model, request) + Amount(turns=1)

    def _is_too_long(self) -> bool:
        past = self.till.recorder.compacts(self.turns + 1)
        if past is not None:
            return past
        return 0 < self.history_tokens < self._tokens and self.history.compactable

    @property
    def _tokens(self) -> int:
        """Tokens of the history: as the provider counted them last, and an estimate of what came since."""
        if not self._measured:
            return self._request(0).likely_input_tokens()
        return self._measured + size(self.history.messages[-1].text) // _BYTES_A_TOKEN

    async def _compact(self) -> None:
        request = self._request(min(self.max_tokens, SUMMARY_TOKENS))
        request = replace(request, messages=self.history.with_notice(prompt.render("compact").rstrip("\n")))
        with self.till.scope.reserve(self._cost(request)) as held:
            self.till.recorder.emit(Compacting(self.turns + 1, self._tokens))
            reply = await self._exchange(request, held, summary=True)
        self.history.compact(reply.text)
        self._measured = 0

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

    async def _answered(self, request: ModelRequest, held: Reservation) -> ModelReply:
        reply = await self._exchange(request, held)
        self.history.reply(reply.text)
        self._measured = 0 if reply.usage.estimated else reply.usage.total
        return reply

    async def _exchange(self, request: ModelRequest, held: Reservation, *, summary: bool = False) -> ModelReply:
        till = replace(self.till, complete=_until(self.ask_by, self.till.complete))
        exchange = Exchange(self.model, request, held, till)
        try:
            answer = await exchange.run()
        except BaseException as error:
            code, detail = _told(error)
            failed = RootFailed(self.turns + 1, code, detail, exchange.attempts, exchange.elapsed_s)
            self.till.recorder.emit(failed)
            raise
        # A lone surrogate in a reply could neither be recorded, sent back, nor run.
        text = answer.reply.text.encode("utf-8", "replace").decode()
        self.turns += 1
        stop_reason = answer.reply.stop_reason
        usage = answer.reply.usage.to_dict()
        told = self.turns, text, stop_reason, usage, answer.cost_usd, answer.elapsed_s
        self.till.recorder.emit(RootReplied(*told, summary=summary))
        return ModelReply(text, answer.reply.usage, stop_reason)


def _told(error: BaseException) -> tuple[str, str]:
    """Return the word for what ended a request, and what is known of it."""
    if isinstance(error, ModelError):
        return error.code, one_line(str(error), _DETAIL_WIDTH)
    if isinstance(error, LimitExceededError):
        return error.reason, str(error)
    if isinstance(error, Exception):
        return "failed", type(error).__name__
    return "cancelled", "the run ended first"


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
