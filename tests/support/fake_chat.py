"""A whole ``rlm-sandbox chat`` in a process of its own whose box and models are fakes: for tests of what a person sees.

``python -m tests.support.fake_chat ARGUMENT…``: the first question is answered with ``one``, the second never (it
waits in its cell), and the third with ``three``.
"""

from __future__ import annotations

import sys

import anyio

from orchestrator.cli.main import main
from orchestrator.models.base import ModelReply, Usage
from orchestrator.rlm import api
from tests.support.fake_session import FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel

CODE = ModelReply("I look.\n\n```repl\nlook()\n```", Usage(100, 10))


async def hangs(box: FakeBox) -> None:
    """Stand for a cell that is not done."""
    del box
    await anyio.sleep_forever()


def chat(arguments: list[str]) -> int:
    """Run the command line over the fakes."""
    boxes = FakeBoxes([[finals("one"), hangs, finals("three")]])
    make = api.RLM.__init__

    def with_fakes(self: api.RLM, **settings: object) -> None:
        models = {"model": FakeModel(default=CODE), "sub_model": FakeModel()}
        make(self, **{**settings, **models, "open_box": boxes.open})  # type: ignore[arg-type]

    api.RLM.__init__ = with_fakes  # type: ignore[method-assign,assignment]
    return main(["chat", *arguments])


if __name__ == "__main__":
    sys.exit(chat(sys.argv[1:]))
