"""A circuit breaker for each provider: one that fails again and again is asked by one request at a time, and seldom.

::

            failures in a row
    closed ────────────────────► open ◄──────────────┐
       ▲                          │ wait is over     │ probe failed: wait twice as long
       │      probe answered      ▼                  │
       └────────────────────── half_open ────────────┘

While it is open nothing is sent. Calls wait for the probe, which is the first of them that looks when the wait is over;
so a batch outlives a short outage without an item lost. In an outage longer than ``patience_s`` calls are refused, at
once, with :class:`~orchestrator.errors.ProviderDownError`, until a probe is answered.

An answer is any verdict: a reply, and a refusal of the request or of the key. Only what is worth another try counts as
a failure. Everything here is decided without waiting and may be called from any thread;
:mod:`orchestrator.models.retry` does the waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from orchestrator.errors import ModelUnavailableError, ProviderDownError
from orchestrator.models.base import Model

State = Literal["closed", "open", "half_open"]

# A provider's retry-after holds a probe back as well, but no header can shut a provider out for days.
LONGEST_WAIT_S: Final = 3600.0
# How often a call that waits looks whether the probe is back.
LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """When to stop asking, and for how long.

    Attributes:
        failures: requests that failed one after another, over all calls, before it opens: more than one call makes.
        first_s: seconds before the first probe; each that fails doubles them.
        longest_s: seconds they grow to; what the provider asked for may be more.
        patience_s: seconds into an outage after which calls are refused instead of kept waiting.
    """

    failures: int = 8
    first_s: float = 2.0
    longest_s: float = 60.0
    patience_s: float = 120.0


DEFAULT: Final = CircuitPolicy()


@dataclass(frozen=True, slots=True)
class Change:
    """The circuit of a provider changed its state.

    Attributes:
        provider: whose.
        state: the new one.
        failures: requests that have failed one after another.
        wait_s: seconds until the next probe; 0 unless it is open.
    """

    provider: str
    state: State
    failures: int
    wait_s: float


Tell = Callable[[Change], None]


class Circuit:
    """One provider's.

    Args:
        provider: its name, for people.
        policy: when to stop asking.
        clock: monotonic seconds.
    """

    def __init__(
        self, provider: str, policy: CircuitPolicy = DEFAULT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._provider = provider
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failures = 0
        self._opened = 0  # times it opened since it was closed last
        self._down_since = 0.0
        self._probe_at = 0.0
        self._probe: Request | None = None

    @property
    def state(self) -> State:
        """As it is now."""
        return self._state

    def admit(self, tell: Tell) -> Request | float:
        """Let a request leave, or say in how many seconds to ask again.

        Args:
            tell: told of a change of state, before anybody else sees it.

        Raises:
            ProviderDownError: it has been down for longer than anybody should wait.
        """
        with self._lock:
            if self._state == "closed":
                return Request(self)
            now = self._clock()
            if self._state == "open" and now >= self._probe_at:
                tell(Change(self._provider, "half_open", self._failures, 0.0))
                self._state = "half_open"
                self._probe = Request(self)
                return self._probe
            left = max(self._probe_at - now, 0.0)
            patience = self._down_since + self._policy.patience_s - now
            if patience <= 0 or left > patience:
                message = f"{self._provider} has not answered {self._failures:,} requests in a row"
                raise ProviderDownError(message, retry_after_s=round(left, 1))
            return LOOK_S if self._state == "half_open" else left

    def answered(self, tell: Tell) -> None:
        """Note a verdict: it is up."""
        with self._lock:
            was, self._state = self._state, "closed"
            self._failures, self._opened, self._probe = 0, 0, None
            if was != "closed":
                tell(Change(self._provider, "closed", 0, 0.0))

    def failed(self, request: Request, error: ModelUnavailableError, tell: Tell) -> None:
        """Note a failure. Of those that left before it opened, only the ones that open it count."""
        with self._lock:
            probed = request is self._probe
            if self._state == "closed" or probed:
                self._failures += 1
                if probed or self._failures >= self._policy.failures:
                    self._open(error, tell)

    def abandoned(self, request: Request) -> None:
        """Note that a request ended without telling anything: its caller gave up. The next may be the probe."""
        with self._lock:
            if request is self._probe:
                self._state, self._probe = "open", None

    def _open(self, error: ModelUnavailableError, tell: Tell) -> None:
        own = min(self._policy.longest_s, self._policy.first_s * 2.0 ** min(self._opened, 62))
        wait = min(max(own, error.retry_after_s or 0.0), LONGEST_WAIT_S)
        now = self._clock()
        if self._opened == 0:
            self._down_since = now
        self._opened += 1
        self._state, self._probe, self._probe_at = "open", None, now + wait
        tell(Change(self._provider, "open", self._failures, wait))


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request that was let through; exactly one of its methods is called when it is over.

    Attributes:
        circuit: that let it through.
    """

    circuit: Circuit

    def answered(self, tell: Tell) -> None:
        """See :meth:`Circuit.answered`."""
        self.circuit.answered(tell)

    def failed(self, error: ModelUnavailableError, tell: Tell) -> None:
        """See :meth:`Circuit.failed`."""
        self.circuit.failed(self, error, tell)

    def abandoned(self) -> None:
        """See :meth:`Circuit.abandoned`."""
        self.circuit.abandoned(self)


class Circuits:
    """The circuits of all providers that somebody asks.

    Args:
        policy: of each.
        clock: monotonic seconds.
    """

    def __init__(self, policy: CircuitPolicy = DEFAULT, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}

    def of(self, model: Model) -> Circuit:
        """Return the one of the model's provider; a model that names none is its own."""
        name = provider_of(model)
        return self._circuits.setdefault(name, Circuit(name, self._policy, self._clock))


def provider_of(model: Model) -> str:
    """Return who answers for ``model``: its attribute ``provider`` where it has one, else its name."""
    provider = getattr(model, "provider", None)
    return provider if isinstance(provider, str) and provider else model.name
