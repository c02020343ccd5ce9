"""The seccomp profile as a text: what it would answer, computed, and the tables of it in ``policies/SECCOMP.md``."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import re
from collections.abc import Callable
from typing import Any

from orchestrator import bundle

Rule = dict[str, Any]

DOCUMENT = bundle.path("policies/SECCOMP.md")
BEGIN, END = "<!-- made by `python -m tests.escape.sweep --update` -->\n", "<!-- end -->\n"
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "SCMP_CMP_EQ": operator.eq,
    "SCMP_CMP_NE": operator.ne,
    "SCMP_CMP_LT": operator.lt,
    "SCMP_CMP_LE": operator.le,
    "SCMP_CMP_GT": operator.gt,
    "SCMP_CMP_GE": operator.ge,
}
_SIGNS = {"SCMP_CMP_EQ": "=", "SCMP_CMP_LE": "≤", "SCMP_CMP_GE": "≥", "SCMP_CMP_LT": "<", "SCMP_CMP_GT": ">"}
_ERRORS = {1: "EPERM", 38: "ENOSYS"}


def rules() -> list[Rule]:
    """Return the rules of the shipped profile."""
    found: list[Rule] = _profile()["syscalls"]
    return found


@functools.cache
def _profile() -> Rule:
    profile: Rule = json.loads(bundle.path("policies/seccomp.json").read_text(encoding="utf-8"))
    return profile


def verdict(name: str | None, arguments: list[int]) -> str:
    """Return what the profile says to a call on x86_64: ``allowed`` or the name of an errno."""
    words = [argument % (1 << 64) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    for rule in rules():
        if name in rule["names"] and all(_fits(condition, words) for condition in rule.get("args", ())):
            return "allowed" if rule["action"] == "SCMP_ACT_ALLOW" else _ERRORS[rule["errnoRet"]]
    return _ERRORS[_profile()["defaultErrnoRet"]]


def _fits(condition: Rule, words: list[int]) -> bool:
    word, value = words[condition["index"]], condition["value"]
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return bool(word & value == condition["valueTwo"])
    return _COMPARE[condition["op"]](word, value)


# The document ---------------------------------------------------------------------------------------------------------


def table() -> str:
    """Return what is allowed, and on what condition, as two tables."""
    whole = [f"| {rule['comment']} | {_code(rule['names'])} |" for rule in rules() if _whole(rule)]
    parts = []
    for names, group in itertools.groupby((rule for rule in rules() if not _whole(rule)), lambda rule: rule["names"]):
        for number, rule in enumerate(group):
            comment = rule["comment"].removeprefix("ENOSYS: ")
            parts.append(f"| {'' if number else _code(names)} | {_condition(rule)} | {comment} |")
    return "\n".join(
        (
            "| allowed for | calls |",
            "|---|---|",
            *whole,
            "",
            "| call | only if | which is |",
            "|---|---|---|",
            *parts,
            "",
        )
    )


def _whole(rule: Rule) -> bool:
    return rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")


def _code(names: list[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _condition(rule: Rule) -> str:
    if rule["action"] != "SCMP_ACT_ALLOW":
        return f"never; {_ERRORS[rule['errnoRet']]}"
    return ", ".join(_comparison(condition) for condition in rule["args"])


def _comparison(condition: Rule) -> str:
    word, value = f"argument {condition['index']}", condition["value"]
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return f"{word} & {value:#x} = {condition['valueTwo']}"
    return f"{word} {_SIGNS[condition['op']]} {value if value < 1000 else hex(value)}"


def documented_table() -> str:
    """Return the tables as the document has them."""
    return DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write_table() -> None:
    """Put the tables into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


def left_out() -> set[str]:
    """Return the calls of which the document says that Docker's profile allows them and this one does not."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## What Docker's profile allows")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`(\w+)`", "".join(rows)))
