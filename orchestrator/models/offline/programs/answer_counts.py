"""The numbers are in: I put the answer together."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import counts, documents, otherwise

KIND = "count"
SINGULAR = 'the word "X"'
PLURAL = 'the word "X"'
READING = ""
NUMBER = 1
LEAST = False
NEGATE = False

# ---- in the REPL ----
SHOWN = 5

total = counts.total()
with_it = [name for name in documents if counts[name]]
chosen = [name for name in documents if not counts[name]] if NEGATE else with_it
where = "" if len(documents) == 1 else f", in {len(with_it)} of {len(documents)} documents"
one = len(chosen) == 1
verb = ("does not contain" if one else "do not contain") if NEGATE else ("contains" if one else "contain")
if KIND == "count":
    answer = f"{total} {PLURAL}{READING}{where}."
elif KIND == "count_documents":
    answer = f"{len(chosen)} of {len(documents)} documents {verb} {SINGULAR}{READING}."
elif KIND == "which_documents":
    answer = f"{len(chosen)} of {len(documents)} documents {verb} {SINGULAR}{READING}"
    answer += ":\n" + "\n".join(chosen) if chosen else "."
elif KIND == "yes_no":
    answer = f"Yes: {total} {PLURAL}{READING}{where}." if total else f"No: I could not find {SINGULAR}{READING}."
else:
    ranked = sorted(documents, key=lambda name: (counts[name] if LEAST else -counts[name], name))
    ranked = [name for name in ranked if counts[name] or LEAST]
    answer = "\n".join(f"{name}: {counts[name]} {PLURAL}{READING}" for name in ranked[:NUMBER])
    tied = [name for name in ranked[NUMBER:] if counts[name] == counts[ranked[NUMBER - 1]]]
    if tied:
        answer += f"\n(As many: {', '.join(tied[:SHOWN])}{' and others' * (len(tied) > SHOWN)}.)"
    answer = answer or f"I could not find {SINGULAR}{READING} in any document."
Final = answer + otherwise
