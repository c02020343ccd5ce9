"""A session: questions in a row share a box and a history, and are taken up again from their journals."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.context import Context
from orchestrator.errors import ConfigurationError, JournalError, ModelRequestError, ResumeError
from orchestrator.events import Envelope
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.policy import Policy
from orchestrator.rlm.api import RLM
from orchestrator.rlm.dialogue import AsyncDialogue
from orchestrator.rlm.sitting import CLEAR
from orchestrator.trajectory.journal import read
from orchestrator.trajectory.verify import verify
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel
from tests.unit.test_resume import FakeProvider, cell

pytestmark = pytest.mark.anyio

POLICY = Policy().override(["budget.calls=40"])
CONTEXTS: list[Context] = ["the long text", ["more"]]


def asks(prompt: str, answer: str) -> CellBody:
    """Return a cell that asks a sub-model, and one that gives the answer."""

    async def body(box: FakeBox) -> None:
        await box.call("final", f"{answer}: {await box.call('llm_query', prompt)}")

    return cell(body)


async def prints(box: FakeBox) -> None:
    del box


class Desk:
    """One process with a session: its models, its boxes, its journals."""

    def __init__(self, folder: Path | None, *cells: Iterable[CellBody], policy: Policy = POLICY, **given: Any) -> None:
        self.root, self.sub = FakeProvider("root"), FakeProvider("sub")
        self.boxes = FakeBoxes([list(bodies) for bodies in cells])
        self.folder = folder
        self.states: list[dict[str, int]] = []
        self.requests: list[ModelRequest] = []
        keep = self.root.complete

        async def complete(request: ModelRequest) -> ModelReply:
            self.requests.append(request)
            return await keep(request)

        self.root.complete = complete  # type: ignore[method-assign]
        heard = given.pop("on_event", self._heard)
        self.rlm = RLM(self.root, self.sub, policy, folder, heard, open_box=self.boxes.open, **given)

    def _heard(self, _: Envelope) -> None:
        if self.folder is not None:
            self.states.append({path.name: path.stat().st_size for path in self.folder.glob("*.jsonl")})

    @property
    def journals(self) -> list[Path]:
        assert self.folder is not None
        return sorted(self.folder.glob("*.jsonl"))

    @property
    def served(self) -> list[str]:
        return self.root.served + self.sub.served


class TestQuestions:
    async def test_share_a_box_and_a_history_and_have_a_budget_each(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, [prints, asks("a", "one"), asks("b", "two")])
        async with desk.rlm.asession() as session:
            first = await session.ask("First?", "the long text")
            second = await session.ask("Second?")
        assert (first.answer, second.answer) == ("one: <a>", "two: <b>")
        (box,) = desk.boxes.opened
        assert desk.boxes.closed == 1
        assert box.codes[2] == CLEAR
        assert (first.usage["calls"], second.usage["calls"]) == (3, 2)
        assert [result.run for result in session.results] == [f"{session.id}-1", f"{session.id}-2"]
        last = desk.requests[-1].messages
        assert [message.role for message in last] == ["user", "assistant", "user", "assistant", "user"]
        assert last[:3] == desk.requests[1].messages
        assert "question 2 of a conversation" in last[-1].text
        assert 'it had 8 characters and began "one: <a>".' in last[-1].text
        assert "All variables of the earlier questions are still there" in last[-1].text
        assert "Second?" in last[-1].text

    async def test_are_recorded_in_a_journal_each_that_follows_on_the_one_before(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, [finals("1"), finals("2"), finals("3")])
        async with desk.rlm.asession() as session:
            results = [await session.ask("What?", "text"), await session.ask("And?"), await session.ask("Or?", "more")]
        assert [path.stem for path in desk.journals] == [f"{session.id}-{number}" for number in (1, 2, 3)]
        told = [next(read(path)).fields["session"] for path in desk.journals]
        assert [(one["id"], one["question"]) for one in told] == [(session.id, number) for number in (1, 2, 3)]
        assert [one["previous"] for one in told] == ["", results[0].journal_head, results[1].journal_head]
        assert [len(one["contexts"]) for one in told] == [1, 1, 2]
        boxes = [
            (record.kind, record.fields.get("lent"), record.fields.get("reason"))
            for path in desk.journals
            for record in read(path)
            if record.kind.startswith("sandbox")
        ]
        opened, kept = ("sandbox_opened", True, None), ("sandbox_closed", None, "kept")
        assert boxes == [("sandbox_opened", False, None), kept, opened, kept, opened, kept]
        for path, result in zip(desk.journals, results, strict=True):
            assert verify(path, result.journal_head).ok

    async def test_get_a_further_context_beside_those_that_are_there(self) -> None:
        desk = Desk(None, [finals("1"), finals("2"), finals("3")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", "the first text")
            await session.ask("And?", ["a list", "of two"])
            await session.ask("Or?", {"name": "a dict"})
            assert session.contexts == 3
        (box,) = desk.boxes.opened
        assert box.contexts == ["the first text", ["a list", "of two"], {"name": "a dict"}]
        told = desk.requests[-1].messages[-1].text
        assert '- `contexts[0]`: text, 14 characters, begins: "the first text"' in told
        assert '- `contexts[1]`: list of 2 documents, 12 characters, begins: "a list"' in told
        assert '"name"' in told

    async def test_that_find_no_answer_leave_what_they_have_to_the_next(self) -> None:
        policy = POLICY.override(["budget.turns=1"])
        desk = Desk(None, [prints, prints, finals("yes")], policy=policy)
        async with desk.rlm.asession() as session:
            assert (await session.ask("What?", "text")).status == "limit"
            assert (await session.ask("And now?")).status == "limit"
            assert (await session.ask("Really?")).answer == "yes"
        assert "The last question ended at its limit of turns." in desk.requests[-1].messages[-1].text
        assert len(desk.boxes.opened) == 1

    async def test_whose_box_is_lost_are_followed_by_one_with_a_fresh_box_that_is_told_so(self) -> None:
        entered = anyio.Event()

        async def hangs(box: FakeBox) -> None:
            del box
            entered.set()
            await anyio.sleep_forever()

        desk = Desk(None, [finals("1"), hangs], [finals("3")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", "text")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.ask, "And?", "more")
                await entered.wait()
                tasks.cancel_scope.cancel()
            assert desk.boxes.closed == 1
            assert (await session.ask("Again?")).answer == "3"
        assert [box.contexts for box in desk.boxes.opened] == [["text", "more"], ["text", "more"]]
        assert "all variables of the earlier questions are LOST" in desk.requests[-1].messages[-1].text
        assert CLEAR not in desk.boxes.opened[1].codes

    async def test_that_are_stopped_in_a_cell_leave_the_box_to_the_next(self) -> None:
        stop = anyio.Event()

        async def hangs(box: FakeBox) -> None:
            del box
            stop.set()
            await anyio.sleep_forever()

        desk = Desk(None, [hangs, finals("2")])
        async with desk.rlm.asession() as session:
            stopped = await session.ask("What?", "text", stop=stop)
            assert (stopped.status, stopped.reason) == ("failed", "interrupted")
            assert (await session.ask("And?")).answer == "2"
        assert len(desk.boxes.opened) == 1
        assert len(desk.requests) == 2

    async def test_at_once_wait_for_one_another(self) -> None:
        desk = Desk(None, [finals("1"), finals("2"), finals("3")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", "text")
            async with anyio.create_task_group() as tasks:
                for query in ("And?", "Or?"):
                    tasks.start_soon(session.ask, query)
        assert [result.answer for result in session.results] == ["1", "2", "3"]

    async def test_have_the_form_each_asks_for(self) -> None:
        desk = Desk(None, [finals("7"), finals("words")])
        async with desk.rlm.asession() as session:
            assert (await session.ask("How many?", "text", int)).value == 7
            assert (await session.ask("Which?")).answer == "words"

    async def test_are_heard_one_by_one_in_a_stream(self) -> None:
        desk = Desk(None, [finals("1"), finals("2")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", "text")
            async with session.stream("And?") as run:
                heard = {envelope.run async for envelope in run}
                assert (await run.result()).answer == "2"
        assert heard == {f"{session.id}-2"}

    async def test_that_cannot_be_asked_cost_nothing_and_leave_the_session_as_it_is(self) -> None:
        desk = Desk(None, [finals("1")])
        async with desk.rlm.asession() as session:
            with pytest.raises(ConfigurationError, match="first question of a session needs a context"):
                await session.ask("What?")
            with pytest.raises(ConfigurationError, match="the query is empty"):
                await session.ask(" ", "text")
            with pytest.raises(ConfigurationError, match="not bytes"):
                await session.ask("What?", b"text")  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="no question of this session was cut off"):
                await session.finish()
            assert (session.results, session.contexts, desk.boxes.opened) == ((), 0, [])
            assert (await session.ask("What?", "text")).answer == "1"

    async def test_that_fail_before_their_box_is_there_do_not_end_the_session(self) -> None:
        desk = Desk(None, [finals("1")])
        desk.boxes.failure = ModelRequestError("no box today")
        async with desk.rlm.asession() as session:
            assert (await session.ask("What?", "text")).status == "failed"
            desk.boxes.failure = None
            assert (await session.ask("What?")).answer == "1"

    async def test_keep_a_session_whose_journal_is_lost_from_going_on(self, tmp_path: Path) -> None:
        def full(envelope: Envelope) -> None:
            if envelope.event.kind == "root_replied":
                raise JournalError("disk full")

        desk = Desk(tmp_path, [finals("1"), finals("2")], on_event=full)
        async with desk.rlm.asession() as session:
            assert (await session.ask("What?", "text")).status == "failed"
            with pytest.raises(JournalError, match="disk full"):
                await session.ask("And?")

    async def test_whose_journal_cannot_be_made_end_the_session(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, [finals("1"), finals("2"), finals("3")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", "text")
            (tmp_path / f"{session.id}-2.jsonl").write_text("somebody else's", encoding="utf-8")
            for _ in range(2):
                with pytest.raises(JournalError, match="cannot create the journal"):
                    await session.ask("And?")
        assert len(session.results) == 1
        assert len(desk.requests) == 1

    async def test_cannot_be_asked_when_the_block_is_left(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, [finals("1")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", "text")
        with pytest.raises(ConfigurationError, match="the session is over"):
            await session.ask("And?")
        assert len(desk.journals) == 1

    async def test_whose_events_nobody_reads_any_more_are_stopped_and_leave_the_box(self) -> None:
        async def hangs(box: FakeBox) -> None:
            del box
            await anyio.sleep_forever()

        desk = Desk(None, [hangs, finals("2")])
        async with desk.rlm.asession() as session:
            async with session.stream("What?", "text") as run:
                async for envelope in run:
                    if envelope.event.kind == "cell_started":
                        break
            assert session.results[0].reason == "interrupted"
            assert (await session.ask("And?")).answer == "2"
        assert len(desk.boxes.opened) == 1

    async def test_keep_the_context_that_they_were_asked_with(self) -> None:
        context = ["one"]
        desk = Desk(None, [finals("1")], [finals("2")])
        async with desk.rlm.asession() as session:
            await session.ask("What?", context)
            context.append("two")
            desk.boxes.opened[0].gone = True
            await session.ask("And?")
        assert desk.boxes.opened[1].contexts == [["one"]]

    def test_can_be_asked_without_an_event_loop(self) -> None:
        desk = Desk(None, [finals("1"), finals("2")])
        with desk.rlm.session() as session:
            assert session.ask("What?", "text").answer == "1"
            assert session.ask("And?").answer == "2"
            assert (len(session.results), session.contexts, session.unfinished) == (2, 1, "")
        assert desk.boxes.closed == 1


CELLS = [prints, asks("a", "one"), asks("b", "two"), prints, asks("c", "three")]


async def whole(folder: Path) -> Desk:
    desk = Desk(folder, CELLS)
    async with desk.rlm.asession() as session:
        await three(session)
    return desk


async def three(session: AsyncDialogue) -> None:
    for number, (query, context) in enumerate((("First?", "the long text"), ("Second?", None), ("Third?", ["more"]))):
        if len(session.results) <= number:
            result = await (session.finish() if session.unfinished == query else session.ask(query, context))
            assert result.status == "answered", result


async def test_taken_up_again_it_goes_on_as_if_it_had_not_ended(tmp_path: Path) -> None:
    first = Desk(tmp_path / "a", CELLS)
    async with first.rlm.asession() as session:
        await session.ask("First?", "the long text")
        await session.ask("Second?")
    again = Desk(tmp_path / "a", CELLS)
    async with again.rlm.aresume_session(first.journals[0], ["the long text"]) as session:
        assert [result.answer for result in session.results] == ["one: <a>", "two: <b>"]
        assert again.served == []
        assert again.boxes.opened[0].codes == first.boxes.opened[0].codes
        assert (await session.ask("Third?", ["more"])).answer == "three: <c>"
    live = await whole(tmp_path / "b")
    assert [told(request) for request in again.requests] == [told(request) for request in live.requests[-2:]]
    assert again.boxes.opened[0].contexts == CONTEXTS


def told(request: ModelRequest) -> list[str]:
    """Return what a request says, but for the tag, which names the session, and the seconds that are left."""
    tag = request.messages[0].text.rpartition("end in `-")[2][:8]
    return [message.text.replace(tag, "TAG").replace("1,799 seconds", "1,800 seconds") for message in request.messages]


async def test_cut_off_after_any_event_it_goes_on_to_the_same_answers_and_asks_nothing_twice(tmp_path: Path) -> None:
    first = await whole(tmp_path / "first")
    everything = sorted(first.served)
    for number, state in enumerate(first.states):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, size in state.items():
            (folder / name).write_bytes((tmp_path / "first" / name).read_bytes()[:size])
        again = Desk(folder, CELLS)
        kinds = [record.kind for path in again.journals for record in read(path)]
        answered = kinds.count("root_replied") + kinds.count("subcall_finished")
        async with again.rlm.aresume_session(again.journals[0], CONTEXTS) as session:
            await three(session)
            assert [result.answer for result in session.results] == ["one: <a>", "two: <b>", "three: <c>"], number
        assert answered + len(again.served) == len(everything), number
        for path in again.journals:
            assert verify(path).ok, verify(path).problems
        shutil.rmtree(folder)


async def test_a_compacted_history_is_read_as_it_was(tmp_path: Path) -> None:
    policy = POLICY.override(["models.history_tokens=1"])

    class Sums(FakeModel):
        async def complete(self, request: ModelRequest) -> ModelReply:
            self.requests.append(request)
            if "takes the place of all turns" in request.messages[-1].text:
                return ModelReply(f"summary of {len(request.messages)}", Usage(10, 10))
            return ModelReply("Turn.\n```repl\nstep()\n```", Usage(10, 10))

    cells = [prints, prints, prints, finals("1"), prints, prints, finals("2"), prints, finals("3")]
    histories = []
    for times in (1, 2):
        folder = tmp_path / str(times)
        model = Sums()
        rlm = RLM(model, "offline", policy, folder, open_box=FakeBoxes([cells]).open)
        async with rlm.asession() as session:
            await session.ask("First?", "the long text")
            await session.ask("Second?")
            if times == 1:
                await session.ask("Third?")
        if times == 2:
            rlm = RLM(model, "offline", policy, folder, open_box=FakeBoxes([cells]).open)
            async with rlm.aresume_session(next(folder.iterdir()), ["the long text"]) as session:
                assert (await session.ask("Third?")).answer == "3"
        histories.append([told(request) for request in model.requests])
    assert histories[0] == histories[1]


def locks(folder: Path) -> list[Path]:
    return list(folder.rglob("*.lock"))


class TestTakingUp:
    @pytest.fixture
    async def desk(self, tmp_path: Path) -> Desk:
        return await whole(tmp_path / "first")

    async def test_a_question_that_was_cut_off_may_be_left(self, desk: Desk) -> None:
        last = desk.journals[-1]
        lines = last.read_bytes().splitlines(keepends=True)
        last.write_bytes(b"".join(lines[:4]))
        again = Desk(desk.folder, [*CELLS[:3], finals("other"), finals("one more")])
        async with again.rlm.aresume_session(last, CONTEXTS) as session:
            assert session.unfinished == "Third?"
            assert (await session.ask("Another?")).answer == "other"
            assert session.unfinished == ""
            with pytest.raises(ConfigurationError, match="no question of this session was cut off"):
                await session.finish()
        assert [path.stem[-2:] for path in again.journals] == ["-1", "-2", "-3", "-4"]
        once_more = Desk(desk.folder, [*CELLS[:3], finals("other"), finals("one more")])
        async with once_more.rlm.aresume_session(last, CONTEXTS) as session:
            assert [result.answer for result in session.results] == ["one: <a>", "two: <b>", "other"]
            assert (await session.ask("And?")).answer == "one more"

    async def test_a_cell_that_does_something_else_stops_it_or_costs_the_variables(self, desk: Desk) -> None:
        other = [prints, asks("x", "one"), *CELLS[2:]]
        given = desk.journals[0], CONTEXTS
        stopped = Desk(desk.folder, other)
        with pytest.raises(ResumeError, match=r"asked something that it did not ask then.*on_divergence='fresh'"):
            async with stopped.rlm.aresume_session(*given):
                pytest.fail("it went on")
        assert stopped.served == []
        fresh = Desk(desk.folder, other, [finals("4")])
        async with fresh.rlm.aresume_session(*given, on_divergence="fresh") as session:
            assert (await session.ask("Fourth?")).answer == "4"
        assert "LOST" in fresh.requests[-1].messages[-1].text
        assert fresh.boxes.closed == 2
        assert fresh.boxes.opened[1].contexts == CONTEXTS

    async def test_what_a_lost_box_saw_is_not_run_again(self, tmp_path: Path) -> None:
        entered = anyio.Event()

        async def hangs(box: FakeBox) -> None:
            del box
            entered.set()
            await anyio.sleep_forever()

        first = Desk(tmp_path, [asks("a", "one"), hangs], [asks("b", "two")])
        async with first.rlm.asession() as session:
            await session.ask("First?", "text")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.ask, "Second?")
                await entered.wait()
                tasks.cancel_scope.cancel()
            await session.ask("Third?")
        again = Desk(tmp_path, [asks("b", "two"), finals("4")])
        async with again.rlm.aresume_session(first.journals[0], ["text"]) as session:
            assert [result.status for result in session.results] == ["answered", "failed", "answered"]
            assert len(again.boxes.opened[0].codes) == 1
            assert (await session.ask("Fourth?")).answer == "4"

    async def test_settings_are_for_the_questions_to_come(self, desk: Desk) -> None:
        again = Desk(desk.folder, [*CELLS, prints, finals("4")])
        given = desk.journals[0], CONTEXTS
        async with again.rlm.aresume_session(*given, settings=["budget.turns=1"]) as session:
            assert (await session.ask("Fourth?")).reason == "turns"

    async def test_what_cannot_be_taken_up_is_refused_before_anything_is_opened(
        self, desk: Desk, tmp_path: Path
    ) -> None:
        again = Desk(desk.folder, CELLS)

        async def take_up(path: Path, contexts: list[Any], **given: Any) -> None:
            async with again.rlm.aresume_session(path, contexts, **given):
                pytest.fail("it was taken up")

        journal, both = desk.journals[0], CONTEXTS
        with pytest.raises(ResumeError, match=r"came with question 3, a list with the hash"):
            await take_up(journal, ["the long text"])
        with pytest.raises(ConfigurationError, match="give 'stop' or 'fresh'"):
            await take_up(journal, both, on_divergence="live")
        with pytest.raises(ConfigurationError, match="unknown key"):
            await take_up(journal, both, settings=["budget.nonsense=1"])
        with pytest.raises(ResumeError, match="resume_session takes it up"):
            await again.rlm.aresume(journal, "the long text")
        alone = Desk(tmp_path / "alone", [finals("1")])
        result = await alone.rlm.acomplete("text", "What?")
        with pytest.raises(ResumeError, match="of no session"):
            await take_up(result.journal or journal, both)
        desk.journals[1].write_bytes(desk.journals[2].read_bytes())
        with pytest.raises(JournalError, match="is not of question 2"):
            await take_up(journal, both)
        desk.journals[1].unlink()
        with pytest.raises(JournalError, match="the journal of question 2 of the session is missing"):
            await take_up(journal, both)
        journal.unlink()
        with pytest.raises(JournalError, match="the journal of question 1 of the session is missing"):
            await take_up(desk.journals[0], both)
        with pytest.raises(ConfigurationError, match="contexts is the list of all contexts"):
            await take_up(desk.journals[0], "the long text")  # type: ignore[arg-type]
        assert again.boxes.opened == []
        assert again.served == []
        assert not locks(tmp_path)

    async def test_a_question_that_was_cut_off_before_its_first_event_was_never_asked(self, desk: Desk) -> None:
        last = desk.journals[-1]
        for number, left in enumerate((b"", b'{"v":1,"kind":"run_st', last.read_bytes().split(b"\n")[0][:0]), 4):
            last.with_name(f"{last.stem[:-1]}{number}.jsonl").write_bytes(left)
            again = Desk(desk.folder, [*CELLS, finals("next")])
            async with again.rlm.aresume_session(last, CONTEXTS) as session:
                assert (len(session.results), session.unfinished) == (3, "")
        again = Desk(desk.folder, [*CELLS, finals("next")])
        async with again.rlm.aresume_session(last, CONTEXTS) as session:
            result = await session.ask("Next?")
        assert (result.answer, result.run) == ("next", f"{session.id}-7")

    async def test_one_that_found_its_variables_is_not_gone_on_with_where_they_are_lost(self, desk: Desk) -> None:
        last = desk.journals[-1]
        lines = last.read_bytes().splitlines(keepends=True)
        last.write_bytes(b"".join(lines[:8]))
        other = Desk(desk.folder, [prints, asks("x", "one")], [finals("anew")])
        async with other.rlm.aresume_session(last, CONTEXTS, on_divergence="fresh") as session:
            assert session.unfinished == "Third?"
            with pytest.raises(ResumeError, match="ask it again"):
                await session.finish()
            assert (await session.ask(session.unfinished)).answer == "anew"

    async def test_a_session_is_one_processs_at_a_time(self, desk: Desk) -> None:
        again, third = Desk(desk.folder, [*CELLS, finals("4")]), Desk(desk.folder, CELLS)
        async with again.rlm.aresume_session(desk.journals[0], CONTEXTS) as session:
            with pytest.raises(JournalError, match="somebody else goes on with the session"):
                async with third.rlm.aresume_session(desk.journals[1], CONTEXTS):
                    pytest.fail("both have it")
            assert (await session.ask("Fourth?")).answer == "4"
        async with third.rlm.aresume_session(desk.journals[1], CONTEXTS) as session:
            assert len(session.results) == 4

    async def test_contexts_of_the_same_characters_are_told_apart(self, tmp_path: Path) -> None:
        contexts: list[Context] = [["ab", "c"], ["a", "bc"], {"x": "t"}, {"y": "t"}]
        bodies = [finals(str(number)) for number in range(5)]
        first = Desk(tmp_path, bodies)
        async with first.rlm.asession() as session:
            for context in contexts:
                await session.ask("What?", context)
        again = Desk(tmp_path, bodies)
        async with again.rlm.aresume_session(first.journals[0], contexts[::-1]) as session:
            await session.ask("And?")
        assert again.boxes.opened[0].contexts == contexts

    async def test_a_journal_that_does_not_follow_on_the_one_before_is_refused(
        self, desk: Desk, tmp_path: Path
    ) -> None:
        other = await whole(tmp_path / "other")
        identity = desk.journals[0].stem[:-2]
        old = other.journals[0].stem[:-2]
        text = other.journals[1].read_text(encoding="utf-8").replace(old, identity)
        desk.journals[1].write_text(text, encoding="utf-8")
        with pytest.raises(JournalError, match="does not follow on the journal before it"):
            async with desk.rlm.aresume_session(desk.journals[0], CONTEXTS):
                pytest.fail("it was taken up")

    async def test_a_redacted_session_cannot_be_taken_up(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, [finals("1")], redact=True)
        async with desk.rlm.asession() as session:
            await session.ask("First?", "text")
        with pytest.raises(ConfigurationError, match="redacted"):
            async with desk.rlm.aresume_session(desk.journals[0], ["text"]):
                pytest.fail("it was taken up")
        with pytest.raises(ResumeError, match="is redacted"):
            async with Desk(tmp_path).rlm.aresume_session(desk.journals[0], ["text"]):
                pytest.fail("it was taken up")


@pytest.mark.parametrize("kind", ["sandbox_opened", "cell_started", "run_finished"])
async def test_a_listener_that_breaks_ends_its_question_and_costs_no_more_than_that(tmp_path: Path, kind: str) -> None:
    def breaks(envelope: Envelope) -> None:
        if envelope.event.kind == kind and envelope.run.endswith("-2"):
            raise RuntimeError("the listener broke")

    first = Desk(tmp_path, [finals("1"), finals("2"), finals("3")], on_event=breaks)
    async with first.rlm.asession() as session:
        await session.ask("First?", "text")
        with pytest.raises(RuntimeError, match="the listener broke"):
            await session.ask("Second?")
        told = session.results[1].status
        third = await session.ask("Third?")
    assert third.status == "answered"
    recorded = [record.fields["status"] for record in read(first.journals[1]) if record.kind == "run_finished"]
    assert recorded == [told]
    again = Desk(tmp_path, [finals("1"), finals("2"), finals("3")])
    async with again.rlm.aresume_session(first.journals[0], ["text"]) as session:
        assert session.results[2].answer == third.answer
    assert again.boxes.opened[0].codes == first.boxes.opened[0].codes
