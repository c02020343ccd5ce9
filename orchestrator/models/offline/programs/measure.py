"""This is arithmetic: code does it exactly, and no sub-call is needed."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import documents

NOUN = "words"
KIND = "count"
NUMBER = 1
LEAST = False
STOP_WORDS: frozenset[str] = frozenset()

# ---- in the REPL ----
import re
from collections import Counter

ENDS = r"(?<=[.!?])[\"')\]’”]{0,3}\s+|\n[ \t]*\n"


def parts(text: str) -> list[str]:
    if NOUN == "lines":
        return text.split("\n")[: -1 if text.endswith("\n") or not text else None]
    if NOUN == "words" and KIND == "count":
        return text.split()
    if NOUN == "words":
        return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.lower())
    if NOUN == "characters":
        return list(text)
    return [part for part in re.split(ENDS if NOUN == "sentences" else r"\n[ \t]*\n", text) if part.strip()]


sizes: Counter[str] = Counter()
kinds: Counter[str] = Counter()
for name, text in documents.items():
    if NOUN == "documents":
        sizes[name] = 1
    elif NOUN == "characters" and KIND in ("count", "top_documents"):
        sizes[name] = len(text)
    else:
        found_parts = parts(text)
        sizes[name] = len(found_parts)
        if KIND not in ("count", "top_documents"):
            kinds.update(part for part in found_parts if part.strip() and part not in STOP_WORDS)

if KIND == "count":
    draft = f"{sizes.total()} {NOUN}"
    if NOUN != "documents" and len(documents) > 1:
        draft += f" in {len(documents)} documents"
    draft += ". (A word is what stands between white space.)" if NOUN == "words" else "."
elif KIND == "list" and NOUN == "documents":
    draft = "\n".join(documents)
elif KIND == "top_documents":
    ranked = sorted(sizes, key=lambda name: (sizes[name] if LEAST else -sizes[name], name))[:NUMBER]
    draft = "\n".join(f"{name}: {sizes[name]} {NOUN}" for name in ranked)
elif KIND == "count_distinct":
    draft = f"{len(kinds)} different {NOUN}."
elif KIND == "common":
    ranked = sorted(kinds, key=lambda part: (kinds[part] if LEAST else -kinds[part], part))[:NUMBER]
    draft = "\n".join(f"{part}: {kinds[part]} times" for part in ranked)
elif KIND in ("longest", "shortest"):
    ranked = sorted(kinds, key=lambda part: (-len(part) if KIND == "longest" else len(part), part))[:NUMBER]
    draft = "\n".join(f"{part} ({len(part)} characters)" for part in ranked)
else:
    draft = f"{len(kinds)} different {NOUN}:\n" + "\n".join(kinds)
draft = draft or f"I could not find any {NOUN}."
print(draft[:500])
