"""A further context for a box that is in an attacker's hands: taken, refused or the box's end, within its time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from orchestrator import context as contexts
from orchestrator.errors import ContextError, SandboxGoneError, SandboxStartError, ungrouped
from orchestrator.interpreter import Sandbox
from orchestrator.kernel import client as clients
from sandbox_image import wire
from sandbox_image.wire import Kind
from tests.support.hostile_guest import HostileGuest, hosted

pytestmark = pytest.mark.anyio

SHORT = "limits.start_timeout_s=0.2"
BOUND = 10


@pytest.fixture(autouse=True)
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "INTERRUPT_GRACE_S", 0.02)
    monkeypatch.setattr(clients, "KILL_GRACE_S", 0.02)


@asynccontextmanager
async def giving(box: Sandbox, context: Any = "more") -> AsyncIterator[None]:
    """Give a context while the block plays the guest; the giving must end by itself."""
    with ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.give, context)
            with anyio.fail_after(BOUND):
                yield


Play = Callable[[HostileGuest], Awaitable[object]]


async def fails(box: Sandbox, guest: HostileGuest, play: Play, error: type[Exception], words: str) -> None:
    """Give a context while a guest plays; it must fail in this way, and be the end of the box."""

    async def give() -> None:
        async with giving(box):
            await play(guest)

    with pytest.raises(error, match=words):
        await give()
    await is_over(box)


async def is_over(box: Sandbox) -> None:
    assert box.gone
    with pytest.raises(SandboxGoneError):
        await box.execute("1")
    with pytest.raises(SandboxGoneError):
        await box.give("another")


async def test_it_is_taken_by_a_cell_that_is_not_the_callers() -> None:
    async with hosted() as (box, guest, desk):
        async with giving(box, ["a", "é"]):
            assert (await guest.receive(Kind.CONTEXT, Kind.CONTEXT_END)).payload == "aé".encode()
            layout = (await guest.receive(Kind.CONTEXT, Kind.CONTEXT_END)).payload
            assert wire.loads(layout) == {"kind": "list", "sizes": [1, 2]}
            assert (await guest.receive(Kind.CONTEXT, Kind.CONTEXT_END)).payload == b"%d" % len(layout)
            request = await guest.request()
            await guest.call("llm_query", "of nobody's cell")
            head, _ = await guest.answer()
            assert head["error"]["reason"] == "no_open_cell"
            await guest.print("of nobody's cell", request)
            await guest.reply(request)
        assert not desk.model.requests
        async with anyio.create_task_group() as tasks:
            cells = []

            async def execute() -> None:
                cells.append(await box.execute("1"))

            tasks.start_soon(execute)
            await guest.reply(await guest.request())
        assert (cells[0].status, cells[0].stdout, cells[0].state_lost, box._cells) == ("ok", "", False, 1)


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (None, "not NoneType"),
        ([1], "holds a int"),
        ("x" * 700_000, "context_mb = 1 .* beside the 600,016 bytes of earlier ones"),
        ("é" * 300_000, "context_mb = 1 .* beside the 600,016 bytes of earlier ones"),
    ],
    ids=["none", "no texts", "too large", "too large as UTF-8"],
)
async def test_one_that_cannot_be_is_refused_before_anything_is_sent(context: Any, words: str) -> None:
    async with hosted("limits.context_mb=1") as (box, guest, _):
        async with giving(box, "x" * 600_000):
            await guest.receive(Kind.CONTEXT_END)
            await guest.reply(await guest.request())
        with pytest.raises(ContextError, match=words):
            await box.give(context)
        async with giving(box, "x" * 400_000):  # for which there is room
            await guest.receive(Kind.CONTEXT_END)
            await guest.reply(await guest.request())


async def test_one_that_the_memory_cannot_hold_beside_the_others_is_refused() -> None:
    async with hosted("limits.memory_mb=128") as (box, _, _):
        box._taken = contexts.Taken(8 << 20, 16 << 20)
        with pytest.raises(ContextError, match=r"memory_mb = 128 leaves 16,777,216 for it beside the 8,388,608 bytes"):
            await box.give("x" * (17 << 20))
        assert not box.gone


async def never_replies(guest: HostileGuest) -> None:
    await guest.request()


async def complains(guest: HostileGuest) -> None:
    request = await guest.request()
    await guest.reply(request, status="error", ename="ValueError", evalue="spoilt", traceback=[])


async def breaks_the_protocol(guest: HostileGuest) -> None:
    await guest.request()
    await guest.raw(b"\xff" * 10)


async def dies_for_good(guest: HostileGuest) -> None:
    await guest.request()
    await guest.died()


async def hangs_up(guest: HostileGuest) -> None:
    await guest.request()
    await guest.hang_up()


@pytest.mark.parametrize(
    ("play", "error", "words"),
    [
        (never_replies, SandboxStartError, r"not loaded: it ran longer than 0\.2 s"),
        (complains, SandboxStartError, "spoilt"),
        (breaks_the_protocol, SandboxGoneError, "while it loaded the context"),
        (dies_for_good, SandboxGoneError, "no fresh kernel"),
        (hangs_up, SandboxGoneError, "while it loaded the context"),
    ],
)
async def test_a_guest_that_does_not_load_it_is_given_up(play: Play, error: type[Exception], words: str) -> None:
    async with hosted(SHORT) as (box, guest, _):
        await fails(box, guest, play, error, words)


async def test_of_a_kernel_that_dies_of_it_the_next_cell_tells() -> None:
    async with hosted() as (box, guest, _):
        async with giving(box):
            await guest.request()
            await guest.died(oom=True)
            await guest.send(Kind.READY, {"generation": 2})
        results = []

        async def execute() -> None:
            results.append(await box.execute("1"))

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute)
                await guest.reply(await guest.request())
        assert [result.status for result in results] == ["ok", "ok"]
        assert [result.state_lost for result in results] == [True, False]
        assert "memory was used up" in results[0].detail


async def test_of_a_kernel_that_died_before_the_next_cell_tells() -> None:
    async with hosted() as (box, guest, _):
        await guest.died()
        await anyio.wait_all_tasks_blocked()
        async with giving(box):
            await guest.receive(Kind.CONTEXT_END)
            await guest.send(Kind.READY, {"generation": 2})
            await guest.reply(await guest.request())
        results = []

        async def execute() -> None:
            results.append(await box.execute("1"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execute)
            await guest.reply(await guest.request())
        assert (results[0].status, results[0].state_lost) == ("ok", True)
        assert "killed by signal 9" in results[0].detail


async def test_a_box_that_ends_in_the_middle_of_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosted() as (box, guest, _):
        send = box._mux.send

        async def sent_and_ended(kind: Kind, payload: bytes) -> None:
            await send(kind, payload)
            await guest.hang_up()
            await box._client.ended()

        monkeypatch.setattr(box._mux, "send", sent_and_ended)
        await fails(box, guest, nothing, SandboxGoneError, "ended while the context was being sent")


async def test_a_box_that_does_not_read_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosted(SHORT) as (box, guest, _):
        monkeypatch.setattr(box._mux, "send", never_sent)
        await fails(box, guest, nothing, SandboxStartError, r"did not take the context within 0\.2 s")


async def nothing(_guest: HostileGuest) -> None:
    pass


async def never_sent(_kind: Kind, _payload: bytes) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize("until", [Kind.CONTEXT, Kind.KERNEL])
async def test_who_gives_up_giving_has_no_box_any_more(until: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosted() as (box, guest, _):
        if until is Kind.CONTEXT:
            monkeypatch.setattr(box._mux, "send", never_sent)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.give, "more")
            if until is Kind.KERNEL:
                await guest.receive(until)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await is_over(box)


async def test_it_waits_for_the_cell_that_runs() -> None:
    async with hosted() as (box, guest, _), anyio.create_task_group() as tasks:
        tasks.start_soon(box.execute, "1")
        request = await guest.request()
        tasks.start_soon(box.give, "more")
        await anyio.wait_all_tasks_blocked()
        assert guest._frames == []
        await guest.reply(request)
        await guest.receive(Kind.CONTEXT_END)
        await guest.reply(await guest.request())
