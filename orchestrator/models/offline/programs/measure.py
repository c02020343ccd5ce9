"""This is arithmetic: code does it exactly, and no sub-call is needed."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import documents, many, sizes_as_given

NOUN = "words"
KIND = "count"
NUMBER = 1
LEAST = False
SKIP = 0
CALLED = ""
ONE = "word"
STOP_WORDS: frozenset[str] = frozenset()

# ---- in the REPL ----
import re
from collections import Counter

ENDS = r"(?<=[.!?])[\"')\]’”]{0,3}\s+|\n[ \t]*\n"


def parts(text: str) -> list[str]:
    if NOUN == "lines":
        return text.split("\n")[: -1 if text.endswith("\n") or not text else None]
    if NOUN == "words" and KIND in ("count", "nth"):
        return text.split()
    if NOUN == "words":
        return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.lower())
    if NOUN == "characters":
        return list(text)
    return [part for part in re.split(ENDS if NOUN == "sentences" else r"\n[ \t]*\n", text) if part.strip()]


picked: list[str] = []
sizes: Counter[str] = Counter()
kinds: Counter[str] = Counter()
for name, text in documents.items():
    if NOUN == "documents":
        sizes[name] = 1
    elif NOUN == "characters" and KIND in ("count", "top_documents"):
        sizes[name] = sizes_as_given.get(name, len(text))
    else:
        found_parts = parts(text)
        sizes[name] = len(found_parts)
        if KIND == "nth":
            stop = SKIP + NUMBER or None
            picked += [
                f"{name}: {part}" if len(documents) > 1 else part
                for part in (text.strip("\n") for text in found_parts[SKIP:stop])
            ]
        if KIND not in ("count", "top_documents"):
            kinds.update(part for part in found_parts if part.strip() and part not in STOP_WORDS)

called = CALLED if CALLED not in ("", "files", "texts") or len(documents) > 1 else "documents"
if KIND == "count" and NOUN == "documents" and len(documents) == 1 and called not in ("documents", "document"):
    draft = f"The context is one text, and I see nothing in it that sets {called} apart, so I cannot count them"
    draft += " (for addresses, ask for email addresses)." if "mail" in called else "."
elif KIND == "count":
    draft = many(sizes.total(), ONE, called if NOUN == "documents" and called else NOUN)
    if NOUN != "documents" and len(documents) > 1:
        draft += f" in {len(documents)} documents"
    draft += ". (A word is what stands between white space.)" if NOUN == "words" else "."
elif KIND == "nth":
    draft = "\n".join(picked) or f"There are only {many(sizes.total(), ONE, NOUN)}."
elif KIND == "list" and NOUN == "documents":
    draft = "\n".join(documents)
elif KIND == "top_documents":
    ranked = sorted(sizes, key=lambda name: (sizes[name] if LEAST else -sizes[name], name))[:NUMBER]
    draft = "\n".join(f"{name}: {many(sizes[name], ONE, NOUN)}" for name in ranked)
elif KIND == "count_distinct":
    draft = f"{len(kinds)} different {ONE if len(kinds) == 1 else NOUN}."
elif KIND == "common":
    ranked = sorted(kinds, key=lambda part: (kinds[part] if LEAST else -kinds[part], part))[:NUMBER]
    draft = "\n".join(f"{part}: {many(kinds[part], 'time')}" for part in ranked)
elif KIND in ("longest", "shortest"):
    ranked = sorted(kinds, key=lambda part: (-len(part) if KIND == "longest" else len(part), part))[:NUMBER]
    draft = "\n".join(f"{part} ({many(len(part), 'character')})" for part in ranked)
else:
    draft = f"{len(kinds)} different {ONE if len(kinds) == 1 else NOUN}:\n" + "\n".join(kinds)
draft = draft or f"I could not find any {NOUN}."
print(draft[:500])
