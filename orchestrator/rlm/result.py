"""How a run ends, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from orchestrator.errors import LimitExceededError, RlmSandboxError
from orchestrator.events import LimitReached
from orchestrator.ledger import Scope
from orchestrator.text import head_and_tail

# Of an answer in the representation of its result. asyncio takes that of a finished task in passing.
_REPR_CHARS = 1000

# Why a run ended that somebody stopped or cancelled.
INTERRUPTED = "interrupted"

Status = Literal["answered", "no_answer", "limit", "failed"]


def limit_reached(limit: LimitExceededError, scope: Scope) -> LimitReached:
    """Return the event that a run was ended by ``limit``, with what would give it more."""
    more = "" if scope.depth else more_of(limit.reason, scope.given())
    return LimitReached(limit.reason, limit.limit, more)


def more_of(reason: str, given: Mapping[str, int | float]) -> str:
    """Return the setting with which a run has twice the budget that ended it; nothing when that was none."""
    return f"--set budget.{reason}={2 * given[reason] or 1}" if reason in given else ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the loop ended.

    Attributes:
        status: as of :class:`Result`.
        answer: as of :class:`Result`.
        reason: as of :class:`Result`.
        error: as of :class:`Result`.
        value: as of :class:`Result`.
    """

    status: Status
    answer: str | None
    reason: str = ""
    error: RlmSandboxError | None = None
    value: Any = None


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """How a run ended.

    Attributes:
        status: ``answered``: the model set ``Final``; ``no_answer``: it stopped working on one; ``limit``: a budget
            ended the run; ``failed``: the sandbox, a model's provider or the journal did, or somebody interrupted it.
            A run with a ``schema`` whose answers did not have its form is ``no_answer`` with the reason ``wrong_form``.
        answer: the answer; of a run that was not ``answered``, the best partial answer there is, or None.
        reason: what ended a run that was not ``answered``: the policy key of a budget, or a word or sentence. For one
            that was, empty, or the budget whose end made the model answer.
        usage: what was spent, child runs included, as :meth:`orchestrator.ledger.Scope.usage` has it.
        journal: the run's journal; None if none was asked for.
        turns: replies of the root model.
        error: what made it fail, if it did.
        run: id of the run.
        journal_head: the last value of its journal's hash chain; kept elsewhere it shows whether the journal is still
            the same (``journal verify --head``). Empty without a journal.
        value: the object that the answer is, where a ``schema`` was given and the run ``answered``: of the type
            that was given, or plain data. Else None.
    """

    status: Status
    answer: str | None
    reason: str
    usage: dict[str, Any]
    journal: Path | None
    turns: int
    error: RlmSandboxError | None = None
    run: str = ""
    journal_head: str = ""
    value: Any = None

    def __repr__(self) -> str:
        """Return the fields as any dataclass has them, but of a long answer the ends."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        shown["answer"] = None if self.answer is None else head_and_tail(self.answer, _REPR_CHARS)
        shown["value"] = head_and_tail(repr(self.value), _REPR_CHARS)
        return f"Result({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``rlm-sandbox run --json`` prints it.

        ``error`` is there where the status is ``failed``: the name of the exception's type, None when there was none.
        """
        data: dict[str, Any] = {
            "status": self.status,
            "answer": self.answer,
            "reason": self.reason,
            "usage": self.usage,
            "journal": None if self.journal is None else str(self.journal),
            "journal_head": self.journal_head or None,
            "turns": self.turns,
            "run": self.run,
            "value": to_jsonable_python(self.value, by_alias=True),
        }
        if self.status == "failed":
            data["error"] = None if self.error is None else type(self.error).__name__
        return data

    def _repr_html_(self) -> str:
        """Return a small table for a notebook, in which every text is escaped and none is rendered."""
        from orchestrator.trajectory.html.summary import summary

        return summary(
            run=self.run,
            status=self.status,
            answer=self.answer,
            reason=self.reason,
            turns=self.turns,
            usage=self.usage,
            journal="" if self.journal is None else str(self.journal),
        )
