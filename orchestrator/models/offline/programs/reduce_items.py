"""I merge the lists."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import gap, replies

STOP_WORDS: frozenset[str] = frozenset()
NUMERIC = False

# ---- in the REPL ----
import re
from collections import Counter
from decimal import Decimal

found: Counter[str] = Counter()
strays = 0
for reply in replies.values():
    for item, times in reply.items() if isinstance(reply, dict) else ():
        if type(times) is int and times > 0:
            found[item] += times
        else:
            strays += 1
for word in STOP_WORDS:
    found.pop(word, None)

values: dict[Decimal, int] = {}
if NUMERIC:
    for item, times in found.items():
        # In 1.234,56 the comma is the decimal sign.
        european = re.search(r"-?\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)", item)
        number = european.group().replace(".", "").replace(",", ".") if european else item
        digits = re.search(r"-?[\d,]{1,60}(?:\.\d{1,40})?", number)
        if digits and re.search(r"\d", digits.group()):
            value = Decimal(digits.group().replace(",", ""))
            values[value] = values.get(value, 0) + times
draft = ", ".join(f"{item} ({times})" for item, times in found.most_common(10))
print(len(found), "different,", found.total(), "in all; strays:", strays, gap())
print("most often:", found.most_common(5))
print("nothing found" if not found else "")
