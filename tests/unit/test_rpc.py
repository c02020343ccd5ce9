"""The codec of calls: checked in shape, trusted in nothing."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.transport.rpc import RpcRefusal, RpcReply, decode_call, encode_refusal, encode_reply
from sandbox_image import wire
from sandbox_image.wire import WireError

ID = "0123456789abcdef" * 2


def call(body: bytes = b"", **head: Any) -> bytes:
    encoded = json.dumps(head).encode()
    return struct.pack(">I", len(encoded)) + encoded + body


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
