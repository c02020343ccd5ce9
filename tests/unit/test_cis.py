"""Each rule of the benchmark's section 5: a box passes it, and a container that breaks it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy import Policy, profiles
from orchestrator.sandbox import cis
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.sandbox.engine import EngineInfo
from tests.support.boxes import record

Mutate = Callable[[dict[str, Any]], object]

ENGINE = EngineInfo(
    "28.0", "1.3.3", "6.12.90", "2", "systemd", ("name=seccomp",), ("runc",), "runc", "x86_64", "Debian"
)
APPARMOR = replace(ENGINE, security_options=("name=apparmor", "name=seccomp,profile=builtin"))
SELINUX = replace(ENGINE, security_options=("name=selinux",))
NOT_APPLICABLE = {"5.2", "5.3", "5.27"}


def container(policy: Policy | None = None) -> dict[str, Any]:
    """Return an engine's record of a box, with what it adds of its own (as Docker 20.10 does)."""
    made = record(policy)
    made |= {
        "AppArmorProfile": "",
        "ProcessLabel": "",
        "ExecIDs": None,
        "NetworkSettings": {"Ports": {}, "Networks": {}},
    }
    made["HostConfig"] |= {"CgroupParent": "", "PortBindings": None, "UsernsMode": "", "NanoCpus": 0, "CpuShares": 0}
    return made


def host(key: str, to: Any) -> Mutate:
    return lambda data: data["HostConfig"].update({key: to})


def settings_of(key: str, to: Any) -> Mutate:
    return lambda data: data["Config"].update({key: to})


def whole(key: str, to: Any) -> Mutate:
    return lambda data: data.update({key: to})


def port(**binding: str) -> Mutate:
    return host("PortBindings", {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"} | binding]})


BROKEN: dict[str, list[Mutate]] = {
    "5.4": [host("CapDrop", []), host("CapAdd", ["NET_RAW"]), host("CapDrop", None)],
    "5.5": [host("Privileged", to=True)],
    "5.6": [
        host("Binds", ["/etc:/host:ro"]),
        host("Binds", ["/:/host"]),
        host("Mounts", [{"Type": "bind", "Source": "/usr/lib/x"}]),
        whole("Mounts", [{"Source": "/proc/"}]),
    ],
    "5.7": [settings_of("Entrypoint", ["/usr/sbin/sshd", "-D"]), settings_of("Cmd", ["sh", "-c", "x", "sshd"])],
    "5.8": [port(HostPort="80")],
    "5.9": [
        port(),
        host("PublishAllPorts", to=True),
        whole("NetworkSettings", {"Ports": {"80/tcp": [{"HostIp": "::1", "HostPort": "8080"}]}, "Networks": {}}),
    ],
    "5.10": [host("NetworkMode", "host"), host("NetworkMode", "")],
    "5.11": [host("Memory", 0)],
    "5.12": [host("CpuQuota", 0), host("CpuQuota", -1)],
    "5.13": [host("ReadonlyRootfs", to=False)],
    "5.14": [port(HostIp=""), port(HostIp="0.0.0.0"), port(HostIp="::")],  # noqa: S104 - the finding
    "5.15": [
        host("RestartPolicy", {"Name": "always", "MaximumRetryCount": 0}),
        host("RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 6}),
        host("RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 0}),
    ],
    "5.16": [host("PidMode", "host")],
    "5.17": [host("IpcMode", "host")],
    "5.18": [host("Devices", [{"PathOnHost": "/dev/kvm"}]), host("DeviceRequests", [{"Driver": "nvidia"}])],
    "5.19": [host("Ulimits", None), host("Ulimits", [])],
    "5.20": [
        host("Binds", ["/data:/data:rshared"]),
        host("Mounts", [{"Source": "/data", "BindOptions": {"Propagation": "shared"}}]),
        whole("Mounts", [{"Source": "/data", "Propagation": "shared"}]),
    ],
    "5.21": [host("UTSMode", "host")],
    "5.22": [host("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"])],
    "5.23": [whole("ExecIDs", ["ab"])],
    "5.24": [whole("ExecIDs", ["ab"])],
    "5.25": [host("CgroupParent", "/elsewhere")],
    "5.26": [host("SecurityOpt", ["seccomp={}"]), host("SecurityOpt", ["no-new-privileges:false"])],
    "5.27": [settings_of("Healthcheck", None), settings_of("Healthcheck", {})],
    "5.28": [settings_of("Image", "python:latest")],
    "5.29": [host("PidsLimit", 0), host("PidsLimit", None), host("PidsLimit", -1)],
    "5.30": [
        host("NetworkMode", "bridge"),
        host("NetworkMode", "default"),
        whole("NetworkSettings", {"Ports": {}, "Networks": {"bridge": {}}}),
    ],
    "5.31": [host("UsernsMode", "host")],
    "5.32": [
        host("Binds", ["/var/run/docker.sock:/x"]),
        host("Mounts", [{"Type": "bind", "Source": "/run/docker.sock"}]),
        whole("Mounts", [{"Source": "/run/containerd/containerd.sock"}]),
    ],
}


def states(made: dict[str, Any], engine: EngineInfo = ENGINE) -> dict[str, str]:
    return {verdict.id: verdict.state for verdict in cis.judge(made, engine)}


@pytest.mark.parametrize("policy", [Policy.load(name) for name in profiles()], ids=profiles())
def test_a_box_breaks_no_rule_and_what_does_not_apply_says_why(policy: Policy) -> None:
    verdicts = cis.judge(container(policy), ENGINE)
    assert [verdict.id for verdict in verdicts] == [f"5.{number}" for number in range(1, 33)]
    assert {verdict.id for verdict in verdicts if verdict.state != "pass"} == NOT_APPLICABLE
    assert {verdict.id for verdict in verdicts if verdict.why} == NOT_APPLICABLE


@pytest.mark.parametrize(
    ("rule", "mutate"),
    [(rule, mutate) for rule, mutations in BROKEN.items() for mutate in mutations],
    ids=[f"{rule} {number}" for rule, mutations in BROKEN.items() for number in range(len(mutations))],
)
def test_a_container_that_breaks_a_rule_fails_it(rule: str, mutate: Mutate) -> None:
    made = container()
    mutate(made)
    found = states(made)
    assert found[rule] == "fail"
    # One setting may break several rules, such as a mounted socket; never unrelated ones.
    assert sum(state == "fail" for state in found.values()) <= 4


def test_every_rule_that_a_record_can_break_is_broken_here() -> None:
    assert {f"5.{number}" for number in range(1, 33)} - set(BROKEN) == {"5.1", "5.2", "5.3"}


def test_every_rule_but_two_has_a_control_that_answers_it() -> None:
    answered = {rule for control in CONTROLS for rule in control.cis}
    # Swarm mode is the engine's own; a health check is what no box has.
    assert answered == {f"5.{number}" for number in range(1, 33)} - {"5.1", "5.27"}


def test_swarm_mode_breaks_the_first_rule() -> None:
    assert states(container(), replace(ENGINE, swarm=True))["5.1"] == "fail"


@pytest.mark.parametrize(("profile", "state"), [("docker-default", "pass"), ("", "fail"), ("unconfined", "fail")])
def test_apparmor_is_asked_for_where_there_is_one(profile: str, state: str) -> None:
    assert states(container() | {"AppArmorProfile": profile}, APPARMOR)["5.2"] == state


@pytest.mark.parametrize(
    ("label", "options", "state"),
    [
        ("system_u:system_r:container_t:s0:c1,c2", ["no-new-privileges"], "pass"),
        ("", ["no-new-privileges"], "fail"),
        ("x", ["label=disable"], "fail"),
    ],
)
def test_selinux_is_asked_for_where_there_is_one(label: str, options: list[str], state: str) -> None:
    made = container() | {"ProcessLabel": label}
    made["HostConfig"]["SecurityOpt"] = options
    assert states(made, SELINUX)["5.3"] == state


def test_a_container_whose_health_is_checked_passes() -> None:
    made = container()
    made["Config"]["Healthcheck"] = {"Test": ["CMD", "true"]}
    assert states(made)["5.27"] == "pass"


def test_a_retry_or_five_are_allowed() -> None:
    made = container()
    made["HostConfig"]["RestartPolicy"] = {"Name": "on-failure", "MaximumRetryCount": 5}
    assert states(made)["5.15"] == "pass"


def test_what_a_record_does_not_tell_is_not_passed() -> None:
    for verdict in cis.judge({}, APPARMOR)[1:]:
        assert verdict.state == "fail" or verdict.id == "5.3"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_records_of_any_shape_are_judged(data: st.DataObject) -> None:
    plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    anything = st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    )
    made = container()
    for table in (made, made["HostConfig"], made["Config"]):
        for key in data.draw(st.sets(st.sampled_from(sorted(table)), max_size=3)):
            table[key] = data.draw(anything)
    assert len(cis.judge(made, SELINUX)) == 32
