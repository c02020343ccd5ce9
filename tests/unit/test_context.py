"""The prompt of a run: what may be one, what is told of it, how it travels."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import context as contexts
from orchestrator.errors import ContextError

anything = (
    st.text(max_size=50)
    | st.lists(st.text(max_size=20), max_size=5)
    | st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=5)
)


class TestCheck:
    @given(context=anything)
    def test_a_text_and_a_list_or_dict_of_texts_is_one(self, context: contexts.Context) -> None:
        assert contexts.check(context) is context

    @pytest.mark.parametrize(
        ("context", "found"),
        [
            (b"x", "bytes"),
            (None, "NoneType"),
            (("a",), "tuple"),
            (["a", 1], "int"),
            ([None], "NoneType"),
            ({"a": 1}, "int"),
            ({1: "a"}, "int"),
            ({"a": None}, "NoneType"),
        ],
        ids=str,
    )
    def test_anything_else_is_refused_and_named(self, context: object, found: str) -> None:
        with pytest.raises(ContextError, match=found):
            contexts.check(context)


class TestDescribe:
    def test_a_text(self) -> None:
        info = contexts.describe("one\ntwo é\nthree")
        assert (info.kind, info.characters, info.bytes, info.lines, info.documents) == ("text", 15, 16, 3, 1)
        assert info.sha256 == hashlib.sha256("one\ntwo é\nthree".encode()).hexdigest()
        assert info.prefix == "one\ntwo é\nthree"
        assert (info.smallest, info.median, info.largest) == (15, 15, 15)

    def test_documents(self) -> None:
        info = contexts.describe({"a": "", "b": "xx\n", "c": "y" * 1000})
        assert (info.kind, info.documents, info.lines, info.names) == ("dict", 3, 2, ("a", "b", "c"))
        assert (info.smallest, info.median, info.largest) == (0, 3, 1000)
        assert info.prefix == "xx\n"
        assert contexts.describe(["a", "b"]).names == ()

    @pytest.mark.parametrize("context", ["", [], {}], ids=["text", "list", "dict"])
    def test_nothing(self, context: contexts.Context) -> None:
        info = contexts.describe(context)
        assert (info.characters, info.bytes, info.lines, info.prefix, info.largest) == (0, 0, 0, "", 0)

    def test_its_size_does_not_depend_on_the_context(self) -> None:
        info = contexts.describe({f"name {number} " * 100: "x" * 1000 for number in range(1000)})
        assert len(json.dumps(info.to_dict())) < 8000


class TestTravel:
    @given(context=anything, piece=st.integers(1, 10))
    def test_the_box_can_rebuild_it_from_bytes_and_layout(self, context: contexts.Context, piece: int) -> None:
        sizes: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contexts, "PIECE", piece)
            pieces = list(contexts.pieces(context, sizes))
        assert all(0 < len(data) <= 4 * piece for data in pieces)
        layout = json.loads(json.dumps(contexts.layout(context, sizes)))
        assert rebuilt(layout, b"".join(pieces)) == context

    @given(context=anything)
    def test_the_room_its_layout_takes_is_known_before_it_is_made(self, context: contexts.Context) -> None:
        sizes = [len(text.encode()) for text in contexts.texts(context)]
        assert len(json.dumps(contexts.layout(context, sizes))) <= contexts.layout_bytes(context) + 100

    def test_lone_surrogates_become_question_marks(self) -> None:
        assert b"".join(contexts.encode("a\ud800b")) == b"a?b"

    def test_a_piece_fits_every_frame(self) -> None:
        (piece,) = contexts.encode("\U0001f40d" * contexts.PIECE)
        assert len(piece) == 1 << 20


def rebuilt(layout: dict[str, Any], data: bytes) -> contexts.Context:
    """As sandbox_image/contexts.py does it with a file."""
    if layout["kind"] == "text":
        return data.decode()
    texts, start = [], 0
    for size in layout["sizes"]:
        texts.append(data[start : start + size].decode())
        start += size
    return texts if layout["kind"] == "list" else dict(zip(layout["names"], texts, strict=True))


class TestLazyMost:
    """The rule by which a context is read from its file: file and texts together take more than half of the memory."""

    @pytest.mark.parametrize(
        ("context", "memory_mb", "most"),
        [
            ("", 128, None),
            ("x" * (31 << 20), 128, None),  # 31 MiB of file and as many of str
            ("x" * (33 << 20), 128, 16 << 20),
            ("x" * (33 << 20), 256, None),
            ("x" * (13 << 20) + "\U0001f40d", 128, 16 << 20),  # one wide character makes four bytes of each
            (["x" * (13 << 20), "\U0001f40d"], 128, None),  # and only of its own text
            ({"a": "x" * (20 << 20), "b": "é" * (13 << 20)}, 128, 16 << 20),
        ],
        ids=["empty", "fits", "too large", "more memory", "wide", "wide apart", "documents"],
    )
    def test_it_counts_the_file_and_what_each_text_takes(
        self, context: contexts.Context, memory_mb: int, most: int | None
    ) -> None:
        assert contexts.lazy_most(context, memory_mb) == most
