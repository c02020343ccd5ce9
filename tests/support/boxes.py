"""What the engine and a box would say of themselves if everything were as the policy wants it."""

from __future__ import annotations

import copy
import math
from typing import Any

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor, hardening, namespaces
from orchestrator.sandbox.hardening import Wanted

IMAGE = "sha256:" + "ab" * 32
HOST = namespaces.Host("6f4a", {name: f"{name}:[40265320{number}]" for number, name in enumerate(namespaces.OWN, 10)})
SECCOMP = '{"defaultAction":"SCMP_ACT_ERRNO"}'


def wanted(policy: Policy | None = None) -> Wanted:
    """Return what a container was asked for."""
    return Wanted(policy or Policy(), IMAGE, SECCOMP, HOST)


def config(policy: Policy | None = None) -> dict[str, Any]:
    """Return what the engine was sent."""
    return hardening.container_config(policy or Policy(), IMAGE, SECCOMP, {"owner": "me"})


def record(policy: Policy | None = None) -> dict[str, Any]:
    """Return what the engine says of the container it made of that."""
    sent = copy.deepcopy(config(policy))
    host = sent.pop("HostConfig")
    return {"Image": sent["Image"], "Config": sent, "HostConfig": host, "Mounts": [], "AppArmorProfile": ""}


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
            "Groups": "",
            **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), none),
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "Seccomp_filters": "1",
        },
        "interpreter": _interpreter(policy),
        "pid": 1,
        "mounts": [
            ["/", "overlay", "ro,relatime", "rw,lowerdir=/a,upperdir=/b"],
            ["/proc", "proc", "rw,nosuid,nodev,noexec,relatime", "rw"],
            ["/dev", "tmpfs", "rw,nosuid", "rw,size=65536k,mode=755"],
            ["/dev/shm", "tmpfs", tmpfs, f"rw,size={hardening.SHM_MB * 1024}k,nr_inodes={hardening.SHM_INODES}"],  # noqa: S108 - the box's
            ["/tmp", "tmpfs", tmpfs, f"rw,size={limits.tmp_mb * 1024}k,nr_inodes={limits.tmp_inodes}"],  # noqa: S108
            ["/run/box", "tmpfs", tmpfs, f"rw,size={run_dir * 1024}k,nr_inodes={hardening.RUN_DIR_INODES}"],
            ["/etc/hostname", "ext4", "ro,relatime", "rw,discard"],
            *([mask, "tmpfs", "rw,nosuid", "rw,size=65536k,mode=755"] for mask in ("/proc/cmdline", "/proc/kallsyms")),
            *([mask, "tmpfs", "ro,relatime", "ro"] for mask in ("/sys/devices", "/sys/kernel")),
            ["/proc/sys", "proc", "ro,nosuid,nodev,noexec,relatime", "rw"],
        ],
        "cgroup": {
            "memory": f"{memory}\n",
            "swap": f"{memory}\n",
            "pids": f"{limits.pids}\n",
            "cpu_quota": f"{math.ceil(limits.cpus * hardening.CPU_PERIOD_US)}\n",
            "cpu_period": f"{hardening.CPU_PERIOD_US}\n",
        },
        "cgroup_path": "2:memory:/\n1:name=systemd:/\n",
        "limits": {
            "Max open files": [str(limits.open_files)] * 2,
            "Max core file size": [str(hardening.CORE_BYTES)] * 2,
            "Max processes": ["31337", "31337"],
        },
        "interfaces": ["lo"],
        "inet_socket": "EPERM",
        "hostname": hardening.HOSTNAME,
        "kernel": "Linux version 6.1",
        "boot_id": "6f4a",
        "namespaces": {name: f"{name}:[{number}]" for number, name in enumerate(namespaces.OWN, 4026532100)},
        "uid_map": "         0          0 4294967295\n",
        "gid_map": "         0          0 4294967295\n",
        "security_module": "",
        "descriptors": ["0 pipe:[1]", "3 pipe:[2]", "5 /run/box/context (deleted)", "7 socket:[3]"],
        "environment": ["HOME", "HOSTNAME"],
        "stream_in_reach": False,
        **(_under_gvisor(policy) if gvisor.asked_for(policy.sandbox.runtime) else {}),
    }


def _interpreter(policy: Policy) -> dict[str, Any]:
    """Return what is said of an interpreter that gave up what the policy takes away."""
    box = policy.sandbox
    refused: tuple[str, ...] = () if box.allow_subprocess else ("execve", "clone")
    refused += ("kill", "fcntl") if box.freeze_between_cells else ()
    if not refused:
        return {}
    return {"status": {"Seccomp_filters": "2"}, "refusals": dict.fromkeys(("seccomp", *refused), "EPERM")}


def _under_gvisor(policy: Policy) -> dict[str, Any]:
    """Return what is different under gVisor; these are the words of its release 20221219."""
    limits, user = policy.limits, policy.sandbox.user.split(":")
    served = "ro,trans=fd,rfdno=4,wfdno=4,aname=/,dfltuid=4294967294,dfltgid=4294967294,cache=fscache"
    run_dir = limits.context_mb + hardening.RUN_DIR_SLACK_MB
    return {
        "status": {
            "Uid": "\t".join(user[:1] * 4),
            "Gid": "\t".join(user[1:] * 4),
            **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd"), "0" * 16),
            "NoNewPrivs": "1",
            "Seccomp": "2",
        },
        "mounts": [
            ["/", "9p", "ro", served],
            ["/dev", "tmpfs", "rw", "rw,mode=0755"],
            ["/sys", "sysfs", "ro,noexec", "ro,dentry_cache_limit=1000"],
            ["/tmp", "tmpfs", "rw,noexec", f"rw,uid=64000,gid=64000,size={limits.tmp_mb}m,mode=700"],  # noqa: S108
            ["/proc", "proc", "rw,noexec", "rw,dentry_cache_limit=1000"],
            ["/dev/pts", "devpts", "rw,noexec", "rw"],
            ["/dev/shm", "tmpfs", "rw,noexec", f"rw,uid=64000,gid=64000,size={hardening.SHM_MB}m,mode=700"],  # noqa: S108
            ["/run/box", "tmpfs", "rw,noexec", f"rw,uid=64000,gid=64000,size={run_dir}m,mode=700"],
            ["/etc/hostname", "9p", "ro", served],
        ],
        "cgroup": dict.fromkeys(("memory", "swap", "pids", "cpu_quota", "cpu_period"), ""),
        "cgroup_path": "",
        "limits": {
            "Max open files": [str(limits.open_files)] * 2,
            "Max core file size": [str(hardening.CORE_BYTES)] * 2,
            "Max processes": [str(limits.pids)] * 2,
        },
        "kernel": "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n",
        "descriptors": ["0 host:[2]", "1 host:[3]", "2 host:[1]", "3 pipe:[1]", "5 /run/box/context (deleted)"],
    }
