"""What is tried against a box: the known ways out, by the names they have in the tests' marks.

A test of containment is marked with the cases it plays, the controls that it shows to hold, and its *twin*: the same
attack where those controls have been taken away, which must come out differently, or the attack shows nothing. A test
that has no twin says why. ``tests/contract/test_coverage.py`` holds that every case and every control has a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

GROUPS = {
    "FS": "filesystem",
    "KE": "kernel",
    "NE": "network",
    "HI": "host-info",
    "DL": "data-leak",
    "RE": "resources",
    "PF": "forgery",
}

CASES = {
    "FS01": "read the host's files through /proc/1/root",
    "FS02": "write to the root file system",
    "FS04": "mount a folder of the host, or an overlay",
    "FS05": "the new mount API",
    "FS06": "chroot, pivot_root",
    "FS07": "block device nodes",
    "FS08": "open_by_handle_at (shocker)",
    "FS09": "a symbolic link to a host's file among the artifacts",
    "FS10": "swap an artifact for a link while it is collected",
    "FS12": "a pipe, socket or device among the artifacts",
    "FS13": "a sparse artifact of a tebibyte",
    "FS14": "an artifact a thousand folders deep",
    "FS16": "an artifact whose name leads elsewhere",
    "FS17": "write to /dev/shm without end",
    "FS18": "run a program put into scratch",
    "FS19": "run a program that is in memory alone",
    "FS20": "write to the supervisor's memory",
    "FS21": "read the supervisor's environment and descriptors",
    "FS22": "write to PID 1's output, and so to a log on the host",
    "FS23": "have a core dumped on the host, or piped to its crash handler",
    "FS25": "poison what the next kernel reads when it starts",
    "FS40": "keep files from being cleared away before the next kernel, by their folder's permissions",
    "FS41": "write to any other file that /proc has of PID 1",
    "FS42": "give another context to the next kernel than the host sent",
    "FS43": "change the image's files through a private mapping and /proc/self/mem (the way of CVE-2016-5195)",
    "FS44": "hand the supervisor descriptors until it has no more",
    "FS45": "a terminal of one's own from /dev/ptmx",
    "KE01": "new namespaces",
    "KE02": "clone3, whose flags no filter sees",
    "KE03": "setns to the namespaces of PID 1",
    "KE04": "ptrace",
    "KE05": "process_vm_readv",
    "KE06": "bpf, perf, userfaultfd, io_uring",
    "KE07": "keyrings",
    "KE08": "modules, kexec, reboot, swap, accounting, the kernel's log",
    "KE09": "personality: turn address randomisation off",
    "KE11": "AF_ALG by the 32-bit table of calls",
    "KE12": "every system call there is",
    "KE14": "setuid programs",
    "KE15": "regain capabilities",
    "KE16": "become another user",
    "KE17": "the cgroup's release_agent",
    "KE18": "raise the cgroup's limits",
    "KE19": "settings of the kernel, core_pattern among them",
    "KE21": "type into a terminal: TIOCSTI, TIOCLINUX",
    "KE22": "overwrite the program of whoever enters the box (CVE-2019-5736)",
    "KE23": "a descriptor of the host's left open by the runtime (CVE-2024-21626)",
    "KE24": "splice, vmsplice, tee: write to the page cache",
    "KE40": "the 18 conditions that the scenarios of SandboxEscapeBench start from",
    "KE41": "end, stop or renice PID 1",
    "KE43": "have the kernel signal PID 1: F_SETOWN, F_SETSIG, O_ASYNC",
    "KE44": "start another process, where the policy allows none",
    "KE42": "devices that are doors to the kernel: kvm, fuse, tun, vhost, userfaultfd",
    "NE01": "interfaces",
    "NE02": "sockets of TCP and UDP",
    "NE03": "ask for names",
    "NE04": "the metadata service",
    "NE05": "the API of Docker Desktop",
    "NE06": "the gateway of the bridge",
    "NE07": "every other family of sockets",
    "NE08": "AF_ALG",
    "NE09": "AF_VSOCK, to the hypervisor",
    "NE11": "the engine's socket",
    "NE13": "listen, and be reached",
    "NE14": "another box",
    "NE40": "abstract Unix sockets of the host and of other boxes",
    "HI01": "the host's name, machine id, hardware",
    "HI02": "the host's mounts and paths",
    "HI03": "the box's own cgroup and id",
    "HI04": "the environment",
    "HI05": "the host's processes",
    "HI06": "the kernel's symbols, command line, modules",
    "HI08": "what refusals and failures tell inward",
    "HI09": "the orchestrator's secrets in the memory of the kernel",
    "HI10": "when other boxes work: by timing",
    "HI40": "the user's name",
    "HI42": "tell one host from another, and how full its disk is",
    "HI41": "secrets in any file of /proc, of any process of the box",
    "DL01": "files of an earlier tenant",
    "DL02": "environment and arguments of an earlier tenant",
    "DL03": "IPC, keys and files of the uid",
    "DL04": "a writable mount that two boxes share",
    "DL05": "write to the page cache, which boxes of one image share",
    "DL07": "calls of two boxes with the same ids",
    "DL08": "output of many boxes at once",
    "DL10": "a box handed out while it is being closed",
    "DL11": "failures of many boxes at once",
    "DL40": "use up what the kernel counts by user, for every box of that user",
    "RE01": "memory, at once",
    "RE02": "memory, in children",
    "RE03": "memory, as files",
    "RE06": "a fork bomb",
    "RE07": "a thread bomb",
    "RE09": "spin on all cores",
    "RE10": "files without end",
    "RE11": "descriptors without end",
    "RE22": "swap",
    "PF01": "steal the key of the kernel's messages",
    "PF02": "forge the end of a running cell",
    "PF04": "two replies",
    "PF05": "replies and output of wrong shapes",
    "PF15": "write to the supervisor's stream",
    "PF20": "ask the operator for input",
    "PF21": "have the front end do something",
    "PF30": "replace the functions given to model code",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """What a test is marked with.

    Attributes:
        cases: played by it.
        controls: that it shows to hold.
        twin: controls that its twin takes away; none where there is no twin.
        alone: why there is no twin.
    """

    cases: tuple[str, ...]
    controls: tuple[str, ...]
    twin: tuple[str, ...] = ()
    alone: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether the test makes the twin itself: of what is code (P1 …) or the policy's choice, no box is weakened."""
        return any(name.startswith("P") or name in ("H19b", "H31") for name in self.twin)

    def __post_init__(self) -> None:
        unknown = set(self.cases) - set(CASES)
        if unknown:
            raise ValueError(f"no such case: {sorted(unknown)}")
        if bool(self.twin) == bool(self.alone):
            raise ValueError("give the twin's missing controls, or say why there is no twin")


def case(*cases: str, controls: str, twin: str = "", alone: str = "") -> pytest.MarkDecorator:
    """Mark a test; controls are separated by spaces."""
    return pytest.mark.case(Mark(cases, tuple(controls.split()), tuple(twin.split()), alone))


def marks(test: object) -> Iterator[Mark]:
    """Return the marks of a test function."""
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "case":
            yield mark.args[0]
