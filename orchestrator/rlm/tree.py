"""What the runs of a tree have in common: the first one, and the child runs below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.events import Sink
from orchestrator.models.base import Model
from orchestrator.session import Backing
from orchestrator.tools import Toolbox


@dataclass(frozen=True, slots=True)
class Tree:
    """What all runs of a tree share.

    Attributes:
        root_model: drives every run.
        backing: answers every box.
        journal: folder of the journals, one a run; None keeps none.
        sink: hears the events of every run.
        redact: the journals hold lengths and hashes in the place of texts.
        tools: functions that the box of the first run may call.
        child_tools: those that the boxes of its children may.
    """

    root_model: Model
    backing: Backing
    journal: Path | None = None
    sink: Sink | None = None
    redact: bool = False
    tools: Toolbox = field(default_factory=dict)
    child_tools: Toolbox = field(default_factory=dict)
