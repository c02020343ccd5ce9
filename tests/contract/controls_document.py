"""``policies/CONTROLS.md``, made of the table in the code: ``python -m tests.contract.controls_document`` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from orchestrator.policy import Policy
from orchestrator.sandbox.by_design import BY_DESIGN, NOT_MADE
from orchestrator.sandbox.controls import CONTROLS, Control
from orchestrator.sandbox.hardening import container_config

PATH = Path(__file__).resolve().parents[2] / "policies/CONTROLS.md"
HEAD = """\
# Controls

Made from `orchestrator/sandbox/controls.py` and `by_design.py` by `python -m tests.contract.controls_document`; a test
compares. What they are against, and where they stop, is in [THREAT_MODEL.md](THREAT_MODEL.md).

## Read back of every box

Before any model code runs, the engine's own record of the container and the facts that the supervisor gathers inside
are compared with the policy. One control that is not in force destroys the box, and the error names it. Under gVisor
some cannot be seen from inside: [GVISOR.md](GVISOR.md).

"""
BETWEEN = """
## Held by how the software is made

There is nothing to be read back of a box; tests hold them.

"""
DECLINED = """
## Not made, and why

"""
SETTINGS = """
## What the engine is sent

Of the default policy, with the filter, the image and the owner's labels left out; `rlm-sandbox policy show --effective`
prints it for any.

```json
"""


def text() -> str:
    """Return the document."""
    config = container_config(Policy.load("default"), "sha256:…", "…", {"…": "…"})
    return "".join(
        [
            HEAD,
            *_table(CONTROLS, read_back=True),
            BETWEEN,
            *_table(BY_DESIGN, read_back=False),
            DECLINED,
            *(f"- **{name}**: {why}\n" for name, why in NOT_MADE.items()),
            SETTINGS,
            json.dumps(config, indent=2, ensure_ascii=False),
            "\n```\n",
        ]
    )


def _table(controls: Iterable[Control], *, read_back: bool) -> list[str]:
    more = " read back from | CIS 5.x |" if read_back else ""
    rows = [f"| id | promise | made by | stops |{more}\n", "|---|---|---|---|" + "---|---|" * read_back + "\n"]
    for control in controls:
        views = [name for name, check in (("engine", control.engine), ("inside", control.inside)) if check is not None]
        last = f" {', '.join(views)} | {', '.join(control.cis)} |" if read_back else ""
        rows.append(f"| {control.id} | {control.what} | {control.sets} | {control.stops} |{last}\n")
    return rows


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
