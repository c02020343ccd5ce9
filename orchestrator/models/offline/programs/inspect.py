"""I look at how the text is laid out and what is left of the budget."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import budget, context

SEPARATORS: dict[str, str] = {}

# ---- in the REPL ----
import csv
import re

HEAD_CHARS = 20_000


def many(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def columns_of(text: str) -> tuple[list[str], str]:
    """Return the names of a table's columns and what stands between them; no names if the text is no table."""
    lines = text[:HEAD_CHARS].replace("\r", " ").split("\n")
    head = [line for line in (lines if len(text) <= HEAD_CHARS else lines[:-1]) if line.strip()][:6]
    for delimiter in ",;\t|":
        if len(head) > 1 and delimiter in head[0]:
            names, *rows = csv.reader(head, delimiter=delimiter)
            names = [name.strip() for name in names]
            plain = all(re.fullmatch(r"[A-Za-z_][\w .()%/$€-]{0,60}", name) for name in names)
            if plain and all(len(row) == len(names) for row in rows):
                return names, delimiter
    return [], ""


if isinstance(context, str):
    named = [("the text", context)]
elif isinstance(context, dict):
    named = list(context.items())
else:
    named = [(f"document {number}", text) for number, text in enumerate(context, 1)]

documents: dict[str, str] = {}
sizes_as_given: dict[str, int] = {}
for number, (name, text) in enumerate(named, 1):
    label = " ".join(str(name).split())[:200]  # one line, so that it can head a document in a prompt
    label = label if label and label not in documents else f"{label} (document {number})"
    sizes_as_given[label] = len(text)
    documents[label] = text.replace("\r\n", "\n")

sizes = sorted((len(text), name) for name, text in documents.items())
print(
    type(context).__name__,
    "context:",
    many(len(documents), "document"),
    "of",
    sum(size for size, _ in sizes),
    "characters",
)
for size, name in sizes[-3:]:
    print("among the longest:", repr(name), size)
for name, text in list(documents.items())[:2]:
    print(repr(name), "begins", repr(text[:120]))
print("left:", budget())
if isinstance(context, str):
    for form, separator in SEPARATORS.items():
        print("lines of the form", form, "-", sum(1 for _ in re.finditer(separator, documents["the text"])))
tables = {name: columns_of(text) for name, text in documents.items()}
for column in dict.fromkeys(column for columns, _ in tables.values() for column in columns):
    print("column:", column)
