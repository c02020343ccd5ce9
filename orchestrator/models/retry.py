"""The only retry layer: every provider's own is off, so one failure is one request and never a product of layers.

A failure worth another try waits with exponential back-off and full jitter, at least as long as the provider asked,
and never past the deadline: when the wait would cross it, the last error is raised at once.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from orchestrator.errors import ModelError, ModelUnavailableError
from orchestrator.models.base import Model, ModelReply, ModelRequest

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
    policy: RetryPolicy = DEFAULT,
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
        policy: how often and how patiently.
        sleep: waits that many seconds.
        random: returns a number from 0 to 1, for the jitter.

    Returns:
        The reply, and how many attempts it took.

    Raises:
        ModelError: of the last attempt, with ``attempts`` set; 0 when the deadline had passed before the first.
    """
    # It takes 70 ms to import and is needed only where a model is asked.
    import tenacity

    made = 0

    async def attempt() -> ModelReply:
        nonlocal made
        if anyio.current_time() < deadline:
            made += 1
            with anyio.move_on_at(deadline):
                return await model.complete(request)
        raise ModelUnavailableError(f"the deadline passed before {model.name} answered")

    def wait(state: RetryCallState) -> float:
        return random() * policy.longest_wait_s(state.attempt_number) + (_failure(state).retry_after_s or 0.0)

    def stop(state: RetryCallState) -> bool:
        return state.attempt_number >= policy.attempts or anyio.current_time() + state.upcoming_sleep >= deadline

    def report(state: RetryCallState) -> None:
        on_retry(Retry(state.attempt_number, _failure(state), state.upcoming_sleep))

    retrying = tenacity.AsyncRetrying(
        sleep=sleep,
        stop=stop,
        wait=wait,
        retry=tenacity.retry_if_exception_type(ModelUnavailableError),
        before_sleep=report,
        reraise=True,
    )
    try:
        reply: ModelReply = await retrying(attempt)
    except BaseException as error:  # noqa: BLE001 - it is raised again
        if isinstance(error, ModelError):
            error.attempts = made
        # tenacity's frames hold the error, and the error its frames, and with them the request: see below.
        raise error.with_traceback(None) from error.__cause__
    finally:
        # What it did last, it keeps as methods of its own: one more cycle that holds a request, which may be of many
        # megabytes, until it is collected, which may be long after a hundred more.
        retrying.iter_state.reset()
    return reply, made


def _failure(state: RetryCallState) -> ModelUnavailableError:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, ModelUnavailableError):
        message = f"only a failure worth a retry gets here, not {error!r}"
        raise TypeError(message)
    return error
