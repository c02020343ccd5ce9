"""I add the numbers up, and count terms once more in code, as a check and in other readings."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import QUESTIONS, documents, gap, many, replies, tasks, unread

TERMS: tuple[str, ...] = ()
EVERY = False
WHOLE_WORD = True
IGNORE_CASE = True
KIND = "count"
UNIT = "occurrences"
RELATION = "contains"

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


def holds(line: str, term: str, *, whole: bool) -> bool:
    if RELATION == "starts":
        return line.startswith(term)
    if RELATION == "ends":
        return line.endswith(term)
    if RELATION == "is":
        return line == term
    return bool(pattern(term, whole=whole).search(line)) if whole else term in line


def pattern(term: str, *, whole: bool) -> re.Pattern[str]:
    before = r"(?<!\w)" if whole and re.match(r"\w", term) else ""
    after = r"(?!\w)" if whole and re.search(r"\w$", term) else ""
    return re.compile(before + re.escape(term) + after)


def lines_with(text: str, terms: list[str], *, whole: bool) -> int:
    join_terms = all if EVERY else any
    lines = (line for line in text.split("\n") if RELATION == "is" or any(term in line for term in terms))
    return sum(join_terms(holds(line, term, whole=whole) for term in terms) for line in lines)


def recount(*, whole: bool, alike: bool) -> Counter[str]:
    again: Counter[str] = Counter()
    for name, text in documents.items():
        folded = text.lower() if alike else text
        words = [term.lower() if alike else term for term in TERMS]
        if UNIT == "lines":
            again[name] = lines_with(folded, words, whole=whole)
            continue
        again[name] = join(
            [
                len(pattern(word, whole=whole).findall(folded)) if whole and word in folded else folded.count(word)
                for word in words
            ]
        )
    return again


def having(table: Counter[str]) -> int:
    return sum(1 for times in table.values() if times)


def measure(table: Counter[str]) -> str:
    if KIND == "top_documents":
        return max(table, key=table.__getitem__)
    return str(having(table) if KIND in ("count_documents", "which_documents") else table.total())


counts: Counter[str] = Counter({name: join([table[name] for table in partial]) for name in documents})
otherwise = "" if TERMS else gap()
print("by sub-calls:", counts.total(), "in", having(counts), "of", many(len(documents), "document"), "strays:", strays)
if TERMS:
    checked = recount(whole=WHOLE_WORD, alike=IGNORE_CASE)
    print(
        "by code:     ",
        checked.total(),
        "in",
        many(having(checked), "document") + "; same everywhere:",
        checked == counts,
    )
    if checked != counts:
        part = " of the part that the budget allowed" if unread else ""
        otherwise = f"\n(Counted by code; sub-calls gave {counts.total()} in {many(having(counts), 'document')}{part}.)"
        counts = checked
    others = ((False, False, "anywhere, as written"), (True, True, "as a whole word, in any case"))
    for whole, alike, reading in others if UNIT == "occurrences" else ():
        table = recount(whole=whole, alike=alike)
        if (whole, alike) != (WHOLE_WORD, IGNORE_CASE) and measure(table) != measure(counts):
            otherwise += f"\n(Counted {reading}: {measure(table)}.)"
draft = f"{counts.total()} in {having(counts)} of {many(len(documents), 'document')}"
print("most:", counts.most_common(3))
