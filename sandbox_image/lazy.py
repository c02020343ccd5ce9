"""A context that is too large to be held: read from its file as it is asked for, with the words of ``str``.

The file lies in the box's memory as UTF-8. A ``str`` of it would be a second copy, of up to four bytes a character;
what is here keeps an index of a few bytes for each 64 KiB, and makes a ``str`` of what is asked for alone. Like all of
the kernel's process it is in the hands of model code, and trusted by nobody.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from mmap import mmap
from typing import Any, overload

BLOCK = 1 << 16
# Bytes searched in one step: a call that cannot be interrupted takes a hundredth of a second.
STEP = 1 << 24
# Characters a regular expression is searched in at a time.
WINDOW = 1 << 22
# Characters a match may look at on either side of where it begins; twice of them are searched beyond each step.
REACH = 1 << 16
_NAMES = "slices (a slice is a str), len, in, find, rfind, index, count, startswith, endswith, lines(), parts(sep), "
_NAMES += "search, finditer and findall (with a pattern first, as of re)"


class Match:
    """What :meth:`LazyText.finditer` found: as of ``re``, with positions in the whole text and no hold on it."""

    __slots__ = ("_groups", "_names", "_spans", "lastgroup", "lastindex")

    def __init__(self, match: re.Match[str], offset: int) -> None:
        self._groups = (match.group(), *match.groups())
        self._spans = tuple((a + offset, b + offset) if a >= 0 else (-1, -1) for a, b in match.regs)
        self._names = match.re.groupindex
        self.lastindex, self.lastgroup = match.lastindex, match.lastgroup

    def group(self, *groups: int | str) -> Any:
        """Return one group, or a tuple of several."""
        found = tuple(self._groups[self._number(group)] for group in groups or (0,))
        return found[0] if len(found) == 1 else found

    def __getitem__(self, group: int | str) -> Any:
        """Return a group."""
        return self._groups[self._number(group)]

    def groups(self, default: Any = None) -> tuple[Any, ...]:
        """Return all groups."""
        return tuple(default if group is None else group for group in self._groups[1:])

    def groupdict(self, default: Any = None) -> dict[str, Any]:
        """Return the named groups."""
        return {name: default if self[name] is None else self[name] for name in self._names}

    def span(self, group: int | str = 0) -> tuple[int, int]:
        """Return where a group begins and ends, in characters."""
        return self._spans[self._number(group)]

    def start(self, group: int | str = 0) -> int:
        """Return where a group begins."""
        return self.span(group)[0]

    def end(self, group: int | str = 0) -> int:
        """Return where a group ends."""
        return self.span(group)[1]

    def _number(self, group: int | str) -> int:
        number = self._names[group] if isinstance(group, str) and group in self._names else group
        if not isinstance(number, int) or not 0 <= number < len(self._groups):
            raise IndexError("no such group")
        return number

    def __repr__(self) -> str:
        """Tell span and text."""
        return f"<match span={self.span()}, match={self._groups[0][:60]!r}>"


class LazyText:
    """A text in a file, with the ways of ``str`` that do not need all of it at once.

    Args:
        data: the file.
        start: where the text begins in it, in bytes.
        end: where it ends.
        most: bytes of which a ``str`` may be made in one step; a longer slice is a MemoryError.
    """

    def __init__(self, data: mmap, start: int, end: int, most: int) -> None:
        self._data = data
        self._most = most
        # Where each block begins, in bytes of the file and in characters of the text. All of it is looked at once.
        self._bytes, self._chars = array("Q", [start]), array("Q", [0])
        while self._bytes[-1] < end:
            stop = min(self._bytes[-1] + BLOCK, end)
            while stop < end and data[stop] & 0xC0 == 0x80:  # noqa: PLR2004 - a byte that continues a character
                stop -= 1
            piece = data[self._bytes[-1] : stop]
            self._chars.append(self._chars[-1] + (len(piece) if piece.isascii() else len(str(piece, "utf-8"))))
            self._bytes.append(stop)

    def __len__(self) -> int:
        """Return the number of characters."""
        return self._chars[-1]

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> str: ...
    def __getitem__(self, key: int | slice) -> str:
        """Return a character or a slice, as a ``str``."""
        if isinstance(key, slice):
            wanted = range(*key.indices(len(self)))
            if not wanted:
                return ""
            low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
            text = self._checked(self._byte(low), self._byte(high + 1))
            return text if wanted.step == 1 else text[wanted[0] - low :: wanted.step]
        index = key.__index__()
        if not -len(self) <= index < len(self):
            raise IndexError("string index out of range")
        return self._text(index % len(self), index % len(self) + 1)

    def __iter__(self) -> Iterator[str]:
        """Yield the characters, like a ``str``; :meth:`lines` yields the lines."""
        for text in self._pieces():
            yield from text

    def __contains__(self, part: object) -> bool:
        """Return whether ``part`` is in it."""
        if not isinstance(part, str):
            raise TypeError(f"'in <text>' requires string as left operand, not {type(part).__name__}")
        return self.find(part) >= 0

    def find(self, part: str, start: int | None = None, end: int | None = None) -> int:
        """Return where ``part`` is found first, or -1."""
        low, high = self._range(start, end)
        if low > high:
            return -1
        found = next(self._occurrences(_encoded(part), self._byte(low), self._byte(high)), -1)
        return -1 if found < 0 else self._char(found)

    def rfind(self, part: str, start: int | None = None, end: int | None = None) -> int:
        """Return where ``part`` is found last, or -1."""
        low, high = self._range(start, end)
        if low > high:
            return -1
        if not part:
            return high
        found = self._data.rfind(_encoded(part), self._byte(low), self._byte(high))
        return -1 if found < 0 else self._char(found)

    def index(self, part: str, start: int | None = None, end: int | None = None) -> int:
        """Return where ``part`` is found first, or raise ValueError."""
        found = self.find(part, start, end)
        if found < 0:
            raise ValueError("substring not found")
        return found

    def rindex(self, part: str, start: int | None = None, end: int | None = None) -> int:
        """Return where ``part`` is found last, or raise ValueError."""
        found = self.rfind(part, start, end)
        if found < 0:
            raise ValueError("substring not found")
        return found

    def count(self, part: str, start: int | None = None, end: int | None = None) -> int:
        """Return how often ``part`` is found, without overlaps."""
        low, high = self._range(start, end)
        if low > high:
            return 0
        if not part:
            return high - low + 1
        sought, first, last = _encoded(part), self._byte(low), self._byte(high)
        if any(sought.startswith(sought[cut:]) for cut in range(1, len(sought))):
            return sum(1 for _ in self._occurrences(sought, first, last))
        more = len(sought) - 1  # no two of them overlap: each is counted in the step in which it begins
        return sum(self._data[at : min(at + STEP + more, last)].count(sought) for at in range(first, last, STEP))

    def startswith(self, part: str | tuple[str, ...], start: int | None = None, end: int | None = None) -> bool:
        """Return whether it begins with ``part``, or one of several."""
        low, high = self._range(start, end)
        parts = part if isinstance(part, tuple) else (part,)
        return low <= high and any(len(one) <= high - low and self._text(low, low + len(one)) == one for one in parts)

    def endswith(self, part: str | tuple[str, ...], start: int | None = None, end: int | None = None) -> bool:
        """Return whether it ends with ``part``, or one of several."""
        low, high = self._range(start, end)
        parts = part if isinstance(part, tuple) else (part,)
        return low <= high and any(len(one) <= high - low and self._text(high - len(one), high) == one for one in parts)

    def lines(self, keepends: bool = False) -> Iterator[str]:  # noqa: FBT001, FBT002 - as str.splitlines has it
        """Yield the lines, as ``str.splitlines`` returns them."""
        waiting: list[str] = []
        for text in self._pieces(whole=True):
            for line in text.splitlines(keepends=True):
                waiting.append(line)
                if line.splitlines()[0] != line:
                    whole = "".join(waiting)
                    waiting.clear()
                    yield whole if keepends else whole.splitlines()[0]
        if waiting:
            yield "".join(waiting)

    def parts(self, separator: str) -> Iterator[str]:
        """Yield what stands between separators, as ``str.split`` with one returns it."""
        sought, begin = _encoded(separator), self._bytes[0]
        if not sought:
            raise ValueError("empty separator")
        for found in self._occurrences(sought, begin, self._bytes[-1]):
            yield self._checked(begin, found)
            begin = found + len(sought)
        yield self._checked(begin, self._bytes[-1])

    def finditer(self, pattern: str | re.Pattern[str], flags: int = 0) -> Iterator[Match]:
        """Yield the matches of a regular expression, as ``re.finditer`` does.

        The text is searched in steps. What decides on a match, its own text included, has to lie within 65,536
        characters of where it begins; a match that runs on beyond what is looked at is a ValueError.
        """
        compiled = re.compile(pattern, flags)
        begin, size = 0, len(self)
        while begin <= size:
            low, stop = max(begin - REACH, 0), min(begin + WINDOW, size)
            high = min(stop + 2 * REACH, size)
            for match in compiled.finditer(self._text(low, high), begin - low):
                start, end = match.start() + low, match.end() + low
                if start >= stop and stop < size:
                    break
                if end == high < size and end - start > REACH:
                    raise ValueError(f"a match of {pattern!r} is longer than {REACH:,} characters: narrow the pattern")
                yield Match(match, low)
                begin = end
            if stop == size:
                return
            begin = max(begin, stop)

    def findall(self, pattern: str | re.Pattern[str], flags: int = 0) -> list[Any]:
        """Return what ``re.findall`` would; see :meth:`finditer`."""
        found = self.finditer(pattern, flags)
        return [match.group() if not match.groups() else _one_or_all(match.groups("")) for match in found]

    def search(self, pattern: str | re.Pattern[str], flags: int = 0) -> Match | None:
        """Return the first match, or None; see :meth:`finditer`."""
        return next(self.finditer(pattern, flags), None)

    def __repr__(self) -> str:
        """Tell what it is; the text itself is never made whole."""
        return f"<text of {len(self):,} characters, read from its file; it begins {self[:60]!r}>"

    def __getattr__(self, name: str) -> Any:
        """Say what there is in place of what ``str`` has besides."""
        told = f"a text this large has no {name!r}. It has {_NAMES}" if hasattr(str, name) else f"no attribute {name!r}"
        raise AttributeError(told)

    # Bytes and characters -------------------------------------------------------------------------------------------

    def _range(self, start: int | None, end: int | None) -> tuple[int, int]:
        """Return the range as ``str.find`` understands it: negative counts from the end, what is beyond is cut."""
        size = len(self)
        high = size if end is None else min(end, size) if end >= 0 else max(end + size, 0)
        low = 0 if start is None else start if start >= 0 else max(start + size, 0)
        return low, high

    def _byte(self, index: int) -> int:
        """Return where in the file the character of that number begins."""
        block = min(bisect_right(self._chars, index), len(self._chars) - 1) - 1
        if block < 0:
            return self._bytes[0]
        begin, more = self._bytes[block], index - self._chars[block]
        piece = self._data[begin : self._bytes[block + 1]]
        return begin + (more if piece.isascii() else len(str(piece, "utf-8")[:more].encode()))

    def _char(self, offset: int) -> int:
        """Return the number of the character that begins there in the file."""
        block = bisect_right(self._bytes, offset) - 1
        return self._chars[block] + len(str(self._data[self._bytes[block] : offset], "utf-8"))

    def _text(self, low: int, high: int) -> str:
        return str(self._data[self._byte(low) : self._byte(high)], "utf-8")

    def _checked(self, begin: int, end: int) -> str:
        """Return what lies there in the file, if it may become a ``str``."""
        if end - begin > self._most:
            raise MemoryError(f"a str of {end - begin:,} bytes of the text is too large; take {self._most:,} at most")
        return str(self._data[begin:end], "utf-8")

    def _occurrences(self, sought: bytes, begin: int, end: int) -> Iterator[int]:
        """Yield where in the file ``sought`` begins, without overlaps."""
        while begin + len(sought) <= end:
            stop = min(begin + STEP, end)
            found = self._data.find(sought, begin, min(stop + len(sought) - 1, end)) if sought else begin
            if found < 0:
                begin = stop
            else:
                yield found
                begin = found + max(len(sought), 1)
            if found < 0 and stop == end:
                return

    def _pieces(self, *, whole: bool = False) -> Iterator[str]:
        """Yield the text in pieces; ``whole`` ends none between the two characters of one line's end."""
        block, last, held = 0, len(self._bytes) - 1, ""
        while block < last:
            stop = min(block + 16, last)
            text = held + str(self._data[self._bytes[block] : self._bytes[stop]], "utf-8")
            held = "\r" if whole and stop < last and text.endswith("\r") else ""
            yield text[: len(text) - len(held)]
            block = stop


class LazyList(Sequence[Any]):
    """Documents in a file: each a ``str`` that is made when it is asked for, or a :class:`LazyText`.

    Args:
        data: the file.
        spans: where each begins and ends, in bytes.
        most: bytes of the largest that becomes a ``str``.
    """

    def __init__(self, data: mmap, spans: Sequence[tuple[int, int]], most: int) -> None:
        self._data = data
        self._spans = spans
        self._most = most
        self._large: dict[tuple[int, int], LazyText] = {}

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._spans)

    def __getitem__(self, key: int | slice) -> Any:
        """Return a document, or several of them as another list of this kind."""
        if isinstance(key, slice):
            return LazyList(self._data, self._spans[key], self._most)
        begin, end = span = self._spans[key]
        if end - begin <= self._most:
            return str(self._data[begin:end], "utf-8")
        if span not in self._large:
            self._large[span] = LazyText(self._data, begin, end, self._most)
        return self._large[span]

    def __repr__(self) -> str:
        """Tell what it is."""
        return f"<list of {len(self):,} documents, each read from its file when it is asked for>"


class LazyDict(Mapping[str, Any]):
    """Documents by name, as :class:`LazyList` has them."""

    def __init__(self, names: Sequence[str], documents: LazyList) -> None:
        self._documents = documents
        self._numbers = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._numbers)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a document of that name; none is read for it."""
        return name in self._numbers

    def __getitem__(self, name: str) -> Any:
        """Return a document."""
        return self._documents[self._numbers[name]]

    def __repr__(self) -> str:
        """Tell what it is."""
        return f"<dict of {len(self):,} documents by name, each read from its file when it is asked for>"


def _encoded(part: str) -> bytes:
    # A lone surrogate is in no text that came as UTF-8; so are these bytes.
    return part.encode("utf-8", "surrogatepass")


def _one_or_all(groups: tuple[Any, ...]) -> Any:
    return groups[0] if len(groups) == 1 else groups
