"""I look at how the text is laid out and what is left of the budget."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import budget, context

SEPARATORS: dict[str, str] = {}

# ---- in the REPL ----
import re

if isinstance(context, str):
    named = [("the text", context)]
elif isinstance(context, dict):
    named = list(context.items())
else:
    named = [(f"document {number}", text) for number, text in enumerate(context, 1)]

documents: dict[str, str] = {}
for number, (name, text) in enumerate(named, 1):
    label = " ".join(str(name).split())[:200]  # one line, so that it can head a document in a prompt
    documents[label if label and label not in documents else f"{label} (document {number})"] = text

sizes = sorted((len(text), name) for name, text in documents.items())
print(type(context).__name__, "context:", len(documents), "documents,", sum(size for size, _ in sizes), "characters")
for size, name in sizes[-3:]:
    print("among the longest:", repr(name), size)
for name, text in list(documents.items())[:2]:
    print(repr(name), "begins", repr(text[:120]))
print("left:", budget())
if isinstance(context, str):
    for form, separator in SEPARATORS.items():
        print("lines of the form", form, "-", sum(1 for _ in re.finditer(separator, context)))
