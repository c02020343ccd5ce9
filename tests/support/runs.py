"""Events of made-up runs, for tests of whatever reads or draws them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator import events
from orchestrator.events import Event

USAGE = {
    "input_tokens": 1000,
    "output_tokens": 50,
    "cache_read_tokens": 200,
    "cache_write_tokens": 0,
    "estimated": False,
}


def cell_result(**changes: Any) -> dict[str, Any]:
    """Return the result of a cell that went well, with ``changes``."""
    result: dict[str, Any] = {
        "status": "ok",
        "state_lost": False,
        "stdout": "",
        "stderr": "",
        "result": None,
        "error": None,
        "truncated": False,
        "elapsed_s": 0.5,
        "detail": "",
    }
    return {**result, **changes}


def started(query: str = "How many?", depth: int = 0) -> events.RunStarted:
    """Return the first event of a run."""
    context = {"kind": "dict", "characters": 12345, "bytes": 12345, "lines": 99, "sha256": "ab" * 32, "documents": 3}
    return events.RunStarted(query, context, {"name": "default"}, "root-model", "sub-model", depth)


def replied(turn: int = 1, text: str = "I look.\n\n```repl\nprint(1)\n```", cost_usd: float | None = 0.01) -> Event:
    """Return a turn of the root model."""
    return events.RootReplied(turn, text, "end", USAGE, cost_usd, 1.5)


def asked(call: int = 1, prompt: str = "What is here?") -> Event:
    """Return the start of a sub-call."""
    return events.SubcallStarted(call, 1, "sub-model", prompt, 512, "b1")


def answered(call: int = 1, text: str = "A word.", cost_usd: float | None = 0.001, attempts: int = 1) -> Event:
    """Return the end of a sub-call."""
    return events.SubcallFinished(call, text, "end", USAGE, cost_usd, attempts, 0.25)


def finished(status: str = "answered", answer: str | None = "42", reason: str = "") -> events.RunFinished:
    """Return the last event of a run."""
    return events.RunFinished(status, answer, reason, {"calls": 3, "tokens": 3750, "by_model": {}}, 1, 9.5)


def a_run() -> list[Event]:
    """Return a run that holds every kind of event."""
    return [
        started(),
        events.SandboxOpened("c0ffee" * 5, "sha256:" + "0" * 64, "runc", 0.4, {"H1": "no network: held"}),
        replied(),
        events.CellStarted(1, 1, "print(1)"),
        asked(),
        events.RetryScheduled("sub", 1, "model_unavailable", 0.5),
        events.EstimateCharged("sub", 1, 1, 750, 0.002),
        events.CircuitChanged("Anthropic", "open", 8, 2.0),
        answered(attempts=2),
        asked(2, "And here?"),
        events.SubcallFailed(2, "model_unavailable", "503 from the provider", 3, 2.0),
        events.Refused(1, "llm_query", "calls", 0.0),
        events.ToolStarted(1, 1, "lookup", '{"args": ["x"], "kwargs": {}}'),
        events.ToolFinished(1, '["found"]', 0.1),
        events.ToolStarted(2, 1, "lookup", '{"args": [], "kwargs": {}}'),
        events.ToolFailed(2, "tool_failed", "KeyError: x", 0.1),
        events.ChildStarted("child-1", 1, "A smaller question"),
        events.ChildFinished("child-1", "answered", ""),
        events.FinalSet(1, "42"),
        events.CellFinished(1, 1, cell_result(stdout="1\n")),
        events.Observed(1, "1"),
        events.Compacting(2, 150_001),
        events.Resumed(5, {"calls": 40}),
        events.Diverged(1, "it printed something else"),
        events.LimitReached("calls", 0.0),
        events.RootFailed(2, "model_request", "400 from the provider", 2, 1.5),
        events.BudgetTold(1, 1, {"calls": 37, "wall_s": 590.5}),
        events.SandboxClosed("c0ffee" * 5),
        finished(),
    ]


def a_question(number: int, *, cleared: str = "ok") -> list[Event]:
    """Return a question of a session whose box was there before if it is not the first, and lives on behind it."""
    contexts = [{"kind": "text", "sha256": "ab" * 32}]
    session = {"id": "s1", "question": number, "previous": "cd" * 32 if number > 1 else "", "contexts": contexts}
    opened = events.SandboxOpened("c0ffee" * 5, "sha256:" + "0" * 64, "runc", 0.4, {"H1": "held"}, lent=number > 1)
    clearing = [
        events.CellStarted(0, 2, 'globals().pop("Final", None)'),
        events.CellFinished(0, 2, cell_result(status=cleared, state_lost=cleared != "ok")),
    ]
    cell = 1 if number == 1 else 3
    return [
        replace(started(f"Question {number}?"), session=session),
        opened,
        *(clearing if number > 1 else []),
        replied(),
        events.CellStarted(1, cell, "print(1)"),
        events.CellFinished(1, cell, cell_result(stdout="1\n")),
        events.SandboxClosed("c0ffee" * 5, events.KEPT),
        finished(),
    ]
