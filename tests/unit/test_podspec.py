"""A box as a Kubernetes Pod, and what an engine is sent: complete, true to the policy, and restricted."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.policy import Policy, profiles
from orchestrator.sandbox import effective, hardening, podspec
from orchestrator.sandbox.controls import CONTROLS
from tests.support.pod_security import violations

Mutate = Callable[[dict[str, Any]], object]

SHIPPED = [Policy.load(name) for name in profiles()]
SECCOMP = effective.seccomp()


def items(policy: Policy) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Pod and the NetworkPolicy."""
    made = copy.deepcopy(podspec.manifest(policy, "registry.example/box@sha256:00", SECCOMP))
    silence, pod = made["items"]
    return pod, silence


def box_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def spec(key: str, to: Any) -> Mutate:
    return lambda pod: pod["spec"].update({key: to})


def whole(key: str, to: Any) -> Mutate:
    return lambda pod: pod["spec"]["securityContext"].update({key: to})


def own(key: str, to: Any) -> Mutate:
    return lambda pod: box_of(pod)["securityContext"].update({key: to})


def container(key: str, to: Any) -> Mutate:
    return lambda pod: box_of(pod).update({key: to})


def volume(**kind: Any) -> Mutate:
    return lambda pod: pod["spec"]["volumes"].append({"name": "more", **kind})


BROKEN: dict[str, list[Mutate]] = {
    "HostProcess": [whole("windowsOptions", {"hostProcess": True})],
    "Host Namespaces": [spec(key, to=True) for key in ("hostNetwork", "hostPID", "hostIPC")],
    "Privileged Containers": [own("privileged", to=True)],
    "Capabilities (baseline)": [own("capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]})],
    "HostPath Volumes": [volume(hostPath={"path": "/"})],
    "Host Ports": [container("ports", [{"containerPort": 80, "hostPort": 80}])],
    "Host Probes / Lifecycle Hooks": [
        container("livenessProbe", {"tcpSocket": {"host": "10.0.0.1"}}),
        container("lifecycle", {"preStop": {"httpGet": {"host": "10.0.0.1"}}}),
    ],
    "AppArmor": [
        own("appArmorProfile", {"type": "Unconfined"}),
        lambda pod: pod["metadata"]["annotations"].update(
            {"container.apparmor.security.beta.kubernetes.io/box": "unconfined"}
        ),
    ],
    "SELinux": [whole("seLinuxOptions", {"type": "spc_t"}), own("seLinuxOptions", {"user": "root"})],
    "/proc Mount Type": [own("procMount", "Unmasked")],
    "Seccomp (baseline)": [own("seccompProfile", {"type": "Unconfined"})],
    "Sysctls": [whole("sysctls", [{"name": "kernel.msgmax", "value": "1"}])],
    "Volume Types": [volume(nfs={"server": "x"}), volume(hostPath={"path": "/"})],
    "Privilege Escalation": [own("allowPrivilegeEscalation", to=True), own("allowPrivilegeEscalation", to=None)],
    "Running as Non-root": [own("runAsNonRoot", to=False)],
    "Running as Non-root user": [own("runAsUser", 0), whole("runAsUser", 0)],
    "Seccomp": [own("seccompProfile", {"type": "Unconfined"})],
    "Capabilities": [own("capabilities", {}), own("capabilities", {"drop": ["NET_RAW"]})],
}


@pytest.mark.parametrize("policy", SHIPPED, ids=profiles())
def test_a_pod_of_any_shipped_policy_is_restricted(policy: Policy) -> None:
    assert violations(items(policy)[0]) == []


@pytest.mark.parametrize(
    ("control", "mutate"),
    [(control, mutate) for control, mutations in BROKEN.items() for mutate in mutations],
    ids=[f"{control} {number}" for control, mutations in BROKEN.items() for number in range(len(mutations))],
)
def test_one_that_is_not_is_noticed(control: str, mutate: Mutate) -> None:
    pod, _ = items(SHIPPED[0])
    mutate(pod)
    assert control in violations(pod)


@pytest.mark.parametrize("policy", SHIPPED, ids=profiles())
def test_its_numbers_are_the_policys(policy: Policy) -> None:
    pod, _ = items(policy)
    limits, made, uid = policy.limits, box_of(pod), int(policy.sandbox.user.partition(":")[0])
    assert made["resources"]["limits"]["memory"] == f"{limits.memory_mb}Mi"
    assert made["resources"]["limits"]["cpu"] == f"{limits.cpus * 1000:g}m"
    assert {pod["spec"]["securityContext"]["runAsUser"], made["securityContext"]["runAsUser"]} == {uid}
    sizes = {item["name"]: item["emptyDir"] for item in pod["spec"]["volumes"]}
    where = {item["mountPath"]: sizes[item["name"]] for item in made["volumeMounts"]}
    assert {size["medium"] for size in where.values()} == {"Memory"}
    assert where[hardening.SCRATCH]["sizeLimit"] == f"{limits.tmp_mb}Mi"
    assert where[hardening.RUN_DIR]["sizeLimit"] == f"{limits.context_mb + hardening.RUN_DIR_SLACK_MB}Mi"
    assert json.loads(made["args"][0]) == hardening.supervisor_settings(policy)
    assert pod["spec"]["activeDeadlineSeconds"] > policy.budget.wall_s


def test_it_has_nothing_of_the_cluster_and_ends_at_once() -> None:
    pod, _ = items(Policy())
    expected = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostUsers": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "dnsPolicy": "None",
        "hostname": hardening.HOSTNAME,
    }
    assert {key: pod["spec"][key] for key in expected} == expected
    assert box_of(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    assert (box_of(pod)["stdin"], box_of(pod)["stdinOnce"], box_of(pod)["tty"]) == (True, True, False)
    assert box_of(pod)["imagePullPolicy"] == "Never"
    assert "env" not in box_of(pod)
    assert "envFrom" not in box_of(pod)


def test_a_node_short_of_memory_ends_it_before_others() -> None:
    resources = box_of(items(Policy())[0])["resources"]
    # Requests equal to limits in both would be the class "Guaranteed", whose processes the kernel spares.
    assert resources["requests"]["cpu"] != resources["limits"]["cpu"]
    small = box_of(items(Policy().override(["limits.cpus=0.01"]))[0])["resources"]
    assert small["requests"]["cpu"] == small["limits"]["cpu"] == "10m"


def test_all_traffic_of_it_is_denied() -> None:
    pod, silence = items(Policy())
    assert silence["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert silence["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(silence["spec"])


def test_the_profile_is_found_by_a_name_that_holds_its_hash() -> None:
    for policy in SHIPPED:
        context = box_of(items(policy)[0])["securityContext"]
        sent = hardening.seccomp_profile(policy, SECCOMP)
        digest = hashlib.sha256(sent.encode()).hexdigest()
        assert context["seccompProfile"]["localhostProfile"] == f"rlm-sandbox-{digest[:16]}.json"


@pytest.mark.parametrize(
    ("runtime", "cls"),
    [("", None), ("runsc", "gvisor"), ("runsc-kvm", "runsc-kvm"), ("Kata_FC.2", "kata-fc.2"), ("crun", "crun")],
)
def test_a_runtime_is_a_class_whose_name_kubernetes_takes(runtime: str, cls: str | None) -> None:
    policy = Policy().override([f"sandbox.runtime={runtime}"]) if runtime else Policy()
    pod, _ = items(policy)
    assert pod["spec"].get("runtimeClassName") == cls
    assert cls is None or re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", cls)
    assert ("hostUsers" in pod["spec"]) is not runtime.startswith("runsc")


@pytest.mark.parametrize("policy", SHIPPED, ids=profiles())
def test_what_a_pod_cannot_say_is_said_beside_it(policy: Policy) -> None:
    pod, _ = items(policy)
    said = pod["metadata"]["annotations"][podspec.NOTES].splitlines()
    assert said == podspec.unsaid(policy, SECCOMP)
    named = {control for line in said for control in re.findall(r"\(([HP]\d+)\)", line)}
    assert named <= {control.id.rstrip("ab") for control in CONTROLS} | {"H32"}
    assert {"H1", "H9", "H16", "H18", "H19", "H23"} <= named


class TestEngine:
    @pytest.mark.parametrize("policy", SHIPPED, ids=profiles())
    def test_what_is_shown_is_what_is_sent(self, policy: Policy) -> None:
        shown = effective.body(policy, full=True)
        labels = {"a": "b"}
        sent = hardening.container_config(policy, effective.image_reference(policy), SECCOMP, labels)
        assert {**shown, "Labels": labels} == sent

    def test_it_is_the_same_each_time(self) -> None:
        assert effective.body(Policy()) == effective.body(Policy())

    @pytest.mark.parametrize("policy", SHIPPED, ids=profiles())
    def test_the_profile_is_named_by_its_hash(self, policy: Policy) -> None:
        (option,) = (o for o in effective.body(policy)["HostConfig"]["SecurityOpt"] if o.startswith("seccomp="))
        digest = hashlib.sha256(hardening.seccomp_profile(policy, SECCOMP).encode()).hexdigest()
        assert option == f"seccomp=<policies/seccomp.json, sha256:{digest}>"
        assert "no-new-privileges" in effective.body(policy)["HostConfig"]["SecurityOpt"]

    def test_an_image_of_the_policys_choice_is_named(self) -> None:
        assert effective.body(Policy().override(["sandbox.image=mine:1"]))["Image"] == "mine:1"
        assert re.fullmatch(r"rlm-sandbox:[0-9a-f]{12}", effective.body(Policy())["Image"])
