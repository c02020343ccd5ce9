"""The books of the ledger: amounts, bills, and one account a scope.

Nothing here decides who may spend; :mod:`orchestrator.ledger` does, and it alone writes in an account.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from orchestrator.errors import LimitExceededError
from orchestrator.policy import Budget

NANO = 10**9
"""Units of money in one US dollar."""

# The amount's fields, as they are declared, and the policy keys that limit them; a shortage is reported in this order.
_BUDGETS = {
    "calls": "calls",
    "tokens": "tokens",
    "cost_nano": "cost_usd",
    "children": "children",
    "turns": "turns",
    "bytes_in": "bytes_in",
    "bytes_out": "bytes_out",
    "tool_calls": "tool_calls",
}


# Makes a tuple of what was checked before: a sum, a difference and a minimum of amounts need no second look.
_unchecked = tuple.__new__
_WHOLE = {int}


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


class _Fields(NamedTuple):
    calls: int = 0
    tokens: int = 0
    cost_nano: int = 0
    children: int = 0
    turns: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    tool_calls: int = 0


class Amount(_Fields):
    """What one thing may cost, or did; a dozen are made for every sub-call, so it is as light as a tuple.

    Attributes:
        calls: requests to providers.
        tokens: input and output tokens, cached ones included.
        cost_nano: money, in 1e-9 US dollars.
        children: child runs.
        turns: root turns; they count in their own run's scope alone.
        bytes_in: UTF-8 of answers that went into a box.
        bytes_out: UTF-8 of prompts and contexts that came out of one.
        tool_calls: calls of host tools.

    Raises:
        ValueError: a field is not a whole number, or is negative.
    """

    __slots__ = ()

    def __new__(cls, *values: int, **named: int) -> Self:
        """Refuse what would corrupt a sum: fractions, NaN, booleans, negative numbers."""
        amount = super().__new__(cls, *values, **named)
        if set(map(type, amount)) != _WHOLE or min(amount) < 0:
            wrong = [(name, value) for name, value in zip(_BUDGETS, amount, strict=True) if not _is_count(value)]
            raise ValueError(f"an amount's {wrong[0][0]} is a whole number of at least 0, not {wrong[0][1]!r}")
        return amount

    def __add__(self, other: Amount) -> Amount:  # type: ignore[override]
        """Add field by field."""
        return _unchecked(Amount, map(operator.add, self, other))

    def __sub__(self, other: Amount) -> Amount:
        """Subtract field by field; a negative result is a ValueError."""
        rest = _unchecked(Amount, map(operator.sub, self, other))
        return rest if min(rest) >= 0 else Amount(*rest)

    def __mul__(self, times: int) -> Amount:  # type: ignore[override]
        """Multiply every field."""
        return Amount(*(value * times for value in self))

    def minus(self, other: Amount) -> Amount:
        """Subtract field by field, stopping at 0."""
        rest = _unchecked(Amount, map(operator.sub, self, other))
        return rest if min(rest) >= 0 else _unchecked(Amount, [max(value, 0) for value in rest])

    def smaller(self, other: Amount) -> Amount:
        """Return the smaller of each field."""
        return _unchecked(Amount, map(min, self, other))

    def times_in(self, whole: Amount) -> int | None:
        """Return how often this fits into ``whole``; None when it is nothing and fits without end."""
        return min((there // each for there, each in zip(whole, self, strict=True) if each), default=None)

    def short_in(self, whole: Amount) -> str | None:
        """Return the first policy key of which ``whole`` holds less than this, or None when it holds enough."""
        if all(map(operator.le, self, whole)):
            return None
        short = zip(_BUDGETS.values(), self, whole, strict=True)
        return next(key for key, mine, there in short if mine > there)

    def by_key(self) -> dict[str, int | float]:
        """Return plain numbers by policy key, money in dollars."""
        return {
            "calls": self.calls,
            "tokens": self.tokens,
            "cost_usd": self.cost_nano / NANO,
            "children": self.children,
            "turns": self.turns,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "tool_calls": self.tool_calls,
        }

    @classmethod
    def of(cls, budget: Budget) -> Amount:
        """Return what ``budget`` allows, exactly."""
        return cls(
            calls=budget.calls,
            tokens=budget.tokens,
            cost_nano=round(budget.cost_usd * NANO),
            children=budget.children,
            turns=budget.turns,
            bytes_in=budget.bytes_in,
            bytes_out=budget.bytes_out,
            tool_calls=budget.tool_calls,
        )


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
        estimated_calls: calls whose tokens are our estimate, because no bill came.
        estimated_tokens: those tokens.
    """

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    unpriced_calls: int = 0
    estimated_calls: int = 0
    estimated_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All of them together."""
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Paid:
    """What was spent at an earlier time.

    Attributes:
        amount: how much.
        bill: of what its tokens consisted.
        depth: of the run that spent it.
    """

    amount: Amount
    bill: Bill
    depth: int


_FROM_AMOUNT = ("calls", "tokens", "cost_nano", "turns", "bytes_in", "bytes_out", "tool_calls")
_amount_told = operator.attrgetter(*_FROM_AMOUNT)
OVERBILLED = "overbilled"
_NO_BILL = Bill(model="")
_FROM_BILL = tuple(name for name in Bill.__dataclass_fields__ if name != "model")
_bill_told = operator.attrgetter(*_FROM_BILL)


@dataclass(slots=True)
class Account:
    """The books of one scope; whatever is booked in a scope below it is booked here as well.

    Attributes:
        limit: what may be spent.
        alive_limit: child runs below it that may be alive at a time.
        spent: what was, by settled reservations.
        reserved: what is held for what is under way.
        latched: the policy key of the budget that ended it, or :data:`OVERBILLED`; for good.
        closed: its run is over.
        alive: child runs below it that are not over.
        tallies: details of what was spent, by depth and model.
        journal_left: bytes that may still be recorded; counted in the root's account alone.
    """

    limit: Amount
    alive_limit: int = 0
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

    @property
    def alive_left(self) -> int:
        """Child runs that may still be opened below it now."""
        return max(self.alive_limit - self.alive, 0)

    def settle(self, held: Amount, actual: Amount) -> None:
        """Turn a reservation into spending, and latch when a budget is passed or, of calls and tokens, used up."""
        self.reserved -= held
        self.spent += actual
        if self.latched is None:
            self.latched = self._passed()

    def _passed(self) -> str | None:
        """Return the budget that is used up so that nothing can leave the host any more, or that a bill has passed.

        Money alone is not used up by its last cent: a model without a price still answers. Nor are turns and children:
        the cell of the last turn may still make its sub-calls. Nor bytes and calls of tools: the root model needs none
        for its last word.
        """
        limit, spent = self.limit, self.spent
        if spent.calls >= limit.calls:
            return "calls"
        return "tokens" if spent.tokens >= limit.tokens else spent.short_in(limit)

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
            "by_depth_and_model": [
                {"depth": depth, "model": model, **_table([tally])}
                for (depth, model), tally in sorted(self.tallies.items())
                if model
            ],
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
            left = left.smaller(account.left._replace(turns=left.turns))
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

    def spend(self, amount: Amount) -> None:
        """Book ``amount`` as spent in every account, or in none; as :meth:`reserve` and a settlement by the truth.

        Raises:
            LimitExceededError: an account has less left.
        """
        self.reserve(amount)
        self.settle(amount, amount, _NO_BILL)

    def release(self, held: Amount) -> None:
        """Give back what was held."""
        for account, share in self._shares(held):
            account.reserved -= share

    def settle(self, held: Amount, actual: Amount, bill: Bill) -> None:
        """Replace what was held by what was spent; a bill above what was held closes the scope that made the call."""
        details = list(zip(_FROM_AMOUNT, _amount_told(actual), strict=True))
        if bill.model:
            details += zip(_FROM_BILL, _bill_told(bill), strict=True)
        details = [detail for detail in details if detail[1]]
        key = self.depth, bill.model
        for (account, share), (_, held_share) in zip(self._shares(actual), self._shares(held), strict=True):
            account.settle(held_share, share)
            tally = account.tallies.get(key)
            if tally is None:
                tally = account.tallies[key] = Counter()
            for name, value in details:
                tally[name] += value
        own = self.accounts[0]
        # What a provider bills can turn out higher than was held for it; nothing else can.
        if own.latched is None and (actual.tokens > held.tokens or actual.cost_nano > held.cost_nano):
            own.latched = OVERBILLED

    def owe(self, paid: Paid) -> None:
        """Book what was spent before, at its own depth, whether there is as much left or not."""
        for account, share in self._shares(paid.amount):
            account.reserved += share
        replace(self, depth=paid.depth).settle(paid.amount, paid.amount, paid.bill)

    def _shares(self, amount: Amount) -> Iterator[tuple[Account, Amount]]:
        """Yield each account with what it is charged of ``amount``: turns stay with the run that takes them."""
        yield self.accounts[0], amount
        above = amount._replace(turns=0) if amount.turns else amount
        for account in self.accounts[1:]:
            yield account, above


def _table(tallies: Iterable[Counter[str]]) -> dict[str, int | float]:
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    plain: dict[str, int | float] = {name: total[name] for name in (*_FROM_AMOUNT, *_FROM_BILL) if name != "cost_nano"}
    return {**plain, "cost_usd": total["cost_nano"] / NANO}
