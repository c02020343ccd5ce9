"""Puts the page together: template, style, script and data in one file that loads nothing and may run nothing else.

Three things keep a stranger's text from acting in the browser of whoever opens the page, each enough by itself: the
data is JSON in which no character of markup is left; the script writes text nodes and never parses markup; and the
page's own content security policy allows one script and one style sheet, by their hashes, no request to anywhere, and
(Trusted Types) no sink that would make markup or code of a string.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.text import json_text, one_line, printable
from orchestrator.trajectory.html.fold import fold

SCRIPTS = ("text.js", "list.js", "timeline.js", "record.js", "find.js", "main.js")
"""Parts of the one script, in order; they share one scope."""

_MARKUP = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_ENTITIES = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;", "'": "&#39;"})
_TITLE_CHARS = 80


def render(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the page of the run in the journal ``path``, and the data in it (see :func:`.fold.fold`).

    Raises:
        JournalError: the journal cannot be read, or has no run at its beginning.
    """
    data = fold(path)
    run = data["runs"][0]
    title = one_line(data["texts"][run["query"]], _TITLE_CHARS)
    style, script = _part("page.css"), _script()
    parts = {
        "policy": _policy(script, style),
        "title": escaped(f"{title} · rlm-sandbox {run['id']}"),
        "made": escaped(f"rlm-sandbox {_version()}"),
        "style": style,
        "data": _embedded(data, path),
        "script": script,
    }
    # One pass: what is put in is not searched for places again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _part("page.html"))
    return page, data


def escaped(text: str) -> str:
    """Return ``text``, cleaned of what hides or reorders, fit for HTML text and for attributes in quotation marks."""
    return printable(text).translate(_ENTITIES)


def _embedded(data: dict[str, Any], path: Path) -> str:
    """Return ``data`` as JSON for a script element: what hides is escaped, and no character of markup is left."""
    try:
        text = json_text(data)
    except ValueError as error:
        raise JournalError(f"{path} holds a number that is not finite") from error
    for character, escape in _MARKUP.items():
        text = text.replace(character, escape)
    return text


def _script() -> str:
    return "(() => {\n'use strict';\n" + "\n".join(map(_part, SCRIPTS)) + "\n})();\n"


def _policy(script: str, style: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _part(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _version() -> str:
    try:
        return version("rlm-sandbox")
    except PackageNotFoundError:
        return "from source"
