"""Answers that are kept, and questions that wait for one another."""

from __future__ import annotations

import anyio
import pytest

from orchestrator.memo import Known, Memo
from orchestrator.models.base import Message, ModelRequest
from tests.support.fakes import FakeModel

pytestmark = pytest.mark.anyio

MODEL = FakeModel(name="m")


def ask(text: str = "q", max_tokens: int = 10) -> ModelRequest:
    return ModelRequest((Message("user", text),), max_tokens)


async def known(memo: Memo, request: ModelRequest, model: FakeModel = MODEL) -> Known | None:
    async with memo.turn(model, request) as slot:
        return slot.known


async def keep(memo: Memo, request: ModelRequest, answer: Known) -> None:
    async with memo.turn(MODEL, request) as slot:
        slot.keep(answer)


async def test_the_same_question_has_the_same_answer_and_any_other_none() -> None:
    memo = Memo()
    await keep(memo, ask(), Known(1, "a"))
    assert await known(memo, ask()) == Known(1, "a")
    assert await known(memo, ask("Q")) is None
    assert await known(memo, ask(max_tokens=11)) is None
    assert await known(memo, ask(), FakeModel(name="n")) is None


async def test_the_least_recently_used_answers_are_forgotten_first() -> None:
    memo = Memo(most_characters=10)
    await keep(memo, ask("1"), Known(1, "x" * 5))
    await keep(memo, ask("2"), Known(2, "x" * 5))
    assert await known(memo, ask("1"))
    await keep(memo, ask("3"), Known(3, "x" * 5))
    assert await known(memo, ask("2")) is None
    assert await known(memo, ask("1"))
    await keep(memo, ask("4"), Known(4, "x" * 11))
    assert [await known(memo, ask(text)) for text in "1234"] == [None] * 4


async def test_identical_questions_wait_for_the_first_and_others_do_not() -> None:
    memo, order, go_on = Memo(), list[str](), anyio.Event()

    async def first() -> None:
        async with memo.turn(MODEL, ask()) as slot:
            await go_on.wait()
            order.append("first")
            slot.keep(Known(1, "a"))

    async def again() -> None:
        async with memo.turn(MODEL, ask()) as slot:
            order.append(slot.known.text if slot.known else "asked twice")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(again)
        tasks.start_soon(again)
        await anyio.wait_all_tasks_blocked()
        assert await known(memo, ask("another")) is None
        go_on.set()
    assert order == ["first", "a", "a"]
    assert memo._asking == {}


async def test_after_a_failure_the_next_asks_itself() -> None:
    memo = Memo()
    with pytest.raises(LookupError):
        async with memo.turn(MODEL, ask()):
            raise LookupError
    assert await known(memo, ask()) is None
    assert memo._asking == {}
