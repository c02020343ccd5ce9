"""A box as a Kubernetes Pod: the same limits, as far as a PodSpec has words for them. Pure functions over a policy.

The Pod satisfies the *restricted* profile of the Pod Security Standards (Kubernetes 1.34), and a NetworkPolicy beside
it denies all traffic. What neither can say is in :func:`unsaid`, and no field pretends otherwise. This package starts
no Pods: whoever does speaks the box's protocol over the Pod's attached stdin and stdout, as a host does here.

Names of fields are those of the API groups ``v1`` and ``networking.k8s.io/v1``.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor, hardening
from orchestrator.sandbox.container import LEASE_SLACK_S

Manifest = dict[str, Any]

NAME = "rlm-sandbox-box"
_LABELS = {"app.kubernetes.io/name": "rlm-sandbox", "app.kubernetes.io/component": "box"}
NOTES = "io.rlm-sandbox/unsaid"
# The name under which Kubernetes' own documentation registers runsc (tasks and concepts, "Runtime Class").
_RUNTIME_CLASS = {"runsc": "gvisor"}


def manifest(policy: Policy, image: str, seccomp: str) -> Manifest:
    """Return a ``List`` of the Pod and its NetworkPolicy, as ``kubectl apply -f -`` takes it.

    Args:
        policy: what the box may use.
        image: reference of the image; the nodes must hold it, for nothing is pulled (H28).
        seccomp: the profile's JSON text.
    """
    about = {"name": NAME, "labels": _LABELS}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**about, "annotations": {NOTES: "\n".join(unsaid(policy, seccomp))}},
        "spec": _pod(policy, image, seccomp),
    }
    silence = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": about,
        # Both directions named and no rule for either: nothing is allowed.
        "spec": {"podSelector": {"matchLabels": _LABELS}, "policyTypes": ["Ingress", "Egress"]},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [silence, pod]}


def profile_file(policy: Policy, seccomp: str) -> str:
    """Return the name, below the kubelet's ``seccomp`` folder, under which a Pod looks for its profile.

    It holds the profile's hash: the profile of another version is not taken for it, and without it no Pod starts.
    """
    text = hardening.seccomp_profile(policy, seccomp)
    return f"rlm-sandbox-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _pod(policy: Policy, image: str, seccomp: str) -> Manifest:
    uid, gid = map(int, policy.sandbox.user.split(":"))
    identity = {"runAsNonRoot": True, "runAsUser": uid, "runAsGroup": gid}
    filtered = {"seccompProfile": {"type": "Localhost", "localhostProfile": profile_file(policy, seccomp)}}
    spec: Manifest = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": math.ceil(policy.budget.wall_s) + LEASE_SLACK_S,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "hostname": hardening.HOSTNAME,
        # No name of the cluster, not even that of its name server.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "securityContext": {**identity, "fsGroup": gid, "supplementalGroups": [], **filtered},
        "containers": [_container(policy, image, identity | filtered)],
        "volumes": [
            {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": f"{megabytes}Mi"}}
            for name, (_, megabytes) in _scratch(policy).items()
        ],
    }
    if gvisor.asked_for(policy.sandbox.runtime):
        spec["runtimeClassName"] = _runtime_class(policy)
    else:
        spec["hostUsers"] = False
        if policy.sandbox.runtime:
            spec["runtimeClassName"] = _runtime_class(policy)
    return spec


def _container(policy: Policy, image: str, context: Manifest) -> Manifest:
    limits = policy.limits
    processor = math.ceil(limits.cpus * 1000)
    return {
        "name": "box",
        "image": image,
        "imagePullPolicy": "Never",
        "command": hardening.ENTRYPOINT,
        "args": hardening.arguments(policy),
        "workingDir": hardening.WORKDIR,
        "stdin": True,
        "stdinOnce": True,
        "tty": False,
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "procMount": "Default",
            **context,
        },
        "resources": {
            # All of the memory, but little of the processor: with both the Pod would be "Guaranteed", and the last that
            # a node short of memory ends. A box is to be among the first (H15).
            "requests": {
                "memory": f"{limits.memory_mb}Mi",
                "cpu": f"{min(50, processor)}m",
                "ephemeral-storage": "16Mi",
            },
            "limits": {
                "memory": f"{limits.memory_mb}Mi",
                "cpu": f"{processor}m",
                "ephemeral-storage": "64Mi",
            },
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in _scratch(policy).items()],
    }


def _scratch(policy: Policy) -> dict[str, tuple[str, int]]:
    """Return where each volume in memory goes, and its size in MiB."""
    return {
        "scratch": (hardening.SCRATCH, policy.limits.tmp_mb),
        "run": (hardening.RUN_DIR, policy.limits.context_mb + hardening.RUN_DIR_SLACK_MB),
        "shm": ("/dev/shm", hardening.SHM_MB),  # noqa: S108 - the box's
    }


def _runtime_class(policy: Policy) -> str:
    """Return the RuntimeClass for a runtime: names of objects are lower case, without underscores (RFC 1123)."""
    name = policy.sandbox.runtime
    return _RUNTIME_CLASS.get(name) or name.lower().replace("_", "-").strip("-.")


def unsaid(policy: Policy, seccomp: str) -> list[str]:
    """Return what of the policy no field carries, and who has to see to it; a line each.

    Args:
        policy: what the box may use.
        seccomp: the profile's JSON text.
    """
    limits, under_gvisor = policy.limits, gvisor.asked_for(policy.sandbox.runtime)
    profile, tasks = profile_file(policy, seccomp), hardening.host_tasks(policy)
    lines = [
        (
            f"seccomp (H19): each node needs what `policy show --format seccomp` prints as seccomp/{profile} in the "
            "kubelet's folder (/var/lib/kubelet); without it no Pod starts"
        ),
        f"processes (H16): a PodSpec has no such limit; set the kubelet's podPidsLimit to {tasks}",
        (
            f"ulimits (H18): nofile {limits.open_files}, core {hardening.CORE_BYTES}, memlock 64 KiB and msgqueue 0 "
            "are the container runtime's to set, for all its containers"
        ),
        "scratch (H9): an emptyDir is mounted without noexec, nosuid and nodev, and may hold any number of files",
        (
            "network (H1): the NetworkPolicy holds only where the cluster's network plugin enforces it, and a Pod has "
            "an interface all the same; in the box the seccomp profile refuses every socket but AF_UNIX (H2)"
        ),
        "swap (H13): keep swap off on the nodes, or swapBehavior at NoSwap",
        (
            "logs (H23): the node keeps what the box writes to its stream; bound it by the kubelet's "
            "containerLogMaxSize and containerLogMaxFiles"
        ),
        (
            "mounts (H10): the kubelet mounts small files of the node into every container, and one of them can be "
            "written (terminationMessagePath)"
        ),
        "environment (H26): KUBERNETES_SERVICE_HOST and its siblings are set in every Pod",
        "/proc (H25): what is masked is the container runtime's choice",
        "read-back (H32): nobody compares this Pod with the policy after its start, as a host does with a container",
    ]
    if under_gvisor:
        lines.append(
            f"gVisor (H31): needs a RuntimeClass {_runtime_class(policy)!r} whose handler runs runsc with "
            "--oci-seccomp; hostUsers is left out, which runsc does not take"
        )
    else:
        lines.append(
            "user namespace (H7): hostUsers: false needs Kubernetes 1.33 or later, Linux 6.3, and runc 1.2 or crun "
            "on the nodes; an older cluster ignores it"
        )
        if policy.sandbox.runtime:
            lines.append(f"runtime: needs a RuntimeClass {_runtime_class(policy)!r} for {policy.sandbox.runtime}")
    return lines
