"""Facts of a run in words, for whatever shows one to a person in a terminal."""

from __future__ import annotations

import time
from typing import Any

from orchestrator.events import KEPT
from orchestrator.text import counted


def told(value: object) -> bool:
    """Return whether a number of an account is one, and worth a word."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(value)


def of(value: float, limit: object) -> str:
    """Say how much was used of what was allowed, where a limit is known."""
    return f"{short(value)} of {short(limit)}" if isinstance(limit, int | float) else short(value)


def short(number: float) -> str:
    """Return a number with at most four decimals."""
    return f"{number:,.4f}".rstrip("0").rstrip(".")


def local_time(seconds: float) -> str:
    """Return a Unix time as date and time here."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "at no time that can be"


def tokens(usage: dict[str, Any]) -> str:
    """Say how many tokens went in and out, by the names that model usage has; empty when it does not tell."""
    cached = usage.get("cache_read_tokens", 0)
    taken = usage.get("input_tokens", 0) + cached + usage.get("cache_write_tokens", 0)
    given = usage.get("output_tokens", 0)
    if not taken and not given:
        return ""
    return f"{taken:,} tokens in{f' ({cached:,} cached)' if cached else ''}, {given:,} out"


def cost(dollars: float | None) -> str:
    """Say what something cost; empty when it has no price."""
    return "" if dollars is None else f"${dollars:.4f}"


def circuit_text(provider: str, state: str, failures: int, wait_s: float) -> str:
    """Say what became of a provider's circuit."""
    if state == "open":
        return f"{provider}: {counted(failures, 'failure')} in a row, asked again in {wait_s:.0f} s"
    return f"{provider}: {'asked again by one request' if state == 'half_open' else 'answers again'}"


def context_facts(facts: dict[str, Any]) -> str:
    """Say what a context was, from its metadata."""
    parts = [str(facts.get("kind", "unknown"))]
    nouns = ("document", "character", "line") if facts.get("kind") != "text" else ("character", "line")
    parts += [counted(facts[f"{noun}s"], noun) for noun in nouns if isinstance(facts.get(f"{noun}s"), int)]
    return ", ".join(parts)


def place_in_session(session: object) -> str:
    """Say which question of which session a run was; empty for a run of its own."""
    if not isinstance(session, dict) or not session:
        return ""
    question = session["question"]
    before = f", goes on from question {question - 1}" if question > 1 else ""
    return f"question {question} of session {session['id']}{before}"


def box_opened(said: dict[str, Any]) -> str:
    """Return what is told of a ``sandbox_opened`` behind the name of the box."""
    controls = f"{counted(len(said['controls']), 'control')} read back"
    if said.get("lent"):
        return "goes on, with the variables of the questions before"
    return f"open under {said['runtime'] or 'the default runtime'} in {said['elapsed_s']:.2f} s, {controls}"


def box_closed(said: dict[str, Any]) -> str:
    """Return what is told of a ``sandbox_closed`` behind the name of the box."""
    if said["reason"] == KEPT:
        return "waits for the next question"
    return f"destroyed{': ' if said['reason'] else ''}{said['reason']}"


def prose(reply: str) -> str:
    """Return a reply without its fenced blocks, which are shown as cells."""
    kept: list[str] = []
    fenced = False
    for line in reply.splitlines():
        fence = line.lstrip().startswith(("```", "~~~"))
        if not fence and not fenced:
            kept.append(line)
        fenced ^= fence
    return "\n".join(kept)


def compacting(said: dict[str, Any]) -> str:
    """Return what is told of a ``compacting``."""
    return f"{said['tokens']:,} tokens of history: the root model sums them up in turn {said['turn']}"
