"""The root model of every run: the same cells for all, in the words each system wants them in; and the clock.

A turn is timed from without: from the moment a reply goes out to the moment the next request is in. That holds all a
system does in a turn: reading the reply, running the cell, building the next prompt, and its client. How long its
sub-calls took, a cell measures itself, and it is read from what it printed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.model_server import Body, Fault, Reply

SUB = "sub"  # the name of the sub-model; any other is the root's
SINGLES, BATCH = 20, 200
CALLS = ("one", "batch")
_TOOK = re.compile(r"took (\w+) = ([0-9.]+)")

_ONE = f"""\
import time
began = time.perf_counter()
answers = [llm_query(f'question {{i}}') for i in range({SINGLES})]
assert answers == ['ok'] * {SINGLES}, answers[:2]
print('took one =', (time.perf_counter() - began) * 1000 / {SINGLES})"""
_MANY = f"""\
import time
began = time.perf_counter()
answers = llm_query_batched([f'of many: {{i}}' for i in range({BATCH})])
assert answers == ['ok'] * {BATCH}, answers[:2]
print('took batch =', (time.perf_counter() - began) * 1000)"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a system wants its code: ``write`` makes a reply of a cell, and ``end`` is the cell that ends a run."""

    write: Callable[[str], str]
    end: str


def _fenced(code: str) -> str:
    return f"On.\n\n```repl\n{code}\n```"


def _fields(code: str) -> str:
    marked = {"reasoning": "On.", "code": f"```python\n{code}\n```", "completed": ""}
    return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in marked.items())


def _json(code: str) -> str:
    return json.dumps({"reasoning": "On.", "code": code})


OURS = Dialect(_fenced, "Final = 'done'")
REFERENCE = Dialect(_fenced, "answer['content'] = 'done'\nanswer['ready'] = True")
FIELDS = Dialect(_fields, "SUBMIT(answer='done')")
JSON = Dialect(_json, "SUBMIT(answer='done')")


@dataclass(slots=True)
class Script:
    """Answers the requests of one run, as a responder of the model server.

    Attributes:
        arrived: when each request of the root model came in, in seconds of the monotonic clock.
        left: when each was answered.
        took: milliseconds that cells say their sub-calls took, by name.
    """

    dialect: Dialect
    turns: int
    calls: bool
    arrived: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def cells_of_a_run(self) -> list[str]:
        """The cells, in order."""
        trivial = [f"x = {turn}" for turn in range(self.turns + 1)]
        return [*trivial, *([_ONE, _MANY] if self.calls else []), self.dialect.end]

    def __call__(self, body: Body, _n: int) -> Reply | Fault:
        """Answer a sub-call at once, and a turn with the next cell; past the end, end again."""
        if body["model"] == SUB:
            return Reply("ok")
        self.arrived.append(time.monotonic())
        self.took |= {name: float(number) for name, number in _TOOK.findall(json.dumps(body["messages"]))}
        cells = self.cells_of_a_run
        reply = self.dialect.write(cells[min(len(self.left), len(cells) - 1)])
        self.left.append(time.monotonic())
        return Reply(reply)

    @property
    def first(self) -> float:
        """When the first cell was done: the request after it was in."""
        return self.arrived[1]

    @property
    def cells(self) -> list[float]:
        """Milliseconds of each turn with a trivial cell, without the first."""
        turns = range(1, self.turns + 1)
        return [(self.arrived[turn + 1] - self.left[turn]) * 1000 for turn in turns]
