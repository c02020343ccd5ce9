"""Several questions in a row, in one box and with one memory: ``RLM.session()``.

Each question is a run: with a budget of its own, a journal of its own, and a result. What they share is the box, so
that variables stay, and the root model's history, so that it knows what was asked and answered before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Self

import anyio
from anyio import to_thread
from anyio.from_thread import BlockingPortal

from orchestrator.context import Context, ContextInfo, Taken, describe
from orchestrator.errors import ConfigurationError, JournalError, ResumeError
from orchestrator.events import Sink
from orchestrator.interpreter import room_for
from orchestrator.ledger import Scope
from orchestrator.policy import Policy
from orchestrator.rlm.form import AnswerForm
from orchestrator.rlm.history import History
from orchestrator.rlm.lodging import Lodging
from orchestrator.rlm.question import checked
from orchestrator.rlm.recursion import Resuming, Run
from orchestrator.rlm.result import Result
from orchestrator.rlm.resume import Resumable, form_of, recorded_policy, result_of
from orchestrator.rlm.saved import OnDivergence, Saved
from orchestrator.rlm.sitting import Sitting
from orchestrator.rlm.stream import RunStream, both, streamed
from orchestrator.rlm.tree import Tree
from orchestrator.trajectory.tape import Tape

# A question that is to end by itself interrupts its cell, which takes the ladder's 2 s at most.
STOP_S = 5.0


class AsyncDialogue:
    """A session: questions that are answered one after another, in one box. Made by :meth:`RLM.asession` alone.

    Attributes:
        id: of the session; its runs are ``<id>-1``, ``<id>-2`` and so on.
        policy: of each question.
        results: of the questions so far, oldest first.
    """

    def __init__(self, tree: Tree, policy: Policy, identity: str, lodging: Lodging, origin: dict[str, Any]) -> None:
        self.id = identity
        self.policy = policy
        self.results: tuple[Result, ...] = ()
        self._tree = tree
        self._lodging = lodging
        self._origin = origin
        self._history = History()
        self._infos: list[ContextInfo] = []
        self._taken = Taken()
        self._asked = 0
        self._cut_off: Tape | None = None
        self._broken: JournalError | None = None
        self._one = anyio.Lock()
        self._over = False
        self._lost = False

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, tree: Tree, policy: Policy, identity: str, origin: dict[str, Any], saved: Saved | None = None
    ) -> AsyncIterator[Self]:
        """Begin a session, or take one up that was saved; its box is gone when the block is left.

        Raises:
            SandboxError: the box of a saved one did not come up.
            ResumeError: a cell that was run again did something else than it did.
        """
        async with Lodging.opened(tree.backing.open_box) as lodging:
            dialogue = cls(tree, policy, identity, lodging, origin)
            try:
                if saved is not None:
                    await dialogue._take_up(saved)
                yield dialogue
            finally:
                dialogue._over = True

    @property
    def contexts(self) -> int:
        """How many contexts the session has."""
        return len(self._infos)

    @property
    def unfinished(self) -> str:
        """The question that was being answered when the session was cut off; empty where none was."""
        return "" if self._cut_off is None else str(self._cut_off.started["query"])

    async def ask(
        self,
        query: str,
        context: Context | None = None,
        schema: object = None,
        *,
        stop: anyio.Event | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> Result:
        """Answer one question; several at once wait for one another.

        Args:
            query: the question.
            context: a further context, which the box has as ``context`` from now on, and as the last of ``contexts``;
                None goes on with those there are. The first question needs one.
            schema: what the answer must be, as of :meth:`RLM.complete`.
            stop: when set, the question ends at once, as ``failed`` with the reason ``interrupted``; variables stay.
                Cancelling this call in the middle of a cell costs the box: the next question finds a fresh one.
            origin: where the context came from, as of :meth:`RLM.acomplete`.

        Raises:
            ConfigurationError: as of :meth:`RLM.complete`; or the first question comes without a context.
            ContextError: the contexts are larger than the policy allows; the session goes on without this one.
            JournalError: the journal cannot be made, or that of an earlier question could not be finished.
        """
        return await self._ask(query, context, schema, stop=stop, origin=origin)

    def stream(
        self, query: str, context: Context | None = None, schema: object = None
    ) -> AbstractAsyncContextManager[RunStream]:
        """Answer one question while its events are read, as of :meth:`RLM.stream`.

        Leaving the block stops a question that goes on; its variables stay.
        """

        async def begin(sink: Sink, stop: anyio.Event) -> Result:
            return await self._ask(query, context, schema, stop=stop, sink=sink)

        return streamed(begin, STOP_S)

    async def finish(self, *, stop: anyio.Event | None = None) -> Result:
        """Go on with the question that was cut off; what is recorded of it is neither asked nor paid again.

        Raises:
            ConfigurationError: there is none, another question was asked since, or it has had its wall time.
            JournalError: its journal cannot be continued.
            ResumeError: the variables that it had found are lost.
        """
        async with self._one:
            self._check_open()
            tape = self._cut_off
            if tape is None:
                raise ConfigurationError("no question of this session was cut off: ask one")
            if self._lost and tape.boxes and tape.boxes[0].lent:
                raise ResumeError("the variables that the question had found are lost: ask it again")
            past = Resumable(tape, self.policy, str(tape.started["query"]), form_of(tape))
            past.check_time()
            self._cut_off = None
            run = self._run(past.query, past.rest, tape.run, past.form, self._tree)
            run.past = Resuming(tape)
            return await self._carry_out(run, stop)

    async def _ask(
        self,
        query: str,
        context: Context | None,
        schema: object,
        *,
        stop: anyio.Event | None,
        sink: Sink | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> Result:
        query, form = checked(query), None if schema is None else AnswerForm(schema)
        async with self._one:
            self._check_open()
            if context is not None:
                await self._take(context)
            elif not self._infos:
                raise ConfigurationError("the first question of a session needs a context")
            self._cut_off = None
            self._asked += 1
            tree = self._tree if sink is None else replace(self._tree, sink=both(self._tree.sink, sink))
            run = self._run(query, self.policy, f"{self.id}-{self._asked}", form, tree)
            run.origin = {**self._origin, **(origin or {})}
            return await self._carry_out(run, stop)

    def _check_open(self) -> None:
        if self._over:
            raise ConfigurationError("the session is over: its block was left")
        if self._broken is not None:
            raise self._broken

    async def _take(self, context: Context) -> None:
        # Copied: a box that is lost is given what this one was given, whatever became of the caller's object.
        context = context if isinstance(context, str) else copy(context)
        # Before anything is recorded of the question: with a context that the box cannot take, it was never asked.
        taken = await to_thread.run_sync(room_for, context, self.policy, self._taken)
        info = await to_thread.run_sync(describe, context)
        self._taken = taken
        self._infos.append(info)
        self._lodging.contexts.append(context)

    def _run(self, query: str, policy: Policy, identity: str, form: AnswerForm | None, tree: Tree) -> Run:
        sitting = Sitting(self.id, self._asked, self._lodging, self._history, tuple(self._infos), self._last)
        context = self._lodging.contexts[-1]
        return Run(tree, Scope.root(policy.budget), policy, context, query, identity, form=form, sitting=sitting)

    @property
    def _last(self) -> Result | None:
        return self.results[-1] if self.results else None

    async def _carry_out(self, run: Run, stop: anyio.Event | None) -> Result:
        try:
            await run.complete(stop)
        except JournalError as error:
            self._broken = error  # its journal could not be made: its number must not be missing among those to come
            raise
        except BaseException:
            self._note(run.result)
            raise
        return self._note(run.result)

    def _note(self, result: Result) -> Result:
        self.results += (result,)
        if isinstance(result.error, JournalError):
            self._broken = result.error
        return result

    # Saved sessions ---------------------------------------------------------------------------------------------------

    async def _take_up(self, saved: Saved) -> None:
        relived = list(saved.relived)
        for number, tape in enumerate((*saved.tapes, *filter(None, [saved.cut_off]))):
            self._asked = int(tape.started["session"]["question"])
            for context in saved.contexts[number]:
                await self._take(context)
            if tape is saved.cut_off:
                break
            if relived and tape is relived[0]:
                relived = relived[1:] if await self._relive(tape, saved.on_divergence) else []
            self._history.retell(tape.talk)
            self.results += (result_of(tape),)
        self._asked, self._cut_off = saved.asked, saved.cut_off

    async def _relive(self, tape: Tape, on_divergence: OnDivergence) -> bool:
        """Have the box as it was after a question; return whether it is."""
        policy = recorded_policy(tape)
        budget = policy.budget.model_copy(update={**tape.budget, "wall_s": policy.budget.wall_s})
        policy = policy.model_copy(update={"budget": budget})
        run = self._run(str(tape.started["query"]), policy, tape.run, form_of(tape), self._tree)
        run.past = Resuming(tape)
        try:
            await run.relive()
        except ResumeError:
            await self._lodging.dismiss()
            self._lost = True
            if on_divergence == "stop":
                raise
            return False
        return True


class Dialogue:
    """A session for code that does not await: :class:`AsyncDialogue`, of which each call is waited for.

    Made by :meth:`RLM.session` alone.
    """

    def __init__(self, portal: BlockingPortal, dialogue: AsyncDialogue) -> None:
        """Wrap a session that lives on another thread's event loop."""
        self._portal = portal
        self._dialogue = dialogue

    @property
    def id(self) -> str:
        """As of :class:`AsyncDialogue`."""
        return self._dialogue.id

    @property
    def results(self) -> tuple[Result, ...]:
        """As of :class:`AsyncDialogue`."""
        return self._dialogue.results

    @property
    def contexts(self) -> int:
        """As of :class:`AsyncDialogue`."""
        return self._dialogue.contexts

    @property
    def unfinished(self) -> str:
        """As of :class:`AsyncDialogue`."""
        return self._dialogue.unfinished

    def ask(self, query: str, context: Context | None = None, schema: object = None) -> Result:
        """Answer one question and wait for it; see :meth:`AsyncDialogue.ask`.

        An exception that comes while it waits, such as ``KeyboardInterrupt``, ends the question; variables stay.
        """
        return self._wait(partial(self._dialogue.ask, query, context, schema))

    def finish(self) -> Result:
        """Go on with the question that was cut off and wait for it; see :meth:`AsyncDialogue.finish`."""
        return self._wait(self._dialogue.finish)

    def _wait(self, work: Callable[..., Awaitable[Result]]) -> Result:
        stop = self._portal.call(anyio.Event)
        running = self._portal.start_task_soon(partial(work, stop=stop))
        try:
            return running.result()
        except BaseException:
            if not running.done():
                self._portal.call(stop.set)
                running.exception()  # what it says of its end is in its journal
            raise
