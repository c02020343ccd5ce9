"""What a tree of runs spent, by model and by depth: the ledger's own account, or one counted from a journal cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.text import columns, fitted, one_line

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_WIDE, _MEDIUM = 76, 60  # columns of a terminal from which the table is whole, and from which only one is left out
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

    def cells(self) -> list[str]:
        """Return the numbers as people write them."""
        dollars = "–" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        return [f"{self.calls:,}", f"{self.tokens_in:,}", f"{self.cached:,}", f"{self.tokens_out:,}", dollars]

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
        if said.get("memo_of") is None:  # Else it is an earlier answer, and nothing was sent.
            self._count(model, depth, 1, said["usage"], said["cost_usd"])

    def estimate(self, model: str, depth: int, said: Mapping[str, Any]) -> None:
        """Count requests that brought no reply and may be billed: the fields of ``estimate_charged``."""
        self._count(model, depth, said["attempts"], {"input_tokens": said["tokens"]}, said["cost_usd"])

    def _count(self, model: str, depth: int, calls: int, usage: Mapping[str, Any], cost: float | None) -> None:
        facts = {name: _number(usage.get(name, 0)) for name in TOKENS}
        facts |= {"calls": _number(calls), "cost_usd": _number(cost or 0)}
        facts["unpriced_calls"] = facts["calls"] if cost is None else 0
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

    def lines(self, width: int) -> Iterator[str]:
        """Yield the tables for a terminal of ``width`` columns; the least important columns go where it is narrow."""
        if not self.models:
            return
        heads = ["calls", "tokens in", "cached", "out", "cost"]
        by_depth = list(self.by_depth())
        tables = [("by model", list(self.by_model())), *([("by depth", by_depth)] if len(by_depth) > 1 else [])]
        kept = [0, 1, 2, 3, 4] if width >= _WIDE else [0, 1, 3, 4] if width >= _MEDIUM else [0, 4]
        name_width = min(max(width - 12 * len(kept), 12), 40)
        yield fitted(
            "spent" + ("; no closing account, so counted from what was recorded" if self.counted else ""), width
        )
        for name, rows in tables:
            yield _line(f"  {name}", [heads[place] for place in kept], name_width)
            for row in rows:
                label = fitted(one_line(row.name, name_width - 3), name_width - 3)
                yield _line(f"  {label}", [row.cells()[place] for place in kept], name_width)


def _line(name: str, cells: list[str], name_width: int) -> str:
    return name + " " * (name_width - columns(name)) + "".join(f"{cell:>12}" for cell in cells)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
