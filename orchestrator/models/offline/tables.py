"""Reading a text as a table whose first line names the columns: comma-separated values and their kin."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator

_DELIMITERS = ",;\t|"
_HEADER = re.compile(r"[A-Za-z_][\w .()%/$€-]{0,60}")
_SAMPLE = 5


def read(text: str) -> tuple[list[str], Iterator[list[str]]] | None:
    """Return the names of the columns and the rows, or None if the text is no table."""
    lines = [line.replace("\r", " ") for line in text.split("\n") if line.strip()]
    for delimiter in _DELIMITERS:
        if len(lines) > 1 and delimiter in lines[0]:
            head, *sample = [*_rows(lines[: _SAMPLE + 1], delimiter)] or [[""]]
            names = [name.strip() for name in head]
            if all(map(_HEADER.fullmatch, names)) and all(len(row) == len(names) for row in sample):
                return names, _rows(lines[1:], delimiter)
    return None


def _rows(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    # A quotation mark that is never closed makes one field of all that follows, and too long a field is an error.
    with contextlib.suppress(csv.Error):
        yield from csv.reader(lines, delimiter=delimiter)


def column(name: str, text: str) -> list[str] | None:
    """Return the cells of the column called ``name``, or None if there is none."""
    table = read(text)
    if table is None:
        return None
    places = [place for place, head in enumerate(table[0]) if same(head, name)]
    return [row[places[0]].strip() for row in table[1] if len(row) > places[0]] if places else None


def same(head: str, name: str) -> bool:
    """Whether a column's name is the one asked for, in the singular or in the plural."""
    plain = [re.sub(r"[\s_-]+", " ", text.lower()).removesuffix("s") for text in (head, name)]
    return plain[0] == plain[1]
