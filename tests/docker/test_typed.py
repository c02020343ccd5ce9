"""Answers and sub-calls of a form, and tools of the host, in real boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from orchestrator import RLM, ToolError
from orchestrator.events import Refused, ToolFailed, ToolFinished, ToolStarted
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.rlm.result import Result
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.support.fakes import FakeModel, MemoryJournal
from tests.support.live import POLICY, box, value

pytestmark = [pytest.mark.docker]

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def turn(*lines: str) -> ModelReply:
    code = "\n".join(lines)
    return ModelReply(f"I run this.\n\n```repl\n{code}\n```\n", Usage(100, 10))


def run(*turns: ModelReply, journal: MemoryJournal | None = None, **given: Any) -> tuple[Result, FakeModel]:
    """Run the turns in a real box; sub-calls are answered by ``sub``."""
    sub: Callable[[ModelRequest], ModelReply] | None = given.pop("sub", None)
    schema, settings = given.pop("schema", None), given.pop("settings", [])
    root = FakeModel(turns, name="root", default=turn("Final = 'no more'"))
    model = FakeModel(name="sub", default=sub)
    policy = POLICY.override(settings)
    result = RLM(root, model, policy=policy, on_event=journal, **given).complete("text", "What?", schema)
    return result, root


class Count(BaseModel):
    n: int


def test_a_wrong_answer_is_seen_in_its_turn_and_the_right_one_is_an_object() -> None:
    result, root = run(
        turn("Final = {'n': 'three'}"), turn("print('Final' in globals())"), turn("Final = {'n': 3}"), schema=Count
    )
    assert (result.status, result.value, result.turns) == ("answered", Count(n=3), 3)
    told = root.requests[1].messages[-1].text
    assert "Final was not accepted" in told
    assert "at $.n: Input should be a valid integer" in told
    assert "False" in root.requests[2].messages[-1].text


def test_wrong_answers_end_the_run_with_the_last_of_them() -> None:
    journal = MemoryJournal()
    result, _ = run(*[turn(f"Final = 'wrong {number}'") for number in range(5)], schema=SCHEMA, journal=journal)
    assert (result.status, result.reason, result.answer, result.turns) == ("no_answer", "wrong_form", "wrong 3", 4)
    assert [each.reason for each in journal.of(Refused)] == ["wrong_form"] * 4


def test_sub_calls_have_their_form_one_by_one_in_batches_and_beside_others() -> None:
    def sub(request: ModelRequest) -> ModelReply:
        text = request.messages[-1].text
        number, again = int(text.split()[0]), "Your last reply was" in text
        reply = "no idea" if number == 9 or (number % 2 and not again) else f'```json\n{{"n": {number}}}\n```'
        return ModelReply(reply, Usage(10, 2))

    result, _ = run(
        turn(
            f"schema = {SCHEMA!r}",
            "import asyncio, sys",
            "before = 'jsonschema' in sys.modules",
            "one = llm_query('1', schema=schema)",
            "many = llm_query_batched(['2', '3', '9'], schema=schema)",
            "both = await asyncio.gather(*(llm_query.aio(str(n), schema=schema) for n in (4, 5)))",
            "try:",
            "    llm_query('9', schema=schema)",
            "except QueryRefused as error:",
            "    last = error.reason",
            "Final = [before, one, many[:2], many[2].reason, both, last]",
        ),
        sub=sub,
    )
    assert json.loads(result.answer or "") == [
        False,
        {"n": 1},
        [{"n": 2}, {"n": 3}],
        "wrong_form",
        [{"n": 4}, {"n": 5}],
        "wrong_form",
    ]
    # 1, 3 and 5 are asked twice, 9 three times, and that twice.
    assert result.usage["by_model"]["sub"]["calls"] == 2 + 1 + 2 + 3 + 1 + 2 + 3


def test_tools_are_called_from_cells_threads_and_tasks_and_survive_the_kernel() -> None:
    at_once, most = 0, 0

    def square(number: int) -> int:
        """Return the square of a number."""
        return number**2

    async def shout(word: str, *, times: int = 1) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.sleep(0.01)
        at_once -= 1
        return word.upper() * times

    journal = MemoryJournal()
    result, root = run(
        turn("import os", "os._exit(1)"),
        turn(
            "import asyncio",
            "from concurrent.futures import ThreadPoolExecutor",
            "with ThreadPoolExecutor(8) as pool:",
            "    squares = list(pool.map(square, range(20)))",
            "words = await asyncio.gather(*(shout.aio(w, times=2) for w in 'abcdefgh'))",
            "Final = [squares, words, budget()['tool_calls']]",
        ),
        tools=[square, shout],
        journal=journal,
        settings=["budget.tool_calls=30", "models.in_flight=4"],
    )
    squares, words, left = json.loads(result.answer or "")
    assert squares == [number**2 for number in range(20)]
    assert words == [letter.upper() * 2 for letter in "abcdefgh"]
    assert (left, most <= 4, len(journal.of(ToolFinished))) == (2, True, 28)
    assert "square(number: int) -> int" in root.requests[0].system


def test_what_goes_wrong_with_a_tool_is_a_word_and_a_line() -> None:
    def fails(how: str) -> None:
        if how == "said":
            raise ToolError("no such article")
        raise RuntimeError("/home/somebody/secret")

    async def hang() -> None:
        await anyio.sleep_forever()

    journal = MemoryJournal()
    result, _ = run(
        turn(
            "def reason(call, *args, **kwargs):",
            "    try:",
            "        return call(*args, **kwargs)",
            "    except QueryRefused as error:",
            "        return [error.reason, str(error)]",
            "def deep(n): return [] if not n else [deep(n - 1)]",
            "small = [((), {}), ((1,), {}), (('x', 'y'), {}), ((), {'other': 1})]",
            "large = [(('x' * 9_000_000,), {}), ((deep(100),), {}), (([0] * 20_000,), {})]",
            "wrong = [reason(fails, *args, **named)[0] for args, named in small + large]",
            "Final = [wrong, reason(fails, 'said'), reason(fails, 'secret'), reason(hang)[0]]",
        ),
        tools=[fails, hang],
        journal=journal,
        settings=["limits.call_timeout_s=0.3"],
    )
    wrong, said, secret, hung = json.loads(result.answer or "")
    assert wrong[:4] == ["invalid_arguments"] * 4
    assert wrong[4] in ("arguments_too_large", "too_large")
    assert wrong[5:] == ["invalid_arguments"] * 2
    assert (said[0], "no such article" in said[1]) == ("tool_failed", True)
    assert (secret[0], "secret" in secret[1]) == ("tool_failed", False)
    assert hung == "call_timeout_s"
    assert [each.code for each in journal.of(ToolFailed)] == ["tool_failed", "tool_failed", "call_timeout_s"]


def test_a_tool_is_cancelled_with_the_cell_that_called_it() -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    journal = MemoryJournal()
    result, _ = run(
        turn("hang()"), turn("Final = 'on'"), tools=[hang], journal=journal, settings=["limits.cell_timeout_s=1.0"]
    )
    assert (result.answer, ended) == ("on", ["cancelled"])
    assert len(journal.of(ToolStarted)) == len(journal.of(ToolFailed)) == 1


def test_a_child_has_only_the_tools_that_are_passed_on() -> None:
    def mine() -> str:
        return "mine"

    def ours() -> str:
        return "ours"

    result, root = run(
        turn("Final = [mine(), ours(), rlm_query('which?', 'text')]"),
        turn("Final = ['mine' in globals(), ours()]"),
        tools=[mine, ours],
        child_tools=[ours],
    )
    first, second, child = json.loads(result.answer or "")
    assert (first, second, json.loads(child)) == ("mine", "ours", [False, "ours"])
    assert "mine()" not in root.requests[1].system


@pytest.mark.anyio
async def test_a_sandbox_alone_has_tools_without_a_context(engine: Engine) -> None:
    calls: list[RpcCall] = []

    async def answer(call: RpcCall) -> RpcReply:
        calls.append(call)
        return RpcReply(body="[7]")

    async with box(engine, rpc=answer, tools=["lookup"]) as opened:
        assert await value(opened, "'context' in globals(), lookup('x', y=1)") == (False, [7])
    assert [(call.method, call.params, json.loads(call.body)) for call in calls] == [
        ("tool", {"name": "lookup"}, {"args": ["x"], "kwargs": {"y": 1}})
    ]
