"""What a box is for works under its filter and in its limits."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable

import pytest

from orchestrator.interpreter import Sandbox
from orchestrator.sandbox.engine import Engine
from tests.escape.workloads import WORKLOADS, processes
from tests.support import policies

pytestmark = pytest.mark.docker

POLICY = policies.base().override(["limits.memory_mb=1024", "limits.context_mb=8", "limits.cell_timeout_s=60.0"])


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def box(live_engine: Engine, anyio_backend: str) -> AsyncIterator[Sandbox]:
    """One box for all: what one leaves behind must not trouble the next."""
    async with Sandbox.open(POLICY, engine=live_engine) as box:
        yield box


@pytest.mark.anyio
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
async def test_a_box_can_do(box: Sandbox, workload: Callable[[], None]) -> None:
    if workload is processes.listings and "Linux version 4.4.0" in box.info.kernel:
        pytest.skip("gVisor of 2022 does not know AT_NO_AUTOMOUNT, without which ls and stat ask for nothing")
    result = await box.execute(f"{inspect.getsource(workload)}\n{workload.__name__}()")
    assert result.ok, result.error and result.error.traceback
