"""The gate: nothing a kernel sends raises out of it, and nothing over the limit leaves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image import gate as gates
from sandbox_image.gate import DELIMITER, CellGate, cut

LIMIT = 300
CELL = "cell-1"
# What a mark adds to a text that was cut.
MARK = 100

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2 * LIMIT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
shapes = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("name", "text", "data", "metadata", "ename", "evalue", "traceback", "status", "execution_count"), json_values
    ),
)
contents = st.one_of(
    json_values,
    shapes,
    st.builds(lambda text: {"name": "stdout", "text": text}, st.text(max_size=2 * LIMIT)),
    st.builds(lambda text, more: {"data": {"text/plain": text}, **more}, st.text(max_size=2 * LIMIT), shapes),
    st.builds(
        lambda text: {"status": "error", "ename": text, "evalue": text, "traceback": [text, text]},
        st.text(max_size=2 * LIMIT),
    ),
)
kinds = st.sampled_from(("stream", "execute_result", "display_data", "error", "execute_reply", "status", "comm_open"))


def message(kind: Any, content: Any, parent: Any = CELL, **header: Any) -> list[bytes]:
    frames: tuple[Any, ...] = ({"msg_id": "m", "msg_type": kind, **header}, {"msg_id": parent}, {}, content)
    return [DELIMITER, b"", *(json.dumps(frame).encode() for frame in frames)]


def opened(limit: int = LIMIT) -> CellGate:
    gate = CellGate(limit)
    gate.open(CELL, "execute_request")
    return gate


def content(parts: list[bytes] | None) -> Any:
    assert parts is not None
    return json.loads(parts[5])


def stream(gate: CellGate, text: str, name: str = "stdout") -> str:
    parts = gate.iopub(message("stream", {"name": name, "text": text}))
    return "" if parts is None else str(content(parts)["text"])


class TestAnything:
    @given(messages=st.lists(st.lists(st.binary(max_size=50), max_size=9), max_size=5))
    def test_any_parts_are_taken_without_a_word(self, messages: list[list[bytes]]) -> None:
        gate = opened()
        for parts in messages:
            assert gate.iopub(parts) is None
            assert gate.reply(parts) is None
            assert gate.iopub([DELIMITER, b"", *parts]) is None
        gate.close()

    @given(kind=kinds | json_values, content=contents, parent=st.just(CELL) | json_values)
    def test_any_message_leaves_small_or_not_at_all(self, kind: Any, content: Any, parent: Any) -> None:
        gate = opened()
        for parts in (gate.iopub(message(kind, content, parent)), gate.reply(message(kind, content, parent))):
            if parts is not None:
                assert sum(map(len, parts)) <= 6 * (2 * LIMIT + LIMIT // 4 + 3 * MARK) + 2 * gates._SMALL + 500
                for part in parts[2:]:
                    json.loads(str(part, "utf-8"))
        cuts = gate.close()
        assert len(json.dumps(cuts)) <= 13 * LIMIT + 500

    @given(texts=st.lists(st.text(max_size=LIMIT), max_size=12))
    def test_a_stream_comes_out_whole_or_as_head_and_tail_with_the_loss_counted(self, texts: list[str]) -> None:
        gate = opened()
        whole = "".join(texts)
        head = "".join(stream(gate, text) for text in texts)
        cuts = gate.close()
        held: dict[str, Any] = {"tail": "", "lost": 0} if cuts is None else cuts["stdout"]
        assert len(head) + len(held["tail"]) + held["lost"] == len(whole)
        assert len(head) + len(held["tail"]) <= LIMIT
        assert whole.encode("utf-8", "replace").decode().startswith(head)
        assert whole.endswith(held["tail"])
        if len(whole) <= LIMIT:
            assert held["lost"] == 0


class TestStreams:
    def test_stdout_and_stderr_have_an_allowance_each(self) -> None:
        gate = opened()
        assert stream(gate, "x" * 1000) == "x" * (LIMIT * 2 // 3)
        assert stream(gate, "y" * 10, "stderr") == "y" * 10

    def test_a_thousand_flushes_leave_as_they_come_and_the_rest_at_the_end(self) -> None:
        gate = opened(limit=10 * gates.MAX_PIECES)
        pieces = [stream(gate, "x") for _ in range(gates.MAX_PIECES + 50)]
        assert pieces == ["x"] * gates.MAX_PIECES + [""] * 50
        assert gate.close() == {
            "id": CELL,
            "dropped": 0,
            "shortened": False,
            "stdout": {"tail": "x" * 50, "lost": 0},
        }

    def test_a_flood_is_told_once_a_cell(self) -> None:
        gate = opened()
        stream(gate, "x" * (LIMIT * gates.FLOOD_FACTOR - 1))
        assert not gate.take_flood()
        stream(gate, "x", "stderr")
        assert gate.take_flood()
        stream(gate, "x")
        assert not gate.take_flood()
        gate.open("cell-2", "execute_request")
        assert not gate.take_flood()

    def test_a_lone_surrogate_becomes_a_question_mark(self) -> None:
        assert stream(opened(), "a\ud800b") == "a?b"


class TestCells:
    def test_output_of_another_cell_is_dropped(self) -> None:
        gate = opened()
        assert gate.iopub(message("stream", {"name": "stdout", "text": "late"}, parent="cell-0")) is None
        assert gate.close() is None

    def test_nothing_leaves_while_no_cell_is_open(self) -> None:
        gate = CellGate(LIMIT)
        assert gate.iopub(message("stream", {"name": "stdout", "text": "x"}, parent="")) is None
        assert gate.reply(message("", {"status": "ok"}, parent="")) is None
        gate = opened()
        gate.close()
        assert gate.iopub(message("stream", {"name": "stdout", "text": "x"})) is None
        assert gate.reply(message("execute_reply", {"status": "ok"})) is None

    def test_idle_is_noted_and_stays_in_the_box(self) -> None:
        gate = opened()
        assert gate.iopub(message("status", {"execution_state": "busy"})) is None
        assert not gate.idle
        assert gate.iopub(message("status", {"execution_state": "idle"}, parent="cell-0")) is None
        assert not gate.idle
        assert gate.iopub([b"kernel.status", *message("status", {"execution_state": "idle"})]) is None
        assert gate.idle

    @pytest.mark.parametrize("kind", ["display_data", "execute_result", "error"])
    def test_many_messages_of_a_kind_share_one_allowance_and_starve_no_other(self, kind: str) -> None:
        gate = opened()
        large = {"data": {"text/plain": "x" * LIMIT}, "ename": "E", "evalue": "x" * LIMIT, "traceback": ["y" * LIMIT]}
        left = [gate.iopub(message(kind, large)) for _ in range(20)]
        shown = [json.loads(parts[5]) for parts in left if parts is not None]
        assert 0 < len(json.dumps(shown)) < 2 * (LIMIT + MARK) + 500
        for other in {"display_data", "execute_result", "error"} - {kind}:
            assert gate.iopub(message(other, large)) is not None
        assert stream(gate, "heard") == "heard"
        facts = gate.close()
        assert facts is not None
        assert facts["dropped"] >= 15

    def test_messages_beyond_the_allowance_are_dropped_and_counted(self) -> None:
        gate = opened(limit=gates.MAX_MESSAGES)
        shown = message("display_data", {"data": {"text/plain": "x"}})
        assert all(gate.iopub(shown) is not None for _ in range(gates.MAX_MESSAGES))
        assert gate.iopub(shown) is None
        assert gate.close() == {"id": CELL, "dropped": 1, "shortened": False}


class TestReduction:
    def test_of_a_rich_result_only_the_text_leaves(self) -> None:
        rich = {
            "data": {"text/plain": "p", "text/html": "<script>", "image/png": "…"},
            "metadata": {"x": 1},
            "execution_count": 3,
            "transient": {"a": 1},
        }
        assert content(opened().iopub(message("execute_result", rich))) == {
            "data": {"text/plain": "p"},
            "metadata": {},
            "execution_count": 3,
        }

    @pytest.mark.parametrize("count", [[["x"] * 1000], "x" * 1000, {"a": 1}, 1.5, True])
    def test_an_execution_count_that_is_no_number_stays_in_the_box(self, count: Any) -> None:
        result = {"data": {"text/plain": "p"}, "execution_count": count}
        assert content(opened().iopub(message("execute_result", result)))["execution_count"] is None
        reply = opened().reply(message("execute_reply", {"status": "ok", "execution_count": count}))
        assert content(reply) == {"status": "ok", "execution_count": None}

    def test_a_reply_loses_payloads_and_expressions(self) -> None:
        reply = {
            "status": "ok",
            "execution_count": 1,
            "payload": [{"source": "set_next_input", "text": "rm -rf /"}],
            "user_expressions": {"x": {}},
        }
        assert content(opened().reply(message("execute_reply", reply))) == {"status": "ok", "execution_count": 1}

    @pytest.mark.parametrize("status", ["fine", 7, None, ["ok"], "OK"])
    def test_a_reply_without_a_known_status_is_none(self, status: Any) -> None:
        assert opened().reply(message("execute_reply", {"status": status})) is None

    def test_a_reply_to_another_kind_of_request_is_none(self) -> None:
        assert opened().reply(message("kernel_info_reply", {"status": "ok", "banner": "x"})) is None

    def test_the_host_learns_no_more_of_a_kernel_than_that_it_answers(self) -> None:
        gate = CellGate(LIMIT)
        gate.open(CELL, "kernel_info_request")
        info = {"status": "ok", "banner": "x" * 10_000_000, "help_links": []}
        assert content(gate.reply(message("kernel_info_reply", info))) == {"status": "ok", "execution_count": None}

    def test_an_error_is_cut_in_every_part(self) -> None:
        error = {"ename": "E" * 10_000, "evalue": "v" * 10_000, "traceback": ["t" * 5_000, "u" * 5_000]}
        gate = opened()
        found = content(gate.iopub(message("error", error)))
        assert len(found["ename"]) == gates._SMALL
        assert len(found["evalue"]) <= LIMIT // 4 + MARK
        (trace,) = found["traceback"]
        assert len(trace) <= LIMIT + MARK
        assert trace.startswith("ttt")
        assert trace.endswith("uuu")
        closed = gate.close()
        assert closed is not None
        assert closed["shortened"] is True

    @pytest.mark.parametrize("identity", [None, 7, ["a"], "9999-99-99T00:00:00"])
    def test_an_id_of_any_shape_stays_behind(self, identity: object) -> None:
        parts = opened().iopub(message("stream", {"name": "stdout", "text": "x"}, msg_id=identity))
        assert parts is not None
        assert json.loads(parts[2])["msg_id"] == ""

    def test_headers_leave_with_their_type_alone(self) -> None:
        parts = opened().iopub(
            message("stream", {"name": "stdout", "text": "x"}, username="root", date="…", session="s")
        )
        assert parts is not None
        assert json.loads(parts[2]) == {"msg_id": "", "msg_type": "stream", "version": "5.3"}
        assert json.loads(parts[3]) == {"msg_id": CELL}
        assert json.loads(parts[4]) == {}

    def test_an_astral_character_takes_the_bytes_of_utf_8_and_not_those_of_two_escapes(self) -> None:
        parts = opened().iopub(message("display_data", {"data": {"text/plain": "\U0001f40d" * LIMIT}}))
        assert parts is not None
        assert len(parts[5]) < 5 * LIMIT


@given(text=st.text(max_size=100), limit=st.integers(4, 60))
def test_a_text_is_cut_to_head_and_tail_with_a_mark_or_not_at_all(text: str, limit: int) -> None:
    found = cut(text, limit)
    if len(text) <= limit:
        assert found is text
    else:
        head, mark, tail = found.partition(f"\n[… cut here: longer than {limit:,} characters …]\n")
        assert mark
        assert len(head) + len(tail) == limit
        assert text.startswith(head)
        assert text.endswith(tail)
