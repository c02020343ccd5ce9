"""I put the answer together, with the places it comes from."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import best, documents, gap

QUERY = "What is the answer?"
KIND = "passages"
ENOUGH = 0.6
DEFINED = 0.55

# ---- in the REPL ----
from typing import Any

NEARLY_ALL = 0.9


def shown(item: dict[str, Any]) -> str:
    place = f"line {item['line']}" if len(documents) == 1 else f"{item['document']}, line {item['line']}"
    return f"“{' '.join(item['quote'].split())}” ({place})"


sure = [item for item in best if item["coverage"] >= ENOUGH]
top = [item for item in sure if item["rank"] >= sure[0]["rank"] - 0.05]
valued = [item for item in top if item.get("value") and (KIND == "value" or item["coverage"] > NEARLY_ALL)]
if not sure:
    answer = f"I could not find an answer to: {QUERY}"
    answer += f"\nThe nearest passage: {shown(best[0])}" if best else ""
elif valued:
    distinct = list(dict.fromkeys(str(item["value"]) for item in valued))
    answer = "\n".join(distinct[:5]) + "\n" + "\n".join(shown(item) for item in valued[:5])
elif KIND == "definition" and top[0].get("confidence", 0) >= DEFINED:
    answer = (
        "\n".join(dict.fromkeys(item["document"] for item in top)) + "\n" + "\n".join(shown(item) for item in top[:5])
    )
else:
    answer = "The passages that share most with the question:\n" + "\n".join(shown(item) for item in sure[:3])
Final = answer + gap()
