from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import bundle, events
from orchestrator.errors import JournalError
from orchestrator.events import CellFinished, Envelope, Event, FinalSet, RunFinished, SubcallStarted
from orchestrator.recording import Recorder
from orchestrator.text import printable
from orchestrator.trajectory.journal import INLINE_CHARS, JournalWriter, Record, read
from tests.support.disk import full_disk
from tests.support.runs import a_run

LONG = "a long text, " * 200
HEAD = {"run", "parent", "seq", "t", "time", "kind"}


def write(folder: Path, *happened: Event, run: str = "r1", parent: str | None = None) -> Path:
    with JournalWriter.create(folder, run) as writer:
        recorder = Recorder(run, parent, (writer,))
        for event in happened:
            recorder.emit(event)
    return writer.path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def final(answer: str) -> FinalSet:
    return FinalSet(cell=1, answer=answer)


def cell(result: dict[str, Any]) -> CellFinished:
    return CellFinished(turn=1, cell=1, result=result)


def fields_of(event: Event) -> dict[str, Any]:
    return dataclasses.asdict(event)


# What is written ------------------------------------------------------------------------------------------------------


def test_every_kind_of_event_comes_back_as_it_was_told(tmp_path: Path) -> None:
    happened = a_run()
    records = list(read(write(tmp_path, *happened, parent="p0")))
    assert {record.kind for record in records} == {kind.kind for kind in Event.__subclasses__()}
    for number, (event, record) in enumerate(zip(happened, records, strict=True)):
        assert (record.run, record.parent, record.seq, record.kind) == ("r1", "p0", number, event.kind)
        assert record.fields == json.loads(json.dumps(fields_of(event)))
    assert [record.elapsed_s for record in records] == sorted(record.elapsed_s for record in records)


def test_a_line_has_the_documented_head_and_no_field_hides_it(tmp_path: Path) -> None:
    path = write(tmp_path, *a_run())
    for line in lines(path):
        assert line["v"] == 1
        assert line["kind"] == "blob" or line.keys() >= HEAD
    for kind in Event.__subclasses__():
        assert not {field.name for field in dataclasses.fields(kind)} & (HEAD | {"v"})


def test_a_long_text_is_written_once_however_often_it_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, final(LONG), cell({"stdout": LONG, "more": [LONG, {"deep": LONG}]}), final(LONG))
    assert path.read_bytes().count(LONG.encode()) == 1
    assert [record.fields for record in read(path)][1]["result"] == {"stdout": LONG, "more": [LONG, {"deep": LONG}]}
    assert [line["kind"] for line in lines(path)] == ["blob", "final_set", "cell_finished", "final_set"]


def test_size_grows_with_what_is_new_only(tmp_path: Path) -> None:
    once = write(tmp_path, final(LONG), run="once").stat().st_size
    often = write(tmp_path, *[final(LONG)] * 11, run="often").stat().st_size
    assert often - once < 10 * 300


def test_each_event_is_in_the_file_before_the_call_returns(tmp_path: Path) -> None:
    with JournalWriter.create(tmp_path, "r1") as writer:
        recorder = Recorder("r1", None, (writer,))
        for count in range(1, 4):
            recorder.emit(final(LONG + str(count)))
            assert len(list(read(writer.path))) == count


def test_an_event_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real = os.write

    def spy(descriptor: int, data: bytes) -> int:
        written.append(bytes(data))
        return real(descriptor, data)

    with JournalWriter.create(tmp_path, "r1") as writer:
        monkeypatch.setattr(os, "write", spy)
        Recorder("r1", None, (writer,)).emit(cell({"stdout": LONG, "stderr": LONG + "!"}))
        monkeypatch.undo()
    assert len(written) == 1
    assert written[0].count(b"\n") == 3


@pytest.mark.parametrize("unit", ["x", "\x7f", "\u200b", "a\U0001f600"], ids=["text", "DEL", "zero width", "wide"])
def test_a_text_of_megabytes_goes_out_in_pieces_and_is_never_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    text, sizes, real = unit * (3_000_000 // len(unit)), [], os.write

    def spy(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return real(descriptor, data)

    tracemalloc.start()
    try:
        with JournalWriter.create(tmp_path, "r1") as writer:
            monkeypatch.setattr(os, "write", spy)
            Recorder("r1", None, (writer,)).emit(final(text))
            monkeypatch.undo()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(sizes) < 4_000_000
    assert peak < 8_000_000
    assert [record.fields["answer"] == text for record in read(writer.path)] == [True]


def test_file_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder", final("x"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_existing_journal_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, final("first"))
    with pytest.raises(JournalError, match="File exists"):
        JournalWriter.create(tmp_path, "r1")
    assert len(list(read(path))) == 1


@pytest.mark.parametrize("run", ["", "../r1", "a/b", ".hidden", "a" * 129, "a\n", "ü"])
def test_a_run_id_unfit_for_a_file_name_is_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(JournalError, match="run id"):
        JournalWriter.create(tmp_path, run)
    assert list(tmp_path.iterdir()) == []


def test_keys_of_the_environment_never_appear_whoever_says_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "ANTHROPIC_API_KEY": "sk-ant-0123456789",
        "ANTHROPIC_AUTH_TOKEN": "token-abcdef",
        "OPENAI_API_KEY": "sk-oai-987",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    quoted = " ".join(secrets.values())
    path = write(tmp_path, *a_run(), final(quoted), final(quoted + LONG), cell({"error": {"value": [quoted]}}))
    for value in secrets.values():
        assert value not in path.read_text("utf-8")
    assert [record.fields["answer"] for record in read(path) if record.kind == "final_set"][-2] == " ".join(
        ["[secret removed]"] * 3
    )


def test_a_placeholder_key_does_not_disturb_ordinary_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (record,) = read(write(tmp_path, final("none of them")))
    assert record.fields["answer"] == "none of them"


def test_the_file_can_be_shown_on_a_terminal_as_it_is(tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07 \x9b31m \u202e \u200b \x7f \u2028 \ud800 \U000e0041"
    text = write(tmp_path, final(hostile), final(hostile * 100)).read_text("utf-8")
    assert printable(text) == text
    assert [record.fields["answer"] for record in read(tmp_path / "r1.jsonl")] == [hostile, hostile * 100]


def test_a_value_of_no_json_type_is_a_mistake_that_shows(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bytes"):
        write(tmp_path, cell({"stdout": b"bytes"}))


# Any value ------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=())) | st.text("\ud83d\udc00a$", max_size=6)
long_texts = st.builds(
    lambda text, times: text * times, st.text(st.characters(exclude_categories=()), min_size=8), st.just(200)
)
keys = texts | st.sampled_from(["$blob", "$join", "$items", "$float", "$", "$$blob"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | long_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(told=st.lists(st.dictionaries(keys, values, max_size=4), max_size=4))
def test_any_value_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, told: list[dict[str, Any]]) -> None:
    path = write(tmp_path_factory.mktemp("journal"), *map(cell, told))
    got = [record.fields["result"] for record in read(path)]
    # NaN differs from itself; the text of a value does not.
    assert repr(got) == repr(told)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(data=st.binary(max_size=300), cut=st.integers(0, 2000))
def test_any_damage_gives_records_or_a_journal_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    path = write(tmp_path_factory.mktemp("journal"), final("short"), final(LONG), final("end"))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + data + whole[cut:])
    with contextlib.suppress(JournalError):
        assert all(isinstance(record, Record) for record in read(path))


def test_a_journal_cut_anywhere_gives_the_events_before_the_cut(tmp_path: Path) -> None:
    path = write(tmp_path, final("short"), final(LONG), final("end"))
    whole, records = path.read_bytes(), list(read(path))
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        complete = [line for line in whole[:cut].splitlines(keepends=True) if line.endswith(b"\n")]
        told = sum(b'"kind":"blob"' not in line for line in complete)
        assert list(read(path)) == records[:told]
    assert len(ends) == 4


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_journal_at_its_last_whole_event(tmp_path: Path) -> None:
    with JournalWriter.create(tmp_path, "r1") as writer, full_disk(4096):
        recorder = Recorder("r1", None, (writer,))
        recorder.emit(final("kept"))
        with pytest.raises(JournalError, match=r"cannot write the journal .*r1\.jsonl: File too large"):
            recorder.emit(final("x" * 10_000))
        # It would fit, but a journal with a hole would tell a false story.
        with pytest.raises(JournalError, match="File too large"):
            recorder.emit(final("lost"))
    assert [record.fields["answer"] for record in read(writer.path)] == ["kept"]
    assert writer.path.read_bytes().endswith(b"\n")


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match=r"cannot create the journal .*: (Not a directory|File exists)"):
        JournalWriter.create(tmp_path / "file", "r1")


def test_a_closed_journal_takes_nothing_more(tmp_path: Path) -> None:
    writer = JournalWriter.create(tmp_path, "r1")
    writer.close()
    writer.close()
    with pytest.raises(JournalError, match="closed"):
        Recorder("r1", None, (writer,)).emit(final("late"))


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_a_journal_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        list(read(tmp_path / "none.jsonl"))


def test_an_empty_file_is_a_journal_without_events(tmp_path: Path) -> None:
    path = tmp_path / "r1.jsonl"
    path.touch()
    assert list(read(path)) == []


def test_unknown_kinds_and_keys_are_passed_on(tmp_path: Path) -> None:
    path = write(tmp_path, final("x"))
    line = lines(path)[0]
    path.write_text(json.dumps({**line, "kind": "tool_called", "tool": "search"}) + "\n")
    (record,) = read(path)
    assert (record.kind, record.fields["tool"]) == ("tool_called", "search")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1 is not JSON"),
        ("a text that ends without a newline", "line 1 is not"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[1]", "line 1 is not a line of a journal"),
        ('{"kind":"blob"}', "line 1 is not a line of a journal"),
        ('{"v":2,"kind":"final_set"}', "is a journal of format 2; this version reads format 1"),
        ('{"v":true,"kind":"final_set"}', "is a journal of format True"),
        ('{"v":1,"kind":"final_set","run":"r"}', "line 1 lacks 'parent'"),
        ('{"v":1,"kind":"x","run":1,"parent":null,"seq":0,"t":0,"time":0}', "has a head of the wrong types"),
        ('{"v":1,"kind":"blob","hash":"sha256:00","text":"x"}', "is a blob whose text does not have its hash"),
        ('{"v":1,"kind":"blob","hash":"sha256:00","text":[]}', "is a blob without text"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "r1.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(JournalError, match=re.escape(complaint)):
        list(read(path))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"$blob": "sha256:00"}, "refers to sha256:00, which no earlier line holds"),
        ({"$blob": 1}, "holds a $blob that this version cannot read"),
        ({"$new": 1}, "holds a $new that this version cannot read"),
        ({"$join": [1]}, "holds a $join that this version cannot read"),
        ({"$float": "1"}, "holds a $float that this version cannot read"),
        ({"$items": [["one"]]}, "holds a $items that this version cannot read"),
        ({"$items": [[[], 1]]}, "holds a $items that this version cannot read"),
        ({"$blob": "x", "b": 1}, "holds a mixture of keys that this version cannot read"),
    ],
)
def test_a_damaged_value_is_named(tmp_path: Path, value: Any, complaint: str) -> None:
    path = tmp_path / "r1.jsonl"
    head = {"v": 1, "run": "r", "parent": None, "seq": 0, "t": 0.0, "time": 0.0, "kind": "final_set"}
    path.write_text(json.dumps({**head, "answer": value}) + "\n")
    with pytest.raises(JournalError, match=re.escape(complaint)):
        list(read(path))


def test_a_reference_far_behind_its_blob_is_resolved_from_the_file(tmp_path: Path) -> None:
    happened = [final(LONG), *[final(f"{number}" * 2000) for number in range(20)], final(LONG)]
    answers = [record.fields["answer"] for record in read(write(tmp_path, *happened))]
    assert answers[-1] == answers[0] == LONG


def test_numbers_without_an_end_survive(tmp_path: Path) -> None:
    (record,) = read(write(tmp_path, cell({"a": math.inf, "b": -math.inf})))
    assert record.fields["result"] == {"a": math.inf, "b": -math.inf}


# The specification ----------------------------------------------------------------------------------------------------


def test_the_specification_lists_every_kind_with_its_keys() -> None:
    text = (Path(bundle.__file__).parent / "trajectory" / "JOURNAL.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ((?:`\w+` ?)+) \|", text, re.MULTILINE))
    for kind in Event.__subclasses__():
        assert rows[kind.kind].split() == [f"`{field.name}`" for field in dataclasses.fields(kind)]
    assert f"{INLINE_CHARS:,}" in text
    assert f"format {events.SCHEMA_VERSION}" in text.splitlines()[0]


def test_the_specifications_example_runs(tmp_path: Path) -> None:
    text = (Path(bundle.__file__).parent / "trajectory" / "JOURNAL.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    write(tmp_path, *a_run(), run="run")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.endswith(" 50 0.001\n")
    assert len(done.stdout.splitlines()) == 1


def test_a_record_as_plain_data_has_the_keys_of_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, final("x"), RunFinished("answered", "x", "", {"calls": 1}, 1, 0.5))
    assert [record.to_dict() for record in read(path)] == lines(path)


def test_a_prompt_sent_twice_costs_its_length_once(tmp_path: Path) -> None:
    prompt = "p" * 100_000
    calls = [SubcallStarted(call, 1, "m", prompt, 100) for call in range(50)]
    assert write(tmp_path, *calls).stat().st_size < 120_000


def test_recorded_time_is_the_envelopes(tmp_path: Path) -> None:
    with JournalWriter.create(tmp_path, "r1") as writer:
        writer(Envelope("r1", None, 0, 1.23456789, 1700000000.1239, final("x")))
    (record,) = read(writer.path)
    assert (record.elapsed_s, record.time) == (1.234568, 1700000000.124)
