"""The exact pieces of a text: the sentence around a place, the value a name is given, the line that defines a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from orchestrator.models.offline import items
from orchestrator.models.offline.questions import Question

_REACH = 700
_LONGEST_VALUE = 300
_LONGEST_SHORT_VALUE = 120
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]’”]{0,3}\s+|\n[ \t]{0,80}\n\s*")
_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|abstract|final|static|async|pub|const|let|var|local)[ \t]+){0,4}"
)
_STRUCTURED = re.compile(
    r"^(?:\s{2,}|\t|[#*\-+>|/<\[{}()@\"']|\d+[.)]\s)|[=;{}<>|\\]|\)\s*:?\s*$|:\s*\S+$"
    # The header of a mail, the time at the head of a log's line, the commas of a table.
    r"|^[A-Z][\w-]{1,30}: |^\d{2,4}[-/:.]\d{2}[-/:.]\d{2}|^[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d"
    r"|,[^\s,][^,\n]{0,60},[^\s,]"
)
# Lines of prose are broken where they are full; shorter ones that begin with a capital stand by themselves.
_FULL_LINE = 50
_CONNECTED = (
    r"[\"'\])]{0,2}[ \t]{0,8}(?:(?P<sign>:[^=\n]{1,80}[^=!<>\n]=(?!=)|:=|=(?![=>])|=>|->|→|:(?!:))"
    r"|(?P<verb>is|are|was|were|equals|means)\b(?:[ \t]+(?:set|equal)[ \t]+to\b)?:?|(?:is[ \t]+)?set[ \t]+to\b)"
    r"[ \t]{0,8}(?P<value>[^\n]{1,300})"
)


def around(text: str, start: int, weigh: Callable[[str], float]) -> tuple[int, int]:
    """Return the bounds of what to quote at the line that begins at ``start``.

    That is the line itself where lines carry the structure (code, tables, lists), and otherwise the sentence of its
    paragraph that weighs most.
    """
    newline = text.find("\n", start, start + _REACH)
    end = newline if newline >= 0 else min(start + _REACH, len(text))
    if _STRUCTURED.search(text[start:end]):
        return start, end
    begin, stop = (start, end) if _by_themselves(text, start, end) else _paragraph(text, start, end)
    cuts = [begin, *(begin + match.end() for match in _SENTENCE_END.finditer(text[begin:stop])), stop]
    pieces = [(a, b) for a, b in pairwise(cuts) if b > start - 1 and a < end and text[a:b].strip()]
    return max(pieces, key=lambda piece: (weigh(text[piece[0] : piece[1]]), -piece[0]), default=(start, end))


def _paragraph(text: str, start: int, end: int) -> tuple[int, int]:
    low, high = max(start - _REACH, 0), min(end + _REACH, len(text))
    gap = [match.end() for match in re.finditer(r"\n[ \t]{0,80}\n", text[low:start])]
    after = re.search(r"\n[ \t]{0,80}\n", text[end:high])
    return low + gap[-1] if gap else low, end + after.start() if after else high


def _by_themselves(text: str, start: int, end: int) -> bool:
    """Whether the line from ``start`` to ``end`` neither goes on in the next one nor goes on from the one before."""
    before = text.rfind("\n", max(start - 1 - _REACH, 0), max(start - 1, 0)) + 1 if start else 0
    after = text.find("\n", end + 1, end + 1 + _REACH)
    lines = [text[before:start], text[start:end], text[end + 1 : after if after >= 0 else end + _REACH]]
    pairs = [(first.strip(), second.strip()) for first, second in pairwise(lines)]
    return not any(
        first and second and (len(first) >= _FULL_LINE or second[0].islower() or first[-1] in ",(")
        for first, second in pairs
    )


def value_of(question: Question, quote: str, terms: tuple[str, ...]) -> str:
    """Return the part of ``quote`` that answers, where its form tells: what follows "is" or a colon, a date, a name."""
    asked = question.text.lower()
    if question.kind == "value":
        quote = " ".join(quote.split())  # a sentence may be wrapped anywhere
        last = max(
            (items.fold(quote).rfind(term) + len(term) for term in terms if term in items.fold(quote)), default=-1
        )
        match = re.compile(r"\w{0,6}" + _CONNECTED).match(quote, last) if last >= 0 else None
        return _clean(match) if match else ""
    noun = ""
    if re.search(r"\b(?:when|what (?:date|day|year)|which (?:date|day|year))\b", asked):
        noun = "dates"
    elif re.search(r"\b(?:who|whom|whose)\b", asked):
        noun = "names"
    elif re.search(r"\bhow (?:many|much|old|long|far|tall|big|high)\b", asked):
        noun = "numbers"
    candidates = [] if not noun else _new(noun, quote, asked)
    if noun == "dates" and not candidates:
        candidates = _new("years", quote, asked)
    return candidates[0] if len(candidates) == 1 else ""


def values(what: str, text: str) -> Iterator[tuple[int, int, str, float]]:
    """Yield ``(start, end, value, confidence)`` wherever ``what`` is given a value."""
    words = what.split()
    if not words or items.fold(words[0]) not in items.fold(text):
        return
    identifier = len(words) == 1 and not what.islower()
    name = r"[\s_-]{1,3}".join(re.escape(word) for word in words)
    pattern = re.compile(rf"(?<!\w)(?:{name})(?:\b|(?<=\W)){_CONNECTED}", 0 if identifier else re.IGNORECASE)
    for match in pattern.finditer(text):
        start = text.rfind("\n", max(match.start() - _REACH, 0), match.start()) + 1 or max(match.start() - _REACH, 0)
        newline = text.find("\n", match.end(), match.end() + _REACH)
        end = newline if newline >= 0 else match.end()
        value = _clean(match)
        if not value:
            continue
        if match["sign"] is None:
            start, end = around(text, start, partial(_holds_both, words[-1].lower(), value))
        first = not text[start : match.start()].strip(" \t\"'-")
        confidence = (1.0 if first else 0.8) if match["sign"] and match["sign"] != ":" else (0.9 if first else 0.75)
        yield start, end, value, confidence - (0.05 if text[start : start + 1].isspace() else 0.0)


def definitions(what: str, noun: str, text: str) -> Iterator[tuple[int, int, float]]:
    """Yield ``(start, end, confidence)`` of what defines ``what``: as a class, a function, a variable, in prose."""
    bare = what.rsplit(".", 1)[-1].removesuffix("()")
    if bare not in text and bare.lower() not in text.lower():
        return
    name = re.escape(bare)
    forms = {
        "classes": (
            rf"(?m)^[ \t]*{_MODIFIERS}(?:class|struct|interface|enum|trait|type)[ \t]+{name}\b[^\n]{{0,400}}",
            1.0,
        ),
        "functions": (
            rf"(?m)^[ \t]*{_MODIFIERS}(?:def|function\*?|func|fn)[ \t]+{name}[ \t]*[(<\[][^\n]{{0,400}}",
            1.0,
        ),
        "constants": (
            rf"(?m)^[ \t]*(?:{_MODIFIERS}|#define[ \t]+){name}[ \t]*(?::[^=\n]{{1,80}})?=(?!=)[^\n]{{0,400}}",
            0.9,
        ),
    }
    prose = (
        rf"(?i)(?<!\w){re.escape(what)}(?!\w)[\"'”)]{{0,2}}\s{{1,20}}"
        r"(?:is|are|(?:shall )?means?|refers to|denotes)[\s,:][^\n]{1,400}"
    )
    wanted = [forms[noun]] if noun in forms else list(forms.values())
    for pattern, confidence in wanted:
        for match in re.finditer(pattern, text):
            # What is defined at the left margin is seldom a local or a method of the same name.
            yield match.start(), match.end(), confidence - (0.1 if match.group()[:1].isspace() else 0.0)
    for match in re.finditer(prose, text) if noun not in forms else ():
        start = text.rfind("\n", max(match.start() - _REACH, 0), match.start()) + 1
        yield *around(text, start, lambda piece: float(bare.lower() in piece.lower())), 0.6


def _holds_both(word: str, value: str, piece: str) -> float:
    return float(value in piece and word in piece.lower())


def _clean(match: re.Match[str]) -> str:
    value = _closed(match["value"].strip())
    if match["sign"] and match["sign"] != ":":
        if value[:1] in "\"'" and (close := value.find(value[0], 1)) > 0:
            rest = value[close + 1 :].strip()
            return value[: close + 1] if not rest or rest[0] in ",;#/)]}" else _without_comment(value)
        return _without_comment(value)
    value = _without_comment(value) if match["sign"] else re.sub(r"^(?:called|named|known as)\s+", "", value)
    sentence = re.split(r"(?<=[\w\"')\]])[.;!?](?:\s|$)", value, maxsplit=1)[0].strip().strip('"“”')
    return sentence[:_LONGEST_VALUE] if len(sentence) <= _LONGEST_SHORT_VALUE else ""


def _closed(value: str) -> str:
    """Cut a value that stands in brackets opened before it, as a parameter's default does, where it ends."""
    depth, quote, comma = 0, "", -1
    for at, character in enumerate(value):
        if quote:
            quote = "" if character == quote else quote
        elif character == '"' or (character == "'" and not value[at - 1 : at].isalnum()):
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return value[: comma if comma >= 0 else at].strip()
        elif character == "," and depth == 0 and comma < 0:
            comma = at
    return value


def _without_comment(value: str) -> str:
    value = re.split(r"\s+(?:[#;]|//|--)(?=\s|$|\w)", value, maxsplit=1)[0].strip()
    return value.rstrip(",;").rstrip()[:_LONGEST_VALUE]


def _new(noun: str, quote: str, asked: str) -> list[str]:
    found = dict.fromkeys(items.find(noun, quote))
    return [item for item in found if item.lower() not in asked]
