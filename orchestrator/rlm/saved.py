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
from orchestrator.trajectory import following
from orchestrator.trajectory.journal import SUFFIX, read
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
        asked: the highest number of a question so far.
        on_divergence: what is done about a cell that does something else when it is run again: ``stop``, or go on with
            a ``fresh`` box, which has the contexts and no variables.
    """

    id: str
    policy: Policy
    tapes: tuple[Tape, ...]
    cut_off: Tape | None
    contexts: tuple[tuple[Context, ...], ...]
    relived: tuple[Tape, ...]
    asked: int
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
        identity = session_of(path)
        journals = list(_read(path.parent, identity))
        tapes = [tape for _, tape in journals if tape is not None]
        if not tapes:
            raise ResumeError(f"no question of the session {identity} was begun: there is nothing to go on with")
        cut_off = tapes.pop() if tapes[-1].ended is None else None
        tapes = [tape for tape in tapes if tape.ended is not None]
        every = [*tapes, cut_off] if cut_off is not None else tapes
        _check_order(every)
        missing = sorted({name for tape in every for name in tape.started.get("tools", ()) if name not in tools})
        if missing:
            raise ResumeError(f"the session had tools that are not given now: {', '.join(missing)}; RLM(tools=…)")
        policy = recorded_policy(every[-1], settings)
        given = _given(every, contexts)
        asked = journals[-1][0]
        return cls(identity, policy, tuple(tapes), cut_off, given, _relived(tapes), asked, on_divergence)


def session_of(path: Path) -> str:
    """Return the id of the session that a journal is of.

    Raises:
        JournalError: it cannot be read.
        ResumeError: it is of none.
    """
    first = next(iter(read(path)), None)
    if first is None:
        raise JournalError(f"{path} holds no beginning of a run: give the journal of another question of its session")
    if first.parent is not None:
        raise ResumeError(f"{path} is the journal of a child run: give that of the question, {first.parent}")
    identity = following.session_of(first.fields)
    if not identity:
        raise ResumeError(f"{path} is the journal of a run of its own and of no session: `journal resume` takes it up")
    return identity


def _read(folder: Path, identity: str) -> Iterator[tuple[int, Tape | None]]:
    """Yield the number of each question and its tape; None for one that was cut off before its first event."""
    names = {path.stem.removeprefix(f"{identity}-") for path in folder.glob(f"{identity}-*{SUFFIX}")}
    for place, number in enumerate(sorted(int(name) for name in names if name.isdecimal()), 1):
        path = folder / f"{identity}-{place}{SUFFIX}"
        if number != place:
            raise JournalError(f"the journal of question {place} of the session is missing: {path}")
        yield number, _tape(path, identity, number)


def _tape(path: Path, identity: str, number: int) -> Tape | None:
    if next(iter(read(path)), None) is None:
        return None
    tape = Tape.of(path, whole=True)
    tape = tape if tape.ended is not None else Tape.of(path)
    not_redacted(tape)
    if session_of(path) != identity or tape.started["session"]["question"] != number:
        raise JournalError(f"{path} is not of question {number} of the session {identity}")
    return tape


def _check_order(tapes: Sequence[Tape]) -> None:
    head = ""
    for tape in tapes:
        if tape.started["session"]["previous"] != head:
            raise JournalError(f"{tape.path} does not follow on the journal before it: one of them was changed")
        head = tape.head


def _given(tapes: Sequence[Tape], contexts: Sequence[Context]) -> tuple[tuple[Context, ...], ...]:
    """Return the contexts that came with each question, found by their hashes."""
    known = {(info.kind, info.sha256, info.layout): each for each in contexts for info in [describe(check(each))]}
    found: list[tuple[Context, ...]] = []
    before = 0
    for tape in tapes:
        session = tape.started["session"]
        came = [(facts["kind"], facts["sha256"], facts["layout"]) for facts in session["contexts"][before:]]
        before = len(session["contexts"])
        for key in came:
            if key not in known:
                raise ResumeError(
                    f"a context of the session is missing: the one that came with question {session['question']}, a "
                    f"{key[0]} with the hash {key[1][:12]}…"
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
