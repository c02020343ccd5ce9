"""Whether a question of a session follows on the one before: the head of that one's journal is what this one tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.text import one_line
from orchestrator.trajectory.journal import RUN_ID, SUFFIX
from orchestrator.trajectory.reading import read

_WORD_CHARS = 80


def session_of(started: Mapping[str, Any]) -> str:
    """Return the id of the session that a run is a question of, by its first event; empty for a run of its own.

    It becomes a part of the names of files: what no session of ours is called is none.
    """
    session = started.get("session")
    identity = session.get("id") if isinstance(session, dict) else None
    return identity if isinstance(identity, str) and RUN_ID.fullmatch(identity) else ""


def following(path: Path, run: str, session: dict[str, Any], note: Callable[[str], None]) -> Iterator[str]:
    """Yield what is wrong with a journal's place in its session.

    Args:
        path: of the journal.
        run: its id.
        session: what its ``run_started`` tells.
        note: takes what could not be checked, and why.
    """
    identity, question, previous = (session.get(key) for key in ("id", "question", "previous"))
    if not isinstance(identity, str) or type(question) is not int or not isinstance(previous, str):
        yield "its place in a session is not of this format"
        return
    if run != f"{identity}-{question}" or not RUN_ID.fullmatch(run):
        told = one_line(f"question {question} of session {identity}", _WORD_CHARS)
        yield f"is of run {one_line(run, _WORD_CHARS)}, which cannot be {told}"
        return
    for number in range(question - 1, 0, -1):
        before = path.parent / f"{identity}-{number}{SUFFIX}"
        if not before.exists():
            note(f"the journal of question {number} is not beside it: whether this one follows on that was not checked")
            return
        try:
            head, ended = _end_of(before)
        except JournalError as error:
            yield f"follows on a journal that cannot be read: {error}"
            return
        if head == previous:
            return
        if ended:
            yield f"does not follow on the journal of question {number}: that one's head is another than is told here"
            return
        # A question that was cut off, and not gone on with, is passed over by the one behind it.
    if previous:
        yield "tells of a question before it, and there is none that it follows on"


def _end_of(path: Path) -> tuple[str, bool]:
    """Return the last value of a journal's hash chain, and whether its run has an end."""
    head, ended = "", False
    for record in read(path):
        head, ended = record.chain, record.kind == "run_finished"
    return head, ended
