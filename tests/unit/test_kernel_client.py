"""Whatever the box sends or withholds, a cell ends with a typed outcome within its bound."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SandboxGoneError, SandboxStartError
from orchestrator.kernel import client as clients
from orchestrator.kernel import hearing
from orchestrator.kernel.client import KernelClient
from orchestrator.kernel.result import ExecutionResult
from sandbox_image import wire
from sandbox_image.wire import Channel, Kind
from tests.support.hostile_guest import DELIMITER, MAX_FRAME, OUTPUT, HostileGuest, StuckStream, faced, served

pytestmark = pytest.mark.anyio

TIMEOUT = 0.05
GRACE = 0.02
START = 0.2
# What the ladder adds at most, and what a busy machine may add to that.
BOUND = TIMEOUT + 3 * GRACE + 3

# Long after a bound of TIMEOUT + GRACE has passed: what is not over by then is not bounded.
LONG = 20 * (TIMEOUT + GRACE)

Behaviour = Callable[[HostileGuest, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "INTERRUPT_GRACE_S", GRACE)
    monkeypatch.setattr(clients, "KILL_GRACE_S", GRACE)


@asynccontextmanager
async def ready(*, bytewise: bool = False) -> AsyncIterator[tuple[KernelClient, HostileGuest]]:
    async with faced(bytewise=bytewise) as (client, _, guest), anyio.create_task_group() as tasks:
        tasks.start_soon(guest.greet)
        with anyio.fail_after(3):
            await client.hello()
            await client.handshake()
        yield client, guest


async def cell(
    client: KernelClient, guest: HostileGuest, behaviour: Behaviour, timeout_s: float = TIMEOUT
) -> ExecutionResult:
    """Run a cell whose guest behaves like this."""

    async def behave() -> None:
        await behaviour(guest, await guest.request())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(behave)
        with anyio.fail_after(BOUND):
            result = await client.execute("1", timeout_s, START)
        tasks.cancel_scope.cancel()
    return result


async def outcome(behaviour: Behaviour, *, bytewise: bool = False, timeout_s: float = TIMEOUT) -> ExecutionResult:
    """Run one cell in a box of its own."""
    async with ready(bytewise=bytewise) as (client, guest):
        return await cell(client, guest, behaviour, timeout_s)


async def answer(guest: HostileGuest, request: str) -> None:
    await guest.print("out", request)
    await guest.reply(request)


class TestStarting:
    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"\xff" * 100,
            wire.encode(Kind.HELLO, b"[]"),
            wire.encode(Kind.HELLO, b"{"),
            wire.encode(Kind.HELLO, b'{"a":NaN}'),
            wire.encode(Kind.FAULT, b'{"fault":"no_start"}'),
            wire.encode(Kind.CONTEXT, b""),
            wire.HEADER.pack(MAX_FRAME + 1, Kind.HELLO),
        ],
        ids=["nothing", "noise", "no object", "no JSON", "NaN", "no start", "a kind of the host's", "a lying length"],
    )
    async def test_a_box_that_never_greets_is_refused(self, said: bytes) -> None:
        async with faced() as (client, _, guest):
            await guest.raw(said)
            await guest.hang_up()
            with anyio.fail_after(3), pytest.raises(SandboxStartError):
                await client.hello()
            assert client.gone

    async def test_a_kernel_that_does_not_start_is_told_at_once(self) -> None:
        async with faced() as (client, _, guest):
            await guest.send(Kind.HELLO, {})
            for generation in range(3):
                await guest.died(generation=generation, ready=False, code=1)
            await guest.send(Kind.FAULT, {"fault": "no_start"})
            with anyio.fail_after(3):
                await client.hello()
                with pytest.raises(SandboxStartError, match="kernel does not start"):
                    await client.handshake()

    async def test_a_kernel_that_dies_before_it_answers_is_refused(self) -> None:
        async with faced() as (client, _, guest):
            await guest.send(Kind.READY, {})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(die_when_asked, guest)
                with anyio.fail_after(3), pytest.raises(SandboxStartError, match="before it answered"):
                    await client.handshake()

    async def test_a_kernel_that_comes_up_on_the_second_try_serves_and_nothing_was_lost(self) -> None:
        async with faced() as (client, _, guest), anyio.create_task_group() as tasks:
            await guest.died(ready=False)
            tasks.start_soon(guest.greet)
            with anyio.fail_after(3):
                await client.handshake()
            result = await cell(client, guest, answer)
            assert (result.status, result.state_lost, result.detail) == ("ok", False, "")


async def die_when_asked(guest: HostileGuest) -> None:
    await guest.request()
    await guest.died()


class TestCells:
    @pytest.mark.parametrize("bytewise", [False, True], ids=["in frames", "a byte at a time"])
    async def test_an_honest_cell(self, bytewise: bool) -> None:  # noqa: FBT001
        result = await outcome(answer, bytewise=bytewise, timeout_s=3)
        assert (result.status, result.stdout, result.state_lost) == ("ok", "out", False)

    async def test_code_that_no_encoding_takes_still_runs(self) -> None:
        async with ready() as (client, guest), anyio.create_task_group() as tasks:
            tasks.start_soon(reply_to_next, guest)
            with anyio.fail_after(BOUND):
                assert (await client.execute("x = '\ud800'", 3, START)).ok

    async def test_only_the_first_reply_counts(self) -> None:
        async def twice(guest: HostileGuest, request: str) -> None:
            await guest.reply(request)
            await guest.reply(request, status="error", ename="E", evalue="", traceback=[])
            await guest.print("after the end", request)

        async with ready() as (client, guest):
            first = await cell(client, guest, twice)
            assert (first.status, first.error, first.stdout) == ("ok", None, "")
            assert (await cell(client, guest, answer)).stdout == "out"

    async def test_output_of_another_cell_is_not_shown(self) -> None:
        async def mixed(guest: HostileGuest, request: str) -> None:
            await guest.print("stale", "0" * 32)
            await guest.print("no parent", "")
            await guest.reply("0" * 32)
            await answer(guest, request)

        assert (await outcome(mixed)).stdout == "out"

    async def test_a_late_reply_does_not_end_the_next_cell(self) -> None:
        async with ready() as (client, guest):
            previous: list[str] = []

            async def die(guest: HostileGuest, request: str) -> None:
                previous.append(request)
                await guest.died()
                await guest.send(Kind.READY, {})

            async def late(guest: HostileGuest, request: str) -> None:
                await guest.reply(previous[0], status="error", ename="E", evalue="late", traceback=[])
                await answer(guest, request)

            assert (await cell(client, guest, die)).status == "died"
            assert (await cell(client, guest, late)).status == "ok"

    async def test_messages_of_no_cell_without_end_burn_the_box(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hearing, "MAX_LATE_MESSAGES", 10)

        async def flood(guest: HostileGuest, _request: str) -> None:
            for _ in range(12):
                await guest.print("x", "0" * 32)

        result = await outcome(flood, timeout_s=3)
        assert result.status == "protocol_error"

    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            ({"code": -11}, "died", "signal 11"),
            ({"code": 3}, "died", "exit code 3"),
            ({"code": -9, "oom": True}, "oom", "memory"),
            ({"code": "x", "oom": "yes"}, "died", "unknown"),
            ({"code": True}, "died", "unknown"),
            ({"code": None, "oom": 1}, "died", "unknown"),
        ],
        ids=str,
    )
    async def test_how_a_kernel_died_is_told(self, facts: dict[str, Any], status: str, words: str) -> None:
        result = await outcome(lambda guest, _: guest.died(**facts), timeout_s=3)
        assert (result.status, result.state_lost) == (status, True)
        assert words in result.detail

    async def test_the_end_of_the_stream_is_a_death_and_the_end_of_the_box(self) -> None:
        async with ready() as (client, guest):
            result = await cell(client, guest, lambda guest, _: guest.hang_up(), 3)
            assert (result.status, result.state_lost, client.gone) == ("died", True, True)
            with pytest.raises(SandboxGoneError):
                await client.execute("1", TIMEOUT, START)

    async def test_a_death_between_cells_is_told_by_the_next(self) -> None:
        async with ready() as (client, guest):
            await guest.died(code=-9)
            await guest.send(Kind.READY, {})
            result = await cell(client, guest, answer)
            assert (result.status, result.state_lost, result.stdout) == ("ok", True, "out")
            assert "signal 9" in result.detail
            assert not (await cell(client, guest, answer)).state_lost

    async def test_a_death_just_after_the_reply_is_told_with_it(self) -> None:
        async def replies_and_dies(guest: HostileGuest, request: str) -> None:
            reply = {"msg_id": "reply", "msg_type": "execute_reply", "version": "5.3"}
            parts = [json.dumps(part).encode() for part in (reply, {"msg_id": request}, {}, {"status": "ok"})]
            frame = wire.encode(Kind.KERNEL, wire.pack_parts(Channel.SHELL, [DELIMITER, b"", *parts]))
            await guest.raw(frame + wire.encode(Kind.DIED, b'{"code":7}'))  # heard by the host in one piece
            await guest.send(Kind.READY, {})

        async with ready() as (client, guest):
            result = await cell(client, guest, replies_and_dies, 3)
            assert (result.status, result.state_lost) == ("ok", True)
            assert "exit code 7" in result.detail
            result = await cell(client, guest, answer)
            assert (result.status, result.state_lost, result.detail) == ("ok", False, "")

    @pytest.mark.parametrize("fault", ["", "no_start", "context_changed"])
    async def test_a_kernel_that_does_not_come_back_ends_the_box(self, fault: str) -> None:
        async with ready() as (client, guest):
            assert (await cell(client, guest, lambda guest, _: guest.died())).status == "died"
            if fault:
                await guest.send(Kind.FAULT, {"fault": fault})
            with anyio.fail_after(START + 3), pytest.raises(SandboxGoneError, match="no fresh kernel"):
                await client.execute("1", TIMEOUT, START)
            assert client.gone

    async def test_a_cell_that_is_stopped_ends_cancelled_with_its_output_and_keeps_its_state(self) -> None:
        stop = anyio.Event()

        async def sleeping(guest: HostileGuest) -> None:
            request = await guest.request()
            await guest.print("so far", request)
            stop.set()
            await guest.receive(Kind.INTERRUPT)
            await guest.reply(request, status="error", ename="KeyboardInterrupt", evalue="", traceback=[])

        async with ready() as (client, guest):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sleeping, guest)
                with anyio.fail_after(BOUND):
                    result = await client.execute("1", 60.0, START, stop)
            assert (result.status, result.stdout, result.state_lost) == ("cancelled", "so far", False)
            assert result.detail == "it was asked to stop: interrupted"
            assert (await cell(client, guest, answer)).ok

    async def test_orders_name_the_kernel_they_are_for(self) -> None:
        orders: list[tuple[Kind, object]] = []

        async def stubborn(guest: HostileGuest, _request: str) -> None:
            while not orders or orders[-1][0] is not Kind.RESTART:
                frame = await guest.receive(Kind.INTERRUPT, Kind.RESTART)
                orders.append((frame.kind, json.loads(frame.payload)))
            await guest.died(code=-9)
            await guest.send(Kind.READY, {"generation": 2})

        async with ready() as (client, guest):
            for generation in (1, 2):
                orders.clear()
                result = await cell(client, guest, stubborn)
                assert (result.status, result.ladder) == ("timeout", ("interrupt", "interrupt", "kill"))
                meant = {"generation": generation}
                assert orders == [(Kind.INTERRUPT, meant), (Kind.INTERRUPT, meant), (Kind.RESTART, meant)]

    @pytest.mark.parametrize("generation", [None, "1", 1.5, True, [1]])
    async def test_a_kernel_without_a_number_is_none_that_could_be_meant(self, generation: object) -> None:
        async def restarts(guest: HostileGuest, _request: str) -> None:
            await guest.died()
            await guest.send(Kind.READY, {"generation": generation})

        async with ready() as (client, guest):
            await cell(client, guest, restarts)
            with anyio.fail_after(3):
                await client._until_ready()
            assert client._generation == 0

    async def test_a_cell_that_is_asked_for_while_no_kernel_is_up_ends_in_time_and_costs_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clients, "LATE_START_S", GRACE)
        async with ready() as (client, guest):
            assert (await cell(client, guest, lambda guest, _: guest.died())).status == "died"
            with anyio.fail_after(BOUND):
                result = await client.execute("1", TIMEOUT, 60.0)
            assert (result.status, result.state_lost, result.ladder) == ("timeout", True, ())
            assert "the code was not run" in result.detail
            await guest.send(Kind.READY, {"generation": 2})
            assert (await cell(client, guest, answer)).ok

    async def test_without_that_bound_a_kernel_that_is_held_back_costs_the_cell_its_box(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The weakened twin: the cell waits not for its own time but for all that a kernel may take to start."""
        monkeypatch.setattr(clients, "LATE_START_S", math.inf)
        async with ready() as (client, guest):
            assert (await cell(client, guest, lambda guest, _: guest.died())).status == "died"
            with anyio.move_on_after(LONG) as waiting:
                await client.execute("1", TIMEOUT, 60.0)
            assert waiting.cancelled_caught
            with anyio.fail_after(BOUND), pytest.raises(SandboxGoneError, match="no fresh kernel"):
                await client.execute("1", TIMEOUT, START)
            assert client.gone

    async def test_what_a_late_kernel_took_is_not_given_to_the_cell_again(self) -> None:
        async def late(guest: HostileGuest) -> None:
            await anyio.sleep(1)
            await guest.send(Kind.READY, {"generation": 2})
            await guest.request()

        async with ready() as (client, guest), anyio.create_task_group() as tasks:
            await cell(client, guest, lambda guest, _: guest.died())
            tasks.start_soon(late, guest)
            with anyio.fail_after(BOUND):
                result = await client.execute("1", 1.5, 60.0)
            assert (result.status, result.elapsed_s >= clients.LEAST_S) == ("timeout", True)
            assert result.elapsed_s < 1.5

    async def test_what_could_not_be_ended_one_by_one_is_told(self) -> None:
        result = await outcome(lambda guest, _: guest.died(code=-9, strays=True))
        assert (result.status, result.state_lost) == ("died", True)
        assert "could not be ended one by one" in result.detail

    async def test_a_cell_that_will_not_be_stopped_is_killed(self) -> None:
        stop = anyio.Event()
        stop.set()

        async def stubborn(guest: HostileGuest) -> None:
            await guest.receive(Kind.RESTART)
            await guest.died(code=-9)

        async with ready() as (client, guest), anyio.create_task_group() as tasks:
            tasks.start_soon(stubborn, guest)
            with anyio.fail_after(BOUND):
                result = await client.execute("1", 60.0, START, stop)
            assert (result.status, result.state_lost) == ("cancelled", True)

    async def test_a_stop_that_never_comes_changes_nothing(self) -> None:
        async with ready() as (client, guest), anyio.create_task_group() as tasks:
            tasks.start_soon(reply_to_next, guest)
            with anyio.fail_after(BOUND):
                assert (await client.execute("1", 3, START, anyio.Event())).ok

    async def test_an_abandoned_cell_burns_the_box(self) -> None:
        async with ready() as (client, guest):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.execute, "1", 60.0, START)
                await guest.request()
                tasks.cancel_scope.cancel()
            assert client.gone
            with pytest.raises(SandboxGoneError, match="abandoned"):
                await client.execute("1", TIMEOUT, START)


async def reply_to_next(guest: HostileGuest) -> None:
    await guest.reply(await guest.request())


class TestForgery:
    @pytest.mark.parametrize("kind", ["kernel_info_reply", "shutdown_reply", "execute_replY", ""])
    async def test_a_reply_to_another_request_does_not_end_a_cell(self, kind: str) -> None:
        async def forged(guest: HostileGuest, request: str) -> None:
            await guest.reply(request, kind)
            await answer(guest, request)

        result = await outcome(forged, timeout_s=3)
        assert (result.status, result.stdout) == ("ok", "out")

    async def test_a_reply_on_another_channel_does_not_end_a_cell(self) -> None:
        async def forged(guest: HostileGuest, request: str) -> None:
            await guest.message("execute_reply", {"status": "ok"}, request, Channel.IOPUB)
            await guest.print("still running", request)

        result = await outcome(forged)
        assert (result.status, result.stdout) == ("timeout", "still running")

    async def test_a_forged_idle_does_not_end_a_cell(self) -> None:
        async def forged(guest: HostileGuest, request: str) -> None:
            await guest.message("status", {"execution_state": "idle"}, request)

        assert (await outcome(forged)).status == "timeout"

    async def test_forged_output_is_bounded_and_marked(self) -> None:
        async def forged(guest: HostileGuest, request: str) -> None:
            for _ in range(10):
                await guest.print("x" * OUTPUT, request)
            await guest.reply(request)

        result = await outcome(forged, timeout_s=3)
        assert len(result.stdout) == 2 * OUTPUT
        assert result.truncated

    async def test_a_question_to_the_operator_is_not_asked(self) -> None:
        async def phish(guest: HostileGuest, request: str) -> None:
            await guest.message("input_request", {"prompt": "password: ", "password": True}, request)
            await guest.message("comm_open", {"data": {}}, request)
            await answer(guest, request)

        assert (await outcome(phish, timeout_s=3)).stdout == "out"

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x01",
            b"\x01\xff",
            b"\x09\x00",
            b"\x01\x00",
            b"\x01\x01\xff\xff\xff\xff",
            wire.pack_parts(Channel.SHELL, [DELIMITER]),
            wire.pack_parts(Channel.SHELL, [DELIMITER, b"", b"", b"", b"", b""]),
            wire.pack_parts(Channel.SHELL, [DELIMITER, b"", b"[]", b"[]", b"[]", b"[]"]),
            wire.pack_parts(Channel.SHELL, [DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"]),
            wire.pack_parts(Channel.SHELL, [DELIMITER, b"", b'{"a":1,"a":2}', b"{}", b"{}", b"{}"]),
            wire.pack_parts(Channel.SHELL, [DELIMITER, b"", b"[" * 20_000, b"{}", b"{}", b"{}"]),
            wire.pack_parts(Channel.SHELL, [DELIMITER, b"", b"\xff", b"{}", b"{}", b"{}"]),
            wire.pack_parts(Channel.SHELL, [b"no delimiter"]),
        ],
        ids=[f"{number}" for number in range(14)],
    )
    async def test_a_malformed_message_ends_cell_and_box(self, payload: bytes) -> None:
        async with ready() as (client, guest):
            result = await cell(client, guest, lambda guest, _: guest.send(Kind.KERNEL, payload), 3)
            assert (result.status, result.state_lost, client.gone) == ("protocol_error", True, True)

    @pytest.mark.parametrize(
        "content",
        [
            [1, 2],
            {"status": 7},
            {"status": "error"},
            {"status": "ok", "execution_count": 10**30},
            {"status": float("nan")},
        ],
        ids=str,
    )
    async def test_a_reply_of_another_shape_ends_cell_and_box(self, content: Any) -> None:
        attack: Behaviour = lambda guest, request: guest.message("execute_reply", content, request, Channel.SHELL)  # noqa: E731
        result = await outcome(attack, timeout_s=3)
        assert result.status == "protocol_error"

    @pytest.mark.parametrize(
        "data",
        [b"\xff" * 100, wire.HEADER.pack(2**32 - 1, Kind.KERNEL), wire.encode(Kind.CONTEXT, b""), b"\0" * 5],
        ids=["noise", "a lying length", "a kind of the host's", "kind 0"],
    )
    @pytest.mark.parametrize("bytewise", [False, True], ids=["at once", "a byte at a time"])
    async def test_noise_on_the_stream_ends_cell_and_box(self, data: bytes, bytewise: bool) -> None:  # noqa: FBT001
        result = await outcome(lambda guest, _: guest.raw(data), bytewise=bytewise, timeout_s=3)
        assert (result.status, result.state_lost) == ("protocol_error", True)

    @pytest.mark.parametrize("kind", [Kind.CUT, Kind.DIED, Kind.FAULT, Kind.READY, Kind.HELLO, Kind.BOUND])
    @pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"a":Infinity}', b'{"a":1e999}', b"\xff"], ids=str)
    async def test_facts_that_are_none_end_cell_and_box(self, kind: Kind, payload: bytes) -> None:
        assert (await outcome(lambda guest, _: guest.send(kind, payload), timeout_s=3)).status == "protocol_error"

    async def test_a_cut_of_another_cell_is_ignored(self) -> None:
        async def cuts(guest: HostileGuest, request: str) -> None:
            await guest.send(Kind.CUT, {"id": "0" * 32, "stdout": {"tail": "stale", "lost": 1}})
            await guest.send(Kind.CUT, {"id": request, "stdout": {"tail": "mine", "lost": 1}})
            await guest.reply(request)

        result = await outcome(cuts, timeout_s=3)
        assert "stale" not in result.stdout
        assert result.stdout.endswith("mine")


class TestLadder:
    async def test_silence_climbs_every_step_and_gives_the_box_up(self) -> None:
        seen: list[Kind] = []

        async def silent(guest: HostileGuest, _request: str) -> None:
            while True:
                seen.append((await guest.receive()).kind)

        async with ready() as (client, guest):
            result = await cell(client, guest, silent)
            assert (result.status, result.state_lost, client.gone) == ("timeout", True, True)
            assert seen == [Kind.INTERRUPT, Kind.INTERRUPT, Kind.RESTART]
            assert "destroyed" in result.detail

    @pytest.mark.parametrize("heeded", [1, 2])
    async def test_an_interrupt_that_is_heeded_keeps_the_variables(self, heeded: int) -> None:
        async def interrupted(guest: HostileGuest, request: str) -> None:
            for _ in range(heeded):
                await guest.receive(Kind.INTERRUPT)
            await guest.reply(request, status="error", ename="KeyboardInterrupt", evalue="", traceback=[])

        async with ready() as (client, guest):
            result = await cell(client, guest, interrupted)
            assert (result.status, result.state_lost) == ("timeout", False)
            assert result.error is not None
            assert result.error.name == "KeyboardInterrupt"
            assert (await cell(client, guest, answer)).ok

    async def test_a_kernel_that_had_to_be_killed_is_followed_by_another(self) -> None:
        async def killed(guest: HostileGuest, _request: str) -> None:
            await guest.receive(Kind.RESTART)
            await guest.died(code=-9)
            await guest.send(Kind.READY, {})

        async with ready() as (client, guest):
            result = await cell(client, guest, killed)
            assert (result.status, result.state_lost) == ("timeout", True)
            assert "killed" in result.detail
            assert (await cell(client, guest, answer)).ok

    async def test_a_reply_that_crosses_the_order_to_kill_does_not_hand_the_death_to_the_next_cell(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clients, "KILL_GRACE_S", 3.0)

        async def replies_and_is_killed(guest: HostileGuest, request: str) -> None:
            await guest.receive(Kind.RESTART)
            await guest.reply(request)
            await anyio.wait_all_tasks_blocked()  # the host has heard it
            await guest.died(code=-9)
            await guest.send(Kind.READY, {})

        async with ready() as (client, guest):
            result = await cell(client, guest, replies_and_is_killed)
            assert (result.status, result.state_lost) == ("timeout", True)
            assert result.ladder == ("interrupt", "interrupt", "kill")
            result = await cell(client, guest, answer)
            assert (result.status, result.state_lost, result.stdout) == ("ok", False, "out")

    async def test_a_flood_is_stopped_long_before_its_deadline(self) -> None:
        async def flood(guest: HostileGuest, request: str) -> None:
            await guest.print("x" * 100, request)
            await guest.send(Kind.FAULT, {"fault": "flood"})
            await guest.receive(Kind.INTERRUPT)
            await guest.reply(request, status="error", ename="KeyboardInterrupt", evalue="", traceback=[])

        result = await outcome(flood, timeout_s=1000)
        assert (result.status, result.state_lost) == ("output_limit", False)

    async def test_output_without_end_does_not_move_the_deadline(self) -> None:
        async def chatter(guest: HostileGuest, request: str) -> None:
            while True:
                await guest.print("x", request)
                await anyio.lowlevel.checkpoint()

        assert (await outcome(chatter)).status == "timeout"

    async def test_running_out_of_memory_on_the_way_is_told(self) -> None:
        async def dies(guest: HostileGuest, _request: str) -> None:
            await guest.receive(Kind.INTERRUPT)
            await guest.died(oom=True)

        assert (await outcome(dies)).status == "oom"

    async def test_a_violation_on_the_way_is_told(self) -> None:
        async def breaks(guest: HostileGuest, _request: str) -> None:
            await guest.receive(Kind.INTERRUPT)
            await guest.raw(b"\xff" * 10)

        assert (await outcome(breaks)).status == "protocol_error"

    async def test_a_box_that_does_not_read_wins_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clients, "SEND_GRACE_S", GRACE)
        async with served(StuckStream()) as (client, _):
            client._ready.set()
            with anyio.fail_after(BOUND):
                result = await client.execute("x" * 100, TIMEOUT, START)
            assert (result.status, result.state_lost, client.gone) == ("timeout", True, True)
            assert (result.ladder, result.detail) == (("destroy",), "it did not take the code: the box was destroyed")
            with anyio.fail_after(BOUND):
                await client.given_up()

    async def test_without_a_bound_on_sending_it_wins_all_it_wants(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The weakened twin: the deadline of the cell begins to count when its code is in the box, which is never."""
        monkeypatch.setattr(clients, "SEND_GRACE_S", math.inf)
        async with served(StuckStream()) as (client, _):
            client._ready.set()
            with anyio.move_on_after(LONG) as waiting:
                await client.execute("x" * 100, TIMEOUT, START)
            assert waiting.cancelled_caught


@pytest.mark.parametrize(
    "kind", ["execute_reply", "kernel_info_reply", "object_info_reply", "complete_reply", "status"]
)
@pytest.mark.parametrize("version", ["4.1", "3", "", "x", "-1", 4, None, [5], "9" * 5000])
@pytest.mark.parametrize(
    "content", [{}, {"status": "ok"}, [], {"protocol_version": 1, "language": {}, "matches": 1}], ids=str
)
async def test_a_message_of_another_version_is_read_or_refused(kind: str, version: Any, content: Any) -> None:
    async def forged(guest: HostileGuest, request: str) -> None:
        header = {"msg_id": "m", "msg_type": kind, "version": version, "date": "2026-13-45T99:99:99Z"}
        parts = [json.dumps(part).encode() for part in (header, {"msg_id": request}, {"date": "x"}, content)]
        await guest.send(Kind.KERNEL, wire.pack_parts(Channel.SHELL, [DELIMITER, b"", *parts]))
        await guest.reply(request)

    assert (await outcome(forged, timeout_s=3)).status in ("ok", "error", "protocol_error")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
box_kinds = st.sampled_from([kind for kind in Kind if kind >= Kind.KERNEL])
noise = st.tuples(st.just("raw"), st.binary(max_size=60))
payloads = st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode())
junk = st.tuples(st.just("frame"), st.tuples(box_kinds, payloads))
forged = st.tuples(
    st.just("message"),
    st.tuples(
        st.sampled_from(("stream", "execute_reply", "error", "execute_result", "status", "kernel_info_reply")),
        json_values,
        st.booleans(),
        st.sampled_from(Channel),
    ),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(noise | junk | forged, max_size=6), bytewise=st.booleans())
def test_any_sequence_of_acts_ends_in_a_typed_outcome(acts: list[tuple[str, Any]], bytewise: bool) -> None:  # noqa: FBT001
    async def behave(guest: HostileGuest, request: str) -> None:
        for act, what in acts:
            if act == "raw":
                await guest.raw(what)
            elif act == "frame":
                await guest.send(*what)
            else:
                kind, content, mine, channel = what
                await guest.message(kind, content, request if mine else "0" * 32, channel)

    result = anyio.run(lambda: outcome(behave, bytewise=bytewise, timeout_s=0.005))
    assert result.status in ("ok", "error", "timeout", "output_limit", "oom", "died", "protocol_error")
    json.dumps(result.to_dict()).encode()
