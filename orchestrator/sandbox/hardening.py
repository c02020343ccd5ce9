"""From a policy to a locked container: pure functions over plain data.

:func:`container_config` makes the engine API's JSON; Docker's names are those of its Engine API 1.41. What is promised
by it, and how each promise is read back, is in :mod:`orchestrator.sandbox.controls`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor
from orchestrator.sandbox.namespaces import Host

HOSTNAME = "sandbox"
WORKDIR = "/work"
SCRATCH = "/tmp"  # noqa: S108 - a tmpfs of each box, not a shared folder
RUN_DIR = "/run/box"
ENTRYPOINT = ["/opt/box/python", "-I", "-B", "-u", "/opt/box/sandbox_image/supervisor.py"]
# multiprocessing's semaphores live there; a pool of any size the pids limit allows fits. The engine's own mount has
# room for as many files as half the host's memory has pages: the supervisor would drown in what it has to clear away.
SHM = "/dev/shm"  # noqa: S108 - the box's
SHM_MB = 16
SHM_INODES = 1024
# Sockets, profile and the growth of tmpfs metadata beside the context.
RUN_DIR_SLACK_MB = 8
RUN_DIR_INODES = 256
# Below the kernel of the box, which sets itself to 1000, and above everything else on the host.
OOM_SCORE_ADJ = 900
CPU_PERIOD_US = 100_000
# No core dump is as small, so no file is written; and where `core_pattern` is a pipe to the host's crash handler, which
# Linux starts as root whatever the limit, the value 1 alone keeps it from doing so (core(5); do_coredump in
# fs/coredump.c). The filter lets no code in the box set it to another.
CORE_BYTES = 1
MIB = 1 << 20
# The engine's own list (that of Docker 28, whatever release it is), and what else of the kernel's files tells of the
# host: its command line, symbols, disks, interrupts, memory and modules. A folder costs the start of a box a mount.
_MASKED_IN_PROC = """
    acpi asound buddyinfo bus cmdline config.gz consoles crypto diskstats fs interrupts iomem ioports irq kallsyms
    kcore key-users keys kmsg kpagecgroup kpagecount kpageflags latency_stats locks modules mtrr
    pagetypeinfo partitions sched_debug scsi slabinfo softirqs swaps timer_list timer_stats vmallocinfo
    zoneinfo
"""
MASKED_PATHS = (
    *(f"/proc/{name}" for name in _MASKED_IN_PROC.split()),
    *("/sys/devices", "/sys/firmware", "/sys/kernel", "/sys/module"),
)
READONLY_PATHS = ("/proc/sys", "/proc/sysrq-trigger")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a container was asked for.

    Attributes:
        policy: what the box may use.
        image: id of the image it must run.
        seccomp: the profile's JSON text.
        host: where the orchestrator itself runs.
    """

    policy: Policy
    image: str
    seccomp: str
    host: Host = field(default_factory=Host)


def frame_bytes(policy: Policy) -> int:
    """Return the largest frame of the wire: what the policy says, but room for a context piece and for output."""
    return max(policy.limits.frame_kb * 1024, output_frame_bytes(policy))


def output_frame_bytes(policy: Policy) -> int:
    """Return the largest frame a box sends: a call's fragment, or output.

    Output cut at the source leaves in one frame: the end of two streams, where JSON may take six bytes a character.
    """
    return max(1024 + 64, 13 * policy.limits.output_kb) * 1024


def message_bytes(policy: Policy) -> int:
    """Return the most text of one call or answer, in bytes of UTF-8; and of all calls of a box that are under way.

    An answer of a sub-call may have as much as a prompt, whatever the final one may have.
    """
    return max(policy.limits.answer_mb * MIB, policy.limits.frame_kb * 1024)


def supervisor_settings(policy: Policy) -> dict[str, int]:
    """Return what the supervisor is told on its command line: what it applies at the source; sizes in bytes."""
    return {
        "frame": frame_bytes(policy),
        "message": message_bytes(policy),
        "output": policy.limits.output_kb * 1024,
        "window": policy.models.window,
        "threads": max(1, int(policy.limits.cpus)),
        "freeze": policy.sandbox.freeze_between_cells,
        "subprocesses": policy.sandbox.allow_subprocess,
    }


def arguments(policy: Policy) -> list[str]:
    """Return the supervisor's command line, as the engine is sent it."""
    return [json.dumps(supervisor_settings(policy), separators=(",", ":"))]


def seccomp_profile(policy: Policy, profile: str) -> str:
    """Return the profile, a JSON text, in the form that the policy's runtime understands."""
    return gvisor.seccomp(profile) if gvisor.asked_for(policy.sandbox.runtime) else profile


def host_tasks(policy: Policy) -> int:
    """Return how many tasks of the host a box may be: as many as it sees itself, but under gVisor."""
    return policy.limits.pids * (gvisor.HOST_TASKS if gvisor.asked_for(policy.sandbox.runtime) else 1)


def tmpfs(policy: Policy) -> dict[str, str]:
    """Return the options of what can be written, by mount point."""
    uid, gid = policy.sandbox.user.split(":")
    limits, options = policy.limits, f"rw,noexec,nosuid,nodev,uid={uid},gid={gid}"
    return {
        SCRATCH: f"{options},size={limits.tmp_mb}m,nr_inodes={limits.tmp_inodes},mode=700",
        RUN_DIR: f"{options},size={limits.context_mb + RUN_DIR_SLACK_MB}m,nr_inodes={RUN_DIR_INODES},mode=700",
        SHM: f"{options},size={SHM_MB}m,nr_inodes={SHM_INODES},mode=700",
    }


def _ulimits(policy: Policy) -> list[Record]:
    files = policy.limits.open_files
    limits = {"nofile": files, "core": CORE_BYTES, "memlock": 65536, "msgqueue": 0}
    if gvisor.asked_for(policy.sandbox.runtime):
        limits["nproc"] = policy.limits.pids  # on Linux it would count all processes of the uid, whatever their box
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()]


def container_config(policy: Policy, image: str, seccomp: str, labels: dict[str, str]) -> Record:
    """Return the body of the engine's ``POST /containers/create``.

    Args:
        policy: what the box may use.
        image: id of the image.
        seccomp: the profile's JSON text.
        labels: who owns the container and until when.
    """
    limits = policy.limits
    memory = limits.memory_mb * MIB
    return {
        "Image": image,
        "Entrypoint": ENTRYPOINT,
        "Cmd": arguments(policy),
        # A name without "=" removes it: nothing of the image's or the engine's environment is left.
        "Env": ["PATH"],
        "WorkingDir": WORKDIR,
        "User": policy.sandbox.user,
        "Hostname": HOSTNAME,
        "Domainname": "",
        "Labels": labels,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": 0,
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "CapAdd": [],
            "Privileged": False,
            "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp_profile(policy, seccomp)}"],
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "PidMode": "",
            "UTSMode": "",
            "Memory": memory,
            "MemorySwap": memory,
            "OomKillDisable": False,
            "OomScoreAdj": OOM_SCORE_ADJ,
            "PidsLimit": host_tasks(policy),
            "CpuPeriod": CPU_PERIOD_US,
            "CpuQuota": math.ceil(limits.cpus * CPU_PERIOD_US),
            "Ulimits": _ulimits(policy),
            "Tmpfs": tmpfs(policy),
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "AutoRemove": True,
            "Init": False,
            "Binds": [],
            "Mounts": [],
            "Devices": [],
            "MaskedPaths": list(MASKED_PATHS),
            "ReadonlyPaths": list(READONLY_PATHS),
            "PublishAllPorts": False,
            **({"Runtime": policy.sandbox.runtime} if policy.sandbox.runtime else {}),
        },
    }
