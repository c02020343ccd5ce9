"""What a reply costs: a dated table in a data file, and exact arithmetic over it.

``prices.toml`` stands beside this module. Its keys, for each model:

``input``, ``output``
    US dollars for a million tokens.
``cache_write``, ``cache_read``
    what writing the provider's cache (for five minutes) and reading it costs, as multiples of ``input``; 1 if absent.
``long_prompt``
    other ``input`` and ``output`` for the whole request when its prompt, cached or not, exceeds ``above_tokens``.

A name is looked up as it stands, then without a date at its end: ``claude-opus-5-5-20260901`` is ``claude-opus-5-5``.
Amounts are integers of a billionth of a dollar; a cost is rounded up, once, at the end.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field

from orchestrator.models import tables
from orchestrator.models.base import Usage

SHIPPED: Final = Path(__file__).with_name("prices.toml")

_NANO_PER_TOKEN = 1000  # a dollar a million tokens is 1,000 billionths a token
_DATED = re.compile(r"(?:-|@)(?:\d{8}|\d{4}-\d{2}-\d{2})$")

# TOML's 0.1 becomes the decimal 0.1 that was written, and not the binary number nearest to it.
Number = Annotated[Decimal, Field(strict=False, ge=0, le=1_000_000, allow_inf_nan=False)]


class LongPrompt(tables.Table):
    """Prices of a request whose prompt is long."""

    above_tokens: Annotated[int, Field(ge=1, le=2**53)]
    input: Number
    output: Number


class ModelPrice(tables.Table):
    """Prices of one model."""

    input: Number
    output: Number
    cache_write: Number = Decimal(1)
    cache_read: Number = Decimal(1)
    long_prompt: LongPrompt | None = None


class PriceFile(tables.Table):
    """A whole file."""

    as_of: dt.date | None = None
    source: str = ""
    free: Annotated[tuple[str, ...], Field(strict=False)] = ()
    models: dict[str, ModelPrice] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Rates:
    """What a token costs in one tier, as whole multiples of a billionth of a dollar divided by ``scale``."""

    above_tokens: int
    scale: int
    input: int
    output: int
    cache_write: int
    cache_read: int

    @classmethod
    def of(cls, price: ModelPrice, tier: ModelPrice | LongPrompt) -> Self:
        base = Fraction(tier.input) * _NANO_PER_TOKEN
        exact = (
            base,
            Fraction(tier.output) * _NANO_PER_TOKEN,
            base * Fraction(price.cache_write),
            base * Fraction(price.cache_read),
        )
        scale = math.lcm(*(rate.denominator for rate in exact))
        above = tier.above_tokens if isinstance(tier, LongPrompt) else -1
        return cls(above, scale, *(int(rate * scale) for rate in exact))

    def cost(self, usage: Usage) -> int:
        """Billionths of a dollar, rounded up."""
        scaled = (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_read_tokens * self.cache_read
        )
        return -(-scaled // self.scale)

    def worst_case(self, input_tokens: int, output_tokens: int) -> int:
        """Billionths of a dollar, when each input token costs what the dearest kind of it does."""
        dearest = max(self.input, self.cache_write, self.cache_read)
        return -(-(input_tokens * dearest + output_tokens * self.output) // self.scale)


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model name.

    Attributes:
        as_of: when they were read; None when no file says.
        source: where.
    """

    as_of: dt.date | None
    source: str
    _models: Mapping[str, tuple[_Rates, ...]]
    _free: frozenset[str]

    @classmethod
    def load(cls, path: Path | str | None = None) -> Self:
        """Read the shipped table, and over it the file at ``path``.

        Raises:
            ConfigurationError: the file cannot be read, or a key or value in it is wrong; the message names it.
        """
        shipped = _read(SHIPPED)
        if path is None:
            return cls(shipped.as_of, shipped.source, _tiers(shipped.models), frozenset(shipped.free))
        own = _read(Path(path))
        # What the file prices is no longer free, whatever the shipped table says.
        free = (frozenset(shipped.free) - own.models.keys()) | frozenset(own.free)
        return cls(own.as_of, own.source or str(path), _tiers(shipped.models | own.models), free)

    def cost_nano(self, model_name: str, usage: Usage) -> int | None:
        """Cost of one reply in billionths of a dollar, rounded up; None when the model's price is not known."""
        if self._is_free(model_name):
            return 0
        prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        reachable = self._reachable(model_name, prompt)
        return reachable[-1].cost(usage) if reachable else None

    def worst_case_nano(self, model_name: str, input_tokens: int, output_tokens: int) -> int:
        """Most that a request of at most that many tokens can cost, in billionths of a dollar; 0 when unpriced.

        All of the input is taken to be written to the cache where that costs more.
        """
        if self._is_free(model_name):
            return 0
        reachable = self._reachable(model_name, input_tokens)
        return max((rates.worst_case(input_tokens, output_tokens) for rates in reachable), default=0)

    def _is_free(self, name: str) -> bool:
        return name in self._free or name.partition(":")[0] in self._free

    def _reachable(self, name: str, prompt_tokens: int) -> list[_Rates]:
        """Return the tiers of a prompt of up to that many tokens, the last being that of exactly as many."""
        tiers = self._models.get(name) or self._models.get(undated(name), ())
        return [rates for rates in tiers if prompt_tokens > rates.above_tokens]


def undated(name: str) -> str:
    """Return a model's name without the date at its end, if it has one."""
    return _DATED.sub("", name)


def names_of(spec: str) -> set[str]:
    """Return the names a spec may mean: itself, and what follows its provider; a name may hold colons, too."""
    return {spec, spec.partition(":")[2]} - {""}


def _read(path: Path) -> PriceFile:
    nested: dict[str, type[tables.Table]] = {"models": ModelPrice, "long_prompt": LongPrompt}
    return tables.parse(tables.read(path, "price table"), PriceFile, f"price table {path}", nested)


def _tiers(models: Mapping[str, ModelPrice]) -> dict[str, tuple[_Rates, ...]]:
    return {
        name: tuple(_Rates.of(price, tier) for tier in (price, price.long_prompt) if tier is not None)
        for name, price in models.items()
    }
