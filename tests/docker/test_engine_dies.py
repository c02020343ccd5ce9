"""An engine that hangs, or is killed and comes back: cells still end, with a typed outcome, and nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import anyio
import pytest
from anyio import to_thread

from orchestrator.errors import EngineUnavailableError, SandboxGoneError
from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox import container
from orchestrator.sandbox.container import OWNER_LABEL, sweep
from orchestrator.sandbox.engine import Engine
from tests.support.live import LADDER_S, TIMEOUT, box, outcome, value
from tests.support.private_engine import PrivateEngine, missing, private_engine

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


@pytest.fixture(scope="module")
def daemon(live_engine: Engine) -> Iterator[PrivateEngine]:
    if reason := missing():
        pytest.skip(reason)
    with private_engine(live_engine) as engine:
        yield engine


async def test_a_cell_ends_at_its_deadline_while_the_engine_hangs(
    daemon: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "REMOVE_TIMEOUT_S", 1)
    engine = daemon.connect()
    async with box(engine) as opened:
        assert await value(opened, "1") == 1
        daemon.signal(signal.SIGSTOP)
        result = await outcome(opened, "while True: pass", 0.5)
        assert (result.status, result.state_lost, result.ladder[-1]) == ("timeout", True, "destroy")
        assert opened.gone
        began = anyio.current_time()
    # Nor is the way out waited for without end.
    assert anyio.current_time() - began < LADDER_S
    daemon.signal(signal.SIGCONT)
    await nothing_left(engine)
    engine.close()


# Docker's library leaves a socket that did not connect to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_engine_that_is_killed_and_comes_back_is_told_and_leaves_nothing(
    daemon: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "REMOVE_TIMEOUT_S", 1)
    engine = daemon.connect()
    results: list[ExecutionResult] = []
    async with box(engine) as opened:

        async def run() -> None:
            results.append(await opened.execute("while True: pass", TIMEOUT))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            await to_thread.run_sync(daemon.signal, signal.SIGKILL)
        (result,) = results
        assert (result.status, result.state_lost) == ("died", True)
        assert result.elapsed_s < TIMEOUT / 2
        with pytest.raises(SandboxGoneError):
            await opened.execute("1")
    with pytest.raises(EngineUnavailableError):
        async with box(engine):
            pytest.fail("there is no engine")
    await to_thread.run_sync(daemon.start)
    await nothing_left(engine)
    async with box(engine) as opened:
        assert await value(opened, "1") == 1
    engine.close()


async def nothing_left(engine: Engine) -> None:
    """Wait until this process has no container there: it has ended by itself, or with the engine."""
    mine = f"{OWNER_LABEL}={container.owner()}"
    with anyio.fail_after(TIMEOUT):
        while await to_thread.run_sync(engine.containers, mine):
            await sweep(engine)
