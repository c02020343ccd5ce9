"""The table at the end of a run of the suite: cases held, twins that bit, and what was skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.escape.catalogue import CASES, GROUPS, Mark
from tests.support import policies

PROPERTY = "case"
TWIN = "twin"
OUTCOME = "_escape_outcome"
_WIDTHS = (13, 12, 9, 9, 16)


def show(reporter: pytest.TerminalReporter) -> None:
    """Print it, if any of the suite was run."""
    passed, failed, skipped = (list(_marked(reporter, outcome)) for outcome in ("passed", "failed", "skipped"))
    bit = [mark for _, mark in _marked(reporter, "passed", only_with_twin=True) if mark.twin]
    if not passed + failed + skipped:
        return
    policy = policies.base()
    reporter.section(f"escape suite: policy {policy.name}, runtime {policy.sandbox.runtime or 'the default one'}")
    reporter.write_line(_row("group", "cases held", "failed", "not shown", "twins that bit"))
    broken = {case for _, mark in failed for case in mark.cases}
    held = {case for _, mark in passed for case in mark.cases} - broken
    seen = {case[:2] for _, mark in passed + failed + skipped for case in mark.cases}
    for letters, group in GROUPS.items():
        if letters not in seen:
            continue
        all_cases = [case for case in CASES if case.startswith(letters)]
        skips = [case for case in all_cases if case not in held | broken]
        twins = sum(mark.cases[0].startswith(letters) for mark in bit if mark.cases)
        held_here = sum(case in held for case in all_cases)
        failed_here = sum(case in broken for case in all_cases)
        reporter.write_line(_row(group, f"{held_here} of {len(all_cases)}", failed_here, len(skips), twins))
    for reason, count in Counter(reason for reason, _ in skipped).most_common():
        reporter.write_line(f"skipped {count} x: {reason}")


def _row(*cells: object) -> str:
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _marked(
    reporter: pytest.TerminalReporter, outcome: str, *, only_with_twin: bool = False
) -> Iterator[tuple[str, Mark]]:
    for kind in (outcome, "error") if outcome == "failed" else (outcome,):
        for report in reporter.stats.get(kind, ()):
            properties = getattr(report, "user_properties", ())
            if not only_with_twin or (TWIN, True) in properties:
                yield from ((_reason(report), mark) for name, mark in properties if name == PROPERTY)


def _reason(report: Any) -> str:
    where = report.longrepr
    return str(where[2]).removeprefix("Skipped: ") if isinstance(where, tuple) else ""
