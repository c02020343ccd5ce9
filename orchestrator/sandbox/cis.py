"""Section 5 of the CIS Docker Benchmark (v1.6.0, *Container Runtime Configuration*), judged from plain data.

The benchmark's rules are about what an engine was told, so they are judged over its own record of a container (``docker
inspect``) and no process is asked. Where docker-bench-security has a test of a rule, this one is at least as strict.
What of a rule a record cannot show is said in its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.sandbox.engine import EngineInfo

Record = dict[str, Any]
State = Literal["pass", "fail", "not applicable"]

_PRIVILEGED_PORTS = 1024
_MOST_RETRIES = 5
# Rule 5.6's list.
_SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/var/run/docker.sock")
_NO_NEW_PRIVILEGES = {"no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"}
_ENGINE_SOCKETS = ("docker.sock", "containerd.sock", "podman.sock")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a rule.

    Attributes:
        id: the benchmark's number, such as ``5.4``.
        title: what it asks for, in short.
        state: what was found.
        why: what it does not apply for, or what it was judged by where that is not obvious; else empty.
    """

    id: str
    title: str
    state: State
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Rule:
    id: str
    title: str
    holds: Callable[[Record], bool]
    spared: Callable[[Record, EngineInfo], str] = lambda _record, _engine: ""


def judge(record: Record, engine: EngineInfo) -> list[Verdict]:
    """Return the verdict of each rule, in order.

    Args:
        record: the engine's ``GET /containers/{id}/json``. What is missing in it does not hold.
        engine: the engine about itself: swarm mode, and which security modules there are.
    """
    verdicts = [Verdict("5.1", "swarm mode is off", "fail" if engine.swarm else "pass")]
    for rule in _RULES:
        try:
            why = rule.spared(record, engine)
            state: State = "not applicable" if why else "pass" if rule.holds(record) else "fail"
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            state, why = "fail", "the record does not tell"
        verdicts.append(Verdict(rule.id, rule.title, state, why))
    return verdicts


def _host(record: Record) -> Record:
    config: Record = record["HostConfig"]
    return config


def _options(record: Record) -> list[str]:
    return [str(option) for option in _host(record)["SecurityOpt"] or ()]


def _mounts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield source and propagation of each mount, as it was asked for and as it was made."""
    host = _host(record)
    for bind in host["Binds"] or ():
        source, _, rest = bind.partition(":")
        yield source, rest.rpartition(":")[2]
    for mount in host.get("Mounts") or ():
        yield str(mount.get("Source", "")), str((mount.get("BindOptions") or {}).get("Propagation", ""))
    for mount in record["Mounts"] or ():
        yield str(mount.get("Source", "")), str(mount.get("Propagation", ""))


def _sensitive(source: str) -> bool:
    path = source.rstrip("/") or "/"
    return path in _SENSITIVE or any(path.startswith(f"{folder}/") for folder in _SENSITIVE if folder != "/")


def _published(record: Record) -> Iterator[tuple[str, str]]:
    """Yield address and port on the host of each port that is, or will be, open there."""
    for ports in (_host(record)["PortBindings"] or {}, (record.get("NetworkSettings") or {}).get("Ports") or {}):
        for bindings in ports.values():
            for binding in bindings or ():
                yield str(binding.get("HostIp", "")), str(binding.get("HostPort", ""))


def _no_ports(record: Record) -> bool:
    # An image's EXPOSE opens nothing, but with --publish-all.
    return not list(_published(record)) and not _host(record)["PublishAllPorts"]


def _sshd(record: Record) -> bool:
    words = [*(record["Config"]["Entrypoint"] or ()), *(record["Config"]["Cmd"] or ())]
    return any(word.rpartition("/")[2] == "sshd" for word in words)


def _restarts(record: Record) -> bool:
    policy = _host(record)["RestartPolicy"]
    if policy["Name"] == "on-failure":
        return not 0 < policy["MaximumRetryCount"] <= _MOST_RETRIES
    return policy["Name"] not in ("", "no")


def _no_apparmor(_record: Record, engine: EngineInfo) -> str:
    return "" if _has(engine, "apparmor") else "the engine's host has no AppArmor"


def _no_selinux(_record: Record, engine: EngineInfo) -> str:
    return "" if _has(engine, "selinux") else "the engine has SELinux not enabled"


def _has(engine: EngineInfo, module: str) -> bool:
    return any(option.partition(",")[0] == f"name={module}" for option in engine.security_options)


def _labelled(record: Record) -> bool:
    return bool(record["ProcessLabel"]) and "label=disable" not in _options(record)


def _health_is_not_checked(record: Record, _engine: EngineInfo) -> str:
    off = (record["Config"].get("Healthcheck") or {}).get("Test") == ["NONE"]
    return "a health check executes a program in the box, which this host never does (P20)" if off else ""


def _health_is_checked(record: Record) -> bool:
    return bool((record["Config"].get("Healthcheck") or {}).get("Test"))


def _networks(record: Record) -> set[str]:
    joined = (record.get("NetworkSettings") or {}).get("Networks") or {}
    return {_host(record)["NetworkMode"], *joined}


_RULES: tuple[_Rule, ...] = (
    _Rule("5.2", "an AppArmor profile", lambda r: r["AppArmorProfile"] not in ("", "unconfined"), _no_apparmor),
    _Rule("5.3", "SELinux labels", _labelled, _no_selinux),
    _Rule("5.4", "capabilities restricted", lambda r: _host(r)["CapDrop"] == ["ALL"] and not _host(r)["CapAdd"]),
    _Rule("5.5", "not privileged", lambda r: _host(r)["Privileged"] is False),
    _Rule("5.6", "no sensitive folder of the host", lambda r: not any(_sensitive(source) for source, _ in _mounts(r))),
    _Rule("5.7", "no sshd", lambda r: not _sshd(r)),
    _Rule(
        "5.8",
        "no privileged port mapped",
        lambda r: all(int(port or 0) >= _PRIVILEGED_PORTS for _, port in _published(r)),
    ),
    _Rule("5.9", "no port open that is not needed: none", _no_ports),
    _Rule("5.10", "the host's network not shared", lambda r: _host(r)["NetworkMode"] not in ("", "host")),
    _Rule("5.11", "memory limited", lambda r: _host(r)["Memory"] > 0),
    _Rule(
        "5.12",
        "processor time limited",
        lambda r: any((_host(r).get(key) or 0) > 0 for key in ("CpuQuota", "NanoCpus", "CpuShares")),
    ),
    _Rule("5.13", "read-only root", lambda r: _host(r)["ReadonlyRootfs"] is True),
    _Rule(
        "5.14",
        "ports bound to one interface",
        lambda r: all(address not in ("", "0.0.0.0", "::") for address, _ in _published(r)),  # noqa: S104 - looked for
    ),
    _Rule("5.15", "restarted at most 5 times", lambda r: not _restarts(r)),
    _Rule("5.16", "the host's processes not shared", lambda r: _host(r)["PidMode"] != "host"),
    _Rule("5.17", "the host's IPC not shared", lambda r: _host(r)["IpcMode"] != "host"),
    _Rule("5.18", "no device of the host", lambda r: not _host(r)["Devices"] and not _host(r).get("DeviceRequests")),
    _Rule("5.19", "ulimits set", lambda r: bool(_host(r)["Ulimits"])),
    _Rule(
        "5.20", "no shared mount propagation", lambda r: all(how not in ("shared", "rshared") for _, how in _mounts(r))
    ),
    _Rule("5.21", "the host's UTS namespace not shared", lambda r: _host(r)["UTSMode"] != "host"),
    _Rule(
        "5.22", "a seccomp profile", lambda r: "seccomp=unconfined" not in _options(r) and not _host(r)["Privileged"]
    ),
    _Rule("5.23", "nothing executed in it with privileges", lambda r: not r["ExecIDs"]),
    _Rule("5.24", "nothing executed in it as root", lambda r: not r["ExecIDs"]),
    _Rule("5.25", "under the engine's own cgroup", lambda r: not _host(r)["CgroupParent"]),
    _Rule("5.26", "no new privileges", lambda r: bool(_NO_NEW_PRIVILEGES & set(_options(r)))),
    _Rule("5.27", "health checked", _health_is_checked, _health_is_not_checked),
    _Rule("5.28", "an image that cannot be swapped: by id", lambda r: r["Config"]["Image"].startswith("sha256:")),
    _Rule("5.29", "processes limited", lambda r: (_host(r)["PidsLimit"] or 0) > 0),
    _Rule("5.30", "not on the default bridge", lambda r: not {"", "default", "bridge"} & _networks(r)),
    _Rule("5.31", "the host's user namespace not asked for", lambda r: _host(r)["UsernsMode"] != "host"),
    _Rule("5.32", "no engine's socket mounted", lambda r: not any(s.endswith(_ENGINE_SOCKETS) for s, _ in _mounts(r))),
)
