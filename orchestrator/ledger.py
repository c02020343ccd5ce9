"""Who may spend what: one ledger for a whole tree of runs.

A run's share is a :class:`Scope`; a child run's scope lies inside its parent's and can only be narrower. Before
anything leaves the host its worst case is *reserved*, in the scope and in every scope around it, or refused whole.
Afterwards the reservation is *settled* with what it did cost, or *released* when nothing left. So, in every scope, for
every budget, at every moment::

    spent + reserved <= budget

The one exception is a bill higher than the reservation made for it. A reservation is a true worst case, so such a bill
breaks a promise (a provider that ignores ``max_tokens``, or bills for text that was not sent), and what the next one
would be nobody can say. The truth is recorded, the excess comes out of what is left, and the scope that made the call
is closed to spending for good, with ``overbilled`` as the reason (:attr:`Scope.exhausted`). Where what is left is less
than the excess, the budget is passed by the missing part, and by no more; each scope that is passed is closed likewise,
with the budget's name as the reason.

Everything is counted in whole numbers, money in units of 1e-9 US dollars, so nothing is lost by rounding.

A model that the price table does not know costs no dollars here: ``budget.cost_usd`` does not bind it, and how many
calls went to such models is told as ``unpriced_calls``. What bounds them are the budgets for calls and tokens.

The ledger belongs to the thread of one event loop. Nothing in it awaits, so each step is whole for every task of that
loop and needs no lock. Racing threads in a box reach it through the broker, one message at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from orchestrator.accounts import NANO, Account, Amount, Bill, Paid, Path
from orchestrator.errors import LimitExceededError
from orchestrator.policy import Budget

__all__ = ["NANO", "Amount", "Bill", "Paid", "Reservation", "Scope"]

_NOTHING = Amount()
_NO_BILL = Bill(model="")


class Reservation:
    """Part of the budgets, held for something that is about to happen.

    It ends once. :meth:`settle` books the truth; :meth:`release` gives everything back, and does nothing to one that
    has ended, so it can stand in any ``finally``. Settling or extending one that has ended is a mistake in the calling
    code and raises RuntimeError: the same bill would count twice, or against nothing.

    As a context manager it releases what was left unsettled.
    """

    __slots__ = ("_check", "_held", "_open", "_path")

    def __init__(self, path: Path, held: Amount, check: Callable[[], None]) -> None:
        """Hold ``held``, which is booked as reserved already; ``check`` raises when nothing more may be."""
        self._path = path
        self._held = held
        self._check = check
        self._open = True

    @property
    def held(self) -> Amount:
        """What is held now; nothing once it has ended."""
        return self._held if self._open else _NOTHING

    def extend(self, amount: Amount) -> None:
        """Hold ``amount`` more, or raise and hold what was held.

        Raises:
            LimitExceededError: it does not fit, or the scope is exhausted.
            RuntimeError: the reservation has ended, or the scope is closed.
        """
        self._check_open()
        self._check()
        self._path.reserve(amount)
        self._held += amount

    def split(self, part: Amount) -> Reservation:
        """Move ``part`` of what is held into a reservation of its own.

        Raises:
            ValueError: ``part`` is more than is held.
            RuntimeError: the reservation has ended.
        """
        self._check_open()
        self._held -= part
        return Reservation(self._path, part, self._check)

    def settle(self, actual: Amount, bill: Bill | None = None) -> None:
        """Book what it did cost, in every account, and end.

        Args:
            actual: the truth; it may be more than was held (see the head of the module).
            bill: of what the tokens consisted. Without one they appear in the totals alone.

        Raises:
            ValueError: the bill's tokens are not the amount's.
            RuntimeError: the reservation has ended.
        """
        self._check_open()
        if bill is not None and bill.tokens != actual.tokens:
            raise ValueError(f"a bill of {bill.tokens} tokens for an amount of {actual.tokens}")
        self._open = False
        self._path.settle(self._held, actual, bill or _NO_BILL)

    def release(self) -> None:
        """Give back all that is held, and end."""
        if self._open:
            self._open = False
            self._path.release(self._held)

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError("the reservation was settled or released before")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release what was left unsettled."""
        self.release()


class Scope:
    """One run's share of the ledger.

    Attributes:
        depth: 0 for the run a person started, one more a level below; known from the tree alone.
        deadline: when the run's wall time is over, in seconds of the clock; never later than the parent's.
    """

    def __init__(self, path: Path, *, levels: int, wall_s: float, latest: float, clock: Callable[[], float]) -> None:
        """Use :meth:`root` and :meth:`child`."""
        self._path = path
        self._account = path.accounts[0]
        self._levels = levels
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self.depth = path.depth
        self.deadline = min(self._began + wall_s, latest)

    @classmethod
    def root(cls, budget: Budget, clock: Callable[[], float] = time.monotonic) -> Scope:
        """Open the ledger of a tree of runs; its wall time begins now.

        Args:
            budget: what the whole tree may spend.
            clock: monotonic seconds.
        """
        path = Path((Account(Amount.of(budget), budget.children_alive),), depth=0)
        path.accounts[0].journal_left = budget.journal_mb << 20
        return cls(path, levels=budget.depth, wall_s=budget.wall_s, latest=float("inf"), clock=clock)

    @property
    def exhausted(self) -> str | None:
        """What closed this scope or one around it to spending, for good; None while open.

        That is a budget as the policy names it: the wall time when it has passed, calls and tokens when all are spent,
        any budget a bill has passed. Or it is ``overbilled``.
        """
        if self._account.latched is None and self._clock() >= self.deadline:
            self._account.latched = "wall_s"
        for account in self._path.accounts:
            if account.latched:
                return account.latched
        return None

    @property
    def levels(self) -> int:
        """Levels of child runs that may still be opened below."""
        return self._levels

    @property
    def alive_children(self) -> int:
        """Child runs, at any level below, that are not over."""
        return self._account.alive

    @property
    def alive_left(self) -> int:
        """Child runs that may be opened now beside those that are alive."""
        return min(account.alive_left for account in self._path.accounts)

    def reserve(self, amount: Amount) -> Reservation:
        """Hold ``amount`` in this scope and in all around it, or nothing anywhere.

        Raises:
            LimitExceededError: it does not fit, or the scope is exhausted.
            RuntimeError: the scope or one around it is closed.
        """
        reservation = Reservation(self._path, _NOTHING, self._check_open)
        reservation.extend(amount)
        return reservation

    def spend(self, amount: Amount) -> None:
        """Book ``amount``, which is known and happens now, here and in all around; or nothing anywhere.

        Raises:
            LimitExceededError: it does not fit, or the scope is exhausted.
            RuntimeError: the scope or one around it is closed.
        """
        self._check_open()
        self._path.spend(amount)

    def owe(self, paid: Paid) -> None:
        """Book what was spent before this ledger was opened, as it is when a run goes on, whatever is left.

        Where less is left than that, the scope is closed to spending, with that budget's name as the reason.
        """
        if not any(paid.amount):
            return
        key = paid.amount.short_in(self._path.left())
        self._path.owe(paid)
        if self._account.latched is None:
            self._account.latched = key

    def fits(self, amount: Amount, most: int) -> int:
        """Return how many times ``amount`` could be reserved now, at most ``most``."""
        if self.exhausted:
            return 0
        times = amount.times_in(self._path.left())
        return most if times is None else min(times, most)

    def child(self, budget: Budget, held: Reservation | None = None) -> Scope:
        """Open a scope inside this one, for a child run.

        Its limits are the smaller of ``budget`` and what remains here at this moment; those that are no stock (its
        turns, and its children alive at a time) the smaller of ``budget``'s and this run's. ``budget.depth`` counts the
        levels below the child.

        Args:
            budget: what the child may spend at most.
            held: a reservation that holds the child itself, as one of a batch does; one is made here without it.

        Raises:
            LimitExceededError: no level, child, place or wall time is left, or not one call, token and byte for it.
            RuntimeError: the scope or one around it is closed.
        """
        if self._levels < 1:
            raise LimitExceededError("depth", 0)
        if not self.alive_left:
            raise LimitExceededError("children_alive", 0)
        if held is None:
            held = self.reserve(Amount(children=1))
        with held, self.reserve(Amount(calls=1, tokens=1, bytes_in=1, bytes_out=1)):
            held.split(Amount(children=1)).settle(Amount(children=1))
        limit = Amount.of(budget).smaller(self._path.left()._replace(turns=self._account.limit.turns))
        alive = min(budget.children_alive, self._account.alive_limit)
        for account in self._path.accounts:
            account.alive += 1
        return Scope(
            Path((Account(limit, alive), *self._path.accounts), self.depth + 1),
            levels=min(budget.depth, self._levels - 1),
            wall_s=budget.wall_s,
            latest=self.deadline,
            clock=self._clock,
        )

    def recorded(self, size: int) -> None:
        """Count ``size`` bytes of a journal; when the tree's are used up, every scope of it is closed to spending.

        What was recorded stays recorded, and what follows from it is recorded, too: an end is never missing. Without
        calls to models little follows.
        """
        root = self._path.accounts[-1]
        root.journal_left -= size
        if root.journal_left < 0 and root.latched is None:
            root.latched = "journal_mb"

    def close(self) -> None:
        """End the scope: nothing more can be reserved in it or below; what is held may still be settled."""
        if not self._account.closed:
            self._account.closed = True
            self._ended = self._clock()
            for account in self._path.accounts[1:]:
                account.alive -= 1

    def remaining(self) -> dict[str, int | float]:
        """Return what is left here now, reservations taken off, by policy key; numbers alone, so a box may see it."""
        return {
            **self._path.left().by_key(),
            "children_alive": self.alive_left,
            "wall_s": max(self.deadline - self._clock(), 0.0),
            "depth": self._levels,
        }

    def given(self) -> dict[str, int | float]:
        """Return what may be spent here in all, by policy key."""
        wall_s = self.deadline - self._began
        return {**self._account.limit.by_key(), "wall_s": wall_s, "children_alive": self._account.alive_limit}

    def usage(self) -> dict[str, Any]:
        """Return what was spent here and below, as plain data.

        Totals (``calls``, ``tokens`` and their four kinds, ``cost_usd``, ``unpriced_calls``, ``estimated_calls``,
        ``estimated_tokens``, ``turns``, ``bytes_in``, ``bytes_out``, ``children``), ``wall_s`` from opening to closing
        or now, and the same totals under ``by_model``, by depth in the tree under ``by_depth``, and as rows of both
        under ``by_depth_and_model``.
        """
        ended = self._clock() if self._ended is None else self._ended
        return {**self._account.usage(), "wall_s": ended - self._began}

    def _check_open(self) -> None:
        for account in self._path.accounts:
            if account.closed:
                raise RuntimeError("the scope is closed")
        reason = self.exhausted
        if reason is not None:
            raise LimitExceededError(reason, self.remaining().get(reason, 0))
