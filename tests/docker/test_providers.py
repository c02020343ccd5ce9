"""Providers that misbehave while real boxes ask: the whole way from a cell to the server's books and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from orchestrator import RLM, Policy, Result
from orchestrator.errors import ModelAuthenticationError
from orchestrator.events import CellFinished, Envelope, SubcallFinished
from tests.support import policies
from tests.support.chaos import Provider, Ran, by_key, check_run, open_model
from tests.support.model_server import Body, Fault, ModelServer, Reply, system_of

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

SMALL = ["limits.memory_mb=512", "limits.context_mb=32", "models.max_tokens=256"]
RUNS = 4
# Whatever fails, the model's code goes on with what it has.
WORK = """I work.

```repl
import threading
answers = []
try:
    answers += llm_query_batched([f"question {i}" for i in range(12)], max_tokens=64)
except QueryRefused as refusal:
    answers.append(refusal.reason)
def ask(i):
    try:
        answers.append(llm_query(f"a thread asks {i}"))
    except QueryRefused as refusal:
        answers.append(refusal.reason)
threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
Final = f"{len(answers)} answers"
```
"""


async def run(server: ModelServer, key: str, *settings: str, folder: Path | None = None) -> Ran:
    """Carry out one run in a real box, with a key of its own."""
    events: list[Envelope] = []
    policy: Policy = policies.base().override([*SMALL, *settings])
    model = open_model("anthropic", server, key)
    try:
        rlm = RLM(model=model, policy=policy, journal=folder, on_event=events.append)
        result = await rlm.acomplete("some text", "What is it?")
    finally:
        await model.aclose()
    return Ran(key, policy.budget, result, events)


async def test_runs_in_real_boxes_end_typed_and_their_ledgers_agree_with_the_servers_books(tmp_path: Path) -> None:
    ran: list[Ran] = []
    provider = Provider(seed=7, storm=range(30, 40), root=lambda _body: WORK)

    async def one(number: int) -> None:
        ran.append(await run(server, f"run-{number}", "models.request_timeout_s=5.0", folder=tmp_path))

    with ModelServer(provider) as server:
        async with anyio.create_task_group() as tasks:
            for number in range(RUNS):
                tasks.start_soon(one, number)
        books = by_key(await anyio.to_thread.run_sync(server.settled))
    assert sum(provider.failed.values()) > 10
    for each in ran:
        check_run(each, books[each.key])
    assert any(each.result.answer == "16 answers" for each in ran)


def scripted(code: str, sub: Callable[[Body], Reply | Fault]) -> Callable[[Body, int], Reply | Fault]:
    """Return a responder: this code for the root model, and something for sub-calls."""
    return lambda body, _n: Reply(f"I run this.\n\n```repl\n{code}\n```\n") if system_of(body) else sub(body)


async def test_a_key_that_is_refused_in_the_middle_interrupts_the_cell_and_keeps_the_draft() -> None:
    code = """
draft = "half of it"
try:
    llm_query("q")
except QueryRefused:
    pass
import time
time.sleep(250)"""
    with ModelServer(scripted(code, lambda _body: Fault.status(401))) as server:
        one = await run(server, "key")
    result: Result = one.result
    assert (result.status, result.answer) == ("failed", "half of it")
    assert isinstance(result.error, ModelAuthenticationError)
    assert "check ANTHROPIC_API_KEY" in result.reason
    cell = one.of(CellFinished)[0].result
    assert (cell["status"], cell["state_lost"]) == ("cancelled", False)
    assert cell["elapsed_s"] < 60


async def test_a_batch_of_one_question_many_times_is_asked_once_where_there_is_a_memo() -> None:
    code = "Final = llm_query_batched(['the same'] * 50)"
    with ModelServer(scripted(code, lambda _body: Reply("one answer"))) as server:
        one = await run(server, "key", "models.memo=true")
        assert len(server.requests) == 2
    assert json.loads(one.result.answer or "") == ["one answer"] * 50
    assert one.result.usage["calls"] == 2
    assert [event.memo_of for event in one.of(SubcallFinished)] == [None] + [1] * 49


async def test_a_cell_can_adapt_to_the_cap_on_a_call() -> None:
    code = """
try:
    llm_query("q", max_tokens=256)
except QueryRefused as refusal:
    Final = [refusal.reason, refusal.limit, llm_query("q", max_tokens=16)]"""
    with ModelServer(scripted(code, lambda _body: Reply("short"))) as server:
        one = await run(server, "key", 'models.price_caps={"claude-haiku-5-5"=0.0001}')
    assert json.loads(one.result.answer or "") == ["price_cap", 0.0001, "short"]
