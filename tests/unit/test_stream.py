from __future__ import annotations

import anyio
import pytest

from orchestrator import RLM, Policy
from orchestrator.errors import ConfigurationError, JournalError
from orchestrator.events import Envelope, RootReplied, RunFinished, RunStarted, Sink
from orchestrator.models.base import ModelReply, Usage
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel

pytestmark = pytest.mark.anyio
CODE = ModelReply("```repl\nstep()\n```", Usage(100, 10))


def rlm(*cells: CellBody, on_event: Sink | None = None) -> RLM:
    boxes = FakeBoxes([list(cells)])
    return RLM(FakeModel(default=CODE), policy=Policy(), open_box=boxes.open, on_event=on_event)


async def hangs(box: FakeBox) -> None:
    await anyio.sleep_forever()


async def test_the_events_of_a_run_come_in_order_and_then_its_result() -> None:
    heard: list[Envelope] = []
    async with rlm(finals("42"), on_event=heard.append).stream("text", "What?") as run:
        told = [envelope async for envelope in run]
        result = await run.result()
    assert (result.status, result.answer) == ("answered", "42")
    assert isinstance(told[0].event, RunStarted)
    assert isinstance(told[-1].event, RunFinished)
    assert [envelope.seq for envelope in told] == list(range(len(told)))
    assert told == heard


async def test_events_come_while_the_run_goes_on() -> None:
    go = anyio.Event()

    async def waits(box: FakeBox) -> None:
        await go.wait()
        await finals("42")(box)

    async with rlm(waits).stream("text", "What?") as run:
        async for envelope in run:
            if envelope.event.kind == "cell_started":
                go.set()
        assert (await run.result()).answer == "42"


async def test_the_result_can_be_had_without_reading_a_single_event() -> None:
    async with rlm(finals("42")).stream("text", "What?") as run:
        assert (await run.result()).answer == "42"
        assert len([envelope async for envelope in run]) > 3


async def test_a_reader_who_leaves_ends_the_run() -> None:
    heard: list[Envelope] = []
    async with rlm(hangs, on_event=heard.append).stream("text", "What?") as run:
        async for envelope in run:
            if isinstance(envelope.event, RootReplied):
                break
    assert isinstance(heard[-1].event, RunFinished)
    assert heard[-1].event.reason == "interrupted"
    with pytest.raises(RuntimeError, match="cancelled"):
        await run.result()


async def test_a_reader_who_fails_ends_the_run_and_gets_his_own_error() -> None:
    heard: list[Envelope] = []

    async def read(error: BaseException) -> None:
        async with rlm(hangs, on_event=heard.append).stream("text", "What?") as run:
            async for _ in run:
                raise error

    with pytest.raises(KeyError, match="mine"):
        await read(KeyError("mine"))
    assert isinstance(heard[-1].event, RunFinished)
    with pytest.raises(ExceptionGroup, match="mine whole"):
        await read(ExceptionGroup("mine whole", [KeyError("a"), KeyError("b")]))


async def test_a_stop_ends_the_run_with_what_it_has() -> None:
    async with rlm(hangs).stream("text", "What?") as run:
        async for envelope in run:
            if envelope.event.kind == "cell_started":
                run.stop()
        result = await run.result()
    assert (result.status, result.reason) == ("failed", "interrupted")


async def test_what_cannot_be_asked_is_told_to_whoever_reads_or_waits() -> None:
    async with rlm().stream("text", " ") as run:
        with pytest.raises(ConfigurationError, match="the query is empty"):
            await run.result()
        with pytest.raises(ConfigurationError, match="the query is empty"):
            async for _ in run:
                pass


async def test_a_sink_that_fails_ends_the_run_before_the_stream_hears_of_it() -> None:
    def full(envelope: Envelope) -> None:
        if envelope.event.kind == "cell_started":
            raise JournalError("the disk is full")

    async with rlm(finals("42"), on_event=full).stream("text", "What?") as run:
        kinds = [envelope.event.kind async for envelope in run]
        result = await run.result()
    assert "cell_started" not in kinds
    assert (result.status, result.reason) == ("failed", "the disk is full")


async def test_a_reader_that_is_slow_loses_nothing_and_holds_up_nobody() -> None:
    async with rlm(finals("42")).stream("text", "What?") as run:
        await run.result()
        seqs = []
        async for envelope in run:
            await anyio.lowlevel.checkpoint()
            seqs.append(envelope.seq)
    assert seqs == list(range(len(seqs)))
