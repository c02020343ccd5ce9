from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from orchestrator import events
from orchestrator.context import Context
from orchestrator.errors import (
    ContextError,
    JournalError,
    LimitExceededError,
    ModelAuthenticationError,
    ModelRequestError,
    SandboxStartError,
)
from orchestrator.events import Envelope, Event
from orchestrator.kernel.result import ExecutionResult
from orchestrator.ledger import Amount, Scope
from orchestrator.models.base import ModelReply, Usage
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Budget, Policy
from orchestrator.rlm import recursion
from orchestrator.rlm.recursion import Run
from orchestrator.rlm.result import Result
from orchestrator.rlm.tree import Tree
from orchestrator.session import Backing, Session
from orchestrator.trajectory import journal
from orchestrator.transport.rpc import RpcHandler, RpcRefusal
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel, Outcome

pytestmark = pytest.mark.anyio

AT_ONCE = Budget().children_alive

E = TypeVar("E", bound=Event)
PERHAPS = ModelReply("Perhaps.", Usage(100, 10))
CODE = ModelReply("I run.\n```repl\nstep()\n```", Usage(100, 10))


class Log:
    """Keeps every envelope; refuses from the event kind ``full_at`` on, as a full disk does."""

    def __init__(self, full_at: type[Event] | None = None) -> None:
        self.envelopes: list[Envelope] = []
        self._full_at = full_at
        self._full = False

    def __call__(self, envelope: Envelope) -> None:
        self._full = self._full or (self._full_at is not None and isinstance(envelope.event, self._full_at))
        if self._full:
            raise JournalError("disk full")
        self.envelopes.append(envelope)

    def of(self, kind: type[E], run: str | None = None) -> list[E]:
        return [
            envelope.event
            for envelope in self.envelopes
            if isinstance(envelope.event, kind) and run in (None, envelope.run)
        ]


def make(
    *,
    cells: list[list[CellBody]] | None = None,
    replies: Iterable[Outcome] = (),
    settings: Iterable[str] = (),
    context: Context = "the whole text",
    boxes: FakeBoxes | None = None,
    directory: Path | None = None,
    log: Log | None = None,
    model: FakeModel | None = None,
) -> Run:
    policy = Policy().override(list(settings))
    backing = Backing(
        sub_model=FakeModel(name="sub"),
        open_named=lambda name: FakeModel(name=name),
        prices=PriceTable.load(),
        limiter=anyio.CapacityLimiter(4),
        open_box=(boxes or FakeBoxes(cells or [])).open,
    )
    tree = Tree(model or FakeModel(replies, name="root", default=CODE), backing, directory, log)
    return Run(tree, Scope.root(policy.budget), policy, context, "What is it?", "r1")


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def refused(box_errors: list[RpcRefusal], query: str = "sub", context: str = "part") -> CellBody:
    async def body(box: FakeBox) -> None:
        try:
            await box.child(query, context)
        except RpcRefusal as refusal:
            box_errors.append(refusal)

    return body


def asks_child(then: Callable[[str], str] = str) -> CellBody:
    async def body(box: FakeBox) -> None:
        await box.call("final", then(await box.child("sub", "part")))

    return body


async def test_a_run_is_recorded_from_its_first_event_to_its_last() -> None:
    log = Log()
    result = await make(cells=[[finals("42")]], log=log).complete()
    assert (result.status, result.answer, result.turns, result.run) == ("answered", "42", 1, "r1")
    kinds = [envelope.event.kind for envelope in log.envelopes]
    assert kinds == [
        "run_started",
        "sandbox_opened",
        "observed",
        "root_replied",
        "cell_started",
        "final_set",
        "cell_finished",
        "sandbox_closed",
        "run_finished",
    ]
    assert [envelope.seq for envelope in log.envelopes] == list(range(len(kinds)))
    started, end = log.of(events.RunStarted)[0], log.of(events.RunFinished)[0]
    assert (started.root_model, started.sub_model, started.depth) == ("root", "sub", 0)
    assert "prefix" in started.context
    assert (end.status, end.answer, end.usage["turns"]) == ("answered", "42", 1)


async def test_the_root_model_never_receives_the_context() -> None:
    model = FakeModel(default=CODE)
    secret = "needle-" + "x" * 30
    await make(cells=[[finals("42")]], model=model, context="head " * 200 + secret).complete()
    assert not any(secret in message.text for request in model.requests for message in request.messages)


async def test_a_child_has_its_own_box_policy_journal_and_id(tmp_path: Path) -> None:
    boxes, log = FakeBoxes([[asks_child()], [finals("from the child")]]), Log()
    result = await make(boxes=boxes, log=log, directory=tmp_path).complete()
    assert result.answer == "from the child"
    parent, child = boxes.opened
    assert (parent.context, child.context) == ("the whole text", "part")
    assert child.policy.budget.depth == 0
    assert child.policy.budget.calls < parent.policy.budget.calls
    assert child.policy.budget.wall_s < parent.policy.limits.cell_timeout_s
    assert child.policy.limits == parent.policy.limits
    assert {path.stem for path in files(tmp_path)} == {"r1", "r1.1"}
    assert {envelope.parent for envelope in log.envelopes if envelope.run == "r1.1"} == {"r1"}
    assert log.of(events.RunStarted, "r1.1")[0].depth == 1
    (finished,) = log.of(events.ChildFinished)
    assert (finished.child, finished.status) == ("r1.1", "answered")


async def test_what_a_child_spends_is_charged_to_its_parent() -> None:
    result = await make(cells=[[asks_child()], [finals("x")]]).complete()
    assert (result.usage["calls"], result.usage["children"]) == (2, 1)
    assert result.usage["by_depth"]["1"]["calls"] == 1


async def test_at_the_depth_limit_a_child_query_is_one_plain_sub_call() -> None:
    boxes = FakeBoxes([[asks_child()]])
    result = await make(boxes=boxes, settings=["budget.depth=0"]).complete()
    assert (result.answer, len(boxes.opened)) == ("an answer", 1)


async def test_grandchildren_run_where_the_depth_allows_it() -> None:
    boxes = FakeBoxes([[asks_child()], [asks_child()], [finals("from below")]])
    log = Log()
    result = await make(boxes=boxes, log=log, settings=["budget.depth=2"]).complete()
    assert result.answer == "from below"
    assert [event.depth for event in log.of(events.RunStarted)] == [0, 1, 2]
    assert [event.child for event in log.of(events.ChildStarted)] == ["r1.1", "r1.1.1"]


async def test_a_child_that_reaches_a_limit_is_refused_with_its_partial_answer() -> None:
    errors: list[RpcRefusal] = []
    # One turn of the parent, two of the child, which the turns of the policy allow, and the parent's last.
    result = await make(
        cells=[[refused(errors), finals("done")], []],
        replies=[CODE, CODE, ModelReply("Perhaps seven.", Usage(1, 1)), CODE],
        settings=["budget.turns=2"],
    ).complete()
    assert (errors[0].reason, result.answer) == ("child_limit", "done")
    assert "limit of turns; its partial answer: Perhaps seven." in errors[0].message


async def test_a_child_that_finds_nothing_is_refused_and_the_parent_goes_on() -> None:
    errors: list[RpcRefusal] = []
    words = [ModelReply("Hm.", Usage(1, 1))] * 3
    result = await make(cells=[[refused(errors), finals("done")], []], replies=[CODE, *words, CODE]).complete()
    assert (errors[0].reason, result.answer) == ("child_no_answer", "done")


async def test_a_child_whose_box_does_not_open_is_refused_without_the_cause() -> None:
    errors: list[RpcRefusal] = []

    async def body(box: FakeBox) -> None:
        boxes.failure = SandboxStartError("/var/secret/path")
        await refused(errors)(box)

    boxes = FakeBoxes([[body, finals("done")]])
    result = await make(boxes=boxes).complete()
    assert (errors[0].reason, result.answer) == ("child_failed", "done")
    assert "secret" not in errors[0].message


async def test_a_refused_key_in_a_child_stops_the_whole_tree() -> None:
    failure = ModelAuthenticationError("no key")
    errors: list[RpcRefusal] = []
    result = await make(cells=[[refused(errors), finals("never")], []], replies=[CODE, failure]).complete()
    assert (result.status, result.error) == ("failed", failure)


async def test_a_child_without_time_left_in_its_cell_is_refused() -> None:
    errors: list[RpcRefusal] = []
    run = make(cells=[[refused(errors), finals("done")]], settings=["limits.cell_timeout_s=0.000001"])
    assert (await run.complete()).answer == "done"
    assert errors[0].reason == "wall_s"


async def test_no_more_children_than_the_budget_allows_are_started() -> None:
    errors: list[RpcRefusal] = []

    async def body(box: FakeBox) -> None:
        await box.child("one", "part")
        await refused(errors)(box)
        await box.call("final", "done")

    result = await make(cells=[[body], [finals("x")]], settings=["budget.children=1"]).complete()
    assert (errors[0].reason, result.usage["children"]) == ("children", 1)


async def test_children_of_one_cell_share_a_bounded_number_of_boxes() -> None:
    open_now, most, full = 0, 0, anyio.Event()

    async def child(box: FakeBox) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        if open_now == AT_ONCE:
            full.set()
        await full.wait()
        await anyio.wait_all_tasks_blocked()
        open_now -= 1
        await box.call("final", "x")

    async def parent(box: FakeBox) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3 * AT_ONCE):
                tasks.start_soon(box.child, "q", "part")
        await box.call("final", "all")

    bodies: list[CellBody] = [parent, *[child] * (3 * AT_ONCE)]
    result = await make(cells=[[body] for body in bodies]).complete()
    assert (result.answer, result.usage["children"], most) == ("all", 12, AT_ONCE)


@pytest.mark.parametrize("alive", [2, 3, 4])
async def test_parents_that_hold_every_place_and_wait_for_children_of_their_own_do_not_deadlock(alive: int) -> None:
    async def asks_two(box: FakeBox) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(box.child, "q", "part")
        await box.call("final", "x")

    alive_now = most = 0
    full = anyio.Event()

    async def leaf(box: FakeBox) -> None:
        await full.wait()  # or one could be over before the next begins
        await box.call("final", "leaf")

    class Counting(FakeBoxes):
        """Boxes by the depth of their policy: each but the deepest asks for two children."""

        @asynccontextmanager
        async def open(self, policy: Policy, context: Context, rpc: RpcHandler) -> AsyncIterator[FakeBox]:
            nonlocal alive_now, most
            self.cells.append([asks_two if policy.budget.depth else leaf])
            alive_now += policy.budget.depth < 2
            most = max(most, alive_now)
            if most == alive:
                full.set()
            async with super().open(policy, context, rpc) as box:
                yield box
            alive_now -= policy.budget.depth < 2

    settings = ["budget.depth=2", f"budget.children_alive={alive}"]
    with anyio.fail_after(30):
        result = await make(boxes=Counting(), settings=settings).complete()
    assert (result.status, result.usage["children"], most) == ("answered", 6, alive)
    assert sorted(result.usage["by_depth"]) == ["0", "1", "2"]


async def test_a_level_for_which_no_place_is_left_is_refused_with_a_reason() -> None:
    errors: list[RpcRefusal] = []
    cells: list[list[CellBody]] = [[asks_child()], [refused(errors), finals("without")]]
    result = await make(cells=cells, settings=["budget.depth=2", "budget.children_alive=1"]).complete()
    assert (result.answer, errors[0].reason) == ("without", "children_alive")


async def test_a_child_asked_for_at_the_very_end_of_a_cell_is_refused_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[RpcRefusal] = []
    run = make(cells=[[refused(errors), finals("x")]])
    monkeypatch.setattr(Session, "cell_ends", property(lambda _self: anyio.current_time()))
    assert (await run.complete()).answer == "x"
    assert (errors[0].reason, run.scope.alive_children, run.scope.usage()["children"]) == ("wall_s", 0, 0)


async def test_a_context_that_cannot_be_described_leaves_no_scope_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_context: Context) -> None:
        raise MemoryError

    monkeypatch.setattr(recursion, "describe", fail)
    run = make()
    with pytest.raises(MemoryError):
        await run.complete()
    with pytest.raises(RuntimeError, match="closed"):
        run.scope.reserve(Amount())


async def test_cancelling_the_parent_s_cell_cancels_and_records_the_child() -> None:
    log, scope = Log(), anyio.CancelScope()

    async def hangs(box: FakeBox) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    async def parent(box: FakeBox) -> None:
        with scope:
            await box.child("q", "part")
        await box.call("final", "went on")

    boxes = FakeBoxes([[parent], [hangs]])
    result = await make(boxes=boxes, log=log).complete()
    assert (result.answer, boxes.closed) == ("went on", 2)
    end = log.of(events.RunFinished, "r1.1")[0]
    assert (end.status, end.reason) == ("failed", "interrupted")
    assert log.of(events.ChildFinished)[0].reason == "interrupted"


# One run --------------------------------------------------------------------------------------------------------------


async def test_a_journal_s_first_record_holds_the_beginning_of_the_context_its_names_and_no_more(
    tmp_path: Path,
) -> None:
    context = {f"document {n}": f"{n:02}" + "x" * 600 for n in range(30)}
    await make(cells=[[finals("42")]], context=context, directory=tmp_path).complete()
    told = next(iter(journal.read(tmp_path / "r1.jsonl"))).fields["context"]
    assert told["prefix"] == "00" + "x" * 498
    assert told["names"] == list(context)[:20]
    assert "x" * 499 not in (tmp_path / "r1.jsonl").read_text()


async def test_a_context_below_the_threshold_is_answered_by_one_call_without_a_box() -> None:
    boxes = FakeBoxes()
    model = FakeModel([ModelReply("Paris", Usage(5, 1))], name="root")
    run = make(boxes=boxes, model=model, context={"a": "short text"}, settings=["models.direct_below_chars=1000"])
    result = await run.complete()
    assert (result.status, result.answer, result.turns, boxes.opened) == ("answered", "Paris", 1, [])
    assert "short text" in model.requests[0].messages[0].text


@pytest.mark.parametrize(
    ("reply", "status", "answer"),
    [
        (ModelReply("Par", Usage(5, 1), "max_tokens"), "no_answer", "Par"),
        (ModelReply("", Usage(5, 1), "refusal"), "no_answer", None),
        (ModelRequestError("no such model"), "failed", None),
    ],
)
async def test_a_direct_answer_that_is_none_is_reported(reply: Outcome, status: str, answer: str | None) -> None:
    result = await make(replies=[reply], settings=["models.direct_below_chars=1000"]).complete()
    assert (result.status, result.answer) == (status, answer)


async def test_a_direct_answer_is_within_the_budget_or_not_given() -> None:
    settings = ["models.direct_below_chars=1000", "budget.tokens=10"]
    result = await make(settings=settings).complete()
    assert (result.status, result.reason, result.turns) == ("limit", "tokens", 0)


async def test_a_box_that_does_not_open_is_a_failed_run() -> None:
    failure = SandboxStartError("no engine")
    result = await make(boxes=FakeBoxes(failure=failure)).complete()
    assert (result.status, result.reason, result.error, result.turns) == ("failed", "no engine", failure, 0)


async def test_a_failure_inside_a_task_group_is_reported_as_itself() -> None:
    failure = ExceptionGroup("group", [SandboxStartError("no engine")])
    result = await make(boxes=FakeBoxes(failure=failure)).complete()
    assert (result.status, result.reason) == ("failed", "no engine")


async def test_a_context_that_is_too_large_is_the_caller_s_mistake_and_recorded() -> None:
    log = Log()
    with pytest.raises(ContextError):
        await make(boxes=FakeBoxes(failure=ContextError("600 MiB")), log=log).complete()
    assert log.of(events.RunFinished)[0].reason == "600 MiB"


@pytest.mark.parametrize("kind", [events.RunStarted, events.CellStarted, events.SandboxClosed])
async def test_a_journal_that_fails_ends_the_run_as_failed(kind: type[Event]) -> None:
    boxes = FakeBoxes([[finals("42")]])
    result = await make(boxes=boxes, log=Log(full_at=kind)).complete()
    assert (result.status, result.reason) == ("failed", "disk full")
    assert isinstance(result.error, JournalError)
    assert boxes.closed == len(boxes.opened)


async def test_an_answer_survives_a_journal_that_fails_at_the_very_end() -> None:
    result = await make(cells=[[finals("42")]], log=Log(full_at=events.RunFinished)).complete()
    assert (result.status, result.answer) == ("failed", "42")
    assert isinstance(result.error, JournalError)


async def test_a_stopped_run_returns_what_it_has() -> None:
    stop, log = anyio.Event(), Log()

    async def hangs(box: FakeBox) -> None:
        stop.set()
        await anyio.sleep_forever()

    boxes = FakeBoxes([[hangs]])
    result = await make(boxes=boxes, replies=[PERHAPS], log=log).complete(stop)
    assert (result.status, result.reason, result.answer, result.turns) == ("failed", "interrupted", "Perhaps.", 2)
    assert boxes.closed == 1
    assert log.of(events.RunFinished)[0].answer == "Perhaps."


async def test_a_run_that_is_stopped_before_it_begins_ends_at_once() -> None:
    stop = anyio.Event()
    stop.set()
    result = await make(boxes=FakeBoxes([[finals("late")]])).complete(stop)
    assert result.reason in {"interrupted", ""}


async def test_a_cancelled_run_is_recorded_as_interrupted(tmp_path: Path) -> None:
    async def hangs(box: FakeBox) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    results: list[Result] = []
    with anyio.CancelScope() as scope:
        results.append(await make(cells=[[hangs]], replies=[PERHAPS], directory=tmp_path).complete())
    assert results == []
    last = list(journal.read(tmp_path / "r1.jsonl"))[-1]
    assert (last.kind, last.fields["reason"], last.fields["answer"]) == ("run_finished", "interrupted", "Perhaps.")


async def test_a_sink_that_raises_ends_the_run_with_its_own_error() -> None:
    def sink(envelope: Envelope) -> None:
        if isinstance(envelope.event, events.RootReplied):
            raise KeyError("mine")

    run = make(cells=[[finals("42")]])
    run.tree = Tree(run.tree.root_model, run.tree.backing, None, sink)
    with pytest.raises(KeyError, match="mine"):
        await run.complete()


@pytest.mark.parametrize("event", [events.SubcallStarted, events.SubcallFinished])
async def test_a_sink_that_raises_on_a_call_from_the_box_ends_the_run_with_its_own_error(event: type[Event]) -> None:
    def sink(envelope: Envelope) -> None:
        if isinstance(envelope.event, event):
            raise KeyError("mine")

    async def goes_on(box: FakeBox) -> None:
        with pytest.raises(RpcRefusal, match="being ended"):
            await box.call("llm_query", "q")
        await anyio.sleep_forever()

    boxes = FakeBoxes([[goes_on]])
    run = make(boxes=boxes)
    run.tree = Tree(run.tree.root_model, run.tree.backing, None, sink)
    with anyio.fail_after(5), pytest.raises(KeyError, match="mine"):
        await run.complete()
    assert boxes.closed == 1


async def test_a_limit_of_the_run_is_reported_with_its_reason() -> None:
    result = await make(settings=["budget.turns=1"]).complete()
    assert (result.status, result.reason, result.answer) == ("limit", "turns", None)


async def test_a_cell_that_loses_the_variables_is_told_to_the_model() -> None:
    async def dies(box: FakeBox) -> ExecutionResult:
        return ExecutionResult("died", state_lost=True)

    log = Log()
    await make(cells=[[dies, finals("42")]], log=log).complete()
    assert "are LOST" in log.of(events.Observed)[1].text


async def test_the_scope_of_a_run_is_closed_with_it() -> None:
    run = make(cells=[[finals("42")]])
    await run.complete()
    with pytest.raises((RuntimeError, LimitExceededError)):
        run.scope.child(run.policy.budget)


def hoards(prompts: int, reasons: list[str]) -> CellBody:
    """Return the body of a cell that asks, with ever new prompts of a megabyte, a provider that refuses each."""

    async def body(box: FakeBox) -> None:
        for number in range(prompts):
            try:
                await box.call("llm_query", f"{number:06}" + "x" * 1_000_000)
            except RpcRefusal as refusal:
                reasons.append(refusal.reason)

    return body


@pytest.mark.parametrize("bound", [True, False])
async def test_prompts_that_cost_no_token_do_not_fill_the_disk(tmp_path: Path, *, bound: bool) -> None:
    reasons: list[str] = []
    settings = [f"budget.journal_mb={4 if bound else 1000}"]
    run = make(cells=[[hoards(30, reasons)]], settings=settings, directory=tmp_path)
    run.tree.backing.sub_model._default = ModelRequestError("too long for me")  # type: ignore[attr-defined]
    result = await run.complete()
    (path,) = files(tmp_path)
    if not bound:
        assert path.stat().st_size > 30_000_000
        return
    assert (result.status, result.reason) == ("limit", "journal_mb")
    assert set(reasons) == {"model_request", "journal_mb"}
    assert path.stat().st_size < (5 << 20) + 100_000
    records = list(journal.read(path))
    assert records[-1].kind == "run_finished"
    assert [record.fields["reason"] for record in records if record.kind == "limit_reached"] == ["journal_mb"]
