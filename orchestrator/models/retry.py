"""The only retry layer: every provider's own is off, so one failure is one request and never a product of layers.

A failure worth another try waits with exponential back-off and full jitter, at least as long as the provider asked,
and never past the deadline: when the wait would cross it, the last error is raised at once. Before each attempt the
provider's circuit (:mod:`orchestrator.models.circuit`) is asked; to wait for it takes up none of the attempts.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from orchestrator.errors import ModelError, ModelUnavailableError, ProviderDownError
from orchestrator.models.base import Model, ModelReply, ModelRequest
from orchestrator.models.circuit import Change, Circuit, CircuitPolicy, Circuits, Request

if TYPE_CHECKING:
    from tenacity import RetryCallState


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently.

    Attributes:
        attempts: requests at most, the first included.
        initial_s: seconds the first wait may last; each further one may last twice as long.
        cap_s: seconds no wait of our own exceeds; a wait the provider asked for may.
    """

    attempts: int = 6
    initial_s: float = 0.5
    cap_s: float = 30.0

    def longest_wait_s(self, attempt: int) -> float:
        """Seconds the wait after ``attempt`` (1-based) may last, before what the provider asked for is added."""
        return min(self.cap_s, self.initial_s * 2.0 ** min(attempt - 1, 62))


DEFAULT: Final = RetryPolicy()
_NEVER: Final = CircuitPolicy(failures=2**53)


@dataclass(frozen=True, slots=True)
class Retry:
    """One attempt that failed and will be repeated.

    Attributes:
        attempt: which, 1-based.
        error: why.
        wait_s: seconds until the next.
    """

    attempt: int
    error: ModelError
    wait_s: float


async def complete(
    model: Model,
    request: ModelRequest,
    *,
    deadline: float,
    on_retry: Callable[[Retry], None],
    on_circuit: Callable[[Change], None] = lambda _change: None,
    policy: RetryPolicy = DEFAULT,
    circuits: Circuits | None = None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    random: Callable[[], float] = random_module.random,
) -> tuple[ModelReply, int]:
    """Ask ``model``, again where that makes sense, until ``deadline``.

    Args:
        model: whom to ask.
        request: what to ask.
        deadline: on the event loop's clock (:func:`time.monotonic`); it ends an attempt that is under way, too.
        on_retry: told of each attempt that will be repeated, before the wait; an exception it raises ends the call,
            which is how a ledger refuses to pay for another attempt.
        on_circuit: told when the provider's circuit changes its state through this call.
        policy: how often and how patiently.
        circuits: of the providers; without them each call stands alone.
        sleep: waits that many seconds.
        random: returns a number from 0 to 1, for the jitter.

    Returns:
        The reply, and how many attempts it took.

    Raises:
        ModelError: of the last attempt, with ``attempts`` set; 0 when the deadline had passed before the first, or the
            provider is down.
    """
    circuit = Circuit(model.name, _NEVER) if circuits is None else circuits.of(model)
    attempts = _Attempts(model, request, deadline, policy, circuit, on_circuit, sleep)
    failures: list[ModelUnavailableError] = []
    try:
        try:
            return await attempts.make(), attempts.made
        except ModelUnavailableError as error:
            if not _worth_another(error):
                raise
            failures.append(error)
        return await _again(attempts, failures, on_retry, random), attempts.made
    except ModelError as error:
        error.attempts = attempts.made
        raise


async def _again(
    attempts: _Attempts,
    failures: list[ModelUnavailableError],
    on_retry: Callable[[Retry], None],
    random: Callable[[], float],
) -> ModelReply:
    """Go on after the first attempt, whose failure is in ``failures`` and is taken out of it."""
    # It takes 70 ms to import, and 0.1 ms for each call: nothing that a first attempt that is answered should pay.
    import tenacity

    policy, deadline = attempts.policy, attempts.deadline

    async def attempt() -> ModelReply:
        if failures:
            raise failures.pop()
        return await attempts.make()

    def wait(state: RetryCallState) -> float:
        return random() * policy.longest_wait_s(state.attempt_number) + (_failure(state).retry_after_s or 0.0)

    def stop(state: RetryCallState) -> bool:
        return state.attempt_number >= policy.attempts or anyio.current_time() + state.upcoming_sleep >= deadline

    def report(state: RetryCallState) -> None:
        on_retry(Retry(state.attempt_number, _failure(state), state.upcoming_sleep))

    retrying = tenacity.AsyncRetrying(
        sleep=attempts.sleep,
        stop=stop,
        wait=wait,
        retry=tenacity.retry_if_exception(_worth_another),
        before_sleep=report,
        reraise=True,
    )
    try:
        reply: ModelReply = await retrying(attempt)
    except BaseException as error:  # noqa: BLE001 - it is raised again
        # tenacity's frames hold the error, and the error its frames, and with them the request: see below.
        raise error.with_traceback(None) from error.__cause__
    finally:
        # What it did last, it keeps as methods of its own: one more cycle that holds a request, which may be of many
        # megabytes, until it is collected, which may be long after a hundred more.
        retrying.iter_state.reset()
    return reply


@dataclass(slots=True)
class _Attempts:
    """The attempts at one request.

    Attributes:
        made: how many left.
    """

    model: Model
    request: ModelRequest
    deadline: float
    policy: RetryPolicy
    circuit: Circuit
    on_circuit: Callable[[Change], None]
    sleep: Callable[[float], Awaitable[None]]
    made: int = 0

    async def make(self) -> ModelReply:
        """Make one, when the provider's circuit lets it through, and tell the circuit what came of it."""
        admission = await self._admission()
        try:
            reply = await self._ask()
        except ModelUnavailableError as error:
            if anyio.current_time() < self.deadline:
                admission.failed(error, self.on_circuit)
            else:
                admission.abandoned()  # that no time was left for an answer says nothing of the provider
            raise
        except ModelError:
            admission.answered(self.on_circuit)
            raise
        except BaseException:
            admission.abandoned()
            raise
        admission.answered(self.on_circuit)
        return reply

    async def _admission(self) -> Request:
        while isinstance(admission := self.circuit.admit(self.on_circuit), float):
            if anyio.current_time() + admission >= self.deadline:
                told = f"the deadline comes before {self.model.name} is asked again"
                raise ProviderDownError(told, retry_after_s=admission)
            await self.sleep(admission)
        return admission

    async def _ask(self) -> ModelReply:
        if anyio.current_time() < self.deadline:
            self.made += 1
            with anyio.move_on_at(self.deadline):
                return await self.model.complete(self.request)
        told = f"the deadline passed before {self.model.name} answered"
        raise ModelUnavailableError(told, may_be_billed=self.made > 0)


def _worth_another(error: BaseException) -> bool:
    return isinstance(error, ModelUnavailableError) and not isinstance(error, ProviderDownError)


def _failure(state: RetryCallState) -> ModelUnavailableError:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, ModelUnavailableError):
        message = f"only a failure worth a retry gets here, not {error!r}"
        raise TypeError(message)
    return error
