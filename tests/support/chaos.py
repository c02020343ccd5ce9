"""A provider of which nearly every third answer is a failure, and what has to hold of a run that it served.

Every run has its own key, so the server's books tell what each run was served:

- *billed*: a whole answer with a bill that can be true. The ledger has exactly those tokens, and not as an estimate;
- *unbilled*: a whole answer without one. The ledger has an estimate;
- *refused*: an HTTP status. The ledger has the call, and no token;
- *broken* and *given up*: an answer that broke off, made no sense or never came, or whose client went away first. The
  ledger has an estimate that is no less than all that the provider could bill for what was asked.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import pytest

from orchestrator.events import Envelope, EstimateCharged, LimitReached, RetryScheduled, RootReplied, SubcallFinished
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.openai import OpenAIModel
from orchestrator.policy import Budget
from orchestrator.rlm.result import Result
from tests.support.model_server import Body, Entry, Fault, ModelServer, Reply, prompt_of, system_of

NAME = "claude-haiku-5-5"
FAILING = 0.3
HUGE = 10**9

# By weight. The last ones end a run: one refused key, and one bill that no budget can pay.
FAULTS: list[tuple[int, Fault | Reply]] = [
    (6, Fault.status(429, retry_after_ms=5)),
    (3, Fault.status(429, retry_after=0)),
    (6, Fault.status(500)),
    (6, Fault.status(529, retry_after="0.01")),
    (2, Fault.status(502, message="<html>\x1b[2J bad gateway</html>")),
    (2, Fault.status(408)),
    (3, Fault.status(400, message="prompt is too long")),
    (5, Fault.disconnect()),
    (5, Fault.drop()),
    (5, Fault.reset()),
    (4, Fault.end_early()),
    (5, Fault.malformed()),
    (4, Fault.overloaded()),
    (1, Fault.hang()),
    (1, Reply("drip " * 20, drip_s=0.5)),
    (4, Reply("I cannot help with that.", stop_reason="refusal")),
    (4, Reply("cut " * 20, stop_reason="max_tokens")),
    (4, Reply("")),
    (4, Reply("no bill", usage=False)),
    (4, Reply("wrong bill", output_tokens=-1)),
    (2, Reply("wrong bill", input_tokens=2**70)),
    (1, Fault.status(401)),
    (1, Reply("huge bill", output_tokens=HUGE)),
]


@dataclass
class Provider:
    """Decides what the server answers: a root model's code, an echo, or a failure; during the storm only overloads."""

    seed: int
    storm: range
    root: Callable[[Body], str]
    failed: Counter[str] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - nothing here is a secret

    def __call__(self, body: Body, n: int) -> Reply | Fault:
        with self._lock:
            if n in self.storm:
                self.failed["storm"] += 1
                return Fault.status(429 if n % 2 else 529)
            if self._random.random() < FAILING:
                weight, fault = self._random.choices(FAULTS, [weight for weight, _ in FAULTS])[0]
                self.failed[f"{weight} {fault}"] += 1
                return fault
            delay = self._random.choice([0.0, 0.0, 0.002])
        if system_of(body):
            return Reply(self.root(body), delay_s=delay)
        return Reply(f"echo: {prompt_of(body)[:40]}", delay_s=delay)


@dataclass
class Ran:
    """One run that is over."""

    key: str
    budget: Budget
    result: Result
    events: list[Envelope]

    def of(self, *kinds: type) -> list[Any]:
        return [envelope.event for envelope in self.events if isinstance(envelope.event, kinds)]


def open_model(dialect: str, server: ModelServer, key: str) -> AnthropicModel | OpenAIModel:
    """Open the real client of a dialect."""
    if dialect == "anthropic":
        return AnthropicModel(NAME, environ={"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": server.url})
    return OpenAIModel(NAME, environ={"OPENAI_API_KEY": key, "OPENAI_BASE_URL": f"{server.url}/v1"})


def by_key(books: list[Entry]) -> dict[str, list[Entry]]:
    """Return the books of each key."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in books:
        found[entry.key].append(entry)
    return found


def check_run(one: Ran, books: list[Entry]) -> bool:
    """Check one run against its part of the books; return whether every number could be compared exactly."""
    _check_outcome(one)
    _check_budget(one)
    usage = one.result.usage
    outcomes = Counter(entry.outcome for entry in books)
    tokens = Counter[str]()
    for entry in books:
        tokens[entry.outcome] += entry.tokens
    # No estimate covers a bill that nothing that was asked for can come to.
    huge = sum(entry.tokens for entry in books if entry.outcome == "billed" and entry.tokens >= HUGE)
    tokens["billed"] -= huge - sum(_huge_bills(one))
    lost = sum(event.attempts for event in one.of(EstimateCharged))
    billed = usage["tokens"] - usage["estimated_tokens"]
    # What left and did not arrive, or was answered at the moment it was given up, is among those that are lost.
    doubtful = lost - outcomes["broken"] - outcomes["given_up"]
    assert doubtful >= 0
    assert 0 <= usage["calls"] - len(books) <= doubtful
    assert billed <= tokens["billed"]
    assert tokens["billed"] - billed + tokens["broken"] + tokens["given_up"] <= usage["estimated_tokens"]
    if doubtful == 0:
        assert (usage["calls"], billed) == (len(books), tokens["billed"])
        assert usage["estimated_calls"] == outcomes["broken"] + outcomes["given_up"] + outcomes["unbilled"]
    _check_journal(one)
    return bool(doubtful == 0)


def _check_outcome(one: Ran) -> None:
    result = one.result
    assert result.status in ("answered", "no_answer", "limit", "failed")
    assert result.status == "answered" or result.reason
    assert (result.error is not None) == (result.status == "failed"), result
    if result.error is not None:
        assert result.error.exit_code == 5
        assert "\n" not in result.reason
        assert "\x1b" not in result.reason
    if result.status == "limit":
        assert result.reason in ("calls", "tokens", "cost_usd", "turns", "wall_s")
        assert one.of(LimitReached)


def _tokens(reply: RootReplied | SubcallFinished) -> list[int]:
    return [value for key, value in reply.usage.items() if key.endswith("_tokens")]


def _huge_bills(one: Ran) -> list[int]:
    bills = [sum(_tokens(reply)) for reply in one.of(RootReplied, SubcallFinished)]
    return [tokens for tokens in bills if tokens >= HUGE]


def _check_budget(one: Ran) -> None:
    usage, budget = one.result.usage, one.budget
    assert usage["calls"] <= budget.calls
    assert usage["turns"] <= 2 * budget.turns  # each run of the tree has its own
    assert usage["children"] <= budget.children
    huge = _huge_bills(one)
    if not huge:
        assert usage["tokens"] <= budget.tokens
        assert usage["cost_usd"] <= budget.cost_usd
        return
    # A bill beyond what was reserved is recorded as it is. Nothing is sent after it but what had left before.
    assert usage["tokens"] - sum(huge) <= budget.tokens


def _check_journal(one: Ran) -> None:
    """What the journal tells adds up to what the ledger has."""
    replies = one.of(RootReplied, SubcallFinished)
    estimates = one.of(EstimateCharged)
    tokens = sum(sum(_tokens(reply)) for reply in replies)
    usage = one.result.usage
    assert tokens + sum(event.tokens for event in estimates) == usage["tokens"]
    cost = sum(event.cost_usd for event in [*replies, *estimates])
    assert cost == pytest.approx(usage["cost_usd"], abs=1e-9)
    assert len(one.of(RetryScheduled)) <= usage["calls"]
