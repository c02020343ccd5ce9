"""The fold of a cell's messages: a closed set of shapes, every text bounded, nothing believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.kernel import outputs
from orchestrator.kernel.outputs import SLACK, CellFold
from orchestrator.kernel.result import CellError
from sandbox_image.wire import WireError

LIMIT = 100
kinds = st.sampled_from(
    ("stream", "execute_result", "display_data", "error", "execute_reply", "status", "comm_open", "")
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3 * LIMIT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
names = (
    "name",
    "text",
    "data",
    "ename",
    "evalue",
    "traceback",
    "status",
    "stdout",
    "stderr",
    "tail",
    "lost",
    "dropped",
)
errors = st.builds(
    lambda text: {"status": "error", "ename": text, "evalue": text, "traceback": [text]}, st.text(max_size=3 * LIMIT)
)
streams = st.builds(lambda text: {"name": "stdout", "text": text}, st.text(max_size=3 * LIMIT))
contents = st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)) | errors | streams


@given(messages=st.lists(st.tuples(kinds, contents), max_size=10), cuts=st.lists(contents, max_size=2))
def test_any_contents_give_a_bounded_result_or_a_violation(
    messages: list[tuple[str, dict[str, Any]]], cuts: list[dict[str, Any]]
) -> None:
    fold = CellFold(LIMIT)
    try:
        for kind, content in messages:
            fold.message(kind, content)
        for facts in cuts:
            fold.cut(facts)
    except WireError:
        pass
    result = fold.result("ok", elapsed_s=0.0)
    error = result.error or CellError("", "", "")
    for text in (result.stdout, result.stderr, result.result or "", error.name, error.value, error.traceback):
        assert len(text) <= LIMIT * SLACK
        text.encode()


def fold(*messages: tuple[str, dict[str, Any]]) -> CellFold:
    folded = CellFold(LIMIT)
    for kind, content in messages:
        folded.message(kind, content)
    return folded


class TestOutput:
    def test_streams_result_and_displays_are_kept_apart(self) -> None:
        result = fold(
            ("stream", {"name": "stdout", "text": "a"}),
            ("stream", {"name": "stderr", "text": "b"}),
            ("display_data", {"data": {"text/plain": "shown"}}),
            ("stream", {"name": "stdout", "text": "c"}),
            ("execute_result", {"data": {"text/plain": "42"}}),
        ).result("ok", elapsed_s=1.5)
        assert (result.stdout, result.stderr, result.result) == ("ashown\nc", "b", "42")
        assert result.ok
        assert not result.truncated
        assert result.elapsed_s == 1.5

    def test_a_held_back_tail_follows_its_mark_and_says_that_something_is_missing(self) -> None:
        folded = fold(("stream", {"name": "stdout", "text": "head"}))
        folded.cut({"stdout": {"tail": "tail", "lost": 12345}})
        result = folded.result("ok", elapsed_s=0)
        assert result.stdout == "head\n[… 12,345 characters cut …]\ntail"
        assert result.truncated

    def test_a_tail_without_a_loss_is_joined_seamlessly(self) -> None:
        folded = fold(("stream", {"name": "stdout", "text": "head"}))
        folded.cut({"stdout": {"tail": "tail", "lost": 0}})
        result = folded.result("ok", elapsed_s=0)
        assert result.stdout == "headtail"
        assert not result.truncated

    @pytest.mark.parametrize("facts", [{"dropped": 3}, {"shortened": True}])
    def test_what_the_gate_dropped_or_shortened_marks_the_result(self, facts: dict[str, Any]) -> None:
        folded = fold()
        folded.cut(facts)
        assert folded.result("ok", elapsed_s=0).truncated

    def test_output_beyond_the_bound_is_cut_and_marked_even_when_the_gate_let_it_through(self) -> None:
        result = fold(*[("stream", {"name": "stdout", "text": "x" * LIMIT})] * 5).result("ok", elapsed_s=0)
        assert result.stdout == "x" * (LIMIT * SLACK)
        assert result.truncated

    def test_a_lone_surrogate_cannot_break_whoever_writes_the_text_next(self) -> None:
        result = fold(("execute_result", {"data": {"text/plain": "a\ud800"}})).result("ok", elapsed_s=0)
        assert result.result == "a?"

    def test_mime_types_other_than_text_are_not_read(self) -> None:
        result = fold(("display_data", {"data": {"text/html": "<script>"}})).result("ok", elapsed_s=0)
        assert result.stdout == ""


class TestReply:
    def test_an_error_reply_carries_the_error(self) -> None:
        folded = fold(("execute_reply", {"status": "error", "ename": "E", "evalue": "v", "traceback": ["a", "b"]}))
        assert folded.replied == "error"
        assert folded.error == CellError("E", "v", "a\nb")

    @pytest.mark.parametrize(("status", "replied"), [("ok", "ok"), ("aborted", "error")])
    def test_other_replies(self, status: str, replied: str) -> None:
        assert fold(("execute_reply", {"status": status})).replied == replied

    @pytest.mark.parametrize(
        ("kind", "content"),
        [
            ("stream", {"name": "stdin", "text": "x"}),
            ("stream", {"name": ["stdout"], "text": "x"}),
            ("stream", {"name": "stdout", "text": 5}),
            ("stream", {}),
            ("execute_result", {"data": "x"}),
            ("execute_result", {"data": {"text/plain": ["x"]}}),
            ("error", {"ename": "E", "evalue": "v", "traceback": "abc"}),
            ("error", {"ename": "E", "evalue": "v", "traceback": [1]}),
            ("error", {"ename": 1, "evalue": "v", "traceback": []}),
            ("execute_reply", {"status": "fine"}),
            ("execute_reply", {"status": ["ok"]}),
            ("execute_reply", {"status": "error"}),
        ],
        ids=str,
    )
    def test_a_content_of_another_shape_is_a_violation(self, kind: str, content: dict[str, Any]) -> None:
        with pytest.raises(WireError):
            fold((kind, content))

    @pytest.mark.parametrize(
        "facts",
        [{"stdout": 1}, {"stdout": {"tail": "x"}}, {"stdout": {"tail": 1, "lost": 1}}, {"stderr": {"lost": True}}],
    )
    def test_facts_of_another_shape_are_a_violation(self, facts: dict[str, Any]) -> None:
        with pytest.raises(WireError):
            fold().cut(facts)


@pytest.mark.parametrize("kind", ["stream", "display_data", "execute_result", "error", "status"])
def test_messages_without_end_are_a_violation_and_not_work_without_end(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "MAX_MESSAGES", 50)
    content = {"name": "stdout", "text": "", "data": {}, "ename": "", "evalue": "", "traceback": []}
    fold = CellFold(LIMIT)
    for _ in range(50):
        fold.message(kind, content)
    with pytest.raises(WireError, match="without end"):
        fold.message(kind, content)


def test_text_without_end_is_a_violation_too() -> None:
    fold, content = CellFold(LIMIT), {"name": "stderr", "text": "x" * 10 * LIMIT}
    for _ in range(outputs.MAX_TEXT // 10):
        fold.message("stream", content)
    with pytest.raises(WireError, match="without end"):
        fold.message("stream", content)
