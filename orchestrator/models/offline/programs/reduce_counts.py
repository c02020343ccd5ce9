"""I add the numbers up, and count terms once more in code, as a check and in other readings."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import QUESTIONS, documents, gap, replies, tasks, unread

TERMS: tuple[str, ...] = ()
EVERY = False
WHOLE_WORD = True
IGNORE_CASE = True
KIND = "count"

# ---- in the REPL ----
import re
from collections import Counter

partial: list[Counter[str]] = [Counter() for _ in QUESTIONS]
strays = 0
for index, reply in replies.items():
    number, piece = tasks[index]
    inside = {name for name, _, _ in piece}
    for name, times in reply.items() if isinstance(reply, dict) else ():
        if name in inside and type(times) is int and times >= 0:
            partial[number][name] += times
        else:
            strays += 1


def join(numbers: list[int]) -> int:
    return 0 if EVERY and not all(numbers) else sum(numbers)


def recount(*, whole: bool, alike: bool) -> Counter[str]:
    again: Counter[str] = Counter()
    for name, text in documents.items():
        folded = text.lower() if alike else text
        numbers = []
        for term in TERMS:
            word = term.lower() if alike else term
            if not whole or word not in folded:
                numbers.append(folded.count(word))
                continue
            before = r"(?<!\w)" if re.match(r"\w", word) else ""
            after = r"(?!\w)" if re.search(r"\w$", word) else ""
            numbers.append(len(re.findall(before + re.escape(word) + after, folded)))
        again[name] = join(numbers)
    return again


def having(table: Counter[str]) -> int:
    return sum(1 for times in table.values() if times)


def measure(table: Counter[str]) -> str:
    if KIND == "top_documents":
        return max(table, key=table.__getitem__)
    return str(having(table) if KIND in ("count_documents", "which_documents") else table.total())


counts: Counter[str] = Counter({name: join([table[name] for table in partial]) for name in documents})
otherwise = "" if TERMS else gap()
print("by sub-calls:", counts.total(), "in", having(counts), "of", len(documents), "documents; strays:", strays, gap())
if TERMS:
    checked = recount(whole=WHOLE_WORD, alike=IGNORE_CASE)
    print("by code:     ", checked.total(), "in", having(checked), "documents; same everywhere:", checked == counts)
    if checked != counts:
        part = " of the part that the budget allowed" if unread else ""
        otherwise = f"\n(Counted by code; sub-calls gave {counts.total()} in {having(counts)} documents{part}.)"
        counts = checked
    for whole, alike, reading in ((False, False, "anywhere, as written"), (True, True, "as a whole word, in any case")):
        table = recount(whole=whole, alike=alike)
        if (whole, alike) != (WHOLE_WORD, IGNORE_CASE) and measure(table) != measure(counts):
            otherwise += f"\n(Counted {reading}: {measure(table)}.)"
draft = f"{counts.total()} in {having(counts)} of {len(documents)} documents"
print("most:", counts.most_common(3))
