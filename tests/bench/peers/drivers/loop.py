"""Drive one system in a process of its own: a task a line on stdin, and a line on stdout with what became of it.

Needs nothing but the standard library, since it runs in the environments of others. Times are those of the monotonic
clock, which all processes of a machine share (``clock_gettime(2)``), so they can be laid beside the model server's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MB = 1_000_000
_LINE = "The quick brown fox jumps over the lazy dog, and nobody minds.\n"
QUERY = "What does the script say?"


@dataclass(slots=True)
class Task:
    """One run.

    Attributes:
        url: of the model server, without a path.
        context: the text.
        turns: trivial cells that a system without a loop of its own is to run.
        began: when the run began; a driver may set it anew after preparations that are not to count.
        first: when the first cell was done; set by a driver without a loop, else the model server sees it.
        cells: milliseconds of the trivial cells after it, likewise.
    """

    url: str
    context: str
    turns: int
    began: float = 0.0
    first: float = 0.0
    cells: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Start the clock."""
        self.began = time.monotonic()


def text_of(megabytes: int) -> str:
    """Return a text of so many million characters."""
    size = megabytes * MB
    return (_LINE * (size // len(_LINE) + 1))[:size]


def serve(run: Callable[[Task], str]) -> None:
    """Answer tasks until stdin ends; ``run`` returns the run's answer. What libraries print goes to stderr."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            order = json.loads(line)
            task = Task(order["url"], text_of(order["mb"]), order["turns"])
            task.begin()
            told: dict[str, object]
            try:
                told = {"answer": run(task)}
            except Exception as error:  # noqa: BLE001 - whatever a foreign system raises is a line of the report
                told = {"error": f"{type(error).__name__}: {error}"}
            told |= {"began": task.began, "ended": time.monotonic(), "first": task.first, "cells": task.cells}
            print(json.dumps(told), file=out, flush=True)
