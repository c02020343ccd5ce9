"""I keep the quotations that really stand in the text and rank them by how rare their words are."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import documents, gap, replies, slices

TERMS: tuple[str, ...] = ()

# ---- in the REPL ----
import math
from typing import Any

candidates = [
    item
    for reply in replies.values()
    for item in (reply if isinstance(reply, list) else [])
    if isinstance(item, dict) and isinstance(item.get("quote"), str) and item["quote"].strip()
]
genuine: dict[tuple[str, str], dict[str, Any]] = {}
for item in candidates:
    name = item.get("document") or next(iter(documents))
    if item["quote"] in documents.get(name, ""):
        genuine.setdefault((name, item["quote"]), {**item, "document": name})

lowered = ["\n".join(documents[name][start:end].lower() for name, start, end in piece) for piece in slices]
spread = {term: sum(term in text for text in lowered) for term in TERMS}
weight = {term: math.log((1 + len(lowered)) / (1 + times)) + 0.5 for term, times in spread.items()}
heaviest = sum(weight.values()) or 1.0
for item in genuine.values():
    shared = sum(weight[term] for term in TERMS if term in item["quote"].lower()) / heaviest
    sure = item.get("confidence", 0.5)
    item["coverage"] = shared
    item["rank"] = shared + (sure if isinstance(sure, (int, float)) else 0.5) + (0.1 if item.get("value") else 0.0)
    text, quote, value = documents[item["document"]], item["quote"], str(item.get("value") or "")
    # The place is that of the value in the quotation, or of the line in it that shares most with the question.
    inside = quote.find(value) if value else -1
    if inside < 0:
        parts = quote.split("\n")
        told = [sum(weight[term] for term in TERMS if term in part.lower()) for part in parts]
        inside = sum(len(part) + 1 for part in parts[: told.index(max(told))])
    item["line"] = text.count("\n", 0, text.find(quote) + inside) + 1
best = sorted(genuine.values(), key=lambda item: -item["rank"])[:10]
print(len(candidates), "quotations,", len(genuine), "genuine; slices that hold each word:", spread, gap())
for item in best[:3]:
    print(round(item["rank"], 2), round(item["coverage"], 2), item["document"], item["line"], repr(item["quote"][:160]))
draft = best[0]["quote"] if best else "nothing found"
