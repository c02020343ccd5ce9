"""The text is a table: code reads its columns exactly, and no sub-call is needed."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import documents, many, tables

COLUMN = "amount"
NOUN = "labelled numbers"
KIND = "sum"

# ---- in the REPL ----
import csv
import io
import re
from decimal import Decimal


def plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.lower()).removesuffix("s")


csv.field_size_limit(2**31 - 1)  # a quotation mark that is never closed makes one field of all that follows
numbers: list[Decimal] = []
rows = skipped = 0
for name, (columns, delimiter) in tables.items():
    lines = io.StringIO(documents[name].replace("\r", " ").lstrip("\n"))
    reader = csv.reader(lines, delimiter=delimiter or ",")
    records = [row for row in reader if row][1:] if columns else []
    rows += len(records)
    places = [place for place, column in enumerate(columns) if plain(column) == plain(COLUMN)]
    for row in records if places else ():
        cell = row[places[0]].strip() if len(row) > places[0] else ""
        if re.fullmatch(r"[$€£]? ?-?\d{1,3}(?:\.\d{3})*,\d{1,2}", cell):
            cell = cell.replace(".", "").replace(",", ".")
        digits = re.fullmatch(r"[$€£]? ?([-+]?[\d,]{1,30}(?:\.\d{1,30})?) ?[$€£%]?", cell)
        if digits and re.search(r"\d", digits[1]):
            numbers.append(Decimal(digits[1].replace(",", "")))
        else:
            skipped += 1

names = list(dict.fromkeys(column for columns, _ in tables.values() for column in columns))
if NOUN == "rows":
    draft = f"{many(rows, 'row')} below the line that names the columns." if names else ""
elif NOUN == "columns":
    draft = (f"{many(len(names), 'column')}: " + ", ".join(names)) if names else ""
elif numbers:
    total = sum(numbers, Decimal(0))
    exact = {"sum": total, "smallest": min(numbers), "largest": max(numbers)}.get(KIND, total / len(numbers))
    draft = f'{exact:f} (the {KIND} of {many(len(numbers), "number")} in the column "{COLUMN}")'
    draft += f"\n({many(skipped, 'row')} had no number there.)" if skipped else ""
else:
    draft = f'I could not find any number in the column "{COLUMN}".'
draft = draft or f"I see no table with named columns in this text, so I cannot count {NOUN}."
print(draft[:500])
