from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from orchestrator.cli.inputs import load_context
from orchestrator.errors import ContextError
from tests.support.cli import Stdin, write


def test_one_file_is_a_text_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffone\r\ntwo\0é\n".encode())
    assert load_context([str(tmp_path / "a")], 1).context == "one\r\ntwo\0é\n"


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_stdin_is_a_text(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin("from a pipe é".encode()))
    assert load_context(arguments, 1).context == "from a pipe é"


def test_a_terminal_is_not_waited_for_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"typed", tty=True))
    with pytest.raises(ContextError, match="nothing to read"):
        load_context([], 1)
    assert load_context(["-"], 1).context == "typed"


def test_a_folder_is_documents_by_relative_name_in_order(tmp_path: Path) -> None:
    write(tmp_path, b_dot_txt="B", sub__c_dot_txt="C", a_dot_txt="A")
    write(tmp_path, _dot_git__config="no", _dot_hidden="no")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    loaded = load_context([str(tmp_path)], 1)
    assert isinstance(loaded.context, dict)
    assert list(loaded.context.items()) == [("a.txt", "A"), ("b.txt", "B"), ("sub/c.txt", "C")]
    assert loaded.notes() == []


def test_several_arguments_are_named_below_what_they_have_in_common(tmp_path: Path) -> None:
    write(tmp_path, x__a_dot_txt="A", x__y__b_dot_txt="B", z__c_dot_txt="C")
    arguments = [str(tmp_path / "z" / "c.txt"), str(tmp_path / "x"), str(tmp_path / "x" / "a.txt")]
    assert load_context(arguments, 1).context == {"x/a.txt": "A", "x/y/b.txt": "B", "z/c.txt": "C"}


@pytest.mark.parametrize("files", [{}, {"nul": b"\0"}])
def test_a_folder_without_text_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ContextError, match="no text in"):
        load_context([str(write(tmp_path, **files))], 1)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"text" * 4096)
            file.truncate(600 << 30)  # sparse: reading it would take all memory
    with pytest.raises(ContextError, match=r"614,400\.0 MiB is more than the 512\.0 MiB the policy allows"):
        load_context([str(tmp_path / "a")], 512)
    with pytest.raises(ContextError, match=r"2 documents together: 1,228,800\.0 MiB is more than"):
        load_context([str(tmp_path)], 512)


def test_a_size_just_above_the_limit_is_told_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ContextError, match=r"a: 1,048,577 bytes is more than the 1,048,576 bytes the policy allows"):
        load_context([str(tmp_path / "a")], 1)


def test_a_single_document_is_counted_as_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (2 << 20))
    with pytest.raises(ContextError, match=r"1 document together: 2\.0 MiB is more than"):
        load_context([str(tmp_path)], 1)


def test_a_file_that_is_named_and_no_text_is_refused_and_one_that_is_found_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, a="A", folder__b=b"\xff", folder__c="C\0")
    named, folder = str(tmp_path / "a"), tmp_path / "folder"
    assert load_context([named, str(folder)], 1).skipped == ["folder/b", "folder/c"]
    with pytest.raises(ContextError, match=r"folder/b is not UTF-8 text \(byte 0\)"):
        load_context([named, str(folder / "b")], 1)
    with pytest.raises(ContextError, match="is not UTF-8 text"):
        load_context([str(folder), str(folder / "b")], 1)
    assert load_context([named, str(folder / "c")], 1).context == {"a": "A", "folder/c": "C\0"}


def test_a_hidden_file_or_a_link_that_is_named_is_read(tmp_path: Path) -> None:
    write(tmp_path, _dot_hidden="H", a="A")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert load_context([str(tmp_path / ".hidden"), str(tmp_path / "link")], 1).context == {".hidden": "H", "link": "A"}


def test_pipes_among_the_arguments_are_read_and_count_against_the_limit(tmp_path: Path) -> None:
    data = [b"x" * (3 << 10), b"y" * 5]
    pipes = [os.pipe() for _ in data]
    for (_, writing), piece in zip(pipes, data, strict=True):
        os.write(writing, piece)
        os.close(writing)
    names = [f"/dev/fd/{reading}" for reading, _ in pipes]
    try:
        assert set(load_context(names, 1).context.values()) == {text.decode() for text in data}  # type: ignore[union-attr]
    finally:
        for reading, _ in pipes:
            os.close(reading)


def test_a_context_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20))
    assert len(load_context([str(path)], 1).context) == 1 << 20
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ContextError, match=r"limits\.context_mb"):
        load_context([str(path)], 1)
    monkeypatch.setattr(sys, "stdin", Stdin(b"x" * ((1 << 20) + 1)))
    with pytest.raises(ContextError, match=r"stdin holds more than 1\.0 MiB"):
        load_context(["-"], 1)


def test_a_name_that_is_no_utf8_can_still_be_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("x")
    assert load_context([str(tmp_path)], 1).context == {"caf\\xe9": "x"}
