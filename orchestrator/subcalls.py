"""Sub-calls of one run: pays for each, asks the model, and records what happened before anyone sees the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

from orchestrator.errors import LimitExceededError, ModelError, ModelUnavailableError
from orchestrator.events import SubcallFailed, SubcallFinished, SubcallStarted
from orchestrator.ledger import NANO, Amount, Reservation
from orchestrator.memo import Known, Memo
from orchestrator.metering import Answer, Exchange, Till
from orchestrator.models.base import Model, ModelRequest, Usage
from orchestrator.models.prices import names_of, undated
from orchestrator.text import cut_to_bytes, size
from orchestrator.transport.rpc import RpcRefusal, RpcReply

# Budgets of which more is held for a call under way than it is going to cost.
_RETURNING = frozenset(("tokens", "cost_usd", "bytes_in"))
# Of an answer; to have one cut to less would be worth nothing.
_LEAST_BYTES = 4096


class Subcalls:
    """Asks models on one run's account, as many at once as the limiter of the tree allows.

    A sub-call waits for the limiter before it reserves its tokens: what queues holds its one call and, in a batch, its
    input, and only what is about to leave holds the worst case of a reply.

    Args:
        till: where the run pays.
        limiter: requests that may be at a provider at once, over the whole tree; one that waits between two attempts
            keeps its place, so a provider that is overloaded is asked by fewer.
        check: raises when the run is being stopped; asked last before a request leaves.
        max_bytes: the largest answer, as UTF-8; of a larger one beginning and end are kept.
        timeout_s: seconds one may take from when it leaves, retries included.
        cell_ends: gives when the open cell will be stopped, on the event loop's clock.
        price_caps: the most one sub-call may cost, in US dollars, by the model's name or spec.
        memo: answers sub-calls that repeat another; None asks each of them.
    """

    def __init__(
        self,
        till: Till,
        *,
        limiter: anyio.CapacityLimiter,
        check: Callable[[], None],
        max_bytes: int,
        timeout_s: float,
        cell_ends: Callable[[], float],
        price_caps: Mapping[str, float] | None = None,
        memo: Memo | None = None,
    ) -> None:
        self._till = till
        self._scope = till.scope
        self._recorder = till.recorder
        self._limiter = limiter
        self._check = check
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._cell_ends = cell_ends
        self._caps = {spec: round(usd * NANO) for spec, usd in (price_caps or {}).items()}
        self._memo = memo
        self._number = 0
        self._under_way = 0
        self._settled = anyio.Event()

    def input_cost(self, model: Model, input_tokens: int) -> Amount:
        """Return the worst case of one request without its reply."""
        return self._till.bound(model, input_tokens, 0)

    def reserve_batch(self, model: Model, n: int, input_tokens: int, max_tokens: int) -> Reservation:
        """Hold what a batch is going to cost, its calls and its input, or refuse it whole.

        Its input is held as it is likely to be. The worst case, and that of a reply, is reserved by each prompt as it
        leaves, and here only checked once. Most text has three or four bytes a token and most replies are short: to
        hold the worst case for every prompt would refuse batches that fit many times over.

        Args:
            model: whom all are for.
            n: prompts.
            input_tokens: likely of one prompt, on average.
            max_tokens: most output tokens of one reply.

        Raises:
            LimitExceededError: it does not fit; the limit is how many such prompts would.
            RpcRefusal: ``price_cap``; one such prompt may cost more than the policy allows for that model.
        """
        each = self.input_cost(model, input_tokens)
        reply = self._till.bound(model, 0, max_tokens, calls=0)
        self._check_cap(model, self._till.bound(model, input_tokens, max_tokens))
        try:
            held = self._scope.reserve(each * n + reply)
        except LimitExceededError as error:
            fitting = 0
            if self._scope.fits(reply, 1):
                with self._scope.reserve(reply):
                    fitting = self._scope.fits(each, n)
            raise LimitExceededError(error.reason, fitting) from error
        held.split(reply).release()
        return held

    async def ask(
        self, model: Model, request: ModelRequest, cell: int, held: Reservation | None = None, batch: str | None = None
    ) -> RpcReply:
        """Ask ``model`` and return its answer, recorded and paid for.

        Args:
            model: whom to ask.
            request: what to ask.
            cell: the cell that asks.
            held: one call and perhaps more, out of a batch; without it one call is reserved here and now.
            batch: id of that batch.

        Raises:
            LimitExceededError: a budget does not allow it, or another attempt at it, or time ran out meanwhile.
            ModelError: there is no answer; that is recorded.
            JournalError: it cannot be recorded.
            RpcRefusal: ``price_cap``; it may cost more than the policy allows for that model.
        """
        if self._memo is None:
            _, reply = await self._ask(model, request, cell, held, batch)
            return reply
        try:
            async with self._memo.turn(model, request) as slot:
                known = slot.known
                if known is not None:
                    return self._recall(known, model, request, cell, batch)
                number, reply = await self._ask(model, request, cell, held, batch)
                if reply.result["stop"] == "end":
                    slot.keep(Known(number, reply.body))
                return reply
        finally:
            if held is not None:
                held.release()  # of one that was recalled, or cancelled while it waited for its turn

    def _recall(self, known: Known, model: Model, request: ModelRequest, cell: int, batch: str | None) -> RpcReply:
        self._check()
        self._scope.spend(Amount(bytes_in=size(known.text)))
        number = self._start(model, request, cell, batch)
        free = Usage().to_dict()
        self._recorder.emit(SubcallFinished(number, known.text, "end", free, 0.0, 0, 0.0, memo_of=known.call))
        return RpcReply({"stop": "end"}, known.text)

    def _start(self, model: Model, request: ModelRequest, cell: int, batch: str | None) -> int:
        self._number += 1
        prompt = request.messages[-1].text
        self._recorder.emit(SubcallStarted(self._number, cell, model.name, prompt, request.max_tokens, batch))
        return self._number

    async def _ask(
        self, model: Model, request: ModelRequest, cell: int, held: Reservation | None, batch: str | None
    ) -> tuple[int, RpcReply]:
        with held or self._scope.reserve(Amount(calls=1)) as paying:
            if self._caps:
                self._check_cap(model, self._till.worst_case(model, request))
            async with self._limiter:
                await self._cover(paying, model, request)
                most_bytes = paying.held.bytes_in
                self._check()
                number = self._start(model, request, cell, batch)
                call_ends, cell_ends = anyio.current_time() + self._timeout_s, self._cell_ends()
                exchange = Exchange(model, request, paying, self._till, min(call_ends, cell_ends), call=number)
                late = ("call_timeout_s", self._timeout_s) if call_ends <= cell_ends else ("cell_timeout_s", 0.0)
                answer = await self._exchange(number, exchange, late, min(call_ends, cell_ends))
        reply = answer.reply
        text = cut_to_bytes(reply.text, most_bytes)
        self._recorder.emit(
            SubcallFinished(
                call=number,
                text=text,
                stop_reason=reply.stop_reason,
                usage=reply.usage.to_dict(),
                cost_usd=answer.cost_usd,
                attempts=answer.attempts,
                elapsed_s=answer.elapsed_s,
            )
        )
        return number, RpcReply({"stop": reply.stop_reason}, text)

    async def _cover(self, held: Reservation, model: Model, request: ModelRequest) -> None:
        """Bring ``held`` up to the worst case of ``request`` and of the bytes of its answer.

        What is missing may be held by sub-calls under way, most of which cost less than they hold. While there are any,
        this waits for the next to end; without any, it is refused. Each of them ends, so nobody waits for ever.
        """
        needed = self._till.worst_case(model, request) + Amount(bytes_in=self._max_bytes)
        while True:
            try:
                held.extend(needed.minus(held.held))
            except LimitExceededError as error:
                if error.reason == "bytes_in" and error.limit >= _LEAST_BYTES:
                    needed = needed._replace(bytes_in=int(error.limit))  # the answer will be cut to that
                    continue
                if error.reason not in _RETURNING or self._scope.exhausted or not self._under_way:
                    raise
            else:
                return
            await self._settled.wait()

    def _check_cap(self, model: Model, most: Amount) -> None:
        # As prices are: of the name with a date at its end and without, whether the policy writes its provider or not.
        names = {model.name, undated(model.name)}
        cap = min((cap for spec, cap in self._caps.items() if names & names_of(spec)), default=None)
        if cap is not None and most.cost_nano > cap:
            message = (
                "one query to that model may cost at most the limit, in US dollars: shorten it or lower max_tokens"
            )
            raise RpcRefusal("price_cap", message, limit=cap / NANO)

    async def _exchange(self, number: int, exchange: Exchange, late: tuple[str, float], deadline: float) -> Answer:
        """Ask; what does not answer by the ``deadline`` is refused as ``late``, or as the run's own end."""
        self._under_way += 1
        try:
            return await exchange.run()
        except ModelError as error:
            over = self._over(error, late, deadline)
            self._record_failure(number, exchange, over.reason if over else error.code, str(error))
            if over is not None:
                try:
                    raise over from error
                finally:
                    # Its traceback holds this frame, and with it the prompt, which would stay until it is collected.
                    del over
            raise
        except LimitExceededError as error:
            self._record_failure(number, exchange, error.reason, str(error))
            raise
        except anyio.get_cancelled_exc_class():
            self._record_failure(number, exchange, "cancelled", "the cell or the run ended first")
            raise
        finally:
            self._under_way -= 1
            self._settled.set()
            self._settled = anyio.Event()

    def _over(self, error: ModelError, late: tuple[str, float], deadline: float) -> LimitExceededError | None:
        """Return the limit of time that made the model's answer not come, if it was one."""
        if not isinstance(error, ModelUnavailableError):
            return None
        if self._scope.exhausted == "wall_s":
            return LimitExceededError("wall_s", 0)
        return LimitExceededError(*late) if anyio.current_time() >= deadline else None

    def _record_failure(self, number: int, exchange: Exchange, code: str, detail: str) -> None:
        self._recorder.emit(SubcallFailed(number, code, detail, exchange.attempts, exchange.elapsed_s))
