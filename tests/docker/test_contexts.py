"""Further contexts for a box that runs: what is there afterwards, whatever they are and whatever the box did."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from orchestrator import context as contexts
from orchestrator.context import Context
from orchestrator.errors import ContextError, SandboxError, SandboxGoneError
from orchestrator.interpreter import Sandbox
from orchestrator.pool import Pool
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.support.live import POLICY, TIMEOUT, box, value
from tests.support.policies import otherwise_under_gvisor
from tests.support.weakened import weakened_box, with_supervisor

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

FREEZE = "sandbox.freeze_between_cells=true"
# As a str it takes four bytes a character: more than the box has.
WIDE = "\U0001f40d" + "x" * (POLICY.limits.memory_mb // 4 << 20) + "end"
DIE = "import os; os._exit(0)"


@pytest.mark.parametrize(
    "settings", [(), (FREEZE,), ("sandbox.allow_subprocess=false",)], ids=["free", "frozen", "one"]
)
async def test_each_is_the_context_and_all_are_listed_also_for_a_fresh_kernel(
    engine: Engine, settings: tuple[str, ...]
) -> None:
    further: list[Context] = ["zwei \U0001f40d\n\0", ["", "a", "é" * 1000], {"é/n": "a", "": ""}, "", [], {}]
    given: list[Context] = ["one"]
    async with box(engine, *settings, context="one") as opened:
        assert await value(opened, "kept = [1]\n'contexts' in globals()") is False
        for context in further:
            await opened.give(context)
            given.append(context)
            assert await value(opened, "context, contexts, kept") == (context, given, [1])
        for _ in range(2):
            assert (await opened.execute(DIE)).status == "died"
            assert await value(opened, "context, contexts, 'kept' in globals()") == (given[-1], given, False)
        await opened.give("last")
        assert await value(opened, "context, contexts") == ("last", [*given, "last"])


async def test_a_box_without_a_context_may_be_given_its_first(engine: Engine) -> None:
    async with box(engine) as opened:
        await opened.give("one")
        assert await value(opened, "context, 'contexts' in globals()") == ("one", False)
        await opened.give("two")
        assert await value(opened, "contexts") == ["one", "two"]


async def test_those_that_are_there_are_the_same_objects_as_before(engine: Engine) -> None:
    async with box(engine, context=["a" * 1000, "b"]) as opened:
        await opened.execute("first = context")
        await opened.give("two")
        assert await value(opened, "second = context; contexts[0] is first, contexts[1] is context") == (True, True)
        await opened.give("three")
        assert await value(opened, "contexts[0] is first, contexts[1] is second") == (True, True)


async def test_functions_of_the_host_and_the_budget_are_still_there(engine: Engine) -> None:
    async def desk(call: RpcCall) -> RpcReply:
        return RpcReply({}, f'"{call.cell}"' if call.method == "tool" else str(call.cell))

    async with box(engine, context="one", rpc=desk, tools=("lookup",)) as opened:
        assert await value(opened, "lookup()") == "1"
        await opened.give("two")
        assert await value(opened, "lookup(), llm_query('x')") == ("2", "2")
        assert (await opened.execute(DIE)).status == "died"
        assert await value(opened, "lookup(), contexts") == ("4", ["one", "two"])


async def test_what_ended_the_question_before_does_not_end_the_next(engine: Engine) -> None:
    calls: list[str] = []

    async def desk(call: RpcCall) -> RpcReply:
        calls.append(call.body)
        return RpcReply({})

    async with box(engine, context="one", rpc=desk) as opened:
        await opened.execute("Final = 'of one'")
        await opened.give("two")
        await opened.execute("1")
        assert calls == ["of one"]


async def test_one_that_memory_cannot_hold_is_read_from_its_file_and_those_before_count(engine: Engine) -> None:
    fits = "x" * ((POLICY.limits.memory_mb // 8 << 20) - 1000)  # with its str a quarter of the memory
    async with box(engine, context=fits) as opened:
        await opened.give(fits)
        await opened.give(fits[: 20 << 20])
        kinds = "[type(one).__name__ for one in contexts], len(context), context[-3:]"
        expected = (["str", "str", "LazyText"], 20 << 20, "xxx")
        assert await value(opened, kinds) == expected
        assert (await opened.execute(DIE)).status == "died"
        assert await value(opened, kinds) == expected


@pytest.mark.parametrize(
    ("context", "find"),
    [(WIDE, "context"), ([WIDE, "b"], "context[0]"), ({"a": WIDE}, "context['a']")],
    ids=["text", "list", "dict"],
)
async def test_one_that_is_read_from_its_file_is_found_behind_others(
    engine: Engine, context: Context, find: str
) -> None:
    async with box(engine, context=["a", "b"]) as opened:
        await opened.give(context)
        check = f"len({find}), {find}[:2], {find}.find('end'), contexts[0]"
        expected = (len(WIDE), WIDE[:2], len(WIDE) - 3, ["a", "b"])
        assert await value(opened, check) == expected
        assert (await opened.execute(DIE)).status == "died"
        assert await value(opened, check) == expected


async def test_one_that_is_too_large_with_the_others_is_refused_and_the_box_goes_on(engine: Engine) -> None:
    async with box(engine, "limits.context_mb=1", context="x" * 600_000) as opened:
        for context, words in (("y" * 600_000, "context_mb = 1 .* beside the 600,"), (b"", "not bytes")):
            with pytest.raises(ContextError, match=words):
                await opened.give(context)  # type: ignore[arg-type]
        assert await value(opened, "len(context), 'contexts' in globals()") == (600_000, False)
        await opened.give("z" * 400_000)
        assert await value(opened, "context[0], len(contexts)") == ("z", 2)
        with pytest.raises(ContextError, match="context_mb = 1"):
            await opened.give("z" * 400_000)


async def test_a_box_of_a_pool_takes_them_as_any_other(engine: Engine) -> None:
    async with Pool.open(POLICY, 1, engine=engine) as pool:
        await pool.filled()
        async with pool.box(POLICY, "one") as opened:
            await opened.give("two")
            assert await value(opened, "contexts") == ["one", "two"]


class TestDeaths:
    async def test_a_kernel_that_died_before_tells_in_the_next_cell_and_has_them_all(self, engine: Engine) -> None:
        async with box(engine, context="one") as opened:
            code = "import os, threading; threading.Timer(0.2, os._exit, (3,)).start()"
            assert (await opened.execute(code)).ok
            with anyio.fail_after(TIMEOUT):
                while opened._client._ready.is_set():
                    await opened._client._changed.wait()
            await opened.give("two")
            result = await opened.execute("contexts")
            assert (result.result, result.state_lost) == ("['one', 'two']", True)
            assert "exit code 3" in result.detail

    async def test_so_does_one_that_dies_while_it_is_sent(self, engine: Engine) -> None:
        watch = """
import os, threading
size = os.fstat(4).st_size
def end():
    while os.fstat(4).st_size == size: pass
    os._exit(4)
threading.Thread(target=end).start()
"""
        async with box(engine, context="one") as opened:
            assert (await opened.execute(watch)).ok
            await opened.give("x" * (16 << 20))
            result = await opened.execute("contexts[0], len(context)")
            assert (result.result, result.state_lost) == (f"('one', {16 << 20})", True)
            assert "exit code 4" in result.detail
            assert (await opened.execute("1")).state_lost is False

    @otherwise_under_gvisor("memory that is used up ends the whole box")
    async def test_a_kernel_that_held_too_much_beside_it_is_replaced_by_one_that_does_not(self, engine: Engine) -> None:
        memory = POLICY.limits.memory_mb
        async with box(engine, context="one") as opened:
            assert (await opened.execute(f"held = bytearray({memory - 150} << 20)")).ok
            await opened.give("x" * (memory // 5 << 20))
            result = await opened.execute("contexts[0], len(context)")
            assert (result.result, result.state_lost) == (f"('one', {memory // 5 << 20})", True)
            assert "memory was used up" in result.detail

    async def test_one_whose_str_the_box_has_no_memory_for_is_its_end(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contexts, "lazy_most", lambda *_: None)
        async with box(engine, context="one") as opened:
            with pytest.raises(SandboxError):
                await opened.give(WIDE)
            await is_over(opened)

    async def test_a_box_that_ends_while_it_is_sent_is_gone(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with box(engine, context="one") as opened:

            def pieces(_context: Context, sizes: list[int]) -> Iterator[bytes]:
                sizes.append(0)
                yield b"x"
                engine._api.kill(opened.info.container)
                while True:
                    yield b"x" * (1 << 18)

            monkeypatch.setattr(contexts, "pieces", pieces)
            with pytest.raises(SandboxGoneError, match="ended while the context was being sent"):
                await opened.give("two")
            await is_over(opened)

    async def test_a_box_whose_cell_left_no_room_for_it_is_gone(self, engine: Engine) -> None:
        fill = """
import os
with open("/run/box/full", "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(1 << 16))
    except OSError: pass
"""
        async with box(engine, "limits.context_mb=8", context="one") as opened:
            assert (await opened.execute(fill)).ok
            with pytest.raises(SandboxError):
                await opened.give("x" * (4 << 20))
            await is_over(opened)


async def is_over(opened: Sandbox) -> None:
    with pytest.raises(SandboxGoneError):
        await opened.execute("1")
    with pytest.raises(SandboxGoneError):
        await opened.give("more")


CHANGE = """
import os, threading
def change():
    os.fchmod(4, 0o600)
    with open("/proc/self/fd/4", "r+b") as file: file.write(b"lie")
"""
# Changes the first context while a further one is written, by a thread of an earlier cell.
MEANWHILE = """
size = os.fstat(4).st_size
def wait():
    while os.fstat(4).st_size == size: pass
    change()
threading.Thread(target=wait).start()
"""


class TestForgery:
    @pytest.mark.parametrize("size", [1, 64 << 20])
    async def test_a_change_by_a_cell_is_the_end_before_a_further_one_is_taken(self, engine: Engine, size: int) -> None:
        async with box(engine, context="one") as opened:
            assert (await opened.execute(f"{CHANGE}change()")).ok
            with pytest.raises(SandboxGoneError, match="the context was changed in the box"):
                await opened.give("x" * size)
            with pytest.raises(SandboxGoneError, match="the context was changed in the box"):
                await opened.execute("1")

    async def test_a_change_while_one_is_written_does_not_reach_the_next_kernel(self, engine: Engine) -> None:
        async with box(engine, context="one") as opened:
            assert (await opened.execute(CHANGE + MEANWHILE)).ok
            await opened.give("x" * (16 << 20))
            assert await value(opened, "contexts[0]") == "one"
            assert (await opened.execute(DIE)).status in ("died", "protocol_error")
            with pytest.raises(SandboxGoneError, match="the context was changed in the box"):
                await opened.execute("contexts[0]")

    @pytest.mark.usefixtures("engine")
    @pytest.mark.parametrize("change", ["change()", MEANWHILE], ids=["before", "meanwhile"])
    async def test_a_supervisor_that_does_not_look_serves_the_lie(self, change: str) -> None:
        blind = "supervisor.ContextFile.is_intact = supervisor.ContextFile._is_untouched = lambda self: True"
        async with weakened_box(POLICY, with_supervisor(blind)) as opened:
            await opened.give("one")
            assert (await opened.execute(CHANGE + change)).ok
            await opened.give("x" * (16 << 20))
            assert (await opened.execute(DIE)).status == "died"
            assert await value(opened, "contexts[0]") == "lie"
