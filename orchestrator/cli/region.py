"""Lines at the bottom of a terminal that are drawn anew in place, below those that stay.

A frame is one write, and only what differs is sent. It is drawn between the marks of a synchronized update, which
terminals that know them show at once and others ignore, and with automatic wrapping off: a line that a terminal takes
for wider than we do is cut by it, and never moves what stands below. What is switched off is switched on in the same
write, so a process that is killed leaves the terminal as it was.

Sequences are those of ECMA-48 and the DEC private modes 7 (DECAWM) and 2026 (synchronized output).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TextIO

from orchestrator.cli.common import tell
from orchestrator.text import columns, fitted

_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_BEGIN, _END = f"\x1b[?2026h{_NO_WRAP}", f"{_WRAP}\x1b[?2026l"
_TO_LINE_END = "\x1b[K"
_TO_SCREEN_END = "\x1b[J"
_STYLES = {"": "", "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

Line = tuple[tuple[str, str], ...]
"""Pieces of a line, each a style (a key of the table above, or nothing) and cleaned text."""


def line(*pieces: tuple[str, str], width: int) -> Line:
    """Return a line of at most ``width`` columns: what comes first has the room."""
    kept: list[tuple[str, str]] = []
    for style, text in pieces:
        cut = fitted(text, width)
        if cut:
            kept.append((style, cut))
        width -= columns(cut)
    return tuple(kept)


def painted(pieces: Line, *, color: bool) -> str:
    """Return a line as a terminal takes it, every style ended."""
    if not color:
        return "".join(text for _, text in pieces)
    return "".join(f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style else text for style, text in pieces)


@dataclass(slots=True)
class Region:
    """The lines that are drawn anew.

    Attributes:
        stream: the terminal.
        color: whether to use color.
    """

    stream: TextIO | None
    color: bool = False
    _drawn: list[Line] = field(default_factory=list)
    _width: int = 0

    def draw(self, lines: list[Line], width: int, above: str = "") -> None:
        """Show ``lines`` and nothing else of the region; the cursor stays behind the last.

        Args:
            lines: each of at most ``width - 1`` columns, at least one fewer than the terminal has rows.
            width: columns the terminal has now.
            above: whole lines that go above them and stay, ended by newlines.
        """
        narrower = width < self._width
        if lines == self._drawn and not above and not narrower:
            self._width = width
            return
        frame = [self._to_first_row(width)]
        if above or narrower:
            # Lines of the old width may have been broken by the terminal: none of the old rows can be reused.
            frame.append(_TO_SCREEN_END)
            self._drawn = []
        if above:
            frame += [_WRAP, "".join(f"{text}\r\n" for text in above.split("\n")[:-1]), _NO_WRAP]
        frame.append("\r\n".join(self._row(place, pieces) for place, pieces in enumerate(lines[:-1])))
        # The last one is written whatever it was, so that the cursor stands behind it and what is below can go.
        frame += ["\r\n" for _ in lines[1:2]] + [self._written(pieces) for pieces in lines[-1:]]
        frame.append(_TO_SCREEN_END)
        tell(self.stream, f"{_BEGIN}{''.join(frame)}{_END}")
        self._drawn, self._width = list(lines), width

    def clear(self) -> None:
        """Take the lines away; the cursor is then where the first began."""
        if self._drawn:
            self.draw([], self._width)

    def _row(self, place: int, pieces: Line) -> str:
        if place < len(self._drawn) and self._drawn[place] == pieces:
            return ""
        return self._written(pieces)

    def _written(self, pieces: Line) -> str:
        # Emptied from its first column on, and not from the end of the text: tmux, when it breaks lines anew, counts
        # cells that were only erased at the end as part of the line.
        return _TO_LINE_END + painted(pieces, color=self.color)

    def _to_first_row(self, width: int) -> str:
        """Return what moves the cursor to the beginning of the first row that the region takes now.

        A terminal that has become narrower breaks the lines it shows (most do), so one may take several rows. Rows
        that have left the screen because it became lower are out of reach: they stay, as part of what has scrolled.
        """
        if not self._drawn:
            return "\r"
        rows = [max(-(-sum(columns(text) for _, text in pieces) // max(width, 1)), 1) for pieces in self._drawn]
        up = sum(rows) - 1
        return f"\r\x1b[{up}A" if up else "\r"
