"""The lists are merged: I put the answer together."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import found, gap, many, values

KIND = "list"
PLURAL = "email addresses"
ONE = "email address"
NUMBER = 1
LEAST = False

# ---- in the REPL ----
SHOWN = 5

if not found:
    answer = f"I could not find any {PLURAL}."
elif KIND == "count_distinct":
    answer = f"{many(len(found), 'different ' + ONE, 'different ' + PLURAL)} ({found.total()} in all)."
elif KIND == "count_both":
    different = "all different" if len(found) == found.total() else f"{len(found)} of them different"
    answer = many(found.total(), ONE, PLURAL) + ("." if found.total() == 1 else f", {different}.")
elif KIND == "common":
    ranked = sorted(found, key=lambda item: (found[item] if LEAST else -found[item], item))
    answer = "\n".join(f"{item}: {many(found[item], 'time')}" for item in ranked[:NUMBER])
    tied = [item for item in ranked[NUMBER:] if found[item] == found[ranked[NUMBER - 1]]]
    if tied:
        answer += f"\n(As often: {', '.join(tied[:SHOWN])}{' and others' * (len(tied) > SHOWN)}.)"
elif KIND in ("longest", "shortest"):
    ranked = sorted(found, key=lambda item: (-len(item) if KIND == "longest" else len(item), item))
    answer = "\n".join(f"{item} ({many(len(item), 'character')})" for item in ranked[:NUMBER])
elif KIND in ("earliest", "latest"):
    answer = "\n".join(sorted(found, reverse=KIND == "latest")[:NUMBER])
elif KIND in ("sum", "mean", "smallest", "largest"):
    times = sum(values.values())
    total = sum(value * often for value, often in values.items())
    exact = {"sum": total, "smallest": min(values), "largest": max(values)}.get(KIND, total / times)
    answer = f"{exact:f} (the {KIND} of {many(times, ONE, PLURAL)})"
else:
    answer = f"{many(len(found), 'different ' + ONE, 'different ' + PLURAL)}:\n" + "\n".join(sorted(found))
Final = answer + gap()
