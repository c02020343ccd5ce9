"""The examples of a document: found, run as a reader would run them, and what they print compared with what is shown.

A ``console`` block holds commands (lines that begin with ``$ ``) and what each prints. A ``python`` block is a program,
and a ``text`` block right behind it is what that prints. A ``toml`` block whose first line is ``# NAME.toml`` is that
file. In what is shown, ``…`` stands for what differs from time to time: within a line for a part of it, alone on a line
for any number of lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# A hang bound, not a measure: a snippet takes a second or two.
_HANG_S = 120
_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<source>.*?)^```\n(?:\s*^```text\n(?P<shown>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_FILE = re.compile(r"# ([\w-]+\.toml)\n")
_PERSONAL = ("ANTHROPIC", "OPENAI", "XDG_", "JUPYTER", "IPYTHON", "OTEL", "RLM_")


class DocumentError(Exception):
    """A block of a document is of no kind that can be run."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """One example.

    Attributes:
        kind: what ``source`` is: a Python program, a command, or a file.
        source: the text.
        shown: what the document says that it prints; None where it says nothing.
        name: of a file.
    """

    kind: Literal["python", "command", "file"]
    source: str
    shown: str | None = None
    name: str = ""


def sections(document: str) -> dict[str, list[Snippet]]:
    """Return the examples of a document by the second-level heading above them; those before the first under ``""``.

    Raises:
        DocumentError: a block would not be run.
    """
    parts = re.split(r"^## (.+)\n", document, flags=re.MULTILINE)
    titles = ["", *parts[1::2]]
    return {title: list(_snippets(text)) for title, text in zip(titles, parts[::2], strict=True)}


def _snippets(text: str) -> Iterator[Snippet]:
    blocks = list(_BLOCK.finditer(text))
    if sum(2 + 2 * (block["shown"] is not None) for block in blocks) != len(re.findall("^```", text, re.MULTILINE)):
        raise DocumentError("a block has no end")
    for block in blocks:
        language, source, shown = block["language"], block["source"], block["shown"]
        if language == "python":
            yield Snippet("python", source, shown)
        elif shown is not None or language not in ("console", "toml"):
            raise DocumentError(f"nothing runs a block of {language or 'no language'}: {source[:80]!r}")
        elif language == "console":
            yield from _commands(source)
        else:
            named = _FILE.match(source)
            if named is None:
                raise DocumentError(f"the first line of a toml block is its name: {source[:80]!r}")
            yield Snippet("file", source, name=named[1])


def _commands(source: str) -> Iterator[Snippet]:
    if not source.startswith("$ "):
        raise DocumentError(f"a console block begins with a command: {source[:80]!r}")
    for command in _COMMAND.finditer(source):
        yield Snippet("command", command[1], command[2])


def run(snippet: Snippet, folder: Path, home: Path) -> str:
    """Carry a snippet out in ``folder``, by somebody who has the folder ``home`` and no key; return what it prints."""
    if snippet.kind == "file":
        (folder / snippet.name).write_text(snippet.source, encoding="utf-8")
        return ""
    command = [sys.executable, "-c"] if snippet.kind == "python" else ["bash", "-c"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PERSONAL)}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(home),
    }
    done = subprocess.run(
        [*command, snippet.source],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_HANG_S,
    )
    return done.stdout


def agrees(printed: str, shown: str) -> bool:
    """Tell whether a program printed what is shown, from the first line to the last."""
    lines = (r"(?:.*\n)*?" if line == "…" else f"{_line(line)}\n" for line in shown.splitlines())
    whole = f"{printed}\n" if printed and not printed.endswith("\n") else printed
    return re.fullmatch("".join(lines), whole) is not None


def _line(shown: str) -> str:
    return ".*?".join(re.escape(part) for part in shown.split("…"))
