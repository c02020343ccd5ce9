"""The self-check on real boxes: all is contained, and nothing is where the controls were taken away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import selfcheck
from orchestrator.sandbox import cis
from orchestrator.sandbox.engine import Engine
from orchestrator.selfcheck import ATTACKS, HANG
from tests.support.live import POLICY, box
from tests.support.weakened import Config, weakened_box

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


def without_controls(config: Config) -> None:
    """Take away every control that an attack is named with, at once."""
    host = config["HostConfig"]
    config["User"] = "0:0"
    config["NetworkDisabled"] = False
    host |= {
        "NetworkMode": "bridge",
        "CapDrop": [],
        "CapAdd": ["SYS_ADMIN", "SYS_PTRACE"],
        "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
        "ReadonlyRootfs": False,
        "PidsLimit": 0,
        "Binds": ["/:/host:ro"],
    }
    host["Tmpfs"] = {path: options.replace("noexec", "exec") for path, options in host["Tmpfs"].items()}


async def test_every_attack_is_contained(engine: Engine) -> None:
    async with box(engine) as opened:
        outcomes = [outcome async for outcome in selfcheck.run(opened, POLICY)]
    assert [outcome.attack for outcome in outcomes] == [*ATTACKS, HANG]
    assert [(outcome.attack.what, outcome.said) for outcome in outcomes if outcome.failed] == []


async def test_without_its_control_each_attack_says_something_else(engine: Engine) -> None:
    async with weakened_box(POLICY, without_controls) as opened:
        outcomes = {outcome.attack.what: outcome async for outcome in selfcheck.run(opened, POLICY)}
    said = {what: outcome.said for what, outcome in outcomes.items()}
    # The ladder is the supervisor's: no setting of the engine takes it away.
    assert {what for what, outcome in outcomes.items() if outcome.contained} == {HANG.what}, said
    for what in ("open a socket to the network", "mount a file system", "become root", "start threads without end"):
        assert said[what] == "done"
    assert said["reach a file of the host, or the engine's socket"].startswith("/host/")


async def test_the_engines_record_of_a_box_passes_the_benchmark(engine: Engine) -> None:
    async with box(engine) as opened:
        verdicts = cis.judge(engine.inspect(opened.info.container), engine.info())
    assert [verdict for verdict in verdicts if verdict.state == "fail"] == []


async def test_that_of_one_without_controls_does_not(engine: Engine) -> None:
    async with weakened_box(POLICY, without_controls) as opened:
        verdicts = cis.judge(engine.inspect(opened.info.container), engine.info())
    failed = {verdict.id for verdict in verdicts if verdict.state == "fail"}
    assert failed >= {"5.4", "5.6", "5.13", "5.22", "5.26", "5.29", "5.30"}


async def test_doctor_says_that_all_is_well_with_this_machine(engine: Engine) -> None:
    program = [sys.executable, "-m", "orchestrator", "doctor", "--json", "--policy", POLICY.name]
    ended = subprocess.run(program, capture_output=True, check=False, cwd=Path(__file__).parents[2])  # noqa: ASYNC221
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["ok"], told["error"]) == (0, True, None)
    assert len(told["self_check"]) == len(ATTACKS) + 1
    assert len(told["cis"]) == 32
    assert {advice["id"] for advice in told["host"]} == {"H7", "H12", "H20", "H31", "H33", "H34"}
