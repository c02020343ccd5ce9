"""Asks the filter of a box about every system call and every argument it looks at, and keeps the answers as a file.

``python -m tests.escape.sweep`` compares the filter with ``golden/syscalls-x86_64.txt``; ``--update`` writes the file,
and the table of ``policies/SECCOMP.md``, anew. The change is then reviewed as a diff.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy
from tests.escape import names, profile

HERE = Path(__file__).parent
PROBE = (HERE / "probe.py").read_text(encoding="utf-8")
GOLDEN = HERE / "golden" / "syscalls-x86_64.txt"
REGENERATE = "If this is meant: python -m tests.escape.sweep --update"
HEADER = """\
# What the filter of a box answers to every system call of x86_64, and to every argument it looks at.
# Made by `python -m tests.escape.sweep --update`; policies/SECCOMP.md says why each is so.
#
# allowed, or the error the caller gets, or the signal that ends it. EPERM|ENOSYS is either of the two: to numbers above
# the last that is named in the profile, runc answers ENOSYS by itself. `kernel` is a number that newer kernels serve
# before any filter; older ones refuse it.
"""
POLICY = Policy().override(["limits.memory_mb=512", "limits.context_mb=8", "limits.cell_timeout_s=60.0"])

LAST = 1023  # no table of calls comes near it
X32_BIT = 1 << 30
# Each costs a process its life: every eighth of the common numbers, and those that x32 has to itself.
X32_NUMBERS = [*range(0, 512, 8), *range(512, 548)]
# The newest call an old libseccomp is sure to know; what it does not know, it leaves out of the filter.
LAST_KNOWN_EVERYWHERE = 439
# uretprobe and uprobe: made by the kernel's own trampolines, which newer kernels do not filter.
BEFORE_ANY_FILTER = frozenset((335, 336))
NONE = (1 << 64) - 1

Template = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Section:
    """Calls that differ in one argument.

    Attributes:
        call: name of the call.
        argument: what the argument is, for people.
        values: those to ask about.
        templates: the other arguments, None in the place of this one; the answer must be the same for all of them.
        labels: names of values.
        bits: the values are single bits.
    """

    call: str
    argument: str
    values: Sequence[int]
    templates: Sequence[Template]
    labels: dict[int, str] = field(default_factory=dict)
    bits: bool = False

    @property
    def title(self) -> str:
        """Its heading in the file."""
        return f"{self.call}: {self.argument}"


_BITS = [1 << bit for bit in range(64)]
_TYPES = [kind | flag for kind in (1, 2, 3, 4, 5, 6, 10) for flag in (0, 0o4000, 0o2000000)]
_FAMILIES = [*range(64), 255, 1 | 1 << 32, 1 | 1 << 63, NONE]
_WHO = [0, 1, 2, 1000, 1 << 32, NONE]
SECTIONS = (
    Section("socket", "family", _FAMILIES, [(None, kind, 0) for kind in _TYPES], names.FAMILIES),
    Section("socketpair", "family", _FAMILIES, [(None, kind, 0) for kind in _TYPES], names.FAMILIES),
    Section("sendto", "flags", _BITS[:32], [(3, 0, 0, None)], names.MESSAGE_FLAGS, bits=True),
    Section("sendmsg", "flags", _BITS[:32], [(3, 0, None)], names.MESSAGE_FLAGS, bits=True),
    Section("recvfrom", "flags", _BITS[:32], [(3, 0, 0, None)], names.MESSAGE_FLAGS, bits=True),
    Section("recvmsg", "flags", _BITS[:32], [(3, 0, None)], names.MESSAGE_FLAGS, bits=True),
    Section("setsockopt", "option of SOL_SOCKET", range(96), [(3, 1, None)], names.SOCKET_OPTIONS),
    Section("setsockopt", "level", [*range(300), 1 | 1 << 32], [(3, None, 2)], {1: "SOL_SOCKET"}),
    Section("clone", "flag", _BITS, [(None,), (None, 1 << 20)], names.CLONE_FLAGS, bits=True),
    Section("futex", "operation", range(1024), [(0, None), (4096, None, 1)], names.FUTEX_OPERATIONS),
    Section("madvise", "advice", [*range(128), 4 | 1 << 32], [(0, 4096, None)], names.ADVICE),
    Section(
        "ioctl", "request", [*range(0x5400, 0x5480), *names.DISTANT_REQUESTS], [(0, None), (1, None, 1)], names.REQUESTS
    ),
    Section("prctl", "option", [*range(100), *names.DISTANT_OPTIONS], [(None, 0)], names.OPTIONS),
    Section("prctl", "value of PR_SET_DUMPABLE", [0, 1, 2, 1 << 32], [(4, None)]),
    Section("prlimit64", "process", _WHO, [(None, 7, 0, 0), (None, 7, 4096, 0), (None, 4, 0, 0)]),
    Section("prlimit64", "limit that is set", [*range(20), 4 | 1 << 32, NONE], [(0, None, 4096)], names.LIMITS),
    Section("sched_setaffinity", "process", _WHO, [(None, 8, 0)]),
    Section("setpriority", "which", range(8), [(None, 0, 19)], {0: "PRIO_PROCESS", 1: "PRIO_PGRP", 2: "PRIO_USER"}),
    Section("setpriority", "who", _WHO, [(0, None, 19)]),
    Section("sched_setscheduler", "policy", [*range(8), X32_BIT], [(0, None), (1, None)], names.SCHEDULERS),
)
BY_ARGUMENT = frozenset(section.call for section in SECTIONS)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a filter answered.

    Attributes:
        calls: by number, every argument zero.
        x32: by number, without the bit that marks it.
        sections: by section and value; several answers where the other arguments mattered.
        foreign: by number of the 32-bit table, to calls that were made.
    """

    calls: dict[int, str]
    x32: dict[int, str]
    sections: list[dict[int, str]]
    foreign: dict[int, str]


def numbers() -> dict[str, int]:
    """Return the number of each call by its name, as the golden file has them."""
    found = {}
    for line in GOLDEN.read_text(encoding="utf-8").partition("[calls]\n")[2].partition("\n[")[0].splitlines():
        number, _, rest = line.partition(" ")
        if number.isdigit():
            found[rest.split()[0]] = int(number)
    return found


def questions() -> list[tuple[str, list[int]]]:
    """Return the calls of the sections, by name and arguments, in the order of :attr:`Answers.sections`."""
    return [
        (section.call, [value if given is None else given for given in template])
        for section in SECTIONS
        for value in section.values
        for template in section.templates
    ]


def grouped(answers: Sequence[str]) -> list[dict[int, str]]:
    """Return the answers to :func:`questions` by section and value."""
    rest = iter(answers)
    return [
        {value: "/".join(sorted({next(rest) for _ in section.templates})) for value in section.values}
        for section in SECTIONS
    ]


async def run_in(box: Sandbox, program: str) -> Any:
    """Run the probe and ``program``, which sets ``found`` to plain data, as a cell; return ``found``."""
    cell = f"{PROBE}\nNUMBERS.update({numbers()!r})\n{program}\nimport json; print(json.dumps(found))"
    result = await box.execute(cell)
    assert result.ok, f"{result.status}: {result.error and result.error.value} {result.stderr[-400:]}"
    return json.loads(result.stdout)


async def observe(box: Sandbox) -> Answers:
    """Ask the filter of a box about everything."""
    by_name = numbers()
    asked = [[number] for number in range(LAST + 1)]
    asked += [[number | X32_BIT] for number in X32_NUMBERS]
    asked += [[by_name[call], *arguments] for call, arguments in questions()]
    program = f"found = [ask({asked!r}), [attempt(f'int80(*{{call}})') for call in {names.FOREIGN!r}]]"
    answers, foreign = await run_in(box, program)
    return Answers(
        calls=dict(enumerate(answers[: LAST + 1])),
        x32=dict(zip(X32_NUMBERS, answers[LAST + 1 :], strict=False)),
        sections=grouped(answers[LAST + 1 + len(X32_NUMBERS) :]),
        foreign={call[0]: verdict for call, verdict in zip(names.FOREIGN, foreign, strict=True)},
    )


def settled(number: int, verdict: str) -> str:
    """Return a verdict on a call without what runtimes and kernels may decide either way."""
    if number in BEFORE_ANY_FILTER:
        return "kernel" if verdict != "allowed" else verdict
    if number > LAST_KNOWN_EVERYWHERE:
        return {"EPERM": "EPERM|ENOSYS", "ENOSYS": "EPERM|ENOSYS"}.get(verdict, verdict)
    return verdict


def render(answers: Answers) -> str:
    """Return the golden file of these answers."""
    known = {number: name for name, number in numbers().items()}
    calls = {
        number: "by argument, below" if known.get(number) in BY_ARGUMENT else settled(number, verdict)
        for number, verdict in answers.calls.items()
    }
    blocks = [
        _block("calls", calls, known),
        _block("calls of x32: bit 30 of the number", answers.x32),
        _block("calls by int 0x80, made", answers.foreign, dict(names.FOREIGN_NAMES)),
        *(
            _block(section.title, found, section.labels, bits=section.bits)
            for section, found in zip(SECTIONS, answers.sections, strict=True)
        ),
    ]
    return HEADER + "".join(blocks)


def _block(title: str, verdicts: dict[int, str], labels: dict[int, str] | None = None, *, bits: bool = False) -> str:
    labels = labels or {}
    lines = []
    for first, last, verdict in _runs(verdicts, labels, bits=bits):
        values = _shown(first) if first == last else f"{_shown(first)}{' to ' if bits else '-'}{_shown(last)}"
        lines.append(" ".join((values, *([labels[first]] if first in labels else []), verdict)))
    return "\n".join((f"\n[{title}]", *lines, ""))


def _runs(verdicts: dict[int, str], labels: dict[int, str], *, bits: bool) -> Iterator[tuple[int, int, str]]:
    """Join neighbours without a name of their own that were answered alike."""
    run: tuple[int, int, str] | None = None
    for value, verdict in verdicts.items():
        if (
            run
            and value not in labels
            and run[0] not in labels
            and run[1:] == (value // 2 if bits else value - 1, verdict)
        ):
            run = (run[0], value, verdict)
            continue
        if run:
            yield run
        run = (value, value, verdict)
    if run:
        yield run


def _shown(value: int) -> str:
    return str(value) if value < 1024 else f"{value:#x}"


def difference(now: str) -> str:
    """Return how the filter differs from the golden file; empty if it does not."""
    golden = GOLDEN.read_text(encoding="utf-8")
    lines: Iterable[str] = difflib.unified_diff(
        golden.splitlines(), now.splitlines(), GOLDEN.name, "this box", lineterm="", n=1
    )
    changed = "\n".join(lines)
    return changed and f"the filter is not the one that was reviewed:\n{changed}\n{REGENERATE}"


async def _observe_box() -> Answers:
    async with Sandbox.open(POLICY) as box:
        return await observe(box)


def main() -> int:
    """Compare, or with ``--update`` write; return 1 if there was a difference and nothing was written."""
    parser = argparse.ArgumentParser(prog="python -m tests.escape.sweep", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the golden file and the table of SECCOMP.md anew")
    update = parser.parse_args().update
    now = render(anyio.run(_observe_box))
    changed = difference(now)
    if update:
        GOLDEN.write_text(now, encoding="utf-8")
        profile.write_table()
    sys.stdout.write(f"{changed or 'no difference'}\n")
    return bool(changed) and not update


if __name__ == "__main__":
    sys.exit(main())
