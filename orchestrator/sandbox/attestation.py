"""Whether a box is as it was asked for: its controls, read back from the engine and from inside."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.sandbox import gvisor
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.sandbox.hardening import Record, Wanted
from orchestrator.sandbox.readback import Check


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        controls: what was found of every control, for people, by id.
        deviations: each control that is not in force, and where that was seen.
        kernel: what the box's kernel says of itself.
    """

    controls: dict[str, str]
    deviations: list[str]
    kernel: str = ""


def verify(record: Record, facts: Record, wanted: Wanted) -> Report:
    """Compare the engine's record and the facts from inside with what was asked for.

    Args:
        record: the engine's ``GET /containers/{id}/json``.
        facts: :func:`sandbox_image.attest.gather`, as the supervisor sent it; of any shape, since it came over a wire.
        wanted: what was asked for.
    """
    controls: dict[str, str] = {}
    deviations: list[str] = []
    differences = gvisor.DIFFERENCES if gvisor.serves(facts) else {}
    for control in CONTROLS:
        difference = differences.get(control.id)
        blind = difference is not None and difference.inside == "unseen"
        views = [
            (view, check, data)
            for view, check, data in (
                ("engine", control.engine, record),
                ("inside", None if blind else control.inside, facts),
            )
            if check is not None
        ]
        wrong = [view for view, check, data in views if not _holds(check, data, wanted)]
        seen = " and ".join(view for view, _, _ in views)
        note = "" if difference is None else f"; under gVisor, {difference.why}"
        controls[control.id] = f"{control.what}: " + (
            f"NOT IN FORCE ({', '.join(wrong)}{note})" if wrong else f"held ({seen}{note})"
        )
        if difference is None or difference.inside != "reported":
            deviations += [f"{control.id} {control.what} (seen from {view}{note})" for view in wrong]
    return Report(controls, deviations, gvisor.kernel(facts))


def _holds(check: Check, data: Record, wanted: Wanted) -> bool:
    try:
        return check(data, wanted)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False  # what cannot be read is not in force
