"""The hot paths cost what they did: instructions of our own code, compared with what was recorded."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.kernel.outputs import CellFold
from orchestrator.transport.rpc import Inbox
from tests.bench import counts


@pytest.mark.parametrize("name", counts.PATHS)
def test_a_hot_path_takes_no_more_instructions_than_were_recorded(name: str) -> None:
    known = counts.recorded()
    if not known:
        pytest.skip(f"nothing is recorded for CPython {counts.VERSION}: python -m tests.bench.counts --record")
    assert counts.complaint(name, counts.measure(name), known[name]) == ""


def test_a_path_that_does_its_work_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = counts.measure("fold")
    message = CellFold.message

    def wasteful(fold: CellFold, kind: str, content: dict[str, Any]) -> None:
        message(CellFold(1000), kind, content)
        message(fold, kind, content)

    monkeypatch.setattr(CellFold, "message", wasteful)
    assert "fold takes" in counts.complaint("fold", counts.measure("fold"), known)


def test_an_improvement_is_to_be_recorded_and_a_tenth_is_no_change() -> None:
    assert counts.complaint("ledger", 79, 100).endswith("better; record it")
    assert not any(counts.complaint("ledger", found, 100) for found in (80, 100, 110))
    assert counts.complaint("ledger", 111, 100) == "ledger takes 111 instructions an item and took 100"


def test_instructions_of_others_are_not_counted() -> None:
    assert counts.instructions(lambda: sorted(range(1000), key=lambda number: -number)) == 0
    assert counts.instructions(lambda: Inbox(1, {}, lambda _: None).partial) > 0
