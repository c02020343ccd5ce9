"""What ``rlm-sandbox doctor`` found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import EXIT_NO_ANSWER, EXIT_OK

if TYPE_CHECKING:
    from orchestrator.errors import RlmSandboxError
    from orchestrator.interpreter import BoxInfo
    from orchestrator.sandbox.cis import Verdict
    from orchestrator.sandbox.engine import EngineInfo
    from orchestrator.sandbox.floors import Finding
    from orchestrator.sandbox.host import Advice
    from orchestrator.sandbox.image import ImageRef
    from orchestrator.selfcheck import Outcome


@dataclass(slots=True)
class Findings:
    """What was found, as far as it went.

    Attributes:
        engine: the engine about itself.
        image: the image boxes would be made of.
        box: the box that was opened, with the controls that were read back.
        missing: controls that the policy demands and that are not in force.
        floors: versions with a published bug.
        unknown: components whose version cannot be told.
        cis: rules of the CIS Docker Benchmark, judged over the engine's record of the box.
        attacks: what came of each.
        advice: what the host may give.
        error: why the examination ended early.
    """

    engine: EngineInfo | None = None
    image: ImageRef | None = None
    box: BoxInfo | None = None
    missing: list[str] = field(default_factory=list)
    floors: list[Finding] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    cis: list[Verdict] = field(default_factory=list)
    attacks: list[Outcome] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    error: RlmSandboxError | None = None

    def exit_code(self) -> int:
        """Return 0 when what is mandatory holds, 1 when it does not, else the code of what ended the examination.

        Mandatory are the controls, the attacks, and versions whose known bugs nothing of a box stops. The benchmark's
        rules are covered by the controls; advice, and versions whose bugs a box stops, are for people to weigh.
        """
        if self.missing or any(found.open for found in self.floors) or any(one.failed for one in self.attacks):
            return EXIT_NO_ANSWER
        return EXIT_OK if self.error is None else self.error.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return {
            "ok": self.exit_code() == EXIT_OK,
            "engine": None if self.engine is None else asdict(self.engine),
            "image": None if self.image is None else asdict(self.image),
            "runtime": None if self.box is None else self.box.runtime,
            "kernel": None if self.box is None else self.box.kernel,
            "opened_s": None if self.box is None else self.box.opened_s,
            "controls": self._controls(),
            "missing": self.missing,
            "self_check": [_outcome(one) for one in self.attacks],
            "cis": [asdict(verdict) for verdict in self.cis],
            "versions": [_floor(found) for found in self.floors],
            "versions_unknown": self.unknown,
            "host": [asdict(advice) for advice in self.advice],
            "error": None if self.error is None else str(self.error),
        }

    def _controls(self) -> dict[str, Any]:
        from orchestrator.sandbox.controls import CONTROLS

        found = {} if self.box is None else self.box.controls
        return {
            control.id: {
                "what": control.what,
                "sets": control.sets,
                "stops": control.stops,
                "cis": control.cis,
                "found": found[control.id].removeprefix(f"{control.what}: "),
            }
            for control in CONTROLS
            if control.id in found
        }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    attack = outcome.attack
    return {
        "attack": attack.what,
        "controls": attack.controls,
        "expected": sorted(attack.contained),
        "said": outcome.said,
        "contained": outcome.contained,
        "known": outcome.known,
        "elapsed_s": outcome.elapsed_s,
    }


def _floor(found: Finding) -> dict[str, Any]:
    floor = found.floor
    return {
        "component": floor.component,
        "version": found.version,
        "good": found.good,
        "cve": floor.cve,
        "what": floor.what,
        "stopped_by": floor.stopped_by,
    }
