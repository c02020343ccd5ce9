"""Named fakes: a model that answers from a script, a clock that is moved by hand, a journal in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import anyio
import anyio.lowlevel

from orchestrator.errors import JournalError
from orchestrator.events import Envelope, Event
from orchestrator.models.base import ModelReply, ModelRequest, Usage

E = TypeVar("E", bound=Event)
Outcome = ModelReply | Exception | Callable[[ModelRequest], ModelReply]


class FakeModel:
    """Answers with scripted outcomes in order, and then with ``default``.

    Args:
        outcomes: a reply, an exception to raise, or a function of the request.
        name: the provider's name for it.
        default: answers when the script is used up.
        gate: when given, no request is answered before it is set.

    Attributes:
        requests: all that arrived.
        in_flight: requests being answered now.
        most_in_flight: the highest that ever was.
        cancelled: requests cancelled while they waited.
        arrived: set when the first request arrives.
    """

    def __init__(
        self,
        outcomes: Iterable[Outcome] = (),
        *,
        name: str = "fake-model-with-a-telling-name",
        default: Outcome | None = None,
        gate: anyio.Event | None = None,
    ) -> None:
        self.name = name
        self.requests: list[ModelRequest] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.cancelled = 0
        self.closed = False
        self.arrived = anyio.Event()
        self._script = deque(outcomes)
        self._default = default or ModelReply("an answer", Usage(input_tokens=5, output_tokens=2))
        self._gate = gate

    async def complete(self, request: ModelRequest) -> ModelReply:
        self.requests.append(request)
        outcome = self._script.popleft() if self._script else self._default
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.arrived.set()
        try:
            await (anyio.lowlevel.checkpoint() if self._gate is None else self._gate.wait())
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if isinstance(outcome, ModelReply) else outcome(request)

    async def aclose(self) -> None:
        self.closed = True


class FakeClock:
    """Monotonic seconds that pass when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class MemoryJournal:
    """A sink that keeps every event; once ``full`` it refuses as a full disk does."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.full = False

    def __call__(self, envelope: Envelope) -> None:
        if self.full:
            raise JournalError("no space left on device: /home/somebody/runs")
        self.events.append(envelope.event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]
