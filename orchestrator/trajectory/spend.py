"""What a tree of runs spent, by model and by depth: the ledger's own account, or one counted from a journal cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_COLUMNS = ("calls", *TOKENS, "cost_usd", "unpriced_calls")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table of spending.

    Attributes:
        name: of the model, or the depth as a word; it may be a stranger's.
        calls: requests that left for a provider.
        tokens_in: input tokens, those read from or written to a cache included.
        tokens_out: output tokens.
        cached: input tokens served from the provider's cache.
        cost_usd: by the price table; None where no call had a price.
    """

    name: str
    calls: int
    tokens_in: int
    tokens_out: int
    cached: int
    cost_usd: float | None

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any]) -> Row:
        """Read one of the tables of :meth:`orchestrator.ledger.Scope.usage`.

        Raises:
            TypeError: a number in it is none.
        """
        calls, taken, given, read, written, dollars, unpriced = (_number(table.get(name, 0)) for name in _COLUMNS)
        cost = None if unpriced and unpriced == calls else float(dollars)
        return cls(name, int(calls), int(taken + read + written), int(given), int(read), cost)


@dataclass(slots=True)
class Spend:
    """Counts what the events of runs tell, until a run's end brings the ledger's account.

    Attributes:
        models: tables by model, as the ledger has them.
        depths: tables by depth.
        counted: no account came: these are sums of what was recorded, without attempts that failed.
    """

    models: dict[str, dict[str, float]] = field(default_factory=dict)
    depths: dict[str, dict[str, float]] = field(default_factory=dict)
    counted: bool = True

    def add(self, model: str, depth: int, said: Mapping[str, Any]) -> None:
        """Count one answer: the fields of ``root_replied`` or ``subcall_finished``."""
        cost = said["cost_usd"]
        facts = {name: _number(said["usage"].get(name, 0)) for name in TOKENS}
        facts |= {"calls": 1, "cost_usd": _number(cost or 0), "unpriced_calls": int(cost is None)}
        for tables, name in ((self.models, model), (self.depths, str(depth))):
            table = tables.setdefault(name, dict.fromkeys(_COLUMNS, 0))
            for key, number in facts.items():
                table[key] += number

    def settle(self, usage: Mapping[str, Any]) -> None:
        """Take the ledger's account, which ``run_finished`` brings for the run and all below it.

        Raises:
            TypeError: it is not of the shape that the ledger gives it, or holds what is no number.
        """
        if not usage.get("by_model"):
            return
        tables = usage["by_model"], usage.get("by_depth", {})
        if not all(
            isinstance(table, dict) and all(isinstance(row, dict) for row in table.values()) for table in tables
        ):
            raise TypeError("an account is a table of tables")
        ledgers = Spend(*tables, counted=False)
        _ = [*ledgers.by_model(), *ledgers.by_depth()]  # Every number of it is one.
        self.models, self.depths, self.counted = ledgers.models, ledgers.depths, False

    def by_model(self) -> Iterator[Row]:
        """Yield a row a model."""
        yield from (Row.of(name, table) for name, table in self.models.items())

    def by_depth(self) -> Iterator[Row]:
        """Yield a row a depth, 0 being the run that a person started."""
        yield from (Row.of(f"depth {depth}", table) for depth, table in self.depths.items())


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
