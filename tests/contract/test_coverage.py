"""Every case of the catalogue is played, every control has a test, and every test of containment says what it shows."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from orchestrator.sandbox.by_design import BY_DESIGN
from orchestrator.sandbox.controls import CONTROLS
from tests.docker import test_attestation
from tests.escape.catalogue import CASES, GROUPS, Mark, marks

SUITE = Path(__file__).resolve().parents[1] / "escape"
# What a box is for, and how it is filtered: no attacks.
NO_ATTACKS = {"test_workloads", "test_profile"}
# Those that hold by how the software is made, and are tested where that part of it is.
ELSEWHERE = {
    "H7": "unit.test_hardening:test_a_user_namespace_is_demanded_where_the_policy_says_so",
    "H24": "unit.test_hardening:test_a_control_that_is_off_is_noticed_and_named",
    "H30": "unit.test_floors:test_each_line_of_runc_has_its_own_floor",
    "H32": "docker.test_attestation:test_a_box_that_got_more_than_it_should_is_refused",
    "H33": "unit.test_host:test_each_knob_is_judged",
    "P3": "unit.test_wire:test_a_refused_header_is_refused_before_its_payload_arrives",
    "P6": "unit.test_wire:test_what_a_strict_reader_refuses_is_refused",
    "P8": "unit.test_broker:test_the_first_answer_stands",
    "P11": "unit.test_gate:test_of_a_rich_result_only_the_text_leaves",
    "P12": "unit.test_text:test_a_string_that_does_not_end_cannot_hide_what_follows",
    "P13": "unit.test_gate:test_a_flood_is_told_once_a_cell",
    "P15": "unit.test_broker:test_of_64_calls_racing_for_the_last_unit_exactly_one_succeeds",
    "P16": "unit.test_mux:test_no_more_than_the_window_are_under_way_and_the_others_are_refused",
    "P24": "unit.test_container:test_an_engine_that_hangs_at_the_removal_is_not_waited_for",
    "P25": "unit.test_journal:test_each_event_is_in_the_file_before_the_call_returns",
}


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"tests.escape.{path.stem}") for path in sorted(SUITE.glob("test_*.py"))]


def _tests(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    for name, found in vars(module).items():
        if inspect.isfunction(found) and name.startswith("test_") and found.__module__ == module.__name__:
            yield f"{module.__name__}::{name}", found
        if inspect.isclass(found) and name.startswith("Test") and found.__module__ == module.__name__:
            for method, function in inspect.getmembers(found, inspect.isfunction):
                if method.startswith("test_"):
                    yield f"{module.__name__}::{name}::{method}", function


ALL = {name: test for module in _modules() for name, test in _tests(module)}
MARKS: list[Mark] = [mark for test in ALL.values() for mark in marks(test)]
SHOWN = {name for mark in MARKS for name in mark.controls}
# Seen to be missed by a live box that lacks them.
SHOWN |= {name for _, controls in test_attestation.WEAKENED.values() for name in controls}
KNOWN = [control.id for control in (*CONTROLS, *BY_DESIGN)]


@pytest.mark.parametrize("name", [name for name in ALL if name.split("::")[0].rpartition(".")[2] not in NO_ATTACKS])
def test_a_test_of_containment_says_what_it_shows(name: str) -> None:
    if any(mark.name == "docker" for mark in _module_marks(ALL[name])):
        assert list(marks(ALL[name])), f"mark {name} with tests.escape.catalogue.case"


def _module_marks(test: FunctionType) -> list[pytest.Mark]:
    found = getattr(inspect.getmodule(test), "pytestmark", [])
    return [decorator.mark for decorator in (found if isinstance(found, list) else [found])]


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_played(case: str) -> None:
    assert case[:2] in GROUPS
    assert any(case in mark.cases for mark in MARKS), f"no test plays {case}: {CASES[case]}"


@pytest.mark.parametrize("group", ["FS", "KE", "NE", "HI", "DL", "RE"])
def test_a_group_has_twins(group: str) -> None:
    assert any(mark.twin and mark.cases[:1] and mark.cases[0].startswith(group) for mark in MARKS)


@pytest.mark.parametrize("control", KNOWN)
def test_every_control_has_a_test(control: str) -> None:
    assert control in SHOWN or _elsewhere(control), f"nothing tests {control}"


def _elsewhere(control: str) -> bool:
    module, _, test = ELSEWHERE.get(control, "").partition(":")
    if not module:
        return False
    tests = [name for name, _ in _tests(importlib.import_module(f"tests.{module}"))]
    return any(name.endswith(f"::{test}") for name in tests)


def test_no_mark_names_a_control_that_there_is_not() -> None:
    named = SHOWN | {name for mark in MARKS for name in mark.twin} | set(ELSEWHERE)
    assert named <= set(KNOWN)
