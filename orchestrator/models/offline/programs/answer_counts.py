"""The numbers are in: I put the answer together."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import counts, documents, many, otherwise

KIND = "count"
SINGULAR = 'the word "X"'
PLURAL = 'occurrences of the word "X"'
ONE = 'occurrence of the word "X"'
READING = ""
NUMBER = 1
LEAST = False
NEGATE = False
GUESSED = ""

# ---- in the REPL ----
SHOWN = 5

total = counts.total()
with_it = [name for name in documents if counts[name]]
chosen = [name for name in documents if not counts[name]] if NEGATE else with_it
where = "" if len(documents) == 1 else f", in {len(with_it)} of {many(len(documents), 'document')}"
one = len(chosen) == 1
verb = ("does not contain" if one else "do not contain") if NEGATE else ("contains" if one else "contain")
if KIND == "count":
    answer = f"{many(total, ONE, PLURAL)}{READING}{where}."
    if GUESSED:
        answer = f"I cannot tell what counts as {GUESSED}; I counted the word. {answer}"
elif KIND == "count_documents":
    answer = f"{len(chosen)} of {many(len(documents), 'document')} {verb} {SINGULAR}{READING}."
elif KIND == "which_documents":
    answer = f"{len(chosen)} of {many(len(documents), 'document')} {verb} {SINGULAR}{READING}"
    answer += ":\n" + "\n".join(chosen) if chosen else "."
elif KIND == "yes_no":
    yes, no = ("No, it is there", "Right") if NEGATE else ("Yes", "No")
    found_it = f"{yes}: {many(total, ONE, PLURAL)}{READING}{where}."
    answer = found_it if total else f"{no}: I could not find {SINGULAR}{READING}."
else:
    ranked = sorted(documents, key=lambda name: (counts[name] if LEAST else -counts[name], name))
    ranked = [name for name in ranked if counts[name] or LEAST]
    answer = "\n".join(f"{name}: {many(counts[name], ONE, PLURAL)}{READING}" for name in ranked[:NUMBER])
    tied = [name for name in ranked[NUMBER:] if counts[name] == counts[ranked[NUMBER - 1]]]
    if tied:
        answer += f"\n(As many: {', '.join(tied[:SHOWN])}{' and others' * (len(tied) > SHOWN)}.)"
    answer = answer or f"I could not find {SINGULAR}{READING} in any document."
Final = answer + otherwise
