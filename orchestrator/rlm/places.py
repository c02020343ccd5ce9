"""Places for the child runs of one tree: how many of their boxes there are at a time.

A child waits for its own children and keeps its place meanwhile, so one number for all would deadlock: parents could
hold every place and wait for ever. Therefore each level but the deepest leaves one place to every level below it. Runs
of the deepest level wait for nobody, so theirs become free; then the ones that wait for those end, and so on upwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from orchestrator.errors import LimitExceededError


class Places:
    """The places of a tree; on one event loop.

    Args:
        total: runs below the first that may be alive at a time.
        levels: of runs below the first.

    Attributes:
        taken: places taken now.
    """

    def __init__(self, total: int, levels: int) -> None:
        self.taken = 0
        self._total = total
        self._levels = min(levels, total)
        self._waiting: dict[int, deque[anyio.Event]] = {level: deque() for level in range(self._levels, 0, -1)}

    def most(self, level: int) -> int:
        """Return how many places may be taken for a run of ``level`` to get one; level 1 are the first run's children.

        The rest is for the levels below it.
        """
        return self._total - (self._levels - level)

    @asynccontextmanager
    async def place(self, level: int) -> AsyncIterator[None]:
        """Wait for a place and keep it; the deepest level is served first, each in the order of arrival.

        Raises:
            LimitExceededError: ``children_alive``: there are fewer places than levels, and none is for this one.
        """
        if level > self._levels:
            raise LimitExceededError("children_alive", 0)
        mine = anyio.Event()
        self._waiting[level].append(mine)
        self._serve()
        try:
            await mine.wait()
            yield
        finally:
            if mine.is_set():
                self.taken -= 1
            else:
                self._waiting[level].remove(mine)
            self._serve()

    def _serve(self) -> None:
        for level, waiting in self._waiting.items():
            while waiting and self.taken < self.most(level):
                self.taken += 1
                waiting.popleft().set()
