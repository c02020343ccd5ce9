"""I condense the quoted sentences, level by level, until few are left."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import gap, llm_query_batched, replies

QUESTION = "Summarise the text below in at most 5 sentences."
FEW = 8
GROUP_CHARS = 60_000

# ---- in the REPL ----
import json

sentences = [text for index in sorted(replies) for text in replies[index] if isinstance(text, str)]
while len(sentences) > FEW:
    groups: list[list[str]] = [[]]
    for sentence in sentences:
        if sum(map(len, groups[-1])) > GROUP_CHARS:
            groups.append([])
        groups[-1].append(sentence)
    shorter: list[str] = []
    for answer in llm_query_batched([QUESTION + "\n\n" + "\n\n".join(group) for group in groups]):
        try:
            shorter += [text for text in json.loads(answer) if isinstance(text, str)]
        except ValueError:
            continue
    print(len(sentences), "sentences became", len(shorter))
    if not 0 < len(shorter) < len(sentences):
        break
    sentences = shorter
Final = (" ".join(sentences[:FEW]) or "I could not find anything to summarise.") + gap()
