"""The loop: ask the root model, run its code, show it what came of that, until ``Final`` is set or a limit is reached.

A run ends in one of these ways, and always with the best answer there is:

- the box handed over ``Final``, or the whole reply was ``FINAL(...)``: answered;
- a budget does not allow another turn: the model is told, and has one last turn where one was kept back for it. What it
  sets there is the answer. Otherwise the partial answer is, in this order: what that reply said in words, the variable
  ``draft`` in the box, what the model said last. Words beside code say what the code is for, so they are never one;
- the model stopped working: replies without code, turn after turn in which all code fails, a refusal, answers that do
  not have the form asked for;
- the box, a provider or the journal failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import anyio

from orchestrator.errors import (
    JournalError,
    LimitExceededError,
    ModelError,
    ModelUnavailableError,
    RlmSandboxError,
    SandboxError,
)
from orchestrator.events import Observed
from orchestrator.kernel.result import ExecutionResult
from orchestrator.ledger import Scope
from orchestrator.models.base import ModelReply
from orchestrator.policy import Limits
from orchestrator.recording import Recorder
from orchestrator.rlm import prompt
from orchestrator.rlm.conversation import Conversation
from orchestrator.rlm.form import WRONG_FORM, AnswerCheck
from orchestrator.rlm.parse import ParsedReply, parse_reply
from orchestrator.rlm.result import Outcome, Status, limit_reached

# Blocks of one reply that are run: each adds a line to the observation, whatever it prints.
MAX_BLOCKS = 32
# Replies without code, one after another, that end a run: each was answered with a reminder.
MAX_CODELESS = 3
# Turns, one after another, whose code failed: a model that learns nothing from so many errors will not from more.
MAX_FAILED = 8
HINT_AFTER_FAILED = 3
# Of a run's wall time, kept for the last turn, and of that for fetching `draft` from the box.
LAST_TURN_SHARE, LAST_TURN_MOST_S = 0.1, 60.0
DRAFT_SHARE, DRAFT_MOST_S = 0.02, 5.0
_FETCH_DRAFT = 'Final = globals().get("draft")'


class Cells(Protocol):
    """What the loop needs of a session (:class:`orchestrator.session.Session`)."""

    @property
    def cell(self) -> int:
        """Number of the last cell; 0 before the first."""

    @property
    def final(self) -> str | None:
        """The answer, once the box handed it over."""

    @property
    def fatal(self) -> RlmSandboxError | None:
        """Why the run must stop, if it must."""

    async def run_cell(self, code: str, turn: int, timeout: float) -> ExecutionResult:
        """Run one cell for at most ``timeout`` seconds."""


def ask_by(scope: Scope, wall_s: float) -> float:
    """Return when a root model's last word is due, so that time remains to fetch what the box holds."""
    return scope.deadline - min(DRAFT_SHARE * wall_s, DRAFT_MOST_S)


@dataclass(slots=True)
class Loop:
    """Drives one run in an open box.

    Attributes:
        conversation: with the root model; it has its first message.
        cells: the box.
        scope: the run's budgets.
        limits: of the run's policy.
        wall_s: seconds the run may last in all.
        recorder: the run's events.
        tag: as of :func:`orchestrator.rlm.prompt.first`.
        check: judges answers; that of the box is judged as it is handed over.
    """

    conversation: Conversation
    cells: Cells
    scope: Scope
    limits: Limits
    wall_s: float
    recorder: Recorder
    tag: str
    check: AnswerCheck = field(default_factory=lambda: AnswerCheck(None))
    _codeless: int = 0
    _failed: int = 0
    _said: str = ""

    @property
    def said(self) -> str | None:
        """What the model said last in a reply without code: the partial answer when there is no other."""
        return self._said or None

    async def run(self) -> Outcome:
        """Take turns until the run ends.

        Raises:
            JournalError: what happens cannot be recorded.
        """
        try:
            while True:
                outcome = await self._turn()
                if outcome is not None:
                    return outcome
        except LimitExceededError as limit:
            return await self._guarded_last_turn(limit)
        except (ModelError, SandboxError) as error:
            return await self._after(error)

    async def _turn(self) -> Outcome | None:
        if anyio.current_time() >= self._work_by:
            raise LimitExceededError("wall_s", max(self.scope.deadline - anyio.current_time(), 0.0))
        reply = await self._ask()
        parsed = parse_reply(reply.text, complete=reply.stop_reason == "end")
        self._said = _words(parsed) or self._said
        if reply.stop_reason in {"refusal", "context_window"}:
            return await self._partial("no_answer", f"the root model stopped with {reply.stop_reason}")
        if parsed.final_text is not None:
            return await self._said_final(parsed.final_text)
        blocks = _blocks(parsed)
        if not blocks:
            return await self._remind(parsed, reply)
        return await self._run_blocks(blocks, parsed, reply)

    async def _ask(self) -> ModelReply:
        try:
            return await self.conversation.ask()
        except ModelUnavailableError as error:
            # The deadline ended the request or its retries: it is the limit that is to be reported.
            if anyio.current_time() >= self.conversation.ask_by:
                raise LimitExceededError("wall_s", 0.0) from error
            raise

    async def _remind(self, parsed: ParsedReply, reply: ModelReply) -> Outcome | None:
        self._codeless += 1
        if self._codeless >= MAX_CODELESS:
            return await self._partial("no_answer", f"{self._codeless} replies in a row held no code")
        notes = prompt.reply_notes(parsed, complete=reply.stop_reason == "end")
        self._show(prompt.no_code(notes, remaining=MAX_CODELESS - self._codeless))
        return None

    async def _run_blocks(self, blocks: tuple[str, ...], parsed: ParsedReply, reply: ModelReply) -> Outcome | None:
        self._codeless = 0
        ran = await self._execute(blocks[:MAX_BLOCKS])
        if self.cells.final is not None:
            return self._answered(self.cells.final)
        if self.check.exhausted:
            return self._wrong_form()
        failed = not ran[-1][1].ok
        self._failed = self._failed + 1 if failed else 0
        if self._failed >= MAX_FAILED:
            return await self._partial("no_answer", f"the code of {self._failed} turns in a row failed")
        unrun, complete = len(blocks) - len(ran), reply.stop_reason == "end"
        notes = prompt.reply_notes(parsed, complete=complete, unrun=unrun, failed=failed)
        if self._failed >= HINT_AFTER_FAILED:
            notes.append(prompt.failing(self._failed))
        turn, left, limit = self.conversation.turns, self.scope.remaining(), self.limits.observation_chars
        self._show(prompt.observation(ran, notes, turn=turn, left=left, limit=limit, tag=self.tag))
        return None

    async def _execute(self, blocks: tuple[str, ...]) -> list[tuple[int, ExecutionResult]]:
        """Run ``blocks`` in order until one fails, sets ``Final`` (to what is refused, even), or no time is left."""
        ran: list[tuple[int, ExecutionResult]] = []
        wrong = self.check.wrong
        for code in blocks:
            now = anyio.current_time()
            left = (self._work_by if now < self._work_by else self.conversation.ask_by) - now
            if left <= 0:
                raise LimitExceededError("wall_s", 0.0)
            result = await self.cells.run_cell(code, self.conversation.turns, min(self.limits.cell_timeout_s, left))
            ran.append((self.cells.cell, result))
            if self.cells.fatal is not None:
                raise self.cells.fatal
            if self.cells.final is not None or not result.ok or self.check.wrong > wrong:
                break
        return ran

    async def _said_final(self, text: str) -> Outcome | None:
        complaint = await self.check.complaint(text)
        if not complaint:
            return self._answered(text)
        if self.check.exhausted:
            return self._wrong_form()
        self._show(prompt.wrong_form(complaint))
        return None

    def _answered(self, text: str, reason: str = "") -> Outcome:
        return Outcome("answered", text, reason, value=self.check.value)

    def _wrong_form(self) -> Outcome:
        return Outcome("no_answer", self.check.last, WRONG_FORM)

    def _show(self, text: str) -> None:
        self.conversation.say(self.recorder.show(self.conversation.turns, text))

    @property
    def _work_by(self) -> float:
        """When the time that is kept for the last turn begins."""
        return self.scope.deadline - min(LAST_TURN_SHARE * self.wall_s, LAST_TURN_MOST_S)

    # How a run ends without an answer -------------------------------------------------------------------------------

    async def _guarded_last_turn(self, limit: LimitExceededError) -> Outcome:
        try:
            return await self._last_turn(limit)
        except LimitExceededError:
            return await self._partial("limit", limit.reason)
        except (ModelError, SandboxError) as error:
            return await self._after(error)

    async def _last_turn(self, limit: LimitExceededError) -> Outcome:
        self.recorder.emit(limit_reached(limit, self.scope))
        notice = prompt.last_turn(limit.reason)
        reply = None
        if anyio.current_time() < self.conversation.ask_by:
            self.recorder.emit(Observed(self.conversation.turns, notice))
            reply = await self._ask_last(notice)
        if reply is None:
            return await self._partial("limit", limit.reason)
        parsed = parse_reply(reply.text, complete=reply.stop_reason == "end")
        if parsed.final_text is not None:
            if await self.check.complaint(parsed.final_text):
                return await self._partial("limit", limit.reason)
            return self._answered(parsed.final_text, limit.reason)
        blocks = _blocks(parsed)
        if not blocks:
            return await self._partial("limit", limit.reason, words=_words(parsed))
        await self._execute(blocks[:MAX_BLOCKS])
        if self.cells.final is not None:
            return Outcome("answered", self.cells.final, limit.reason)
        return await self._partial("limit", limit.reason)

    async def _ask_last(self, notice: str) -> ModelReply | None:
        try:
            return await self.conversation.ask_last(notice)
        except ModelError:
            # The limit is why the run ends; that its last courtesy found no answer changes nothing.
            return None

    async def _after(self, error: RlmSandboxError) -> Outcome:
        outcome = await self._partial("failed", str(error))
        return Outcome("failed", outcome.answer, outcome.reason, error)

    async def _partial(self, status: Status, reason: str, words: str = "") -> Outcome:
        """End with the best answer there is: ``words``, the box's ``draft``, or what the model said last."""
        answer = words or await self._draft() or self.check.last or self._said or None
        return Outcome(status, answer, reason)

    async def _draft(self) -> str | None:
        self.check.partial = True
        left = min(self.scope.deadline - anyio.current_time(), DRAFT_MOST_S)
        if left > 0 and self.cells.cell > 0 and not isinstance(self.cells.fatal, JournalError):
            try:
                await self.cells.run_cell(_FETCH_DRAFT, 0, left)
            except SandboxError:
                return None  # the box is gone, and the draft with it
        return self.cells.final


def _words(parsed: ParsedReply) -> str:
    """Return the prose of a reply without code, even half a block of it; beside code there is none that counts."""
    return "" if parsed.blocks or parsed.cut else parsed.prose


def _blocks(parsed: ParsedReply) -> tuple[str, ...]:
    return (f'FINAL_VAR("{parsed.final_var}")',) if parsed.final_var is not None else parsed.blocks
