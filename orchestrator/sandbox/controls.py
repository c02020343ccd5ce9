"""The one table of what is promised of a box: how it is set, how it is read back, and which attack it stops.

:data:`CONTROLS` are read back of every box (:mod:`orchestrator.sandbox.attestation`); those that there is nothing to be
read of are in :mod:`orchestrator.sandbox.by_design`. ``policies/CONTROLS.md`` is made of both, ``rlm-sandbox doctor``
prints them, and a test holds that each has tests of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.sandbox import readback
from orchestrator.sandbox.hardening import (
    CORE_BYTES,
    CPU_PERIOD_US,
    ENTRYPOINT,
    HOSTNAME,
    MIB,
    OOM_SCORE_ADJ,
    WORKDIR,
    arguments,
    host_tasks,
    seccomp_profile,
    tmpfs,
)
from orchestrator.sandbox.readback import Check, host


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One promise.

    Attributes:
        id: its name everywhere.
        what: the promise, for people.
        sets: what makes it so: the engine's settings, by their names in its API, or a part of this project.
        stops: the attacks it is against.
        cis: recommendations it answers, of section 5 of the CIS Docker Benchmark 1.6.
        engine: whether the engine's record of the container shows it; None where the engine does not say.
        inside: whether the facts from inside show it; None where it cannot be seen from there.
    """

    id: str
    what: str
    sets: str
    stops: str
    cis: tuple[str, ...] = ()
    engine: Check | None = None
    inside: Check | None = None


# Read back of every box before any model code runs; one that is not in force destroys the box.
CONTROLS: tuple[Control, ...] = (
    Control(
        id="H1",
        what="no network: an empty namespace with loopback at most",
        sets="`NetworkMode` none, `NetworkDisabled`",
        stops="exfiltration, metadata services, engine APIs on the bridge (CVE-2025-9074)",
        cis=("5.10", "5.30"),
        engine=readback.setting("NetworkMode", "none"),
        inside=lambda facts, _: set(facts["interfaces"]) <= {"lo"},
    ),
    Control(
        id="H2",
        what="no socket but those of Unix",
        sets="seccomp: `socket` and `socketpair` with AF_UNIX alone",
        stops="AF_ALG (CVE-2026-31431), AF_VSOCK, netlink, packet and RxRPC sockets and the kernel's bugs behind them",
        inside=lambda facts, _: facts["inet_socket"] == "EPERM",
    ),
    Control(
        id="H3",
        what="no capability in any set",
        sets="`CapDrop` ALL, `CapAdd` empty",
        stops="mounts, raw sockets, file handles of other file systems, modules, tracing",
        cis=("5.4",),
        engine=lambda record, _: host(record)["CapDrop"] == ["ALL"] and not host(record)["CapAdd"],
        inside=readback.no_capabilities,
    ),
    Control(
        id="H4",
        what="no new privileges by any exec",
        sets="`SecurityOpt` no-new-privileges",
        stops="setuid programs, file capabilities",
        cis=("5.26",),
        engine=lambda record, _: "no-new-privileges" in host(record)["SecurityOpt"],
        inside=lambda facts, _: readback.status(facts, "NoNewPrivs") == "1",
    ),
    Control(
        id="H6",
        what="not root, in the box or outside of it, and a uid of its own",
        sets="`User`: numeric, one of the policy's `sandbox.uids` that begin with `sandbox.user`",
        stops="damage from a partial escape; using up what Linux counts by user",
        engine=lambda record, wanted: record["Config"]["User"] == wanted.policy.sandbox.user,
        inside=readback.not_root,
    ),
    Control(
        id="H7",
        what="a user namespace, where the policy wants one",
        sets="the engine's own `userns-remap` or rootless mode; `sandbox.user_namespace` demands it",
        stops="an escape's root being the host's (CVE-2019-5736, CVE-2024-21626, CVE-2025-31133)",
        cis=("5.31",),
        engine=lambda record, _: host(record).get("UsernsMode", "") != "host",
        inside=readback.user_namespace,
    ),
    Control(
        id="H8",
        what="read-only root file system",
        sets="`ReadonlyRootfs`",
        stops="persistence, planted programs, overwritten runtimes",
        cis=("5.13",),
        engine=readback.setting("ReadonlyRootfs", value=True),
        inside=readback.readonly_root,
    ),
    Control(
        id="H9",
        what="scratch is sized, in memory, and not executable",
        sets="`Tmpfs` with size, nr_inodes, noexec, nosuid, nodev; the engine's own /dev/shm is one of them",
        stops="filling the host's disk or inodes, dropped programs",
        engine=lambda record, wanted: host(record)["Tmpfs"] == tmpfs(wanted.policy),
        inside=readback.scratch,
    ),
    Control(
        id="H10",
        what="nothing of the host is mounted",
        sets="`Binds` and `Mounts` empty; the context comes over the stream",
        stops="path leaks, symlink swaps, filling the host's disk, the engine's socket (CVE-2026-6406)",
        cis=("5.6", "5.20", "5.32"),
        engine=lambda record, wanted: (
            readback.nothing("Binds", "Mounts", "VolumesFrom")(record, wanted) and not record.get("Mounts")
        ),
        inside=readback.no_host_mounts,
    ),
    Control(
        id="H11",
        what="private System V and POSIX IPC",
        sets="`IpcMode` private",
        stops="cross-talk between boxes, and with the host",
        cis=("5.17",),
        engine=readback.setting("IpcMode", "private"),
    ),
    Control(
        id="H12",
        what="private cgroup namespace",
        sets="`CgroupnsMode` private",
        stops="a view of the host's layout, release_agent (CVE-2022-0492)",
        cis=("5.25",),
        engine=lambda record, wanted: (
            host(record)["CgroupnsMode"] == "private" and readback.nothing("CgroupParent")(record, wanted)
        ),
        inside=readback.private_cgroup,
    ),
    Control(
        id="H13a",
        what="memory is limited",
        sets="`Memory`: the policy's `limits.memory_mb`",
        stops="memory bombs",
        cis=("5.11",),
        engine=lambda record, wanted: host(record)["Memory"] == wanted.policy.limits.memory_mb * MIB,
        inside=readback.memory,
    ),
    Control(
        id="H13b",
        what="no swap",
        sets="`MemorySwap` equal to `Memory`",
        stops="thrashing the host's disk, secrets on it",
        engine=lambda record, wanted: host(record)["MemorySwap"] == wanted.policy.limits.memory_mb * MIB,
        inside=readback.no_swap,
    ),
    Control(
        id="H14",
        what="the kernel may kill for memory",
        sets="`OomKillDisable` false",
        stops="a box that hangs for want of memory",
        engine=readback.nothing("OomKillDisable"),
    ),
    Control(
        id="H15",
        what="the host's memory killer takes the box first",
        sets=f"`OomScoreAdj` {OOM_SCORE_ADJ}, the kernel of the box 1000",
        stops="other services of the host dying for a box",
        engine=readback.setting("OomScoreAdj", OOM_SCORE_ADJ),
    ),
    Control(
        id="H16",
        what="processes and threads are limited",
        sets="`PidsLimit`: the policy's `limits.pids`",
        stops="fork and thread bombs",
        cis=("5.29",),
        engine=lambda record, wanted: host(record)["PidsLimit"] == host_tasks(wanted.policy),
        inside=readback.pids,
    ),
    Control(
        id="H17",
        what="processor time is limited",
        sets="`CpuQuota` and `CpuPeriod`: the policy's `limits.cpus`",
        stops="starving the host, mining",
        cis=("5.12",),
        engine=lambda record, wanted: (
            host(record)["CpuQuota"] == math.ceil(wanted.policy.limits.cpus * CPU_PERIOD_US)
            and host(record)["CpuPeriod"] == CPU_PERIOD_US
        ),
        inside=readback.cpu,
    ),
    Control(
        id="H18a",
        what="descriptors are limited",
        sets="`Ulimits` nofile: the policy's `limits.open_files`",
        stops="exhausting the host's file table",
        cis=("5.19",),
        engine=readback.ulimit("nofile", lambda policy: policy.limits.open_files),
        inside=readback.limit("Max open files", lambda policy: policy.limits.open_files),
    ),
    Control(
        id="H18b",
        what="no core dumps, neither to a file nor to the host's crash handler",
        sets="`Ulimits` core 1, of which seccomp's `prlimit64` lets no cell make a 0",
        stops="files on the host, and programs it starts as root for them under any limit but 1 (`core_pattern`)",
        cis=("5.19",),
        engine=readback.ulimit("core", lambda _: CORE_BYTES),
        inside=readback.limit("Max core file size", lambda _: CORE_BYTES),
    ),
    Control(
        id="H19",
        what="our own seccomp profile filters every system call",
        sets="`SecurityOpt` seccomp: `policies/seccomp.json`",
        stops="most of the kernel's attack surface: io_uring, bpf, ptrace, keys, namespaces, mounts, splice …",
        cis=("5.22",),
        engine=lambda record, wanted: (
            f"seccomp={seccomp_profile(wanted.policy, wanted.seccomp)}" in host(record)["SecurityOpt"]
        ),
        inside=lambda facts, _: readback.status(facts, "Seccomp") == "2",
    ),
    Control(
        id="H19b",
        what="a second filter on the interpreter, where the policy wants one: no process but it; stopped, it stays so",
        sets="`sandbox_image/seccomp.py`, by `sandbox.allow_subprocess` and `sandbox.freeze_between_cells`",
        stops="programs and forks; code that wakes itself between cells",
        engine=lambda record, wanted: record["Config"]["Cmd"] == arguments(wanted.policy),
        inside=readback.second_filter,
    ),
    Control(
        id="H20",
        what="a security module of the host's kernel, where there is one, is left on",
        sets="nothing in `SecurityOpt` that switches AppArmor or SELinux off",
        stops="what a filter of system calls cannot see",
        cis=("5.2", "5.3"),
        engine=readback.lsm_left_on,
    ),
    Control(
        id="H22",
        what="PID 1 is the supervisor, which reaps and handles no signal",
        sets="`Entrypoint`, `Init` false",
        stops="zombies, signals at the supervisor",
        inside=lambda facts, _: facts["pid"] == 1,
    ),
    Control(
        id="H23",
        what="the box writes no log on the host",
        sets="`LogConfig` none",
        stops="filling the host's disk",
        engine=lambda record, _: host(record)["LogConfig"]["Type"] == "none",
    ),
    Control(
        id="H24",
        what="never restarted",
        sets="`RestartPolicy` no",
        stops="a box that comes back without its owner",
        cis=("5.15",),
        engine=lambda record, _: host(record)["RestartPolicy"]["Name"] in ("", "no"),
    ),
    Control(
        id="H25",
        what="the kernel's files that tell of the host are masked, its sysctls read-only",
        sets="`MaskedPaths` and `ReadonlyPaths`",
        stops="kernel memory, keys, symbols, command line, disks, DMI; sysctls, sysrq",
        engine=readback.masks_asked_for,
        inside=readback.masks_made,
    ),
    Control(
        id="H26",
        what="neutral host name and an empty environment",
        sets="`Hostname`, `Domainname`, `Env`",
        stops="host information, secrets handed on",
        engine=lambda record, _: record["Config"]["Hostname"] == HOSTNAME,
        inside=lambda facts, _: (
            facts["hostname"] == HOSTNAME and set(facts["environment"]) <= {"HOME", "HOSTNAME", "LC_CTYPE"}
        ),
    ),
    Control(
        id="H27",
        what="no device, no port, no namespace of the host",
        sets="`Privileged`, `Devices`, `DeviceRequests`, `PortBindings`, `PidMode`, `UTSMode` left empty",
        stops="direct escapes",
        cis=("5.5", "5.8", "5.9", "5.14", "5.16", "5.18", "5.21"),
        engine=lambda record, wanted: (
            readback.nothing("Devices", "DeviceRequests", "Privileged", "PortBindings", "PublishAllPorts")(
                record, wanted
            )
            and "host" not in (host(record).get("PidMode"), host(record).get("UTSMode"))
        ),
        inside=readback.own_namespaces,
    ),
    Control(
        id="H28",
        what="the image is used by id",
        sets="`Image`: an id, found by the hash of its sources; nothing is pulled",
        stops="swapped tags, images of others",
        cis=("5.28",),
        engine=lambda record, wanted: record["Image"] == wanted.image,
    ),
    Control(
        id="H29",
        what="work folder and program are ours",
        sets="`WorkingDir`, `Entrypoint`",
        stops="CVE-2024-21626 and its class",
        cis=("5.7",),
        engine=lambda record, _: (
            record["Config"]["WorkingDir"] == WORKDIR and record["Config"]["Entrypoint"] == ENTRYPOINT
        ),
    ),
    Control(
        id="H31",
        what="a runtime named after gVisor has given the box gVisor's kernel",
        sets="`Runtime`: the policy's `sandbox.runtime`; the box is asked what kernel it has",
        stops="bugs of the host's kernel",
        inside=readback.runtime,
    ),
    Control(
        id="P1",
        what="the supervisor's stream is out of reach of the code in the box",
        sets="the supervisor is not dumpable, and its descriptors end with an exec",
        stops="forged frames, stolen orders, a killed or traced supervisor",
        inside=lambda facts, _: facts["stream_in_reach"] is False,
    ),
    Control(
        id="P20",
        what="no foreign descriptor was left open, and nothing is ever executed in a box from outside",
        sets="one attached stream; no `docker exec`, no `docker cp`",
        stops="leaked directories (CVE-2024-21626), planted programs, tar tricks",
        cis=("5.23", "5.24"),
        inside=readback.descriptors,
    ),
)
