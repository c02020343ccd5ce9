"""Runs a coroutine and does something at one of its suspensions: what a cancellation at every await is tested with."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Steps:
    """Counts the suspensions of one coroutine.

    Args:
        at: the suspensions, from 1, at which ``do`` is called: just before the event loop learns what is waited for.
        do: called there, in the coroutine's own task.

    Attributes:
        taken: suspensions so far.
    """

    def __init__(self, at: frozenset[int] = frozenset(), do: Callable[[], object] = lambda: None) -> None:
        self.taken = 0
        self._at = at
        self._do = do

    @types.coroutine
    def run(self, coroutine: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        """Run ``coroutine`` to its end."""
        sent, thrown = None, None
        while True:
            try:
                waits = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
            except StopIteration:
                return
            self.taken += 1
            if self.taken in self._at:
                self._do()
            sent = thrown = None
            try:
                sent = yield waits
            except BaseException as error:  # noqa: BLE001 - passed on to the coroutine, whatever it is
                thrown = error
