"""A session as its journals have it: what it takes to go on with it.

Every question has a journal of its own, and they lie side by side. Of those that have an end the root model's history
is read, and the cells that the last box saw are run again in a fresh one, with the recorded answers: nothing is asked
or paid again. A question that was cut off, and not gone on with before another was asked, counts for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from orchestrator.context import Context, check, describe
from orchestrator.errors import JournalError, ResumeError
from orchestrator.events import KEPT
from orchestrator.policy import Policy
from orchestrator.rlm.resume import not_redacted, recorded_policy
from orchestrator.trajectory.journal import SUFFIX
from orchestrator.trajectory.tape import Tape

OnDivergence = Literal["stop", "fresh"]


@dataclass(frozen=True, slots=True)
class Saved:
    """A session that can go on.

    Attributes:
        id: of the session.
        policy: of its last question, with what was set for those to come.
        tapes: of the questions that have an end, oldest first.
        cut_off: of the question behind them that has none, or None.
        contexts: for each of the tapes, and then the one that was cut off, the contexts that came with its question.
        relived: those of the tapes that tell of the box that the next question is to find.
        on_divergence: what is done about a cell that does something else when it is run again: ``stop``, or go on with
            a ``fresh`` box, which has the contexts and no variables.
    """

    id: str
    policy: Policy
    tapes: tuple[Tape, ...]
    cut_off: Tape | None
    contexts: tuple[tuple[Context, ...], ...]
    relived: tuple[Tape, ...]
    on_divergence: OnDivergence = "stop"

    @classmethod
    def of(
        cls,
        path: Path,
        contexts: Sequence[Context],
        *,
        tools: Collection[str] = (),
        settings: Sequence[str] = (),
        on_divergence: OnDivergence = "stop",
    ) -> Self:
        """Read the journals of a session.

        Args:
            path: of one of them.
            contexts: all that the session has, in any order.
            tools: names of the host's functions that there are.
            settings: ``table.key=value`` assignments to the session's policy.
            on_divergence: as above.

        Raises:
            JournalError: a journal cannot be read, or is not the one that the next question followed on.
            ResumeError: they are no session's, or redacted; or a context or tool is missing.
            PolicyError: a setting is wrong.
        """
        identity = _session_of(Tape.of(path), path)
        tapes = list(_read(path.parent, identity))
        cut_off = tapes.pop() if tapes[-1].ended is None else None
        tapes = [tape for tape in tapes if tape.ended is not None]
        every = [*tapes, cut_off] if cut_off is not None else tapes
        _check_order(every)
        missing = sorted({name for tape in every for name in tape.started.get("tools", ()) if name not in tools})
        if missing:
            raise ResumeError(f"the session had tools that are not given now: {', '.join(missing)}; RLM(tools=…)")
        policy = recorded_policy(every[-1], settings)
        given = _given(every, contexts)
        return cls(identity, policy, tuple(tapes), cut_off, given, _relived(tapes), on_divergence)


def _session_of(tape: Tape, path: Path) -> str:
    session = tape.started.get("session") or {}
    if not session:
        raise ResumeError(f"{path} is the journal of a run of its own and of no session: `journal resume` takes it up")
    return str(session["id"])


def _read(folder: Path, identity: str) -> Iterator[Tape]:
    number = 1
    while (path := folder / f"{identity}-{number}{SUFFIX}").exists():
        tape = Tape.of(path, whole=True)
        if tape.ended is None:
            tape = Tape.of(path)
        not_redacted(tape)
        if _session_of(tape, path) != identity or tape.started["session"]["question"] != number:
            raise JournalError(f"{path} is not of question {number} of the session {identity}")
        yield tape
        number += 1
    if number == 1:
        raise JournalError(f"the journal of the session's first question is missing: {folder / identity}-1{SUFFIX}")


def _check_order(tapes: Sequence[Tape]) -> None:
    head = ""
    for tape in tapes:
        if tape.started["session"]["previous"] != head:
            raise JournalError(
                f"{tape.path} does not follow on the journal before it: that one was changed, or is missing"
            )
        head = tape.head


def _given(tapes: Sequence[Tape], contexts: Sequence[Context]) -> tuple[tuple[Context, ...], ...]:
    """Return the contexts that came with each question, found by their hashes."""
    known = {(info.kind, info.sha256): context for context in contexts for info in [describe(check(context))]}
    found: list[tuple[Context, ...]] = []
    before = 0
    for tape in tapes:
        session = tape.started["session"]
        came = [(facts["kind"], facts["sha256"]) for facts in session["contexts"][before:]]
        before = len(session["contexts"])
        for kind, sha256 in came:
            if (kind, sha256) not in known:
                raise ResumeError(
                    f"a context of the session is missing: the one that came with question {session['question']}, a "
                    f"{kind} with the hash {sha256[:12]}…"
                )
        found.append(tuple(known[key] for key in came))
    return tuple(found)


def _relived(tapes: Sequence[Tape]) -> tuple[Tape, ...]:
    """Return the last questions that had the box that is to be there again; none where it was lost."""
    found: list[Tape] = []
    for tape in tapes:
        if tape.boxes:
            found = [*found, tape] if tape.boxes[0].lent else [tape]
            if tape.boxes[-1].closed != KEPT:
                found = []
    return tuple(found)
