"""Secrets planted on the host, and a watch over every byte between the host and its boxes for one of them.

A canary is random and of one shape (:data:`SHAPE`), so that a cell can look for canaries without holding one. The watch
sees what crosses the stream: out of a box everything; into it all but cells and contexts, which tests write themselves.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

from orchestrator import bundle
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.base import Model
from orchestrator.models.spec import open_model
from orchestrator.sandbox.attach import AttachStream
from sandbox_image.wire import Kind

PREFIX, DIGITS = "rlmcanary", 24
# For cells: does not match itself.
SHAPE = r"[r]lmcanary[0-9a-f]{24}"
_LENGTH = len(PREFIX) + DIGITS
_OURS = frozenset((Kind.KERNEL, Kind.CONTEXT, Kind.CONTEXT_END))
ROOTS_HOME = Path("/root")


def new() -> str:
    """Return a canary."""
    return PREFIX + secrets.token_hex(DIGITS // 2)


class Canaries:
    """What must not be seen, and where each came from.

    Attributes:
        places: where each secret or fact of the host was put, by itself.
        model: a client that holds a key and a model's name, alive as long as this is.
        seen: what the watch has found since it was last asked: direction and place.
    """

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self.model: Model | None = None
        self.seen: list[str] = []
        self._ends: WeakKeyDictionary[AttachStream, bytes] = WeakKeyDictionary()

    def plant(self, where: str) -> str:
        """Return a new canary that is put at ``where``."""
        canary = new()
        self.places[canary] = where
        return canary

    def find(self, data: bytes | str) -> set[str]:
        """Return the places of all secrets and facts in ``data``."""
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        return {where for secret, where in self.places.items() if secret.encode() in raw}

    def take(self) -> list[str]:
        """Return what the watch has found, and forget it."""
        found, self.seen = self.seen, []
        return found

    def out_of_a_box(self, stream: AttachStream, data: bytes) -> None:
        """Look at what came; a secret may lie across two pieces of it."""
        longest = max(map(len, self.places), default=1)
        piece = self._ends.get(stream, b"") + data
        self.seen += [f"out of a box: {where}" for where in sorted(self.find(piece))]
        self._ends[stream] = piece[-longest + 1 :]

    def into_a_box(self, data: bytes) -> None:
        """Look at a frame: the mux sends each whole."""
        if data[4] not in _OURS:
            self.seen += [f"into a box: {where}" for where in sorted(self.find(data))]


@contextmanager
def planted(tmp_path: Path) -> Iterator[Canaries]:
    """Plant canaries in the environment, memory, home, current folder and root's home, and watch the boxes' streams."""
    canaries = Canaries()
    home = tmp_path / canaries.plant("the path of the home")
    work = tmp_path / canaries.plant("the path of the current folder")
    for folder, what in ((home, "a file of the home"), (work, "a file of the current folder")):
        folder.mkdir()
        (folder / "notes.txt").write_text(canaries.plant(what), "ascii")
    (home / ".netrc").write_text(f"machine host login me password {canaries.plant('.netrc of the home')}\n", "ascii")
    canaries.places[str(bundle.path(".").resolve())] = "the path of this project"
    roots = ROOTS_HOME / f".{new()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.chdir(work)
        patch.setenv("ANTHROPIC_API_KEY", canaries.plant("the key in the environment"))
        patch.setenv("OPENAI_API_KEY", canaries.plant("another key in the environment"))
        patch.setenv("DEPLOYMENT_PASSWORD", canaries.plant("a password in the environment"))
        for name in ("USER", "LOGNAME"):
            patch.setenv(name, canaries.plant("the user's name"))
        canaries.model = open_model(f"anthropic:{canaries.plant('the name of a model')}")
        assert isinstance(canaries.model, AnthropicModel)
        with suppress(PermissionError):  # only root may
            roots.write_text(canaries.plant("a file of root's home"), "ascii")
        _watch(canaries, patch)
        try:
            yield canaries
        finally:
            roots.unlink(missing_ok=True)


def _watch(canaries: Canaries, patch: pytest.MonkeyPatch) -> None:
    receive, send = AttachStream.receive, AttachStream.send

    async def watched_receive(stream: AttachStream) -> bytes:
        data = await receive(stream)
        canaries.out_of_a_box(stream, data)
        return data

    async def watched_send(stream: AttachStream, data: bytes) -> None:
        canaries.into_a_box(data)
        await send(stream, data)

    patch.setattr(AttachStream, "receive", watched_receive)
    patch.setattr(AttachStream, "send", watched_send)


# A cell: every canary in what the box can see, as a sorted list. Where it is told which it looked for, it holds none.
LOOK = f"""
import glob, os, re
_shape = re.compile({SHAPE!r}.encode())
def _files():
    for pattern in ("/proc/*", "/proc/sys/*/*", "/proc/[0-9]*/*", "/proc/[0-9]*/task/*/*", "/proc/net/*", "/etc/*",
                    "/sys/kernel/*", "/sys/class/*/*/*", "/tmp/*", "/run/box/*", "/dev/shm/*", "/work/*", "/root/*",
                    "/home/*", "/home/*/*"):
        yield from glob.glob(pattern, include_hidden=True)
_never = re.compile(r"/(mem|kmsg|kcore|pagemap|kpage\\w+|clear_refs|map_files|fd|fdinfo|cwd|root|exe)$")
def _read(path, most=1 << 20):
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return file.read(most) or b""
    except OSError:
        return b""
def _memory():
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if "r" not in rights or line.rstrip().endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            start, end = (int(word, 16) for word in span.split("-"))
            for at in range(start, end, 1 << 22):
                try:
                    memory.seek(at)
                    yield memory.read(min(end - at, (1 << 22) + {_LENGTH}))
                except (OSError, ValueError, OverflowError):
                    pass
def look(memory=True):
    found, files, scanned = set(), 0, 0
    for path in _files():
        if not _never.search(path):
            files += 1
            found.update(map(bytes.decode, _shape.findall(path.encode() + b" " + _read(path))))
    found.update(map(bytes.decode, _shape.findall(repr((dict(os.environ), os.uname(), os.getcwd())).encode())))
    for piece in (_memory() if memory else ()):
        scanned += len(piece)
        found.update(map(bytes.decode, _shape.findall(piece)))
    return sorted(found), files, scanned
"""


def told_of_the_host() -> dict[str, str]:
    """Return the host's name and user where they are telling enough to be looked for."""
    import getpass

    facts = {os.uname().nodename: "the host's name", getpass.getuser(): "the user's name"}
    return {fact: what for fact, what in facts.items() if not re.fullmatch(r".{0,4}|root|sandbox|localhost", fact)}
