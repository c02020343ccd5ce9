"""What a box's words about an attack are worth: the one that its control gives, and no other, is containment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import selfcheck
from orchestrator.errors import SandboxGoneError
from orchestrator.interpreter import Sandbox
from orchestrator.kernel.result import CellError, ExecutionResult
from orchestrator.policy import Policy
from orchestrator.sandbox.by_design import BY_DESIGN
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.selfcheck import ATTACKS, HANG, Outcome

pytestmark = pytest.mark.anyio

GVISOR = "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016"


@dataclass
class FakeBox:
    """Answers attacks as it is told, and by what contains them otherwise.

    Attributes:
        answers: result of each cell that holds a text.
        kernel: what it says its kernel is.
        ran: the cells.
    """

    answers: Mapping[str, ExecutionResult | Exception] = field(default_factory=dict)
    kernel: str = "Linux version 6.1"
    ran: list[str] = field(default_factory=list)

    @property
    def info(self) -> Any:
        return SimpleNamespace(kernel=self.kernel)

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        assert 0 < timeout <= 60
        self.ran.append(code)
        for part, answer in self.answers.items():
            if part in code:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        if code == HANG.code:
            return ExecutionResult("timeout", elapsed_s=1.2)
        said = next((min(attack.contained) for attack in ATTACKS if attack.code[-20:] == code[-20:]), "")
        return ExecutionResult("ok", result=repr(said))


async def outcomes(box: FakeBox, policy: Policy | None = None) -> dict[str, Outcome]:
    found = [outcome async for outcome in selfcheck.run(cast("Sandbox", box), policy or Policy())]
    return {outcome.attack.what: outcome for outcome in found}


def said(text: str) -> ExecutionResult:
    return ExecutionResult("ok", result=repr(text))


async def test_a_box_that_says_what_its_controls_give_holds() -> None:
    found = await outcomes(FakeBox())
    assert list(found) == [attack.what for attack in (*ATTACKS, HANG)]
    assert all(outcome.contained and not outcome.failed for outcome in found.values())


@pytest.mark.parametrize(
    "answer",
    [
        said("done"),
        said("EAFNOSUPPORT"),
        said(""),
        ExecutionResult("ok"),
        ExecutionResult("error", error=CellError("NameError", "EPERM", "EPERM")),
        ExecutionResult("died"),
        ExecutionResult("timeout"),
    ],
    ids=["done", "another refusal", "nothing", "no value", "error", "died", "timeout"],
)
async def test_anything_else_is_not_containment(answer: ExecutionResult) -> None:
    found = await outcomes(FakeBox({"AF_INET6": answer}))
    assert [what for what, outcome in found.items() if outcome.failed] == ["open a socket to the network"]


async def test_what_a_box_says_is_cut_and_cleaned() -> None:
    found = await outcomes(FakeBox({"AF_INET6": said("\x1b[2Jx" * 10_000)}))
    shown = found["open a socket to the network"].said
    assert len(shown) <= 60
    assert shown.isprintable()


@pytest.mark.parametrize(
    "result",
    [
        ExecutionResult("ok"),
        ExecutionResult("timeout", elapsed_s=30.0),
        ExecutionResult("died", elapsed_s=0.1),
        ExecutionResult("error", elapsed_s=0.1),
    ],
    ids=["it never hung", "too late", "died", "failed"],
)
async def test_a_cell_that_hangs_must_end_in_time_and_by_the_ladder(result: ExecutionResult) -> None:
    found = await outcomes(FakeBox({HANG.code: result}))
    assert [what for what, outcome in found.items() if outcome.failed] == [HANG.what]


async def test_a_box_that_cannot_even_prepare_holds_in_nothing() -> None:
    found = await outcomes(FakeBox({"def all_of": ExecutionResult("error")}))
    assert all(found[attack.what].failed for attack in ATTACKS)


async def test_what_is_known_of_gvisor_is_no_finding_there_and_one_elsewhere() -> None:
    opened = {"/proc/1/": said("EACCES done")}
    what = "open the supervisor's stream and memory"
    under_gvisor = (await outcomes(FakeBox(opened, GVISOR)))[what]
    assert (under_gvisor.contained, under_gvisor.failed) == (False, False)
    assert "20251215" in under_gvisor.known
    assert (await outcomes(FakeBox(opened)))[what].failed
    assert (await outcomes(FakeBox({"AF_INET6": said("done")}, GVISOR)))["open a socket to the network"].failed


async def test_the_numbers_are_the_policys_and_the_canary_is_a_file_that_is_gone_afterwards() -> None:
    box = FakeBox()
    await outcomes(box, Policy().override(["limits.pids=77"]))
    assert any("range(77 + 8)" in code for code in box.ran)
    (cell,) = (code for code in box.ran if "def reached" in code)
    path = Path(cell.partition("root + '")[2].partition("'")[0])
    assert path.is_absolute()
    assert not path.exists()  # noqa: ASYNC240 - nothing else runs
    assert not any("{pids}" in code or "{canary" in code for code in box.ran)


async def test_a_box_that_dies_of_an_attack_is_not_passed_over() -> None:
    with pytest.raises(SandboxGoneError):
        await outcomes(FakeBox({"os.splice": SandboxGoneError("gone")}))


async def test_every_attack_is_named_with_controls_that_are() -> None:
    known = {control.id for control in (*CONTROLS, *BY_DESIGN)}
    for attack in (*ATTACKS, HANG):
        assert attack.controls
        assert set(attack.controls) <= known
        assert "done" not in attack.contained
        compile(attack.code.replace("{pids}", "1").replace("{canary!r}", "''"), attack.what, "exec")


@pytest.mark.parametrize(("result", "told"), [(said("6f4a"), "6f4a"), (ExecutionResult("error"), "")])
async def test_the_boot_of_a_box_is_told_or_empty(result: ExecutionResult, told: str) -> None:
    box = FakeBox({"boot_id": result})
    assert await selfcheck.boot_id(cast("Sandbox", box), Policy()) == told
