"""What a tree of runs has done and spent so far, counted from its events, and said in few characters."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import events
from orchestrator.events import Event
from orchestrator.text import counted


@dataclass(slots=True)
class Tally:
    """What the whole tree of runs has done so far.

    Attributes:
        turn: last turn of the run a person started.
        in_flight: sub-calls at a provider now.
        done: sub-calls that ended, answered or not.
        failed: those of them without an answer.
        tokens: in and out, cached ones included.
        cost_usd: by the price table.
        unpriced: replies that have no price.
        children: child runs that are under way.
        calls: requests that left for a provider, further attempts among them.
        begun: child runs there were in all.
    """

    turn: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    children: int = 0
    calls: int = 0
    begun: int = 0

    def add(self, event: Event) -> None:
        """Count one event."""
        match event:
            case events.SubcallStarted():
                self.in_flight += 1
            case events.SubcallFailed():
                self.in_flight -= 1
                self.done += 1
                self.failed += 1
                self.calls += event.attempts
            case events.SubcallFinished():
                self.in_flight -= 1
                self.done += 1
                self.calls += event.attempts
                self._bill(event)
            case events.RootReplied():
                self.calls += 1
                self._bill(event)
            case events.RootFailed():
                self.calls += min(event.attempts, 1)  # those before the last were told of as they failed
            case events.EstimateCharged():
                self.tokens += event.tokens
                self._cost(event.cost_usd)
            case events.RetryScheduled() if event.purpose == "root":
                self.calls += 1
            case events.ChildStarted():
                self.children += 1
                self.begun += 1
            case events.ChildFinished():
                self.children -= 1

    def spend(self) -> str:
        """Say what was spent, in dollars where there is a price, else in tokens."""
        if self.unpriced and not self.cost_usd:
            return f"{compact(self.tokens)} tokens"
        return f"${self.cost_usd:.4f}" + ("+" if self.unpriced else "")

    def parts(self) -> list[str]:
        """Return the facts that are worth a place in a status line, the most important first."""
        parts = [f"turn {self.turn}" if self.turn else "starting"]
        if self.in_flight:
            parts.append(f"{self.in_flight:,} in flight")
        if self.done:
            parts.append(counted(self.done, "sub-call") + (f" ({self.failed:,} failed)" if self.failed else ""))
        if self.children:
            parts.append(counted(self.children, "child run"))
        parts.append(self.spend())
        return parts

    def _bill(self, event: events.RootReplied | events.SubcallFinished) -> None:
        self.tokens += sum(value for key, value in event.usage.items() if key.endswith("_tokens"))
        self._cost(event.cost_usd)

    def _cost(self, cost_usd: float | None) -> None:
        self.unpriced += cost_usd is None
        self.cost_usd += cost_usd or 0.0


def fit(parts: list[str], width: int) -> str:
    """Join parts into at most ``width`` characters: the last one stays, others go from the end."""
    kept = list(parts)
    while len(kept) > 1 and len(" · ".join(kept)) > width:
        del kept[-2]
    return " · ".join(kept)[:width]


def clock_time(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def compact(number: int) -> str:
    """Return a count in at most five characters or so: ``950``, ``12.3k``, ``4.5M``."""
    if number < 1000:  # noqa: PLR2004 - the decimal system
        return str(number)
    return f"{number / 1000:.1f}k" if number < 1_000_000 else f"{number / 1_000_000:.1f}M"  # noqa: PLR2004 - as above
