"""What happens in a run, one frozen type a fact.

The journal writes these, the progress view draws from them, and nothing else in the system logs. An event is emitted
*before* what it tells of takes effect on anyone else: a sub-call's answer is recorded before the cell sees it.
Every value from the box or from a model is kept as it came; whoever shows it to a person cleans it first
(:func:`orchestrator.text.printable`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

SCHEMA_VERSION = 1
# What a writer tells that earlier ones of the same version did not, as far as a reader has to know: since 1, turns of
# the root model that failed (:class:`RootFailed`).
REVISION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; ``kind`` names the type in the journal."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run begins.

    Attributes:
        query: the question.
        context: what :class:`orchestrator.context.ContextInfo` tells of the prompt: type, sizes, hash, the first 500
            characters of its first text and the first names of its documents. Never the whole prompt.
        policy: the effective policy, as plain data.
        root_model: name of the root model.
        sub_model: name of the sub-call model.
        depth: 0 for the run a person started, 1 for its children, and so on.
        origin: where context and models came from, as far as that is known: ``files``, ``unpack``, ``model``,
            ``sub_model``. With it a run can be resumed without being told again.
        schema: JSON Schema that the answer must fit; None for an answer in words.
        tools: names of the host's functions that the box may call.
        session: of a question of a session: its ``id``, which ``question`` of it this is (from 1), the ``previous``
            value of the hash chain in the journal of the question before, and ``contexts``, ``kind``, ``sha256`` and
            ``layout`` of each that the box holds, oldest first. Empty for a run of its own.
        revision: :data:`REVISION` of the writer; journals from before there were any have none.
    """

    kind: ClassVar[str] = "run_started"
    query: str
    context: dict[str, Any]
    policy: dict[str, Any]
    root_model: str
    sub_model: str
    depth: int
    origin: dict[str, Any] = field(default_factory=dict)
    schema: Any = None
    tools: tuple[str, ...] = ()
    session: dict[str, Any] = field(default_factory=dict)
    revision: int = REVISION


@dataclass(frozen=True, slots=True)
class SandboxOpened(Event):
    """A box is up, verified and holds the context.

    ``lent`` tells that it is the one of the question before, with all its variables.
    """

    kind: ClassVar[str] = "sandbox_opened"
    container: str
    image: str
    runtime: str
    elapsed_s: float
    controls: dict[str, str]
    lent: bool = False


KEPT = "kept"
"""Why a box was given back that lives on."""


@dataclass(frozen=True, slots=True)
class SandboxClosed(Event):
    """A box was destroyed; ``reason`` says why when it was not simply done with.

    The reason :data:`KEPT` tells that it was not, and waits for the next question of its session.
    """

    kind: ClassVar[str] = "sandbox_closed"
    container: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RootReplied(Event):
    """The root model answered one turn; ``summary`` tells that the reply takes the place of the history before it."""

    kind: ClassVar[str] = "root_replied"
    turn: int
    text: str
    stop_reason: str
    usage: dict[str, Any]
    cost_usd: float | None
    elapsed_s: float
    summary: bool = False


@dataclass(frozen=True, slots=True)
class RootFailed(Event):
    """A turn of the root model ended without a reply.

    Attributes:
        turn: which it would have been.
        code: the error's word, the budget that did not allow another attempt, ``cancelled``, or ``failed`` where
            something of the caller's did.
        detail: what is known of the failure; it stays on the host.
        attempts: requests that left; each that was followed by a wait has its :class:`RetryScheduled` too.
        elapsed_s: seconds, waits between attempts included.
    """

    kind: ClassVar[str] = "root_failed"
    turn: int
    code: str
    detail: str
    attempts: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Observed(Event):
    """What the root model is shown of its turn: truncated observation or reminder; as turn 0, the first message."""

    kind: ClassVar[str] = "observed"
    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class Compacting(Event):
    """The root model is about to be asked for a summary, which takes the place of its history.

    Attributes:
        turn: of that reply.
        tokens: of the history, as far as they are known.
    """

    kind: ClassVar[str] = "compacting"
    turn: int
    tokens: int


@dataclass(frozen=True, slots=True)
class CellStarted(Event):
    """Model-written code is about to be sent into the box."""

    kind: ClassVar[str] = "cell_started"
    turn: int
    cell: int
    code: str


@dataclass(frozen=True, slots=True)
class CellFinished(Event):
    """A cell is over, in one of the ways of :class:`~orchestrator.kernel.outputs.ExecutionResult`."""

    kind: ClassVar[str] = "cell_finished"
    turn: int
    cell: int
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SubcallStarted(Event):
    """An ``llm_query`` passed validation and the ledger, and is about to leave for the provider."""

    kind: ClassVar[str] = "subcall_started"
    call: int
    cell: int
    model: str
    prompt: str
    max_tokens: int
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class SubcallFinished(Event):
    """A sub-call was answered; the cell has not seen the answer yet.

    ``memo_of`` is the number of the sub-call whose answer this is where nothing was sent; else None.
    """

    kind: ClassVar[str] = "subcall_finished"
    call: int
    text: str
    stop_reason: str
    usage: dict[str, Any]
    cost_usd: float | None
    attempts: int
    elapsed_s: float
    memo_of: int | None = None


@dataclass(frozen=True, slots=True)
class SubcallFailed(Event):
    """A sub-call ended without an answer; ``code`` is what the cell is told, ``detail`` stays on the host."""

    kind: ClassVar[str] = "subcall_failed"
    call: int
    code: str
    detail: str
    attempts: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ToolStarted(Event):
    """A call of a host tool passed validation and the ledger; the function is about to be called.

    Attributes:
        call: number of the call, from 1; apart from that of sub-calls.
        cell: the cell it comes from.
        tool: its name.
        arguments: as the box sent them, JSON.
    """

    kind: ClassVar[str] = "tool_started"
    call: int
    cell: int
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFinished(Event):
    """A tool returned; the cell has not seen the result yet, which is JSON."""

    kind: ClassVar[str] = "tool_finished"
    call: int
    result: str
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ToolFailed(Event):
    """A call of a tool ended without a result; ``code`` is what the cell is told, ``detail`` stays on the host."""

    kind: ClassVar[str] = "tool_failed"
    call: int
    code: str
    detail: str
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class BudgetTold(Event):
    """A cell asked what is left, and has not seen the answer yet: code that goes by it does so again in a resumed run.

    Attributes:
        cell: the cell it comes from.
        nth: which such call in its cell it was, from 1.
        left: by policy key, as of :meth:`orchestrator.ledger.Scope.remaining`.
    """

    kind: ClassVar[str] = "budget_told"
    cell: int
    nth: int
    left: dict[str, int | float]


@dataclass(frozen=True, slots=True)
class RetryScheduled(Event):
    """A request failed in a way that may pass; another attempt follows after ``wait_s``.

    Attributes:
        purpose: ``root`` or ``sub``.
        attempt: which failed, from 1.
        code: the error's word.
        wait_s: seconds until the next.
        call: number of the sub-call, or None.
        detail: what is known of the failure; it stays on the host.
    """

    kind: ClassVar[str] = "retry_scheduled"
    purpose: str
    attempt: int
    code: str
    wait_s: float
    call: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EstimateCharged(Event):
    """Requests that left and may be billed though no reply came of them were charged at their upper estimate.

    Attributes:
        purpose: ``root`` or ``sub``.
        call: number of the sub-call, or None.
        attempts: how many requests.
        tokens: of all of them together.
        cost_usd: by the price table; None for a model it does not know.
    """

    kind: ClassVar[str] = "estimate_charged"
    purpose: str
    call: int | None
    attempts: int
    tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class CircuitChanged(Event):
    """A provider's circuit breaker changed its state through a request of this run.

    Attributes:
        provider: whose.
        state: ``open``: nothing is sent for ``wait_s``; ``half_open``: one request is; ``closed``: it answers again.
        failures: requests that failed one after another.
        wait_s: seconds until a request probes it.
    """

    kind: ClassVar[str] = "circuit_changed"
    provider: str
    state: str
    failures: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """A run goes on that was cut off, or ended at a limit; what was recorded is played back first.

    Attributes:
        after: seq of the last record that its course follows. What stands between that and this one was paid for, and
            counts for nothing else.
        budget: what the whole run may spend now, its parts together, by policy key.
        revision: :data:`REVISION` of the writer: since 1, ``usage`` of the run's end holds all that was ever paid for.
    """

    kind: ClassVar[str] = "resumed"
    after: int
    budget: dict[str, Any]
    revision: int = REVISION


@dataclass(frozen=True, slots=True)
class Diverged(Event):
    """A cell that was run again did something else than it had done."""

    kind: ClassVar[str] = "diverged"
    cell: int
    what: str


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """The broker refused something the box asked for.

    Attributes:
        cell: the cell it came from, or None when none was open.
        method: what was asked.
        reason: the word the box was told.
        limit: what would have been allowed, where that is a number.
        count: refusals this event stands for: a flood is recorded one by one at first, and the rest as one event.
        nth: which call of that method in its cell it was, from 1; 0 where that is not known.
        message: the sentence the box was told.
    """

    kind: ClassVar[str] = "refused"
    cell: int | None
    method: str
    reason: str
    limit: float | None
    count: int = 1
    nth: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class ChildStarted(Event):
    """A child run (``rlm_query``) begins; its own journal carries the rest."""

    kind: ClassVar[str] = "child_started"
    child: str
    cell: int
    query: str


@dataclass(frozen=True, slots=True)
class ChildFinished(Event):
    """A child run ended."""

    kind: ClassVar[str] = "child_finished"
    child: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class FinalSet(Event):
    """The box handed over the value of ``Final``."""

    kind: ClassVar[str] = "final_set"
    cell: int
    answer: str


@dataclass(frozen=True, slots=True)
class LimitReached(Event):
    """A budget ended the run, or is about to: the root model may have one last turn.

    Attributes:
        reason: which, as the policy names it.
        limit: how much of it is left.
        more: the setting that gives a run twice as much of it (``--set budget.calls=4000``), for whoever runs or
            resumes it; empty where it is no budget, and in a child run, whose budgets are what its parent had left.
    """

    kind: ClassVar[str] = "limit_reached"
    reason: str
    limit: float
    more: str = ""


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """The run is over; ``status`` is one of ``answered no_answer limit failed``."""

    kind: ClassVar[str] = "run_finished"
    status: str
    answer: str | None
    reason: str
    usage: dict[str, Any]
    turns: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event with its place in the run.

    Attributes:
        run: id of the run it belongs to.
        parent: id of the run that started that one, or None.
        seq: position in the run, from 0, without gaps.
        elapsed_s: seconds since the run began, on the monotonic clock.
        time: Unix time in seconds, for people; nothing is decided by it.
    """

    run: str
    parent: str | None
    seq: int
    elapsed_s: float
    time: float
    event: Event


Sink = Callable[[Envelope], None]
