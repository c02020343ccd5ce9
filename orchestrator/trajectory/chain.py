"""The hash chain of a journal: each event's line ends with a hash over everything since the event before, and its hash.

Who changes, removes, inserts or moves a line breaks the chain there. Who writes the whole file anew can make a chain
that fits: against that helps only its last value, kept elsewhere.
"""

from __future__ import annotations

import hashlib
import re

# The last key of the last object of an event: what a line is hashed without.
_KEY = b',"chain":"'
_END = b'"}\n'
_HEX = re.compile(rb"[0-9a-f]{64}")
_SEAL = len(_KEY) + 64 + len(_END)


class Chain:
    """Goes along a journal, portion by portion, as it is written or read.

    The value of an event is SHA-256 over that of the event before (its 32 bytes; nothing for the first) and over all
    bytes from the end of that event's line to where the value itself stands.

    Attributes:
        head: the value of the last event, in hexadecimal; empty before the first.
    """

    def __init__(self, head: str = "") -> None:
        """Begin behind the event whose value is ``head``, or at the beginning of a file."""
        self.head = head
        self._running = hashlib.sha256(bytes.fromhex(head))

    def copy(self) -> Chain:
        """Return another one that stands at the same place."""
        twin = Chain(self.head)
        twin._running = self._running.copy()
        return twin

    def update(self, data: bytes) -> None:
        """Take in bytes of lines that carry no value of their own."""
        self._running.update(data)

    def seal(self) -> bytes:
        """Return what ends the line of an event, whose bytes but for its closing brace were taken in."""
        self._begin(self._running.hexdigest())
        return _KEY + self.head.encode() + _END

    def check(self, line: bytes) -> bool:
        """Tell whether the value that ends ``line`` is right, and go on behind it as if it were.

        A line without a value is taken in, and is right as long as no event before it had one.
        """
        told = sealed(line)
        if told is None:
            self._running.update(line)
            return not self.head
        self._running.update(memoryview(line)[:-_SEAL])
        right = self._running.hexdigest() == told
        self._begin(told)
        return right

    def _begin(self, head: str) -> None:
        self.head = head
        self._running = hashlib.sha256(bytes.fromhex(head))


def sealed(line: bytes) -> str | None:
    """Return the chain value that ends an event's line, in hexadecimal, or None when it has none."""
    if not line.endswith(_END) or not line[-_SEAL:].startswith(_KEY):
        return None
    value = line[-_SEAL + len(_KEY) : -len(_END)]
    return value.decode() if _HEX.fullmatch(value) else None
