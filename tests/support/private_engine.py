"""A Docker engine of a test's own, which may be stopped and killed: nobody else uses it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker

from orchestrator.sandbox import image
from orchestrator.sandbox.engine import Engine

START_S = 60
END_S = 30


def missing() -> str:
    """Return why none can be started here, or nothing."""
    if os.geteuid() != 0:
        return "an engine of its own takes root"
    absent = [program for program in ("dockerd", "containerd", "unshare") if shutil.which(program) is None]
    return f"there is no {' and no '.join(absent)} to start" if absent else ""


class PrivateEngine:
    """A daemon below one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; it answers afterwards."""
        below = self._folder
        # A process of ours, too: the daemon's own would die with it, and be slow to come back.
        if self._containerd is None:
            folders = ["--root", f"{below}/containerd/root", "--state", f"{below}/containerd/state"]
            self._containerd = self._run(
                "containerd", "--config", os.devnull, "--address", f"{below}/containerd.sock", *folders
            )
        options = ["--host", self._address, "--containerd", f"{below}/containerd.sock", "--pidfile", f"{below}/pid"]
        options += ["--data-root", f"{below}/data", "--exec-root", f"{below}/exec"]
        # In a network namespace of its own: there it may make of bridges what it will. One that is told to have none
        # removes docker0, and with it the network of the machine's own engine.
        self._dockerd = self._run("unshare", "--net", "dockerd", *options, "--bridge", "none", "--iptables=false")
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline or self._dockerd.poll() is not None:
                raise RuntimeError(f"no second engine: {Path(below, 'log').read_text('utf-8', 'replace')[-2000:]}")

    def connect(self) -> Engine:
        """Return a connection as :meth:`Engine.connect` makes it."""
        return Engine(docker.APIClient(base_url=self._address, version="auto", timeout=START_S, max_pool_size=64))

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal; after one that ends it, wait for that."""
        if self._dockerd is None:
            raise RuntimeError("it does not run")
        self._dockerd.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._dockerd.wait(END_S)
            self._dockerd = None

    def copy_image(self, source: Engine) -> None:
        """Take over the sandbox image of another engine; some 200 MB, which nobody compresses."""
        engine = self.connect()
        try:
            for _ in engine._api.load_image(source._api.get_image(image.find(source).id)):  # type: ignore[no-untyped-call]
                pass
        finally:
            engine.close()

    def end(self) -> None:
        """End it, and with it its containers."""
        if self._dockerd is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        if self._containerd is not None:
            self._containerd.kill()
            self._containerd.wait(END_S)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with Path(self._folder, "log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def _address(self) -> str:
        return f"unix://{self._folder}/socket"

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{self._folder}/socket")
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return probe.recv(100).split()[1:2] == [b"200"]
        return False


@contextmanager
def private_engine(source: Engine) -> Iterator[PrivateEngine]:
    """Run a daemon with the sandbox image of ``source``; all it has lies in memory, and goes with it."""
    with tempfile.TemporaryDirectory(prefix="rlm-sandbox-engine-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder], check=True)  # noqa: S607
        engine = PrivateEngine(folder)
        try:
            engine.start()
            engine.copy_image(source)
            yield engine
        finally:
            engine.end()
            subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607
