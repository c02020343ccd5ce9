from __future__ import annotations

import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import text as texts
from orchestrator.text import (
    columns,
    counted,
    cut_to_bytes,
    fitted,
    folded,
    head_and_tail,
    json_string,
    json_text,
    one_line,
    printable,
    size,
)

anything = st.text(st.characters(exclude_categories=())) | st.text("\x1b\x9b\x9d\x9c\x07[]\\PX^_;0m a\n\r\ud800é\u202e")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\x1b[31mred\x1b[0m", "ared", id="CSI color"),
        pytest.param("a\x1b[2J\x1b[1;1Hb", "ab", id="CSI clear and home"),
        pytest.param("a\x1b[?1049hb", "ab", id="CSI private mode"),
        pytest.param("a\x1b[ qb", "ab", id="CSI with intermediate"),
        pytest.param("a\x9b31mb", "ab", id="C1 CSI"),
        pytest.param("a\x1b]0;title\x07b", "ab", id="OSC title, BEL"),
        pytest.param("a\x1b]0;title\x1b\\b", "ab", id="OSC title, ST"),
        pytest.param("a\x9d0;title\x9cb", "ab", id="C1 OSC"),
        pytest.param("\x1b]8;;https://evil.example\x1b\\safe\x1b]8;;\x1b\\", "safe", id="OSC 8 link"),
        pytest.param("\x1b]52;c;ZXZpbA==\x07", "", id="OSC 52 clipboard"),
        pytest.param("a\x1bPq#0;2;0;0;0\x1b\\b", "ab", id="DCS sixel"),
        pytest.param("a\x1b_Gpayload\x1b\\b", "ab", id="APC graphics"),
        pytest.param("a\x1b^private\x1b\\b", "ab", id="PM"),
        pytest.param("a\x1bXstring\x1b\\b", "ab", id="SOS"),
        pytest.param("a\x1bcb", "ab", id="RIS reset"),
        pytest.param("a\x1b(0b", "ab", id="charset"),
        pytest.param("a\x1b", "a", id="ESC at the end"),
        pytest.param("a\x1b\x1b[31mb", "ab", id="ESC before a sequence"),
        pytest.param("\x1b\x1b]0;t\x07x", "x", id="ESC before a string"),
        pytest.param("\x1b[31\x1b[mx", "x", id="sequence within a sequence"),
        pytest.param("a\x00\x01\x08\x7fb", "ab", id="C0 and DEL"),
        pytest.param("a\x80\x9f\xadb", "ab", id="C1 and soft hyphen"),
        pytest.param("user\u202etxt.exe", "usertxt.exe", id="bidi override"),
        pytest.param("a\u2066b\u2069\u061c\u200e", "ab", id="bidi isolates and marks"),
        pytest.param("pay\u200bpal\ufeff\u2060\u200d", "paypal", id="zero width"),
        pytest.param("a\U000e0041\U000e0020\ufe0f\U000e0100", "a", id="tags and variation selectors"),
        pytest.param("a\u3164\u115f\uffa0b", "ab", id="fillers"),
        pytest.param("a\ufff9b\ufffb", "ab", id="interlinear annotation"),
        pytest.param("a\ud800b\udfff", "a\ufffdb\ufffd", id="lone surrogates"),
        pytest.param("\ud83d\ude00", "\ufffd\ufffd", id="two lone surrogates"),
        pytest.param("10%\r20%\r\n30%", "10%\n20%\n30%", id="carriage returns"),
        pytest.param("a\x0bb\x0cc\x85d\u2028e\u2029f", "a\nb\nc\nd\ne\nf", id="other line breaks"),
        pytest.param("tab\tand\nnewline", "tab\tand\nnewline", id="kept"),
        pytest.param("naïve 日本語 عربى 😀 e\u0301", "naïve 日本語 عربى 😀 e\u0301", id="text is kept"),
    ],
)
def test_only_text_is_left(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_string_that_does_not_end_cannot_hide_what_follows() -> None:
    assert printable("\x1b]0;never ends\nthe truth") == "0;never ends\nthe truth"
    assert printable("\x1b]0;begins\nthe truth\x07") == "0;begins\nthe truth"
    assert printable("\x90q the truth") == "q the truth"


@given(anything)
def test_what_is_shown_steers_nothing_and_encodes(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert printable(shown) == shown
    assert all(
        character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in shown
    )
    assert not any(unicodedata.bidirectional(character) in _BIDI_CONTROLS for character in shown)


_BIDI_CONTROLS = {"LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}


@pytest.mark.parametrize("unit", ["\x9d", "\x1b]", "\x1b[", "\x1b[0", "\x1b ", "\x1b]a", "\x1bP;", "\x9b ", "é", "a"])
def test_no_input_takes_more_than_linear_time(unit: str) -> None:
    began = time.process_time()
    printable(unit * 200_000)
    # Linear work takes some 0.05 s here; quadratic work would take minutes.
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("text", "width", "line"),
    [
        ("a\n b\t\tc ", 10, "a b c"),
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("abcdef", 1, "…"),
        ("abcdef", 0, ""),
        ("abcdef", -1, ""),
        (" " * 100 + "x", 5, "…"),
        ("\x1b[31m" * 5 + "red", 5, "red"),
    ],
)
def test_one_line_fits_its_width_and_marks_a_cut(text: str, width: int, line: str) -> None:
    assert one_line(text, width) == line


@given(anything, st.integers(-2, 40))
def test_one_line_is_one_line_within_its_width(text: str, width: int) -> None:
    line = one_line(text, width)
    assert len(line) <= max(width, 0)
    assert len(line.splitlines()) <= 1


def test_one_line_reads_no_more_than_it_needs() -> None:
    began = time.process_time()
    one_line("\x1b[31mx" * 5_000_000, 80)
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 10, 50])
def test_head_and_tail_are_the_ends_and_the_count_is_right(limit: int) -> None:
    text = "".join(map(str, range(100)))
    shown = head_and_tail(text, limit)
    head, mark, tail = shown.split("\n")
    kept = max(limit, 0)
    assert len(head) + len(tail) == kept
    assert text.startswith(head)
    assert text.endswith(tail)
    assert mark == f"[… {len(text) - kept:,} characters cut …]"


def test_a_text_within_the_limit_is_not_cut() -> None:
    assert head_and_tail("abc", 3) == "abc"


@given(st.recursive(st.none() | st.booleans() | st.integers() | anything, lambda inner: st.lists(inner, max_size=3)))
def test_json_means_the_value_and_shows_as_it_is(value: object) -> None:
    text = json_text(value)
    # A high and a low surrogate side by side are one character to JSON.
    assert json.loads(text) == json.loads(json.dumps(value))
    assert printable(text) == text
    assert "\n" not in text


def test_json_for_people_is_indented_and_for_files_is_not() -> None:
    assert json_text({"a": [1, "é"]}) == '{"a":[1,"é"]}'
    assert json_text({"a": 1}, indent=2) == '{\n  "a": 1\n}'


@pytest.mark.parametrize(
    "unit",
    ["\u200b", "a\u200b", "\x7f", "".join(map(chr, range(0xE0000, 0xE1000)))],
    ids=["zero width", "every other", "DEL", "tags"],
)
def test_json_of_nothing_but_escapes_keeps_nobody_waiting(unit: str) -> None:
    text = unit * (5_000_000 // len(unit))
    began = time.process_time()
    written = json_text(text)
    # It takes up to half a second here, and took over three when each escape was a call.
    assert time.process_time() - began < 3
    assert json.loads(written) == text
    assert "".join(json_string(text)) == written


@given(anything)
def test_json_in_pieces_is_the_same_json(text: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(texts, "_PIECE", 3)
        patched.setattr(texts, "_MANY", 1)
        pieces = "".join(json_string(text))
    assert pieces == json_text(text)


def test_json_refuses_numbers_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))


def test_a_noun_agrees_with_its_number() -> None:
    assert [counted(number, "turn") for number in (0, 1, 2, 2000)] == ["0 turns", "1 turn", "2 turns", "2,000 turns"]


@given(st.text(), st.integers(0, 200))
def test_cut_to_bytes_keeps_the_ends_within_the_limit_and_marks_the_cut(text: str, limit: int) -> None:
    cut = cut_to_bytes(text, limit)
    if size(text) <= limit:
        assert cut == text
    else:
        head, _, tail = cut.partition("\n[… ")
        assert size(cut) <= max(limit, len("\n[… 1,000 bytes cut …]\n".encode()))
        assert text.encode("utf-8", "replace").startswith(head.encode())
        assert text.encode("utf-8", "replace").endswith(tail.partition(" bytes cut …]\n")[2].encode())


# Columns of a terminal -----------------------------------------------------------------------------------------------

LINES = st.text(st.sampled_from("ab  \u6f22\u5b57e\u0301\u00e9\uff21"), max_size=80)


@given(LINES, st.integers(2, 30), st.booleans())
def test_folded_pieces_fit_and_lose_nothing_but_spaces_at_a_break(text: str, width: int, words: bool) -> None:  # noqa: FBT001
    pieces = folded(text, width, words=words)
    assert pieces
    assert max(map(columns, pieces)) <= width
    if words:
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    else:
        assert "".join(pieces) == text


@given(LINES, st.integers(0, 30))
def test_fitted_text_is_whole_or_cut_with_an_ellipsis(text: str, width: int) -> None:
    cut = fitted(text, width)
    assert columns(cut) <= width
    assert cut == text or not width or (cut.endswith("…") and text.startswith(cut[:-1]))


def test_words_stay_whole_where_there_is_room() -> None:
    assert folded("one two three", 8, words=True) == ["one two", "three"]
    assert folded("a-word-that-is-long two", 8, words=True) == ["a-word-t", "hat-is-l", "ong two"]
    assert folded("", 8) == [""]
    assert folded("\u6f22\u5b57\u6f22", 3) == ["\u6f22", "\u5b57", "\u6f22"]


def test_a_line_of_a_million_characters_is_folded_at_once() -> None:
    assert len(folded("\u6f22" * 1_000_000, 80)) == 25_000
