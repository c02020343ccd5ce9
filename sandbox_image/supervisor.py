"""PID 1 of the box: starts the kernel, carries frames, caps output at the source, ends what must end.

It runs the standard library and pyzmq, never a byte of model code. The kernel is its child under the same uid, so it
makes itself non-dumpable (no ``/proc/1/mem``, ``environ`` or ``fd`` for the child), keeps descriptors close-on-exec,
and installs no signal handler: as init of its PID namespace it is then immune to every signal from inside (see
pid_namespaces(7)). The end of its stdin, which is the host's connection, is the end of the box.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from sandbox_image import attest, seccomp, wire
from sandbox_image.context_file import ContextFile
from sandbox_image.descriptors import CONTEXT_FD, RPC_FD, widen, write_all
from sandbox_image.gate import CellGate, pack
from sandbox_image.line import Line
from sandbox_image.processes import empty, end_others, freeze, kill_everyone, thaw
from sandbox_image.wire import Channel, Kind

RUN_DIR = os.environ.get("RLM_SANDBOX_RUN_DIR", "/run/box")
SCRATCH = os.environ.get("RLM_SANDBOX_SCRATCH", "/tmp")  # noqa: S108 - a tmpfs of the box, not a shared folder
READ_SIZE = 1 << 20
# A reply waits this long for the output that belongs before it; a cell that suppresses "idle" gains nothing else.
SETTLE_S = 0.25
# The most messages handled for one socket before the others get their turn: a flood must not delay an interrupt.
BURST = 64
MAX_FAILED_STARTS = 3
MAX_MESSAGE = 8 << 20
MAX_WAITING = 100
# What a kernel wrote before it died has long been in this process's reach: nothing in this time means nothing more.
LAST_WORDS_MS = 5
# The first kernel confines itself in 20 ms; meanwhile this process does not hear that its host is gone.
CONFINED_S = 30
# What does not stop in this time between two cells is killed. It takes well below a millisecond; on a machine full of
# work, as long as it takes until each thread has had its turn.
FREEZE_S = 0.5
PR_SET_DUMPABLE = 4


def main() -> None:
    """Run the box until the host goes away."""
    settings = json.loads(sys.argv[1])
    # CPython handles SIGINT; a handled signal would reach PID 1 from inside the box.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    make_undumpable()
    Supervisor(settings).run()


def make_undumpable() -> None:
    """Hide memory, environment and descriptors of this process from its own uid (prctl(2), PR_SET_DUMPABLE)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


class Supervisor:
    """One kernel at a time, one stream to the host."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Take the settings the host put on the command line; they hold limits and no secret."""
        self._settings = settings
        self._from_host = wire.Decoder(
            settings["frame"],
            frozenset((Kind.CONTEXT, Kind.CONTEXT_END, Kind.INTERRUPT, Kind.RESTART, Kind.KERNEL, Kind.RPC)),
        )
        self._gate = CellGate(settings["output"])
        self._filtered = bool(seccomp.rules(subprocesses=settings["subprocesses"], freeze=settings["freeze"]))
        self._refusals = b""
        self._frozen = self._ready = False
        self._generation = 0
        self._failed_starts = 0
        self._kernel = 0
        self._ooms = 0
        self._restarting = self._strays = False
        self._answered = 0
        self._mid_answer = False
        self._exits_read, self._exits_write = os.pipe()
        self._children = threading.Event()
        self._held_reply: tuple[bytes, float] | None = None
        os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)  # noqa: PTH103
        self._contexts = ContextFile(f"{RUN_DIR}/context")

    def run(self) -> None:
        """Serve until end of input."""
        widen(0, READ_SIZE)
        self._spawn()
        threading.Thread(target=self._reap, daemon=True).start()
        facts = {"protocol": wire.PROTOCOL_VERSION, **attest.gather(), "interpreter": self._interpreter()}
        self._send(Kind.HELLO, json.dumps(facts).encode())
        import zmq  # while the kernel, on another core, imports its own modules

        self._zmq = zmq
        self._zmq_context = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(0, zmq.POLLIN)
        self._poller.register(self._exits_read, zmq.POLLIN)
        self._poll_line()
        self._sockets: dict[Channel, Any] = {}
        self._monitors: list[Any] = []
        while True:
            self._turn()

    # The loop -------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        timeout = None
        if self._held_reply is not None:
            timeout = max(0, math.ceil((self._held_reply[1] - time.monotonic()) * 1000))
        ready = dict(self._poller.poll(timeout))
        if 0 in ready:
            self._from_stdin()
        for channel, sock in list(self._sockets.items()):
            if sock in ready:
                self._drain(channel, sock)
        if any(monitor in ready for monitor in self._monitors):
            self._hung_up()
        events = ready.get(self._line.fileno(), 0)
        if events & self._zmq.POLLOUT:
            self._line.flush()
            self._poll_line()
        if events & ~self._zmq.POLLOUT:
            self._from_kernel()
        if self._held_reply is not None and time.monotonic() >= self._held_reply[1]:
            self._release_reply()
        if self._exits_read in ready:
            self._exited()

    def _from_stdin(self) -> None:
        data = os.read(0, READ_SIZE)
        if not data:
            os._exit(0)  # the host is gone; with PID 1 goes every process of the box
        for frame in self._from_host.feed(data):
            if frame.kind in (Kind.CONTEXT, Kind.CONTEXT_END):
                self._take_context(frame)
            elif frame.kind is Kind.KERNEL:
                self._to_kernel(frame.payload)
            elif frame.kind is Kind.RPC:
                self._answer(frame.payload)
            elif self._is_meant(frame.payload):
                if frame.kind is Kind.RESTART:
                    self._restarting = True
                    self._signal(signal.SIGKILL)
                elif not self._frozen:  # else it came too late for its cell, and would meet the next one
                    self._signal(signal.SIGINT)

    def _take_context(self, frame: wire.Frame) -> None:
        if frame.kind is Kind.CONTEXT_END:
            self._contexts.finish(json.loads(frame.payload))
            self._configure()
        elif not self._contexts.append(frame.payload):
            self._fail("context_changed")

    def _is_meant(self, order: bytes) -> bool:
        """Whether an order to end something is for the kernel that is there, and not for one that ended meanwhile."""
        return self._kernel != 0 and json.loads(order)["generation"] == self._generation

    def _to_kernel(self, payload: bytes) -> None:
        channel, parts = wire.unpack_parts(payload)
        sock = self._sockets.get(channel)
        if sock is None:
            return  # the kernel died while this was under way; the host learns of it by DIED
        header = json.loads(parts[2])
        self._gate.open(header["msg_id"], header["msg_type"])
        self._held_reply = None
        self._ooms = attest.oom_kills()
        if self._frozen:
            self._frozen = False
            thaw(self._kernel)
        sock.send_multipart(parts)

    def _drain(self, channel: Channel, sock: Any) -> None:
        for _ in range(BURST):
            try:
                parts = sock.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            if channel is Channel.IOPUB:
                self._from_iopub(parts)
            elif self._held_reply is None and (reply := self._gate.reply(parts)) is not None:
                self._held_reply = (wire.pack_parts(channel, reply), time.monotonic() + SETTLE_S)
                if self._gate.idle:
                    self._release_reply()

    def _from_iopub(self, parts: list[bytes]) -> None:
        if not self._ready and b"iopub_welcome" in b"".join(parts[:5]):
            self._subscribed = True
            self._send(Kind.BOUND, json.dumps({"generation": self._generation}).encode())
            self._announce()
            return
        forward = self._gate.iopub(parts)
        if forward is not None:
            self._send(Kind.KERNEL, wire.pack_parts(Channel.IOPUB, forward))
        if self._gate.take_flood():
            self._send(Kind.FAULT, b'{"fault":"flood"}')
        if self._gate.idle and self._held_reply is not None:
            self._release_reply()

    def _release_reply(self) -> None:
        if self._held_reply is None:
            return
        reply, self._held_reply = self._held_reply[0], None
        if self._kernel and not self._quiesce():
            return  # the host hears of the kernel's death instead
        cut = self._gate.close()
        if cut is not None:
            self._send(Kind.CUT, pack(cut))
        self._send(Kind.KERNEL, reply)

    def _quiesce(self) -> bool:
        """End what the cell left running; return whether the kernel is still there."""
        if self._settings["freeze"]:
            quiet = self._frozen = freeze(self._kernel, FREEZE_S)
        else:
            quiet = end_others(self._kernel)
        if not quiet:
            # The one way to be rid of them is to kill all at once, so the cell ends by the death of its kernel.
            self._strays = True
            self._signal(signal.SIGKILL)
        elif self._line.may_call:
            self._from_kernel()  # calls that were made in this cell, by threads, are not to be those of the next
        return quiet

    # The kernel -----------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._generation += 1
        self._ready = self._subscribed = self._loaded = self._configured = self._frozen = False
        self._confined = not self._filtered
        self._ooms = attest.oom_kills()
        self._line = Line(self._settings["frame"])
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": SCRATCH,
            "USER": "box",  # a uid of the box's own has no line in /etc/passwd
            "TMPDIR": SCRATCH,
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "IPYTHONDIR": f"{RUN_DIR}/ipython",
            "JUPYTER_NO_CONFIG": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self._settings["threads"])),
        }
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py")  # noqa: PTH100, PTH118, PTH120
        null = os.open(os.devnull, os.O_RDWR)
        os.lseek(self._contexts.descriptor, 0, os.SEEK_SET)
        self._kernel = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-B", program, self._endpoint(), json.dumps(self._settings)],
            environment,
            # 3 and 4 are the pipe of exits here (made first, close-on-exec), so nothing that is copied is overwritten.
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
                (os.POSIX_SPAWN_DUP2, self._line.theirs.fileno(), RPC_FD),
                (os.POSIX_SPAWN_DUP2, self._contexts.descriptor, CONTEXT_FD),
            ],
            setsid=True,
        )
        os.close(null)
        self._line.theirs.close()
        self._children.set()

    def _interpreter(self) -> dict[str, Any]:
        """Wait until the first kernel has confined itself, if it is to; return what it and the system say of that."""
        if not self._filtered:
            return {}
        self._refusals = self._line.first(CONFINED_S)
        self._confined = True
        return {"status": attest.status_of(self._kernel), "refusals": json.loads(self._refusals or b"{}")}

    def _endpoint(self) -> str:
        return f"{RUN_DIR}/k{self._generation}"

    def _configure(self) -> None:
        """Tell a fresh kernel how far to read the contexts; what comes later it finds there before its next cell."""
        end = self._contexts.end
        if self._loaded and end is not None and not self._configured:
            self._configured = True
            self._to_line(wire.encode(Kind.CONTEXT_END, b"%d" % end))

    def _from_kernel(self) -> None:
        frames = self._line.receive()
        if frames is None:
            # Closed or broken by the guest: without its calls the kernel is of no use, so it is replaced.
            if self._line.fileno() in self._poller:
                self._poller.unregister(self._line.fileno())
            self._signal(signal.SIGKILL)
            return
        for frame in frames:
            if frame.kind is not Kind.RPC:
                self._kernel_said(frame.payload)
            elif self._ready:
                self._send(Kind.RPC, frame.payload)

    def _kernel_said(self, payload: bytes) -> None:
        """Take a READY of the kernel; each means more than the last."""
        if not self._confined:
            self._confined = True
            if payload != self._refusals:  # what the host was told of the first kernel is to hold for every one
                self._signal(signal.SIGKILL)
        elif not self._loaded:
            self._loaded = True  # its sockets are bound
            self._connect()
            self._configure()
        else:
            self._context_in = True
            self._announce()

    def _connect(self) -> None:
        zmq = self._zmq
        for channel, number, kind in (
            (Channel.SHELL, 1, zmq.DEALER),
            (Channel.IOPUB, 2, zmq.SUB),
        ):
            sock = self._zmq_context.socket(kind)
            sock.linger = 0
            # Bounds what can wait in this process; a kernel that keeps to startup.py's cuts never comes near.
            sock.setsockopt(zmq.MAXMSGSIZE, max(MAX_MESSAGE, 32 * self._settings["output"]))
            sock.setsockopt(zmq.RCVHWM, MAX_WAITING)
            if kind == zmq.SUB:
                sock.subscribe(b"")
            sock.connect(f"ipc://{self._endpoint()}-{number}")
            self._sockets[channel] = sock
            self._poller.register(sock, zmq.POLLIN)
            self._monitors.append(sock.get_monitor_socket(zmq.EVENT_DISCONNECTED))
            self._poller.register(self._monitors[-1], zmq.POLLIN)
        self._context_in = False

    def _hung_up(self) -> None:
        """Replace a kernel that closed a channel, or broke it with too large a message: libzmq opens it no more."""
        for sock in self._sockets.values():
            sock.disable_monitor()  # first: libzmq's own thread waits for ever to tell a monitor that has been closed
        for monitor in self._monitors:
            self._poller.unregister(monitor)
            monitor.close()
        self._monitors.clear()
        self._signal(signal.SIGKILL)

    def _announce(self) -> None:
        if self._subscribed and self._context_in and not self._ready:
            self._ready = True
            self._failed_starts = 0
            self._send(Kind.READY, json.dumps({"generation": self._generation}).encode())

    def _signal(self, number: signal.Signals) -> None:
        # The kernel leads its own session; children that stayed in its group share the interrupt, as at a terminal.
        if self._kernel:
            with suppress(ProcessLookupError):
                os.killpg(self._kernel, number)
            if number is signal.SIGKILL:
                kill_everyone()

    def _reap(self) -> None:
        """Wait for every child, its own and adopted; a thread, so that no signal needs a handler."""
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                self._children.clear()
                os.write(self._exits_write, b"0 0\n")
                self._children.wait()
            else:
                os.write(self._exits_write, b"%d %d\n" % (pid, status))

    def _exited(self) -> None:
        for line in os.read(self._exits_read, READ_SIZE).split(b"\n"):
            pid, _, status = line.partition(b" ")
            if pid == b"0" and self._kernel == 0:
                self._renew()  # no process is left but this one
            elif pid.isdigit() and self._kernel == 0:
                kill_everyone()  # a fork may have slipped past the last sweep
            elif pid and int(pid) == self._kernel:
                self._kernel = 0
                self._bury(int(status))

    def _bury(self, status: int) -> None:
        """Tell the host, and clear away what the kernel left; the next one starts when all of it is gone."""
        kill_everyone()
        self._last_words()
        self._hung_up()
        for sock in self._sockets.values():
            self._poller.unregister(sock)
            sock.close()
        self._sockets.clear()
        if self._line.fileno() in self._poller:
            self._poller.unregister(self._line.fileno())
        self._line.close()
        self._answered = 0
        self._held_reply = None
        code = os.waitstatus_to_exitcode(status)
        killed = code == -signal.SIGKILL and not self._restarting and not self._strays
        facts = {
            "generation": self._generation,
            "ready": self._ready,
            "code": code,
            "oom": killed and attest.oom_kills() > self._ooms,
            "strays": self._strays,
        }
        self._restarting = self._strays = False
        self._ready = False
        self._send(Kind.DIED, json.dumps(facts).encode())

    def _last_words(self) -> None:
        """Send what the kernel said before it died, and what was cut from it."""
        for channel, sock in self._sockets.items():
            if channel is Channel.IOPUB:
                for _ in range(MAX_WAITING):
                    if not sock.poll(LAST_WORDS_MS):
                        break
                    self._drain(channel, sock)
        cut = self._gate.close()
        if cut is not None:
            self._send(Kind.CUT, pack(cut))

    def _renew(self) -> None:
        self._failed_starts += 1
        if self._failed_starts > MAX_FAILED_STARTS:
            self._fail("no_start")
        if not self._contexts.is_intact():
            self._fail("context_changed")
        for folder in (SCRATCH, "/dev/shm", RUN_DIR):  # noqa: S108
            empty(folder)
        self._spawn()
        self._poll_line()

    def _fail(self, fault: str) -> NoReturn:
        """End the box, and say why."""
        self._send(Kind.FAULT, json.dumps({"fault": fault}, separators=(",", ":")).encode())
        os._exit(1)

    # Bytes ----------------------------------------------------------------------------------------------------------

    def _send(self, kind: Kind, payload: bytes) -> None:
        write_all(1, wire.encode(kind, payload))

    def _answer(self, fragment: bytes) -> None:
        """Pass a fragment on, unless its message was begun for a kernel that is gone or not ready to make calls."""
        if not self._mid_answer:
            self._answered = self._generation if self._ready else 0
        self._mid_answer = fragment[:1] == b"\x00"
        if self._answered == self._generation:
            self._to_line(wire.encode(Kind.RPC, fragment))

    def _to_line(self, data: bytes) -> None:
        self._line.send(data)
        self._poll_line()

    def _poll_line(self) -> None:
        events = self._zmq.POLLOUT if self._line.has_more else 0
        self._poller.register(self._line.fileno(), events | (self._zmq.POLLIN if self._line.may_call else 0))


if __name__ == "__main__":
    main()
