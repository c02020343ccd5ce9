"""How a run starts the next: ``rlm_query`` in its box is a whole run of its own, in a scope inside its parent's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import count
from typing import Any, Protocol

import anyio
from anyio import to_thread

from orchestrator.errors import JournalError, LimitExceededError, SandboxError
from orchestrator.events import ChildFinished, ChildStarted
from orchestrator.ledger import NANO, Amount, Bill, Paid, Scope
from orchestrator.policy import Budget, Policy
from orchestrator.recording import Recorder
from orchestrator.rlm.places import Places
from orchestrator.rlm.result import INTERRUPTED, Result
from orchestrator.session import ChildCall
from orchestrator.text import cut_to_bytes
from orchestrator.trajectory.tape import Tape
from orchestrator.transport.rpc import RpcRefusal

# Of the time a cell has left, kept so that a child that ran out of time can still report what it has.
REPORT_SHARE, REPORT_MOST_S = 0.1, 10.0
# A child that has less time than this could not even open its box.
LEAST_CHILD_S = 0.05
_PARTIAL_BYTES = 4096


class Child(Protocol):
    """What is carried out: a :class:`orchestrator.rlm.recursion.Run`."""

    @property
    def id(self) -> str:
        """Of the run."""

    @property
    def scope(self) -> Scope:
        """What it may spend."""

    async def complete(self) -> Result:
        """Carry it out, once."""

    def owe(self, unpaid: Iterable[Paid]) -> None:
        """Book what was paid for in earlier parts of it."""

    def let_go(self) -> None:
        """Forget what may be large."""


class Parent(Protocol):
    """Whose box asks for child runs."""

    @property
    def id(self) -> str:
        """Of the run."""

    @property
    def scope(self) -> Scope:
        """What it may spend."""

    @property
    def policy(self) -> Policy:
        """What it may do."""

    @property
    def places(self) -> Places:
        """Of the boxes of all runs below the first."""

    @property
    def tape(self) -> Tape | None:
        """What its journal has of it already, when it is resumed."""

    def child(self, scope: Scope, policy: Policy, call: ChildCall, identity: str, past: Tape | None) -> Child:
        """Return the run that a call asks for; ``past`` is what is recorded of it, where it began."""


class Children:
    """Carries out the child runs of one run, as a :data:`orchestrator.session.ChildRun`."""

    def __init__(self, parent: Parent, recorder: Recorder) -> None:
        """Serve the box of ``parent``."""
        self._parent = parent
        self._recorder = recorder
        self._past = past = parent.tape
        self._numbers = count(1 if past is None else past.last_child + 1)

    async def __call__(self, call: ChildCall) -> str:
        """Carry out one; return its answer.

        Raises:
            RpcRefusal: ``child_limit`` or ``child_no_answer``, with the partial answer in the message.
            LimitExceededError: the budget does not allow a child.
            RlmSandboxError: what made the child fail.
            GivenUpError: it was interrupted with its cell, which is played back.
        """
        async with self._parent.places.place(self._parent.scope.depth + 1):
            past = await self._past_of(call)
            if past is None or not _is_over(past):
                self._recorder.begin_child(call.cell, interrupted=past is not None and past.ended is not None)
            run = self._child(call, past)
            try:
                result = await self._carry_out(run, call, past)
            finally:
                run.scope.close()
                run.let_go()
        if result.error is not None:
            try:
                raise result.error
            finally:
                del result  # which its error's traceback would hold, through this frame, and with it the text
        if result.status != "answered" or result.answer is None:
            raise _refusal(result)
        return result.answer

    async def _carry_out(self, run: Child, call: ChildCall, past: Tape | None) -> Result:
        if past is not None and past.ended is not None and _is_over(past):
            return _as_it_ended(run, past, past.ended)
        status, reason = "failed", INTERRUPTED
        try:
            if past is None:
                self._recorder.emit(ChildStarted(run.id, call.cell, call.query))
            result = await run.complete()
            status, reason = result.status, result.reason
        finally:
            self._recorder.emit(ChildFinished(run.id, status, reason))
        return result

    async def _past_of(self, call: ChildCall) -> Tape | None:
        """Return what is recorded of a child run, if it is one that a resumed run had begun; a child without is new."""
        known = None if self._past is None else self._past.claim_child(call.cell, call.query)
        if known is None or self._past is None:
            return None
        try:
            return await to_thread.run_sync(self._past.child, known)
        except JournalError:
            self._past.children.append(known)  # it was cut off before its first event: there is nothing to go on with
            return None

    def _child(self, call: ChildCall, past: Tape | None) -> Child:
        parent, now = self._parent, anyio.current_time()
        left = min(call.deadline, parent.scope.deadline) - now
        wall_s = min(parent.policy.budget.wall_s, left - min(REPORT_SHARE * left, REPORT_MOST_S))
        if wall_s < LEAST_CHILD_S:
            raise LimitExceededError("wall_s", max(left, 0.0))
        mine = parent.policy.budget.model_copy(update={"wall_s": wall_s})
        scope = parent.scope.child(mine, call.held)
        # What is left, and of what is no stock the run's own numbers.
        its = scope.remaining() | {"wall_s": wall_s, "children_alive": mine.children_alive}
        policy = parent.policy.narrow(parent.policy.model_copy(update={"budget": Budget.model_validate(its)}))
        identity = f"{parent.id}.{next(self._numbers)}" if past is None else past.run
        return parent.child(scope, policy, call, identity, past)


def _is_over(past: Tape) -> bool:
    """Whether a child run came to its end; one that was interrupted with its parent did not."""
    ended = past.ended
    return ended is not None and (ended["status"], ended["reason"]) != ("failed", INTERRUPTED)


def _as_it_ended(run: Child, past: Tape, ended: dict[str, Any]) -> Result:
    """Return how a child run ended that was over when its parent was cut off, and book what it cost."""
    run.owe(_account(ended["usage"], run.scope.depth))
    error = SandboxError(ended["reason"]) if ended["status"] == "failed" else None
    return Result(
        status=ended["status"],
        answer=ended["answer"],
        reason=ended["reason"],
        usage=run.scope.usage(),
        journal=past.path,
        turns=ended["turns"],
        error=error,
        run=run.id,
        journal_head=past.head,
    )


def _account(usage: dict[str, Any], depth: int) -> Iterator[Paid]:
    """Yield what a run that is over has spent, as its last event tells it."""
    totals = [{**usage, "depth": depth, "model": ""}]  # of older journals
    for row in usage.get("by_depth_and_model", totals):
        kinds = {item.name: row[item.name] for item in fields(Bill) if item.name in row}
        amount = Amount(row["calls"], row["tokens"], round(row["cost_usd"] * NANO), turns=row["turns"])
        yield Paid(amount, Bill(**kinds), row["depth"])
    rest = ("children", "bytes_in", "bytes_out", "tool_calls")
    yield Paid(Amount(**{name: usage.get(name, 0) for name in rest}), Bill(""), depth)


def _refusal(result: Result) -> RpcRefusal:
    if result.status == "limit":
        reason, message = "child_limit", f"the child run reached its limit of {result.reason}"
    else:
        reason, message = "child_no_answer", "the child run found no answer"
    if result.answer:
        message += f"; its partial answer: {cut_to_bytes(result.answer, _PARTIAL_BYTES)}"
    return RpcRefusal(reason, message)
