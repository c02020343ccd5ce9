from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rlm.parse import MAX_JOINS, MAX_REPLY_CHARS, compiles, parse_reply


def test_every_repl_and_python_block_is_taken_in_order() -> None:
    reply = "First\n```repl\na = 1\n```\nthen\n~~~python\nb = 2\n~~~\nand\n```py\nc = 3\n```\n"
    parsed = parse_reply(reply)
    assert parsed.blocks == ("a = 1\n", "b = 2\n", "c = 3\n")
    assert parsed.prose == "First\nthen\nand"


@pytest.mark.parametrize("info", ["repl", "Python", "PY", "python3", ' python title="x"', "{.python}", "repl {cell=1}"])
def test_a_block_runs_whatever_the_case_and_attributes_of_its_mark(info: str) -> None:
    assert parse_reply(f"```{info}\nx\n```").blocks == ("x\n",)


@pytest.mark.parametrize(("info", "name"), [("bash", "bash"), ("", ""), ("python-console", "python-console")])
def test_a_block_of_another_language_is_reported_and_not_run(info: str, name: str) -> None:
    parsed = parse_reply(f"```{info}\nls\n```")
    assert (parsed.blocks, parsed.skipped) == ((), (name,))


def test_an_empty_block_is_no_code() -> None:
    assert parse_reply("```repl\n\n  \n```").blocks == ()


def test_a_fence_inside_a_string_does_not_cut_the_block() -> None:
    code = 'report = """\n```python\nx = 1\n```\nand\n```\n"""\nprint(report)\n'
    reply = f"I write a report.\n```repl\n{code}```\nThen don't forget:\n```repl\nprint(2)\n```\n"
    assert parse_reply(reply).blocks == (code, "print(2)\n")


def test_a_fence_in_a_comment_or_short_string_is_left_to_the_parser() -> None:
    code = "# ``` and \"```\"\nx = '```'\n"
    assert parse_reply(f"```repl\n{code}```").blocks == (code,)


def test_a_string_that_is_never_closed_does_not_swallow_the_next_block() -> None:
    reply = '```repl\nx = """\n```\nIt doesn\'t matter.\n```repl\ny = """a"""\n```'
    assert parse_reply(reply).blocks == ('x = """\n', 'y = """a"""\n')


def test_a_longer_outer_fence_may_hold_shorter_ones() -> None:
    code = 'x = """\n```\n"""\n'
    assert parse_reply(f"````repl\n{code}````").blocks == (code,)


def test_blocks_in_lists_and_quotes_are_taken_without_their_indentation() -> None:
    reply = '1. one\n   ```repl\n   if x:\n       y = """\n   ```\n   """\n   ```\n2. two\n\n> ```repl\n> z\n> ```\n'
    assert parse_reply(reply).blocks == ('if x:\n    y = """\n```\n"""\n', "z\n")


def test_an_indented_fence_is_literal_text() -> None:
    assert parse_reply("text\n\n    ```repl\n    x\n    ```\n").blocks == ()


def test_a_tag_before_a_fence_does_not_hide_it() -> None:
    assert parse_reply("<plan>\n```repl\nx\n```\n</plan>").blocks == ("x\n",)


def test_code_in_a_leading_thought_is_not_run() -> None:
    assert parse_reply("<think>\n```repl\nbad\n```\n</think>\n```repl\ngood\n```").blocks == ("good\n",)
    assert parse_reply("<think>\n```repl\nbad\n```\n").blocks == ()


def test_an_open_block_of_a_reply_that_was_cut_off_is_reported_and_not_run() -> None:
    parsed = parse_reply("```repl\na = 1\n```\n```repl\nb = 2", complete=False)
    assert (parsed.blocks, parsed.cut) == (("a = 1\n",), True)


def test_an_open_block_of_a_whole_reply_is_run_when_it_compiles() -> None:
    assert parse_reply("```repl\nb = 2").blocks == ("b = 2",)
    assert parse_reply("```repl\nb = (2\nThat is all").cut


def test_windows_line_ends_and_null_bytes_are_read() -> None:
    assert parse_reply("```repl\r\na = 1\r\n```\r\n").blocks == ("a = 1\n",)
    assert parse_reply("```repl\na = '\0'\n```").blocks == ("a = '\ufffd'\n",)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("FINAL(42)", "42"),
        ("\n FINAL( forty-two (42) \n) \n", "forty-two (42)"),
        ("FINAL('it is \"42\" :)')", 'it is "42" :)'),
        ('FINAL("""a\nb""")', "a\nb"),
        ("FINAL('it', 'is')", "'it', 'is'"),
        ("FINAL()", ""),
    ],
)
def test_a_reply_that_is_nothing_but_final_is_the_answer(reply: str, answer: str) -> None:
    assert parse_reply(reply).final_text == answer


@pytest.mark.parametrize("reply", ["FINAL_VAR(answer)", "FINAL_VAR( 'answer' )", 'FINAL_VAR("answer")'])
def test_a_reply_that_is_nothing_but_final_var_names_the_variable(reply: str) -> None:
    assert parse_reply(reply).final_var == "answer"


@pytest.mark.parametrize(
    "reply",
    ["FINAL(42) is what I would say (later)", "FINAL_VAR(a.b)", "FINAL_VAR('a\")", "FINAL(", "Not yet FINAL(1)"],
)
def test_text_that_only_resembles_final_is_none(reply: str) -> None:
    parsed = parse_reply(reply)
    assert (parsed.final_text, parsed.final_var) == (None, None)


def test_final_beside_code_is_reported_as_stray() -> None:
    parsed = parse_reply("```repl\nx = 1\n```\nFINAL_VAR(x)")
    assert (parsed.blocks, parsed.final_var, parsed.stray_final) == (("x = 1\n",), None, True)
    assert not parse_reply("```repl\nFINAL(x)\n```").stray_final


def test_a_final_answer_longer_than_any_parsed_reply_comes_out_whole() -> None:
    answer = "word " * MAX_REPLY_CHARS
    assert parse_reply(f"FINAL({answer})").final_text == answer.strip()


def test_what_lies_beyond_the_longest_reply_counts_as_cut_off() -> None:
    parsed = parse_reply("```repl\na\n```\n" + "x" * MAX_REPLY_CHARS + "\n```repl\nb\n```")
    assert parsed.blocks == ("a\n",)


def test_more_fences_in_strings_than_any_honest_reply_holds_are_read_as_markdown() -> None:
    block = '```repl\nx = """\n```\n"""\n```\n'
    parsed = parse_reply(block * (MAX_JOINS + 1))
    assert parsed.blocks[:MAX_JOINS] == ('x = """\n```\n"""\n',) * MAX_JOINS
    assert parsed.blocks[MAX_JOINS] == 'x = """\n'


@pytest.mark.parametrize("code", ["x = (", "\ud800 =", "(" * 1000 + ")" * 1000, "x = 1\n" * 100_000])
def test_what_is_no_python_or_too_long_does_not_compile(code: str) -> None:
    assert not compiles(code)


def test_top_level_await_and_odd_escapes_compile() -> None:
    assert compiles("await f()\nx = '\\d'\n")


_LINE = st.sampled_from(
    [
        "x = 1",
        "if x:",
        "    y = 'don\\'t'  # \"\"\"",
        "",
        "print(f'{x}')",
        "'''one line'''",
        "# ``` a comment",
        "z = '```'",
    ]
)
_INNER = st.sampled_from(
    ["```", "```python", "~~~", "  ````", "text", "it's \\\"", "\\`", "# not a comment", "    ```"]
)
_QUOTES = st.sampled_from(['"""', "'''"])


@st.composite
def _cells(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        lines.append(draw(_LINE.filter(lambda line: not line.endswith(":") and not line.startswith("    "))))
        if draw(st.booleans()):
            quotes = draw(_QUOTES)
            inner = draw(st.lists(_INNER, max_size=5))
            lines += [f"s = {quotes}", *inner, quotes]
    return "\n".join(lines) + "\n"


_PROSE = st.sampled_from(["", "Now it's time.", "1. first\n2. second", '"quoted" text', "`code`", "# Heading"])


@given(st.lists(st.tuples(_PROSE, _cells().filter(str.strip)), min_size=1, max_size=4))
def test_valid_cells_come_out_exactly_as_they_went_in(parts: list[tuple[str, str]]) -> None:
    reply = "\n\n".join(f"{prose}\n\n```repl\n{cell}```" for prose, cell in parts)
    assert parse_reply(reply).blocks == tuple(cell for _, cell in parts)


@given(st.text(alphabet="`~ \n\"'\\#>-1.(FINAL)replx{", max_size=300), st.booleans())
def test_any_text_parses_and_yields_only_what_it_holds(text: str, complete: bool) -> None:  # noqa: FBT001
    parsed = parse_reply(text, complete=complete)
    assert sum(len(block) for block in parsed.blocks) <= len(text)
    if parsed.final_text is not None:
        assert text.strip().startswith("FINAL(")


@given(_cells(), st.integers(min_value=0, max_value=200))
def test_a_reply_cut_off_anywhere_never_runs_half_a_block(cell: str, cut: int) -> None:
    reply = f"```repl\n{cell}```\n"
    parsed = parse_reply(reply[: min(cut, len(reply) - 5)], complete=False)
    assert parsed.blocks == ()
