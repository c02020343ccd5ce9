"""A line of the benchmark's table: our samples beside those of the floor they are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ours against the floor, in milliseconds or MB/s."""

    what: str
    ours: list[float]
    floor: list[float]
    bar: str
    unit: str = "ms"
    floor_name: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the line's columns."""
        ratio = ""
        if self.floor:
            ratio = f"{statistics.median(self.ours) / statistics.median(self.floor):.2f} ×"
        floor = f"{_spread(self.floor)} {self.floor_name}" if self.floor else ""
        return self.what, f"{_spread(self.ours)} {self.unit}", floor, ratio, self.bar


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return how long ``work`` takes, in milliseconds."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


def _spread(samples: list[float]) -> str:
    ordered = sorted(samples)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(ordered):.3g} ({low:.3g} … {high:.3g})"
