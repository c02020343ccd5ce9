"""From the first request to the last byte: however a box ends, no container, descriptor or task is left of it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import anyio
import docker
import pytest
import requests
from anyio import from_thread, to_thread

from orchestrator import bundle
from orchestrator.errors import ContextError, EngineUnavailableError, ImageError, SandboxGoneError, SandboxStartError
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.client import KernelClient
from orchestrator.sandbox import container, hardening, image
from orchestrator.sandbox.container import EXPIRES_LABEL, OWNER_LABEL, sweep
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
        with pytest.raises(ContextError, match="memory_mb"):
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


# Says who owns its boxes, and again when it is at a stage, which it then never leaves.
OWNER = """
import sys, threading, time
import anyio
from anyio import to_thread
from orchestrator.interpreter import Sandbox
from orchestrator.sandbox import container
from orchestrator.sandbox.engine import Engine
from tests.support.live import POLICY
stage = sys.argv[1]
container._swept.add(Engine.connect().address)  # else each would take what another one leaves
def here():
    print("here", flush=True)
    time.sleep(1000)
step, _, when = stage.partition(" ")
if when:
    done = getattr(Engine, step)
    def stopping(*arguments):
        if when == "before": here()
        if when == "during": print("here", flush=True)
        found = done(*arguments)
        here()
    setattr(Engine, step, stopping)
async def asked(call):
    here()
async def main():
    async with Sandbox.open(POLICY, "the context", rpc=asked) as opened:
        if stage == "cell":
            threading.Timer(0.3, here).start()
            await opened.execute("while True: pass")
        elif stage == "ladder":
            opened._client._outcome = here
            await opened.execute("import time; time.sleep(1000)", 0.1)
        elif stage == "call":
            await opened.execute("llm_query('x')")
print(container.owner(), flush=True)
anyio.run(main)
"""
STAGES = [
    *(f"{step} {when}" for step in ("create", "attach", "start", "inspect", "end") for when in ("before", "during")),
    *("end after", "cell", "ladder", "call"),
]
# Where the engine had only made the container, or was making it: nothing runs in it, and nobody is there to remove it.
NOT_STARTED = {"create during", "attach before", "attach during", "start before", "start during"}


class TestOrphans:
    async def killed_at(self, engine: Engine, stage: str) -> str:
        """Kill an owner at ``stage``; return what it took until nothing was left."""
        process = await anyio.open_process(
            [sys.executable, "-c", OWNER, stage], stdout=subprocess.PIPE, cwd=str(bundle.path("."))
        )
        assert process.stdout is not None
        said = b""
        with anyio.fail_after(TIMEOUT):
            while b"here" not in said:
                said += await process.stdout.receive()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await process.aclose()
        mine = f"{OWNER_LABEL}={said.decode().splitlines()[0]}"

        def left() -> list[str]:
            for found in engine.containers(mine):
                if found.state != "created":
                    with suppress(docker.errors.APIError, requests.RequestException):
                        engine._api.wait(found.id, timeout=int(LADDER_S), condition="removed")
            return [found.id for found in engine.containers(mine)]

        if not await to_thread.run_sync(left):
            return "gone"
        await sweep(engine)
        return "swept" if not await to_thread.run_sync(left) else "left"

    async def test_a_box_whose_owner_is_killed_at_any_point_is_gone_at_once_or_after_a_sweep(
        self, engine: Engine
    ) -> None:
        found: dict[str, str] = {}
        few = anyio.CapacityLimiter(3)

        async def one(stage: str) -> None:
            async with few:
                found[stage] = await self.killed_at(engine, stage)

        async with anyio.create_task_group() as tasks:
            for stage in STAGES:
                tasks.start_soon(one, stage)
        assert set(found) == set(STAGES)
        assert {stage for stage, how in found.items() if how == "left"} == set()
        assert {stage for stage, how in found.items() if how == "swept"} <= NOT_STARTED
        assert found["start before"] == "swept"  # without which it would be there still

    async def test_a_box_that_does_not_hear_its_end_is_killed(self, engine: Engine) -> None:
        async with box(engine) as opened:
            await to_thread.run_sync(lambda: engine._api.kill(opened.info.container, signal="SIGSTOP"))
        assert engine.containers(f"{OWNER_LABEL}={container.owner()}") == []

    async def test_a_box_whose_owner_is_killed_is_gone_within_a_second(self, engine: Engine) -> None:
        process = await anyio.open_process(
            [sys.executable, "-c", OWNER, "cell"], stdout=subprocess.PIPE, cwd=str(bundle.path("."))
        )
        assert process.stdout is not None
        said = b""
        while b"here" not in said:
            said += await process.stdout.receive()
        (box,) = engine.containers(f"{OWNER_LABEL}={said.decode().splitlines()[0]}")
        assert engine.inspect(box.id)["State"]["Running"]
        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        await process.aclose()

        def removed() -> float:
            with suppress(docker.errors.NotFound):
                engine._api.wait(box.id, timeout=REMOVAL_S, condition="removed")
            return time.monotonic() - began

        # A second on a machine that has nothing else to do.
        assert await to_thread.run_sync(removed) < LADDER_S

    async def test_the_first_box_of_a_process_has_what_dead_owners_left_swept_and_later_ones_do_not(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swept: list[list[str]] = []
        over = anyio.Event()
        sweeping = container.sweep

        async def noted(engine: Engine) -> list[str]:
            swept.append(await sweeping(engine))
            over.set()
            return swept[-1]

        monkeypatch.setattr(container, "sweep", noted)
        monkeypatch.setattr(container, "_swept", set())
        host, _, _ = container.owner().rpartition(f":{os.getpid()}:")
        labels = {OWNER_LABEL: f"{host}:4194304:1", EXPIRES_LABEL: str(int(time.time()) + 1000)}
        config = hardening.container_config(POLICY, image.find(engine).id, "{}", labels)
        config["HostConfig"]["SecurityOpt"] = []
        orphan = engine.create(config, f"rlm-sandbox-of-a-test-{secrets.token_hex(6)}")
        try:
            async with box(engine) as opened, box(engine):
                with anyio.fail_after(REMOVAL_S):
                    await over.wait()
                assert orphan in swept[0]
                assert await value(opened, "1") == 1
            assert len(swept) == 1
        finally:
            engine.end(orphan, REMOVAL_S)

    async def test_what_a_dead_owner_left_behind_is_swept_and_what_a_living_one_has_is_not(
        self, engine: Engine
    ) -> None:
        host, _, _ = container.owner().rpartition(f":{os.getpid()}:")
        past, future = str(int(time.time()) - 1), str(int(time.time()) + 1000)
        # Who owns it, when it expires, and whether it is to go. The third and fourth cannot be asked whether they live.
        owners = {
            "dead": (f"{host}:4194304:1", future, True),
            "pid in use again": (f"{host}:{os.getpid()}:1", future, True),
            "elsewhere, expired": ("other-boot:pid-1:1:1", past, True),
            "elsewhere": ("other-boot:pid-1:1:1", future, False),
            "alive, expired": (container.owner(), past, False),
        }
        found = image.find(engine)
        made: dict[str, str] = {}
        try:
            async with box(engine) as opened:
                for name, (owner, expires, _) in owners.items():
                    labels = {OWNER_LABEL: owner, EXPIRES_LABEL: expires}
                    config = hardening.container_config(POLICY, found.id, "{}", labels)
                    config["HostConfig"]["SecurityOpt"] = []
                    made[name] = engine.create(config, f"rlm-sandbox-of-a-test-{secrets.token_hex(6)}")
                swept = await sweep(engine)
                assert {name: made[name] in swept for name in made} == {
                    name: goes for name, (_, _, goes) in owners.items()
                }
                assert await value(opened, "1") == 1
        finally:
            for identity in made.values():
                engine.end(identity, REMOVAL_S)
        assert left_behind(engine) == []
