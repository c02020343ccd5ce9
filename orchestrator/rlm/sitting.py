"""What a question of a session finds, and leaves to the next: the box, the history, the contexts, the last answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.context import ContextInfo
from orchestrator.errors import SandboxGoneError
from orchestrator.rlm.history import History
from orchestrator.rlm.lodging import Lodging
from orchestrator.rlm.prompt import Earlier
from orchestrator.rlm.result import Result
from orchestrator.session import Backing, Session

# Cells of the question before may have left these, which would answer this one.
CLEAR = 'for _ in ("Final", "draft"): globals().pop(_, None)'


@dataclass(slots=True)
class Sitting:
    """One question's place in its session.

    Attributes:
        session: id of the session.
        question: which question it is, from 1.
        lodging: has the box.
        history: of the session, which the question goes on with.
        contexts: facts of all contexts, oldest first.
        last: how the question before ended; None for the first.
    """

    session: str
    question: int
    lodging: Lodging
    history: History
    contexts: Sequence[ContextInfo]
    last: Result | None = None

    def backing(self, backing: Backing) -> Backing:
        """Return what stands behind the box's calls, with the session's box in the place of one of its own."""
        return replace(backing, open_box=self.lodging.lend)

    def to_dict(self) -> dict[str, Any]:
        """Return what the journal tells of it."""
        return {
            "id": self.session,
            "question": self.question,
            "previous": "" if self.last is None else self.last.journal_head,
            "contexts": [{"kind": info.kind, "sha256": info.sha256, "layout": info.layout} for info in self.contexts],
        }

    async def begin(self, cells: Session, timeout: float, lazy: Sequence[int | None]) -> Earlier | None:
        """Clear away what the question before left for its end; return what this one is told of those before.

        Args:
            cells: of the box.
            timeout: seconds for that.
            lazy: of the earlier contexts, as of :func:`orchestrator.context.lazies`.

        Raises:
            JournalError: that cannot be recorded.
        """
        kept = False
        if cells.cell:
            with suppress(SandboxGoneError):
                kept = not (await cells.run_cell(CLEAR, 0, timeout)).state_lost
        last = self.last
        if last is None:
            return None
        older = [(info, most is not None) for info, most in zip(self.contexts[:-1], lazy, strict=True)]
        return Earlier(self.question, older, kept, last.status, last.answer, last.reason)
