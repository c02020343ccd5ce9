"""A root model's history grows until it is compacted; then the model's own summary takes its place, for its price."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ModelRequestError, ModelUnavailableError
from orchestrator.models.base import Message, ModelReply, ModelRequest, Usage
from orchestrator.policy import Policy
from orchestrator.rlm import prompt
from orchestrator.rlm.api import RLM
from orchestrator.rlm.history import History
from orchestrator.trajectory.journal import read
from orchestrator.trajectory.tape import Tape
from orchestrator.trajectory.verify import verify
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel
from tests.unit.test_resume import cut, story, whole

pytestmark = pytest.mark.anyio

SUMMARY = "I found 3 of 7; they are in `found`."


def told(history: History) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in history.messages]


class TestHistory:
    def test_what_is_said_in_a_row_is_one_message(self) -> None:
        history = History()
        history.ask("What?")
        history.say("And more.")
        history.reply("")
        assert told(history) == [("user", "What?\n\nAnd more."), ("assistant", "(empty reply)")]

    def test_compacted_it_has_the_question_the_summary_and_the_last_turn(self) -> None:
        history = History()
        history.ask("What?")
        for number in range(5):
            history.reply(f"reply {number}")
            history.say(f"seen {number}")
        assert history.compactable
        history.compact(SUMMARY)
        (role, text), *rest = told(history)
        assert (role, text.startswith("What?\n\n# What was done")) == ("user", True)
        assert text.endswith(SUMMARY)
        assert rest == [("assistant", "reply 4"), ("user", "seen 4")]
        assert not history.compactable

    def test_of_a_second_summary_only_the_second_is_left(self) -> None:
        history = History()
        history.ask("What?")
        for summary in ("the first", "the second"):
            for number in range(3):
                history.reply(f"reply {number}")
                history.say("seen")
            history.compact(summary)
        assert "the first" not in history.messages[0].text
        assert history.messages[0].text.count("What?") == 1

    def test_of_earlier_questions_only_the_summary_is_left(self) -> None:
        history = History()
        history.ask("The first?")
        history.reply("reply")
        history.say("seen")
        history.reply("the answer")
        history.ask("The second?")
        assert history.compactable
        history.compact(SUMMARY)
        ((_, text),) = told(history)
        assert text.startswith("The second?")
        assert "The first?" not in text

    @pytest.mark.parametrize("summary", ["", "  \n"])
    def test_without_a_summary_the_model_is_told_to_look(self, summary: str) -> None:
        history = History()
        history.ask("What?")
        history.compact(summary)
        assert history.messages[0].text.endswith(prompt.NO_SUMMARY)

    def test_a_notice_is_not_kept(self) -> None:
        history = History()
        history.ask("What?")
        assert history.with_notice("Now.") == (Message("user", "What?\n\nNow."),)
        assert told(history) == [("user", "What?")]


class Summing(FakeModel):
    """Runs a step each turn; sums up where it is asked to; its bill grows with what it is sent."""

    def __init__(self, summary: ModelReply | None = None) -> None:
        super().__init__(name="root")
        self.summaries: list[ModelRequest] = []
        self._summary = summary or ModelReply(SUMMARY, Usage(500, 50))

    async def complete(self, request: ModelRequest) -> ModelReply:
        if "takes the place of all turns" in request.messages[-1].text:
            self.summaries.append(request)
            return self._summary
        self.requests.append(request)
        step = f"Turn.\n```repl\nstep({len(self.requests)})\n```"
        return ModelReply(step, Usage(request.characters // 4, 10))


async def prints(box: FakeBox) -> None:
    del box


def runs(model: FakeModel, cells: Iterable[CellBody], *settings: str, **given: Any) -> RLM:
    policy = Policy().override(list(settings))
    return RLM(model, FakeModel(name="sub"), policy, open_box=FakeBoxes([list(cells)]).open, **given)


async def test_a_run_whose_history_grows_too_long_goes_on_with_a_summary_of_it(tmp_path: Path) -> None:
    model = Summing()
    rlm = runs(model, [prints] * 6 + [finals("42")], "models.history_tokens=2150", journal=tmp_path)
    result = await rlm.acomplete("the text", "What is it?")
    assert (result.status, result.answer) == ("answered", "42")
    assert model.summaries
    assert result.turns == len(model.requests) + len(model.summaries) == result.usage["calls"]
    assert result.usage["tokens"] == sum(request.characters // 4 + 10 for request in model.requests) + 550 * len(
        model.summaries
    )
    after = next(request for request in model.requests if SUMMARY in request.messages[0].text)
    assert [message.role for message in after.messages] == ["user", "assistant", "user"]
    assert after.messages[0].text.startswith(model.requests[0].messages[0].text)
    assert after.characters < model.summaries[0].characters
    records = list(read(result.journal or tmp_path))
    (compacting, *_) = (record for record in records if record.kind == "compacting")
    following = records[compacting.seq + 1]
    assert (following.kind, following.fields["turn"]) == ("root_replied", compacting.fields["turn"])
    assert following.fields["text"] == SUMMARY
    assert verify(result.journal or tmp_path, result.journal_head).ok


async def test_turned_off_it_never_does() -> None:
    model = Summing()
    await runs(model, [prints] * 6 + [finals("42")], "models.history_tokens=0").acomplete("the text", "What is it?")
    assert not model.summaries
    assert len(model.requests[-1].messages) == 13


async def test_a_history_that_is_shorter_is_left_as_it_is() -> None:
    model = Summing()
    await runs(model, [prints] * 6 + [finals("42")]).acomplete("the text", "What is it?")
    assert not model.summaries


async def test_a_model_that_refuses_to_sum_up_goes_on_without() -> None:
    model = Summing(ModelReply("", Usage(500, 0), "refusal"))
    rlm = runs(model, [prints] * 6 + [finals("42")], "models.history_tokens=2150")
    assert (await rlm.acomplete("the text", "What is it?")).answer == "42"
    assert any(prompt.NO_SUMMARY in request.messages[0].text for request in model.requests)


async def test_a_summary_that_the_budget_does_not_allow_ends_the_run_at_that_limit() -> None:
    model = Summing()
    rlm = runs(model, [prints] * 9, "models.history_tokens=2150", "budget.turns=4")
    result = await rlm.acomplete("the text", "What is it?")
    assert (result.status, result.reason, result.usage["turns"]) == ("limit", "turns", 4)


async def test_cut_off_around_a_summary_it_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["budget.calls=40", "models.history_tokens=1"]
    monkeypatch.setattr("tests.unit.test_resume.POLICY", Policy().override(settings))
    monkeypatch.setattr("tests.unit.test_resume.story", lambda: [[prints, prints, *story()[0]], story()[1]])
    first, result = await whole(tmp_path / "first")
    kinds = [record.kind for record in read(first.journal)]
    assert kinds.count("compacting") >= 2
    for number, state in enumerate(first.states):
        again = cut(first.folder, tmp_path / str(number), state)
        resumed = await again.rlm.aresume(again.journal, "the long text")
        assert (resumed.status, resumed.answer, resumed.turns) == ("answered", result.answer, result.turns), number
        assert summaries(again.journal) == summaries(first.journal), number


def summaries(journal: Path) -> list[str]:
    return [record.fields["text"] for record in read(journal) if record.fields.get("summary")]


async def test_a_summary_that_failed_is_not_asked_for_again_where_that_is_turned_off(tmp_path: Path) -> None:
    class TooLong(Summing):
        async def complete(self, request: ModelRequest) -> ModelReply:
            if "takes the place of all turns" in request.messages[-1].text:
                raise ModelRequestError("the prompt is too long")
            return await super().complete(request)

    cells = [prints] * 3 + [finals("42")]
    failed = await runs(TooLong(), cells, "models.history_tokens=1", journal=tmp_path).acomplete("the text", "What?")
    assert failed.status == "failed"
    again = runs(model := Summing(), cells, journal=tmp_path)
    resumed = await again.aresume(failed.journal or "", "the text", settings=["models.history_tokens=0"])
    assert (resumed.answer, model.summaries, resumed.reason) == ("42", [], "")
    assert verify(failed.journal or tmp_path).ok


async def test_a_last_word_after_a_summary_that_could_not_be_paid_is_read_as_what_it_is(tmp_path: Path) -> None:
    class Down(Summing):
        async def complete(self, request: ModelRequest) -> ModelReply:
            if "takes the place of all turns" in request.messages[-1].text:
                raise ModelUnavailableError("down")
            return await super().complete(request)

    rlm = runs(Down(), [prints] * 9, "models.history_tokens=1", "budget.calls=4", journal=tmp_path)
    async with rlm.asession() as session:
        result = await session.ask("What?", "the text")
    assert result.reason == "calls"
    kinds = [record.kind for record in read(result.journal or tmp_path)]
    assert kinds.index("compacting") < len(kinds) - 1 - kinds[::-1].index("root_replied")
    tape = Tape.of(result.journal or tmp_path, whole=True)
    assert "compact" not in {way for way, _ in tape.talk}
