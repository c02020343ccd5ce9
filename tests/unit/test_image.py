from __future__ import annotations

import re
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from orchestrator import bundle
from orchestrator.errors import ImageError
from orchestrator.sandbox import image
from orchestrator.sandbox.engine import Engine, EngineInfo, ImageInfo
from sandbox_image.wire import PROTOCOL_VERSION

LOCK = "nothing==1 \\\n    --hash=sha256:" + "0" * 64 + "\n"


class ImagesOnly(Engine):
    """An engine that holds images in memory and keeps what it was asked to build."""

    def __init__(self, *, registry: bool = False, architecture: str = "x86_64") -> None:
        self.registry = registry
        self.architecture = architecture
        self.held: dict[str, ImageInfo] = {}
        self.tags: dict[str, str] = {}
        self.pulled: list[str] = []
        self.contexts: list[bytes] = []
        self.build_args: dict[str, str] = {}
        self.in_use: set[str] = set()

    def info(self) -> EngineInfo:
        return EngineInfo("", "", "", "", "", (), (), "", self.architecture, "")

    def hold(self, tag: str, **labels: str) -> str:
        name = f"sha256:{len(self.held)}{tag.partition(':')[0]}"
        self.held = {name: ImageInfo(name, labels), **self.held}
        self.tags[tag] = name
        return name

    def images(self, label: str) -> list[ImageInfo]:
        key, _, value = label.partition("=")
        return [info for info in self.held.values() if key in info.labels and value in ("", info.labels[key])]

    def image(self, reference: str) -> ImageInfo | None:
        return self.held.get(self.tags.get(reference, reference))

    def pull(self, reference: str, timeout_s: float) -> bool:
        assert timeout_s > 0
        self.pulled.append(reference)
        if self.registry:
            self.hold(reference)
        return self.registry

    def import_rootfs(self, tar: Path, tag: str) -> str:
        assert tar.is_file()
        return self.hold(tag)

    def build(self, context: BinaryIO, *, build_args: dict[str, str], labels: dict[str, str], tag: str) -> str:
        self.contexts.append(context.read())
        self.build_args = build_args
        self.hold("root", **{image.ROOT_LABEL: build_args["ROOT"]})
        return self.hold(tag, **labels)

    def remove_image(self, image: str) -> None:
        if image not in self.in_use:
            self.held.pop(image, None)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sources of an image, and empty folders for the cache and for programs."""
    package = tmp_path / "sandbox_image"
    package.mkdir()
    (package / "requirements.lock").write_text(LOCK)
    (package / "supervisor.py").write_text("run = 1\n")
    (package / "PROTOCOL.md").write_text("prose\n")
    (tmp_path / "Dockerfile.sandbox").write_text("FROM scratch\n")
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(image, "_package", lambda: package)
    monkeypatch.setattr(bundle, "path", lambda relative: tmp_path / relative)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return package


@pytest.fixture
def program(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a shell script in the place of mmdebstrap or of this interpreter, which runs pip; return where it logs to."""

    def put(name: str, script: str) -> Path:
        path = sources.parent / "bin" / name
        log = path.with_suffix(".log")
        path.write_text(f'#!/bin/sh\necho "$*" >> {log}\nfor last; do :; done\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        if name == "python":
            monkeypatch.setattr(sys, "executable", str(path))
        return log

    put("python", 'mkdir "${last#--dest=}"; echo wheel > "${last#--dest=}/nothing-1.whl"')
    put("mmdebstrap", 'echo root > "$last"')
    return put


@pytest.fixture
def report() -> list[str]:
    return []


def test_content_hash_is_the_same_for_the_same_sources(sources: Path) -> None:
    assert image.content_hash() == image.content_hash()


@pytest.mark.parametrize(
    "name", ["Dockerfile.sandbox", "sandbox_image/requirements.lock", "sandbox_image/supervisor.py"]
)
def test_content_hash_follows_every_file_that_goes_in(sources: Path, name: str) -> None:
    before = image.content_hash()
    with (sources.parent / name).open("a") as file:
        file.write("# more\n")
    assert image.content_hash() != before


def test_content_hash_ignores_files_that_do_not_go_in(sources: Path) -> None:
    before = image.content_hash()
    (sources / "PROTOCOL.md").write_text("other prose\n")
    assert image.content_hash() == before


def test_a_file_moved_to_another_name_changes_the_content_hash(sources: Path) -> None:
    before = image.content_hash()
    (sources / "supervisor.py").rename(sources / "visor.py")
    assert image.content_hash() != before


def test_find_without_an_image_names_the_command_that_builds_it(sources: Path) -> None:
    with pytest.raises(ImageError, match=r"is not built: run `rlm-sandbox image build`"):
        image.find(ImagesOnly())


def test_find_says_when_there_is_only_an_image_of_other_sources(sources: Path) -> None:
    engine = ImagesOnly()
    engine.hold("mine:1", **{image.CONTENT_LABEL: "other", image.PROTOCOL_LABEL: str(PROTOCOL_VERSION)})
    with pytest.raises(ImageError, match="other sources"):
        image.find(engine)


def test_find_returns_the_image_of_these_sources(sources: Path) -> None:
    engine = ImagesOnly()
    content = image.content_hash()
    name = engine.hold("mine:1", **{image.CONTENT_LABEL: content, image.PROTOCOL_LABEL: str(PROTOCOL_VERSION)})
    assert image.find(engine) == image.ImageRef(name, content, PROTOCOL_VERSION)
    # By its tag it is found sooner, unless that stands on another image by now.
    engine.tags[image.tag(content)] = name
    engine.images = lambda label: pytest.fail(f"searched for {label}")  # type: ignore[method-assign]
    assert image.find(engine).id == name
    del engine.images
    engine.tags[image.tag(content)] = engine.hold("somebody-elses")
    assert image.find(engine).id == name


def test_find_by_reference_that_the_engine_does_not_have_names_it(sources: Path) -> None:
    with pytest.raises(ImageError, match=r"no image 'mine:1'.*sandbox\.image"):
        image.find(ImagesOnly(), "mine:1")


@pytest.mark.parametrize(("labels", "said"), [({}, "none of this project's"), ({image.PROTOCOL_LABEL: "x"}, "none of")])
def test_an_image_without_a_protocol_label_is_refused(sources: Path, labels: dict[str, str], said: str) -> None:
    engine = ImagesOnly()
    engine.hold("mine:1", **labels)
    with pytest.raises(ImageError, match=said):
        image.find(engine, "mine:1")


def test_an_image_of_another_protocol_version_is_refused_with_both_versions(sources: Path) -> None:
    engine = ImagesOnly()
    other = PROTOCOL_VERSION + 1
    engine.hold("mine:1", **{image.PROTOCOL_LABEL: str(other)})
    with pytest.raises(ImageError, match=f"version {other} of the wire and this host version {PROTOCOL_VERSION}"):
        image.find(engine, "mine:1")


def test_build_pulls_the_official_base_where_a_registry_answers(
    program: Callable[[str, str], Path], report: list[str]
) -> None:
    engine = ImagesOnly(registry=True)
    log = program("mmdebstrap", "exit 1")
    built = image.build(engine, report=report.append)
    assert image.find(engine) == built
    assert engine.build_args["BASE_IMAGE"] == image.OFFICIAL_BASE
    assert not log.exists()


def test_build_makes_the_base_from_debian_packages_where_no_registry_answers(
    program: Callable[[str, str], Path], report: list[str]
) -> None:
    engine = ImagesOnly()
    image.build(engine, report=report.append)
    assert engine.pulled == [image.OFFICIAL_BASE]
    assert engine.build_args["BASE_IMAGE"] == image.DEBIAN_TAG
    assert any("Debian" in line for line in report)


def test_build_does_nothing_when_the_image_is_there(program: Callable[[str, str], Path], report: list[str]) -> None:
    engine = ImagesOnly()
    built = image.build(engine, report=report.append)
    report.clear()
    assert image.build(engine, report=report.append) == built
    assert len(engine.contexts) == 1
    assert report == []


def test_build_needs_no_cache_folder_when_the_image_is_there(
    program: Callable[[str, str], Path], report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ImagesOnly()
    built = image.build(engine, report=report.append)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert image.build(engine, report=report.append) == built


def test_a_build_that_waited_for_another_takes_the_image_that_one_built(
    program: Callable[[str, str], Path], report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ImagesOnly()

    @contextmanager
    def locked_until_another_has_built(_folder: Path) -> Iterator[None]:
        labels = {image.CONTENT_LABEL: image.content_hash(), image.PROTOCOL_LABEL: str(PROTOCOL_VERSION)}
        engine.hold("mine:1", **labels)
        yield

    monkeypatch.setattr(image, "_locked", locked_until_another_has_built)
    assert image.build(engine, report=report.append) == image.find(engine)
    assert engine.contexts == []


def test_build_after_a_change_of_sources_fetches_nothing_again(
    program: Callable[[str, str], Path], sources: Path, report: list[str]
) -> None:
    engine = ImagesOnly()
    log = program("mmdebstrap", 'echo root > "$last"')
    image.build(engine, report=report.append)
    (sources / "supervisor.py").write_text("run = 2\n")
    image.build(engine, report=report.append)
    assert len(engine.contexts) == 2
    assert len(engine.pulled) == 1
    assert len(log.read_text().splitlines()) == 1
    assert len(log.with_name("python.log").read_text().splitlines()) == 1


def test_forced_build_makes_base_and_image_anew_and_removes_the_previous_ones(
    program: Callable[[str, str], Path], report: list[str]
) -> None:
    engine = ImagesOnly()
    first = image.build(engine, report=report.append)
    second = image.build(engine, force=True, report=report.append)
    assert second.id != first.id
    assert second.content == first.content
    assert len(engine.pulled) == 2
    # The image, its base, and the build's first stage, which is its cache.
    assert len(engine.held) == 3


def test_build_keeps_images_of_other_sources_and_removes_the_oldest_of_many_but_not_one_in_use(
    program: Callable[[str, str], Path], sources: Path, report: list[str]
) -> None:
    engine = ImagesOnly()
    built = []
    for number in range(image.KEPT + 3):
        (sources / "supervisor.py").write_text(f"run = {number}\n")
        built.append(image.build(engine, report=report.append).id)
        engine.in_use.add(built[0])
    assert [name in engine.held for name in built] == [True, False, *[True] * (image.KEPT + 1)]


def test_build_removes_no_image_that_was_built_today(program: Callable[[str, str], Path], report: list[str]) -> None:
    engine, now = ImagesOnly(), time.time()
    for number in range(image.KEPT + 2):
        name = engine.hold(f"other{number}:1", **{image.CONTENT_LABEL: str(number)})
        engine.held[name] = ImageInfo(name, engine.held[name].labels, now - (number == 0) * 2 * image.YOUNG_S)
    image.build(engine, report=report.append)
    left = {info.labels[image.CONTENT_LABEL] for info in engine.images(image.CONTENT_LABEL)}
    assert left == {image.content_hash(), *map(str, range(1, image.KEPT + 2))}


def test_build_context_holds_only_what_the_image_needs(
    program: Callable[[str, str], Path], report: list[str], tmp_path: Path
) -> None:
    engine = ImagesOnly()
    image.build(engine, report=report.append)
    (tmp_path / "context.tar").write_bytes(engine.contexts[0])
    with tarfile.open(tmp_path / "context.tar") as tar:
        names = tar.getnames()
    assert names == [
        "Dockerfile.sandbox",
        "requirements.lock",
        "sandbox_image/supervisor.py",
        "wheels/nothing-1.whl",
    ]


def test_build_context_of_the_same_sources_is_the_same_to_the_byte(
    program: Callable[[str, str], Path], report: list[str]
) -> None:
    engine = ImagesOnly()
    image.build(engine, report=report.append)
    image.build(engine, force=True, report=report.append)
    assert engine.contexts[0] == engine.contexts[1]


def test_without_registry_and_mmdebstrap_the_error_says_what_to_install(
    program: Callable[[str, str], Path], report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImageError, match="apt-get install mmdebstrap"):
        image.build(ImagesOnly(), report=report.append)


def test_a_base_for_a_foreign_architecture_is_refused_by_name(
    program: Callable[[str, str], Path], report: list[str]
) -> None:
    with pytest.raises(ImageError, match="a base for aarch64 cannot be made on x86_64"):
        image.build(ImagesOnly(architecture="aarch64"), report=report.append)


def test_wheels_are_asked_for_by_the_architecture_of_the_engine_and_by_hash(
    program: Callable[[str, str], Path], report: list[str], sources: Path
) -> None:
    image.build(ImagesOnly(registry=True, architecture="aarch64"), report=report.append)
    asked = (sources.parent / "bin" / "python.log").read_text().split()
    assert "--require-hashes" in asked
    assert "--only-binary=:all:" in asked
    assert "--platform=manylinux_2_28_aarch64" in asked
    assert not any(word.endswith("x86_64") for word in asked)


def test_wheels_that_cannot_be_fetched_leave_nothing_and_name_the_cause(
    program: Callable[[str, str], Path], report: list[str], tmp_path: Path
) -> None:
    program("python", 'echo "no matching hash" >&2; exit 1')
    with pytest.raises(ImageError, match="could not fetch the image's wheels: no matching hash"):
        image.build(ImagesOnly(), report=report.append)
    assert list((tmp_path / "cache" / "rlm-sandbox" / "wheels").iterdir()) == []


def test_a_root_file_system_that_cannot_be_made_names_the_cause(
    program: Callable[[str, str], Path], report: list[str]
) -> None:
    program("mmdebstrap", 'printf "I: setting up\\nE: mirror is down\\nI: removing it\\n" >&2; exit 25')
    with pytest.raises(ImageError, match="could not make a Debian root file system: E: mirror is down"):
        image.build(ImagesOnly(), report=report.append)


def test_a_program_that_never_ends_is_given_up_in_time(
    program: Callable[[str, str], Path], report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "DEBIAN_TIMEOUT_S", 0.2)
    program("mmdebstrap", "exec sleep 60")
    with pytest.raises(ImageError, match=r"could not make a Debian root file system within 0\.2 s"):
        image.build(ImagesOnly(), report=report.append)


def test_a_cache_folder_that_cannot_be_made_is_named_with_the_way_out(
    program: Callable[[str, str], Path], report: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ImageError, match="set XDG_CACHE_HOME"):
        image.build(ImagesOnly(), report=report.append)


@pytest.mark.parametrize("lock", [bundle.path("sandbox_image/requirements.lock"), bundle.path(".ci/requirements.lock")])
def test_every_locked_requirement_is_an_exact_version_with_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9-]+==[0-9][^ ]*( ; .*)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\\n|$))+\Z", requirement)


def test_dockerfile_starts_the_supervisor_alone_as_the_fixed_user() -> None:
    lines = bundle.path("Dockerfile.sandbox").read_text().splitlines()
    assert lines[-1] == 'ENTRYPOINT ["/opt/box/python", "-I", "-B", "-u", "/opt/box/sandbox_image/supervisor.py"]'
    assert "USER 64000:64000" in lines
    assert "ARG BASE_IMAGE" in lines
    assert not any(line.startswith(("ADD", "ENV", "VOLUME", "EXPOSE")) for line in lines)
