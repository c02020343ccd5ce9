"""``doctor``: what it tells of engine, box, attacks and host, and what its exit code means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import HardeningError, ImageError
from orchestrator.sandbox.floors import Floor
from orchestrator.selfcheck import ATTACKS
from tests.support.cli import BOX_INFO, HOSTILE, FakeBox, FakeEngine, Run, one_complaint

ROOT = Path(__file__).parents[2]


def test_doctor_lists_engine_image_and_every_control(cli: Run, engine: FakeEngine, attacks: dict[str, str]) -> None:
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    for part in (
        "Docker 28.0",
        "cgroup v2",
        "runc, runsc",
        "sha256:1",
        "H1    no network",
        "H10   nothing of the host",
    ):
        assert part in out
    assert "Linux version 7.1 (as the box sees it)" in out
    assert f"{len(ATTACKS)} of {len(ATTACKS)} attacks contained" in out
    assert "Docker Engine 28.0 < 29.4.2: CVE-2026-31431" in out
    assert out.splitlines()[-1].startswith("verdict  everything mandatory holds")


def test_doctor_with_json_tells_the_same_as_data(cli: Run, engine: FakeEngine, attacks: dict[str, str]) -> None:
    code, out, _ = cli("doctor", "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["missing"], told["error"]) == (0, True, [], None)
    assert told["engine"]["cgroup_version"] == "2"
    assert told["image"] == {"id": "sha256:1", "content": "abc", "protocol": 1}
    assert told["controls"]["H3"]["cis"] == ["5.4"]
    assert told["controls"]["H3"]["found"] == "held (engine)"
    assert [item["said"] for item in told["self_check"]] == [min(attack.contained) for attack in ATTACKS]
    assert [item["id"] for item in told["cis"]] == [f"5.{number}" for number in range(1, 33)]
    assert [item["cve"] for item in told["versions"]] == ["CVE-2026-31431"]
    assert {item["state"] for item in told["host"] if item["id"] == "H34"} == {"not visible"}
    assert told["kernel"] == "Linux version 7.1"
    assert f"`{{{', '.join(json.dumps(key) for key in told)}}}`" in (ROOT / "orchestrator/cli/CLI.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_doctor_is_exit_code_1_when_an_attack_is_not_contained(
    cli: Run, engine: FakeEngine, attacks: dict[str, str], flag: list[str]
) -> None:
    attacks["become root"] = "done"
    code, out, err = cli("doctor", *flag)
    assert (code, err) == (1, "")
    if flag:
        told = json.loads(out)
        assert told["ok"] is False
        assert [item["attack"] for item in told["self_check"] if not item["contained"]] == ["become root"]
    else:
        assert "ESCAPED    become root: done, expected EPERM (H3 H6)" in out
        assert "NOT SAFE: 1 attack not contained" in out


def test_doctor_fails_for_a_known_bug_that_nothing_of_a_box_stops(
    cli: Run, engine: FakeEngine, attacks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stopped_by, expected in (("", 1), ("no netlink (H2)", 0)):
        floor = Floor("Linux", "CVE-1", "a way out", mended=("8.0",), stopped_by=stopped_by)
        monkeypatch.setattr("orchestrator.sandbox.floors.FLOORS", (floor,))
        code, out, _ = cli("doctor")
        assert code == expected
        assert ("NOT SAFE: 1 known bug that nothing of a box stops" in out) is bool(expected)
        assert "Linux 7.1.2 < 8.0: CVE-1" in out


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_doctor_without_a_mandatory_control_is_exit_code_1(
    cli: Run, engine: FakeEngine, box: FakeBox, flag: list[str]
) -> None:
    box.failure = HardeningError(["H19 seccomp: found 0, expected 2"])
    code, out, err = cli("doctor", *flag)
    assert code == 1
    assert "H19 seccomp: found 0, expected 2" in out
    assert one_complaint(err)


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_doctor_without_an_engine_is_exit_code_4(cli: Run, engine: FakeEngine, flag: list[str]) -> None:
    engine.there = False
    code, out, err = cli("doctor", *flag)
    assert (code, err) == (4, "rlm-sandbox: no Docker engine answers: start dockerd, or set DOCKER_HOST\n")
    if flag:
        assert json.loads(out)["engine"] is None


def test_doctor_without_an_image_still_tells_of_the_engine_and_its_host(
    cli: Run, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(*_: Any) -> None:
        raise ImageError("the sandbox image is not built: run `rlm-sandbox image build`")

    monkeypatch.setattr("orchestrator.sandbox.image.find", find)
    code, out, err = cli("doctor")
    assert code == 4
    assert "Docker 28.0" in out
    assert "neither userns-remap nor rootless" in " ".join(out.split())
    assert "verdict" not in out
    assert "run `rlm-sandbox image build`" in err


def test_doctor_fits_a_terminal_and_shows_it_no_control_characters(
    cli: Run, engine: FakeEngine, box: FakeBox, attacks: dict[str, str]
) -> None:
    box.info = replace(BOX_INFO, kernel="Linux" + HOSTILE * 100)
    attacks["become root"] = "long words " * 40
    _, out, _ = cli("doctor")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
