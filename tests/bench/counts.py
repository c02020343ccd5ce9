"""How many bytecode instructions of our own the hot paths take, each time the same number: what a clock cannot tell.

On a shared machine, times differ by half from one run to the next. Instructions of this project's own code, executed
for one frame, message, call or event, do not, so that a change of a tenth is a change of the code. ``counts.json``
holds what was recorded, by version of CPython; the unit tests compare. ``python -m tests.bench.counts --record``
records anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

from orchestrator.events import SubcallFinished
from orchestrator.kernel.outputs import CellFold
from orchestrator.ledger import Amount, Bill, Scope
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.trajectory.journal import JournalWriter
from orchestrator.transport.rpc import RpcCall, RpcReply
from sandbox_image import wire
from sandbox_image.wire import Kind
from tests.support.broker_bench import Bench
from tests.support.hostile_guest import WINDOW, faced

RECORDED = Path(__file__).with_name("counts.json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# More than this is a regression; much less is an improvement that the record should keep.
MOST, LEAST = 1.1, 0.8
_ROOT = Path(__file__).parents[2]
_OWN = tuple(f"{_ROOT / folder}/" for folder in ("orchestrator", "sandbox_image"))
_REPEATS = 100


def instructions(work: Callable[[], object]) -> int:
    """Return how many instructions of our own code ``work`` executes in this thread."""
    found = 0

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_OWN):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    def step(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal found
        found += event == "opcode"
        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work()
    finally:
        sys.settrace(before)
    return found


def decoder() -> None:
    """Decode frames that arrive in reads of 64 KiB."""
    data = wire.encode(Kind.KERNEL, b"x" * 1000) * _REPEATS
    cut = wire.Decoder(1 << 20, frozenset((Kind.KERNEL,)))
    frames = [frame for start in range(0, len(data), 1 << 16) for frame in cut.feed(data[start : start + (1 << 16)])]
    assert len(frames) == _REPEATS


def fold() -> None:
    """Fold lines of output into a result."""
    result = CellFold(1 << 18)
    for _ in range(_REPEATS):
        result.message("stream", {"name": "stdout", "text": "a line of output\n"})


def ledger() -> None:
    """Reserve and settle calls, two levels deep."""
    scope = Scope.root(Policy().budget).child(Policy().budget)
    for _ in range(_REPEATS):
        with scope.reserve(Amount(calls=1)) as held:
            held.extend(Amount(tokens=1000, bytes_in=4096))
            held.settle(Amount(calls=1, tokens=30, bytes_in=12), Bill("m", 20, 10))


def journal() -> None:
    """Record answers of sub-calls."""
    usage = {"input_tokens": 20, "output_tokens": 10, "cache_read_tokens": 0, "cache_write_tokens": 0}
    with tempfile.TemporaryDirectory() as folder, JournalWriter.create(Path(folder), "r") as writer:
        recorder = Recorder("r", None, (writer,))
        for number in range(_REPEATS):
            recorder.emit(SubcallFinished(number, "an answer", "end", usage, 0.0, 1, 0.1))


def broker() -> None:
    """Answer sub-calls over a model that answers at once."""

    async def ask() -> None:
        bench = Bench()
        for _ in range(_REPEATS):
            await bench.ask()

    anyio.run(ask)


def mux() -> None:
    """Take calls off the stream and send their answers, a window of them at a time."""

    async def echo(call: RpcCall) -> RpcReply:
        return RpcReply({"stop": "end"}, call.body)

    async def call(handler: Callable[[RpcCall], Awaitable[RpcReply]]) -> None:
        async with faced(handler) as (_, _, guest):
            for _ in range(_REPEATS // WINDOW):
                for _ in range(WINDOW):
                    await guest.call("llm_query", "what?")
                for _ in range(WINDOW):
                    await guest.answer()

    anyio.run(call, echo)


PATHS: dict[str, Callable[[], None]] = {path.__name__: path for path in (decoder, fold, ledger, journal, broker, mux)}


def measure(name: str) -> int:
    """Return the instructions of one item on a hot path; what is done once, in the first run, is not counted."""
    PATHS[name]()
    return round(instructions(PATHS[name]) / _REPEATS)


def recorded() -> dict[str, int]:
    """Return what was recorded for this version of CPython; nothing when none was."""
    found: dict[str, int] = json.loads(RECORDED.read_text(encoding="utf-8")).get(VERSION, {})
    return found


def complaint(name: str, found: int, known: int) -> str:
    """Return what is wrong with a count, or nothing."""
    if found > known * MOST:
        return f"{name} takes {found} instructions an item and took {known}"
    if found < known * LEAST:
        return f"{name} takes {found} instructions an item and took {known}: better; record it"
    return ""


def main() -> None:
    """Print the counts, or record them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.counts", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write them down as what is to be kept")
    options = parser.parse_args()
    found, known = {name: measure(name) for name in PATHS}, recorded()
    for name, count in found.items():
        print(f"{name:8} {count:6} instructions an item (recorded: {known.get(name, 'nothing')})")
    if options.record:
        every = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
        RECORDED.write_text(json.dumps({**every, VERSION: found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
