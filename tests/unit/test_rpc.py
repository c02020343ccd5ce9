"""The codec of calls: checked in shape, trusted in nothing."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.transport.rpc import BodyLimit, Inbox, RpcCall, RpcRefusal, RpcReply, encode_refusal, encode_reply
from sandbox_image import wire
from sandbox_image.wire import WireError

ID = "0123456789abcdef" * 2


def call(body: bytes = b"", **head: Any) -> bytes:
    encoded = json.dumps(head).encode()
    return struct.pack(">I", len(encoded)) + encoded + body


LARGEST = 1000
LIMITS = {"llm_query": BodyLimit(100, "prompt_too_large"), "final": BodyLimit(LARGEST, "answer_too_large")}


def inbox(*refusals: RpcRefusal | None) -> Inbox:
    """Return one that has a place for every call; ``refusals`` come first."""
    said = list(refusals)
    return Inbox(LARGEST, LIMITS, lambda _: said.pop(0) if said else None)


def decode_call(message: bytes, cell: int | None) -> RpcCall:
    arrival = inbox().feed(b"\x01" + message)
    assert arrival is not None
    assert arrival.refusal is None
    return arrival.decode(cell)


class TestCalls:
    def test_a_call_is_bound_to_the_hosts_cell_and_not_to_one_it_names(self) -> None:
        found = decode_call(call("héllo".encode(), id=ID, method="llm_query", params={"cell": 7}), cell=3)
        assert (found.id, found.method, found.params, found.body, found.cell) == (
            ID,
            "llm_query",
            {"cell": 7},
            "héllo",
            3,
        )

    def test_params_may_be_left_out(self) -> None:
        assert decode_call(call(id=ID, method="budget"), cell=None).params == {}

    @pytest.mark.parametrize(
        "head",
        [
            {},
            {"id": ID},
            {"method": "budget"},
            {"id": ID[:-1], "method": "budget"},
            {"id": ID.upper(), "method": "budget"},
            {"id": ID + "\n", "method": "budget"},
            {"id": int(ID, 16) % 2**60, "method": "budget"},
            {"id": "\N{ARABIC-INDIC DIGIT ZERO}" * 32, "method": "budget"},
            {"id": ID, "method": ""},
            {"id": ID, "method": "a" * 33},
            {"id": ID, "method": "../x"},
            {"id": ID, "method": "budget\n"},
            {"id": ID, "method": ["budget"]},
            {"id": ID, "method": "budget", "params": []},
            {"id": ID, "method": "budget", "params": None},
            {"id": ID, "method": "budget", "cell": 1},
        ],
        ids=str,
    )
    def test_a_head_of_another_shape_is_a_violation(self, head: dict[str, Any]) -> None:
        with pytest.raises(WireError):
            decode_call(call(**head), cell=1)

    def test_a_body_that_is_no_utf_8_is_a_violation(self) -> None:
        with pytest.raises(WireError, match="UTF-8"):
            decode_call(call(b"\xff", id=ID, method="final"), cell=1)

    @given(message=st.binary(max_size=100))
    def test_any_message_gives_a_call_or_a_violation(self, message: bytes) -> None:
        try:
            decode_call(message, cell=1)
        except WireError:
            return


class TestInbox:
    def test_fragments_join_whatever_their_size(self) -> None:
        message = call(b"prompt", id=ID, method="llm_query")
        into = inbox()
        assert [into.feed(b"\x00" + message[place : place + 1]) for place in range(len(message))] == [None] * len(
            message
        )
        assert into.partial
        arrival = into.feed(b"\x01")
        assert arrival is not None
        assert arrival.decode(1).body == "prompt"
        assert into.buffered == 0

    def test_of_a_body_beyond_its_methods_limit_nothing_is_kept_and_the_call_is_refused_by_name(self) -> None:
        into = inbox()
        into.feed(b"\x00" + call(b"x" * 100, id=ID, method="llm_query"))
        assert into.buffered == 100
        into.feed(b"\x00y")
        assert (into.buffered, into.partial) == (0, False)
        into.feed(b"\x00" + b"z" * 200)
        assert into.buffered == 0
        arrival = into.feed(b"\x01")
        assert arrival is not None
        assert arrival.refusal is not None
        assert (arrival.id, arrival.body, arrival.refusal.reason, arrival.refusal.limit) == (
            ID,
            b"",
            "prompt_too_large",
            100,
        )

    def test_a_method_that_takes_no_text_cannot_be_given_much(self) -> None:
        arrival = Inbox(1 << 20, LIMITS, lambda _: None).feed(b"\x01" + call(b"x" * 5000, id=ID, method="budget"))
        assert arrival is not None
        assert arrival.refusal is not None
        assert arrival.refusal.reason == "invalid_params"

    def test_where_there_is_no_place_the_head_is_enough_to_know_it(self) -> None:
        into = inbox(RpcRefusal("too_many_in_flight", "words"))
        into.feed(b"\x00" + call(b"x" * 50, id=ID, method="final"))
        assert into.buffered == 0
        arrival = into.feed(b"\x01" + b"x" * 50)
        assert arrival is not None
        assert arrival.refusal is not None
        assert arrival.refusal.reason == "too_many_in_flight"
        arrival = into.feed(b"\x01" + call(b"next", id=ID, method="final"))
        assert arrival is not None
        assert (arrival.body, arrival.refusal) == (b"next", None)

    @pytest.mark.parametrize(
        "begun", [b"", b"\0\0", call(b"x", id=ID, method="final")[:20], call(b"x", id=ID, method="final")]
    )
    def test_what_is_abandoned_is_refused_when_it_ends_and_the_next_call_is_not(self, begun: bytes) -> None:
        into, message = inbox(), call(b"x", id=ID, method="final")
        if begun:
            into.feed(b"\x00" + begun)
        into.abandon(RpcRefusal("stalled", "words"))
        arrival = into.feed(b"\x01" + message[len(begun) :])
        assert arrival is not None
        assert (arrival.refusal is not None) is bool(begun)
        arrival = into.feed(b"\x01" + message)
        assert arrival is not None
        assert arrival.refusal is None

    @pytest.mark.parametrize("refused", [False, True])
    def test_a_message_without_end_is_a_violation_even_when_nothing_of_it_is_kept(self, *, refused: bool) -> None:
        into = inbox(RpcRefusal("x", "words")) if refused else inbox()
        into.feed(b"\x00" + call(id=ID, method="final"))
        most = LARGEST + wire.MAX_HEAD
        for _ in range(most // 1000):
            into.feed(b"\x00" + b"x" * 1000)
            assert into.buffered <= LARGEST
        with pytest.raises(WireError, match="longer than any may be"):
            into.feed(b"\x00" + b"x" * 1000)

    def test_what_a_gone_sender_left_is_forgotten(self) -> None:
        into = inbox()
        into.feed(b"\x00" + call(b"old", id=ID, method="final"))
        into.reset()
        arrival = into.feed(b"\x01" + call(b"new", id=ID, method="final"))
        assert arrival is not None
        assert arrival.body == b"new"

    @given(fragments=st.lists(st.binary(max_size=60), max_size=6))
    def test_any_fragments_give_calls_or_a_violation(self, fragments: list[bytes]) -> None:
        into = inbox()
        try:
            for fragment in fragments:
                into.feed(fragment)
        except WireError:
            return


class TestAnswers:
    def test_a_reply_carries_facts_and_text(self) -> None:
        head, body = wire.unpack_message(encode_reply(ID, RpcReply({"stop": "end"}, "ans\ud800wer")))
        assert head == {"id": ID, "result": {"stop": "end"}}
        assert bytes(body) == b"ans?wer"

    @pytest.mark.parametrize("limit", [None, 0, 2.5])
    def test_a_refusal_carries_reason_limit_and_sentence(self, limit: float | None) -> None:
        head, body = wire.unpack_message(encode_refusal(ID, RpcRefusal("calls", "no calls are left", limit=limit)))
        assert head == {"id": ID, "error": {"reason": "calls", "limit": limit, "message": "no calls are left"}}
        assert not body
