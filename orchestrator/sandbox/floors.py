"""Versions below which a published bug lets code out of a container, and what stops it in a box all the same.

A version is a hint and not proof: distributions mend old versions without raising the number, and a kernel may be
built without the part that is broken. So these are findings for ``rlm-sandbox doctor`` to show, and refuse no box. The
numbers are those of the projects' own records (cve.org, the change logs of runc and Docker; for the kernel's of 2022
and 2024 also nluedtke/linux_kernel_cves, which lists the fixes of each stable line).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from orchestrator.sandbox.engine import EngineInfo

Component = Literal["Linux", "runc", "Docker Engine"]
Version = tuple[int, int, int, float]

_RELEASE = float("inf")


@dataclass(frozen=True, slots=True)
class Floor:
    """A published bug, and the versions it is mended in.

    Attributes:
        component: what has the bug.
        cve: its name.
        what: what it is, for people.
        mended: the first good version of each line of releases that has one, lowest first. A line (``6.12``) without
            one is not mended, unless it is newer than all of these.
        since: the first version that has the bug; all older ones are good.
        stopped_by: what of a box stops it all the same, and by which control; empty for nothing.
    """

    component: Component
    cve: str
    what: str
    mended: tuple[str, ...]
    since: str = "0.0"
    stopped_by: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A version below a floor.

    Attributes:
        floor: which.
        version: what is there, as it was reported.
        good: the version to go to: of the same line of releases if that was mended, else of the next.
    """

    floor: Floor
    version: str
    good: str

    @property
    def open(self) -> bool:
        """Whether nothing of a box stops it: that is no hint any more, and ``doctor`` fails for it."""
        return not self.floor.stopped_by

    def __str__(self) -> str:
        """Return a line for people."""
        floor = self.floor
        stopped = f"; in a box stopped by {floor.stopped_by}" if floor.stopped_by else ""
        return f"{floor.component} {self.version} < {self.good}: {floor.cve}, {floor.what}{stopped}"


FLOORS: tuple[Floor, ...] = (
    Floor(
        "runc",
        "CVE-2024-21626",
        "a work folder or an exec through a descriptor of the host that was left open",
        mended=("1.1.12", "1.2.0-rc.1"),
        stopped_by="a fixed work folder, a fixed program and no exec (H29, P20)",
    ),
    Floor(
        "runc",
        "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
        "masked paths, the console and writes to /proc redirected while a container is set up",
        mended=("1.2.8", "1.3.3", "1.4.0-rc.3"),
        stopped_by="an image and mounts that are ours alone, and an unprivileged user (H6, H10, H28)",
    ),
    Floor(
        "runc",
        "CVE-2026-41579",
        "an image whose /dev is a link makes it write to the host",
        mended=("1.3.6", "1.4.3", "1.5.0-rc.3"),
        stopped_by="an image that is ours alone, used by id (H28)",
    ),
    Floor(
        "Docker Engine",
        "CVE-2026-31431",
        "its own seccomp profile allows AF_ALG sockets",
        mended=("29.4.2",),
        stopped_by="a profile of our own, which knows no socket but AF_UNIX (H2, H19): nothing to do for boxes",
    ),
    Floor(
        "Linux",
        "CVE-2022-0185",
        "a heap overflow in fsconfig",
        mended=("5.4.173", "5.10.93", "5.15.16", "5.16.2"),
        since="5.1",
        stopped_by="a profile without the new mount calls and without user namespaces (H19)",
    ),
    Floor(
        "Linux",
        "CVE-2022-0492",
        "the release agent of cgroup v1 is run for whoever may mount one",
        mended=("4.9.301", "4.14.266", "4.19.229", "5.4.177", "5.10.97", "5.15.20", "5.16.6"),
        since="2.6",
        stopped_by="no capability, no mount call and a cgroup namespace (H3, H12, H19)",
    ),
    Floor(
        "Linux",
        "CVE-2022-0847",
        "Dirty Pipe: splice writes to files that may only be read",
        mended=("5.10.102", "5.15.25", "5.16.11"),
        since="5.8",
        stopped_by="a profile without splice (H19)",
    ),
    Floor(
        "Linux",
        "CVE-2024-1086",
        "a use after free in nf_tables",
        mended=("4.19.307", "5.4.269", "5.10.210", "5.15.149", "6.1.76", "6.6.15", "6.7.3"),
        since="3.15",
        stopped_by="no netlink sockets and no user namespaces (H2, H19)",
    ),
    Floor(
        "Linux",
        "CVE-2026-31431",
        "Copy Fail: AF_ALG and splice write to files that may only be read, those of other containers included",
        mended=("5.10.254", "5.15.204", "6.1.170", "6.6.137", "6.12.85", "6.18.22", "6.19.12"),
        since="4.14",
        stopped_by="no AF_ALG sockets and no splice (H2, H19)",
    ),
    Floor(
        "Linux",
        "CVE-2026-43284",
        "Dirty Frag: ESP decrypts in pages that are not its own",
        mended=("5.10.255", "5.15.206", "6.1.172", "6.6.138", "6.12.87", "6.18.28", "7.0.5"),
        since="4.11",
        stopped_by="no network sockets, no splice and no user namespaces (H2, H19)",
    ),
    Floor(
        "Linux",
        "CVE-2026-43500",
        "Dirty Frag: RxRPC decrypts in pages that are not its own",
        mended=("6.18.29", "7.0.6"),
        since="5.3",
        stopped_by="no RxRPC sockets and no splice (H2, H19)",
    ),
)


def check(info: EngineInfo) -> list[Finding]:
    """Return a finding for each floor that the engine, its runc, or its host's kernel is below.

    A version that was not reported, or that no number can be read in, is below none: :func:`unknown` names those.
    """
    reported = _reported(info)
    found = []
    for floor in FLOORS:
        version = parse(reported[floor.component])
        good = None if version is None else _good(floor, version)
        if good is not None:
            found.append(Finding(floor, reported[floor.component], good))
    return found


def unknown(info: EngineInfo) -> list[Component]:
    """Return the components whose version cannot be told, so that nothing can be said of them."""
    return [component for component, version in _reported(info).items() if parse(version) is None]


def parse(text: str) -> Version | None:
    """Return a version as numbers that can be compared: ``6.18.44-fc`` is (6, 18, 44, inf), a candidate is lower."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]rc[.-]?(\d+))?", text)
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch or 0), float(candidate) if candidate else _RELEASE


def _reported(info: EngineInfo) -> dict[Component, str]:
    return {"Docker Engine": info.version, "runc": info.runc, "Linux": info.kernel}


def _good(floor: Floor, version: Version) -> str | None:
    """Return the version to go to, or None if this one is good."""
    since = parse(floor.since)
    if since is not None and version < since:
        return None
    higher = [text for text in floor.mended if (first := parse(text)) is not None and version < first]
    if not higher:
        return None
    same_line = [text for text in floor.mended if _line(text) == version[:2]]
    if same_line and same_line[0] not in higher:
        return None
    return same_line[0] if same_line else higher[0]


def _line(text: str) -> tuple[int, int]:
    version = parse(text)
    if version is None:
        raise ValueError(f"{text!r} is not a version")
    return version[:2]
