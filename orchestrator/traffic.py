"""Who may ask a provider now: one gate a provider for all runs of this process, which take turns at it.

A provider counts requests and tokens a minute for a whole account, whoever makes them; and a process has so many
connections and no more. So the bound is here, above every run, while ``models.in_flight`` bounds each tree of runs.

Those who wait stand in one queue a tree, and the trees take turns: one that asks for ten thousand replies delays the
first of another by one request, not by ten thousand. Nobody is passed over: who is next and does not fit yet (a larger
request, a tighter policy) is waited for. A queue holds a waiting task and no copy of a prompt; its length is bounded by
the tree's own ``in_flight``.

Runs may live in threads and event loops of their own, so the gate is locked, and wakes each waiter through its loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from orchestrator.models.base import Model
from orchestrator.policy import ModelSettings

WINDOW_S: Final = 60.0
# The minute slides in steps of this many seconds; it is counted in too long a minute rather than in too short a one.
STEP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run's policy allows all runs of this process to ask of one provider.

    Attributes:
        in_flight: requests at once.
        requests: in any minute; 0 for any number.
        tokens: in any minute; 0 for any number.
    """

    in_flight: int
    requests: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, models: ModelSettings) -> Limits:
        """Return those of a policy."""
        return cls(models.provider_in_flight, models.requests_per_minute, models.tokens_per_minute)


@dataclass(slots=True)
class _Step:
    """What left in one step of the minute."""

    number: int
    requests: int = 0
    tokens: int = 0


@dataclass(slots=True, eq=False)
class Passage:
    """A request that may leave.

    Attributes:
        tokens: it was counted with.
    """

    tokens: int
    _step: _Step
    _gate: Gate

    def used(self, tokens: int) -> None:
        """Count what it was billed in place of what was expected."""
        self._gate._correct(self, tokens)  # noqa: SLF001 - the two are one thing


@dataclass(slots=True, eq=False)
class _Waiter:
    limits: Limits
    tokens: int
    loop: asyncio.AbstractEventLoop
    admitted: asyncio.Future[None]
    passage: Passage | None = None

    def resume(self) -> None:
        """Wake the task that waits; on its loop."""
        if not self.admitted.done():
            self.admitted.set_result(None)

    def post(self, call: Callable[..., object], *arguments: object) -> bool:
        """Make a call on its loop, now where that is this one; return whether it still can."""
        if asyncio._get_running_loop() is self.loop:  # noqa: SLF001 - the public one raises where there is none
            call(*arguments)
            return True
        with suppress(RuntimeError):  # it is closed: nobody waits there any more
            self.loop.call_soon_threadsafe(call, *arguments)
            return True
        return False


@dataclass(slots=True)
class Gate:
    """One provider's.

    Attributes:
        clock: monotonic seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _queues: OrderedDict[Hashable, deque[_Waiter]] = field(default_factory=OrderedDict)
    _minute: deque[_Step] = field(default_factory=deque)
    _in_flight: int = 0
    _timed: _Waiter | None = None

    @asynccontextmanager
    async def passing(self, who: Hashable, limits: Limits, tokens: int) -> AsyncIterator[Passage]:
        """Wait for a turn of ``who``, and hold a place while the request is under way.

        Args:
            who: whose turn it takes; trees of runs take turns with one another.
            limits: of the run's policy.
            tokens: the request's worst case. One that no minute allows is let through in a minute of its own.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(limits, tokens, loop, loop.create_future())
        with self._lock:
            self._queues.setdefault(who, deque()).append(waiter)
            self._admit()
        try:
            await waiter.admitted
            if waiter.passage is None:
                raise RuntimeError("let in without a passage")
            yield waiter.passage
        finally:
            with self._lock:
                if waiter.passage is not None:
                    self._in_flight -= 1
                else:
                    self._leave(who, waiter)
                self._admit()

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(map(len, self._queues.values()))

    def _admit(self) -> None:
        """Let in whoever is next, as long as there is room; the lock is held."""
        while self._queues:
            who, queue = next(iter(self._queues.items()))
            waiter = queue[0]
            if self._in_flight >= waiter.limits.in_flight:
                return  # whoever leaves lets in the next
            delay = self._delay(waiter)
            if delay > 0:
                if self._timed is not waiter and waiter.post(waiter.loop.call_later, delay, self._wake, waiter):
                    self._timed = waiter
                return
            queue.popleft()
            self._queues.move_to_end(who)
            if not queue:
                del self._queues[who]
            waiter.passage = self._counted(waiter.tokens)
            if not waiter.post(waiter.resume):
                self._in_flight -= 1

    def _delay(self, waiter: _Waiter) -> float:
        """Return the seconds until the minutes that are full allow the request."""
        limits, now = waiter.limits, self.clock()
        while self._minute and _over(self._minute[0]) <= now:
            self._minute.popleft()
        if not limits.requests and not limits.tokens:
            return 0.0
        requests, tokens = sum(step.requests for step in self._minute), sum(step.tokens for step in self._minute)
        delay = 0.0
        for step in self._minute:
            full = limits.requests and requests >= limits.requests
            if not full and not (limits.tokens and tokens and tokens + waiter.tokens > limits.tokens):
                break
            requests, tokens, delay = requests - step.requests, tokens - step.tokens, _over(step) - now
        return delay

    def _counted(self, tokens: int) -> Passage:
        number = int(self.clock() / STEP_S)
        if not self._minute or self._minute[-1].number != number:
            self._minute.append(_Step(number))
        step = self._minute[-1]
        step.requests += 1
        step.tokens += tokens
        self._in_flight += 1
        return Passage(tokens, step, self)

    def _correct(self, passage: Passage, tokens: int) -> None:
        with self._lock:
            passage._step.tokens += tokens - passage.tokens  # noqa: SLF001 - as above
            passage.tokens = tokens

    def _leave(self, who: Hashable, waiter: _Waiter) -> None:
        queue = self._queues.get(who)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[who]
        if self._timed is waiter:
            self._timed = None

    def _wake(self, waiter: _Waiter) -> None:
        with self._lock:
            if self._timed is waiter:
                self._timed = None
            self._admit()


class Gates:
    """The gates of all providers, made when they are first asked for."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}

    def of(self, model: Model) -> Gate:
        """Return the one of the model's provider; a model that names none is its own."""
        named = getattr(model, "provider", None)
        name = named if isinstance(named, str) and named else model.name
        gate = self._gates.get(name)
        return self._gates.setdefault(name, Gate()) if gate is None else gate


PROCESS: Final = Gates()
"""Those of this process."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """One tree of runs on its way to the providers; its identity is what takes turns.

    Attributes:
        limits: of the tree's policy.
        gates: to pass.
    """

    limits: Limits
    gates: Gates = PROCESS

    def passing(self, model: Model, tokens: int) -> AbstractAsyncContextManager[Passage]:
        """Wait for a turn at the model's provider, and hold a place there; see :meth:`Gate.passing`."""
        return self.gates.of(model).passing(self, self.limits, tokens)


def _over(step: _Step) -> float:
    """Return when no minute that is still running holds the step."""
    return (step.number + 1) * STEP_S + WINDOW_S
