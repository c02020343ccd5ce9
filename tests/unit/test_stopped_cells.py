"""A cell that was stopped is played back: it waits for what it waited for then, asks nobody, and is stopped again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from orchestrator import session
from orchestrator.errors import ModelAuthenticationError, ResumeError
from orchestrator.events import Envelope
from orchestrator.kernel.result import ExecutionResult
from orchestrator.models.base import ModelReply, ModelRequest
from orchestrator.rlm import recursion
from orchestrator.trajectory.journal import read
from orchestrator.trajectory.verify import verify
from orchestrator.trajectory.view import render
from orchestrator.transport.rpc import RpcRefusal
from tests.support.fake_session import CellBody, FakeBox, finals
from tests.unit.test_dialogue import POLICY, Desk
from tests.unit.test_resume import CONTEXT, QUERY, Machine, cell, child_asks, in_order

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (session, recursion):
        monkeypatch.setattr(module, "GIVEN_UP_S", 0.01)


@pytest.fixture(autouse=True)
async def hang_bound() -> AsyncIterator[None]:
    with anyio.fail_after(60):
        yield


async def never(request: ModelRequest) -> ModelReply:
    """Hang, as a provider does that does not answer."""
    del request
    await anyio.sleep_forever()
    raise AssertionError


def waits(method: str = "llm_query", *, seconds: float | None = None) -> CellBody:
    """Return a cell that waits for a call: until it is stopped, or its time is over."""

    async def body(box: FakeBox) -> ExecutionResult | None:
        box.contexts.append("variable")
        with anyio.move_on_after(seconds) as scope:
            if method == "rlm_query":
                await box.child("smaller?", "part")
            elif method == "tool":
                await box.call("tool", '{"args": [], "kwargs": {}}', name="lookup")
            else:
                await box.call(method, "slow")
        return ExecutionResult("timeout", elapsed_s=0.5) if scope.cancelled_caught else None

    return body


CALLED: list[str] = []


async def lookup() -> str:
    """Hang."""
    CALLED.append("lookup")
    await anyio.sleep_forever()
    return ""


def desk(folder: Path, *cells: CellBody, stop: anyio.Event | None = None, waits_in: str = "") -> Desk:
    """Return a process whose providers never answer a sub-call; ``stop`` is set at that event."""

    def heard(envelope: Envelope) -> None:
        if stop is not None and envelope.event.kind == waits_in:
            stop.set()

    made = Desk(folder, list(cells), [waits()], policy=POLICY, on_event=heard, tools=[lookup])
    made.sub.complete = never  # type: ignore[method-assign]
    keep = made.boxes.open
    made.rlm._open_box = lambda policy, context, rpc, **_: keep(policy, context, rpc)
    return made


BEGINS = {"llm_query": "subcall_started", "tool": "tool_started", "rlm_query": "child_started"}


@pytest.mark.parametrize("how", ["stopped", "late"])
@pytest.mark.parametrize("method", BEGINS)
async def test_a_session_goes_on_behind_a_cell_that_was_stopped_while_it_waited(
    tmp_path: Path, method: str, how: str
) -> None:
    CALLED.clear()
    stop = anyio.Event() if how == "stopped" else None
    ends = [] if stop is not None else [finals("one")]
    first = desk(
        tmp_path,
        waits(method, seconds=None if stop else 0.05),
        *ends,
        finals("two"),
        stop=stop,
        waits_in=BEGINS[method],
    )
    async with first.rlm.asession() as talk:
        assert (await talk.ask("First?", "the long text", stop=stop)).status == ("failed" if stop else "answered")
        assert (await talk.ask("Second?")).answer == "two"
    begun = len(first.boxes.opened), len(CALLED)
    journal = next(path for path in first.journals if "." not in path.stem)
    # This time nothing but the wait itself ends the cell.
    again = desk(tmp_path, waits(method), *ends, finals("two"), finals("three"))
    async with again.rlm.aresume_session(journal, ["the long text"]) as talk:
        (box,) = again.boxes.opened
        assert (again.served, len(CALLED)) == ([], begun[1])
        assert box.codes == first.boxes.opened[0].codes
        assert box.contexts == ["the long text", "variable"]
        limit = POLICY.limits.cell_timeout_s
        had = next(each for each in read(journal) if each.kind == "cell_finished").fields["result"]
        assert box.timeouts[0] == had["elapsed_s"] + 0.01 < limit
        assert (await talk.ask("Third?")).answer == "three"


@pytest.mark.parametrize("method", ["llm_query", "rlm_query"])
async def test_a_run_that_was_interrupted_in_a_cell_runs_it_again_and_goes_on(tmp_path: Path, method: str) -> None:
    async def hangs(box: FakeBox) -> None:
        box.context = await box.call("llm_query", "before")
        await (box.child("smaller?", "part") if method == "rlm_query" else box.call("llm_query", "of the child"))

    async def ends(box: FakeBox) -> None:
        await box.call("final", f"{box.context} {await box.call('llm_query', 'last')}")

    stop = anyio.Event()
    first = Machine(tmp_path, [[cell(hangs), ends], [cell(child_asks)]])
    keep = first.sub.complete

    async def complete(request: ModelRequest) -> ModelReply:
        if request.messages[-1].text == "of the child":
            stop.set()
            await anyio.sleep_forever()
        return await keep(request)

    first.sub.complete = complete  # type: ignore[method-assign]
    with anyio.CancelScope() as scope:

        async def interrupt() -> None:
            await stop.wait()
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(interrupt)
            await first.rlm.acomplete(CONTEXT, QUERY)
    told = [record.fields for record in read(first.journal)]
    assert (told[-1]["status"], told[-1]["reason"]) == ("failed", "interrupted")
    again = Machine(tmp_path, [[cell(hangs), ends], [cell(child_asks)]])
    result = await again.rlm.aresume(again.journal, CONTEXT)
    assert (result.status, result.answer) == ("answered", "<before> <last>")
    assert sorted(again.sub.served) == ["last", "of the child"]
    assert "diverged" not in [record.kind for record in read(again.journal)]
    in_order(again.journal, result)
    assert [line for line in render(again.journal) if "cell 1 " in line][-1].endswith("cell 1 ok in 0.00 s")
    once_more = Machine(tmp_path)
    assert (await once_more.rlm.aresume(again.journal, CONTEXT)).answer == result.answer
    assert once_more.served == []


async def test_a_run_goes_on_behind_a_cell_whose_time_was_over_while_it_waited(tmp_path: Path) -> None:
    first = Machine(tmp_path / "first", [[waits(seconds=0.05), finals("one")]])
    first.sub.complete = never  # type: ignore[method-assign]
    result = await first.rlm.acomplete(CONTEXT, QUERY)
    assert result.answer == "one"
    before_the_end = first.states[-4]
    for path in first.folder.iterdir():
        path.write_bytes(path.read_bytes()[: before_the_end[path.name]])
    again = Machine(first.folder, [[waits(), finals("one")]])
    resumed = await again.rlm.aresume(again.journal, CONTEXT)
    assert (resumed.status, resumed.answer) == ("answered", "one")
    assert again.sub.served == []
    in_order(again.journal, resumed)


async def test_what_a_stopped_cell_asks_beside_has_its_recorded_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that are given up hold no place that others need."""
    monkeypatch.setattr(session, "GIVEN_UP_S", 0.5)

    async def body(box: FakeBox) -> None:
        async def slow(number: int) -> None:
            await box.call("llm_query", f"slow {number}")

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(slow, number)
            await anyio.wait_all_tasks_blocked()
            box.contexts.append(await box.call("llm_query", "quick"))
            await box.call("llm_query", "slow at last")

    stop = anyio.Event()

    def made() -> Desk:
        policy = POLICY.override(["models.in_flight=6"])
        its = Desk(tmp_path, [cell(body), finals("two")], policy=policy, on_event=lambda _: None)
        keep = its.sub.complete

        async def complete(request: ModelRequest) -> ModelReply:
            if request.messages[-1].text.startswith("slow"):
                if "last" in request.messages[-1].text:
                    stop.set()
                await anyio.sleep_forever()
            return await keep(request)

        its.sub.complete = complete  # type: ignore[method-assign]
        return its

    first = made()
    async with first.rlm.asession() as talk:
        await talk.ask("First?", "the long text", stop=stop)
    again = made()
    again.rlm.policy = POLICY
    async with again.rlm.aresume_session(first.journals[0], ["the long text"], settings=["models.in_flight=1"]):
        assert again.boxes.opened[0].contexts == ["the long text", "<quick>"]
        assert again.served == []


async def test_a_provider_that_refused_the_key_then_does_not_keep_a_session_from_being_taken_up(tmp_path: Path) -> None:
    first = desk(tmp_path, cell(_asks_and_fails), finals("two"))

    async def refuse(request: ModelRequest) -> ModelReply:
        raise ModelAuthenticationError(f"no key for {request.purpose}")

    first.sub.complete = refuse  # type: ignore[method-assign]
    async with first.rlm.asession() as talk:
        assert isinstance((await talk.ask("First?", "the long text")).error, ModelAuthenticationError)
    again = desk(tmp_path, cell(_asks_and_fails), finals("two"))
    async with again.rlm.aresume_session(first.journals[0], ["the long text"]) as talk:
        assert (await talk.ask("Second?")).answer == "two"


async def _asks_and_fails(box: FakeBox) -> None:
    with pytest.raises(RpcRefusal):
        await box.call("llm_query", "key")
    await anyio.sleep_forever()


def by_budget(answer: str) -> CellBody:
    """Return a cell that asks by what is left, to the microsecond."""

    async def body(box: FakeBox) -> None:
        left = [(await box.budget()), (await box.budget())]
        prompt = " ".join(f"{each['calls']} {each['wall_s']}" for each in left)
        await box.call("final", f"{answer}{len(await box.call('llm_query', prompt))}")

    return cell(body)


async def test_code_that_goes_by_what_is_left_goes_the_same_way_again(tmp_path: Path) -> None:
    cells = [by_budget("a"), by_budget("b"), finals("c")]
    first = Desk(tmp_path / "session", cells)
    async with first.rlm.asession() as talk:
        for query in ("First?", "Second?"):
            assert (await talk.ask(query, None if talk.contexts else "the long text")).status == "answered"
    again = Desk(tmp_path / "session", cells)
    async with again.rlm.aresume_session(first.journals[0], ["the long text"]) as talk:
        assert (await talk.ask("Third?")).answer == "c"
    assert again.sub.served == []
    run = Machine(tmp_path / "run", [[by_budget("a")]])
    result = await run.rlm.acomplete(CONTEXT, QUERY)
    told = [record.fields for record in read(run.journal) if record.kind == "budget_told"]
    assert [(each["cell"], each["nth"]) for each in told] == [(1, 1), (1, 2)]
    for number, state in enumerate(run.states):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, size in state.items():
            (folder / name).write_bytes((run.folder / name).read_bytes()[:size])
        resumed = Machine(folder, [[by_budget("a")]])
        assert (await resumed.rlm.aresume(resumed.journal, CONTEXT)).status == result.status, number
        records = list(read(resumed.journal))
        assert sum(record.kind == "budget_told" for record in records) == 2, number
        # A prompt that had left and had no answer is asked again, and no other.
        assert len({record.fields["prompt"] for record in records if record.kind == "subcall_started"}) == 1, number
        assert verify(resumed.journal).ok


async def test_a_cell_that_the_tape_does_not_know_asks_nobody_when_it_is_relived(tmp_path: Path) -> None:
    """The box counts its cells otherwise than the journal does."""

    async def asks(box: FakeBox) -> None:
        await box.call("final", await box.call("llm_query", "a"))

    first = Desk(tmp_path, [cell(asks)])
    async with first.rlm.asession() as talk:
        await talk.ask("First?", "the long text")
    again = Desk(tmp_path, [cell(asks)])
    again.boxes.cells_before = 7
    with pytest.raises(ResumeError, match=r"cell 8 does something else than it did: it was not run then"):
        async with again.rlm.aresume_session(first.journals[0], ["the long text"]):
            pytest.fail("it was taken up")
    assert again.served == []
