"""What a root model's reply asks for: pure, and bounded in work whatever the reply is.

Code is taken by a Markdown parser, not by a regular expression. CommonMark closes a fence at the first line of
backticks, which is wrong in one case only: a Python string that holds such a line. There the real end is the first
closing line at which no string literal is open, because a line of backticks outside a string is not Python at all. A
reply is read that way when what results compiles; otherwise CommonMark's reading stands, and the code fails in the box,
where the model sees it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

RUNNABLE = frozenset({"repl", "python", "py", "python3"})
# About the longest reply a provider gives today (128k tokens); what lies beyond is treated as if it had been cut off.
MAX_REPLY_CHARS = 500_000
# Compiling is only ever a check here; a cell longer than this is read as CommonMark has it.
MAX_COMPILED_CHARS = 200_000
# Each costs one more pass over the reply; no honest reply holds more fences inside strings.
MAX_JOINS = 8

_THOUGHT = re.compile(r"\s*<(think|thinking)>.*?(?:</\1>|\Z)", re.DOTALL)
_LANGUAGE = re.compile(r"\{?\s*\.?([\w+#-]+)")
_FINAL = re.compile(r"FINAL\((.*)\)", re.DOTALL)
_FINAL_VAR = re.compile(r"""FINAL_VAR\(\s*(["']?)([A-Za-z_]\w{0,99})\1\s*\)""")
_STRAY = re.compile(r"^[ \t]*FINAL(?:_VAR)?\(", re.MULTILINE)
_LEXEME = re.compile(
    r"#[^\n]*"
    r"|(?P<triple>\"\"\"|''')(?:[^\\]|\\.|\\\Z)*?(?:(?P<closed>(?P=triple))|\Z)"
    r"|\"(?:[^\"\\\n]|\\.)*\"?"
    r"|'(?:[^'\\\n]|\\.)*'?",
    re.DOTALL,
)
# Stand in for a fence character inside a string while the reply is parsed again; private-use, so no text holds them.
_MASKS = {"`": "\ue0fe", "~": "\ue0ff"}
_UNMASK = str.maketrans({mask: character for character, mask in _MASKS.items()})


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A reply, taken apart.

    Attributes:
        blocks: the code to run, in order.
        cut: a code block has no end, as when the reply stopped inside it; it was left out with all after it.
        skipped: languages of fenced blocks that are not run, in order; empty for a block without one.
        final_text: the whole reply was ``FINAL(...)``: what stood between the parentheses.
        final_var: the whole reply was ``FINAL_VAR(name)``: the name.
        stray_final: a line of prose begins with ``FINAL(`` or ``FINAL_VAR(`` and counted for nothing.
        prose: the reply without its fenced blocks.
    """

    blocks: tuple[str, ...] = ()
    cut: bool = False
    skipped: tuple[str, ...] = ()
    final_text: str | None = None
    final_var: str | None = None
    stray_final: bool = False
    prose: str = ""


def parse_reply(text: str, *, complete: bool = True) -> ParsedReply:
    """Take a reply apart.

    Args:
        text: the reply as the model gave it. Thoughts in a leading ``<think>`` element count for nothing.
        complete: the model ended it by itself. Then a last block without a closing fence is run if it compiles; a
            reply that was cut off never has its last, open block run.
    """
    text = _normalise(_THOUGHT.sub("", text, count=1) if text.lstrip()[:6] == "<think" else text)
    whole = text.strip()
    if name := _FINAL_VAR.fullmatch(whole):
        return ParsedReply(final_var=name[2])
    if (answer := _final_text(whole)) is not None:
        return ParsedReply(final_text=answer)
    return _parse_blocks(text[:MAX_REPLY_CHARS], complete=complete and len(text) <= MAX_REPLY_CHARS)


def compiles(code: str) -> bool:
    """Whether ``code`` is Python, top-level ``await`` included; False when it is too long to ask."""
    if len(code) > MAX_COMPILED_CHARS:
        return False
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(code, "<cell>", "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return True


def _normalise(text: str) -> str:
    # As the Markdown parser does it, so that its line numbers are ours.
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _final_text(whole: str) -> str | None:
    match = _FINAL.fullmatch(whole)
    if match is None:
        return None
    inner = match[1].strip()
    if inner[:1] in {'"', "'"} and len(inner) <= MAX_COMPILED_CHARS:
        try:
            value = ast.literal_eval(inner)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            value = None
        if isinstance(value, str):
            return value
    return inner if _balanced(inner) else None


def _balanced(text: str) -> bool:
    # "FINAL(42) is what I would say (later)" begins and ends like a final answer and is none.
    depth = 0
    for bracket in re.findall(r"[()]", text):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def _parse_blocks(text: str, *, complete: bool) -> ParsedReply:
    lines, fences = _fences(text)
    blocks: list[str] = []
    skipped: list[str] = []
    cut = False
    for fence in fences:
        language = _language(fence)
        if language not in RUNNABLE:
            skipped.append(language)
            continue
        code = fence.content.translate(_UNMASK)
        # A block that ends inside a string was closed there: its real end is in the part that is missing.
        whole = _is_closed(fence) and (complete or not _ends_in_string(code))
        if not whole and not (complete and compiles(code)):
            cut = True
            break
        if code.strip():
            blocks.append(code)
    prose = _prose(lines, fences)
    stray = _STRAY.search(prose) is not None
    return ParsedReply(tuple(blocks), cut, tuple(skipped), stray_final=stray, prose=prose)


def _fences(text: str) -> tuple[list[str], list[Token]]:
    """Return the lines and the fences of ``text``, read again after each fence found to be closed inside a string."""
    from markdown_it import MarkdownIt

    # Without html_block: a tag such as <plan> before a fence must not swallow it.
    markdown = MarkdownIt("zero").enable(["fence", "code", "list", "blockquote"])
    lines = text.split("\n")
    tries = 0 if any(mask in text for mask in _MASKS.values()) else MAX_JOINS
    position = 0
    while True:
        fences = [token for token in markdown.parse("\n".join(lines)) if token.type == "fence"]
        masked = False
        while tries and not masked and position < len(fences):
            if _is_cut_in_string(fences[position]):
                masked = _mask_inner_fences(fences[position], lines)
                tries -= 1
            position += 1
        if not masked:
            return lines, fences


def _is_cut_in_string(fence: Token) -> bool:
    return _language(fence) in RUNNABLE and _is_closed(fence) and _ends_in_string(fence.content)


def _mask_inner_fences(fence: Token, lines: list[str]) -> bool:
    """Hide the lines that closed ``fence`` inside a string from the parser; tell whether its real end was found."""
    first, after = _span(fence)
    indent = lines[first].find(fence.markup)
    body = [_dedent(line, indent) for line in lines[first + 1 :]]
    closing = [number for number, line in enumerate(body) if _closes(line, fence.markup)]
    end = _first_outside_string(body, closing)
    if end is None or not compiles("\n".join(body[:end])):
        return False
    for number in range(after - 1, first + 1 + end):
        if _closes(body[number - first - 1], fence.markup):
            lines[number] = lines[number].replace(fence.markup[0], _MASKS[fence.markup[0]])
    return True


def _ends_in_string(code: str) -> bool:
    # Only a triple-quoted string can hold a line of nothing but backticks.
    last = deque(_LEXEME.finditer(code), maxlen=1)
    return bool(last) and last[0]["triple"] is not None and last[0]["closed"] is None


def _first_outside_string(body: list[str], closing: list[int]) -> int | None:
    """Return the first of the ``closing`` lines that no string literal of ``body`` spans."""
    strings = _spans("\n".join(body))
    begin, end = next(strings, (0, 0))
    offsets = _offsets(body)
    for number in closing:
        offset = offsets[number]
        while end <= offset and begin < end:
            begin, end = next(strings, (0, 0))
        if not begin < offset < end:
            return number
    return None


def _spans(code: str) -> Iterator[tuple[int, int]]:
    return (lexeme.span() for lexeme in _LEXEME.finditer(code))


def _offsets(lines: list[str]) -> list[int]:
    offsets, total = [], 0
    for line in lines:
        offsets.append(total)
        total += len(line) + 1
    return offsets


def _dedent(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]


def _closes(line: str, markup: str) -> bool:
    # CommonMark: up to three spaces, at least as many fence characters, nothing after them.
    bare = line.strip(" \t")
    indent = len(line) - len(line.lstrip(" "))
    return indent <= 3 and len(bare) >= len(markup) and not bare.strip(markup[0])  # noqa: PLR2004 - the rule's number


def _is_closed(fence: Token) -> bool:
    # The parser ends an open fence with its parent or with the text; only a closing line is no part of the content.
    first, after = _span(fence)
    return len(fence.content.removesuffix("\n").split("\n")) * bool(fence.content) == after - first - 2


def _span(fence: Token) -> tuple[int, int]:
    """First line of ``fence`` and the line after it."""
    if fence.map is None:  # block tokens always carry it; the type says otherwise
        return 0, 0
    return fence.map[0], fence.map[1]


def _language(fence: Token) -> str:
    match = _LANGUAGE.match(fence.info.strip())
    return match[1].lower() if match else ""


def _prose(lines: list[str], fences: list[Token]) -> str:
    kept: list[str] = []
    position = 0
    for fence in fences:
        first, after = _span(fence)
        kept += lines[position:first]
        position = after
    return "\n".join(kept + lines[position:]).strip()
