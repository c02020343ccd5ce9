"""When a call is over, however it ended, its text goes with it and waits for no collection of reference cycles.

The collector is off in these tests. It comes when it likes, on a busy machine late: what waits for it adds up to many
times what calls under way may hold (``tests/unit/test_host_memory.py`` has the bound).
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import anyio
import pytest
import tenacity  # noqa: F401 - the first retry imports it, which takes half a megabyte

from orchestrator import RLM, Policy
from orchestrator.context import Context
from orchestrator.errors import ModelRequestError, ModelUnavailableError, SandboxGoneError, ungrouped
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.transport.rpc import RpcCall, RpcHandler, RpcRefusal, RpcReply
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel
from tests.support.hostile_guest import HostileGuest, faced, hosted

# One character of four bytes makes a str take four for each of its characters.
WIDE = "\U0001f600" + "x" * 200_000
TEXT = 4 * len(WIDE)
SPARE = TEXT // 4
BOUND = 30


@contextmanager
def uncollected() -> Iterator[None]:
    """Count memory with the collector off."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()
        gc.collect()


def held() -> int:
    """Return the bytes of what was made since, and is there yet."""
    return tracemalloc.get_traced_memory()[0]


class Sub(FakeModel):
    """A provider that treats everybody alike."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self._way = way

    async def complete(self, _request: ModelRequest) -> ModelReply:
        self.arrived.set()
        if self._way == "hangs":
            await anyio.sleep_forever()
        if self._way == "refuses":
            raise ModelRequestError("too long")
        if self._way == "is down":
            raise ModelUnavailableError("try again")
        if self._way == "breaks":
            raise ValueError("what is this?")
        return ModelReply("yes", Usage(10, 1))


async def cell(guest: HostileGuest, sub: Sub, *, waits: bool) -> None:
    """Make two calls, and end when they are answered, or at once when the provider has them."""
    request = await guest.request()
    for _ in range(2):
        await guest.call("llm_query", WIDE)
    if waits:
        for _ in range(2):
            await guest.answer()
    else:
        await sub.arrived.wait()
        await anyio.wait_all_tasks_blocked()
    await guest.reply(request)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("way", "waits", "settings"),
    [
        ("answers", True, ()),
        ("refuses", True, ()),
        ("refuses", True, ("models.memo=true",)),
        ("breaks", True, ()),
        ("hangs", False, ()),
        ("hangs", False, ("models.memo=true",)),
        ("hangs", False, ("models.in_flight=1",)),
        ("hangs", True, ("limits.call_timeout_s=0.05",)),
        ("hangs", True, ("limits.call_timeout_s=0.05", "models.memo=true")),
        ("hangs", True, ("models.request_timeout_s=0.05", "limits.call_timeout_s=0.2")),
        ("is down", True, ("limits.call_timeout_s=0.05",)),
        ("answers", True, ("budget.tokens=10",)),
        ("answers", True, ("budget.calls=1",)),
        ("answers", True, ("budget.bytes_out=1000",)),
    ],
    ids=str,
)
async def test_a_sub_call_that_is_over_holds_nothing(way: str, waits: bool, settings: tuple[str, ...]) -> None:  # noqa: FBT001
    sub = Sub(way)
    async with hosted("models.in_flight=4", *settings, model=sub) as (box, guest, desk):
        desk.journal.events = deque(maxlen=0)  # type: ignore[assignment] # else it would hold the prompts
        with uncollected():
            for _ in range(3):
                sub.arrived = anyio.Event()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(cell, guest, sub, waits=waits))
                    with anyio.fail_after(BOUND):
                        assert (await box.execute("1")).ok
                await anyio.wait_all_tasks_blocked()
                assert held() < SPARE


@pytest.mark.anyio
@pytest.mark.parametrize("careful", [True, False], ids=["", "with its refusal in a variable"])
async def test_what_holds_its_own_refusal_holds_the_text(careful: bool) -> None:  # noqa: FBT001
    """The weakened twin: a handler that does what those above must not."""

    async def handler(call: RpcCall) -> RpcReply:
        assert call.body == WIDE
        refusal = RpcRefusal("no", "no")
        try:
            raise refusal
        finally:
            if careful:
                del refusal

    async with faced(handler) as (_, _, guest):
        with uncollected():
            await guest.call("llm_query", WIDE)
            await guest.answer()
            await anyio.wait_all_tasks_blocked()
            assert (held() < SPARE) is careful


class Forgetful(FakeBoxes):
    """Boxes that hold their context for as long as they are open."""

    @asynccontextmanager
    async def open(self, policy: Policy, context: Context, rpc: RpcHandler) -> AsyncIterator[FakeBox]:
        async with super().open(policy, context, rpc) as box:
            yield box
        box.context = ""
        box.contexts.clear()


async def gone(_box: FakeBox) -> None:
    raise SandboxGoneError("gone")


async def nothing(_box: FakeBox) -> None: ...


@pytest.mark.parametrize(
    ("child", "word"), [(finals("7"), ""), (nothing, "child_limit"), (gone, "child_failed")], ids=["", "limit", "gone"]
)
def test_a_child_run_that_is_over_does_not_hold_its_context(child: CellBody, word: str) -> None:
    told, kept = list[str](), list[int]()

    async def parent(box: FakeBox) -> None:
        for _ in range(5):
            try:
                await box.child("And?", f"{WIDE}{len(kept)}")
                told.append("")
            except RpcRefusal as refusal:
                told.append(refusal.reason)
            kept.append(held())
        await box.call("final", "1")

    code = ModelReply("I run.\n```repl\nstep()\n```", Usage(100, 10))
    policy = Policy().override(["budget.turns=2", "budget.depth=1", "models.direct_below_chars=0"])
    boxes = Forgetful([[parent], *([child] for _ in range(5))])
    rlm = RLM(FakeModel(default=code), FakeModel(), policy=policy, open_box=boxes.open)
    with uncollected():
        assert rlm.complete("a context", "a question").status == "answered"
    assert told == [word] * 5
    # Runs themselves are small and do wait for the collector.
    assert kept[-1] - kept[0] < TEXT


class TestUngrouped:
    class Gone(Exception):  # noqa: N818 - it can be referred to weakly, as those built in cannot
        pass

    @pytest.mark.anyio
    @pytest.mark.parametrize("noted", [True, False])
    async def test_an_exception_that_left_a_group_is_gone_once_it_is_handled(self, noted: bool) -> None:  # noqa: FBT001
        left: list[weakref.ref[BaseException]] = []
        with uncollected():
            try:
                with ungrouped() as whole:
                    try:
                        async with anyio.create_task_group():
                            raise self.Gone
                    except BaseExceptionGroup as group:
                        left += [weakref.ref(group.exceptions[0])]
                        if noted:
                            whole.append(ValueError())
                        raise
            except self.Gone:
                pass
            del whole
            assert left[0]() is None
