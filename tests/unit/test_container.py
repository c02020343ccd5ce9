"""The life of a container: whatever goes wrong in it, the engine is asked to remove it, and never one that lives."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from anyio import from_thread, to_thread

from orchestrator.errors import EngineUnavailableError
from orchestrator.policy import Policy
from orchestrator.sandbox import container as containers
from orchestrator.sandbox.container import EXPIRES_LABEL, OWNER_LABEL, abandoned, started, sweep
from orchestrator.sandbox.engine import ContainerInfo, Engine

pytestmark = pytest.mark.anyio

BOUND = 5


class FakeEngine:
    """Makes containers that are no more than a name and a socket.

    Args:
        failing: the step that is refused.
        during: called in the worker thread in the middle of a step.

    Attributes:
        present: containers that were created and not removed.
        peers: the engine's ends of the streams.
    """

    def __init__(self, failing: str = "", during: Callable[[str], object] = lambda _step: None) -> None:
        self.present: dict[str, dict[str, Any]] = {}
        self.peers: list[socket.socket] = []
        self._failing = failing
        self._during = during

    def _step(self, name: str) -> None:
        self._during(name)
        if name == self._failing:
            raise EngineUnavailableError(f"refused to {name}")

    def create(self, config: dict[str, Any], name: str) -> str:
        self.present[name] = config  # a create that times out may still have created
        self._step("create")
        return name

    def attach(self, _container: str) -> socket.socket:
        self._step("attach")
        ours, engines = socket.socketpair()
        self.peers.append(engines)
        return ours

    def start(self, _container: str) -> None:
        self._step("start")

    def end(self, container: str, timeout_s: float) -> None:
        assert timeout_s > 0
        self._step("end")
        self.present.pop(container, None)

    def containers(self, label: str) -> list[ContainerInfo]:
        assert label == OWNER_LABEL
        return [ContainerInfo(name, "running", config["Labels"]) for name, config in self.present.items()]

    def hung_up(self) -> bool:
        """Whether the other end of every stream was closed."""
        for peer in self.peers:
            peer.settimeout(0)
        return all(peer.recv(1) == b"" for peer in self.peers)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


def engine(fake: FakeEngine) -> Engine:
    return cast("Engine", fake)


class TestLife:
    async def test_it_is_there_in_its_block_and_gone_after_it(self) -> None:
        fake = FakeEngine()
        async with started(engine(fake), {"Labels": containers.labels(60)}) as container:
            assert list(fake.present) == [container.id]
            fake.peers[0].sendall(b"\x01\0\0\0\0\0\0\x02hi")
            assert await container.stream.receive() == b"hi"
        assert not fake.present
        assert fake.hung_up()
        fake.close()

    @pytest.mark.parametrize("step", ["create", "attach", "start"])
    async def test_a_step_that_is_refused_leaves_nothing(self, step: str) -> None:
        fake = FakeEngine(failing=step)

        async def open_it() -> None:
            async with started(engine(fake), {}):
                pass

        with pytest.raises(EngineUnavailableError, match=step):
            await open_it()
        assert not fake.present
        assert fake.hung_up()
        fake.close()

    async def test_an_exception_in_the_block_leaves_nothing_and_leaves_itself(self) -> None:
        fake = FakeEngine()

        async def fail() -> None:
            async with started(engine(fake), {}):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert not fake.present
        fake.close()

    @pytest.mark.parametrize("step", ["create", "attach", "start"])
    async def test_a_cancellation_in_the_middle_of_a_step_leaves_nothing(self, step: str) -> None:
        def cancel(current: str) -> None:
            if current == step:
                from_thread.run_sync(scope.cancel)

        fake = FakeEngine(during=cancel)
        with anyio.fail_after(BOUND), anyio.CancelScope() as scope:
            async with started(engine(fake), {}):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert not fake.present
        assert fake.hung_up()
        fake.close()

    @pytest.mark.parametrize("waits", [True, False], ids=["", "without the wait for the step"])
    async def test_a_task_that_asyncio_cancels_in_the_middle_of_a_step_leaves_nothing(
        self,
        monkeypatch: pytest.MonkeyPatch,
        waits: bool,  # noqa: FBT001
    ) -> None:
        """The step goes on in its thread, which anyio shields from cancellations of its own kind alone."""
        if not waits:
            monkeypatch.setattr(containers._Life, "_next", lambda _life: nullcontext())
        asked, ended, loop = threading.Event(), threading.Event(), asyncio.get_running_loop()

        class SlowEngine(FakeEngine):
            def create(self, config: dict[str, Any], name: str) -> str:
                loop.call_soon_threadsafe(task.cancel)
                # The engine takes its time; in the twin, until the end of the container has come and gone.
                (asked if waits else ended).wait(BOUND)
                return super().create(config, name)

            def attach(self, container: str) -> socket.socket:
                streams.append(super().attach(container))
                return streams[-1]

            def end(self, container: str, timeout_s: float) -> None:
                super().end(container, timeout_s)
                ended.set()

        async def live() -> None:
            async with started(engine(fake), {}):
                await anyio.sleep_forever()

        fake, streams = SlowEngine(), list[socket.socket]()
        task = asyncio.create_task(live())
        loop.call_later(0.05, asked.set)
        with anyio.fail_after(2 * BOUND), pytest.raises(asyncio.CancelledError):
            await task
        for thread in threading.enumerate():
            if thread.name == containers.ENDING:
                await to_thread.run_sync(thread.join)
        with anyio.fail_after(BOUND):
            while not waits and not streams:
                await anyio.lowlevel.checkpoint()
        assert bool(fake.present) is not waits
        assert all(stream.fileno() < 0 for stream in streams) is waits
        for stream in streams:
            stream.close()
        fake.close()

    async def test_an_engine_that_refuses_the_removal_does_not_hide_the_result(self) -> None:
        fake = FakeEngine(failing="end")
        async with started(engine(fake), {}):
            pass
        assert fake.present
        assert fake.hung_up()
        fake.close()

    @pytest.mark.parametrize("bound", [0.05, None], ids=["", "without the bound"])
    async def test_an_engine_that_hangs_at_the_removal_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, bound: float | None
    ) -> None:
        monkeypatch.setattr(containers, "REMOVE_TIMEOUT_S", bound)
        let_go, left = threading.Event(), anyio.Event()
        fake = FakeEngine(during=lambda step: step == "end" and let_go.wait(4 * BOUND))

        async def live() -> None:
            async with started(engine(fake), {}):
                pass
            left.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live)
            # In the twin the way out is as long as the engine likes; a second is enough to know it from the bound.
            with anyio.move_on_after(1 if bound is None else BOUND) as waiting:
                await left.wait()
            assert waiting.cancelled_caught is (bound is None)
            assert fake.present  # the engine hangs to this moment
            assert fake.hung_up()  # and the box was ended all the same
            let_go.set()
        fake.close()


class TestOwnership:
    def test_the_owner_is_this_very_process(self) -> None:
        assert containers.owner() == containers.owner()
        assert f":{os.getpid()}:" in containers.owner()
        labels = containers.labels(100)
        assert int(labels[EXPIRES_LABEL]) >= time.time() + 100 + containers.LEASE_SLACK_S - 2

    @staticmethod
    def judged(owner: str | None, expires: str = "", now: float = 1000.0) -> bool:
        labels = {EXPIRES_LABEL: expires} | ({} if owner is None else {OWNER_LABEL: owner})
        return abandoned(ContainerInfo("c", "running", labels), now)

    def test_a_container_of_a_living_owner_is_never_touched(self) -> None:
        assert not self.judged(containers.owner(), expires="1")

    def test_a_container_of_a_dead_owner_of_this_boot_is_abandoned(self) -> None:
        host, _, _ = containers.owner().rpartition(f":{os.getpid()}:")
        assert self.judged(f"{host}:{os.getpid()}:1")
        assert self.judged(f"{host}:4194304:1")

    @pytest.mark.parametrize(("expires", "gone"), [("999", True), ("1001", False), ("", False), ("soon", False)])
    @pytest.mark.parametrize("owner", [None, "", "other-boot:pid-4026531836:1:1", "::", "nonsense"])
    def test_an_owner_that_cannot_be_asked_has_until_the_lease_ends(
        self,
        owner: str | None,
        expires: str,
        gone: bool,  # noqa: FBT001
    ) -> None:
        assert self.judged(owner, expires) is gone

    async def test_a_sweep_removes_the_abandoned_alone(self) -> None:
        fake = FakeEngine()
        host, _, _ = containers.owner().rpartition(f":{os.getpid()}:")
        fake.present = {
            "mine": {"Labels": containers.labels(1)},
            "orphan": {"Labels": {OWNER_LABEL: f"{host}:4194304:1"}},
        }
        assert await sweep(engine(fake)) == ["orphan"]
        assert list(fake.present) == ["mine"]


def users(policy: Policy, number: int, boxes: ExitStack) -> list[str]:
    return [boxes.enter_context(containers.own_user(policy)).sandbox.user for _ in range(number)]


def test_boxes_have_uids_of_their_own_and_nothing_else_of_the_policy_is_changed() -> None:
    policy = Policy().override(["sandbox.uids=3", "sandbox.user='70000:70001'"])
    with ExitStack() as boxes:
        assert sorted(users(policy, 3, boxes)) == ["70000:70001", "70001:70001", "70002:70001"]
    with containers.own_user(policy) as its:
        assert its.override([f"sandbox.user='{policy.sandbox.user}'"]) == policy


def test_a_uid_is_passed_over_while_a_box_has_it_however_many_came_since() -> None:
    policy = Policy().override(["sandbox.uids=3", "sandbox.user='70000:70001'"])
    with containers.own_user(policy) as long:
        for _ in range(6):
            with containers.own_user(policy) as short:
                assert short.sandbox.user != long.sandbox.user


def test_more_boxes_than_uids_share_them() -> None:
    policy = Policy().override(["sandbox.uids=2", "sandbox.user='70000:70001'"])
    with ExitStack() as boxes:
        assert set(users(policy, 5, boxes)) == {"70000:70001", "70001:70001"}
    assert not containers._taken
