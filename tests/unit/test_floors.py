"""Which versions are said to be too old, and that none is on a guess."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sandbox import floors
from orchestrator.sandbox.by_design import BY_DESIGN
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.sandbox.engine import EngineInfo

CURRENT = EngineInfo(
    version="29.6.1",
    runc="1.4.3",
    kernel="7.1.2",
    cgroup_version="2",
    cgroup_driver="systemd",
    security_options=("name=seccomp,profile=builtin",),
    runtimes=("runc",),
    default_runtime="runc",
    architecture="x86_64",
    operating_system="Debian GNU/Linux 13",
)


def cves(**versions: Any) -> list[str]:
    return [finding.floor.cve for finding in floors.check(replace(CURRENT, **versions))]


def test_what_is_current_is_below_nothing() -> None:
    assert floors.check(CURRENT) == []
    assert floors.unknown(CURRENT) == []


@pytest.mark.parametrize(
    ("runc", "below"),
    [
        ("1.1.5+ds1-1+deb12u1", 3),
        ("1.1.12", 2),
        ("1.2.7", 2),
        ("1.2.8", 1),
        ("1.3.2", 2),
        ("1.3.3", 1),
        ("1.3.6", 0),
        ("1.4.0-rc.2", 2),
        ("1.4.0-rc.3", 1),
        ("1.4.0", 1),
        ("1.4.3", 0),
        ("1.5.0-rc.2", 1),
        ("1.5.0", 0),
        ("2.0.0", 0),
    ],
)
def test_each_line_of_runc_has_its_own_floor(runc: str, below: int) -> None:
    assert len(cves(runc=runc)) == below


@pytest.mark.parametrize(
    ("kernel", "copy_fail"),
    [
        ("4.9.0", False),
        ("4.14.1", True),
        ("5.10.253-generic", True),
        ("5.10.254", False),
        ("5.11.0", True),
        ("6.12.84", True),
        ("6.12.85+deb13-amd64", False),
        ("6.18.22", False),
        ("6.18.44-fc-v657", False),
        ("6.19.11", True),
        ("7.0.0", False),
    ],
)
def test_each_line_of_kernels_has_its_own_floor_and_a_line_without_one_is_not_mended(
    kernel: str,
    copy_fail: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert ("CVE-2026-31431" in cves(kernel=kernel)) is copy_fail


def test_the_version_to_go_to_is_of_the_same_line_where_there_is_one() -> None:
    by_cve = {found.floor.cve: found for found in floors.check(replace(CURRENT, kernel="6.12.80", runc="1.1.11"))}
    assert by_cve["CVE-2026-31431"].good == "6.12.85"
    assert by_cve["CVE-2026-43500"].good == "6.18.29"
    assert by_cve["CVE-2024-21626"].good == "1.1.12"
    assert str(by_cve["CVE-2026-31431"]) == (
        "Linux 6.12.80 < 6.12.85: CVE-2026-31431, Copy Fail: AF_ALG and splice write to files that may only be read, "
        "those of other containers included; in a box stopped by no AF_ALG sockets and no splice (H2, H19)"
    )


def test_an_engine_with_an_old_profile_of_its_own_is_said_to_be_none_of_ours() -> None:
    (found,) = floors.check(replace(CURRENT, version="20.10.24+dfsg1"))
    assert found.floor.component == "Docker Engine"
    assert "nothing to do" in found.floor.stopped_by


def test_a_version_that_is_not_told_is_below_nothing_and_named() -> None:
    silent = replace(CURRENT, runc="", kernel="linuxkit")
    assert floors.check(silent) == []
    assert floors.unknown(silent) == ["runc", "Linux"]


def test_every_floor_can_be_read_is_in_order_and_names_controls_that_are() -> None:
    known = {control.id.rstrip("ab") for control in (*CONTROLS, *BY_DESIGN)}
    for floor in floors.FLOORS:
        versions = [floors.parse(text) for text in (floor.since, *floor.mended)]
        assert None not in versions
        assert versions == sorted(versions)  # type: ignore[type-var]
        named = floor.stopped_by.partition("(")[2].partition(")")[0].split(", ")
        assert set(named) <= known


@given(text=st.text(max_size=20))
def test_whatever_an_engine_calls_itself_is_read_or_unknown(text: str) -> None:
    odd = replace(CURRENT, version=text, runc=text, kernel=text)
    assert (floors.parse(text) is None) == (len(floors.unknown(odd)) == 3)
    floors.check(odd)
