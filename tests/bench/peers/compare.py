"""Side by side with peers: the same scripted task for all, over one local model server, in alternating rounds.

Each system runs in a process of its own that stays for all rounds, so that importing is nobody's cost. In a round, each
in its turn does a run over 1 MB with sub-calls, then one over 20 MB, then one over 50 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.sandbox import image
from orchestrator.sandbox.engine import Engine
from tests.bench.peers import environments, report
from tests.bench.peers.environments import UnavailableError
from tests.bench.peers.script import CALLS, Script
from tests.bench.peers.systems import DRIVERS, SYSTEMS, System
from tests.support.model_server import Body, Fault, ModelServer, Reply

REPOSITORY = Path(__file__).resolve().parents[3]
SIZES_MB = (1, 20, 50)
TURNS = {1: 5, 20: 3, 50: 3}  # rlm-harness allows ten turns a run
_RUN_S = 300


@dataclass(slots=True)
class Measured:
    """What was measured of one system: milliseconds by name, and why there is no more."""

    system: System
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failure: str = ""


class _Driver:
    """A system's process."""

    def __init__(self, system: System, process: subprocess.Popen[str], errors: Path) -> None:
        self.system = system
        self._process = process
        self._errors = errors

    def run(self, url: str, megabytes: int) -> dict[str, Any]:
        """Have it do one run.

        Raises:
            UnavailableError: it failed, gave another answer than the script's, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"url": url, "mb": megabytes, "turns": TURNS[megabytes]}
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise UnavailableError(self._last_words()) from None
        if not select.select([self._process.stdout], [], [], _RUN_S)[0]:
            raise UnavailableError(f"a run over {megabytes} MB took more than {_RUN_S} s")
        line = self._process.stdout.readline()
        told: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if told.get("answer") != "done":
            raise UnavailableError(f"over {megabytes} MB: {told.get('error') or told.get('answer')!r}")
        return told

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process ended"


@contextmanager
def _driven(system: System, base: str, folder: Path) -> Iterator[_Driver]:
    python = environments.python(system)
    arguments = [environments.image(base) if word == "{image}" else word for word in system.arguments]
    errors = folder / f"{SYSTEMS.index(system)}.log"
    with errors.open("w") as log:
        process = subprocess.Popen(
            [str(python), "-m", f"{DRIVERS}.{system.driver}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Peers put what they write at run time beside themselves or below the home.
            cwd=REPOSITORY,
            env=os.environ | {"RLM_DOCKER_WORKSPACE_DIR": str(folder), "DSPY_CACHEDIR": str(folder / "dspy")},
        )
    try:
        yield _Driver(system, process, errors)
    finally:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and did not read its last order
            process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Stage:
    """Has each system do its runs, and keeps what is measured."""

    def __init__(self) -> None:
        self._script: Script | None = None

    def respond(self, body: Body, number: int) -> Reply | Fault:
        """Answer for whoever's turn it is."""
        return Fault.status(400, message="nobody's turn") if self._script is None else self._script(body, number)

    def run(self, driver: _Driver, url: str, megabytes: int) -> dict[str, float]:
        """Have it do one run; return what it took, in milliseconds by name.

        Raises:
            UnavailableError: it failed, or a cell of the script did.
        """
        dialect, calls = driver.system.dialect, megabytes == SIZES_MB[0]
        script = self._script = None if dialect is None else Script(dialect, TURNS[megabytes], calls=calls)
        told = driver.run(url, megabytes)
        if script is None:
            return _of_cells(megabytes, told["first"] - told["began"], told["cells"])
        if len(script.arrived) != len(script.cells_of_a_run) or (calls and set(script.took) != set(CALLS)):
            raise UnavailableError(f"it asked {len(script.arrived)} times, and its cells told of {sorted(script.took)}")
        took = _of_cells(megabytes, script.first - told["began"], script.cells) | script.took
        return took | ({"whole": (told["ended"] - told["began"]) * 1000} if calls else {})


def _of_cells(megabytes: int, start_s: float, cells: list[float]) -> dict[str, float]:
    return {f"start {megabytes}": start_s * 1000, f"cell {megabytes}": statistics.median(cells)}


def measure(rounds: int, wanted: str, base: str) -> list[Measured]:
    """Take all samples; ``base`` is the image of our boxes."""
    chosen = [Measured(system) for system in SYSTEMS if wanted in system.name]
    stage = _Stage()
    with ModelServer(stage.respond) as server, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        drivers: dict[str, _Driver] = {}
        for each in chosen:
            try:
                drivers[each.system.name] = stack.enter_context(_driven(each.system, base, folder))
            except UnavailableError as error:
                each.failure = str(error)
        # The first round warms up and is not kept.
        for number in range(rounds + 1):
            for each in chosen:
                for megabytes in SIZES_MB if number else SIZES_MB[:1]:
                    if not each.failure:
                        _note(each, stage, drivers[each.system.name], server.url, megabytes, keep=number > 0)
    return chosen


def _note(each: Measured, stage: _Stage, driver: _Driver, url: str, megabytes: int, *, keep: bool) -> None:
    try:
        took = stage.run(driver, url, megabytes)
    except UnavailableError as error:
        each.failure = str(error)
        took = {}
    print(f"{each.system.name}, {megabytes} MB: {each.failure or 'done'}", file=sys.stderr, flush=True)
    if keep:
        for name, milliseconds in took.items():
            each.samples[name].append(milliseconds)


def main(arguments: list[str]) -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds, after one to warm up (default 5)")
    parser.add_argument("--only", default="", metavar="WORD", help="systems with this word in their name alone")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds takes a number of at least 1, not {options.rounds}")
    engine = Engine.connect()
    try:
        docker, base = str(engine._api.version()["Version"]), image.find(engine).id
    finally:
        engine.close()
    before = os.getloadavg()
    measured = measure(options.rounds, options.only, base)
    print(report.render(measured, options.rounds, (before, os.getloadavg()), docker))
