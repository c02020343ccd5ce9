"""A journal that goes on, and the hash chain that shows whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import JournalError
from orchestrator.events import Envelope, Event, FinalSet
from orchestrator.recording import Recorder
from orchestrator.trajectory.journal import JournalWriter, read

LONG = "a long text, " * 200


def final(answer: str) -> FinalSet:
    return FinalSet(cell=1, answer=answer)


def write(folder: Path, *happened: Event, run: str = "r1") -> Path:
    with JournalWriter.create(folder, run) as writer:
        recorder = Recorder(run, None, (writer,))
        for event in happened:
            recorder.emit(event)
    return writer.path


def go_on(path: Path, *happened: Event) -> None:
    with JournalWriter.append(path) as writer:
        for event in happened:
            writer(Envelope("r1", None, writer.next_seq, 1.0, 2.0, event))


def answers(path: Path) -> list[str]:
    return [record.fields["answer"] for record in read(path)]


def unchained(path: Path) -> None:
    """Make a journal what it would have been before there was a chain."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        line.pop("chain", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_journal_that_goes_on_is_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    told = [final("one"), final(LONG), final("two"), final(LONG), final(LONG + "!")]
    for stop in range(1, len(told)):
        envelopes = [Envelope("r1", None, seq, 1.0, 2.0, event) for seq, event in enumerate(told)]
        whole, parts = tmp_path / f"whole{stop}", tmp_path / f"parts{stop}"
        with JournalWriter.create(whole, "r1") as writer:
            for envelope in envelopes:
                writer(envelope)
        with JournalWriter.create(parts, "r1") as writer:
            for envelope in envelopes[:stop]:
                writer(envelope)
        with JournalWriter.append(writer.path) as more:
            assert (more.next_seq, more.head) == (stop, writer.head)
            for envelope in envelopes[stop:]:
                more(envelope)
        assert writer.path.read_bytes() == (whole / "r1.jsonl").read_bytes()


def test_a_journal_cut_anywhere_goes_on_behind_its_last_whole_event(tmp_path: Path) -> None:
    path = write(tmp_path, final("one"), final(LONG), final("three"))
    whole, told = path.read_bytes(), answers(path)
    first = whole.index(b"\n") + 1
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    near = {end + by for end in ends for by in (-2, -1, 0, 1)}
    for cut in sorted(near.union(range(first, len(whole), 97)) & set(range(first, len(whole)))):
        path.write_bytes(whole[:cut])
        before = len(list(read(path)))
        go_on(path, final(LONG))
        assert answers(path) == [*told[:before], LONG]
        assert [record.seq for record in read(path)] == list(range(before + 1))
        assert path.read_bytes().count(LONG.encode()) == 1
        JournalWriter.append(path).close()  # The chain holds.


def test_only_what_is_new_is_counted_as_written(tmp_path: Path) -> None:
    path, sizes = write(tmp_path, final(LONG)), list[int]()
    before = path.stat().st_size
    with JournalWriter.append(path, sizes.append) as writer:
        assert writer.size == before
        writer(Envelope("r1", None, 1, 1.0, 2.0, final("new")))
        assert writer.size == path.stat().st_size == before + sum(sizes)


def test_a_run_that_goes_on_cannot_be_carried_on_beside_itself(tmp_path: Path) -> None:
    with JournalWriter.create(tmp_path, "r1") as writer:
        Recorder("r1", None, (writer,)).emit(final("first"))
        with pytest.raises(JournalError, match=r"r1\.jsonl: another process or run is writing it"):
            JournalWriter.append(writer.path)
    with (
        JournalWriter.append(writer.path),
        pytest.raises(JournalError, match="another process or run is writing it"),
    ):
        JournalWriter.append(writer.path)
    assert answers(writer.path) == ["first"]


def test_another_process_that_died_holds_no_lock(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from orchestrator.trajectory.journal import JournalWriter;"
        "JournalWriter.append(pathlib.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    path = write(tmp_path, final("first"))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(JournalError, match="another process or run is writing it"):
            JournalWriter.append(path)
        other.kill()
    go_on(path, final("second"))
    assert answers(path) == ["first", "second"]


def test_a_journal_without_a_chain_gets_one_from_there_on(tmp_path: Path) -> None:
    path = write(tmp_path, final("old"), final(LONG))
    unchained(path)
    go_on(path, final(LONG), final("new"))
    assert answers(path) == ["old", LONG, LONG, "new"]
    assert [bool(record.chain) for record in read(path)] == [False, False, True, True]
    JournalWriter.append(path).close()
    # It covers what stands before it, too.
    path.write_bytes(path.read_bytes().replace(b'"old"', b'"odd"'))
    with pytest.raises(JournalError, match="line 4 or one before it was changed"):
        JournalWriter.append(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no event"),
        (b'{"v":1,"kind":"blo', "holds no event"),
        (b"no journal\n", "line 1 is not JSON"),
        (b'{"v":2,"kind":"x"}\n', "is a journal of format 2"),
    ],
)
def test_what_cannot_be_carried_on_is_refused_and_left_as_it_was(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "r1.jsonl"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=complaint):
        JournalWriter.append(path)
    assert path.read_bytes() == content


def test_a_journal_that_is_not_there_or_not_ours_to_write_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot open the journal .*none\.jsonl: No such file"):
        JournalWriter.append(tmp_path / "none.jsonl")
    with pytest.raises(JournalError, match=r"cannot open the journal .*: Is a directory"):
        JournalWriter.append(tmp_path)


def test_refusals_leave_no_file_open(tmp_path: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    path = write(tmp_path, final("x"))
    path.write_bytes(path.read_bytes() * 2)
    for _ in range(3):
        with pytest.raises(JournalError):
            JournalWriter.append(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


# The chain ------------------------------------------------------------------------------------------------------------


def test_the_chain_is_the_documented_hash(tmp_path: Path) -> None:
    path = write(tmp_path, final("one"), final(LONG), final("three"))
    before, covered = b"", b""
    for line in path.read_bytes().splitlines(keepends=True):
        body, key, rest = line.rpartition(b',"chain":"')
        if not key:
            covered += line
            continue
        value = hashlib.sha256(before + covered + body).hexdigest()
        assert rest == value.encode() + b'"}\n'
        before, covered = bytes.fromhex(value), b""
    assert [record.chain for record in read(path)][-1] == before.hex()


def changed(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b'"three"', b'"threw"')


def removed(lines: list[bytes]) -> None:
    del lines[3]


def first_removed(lines: list[bytes]) -> None:
    del lines[0]


def doubled(lines: list[bytes]) -> None:
    lines.insert(3, lines[3])


def swapped(lines: list[bytes]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


def text_inserted(lines: list[bytes]) -> None:
    text = "never said"
    reference = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    lines.insert(3, json.dumps({"v": 1, "kind": "blob", "hash": reference, "text": text}).encode() + b"\n")


def chain_value_removed(lines: list[bytes]) -> None:
    lines[4] = lines[4].rpartition(b',"chain":"')[0] + b"}\n"


def chain_value_changed(lines: list[bytes]) -> None:
    lines[3] = lines[3][:-67] + b"0" * 8 + lines[3][-59:]


@pytest.mark.parametrize(
    "tamper",
    [
        changed,
        removed,
        first_removed,
        doubled,
        swapped,
        text_inserted,
        chain_value_removed,
        chain_value_changed,
    ],
)
def test_whatever_is_done_to_a_line_breaks_the_chain(tmp_path: Path, tamper: Callable[[list[bytes]], None]) -> None:
    path = write(tmp_path, final("one"), final(LONG), final("three"), final("four"), final("five"))
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    JournalWriter.append(path).close()
    tamper(lines)
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"line \d or one before it was changed since it was written"):
        JournalWriter.append(path)
    # The weakened twin: nothing but the chain notices.
    unchained(path)
    JournalWriter.append(path).close()
