"""The image that boxes are made of: what goes into it, whether it is there, and how it is built.

An image carries two labels: the hash of everything it was built from, by which a checkout or an installed package finds
the one that is its own, and the version of the wire it speaks, without which no host talks to it. It is used by id.

Nothing is fetched during ``docker build``. Before it, the base comes from a registry by digest or, where none answers,
from Debian's packages; the libraries come as wheels whose hashes are pinned and checked here and again in the build.
All functions block; async callers run them on worker threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import sandbox_image
from orchestrator import bundle
from orchestrator.errors import ImageError
from orchestrator.sandbox.engine import Engine, ImageInfo
from orchestrator.text import one_line
from sandbox_image.wire import PROTOCOL_VERSION

PROTOCOL_LABEL = "io.rlm-sandbox.protocol"
CONTENT_LABEL = "io.rlm-sandbox.content"
BASE_LABEL = "io.rlm-sandbox.base"
ROOT_LABEL = "io.rlm-sandbox.root"
REPOSITORY = "rlm-sandbox"
# Images of other sources that stay: other checkouts and versions that use the same engine have theirs, and all but a
# few megabytes of them is shared. The younger ones stay however many they are: somebody works with them.
KEPT = 8
YOUNG_S = 86_400

Report = Callable[[str], None]

OFFICIAL_BASE = "python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285"
# The same Debian release and the same Python as the official base, and no more than CPython and the wheels link
# against. A stable release named alone brings its security updates along, from the mirror mmdebstrap knows.
DEBIAN_BASE = (
    "--variant=essential",
    "--include=python3-minimal,libpython3-stdlib,libstdc++6",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "trixie",
)
DEBIAN_TAG = "rlm-sandbox-base:" + hashlib.sha256("\0".join(DEBIAN_BASE).encode()).hexdigest()[:12]

# Seconds. A registry that is cut off may swallow packets instead of refusing; 45 MB take less on any usable line.
PULL_TIMEOUT_S = 90
DEBIAN_TIMEOUT_S = 900  # measured: 14 s here, 60 s on a slow mirror
WHEELS_TIMEOUT_S = 600  # measured: 4 s for 38 MB

# The C library both bases have is younger than any of these; wheels name the oldest they run on.
_GLIBC_MINORS = range(41, 4, -1)
_LEGACY_PLATFORMS = ("manylinux2014", "manylinux2010", "manylinux1")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image fit for boxes.

    Attributes:
        id: the engine's own, a digest.
        content: hash of what it was built from.
        protocol: version of the wire its supervisor speaks.
    """

    id: str
    content: str
    protocol: int


def content_hash() -> str:
    """Return the hash over everything that goes into the image: sources, lock, Dockerfile and the bases' recipes."""
    digest = hashlib.sha256()
    for text in (OFFICIAL_BASE, *DEBIAN_BASE):
        digest.update(text.encode() + b"\0")
    for name, data in _sources():
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def tag(content: str) -> str:
    """Return the tag that the image of that content hash is given when it is built."""
    return f"{REPOSITORY}:{content[:12]}"


def find(engine: Engine, reference: str = "") -> ImageRef:
    """Return the image built from these very sources, or the one ``reference`` names; nothing is built or pulled.

    Raises:
        ImageError: there is none, or its supervisor speaks another version of the wire.
    """
    if reference:
        info = engine.image(reference)
        if info is None:
            raise ImageError(
                f"the engine has no image {reference!r}: correct sandbox.image in the policy, or leave it out"
            )
        return _checked(info)
    present = _present(engine)
    if present is None:
        older = " (there is one of other sources)" if engine.images(CONTENT_LABEL) else ""
        raise ImageError(f"the sandbox image is not built{older}: run `rlm-sandbox image build`")
    return present


def build(engine: Engine, *, force: bool = False, report: Report) -> ImageRef:
    """Build the image unless it is there already, and remove the oldest of other sources that no container uses.

    Args:
        engine: where to build.
        force: build all of it anew, the base included, and so take in the base's security updates.
        report: told, in one line each, what is being done.

    Raises:
        ImageError: something could not be fetched or built; the message says what to do about it.
    """
    if not force and (present := _present(engine)):
        return present
    try:
        with _locked(_cache()):
            # Whoever held the lock may have built it meanwhile.
            if not force and (present := _present(engine)):
                return present
            return _build(engine, force=force, report=report)
    except OSError as error:
        raise ImageError(f"the sandbox image cannot be built: {error}") from error


def _present(engine: Engine) -> ImageRef | None:
    content = content_hash()
    # By its tag, which takes the engine a tenth of the time that a search does; the tag may have been moved since.
    tagged = engine.image(tag(content))
    if tagged is not None and tagged.labels.get(CONTENT_LABEL) == content:
        return _checked(tagged)
    found = engine.images(f"{CONTENT_LABEL}={content}")
    return _checked(found[0]) if found else None


def _build(engine: Engine, *, force: bool, report: Report) -> ImageRef:
    started = time.monotonic()
    architecture = engine.info().architecture
    previous_base = engine.image(DEBIAN_TAG)
    base = _base(engine, architecture, force=force, report=report)
    wheels = _wheels(architecture, report)
    content = content_hash()
    base_info = engine.image(base)
    if base_info is None:
        raise ImageError(f"the base image {base} is gone again: run `rlm-sandbox image build` once more")
    # What the build's first stage depends on; its layers are kept as a cache while this stays the same.
    root = hashlib.sha256(b"\0".join((base_info.id.encode(), _dockerfile(), _lock()))).hexdigest()
    report("building the image")
    with tempfile.TemporaryFile() as context:
        _write_context(context, wheels)
        image = engine.build(
            context,
            build_args={"BASE_IMAGE": base, "ROOT": root},
            labels={CONTENT_LABEL: content, PROTOCOL_LABEL: str(PROTOCOL_VERSION), BASE_LABEL: base},
            tag=tag(content),
        )
    images = engine.images(CONTENT_LABEL)
    stale = [old for old in images if old.labels[CONTENT_LABEL] == content and old.id != image]
    others = [old for old in images if old.labels[CONTENT_LABEL] != content]
    stale += [old for old in others[KEPT:] if time.time() - old.created > YOUNG_S]
    # A first stage serves as a cache alone; without its own, another checkout's next build takes some seconds more.
    stale += [old for old in engine.images(ROOT_LABEL) if old.labels[ROOT_LABEL] != root]
    for old in stale:
        engine.remove_image(old.id)
    if previous_base is not None and previous_base.id != base_info.id:
        engine.remove_image(previous_base.id)
    report(f"image {image.removeprefix('sha256:')[:12]} built in {time.monotonic() - started:.0f} s")
    return ImageRef(image, content, PROTOCOL_VERSION)


def _checked(info: ImageInfo) -> ImageRef:
    try:
        protocol = int(info.labels.get(PROTOCOL_LABEL, ""))
    except ValueError:
        raise ImageError(f"image {info.id} is none of this project's: it has no label {PROTOCOL_LABEL}") from None
    if protocol != PROTOCOL_VERSION:
        raise ImageError(
            f"image {info.id} speaks version {protocol} of the wire and this host version {PROTOCOL_VERSION}: "
            "run `rlm-sandbox image build`, or leave sandbox.image out of the policy"
        )
    return ImageRef(info.id, info.labels.get(CONTENT_LABEL, ""), protocol)


# What goes in ---------------------------------------------------------------------------------------------------------


def _package() -> Path:
    return Path(sandbox_image.__file__).parent


def _lock() -> bytes:
    return (_package() / "requirements.lock").read_bytes()


def _dockerfile() -> bytes:
    return bundle.path("Dockerfile.sandbox").read_bytes()


def _sources() -> Iterator[tuple[str, bytes]]:
    """Yield the name in the build context and the bytes of every file of ours, in a fixed order."""
    yield "Dockerfile.sandbox", _dockerfile()
    yield "requirements.lock", _lock()
    for path in sorted(_package().glob("*.py")):
        yield f"sandbox_image/{path.name}", path.read_bytes()


def _write_context(target: BinaryIO, wheels: Path) -> None:
    """Write the build context; the same inputs give the same bytes, so the engine's cache can tell."""
    with tarfile.open(fileobj=target, mode="w") as tar:
        files = [*_sources(), *((f"wheels/{path.name}", path.read_bytes()) for path in sorted(wheels.glob("*.whl")))]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    target.seek(0)


# What is fetched ------------------------------------------------------------------------------------------------------


def _base(engine: Engine, architecture: str, *, force: bool, report: Report) -> str:
    """Return the reference of a base image that is on the engine now."""
    for present in (OFFICIAL_BASE, DEBIAN_TAG):
        if not force and engine.image(present) is not None:
            return present
    report(f"pulling {OFFICIAL_BASE.partition('@')[0]}")
    if engine.pull(OFFICIAL_BASE, PULL_TIMEOUT_S):
        return OFFICIAL_BASE
    report("no registry answers; making the base from Debian's packages (about half a minute)")
    if architecture != platform.machine():
        raise ImageError(f"no registry answers, and a base for {architecture} cannot be made on {platform.machine()}")
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ImageError("no registry answers, and mmdebstrap is not installed: `apt-get install mmdebstrap` as root")
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        tar = Path(folder, "root.tar")
        _run([program, *DEBIAN_BASE, str(tar)], DEBIAN_TIMEOUT_S, "make a Debian root file system")
        engine.import_rootfs(tar, DEBIAN_TAG)
    return DEBIAN_TAG


def _wheels(architecture: str, report: Report) -> Path:
    """Return the folder with every wheel of the lock for ``architecture``, fetching them the first time."""
    folder = _cache() / "wheels" / f"{hashlib.sha256(_lock()).hexdigest()[:16]}-{architecture}"
    if folder.is_dir():
        return folder
    report("fetching the image's wheels")
    folder.parent.mkdir(parents=True, exist_ok=True)
    platforms = [*(f"manylinux_2_{minor}" for minor in _GLIBC_MINORS), *_LEGACY_PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", f"--requirement={_package()}/requirements.lock"]
    command += ["--implementation=cp", "--python-version=3.13", "--abi=cp313", "--abi=abi3", "--abi=none"]
    command += [f"--platform={name}_{architecture}" for name in platforms]
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        _run([*command, f"--dest={partial}/wheels"], WHEELS_TIMEOUT_S, "fetch the image's wheels")
        # Only a complete folder ever bears the final name. Whoever tampers with it later meets the hashes again.
        Path(partial, "wheels").rename(folder)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _run(command: list[str], timeout_s: float, doing: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"could not {doing} within {timeout_s:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        # apt and mmdebstrap begin what went wrong with "E:", pip with "ERROR:"; what comes last is but the clean-up.
        telling = [line for line in lines if line.startswith("E")] or lines
        said = "; ".join(one_line(line, 300) for line in telling[:3])
        raise ImageError(f"could not {doing}: {said or f'exit code {done.returncode}'}")


def _cache() -> Path:
    """Return the folder for what is fetched, made if need be (`XDG_CACHE_HOME`, else the user's home)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    if not Path(base).is_absolute():
        base = str(Path(home if Path(home).is_absolute() else pwd.getpwuid(os.getuid()).pw_dir, ".cache"))
    folder = Path(base, "rlm-sandbox")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"the cache folder cannot be made ({error}): set XDG_CACHE_HOME to a writable one") from error
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build; the others wait, and then find the image built."""
    with (folder / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
