"""A context read from its file answers as a ``str`` would, whatever the text and wherever the file is cut."""

from __future__ import annotations

import mmap
import re
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image import lazy
from sandbox_image.lazy import LazyDict, LazyList, LazyText

TEXTS = st.text(st.sampled_from("aab\n\r\x85\u2028 é€\U0001f40d"), max_size=60) | st.text(max_size=60)
PARTS = st.text(st.sampled_from("ab\n\ré€\U0001f40d"), max_size=3) | st.sampled_from(["aa", "aba", "\ud800", "\r\n"])
BOUNDS = st.none() | st.integers(-70, 70)
PATTERNS = [
    "a",
    "a*",
    "(a)|(b)",
    r"\b",
    "(?m)^.?",
    "(?m).?$",
    "(?P<x>a+)b",
    r"\Aa",
    r"a\Z",
    "(?<=a)b",
    "é|€",
    "b(?!a)",
    "",
]


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """Cut the file so small that every text has borders everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "BLOCK", 4)
        patch.setattr(lazy, "STEP", 5)
        patch.setattr(lazy, "WINDOW", 3)
        yield


def mapped(data: bytes) -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return mmap.mmap(file.fileno(), len(data), prot=mmap.PROT_READ)


def read_lazily(text: str, most: int = 1000) -> LazyText:
    """Put ``text`` between others, as a document is."""
    data = text.encode()
    return LazyText(mapped(b"ab\n" + data + b"ba{}"), 3, 3 + len(data), most)


@given(TEXTS, BOUNDS, BOUNDS, st.none() | st.integers(-3, 3).filter(bool))
def test_length_slices_and_characters_are_those_of_the_str(
    text: str, start: int | None, stop: int | None, step: int | None
) -> None:
    ours = read_lazily(text)
    assert (len(ours), bool(ours), "".join(ours)) == (len(text), bool(text), text)
    assert ours[start:stop:step] == text[start:stop:step]
    assert [ours[index] for index in range(-len(text), len(text))] == list(text) * 2
    for index in (len(text), -len(text) - 1):
        with pytest.raises(IndexError):
            ours[index]


@given(TEXTS, PARTS, BOUNDS, BOUNDS)
def test_searches_find_what_the_str_finds(text: str, part: str, start: int | None, end: int | None) -> None:
    ours = read_lazily(text)
    for method in ("find", "rfind", "count", "startswith", "endswith"):
        assert getattr(ours, method)(part, start, end) == getattr(text, method)(part, start, end), method
    assert (part in ours) is (part in text)
    assert ours.startswith(("x", part)) is text.startswith(("x", part))
    for method in ("index", "rindex"):
        if part in text:
            assert getattr(ours, method)(part) == getattr(text, method)(part)
        else:
            with pytest.raises(ValueError, match="substring not found"):
                getattr(ours, method)(part)


@given(text=TEXTS, separator=PARTS.filter(bool), keepends=st.booleans())
def test_lines_and_parts_are_those_of_the_str(text: str, separator: str, *, keepends: bool) -> None:
    ours = read_lazily(text)
    assert list(ours.lines(keepends)) == text.splitlines(keepends)
    assert list(ours.parts(separator)) == text.split(separator)


@given(TEXTS, st.sampled_from(PATTERNS))
def test_regular_expressions_match_as_on_the_str(text: str, pattern: str) -> None:
    ours = read_lazily(text)
    for found, expected in zip(ours.finditer(pattern), re.finditer(pattern, text), strict=True):
        assert (found.span(), found.group(), found.groups()) == (expected.span(), expected.group(), expected.groups())
        assert (found.groupdict(), found[0], found.lastindex) == (expected.groupdict(), expected[0], expected.lastindex)
        assert [found.span(n) for n in range(len(found.groups()) + 1)] == list(expected.regs)
    assert ours.findall(pattern) == re.findall(pattern, text)
    assert bool(ours.search(pattern)) is bool(re.search(pattern, text))


def test_a_match_that_is_longer_than_what_is_looked_at_is_told_and_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "REACH", 8)
    with pytest.raises(ValueError, match="longer than 8 characters: narrow the pattern"):
        list(read_lazily("b" + "a" * 500).finditer("a+"))


def test_what_would_not_fit_into_memory_is_refused_in_words() -> None:
    ours = read_lazily("x" * 50, most=10)
    assert ours[:10] == "x" * 10
    for whole in (lambda: ours[:], lambda: ours[::-1], lambda: list(ours.parts("y"))):
        with pytest.raises(MemoryError, match="take 10 at most"):
            whole()


def test_a_method_it_has_not_is_refused_with_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no 'split'. It has slices .* lines\(\), parts\(sep\)"):
        read_lazily("x").split()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        read_lazily("x").nonsense()
    assert repr(read_lazily("a\nb")) == "<text of 3 characters, read from its file; it begins 'a\\nb'>"


@given(st.lists(TEXTS, max_size=6))
def test_documents_are_read_one_at_a_time_and_large_ones_lazily(texts: list[str]) -> None:
    data = [text.encode() for text in texts]
    ends = [sum(map(len, data[: number + 1])) for number in range(len(data))]
    file = mapped(b"".join(data) + b"{}")
    documents = LazyList(file, list(zip([0, *ends], ends, strict=False)), 20)
    assert len(documents) == len(texts)
    for found, text in zip(documents, texts, strict=True):
        assert isinstance(found, str if len(text.encode()) <= 20 else LazyText)
        assert found[:] == text if isinstance(found, str) else "".join(found) == text
    assert ["".join(text) for text in documents[1:3]] == texts[1:3]
    names = [f"n{number}" for number in range(len(texts))]
    by_name = LazyDict(names, documents)
    assert (list(by_name), len(by_name), "n0" in by_name, "zz" in by_name) == (names, len(texts), bool(texts), False)
    assert {name: "".join(text) for name, text in by_name.items()} == dict(zip(names, texts, strict=True))
    assert "each read from its file" in repr(documents)
    assert "each read from its file" in repr(by_name)
