"""What of a box's confinement is the host's to give: advice, and no condition.

A box is as the policy demands with none of it (:mod:`orchestrator.sandbox.controls`). Each piece is one wall more
between a bug and the host, or one way fewer to use a bug, and nothing an unprivileged client of an engine may set. So
it is looked at, and said what it costs that it is not there.

The knobs are Linux's own (Documentation/admin-guide/sysctl), read on this host, and only if it is the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.sandbox.engine import EngineInfo

State = Literal["on", "off", "not visible"]

ELSEWHERE = "the engine's host is not this one: run doctor there"


@dataclass(frozen=True, slots=True)
class Advice:
    """Something the host may give, and whether it does.

    Attributes:
        id: the control's.
        what: what it is.
        state: whether it is there; what cannot be told is ``not visible``.
        found: what was seen, or why nothing was.
        cost: what it costs that it is not there.
        remedy: how it is had.
        cis: recommendations it answers, of section 5 of the CIS Docker Benchmark 1.6.
    """

    id: str
    what: str
    state: State
    found: str
    cost: str
    remedy: str
    cis: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """What was read on the engine's host.

    Attributes:
        sysctls: value by name; those that this kernel does not have are left out.
        modules: what was found of each of :data:`MODULES`.
        smt: whether threads of one core run at the same time; None where the kernel does not say.
    """

    sysctls: dict[str, str]
    modules: dict[str, str]
    smt: bool | None


@dataclass(frozen=True, slots=True)
class _Knob:
    name: str
    good: Callable[[str], bool]
    set_to: str
    cost: str


def _at_least(value: int) -> Callable[[str], bool]:
    return lambda text: text.isdigit() and int(text) >= value


_KNOBS = (
    _Knob(
        "kernel.unprivileged_bpf_disabled",
        _at_least(1),
        "1",
        "any process of the host may load BPF programs; a box may not (H19)",
    ),
    _Knob(
        "kernel.io_uring_disabled",
        _at_least(2),
        "2",
        "io_uring's bugs are there for any process of the host; a box has none of its calls (H19)",
    ),
    _Knob(
        "vm.unprivileged_userfaultfd",
        lambda text: text == "0",
        "0",
        "page faults can be held to win a kernel's races; a box has no userfaultfd (H19)",
    ),
    _Knob(
        "kernel.yama.ptrace_scope",
        _at_least(1),
        "1",
        "processes of one user may trace one another; a box has no ptrace (H19)",
    ),
    _Knob(
        "kernel.kptr_restrict",
        _at_least(1),
        "1",
        "addresses of the kernel can be read, which an exploit needs; in a box /proc/kallsyms is masked (H25)",
    ),
    _Knob(
        "kernel.dmesg_restrict",
        _at_least(1),
        "1",
        "the kernel's log, with its addresses, can be read; a box has no syslog call (H19)",
    ),
    _Knob(
        "kernel.core_pattern",
        lambda text: not text.startswith("|"),
        "core",
        "the host starts a program, as root, for a process that crashes; a box dumps no core (H18)",
    ),
)
# Ways in of the page-cache bugs of 2026: CVE-2026-31431, CVE-2026-43284, CVE-2026-43500.
MODULES = ("algif_aead", "esp4", "esp6", "rxrpc")


def is_here(engine: EngineInfo, boot_id: str, *, own_kernel: bool) -> bool:
    """Whether the engine's host is this one.

    Args:
        engine: the engine about itself.
        boot_id: as a box of the engine sees it; empty for unknown.
        own_kernel: whether the box has a kernel of its own, whose boot tells nothing of the host's.
    """
    if boot_id and not own_kernel:
        return boot_id == _text(Path("/proc/sys/kernel/random/boot_id"))
    here = os.uname()
    return (engine.kernel, engine.name) == (here.release, here.nodename)


def look(root: Path = Path("/")) -> Sight:
    """Read this host's knobs.

    Args:
        root: where its ``/proc``, ``/sys``, ``/etc`` and ``/lib`` are.
    """
    values = {knob.name: _text(root / "proc/sys" / knob.name.replace(".", "/")) for knob in _KNOBS}
    smt = _text(root / "sys/devices/system/cpu/smt/active")
    return Sight(
        sysctls={name: value for name, value in values.items() if value is not None},
        modules={name: _module(root, name) for name in MODULES},
        smt={"0": False, "1": True}.get(smt or ""),
    )


def _module(root: Path, name: str) -> str:
    """Return ``loaded``, ``built in``, ``barred``, ``absent`` or ``loadable``, ``unknown`` if nothing lists them."""
    loaded = _text(root / "proc/modules") or ""
    if any(line.split(" ", 1)[0] == name for line in loaded.splitlines()):
        return "loaded"
    lists = root / "lib/modules" / os.uname().release
    builtin, loadable = _text(lists / "modules.builtin"), _text(lists / "modules.dep")
    if builtin is not None and f"/{name}.ko" in builtin:
        return "built in"
    if builtin is None or loadable is None:
        return "unknown"
    if f"/{name}.ko" not in loadable:
        return "absent"
    return "barred" if _barred(root, name) else "loadable"


def _barred(root: Path, name: str) -> bool:
    """Whether modprobe was told not to load it (modprobe.d(5)); sockets ask by alias, so ``blacklist`` does."""
    for folder in ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"):
        for file in sorted((root / folder).glob("*.conf")):
            for line in (_text(file) or "").splitlines():
                words = line.split()
                if words[:2] == ["blacklist", name] or (words[:2] == ["install", name] and words[2:3] in _NOTHING):
                    return True
    return False


_NOTHING = (["/bin/false"], ["/bin/true"], ["/usr/bin/false"], ["/usr/bin/true"])


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def advise(engine: EngineInfo, sight: Sight | None, *, own_kernel: bool) -> list[Advice]:
    """Return everything the host may give, and whether it does.

    Args:
        engine: the engine about itself.
        sight: what was read on its host; None if that is another than this one.
        own_kernel: whether boxes have a kernel of their own (gVisor's).
    """
    return [*_of_the_engine(engine, own_kernel=own_kernel), *_of_the_kernel(sight)]


def _of_the_engine(engine: EngineInfo, *, own_kernel: bool) -> list[Advice]:
    names = {option.partition(",")[0].removeprefix("name=") for option in engine.security_options}
    mapped = sorted(names & {"userns", "rootless"})
    modules = sorted(names & {"apparmor", "selinux"})
    return [
        Advice(
            "H7",
            "a user namespace: root of a box is nobody on the host",
            "on" if mapped else "off",
            ", ".join(mapped) or "neither userns-remap nor rootless",
            "whoever escaped as root would be root of the host; a box runs without any privilege (H3, H4, H6)",
            "switch on userns-remap, or run the engine rootless; sandbox.user_namespace demands it of every box",
            ("5.31",),
        ),
        Advice(
            "H12",
            "cgroup v2",
            "on" if engine.cgroup_version == "2" else "off",
            f"cgroup v{engine.cgroup_version}, driver {engine.cgroup_driver or 'unknown'}",
            "v1 has the release agent (CVE-2022-0492), which a box cannot mount (H3, H19), and a box that is short of "
            "memory loses one process, not all",
            "boot the host with systemd.unified_cgroup_hierarchy=1",
            ("5.25",),
        ),
        Advice(
            "H20",
            "a security module of the kernel",
            "on" if modules else "off",
            ", ".join(modules) or "neither AppArmor nor SELinux",
            "what the filter of system calls lets pass is judged by nobody else",
            "use a host with AppArmor or SELinux; the engine's own profile applies by itself",
            ("5.2", "5.3"),
        ),
        Advice(
            "H31",
            "a kernel of the box's own",
            "on" if own_kernel else "off",
            "gVisor" if own_kernel else "the host's kernel serves the box",
            "a bug in a system call that the profile allows may end in an escape",
            "use the policy gvisor (policies/GVISOR.md), or a machine of its own",
        ),
    ]


def _of_the_kernel(sight: Sight | None) -> list[Advice]:
    advice = []
    for knob in _KNOBS:
        value = None if sight is None else sight.sysctls.get(knob.name)
        state: State = "not visible" if value is None else "on" if knob.good(value) else "off"
        if value is None:
            value = ELSEWHERE if sight is None else "this kernel has no such knob"
        advice.append(Advice("H33", knob.name, state, value, knob.cost, f"sysctl -w {knob.name}={knob.set_to}"))
    advice.append(_of_the_modules(sight))
    smt = None if sight is None else sight.smt
    advice.append(
        Advice(
            "H34",
            "no two threads of a core at a time (SMT)",
            "not visible" if smt is None else "off" if smt else "on",
            ELSEWHERE if sight is None else {None: "the kernel does not say", True: "on", False: "off"}[smt],
            "a box may share a core with other code, and time it (Spectre and its kin)",
            "boot with nosmt, or keep cores for boxes alone",
        )
    )
    return advice


def _of_the_modules(sight: Sight | None) -> Advice:
    found = {} if sight is None else sight.modules
    reachable = [name for name in MODULES if found.get(name) in ("loaded", "built in", "loadable")]
    unknown = [name for name in MODULES if found.get(name, "unknown") == "unknown"]
    return Advice(
        "H33",
        "modules behind the page-cache bugs of 2026 cannot be loaded",
        "off" if reachable else "not visible" if unknown else "on",
        ELSEWHERE if sight is None else ", ".join(f"{name} {found[name]}" for name in MODULES),
        "a socket of their family loads them for any process of the host; a box makes none but of Unix (H2)",
        "write `install NAME /bin/false` for each into a file of /etc/modprobe.d",
    )
