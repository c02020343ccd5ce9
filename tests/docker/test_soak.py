"""The soak in short: a dozen boxes in random hazards, and its instruments, each seen to see what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.sandbox.engine import Engine
from tests.soak import figures
from tests.soak.figures import MEMORY_SLACK_MIB, MIB
from tests.soak.hazards import CELLS, ENDS, plans
from tests.support.live import box


@pytest.mark.docker
def test_a_dozen_boxes_leave_nothing_behind(engine: Engine) -> None:
    command = [sys.executable, "-m", "tests.soak", "--boxes", "12", "--seed", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert done.returncode == 0
    assert report["after"]["containers"] == report["after"]["shims"] == report["after"]["cgroups"] == 0


@pytest.mark.docker
@pytest.mark.anyio
async def test_the_figures_see_a_box_that_is_open(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with box(engine) as opened:
        found = figures.take(engine, [engine.inspect(opened.info.container)["Id"]])
        assert found.containers == 1
        assert found.shims >= 1
        assert found.cgroups >= 1


@contextmanager
def a_thread() -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@contextmanager
def a_child() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield
        assert child.stdin is not None
        child.stdin.close()


@contextmanager
def a_descriptor() -> Iterator[None]:
    with Path("/dev/null").open("rb"):
        yield


@contextmanager
def memory() -> Iterator[None]:
    held = b"x" * ((MEMORY_SLACK_MIB + 8) * MIB)
    yield
    del held


LEAKS: dict[str, Callable[[], object]] = {
    "threads": a_thread,
    "children": a_child,
    "descriptors": a_descriptor,
    "memory mib": memory,
    "temporary files": tempfile.NamedTemporaryFile,
}


@pytest.mark.docker
@pytest.mark.parametrize("what", LEAKS)
def test_the_figures_see_what_is_left_behind(
    engine: Engine, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = figures.take(engine, [])
    with LEAKS[what]():  # type: ignore[attr-defined]
        assert what in {leak.partition(":")[0] for leak in figures.leaks(before, figures.take(engine, []))}
    assert what not in {leak.partition(":")[0] for leak in figures.leaks(before, figures.take(engine, []))}


def test_a_seed_repeats_a_soak_and_every_hazard_and_end_has_its_turn() -> None:
    found = plans(60, "seed")
    assert found == plans(60, "seed") != plans(60, "another")
    assert {name for plan in found for name in plan.cells} == set(CELLS)
    assert {plan.end for plan in found} == set(ENDS)
