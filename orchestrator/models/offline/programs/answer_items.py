"""The lists are merged: I put the answer together."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import found, gap, values

KIND = "list"
PLURAL = "email addresses"
NUMBER = 1
LEAST = False

# ---- in the REPL ----
SHOWN = 5

if not found:
    answer = f"I could not find any {PLURAL}."
elif KIND == "count_distinct":
    answer = f"{len(found)} different {PLURAL} ({found.total()} in all)."
elif KIND == "common":
    ranked = sorted(found, key=lambda item: (found[item] if LEAST else -found[item], item))
    answer = "\n".join(f"{item}: {found[item]} times" for item in ranked[:NUMBER])
    tied = [item for item in ranked[NUMBER:] if found[item] == found[ranked[NUMBER - 1]]]
    if tied:
        answer += f"\n(As often: {', '.join(tied[:SHOWN])}{' and others' * (len(tied) > SHOWN)}.)"
elif KIND in ("longest", "shortest"):
    ranked = sorted(found, key=lambda item: (-len(item) if KIND == "longest" else len(item), item))
    answer = "\n".join(f"{item} ({len(item)} characters)" for item in ranked[:NUMBER])
elif KIND in ("earliest", "latest"):
    answer = "\n".join(sorted(found, reverse=KIND == "latest")[:NUMBER])
elif KIND in ("sum", "mean", "smallest", "largest"):
    times = sum(values.values())
    total = sum(value * often for value, often in values.items())
    exact = {"sum": total, "smallest": min(values), "largest": max(values)}.get(KIND, total / times)
    answer = f"{exact:f} (the {KIND} of {times} {PLURAL})"
else:
    answer = f"{len(found)} different {PLURAL}:\n" + "\n".join(sorted(found))
Final = answer + gap()
