"""What a box of the soak does in its cells, and how it is left."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Seconds a cell may run: most hazards end by their deadline, and there are hundreds of boxes.
TIMEOUT_S = 0.5

_RAW = """
import json, os, socket, struct
line = socket.socket(fileno=os.dup(3))
def frame(payload, kind=17): return struct.pack(">IB", len(payload), kind) + payload
"""
_SWALLOW = """
while True:
    try:
        while True: pass
    except BaseException: pass
"""
_SPIN = """
import threading
def spin():
    while True: print("x")
threading.Thread(target=spin).start()
"""
_HANG = """
import threading
for _ in range(20): threading.Thread(target=llm_query, args=("hang",)).start()
"""
CELLS = {
    "well-behaved": "x = sum(range(1000)); print(x, len(context)); x",
    "sub-calls": "llm_query_batched([str(n) for n in range(20)]); Final = 'done'",
    "an error": "1 / 0",
    "a loop": "while True: pass",
    "a loop that ignores interrupts": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    "a loop that swallows everything": _SWALLOW,
    "a loop in C": "sum(range(10**12))",
    "a stop of itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "an exit": "import os; os._exit(3)",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "a lot of memory": "x = [bytearray(1 << 20) for _ in range(2000)]",
    "forks": "import os\nwhile True: os.fork()",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
    "a child that stays": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)",
    "a thread that stays": _SPIN,
    "output": "while True: print('x' * 100_000)",
    "output to the descriptor": "import os\nwhile True: os.write(1, b'x' * 100_000)",
    "a message of 100 MB": "import os\nos.write(1, b'x' * 100_000_000)",
    "a full scratch": "open('/tmp/full', 'wb').write(b'x' * (1 << 30))",
    "closed descriptors": "import os; os.closerange(0, 1024)",
    "a call that hangs": "llm_query('hang')",
    "calls without end": "while True: budget()",
    "calls left hanging": _HANG,
    "half a call": _RAW + "line.sendall(frame(b'\\x00' + b'\\x00' * 3))\nwhile True: pass",
    "a malformed call": _RAW + "line.sendall(frame(b'\\x02'))\nwhile True: pass",
    "noise": _RAW + "line.sendall(os.urandom(1000))\nwhile True: pass",
}
ENDS = ("left", "left", "raised", "cancelled", "cancelled while it opens")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one box is to suffer.

    Attributes:
        number: of the box, from 1.
        cells: names of its cells, in order.
        end: how it is left, one of :data:`ENDS`.
        after_s: when it is cancelled, if it is.
    """

    number: int
    cells: tuple[str, ...]
    end: str
    after_s: float


def plans(boxes: int, seed: str) -> list[Plan]:
    """Return what each box does; a seed repeats it, and every hazard has its turn."""
    chance = random.Random(seed)  # noqa: S311 - a seed must repeat it
    deck: list[str] = []
    found = []
    for number in range(1, boxes + 1):
        if len(deck) < len(CELLS):
            deck += chance.sample(sorted(CELLS), len(CELLS))
        cells = tuple(deck.pop(0) for _ in range(chance.randint(1, 3)))
        found.append(Plan(number, cells, chance.choice(ENDS), chance.uniform(0.01, 0.6)))
    return found
