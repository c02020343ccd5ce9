"""Boxes ahead of demand: ready when asked for, used once, replaced, and gone with the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from orchestrator import pool as pools
from orchestrator import prepared
from orchestrator.errors import (
    ConfigurationError,
    ContextError,
    EngineUnavailableError,
    HardeningError,
    SandboxGoneError,
)
from orchestrator.pool import Pool
from orchestrator.sandbox.engine import Engine
from tests.support import policies
from tests.support.live import POLICY, TIMEOUT, left_behind, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


@asynccontextmanager
async def filled(engine: Engine, size: int = 1) -> AsyncIterator[Pool]:
    async with Pool.open(POLICY, size, engine=engine) as pool:
        with anyio.fail_after(TIMEOUT):
            await pool.filled()
        yield pool


async def test_a_box_from_the_pool_holds_its_context_and_is_like_any_other(engine: Engine) -> None:
    async with filled(engine) as pool, pool.box(POLICY, ["one", "two"]) as box:
        assert await value(box, "context") == ["one", "two"]
        assert {name for name, found in box.info.controls.items() if "held" not in found} <= policies.REPORTED
        assert await value(box, "x = 1\nx + 1") == 2


async def test_a_box_is_used_once_and_another_takes_its_place(engine: Engine) -> None:
    async with filled(engine) as pool:
        seen = []
        for number in range(3):
            async with pool.box(POLICY, str(number)) as box:
                seen.append(box.info.container)
                assert await value(box, "context, 'left' in globals()") == (str(number), False)
                await box.execute("left = 1\nopen('/tmp/left', 'w').write('x')")
            with anyio.fail_after(TIMEOUT):
                await pool.filled()
        assert len(set(seen)) == 3


async def test_more_runs_than_boxes_are_served_all_the_same(engine: Engine) -> None:
    async with filled(engine) as pool:
        seen: list[str] = []

        async def run(number: int) -> None:
            async with pool.box(POLICY, str(number)) as box:
                assert await value(box, "context") == str(number)
                seen.append(box.info.container)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(run, number)
        assert len(set(seen)) == 4


async def test_another_kind_of_box_is_made_for_whoever_asks_for_one(engine: Engine) -> None:
    async with filled(engine) as pool:
        other = POLICY.override(["limits.pids=40"])
        async with pool.box(other, "x") as box:
            assert await value(box, "context") == "x"
        assert pool.ready == 1
        cheaper = POLICY.override(["budget.calls=1"])
        async with pool.box(cheaper, "x") as box:
            assert pool.ready == 0


async def over(pool: Pool, slot: object) -> None:
    while slot in pool._slots:
        await pool._changed.wait()


async def test_leaving_the_block_of_one_waits_for_its_code_to_be_cut_off_and_not_for_the_engine(engine: Engine) -> None:
    async with filled(engine) as pool:
        async with pool.box(POLICY, "x") as box:
            (slot,) = (slot for slot in pool._slots if slot.taken)
        assert slot in pool._slots
        with pytest.raises(SandboxGoneError):
            await box.execute("1")
        with anyio.fail_after(TIMEOUT):
            await over(pool, slot)
        with pytest.raises(EngineUnavailableError, match="No such container"):
            engine.inspect(box.info.container)


async def test_a_box_that_died_while_it_waited_is_not_given_to_anyone(engine: Engine) -> None:
    async with filled(engine) as pool:
        (slot,) = pool._slots
        assert slot.empty is not None
        dead = slot.empty.container
        await slot.empty._box.stream.aclose()
        with anyio.fail_after(TIMEOUT):
            await over(pool, slot)
        async with pool.box(POLICY, "x") as box:
            assert box.info.container != dead


async def test_a_box_that_waited_too_long_makes_way_for_a_fresh_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with filled(engine) as pool:
        (old,) = pool._slots
        monkeypatch.setattr(pools, "MAX_AGE_S", 0.05)
        async with pool.box(POLICY, "x") as box:
            await value(box, "1")  # one that is taken is not hurried
        with anyio.fail_after(TIMEOUT):
            while not pool._slots or pool._slots[0] is old:
                await pool._changed.wait()
            (young,) = pool._slots
            await over(pool, young)


async def test_a_run_that_is_cancelled_takes_its_box_with_it_and_no_other(engine: Engine) -> None:
    async with filled(engine) as pool:
        with anyio.move_on_after(TIMEOUT) as scope:
            async with pool.box(POLICY, "x") as box:
                scope.cancel()
                await box.execute("while True: pass")
        with anyio.fail_after(TIMEOUT):
            await pool.filled()
        async with pool.box(POLICY, "y") as box:
            assert await value(box, "context") == "y"


async def test_nothing_is_left_when_a_pool_is_closed_at_any_moment(engine: Engine) -> None:
    async with Pool.open(POLICY, 2, engine=engine):
        await anyio.lowlevel.checkpoint()
    async with filled(engine, 2):
        pass
    with pytest.raises(RuntimeError, match="mine"):
        async with filled(engine) as pool, pool.box(POLICY, "x"):
            raise RuntimeError("mine")
    assert left_behind(engine) == []


async def test_what_is_no_context_is_refused_before_a_box_is_taken(engine: Engine) -> None:
    async with filled(engine) as pool:
        with pytest.raises(ContextError):
            async with pool.box(POLICY, 7):  # type: ignore[arg-type]
                pytest.fail("it was taken")
        assert pool.ready == 1


async def test_a_control_that_is_not_in_force_is_told_to_whoever_asks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(record: Any, facts: Any, wanted: Any) -> Any:
        raise HardeningError(["H1 no network"])

    monkeypatch.setattr(prepared, "_verified", off)
    async with Pool.open(POLICY, 1, engine=engine) as pool:
        with pytest.raises(HardeningError, match="H1"):
            async with pool.box(POLICY, "x"):
                pytest.fail("code could have run")
        with anyio.fail_after(TIMEOUT), pytest.raises(HardeningError, match="H1"):
            await pool.filled()


async def test_fewer_are_kept_while_the_host_is_short_of_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pools, "_has_memory_for", lambda _policy: False)
    async with Pool.open(POLICY, 1, engine=engine) as pool:
        async with pool.box(POLICY, "x") as box:
            assert await value(box, "context") == "x"
        assert pool.ready == 0


@pytest.mark.parametrize("size", [0, -1, 1.5, True, 1000])
async def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="1 to 256 boxes"):
        async with Pool.open(POLICY, size):
            pytest.fail("opened")
