"""From the first request to the last byte: however a box ends, no container, descriptor or task is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import anyio
import docker
import pytest
from anyio import from_thread, to_thread

from orchestrator import bundle
from orchestrator.errors import EngineUnavailableError, ImageError, SandboxGoneError, SandboxStartError
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.client import KernelClient
from orchestrator.sandbox import container, hardening, image
from orchestrator.sandbox.container import OWNER_LABEL, sweep
from orchestrator.sandbox.engine import Engine
from tests.support.live import LADDER_S, POLICY, REMOVAL_S, TIMEOUT, box, left_behind, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

STEPS = ["create", "attach", "start", "inspect"]
WAITS = ["hello", "handshake"]


async def opened_and_cancelled(engine: Engine, scope: anyio.CancelScope) -> None:
    with anyio.fail_after(TIMEOUT), scope:
        async with box(engine, context="x" * 10_000_000):
            pytest.fail("it was to be cancelled before")
    assert scope.cancelled_caught


class TestCancellation:
    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_opening_can_be_cancelled_around_every_request(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str, when: str
    ) -> None:
        done = getattr(Engine, step)
        scope = anyio.CancelScope()

        def cancelling(*arguments: object) -> object:
            if when == "before":
                from_thread.run_sync(scope.cancel)
            found = done(*arguments)
            from_thread.run_sync(scope.cancel)
            return found

        monkeypatch.setattr(Engine, step, cancelling)
        await opened_and_cancelled(engine, scope)

    @pytest.mark.parametrize("wait", WAITS)
    async def test_opening_can_be_cancelled_while_the_box_is_waited_for(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, wait: str
    ) -> None:
        waiting = getattr(KernelClient, wait)
        scope = anyio.CancelScope()

        async def cancelling(client: KernelClient) -> object:
            scope.cancel()
            return await waiting(client)

        monkeypatch.setattr(KernelClient, wait, cancelling)
        await opened_and_cancelled(engine, scope)

    async def test_a_cell_can_be_cancelled_and_takes_the_box_with_it(self, engine: Engine) -> None:
        async with box(engine) as opened:
            with anyio.fail_after(TIMEOUT), anyio.move_on_after(0.2) as scope:
                await opened.execute("import time; time.sleep(1000)")
            assert scope.cancelled_caught
            assert opened.gone
            with pytest.raises(SandboxGoneError, match="abandoned"):
                await opened.execute("1")

    async def test_leaving_the_block_ends_a_cell_that_still_runs(self, engine: Engine) -> None:
        started = time.monotonic()
        async with anyio.create_task_group() as tasks, box(engine) as opened:
            tasks.start_soon(opened.execute, "import time; time.sleep(1000)")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert time.monotonic() - started < TIMEOUT

    async def test_a_box_that_was_left_runs_nothing(self, engine: Engine) -> None:
        async with box(engine) as opened:
            await opened.execute("1")
        with pytest.raises(SandboxGoneError):
            await opened.execute("1")


class TestFailures:
    async def test_a_kernel_that_cannot_start_is_told_long_before_the_deadline(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.context.layout", lambda _context, _sizes: {"kind": "nonsense"})
        began = time.monotonic()
        with pytest.raises(SandboxStartError, match="kernel does not start"):
            async with box(engine, context="x"):
                pytest.fail("it cannot have started")
        assert time.monotonic() - began < POLICY.limits.start_timeout_s / 2

    async def test_a_box_that_is_too_small_for_its_context_is_told(self, engine: Engine) -> None:
        with pytest.raises(SandboxStartError):
            async with box(engine, "limits.memory_mb=128", context="x" * 100_000_000):
                pytest.fail("it cannot have started")

    async def test_a_box_that_takes_too_long_is_given_up(self, engine: Engine) -> None:
        with pytest.raises(SandboxStartError, match=r"not ready after 0\.05 s"):
            async with box(engine, "limits.start_timeout_s=0.05"):
                pytest.fail("it cannot have started")

    async def test_a_supervisor_that_fails_is_quoted(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardening, "supervisor_settings", lambda _policy: {"nonsense": 1})
        with pytest.raises(SandboxStartError, match=r"it said: .*KeyError"):
            async with box(engine):
                pytest.fail("it cannot have started")

    async def test_an_engine_that_does_not_answer_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # and not listening
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{nobody.getsockname()[1]}")
            with pytest.raises(EngineUnavailableError, match="start dockerd"):
                async with Sandbox.open(POLICY):
                    pytest.fail("there is no engine")

    async def test_an_image_that_is_not_there_is_named(self, engine: Engine) -> None:
        with pytest.raises(ImageError, match="no-such-image"):
            async with box(engine, "sandbox.image=no-such-image"):
                pytest.fail("there is no image")


class TestMany:
    async def test_boxes_open_and_work_side_by_side(self, engine: Engine) -> None:
        found: dict[int, object] = {}

        async def work(number: int) -> None:
            async with box(engine, context=str(number)) as opened:
                await opened.execute(f"print('x{number}' * 1000)")
                result = await opened.execute(f"print('only {number}'); context")
                found[number] = (result.stdout, result.result)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(work, number)
        assert found == {number: (f"only {number}\n", repr(str(number))) for number in range(4)}

    @pytest.mark.usefixtures("engine")
    async def test_no_descriptor_is_left_of_boxes_that_are_gone(self) -> None:
        async def count() -> int:
            async with Sandbox.open(POLICY) as opened:  # with a connection of its own, which is closed as well
                await opened.execute("1")
            return len(await to_thread.run_sync(os.listdir, "/proc/self/fd"))

        first = await count()
        assert [await count() for _ in range(3)] == [first] * 3


OWNER = """
import sys, anyio
from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
async def main():
    async with Sandbox.open(Policy().override(["limits.memory_mb=384"])) as opened:
        print(opened.info.container, flush=True)
        await opened.execute("import time; time.sleep(1000)")
anyio.run(main)
"""


class TestOrphans:
    async def test_a_box_whose_owner_is_killed_is_gone_at_once(self, engine: Engine) -> None:
        process = await anyio.open_process(
            [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, cwd=str(bundle.path("."))
        )
        assert process.stdout is not None
        name = (await process.stdout.receive()).decode().strip()
        assert engine.inspect(name)["State"]["Running"]
        process.send_signal(signal.SIGKILL)
        await process.aclose()

        def removed() -> bool:
            try:
                engine._api.wait(name, timeout=REMOVAL_S, condition="removed")
            except docker.errors.NotFound:
                return True
            return True

        with anyio.fail_after(LADDER_S):
            assert await to_thread.run_sync(removed)

    async def test_what_a_dead_owner_left_behind_is_swept_and_what_a_living_one_has_is_not(
        self, engine: Engine
    ) -> None:
        host, _, _ = container.owner().rpartition(f":{os.getpid()}:")
        found = image.find(engine)
        orphan = hardening.container_config(POLICY, found.id, "{}", {OWNER_LABEL: f"{host}:4194304:1"})
        orphan["HostConfig"]["SecurityOpt"] = []
        async with box(engine) as opened:
            engine.create(orphan, "rlm-sandbox-orphan-of-a-test")
            (identity,) = [item.id for item in engine.containers(f"{OWNER_LABEL}={orphan['Labels'][OWNER_LABEL]}")]
            assert identity in await sweep(engine)
            assert await value(opened, "1") == 1
        assert left_behind(engine) == []
