"""The *restricted* profile of the Kubernetes Pod Security Standards, as published for v1.34, over plain data.

Written from the standard's page (kubernetes.io, "Pod Security Standards"), control by control and in its order, for
Pods of Linux.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Spec = dict[str, Any]

_BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SAFE_SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
}
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod: Spec) -> list[str]:
    """Return the controls of the restricted profile, those of baseline included, that a Pod breaks."""
    return [name for name, broken in _CONTROLS.items() if broken(pod["spec"])] + (
        ["AppArmor"] if _without_apparmor(pod) else []
    )


def _containers(spec: Spec) -> list[Spec]:
    return [item for key in ("containers", "initContainers", "ephemeralContainers") for item in spec.get(key) or ()]


def _contexts(spec: Spec) -> list[Spec]:
    """Return the security contexts of the Pod and of each container."""
    return [spec.get("securityContext") or {}, *_own(spec)]


def _own(spec: Spec) -> list[Spec]:
    return [container.get("securityContext") or {} for container in _containers(spec)]


def _added(context: Spec) -> list[str]:
    return (context.get("capabilities") or {}).get("add") or []


def _type(context: Spec, key: str) -> str:
    return str((context.get(key) or {}).get("type", ""))


def _names_a_host(container: Spec) -> bool:
    probes = [container.get(key) or {} for key in ("livenessProbe", "readinessProbe", "startupProbe")]
    hooks = [(container.get("lifecycle") or {}).get(key) or {} for key in ("postStart", "preStop")]
    return any((handler.get(how) or {}).get("host") for handler in probes + hooks for how in ("httpGet", "tcpSocket"))


def _custom_selinux(options: Spec) -> bool:
    return options.get("type", "") not in _SELINUX_TYPES or bool(options.get("user") or options.get("role"))


def _without_apparmor(pod: Spec) -> bool:
    annotations = pod.get("metadata", {}).get("annotations") or {}
    return any(_type(context, "appArmorProfile") == "Unconfined" for context in _contexts(pod["spec"])) or any(
        "apparmor" in key and value == "unconfined" for key, value in annotations.items()
    )


def _foreign_volume(volume: Spec) -> bool:
    kinds = set(volume) - {"name"}
    return len(kinds) != 1 or not kinds <= _VOLUMES


def _not_of_the_whole(spec: Spec, key: str) -> list[Any]:
    """Return a setting of each container, which is the Pod's where it has none of its own."""
    whole = spec.get("securityContext") or {}
    return [context.get(key, whole.get(key)) for context in _own(spec)]


def _seccomp_of(spec: Spec) -> set[str]:
    return {str((profile or {}).get("type", "")) for profile in _not_of_the_whole(spec, "seccompProfile")}


_CONTROLS: dict[str, Callable[[Spec], bool]] = {
    # Baseline
    "HostProcess": lambda spec: any(
        (context.get("windowsOptions") or {}).get("hostProcess") for context in _contexts(spec)
    ),
    "Host Namespaces": lambda spec: any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "Privileged Containers": lambda spec: any(context.get("privileged") for context in _own(spec)),
    "Capabilities (baseline)": lambda spec: any(
        set(_added(context)) - _BASELINE_CAPABILITIES for context in _own(spec)
    ),
    "HostPath Volumes": lambda spec: any("hostPath" in volume for volume in spec.get("volumes") or ()),
    "Host Ports": lambda spec: any(
        port.get("hostPort") for container in _containers(spec) for port in container.get("ports") or ()
    ),
    "Host Probes / Lifecycle Hooks": lambda spec: any(_names_a_host(container) for container in _containers(spec)),
    "SELinux": lambda spec: any(_custom_selinux(context.get("seLinuxOptions") or {}) for context in _contexts(spec)),
    "/proc Mount Type": lambda spec: any(context.get("procMount", "Default") != "Default" for context in _own(spec)),
    "Seccomp (baseline)": lambda spec: any(
        _type(context, "seccompProfile") == "Unconfined" for context in _contexts(spec)
    ),
    "Sysctls": lambda spec: bool(
        {sysctl["name"] for sysctl in (spec.get("securityContext") or {}).get("sysctls") or ()} - _SAFE_SYSCTLS
    ),
    # Restricted
    "Volume Types": lambda spec: any(_foreign_volume(volume) for volume in spec.get("volumes") or ()),
    "Privilege Escalation": lambda spec: any(
        context.get("allowPrivilegeEscalation") is not False for context in _own(spec)
    ),
    "Running as Non-root": lambda spec: any(value is not True for value in _not_of_the_whole(spec, "runAsNonRoot")),
    "Running as Non-root user": lambda spec: any(context.get("runAsUser") == 0 for context in _contexts(spec)),
    "Seccomp": lambda spec: not _seccomp_of(spec) <= {"RuntimeDefault", "Localhost"},
    "Capabilities": lambda spec: any(
        "ALL" not in ((context.get("capabilities") or {}).get("drop") or ())
        or set(_added(context)) - {"NET_BIND_SERVICE"}
        for context in _own(spec)
    ),
}
