"""The profile is the one that was reviewed, and the document tells of it; no engine is needed to see that."""

from __future__ import annotations

import pytest

from tests.escape import names, profile, sweep
from tests.escape.sweep import Answers


def predicted() -> Answers:
    by_number = {number: name for name, number in sweep.numbers().items()}
    return Answers(
        calls={number: profile.verdict(by_number.get(number), []) for number in range(sweep.LAST + 1)},
        x32=dict.fromkeys(sweep.X32_NUMBERS, "SIGSYS"),
        sections=sweep.grouped([profile.verdict(name, arguments) for name, arguments in sweep.questions()]),
        foreign={call[0]: "SIGSYS" for call in names.FOREIGN},
    )


def test_the_golden_file_is_what_the_profile_computes_to() -> None:
    assert sweep.difference(sweep.render(predicted())) == ""


def test_a_change_of_the_profile_is_shown_line_by_line_with_the_way_to_accept_it() -> None:
    changed = predicted()
    changed.calls[sweep.numbers()["ptrace"]] = "allowed"
    shown = sweep.difference(sweep.render(changed))
    assert "-101 ptrace EPERM\n+101 ptrace allowed" in shown
    assert shown.endswith(sweep.REGENERATE)


def test_a_number_without_a_name_cannot_be_allowed() -> None:
    named = set(sweep.numbers())
    assert {name for rule in profile.rules() for name in rule["names"]} <= named


def test_the_documents_table_is_the_profile() -> None:
    assert profile.documented_table() == profile.table(), sweep.REGENERATE


@pytest.mark.parametrize("name", sorted(profile.left_out() - sweep.BY_ARGUMENT))
def test_what_the_document_calls_left_out_is_refused(name: str) -> None:
    assert profile.verdict(name, []) in ("EPERM", "ENOSYS")


def test_every_call_that_is_judged_by_its_arguments_is_swept() -> None:
    assert {name for rule in profile.rules() if rule.get("args") for name in rule["names"]} == sweep.BY_ARGUMENT
