"""The comparison as a page of Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from tests.bench.peers import environments

if TYPE_CHECKING:
    from tests.bench.peers.compare import Measured

Load = tuple[float, float, float]

COLUMNS = {
    "start 1": "start, 1 MB",
    "start 50": "start, 50 MB",
    "cell 1": "turn, 1 MB",
    "cell 20": "turn, 20 MB",
    "cell 50": "turn, 50 MB",
    "one": "one sub-call",
    "batch": "batch of 200",
    "whole": "whole run",
}
_LEGEND = """\
*Start*: from the call of the system's entry point to the end of the first cell. *Turn*: a cell like `x = 1`, from the
moment the root model's reply leaves the server to the moment the next request arrives: reading the reply, the cell, the
next prompt and the HTTP client. *Sub-call*: `llm_query` over an instant model, by the cell's own clock; the mean of 20.
*Batch*: `llm_query_batched` with 200 prompts, likewise. *Whole run*: over 1 MB, nine turns with 220 sub-calls, and
everything cleaned up.

Each figure is the median of the rounds, with the least and the greatest (a round's turns are first reduced to their
median), and the ratio to the first line. All work over one local server that speaks chat completions, so each figure
but the start has the cost of the system's own HTTP client in it; by turns in each round, in processes that have done
their imports; a round before the first is not kept."""


def render(measured: list[Measured], rounds: int, loads: tuple[Load, Load], engine: str) -> str:
    """Return the page; ``loads`` are the load averages before and after, ``engine`` is Docker's version."""
    parts = ["# Beside its peers", _LEGEND, "\n".join(_table(measured)), "## Isolation, and how each was run"]
    parts += ["\n".join(line for each in measured for line in _described(each))]
    parts += ["## Where and when", "\n".join(_circumstances(measured, rounds, loads, engine))]
    return "\n\n".join(parts)


def _table(measured: list[Measured]) -> list[str]:
    ours = measured[0].samples
    rows = [["", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 1)]
    for each in measured:
        empty = "failed" if each.failure else "n/a"
        cells = (_cell(each.samples.get(name, []), ours.get(name, [])) for name in COLUMNS)
        rows.append([each.system.name, *(cell or empty for cell in cells)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(samples: list[float], ours: list[float]) -> str:
    if not samples:
        return ""
    median = statistics.median(samples)
    unit, scale = ("s", 1000) if median >= 1000 else ("ms", 1)
    text = f"{_number(median / scale)} {unit} ({_number(min(samples) / scale)} … {_number(max(samples) / scale)})"
    return text if samples is ours or not ours else f"{text}, **{_number(median / statistics.median(ours))} ×**"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _described(each: Measured) -> list[str]:
    system = each.system
    lines = [f"- **{system.name}**: {system.isolation}."]
    lines += [f"  - {note}" for note in system.notes]
    lines += [f"  - n/a: {system.lacks}"] if system.lacks else []
    return [*lines, *([f"  - failed here: {each.failure}"] if each.failure else [])]


def _circumstances(measured: list[Measured], rounds: int, loads: tuple[Load, Load], engine: str) -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    before, after = (", ".join(f"{load:.1f}" for load in averages) for averages in loads)
    names = dict.fromkeys(each.system.requirements for each in measured if each.system.requirements)
    versions = [f"rlm-sandbox {version('rlm-sandbox')}", *(f"{name} {environments.pinned(name)}" for name in names)]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"
    return [
        f"- {time.strftime('%Y-%m-%d', time.gmtime())}, `python -m tests.bench peers --rounds {rounds}`",
        f"- {machine}, Docker {engine}, Python {platform.python_version()} on the host",
        f"- {', '.join(versions)}",
        f"- load averages over 1, 5 and 15 minutes: {before} before, {after} after",
    ]
