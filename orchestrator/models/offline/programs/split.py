"""I cut the documents into slices at line ends, no more of them than the budget allows."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import budget, columns_of, documents, many

SEPARATOR = ""
SCOPE = ""
TERMS: tuple[str, ...] = ()
SLICE_CHARS = 100_000
QUESTION_COUNT = 1
KEEP_BEFORE = False

# ---- in the REPL ----
import re
from collections.abc import Iterator

CALLS_KEPT = 10  # for further turns
LARGEST_CHARS = 1_500_000

if SEPARATOR:
    (whole,) = documents.values()
    marks = list(re.finditer(SEPARATOR, whole))
    ends = [mark.start() for mark in marks[1:]] + [len(whole)]
    # What stands before the first one, a title for example, is none of them.
    documents = {"(before the first)": whole[: marks[0].start()]} if KEEP_BEFORE else {}
    for number, (mark, end) in enumerate(zip(marks, ends, strict=True), 1):
        label = " ".join(next(filter(None, mark.groups()), mark.group()).split())[:200]
        documents[label if label not in documents else f"{label} (part {number})"] = whole[mark.end() : end]
    print("separated:", many(len(documents), "document"))
if SCOPE:
    inside = {name: text for name, text in documents.items() if name == SCOPE or name.endswith("/" + SCOPE)}
    documents = inside or documents
    tables = {name: columns_of(text) for name, text in documents.items()}
    print("restricted to", list(inside)[:5]) if inside else print("no document is called", SCOPE)


def pieces(text: str, size: int) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > size:
        end = text.rfind("\n", start, start + size) + 1
        if end <= start:  # a line longer than a slice: take it whole if that can be
            end = text.find("\n", start + size, start + LARGEST_CHARS) + 1
        if end <= start:
            end = text.rfind(" ", start, start + LARGEST_CHARS) + 1
        if end <= start:
            end = start + size
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def breaks(piece: list[tuple[str, int, int]]) -> int:
    """How many lines of a slice go on in the next one."""
    return sum(end < len(documents[name]) and documents[name][end - 1] != "\n" for name, _, end in piece)


def pack(size: int) -> list[list[tuple[str, int, int]]]:
    packed: list[list[tuple[str, int, int]]] = [[]]
    room = size
    for name, text in documents.items():
        for start, end in pieces(text, size):
            if packed[-1] and end - start > room:
                packed.append([])
                room = size
            packed[-1].append((name, start, end))
            room -= end - start + len(name) + 30
    return packed if packed[0] else []


left = budget()
most = max((left["calls"] - CALLS_KEPT) // QUESTION_COUNT, 1)
size = SLICE_CHARS
slices = pack(size)
while len(slices) > most and size < LARGEST_CHARS:
    size = min(size * 3 // 2, LARGEST_CHARS)
    slices = pack(size)

# What the budget cannot pay for is not read: the slices with most of the question's words go first.
affordable = max(min(most, int(0.9 * left["tokens"] / QUESTION_COUNT / (size / 3.5 + 500))), 1)
unread = max(len(slices) - affordable, 0)
if unread:
    promise = [
        sum(documents[name][start:end].lower().count(term) for term in TERMS for name, start, end in piece)
        for piece in slices
    ]
    order = sorted(range(len(slices)), key=lambda index: (-promise[index], index))[:affordable]
    slices = [slices[index] for index in sorted(order)]

cut = sum(map(breaks, slices))
fence = "==="
while any(f"{fence} document: " in text for text in documents.values()):
    fence += "="
print(
    many(len(documents), "document"),
    "in",
    many(len(slices), "slice"),
    "of at most about",
    size,
    "characters;",
    unread,
    "beyond the budget",
)
