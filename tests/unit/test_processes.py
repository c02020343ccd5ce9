"""What the supervisor does to the rest of its box: nothing, anywhere but in a box."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox_image import processes


@pytest.mark.parametrize(
    "end",
    [processes.kill_everyone, lambda: processes.end_others(1), lambda: processes.freeze(1, 1)],
    ids=["all", "others", "freeze"],
)
def test_nobody_is_killed_by_a_process_that_is_no_init(end: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    assert callable(end)
    with pytest.raises(RuntimeError, match="init"):
        end()


class TestEmpty:
    def test_a_folder_that_is_not_there_is_fine(self, tmp_path: Path) -> None:
        processes.empty(str(tmp_path / "none"))

    def test_everything_goes_and_what_links_point_to_stays(self, tmp_path: Path) -> None:
        outside, inside = tmp_path / "outside", tmp_path / "inside"
        (outside / "kept").mkdir(parents=True)
        (outside / "kept" / "file").write_text("x", "ascii")
        (inside / "a" / "b" / "c").mkdir(parents=True)
        (inside / "a" / "b" / "file").write_text("x", "ascii")
        (inside / "link").symlink_to(outside)
        (inside / "a" / "up").symlink_to(outside / "kept")
        os.mkfifo(inside / "a" / "fifo")
        (inside / "a" / "b").chmod(0)
        processes.empty(str(inside))
        assert list(inside.iterdir()) == []
        assert (outside / "kept" / "file").exists()

    def test_a_folder_that_nobody_may_list_is_emptied_all_the_same(self, tmp_path: Path) -> None:
        folder = tmp_path / "scratch"
        folder.mkdir()
        (folder / "planted.py").write_text("x", "ascii")
        folder.chmod(0o300)
        processes.empty(str(folder))
        assert (folder.stat().st_mode & 0o777, list(folder.iterdir())) == (0o700, [])

    def test_no_depth_is_too_deep(self, tmp_path: Path) -> None:
        here = os.open(tmp_path, os.O_RDONLY)
        deepest = here
        for _ in range(3000):
            os.mkdir("d", dir_fd=deepest)
            deeper = os.open("d", os.O_RDONLY, dir_fd=deepest)
            os.close(deepest)
            deepest = deeper
        os.close(deepest)
        processes.empty(str(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_removed_does_not_keep_it_for_ever(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "stubborn").mkdir()
        (tmp_path / "file").write_text("x", "ascii")

        def refuse(_path: str) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "rmdir", refuse)
        processes.empty(str(tmp_path))
        assert [entry.name for entry in tmp_path.iterdir()] == ["stubborn"]
