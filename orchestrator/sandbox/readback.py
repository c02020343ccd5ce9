"""How controls are read back: questions to the engine's record of a container, and to the facts from inside it.

Each may raise what comes of data of another shape (KeyError, TypeError, ValueError, AttributeError, IndexError): what
cannot be read is not in force, says :func:`orchestrator.sandbox.controls.verify`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor, namespaces
from orchestrator.sandbox.hardening import (
    CPU_PERIOD_US,
    MASKED_PATHS,
    MIB,
    READONLY_PATHS,
    RUN_DIR,
    RUN_DIR_INODES,
    RUN_DIR_SLACK_MB,
    SCRATCH,
    SHM,
    SHM_INODES,
    SHM_MB,
    Record,
    Wanted,
)

Check = Callable[[Record, Wanted], bool]

_OWN_FILE_SYSTEMS = frozenset(("overlay", "proc", "tmpfs", "devpts", "sysfs", "mqueue", "cgroup", "cgroup2"))
# Files of a few bytes that the engine makes for every container and mounts from its own folder, read-only here.
_ENGINE_FILES = frozenset(("/etc/resolv.conf", "/etc/hostname", "/etc/hosts"))
# Of the masked paths, such as every Linux has.
_ALWAYS_MASKED = ("/proc/cmdline", "/proc/kallsyms", "/sys/devices", "/sys/kernel")


def host(record: Record) -> Record:
    """Return the part of the engine's record that is about the host's side."""
    config: Record = record["HostConfig"]
    return config


def setting(name: str, value: object) -> Check:
    """Return the question whether the engine has one setting at a value."""
    return lambda record, _: bool(host(record)[name] == value)


def nothing(*names: str) -> Check:
    """Return the question whether the engine has none of some settings made."""
    return lambda record, _: not any(host(record).get(name) for name in names)


def status(facts: Record, field: str) -> str:
    """Return a line of the supervisor's ``/proc/self/status``."""
    return str(facts["status"].get(field, ""))


def no_capabilities(facts: Record, _: Wanted) -> bool:
    """Whether every capability set is empty."""
    # Where the kernel has no line for ambient ones, they are none: all of them are permitted ones (capabilities(7)).
    ambient = status(facts, "CapAmb") or "0"
    sets = (*(status(facts, field) or "1" for field in ("CapInh", "CapPrm", "CapEff", "CapBnd")), ambient)
    return all(int(value, 16) == 0 for value in sets)


def not_root(facts: Record, wanted: Wanted) -> bool:
    """Whether the supervisor is the policy's user, in no further group, and root neither here nor on the host."""
    uid, gid = wanted.policy.sandbox.user.split(":")
    outside = namespaces.on_the_host(facts["uid_map"], int(uid)), namespaces.on_the_host(facts["gid_map"], int(gid))
    return (
        set(status(facts, "Uid").split()) == {uid}
        and set(status(facts, "Gid").split()) == {gid}
        and set(status(facts, "Groups").split()) <= {gid}
        and None not in outside
        and 0 not in outside
    )


def user_namespace(facts: Record, wanted: Wanted) -> bool:
    """Whether the box is in a user namespace, if the policy wants one."""
    return not wanted.policy.sandbox.user_namespace or namespaces.user_is_mapped(facts["uid_map"])


def own_namespaces(facts: Record, wanted: Wanted) -> bool:
    """Whether the box has left each of the host's namespaces."""
    return namespaces.all_left(facts["namespaces"], facts["boot_id"], wanted.host)


def _mounted(facts: Record, where: str) -> tuple[str, set[str]] | None:
    for point, kind, options, superblock in facts["mounts"]:
        if point == where:
            return kind, set(options.split(",")) | set(superblock.split(","))
    return None


def readonly_root(facts: Record, _: Wanted) -> bool:
    """Whether the root file system is mounted read-only."""
    root = _mounted(facts, "/")
    return root is not None and "ro" in root[1]


def scratch(facts: Record, wanted: Wanted) -> bool:
    """Whether what can be written lies in memory, is as large as the policy says, and cannot be executed."""
    limits = wanted.policy.limits
    bounds = {
        SCRATCH: (limits.tmp_mb, {f"nr_inodes={limits.tmp_inodes}"}),
        RUN_DIR: (limits.context_mb + RUN_DIR_SLACK_MB, {f"nr_inodes={RUN_DIR_INODES}"}),
        SHM: (SHM_MB, {f"nr_inodes={SHM_INODES}"}),
    }
    for where, (megabytes, inodes) in bounds.items():
        mount = _mounted(facts, where)
        flags = {"noexec"} if gvisor.serves(facts) else {"noexec", "nosuid", "nodev"} | inodes
        if mount is None or mount[0] != "tmpfs" or not flags <= mount[1]:
            return False
        if not {f"size={megabytes * 1024}k", f"size={megabytes}m", f"size={megabytes * MIB}"} & mount[1]:
            return False
    return True


def no_host_mounts(facts: Record, _: Wanted) -> bool:
    """Whether nothing is mounted but file systems of the box's own."""
    if gvisor.serves(facts):
        return gvisor.nothing_of_the_host(facts["mounts"], _ENGINE_FILES)
    return all(
        kind in _OWN_FILE_SYSTEMS or (where in _ENGINE_FILES and "ro" in options.split(","))
        for where, kind, options, _ in facts["mounts"]
    )


def _cgroup_number(facts: Record, what: str, word: int = 0) -> int:
    words = str(facts["cgroup"].get(what, "")).split()
    return int(words[word]) if len(words) > word and words[word].isdigit() else -1


def memory(facts: Record, wanted: Wanted) -> bool:
    """Whether the cgroup holds the policy's memory."""
    return _cgroup_number(facts, "memory") == wanted.policy.limits.memory_mb * MIB


def no_swap(facts: Record, wanted: Wanted) -> bool:
    """Whether the cgroup adds no swap; its version 2 counts swap alone, version 1 memory and swap together."""
    return _cgroup_number(facts, "swap") in (0, wanted.policy.limits.memory_mb * MIB)


def pids(facts: Record, wanted: Wanted) -> bool:
    """Whether processes and threads are limited to the policy's number."""
    if gvisor.serves(facts):
        return limit("Max processes", lambda policy: policy.limits.pids)(facts, wanted)
    return _cgroup_number(facts, "pids") == wanted.policy.limits.pids


def cpu(facts: Record, wanted: Wanted) -> bool:
    """Whether the cgroup gives the policy's share of processor time; version 2 has it in one file, version 1 in two."""
    period = str(facts["cgroup"].get("cpu_period", "")).split()[-1:]
    quota = _cgroup_number(facts, "cpu_quota")
    return quota == math.ceil(wanted.policy.limits.cpus * CPU_PERIOD_US) and period == [str(CPU_PERIOD_US)]


def private_cgroup(facts: Record, _: Wanted) -> bool:
    """Whether the box takes its own cgroup for the first one."""
    lines = str(facts["cgroup_path"]).splitlines()
    return bool(lines) and all(line.endswith(":/") for line in lines)


def masks_asked_for(record: Record, _: Wanted) -> bool:
    """Whether the engine masks, and mounts read-only, all that it was asked to."""
    return set(MASKED_PATHS) <= set(host(record)["MaskedPaths"]) and set(READONLY_PATHS) <= set(
        host(record)["ReadonlyPaths"]
    )


def masks_made(facts: Record, _: Wanted) -> bool:
    """Whether something empty lies over the files that every kernel has, and sysctls cannot be written."""
    masks = [_mounted(facts, where) for where in _ALWAYS_MASKED]
    sysctls = _mounted(facts, "/proc/sys")
    return all(mask is not None and mask[0] == "tmpfs" for mask in masks) and sysctls is not None and "ro" in sysctls[1]


def second_filter(facts: Record, wanted: Wanted) -> bool:
    """Whether the interpreter is refused what the policy takes from it, by a filter that the supervisor does not have.

    Only Linux since 5.9 counts filters; where nobody does, the refusals alone have to do.
    """
    box = wanted.policy.sandbox
    taken = set() if box.allow_subprocess else {"execve", "clone"}
    taken |= {"kill", "fcntl"} if box.freeze_between_cells else set()
    if not taken:
        return True
    refusals, its = facts["interpreter"]["refusals"], facts["interpreter"]["status"]
    more = int(its.get("Seccomp_filters", 1)) > int(facts["status"].get("Seccomp_filters", 0))
    return more and all(refusals[call] == "EPERM" for call in {"seccomp", *taken})


def lsm_left_on(record: Record, _: Wanted) -> bool:
    """Whether no module of the host's kernel was told to look away."""
    off = ("apparmor=unconfined", "apparmor:unconfined", "label=disable", "label:disable", "systempaths=unconfined")
    return record["AppArmorProfile"] != "unconfined" and not set(off) & set(host(record)["SecurityOpt"])


def limit(name: str, value: Callable[[Policy], int]) -> Check:
    """Return the question whether a resource limit is at the policy's value, from inside."""
    return lambda facts, wanted: facts["limits"].get(name) == [str(value(wanted.policy))] * 2


def ulimit(name: str, value: Callable[[Policy], int]) -> Check:
    """Return the question whether a resource limit is at the policy's value, in the engine's record."""

    def check(record: Record, wanted: Wanted) -> bool:
        found: list[Any] = [entry for entry in host(record)["Ulimits"] if entry["Name"] == name]
        return [(entry["Soft"], entry["Hard"]) for entry in found] == [(value(wanted.policy),) * 2]

    return check


def descriptors(facts: Record, _: Wanted) -> bool:
    """Whether all that is open at the start is a pipe of the stream, or the supervisor's own pipe, socket or file."""
    allowed = ("pipe:", "socket:", "/run/box/", "/dev/null", "anon_inode:")
    stream = gvisor.STREAM if gvisor.serves(facts) else ()
    return all(
        entry.startswith(stream) or entry.partition(" ")[2].startswith(allowed) for entry in facts["descriptors"]
    )


def runtime(facts: Record, wanted: Wanted) -> bool:
    """Whether a runtime named after gVisor has given the box gVisor's kernel."""
    return gvisor.serves(facts) or (facts["kernel"] != "" and not gvisor.asked_for(wanted.policy.sandbox.runtime))
