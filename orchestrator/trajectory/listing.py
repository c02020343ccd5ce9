"""A run in a line of a list, from the beginning and the end of its journal alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.trajectory.journal import read

_LAST_LINE = 1 << 18  # far more than the end of a run takes: its long texts stand in lines of their own


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a line of a list.

    Attributes:
        run: its id.
        parent: id of the run that started it, or None.
        time: Unix time in seconds at which it began.
        status: how it ended, or ``unfinished``.
        query: the question.
        path: its journal.
        session: of a question of a session, its ``id`` and which ``question`` it is, from 1; None for other runs.
    """

    run: str
    parent: str | None
    time: float
    status: str
    query: str
    path: str
    session: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``journal list --json`` prints it."""
        return {key: value for key, value in asdict(self).items() if key != "parent"}


def summarize(path: Path) -> Summary:
    """Return what a list tells of a journal, from its beginning and its end alone.

    Raises:
        JournalError: it cannot be read, or does not begin as a journal does.
    """
    first = next(read(path), None)
    if first is None or first.kind != "run_started" or not isinstance(first.fields.get("query"), str):
        raise JournalError(f"{path} does not begin with a run")
    status = _last_status(path) or "unfinished"
    session = _place(first.fields.get("session"))
    return Summary(first.run, first.parent, first.time, status, first.fields["query"], str(path), session)


def _place(session: object) -> dict[str, Any] | None:
    if not isinstance(session, dict) or not isinstance(session.get("question"), int):
        return None
    return {"id": str(session.get("id")), "question": session["question"]}


def _last_status(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _LAST_LINE, 0))
            last = file.read().splitlines()[-1]
        data = json.loads(last)
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error
    except (ValueError, IndexError, RecursionError):
        return None  # The line was being written when the process died.
    return str(data.get("status")) if isinstance(data, dict) and data.get("kind") == "run_finished" else None
