"""Sessions in real boxes: variables stay, contexts are added, and a killed process costs nothing that was recorded."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from orchestrator.errors import ContextError
from orchestrator.models.scripted import ScriptedModel
from orchestrator.rlm.api import RLM
from orchestrator.sandbox.engine import Engine
from orchestrator.trajectory.journal import read
from orchestrator.trajectory.verify import verify
from tests.support.live import POLICY, TIMEOUT

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

SUB = {"shout (.*)": "$1!"}


def rlm(*cells: str, folder: Path | None = None, settings: tuple[str, ...] = ()) -> RLM:
    policy = POLICY.override(list(settings))
    return RLM(ScriptedModel.writing(*cells, sub=SUB), policy=policy, journal=folder)


async def test_variables_contexts_and_functions_stay_from_question_to_question(engine: Engine) -> None:
    del engine
    its = rlm(
        "words = context.split(); shout = llm_query('shout ' + words[0]); Final = shout",
        "draft = 'old'; Final = shout + ' ' + words[1]",
        "Final = f'{context} {len(contexts)} {contexts[0] is not context} {globals().get(\"draft\")} {words}'",
    )
    async with its.asession() as session:
        assert (await session.ask("First?", "one two")).answer == "one!"
        assert (await session.ask("Second?")).answer == "one! two"
        assert (await session.ask("Third?", "three")).answer == "three 2 True None ['one', 'two']"


async def test_what_a_question_left_running_or_set_does_not_answer_the_next(engine: Engine) -> None:
    del engine
    its = rlm(
        """
        import threading, time
        def forge():
            while True:
                globals()["Final"] = "forged"
                try: llm_query("shout forged")
                except BaseException: pass
                time.sleep(0.001)
        threading.Thread(target=forge, daemon=True).start()
        Final = "first"
        """,
        "print('nothing yet')",
        settings=("budget.turns=1",),
    )
    async with its.asession() as session:
        first = await session.ask("First?", "text")
        second = await session.ask("Second?")
    assert first.answer == "first"
    # A thread lives as long as its box does, and takes part in each cell, as any code of it may: it is what the box is
    # asked for, and it pays for what it asks. It has no say between two questions, and ends none that was not asked.
    assert second.usage["turns"] <= 1
    assert second.run == f"{session.id}-2"


async def test_a_question_that_is_stopped_in_its_cell_leaves_the_variables_it_set(engine: Engine) -> None:
    del engine
    stop = anyio.Event()

    its = rlm("kept = 41\nimport time\nprint('asleep', llm_query('shout now'))\ntime.sleep(600)", "Final = kept + 1")
    its._on_event = lambda envelope: stop.set() if envelope.event.kind == "subcall_finished" else None
    async with its.asession() as session:
        with anyio.fail_after(TIMEOUT):
            stopped = await session.ask("First?", "text", stop=stop)
        assert (stopped.status, stopped.reason) == ("failed", "interrupted")
        assert (await session.ask("Second?")).answer == "42"


async def test_stopped_in_a_cell_that_waits_a_session_is_taken_up_with_what_the_cell_had_set(
    engine: Engine, tmp_path: Path
) -> None:
    del engine
    stop = anyio.Event()
    waits = "kept = 41\nprint(llm_query('shout now'))\nkept = 0"
    its = rlm(waits, "Final = kept + 1", folder=tmp_path)
    its._sub_model = ScriptedModel.parse('[[sub]]\nmatch = "shout"\nreply = "too late"\ndelay_s = 600')
    its._on_event = lambda envelope: stop.set() if envelope.event.kind == "subcall_started" else None
    async with its.asession() as session:
        with anyio.fail_after(TIMEOUT):
            stopped = await session.ask("First?", "text", stop=stop)
        assert (stopped.status, stopped.reason) == ("failed", "interrupted")
        assert (await session.ask("Second?")).answer == "42"
    heard: list[str] = []
    again = rlm("Final = kept + 2", folder=tmp_path)
    again._on_event = lambda envelope: heard.append(envelope.event.kind)
    with anyio.fail_after(TIMEOUT):
        async with again.aresume_session(journals(tmp_path)[0], ["text"]) as session:
            assert heard == []
            assert (await session.ask("Third?")).answer == "43"
    assert "subcall_started" not in heard


async def test_code_that_goes_by_its_budget_goes_the_same_way_when_it_is_run_again(
    engine: Engine, tmp_path: Path
) -> None:
    del engine
    cells = (
        "print('looks first')",
        "kept = llm_query(f\"shout {budget()['calls']} {budget()['wall_s']}\"); Final = kept",
    )
    async with rlm(*cells, folder=tmp_path).asession() as session:
        first = await session.ask("First?", "text")
        assert (first.status, str(first.answer)[-1]) == ("answered", "!")
    async with rlm("Final = kept", folder=tmp_path).aresume_session(journals(tmp_path)[0], ["text"]) as session:
        assert (await session.ask("Second?")).answer == first.answer


async def test_after_the_kernel_died_the_next_question_is_told_and_has_all_contexts(engine: Engine) -> None:
    del engine
    its = rlm(
        "x = 1; Final = 'first'",
        "import os; os.kill(os.getpid(), 9)",
        "Final = f'{globals().get(\"x\")} {contexts}'",
    )
    async with its.asession() as session:
        await session.ask("First?", "one")
        second = await session.ask("Second?", "two")
    assert second.answer == "None ['one', 'two']"
    assert second.status == "answered"


async def test_a_box_that_is_lost_is_replaced_and_the_model_told(engine: Engine, tmp_path: Path) -> None:
    its = rlm("x = 1; Final = 'first'", "Final = f'{globals().get(\"x\")} {contexts}'", folder=tmp_path)
    async with its.asession() as session:
        await session.ask("First?", "one")
        held = session._lodging._box
        assert held is not None
        await to_thread.run_sync(engine._api.kill, held.info.container)
        answer = await session.ask("Second?", "two")
    assert answer.answer == "None ['one', 'two']"
    (told,) = (record for record in its_said(answer.journal) if "LOST" in record)
    assert "question 2 of a conversation" in told


def journals(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def its_said(journal: Path | None) -> list[str]:
    return [] if journal is None else [str(record.fields.get("text")) for record in read(journal)]


async def test_a_further_context_that_is_too_large_is_refused_and_the_session_goes_on(engine: Engine) -> None:
    del engine
    its = rlm("Final = 'first'", "Final = str(len(context))", settings=("limits.context_mb=1",))
    async with its.asession() as session:
        await session.ask("First?", "x" * 600_000)
        with pytest.raises(ContextError, match="beside the 600,000 bytes of earlier ones"):
            await session.ask("Second?", "x" * 600_000)
        assert (await session.ask("Second?")).answer == "600000"


KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.models.scripted import ScriptedModel
from orchestrator.rlm.api import RLM
from tests.support.live import POLICY

def killed(envelope):
    if envelope.event.kind == "subcall_finished" and envelope.run.endswith("-2"):
        os.kill(os.getpid(), signal.SIGKILL)

cells = sys.argv[2:]
rlm = RLM(ScriptedModel.writing(*cells, sub={"shout (.*)": "$1!"}), policy=POLICY, journal=sys.argv[1], on_event=killed)
with rlm.session() as session:
    session.ask("First?", "one two")
    session.ask("Second?", ["three"])
"""


async def test_killed_in_the_middle_it_goes_on_with_all_its_variables_and_asks_nothing_twice(
    engine: Engine, tmp_path: Path
) -> None:
    del engine
    cells = (
        "import random; words = context.split(); lucky = llm_query('shout ' + words[1]); Final = lucky",
        "more = llm_query('shout more')\nprint(more)",
        "Final = f'{lucky} {more} {contexts}'",
        "Final = f'{lucky} {more} {len(words)}'",
    )
    command = [sys.executable, "-c", KILLED, str(tmp_path), *cells]
    with anyio.fail_after(3 * TIMEOUT):
        ended = await anyio.run_process(command, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    journal = journals(tmp_path)[0]
    model = ScriptedModel.writing(*cells[2:], sub={"shout nothing": "is asked again"})
    model.name = "scripted"
    again = RLM(model, policy=POLICY, journal=tmp_path)
    async with again.aresume_session(journal, [["three"], "one two"]) as session:
        assert session.unfinished == "Second?"
        assert (await session.finish()).answer == "two! more! ['one two', ['three']]"
        third = await session.ask("Third?")
        assert third.answer == "two! more! 2"
    for path in journals(tmp_path):
        assert verify(path).ok, verify(path).problems
