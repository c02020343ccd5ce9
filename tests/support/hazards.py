"""What a cell can do to not end, or to end badly: a name, the code, and how it has to come out.

The names of the attack catalogue's termination group (TE…) stand beside what tries them.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.kernel.result import Status, Step

INTERRUPTED: tuple[Step, ...] = ("interrupt",)
TWICE: tuple[Step, ...] = ("interrupt", "interrupt")
KILLED: tuple[Step, ...] = ("interrupt", "interrupt", "kill")


@dataclass(frozen=True, slots=True)
class Hazard:
    """One cell.

    Attributes:
        code: what it runs.
        ladder: what had to be done to end it.
        status: how it ends.
        words: what its ``detail``, or its error, has to say.
    """

    code: str
    ladder: tuple[Step, ...] = ()
    status: Status = "timeout"
    words: str = ""

    @property
    def state_lost(self) -> bool:
        """Whether its REPL is gone: it was killed, or died."""
        return "kill" in self.ladder or self.status in ("died", "oom")


_LEAVES_ITS_GROUP = """
import os, signal, time
for n in range(20):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(1000)
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(1000)
"""
_JOIN_CYCLE = """
import threading
threads, all_started = [], threading.Event()
def wait(other): all_started.wait(); threads[other].join()
threads += [threading.Thread(target=wait, args=(other,), daemon=True) for other in (1, 0)]
for thread in threads: thread.start()
all_started.set()
threads[0].join()
"""
_FINALISER = """
class Loops:
    def __del__(self):
        while True: pass
x = Loops()
del x
"""
_STUBBORN_FINALISER = """
class Loops:
    def __del__(self):
        while True:
            try:
                while True: pass
            except BaseException: pass
x = Loops()
del x
"""
_IMPORT_HOOK = """
import sys, time
class Hook:
    def find_spec(self, *_):
        while True:
            try: time.sleep(1000)
            except BaseException: pass
sys.meta_path.insert(0, Hook())
import a_module_that_is_not_there
"""
_CATCHES_THE_FIRST = """
try:
    while True: pass
except BaseException: pass
while True: pass
"""
_MASKED = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
while True: pass
"""
_MASKED_EVERYWHERE = """
import ctypes, signal, threading
# A thread cannot mask the others': the handler that CPython would run is taken out from below it.
libc = ctypes.CDLL(None)
libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
libc.signal(2, 1)
while True: pass
"""
_NO_WAKE_UP = """
import asyncio, signal
signal.set_wakeup_fd(-1)
signal.signal(signal.SIGINT, lambda *_: None)
await asyncio.sleep(10 ** 6)
"""
_TWO_THREADS_IN_C = """
import itertools, threading
for _ in range(2): threading.Thread(target=lambda: max(itertools.repeat(1)), daemon=True).start()
max(itertools.repeat(1))
"""
_NO_REPLY = """
kernel = get_ipython().kernel
kernel.session.send = lambda *_, **__: None
"""
_STOPS_THE_LOOP = """
import asyncio
asyncio.get_running_loop().stop()
"""
_CLOSES_THE_CHANNELS = """
import os
for name in os.listdir("/proc/self/fd"):
    if os.path.exists(f"/proc/self/fd/{name}") and "socket" in os.readlink(f"/proc/self/fd/{name}"):
        os.close(int(name))
import time; time.sleep(1000)
"""
_NON_DAEMON = """
import threading, time
threading.Thread(target=time.sleep, args=(10 ** 6,)).start()
import os; os.kill(os.getpid(), 15)
import time; time.sleep(1000)
"""
_AT_EXIT = """
import atexit, os, signal, time
atexit.register(time.sleep, 10 ** 6)
raise SystemExit
"""

HANGS: dict[str, Hazard] = {
    "loop (TE01)": Hazard("while True: pass", INTERRUPTED),
    "sleep (TE10)": Hazard("import time; time.sleep(10 ** 6)", INTERRUPTED),
    "power (TE07)": Hazard("10 ** 10 ** 8", INTERRUPTED),
    "regex (TE06)": Hazard("import re; re.match('(a+)+$', 'a' * 64 + 'b')", INTERRUPTED),
    "deadlock (TE11)": Hazard("import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", INTERRUPTED),
    "threads that wait for one another (TE11)": Hazard(_JOIN_CYCLE, INTERRUPTED),
    "child": Hazard("import subprocess; subprocess.run(['sleep', '1000'])", INTERRUPTED),
    "shell": Hazard("!sleep 1000", INTERRUPTED),
    "await": Hazard("import asyncio; await asyncio.sleep(10 ** 6)", INTERRUPTED),
    "call without an answer (TE09)": Hazard("llm_query('hang')", INTERRUPTED),
    "batch without an answer (TE09)": Hazard("llm_query_batched(['hang'] * 3)", INTERRUPTED),
    "finaliser": Hazard(_FINALISER, INTERRUPTED),
    "catches the first interrupt": Hazard(_CATCHES_THE_FIRST, TWICE),
    "masks interrupts in its thread": Hazard(_MASKED, INTERRUPTED),
    "ignores interrupts (TE02)": Hazard(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", KILLED
    ),
    "ignores them below Python": Hazard(_MASKED_EVERYWHERE, KILLED),
    "catches everything (TE03)": Hazard(
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass", KILLED
    ),
    "stubborn finaliser": Hazard(_STUBBORN_FINALISER, KILLED),
    "import hook": Hazard(_IMPORT_HOOK, KILLED),
    "holds the GIL (TE05)": Hazard("sum(range(10 ** 13))", KILLED),
    "holds it in C (TE05)": Hazard("import itertools; max(itertools.repeat(1))", KILLED),
    "threads hold it in C": Hazard(_TWO_THREADS_IN_C, KILLED),
    "stops itself (TE12)": Hazard("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", KILLED),
    "stops its group": Hazard("import os; os.kill(0, 19)", KILLED),
    "stops everyone": Hazard(
        "import os, time\nif os.fork() == 0: time.sleep(1000)\nos.kill(-1, 19); os.kill(os.getpid(), 19)", KILLED
    ),
    "leaves its group": Hazard(_LEAVES_ITS_GROUP, KILLED),
    "awaits without a wake-up": Hazard(_NO_WAKE_UP, KILLED),
    "never replies (TE22)": Hazard(_NO_REPLY, KILLED),
}

DEATHS: dict[str, Hazard] = {
    "exit (TE15)": Hazard("import os; os._exit(3)", status="died", words="exit code 3"),
    "segfault (TE16)": Hazard("import ctypes; ctypes.string_at(0)", status="died", words="signal 11"),
    "abort (TE16)": Hazard("import os; os.abort()", status="died", words="signal 6"),
    "illegal instruction (TE16)": Hazard("import os, signal; os.kill(os.getpid(), 4)", status="died", words="signal 4"),
    "kill": Hazard("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", status="died", words="signal 9"),
    "terminate": Hazard(_NON_DAEMON, status="died", words="signal 15"),
    "alarm": Hazard("import signal, time; signal.alarm(1); time.sleep(1000)", status="died", words="signal 14"),
    "processor time": Hazard(
        "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", status="died", words="signal 24"
    ),
    "kill all": Hazard(
        "import os\ntry: os.kill(-1, 9)\nfinally: os.kill(os.getpid(), 9)", status="died", words="signal 9"
    ),
    "closes its line": Hazard("import os; os.close(3); import time; time.sleep(1000)", status="died", words="signal 9"),
    # The supervisor's kill, or libzmq's own abort.
    "closes all (RE12)": Hazard("import os; os.closerange(0, 65536)", status="died", words="signal"),
    "closes all sockets": Hazard(_CLOSES_THE_CHANNELS, status="died", words="signal"),
    "breaks its line": Hazard(
        "import os; os.write(3, b'\\xff' * 100); import time; time.sleep(1000)", status="died", words="signal 9"
    ),
}

HARMLESS: dict[str, Hazard] = {
    "SystemExit (TE15)": Hazard("raise SystemExit(3)", status="error", words="SystemExit"),
    "sys.exit (TE15)": Hazard("import sys; sys.exit()", status="error", words="SystemExit"),
    "hangs at its exit (TE20)": Hazard(_AT_EXIT, status="error", words="SystemExit"),
    "quit (TE15)": Hazard("quit()", status="ok"),
    "a BaseException": Hazard("class E(BaseException): pass\nraise E", status="error", words="E"),
    "an interrupt of its own": Hazard("raise KeyboardInterrupt", status="error", words="KeyboardInterrupt"),
    "recursion (TE17)": Hazard("def f(): f()\nf()", status="error", words="RecursionError"),
    "no stdout (TE24)": Hazard("import sys; sys.stdout = sys.stderr = None", status="ok"),
    "stdout without a flush (TE24)": Hazard("import sys; sys.stdout = object()", status="ok"),
    "descriptors of stdout closed (TE24)": Hazard("import os; os.close(1); os.close(2)", status="ok"),
    "stdout closed (TE24)": Hazard("import sys; sys.stdout.close(); sys.stderr.close()", status="ok"),
    "no print": Hazard("import builtins; builtins.print = None", status="ok"),
    "hooks that fail": Hazard(
        "import sys\ndef fail(*_): raise ValueError\nsys.excepthook = sys.displayhook = sys.unraisablehook = fail",
        status="ok",
    ),
    "stops the loop (TE22)": Hazard(_STOPS_THE_LOOP, status="ok"),
    "a trace that fails": Hazard("import sys; sys.setprofile(lambda *_: 1 / 0)", status="error", words="Zero"),
}

# Harmless, too, where the kernel keeps the first process of a PID namespace from signals that come from inside it.
SIGNALS: dict[str, Hazard] = {
    "signals to the supervisor (TE14)": Hazard(
        "import os\nfor n in (1, 2, 3, 9, 10, 15, 19): os.kill(1, n)", status="ok"
    ),
}
