"""From a policy to a locked container, and back: pure functions over plain data.

:func:`container_config` makes the engine API's JSON. :data:`CONTROLS` is the one table of what is promised: each
control says how it is read back from the engine's own record of the container and from the facts the supervisor gathers
inside (:mod:`sandbox_image.attest`). :func:`verify` compares; a deviation means the box is burnt.

Control ids are those of ``policies/THREAT_MODEL.md``. Docker's names are those of its Engine API 1.41.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor

HOSTNAME = "sandbox"
WORKDIR = "/work"
SCRATCH = "/tmp"  # noqa: S108 - a tmpfs of each box, not a shared folder
RUN_DIR = "/run/box"
ENTRYPOINT = ["/opt/box/python", "-I", "-B", "-u", "/opt/box/sandbox_image/supervisor.py"]
# multiprocessing's semaphores live in /dev/shm; a pool of any size the pids limit allows fits.
SHM_MB = 16
# Sockets, profile and the growth of tmpfs metadata beside the context.
RUN_DIR_SLACK_MB = 8
RUN_DIR_INODES = 256
# Below the kernel of the box, which sets itself to 1000, and above everything else on the host.
OOM_SCORE_ADJ = 900
CPU_PERIOD_US = 100_000
MIB = 1 << 20

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a container was asked for.

    Attributes:
        policy: what the box may use.
        image: id of the image it must run.
        seccomp: the profile's JSON text.
    """

    policy: Policy
    image: str
    seccomp: str


Check = Callable[[Record, Wanted], bool]


def frame_bytes(policy: Policy) -> int:
    """Return the largest frame of the wire: what the policy says, but room for a context piece or a cell's cut output.

    Output cut at the source leaves in one frame: the end of two streams, where JSON may take six bytes a character.
    """
    return max(policy.limits.frame_kb, 1024 + 64, 13 * policy.limits.output_kb) * 1024


def supervisor_settings(policy: Policy) -> dict[str, int]:
    """Return what the supervisor is told on its command line: limits it applies at the source; sizes in bytes."""
    return {
        "frame": frame_bytes(policy),
        "message": policy.limits.answer_mb * MIB,
        "output": policy.limits.output_kb * 1024,
        "window": policy.models.window,
        "threads": max(1, int(policy.limits.cpus)),
    }


def seccomp_profile(policy: Policy, profile: str) -> str:
    """Return the profile, a JSON text, in the form that the policy's runtime understands."""
    return gvisor.seccomp(profile) if gvisor.asked_for(policy.sandbox.runtime) else profile


def host_tasks(policy: Policy) -> int:
    """Return how many tasks of the host a box may be: as many as it sees itself, but under gVisor."""
    return policy.limits.pids * (gvisor.HOST_TASKS if gvisor.asked_for(policy.sandbox.runtime) else 1)


def _tmpfs(policy: Policy) -> dict[str, str]:
    uid, gid = policy.sandbox.user.split(":")
    limits, options = policy.limits, f"rw,noexec,nosuid,nodev,uid={uid},gid={gid}"
    return {
        SCRATCH: f"{options},size={limits.tmp_mb}m,nr_inodes={limits.tmp_inodes},mode=700",
        RUN_DIR: f"{options},size={limits.context_mb + RUN_DIR_SLACK_MB}m,nr_inodes={RUN_DIR_INODES},mode=700",
    }


def _ulimits(policy: Policy) -> list[Record]:
    files = policy.limits.open_files
    limits = {"nofile": files, "core": 0, "memlock": 65536, "msgqueue": 0}
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
        "Cmd": [json.dumps(supervisor_settings(policy), separators=(",", ":"))],
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
            "ShmSize": SHM_MB * MIB,
            "Memory": memory,
            "MemorySwap": memory,
            "OomKillDisable": False,
            "OomScoreAdj": OOM_SCORE_ADJ,
            "PidsLimit": host_tasks(policy),
            "CpuPeriod": CPU_PERIOD_US,
            "CpuQuota": math.ceil(limits.cpus * CPU_PERIOD_US),
            "Ulimits": _ulimits(policy),
            "Tmpfs": _tmpfs(policy),
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "AutoRemove": True,
            "Init": False,
            "Binds": [],
            "Mounts": [],
            "Devices": [],
            "PublishAllPorts": False,
            **({"Runtime": policy.sandbox.runtime} if policy.sandbox.runtime else {}),
        },
    }


@dataclass(frozen=True, slots=True)
class Control:
    """One promise, and how it is read back.

    Attributes:
        id: its name in the threat model.
        what: the promise, for people.
        engine: whether the engine's record of the container shows it; None where the engine does not say.
        inside: whether the facts from inside show it; None where it cannot be seen from there.
    """

    id: str
    what: str
    engine: Check | None = None
    inside: Check | None = None


def _host(record: Record) -> Record:
    config: Record = record["HostConfig"]
    return config


def _status(facts: Record, field: str) -> str:
    return str(facts["status"].get(field, ""))


def _no_capabilities(facts: Record, _: Wanted) -> bool:
    # Where the kernel has no line for ambient ones, they are none: all of them are permitted ones (capabilities(7)).
    ambient = _status(facts, "CapAmb") or "0"
    sets = (*(_status(facts, field) or "1" for field in ("CapInh", "CapPrm", "CapEff", "CapBnd")), ambient)
    return all(int(value, 16) == 0 for value in sets)


def _user_inside(facts: Record, wanted: Wanted) -> bool:
    uid, gid = wanted.policy.sandbox.user.split(":")
    return set(_status(facts, "Uid").split()) == {uid} and set(_status(facts, "Gid").split()) == {gid}


def _mounted(facts: Record, where: str) -> tuple[str, set[str]] | None:
    for point, kind, options, superblock in facts["mounts"]:
        if point == where:
            return kind, set(options.split(",")) | set(superblock.split(","))
    return None


def _readonly_root(facts: Record, _: Wanted) -> bool:
    root = _mounted(facts, "/")
    return root is not None and "ro" in root[1]


def _scratch(facts: Record, wanted: Wanted) -> bool:
    limits = wanted.policy.limits
    bounds = {
        SCRATCH: (limits.tmp_mb, {f"nr_inodes={limits.tmp_inodes}"}),
        RUN_DIR: (limits.context_mb + RUN_DIR_SLACK_MB, {f"nr_inodes={RUN_DIR_INODES}"}),
        "/dev/shm": (SHM_MB, set[str]()),  # noqa: S108 - the box's
    }
    for where, (megabytes, inodes) in bounds.items():
        mount = _mounted(facts, where)
        flags = {"noexec"} if gvisor.serves(facts) else {"noexec", "nosuid", "nodev"} | inodes
        if mount is None or mount[0] != "tmpfs" or not flags <= mount[1]:
            return False
        if not {f"size={megabytes * 1024}k", f"size={megabytes}m", f"size={megabytes * MIB}"} & mount[1]:
            return False
    return True


_OWN_FILE_SYSTEMS = frozenset(("overlay", "proc", "tmpfs", "devpts", "sysfs", "mqueue", "cgroup", "cgroup2"))
# Files of a few bytes that the engine makes for every container and mounts from its own folder, read-only here.
_ENGINE_FILES = frozenset(("/etc/resolv.conf", "/etc/hostname", "/etc/hosts"))


def _no_host_mounts(facts: Record, _: Wanted) -> bool:
    if gvisor.serves(facts):
        return gvisor.nothing_of_the_host(facts["mounts"], _ENGINE_FILES)
    return all(
        kind in _OWN_FILE_SYSTEMS or (where in _ENGINE_FILES and "ro" in options.split(","))
        for where, kind, options, _ in facts["mounts"]
    )


def _cgroup_number(facts: Record, what: str, word: int = 0) -> int:
    words = str(facts["cgroup"].get(what, "")).split()
    return int(words[word]) if len(words) > word and words[word].isdigit() else -1


def _memory_inside(facts: Record, wanted: Wanted) -> bool:
    return _cgroup_number(facts, "memory") == wanted.policy.limits.memory_mb * MIB


def _no_swap_inside(facts: Record, wanted: Wanted) -> bool:
    # cgroup v2 counts swap alone, v1 memory and swap together.
    return _cgroup_number(facts, "swap") in (0, wanted.policy.limits.memory_mb * MIB)


def _pids_inside(facts: Record, wanted: Wanted) -> bool:
    if gvisor.serves(facts):
        return _limit_inside("Max processes", lambda policy: policy.limits.pids)(facts, wanted)
    return _cgroup_number(facts, "pids") == wanted.policy.limits.pids


def _cpu_inside(facts: Record, wanted: Wanted) -> bool:
    # cgroup v2 has quota and period in one file, v1 in two.
    period = str(facts["cgroup"].get("cpu_period", "")).split()[-1:]
    quota = _cgroup_number(facts, "cpu_quota")
    return quota == math.ceil(wanted.policy.limits.cpus * CPU_PERIOD_US) and period == [str(CPU_PERIOD_US)]


def _private_cgroup(facts: Record, _: Wanted) -> bool:
    lines = str(facts["cgroup_path"]).splitlines()
    return bool(lines) and all(line.endswith(":/") for line in lines)


def _masked(record: Record, _: Wanted) -> bool:
    host = _host(record)
    return {"/proc/kcore", "/proc/keys"} <= set(host["MaskedPaths"]) and "/proc/sys" in host["ReadonlyPaths"]


def _limit_inside(name: str, value: Callable[[Policy], int]) -> Check:
    return lambda facts, wanted: facts["limits"].get(name) == [str(value(wanted.policy))] * 2


def _ulimit(record: Record, name: str) -> tuple[int, int] | None:
    for limit in _host(record).get("Ulimits") or ():
        if limit["Name"] == name:
            return limit["Soft"], limit["Hard"]
    return None


def _descriptors(facts: Record, _: Wanted) -> bool:
    # Everything open at start is a pipe of the stream, or the supervisor's own pipe, socket and context file.
    allowed = ("pipe:", "socket:", "/run/box/", "/dev/null", "anon_inode:")
    stream = gvisor.STREAM if gvisor.serves(facts) else ()
    return all(
        entry.startswith(stream) or entry.partition(" ")[2].startswith(allowed) for entry in facts["descriptors"]
    )


CONTROLS: tuple[Control, ...] = (
    Control(
        "H1",
        "no network: an empty namespace with loopback at most",
        lambda record, _: _host(record)["NetworkMode"] == "none",
        lambda facts, _: set(facts["interfaces"]) <= {"lo"},
    ),
    Control("H2", "no socket but those of Unix", None, lambda facts, _: facts["inet_socket"] == "EPERM"),
    Control(
        "H3",
        "no capability in any set",
        lambda record, _: _host(record)["CapDrop"] == ["ALL"] and not _host(record)["CapAdd"],
        _no_capabilities,
    ),
    Control(
        "H4",
        "no new privileges by any exec",
        lambda record, _: "no-new-privileges" in _host(record)["SecurityOpt"],
        lambda facts, _: _status(facts, "NoNewPrivs") == "1",
    ),
    Control(
        "H6", "not root", lambda record, wanted: record["Config"]["User"] == wanted.policy.sandbox.user, _user_inside
    ),
    Control(
        "H8", "read-only root file system", lambda record, _: _host(record)["ReadonlyRootfs"] is True, _readonly_root
    ),
    Control(
        "H9",
        "scratch is sized, in memory, and not executable",
        lambda record, wanted: _host(record)["Tmpfs"] == _tmpfs(wanted.policy),
        _scratch,
    ),
    Control(
        "H10",
        "nothing of the host is mounted",
        lambda record, _: (
            not _host(record).get("Binds") and not _host(record).get("Mounts") and not record.get("Mounts")
        ),
        _no_host_mounts,
    ),
    Control("H11", "private System V and POSIX IPC", lambda record, _: _host(record)["IpcMode"] == "private"),
    Control(
        "H12",
        "private cgroup namespace",
        lambda record, _: _host(record)["CgroupnsMode"] == "private",
        _private_cgroup,
    ),
    Control(
        "H13a",
        "memory is limited",
        lambda record, wanted: _host(record)["Memory"] == wanted.policy.limits.memory_mb * MIB,
        _memory_inside,
    ),
    Control(
        "H13b",
        "no swap",
        lambda record, wanted: _host(record)["MemorySwap"] == wanted.policy.limits.memory_mb * MIB,
        _no_swap_inside,
    ),
    Control("H14", "the kernel may kill for memory", lambda record, _: not _host(record).get("OomKillDisable")),
    Control(
        "H15",
        "the host's memory killer takes the box first",
        lambda record, _: _host(record)["OomScoreAdj"] == OOM_SCORE_ADJ,
    ),
    Control(
        "H16",
        "processes and threads are limited",
        lambda record, wanted: _host(record)["PidsLimit"] == host_tasks(wanted.policy),
        _pids_inside,
    ),
    Control(
        "H17",
        "processor time is limited",
        lambda record, wanted: (
            _host(record)["CpuQuota"] == math.ceil(wanted.policy.limits.cpus * CPU_PERIOD_US)
            and _host(record)["CpuPeriod"] == CPU_PERIOD_US
        ),
        _cpu_inside,
    ),
    Control(
        "H18a",
        "descriptors are limited",
        lambda record, wanted: _ulimit(record, "nofile") == (wanted.policy.limits.open_files,) * 2,
        _limit_inside("Max open files", lambda policy: policy.limits.open_files),
    ),
    Control(
        "H18b",
        "no core dumps",
        lambda record, _: _ulimit(record, "core") == (0, 0),
        _limit_inside("Max core file size", lambda _: 0),
    ),
    Control(
        "H19",
        "our own seccomp profile filters every system call",
        lambda record, wanted: (
            f"seccomp={seccomp_profile(wanted.policy, wanted.seccomp)}" in _host(record)["SecurityOpt"]
        ),
        lambda facts, _: _status(facts, "Seccomp") == "2",
    ),
    Control("H23", "the box writes no log on the host", lambda record, _: _host(record)["LogConfig"]["Type"] == "none"),
    Control("H24", "never restarted", lambda record, _: _host(record)["RestartPolicy"]["Name"] in ("", "no")),
    Control("H25", "what the engine masks and makes read-only in /proc is so", _masked),
    Control(
        "H26",
        "neutral host name and an empty environment",
        lambda record, _: record["Config"]["Hostname"] == HOSTNAME,
        lambda facts, _: (
            facts["hostname"] == HOSTNAME and set(facts["environment"]) <= {"HOME", "HOSTNAME", "LC_CTYPE"}
        ),
    ),
    Control(
        "H27",
        "no device, no port, no namespace of the host",
        lambda record, _: (
            not _host(record).get("Devices")
            and not _host(record).get("DeviceRequests")
            and not _host(record).get("Privileged")
            and not _host(record).get("PortBindings")
            and "host"
            not in (_host(record).get("PidMode"), _host(record).get("UTSMode"), _host(record).get("UsernsMode"))
        ),
    ),
    Control("H28", "the image is used by id", lambda record, wanted: record["Image"] == wanted.image),
    Control(
        "H29",
        "work folder and program are ours",
        lambda record, _: record["Config"]["WorkingDir"] == WORKDIR and record["Config"]["Entrypoint"] == ENTRYPOINT,
        lambda facts, _: facts["pid"] == 1,
    ),
    Control(
        "H31",
        "a runtime named after gVisor has given the box gVisor's kernel",
        None,
        lambda facts, wanted: (
            gvisor.serves(facts) or (facts["kernel"] != "" and not gvisor.asked_for(wanted.policy.sandbox.runtime))
        ),
    ),
    Control(
        "P1",
        "the supervisor's stream is out of reach of the code in the box",
        None,
        lambda facts, _: facts["stream_in_reach"] is False,
    ),
    Control("P20", "no foreign descriptor was left open", None, _descriptors),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        controls: what was found of every control, for people, by id.
        deviations: each control that is not in force, and where that was seen.
        kernel: what the box's kernel says of itself.
    """

    controls: dict[str, str]
    deviations: list[str]
    kernel: str = ""


def verify(record: Record, facts: Record, wanted: Wanted) -> Report:
    """Compare the engine's record and the facts from inside with what was asked for.

    Args:
        record: the engine's ``GET /containers/{id}/json``.
        facts: :func:`sandbox_image.attest.gather`, as the supervisor sent it; of any shape, since it came over a wire.
        wanted: what was asked for.
    """
    controls: dict[str, str] = {}
    deviations: list[str] = []
    differences = gvisor.DIFFERENCES if gvisor.serves(facts) else {}
    for control in CONTROLS:
        difference = differences.get(control.id)
        blind = difference is not None and difference.inside == "unseen"
        views = [
            (view, check, data)
            for view, check, data in (
                ("engine", control.engine, record),
                ("inside", None if blind else control.inside, facts),
            )
            if check is not None
        ]
        wrong = [view for view, check, data in views if not _holds(check, data, wanted)]
        seen = " and ".join(view for view, _, _ in views)
        note = "" if difference is None else f"; under gVisor, {difference.why}"
        controls[control.id] = f"{control.what}: " + (
            f"NOT IN FORCE ({', '.join(wrong)}{note})" if wrong else f"held ({seen}{note})"
        )
        if difference is None or difference.inside != "reported":
            deviations += [f"{control.id} {control.what} (seen from {view}{note})" for view in wrong]
    return Report(controls, deviations, gvisor.kernel(facts))


def _holds(check: Check, data: Record, wanted: Wanted) -> bool:
    try:
        return check(data, wanted)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False  # what cannot be read is not in force
