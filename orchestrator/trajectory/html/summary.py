"""A run's result as a small table, for a notebook: escaped text, no script, no style sheet and no link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.text import counted, head_and_tail
from orchestrator.trajectory.html.page import escaped
from orchestrator.trajectory.spend import Spend
from orchestrator.trajectory.wording import short

ANSWER_CHARS = 4000
"""Of a longer answer, the table has its beginning and its end."""

_CELL = "text-align:left;vertical-align:top"
_PROSE = "white-space:pre-wrap;overflow-wrap:anywhere;max-height:24em;overflow:auto"


def summary(
    *, run: str, status: str, answer: str | None, reason: str, turns: int, usage: Mapping[str, Any], journal: str
) -> str:
    """Return HTML that shows how a run ended, what it answered and what it spent; every text in it is escaped.

    Args:
        run: its id.
        status: as of :class:`orchestrator.rlm.result.Result`, and so ``answer``, ``reason`` and ``turns``.
        answer: as said.
        reason: as said.
        turns: as said.
        usage: as of :meth:`orchestrator.ledger.Scope.usage`.
        journal: path of the journal; empty for none.
    """
    calls, cost = usage.get("calls", 0), usage.get("cost_usd", 0)
    facts = [counted(turns, "turn"), counted(calls, "call"), f"${cost:.4f}", f"{usage.get('wall_s', 0):.1f} s"]
    rows = [("status", status.replace("_", " ") + (f" ({reason})" if reason else "")), ("spent", " · ".join(facts))]
    spend = Spend()
    spend.settle(usage)
    for row in spend.by_model():
        dollars = "no price" if row.cost_usd is None else f"${row.cost_usd:.4f}"
        tokens = f"{short(row.tokens_in)} tokens in, {short(row.tokens_out)} out"
        rows.append((row.name, f"{counted(row.calls, 'call')} · {tokens} · {dollars}"))
    rows += [("run", run)] if run else []
    rows += [("journal", journal)] if journal else []
    body = "".join(
        f'<tr><th scope="row" style="{_CELL}">{escaped(name)}</th><td style="{_CELL}">{escaped(text)}</td></tr>'
        for name, text in rows
    )
    said = "" if answer is None else f'<pre style="{_PROSE}">{escaped(head_and_tail(answer, ANSWER_CHARS))}</pre>'
    return f"<div>{said}<table><tbody>{body}</tbody></table></div>"
