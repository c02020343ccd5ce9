"""A whole ``rlm-sandbox run`` in a process of its own whose box and models are fakes: for tests of what a person sees.

``python -m tests.support.fake_run GATE ARGUMENT…``: a cell makes forty sub-calls; half are answered at once, the
others, and the child run beside them, when somebody opens the named pipe GATE for writing and closes it.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import anyio

from orchestrator.cli.main import main
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.rlm import api
from tests.support.fake_session import FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel

HOSTILE = "\x1b]0;pwned\x07\x1b[31mred\x1b[2J\u202e\u6f22\u5b57 part"
CODE = ModelReply(f"I ask.\n\n```repl\nfor part in parts:\n    ask(part)  # {HOSTILE}\n```", Usage(100, 10))


class SubModel(FakeModel):
    """Answers every other request only when the gate is open."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self._path = gate
        self._open = anyio.Event()
        self._waiting = False
        self._asked = 0

    async def complete(self, request: ModelRequest) -> ModelReply:
        self._asked += 1
        if self._asked % 2:
            await self.wait()
        return await super().complete(request)

    async def wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            # Not in a thread, which would keep the process from ending: this one can be cancelled.
            gate = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            await anyio.wait_readable(gate)
            os.close(gate)
            self._open.set()
        await self._open.wait()


def run(gate: Path, arguments: list[str]) -> int:
    """Run the command line over the fakes."""
    sub = SubModel(gate)

    async def asks(box: FakeBox) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.child, f"Smaller? {HOSTILE}", "text")
            for number in range(40):
                call = partial(box.call, "llm_query", f"What does {HOSTILE} {number} say?", max_tokens=64)
                tasks.start_soon(call)
        await box.call("final", "42")

    async def child(box: FakeBox) -> None:
        await sub.wait()
        await finals("7")(box)

    boxes = FakeBoxes([[asks], [child]])
    make = api.RLM.__init__

    def with_fakes(self: api.RLM, **settings: object) -> None:
        make(self, **{**settings, "model": FakeModel(default=CODE), "sub_model": sub, "open_box": boxes.open})  # type: ignore[arg-type]

    api.RLM.__init__ = with_fakes  # type: ignore[method-assign,assignment]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
