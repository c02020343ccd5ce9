"""A terminal for tests: what a person would see after the bytes that were written to it.

It knows the sequences the live view may use and no others, so whatever else comes, be it of a stranger's text, is an
error. Like most terminals it breaks the lines it shows anew when it becomes narrower.
"""

from __future__ import annotations

import re

from orchestrator.text import columns

_PIECE = re.compile(
    r"\x1b\[(?P<n>\d*)(?P<move>A)|\x1b\[(?P<erase>[KJ])|\x1b\[\?(?P<mode>7|2026)(?P<on>[hl])|\x1b\[[\d;]*m"
    r"|(?P<control>[\r\n])|(?P<text>[^\x00-\x1f\x7f-\x9f])",
    re.DOTALL,
)


class Terminal:
    """A screen of ``width`` by ``height`` and what has scrolled off it.

    Attributes:
        rows: everything that was ever shown, the screen being the last ``height`` of them.
        frames: what the screen showed at each end of a synchronized update.
        wraps: lines that were broken because they were wider than the screen, outside of any resizing.
    """

    def __init__(self, width: int, height: int = 24) -> None:
        self.width, self.height = width, height
        self.rows = [""]
        self.frames: list[list[str]] = []
        self.wraps = 0
        self._row = self._column = 0
        self._wrap = True

    def write(self, data: str) -> None:
        place = 0
        while place < len(data):
            match = _PIECE.match(data, place)
            if match is None:
                raise AssertionError(f"the terminal was sent {data[place : place + 20]!r}")
            self._take(match)
            place = match.end()

    def resize(self, width: int, height: int | None = None) -> None:
        """Change the size; lines that are too long are broken, as most terminals do."""
        rows: list[str] = []
        for number, row in enumerate(self.rows):
            pieces = [row[start : start + width] for start in range(0, len(row), width)] or [""]
            if number == self._row:
                self._row, self._column = len(rows) + len(pieces) - 1, min(self._column, len(pieces[-1]))
            rows += pieces
        self.rows, self.width, self.height = rows, width, height or self.height

    def screen(self) -> list[str]:
        """Return what is shown, without empty rows at the end."""
        rows = [row.rstrip() for row in self.rows[-self.height :]]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def text(self) -> list[str]:
        """Return everything that was shown and not erased."""
        rows = [row.rstrip() for row in self.rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def _take(self, match: re.Match[str]) -> None:
        if match["move"]:
            top = max(len(self.rows) - self.height, 0)
            self._row = max(self._row - int(match["n"] or 1), top)
        elif match["erase"]:
            self.rows[self._row] = self.rows[self._row][: self._column]
            if match["erase"] == "J":
                del self.rows[self._row + 1 :]
        elif match["mode"] == "7":
            self._wrap = match["on"] == "h"
        elif match["mode"] == "2026" and match["on"] == "l":
            self.frames.append(self.screen())
        elif match["control"] == "\r":
            self._column = 0
        elif match["control"] == "\n":
            self._column = 0  # the line discipline's ONLCR
            self._down()
        elif match["text"]:
            self._put(match["text"])

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")

    def _put(self, character: str) -> None:
        row = self.rows[self._row][: self._column]
        if columns(row) + columns(character) > self.width:
            if not self._wrap:
                return
            self.wraps += 1
            self._column = 0
            self._down()
            row = ""
        self.rows[self._row] = row.ljust(self._column) + character + self.rows[self._row][self._column + 1 :]
        self._column += 1
