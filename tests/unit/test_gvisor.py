"""What is different under gVisor: judged where it can be, declared where it cannot, and never taken on trust."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from orchestrator import bundle
from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor, hardening
from orchestrator.sandbox.attestation import verify
from orchestrator.sandbox.controls import CONTROLS
from tests.support.boxes import config, facts, record, wanted

POLICY = Policy.load("gvisor")
LINUX = "Linux version 6.18.44 (root@build) (gcc 12.2.0) #1 SMP PREEMPT_DYNAMIC Sun Jan 10 15:06:54 UTC 2026\n"
PROFILE = bundle.path("policies/seccomp.json").read_text("utf-8")


def named(changes: dict[str, Any], policy: Policy = POLICY) -> list[str]:
    """Return the ids of the controls that deviate in a box under gVisor of which ``changes`` are true."""
    report = verify(record(policy), {**facts(policy), **changes}, wanted(policy))
    return [line.partition(" ")[0] for line in report.deviations]


@pytest.mark.parametrize(
    "version",
    [
        "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n",
        "Linux version 4.19.0-gvisor #1 SMP Sun Jan 10 15:06:54 PST 2016\n",
    ],
    ids=["until 2026-04", "since"],
)
def test_gvisor_is_known_by_its_own_word(version: str) -> None:
    assert gvisor.serves({"kernel": version})
    assert named({"kernel": version}) == []


@pytest.mark.parametrize(
    "version",
    [LINUX, "Linux version 6.1.0-gvisor (me@gvisor) (gcc 12) #1 SMP Sun Jan 10 15:06:54 PST 2016", "", None, 7],
)
def test_a_box_that_was_to_be_under_gvisor_and_is_not_is_refused(version: object) -> None:
    assert not gvisor.serves({"kernel": version})
    assert "H31" in named({"kernel": version})


def test_a_box_under_gvisor_that_nobody_asked_for_is_no_worse() -> None:
    assert named({"kernel": facts(POLICY)["kernel"], "limits": facts(POLICY)["limits"]}, Policy()) == []


def test_facts_of_any_shape_are_not_gvisor() -> None:
    shapes: tuple[Any, ...] = (None, [], "gvisor", {"kernel": []})
    assert not any(gvisor.serves(shape) for shape in shapes)


def test_every_difference_is_that_of_a_control_and_says_why() -> None:
    assert set(gvisor.DIFFERENCES) <= {control.id for control in CONTROLS}
    report = verify(record(POLICY), facts(POLICY), wanted(POLICY))
    for name, difference in gvisor.DIFFERENCES.items():
        assert difference.why in report.controls[name]
    assert report.kernel == facts(POLICY)["kernel"].strip()


def test_what_cannot_be_seen_inside_is_not_said_to_be_held_there() -> None:
    report = verify(record(POLICY), facts(POLICY), wanted(POLICY))
    for name, difference in gvisor.DIFFERENCES.items():
        if difference.inside == "unseen":
            assert "held (engine;" in report.controls[name]


def test_the_engines_view_is_judged_as_elsewhere() -> None:
    for key, value in {"Memory": 0, "PidsLimit": 0, "CpuQuota": 0, "CgroupnsMode": "host", "MaskedPaths": []}.items():
        changed = record(POLICY)
        changed["HostConfig"][key] = value
        assert verify(changed, facts(POLICY), wanted(POLICY)).deviations


@pytest.mark.parametrize(
    ("changes", "control"),
    [
        ({"mounts": [*facts(POLICY)["mounts"], ["/data", "9p", "ro", "ro"]]}, "H10"),
        ({"mounts": [*facts(POLICY)["mounts"][:-1], ["/etc/hostname", "9p", "rw", "rw"]]}, "H10"),
        ({"limits": {**facts(POLICY)["limits"], "Max processes": ["unlimited"] * 2}}, "H16"),
        ({"descriptors": ["0 host:[1]", "7 host:[9]"]}, "P20"),
        ({"inet_socket": "allowed"}, "H2"),
        ({"status": {**facts(POLICY)["status"], "Seccomp": "0"}}, "H19"),
        ({"status": {**facts(POLICY)["status"], "CapPrm": "0000000000000001"}}, "H3"),
        ({"status": {**facts(POLICY)["status"], "CapAmb": "0000000000000001"}}, "H3"),
    ],
    ids=[
        "a host's folder",
        "an engine's file to write to",
        "no limit of processes",
        "a file of the host",
        "sockets",
        "no filter",
        "a capability",
        "an ambient one",
    ],
)
def test_what_can_be_seen_inside_is_judged(changes: dict[str, Any], control: str) -> None:
    assert named(changes) == [control]


def test_a_stream_in_reach_is_reported_as_not_held_and_refuses_no_box() -> None:
    report = verify(record(POLICY), {**facts(POLICY), "stream_in_reach": True}, wanted(POLICY))
    assert report.deviations == []
    assert "NOT IN FORCE (inside" in report.controls["P1"]


def test_a_host_mount_that_gvisor_might_have_is_foreign_elsewhere() -> None:
    policy = Policy()
    changed = {**facts(policy), "mounts": [*facts(policy)["mounts"], ["/mnt/c", "9p", "rw", "rw"]]}
    assert "H10" in named(changed, policy)


def test_the_host_allows_more_tasks_than_the_box_which_has_a_limit_of_its_own() -> None:
    host, plain = config(POLICY)["HostConfig"], config(Policy())["HostConfig"]
    pids = POLICY.limits.pids
    assert host["PidsLimit"] == pids * gvisor.HOST_TASKS
    assert {"Name": "nproc", "Soft": pids, "Hard": pids} in host["Ulimits"]
    assert plain["PidsLimit"] == pids
    assert all(limit["Name"] != "nproc" for limit in plain["Ulimits"])


class TestProfile:
    def test_only_what_answers_enosys_is_said_in_another_way(self) -> None:
        before, after = json.loads(PROFILE), json.loads(gvisor.seccomp(PROFILE))
        pairs = list(zip(before["syscalls"], after["syscalls"], strict=True))
        changed = [(old, new) for old, new in pairs if old["action"] != new["action"]]
        assert {**before, "syscalls": []} == {**after, "syscalls": []}
        assert [old["names"] for old, _ in changed] == [old["names"] for old, _ in pairs if old.get("errnoRet") == 38]
        assert {new["action"] for _, new in changed} == {"SCMP_ACT_TRACE"}
        assert "clone3" in changed[0][0]["names"]
        assert all("errnoRet" not in rule for rule in after["syscalls"])

    def test_what_it_calls_by_another_name_is_allowed_by_both(self) -> None:
        names = [name for rule in json.loads(gvisor.seccomp(PROFILE))["syscalls"] for name in rule["names"]]
        assert names.count("pselect") == names.count("pselect6") == 1

    def test_it_says_nothing_that_gvisor_cannot_express(self) -> None:
        # runsc/specutils/seccomp in its sources: KnownActions; every refusal answers EPERM.
        rules = json.loads(gvisor.seccomp(PROFILE))
        assert rules["defaultErrnoRet"] == 1
        assert {rule["action"] for rule in rules["syscalls"]} <= {"SCMP_ACT_ALLOW", "SCMP_ACT_TRACE", "SCMP_ACT_ERRNO"}
        assert all(rule.get("errnoRet", 1) == 1 for rule in rules["syscalls"])

    def test_who_may_trace_is_nobody(self) -> None:
        allowed = {name for rule in json.loads(PROFILE)["syscalls"] for name in rule["names"]}
        assert "ptrace" not in allowed

    def test_the_engine_gets_it_and_is_held_to_it(self) -> None:
        sent = config(POLICY)["HostConfig"]["SecurityOpt"][1]
        assert sent == "seccomp=" + hardening.seccomp_profile(POLICY, wanted(POLICY).seccomp)
        assert hardening.seccomp_profile(Policy(), PROFILE) == PROFILE


def test_every_difference_is_in_the_guide() -> None:
    rows = [line for line in bundle.path("policies/GVISOR.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    described = {cells[1]: cells[2:4] for cells in (re.split(r" *\| *", row) for row in rows)}
    for name, difference in gvisor.DIFFERENCES.items():
        assert described[name] == [difference.inside, difference.why]
