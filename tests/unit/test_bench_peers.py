"""What the comparison with peers makes of what it sees; the peers themselves are driven by ``make bench-peers``."""

from __future__ import annotations

import json
import re

import pytest

from tests.bench.density import slope
from tests.bench.peers import environments, report
from tests.bench.peers.compare import Measured
from tests.bench.peers.environments import UnavailableError
from tests.bench.peers.script import BATCH, FIELDS, JSON, OURS, SINGLES, Script
from tests.bench.peers.systems import SYSTEMS
from tests.support.model_server import Fault

LOADS = ((0.0, 0.0, 0.0), (3.0, 2.0, 1.0))
RESULTS = environments.HERE / "RESULTS.md"


def asked(script: Script, *contents: str, model: str = "root") -> str:
    reply = script({"model": model, "messages": [{"role": "user", "content": text} for text in contents]}, 1)
    assert not isinstance(reply, Fault)
    return reply.text


def page(*measured: Measured) -> str:
    return report.render(list(measured), 1, LOADS, "20.10")


class TestScript:
    def test_a_run_is_its_trivial_cells_then_the_calls_then_the_end(self) -> None:
        script = Script(OURS, turns=2, calls=True)
        replies = [asked(script, "go on") for _ in range(6)]
        assert [f"x = {turn}" in reply for turn, reply in enumerate(replies[:3])] == [True] * 3
        assert f"range({SINGLES})" in replies[3]
        assert f"range({BATCH})" in replies[4]
        assert "Final = 'done'" in replies[5]
        assert len(script.cells_of_a_run) == len(script.arrived) == 6

    def test_the_first_turn_belongs_to_the_start(self) -> None:
        script = Script(OURS, turns=2, calls=False, arrived=[10.0, 11.0, 13.0, 16.0], left=[10.0, 11.5, 13.5, 16.0])
        assert script.first == 11.0
        assert script.cells == [1500.0, 2500.0]

    def test_sub_calls_are_answered_and_are_no_turns(self) -> None:
        script = Script(OURS, turns=1, calls=False)
        assert asked(script, "question 1", model="sub") == "ok"
        assert script.arrived == []

    def test_what_a_cell_measured_is_read_from_its_output_and_not_from_its_code(self) -> None:
        script = Script(OURS, turns=1, calls=True)
        asked(script, *script.cells_of_a_run)
        assert script.took == {}
        asked(script, "Output:\ntook one = 1.25\n", "Turn 8/30:")
        assert script.took == {"one": 1.25}

    def test_each_dialect_carries_the_code_whole(self) -> None:
        code = "x = 'a'\nprint(x)"
        assert code in FIELDS.write(code)
        assert json.loads(JSON.write(code))["code"] == code


class TestReport:
    def test_ratios_are_to_the_first_line(self) -> None:
        first, second = Measured(SYSTEMS[0]), Measured(SYSTEMS[2])
        first.samples["cell 1"] += [2.0, 1.0, 9.0]
        second.samples["cell 1"] += [200.0]
        assert "2 ms (1 … 9) |" in page(first, second)
        assert "200 ms (200 … 200), **100 ×**" in page(first, second)

    def test_who_failed_stands_there_with_the_reason(self) -> None:
        failed = Measured(SYSTEMS[2], failure="no image to be had")
        text = page(Measured(SYSTEMS[0]), failed)
        assert f"| {SYSTEMS[2].name} | failed |" in text
        assert "failed here: no image to be had" in text

    def test_what_a_system_cannot_do_is_not_called_a_failure(self) -> None:
        alone = next(system for system in SYSTEMS if system.lacks)
        assert f"n/a: {alone.lacks}" in page(Measured(SYSTEMS[0]), Measured(alone))

    def test_the_page_that_is_checked_in_has_every_system_and_version(self) -> None:
        text = RESULTS.read_text(encoding="utf-8")
        for system in SYSTEMS:
            assert f"| {system.name} |" in text
            assert f"**{system.name}**: {system.isolation}." in text
            if system.requirements:
                assert f"{system.requirements} {environments.pinned(system.requirements)}" in text


def test_every_requirement_is_pinned() -> None:
    for path in (environments.HERE / "requirements").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines), path


def test_what_cannot_be_installed_says_why_in_one_line() -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        environments._run(["/nonexistent/python", "-m", "venv"])
    with pytest.raises(UnavailableError, match=r"^sh -c .*: worse$"):
        environments._run(["sh", "-c", "echo bad >&2; echo worse >&2; exit 3"])


def test_one_more_box_weighs_what_the_slope_says() -> None:
    assert slope([(1, 130.0), (5, 250.0), (10, 400.0), (20, 700.0)]) == pytest.approx(30.0)
