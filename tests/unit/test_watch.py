"""The watches of the escape suite see what they are there for."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.sandbox.attach import AttachStream
from orchestrator.sandbox.engine import Engine
from sandbox_image import wire
from sandbox_image.wire import Kind
from tests.escape.catalogue import CASES, Mark, case
from tests.support import aftermath, canaries
from tests.support.canaries import LOOK, SHAPE, Canaries


@pytest.fixture
def stream() -> Iterator[AttachStream]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield AttachStream(ours)


def roots() -> set[str]:
    """Return the canaries in root's home, as far as we may look."""
    home = canaries.ROOTS_HOME
    return {path.name for path in home.glob(f".{canaries.PREFIX}*")} if os.access(home, os.R_OK) else set()


class TestCanaries:
    def test_cells_look_for_their_shape_without_holding_it(self) -> None:
        assert re.fullmatch(SHAPE, canaries.new())
        assert re.search(SHAPE, LOOK) is None

    def test_one_is_found_across_two_pieces_of_a_stream_and_told_by_its_place(self, stream: AttachStream) -> None:
        watch = Canaries()
        secret = watch.plant("the key").encode()
        watch.out_of_a_box(stream, b"x" * 1000 + secret[:20])
        assert watch.take() == []
        watch.out_of_a_box(stream, secret[20:] + b"y" * 1000)
        assert watch.take() == ["out of a box: the key"]
        watch.out_of_a_box(stream, b"nothing more")
        assert watch.take() == []

    def test_what_is_told_inward_is_seen_but_for_what_tests_write_themselves(self) -> None:
        watch = Canaries()
        secret = watch.plant("the key").encode()
        watch.into_a_box(wire.encode(Kind.KERNEL, secret))
        watch.into_a_box(wire.encode(Kind.CONTEXT, secret))
        assert watch.take() == []
        watch.into_a_box(wire.encode(Kind.RPC, secret))
        assert watch.take() == ["into a box: the key"]

    def test_they_are_gone_when_the_block_is_left(self, tmp_path: Path) -> None:
        home, before = os.environ.get("HOME"), roots()
        with canaries.planted(tmp_path) as watch:
            assert watch.find(repr(os.environ)) >= {"the key in the environment", "the path of the home"}
            assert watch.find(Path("notes.txt").read_text("ascii")) == {"a file of the current folder"}
            planted = list(watch.places)
        assert os.environ.get("HOME") == home
        assert [secret for secret in planted if secret.startswith(canaries.PREFIX) and secret in repr(os.environ)] == []
        assert roots() <= before  # other runs may have theirs there


class TestAftermath:
    CONTAINER = "c0ffee" * 10 + "beef"

    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(aftermath, "PATIENCE_S", 0.0)
        monkeypatch.setattr(Engine, "create", lambda *_: self.CONTAINER)
        monkeypatch.chdir(tmp_path)

    def test_a_block_that_leaves_nothing_is_fine(self, tmp_path: Path) -> None:
        with aftermath.nothing_left([tmp_path]):
            Engine.create(object(), {}, "name")  # type: ignore[arg-type]

    def test_a_process_of_a_container_is_noticed(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", self.CONTAINER]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(AssertionError, match=f"a process: {process.pid}"), aftermath.nothing_left([tmp_path]):
                Engine.create(object(), {}, "name")  # type: ignore[arg-type]
            process.communicate()

    def test_a_changed_file_is_noticed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("before", "ascii")
        with pytest.raises(AssertionError, match="a file of the host was changed"), aftermath.nothing_left([tmp_path]):
            (tmp_path / "file").write_text("after", "ascii")

    def test_a_core_is_noticed(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="a core was dumped"), aftermath.nothing_left([]):
            (tmp_path / "core.123").touch()

    def test_a_descriptor_is_noticed(self, tmp_path: Path) -> None:
        opened: list[int] = []
        with pytest.raises(AssertionError, match="descriptors were left open"), aftermath.nothing_left([tmp_path]):
            opened.append(os.open(tmp_path, os.O_RDONLY))
        os.close(opened[0])


class TestMarks:
    def test_a_case_that_there_is_not_is_refused(self) -> None:
        with pytest.raises(ValueError, match="FS99"):
            case("FS99", controls="H1", alone="there is none")

    @pytest.mark.parametrize("twin", [{}, {"twin": "H1", "alone": "and a reason"}])
    def test_a_twin_or_the_reason_for_none_is_demanded(self, twin: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="twin"):
            case("FS01", controls="H1", **twin)

    def test_twins_that_no_box_is_weakened_for_are_known(self) -> None:
        assert Mark(("FS01",), ("P1",), twin=("P1",)).by_hand
        assert not Mark(("FS01",), ("H1",), twin=("H1",)).by_hand
        assert len(CASES) > 80
