"""Taking a sub-call's prompt apart: the question, and the text it is about.

Prompts are written by anyone. The forms understood are those people write: a question, then the text after a blank
line, a label (``Text:``), a fence (triple quotes or backticks) or a tag (``<text>``); or the text first and
``Question: …`` last. Inside the text, documents may be set apart by lines ``=== document: NAME ===`` or tags
``<document name="NAME">``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(
    r"(?im)(?:^[ \t]*|(?<=[.?!][ \t]))(?:#{1,6}[ \t]*|\*\*)?"
    r"(?:the )?(?:text|context|passages?|excerpt|documents?|contents?|input|article|source|slice|chunk|data)"
    r"(?: \w{1,20}){0,3}(?:\*\*)?:(?:\*\*)?[ \t]*(?=\S|$)"
)
_HEADING = re.compile(r"(?im)^#{1,6} (?:the )?(?:text|context|passage|document|content|input|article)[ \t]*$")
_QUESTION_HEADING = re.compile(r"(?im)^#{1,6} (?:the )?question\b[^\n]{0,20}$")
_FENCE = re.compile(r"(?m)^[ \t]*(\"\"\"|```+|'''|~~~+)[^\n]*$")
_TAG = re.compile(
    r"(?im)<(text|context|passage|document|documents|content|input|article|source|excerpt|data)\b[^>\n]{0,300}>"
)
_RULED = re.compile(
    r"(?im)^(={3,200}|-{3,200}|#{3,200}) ?(?:document|file|source|doc|page|chapter)\b[^\n:]{0,20}: ?"
    r"([^\n]{1,400}?)(?: ?\1)?$"
)
_TAGGED = re.compile(r"(?im)^<(document|doc|file|source|page)\b([^>\n]{0,400})>[ \t]*$")
_RULE = re.compile(r"(?m)^[ \t]*(?:-{3,200}|={3,200}|\*{3,200}|_{3,200})[ \t]*$")
_ASKED = re.compile(
    r"(?im)^[ \t]*(?:#{1,6}[ \t]*|\*\*)?(?:question|query|q|task|instruction|instructions)(?:\*\*)?:(?:\*\*)?[ \t]*"
)
_NAME = re.compile(
    r"(?:name|title|path|source|id|file|filename)\s{0,5}=\s{0,5}[\"']([^\"'\n]{1,400})[\"']", re.IGNORECASE
)
# An instruction is short; what is longer is text.
_MOST_INSTRUCTION = 6_000


@dataclass(frozen=True, slots=True)
class Document:
    """A named piece of the text under question; the name is empty when nothing names it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sub-call's prompt, taken apart."""

    instruction: str
    documents: tuple[Document, ...]


def take_apart(prompt: str) -> Prompt:
    """Return the instruction and the documents of ``prompt``."""
    instruction, text = _divide(prompt)
    return Prompt(" ".join(instruction.split()), tuple(documents(text)))


def documents(text: str) -> list[Document]:
    """Return the documents that ``text`` holds: itself, when nothing in it separates any.

    The first separator fixes the form; a document that contains a line of another form is not cut by it.
    """
    first = min(
        (match for match in (_RULED.search(text), _TAGGED.search(text)) if match), key=re.Match.start, default=None
    )
    if first is None:
        return [Document("", text)] if text.strip() else []
    if first.re is _RULED:
        marks = [match for match in _RULED.finditer(text) if match[1] == first[1]]
        named = [match[2].strip() for match in marks]
    else:
        marks = [match for match in _TAGGED.finditer(text) if match[1] == first[1]]
        named = [_tag_name(match) for match in marks]
    found = [Document("", text[: marks[0].start()])] if text[: marks[0].start()].strip() else []
    ends = [match.start() for match in marks[1:]] + [len(text)]
    for name, mark, end in zip(named, marks, ends, strict=True):
        body = text[mark.end() : end].removeprefix("\n")
        if first.re is _TAGGED:
            body = re.sub(rf"\s{{0,20}}</{first[1]}>\s{{0,20}}\Z", "", body, flags=re.IGNORECASE)
        found.append(Document(name, body))
    return found


def _divide(prompt: str) -> tuple[str, str]:
    """Return the question and the text of a prompt."""
    head = prompt[:_MOST_INSTRUCTION]
    marks = filter(None, (form.search(head) for form in (_LABEL, _HEADING, _FENCE, _TAG, _RULED, _RULE)))
    mark = min(marks, key=re.Match.start, default=None)
    if mark is None:
        return _divide_by_paragraph(prompt)
    before = prompt[: mark.start()]
    text, after = _body(prompt, mark)
    if _asks(before):
        return _without_label(before), text
    if after.strip() and len(after) <= _MOST_INSTRUCTION:
        return _without_label(after), text
    return _take_last_question(before, text)


def _body(prompt: str, mark: re.Match[str]) -> tuple[str, str]:
    """Return the text that ``mark`` opens, and what stands after its end, if it has one."""
    if mark.re is _RULED or (mark.re is _TAG and _TAGGED.match(prompt, mark.start())):
        return prompt[mark.start() :], ""  # the mark names a document, and so belongs to the text
    text = prompt[mark.end() :]
    if mark.re is _FENCE:
        end, size = text.rfind("\n" + mark[1]), len(mark[1]) + 1
    elif mark.re is _TAG:
        end, size = text.lower().rfind(f"</{mark[1].lower()}>"), len(mark[1]) + 3
    elif mark.re is _HEADING:
        tail = max(len(text) - _MOST_INSTRUCTION, 0)
        again = list(_QUESTION_HEADING.finditer(text, tail))
        return (text[: again[-1].start()], text[again[-1].end() :]) if again else (text, "")
    else:
        return text, ""
    text, after = (text[:end], text[end + size :]) if end >= 0 else (text, "")
    return text.removeprefix("\n"), after


def _divide_by_paragraph(prompt: str) -> tuple[str, str]:
    first, blank, rest = prompt.strip().partition("\n\n")
    if not blank:
        first, _, rest = prompt.strip().partition("\n")
        if not rest:
            asked, colon, text = first.partition(": ")
            return (asked, text) if colon and len(asked) < len(text) and _asks(asked) else (first, "")
    if len(first) <= _MOST_INSTRUCTION and _asks(first):
        return _without_label(first), rest
    instruction, text = _take_last_question("", prompt)
    return (instruction, text) if instruction else (first[:_MOST_INSTRUCTION], rest)


def _take_last_question(before: str, text: str) -> tuple[str, str]:
    """Look for the question at the end of the text: after a label, or as its last paragraph."""
    tail = max(len(text) - _MOST_INSTRUCTION, 0)
    labels = list(_ASKED.finditer(text, tail))
    if labels:
        asked = re.sub(r"(?i)\n[ \t]*answer:\s*\Z", "", text[labels[-1].end() :])
        return asked, text[: labels[-1].start()]
    stripped = text.rstrip()
    cut = stripped.rfind("\n\n")
    last = stripped[cut + 2 :] if cut >= 0 else ""
    if last and len(last) <= _MOST_INSTRUCTION // 4 and _asks(last) and not before.strip():
        return last, text[:cut]
    return _without_label(before), text


_REQUEST = re.compile(
    r"\?|\b(?:how many|how often|which|what|who|where|when|why|list|count|find|extract|summari[sz]e|give|name|tell|"
    r"show|identify|describe|does|is there|are there|return|report|collect|enumerate|sum|total|explain|translate|"
    r"rewrite)\b",
    re.IGNORECASE,
)


def _asks(text: str) -> bool:
    return bool(_REQUEST.search(text))


def _without_label(text: str) -> str:
    label = _ASKED.search(text)
    return text[label.end() :] if label and text[label.end() :].strip() else text


def _tag_name(match: re.Match[str]) -> str:
    name = _NAME.search(match[2])
    return name[1] if name else ""
