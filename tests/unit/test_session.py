from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from orchestrator import events
from orchestrator.context import Context
from orchestrator.errors import JournalError, SandboxGoneError, SandboxStartError
from orchestrator.kernel.result import ExecutionResult
from orchestrator.ledger import Scope
from orchestrator.models.base import ModelReply
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.session import Backing, ChildCall, ChildRun, Session, open_session
from orchestrator.transport.rpc import RpcCall, RpcHandler, RpcRefusal
from tests.support.fake_session import FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel, MemoryJournal

pytestmark = pytest.mark.anyio


class Rig:
    """What :func:`open_session` needs, faked."""

    def __init__(self, boxes: FakeBoxes, *, depth: int = 1) -> None:
        self.policy = Policy().override([f"budget.depth={depth}"])
        self.scope = Scope.root(self.policy.budget)
        self.journal = MemoryJournal()
        self.model = FakeModel([], default=ModelReply("an answer"))
        self.backing = Backing(
            sub_model=self.model,
            open_named=lambda name: FakeModel(name=name),
            prices=PriceTable.load(),
            limiter=anyio.CapacityLimiter(4),
            open_box=boxes.open,
        )

    def open(self, child: ChildRun | None = None, sink: events.Sink | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
        return open_session(
            policy=self.policy,
            context="the text",
            scope=self.scope,
            recorder=Recorder("run", None, (self.journal, *([] if sink is None else [sink]))),
            backing=self.backing,
            child=child,
        )


async def test_a_box_is_recorded_when_it_opens_and_when_it_is_gone() -> None:
    boxes = FakeBoxes()
    rig = Rig(boxes)
    async with rig.open() as session:
        assert session.cell == 0
    assert rig.journal.events == [
        events.SandboxOpened("fake-container", "sha256:fake", "fake", 0.25, {"network": "none"}),
        events.SandboxClosed("fake-container"),
    ]
    assert boxes.opened[0].context == "the text"
    assert boxes.closed == 1


async def test_cells_are_numbered_and_recorded_with_their_turn() -> None:
    rig = Rig(FakeBoxes())
    async with rig.open() as session:
        await session.run_cell("a", 1, 5)
        await session.run_cell("b", 1, 5)
        await session.run_cell("c", 2, 5)
    started = rig.journal.of(events.CellStarted)
    assert [(event.turn, event.cell, event.code) for event in started] == [(1, 1, "a"), (1, 2, "b"), (2, 3, "c")]
    finished = rig.journal.of(events.CellFinished)[0]
    assert finished.result == ExecutionResult("ok").to_dict()


async def test_the_answer_that_a_cell_hands_over_is_the_session_s() -> None:
    rig = Rig(FakeBoxes([[finals("42")]]))
    async with rig.open() as session:
        assert session.final is None
        await session.run_cell("Final = 42", 1, 5)
        assert session.final == "42"


async def test_calls_are_answered_while_their_cell_runs_and_refused_afterwards() -> None:
    async def asks(box: FakeBox) -> None:
        assert await box.call("llm_query", "a question") == "an answer"

    boxes = FakeBoxes([[asks]])
    rig = Rig(boxes)
    async with rig.open() as session:
        await session.run_cell("llm_query", 1, 5)
        with pytest.raises(RpcRefusal) as refused:
            await boxes.opened[0].call("llm_query", "late")
    assert refused.value.reason == "no_open_cell"


async def test_a_child_run_is_told_when_its_cell_will_be_stopped() -> None:
    calls: list[ChildCall] = []

    async def child(call: ChildCall) -> str:
        calls.append(call)
        return "a child's answer"

    async def asks(box: FakeBox) -> None:
        assert await box.child("which?", "a part") == "a child's answer"

    async with Rig(FakeBoxes([[asks]])).open(child) as session:
        await session.run_cell("rlm_query", 1, 50)
    (call,) = calls
    assert (call.query, call.context, call.cell) == ("which?", "a part", 1)
    assert 0 < call.deadline - anyio.current_time() <= 50


async def test_without_child_runs_a_child_query_is_a_plain_sub_call() -> None:
    async def asks(box: FakeBox) -> None:
        assert await box.child("which?", "a part") == "an answer"

    async with Rig(FakeBoxes([[asks]])).open() as session:
        await session.run_cell("rlm_query", 1, 5)


async def test_an_abandoned_cell_is_recorded_as_cancelled() -> None:
    async def hangs(box: FakeBox) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    rig = Rig(FakeBoxes([[hangs]]))
    async with rig.open() as session:
        with anyio.CancelScope() as scope:
            await session.run_cell("hang", 1, 5)
    assert rig.journal.of(events.CellFinished)[0].result["status"] == "cancelled"


async def test_a_dead_box_is_reported_and_recorded() -> None:
    async def dies(box: FakeBox) -> ExecutionResult:
        raise SandboxGoneError("gone")

    rig = Rig(FakeBoxes([[dies]]))
    with pytest.raises(SandboxGoneError):
        async with rig.open() as session:
            await session.run_cell("die", 1, 5)
    assert rig.journal.events[-1] == events.SandboxClosed("fake-container", "SandboxGoneError")


async def test_a_box_that_does_not_open_leaves_no_record_of_one() -> None:
    rig = Rig(FakeBoxes(failure=SandboxStartError("no")))
    with pytest.raises(SandboxStartError):
        async with rig.open():
            pytest.fail("nothing was opened")
    assert rig.journal.events == []


async def test_a_cell_that_cannot_be_recorded_is_not_run() -> None:
    boxes = FakeBoxes()
    rig = Rig(boxes)

    async def run() -> None:
        async with rig.open() as session:
            rig.journal.full = True
            await session.run_cell("a", 1, 5)

    with pytest.raises(JournalError):
        await run()
    assert boxes.opened[0].codes == []
    assert boxes.closed == 1


async def test_what_a_sink_raises_after_the_last_cell_is_not_lost() -> None:
    class LateBox(FakeBoxes):
        @asynccontextmanager
        async def open(self, policy: Policy, context: Context, rpc: RpcHandler) -> AsyncIterator[FakeBox]:
            async with super().open(policy, context, rpc) as box:
                yield box
                with pytest.raises(RpcRefusal, match="being ended"):
                    await box.call("budget")

    def sink(envelope: events.Envelope) -> None:
        if isinstance(envelope.event, events.Refused):
            raise KeyError("mine")

    rig = Rig(LateBox())
    with pytest.raises(KeyError, match="mine"):
        async with rig.open(sink=sink) as session:
            await session.run_cell("a", 1, 5)


async def test_a_session_that_is_not_open_runs_nothing_and_answers_nothing() -> None:
    session = Session(Recorder("run", None))
    assert (session.final, session.fatal) == (None, None)
    with pytest.raises(RpcRefusal, match="not open yet"):
        await session.answer(RpcCall("0" * 32, "budget", {}, "", None))
    with pytest.raises(RuntimeError):
        await session.run_cell("a", 1, 5)
