"""``policy``: what it shows, what it says a policy means, and what is wrong with what is none."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from orchestrator.policy import Policy
from orchestrator.sandbox import effective
from tests.support.cli import Run, one_complaint


def test_policy_show_prints_a_policy_that_loads_to_the_same_values(cli: Run, tmp_path: Path) -> None:
    given = ['models.allowed=["a\\"b", "é"]', "budget.cost_usd=1e-7", "sandbox.runtime=runsc"]
    code, out, err = cli("policy", "show", "strict", *(part for item in given for part in ("--set", item)))
    assert (code, err) == (0, "")
    effective = Policy.load("strict").override(given)
    (tmp_path / "shown.toml").write_text(out)
    assert Policy.load(tmp_path / "shown.toml") == effective
    assert tomllib.loads(out)["models"]["allowed"] == ['a"b', "é"]


def test_policy_show_with_json_prints_the_values(cli: Run) -> None:
    code, out, _ = cli("policy", "show", "--json")
    assert code == 0
    assert Policy.from_data(json.loads(out)) == Policy.load("default")


def test_policy_show_effective_prints_what_the_engine_gets(cli: Run) -> None:
    code, out, err = cli("policy", "show", "strict", "--effective", "--set", "limits.pids=33")
    assert (code, err) == (0, "")
    policy = Policy.load("strict").override(["limits.pids=33"])
    assert json.loads(out) == effective.body(policy)
    assert json.loads(cli("policy", "show", "strict", "--format", "docker")[1]) == effective.body(Policy.load("strict"))


def test_policy_show_effective_holds_the_whole_profile_when_asked(cli: Run) -> None:
    whole = json.loads(cli("policy", "show", "--effective", "--full")[1])
    (option,) = (text for text in whole["HostConfig"]["SecurityOpt"] if text.startswith("seccomp="))
    alone = cli("policy", "show", "--format", "seccomp")[1]
    assert option == f"seccomp={alone}"
    assert json.loads(alone)["defaultAction"] == "SCMP_ACT_ERRNO"


def test_policy_show_podspec_is_a_manifest_and_what_it_cannot_say_goes_to_stderr(cli: Run) -> None:
    code, out, err = cli("policy", "show", "gvisor", "--format", "podspec")
    assert code == 0
    assert [item["kind"] for item in json.loads(out)["items"]] == ["NetworkPolicy", "Pod"]
    assert "podPidsLimit" in err
    assert cli("policy", "show", "gvisor", "--format", "podspec", "--json") == (0, out, "")


@pytest.mark.parametrize("flags", [[], ["--format", "podspec"], ["--format", "seccomp"]])
def test_policy_show_full_is_refused_where_it_would_do_nothing(cli: Run, flags: list[str]) -> None:
    code, out, err = cli("policy", "show", "--full", *flags)
    assert (code, out) == (2, "")
    assert one_complaint(err)
    assert "--effective" in err


def test_policy_check_explains_a_policy(cli: Run, tmp_path: Path) -> None:
    good = tmp_path / "good.toml"
    good.write_text("[budget]\ncalls = 5\n[limits]\nmemory_mb = 4096\n")
    code, out, err = cli("policy", "check", str(good))
    assert (code, err) == (0, "")
    assert out.startswith(f"{good}: a valid policy\n")
    assert "spends at most 5 calls" in out
    assert "tighter  budget.calls      5     (default 2000)" in out
    assert "looser   limits.memory_mb  4096  (default 2048)" in out
    assert "budget.turns = 30 is more than budget.calls = 5" in out
    told = json.loads(cli("policy", "check", str(good), "--json")[1])
    assert (told["policy"], told["name"], told["valid"]) == (str(good), "good", True)
    assert told["compared_with_default"][0] == {
        "key": "budget.calls",
        "value": 5,
        "other": 2000,
        "direction": "tighter",
    }
    assert any("budget.turns" in doubt for doubt in told["doubts"])
    assert list(told["meaning"]) == ["A run", "A box", "A cell"]


def test_policy_check_of_the_default_has_nothing_to_compare(cli: Run) -> None:
    code, out, _ = cli("policy", "check", "default")
    assert code == 0
    assert "the same in everything" in out
    assert "Hardly meant" not in out


def test_policy_check_tells_each_thing_that_is_wrong_on_a_line_of_its_own(cli: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[budget]\ncals = 5\nturns = 0\n")
    code, out, err = cli("policy", "check", str(bad))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"rlm-sandbox: {bad}: ") for line in lines)
    assert any("unknown key 'budget.cals'" in line for line in lines)
    assert any("budget.turns = 0" in line for line in lines)
    code, out, complaint = cli("policy", "check", str(bad), "--json")
    assert (code, complaint) == (2, err)
    told = json.loads(out)
    assert (told["policy"], told["valid"]) == (str(bad), False)
    assert [f"rlm-sandbox: {problem}" for problem in told["problems"]] == lines
    assert all(problem.partition(": ")[2] in told["error"] for problem in told["problems"])
