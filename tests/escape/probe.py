"""Runs inside a box, as an ordinary cell: what the filter says to a system call, and what comes of making it.

:func:`ask` learns the filter's answer without the call ever being made. It adds a filter of its own, in a child, that
hands every marked call over to a listener that never replies; a signal, which comes every half millisecond, ends the
wait. Of two filters the stricter answer counts, and "ask the listener" is stricter than "allow" and milder than every
refusal (seccomp(2)): so EINTR says that the box's filter allows the call, and whatever else comes back is its answer.
That makes it safe to ask for everything, ``exit`` and ``fork`` included, and the answer is the same on every kernel.

:func:`attempt` makes the call. Each attempt has a child of its own: it may end, hang or confine it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from functools import partial

SECCOMP = 317
GETPID = 39
SIGRETURN = 15
MARK = 0x5EEDFACE
TICK_S = 0.0005
PATIENCE_S = 5
WORD = 1 << 64

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
# Numbers of calls by name; set by whoever sends this program.
NUMBERS: dict[str, int] = {}

Argument = int | bytes | bytearray | None


def raw(number: int, *arguments: int) -> tuple[int, int]:
    """Make a system call; return its value and errno."""
    words = [ctypes.c_ulong(argument % WORD) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    ctypes.set_errno(0)
    value = LIBC.syscall(ctypes.c_long(number), *words)
    return value, ctypes.get_errno()


def invoke(name: str, *arguments: Argument) -> int:
    """Make a system call by name; bytes are passed by their address, and bytearrays are also written back.

    Raises:
        OSError: it was refused, or failed.
    """
    buffers = [
        ctypes.create_string_buffer(bytes(given), len(given))
        for given in arguments
        if isinstance(given, (bytes, bytearray))
    ]
    waiting = iter(buffers)
    words = [
        ctypes.addressof(next(waiting)) if isinstance(given, (bytes, bytearray)) else given or 0 for given in arguments
    ]
    value, failure = raw(NUMBERS[name], *words)
    if value == -1 and failure:
        raise OSError(failure, name)
    waiting = iter(buffers)
    for given in arguments:
        if isinstance(given, (bytes, bytearray)):
            written = next(waiting).raw
            if isinstance(given, bytearray):
                given[:] = written
    return value


def name_of(failure: int) -> str:
    """Return the name of an errno."""
    return errno.errorcode.get(failure, f"errno {failure}")


# Asking -------------------------------------------------------------------------------------------------------------


def ask(questions: list[list[int]]) -> list[str]:
    """Return what the filter says to each call, given as its number and up to five arguments.

    ``allowed``, the name of an errno, or that of the signal that ended the caller.
    """
    answers: list[str] = []
    while len(answers) < len(questions):
        rest = questions[len(answers) :]
        answers += in_child(partial(_ask_all, rest))
    return answers


def _ask_all(questions: list[list[int]], tell: Callable[[str], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    _listen()
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    for number, *arguments in questions:
        if number == SIGRETURN:
            tell("allowed")  # the handler of every tick has returned through it
            continue
        value, failure = raw(number, *(*arguments, 0, 0, 0, 0, 0)[:5], (number + MARK) % (1 << 32))
        raw(GETPID)  # takes the mark out of the registers before Python makes a call of its own
        tell("made" if value != -1 else "allowed" if failure == errno.EINTR else name_of(failure))


def _listen() -> None:
    """Install the filter: a listener is asked about a call whose sixth argument is its number plus the mark."""
    ask_listener, allow = 0x7FC00000, 0x7FFF0000
    program = (
        (0x20, 0, 0, 0),  # load the number
        (0x15, 5, 0, SIGRETURN),  # it interrupts what is asked, with the registers as they were: allow
        (0x04, 0, 0, MARK),  # add the mark
        (0x07, 0, 0, 0),  # into the index register
        (0x20, 0, 0, 16 + 5 * 8),  # load the low half of the sixth argument
        (0x1D, 0, 1, 0),  # equal to the index register?
        (0x06, 0, 0, ask_listener),
        (0x06, 0, 0, allow),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("H6xQ", len(program), ctypes.addressof(code)))
    set_mode_filter, new_listener = 1, 8
    listener, failure = raw(SECCOMP, set_mode_filter, new_listener, ctypes.addressof(header))
    if listener == -1:
        raise OSError(failure, "seccomp")


# Trying -------------------------------------------------------------------------------------------------------------


def attempt(code: str) -> str:
    """Run Python ``code`` in a child; return ``ok``, the name of the errno it failed with, or how it ended.

    ``gone`` means that it became another program.
    """

    def run(tell: Callable[[str], None]) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE_S)
        try:
            exec(compile(code, "attempt", "exec"), dict(globals()))  # noqa: S102 - a cell is a place for it
        except OSError as error:
            tell(name_of(error.errno or 0))
        else:
            tell("ok")

    return (in_child(run) or ["gone"])[0]


def blindly(numbers: list[int]) -> list[str]:
    """Make every call with arguments that are all -1: no descriptor, no address, no process, every flag."""
    answers: list[str] = []
    while len(answers) < len(numbers):
        answers += in_child(partial(_make_all, numbers[len(answers) :]))
    return answers


def _make_all(numbers: list[int], tell: Callable[[str], None]) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in numbers:
        signal.alarm(PATIENCE_S)
        value, failure = raw(number, *[-1] * 6)
        tell(name_of(failure) if value == -1 and failure else "ok")


def sockets(families: list[int], kinds: list[int]) -> list[str]:
    """Make a socket of each family, and a pair, of the first kind that the family has; return what came of it."""

    def make(tell: Callable[[str], None]) -> None:
        for family in families:
            tell(_first_good(NUMBERS["socket"], [(family, kind, 0) for kind in kinds]))
        for family in families:
            pair = ctypes.create_string_buffer(8)
            tell(_first_good(NUMBERS["socketpair"], [(family, kind, 0, ctypes.addressof(pair)) for kind in kinds]))

    return in_child(make)


def _first_good(number: int, tries: list[tuple[int, ...]]) -> str:
    found = set()
    for arguments in tries:
        value, failure = raw(number, *arguments)
        if value >= 0:
            return "ok"
        found.add(name_of(failure))
    return "/".join(sorted(found))


def in_child(work: Callable[[Callable[[str], None]], object]) -> list[str]:
    """Fork; return the lines that ``work`` tells in the child, and the name of the signal if one ended it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        try:
            work(partial(_say, writer))
        except BaseException as error:  # noqa: BLE001 - a fork must not go on as its parent would
            os.write(writer, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        lines.append(signal.Signals(os.WTERMSIG(status)).name)
    return lines


def _say(writer: int, line: str) -> None:
    os.write(writer, line.encode() + b"\n")


def int80(number: int, *arguments: int) -> int:
    """Make a system call by the 32-bit table of x86.

    Raises:
        OSError: it was refused, or failed.
    """
    import mmap

    # push rbx, rbp; eax = edi; ebx = esi; ecx = edx; edx, esi, edi, ebp = 0; int 0x80; rax = eax; pop rbp, rbx; ret
    code = bytes.fromhex("53 55 89f8 89f3 89d1 31d2 31f6 31ff 31ed cd80 4898 5d 5b c3")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    kind = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
    value = kind(address)(number, *(*arguments, 0, 0)[:2])
    if -4096 < value < 0:
        raise OSError(-value, "int 0x80")
    return int(value)


warnings.filterwarnings("ignore", category=DeprecationWarning)  # of fork in a process with threads
assert sys.byteorder == "little"
