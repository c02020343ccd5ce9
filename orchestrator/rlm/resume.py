"""What it takes to go on with a run that was cut off, or that ended at a limit.

The run's journal is its past: a fresh box is given the context, the recorded cells are run in it again, their sub-calls
are answered from the journal, and the run goes on live where the record ends. Nothing is asked or paid twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.context import Context, describe
from orchestrator.errors import ConfigurationError, PolicyError, ResumeError
from orchestrator.policy import Policy
from orchestrator.rlm.form import AnswerForm, FormError
from orchestrator.rlm.result import Result
from orchestrator.trajectory.journal import REDACTED
from orchestrator.trajectory.tape import Tape


@dataclass(frozen=True, slots=True)
class Resumable:
    """A run that can go on.

    Attributes:
        tape: its past.
        policy: its own, with what was set for the rest of it.
        query: its question.
        form: what its answer must be, by the JSON Schema that is recorded; None for a text.
    """

    tape: Tape
    policy: Policy
    query: str
    form: AnswerForm | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run has its answer. One that answered because a budget ended goes on where it now has more."""
        ended = self.tape.ended
        if ended is None or ended["status"] != "answered":
            return False
        reason, tape = ended["reason"], self.tape
        now = self.policy.budget.model_dump().get(reason, 0)
        had = {**tape.started["policy"].get("budget", {}), **tape.budget, "wall_s": tape.elapsed_s}
        return bool(now <= had.get(reason, now))

    @property
    def rest(self) -> Policy:
        """The policy for what is still to come: its wall time is what is left."""
        left = max(self.policy.budget.wall_s - self.tape.elapsed_s, 1.0)
        budget = self.policy.budget.model_copy(update={"wall_s": left})
        return self.policy.model_copy(update={"budget": budget})

    @classmethod
    def of(cls, path: Path, settings: Sequence[str] = ()) -> Resumable:
        """Read a journal.

        Args:
            path: of the journal.
            settings: ``table.key=value`` assignments to the run's own policy.

        Raises:
            JournalError: it cannot be read, or is damaged.
            ResumeError: it is redacted; or it is a child's, whose parent is to be resumed, or a session's.
            PolicyError: a setting is wrong.
            ConfigurationError: the run has had its wall time, and it was not raised.
        """
        tape = Tape.of(path)
        if tape.parent is not None:
            raise ResumeError(f"{path} is the journal of a child run: resume its parent, {tape.parent}")
        not_redacted(tape)
        if session := tape.started.get("session"):
            raise ResumeError(
                f"{path} is question {session['question']} of a session, which goes on as a whole: rlm-sandbox chat "
                f"--resume {session['id']}; from Python, RLM.resume_session takes it up"
            )
        found = cls(tape, recorded_policy(tape, settings), tape.started["query"], form_of(tape))
        if not found.is_over:
            found.check_time()
        return found

    def check_time(self) -> None:
        """Check that some of the wall time is left.

        Raises:
            ConfigurationError: there is none.
        """
        wall_s = self.policy.budget.wall_s
        if wall_s <= self.tape.elapsed_s:
            raise ConfigurationError(
                f"the run has had its {wall_s:g} s: give it more with --set budget.wall_s={2 * wall_s:g}"
            )

    def check(self, context: Context, tools: Collection[str] = ()) -> None:
        """Check that a context is the run's own, and that the tools it had are there.

        Raises:
            ResumeError: it is another one, or one is missing.
        """
        missing = [name for name in self.tape.started.get("tools", ()) if name not in tools]
        if missing:
            told = ", ".join(missing)
            raise ResumeError(f"the run had tools that are not given now: {told}; from Python, RLM(tools=…) gives them")
        then, now = self.tape.started["context"], describe(context)
        same = then["sha256"] == now.sha256 and then["kind"] == now.kind
        if not same or then.get("layout", now.layout) != now.layout:
            raise ResumeError(
                f"the context is another one: this is a {now.kind} of {now.characters:,} characters, and the run's was "
                f"a {then['kind']} of {then['characters']:,}"
            )


def not_redacted(tape: Tape) -> None:
    """Check that a journal holds what was said.

    Raises:
        ResumeError: it does not.
    """
    if tape.started.get(REDACTED) is True:
        raise ResumeError(f"{tape.path} is redacted: what was said in its run is not there to go on with")


def recorded_policy(tape: Tape, settings: Sequence[str] = ()) -> Policy:
    """Return a run's own policy, with what is set now.

    Raises:
        PolicyError: a setting is wrong.
    """
    try:
        return Policy.from_data(tape.started["policy"], source=str(tape.path)).override(list(settings))
    except PolicyError as error:
        raise PolicyError(f"the run's policy, from its journal: {error}") from error


def form_of(tape: Tape) -> AnswerForm | None:
    """Return what the answer of a run must be."""
    schema = tape.started.get("schema")
    return None if schema is None else AnswerForm(schema)


def _value(form: AnswerForm, answer: str) -> Any:
    try:
        return form.value(answer)
    except FormError:
        return None  # the type it was checked against then took what its schema does not say


def result_of(tape: Tape) -> Result:
    """Return the result of a run that is over, from its journal."""
    ended, form = tape.ended or {}, form_of(tape)
    return Result(
        status=ended["status"],
        answer=ended["answer"],
        reason=ended["reason"],
        usage=ended["usage"],
        journal=tape.path,
        turns=ended["turns"],
        run=tape.run,
        journal_head=tape.head,
        value=_value(form, ended["answer"]) if form and ended["status"] == "answered" else None,
    )
