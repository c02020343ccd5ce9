"""What the engine's refusals, silences and events about a runtime mean."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import docker
import docker.errors
import pytest
import requests

from orchestrator import interpreter
from orchestrator.errors import EngineUnavailableError
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.kernel.client import KernelClient
from orchestrator.kernel.result import ExecutionResult
from orchestrator.policy import Policy
from orchestrator.sandbox.engine import Engine
from orchestrator.transport.mux import Mux

CONFIG = {"HostConfig": {"Runtime": "runsc"}}


class Events:
    """The engine's stream of events; counts how often it was closed."""

    def __init__(self, told: list[dict[str, Any]]) -> None:
        self._told = told
        self.closed = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._told)

    def close(self) -> None:
        self.closed += 1


class Api:
    """Answers as Docker's own client does."""

    def __init__(self, error: Exception | None = None, events: list[dict[str, Any]] | None = None) -> None:
        self._error = error
        self.stream = Events(events or [])
        self.asked: dict[str, Any] = {}
        self.more: dict[str, Any] = {}

    def create_container_from_config(self, _config: object, _name: str) -> dict[str, str]:
        if self._error is not None:
            raise self._error
        return {"Id": "ab"}

    def start(self, _container: str) -> None:
        raise requests.ReadTimeout("UnixHTTPConnectionPool(host='localhost', port=None): Read timed out.")

    def info(self) -> dict[str, Any]:
        return {"Runtimes": {"runc": {}, "crun": {}}, "Name": "vm"} | self.more

    def version(self) -> dict[str, Any]:
        return {"Version": "20.10"}

    def events(self, **asked: Any) -> Events:
        self.asked = asked
        return self.stream


def engine(api: Api) -> Engine:
    return Engine(cast("docker.APIClient", api))


@pytest.mark.parametrize("words", ["Unknown runtime specified runsc", "unknown or invalid runtime name: runsc"])
def test_a_runtime_that_is_not_there_is_said_with_those_that_are(words: str) -> None:
    api = Api(docker.errors.APIError("400", explanation=words))
    with pytest.raises(EngineUnavailableError, match=r"no runtime 'runsc': register it .*\(crun, runc\)"):
        engine(api).create(CONFIG, "box")


@pytest.mark.parametrize("runtime", ["", "runc"])
def test_another_refusal_keeps_its_own_words(runtime: str) -> None:
    api = Api(docker.errors.APIError("400", explanation="invalid mount"))
    with pytest.raises(EngineUnavailableError, match="refused to create the container: invalid mount"):
        engine(api).create({"HostConfig": {"Runtime": runtime}}, "box")


@pytest.mark.parametrize(
    ("more", "swarm"),
    [
        ({}, False),
        ({"Swarm": None}, False),
        ({"Swarm": {"LocalNodeState": "inactive"}}, False),
        ({"Swarm": {"LocalNodeState": "active"}}, True),
    ],
)
def test_an_engine_says_where_it_is_and_whether_it_is_of_a_swarm(more: dict[str, Any], *, swarm: bool) -> None:
    api = Api()
    api.more = more
    assert (engine(api).info().name, engine(api).info().swarm) == ("vm", swarm)


def test_an_engine_that_hangs_is_not_said_to_be_gone() -> None:
    with pytest.raises(EngineUnavailableError, match="did not start the container within 60 s"):
        engine(Api()).start("box")


def oom(at_s: float) -> dict[str, Any]:
    return {"Action": "oom", "timeNano": int(at_s * 1e9)}


def die(at_s: float, code: str = "137") -> dict[str, Any]:
    return {"Action": "die", "timeNano": int(at_s * 1e9), "Actor": {"Attributes": {"exitCode": code}}}


@pytest.mark.parametrize(
    ("events", "of_memory"),
    [
        ([oom(100), die(100.1)], True),
        ([oom(10), oom(100), die(100.1)], True),
        ([die(100)], False),
        ([], False),
        ([oom(100)], False),
        ([oom(10), die(100)], False),
        ([oom(100), die(100.1, "0")], False),
    ],
    ids=["memory", "the second time", "other", "not told", "still there", "long ago", "ended by itself"],
)
def test_what_a_container_died_of_is_what_came_just_before(events: list[dict[str, Any]], *, of_memory: bool) -> None:
    api = Api(events=events)
    before = time.time()
    assert engine(api).ran_out_of_memory("box", 2) is of_memory
    assert api.asked["filters"] == {"container": ["box"], "event": ["oom", "die"]}
    assert before + 1 <= api.asked["until"] <= time.time() + 2
    assert api.stream.closed == 1


def test_a_socket_that_nobody_listens_on_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(EngineUnavailableError, match="No such file or directory"):
        Engine.connect()
    assert set(Path("/proc/self/fd").iterdir()) == before
    gc.collect()  # a socket that was left open would be an error here: filterwarnings


class DeadClient:
    """A kernel whose box ended during the cell."""

    gone = True

    async def execute(self, *_: object) -> ExecutionResult:
        return ExecutionResult("died", state_lost=True, detail="the box ended")


class NoCalls:
    """A stream without calls."""

    cell: int | None = None

    def cancel_calls(self) -> None:
        """There are none."""


class Coroner:
    """Says what a box died of."""

    def __init__(self, say: Callable[[], bool]) -> None:
        self._say = say

    def ran_out_of_memory(self, container: str, _patience_s: int) -> bool:
        assert container == "box"
        return self._say()


async def died(say: Callable[[], bool]) -> ExecutionResult:
    box = Sandbox(
        cast("KernelClient", DeadClient()),
        cast("Mux", NoCalls()),
        Policy(),
        BoxInfo("box", "image", "runsc", {}, 0.0),
        cast("Engine", Coroner(say)),
    )
    return await box.execute("1")


@pytest.mark.anyio
async def test_a_box_that_died_of_memory_is_called_by_that_name() -> None:
    result = await died(lambda: True)
    assert (result.status, result.state_lost, result.detail) == ("oom", True, "the box ended: its memory was used up")


def _gone() -> bool:
    raise EngineUnavailableError("gone")


@pytest.mark.anyio
@pytest.mark.parametrize("say", [lambda: False, _gone], ids=["of something else", "and so did the engine"])
async def test_a_box_that_died_of_another_cause_just_died(say: Callable[[], bool]) -> None:
    result = await died(say)
    assert (result.status, result.detail) == ("died", "the box ended")


@pytest.mark.anyio
async def test_an_engine_that_does_not_say_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    answered = threading.Event()
    monkeypatch.setattr(interpreter, "AUTOPSY_S", 0.05)
    with anyio.fail_after(5):
        result = await died(lambda: answered.wait(30))
    answered.set()
    assert result.status == "died"
