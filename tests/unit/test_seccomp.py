"""The interpreter's own filter: as a program, on an interpreter of such programs, and on a process of this machine."""

from __future__ import annotations

import errno
import json
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandbox_image
from sandbox_image import seccomp
from sandbox_image.seccomp import MACHINES, Rule
from tests.escape import sweep

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
EVERYTHING = seccomp.rules(subprocesses=False, freeze=True)
THREAD = 0x3D0F00  # what libc gives clone for a thread
FORK = 0x1200000 | signal.SIGCHLD
X32 = 0x40000000


def verdict(
    number: int, *arguments: int, machine: str = "x86_64", refused: tuple[Rule, ...] = EVERYTHING, foreign: bool = False
) -> int:
    """Run the filter on a call, as Linux would (``Documentation/userspace-api/seccomp_filter.rst``)."""
    program = seccomp.program(refused, machine)
    steps = [struct.unpack_from("<HBBI", program, place) for place in range(0, len(program), 8)]
    values = [argument % (1 << 64) for argument in (*arguments, *[0] * 6)[:6]]
    data = struct.pack("<iIQ6Q", number, MACHINES[machine][0] ^ foreign, 0, *values)
    place = accumulator = 0
    while True:
        code, matched, other, operand = steps[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            place += matched if accumulator == operand else other
        elif code == 0x35:
            place += matched if accumulator >= operand else other
        else:
            assert code == 0x06
            return int(operand)


def test_where_nothing_is_taken_there_is_no_filter() -> None:
    assert seccomp.rules(subprocesses=True, freeze=False) == ()


@pytest.mark.parametrize("machine", MACHINES)
class TestNoSubprocess:
    REFUSED = seccomp.rules(subprocesses=False, freeze=False)

    def test_no_program_is_started_and_nothing_forked(self, machine: str) -> None:
        numbers = MACHINES[machine][1]
        for call in {"execve", "execveat", "fork", "vfork"} & numbers.keys():
            assert verdict(numbers[call], machine=machine, refused=self.REFUSED) == EPERM
        for flags in (FORK, 0, signal.SIGCHLD, 0x4111, 1 << 40 | FORK):  # fork, a bare clone, posix_spawn
            assert verdict(numbers["clone"], flags, machine=machine, refused=self.REFUSED) == EPERM

    def test_threads_are_started(self, machine: str) -> None:
        clone, clone3 = MACHINES[machine][1]["clone"], MACHINES[machine][1]["clone3"]
        assert verdict(clone, THREAD, machine=machine, refused=self.REFUSED) == ALLOW
        assert verdict(clone3, machine=machine, refused=self.REFUSED) == ENOSYS

    def test_no_filter_is_added(self, machine: str) -> None:
        number = MACHINES[machine][1]["seccomp"]
        assert {verdict(number, operation, 8, machine=machine, refused=self.REFUSED) for operation in range(4)} == {
            EPERM
        }

    def test_signals_are_sent(self, machine: str) -> None:
        assert verdict(MACHINES[machine][1]["kill"], 1, signal.SIGCONT, machine=machine, refused=self.REFUSED) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
class TestNoWaking:
    REFUSED = seccomp.rules(subprocesses=True, freeze=True)

    @pytest.mark.parametrize("call", ["kill", "tkill", "tgkill"])
    def test_every_signal_but_the_one_that_wakes_is_sent(self, machine: str, call: str) -> None:
        number, before = MACHINES[machine][1][call], (7, 7) if call == "tgkill" else (7,)
        verdicts = {s: verdict(number, *before, s, machine=machine, refused=self.REFUSED) for s in range(1, 65)}
        assert {signal for signal, found in verdicts.items() if found != ALLOW} == {signal.SIGCONT}
        assert verdict(number, *before, 1 << 32 | signal.SIGCONT, machine=machine, refused=self.REFUSED) == EPERM

    def test_no_file_sends_another_signal_than_its_own(self, machine: str) -> None:
        fcntl = MACHINES[machine][1]["fcntl"]
        commands = {command for command in range(2048) if verdict(fcntl, 3, command, machine=machine) != ALLOW}
        assert commands == {10}

    def test_a_child_is_started_but_none_whose_end_wakes(self, machine: str) -> None:
        clone = MACHINES[machine][1]["clone"]
        assert verdict(clone, FORK, machine=machine, refused=self.REFUSED) == ALLOW
        assert verdict(clone, signal.SIGCONT, machine=machine, refused=self.REFUSED) == EPERM
        assert verdict(clone, 0x4100 | signal.SIGCONT, machine=machine, refused=self.REFUSED) == EPERM


def test_a_call_of_another_architecture_ends_the_process() -> None:
    assert verdict(1, foreign=True) == KILL
    assert verdict(X32 | 1) == verdict(-1) == KILL


def test_a_machine_without_numbers_gets_no_kernel() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program(EVERYTHING, "riscv64")


def test_the_numbers_are_those_of_the_swept_profile() -> None:
    numbers = MACHINES["x86_64"][1]
    assert {call: sweep.numbers()[call] for call in numbers} == numbers


@given(
    machine=st.sampled_from(sorted(MACHINES)),
    number=st.integers(0, 1023) | st.sampled_from(sorted(MACHINES["x86_64"][1].values())),
    arguments=st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 64), max_size=6),
    refused=st.sampled_from([seccomp.rules(subprocesses=s, freeze=f) for s in (True, False) for f in (True, False)]),
)
def test_a_call_is_refused_if_and_only_if_a_rule_says_so(
    machine: str, number: int, arguments: list[int], refused: tuple[Rule, ...]
) -> None:
    padded = (*arguments, *[0] * 6)
    errors = [
        rule.error
        for rule in refused
        if MACHINES[machine][1].get(rule.call) == number and padded[rule.argument] & rule.mask == rule.value
    ]
    expected = 0x50000 | errors[0] if errors else ALLOW
    assert verdict(number, *arguments, machine=machine, refused=refused) == expected


LIVE = """
import ctypes, errno, json, os, signal, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
from sandbox_image import seccomp
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, as in a box
def outcome(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
def everything():
    return [
        outcome(lambda: subprocess.run(["true"])),
        outcome(lambda: os.fork() or os._exit(0)),
        outcome(lambda: os.posix_spawn("/bin/true", ["true"], {})),
        outcome(lambda: os.execv("/nowhere", ["x"])),
        outcome(lambda: os.kill(os.getpid(), signal.SIGCONT)),
        outcome(lambda: seccomp.install(seccomp.rules(subprocesses=True, freeze=True))),
    ]
found = {}
go = threading.Event()
def earlier():
    go.wait()
    found["thread"] = everything()
thread = threading.Thread(target=earlier)
if sys.argv[2] == "filter":
    thread.start()
    found["refusals"] = seccomp.install(seccomp.rules(subprocesses=False, freeze=True))
    go.set()
    thread.join()
    later = threading.Thread(target=lambda: found.update(later=everything()))
    later.start()
    later.join()
found["main"] = everything()
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.machine() not in MACHINES, reason=f"{platform.machine()} has no numbers of calls here")
class TestInstalled:
    def run(self, how: str) -> dict[str, object]:
        package = Path(sandbox_image.__file__).parents[1]
        command = [sys.executable, "-c", LIVE, str(package), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def test_it_holds_for_every_thread_and_says_what_it_refuses(self) -> None:
        found = self.run("filter")
        assert found["thread"] == found["later"] == found["main"] == ["EPERM"] * 6
        assert found["refusals"] == dict.fromkeys(("seccomp", "execve", "clone", "kill", "fcntl"), "EPERM")

    def test_without_it_the_same_calls_are_made(self) -> None:
        assert self.run("nothing")["main"] == ["ok", "ok", "ok", "ENOENT", "ok", "ok"]
