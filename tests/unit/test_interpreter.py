"""What a caller of the box may hand in; no engine is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import prepared
from orchestrator.errors import ConfigurationError, ImageError, PolicyError
from orchestrator.interpreter import BoxInfo, Sandbox
from orchestrator.kernel.client import KernelClient
from orchestrator.policy import Policy
from orchestrator.transport.mux import Mux, refuse_everything
from sandbox_image.wire import Kind

pytestmark = pytest.mark.anyio


class NoEngine:
    """Stands in for a connection that is never used."""


class NoStream:
    """Stands in for the way to a box that is never used."""

    async def receive(self) -> bytes:
        raise AssertionError("something was received")

    async def send(self, data: bytes) -> None:
        raise AssertionError(f"{len(data)} bytes were sent")

    async def aclose(self) -> None:
        """Nothing is open."""


async def never_sends(kind: Kind, payload: bytes) -> None:
    raise AssertionError(f"{kind} was sent with {len(payload)} bytes")


def idle_box() -> Sandbox:
    client = KernelClient(never_sends, 1000)
    mux = Mux(NoStream(), client, refuse_everything, max_frame=1000, max_message=1000, window=1, limits={})
    return Sandbox(client, mux, Policy(), BoxInfo("box", "image", "runtime", {}, 0.0))


@pytest.mark.parametrize("code", [None, 3, b"1"])
async def test_code_that_is_no_text_is_refused_before_anything_is_sent(code: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"the code of a cell is a str, not {type(code).__name__}"):
        await idle_box().execute(code)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5"])
async def test_a_timeout_that_is_no_positive_number_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a positive number of seconds"):
        await idle_box().execute("1", timeout)


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """Keep the policy each box would have been made under."""
    seen: list[Policy] = []

    def refuse(_engine: object, policy: Policy, _lease_s: float) -> None:
        seen.append(policy)
        raise ImageError("no further")

    monkeypatch.setattr(prepared, "_box", refuse)
    return seen


async def test_a_policy_is_given_as_itself_by_its_name_or_by_its_path(policies: list[Policy], tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[limits]\nmemory_mb = 300\n")
    given: list[str | Path | Policy | None] = [None, "strict", own, str(own), Policy(name="mine")]
    for policy in given:
        with pytest.raises(ImageError):
            async with Sandbox.open(policy, engine=NoEngine()):  # type: ignore[arg-type]
                pass
    assert [policy.name for policy in policies] == ["default", "strict", "own", "own", "mine"]


async def test_a_policy_that_does_not_exist_is_refused_before_an_engine_is_asked(policies: list[Policy]) -> None:
    with pytest.raises(PolicyError, match="no-such"):
        async with Sandbox.open("no-such"):
            pass
    assert policies == []
