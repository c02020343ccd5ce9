"""One exchange with a model, on account: from a reservation that covers its worst case to a truthful settlement.

Root turns and sub-calls both pay here. What is charged:

- an answer costs what the provider billed. A bill that cannot be true (negative counts) is replaced by the worst case;
- an attempt that the provider answered with an error costs its call and no tokens;
- a request that left and was never answered, because the cell, the run or its wall time ended, costs its worst case and
  is marked as estimated: a provider may go on and bill after the connection is closed, and a budget that counted on
  the contrary could be passed;
- a request that never left costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import ModelError
from orchestrator.events import Recorder, RetryScheduled
from orchestrator.ledger import NANO, Amount, Bill, Reservation, Scope
from orchestrator.models import retry
from orchestrator.models.base import Model, ModelReply, ModelRequest, Usage
from orchestrator.models.prices import PriceTable


class Complete(Protocol):
    """How a model is asked, retries included: :func:`orchestrator.models.retry.complete`, or it with other patience."""

    async def __call__(
        self, model: Model, request: ModelRequest, *, deadline: float, on_retry: Callable[[retry.Retry], None]
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
    """

    scope: Scope
    prices: PriceTable
    recorder: Recorder
    complete: Complete = retry.complete

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
            it is left itself.
        till: where to pay.
    """

    def __init__(self, model: Model, request: ModelRequest, held: Reservation, till: Till) -> None:
        self._model = _Watched(model)
        self._request = request
        self._held = held
        self._till = till
        self._began = time.monotonic()

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
            reply, _ = await self._till.complete(
                self._model, self._request, deadline=self._till.scope.deadline, on_retry=self._before_retry
            )
        except BaseException:
            self._pay_for_failure()
            raise
        cost_nano = self._pay(reply.usage)
        cost_usd = None if cost_nano is None else cost_nano / NANO
        return Answer(reply, cost_usd, self.attempts, self.elapsed_s)

    def _before_retry(self, failed: retry.Retry) -> None:
        self._held.extend(Amount(calls=1))
        self._till.recorder.emit(
            RetryScheduled(self._request.purpose, failed.attempt, failed.error.code, failed.wait_s)
        )

    def _pay(self, usage: Usage) -> int | None:
        counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens)
        if any(type(count) is not int or count < 0 for count in counts):
            return self._pay_worst_case()
        cost_nano = self._till.prices.cost_nano(self._model.name, usage)
        self._held.settle(
            Amount(self.attempts, usage.total, cost_nano or 0, turns=self._held.held.turns),
            Bill(
                self._model.name,
                *counts,
                unpriced_calls=int(cost_nano is None),
                estimated_calls=int(usage.estimated),
            ),
        )
        return cost_nano

    def _pay_for_failure(self) -> None:
        if self._model.unanswered:
            self._pay_worst_case()
        elif self.attempts:
            self._held.settle(Amount(self.attempts, turns=self._held.held.turns), Bill(self._model.name))
        else:
            self._held.release()

    def _pay_worst_case(self) -> int:
        tokens = self._request.worst_case_input_tokens()
        most = self._till.bound(self._model, tokens, self._request.max_tokens, calls=self.attempts)
        self._held.settle(
            most + Amount(turns=self._held.held.turns),
            Bill(self._model.name, tokens, self._request.max_tokens, estimated_calls=1),
        )
        return most.cost_nano


class _Watched:
    """A model that tells how many requests left through it, and whether the last is unanswered."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.sent = 0
        self.unanswered = False

    @property
    def name(self) -> str:
        """The model's."""
        return self._model.name

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Pass the request on."""
        self.sent += 1
        self.unanswered = True
        try:
            reply = await self._model.complete(request)
        except ModelError:
            self.unanswered = False
            raise
        self.unanswered = False
        return reply

    async def aclose(self) -> None:
        """Close the model."""
        await self._model.aclose()
