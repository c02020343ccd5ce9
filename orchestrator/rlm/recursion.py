"""One run of a tree of runs: its box, its history, its journal, and how it ends.

A child has its own box, history, journal and policy. What it may spend is a scope inside its parent's, so the whole
tree shares one ledger; its wall time ends a little before the cell that waits for it would be stopped. Cancelling a run
cancels its children, because each runs in the task of the call that asked for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import anyio
from anyio import to_thread

from orchestrator.context import Context, ContextInfo, describe, lazies
from orchestrator.errors import (
    ContextError,
    JournalError,
    LimitExceededError,
    ModelError,
    ResumeError,
    SandboxError,
    ungrouped,
)
from orchestrator.events import Resumed, RunFinished, RunStarted, Sink
from orchestrator.ledger import Paid, Scope
from orchestrator.metering import Till
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.rlm import prompt
from orchestrator.rlm.children import Children
from orchestrator.rlm.conversation import Conversation
from orchestrator.rlm.direct import answer_directly
from orchestrator.rlm.form import AnswerCheck, AnswerForm
from orchestrator.rlm.history import History
from orchestrator.rlm.loop import Loop, ask_by
from orchestrator.rlm.places import Places
from orchestrator.rlm.result import INTERRUPTED, Outcome, Result
from orchestrator.rlm.sitting import Sitting
from orchestrator.rlm.tree import Tree
from orchestrator.session import GIVEN_UP_S, ChildCall, Session, open_session
from orchestrator.tools import Toolbox
from orchestrator.trajectory.journal import JournalWriter
from orchestrator.trajectory.replay import OnDivergence, Replay
from orchestrator.trajectory.tape import Tape, TapedCell

_INTERRUPTED = Outcome("failed", None, INTERRUPTED)


@dataclass(slots=True)
class Run:
    """One run.

    Attributes:
        tree: what it shares with the others.
        scope: what it may spend; closed by :meth:`complete`.
        policy: what it may do.
        context: the text.
        query: the question.
        id: of the run.
        parent: id of the run that asked for it, or None.
        places: of the boxes of all runs below the first.
        past: what its journal has of it already, when it is resumed.
        origin: as of :class:`~orchestrator.events.RunStarted`.
        form: what the answer must be; None for a text.
        sitting: its place in a session; None for a run of its own.
    """

    tree: Tree
    scope: Scope
    policy: Policy
    context: Context
    query: str
    id: str
    parent: str | None = None
    places: Places = field(default_factory=lambda: Places(0, 0))
    past: Resuming | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    form: AnswerForm | None = None
    sitting: Sitting | None = None
    _journal: JournalWriter | None = None
    _conversation: Conversation | None = None
    _loop: Loop | None = None
    _cells: Session | None = None
    _end: Outcome = _INTERRUPTED

    def __post_init__(self) -> None:
        """Make the places of the tree where this is its first run."""
        if self.parent is None:
            self.places = Places(self.policy.budget.children_alive, self.policy.budget.depth)

    async def complete(self, stop: anyio.Event | None = None) -> Result:
        """Carry it out, once.

        Args:
            stop: when set, the run ends at once with what it has; the reason is then ``interrupted``.

        Raises:
            ContextError: the context is larger than the policy allows.
            JournalError: the journal cannot be made. When it fails later the result says so.
        """
        began = monotonic()
        try:
            info = await self._described()
            async with self._recorded() as recorder:
                self._end = await self._outcome(recorder, info, stop, began)
        finally:
            self.scope.close()
        return self.result

    @property
    def tape(self) -> Tape | None:
        """What its journal has of it already, when it is resumed."""
        return None if self.past is None else self.past.tape

    @property
    def result(self) -> Result:
        """How it went: once :meth:`complete` is over, even by an exception."""
        end = self._end
        return Result(
            status=end.status,
            answer=end.answer,
            reason=end.reason,
            usage=self.scope.usage(),
            journal=None if self._journal is None else self._journal.path,
            turns=self._turns,
            error=end.error,
            run=self.id,
            journal_head="" if self._journal is None else self._journal.head,
            value=end.value,
        )

    def child(self, scope: Scope, policy: Policy, call: ChildCall, identity: str, past: Tape | None) -> Run:
        """Return the run that a call of this one's box asks for; ``past`` is what is recorded of it, where it began."""
        resuming = None if past is None or self.past is None else Resuming(past, self.past.on_divergence)
        return Run(self.tree, scope, policy, call.context, call.query, identity, self.id, self.places, resuming)

    def let_go(self) -> None:
        """Forget what may be large, once the result was taken.

        A run and what it consists of hold one another until they are collected; its text, and the error that it ended
        with, whose traceback holds the text of the call that asked for it, need not wait for that.
        """
        self.context = ""
        self._end = _INTERRUPTED

    async def _outcome(self, recorder: Recorder, info: ContextInfo, stop: anyio.Event | None, began: float) -> Outcome:
        """Carry the run out and record its end, however it comes."""
        outcome = _INTERRUPTED
        try:
            outcome = await self._guarded(recorder, info, stop)
        except ContextError as error:
            outcome = Outcome("failed", None, str(error), error)
            raise
        except BaseException:
            outcome = Outcome("failed", self._said, INTERRUPTED)
            raise
        finally:
            if self._conversation is not None:
                self._conversation.close()
            if isinstance(recorder, Replay):
                self.owe(recorder.unpaid())
            self._end = outcome
            usage, elapsed = self.scope.usage(), monotonic() - began
            end = RunFinished(outcome.status, outcome.answer, outcome.reason, usage, self._turns, elapsed)
            try:
                recorder.emit(end)
            except JournalError as error:
                # The answer is not lost with the record of it, but nobody may take the run for a recorded one.
                outcome = Outcome("failed", outcome.answer, str(error), outcome.error or error)
        return outcome

    async def _guarded(self, recorder: Recorder, info: ContextInfo, stop: anyio.Event | None) -> Outcome:
        try:
            with ungrouped():
                return await self._stoppable(recorder, info, stop)
        except (JournalError, ModelError, SandboxError) as error:
            return Outcome("failed", self._said, str(error), error)

    async def _stoppable(self, recorder: Recorder, info: ContextInfo, stop: anyio.Event | None) -> Outcome:
        outcome = None
        async with anyio.create_task_group() as tasks:
            if stop is not None:
                tasks.start_soon(self._cancel_when_set, stop, tasks.cancel_scope)
            outcome = await self._drive(recorder, info)
            tasks.cancel_scope.cancel()
        return outcome or Outcome("failed", self._said, INTERRUPTED)

    async def _cancel_when_set(self, stop: anyio.Event, scope: anyio.CancelScope) -> None:
        await stop.wait()
        if self.sitting is not None and self._cells is not None:
            await self._cells.quiet()  # a cell that is cancelled costs the box, which the next question is to find
        scope.cancel()

    async def _drive(self, recorder: Recorder, info: ContextInfo) -> Outcome:
        place = {} if self.sitting is None else self.sitting.to_dict()
        started = RunStarted(
            self.query,
            info.to_dict(),
            self.policy.model_dump(mode="json"),
            self.tree.root_model.name,
            self.tree.backing.sub_model.name,
            self.scope.depth,
            self.origin,
            None if self.form is None else self.form.schema,
            tuple(self._tools),
            place,
        )
        recorder.emit(started)
        check = AnswerCheck(self.form)
        if self._reads_directly(info):
            return await self._answer_directly(recorder, check)
        async with self._session(recorder, Children(self, recorder), check) as self._cells:
            limits, wall_s = self.policy.limits, self.policy.budget.wall_s
            *before, most = await to_thread.run_sync(lazies, self._contexts, limits.memory_mb)
            earlier = None
            if self.sitting is not None:
                earlier = await self.sitting.begin(self._cells, limits.cell_timeout_s, before)
            left = self.scope.remaining()
            tag = hashlib.sha256((place.get("id") or self.id).encode()).hexdigest()[:8]
            first = prompt.first(self.query, info, left, tag=tag, lazy_most=most, schema=self._schema, earlier=earlier)
            lazy = next((each for each in (most, *before) if each is not None), None)
            system = prompt.system(self.policy, levels=int(left["depth"]), lazy_most=lazy, tools=self._tools)
            conversation = self._converse(recorder, system, first)
            self._loop = Loop(conversation, self._cells, self.scope, limits, wall_s, recorder, tag, check)
            return await self._loop.run()

    def _session(
        self, recorder: Recorder, children: Children, check: AnswerCheck
    ) -> AbstractAsyncContextManager[Session]:
        backing = self.tree.backing
        return open_session(
            policy=self.policy,
            context=self.context,
            scope=self.scope,
            recorder=recorder,
            backing=backing if self.sitting is None else self.sitting.backing(backing),
            child=children,
            accept=None if self.form is None else check.accept,
            tools=self._tools,
        )

    async def relive(self) -> None:
        """Run the recorded cells of a question once more in its session's box, so that its variables are there again.

        What they ask is answered from the journal alone, and nothing is recorded. A call that was given up with its
        cell has no answer this time either: the cell is stopped again.

        Raises:
            ResumeError: a cell does something else than it did.
            SandboxError: the box did not come up, or is gone.
        """
        if self.past is None:
            raise ValueError("what is not recorded cannot be relived")
        recorder = Replay.of(self.past.tape, (), "stop")
        recorder.otherwise, recorder.live = "on_divergence='fresh'", False
        children = Children(self, recorder)
        try:
            async with self._session(recorder, children, AnswerCheck(self.form)) as cells:
                for cell in self.past.tape.cells.values():
                    if cell.result is not None:
                        await cells.run_cell(cell.code, 0, self._relived_for(cell))
                    if isinstance(cells.fatal, JournalError):
                        raise cells.fatal  # and not a provider's refusal, which is one of the recorded answers
        finally:
            self.scope.close()

    def _relived_for(self, cell: TapedCell) -> float:
        """Return the seconds a cell has; one that was stopped has what it had then, and a little to come as far."""
        most = self.policy.limits.cell_timeout_s
        return min(most, float(cell.result["elapsed_s"]) + GIVEN_UP_S) if cell.result and cell.stopped else most

    async def _answer_directly(self, recorder: Recorder, check: AnswerCheck) -> Outcome:
        message = prompt.direct(self.query, self.context, schema=self._schema).encode("utf-8", "replace").decode()
        conversation = self._converse(recorder, prompt.render("direct_system"), message, cache=False)
        return await answer_directly(conversation, check)

    def _converse(self, recorder: Recorder, system: str, first: str, *, cache: bool = True) -> Conversation:
        self._conversation = Conversation(
            model=self.tree.root_model,
            system=system,
            till=Till(
                self.scope,
                self.tree.backing.prices,
                recorder,
                self.tree.backing.complete,
                self.tree.backing.lane,
                self.policy.models.request_timeout_s,
            ),
            max_tokens=self.policy.models.max_tokens,
            growth_tokens=self.policy.limits.observation_chars,
            ask_by=ask_by(self.scope, self.policy.budget.wall_s),
            cache=cache,
            history_tokens=self.policy.models.history_tokens,
            history=History() if self.sitting is None else self.sitting.history,
        )
        self._conversation.history.ask(recorder.show(0, first))
        return self._conversation

    @asynccontextmanager
    async def _recorded(self) -> AsyncIterator[Recorder]:
        sinks = () if self.tree.sink is None else (self.tree.sink,)
        if self.tree.journal is None:
            yield Recorder(self.id, self.parent, sinks)
            return
        if self.past is None:
            writer = JournalWriter.create(self.tree.journal, self.id, self.scope.recorded, redact=self.tree.redact)
        else:
            writer = await to_thread.run_sync(JournalWriter.append, self.past.tape.path, self.scope.recorded)
            self.scope.recorded(writer.size)
        self._journal = writer
        try:
            if self.past is not None and writer.next_seq != self.past.tape.next_seq:
                raise ResumeError(f"somebody else went on with the run meanwhile: {writer.path}")
            yield self._recorder((writer, *sinks))
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(writer.close)

    def _recorder(self, sinks: tuple[Sink, ...]) -> Recorder:
        if self.past is None:
            return Recorder(self.id, self.parent, sinks)
        tape = self.past.tape
        recorder = Replay.of(tape, sinks, self.past.on_divergence)
        recorder.emit(Resumed(tape.after, self.policy.budget.model_dump(mode="json")))
        recorder.went_live = lambda: self._go_live(tape)
        return recorder

    def _go_live(self, tape: Tape) -> None:
        """Book what earlier parts of the run paid for and what is not played back.

        Raises:
            LimitExceededError: less was left.
        """
        self.owe(tape.unplayed)
        if self.scope.exhausted is not None:
            raise LimitExceededError(self.scope.exhausted, 0)

    def owe(self, unpaid: Iterable[Paid]) -> None:
        """Book what was paid before this part of the run, whatever is left."""
        for paid in unpaid:
            self.scope.owe(paid)

    async def _described(self) -> ContextInfo:
        if self.sitting is not None:
            return self.sitting.contexts[-1]
        return await to_thread.run_sync(describe, self.context)

    def _reads_directly(self, info: ContextInfo) -> bool:
        """Whether the context is so short that the model simply reads it; a session is about its box."""
        short = info.characters < self.policy.models.direct_below_chars
        return short and self.sitting is None and not self._tools

    @property
    def _contexts(self) -> list[Context]:
        return [self.context] if self.sitting is None else self.sitting.lodging.contexts

    @property
    def _tools(self) -> Toolbox:
        return self.tree.tools if self.parent is None else self.tree.child_tools

    @property
    def _schema(self) -> str:
        return "" if self.form is None else self.form.shown

    @property
    def _said(self) -> str | None:
        return None if self._loop is None else self._loop.said

    @property
    def _turns(self) -> int:
        return 0 if self._conversation is None else self._conversation.turns


@dataclass(frozen=True, slots=True)
class Resuming:
    """What a journal has of a run that is resumed.

    Attributes:
        tape: the journal.
        on_divergence: what is done about a cell that does something else this time.
    """

    tape: Tape
    on_divergence: OnDivergence = "stop"
