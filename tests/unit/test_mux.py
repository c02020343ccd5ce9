"""The mux: calls bounded in number and bytes, each answered once, and no end that waits for the box."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.transport import mux as muxes
from orchestrator.transport.mux import Mux, refuse_everything
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from orchestrator.transport.streams import memory_pair
from sandbox_image import wire
from sandbox_image.wire import Frame, Kind
from tests.support.hostile_guest import LIMITS, MAX_FRAME, MAX_MESSAGE, WINDOW, HostileGuest, StuckStream, faced

pytestmark = pytest.mark.anyio

BOUND = 5


class Desk:
    """A handler that answers when it is told to.

    Attributes:
        calls: what has arrived.
        most: how many were under way at once.
        cancelled: how many of them were cancelled.
    """

    def __init__(self, answer: Callable[[RpcCall], Awaitable[RpcReply]] | None = None) -> None:
        self.calls: list[RpcCall] = []
        self.under_way = self.most = self.cancelled = 0
        self.open = anyio.Event()
        self.full = anyio.Event()
        self._answer = answer

    async def __call__(self, call: RpcCall) -> RpcReply:
        self.calls.append(call)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.under_way == WINDOW:
            self.full.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        return RpcReply({"method": call.method}, call.body)


def open_desk() -> Desk:
    desk = Desk()
    desk.open.set()
    return desk


async def answers(guest: HostileGuest, count: int) -> dict[str, tuple[dict[str, object], str]]:
    with anyio.fail_after(BOUND):
        found = [await guest.answer() for _ in range(count)]
    assert len({head["id"] for head, _ in found}) == count
    return {str(head["id"]): (head, body) for head, body in found}


class TestCalls:
    async def test_a_call_is_answered_with_its_own_id_and_bound_to_the_open_cell(self) -> None:
        desk = open_desk()
        async with faced(desk) as (_, mux, guest):
            mux.cell = 3
            first, second = await guest.call("llm_query", "a", model="x"), await guest.call("budget", "b")
            found = await answers(guest, 2)
            assert found[first] == ({"id": first, "result": {"method": "llm_query"}}, "a")
            assert found[second] == ({"id": second, "result": {"method": "budget"}}, "b")
            assert [(call.cell, call.params) for call in desk.calls] == [(3, {"model": "x"}), (3, {})]

    async def test_outside_a_cell_a_call_has_none(self) -> None:
        desk = open_desk()
        async with faced(desk) as (_, _, guest):
            await guest.call("budget")
            await answers(guest, 1)
            assert desk.calls[0].cell is None

    async def test_a_call_and_an_answer_larger_than_a_frame_travel_in_fragments(self) -> None:
        async with faced(open_desk()) as (_, _, guest):
            body = "é" * (MAX_MESSAGE // 3)
            identity = await guest.call("llm_query", body)
            assert (await answers(guest, 1))[identity][1] == body

    async def test_a_refusal_reaches_the_box_as_reason_limit_and_sentence(self) -> None:
        async with faced() as (_, _, guest):
            identity = await guest.call("llm_query", "x")
            head, _ = (await answers(guest, 1))[identity]
            assert head["error"] == {
                "reason": "unavailable",
                "limit": None,
                "message": "llm_query is not available in this sandbox",
            }

    @pytest.mark.parametrize(
        "outcome",
        [
            ZeroDivisionError("/home/me"),
            anyio.BrokenResourceError(),
            None,
            RpcReply({"a": object()}),
            RpcReply(body=b"x"),  # type: ignore[arg-type]
            RpcReply(body="x" * (MAX_MESSAGE + wire.MAX_HEAD)),
            RpcRefusal("reason", "words", limit=object()),  # type: ignore[arg-type]
        ],
        ids=["raises", "breaks", "none", "not JSON", "bytes", "too large", "refuses badly"],
    )
    async def test_a_handler_that_fails_refuses_that_call_alone_and_is_logged(
        self, outcome: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fails_once(call: RpcCall) -> RpcReply:
            if call.method == "budget":
                return RpcReply(body="fine")
            if isinstance(outcome, Exception):
                raise outcome
            return outcome  # type: ignore[return-value]

        async with faced(fails_once) as (client, _, guest):
            failed, fine = await guest.call("llm_query", "x"), await guest.call("budget")
            found = await answers(guest, 2)
            assert found[failed][0]["error"] == {
                "reason": "handler_failed",
                "limit": None,
                "message": "the host could not answer this call",
            }
            assert found[fine][1] == "fine"
            assert not client.gone
        assert [(record.name, record.getMessage()) for record in caplog.records] == [
            ("orchestrator.transport.mux", "the handler of calls failed on llm_query")
        ]
        assert caplog.records[0].exc_info is not None

    async def test_no_more_than_the_window_are_under_way_and_the_others_are_refused(self) -> None:
        desk = Desk()
        async with faced(desk) as (_, _, guest):
            identities = [await guest.call("llm_query", str(number)) for number in range(WINDOW + 3)]
            refused = await answers(guest, 3)
            assert set(refused) == set(identities[WINDOW:])
            assert all(head["error"]["reason"] == "too_many_in_flight" for head, _ in refused.values())  # type: ignore[index]
            desk.open.set()
            assert set(await answers(guest, WINDOW)) == set(identities[:WINDOW])
            assert desk.most == WINDOW

    async def test_calls_under_way_hold_no_more_than_one_messages_bytes_together(self) -> None:
        desk = Desk()
        async with faced(desk) as (_, _, guest):
            await guest.call("llm_query", "x" * (MAX_MESSAGE - 100))
            large = await guest.call("llm_query", "x" * wire.MAX_HEAD)
            assert set(await answers(guest, 1)) == {large}
            desk.open.set()
            await answers(guest, 1)
            await guest.call("llm_query", "x" * wire.MAX_HEAD)
            head, _ = next(iter((await answers(guest, 1)).values()))
            assert "result" in head

    async def test_answers_that_wait_to_be_sent_take_no_room_and_are_bounded_in_number(self) -> None:
        desk = open_desk()
        async with faced(desk) as (_, mux, guest):
            await mux._write_lock.acquire()
            for number in range(3 * WINDOW):
                await guest.call("llm_query", f"{number % 10}" * (MAX_MESSAGE if number < 2 else 1))
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert len(desk.calls) == WINDOW
            mux._write_lock.release()
            found = await answers(guest, 3 * WINDOW)
            assert sum("error" in head for head, _ in found.values()) == 2 * WINDOW

    async def test_short_answers_that_are_ready_together_leave_in_one_piece(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = Desk()
        async with faced(desk) as (_, mux, guest):
            sent: list[bytes] = []
            original = mux._stream.send

            async def send(data: bytes) -> None:
                sent.append(data)
                await original(data)

            monkeypatch.setattr(mux._stream, "send", send)
            identities = {await guest.call("llm_query", str(number)) for number in range(WINDOW)}
            await anyio.wait_all_tasks_blocked()
            desk.open.set()
            assert set(await answers(guest, WINDOW)) == identities
            assert len(sent) == 1

    async def test_the_places_of_answers_are_free_while_their_piece_is_being_sent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = Desk()
        async with faced(desk) as (_, mux, guest):
            arriving, go_on = anyio.Event(), anyio.Event()
            original = mux._stream.send

            async def send(data: bytes) -> None:
                await original(data)  # the box may have read all of it before the host learns that it was sent
                arriving.set()
                await go_on.wait()

            monkeypatch.setattr(mux._stream, "send", send)
            for number in range(WINDOW):
                await guest.call("llm_query", str(number))
            await anyio.wait_all_tasks_blocked()
            desk.open.set()
            with anyio.fail_after(BOUND):
                await arriving.wait()
            later = {await guest.call("llm_query", str(number)) for number in range(WINDOW)}
            await anyio.wait_all_tasks_blocked()
            assert len(desk.calls) == 2 * WINDOW
            go_on.set()
            found = await answers(guest, 2 * WINDOW)
            assert all("result" in found[identity][0] for identity in later)

    async def test_concurrent_answers_do_not_mix(self) -> None:
        async with faced(open_desk()) as (_, _, guest):
            bodies = {await guest.call("llm_query", str(number) * 70_000): number for number in range(WINDOW - 1)}
            found = await answers(guest, len(bodies))
            assert {identity: body for identity, (_, body) in found.items()} == {
                identity: str(number) * 70_000 for identity, number in bodies.items()
            }

    async def test_the_end_of_a_cell_cancels_its_calls_and_still_answers_each(self) -> None:
        desk = Desk()
        async with faced(desk) as (_, mux, guest):
            identities = {await guest.call("llm_query", "x") for _ in range(WINDOW)}
            with anyio.fail_after(BOUND):
                await desk.full.wait()
            mux.cancel_calls()
            found = await answers(guest, WINDOW)
            assert set(found) == identities
            assert {head["error"]["reason"] for head, _ in found.values()} == {"cell_over"}  # type: ignore[index]
            assert desk.cancelled == WINDOW
            desk.open.set()
            await guest.call("llm_query", "the next cell's")
            assert [body for _, body in (await answers(guest, 1)).values()] == ["the next cell's"]

    async def test_what_a_dead_kernel_left_unsaid_is_not_joined_to_the_next_ones_call(self) -> None:
        async with faced(open_desk()) as (_, _, guest):
            message = wire.pack_message({"id": "0" * 32, "method": "final"}, b"begun")
            await guest.raw(wire.encode(Kind.RPC, b"\x00" + message))
            await guest.died()
            identity = await guest.call("llm_query", "whole")
            assert (await answers(guest, 1))[identity][1] == "whole"


class TestViolations:
    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x00",
            b"\x02",
            b"\x01",
            b"\x01\0\0\0\x02[]",
            b"\x01" + wire.pack_message({"id": "x", "method": "budget"}, b""),
            b"\x01" + wire.pack_message({"id": "0" * 32, "method": "__class__."}, b""),
            b"\x01" + wire.pack_message({"id": "0" * 32, "method": "final"}, b"\xff"),
        ],
        ids=["empty", "carries nothing", "unknown flag", "no head", "a list", "no id", "no method", "no text"],
    )
    async def test_a_call_of_another_shape_ends_the_box(self, payload: bytes) -> None:
        desk = open_desk()
        async with faced(desk) as (client, _, guest):
            await guest.raw(wire.encode(Kind.RPC, payload))
            with anyio.fail_after(BOUND), pytest.raises(EOFError):
                await guest.answer()
            assert client.gone
            assert not desk.calls

    async def test_a_call_that_is_too_large_ends_the_box(self) -> None:
        async with faced(open_desk()) as (client, _, guest):
            await guest.call("final", "x" * (MAX_MESSAGE + wire.MAX_HEAD))
            with anyio.fail_after(BOUND), pytest.raises(EOFError):
                await guest.answer()
            assert client.gone

    async def test_calls_without_end_end_the_box(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(muxes, "MAX_REFUSALS", 10)
        desk = Desk()
        async with faced(desk) as (client, _, guest):
            one = wire.pack_message({"id": "0" * 32, "method": "budget"}, b"")
            await guest.raw(b"".join(wire.encode_fragments(one)) * (WINDOW + 11))
            with anyio.fail_after(BOUND), pytest.raises(EOFError):
                await answers(guest, WINDOW + 12)
            assert client.gone
            assert len(desk.calls) <= WINDOW

    @settings(deadline=None, max_examples=50)
    @given(data=st.binary(max_size=200), at=st.integers(0, 200))
    def test_any_bytes_end_in_a_listener_told_and_nothing_raised(self, data: bytes, at: int) -> None:
        told: list[str] = []

        class Ears:
            def frame(self, frame: Frame) -> None:
                assert frame.kind in muxes.FROM_BOX

            def closed(self, violation: str) -> None:
                told.append(violation)

        async def feed() -> None:
            host, box = memory_pair()
            mux = Mux(
                host,
                Ears(),
                refuse_everything,
                max_frame=MAX_FRAME,
                max_message=MAX_MESSAGE,
                window=WINDOW,
                limits=LIMITS,
            )
            for piece in (data[:at], data[at:]):
                await box.send(piece or wire.encode(Kind.READY))
            await box.aclose()
            await mux.run()

        anyio.run(feed)
        assert len(told) == 1


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muxes, "STALL_S", 0.05)


@pytest.mark.usefixtures("stall")
class TestStalls:
    """Silence in the middle of something is no silence between cells."""

    @pytest.mark.parametrize("begun", [b"\0", wire.HEADER.pack(100, Kind.READY), wire.encode(Kind.RPC, b"\x01x")[:-1]])
    async def test_a_frame_that_does_not_end_ends_the_box(self, begun: bytes) -> None:
        async with faced() as (client, _, guest):
            await guest.raw(begun)
            with anyio.fail_after(BOUND), pytest.raises(EOFError):
                await guest.receive()
            await anyio.wait_all_tasks_blocked()
            assert client.gone
            assert "did not end within" in client._violation

    async def test_bytes_that_trickle_do_not_move_its_end(self) -> None:
        async with faced() as (client, _, guest):
            with anyio.fail_after(BOUND):
                await guest.raw(wire.HEADER.pack(60_000, Kind.KERNEL))
                while not client.gone:
                    await guest.raw(b"x")
                    await anyio.sleep(0.01)

    async def test_a_call_that_does_not_end_is_let_go_of_and_refused_should_it_end(self) -> None:
        async with faced(open_desk()) as (client, mux, guest):
            message = wire.pack_message({"id": "0" * 32, "method": "final"}, b"begun")
            await guest.raw(wire.encode(Kind.RPC, b"\x00" + message))
            with anyio.fail_after(BOUND):
                while not mux._inbox._seen or mux._inbox.partial:
                    await anyio.lowlevel.checkpoint()
            assert mux._inbox.buffered == 0
            await guest.raw(wire.encode(Kind.RPC, b"\x01 and ended"))
            head, _ = (await answers(guest, 1))["0" * 32]
            assert head["error"]["reason"] == "stalled"  # type: ignore[index]
            identity = await guest.call("llm_query", "the next")
            assert (await answers(guest, 1))[identity][1] == "the next"
            assert not client.gone

    async def test_silence_between_frames_and_slow_calls_that_move_are_no_stall(self) -> None:
        async with faced(open_desk()) as (client, _, guest):
            for _ in range(3):
                await anyio.sleep(3 * muxes.STALL_S)
                identity = await guest.call("llm_query", "x")
                assert (await answers(guest, 1))[identity][1] == "x"
            assert not client.gone


class TestEnding:
    async def test_an_answer_stuck_on_its_way_does_not_keep_the_mux_from_ending(self) -> None:
        stream = StuckStream()

        class Ears:
            def frame(self, frame: Frame) -> None: ...

            def closed(self, violation: str) -> None: ...

        mux = Mux(
            stream, Ears(), open_desk(), max_frame=MAX_FRAME, max_message=MAX_MESSAGE, window=WINDOW, limits=LIMITS
        )
        message = wire.pack_message({"id": "0" * 32, "method": "budget"}, b"")
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mux.run)
                await anyio.wait_all_tasks_blocked()
                mux._fragment(tasks, b"\x01" + message)
                await stream.sending.wait()
                tasks.cancel_scope.cancel()

    async def test_an_answer_stuck_behind_a_violation_does_not_keep_the_box_open(self) -> None:
        class HalfStuck(StuckStream):
            """Delivers a call and, once the answer is on its way, garbage."""

            def __init__(self) -> None:
                super().__init__()
                message = wire.pack_message({"id": "0" * 32, "method": "budget"}, b"")
                self._said = [b"".join(wire.encode_fragments(message))]

            async def receive(self) -> bytes:
                if self._said:
                    return self._said.pop()
                await self.sending.wait()
                return b"\xff" * 10

        told: list[str] = []

        class Ears:
            def frame(self, frame: Frame) -> None: ...

            def closed(self, violation: str) -> None:
                told.append(violation)

        mux = Mux(
            HalfStuck(), Ears(), open_desk(), max_frame=MAX_FRAME, max_message=MAX_MESSAGE, window=WINDOW, limits=LIMITS
        )
        with anyio.fail_after(BOUND):
            await mux.run()
        assert len(told) == 1
        assert told[0]

    async def test_a_box_that_is_gone_before_its_answer_is_no_error(self) -> None:
        desk = Desk()
        async with faced(desk) as (client, mux, guest):
            await guest.call("budget")
            await anyio.wait_all_tasks_blocked()
            await guest.hang_up()
            with anyio.fail_after(BOUND):
                while not client.gone:
                    await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BrokenResourceError):
                await mux.send(Kind.INTERRUPT)

    async def test_refusing_everything_names_the_method(self) -> None:
        with pytest.raises(RpcRefusal, match="rlm_query is not available"):
            await refuse_everything(RpcCall("0" * 32, "rlm_query", {}, "", 1))
