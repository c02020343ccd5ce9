"""What a run took: a table of each model at each depth of the tree, or a line of totals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.cli.tally import compact
from orchestrator.text import counted, one_line

_HEAD = ("depth", "model", "calls", "input", "cached", "output", "cost")
_MODEL_WIDTH = 40


def table(usage: dict[str, Any]) -> list[str]:
    """Return the lines of the table, or none where nothing was asked.

    Args:
        usage: as :meth:`orchestrator.ledger.Scope.usage` has it.
    """
    rows = usage.get("by_depth_and_model", [])
    if not rows:
        return []
    cells = [_HEAD, *(_cells(row, str(row["depth"]), one_line(row["model"], _MODEL_WIDTH)) for row in rows)]
    if len(rows) > 1:
        cells.append(_cells(usage, "", "all"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = [_line(line, widths) for line in cells]
    if usage["estimated_tokens"]:
        lines.append(f"* {compact(usage['estimated_tokens'])} tokens are estimates: the provider sent no bill for them")
    return lines


def line(usage: dict[str, Any]) -> str:
    """Return the totals in a line.

    Args:
        usage: as :meth:`orchestrator.ledger.Scope.usage` has it.
    """
    _, _, _, sent, _, received, cost = _cells(usage, "", "")
    return f"{counted(usage['calls'], 'call')} · {sent} tokens in, {received} out · {cost} · {usage['wall_s']:.1f} s"


def _cells(row: dict[str, Any], depth: str, model: str) -> tuple[str, ...]:
    cached, sent = row["cache_read_tokens"], row["input_tokens"] + row["cache_read_tokens"] + row["cache_write_tokens"]
    star = "*" if row["estimated_tokens"] else ""
    return (
        depth,
        model,
        f"{row['calls']:,}",
        compact(sent) + star,
        f"{cached / sent:.0%}" if cached else "",
        compact(row["output_tokens"]) + star,
        _cost(row) + star,
    )


def _cost(row: dict[str, Any]) -> str:
    if row["unpriced_calls"] and not row["cost_usd"]:
        return "no price"
    return f"${row['cost_usd']:.4f}" + ("+" if row["unpriced_calls"] else "")


def _line(cells: Iterable[str], widths: list[int]) -> str:
    # The two names stand to the left, numbers to the right.
    aligned = [
        cell.ljust(width) if column < 2 else cell.rjust(width)  # noqa: PLR2004 - depth and model
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()
