from __future__ import annotations

import anyio
import pytest

from orchestrator.errors import LimitExceededError
from orchestrator.rlm.places import Places

pytestmark = pytest.mark.anyio


class Tree:
    """Runs that each open a child in every level below, keep their place meanwhile, and count how many are alive."""

    def __init__(self, places: Places, levels: int, fan_out: int) -> None:
        self.places, self.levels, self.fan_out = places, levels, fan_out
        self.ended = self.most = 0

    async def run(self, level: int) -> None:
        async with self.places.place(level):
            self.most = max(self.most, self.places.taken)
            await anyio.lowlevel.checkpoint()
            await self.children(level)
        self.ended += 1

    async def children(self, level: int) -> None:
        if level < self.levels:
            async with anyio.create_task_group() as tasks:
                for _ in range(self.fan_out):
                    tasks.start_soon(self.run, level + 1)


@pytest.mark.parametrize(("total", "levels", "fan_out"), [(1, 1, 5), (2, 2, 4), (3, 3, 3), (4, 2, 6), (5, 3, 4)])
async def test_parents_that_hold_places_and_wait_for_more_never_deadlock(total: int, levels: int, fan_out: int) -> None:
    places = Places(total, levels)
    tree = Tree(places, levels, fan_out)
    with anyio.fail_after(30):
        await tree.children(0)
    assert tree.ended == sum(fan_out**level for level in range(1, levels + 1))
    assert tree.most == total
    assert places.taken == 0


async def test_weakened_one_number_for_all_levels_deadlocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "most", lambda self, _level: self._total)
    tree = Tree(Places(2, 2), 2, 4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tree.children, 0)
        await anyio.wait_all_tasks_blocked()
        assert (tree.ended, tree.places.taken) == (0, 2)
        tasks.cancel_scope.cancel()


async def test_a_level_for_which_there_is_no_place_is_refused_and_not_kept_waiting() -> None:
    places = Places(1, 2)
    async with places.place(1):
        with pytest.raises(LimitExceededError) as caught:
            async with places.place(2):
                pass
    assert caught.value.reason == "children_alive"


async def test_one_that_is_cancelled_while_it_waits_leaves_no_trace() -> None:
    places = Places(1, 1)
    async with places.place(1):
        with anyio.move_on_after(0):
            async with places.place(1):
                raise AssertionError("there is no place")
    async with places.place(1):
        assert places.taken == 1
