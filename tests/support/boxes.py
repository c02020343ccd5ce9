"""What the engine and a box would say of themselves if everything were as the policy wants it."""

from __future__ import annotations

import copy
import math
from typing import Any

from orchestrator.policy import Policy
from orchestrator.sandbox import hardening
from orchestrator.sandbox.hardening import Wanted

IMAGE = "sha256:" + "ab" * 32
SECCOMP = '{"defaultAction":"SCMP_ACT_ERRNO"}'


def wanted(policy: Policy | None = None) -> Wanted:
    """Return what a container was asked for."""
    return Wanted(policy or Policy(), IMAGE, SECCOMP)


def config(policy: Policy | None = None) -> dict[str, Any]:
    """Return what the engine was sent."""
    return hardening.container_config(policy or Policy(), IMAGE, SECCOMP, {"owner": "me"})


def record(policy: Policy | None = None) -> dict[str, Any]:
    """Return what the engine says of the container it made of that."""
    sent = copy.deepcopy(config(policy))
    host = sent.pop("HostConfig")
    masks = {"MaskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"], "ReadonlyPaths": ["/proc/bus", "/proc/sys"]}
    return {"Image": sent["Image"], "Config": sent, "HostConfig": {**host, **masks}, "Mounts": []}


def facts(policy: Policy | None = None) -> dict[str, Any]:
    """Return what the supervisor says of its confinement."""
    policy = policy or Policy()
    limits, user = policy.limits, policy.sandbox.user.split(":")
    memory, none = limits.memory_mb * hardening.MIB, "0" * 16
    tmpfs = "rw,nosuid,nodev,noexec,relatime"
    run_dir = limits.context_mb + hardening.RUN_DIR_SLACK_MB
    return {
        "protocol": 1,
        "status": {
            "Uid": "\t".join(user[:1] * 4),
            "Gid": "\t".join(user[1:] * 4),
            **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), none),
            "NoNewPrivs": "1",
            "Seccomp": "2",
        },
        "pid": 1,
        "mounts": [
            ["/", "overlay", "ro,relatime", "rw,lowerdir=/a,upperdir=/b"],
            ["/proc", "proc", "rw,nosuid,nodev,noexec,relatime", "rw"],
            ["/dev", "tmpfs", "rw,nosuid", "rw,size=65536k,mode=755"],
            ["/dev/shm", "tmpfs", tmpfs, f"rw,size={hardening.SHM_MB * 1024}k"],  # noqa: S108 - the box's
            ["/tmp", "tmpfs", tmpfs, f"rw,size={limits.tmp_mb * 1024}k,nr_inodes={limits.tmp_inodes}"],  # noqa: S108
            ["/run/box", "tmpfs", tmpfs, f"rw,size={run_dir * 1024}k,nr_inodes={hardening.RUN_DIR_INODES}"],
            ["/etc/hostname", "ext4", "ro,relatime", "rw,discard"],
        ],
        "cgroup": {
            "memory": f"{memory}\n",
            "swap": f"{memory}\n",
            "pids": f"{limits.pids}\n",
            "cpu_quota": f"{math.ceil(limits.cpus * hardening.CPU_PERIOD_US)}\n",
            "cpu_period": f"{hardening.CPU_PERIOD_US}\n",
        },
        "cgroup_path": "2:memory:/\n1:name=systemd:/\n",
        "limits": {"Max open files": [str(limits.open_files)] * 2, "Max core file size": ["0", "0"]},
        "interfaces": ["lo"],
        "inet_socket": "EPERM",
        "hostname": hardening.HOSTNAME,
        "kernel": "Linux version 6.1",
        "namespaces": {},
        "descriptors": ["0 pipe:[1]", "3 pipe:[2]", "5 /run/box/context (deleted)", "7 socket:[3]"],
        "environment": ["HOME", "HOSTNAME"],
    }
