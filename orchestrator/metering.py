"""One exchange with a model, on account: from a reservation that covers its worst case to a truthful settlement.

Root turns and sub-calls both pay here. What is charged:

- an answer costs what the provider billed. A bill that cannot be true (negative counts) is replaced by the worst case,
  for the ledger and the journal alike;
- an attempt that the provider answered with an error costs its call and no tokens;
- an attempt that left and got no verdict, because the reply broke off or never came, or the cell, the run or its wall
  time ended, costs its worst case and is marked as estimated: a provider may go on and bill after the connection is
  closed, and a budget that counted on the contrary could be passed. Each such attempt does, so a repetition of one
  reserves a worst case of its own;
- a model that breaks, by an exception that is no ModelError or by returning what is no reply, may have been billed: it
  costs its worst case too;
- a request that never left costs nothing.

So a provider's own books agree with these: its requests are the calls, the tokens of the replies it sent whole are the
tokens that are not estimated, and whatever else it may bill is within those that are.

A model without a price costs 0 US dollars here and is counted in ``unpriced_calls``: a budget in dollars does not bind
it, and those in calls and tokens do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast, get_args

import anyio

from orchestrator.errors import ModelAuthenticationError, ModelError, ModelRequestError, ModelUnavailableError
from orchestrator.events import CircuitChanged, EstimateCharged, RetryScheduled
from orchestrator.ledger import NANO, Amount, Bill, Reservation, Scope
from orchestrator.models import retry
from orchestrator.models.base import Model, ModelReply, ModelRequest, StopReason, Usage
from orchestrator.models.circuit import Change, provider_of
from orchestrator.models.prices import PriceTable
from orchestrator.recording import Past, Recorder
from orchestrator.text import one_line, size
from orchestrator.traffic import Lane

_DETAIL_WIDTH = 240
_MOST_TOKENS = 2**53
_LATE: Final = object()


_PAST_ERRORS = {kind.code: kind for kind in (ModelUnavailableError, ModelRequestError, ModelAuthenticationError)}


class Complete(Protocol):
    """How a model is asked, retries included: :func:`orchestrator.models.retry.complete`, or it with other patience."""

    async def __call__(
        self,
        model: Model,
        request: ModelRequest,
        *,
        deadline: float,
        on_retry: Callable[[retry.Retry], None],
        on_circuit: Callable[[Change], None],
    ) -> tuple[ModelReply, int]:
        """Return the reply and the number of attempts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and what it took.

    Attributes:
        reply: what the model said, and its bill.
        cost_usd: by the price table; None for a model it does not know.
        attempts: requests that left the host.
        elapsed_s: seconds, waits between attempts included.
    """

    reply: ModelReply
    cost_usd: float | None
    attempts: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Till:
    """Where one run pays.

    Attributes:
        scope: its share of the ledger.
        prices: the price table.
        recorder: its events; retries are recorded there.
        complete: how a model is asked.
        lane: the way to the providers, which every attempt takes; None is one without limits.
        request_s: seconds from when a request leaves within which its reply has come whole, however steadily it drips;
            one that has not is given up, and is a failure that may pass.
    """

    scope: Scope
    prices: PriceTable
    recorder: Recorder
    complete: Complete = retry.complete
    lane: Lane | None = None
    request_s: float = math.inf

    def bound(self, model: Model, input_tokens: int, output_tokens: int, *, calls: int = 1) -> Amount:
        """Return the most that so many calls with so many tokens in all may cost."""
        cost_nano = self.prices.worst_case_nano(model.name, input_tokens, output_tokens)
        return Amount(calls, input_tokens + output_tokens, cost_nano)

    def worst_case(self, model: Model, request: ModelRequest) -> Amount:
        """Return the most that one attempt at ``request`` may cost."""
        return self.bound(model, request.worst_case_input_tokens(), request.max_tokens)


class Exchange:
    """One request to a model and everything that is booked for it.

    Args:
        model: whom to ask.
        request: what to ask.
        held: a reservation of the worst case, with a turn in it where it is one; :meth:`run` ends it, in whatever way
            it is left itself. Bytes in it are settled too: those out as they are held, those in as the answer has.
        till: where to pay.
        deadline: when an answer is no longer waited for, on the event loop's clock; the scope's deadline holds anyway.
        call: number of the sub-call; None for a root turn.
    """

    def __init__(
        self,
        model: Model,
        request: ModelRequest,
        held: Reservation,
        till: Till,
        deadline: float = math.inf,
        *,
        call: int | None = None,
    ) -> None:
        worst = till.worst_case(model, request)
        self._model = _Watched(model, till, worst.tokens)
        self._call = call
        self._covered = 0  # attempts without a known bill for which another worst case is held
        self._request = request
        self._held = held
        self._till = till
        self._deadline = min(deadline, till.scope.deadline)
        self._worst = worst
        self._began = time.monotonic()
        self._past: Past | None = None

    @property
    def attempts(self) -> int:
        """Requests that have left the host."""
        return self._model.sent

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    async def run(self) -> Answer:
        """Ask, pay, and return the answer.

        Raises:
            ModelError: there is none.
            LimitExceededError: another attempt would have been needed and the budget does not allow it.
        """
        try:
            reply = self._recalled()
            if reply is None:
                reply, _ = await self._till.complete(
                    self._model,
                    self._request,
                    deadline=self._deadline,
                    on_retry=self._before_retry,
                    on_circuit=self._circuit_changed,
                )
        except BaseException:
            self._pay(None)
            raise
        if not _is_true(reply.usage):
            reply = replace(reply, usage=self._most)
        cost_nano = self._pay(reply)
        cost_usd = None if cost_nano is None else cost_nano / NANO
        return Answer(reply, cost_usd, self.attempts, self.elapsed_s)

    def _recalled(self) -> ModelReply | None:
        """Return the reply of a resumed run's past, which is booked and not asked for; or raise as it failed then."""
        request = self._request
        prompt = request.messages[-1].text
        past = self._till.recorder.recall(request.purpose, self._model.name, prompt, request.max_tokens)
        if past is None:
            return None
        if past.code:
            raise _PAST_ERRORS.get(past.code, ModelError)("it failed when it was asked")
        self._model.sent, self._past = 1, past
        return _checked(ModelReply(past.text, Usage(**past.usage), cast("StopReason", past.stop_reason)))

    @property
    def _most(self) -> Usage:
        return Usage(self._request.worst_case_input_tokens(), self._request.max_tokens, estimated=True)

    def _cost_nano(self, usage: Usage) -> int | None:
        if self._past is not None:
            return _nano(self._past.cost_usd)  # prices may be others by now
        return self._till.prices.cost_nano(self._model.name, usage)

    def _before_retry(self, failed: retry.Retry) -> None:
        # What was held for an attempt whose bill nobody knows is spent; the next one needs as much again.
        lost = self._model.lost - self._covered
        self._held.extend(Amount(calls=1) + self._worst._replace(calls=0) * lost)
        self._covered += lost
        error, detail = failed.error, one_line(str(failed.error), _DETAIL_WIDTH)
        self._till.recorder.emit(
            RetryScheduled(self._request.purpose, failed.attempt, error.code, failed.wait_s, self._call, detail)
        )

    def _circuit_changed(self, change: Change) -> None:
        self._till.recorder.emit(CircuitChanged(change.provider, change.state, change.failures, change.wait_s))

    def _pay(self, reply: ModelReply | None) -> int | None:
        """Book the bill, and the worst case of every attempt whose bill nobody knows; return what the reply cost."""
        usage = Usage() if reply is None else reply.usage
        if not self.attempts:
            self._held.release()
            return None
        lost, held, name = self._model.lost, self._held.held, self._model.name
        cost_nano = self._cost_nano(usage)
        unpriced = cost_nano is None
        estimate = self._worst._replace(calls=0) * lost if lost else Amount()
        told = _counts(usage)
        told = (
            told[0] + estimate.tokens - lost * self._request.max_tokens,
            told[1] + lost * self._request.max_tokens,
            *told[2:],
        )
        self._held.settle(
            Amount(
                calls=self.attempts,
                tokens=sum(told),
                cost_nano=(cost_nano or 0) + estimate.cost_nano,
                turns=held.turns,
                bytes_in=min(0 if reply is None else size(reply.text), held.bytes_in),
                bytes_out=held.bytes_out,
            ),
            Bill(
                name,
                *told,
                unpriced_calls=unpriced * (lost + (reply is not None)),
                estimated_calls=lost + usage.estimated,
                estimated_tokens=estimate.tokens + usage.total * usage.estimated,
            ),
        )
        if lost:
            cost_usd = None if unpriced else estimate.cost_nano / NANO
            event = EstimateCharged(self._request.purpose, self._call, lost, estimate.tokens, cost_usd)
            self._till.recorder.emit(event)
        return cost_nano


def _nano(cost_usd: float | None) -> int | None:
    return None if cost_usd is None else round(cost_usd * NANO)


def _counts(usage: Usage) -> tuple[int, int, int, int]:
    return usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens


def _is_true(usage: Any) -> bool:
    counts = _counts(usage)
    return type(usage.estimated) is bool and all(type(count) is int and 0 <= count <= _MOST_TOKENS for count in counts)


def _checked(reply: object) -> ModelReply:
    if not isinstance(reply, ModelReply):
        raise ModelError(f"the model returned a {type(reply).__name__} and no ModelReply")
    text, usage = cast("tuple[object, object]", (reply.text, reply.usage))
    if not isinstance(text, str) or not isinstance(usage, Usage):
        kinds = f"{type(text).__name__} and {type(usage).__name__}"
        raise ModelError(f"the model returned a ModelReply of {kinds}: its text is a str, its usage a Usage")
    if reply.stop_reason not in get_args(StopReason):
        raise ModelError(f"the model returned a stop_reason that is none of {', '.join(get_args(StopReason))}")
    return reply


class _Watched:
    """A model that tells how many requests left through it, and of how many of them nobody knows the bill.

    Here, and nowhere else, whatever a model may do wrong becomes a ModelError: anybody may write one.
    """

    def __init__(self, model: Model, till: Till, tokens: int) -> None:
        self._model = model
        self._lane = till.lane
        self._request_s = till.request_s
        self._tokens = tokens
        self.sent = 0
        self.lost = 0

    @property
    def name(self) -> str:
        """The model's."""
        return self._model.name

    @property
    def provider(self) -> str:
        """Who answers for it."""
        return provider_of(self._model)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Pass the request on, once it is its turn at the provider.

        Raises:
            ModelError: the model's own, or one that tells what else it raised or returned.
        """
        if self._lane is None:
            return await self._ask(request)
        async with self._lane.passing(self._model, self._tokens) as passage:
            lost = self.lost
            try:
                reply = await self._ask(request)
            except ModelError:
                if self.lost == lost:
                    passage.used(0)
                raise
            if _is_true(reply.usage):
                passage.used(reply.usage.total)
            return reply

    async def _ask(self, request: ModelRequest) -> ModelReply:
        self.sent += 1
        self.lost += 1
        reply: object = _LATE
        try:
            with anyio.move_on_after(self._request_s):
                reply = await self._model.complete(request)
        except ModelError as error:
            self.lost -= not error.may_be_billed
            raise
        except Exception as error:
            detail = one_line(str(error), _DETAIL_WIDTH)
            raise ModelError(f"the model raised {type(error).__name__}{f': {detail}' if detail else ''}") from error
        if reply is _LATE:
            told = f"no whole answer from {self.name} within {self._request_s:g} s"
            raise ModelUnavailableError(told, may_be_billed=True)
        answer = _checked(reply)
        self.lost -= 1
        return answer

    async def aclose(self) -> None:
        """Close the model."""
        await self._model.aclose()
