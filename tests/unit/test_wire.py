"""The wire: any bytes, in any chunking, give frames or exactly one WireError."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image import wire
from sandbox_image.wire import Assembler, Channel, Decoder, Frame, Kind, WireError

MAX = 64
KINDS = frozenset((Kind.KERNEL, Kind.RPC, Kind.READY))

frames = st.lists(st.builds(Frame, st.sampled_from(sorted(KINDS)), st.binary(max_size=MAX)), max_size=6)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def decode(chunks: Iterable[bytes]) -> tuple[list[Frame], str | None]:
    """Return the frames before the first violation, and that violation."""
    decoder, found = Decoder(MAX, KINDS), list[Frame]()
    for chunk in chunks:
        try:
            for frame in decoder.feed(chunk):
                found.append(frame)
        except WireError as error:
            return found, str(error)
        assert decoder.buffered <= MAX + wire.HEADER.size
    return found, None


class TestFrames:
    @given(sent=frames, at=st.lists(st.integers(0, 2000)))
    def test_what_was_encoded_comes_out_whatever_the_chunking(self, sent: list[Frame], at: list[int]) -> None:
        data = b"".join(wire.encode(*frame) for frame in sent)
        assert decode(cut(data, at)) == (sent, None)

    @given(data=st.binary(max_size=300), at=st.lists(st.integers(0, 300)))
    def test_any_bytes_give_frames_or_one_violation_whole_or_in_pieces(self, data: bytes, at: list[int]) -> None:
        whole = decode([data])
        assert decode(cut(data, at)) == whole
        assert decode(bytes((byte,)) for byte in data) == whole

    @given(sent=frames, garbage=st.binary(min_size=1, max_size=40), at=st.lists(st.integers(0, 2000)))
    def test_frames_before_a_violation_come_out_and_none_after_it(
        self, sent: list[Frame], garbage: bytes, at: list[int]
    ) -> None:
        broken = wire.HEADER.pack(MAX + 1, Kind.RPC) + garbage
        found, violation = decode(cut(b"".join(wire.encode(*frame) for frame in sent) + broken, at))
        assert found == sent
        assert violation is not None

    @pytest.mark.parametrize(
        ("length", "number"),
        [(2**32 - 1, Kind.RPC), (MAX + 1, Kind.RPC), (0, 0), (0, 255), (1, Kind.CONTEXT)],
        ids=["4 GiB", "one too many", "kind 0", "kind 255", "a kind the peer may not send"],
    )
    def test_a_refused_header_is_refused_before_its_payload_arrives(self, length: int, number: int) -> None:
        decoder = Decoder(MAX, KINDS)
        with pytest.raises(WireError, match=str(length)):
            list(decoder.feed(wire.HEADER.pack(length, number)))
        assert decoder.buffered == 0

    def test_a_poisoned_decoder_looks_at_nothing_more(self) -> None:
        decoder = Decoder(MAX, KINDS)
        with pytest.raises(WireError):
            list(decoder.feed(b"\xff" * 5))
        with pytest.raises(WireError, match="broken"):
            list(decoder.feed(wire.encode(Kind.RPC, b"valid")))
        assert decoder.buffered == 0


class TestFragments:
    @given(messages=st.lists(st.binary(max_size=50), max_size=4), chunk=st.integers(1, 60))
    def test_messages_come_out_of_their_fragments(self, messages: list[bytes], chunk: int) -> None:
        decoder, assembler = Decoder(chunk + 1, frozenset((Kind.RPC,))), Assembler(50)
        stream = b"".join(fragment for message in messages for fragment in wire.encode_fragments(message, chunk))
        found = [assembler.feed(frame.payload) for frame in decoder.feed(stream)]
        assert [bytes(message) for message in found if message is not None] == messages

    @given(fragments=st.lists(st.binary(max_size=20), max_size=20))
    def test_any_fragments_give_bounded_messages_or_a_violation(self, fragments: list[bytes]) -> None:
        assembler = Assembler(30)
        for fragment in fragments:
            try:
                message = assembler.feed(fragment)
            except WireError:
                continue
            assert message is None or len(message) <= 30

    @pytest.mark.parametrize("fragment", [b"", b"\x02x", b"\x00"], ids=["empty", "unknown flag", "carries nothing"])
    def test_a_fragment_that_is_none_is_refused(self, fragment: bytes) -> None:
        with pytest.raises(WireError, match="malformed"):
            Assembler(10).feed(fragment)

    def test_a_message_is_refused_when_it_grows_too_large_and_forgotten(self) -> None:
        assembler = Assembler(10)
        assert assembler.feed(b"\x00" + b"x" * 10) is None
        with pytest.raises(WireError, match="10 bytes"):
            assembler.feed(b"\x00y")
        assert assembler.feed(b"\x01new") == b"new"

    def test_a_message_whose_sender_is_gone_is_not_joined_to_the_next(self) -> None:
        assembler = Assembler(10)
        assembler.feed(b"\x00old")
        assembler.reset()
        assert assembler.feed(b"\x01new") == b"new"


class TestParts:
    @given(channel=st.sampled_from(Channel), parts=st.lists(st.binary(max_size=40), max_size=wire.MAX_PARTS))
    def test_parts_survive(self, channel: Channel, parts: list[bytes]) -> None:
        assert wire.unpack_parts(wire.pack_parts(channel, parts)) == (channel, parts)

    @given(payload=st.binary(max_size=60))
    def test_any_payload_gives_parts_or_a_violation(self, payload: bytes) -> None:
        try:
            channel, parts = wire.unpack_parts(payload)
        except WireError:
            return
        assert wire.pack_parts(channel, parts) == payload

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x01",
            bytes((Channel.SHELL, wire.MAX_PARTS + 1)),
            b"\x09\x00",
            b"\x01\x01",
            b"\x01\x01" + struct.pack(">I", 2**32 - 1) + b"x",
            b"\x01\x00left over",
        ],
        ids=["empty", "no count", "too many", "unknown channel", "no length", "lying length", "left over"],
    )
    def test_a_malformed_envelope_is_refused(self, payload: bytes) -> None:
        with pytest.raises(WireError):
            wire.unpack_parts(payload)


class TestMessages:
    @given(head=st.dictionaries(st.text(), json_values, max_size=4), body=st.binary(max_size=100))
    def test_head_and_body_survive(self, head: dict[str, Any], body: bytes) -> None:
        unpacked, rest = wire.unpack_message(wire.pack_message(head, body))
        assert (unpacked, bytes(rest)) == (head, body)

    @given(message=st.binary(max_size=80))
    def test_any_message_gives_a_head_or_a_violation(self, message: bytes) -> None:
        try:
            head, _ = wire.unpack_message(message)
        except WireError:
            return
        assert isinstance(head, dict)

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\0\0\0",
            struct.pack(">I", 5) + b"{}",
            struct.pack(">I", wire.MAX_HEAD + 1) + b" " * (wire.MAX_HEAD + 1),
        ],
        ids=["empty", "short", "lying length", "large head"],
    )
    def test_a_malformed_message_is_refused(self, message: bytes) -> None:
        with pytest.raises(WireError):
            wire.unpack_message(message)

    @pytest.mark.parametrize("head", [b"[]", b"null", b"1", b'"x"'])
    def test_a_head_that_is_no_object_is_refused(self, head: bytes) -> None:
        with pytest.raises(WireError, match="object"):
            wire.unpack_message(struct.pack(">I", len(head)) + head)


class TestJson:
    @given(value=json_values)
    def test_plain_values_survive(self, value: Any) -> None:
        assert wire.loads(json.dumps(value)) == value

    @given(data=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
    def test_any_bytes_give_a_value_or_a_violation(self, data: bytes) -> None:
        try:
            wire.loads(data)
        except WireError:
            return

    @pytest.mark.parametrize(
        "text",
        [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1e400",
            str(2**64),
            str(-(2**63) - 1),
            "9" * 100_000,
            '{"a":1,"a":2}',
            "[" * 40 + "]" * 40,
            "[" * 20_000 + "]" * 20_000,
            '{"a":' * 20_000 + "1" + "}" * 20_000,
            "[" + "[]," * 10_000 + "[]]",
            '["' + '\\"' * 10_000 + '",' + "{}," * 10_000 + "{}]",
            '"' + '\\"' * 1_000_000 + "," * 20_000,
            "",
            "{",
            "[1,]",
            "01",
            "{'a':1}",
            b"\xff\xfe",
            b"\xed\xa0\x80",
        ],
        ids=lambda text: f"{text[:12]!r} of {len(text)}",
    )
    def test_what_a_strict_reader_refuses_is_refused(self, text: str | bytes) -> None:
        with pytest.raises(WireError):
            wire.loads(text)

    def test_texts_are_one_value_however_they_look(self) -> None:
        text = '[],{}"' * 20_000
        assert wire.loads(json.dumps([text, "\\" * 9])) == [text, "\\" * 9]

    def test_nesting_to_the_limit_is_accepted_and_brackets_in_texts_are_no_nesting(self) -> None:
        deep = "[" * (wire.MAX_DEPTH - 1) + "1" + "]" * (wire.MAX_DEPTH - 1)
        assert json.dumps(wire.loads(deep)) == deep
        assert wire.loads(json.dumps("[" * 1000)) == "[" * 1000
        assert wire.loads(json.dumps([[]] * 1000)) == [[]] * 1000
