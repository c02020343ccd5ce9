"""The code the offline model writes as a root model: plain files, checked like any other, with parameters put in front.

A file has two parts. Above the line :data:`MARK` stand its purpose, the parameters, with examples, and the names that
earlier cells leave in the REPL, imported from the stub ``guest.pyi`` so that linters and type checkers know them. What
goes into the REPL is what stands below the line.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

MARK = "# ---- in the REPL ----\n"
FOLDER = Path(__file__).parent
_PARAMETER = re.compile(r"^([A-Z][A-Z_]*)(?:: [^=\n]+)? = ", re.MULTILINE)


def load(name: str, **parameters: object) -> str:
    """Return the program called ``name`` with its parameters.

    Raises:
        ValueError: the parameters are not exactly those the program names.
    """
    wanted, body = _read(name)
    if set(parameters) != wanted:
        raise ValueError(f"program {name!r} takes {sorted(wanted)}, not {sorted(parameters)}")
    head = "".join(f"{key} = {value!r}\n" for key, value in parameters.items())
    return f"# Step: {name}. {purpose(name)}\n{head}{body}"


def purpose(name: str) -> str:
    """Return what the program called ``name`` is for, in one sentence."""
    return _source(name).split('"""', 2)[1].split("\n", 1)[0]


@cache
def _source(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


@cache
def _read(name: str) -> tuple[frozenset[str], str]:
    head, _, body = _source(name).partition(MARK)
    return frozenset(_PARAMETER.findall(head)), body
