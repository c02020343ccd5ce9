"""A run that was cut off after any of its events goes on to the same answer, and nothing is asked or paid twice."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from orchestrator.errors import ConfigurationError, JournalError, ModelRequestError, ModelUnavailableError, ResumeError
from orchestrator.events import Envelope, SubcallFailed
from orchestrator.kernel.result import ExecutionResult
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.policy import Policy
from orchestrator.rlm.api import RLM
from orchestrator.rlm.result import Result
from orchestrator.trajectory.journal import JournalWriter, read
from orchestrator.trajectory.replay import OnDivergence
from orchestrator.trajectory.tape import Tape
from orchestrator.trajectory.verify import verify
from orchestrator.transport.rpc import RpcRefusal
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, error

pytestmark = pytest.mark.anyio

CONTEXT, QUERY = "the long text", "What is it?"
POLICY = Policy().override(["budget.calls=40"])


class FakeProvider:
    """Answers every request by what it asks, and keeps its own count."""

    def __init__(self, name: str, *, failing: frozenset[str] = frozenset()) -> None:
        self.name = name
        self.served: list[str] = []
        self._failing = failing
        self.once: set[str | None] = set()
        self.refused: set[str] = set()

    async def complete(self, request: ModelRequest) -> ModelReply:
        prompt = request.messages[-1].text
        if prompt in self._failing:
            raise ModelUnavailableError("down")
        for named in self.once & {prompt, None}:
            self.once.discard(named)
            raise ModelUnavailableError("the line broke", may_be_billed=True)
        if prompt in self.refused:
            raise ModelRequestError("too long")
        self.served.append(prompt)
        await anyio.lowlevel.checkpoint()
        if request.purpose == "root":
            return ModelReply(f"Turn.\n```repl\nstep({len(request.messages)})\n```", Usage(100, 10))
        return ModelReply(f"<{prompt}>", Usage(50, 5))

    async def aclose(self) -> None:
        """Nothing is held open."""


def cell(body: CellBody) -> CellBody:
    """Return a cell that ends as code does that does not catch a refusal."""

    @functools.wraps(body)
    async def run(box: FakeBox) -> ExecutionResult | None:
        try:
            return await body(box)
        except RpcRefusal as refusal:
            return error("QueryRefused", str(refusal))

    return run


async def asks(box: FakeBox) -> None:
    async def ask(prompt: str) -> None:
        box.context = f"{box.context}{len(await box.call('llm_query', prompt))}"

    async with anyio.create_task_group() as tasks:
        for prompt in ("a", "bb", "a", "cccc"):
            tasks.start_soon(ask, prompt)
    with pytest.raises(RpcRefusal) as caught:
        await box.call("batch_open", n=1000, characters=1000)
    box.context = f"{box.context}; {caught.value}"


async def has_a_child(box: FakeBox) -> None:
    box.context = f"{box.context}{await box.child('smaller?', 'part')}"


async def child_asks(box: FakeBox) -> None:
    await box.call("final", await box.call("llm_query", "of the child"))


async def ends(box: FakeBox) -> None:
    await box.call("final", f"{box.context} and {await box.call('llm_query', 'last')}")


def story() -> list[list[CellBody]]:
    """Return the cells of the first run and of its child."""
    return [[cell(asks), cell(has_a_child), cell(ends)], [cell(child_asks)]]


class Machine:
    """One process that runs or resumes: its models, its boxes, and the folder of its journals."""

    def __init__(self, folder: Path, cells: list[list[CellBody]] | None = None, **sub: Any) -> None:
        self.root, self.sub = FakeProvider("root"), FakeProvider("sub", **sub)
        self.boxes = FakeBoxes(cells or story())
        self.folder = folder
        self.states: list[dict[str, int]] = []
        self.rlm = RLM(self.root, self.sub, POLICY, folder, self._heard, open_box=self.boxes.open)

    def _heard(self, _: Envelope) -> None:
        self.states.append({path.name: path.stat().st_size for path in self.folder.iterdir()})

    @property
    def served(self) -> list[str]:
        """All that was asked of the provider."""
        return self.root.served + self.sub.served

    @property
    def journal(self) -> Path:
        """The first run's."""
        (path,) = (path for path in self.folder.iterdir() if path.stem.count(".") == 0)
        return path


async def whole(folder: Path) -> tuple[Machine, Result]:
    machine = Machine(folder)
    result = await machine.rlm.acomplete(CONTEXT, QUERY)
    assert result.status == "answered", result
    return machine, result


def cut(folder: Path, to: Path, state: dict[str, int], torn: bytes = b"") -> Machine:
    """Return what another process finds after this one was killed in a state."""
    to.mkdir()
    for name, size in state.items():
        data = (folder / name).read_bytes()[:size]
        (to / name).write_bytes(data + torn)
    return Machine(to)


def answered_in(folder: Path) -> int:
    """Return how many replies of models the journals of a folder hold."""
    kinds = [record.kind for path in folder.iterdir() for record in read(path)]
    return kinds.count("root_replied") + kinds.count("subcall_finished")


async def test_cut_off_after_any_event_it_goes_on_to_the_same_answer_and_asks_nothing_twice(tmp_path: Path) -> None:
    first, result = await whole(tmp_path / "first")
    everything = sorted(first.served)
    for number, state in enumerate(first.states):
        again = cut(first.folder, tmp_path / str(number), state, torn=b'{"v":1,"kind":"obs' if number % 2 else b"")
        recorded = answered_in(again.folder)
        resumed = await again.rlm.aresume(again.journal, CONTEXT)
        assert (resumed.status, resumed.answer) == ("answered", result.answer), number
        # What was asked and not yet answered when it was killed is the one thing that is asked again.
        assert recorded + len(again.served) == len(everything), number
        assert not {record.kind for record in read(again.journal)} & {"diverged"}
        spent, before = resumed.usage, result.usage
        assert spent["tokens"] == before["tokens"], number
        assert before["calls"] <= spent["calls"] <= before["calls"] + 4, number
        in_order(again.journal, resumed)


def in_order(journal: Path, result: Result) -> None:
    """Check that all that was ever paid, by the events, is what the ledger told at the end."""
    report = verify(journal, result.journal_head)
    assert report.ok, report.problems
    assert not [note for note in report.notes if "totals" in note.what], report.notes


async def test_failures_retries_and_estimates_of_every_part_are_in_the_account_of_the_whole(tmp_path: Path) -> None:
    async def flaky(box: FakeBox) -> None:
        with contextlib.suppress(RpcRefusal):
            await box.call("llm_query", "no")
        box.context = f"{box.context}{await box.call('llm_query', 'lost at first')}"

    def machine(folder: Path) -> Machine:
        made = Machine(folder, [[cell(flaky), cell(has_a_child), ends], [cell(child_asks)]])
        for provider in (made.root, made.sub):
            provider.once = {"lost at first", "last"} if provider is made.sub else {None}
            provider.refused = {"no"}
        return made

    first = machine(tmp_path / "first")
    result = await first.rlm.acomplete(CONTEXT, QUERY)
    assert (result.status, result.usage["estimated_calls"]) == ("answered", 3)
    in_order(first.journal, result)
    for number, state in enumerate(first.states[3::4]):
        cut(first.folder, tmp_path / str(number), state)
        again = machine(tmp_path / str(number))
        resumed = await again.rlm.aresume(again.journal, CONTEXT)
        assert resumed.answer == result.answer, number
        in_order(again.journal, resumed)
        assert resumed.usage["estimated_calls"] >= result.usage["estimated_calls"]


async def test_what_older_writers_resumed_is_not_compared(tmp_path: Path) -> None:
    first, _ = await whole(tmp_path / "first")
    again = cut(first.folder, tmp_path / "again", first.states[-4])
    await again.rlm.aresume(again.journal, CONTEXT)
    lines = again.journal.read_bytes().splitlines()
    data = [json.loads(line) for line in lines]
    for line in data:
        line.pop("chain", None)
        if line["kind"] == "resumed":
            del line["revision"]
        if line["kind"] == "run_finished":
            line["usage"]["calls"] += 1
    again.journal.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in data))
    report = verify(again.journal)
    assert report.ok, report.problems
    assert "totals were not compared" in report.notes[-1].what


async def test_one_that_is_cut_off_again_and_again_still_gets_there(tmp_path: Path) -> None:
    first, result = await whole(tmp_path / "first")
    machine = cut(first.folder, tmp_path / "0", first.states[0])
    for number in range(1, 40):
        resumed = await machine.rlm.aresume(machine.journal, CONTEXT)
        assert resumed.answer == result.answer
        if not machine.states:
            return
        in_order(machine.journal, resumed)
        machine = cut(machine.folder, tmp_path / str(number), machine.states[min(6, len(machine.states) - 1)])
    pytest.fail("it never came to its end")


async def test_one_that_was_answered_gives_its_answer_and_asks_nobody(tmp_path: Path) -> None:
    first, result = await whole(tmp_path / "first")
    again = Machine(first.folder)
    resumed = await again.rlm.aresume(first.journal, CONTEXT)
    assert (resumed.answer, resumed.turns) == (result.answer, result.turns)
    assert resumed.usage | {"wall_s": 0} == json.loads(json.dumps(result.usage)) | {"wall_s": 0}
    assert again.served == []
    assert again.boxes.opened == []


async def test_after_a_limit_it_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    limited = Machine(tmp_path / "first")
    limited.rlm.policy = Policy().override(["budget.calls=7"])
    result = await limited.rlm.acomplete(CONTEXT, QUERY)
    assert (result.status, result.reason) == ("limit", "calls")
    again = Machine(limited.folder)
    resumed = await again.rlm.aresume(limited.journal, CONTEXT, settings=["budget.calls=40"])
    assert resumed.status == "answered", resumed
    played = set(limited.sub.served) & set(again.sub.served)
    assert played <= {"of the child", "last"}
    assert resumed.usage["calls"] >= len(limited.served) + len(again.served)
    in_order(again.journal, resumed)


async def test_without_a_larger_budget_it_ends_at_the_same_limit(tmp_path: Path) -> None:
    limited = Machine(tmp_path / "first")
    limited.rlm.policy = Policy().override(["budget.calls=7"])
    await limited.rlm.acomplete(CONTEXT, QUERY)
    again = Machine(limited.folder)
    resumed = await again.rlm.aresume(limited.journal, CONTEXT)
    assert (resumed.status, resumed.reason) == ("limit", "calls")
    assert resumed.usage["calls"] <= 7
    in_order(again.journal, resumed)


async def test_one_that_a_budget_made_answer_goes_on_with_more_of_it_and_with_no_more_gives_its_answer(
    tmp_path: Path,
) -> None:
    def run(*answers: str, turns: int = 2) -> RLM:
        cells: list[CellBody] = [functools.partial(_hands_over, text) for text in answers]
        policy = POLICY.override([f"budget.turns={turns}"])
        return RLM(FakeProvider("root"), policy=policy, journal=tmp_path, open_box=FakeBoxes([cells]).open)

    first = await run("", "so far").acomplete(CONTEXT, QUERY)
    assert (first.status, first.answer, first.reason) == ("answered", "so far", "turns")
    for settings in ([], ["budget.calls=99"]):
        again = await run().aresume(first.journal or "", CONTEXT, settings=settings)
        assert (again.answer, again.turns) == ("so far", 2)
    second = await run("", "", "further").aresume(first.journal or "", CONTEXT, settings=["budget.turns=3"])
    assert (second.answer, second.reason) == ("further", "turns")
    again = await run().aresume(first.journal or "", CONTEXT, settings=["budget.turns=3"])
    assert again.answer == "further"
    third = await run("", "", "", "all of it").aresume(first.journal or "", CONTEXT, settings=["budget.turns=9"])
    assert (third.answer, third.reason) == ("all of it", "")
    report = verify(first.journal or Path(), third.journal_head)
    assert report.ok, report.problems


async def _hands_over(text: str, box: FakeBox) -> ExecutionResult | None:
    return ExecutionResult("ok", stdout=await box.call("final", text)) if text else None


async def differs(box: FakeBox) -> None:
    await box.call("llm_query", "something else")


async def test_a_cell_that_asks_something_else_is_noticed(tmp_path: Path) -> None:
    first, _ = await whole(tmp_path / "first")
    other = [[cell(differs), *story()[0][1:]], story()[1]]
    choices: tuple[OnDivergence, ...] = ("stop", "live")
    for choice in choices:
        again = cut(first.folder, tmp_path / choice, first.states[-4])
        again.boxes = FakeBoxes(other)
        again.rlm._open_box = again.boxes.open
        resumed = await again.rlm.aresume(again.journal, CONTEXT, on_divergence=choice)
        told = [record.fields for record in read(again.journal) if record.kind == "diverged"]
        assert told[0] == {"cell": 1, "what": "it asked something that it did not ask then"}
        in_order(again.journal, resumed)
        if choice == "stop":
            assert resumed.status == "failed"
            assert isinstance(resumed.error, ResumeError)
            assert "--on-divergence live" in resumed.reason
            assert again.served == []
        else:
            assert resumed.status == "answered"
            assert again.sub.served[0] == "something else"


async def test_a_call_that_failed_fails_again_and_is_not_asked(tmp_path: Path) -> None:
    async def meets_a_failure(box: FakeBox) -> None:
        with pytest.raises(RpcRefusal):
            await box.call("llm_query", "bad")

    cells: list[list[CellBody]] = [[meets_a_failure, ends]]
    first = Machine(tmp_path / "first", cells, failing=frozenset(("bad",)))
    first.rlm.policy = POLICY.override(["budget.wall_s=3", "limits.call_timeout_s=0.1"])
    result = await first.rlm.acomplete(CONTEXT, QUERY)
    (failure,) = (record for record in read(first.journal) if record.kind == SubcallFailed.kind)
    assert failure.fields["code"]
    again = cut(first.folder, tmp_path / "again", first.states[-4])
    again.boxes = FakeBoxes([[meets_a_failure, ends]])
    again.rlm._open_box = again.boxes.open
    resumed = await again.rlm.aresume(again.journal, CONTEXT)
    assert resumed.answer == result.answer
    assert "bad" not in again.sub.served
    in_order(again.journal, resumed)


async def test_what_cannot_be_resumed_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    first, _ = await whole(tmp_path / "first")
    cut_off = cut(first.folder, tmp_path / "cut", first.states[-3])
    refuse = functools.partial(cut_off.rlm.aresume, cut_off.journal)
    with pytest.raises(ResumeError, match=r"another one: this is a text of 5 characters, .* a text of 13"):
        await refuse("other")
    with pytest.raises(ResumeError, match="another one: this is a list"):
        await refuse([CONTEXT])
    with pytest.raises(ConfigurationError, match="give 'stop' or 'live'"):
        await refuse(CONTEXT, on_divergence="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unknown key"):
        await refuse(CONTEXT, settings=["budget.nonsense=1"])
    with pytest.raises(ConfigurationError, match=r"--set budget\.wall_s="):
        await refuse(CONTEXT, settings=["budget.wall_s=0.000001"])
    child = next(path for path in cut_off.folder.iterdir() if path != cut_off.journal)
    with pytest.raises(ResumeError, match="resume its parent"):
        await cut_off.rlm.aresume(child, CONTEXT)
    with pytest.raises(JournalError, match="cannot read"):
        await cut_off.rlm.aresume(tmp_path / "none.jsonl", CONTEXT)
    writer = JournalWriter.append(cut_off.journal)
    with pytest.raises(JournalError, match="another process or run is writing it"):
        await refuse(CONTEXT)
    writer.close()
    assert cut_off.boxes.opened == []
    assert cut_off.served == []


async def test_a_journal_without_its_childs_has_that_child_run_anew(tmp_path: Path) -> None:
    first, result = await whole(tmp_path / "first")
    again = cut(first.folder, tmp_path / "again", first.states[-4])
    for path in list(again.folder.iterdir()):
        if path != again.journal:
            path.unlink()
    resumed = await again.rlm.aresume(again.journal, CONTEXT)
    assert resumed.answer == result.answer
    assert "of the child" in again.sub.served


def test_a_tape_tells_where_a_run_came_from(tmp_path: Path) -> None:
    rlm = RLM("offline", None, POLICY, tmp_path, open_box=FakeBoxes([[ends]]).open)

    async def run() -> None:
        await rlm.acomplete(CONTEXT, QUERY, origin={"files": ["/a/b.txt"]})

    anyio.run(run)
    (path,) = tmp_path.iterdir()
    assert Tape.of(path).started["origin"] == {"model": "offline", "sub_model": "", "files": ["/a/b.txt"]}
    shutil.rmtree(tmp_path)


async def test_a_run_with_a_form_is_resumed_with_it_and_what_was_wrong_is_counted_once(tmp_path: Path) -> None:
    async def wrong(box: FakeBox) -> None:
        with contextlib.suppress(RpcRefusal):
            await box.call("final", "about seven")

    async def right(box: FakeBox) -> None:
        await box.call("final", "7")

    def runs(cells: list[CellBody], *settings: str) -> RLM:
        policy = POLICY.override(list(settings))
        return RLM(FakeProvider("root"), policy=policy, journal=tmp_path, open_box=FakeBoxes([cells]).open)

    first = await runs([wrong, wrong], "budget.turns=3").acomplete(CONTEXT, QUERY, int)
    assert (first.status, first.journal is not None) == ("limit", True)
    rest = await runs([wrong, wrong, wrong, right]).aresume(first.journal or "", CONTEXT, settings=["budget.turns=9"])
    assert (rest.status, rest.answer, rest.value) == ("answered", "7", 7)
    refused = [record for record in read(first.journal or Path()) if record.kind == "refused"]
    assert [record.fields["reason"] for record in refused] == ["wrong_form"] * 3
    again = await runs([]).aresume(first.journal or "", CONTEXT)
    assert (again.status, again.value) == ("answered", 7)
