"""Attacks on the protocol, on the whole host but its container: box, stream, kernel client, broker, ledger.

Case numbers (PF05, RP06 …) are those of the catalogue of attacks; what needs a real kernel to be an attack is in
``tests/docker/test_forgery.py``. Each test ends within a bound; that none of them raises is part of every one.
"""

from __future__ import annotations

import json
import math
import secrets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SandboxGoneError, ungrouped
from orchestrator.events import FinalSet, Refused, SubcallStarted
from orchestrator.interpreter import Sandbox
from orchestrator.kernel import client as clients
from orchestrator.kernel.result import ExecutionResult
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.text import printable
from orchestrator.transport import mux as muxes
from sandbox_image import wire
from sandbox_image.wire import Channel, Kind
from tests.support.fakes import FakeModel
from tests.support.hostile_guest import DELIMITER, Desk, HostileGuest, hosted

pytestmark = pytest.mark.anyio

TIMEOUT = 0.2
BOUND = 10
STATUSES = {"ok", "error", "timeout", "output_limit", "oom", "died", "protocol_error", "cancelled"}

Attack = Callable[[HostileGuest, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "INTERRUPT_GRACE_S", 0.02)
    monkeypatch.setattr(clients, "KILL_GRACE_S", 0.02)
    monkeypatch.setattr(muxes, "STALL_S", 0.1)


async def cell(box: Sandbox, guest: HostileGuest, attack: Attack, timeout_s: float = TIMEOUT) -> ExecutionResult:
    """Run a cell whose guest attacks; it must end within its bound, and its result be plain data."""

    async def act() -> None:
        await attack(guest, await guest.request())

    with ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act)
            with anyio.fail_after(BOUND):
                result = await box.execute("1", timeout_s)
            tasks.cancel_scope.cancel()
    assert result.status in STATUSES
    json.dumps(result.to_dict(), allow_nan=False).encode()
    return result


async def suffered(attack: Attack, timeout_s: float = TIMEOUT) -> ExecutionResult:
    """Run one cell in a box of its own."""
    async with hosted() as (box, guest, _):
        result = await cell(box, guest, attack, timeout_s)
        assert box.gone is (result.status in ("protocol_error", "timeout"))
        return result


async def burnt(attack: Attack) -> ExecutionResult:
    """Run one cell that breaks the protocol; the box must serve no other."""
    async with hosted() as (box, guest, desk):
        result = await cell(box, guest, attack, BOUND)
        assert (result.status, result.state_lost, box.gone) == ("protocol_error", True, True)
        assert not desk.model.requests
        with pytest.raises(SandboxGoneError):
            await box.execute("1")
        return result


async def refusals(
    guest: HostileGuest, request: str, calls: list[tuple[str, str, dict[str, Any]]]
) -> list[tuple[str, float | None]]:
    """Make calls one after the other and end the cell; return reason and limit of each answer, ``ok`` for none."""
    found: list[tuple[str, float | None]] = []
    for method, body, params in calls:
        await guest.call(method, body, **params)
        head, _ = await guest.answer()
        error = head.get("error")
        found.append((error["reason"], error["limit"]) if error else ("ok", None))
    await guest.reply(request)
    return found


async def asked(*calls: tuple[str, str, dict[str, Any]], model: FakeModel | None = None) -> tuple[list[str], Desk]:
    """Make calls from an open cell; return the reasons, and what the host has to show for it."""
    reasons: list[str] = []
    async with hosted("models.allowed=['cheap']", model=model) as (box, guest, desk):

        async def act(guest: HostileGuest, request: str) -> None:
            reasons.extend(reason for reason, _ in await refusals(guest, request, list(calls)))

        assert (await cell(box, guest, act, BOUND)).ok
    return reasons, desk


def kernel(*parts: bytes, channel: Channel = Channel.IOPUB) -> bytes:
    return wire.encode(Kind.KERNEL, wire.pack_parts(channel, [DELIMITER, b"", *parts]))


def content(body: bytes) -> Attack:
    """Return an attack that prints with such bytes for its content."""

    async def attack(guest: HostileGuest, request: str) -> None:
        header, parent = b'{"msg_id":"m","msg_type":"stream","version":"5.3"}', json.dumps({"msg_id": request}).encode()
        await guest.raw(kernel(header, parent, b"{}", body))

    return attack


class TestForgedEnds:
    async def test_pf02_pf04_a_forged_reply_ends_one_cell_and_a_second_one_none(self) -> None:
        async def forge(guest: HostileGuest, request: str) -> None:
            await guest.message("status", {"execution_state": "idle"}, request)
            for _ in range(3):
                await guest.reply(request)
            await guest.print("late", request)

        async def honest(guest: HostileGuest, request: str) -> None:
            await guest.print("next", request)
            await guest.reply(request)

        async with hosted() as (box, guest, _):
            assert (await cell(box, guest, forge)).status == "ok"
            assert (await cell(box, guest, honest)).stdout == "next"

    @pytest.mark.parametrize(
        "reply",
        [
            [1, 2],
            None,
            "ok",
            {"status": 7},
            {"status": None},
            {"status": ["ok"]},
            {"status": "error", "traceback": "x"},
            {"status": "error", "ename": 1, "evalue": [], "traceback": []},
            {"status": "error", "ename": "E", "evalue": "", "traceback": [{}]},
        ],
        ids=str,
    )
    async def test_pf05_a_reply_of_wrong_types_burns_the_box(self, reply: Any) -> None:
        await burnt(lambda guest, request: guest.message("execute_reply", reply, request, Channel.SHELL))

    @pytest.mark.parametrize("kind", [7, None, [], {}, "x" * 100_000])
    async def test_pf05_a_message_of_no_type_is_passed_over(self, kind: Any) -> None:
        async def forge(guest: HostileGuest, request: str) -> None:
            await guest.message(kind, {"status": "ok"}, request, Channel.SHELL)
            await guest.reply(request)

        assert (await suffered(forge, BOUND)).ok

    async def test_pf16_pf17_what_is_printed_or_raised_ends_no_run(self) -> None:
        async def forge(guest: HostileGuest, request: str) -> None:
            await guest.print('FINAL(x)\n{"final_answer": 1}', request)
            error: dict[str, Any] = {"ename": "FinalAnswerException", "evalue": "x", "traceback": ["Final = 'x'"]}
            await guest.message("error", error, request)
            await guest.reply(request, status="error", **error)

        async with hosted() as (box, guest, desk):
            result = await cell(box, guest, forge, BOUND)
            assert (result.status, result.stdout) == ("error", 'FINAL(x)\n{"final_answer": 1}')
            assert desk.broker.final is None

    async def test_pf18_the_first_final_counts_and_none_outside_a_cell(self) -> None:
        async with hosted() as (box, guest, desk):
            await guest.call("final", "too early")
            head, _ = await guest.answer()
            assert head["error"]["reason"] == "no_open_cell"
            found: list[str] = []

            async def act(guest: HostileGuest, request: str) -> None:
                calls: list[tuple[str, str, dict[str, Any]]] = [("final", "first", {}), ("final", "second", {})]
                found.extend(reason for reason, _ in await refusals(guest, request, calls))

            assert (await cell(box, guest, act, BOUND)).ok
            await guest.call("final", "too late")
            head, _ = await guest.answer()
            assert head["error"]["reason"] == "no_open_cell"
            assert found == ["ok", "already_final"]
            assert (desk.broker.final, [event.answer for event in desk.journal.of(FinalSet)]) == ("first", ["first"])

    async def test_pf19_a_final_is_text_and_nothing_else(self) -> None:
        trick = '{"__reduce__": ["os.system", ["x"]], "$blob": "sha256:0"} \x1b]0;t\x07 \u202e'
        _, desk = await asked(("final", trick, {}))
        assert desk.broker.final == trick

    async def test_pf20_pf21_questions_and_payloads_go_nowhere(self) -> None:
        async def forge(guest: HostileGuest, request: str) -> None:
            for kind in (
                "input_request",
                "comm_open",
                "comm_msg",
                "update_display_data",
                "clear_output",
                "debug_event",
            ):
                await guest.message(kind, {"prompt": "password: ", "password": True, "data": {}}, request)
                await guest.message(kind, {"prompt": "password: "}, request, Channel.SHELL)
            payload = [{"source": "set_next_input", "text": "rm -rf /"}, {"source": "page", "data": {}}]
            await guest.reply(request, payload=payload, user_expressions={"x": "y"}, execution_count=5)

        result = await suffered(forge, BOUND)
        assert result == ExecutionResult("ok", elapsed_s=result.elapsed_s)

    async def test_pf23_pf24_of_rich_output_text_alone_is_kept_and_no_picture_is_looked_at(self) -> None:
        bomb = {"image/png": "iVBORw0KGgo" + "A" * 100_000, "text/html": "<script>alert(1)</script>"}

        async def forge(guest: HostileGuest, request: str) -> None:
            await guest.message("display_data", {"data": {**bomb, "image/svg+xml": "<svg onload=x>"}}, request)
            await guest.message("execute_result", {"data": {**bomb, "text/plain": "plain"}}, request)
            await guest.reply(request)

        result = await suffered(forge, BOUND)
        assert (result.result, result.stdout) == ("plain", "")
        assert "script" not in str(result.to_dict())

    async def test_pf25_pf10_what_steers_a_terminal_is_kept_as_text_and_shown_as_none(self) -> None:
        text = "\x1b]52;c;aGk=\x07\x1b[2J\x1b]8;;http://x\x07link\x1b]8;;\x07 \ufeff\u202e\0 \ud800 \x9b1m end"

        async def forge(guest: HostileGuest, request: str) -> None:
            await guest.print(text, request)
            await guest.reply(request)

        result = await suffered(forge, BOUND)
        result.stdout.encode()
        assert printable(result.stdout).split() == ["link", "?", "end"]

    async def test_pf27_a_spoofed_description_of_the_kernel_is_not_read(self) -> None:
        async def forge(guest: HostileGuest, request: str) -> None:
            info = {"banner": "x" * 500_000, "implementation": {"a": [1]}, "protocol_version": "99", "status": "ok"}
            await guest.message("kernel_info_reply", info, request, Channel.SHELL)
            await guest.reply(request)

        assert (await suffered(forge, BOUND)).ok


class TestMalformed:
    @pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e999"])
    async def test_pf06_numbers_that_are_none(self, value: bytes) -> None:
        await burnt(content(b'{"name":"stdout","text":"x","n":' + value + b"}"))

    async def test_pf07_a_number_of_many_digits(self) -> None:
        await burnt(content(b'{"n":' + b"9" * 1_000_000 + b"}"))

    @pytest.mark.parametrize("unit", [b"[", b'{"a":'])
    async def test_pf08_deep_nesting(self, unit: bytes) -> None:
        await burnt(content(unit * 20_000))

    async def test_pf08_more_values_than_anybody_sends(self) -> None:
        await burnt(content(b"[" + b"[]," * 100_000 + b"[]]"))

    @pytest.mark.parametrize("body", [b"\xff\xfe", b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}", b"", b"\0"], ids=repr)
    async def test_pf10_pf11_bytes_that_are_no_text(self, body: bytes) -> None:
        await burnt(content(body))

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            wire.pack_parts(Channel.IOPUB, []),
            wire.pack_parts(Channel.IOPUB, [b"no delimiter"] * 6),
            wire.pack_parts(Channel.IOPUB, [DELIMITER] * 6),
            bytes((Channel.IOPUB, 255)) + struct.pack(">I", 0) * 255,
            bytes((Channel.IOPUB, 3)) + struct.pack(">I", 2**32 - 1),
            b"\x07\x00",
        ],
        ids=["empty", "no parts", "no delimiter", "delimiters", "many parts", "a lying part", "no channel"],
    )
    async def test_pf12_messages_of_another_build(self, payload: bytes) -> None:
        await burnt(lambda guest, _: guest.send(Kind.KERNEL, payload))

    @pytest.mark.parametrize("length", [2**32 - 1, 2**31, 1 << 26])
    async def test_pf13_a_length_that_lies_is_refused_before_anything_is_held(self, length: int) -> None:
        async with hosted() as (box, guest, _):
            result = await cell(box, guest, lambda guest, _: guest.raw(struct.pack(">IB", length, 16) + b"x"), BOUND)
            assert (result.status, box._mux._decoder.buffered) == ("protocol_error", 0)

    @pytest.mark.parametrize("kind", [Kind.READY, Kind.DIED, Kind.FAULT, Kind.RPC, Kind.BOUND])
    async def test_pf13_a_fact_is_no_place_for_megabytes(self, kind: Kind) -> None:
        await burnt(lambda guest, _: guest.raw(struct.pack(">IB", (1 << 20) + 2, kind)))

    @pytest.mark.parametrize("begun", [b"\0\0\0", struct.pack(">IB", 100, Kind.KERNEL) + b"x"])
    async def test_pf14_a_frame_that_stalls_ends_the_box_long_before_its_cell_would(self, begun: bytes) -> None:
        result = await burnt(lambda guest, _: guest.raw(begun))
        assert "did not end within" in result.detail

    async def test_pf14_without_that_bound_it_waits_for_the_cells_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(muxes, "STALL_S", 1000)
        assert (await suffered(lambda guest, _: guest.raw(b"\0\0\0"), 0.5)).status == "timeout"

    @pytest.mark.parametrize("noise", [b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"{}\n", bytes(range(256))])
    @pytest.mark.parametrize("where", ["first", "between frames"])
    async def test_pf15_noise_on_the_stream(self, noise: bytes, where: str) -> None:
        async def attack(guest: HostileGuest, request: str) -> None:
            if where == "between frames":
                await guest.print("out", request)
            await guest.raw(noise)

        await burnt(attack)

    @pytest.mark.parametrize("kind", [kind for kind in Kind if kind < Kind.KERNEL])
    async def test_pf15_orders_that_only_the_host_gives(self, kind: Kind) -> None:
        await burnt(lambda guest, _: guest.send(kind))


class TestCalls:
    async def test_rp01_methods_that_there_are_not(self) -> None:
        reasons, desk = await asked(("system", "", {}), ("__class__", "", {}), ("getattr", "x", {}))
        assert set(reasons) == {"unknown_method"}
        assert not desk.model.requests

    @pytest.mark.parametrize("method", ["../x", "a.b", "llm_query\n", "", "LLM_QUERY", "a" * 100])
    async def test_rp01_methods_that_are_no_words_burn_the_box(self, method: str) -> None:
        async def attack(guest: HostileGuest, _request: str) -> None:
            await guest.call(method)

        await burnt(attack)

    @pytest.mark.parametrize(
        "params",
        [
            {"model": []},
            {"model": None},
            {"prompt": "x"},
            {"max_tokens": -1},
            {"max_tokens": True},
            {"max_tokens": 1.5},
            {"max_tokens": 2**63},
            {"depth": 0},
            {"batch": 1},
            {"parent": None},
        ],
        ids=str,
    )
    async def test_rp02_params_of_another_shape(self, params: dict[str, Any]) -> None:
        reasons, desk = await asked(("llm_query", "x", params))
        assert reasons == ["invalid_params"]
        assert (desk.scope.usage()["calls"], desk.model.requests) == (0, [])

    async def test_rp03_a_model_that_the_policy_does_not_list(self) -> None:
        reasons, _ = await asked(("llm_query", "x", {"model": "expensive"}), ("llm_query", "x", {"model": "cheap"}))
        assert reasons == ["model_not_allowed", "model_unavailable"]

    async def test_rp04_rp05_a_flood_is_answered_within_the_window_and_ends_with_its_cell(self) -> None:
        model = FakeModel(gate=anyio.Event())

        async def flood(guest: HostileGuest, _request: str) -> None:
            while True:
                await guest.call("llm_query", "x")
                await anyio.lowlevel.checkpoint()

        async with hosted(model=model) as (box, guest, _):
            result = await cell(box, guest, flood)
            assert result.status in ("timeout", "protocol_error")
            assert model.most_in_flight <= 2
            assert len(box._mux._calls) <= 4

    async def test_rp06_an_id_is_good_for_one_call_and_one_bill(self) -> None:
        identity = secrets.token_hex(16)
        reasons, desk = await asked(*[("llm_query", "x", {"identity": identity})] * 3)
        assert reasons == ["ok", "duplicate_id", "duplicate_id"]
        assert desk.scope.usage()["calls"] == len(desk.journal.of(SubcallStarted)) == 1

    async def test_rp07_dl07_two_boxes_with_the_same_ids_get_their_own_answers(self) -> None:
        identity, found = secrets.token_hex(16), []
        models = [FakeModel(default=ModelReply(name, Usage(1, 1))) for name in ("one", "two")]

        async def act(guest: HostileGuest, request: str) -> None:
            await guest.call("llm_query", "x", identity=identity)
            found.append((await guest.answer())[1])
            await guest.reply(request)

        async with (
            hosted(model=models[0]) as (one, its, _),
            hosted(model=models[1]) as (two, others, _),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(cell, one, its, act, BOUND)
            tasks.start_soon(cell, two, others, act, BOUND)
        assert sorted(found) == ["one", "two"]

    async def test_rp08_a_call_of_no_cell_costs_nothing(self) -> None:
        async with hosted() as (box, guest, desk):
            for _ in range(2):
                await guest.call("llm_query", "x")
                head, _ = await guest.answer()
                assert head["error"]["reason"] == "no_open_cell"
                assert (await cell(box, guest, lambda guest, request: guest.reply(request))).ok
            assert (desk.scope.usage()["calls"], desk.model.requests) == (0, [])
            assert [event.reason for event in desk.journal.of(Refused)] == ["no_open_cell"] * 2

    async def test_rp11_a_slow_upload_holds_nothing_for_long_and_the_cell_ends_in_its_time(self) -> None:
        async def trickle(guest: HostileGuest, _request: str) -> None:
            head = json.dumps({"id": "0" * 32, "method": "llm_query"}).encode()
            await guest.send(Kind.RPC, b"\x00" + struct.pack(">I", len(head)) + head)
            while True:
                await guest.send(Kind.RPC, b"\x00x")
                await anyio.sleep(0.01)

        async with hosted() as (box, guest, desk):
            result = await cell(box, guest, trickle, 0.5)
            assert result.status == "timeout"
            assert (box._mux._inbox.buffered, desk.model.requests) == (0, [])

    async def test_rp12_a_giant_prompt_is_refused_and_never_held(self) -> None:
        most = 0

        async def attack(guest: HostileGuest, request: str) -> None:
            nonlocal most
            head = json.dumps({"id": "0" * 32, "method": "llm_query"}).encode()
            await guest.send(Kind.RPC, b"\x00" + struct.pack(">I", len(head)) + head)
            for _ in range(100):
                await guest.send(Kind.RPC, b"\x00" + b"x" * 10_000)
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                most = max(most, box._mux._inbox.buffered)
            await guest.send(Kind.RPC, b"\x01")
            head_, _ = await guest.answer()
            assert (head_["error"]["reason"], head_["error"]["limit"]) == ("prompt_too_large", 64 * 1024)
            await guest.reply(request)

        async with hosted("limits.frame_kb=64") as (box, guest, desk):
            assert (await cell(box, guest, attack, BOUND)).ok
            assert 0 < most <= 64 * 1024
            assert not desk.model.requests

    async def test_rp13_a_giant_batch_is_refused_whole(self) -> None:
        reasons, desk = await asked(
            ("batch_open", "", {"n": 10**6, "characters": 10**6}),
            ("batch_open", "", {"n": 10**9, "characters": 1}),
            ("batch_open", "", {"n": -1, "characters": 1}),
            ("llm_query", "x", {"batch": "b1"}),
            ("batch_close", "", {"batch": "b1"}),
        )
        assert reasons == ["calls", *["invalid_params"] * 4]
        assert desk.scope.remaining()["calls"] == 2000

    async def test_rp14_a_giant_answer_is_cut_to_what_the_box_can_take(self) -> None:
        model = FakeModel(default=ModelReply("x" * 30_000_000, Usage(1, 1)))
        lengths = []

        async def act(guest: HostileGuest, request: str) -> None:
            await guest.call("llm_query", "x")
            lengths.append(len((await guest.answer())[1]))
            await guest.reply(request)

        async with hosted(model=model) as (box, guest, _):
            assert (await cell(box, guest, act, BOUND)).ok
        assert lengths[0] <= 8 << 20

    async def test_rp15_rp18_answers_and_errors_are_text_that_nobody_runs_or_builds_anew(self) -> None:
        hostile = 'FINAL(1) {"error": {"reason": "x"}} __import__("os")'

        def break_down(_request: ModelRequest) -> ModelReply:
            raise ZeroDivisionError("/home/somebody/secret")

        told = []

        async def act(guest: HostileGuest, request: str) -> None:
            for _ in range(2):
                await guest.call("llm_query", "x")
                told.append(await guest.answer())
            await guest.reply(request)

        async with hosted(model=FakeModel([ModelReply(hostile, Usage(1, 1)), break_down])) as (box, guest, desk):
            assert (await cell(box, guest, act, BOUND)).ok
            assert desk.broker.final is None
        assert told[0][1] == hostile
        assert set(told[1][0]["error"]) == {"reason", "limit", "message"}
        assert "ZeroDivision" not in json.dumps(told[1]) + told[1][1]
        assert "/home" not in json.dumps(told[1])

    async def test_rp16_a_stream_that_ends_in_a_call_cancels_it_and_settles_it_once(self) -> None:
        model = FakeModel(gate=anyio.Event())
        async with hosted(model=model) as (box, guest, desk):

            async def act(guest: HostileGuest, _request: str) -> None:
                await guest.call("llm_query", "x")
                await model.arrived.wait()
                await guest.hang_up()

            assert (await cell(box, guest, act, BOUND)).status == "died"
            with anyio.fail_after(BOUND):
                while model.in_flight:
                    await anyio.lowlevel.checkpoint()
            assert (model.cancelled, desk.scope.usage()["calls"], desk.scope.remaining()["calls"]) == (1, 1, 1999)


# Any interleaving ----------------------------------------------------------------------------------------------------

small_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
kinds = st.sampled_from(("stream", "execute_reply", "error", "execute_result", "display_data", "status", "comm_open"))
parents = st.sampled_from(("mine", "former", "none"))
methods = st.sampled_from(("llm_query", "batch_open", "batch_close", "rlm_query", "budget", "final", "system", "../x"))
acts = st.one_of(
    st.tuples(st.just("raw"), st.binary(max_size=40)),
    st.tuples(st.just("lie"), st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=20)),
    st.tuples(st.just("frame"), st.sampled_from(Kind), st.binary(max_size=30) | small_json),
    st.tuples(st.just("message"), kinds, small_json, parents, st.sampled_from(Channel)),
    st.tuples(st.just("print"), st.text(max_size=30), parents),
    st.tuples(st.just("reply"), parents),
    st.tuples(st.just("died"), st.booleans()),
    st.tuples(st.just("ready")),
    st.tuples(
        st.just("call"), methods, st.text(max_size=20), st.dictionaries(st.text(max_size=8), small_json, max_size=2)
    ),
    st.tuples(st.just("fragment"), st.binary(max_size=30)),
    st.tuples(st.just("again")),
    st.tuples(st.just("hang up")),
    st.tuples(st.just("wait")),
)


class Puppet:
    """Carries out acts in order, for one request."""

    def __init__(self, guest: HostileGuest) -> None:
        self._guest = guest
        self._former = "0" * 32
        self._identity = ""

    async def play(self, acts: list[tuple[Any, ...]], request: str) -> None:
        for name, *what in acts:
            await getattr(self, "_" + name.replace(" ", "_"))(request, *what)
        self._former = request

    def _parent(self, request: str, whose: str) -> str:
        return {"mine": request, "former": self._former, "none": ""}[whose]

    async def _raw(self, _request: str, data: bytes) -> None:
        await self._guest.raw(data)

    async def _lie(self, _request: str, length: int, kind: int, data: bytes) -> None:
        await self._guest.raw(struct.pack(">IB", length, kind) + data)

    async def _frame(self, _request: str, kind: Kind, payload: Any) -> None:
        await self._guest.send(kind, payload if isinstance(payload, bytes) else json.dumps(payload).encode())

    async def _message(self, request: str, kind: str, content: Any, whose: str, channel: Channel) -> None:
        await self._guest.message(kind, content, self._parent(request, whose), channel)

    async def _print(self, request: str, text: str, whose: str) -> None:
        await self._guest.print(text, self._parent(request, whose))

    async def _reply(self, request: str, whose: str) -> None:
        await self._guest.reply(self._parent(request, whose))

    async def _died(self, _request: str, oom: bool) -> None:  # noqa: FBT001 - drawn
        await self._guest.died(oom=oom)

    async def _ready(self, _request: str) -> None:
        await self._guest.send(Kind.READY, {"generation": 2})

    async def _call(self, _request: str, method: str, body: str, params: dict[str, Any]) -> None:
        self._identity = secrets.token_hex(16)
        encoded = json.dumps({"id": self._identity, "method": method, "params": params}).encode()
        await self._guest.send(Kind.RPC, b"\x01" + struct.pack(">I", len(encoded)) + encoded + body.encode())

    async def _fragment(self, _request: str, data: bytes) -> None:
        await self._guest.send(Kind.RPC, data)

    async def _again(self, _request: str) -> None:
        if self._identity:
            await self._guest.call("llm_query", "again", identity=self._identity)

    async def _hang_up(self, _request: str) -> None:
        await self._guest.hang_up()

    async def _wait(self, _request: str) -> None:
        await anyio.lowlevel.checkpoint()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.lists(acts, max_size=8), min_size=1, max_size=3), bytewise=st.booleans())
def test_whatever_a_guest_does_every_cell_has_a_typed_end_and_the_books_balance(
    cells: list[list[tuple[Any, ...]]], *, bytewise: bool
) -> None:
    async def suffer() -> None:
        async with hosted("limits.start_timeout_s=0.05", bytewise=bytewise) as (box, guest, desk):
            puppet = Puppet(guest)
            for acts in cells:
                try:
                    await cell(box, guest, lambda _, request, acts=acts: puppet.play(acts, request), 0.02)  # type: ignore[misc]
                except SandboxGoneError:
                    break
                desk.broker.cell_ended(box._cells)
            await guest.hang_up()
            with anyio.fail_after(BOUND):
                while not box.gone or desk.model.in_flight:
                    await anyio.lowlevel.checkpoint()
        usage, left = desk.scope.usage(), desk.scope.remaining()
        assert usage["calls"] + left["calls"] == 2000
        assert usage["calls"] == len(desk.model.requests)
        assert all(math.isfinite(value) for value in left.values())

    anyio.run(suffer)
