"""Starts ipykernel in the box: sockets on a private tmpfs, nothing of IPython that needs a network, disk or terminal.

The supervisor's child does this once it is confined (``confine.py``). When the sockets are bound it says so, waits for
the context, puts ``context`` and the functions of :mod:`sandbox_image.guest_api` into the namespace, says that it is
ready, and serves.
"""

from __future__ import annotations

import _thread
import asyncio
import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any
from weakref import WeakValueDictionary

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from IPython.core.formatters import DisplayFormatter
from IPython.core.profiledir import ProfileDir
from jupyter_client.session import Session
from traitlets import Type
from traitlets.config import Config

from sandbox_image import wire
from sandbox_image.calls import Connection
from sandbox_image.contexts import Contexts
from sandbox_image.descriptors import CONTEXT_FD, RPC_FD
from sandbox_image.gate import cut
from sandbox_image.guest_api import GuestApi
from sandbox_image.streams import BoxIOPubThread
from sandbox_image.wire import Kind

# What Python itself reports before it starts a process (the table of audit events in its documentation).
PROCESS_EVENTS = frozenset(
    ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen")
)


class BoxFormatter(DisplayFormatter):
    """Values as ``text/plain`` alone, cut to what can leave the box."""

    def format(self, obj: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the text of ``obj``; whatever else it offers stays behind."""
        data, _ = super().format(obj, *args, **kwargs)
        return _plain(data), {}


class BoxPublisher(ZMQDisplayPublisher):
    """Publishes ``text/plain`` alone: a picture of 100 MB would tear down the channel for the text beside it."""

    def publish(self, data: dict[str, Any], *_: Any, **kwargs: Any) -> None:
        """Publish the text in ``data``, if there is one."""
        plain = _plain(data)
        if plain:
            super().publish(plain, {}, update=kwargs.get("update", False))


class _Forgetful(dict[Any, list[Any]]):
    """Takes a list of outputs for any cell, and keeps none."""

    def __missing__(self, _cell: Any) -> list[Any]:
        return []


class BoxShell(ZMQInteractiveShell):
    """The shell, with tracebacks and results cut before they are serialised."""

    output_limit = 1 << 18
    display_pub_class = Type(BoxPublisher)

    def init_history(self) -> None:
        """Keep no history of outputs: IPython holds whatever was ever printed, for a notebook that nobody saves."""
        super().init_history()
        if self.history_manager is not None:
            self.history_manager.outputs = _Forgetful()

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:  # noqa: ARG002 - as the overridden method has it
        """Print as ever; what this would copy is for that history."""
        yield

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        text = "\n".join(stb)
        stb = stb if len(text) <= self.output_limit else [cut(text, self.output_limit)]
        if len(str(evalue)) > self.output_limit:
            evalue = cut(str(evalue), self.output_limit)
        super()._showtraceback(etype, evalue, stb)

    def system(self, cmd: str) -> None:
        """Run a line behind ``!`` without the terminal that IPython would make for it; the box has none."""
        command = ["/bin/sh", "-c", self.var_expand(cmd, depth=1)]
        self.user_ns["_exit_code"] = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode

    def init_display_formatter(self) -> None:
        """Produce ``text/plain`` alone; of a long text, only what is kept is ever escaped."""
        formatter = self.display_formatter = BoxFormatter(parent=self)
        formatter.active_types = ["text/plain"]
        limit = self.output_limit
        formatter.formatters["text/plain"].for_type(
            str, lambda text, printer, _cycle: printer.text(repr(cut(text, limit)))
        )


class BoxKernel(IPythonKernel):
    """The kernel; after each cell it hands over ``Final``, before the reply that ends the cell."""

    guest_api: GuestApi | None = None
    contexts: Contexts | None = None
    shell_class = Type(BoxShell)
    streams: tuple[Any, Any] = (None, None)
    _wakeable = False

    def pre_handler_hook(self) -> None:
        """Leave interrupts ignored: :meth:`do_execute` alone takes them, for it replies whatever happens in it."""

    def post_handler_hook(self) -> None:
        """Have nothing to undo."""

    async def do_execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run a cell that an interrupt may end at any point, even before its first line or after its last."""
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return await self._execute(*args, **kwargs)
        except KeyboardInterrupt:
            return {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": [], "payload": []}
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with suppress(Exception):  # a cell may have made anything of them
                _break_pools()
            if self.guest_api is not None:
                self.guest_api.end_cell()

    async def _execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run a cell, then deliver ``Final`` if it is set; cut what the reply repeats of an error."""
        if not self._wakeable:
            # Any handler of the loop's own makes every signal wake it: else an interrupt would find it asleep in a
            # cell that awaits, and wait for the next event itself.
            self._wakeable = True
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, lambda: None)
        _reap()
        if self.contexts is not None:
            try:
                self.contexts.load_new()
            except Exception as error:  # noqa: BLE001 - a cell may have made anything of the file or of its contexts
                name, told = type(error).__name__, cut(str(error), BoxShell.output_limit)
                return {"status": "error", "ename": name, "evalue": told, "traceback": [], "payload": []}
        if self.guest_api is not None:
            self.guest_api.begin_cell()
        reply: dict[str, Any] = await super().do_execute(*args, **kwargs)
        if self.guest_api is not None:
            complaint = self.guest_api.deliver_final()
            if complaint:
                self.streams[1].write(complaint)
        self._flush()
        limit = BoxShell.output_limit
        if len(reply.get("evalue", "")) > limit:
            reply["evalue"] = cut(reply["evalue"], limit)
        trace = "\n".join(reply.get("traceback", ()))
        if len(trace) > limit:
            reply["traceback"] = [cut(trace, limit)]
        reply["payload"] = []
        return reply

    def _flush(self) -> None:
        # A cell may leave anything in their place; what cannot be flushed would keep this and every reply from leaving.
        for name, original in zip(("stdout", "stderr"), self.streams, strict=True):
            try:
                getattr(sys, name).flush()
            except BaseException:  # noqa: BLE001 - as above
                setattr(sys, name, original)


# Every Popen that is still held, by id(): a subclass need not be hashable.
_popens: WeakValueDictionary[int, subprocess.Popen[Any]] = WeakValueDictionary()


def _watch_popens() -> None:
    begin = subprocess.Popen.__init__

    def remember(popen: Any, *args: Any, **kwargs: Any) -> None:
        begin(popen, *args, **kwargs)
        _popens[id(popen)] = popen

    subprocess.Popen.__init__ = remember  # type: ignore[assignment,method-assign]


def _reap() -> None:
    """Wait for what earlier cells left behind and the supervisor ended: until then it counts as processes of the box.

    Whoever holds such a process is given its true status first: without that, a later ``wait()`` would find nothing and
    call it a success, or wait for ever.
    """
    with suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        for popen in list(_popens.values()):
            with suppress(Exception):  # a cell may have made anything of it
                subprocess.Popen.poll(popen)
        if multiprocessing := sys.modules.get("multiprocessing"):
            with suppress(Exception):
                multiprocessing.active_children()  # asks each for its status
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _break_pools() -> None:
    """Have every pool of processes refuse work from now on: its workers end with the cell.

    Without that, it would start others between cells, and wait for ever for a lock that one of the first took along.
    Pools of ``concurrent.futures`` notice by themselves, and those of threads work on.
    """
    pools, process = sys.modules.get("multiprocessing.pool"), sys.modules.get("multiprocessing.process")
    if pools is None or process is None or not process._children:  # noqa: SLF001 - the cell has no such process
        return
    for found in gc.get_objects():
        if issubclass(type(found), pools.Pool) and not issubclass(type(found), pools.ThreadPool):
            found._state = found._worker_handler._state = pools.TERMINATE  # noqa: SLF001 - as its terminate() begins


class BoxApp(IPKernelApp):
    """ipykernel without what a box has no use for: connection file, heartbeat, GUI, pdb, start-up files, profile."""

    kernel_class = BoxKernel
    outstream_class = "sandbox_image.streams.BoxStream"

    def init_connection_file(self) -> None:
        """No file: the supervisor chose the endpoint."""

    def write_connection_file(self, **_: Any) -> None:
        """No file."""

    def init_heartbeat(self) -> None:
        """No heartbeat: it beats on while the interpreter is stuck (it is a thread of libzmq), so it tells nothing."""

    def init_iopub(self, context: Any) -> None:
        """Publish without the pipe for child processes: it needs a TCP socket, which the box does not have."""
        import zmq

        self.iopub_socket = context.socket(zmq.XPUB)
        self.iopub_socket.linger = 1000
        # What prints faster than the supervisor reads has to wait; by default the surplus would be lost without a word.
        self.iopub_socket.setsockopt(zmq.XPUB_NODROP, 1)
        self.iopub_port = self._bind_socket(self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = BoxIOPubThread(self.iopub_socket, pipe=False, session=self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_pdb(self) -> None:
        """No debugger: nobody could answer it."""

    def init_gui_pylab(self) -> None:
        """No display."""

    def init_code(self) -> None:
        """Run no start-up file: one could have been left by an earlier cell (CVE-2022-21699 is of this class)."""

    def init_profile_dir(self) -> None:
        """Keep the profile beside the sockets; the supervisor empties that folder before each kernel."""
        self.profile_dir = ProfileDir.create_profile_dir(os.environ["IPYTHONDIR"])


def configuration(endpoint: str) -> Config:
    """Return ipykernel's settings for this box."""
    config = Config()
    config.BoxApp.transport = "ipc"
    config.BoxApp.ip = endpoint
    for number, channel in enumerate(("shell", "iopub", "control", "stdin", "hb"), start=1):
        config.BoxApp[f"{channel}_port"] = number
    config.BoxApp.log_level = 50
    # The guest could read any key from its own memory, so a signature would prove nothing; the host trusts none of it.
    config.Session.key = b""
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.banner1 = ""
    config.Completer.use_jedi = False
    return config


def main() -> None:
    """Serve one kernel until it is killed."""
    endpoint, settings = sys.argv[1], json.loads(sys.argv[2])
    sys.argv[1:] = []
    with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - when memory runs out, this goes before PID 1
        file.write("1000")
    # gVisor hangs up the whole process group when one that is stopped in it ends, as what a cell leaves behind does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Twice what leaves the box: the gate, which model code cannot reach, makes the cut that counts and reports it.
    BoxShell.output_limit = 2 * settings["output"]
    sock = socket.socket(fileno=RPC_FD)
    for descriptor in (RPC_FD, CONTEXT_FD):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the library's own signature
    os.chdir(os.environ["HOME"])
    app = BoxApp.instance(config=configuration(endpoint))
    app.session = Session(config=app.config, parent=app)
    app.initialize([])
    app.kernel.streams = (sys.stdout, sys.stderr)
    _inherit_context()
    _watch_popens()
    # What IPython does once, it does now, while the host verifies the box or nobody waits for it, and not in the first
    # cell, where it takes ten times as long as a cell.
    app.kernel.shell.run_cell("pass", silent=True)
    sock.sendall(wire.encode(Kind.READY))
    namespace = app.kernel.shell.user_ns
    contexts = app.kernel.contexts = Contexts(CONTEXT_FD, namespace)
    tools = contexts.load(_receive_end(sock, settings["frame"]))
    api = GuestApi(Connection(sock, settings["frame"], settings["message"], settings["window"]), namespace)
    given = api.names() | api.tools(tools)
    namespace.update(given)
    app.kernel.guest_api = api
    app.kernel.shell.user_ns_hidden.update(dict.fromkeys(given))
    if not settings["subprocesses"]:
        sys.addaudithook(_say_why)
    sock.sendall(wire.encode(Kind.READY))
    app.start()
    while True:  # a cell stopped its loop
        app.io_loop.start()


def _say_why(event: str, _arguments: tuple[Any, ...]) -> None:
    """Say in words what the filter would refuse without any: it is the filter that holds, whatever becomes of this."""
    if event in PROCESS_EVENTS:
        raise PermissionError(
            errno.EPERM, "this sandbox runs one process: no programs, no forks (sandbox.allow_subprocess); use threads"
        )


def _receive_end(sock: socket.socket, max_frame: int) -> int:
    decoder = wire.Decoder(max_frame, frozenset((Kind.CONTEXT_END,)))
    while data := sock.recv(1 << 16):
        for frame in decoder.feed(data):
            return int(frame.payload)
    raise SystemExit(1)


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    text = data.get("text/plain")
    return {"text/plain": cut(text, BoxShell.output_limit)} if isinstance(text, str) else {}


def _inherit_context() -> None:
    """Run threads, and what executors run, in the context they were asked for in, as Python 3.14 does with threads.

    ipykernel keeps in it which cell an output belongs to, and the functions of the box which cell makes a call; without
    it, what a thread of an earlier cell prints and asks would be the open cell's.
    """
    start, submit, start_raw = Thread.start, ThreadPoolExecutor.submit, _thread.start_new_thread

    def start_in_context(thread: Thread) -> None:
        run = thread.run
        thread.run = partial(copy_context().run, run)  # type: ignore[method-assign]
        start(thread)

    def submit_in_context(executor: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(executor, copy_context().run, function, *args, **kwargs)

    def start_raw_in_context(function: Any, args: Any, kwargs: Any = None, /) -> int:
        if not callable(function) or not isinstance(args, tuple):
            return start_raw(function, args)  # refuses them
        return start_raw(partial(copy_context().run, function), args, kwargs or {})

    Thread.start = start_in_context  # type: ignore[assignment, method-assign]
    _thread.start_new_thread = _thread.start_new = start_raw_in_context
    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[method-assign]
