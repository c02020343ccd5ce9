"""A real text that every machine with Python has: the sources of its standard library, with one line planted in it."""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEAST_BYTES = 10_000_000
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})
_THINGS = [
    f"{adjective} {place}"
    for adjective in ("amber", "crooked", "drowsy", "frozen", "hollow", "northern", "silver", "upper")
    for place in ("bakery", "ferry", "lighthouse", "observatory", "orchard", "quarry", "windmill")
]


@dataclass(frozen=True, slots=True)
class Needle:
    """What was planted.

    Attributes:
        thing: what it is about; nothing else in the text is.
        code: the answer.
        document: where it stands.
    """

    thing: str
    code: str
    document: str


def collect(folder: Path) -> dict[str, str]:
    """Copy the library's sources into ``folder``, and return them by name.

    Where the library is smaller than 10 MB, as some distributions cut it, the installed packages fill it up.
    """
    paths = sysconfig.get_paths()
    documents: dict[str, str] = {}
    size = 0
    for place, prefix in ((paths["stdlib"], ""), (paths["purelib"], "packages/")):
        if size >= LEAST_BYTES:
            break
        for path in _sources(Path(place)):
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue  # a few test files are in old encodings on purpose
            name = prefix + path.relative_to(place).as_posix()
            documents[name] = text
            write(folder, name, text)
            size += len(text.encode())
    return documents


def plant(folder: Path, documents: dict[str, str], chance: random.Random) -> Needle:
    """Add a line with a random code to a random document, on disk and in ``documents``."""
    things = [thing for thing in _THINGS if not any(thing in text for text in documents.values())]
    thing = chance.choice(things)
    code = f"{chance.randrange(16**6):06X}-{chance.randrange(10**4):04}"
    name = chance.choice(sorted(documents))
    lines = documents[name].split("\n")
    # After an empty line, a comment stands by itself and breaks no statement.
    places = [number for number, line in enumerate(lines, 1) if not line] or [len(lines)]
    lines.insert(chance.choice(places), f"# The access code of the {thing} is {code}.")
    documents[name] = "\n".join(lines)
    write(folder, name, documents[name])
    return Needle(thing, code, name)


def write(folder: Path, name: str, text: str) -> None:
    """Write one document byte for byte."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def _sources(place: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(place):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        yield from (Path(root, file) for file in sorted(files) if file.endswith(".py") and not file.startswith("."))
