"""What the peers need: an environment each, made on demand in the cache folder, and an image for their containers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.peers.systems import System

HERE = Path(__file__).resolve().parent
_SECONDS = 1800


class UnavailableError(Exception):
    """A peer cannot be installed or run here; the message says why, in one line."""


def python(system: System) -> Path:
    """Return the interpreter that drives ``system``; its environment is made the first time.

    Raises:
        UnavailableError: it cannot be made.
    """
    if not system.requirements:
        return Path(sys.executable)
    wanted = HERE / "requirements" / f"{system.requirements}.txt"
    folder = cache() / f"{system.requirements}-{_digest(wanted.read_bytes(), sys.version.encode())}"
    if not (folder / "complete").is_file():
        _say(f"installing {system.requirements} and what it needs")
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([f"{folder}/bin/python", "-m", "pip", "install", "-qq", "--no-input", f"--requirement={wanted}"])
        (folder / "complete").touch()
    return folder / "bin" / "python"


def image(base: str) -> str:
    """Return the tag of the image in which peers run their cells, built upon ``base`` the first time.

    Raises:
        UnavailableError: it cannot be built.
    """
    wanted = HERE / "requirements" / "image.txt"
    files = [HERE / "Dockerfile", HERE / "ensurepip.py"]
    tag = f"rlm-sandbox-peers:{_digest(base.encode(), *(path.read_bytes() for path in (wanted, *files)))}"
    if _succeeds(["docker", "image", "inspect", tag]):
        return tag
    _say("building the peers' image")
    with tempfile.TemporaryDirectory() as context:
        for path in files:
            shutil.copy(path, context)
        fetch = [sys.executable, "-m", "pip", "download", "-qq", "--no-input", "--no-deps", "--only-binary=:all:"]
        _run([*fetch, "--platform=any", f"--requirement={wanted}", f"--dest={context}/wheels"])
        _run(["docker", "build", "--quiet", f"--build-arg=BASE_IMAGE={base}", f"--tag={tag}", context])
    return tag


def pinned(name: str) -> str:
    """Return the version of a peer that its requirements ask for."""
    lines = (HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.partition("==")[0] == name)


def cache() -> Path:
    """Return the folder where environments are kept, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "rlm-sandbox-peers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UnavailableError(f"{' '.join(command[:4])} …: {lines[-1] if lines else f'exit code {done.returncode}'}")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
