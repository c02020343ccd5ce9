"""The books of the ledger: amounts, bills, and one account a scope.

Nothing here decides who may spend; :mod:`orchestrator.ledger` does, and it alone writes in an account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.errors import LimitExceededError
from orchestrator.policy import Budget

NANO = 10**9
"""Units of money in one US dollar."""

# The amount's field and the policy key that limits it, in the order in which a shortage is reported.
_BUDGETS = {"calls": "calls", "tokens": "tokens", "cost_nano": "cost_usd", "children": "children", "turns": "turns"}
# When one of these is spent nothing can leave the host any more. Money is not among them: a model without a price still
# answers. Nor are turns and children: the cell of the last turn may still make its sub-calls.
_ENDING = frozenset(("calls", "tokens"))


@dataclass(frozen=True, slots=True)
class Amount:
    """What one thing may cost, or did.

    Attributes:
        calls: requests to providers.
        tokens: input and output tokens, cached ones included.
        cost_nano: money, in 1e-9 US dollars.
        children: child runs.
        turns: root turns; they count in their own run's scope alone.

    Raises:
        ValueError: a field is not a whole number, or is negative.
    """

    calls: int = 0
    tokens: int = 0
    cost_nano: int = 0
    children: int = 0
    turns: int = 0

    def __post_init__(self) -> None:
        """Refuse what would corrupt a sum: fractions, NaN, booleans, negative numbers."""
        for name in _BUDGETS:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"an amount's {name} is a whole number of at least 0, not {value!r}")

    def __add__(self, other: Amount) -> Amount:
        """Add field by field."""
        return Amount(**{name: getattr(self, name) + getattr(other, name) for name in _BUDGETS})

    def __sub__(self, other: Amount) -> Amount:
        """Subtract field by field; a negative result is a ValueError."""
        return Amount(**{name: getattr(self, name) - getattr(other, name) for name in _BUDGETS})

    def __mul__(self, times: int) -> Amount:
        """Multiply every field."""
        return Amount(**{name: getattr(self, name) * times for name in _BUDGETS})

    def minus(self, other: Amount) -> Amount:
        """Subtract field by field, stopping at 0."""
        return Amount(**{name: max(getattr(self, name) - getattr(other, name), 0) for name in _BUDGETS})

    def smaller(self, other: Amount) -> Amount:
        """Return the smaller of each field."""
        return Amount(**{name: min(getattr(self, name), getattr(other, name)) for name in _BUDGETS})

    def times_in(self, whole: Amount) -> int | None:
        """Return how often this fits into ``whole``; None when it is nothing and fits without end."""
        pairs = [(getattr(whole, name), getattr(self, name)) for name in _BUDGETS]
        return min((there // each for there, each in pairs if each), default=None)

    def short_in(self, whole: Amount) -> str | None:
        """Return the first policy key of which ``whole`` holds less than this, or None when it holds enough."""
        return next((key for name, key in _BUDGETS.items() if getattr(self, name) > getattr(whole, name)), None)

    def by_key(self) -> dict[str, int | float]:
        """Return plain numbers by policy key, money in dollars."""
        return {
            "calls": self.calls,
            "tokens": self.tokens,
            "cost_usd": self.cost_nano / NANO,
            "children": self.children,
            "turns": self.turns,
        }

    @classmethod
    def of(cls, budget: Budget) -> Amount:
        """Return what ``budget`` allows, exactly."""
        return cls(budget.calls, budget.tokens, round(budget.cost_usd * NANO), budget.children, budget.turns)


@dataclass(frozen=True, slots=True)
class Bill:
    """Of what a settled amount consisted, for the tables of usage; it decides nothing.

    Attributes:
        model: the provider's name of the model that was asked.
        input_tokens: uncached input tokens.
        output_tokens: output tokens.
        cache_read_tokens: input tokens served from the provider's cache.
        cache_write_tokens: input tokens written to it.
        unpriced_calls: calls to a model the price table does not know.
        estimated_calls: calls whose tokens are our upper estimate, because no bill came.
    """

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    unpriced_calls: int = 0
    estimated_calls: int = 0

    @property
    def tokens(self) -> int:
        """All of them together."""
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens


_FROM_AMOUNT = ("calls", "tokens", "cost_nano", "turns")
_FROM_BILL = tuple(name for name in Bill.__dataclass_fields__ if name != "model")


@dataclass(slots=True)
class Account:
    """The books of one scope; whatever is booked in a scope below it is booked here as well.

    Attributes:
        limit: what may be spent.
        spent: what was, by settled reservations.
        reserved: what is held for what is under way.
        latched: the policy key of the budget that ended it, for good.
        closed: its run is over.
        alive: child runs below it that are not over.
        tallies: details of what was spent, by depth and model.
        journal_left: bytes that may still be recorded; counted in the root's account alone.
    """

    limit: Amount
    spent: Amount = field(default_factory=Amount)
    reserved: Amount = field(default_factory=Amount)
    latched: str | None = None
    closed: bool = False
    alive: int = 0
    tallies: dict[tuple[int, str], Counter[str]] = field(default_factory=dict)
    journal_left: int = 0

    @property
    def left(self) -> Amount:
        """What may still be reserved."""
        return self.limit.minus(self.spent + self.reserved)

    def settle(self, held: Amount, actual: Amount) -> None:
        """Turn a reservation into spending, and latch when a budget is passed or, of calls and tokens, used up."""
        self.reserved -= held
        self.spent += actual
        for name, key in _BUDGETS.items():
            limit, spent = getattr(self.limit, name), getattr(self.spent, name)
            if self.latched is None and (spent > limit or (name in _ENDING and spent == limit)):
                self.latched = key

    def usage(self) -> dict[str, Any]:
        """Return what was spent as plain data: totals, by model, by depth."""
        models = sorted({model for _, model in self.tallies if model})
        depths = sorted({depth for depth, _ in self.tallies})
        return {
            **_table(self.tallies.values()),
            "children": self.spent.children,
            "by_model": {
                model: _table(tally for (_, its), tally in self.tallies.items() if its == model) for model in models
            },
            "by_depth": {
                str(depth): _table(tally for (its, _), tally in self.tallies.items() if its == depth)
                for depth in depths
            },
        }


@dataclass(frozen=True, slots=True)
class Path:
    """The accounts a scope's spending is booked in: its own first, the root's last.

    Attributes:
        accounts: as said.
        depth: of the scope, 0 for the root.
    """

    accounts: tuple[Account, ...]
    depth: int

    def left(self) -> Amount:
        """Return what may be reserved now, the narrowest account deciding; turns are the scope's own."""
        left = self.accounts[0].left
        for account in self.accounts[1:]:
            left = left.smaller(replace(account.left, turns=left.turns))
        return left

    def reserve(self, amount: Amount) -> None:
        """Book ``amount`` as held in every account, or in none.

        Raises:
            LimitExceededError: an account has less left.
        """
        left = self.left()
        key = amount.short_in(left)
        if key is not None:
            raise LimitExceededError(key, left.by_key()[key])
        for account, share in self._shares(amount):
            account.reserved += share

    def release(self, held: Amount) -> None:
        """Give back what was held."""
        for account, share in self._shares(held):
            account.reserved -= share

    def settle(self, held: Amount, actual: Amount, bill: Bill) -> None:
        """Replace what was held by what was spent."""
        details = {name: getattr(actual, name) for name in _FROM_AMOUNT}
        details |= {name: getattr(bill, name) for name in _FROM_BILL}
        held_shares = [share for _, share in self._shares(held)]
        for (account, share), held_share in zip(self._shares(actual), held_shares, strict=True):
            account.settle(held_share, share)
            account.tallies.setdefault((self.depth, bill.model), Counter()).update(details)

    def _shares(self, amount: Amount) -> Iterator[tuple[Account, Amount]]:
        """Yield each account with what it is charged of ``amount``: turns stay with the run that takes them."""
        yield self.accounts[0], amount
        above = replace(amount, turns=0)
        for account in self.accounts[1:]:
            yield account, above


def _table(tallies: Iterable[Counter[str]]) -> dict[str, int | float]:
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    plain: dict[str, int | float] = {name: total[name] for name in (*_FROM_AMOUNT, *_FROM_BILL) if name != "cost_nano"}
    return {**plain, "cost_usd": total["cost_nano"] / NANO}
