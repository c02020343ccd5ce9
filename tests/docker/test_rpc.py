"""Calls out of a real box: answered, bounded, cancelled with their cell, and hostile when the cell is."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import anyio
import pytest

from orchestrator.errors import SandboxGoneError
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from tests.support.live import POLICY, TIMEOUT, box, outcome, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

WINDOW = POLICY.models.window
SHORT = 0.5
# Cells speak the raw line through this, as the API they are given would not.
RAW = """
import json, os, socket, struct, threading
line = socket.socket(fileno=os.dup(3))
def frame(payload, kind=17):
    return struct.pack(">IB", len(payload), kind) + payload
def message(body=b"", last=1, **head):
    head = json.dumps(head).encode()
    return frame(bytes([last]) + struct.pack(">I", len(head)) + head + body)
def call(method="llm_query", body=b"x", **head):
    return message(body, **{"id": os.urandom(16).hex(), "method": method, **head})
def send(data):
    line.sendall(data)
"""
REASON = """
def reason(prompt):
    try: return llm_query(prompt)
    except QueryRefused as error: return error.reason, error.limit
"""
KILLED_WHILE_CALLING = """
import os, threading, time
for _ in range(4): threading.Thread(target=llm_query, args=("hang" + "x" * 3_000_000,)).start()
time.sleep(0.05)
os._exit(0)
"""


class Desk:
    """Echoes prompts; those that begin with ``hang`` are never answered, those with ``refuse`` refused.

    Attributes:
        calls: all that arrived.
        most: how many were under way at once.
        cancelled: how many were cancelled.
        final: the answer that was handed over.
    """

    def __init__(self, before: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint) -> None:
        self.calls: list[RpcCall] = []
        self.under_way = self.most = self.cancelled = 0
        self.final: str | None = None
        self._before = before

    async def __call__(self, call: RpcCall) -> RpcReply:
        self.calls.append(call)
        if call.cell is None:
            raise RpcRefusal("no_open_cell", "no cell is open")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self._before()
            return await self._answer(call)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def _answer(self, call: RpcCall) -> RpcReply:
        if call.body.startswith("hang"):
            await anyio.sleep_forever()
        if call.body.startswith("refuse"):
            raise RpcRefusal("model_unavailable", "the model could not answer")
        if call.method == "batch_open":
            return RpcReply({"batch": "b", "window": POLICY.models.in_flight})
        if call.method == "final":
            self.final = call.body
        if call.method == "budget":
            return RpcReply({"calls": 5})
        return RpcReply({}, call.body)

    def prompts(self) -> list[str]:
        return [call.body for call in self.calls if call.method == "llm_query"]


class TestCalls:
    async def test_every_function_reaches_the_host_and_comes_back(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            assert await value(opened, "llm_query('hé', model='m', max_tokens=5)") == "hé"
            assert await value(opened, "budget()") == {"calls": 5}
            assert await value(opened, "rlm_query('why', {'a': 'x', 'b': 'yy'})") == "xyy"
            batch = "answers = llm_query_batched(['a', 'refuse', 'c']); answers, answers[1].reason"
            found = (["a", "[query failed: model_unavailable]", "c"], "model_unavailable")
            assert await value(opened, batch) == found
            await value(opened, "FINAL({'n': 1})")
            assert desk.final is not None
            assert json.loads(desk.final) == {"n": 1}
            assert [(call.method, call.params) for call in desk.calls[:1]] == [
                ("llm_query", {"model": "m", "max_tokens": 5})
            ]
            assert [call.cell for call in desk.calls] == [1, 2, 3, *[4] * 5, 5]

    async def test_a_thousand_in_a_batch_keep_their_order_and_the_bound(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            code = "prompts = [str(n) for n in range(1000)]\nllm_query_batched(prompts) == prompts"
            assert await value(opened, code)
            assert len(desk.prompts()) == 1000
            assert desk.most <= POLICY.models.in_flight

    async def test_a_hundred_threads_are_all_answered_within_the_window(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, "limits.pids=256", rpc=desk) as opened:
            code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(100) as pool:
    answers = list(pool.map(llm_query, map(str, range(500))))
answers == [str(n) for n in range(500)]
"""
            assert await value(opened, code)
            assert desk.most <= WINDOW

    async def test_a_prompt_and_an_answer_of_megabytes_travel_whole(self, engine: Engine) -> None:
        async with box(engine, rpc=Desk()) as opened:
            assert await value(opened, "text = 'é' * 4_000_000; llm_query(text) == text")

    async def test_a_prompt_beyond_the_limit_is_refused_in_the_box(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, "limits.answer_mb=1", "limits.frame_kb=1024", rpc=desk) as opened:
            assert await value(opened, f"{REASON}\nreason('x' * (1 << 21))") == ("too_large", 1 << 20)
            assert not desk.calls

    async def test_without_a_handler_every_call_is_refused(self, engine: Engine) -> None:
        async with box(engine) as opened:
            assert await value(opened, f"{REASON}\nreason('x')") == ("unavailable", None)

    async def test_a_fork_cannot_call(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            code = """
import multiprocessing
def ask(n):
    try: return llm_query("x")
    except QueryRefused as error: return error.reason
with multiprocessing.get_context("fork").Pool(1) as pool: found = pool.map(ask, [1])
found
"""
            assert await value(opened, code) == ["forked_process"]
            assert not desk.calls


class TestEnds:
    async def test_an_interrupt_ends_a_call_cancels_it_on_the_host_and_keeps_the_variables(
        self, engine: Engine
    ) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            await opened.execute("x = 1")
            result = await outcome(opened, "llm_query('hang')", SHORT)
            assert (result.status, result.state_lost) == ("timeout", False)
            assert await value(opened, "x, llm_query('next')") == (1, "next")
            assert desk.cancelled == 1
            assert desk.under_way == 0

    async def test_so_does_one_in_a_batch(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            result = await outcome(opened, "llm_query_batched(['hang'] * 100)", SHORT)
            assert (result.status, result.state_lost) == ("timeout", False)
            assert await value(opened, "llm_query_batched(['a', 'b'])") == ["a", "b"]
            assert desk.under_way == 0

    async def test_threads_that_hang_in_calls_are_released_with_their_cell(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            code = f"""
import threading
reasons = []
def ask():
    try: llm_query("hang")
    except QueryRefused as error: reasons.append(error.reason)
threads = [threading.Thread(target=ask) for _ in range({WINDOW})]
for thread in threads: thread.start()
"""
            for _ in range(3):
                assert (await opened.execute(code, TIMEOUT)).ok
                found = await value(opened, "for thread in threads: thread.join(5)\nsorted(set(reasons)), len(reasons)")
                # Those whose call left before their cell ended, and those whose did after.
                assert set(found[0]) <= {"cell_over", "no_open_cell"}
                assert found[1] == WINDOW
            assert await value(opened, "llm_query('next')") == "next"

    async def test_a_call_after_the_end_of_its_cell_belongs_to_none(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            code = """
import threading
reasons, ended = [], threading.Event()
def ask():
    ended.wait(30)
    try: llm_query("late")
    except QueryRefused as error: reasons.append(error.reason)
thread = threading.Thread(target=ask)
thread.start()
threading.Timer(0.3, ended.set).start()
"""
            assert (await opened.execute(code)).ok
            assert await value(opened, "thread.join(5)\nreasons") == ["cell_over"]
            assert "late" not in desk.prompts()

    async def test_a_kernel_killed_in_the_middle_of_a_call_leaves_none_under_way(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            for _ in range(3):
                assert (await outcome(opened, KILLED_WHILE_CALLING, TIMEOUT)).status == "died"
            assert await value(opened, "llm_query('next')") == "next"
            assert desk.under_way == 0

    async def test_a_final_that_does_not_become_a_text_does_not_hang_the_cell(self, engine: Engine) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            code = "class E:\n    def __str__(self): raise SystemExit\nFinal = E()"
            result = await outcome(opened, code, TIMEOUT)
            assert result.ok
            assert "Final was not accepted: SystemExit" in result.stderr
            assert desk.final is None
            assert await value(opened, "Final = 'x' * 3_000_000; 1") == 1
            assert desk.final == "x" * 3_000_000


class TestHostility:
    @pytest.mark.parametrize(
        "attack",
        [
            "send(frame(b''))",
            "send(frame(b'\\x00') * 1000)",
            "send(frame(b'\\x02'))",
            "send(frame(b'\\x01\\xff\\xff\\xff\\xff'))",
            "send(message(id='x', method='budget'))",
            "send(call('../x'))",
            "send(call(params=[1]))",
            "send(call(cell=1))",
            "send(call(body=b'\\xff'))",
            "send(frame(b'\\x01' + struct.pack('>I', 20000) + b'[' * 20000))",
            "for _ in range(100): send(frame(b'\\x00' + b'x' * 1000000))",
        ],
        ids=[
            "empty",
            "carries nothing",
            "unknown flag",
            "lying head",
            "no id",
            "no method",
            "a list",
            "a cell",
            "no text",
            "deep",
            "endless message",
        ],
    )
    async def test_a_forged_call_burns_the_box_and_nothing_else(self, engine: Engine, attack: str) -> None:
        desk = Desk()
        async with box(engine, rpc=desk) as opened:
            result = await outcome(opened, f"{RAW}\n{attack}\nimport time; time.sleep(1000)", TIMEOUT)
            assert (result.status, result.state_lost, opened.gone) == ("protocol_error", True, True)
            assert result.elapsed_s < TIMEOUT / 2
            assert not desk.prompts()
            with pytest.raises(SandboxGoneError):
                await opened.execute("1")

    @pytest.mark.parametrize(
        "attack",
        [
            "send(b'\\xff' * 100)",
            "send(struct.pack('>IB', 2**32 - 1, 17) + b'x')",
            "send(frame(b'{}', kind=33) + frame(b'{}', kind=35) + frame(b'x', kind=16))",
        ],
        ids=["noise", "a lying length", "kinds of the supervisor's"],
    )
    async def test_a_forged_frame_does_not_get_past_the_supervisor(self, engine: Engine, attack: str) -> None:
        async with box(engine, rpc=Desk()) as opened:
            result = await outcome(opened, f"{RAW}\n{attack}\nimport time; time.sleep(1000)", TIMEOUT)
            assert (result.status, opened.gone) == ("died", False)
            assert await value(opened, "llm_query('next')") == "next"

    async def test_a_stalled_fragment_holds_up_nobody_but_its_own_cell(self, engine: Engine) -> None:
        async with box(engine, rpc=Desk()) as opened:
            result = await outcome(opened, f"{RAW}\nsend(call()[:7])\nimport time; time.sleep(1000)", SHORT)
            assert (result.status, result.state_lost) == ("timeout", False)
            result = await outcome(opened, "llm_query('x')", TIMEOUT)  # the rest of the fragment, as it were
            assert result.status in ("protocol_error", "died")

    async def test_calls_whose_answers_nobody_reads_end_in_their_bound(self, engine: Engine) -> None:
        code = f"{RAW}\nwhile True: send(call('budget'))"
        async with box(engine, rpc=Desk()) as opened:
            result = await outcome(opened, code, SHORT)
            assert result.status in ("timeout", "protocol_error")

    async def test_more_calls_than_the_window_are_refused_and_never_run(self, engine: Engine) -> None:
        desk = Desk()
        code = f"{RAW}\nfor n in range({WINDOW * 3}): send(call(body=b'hang'))\nimport time; time.sleep(1000)"
        async with box(engine, rpc=desk) as opened:
            await outcome(opened, code, SHORT)
            assert desk.most == WINDOW
            assert len(desk.calls) == WINDOW
            await value(opened, "1")
            assert desk.under_way == 0
