"""What ``journal verify`` finds, and that it finds nothing in what real runs leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.cli.main import main
from orchestrator.errors import ConfigurationError, JournalError, ModelRequestError, ModelUnavailableError, ResumeError
from orchestrator.events import Event, RunStarted
from orchestrator.models.base import ModelReply, Usage
from orchestrator.policy import Policy
from orchestrator.rlm.api import RLM
from orchestrator.rlm.result import Result
from orchestrator.trajectory.chain import Chain
from orchestrator.trajectory.journal import JournalWriter, is_redacted, read
from orchestrator.trajectory.redact import KEPT, KEPT_INSIDE, mark
from orchestrator.trajectory.verify import Report, verify
from orchestrator.trajectory.view import render
from orchestrator.transport.rpc import RpcRefusal
from tests.support.disk import full_disk
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel, Outcome
from tests.support.runs import a_run

GOLDEN = Path(__file__).parents[1] / "golden"
CODE = ModelReply("I look.\n```repl\nstep()\n```", Usage(100, 10))
SAID = "the patient's name is Ada Lovelace"


async def two_calls_and_a_child(box: FakeBox) -> None:
    await box.call("llm_query", f"first: {SAID}")
    await box.call("llm_query", "second, " * 300)
    await box.call("llm_query", f"first: {SAID}")
    await box.call("final", await box.child(f"Who? {SAID}", f"a part: {SAID}"))


def run(
    folder: Path,
    *boxes: list[CellBody],
    root: list[Outcome] | None = None,
    sub: list[Outcome] | None = None,
    settings: list[str] | None = None,
    redact: bool = False,
) -> Result:
    opened = FakeBoxes(list(boxes) or [[two_calls_and_a_child], [finals(f"It is {SAID}")]])
    root_model = FakeModel(root or [], name="root", default=CODE)
    sub_model = FakeModel(sub or [], name="sub")
    policy = Policy().override(settings or [])
    rlm = RLM(root_model, sub_model, policy, folder, open_box=opened.open, redact=redact)
    return rlm.complete(f"the context: {SAID}", f"What is it? {SAID}")


def journal_of(result: Result) -> Path:
    assert result.journal is not None
    return result.journal


def problems(report: Report) -> list[str]:
    return [str(problem) for problem in report.problems]


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change a journal as somebody does who knows of the chain and makes a new one."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(lines)
    chain, data = Chain(), b""
    for line in lines:
        line.pop("chain", None)
        raw = json.dumps(line, separators=(",", ":")).encode()
        if line["kind"] == "blob":
            chain.update(raw + b"\n")
            data += raw + b"\n"
        else:
            chain.update(raw[:-1])
            data += raw[:-1] + chain.seal()
    path.write_bytes(data)


def of(kind: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in lines if line["kind"] == kind)


# Nothing is wrong -----------------------------------------------------------------------------------------------------


def test_a_run_with_sub_calls_and_a_child_is_in_order(tmp_path: Path) -> None:
    result = run(tmp_path)
    report = verify(journal_of(result), result.journal_head)
    assert (result.status, problems(report), report.notes) == ("answered", [], [])
    assert (report.journals, report.run, report.head) == (2, result.run, result.journal_head)
    assert len(result.journal_head) == 64


async def two_calls(box: FakeBox) -> None:
    for question in ("one", "two"):
        try:
            await box.call("llm_query", question)
        except RpcRefusal:
            continue
    await box.call("final", "done")


async def nothing(_box: FakeBox) -> None: ...


async def hangs_up(box: FakeBox) -> None:
    raise JournalError("a sink of the caller's broke")


LOST = ModelUnavailableError("cut off", may_be_billed=True)
BUSY = ModelUnavailableError("busy")


@pytest.mark.parametrize(
    ("status", "cells", "more"),
    [
        ("answered", [two_calls], {"sub": [BUSY, LOST]}),
        ("answered", [two_calls], {"sub": [LOST, BUSY, ModelRequestError("no")]}),
        ("answered", [two_calls], {"root": [BUSY, LOST]}),
        ("answered", [two_calls], {"sub": [ModelReply("a", Usage(1, 2, 3, 4, estimated=True))]}),
        ("failed", [two_calls], {"root": [ModelRequestError("no")]}),
        ("failed", [two_calls], {"root": [LOST, ModelRequestError("no")]}),
        ("limit", [nothing], {"root": [CODE, ModelRequestError("no")], "settings": ["budget.turns=2"]}),
        ("limit", [nothing], {"root": [CODE, LOST, BUSY], "settings": ["budget.turns=2", "budget.calls=2"]}),
        ("answered", [two_calls], {"settings": ["budget.calls=2"]}),
        ("limit", [], {"settings": ["budget.turns=2"]}),
        ("failed", [hangs_up], {}),
    ],
)
def test_however_a_run_goes_its_journal_and_its_ledger_agree(
    tmp_path: Path, status: str, cells: list[CellBody], more: dict[str, Any]
) -> None:
    result = run(tmp_path, cells, settings=more.pop("settings", []), **more)
    assert result.status == status, result
    assert problems(verify(journal_of(result), result.journal_head)) == []


def test_a_torn_line_and_a_run_without_an_end_are_notes(tmp_path: Path) -> None:
    path = journal_of(run(tmp_path, [finals("42")]))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    report = verify(path)
    assert report.ok
    assert [note.what for note in report.notes] == [
        "the last 30 bytes are a line that was torn off, and count for nothing",
        "the run has no end: it was cut off, or goes on; its totals were not compared",
    ]


def test_turns_that_failed_are_told_and_counted_to_the_last_request(tmp_path: Path) -> None:
    result = run(tmp_path, [nothing, nothing], root=[CODE, BUSY, LOST, ModelRequestError("no")])
    assert (result.status, result.usage["calls"], result.usage["turns"]) == ("failed", 4, 2)
    failed = [record.fields for record in read(journal_of(result)) if record.kind == "root_failed"]
    assert [(said["turn"], said["code"], said["attempts"]) for said in failed] == [(2, "model_request", 3)]
    assert problems(verify(journal_of(result), result.journal_head)) == []
    rewrite(journal_of(result), lambda lines: of("root_failed", lines).update(attempts=2))
    assert "the run's end tells of 4 calls in all, the events of 3" in problems(verify(journal_of(result)))[0]


def test_a_turn_that_was_cancelled_is_told_and_counted(tmp_path: Path) -> None:
    async def cancelled() -> None:
        model = FakeModel(gate=anyio.Event(), name="root")
        boxes = FakeBoxes([[nothing]])
        async with anyio.create_task_group() as tasks:
            rlm = RLM(model, FakeModel(), Policy(), tmp_path, open_box=boxes.open)
            tasks.start_soon(rlm.acomplete, "text", "What?")
            await model.arrived.wait()
            tasks.cancel_scope.cancel()

    anyio.run(cancelled)
    (path,) = tmp_path.iterdir()
    told = {record.kind: record.fields for record in read(path)}
    assert (told["root_failed"]["code"], told["root_failed"]["attempts"]) == ("cancelled", 1)
    assert told["run_finished"]["usage"]["calls"] == 1
    assert problems(verify(path)) == []


def test_of_a_run_from_before_they_were_told_up_to_two_are_allowed(tmp_path: Path) -> None:
    result = run(tmp_path, [nothing], root=[ModelRequestError("no")])

    def older(lines: list[dict[str, Any]]) -> None:
        del of("run_started", lines)["revision"]
        lines.remove(of("root_failed", lines))
        for number, line in enumerate(line for line in lines if line["kind"] != "blob"):
            line["seq"] = number

    rewrite(journal_of(result), older)
    assert problems(verify(journal_of(result))) == []
    rewrite(journal_of(result), lambda lines: of("run_started", lines).update(revision=1))
    assert "the run's end tells of 1 calls in all, the events of 0" in problems(verify(journal_of(result)))[0]


@pytest.mark.parametrize("name", ["first", "chained", "redacted", "revised"])
def test_every_version_that_was_ever_written_stays_readable(name: str) -> None:
    path = GOLDEN / f"journal-1-{name}.jsonl"
    # JSON makes one character of a pair of surrogates: on both sides.
    told = json.loads(json.dumps([record.to_dict() for record in read(path)]))
    assert told == json.loads(path.with_suffix(".json").read_text())
    assert list(render(path))
    # The events are made up, and tell of a child run and of sums that there never were.
    found = [problem.what for problem in verify(path).problems]
    assert not [what for what in found if "chain" in what or "number" in what or "format" in what]


def test_a_journal_from_before_the_chain_is_in_order_and_says_so() -> None:
    report = verify(GOLDEN / "journal-1-first.jsonl")
    assert "has no hash chain: it is from before there was one, or it was taken out" in [n.what for n in report.notes]
    with_head = verify(GOLDEN / "journal-1-first.jsonl", "0" * 64)
    assert "has no hash chain to compare the head with" in [problem.what for problem in with_head.problems]


# Something is ---------------------------------------------------------------------------------------------------------


def spend_less(lines: list[dict[str, Any]]) -> None:
    of("root_replied", lines)["usage"]["output_tokens"] -= 3


def another_price(lines: list[dict[str, Any]]) -> None:
    of("subcall_finished", lines)["cost_usd"] = 0.5


def fewer_attempts(lines: list[dict[str, Any]]) -> None:
    of("subcall_finished", lines)["attempts"] = 0


def another_model(lines: list[dict[str, Any]]) -> None:
    of("subcall_started", lines)["model"] = "cheaper"


def no_start(lines: list[dict[str, Any]]) -> None:
    lines.remove(of("subcall_started", lines))


def no_child(lines: list[dict[str, Any]]) -> None:
    of("run_finished", lines)["usage"]["children"] = 0


def another_status(lines: list[dict[str, Any]]) -> None:
    of("child_finished", lines)["status"] = "no_answer"


def child_twice(lines: list[dict[str, Any]]) -> None:
    lines.insert(lines.index(of("child_started", lines)), of("child_started", lines))


def hostile_name(lines: list[dict[str, Any]]) -> None:
    of("child_started", lines)["child"] = "../../etc/passwd"


def own_ancestor(lines: list[dict[str, Any]]) -> None:
    of("child_started", lines)["child"] = lines[0]["run"]


def other_run(lines: list[dict[str, Any]]) -> None:
    of("observed", lines)["run"] = "r0"


def behind_the_end(lines: list[dict[str, Any]]) -> None:
    lines.append({**of("observed", lines), "seq": lines[-1]["seq"] + 1})


def text_twice(lines: list[dict[str, Any]]) -> None:
    lines.insert(lines.index(of("blob", lines)), of("blob", lines))


def another_row(lines: list[dict[str, Any]]) -> None:
    of("run_finished", lines)["usage"]["by_depth_and_model"][0]["output_tokens"] += 1


def no_usage(lines: list[dict[str, Any]]) -> None:
    of("run_finished", lines)["usage"] = {"children": 1, "by_depth": 7, "by_model": {}}


def no_number(lines: list[dict[str, Any]]) -> None:
    of("root_replied", lines)["usage"]["input_tokens"] = "many"


def endless_cost(lines: list[dict[str, Any]]) -> None:
    of("root_replied", lines)["cost_usd"] = {"$float": "inf"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (spend_less, "the run's end tells of 20 output tokens by root, the events of 17"),
        (another_price, "nano-dollars by sub, the events of 500,000,000"),
        (fewer_attempts, "calls by sub, the events of"),
        (another_model, "the run's end tells of 0 calls by cheaper, the events of 1"),
        (no_start, "sub-call 1 ends without a beginning"),
        (no_child, "the run's end tells of 0 child runs, the events of 1"),
        (another_status, "ended as no_answer; in its own journal it ended as answered"),
        (child_twice, "begins once more"),
        (hostile_name, "has a name that no run can have"),
        (own_ancestor, "is its own ancestor"),
        (other_run, "belongs to another run, r0"),
        (behind_the_end, "observed behind the end of the run"),
        (text_twice, "holds the text of line"),
        (another_row, "the run's end tells of 11 output tokens by root at depth 0, the events of 10"),
        (no_usage, "the usage at the run's end is not of this format"),
        (no_number, "is no root_replied of this format"),
        (endless_cost, "is no root_replied of this format"),
    ],
)
def test_what_a_new_chain_hides_the_rest_still_shows(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], object], complaint: str
) -> None:
    result = run(tmp_path)
    path = journal_of(result)
    rewrite(path, lambda _: None)
    assert verify(path).ok
    rewrite(path, change)
    found = problems(verify(path))
    assert any(complaint in problem for problem in found), found
    assert not any("hash chain" in problem for problem in found)
    # And the head that was told shows that the file is another.
    assert "given" in problems(verify(path, result.journal_head))[-1]


def test_an_answer_that_was_changed_is_found_where_it_stands(tmp_path: Path) -> None:
    path = journal_of(run(tmp_path))
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(index for index, line in enumerate(lines) if b'"subcall_finished"' in line)
    lines[at] = lines[at].replace(b'"text":"an answer"', b'"text":"an ansver"')
    path.write_bytes(b"".join(lines))
    (problem,) = problems(verify(path))
    assert problem.startswith(f"{path}, line {at + 1}: the hash chain breaks: it or a line since line {at}")


def test_a_journal_that_was_cut_at_a_line_is_found_by_its_head_alone(tmp_path: Path) -> None:
    result = run(tmp_path, [finals("42")])
    path = journal_of(result)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    assert verify(path).ok
    (problem,) = problems(verify(path, result.journal_head))
    assert "not the one that was given" in problem


def test_a_journal_that_went_on_behind_its_head_is_told_from_one_that_was_changed(tmp_path: Path) -> None:
    result = run(tmp_path, [finals("42")])
    path = journal_of(result)
    earlier = list(read(path))[-3].chain
    assert problems(verify(path, earlier)) == [f"{path}: goes on behind the head that was given: 2 events more"]


def test_a_gap_in_the_numbers_is_found_without_a_chain(tmp_path: Path) -> None:
    path = journal_of(run(tmp_path, [finals("42")]))
    rewrite(path, lambda lines: lines.pop(2))
    assert "has the number 3 in the run where 2 was to come" in problems(verify(path))[0]


def test_a_child_without_its_journal_is_found(tmp_path: Path) -> None:
    result = run(tmp_path)
    (tmp_path / f"{result.run}.1.jsonl").unlink()
    assert problems(verify(journal_of(result))) == [
        f"{result.journal}: the journal of child run {result.run}.1 is missing"
    ]


def test_a_child_s_journal_in_the_place_of_another_is_found(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1"), run(tmp_path / "2")
    (tmp_path / "1" / f"{one.run}.1.jsonl").write_bytes((tmp_path / "2" / f"{two.run}.1.jsonl").read_bytes())
    assert f"it is to be of run {one.run}.1, child of {one.run}" in problems(verify(journal_of(one)))[0]


@pytest.mark.parametrize("content", [b"", b"no journal\n", b"{}\n" * 3, b"\x00" * 100])
def test_what_is_no_journal_is_a_problem_and_no_crash(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    assert len(problems(verify(path))) == 1


def test_one_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    result = run(tmp_path, [finals("42")])
    path = journal_of(result)
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not verify(path, result.journal_head).ok, (at, whole[at - 20 : at + 20])


# On the command line --------------------------------------------------------------------------------------------------


def test_the_command_says_nothing_is_wrong_and_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path)
    assert main(["journal", "verify", str(result.journal), "--head", result.journal_head.upper()]) == 0
    events = sum(1 for path in tmp_path.iterdir() for _ in read(path))
    expected = f"nothing is wrong: {events} events in 2 journals, head {result.journal_head}\n"
    assert capsys.readouterr() == (expected, "")


def test_the_command_names_each_problem_on_a_line_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path)
    rewrite(journal_of(result), no_child)
    assert main(["journal", "verify", str(result.journal)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{result.journal}: the run's end tells of 0 child runs, the events of 1"
    assert out[1].startswith("1 problem: ")
    assert main(["journal", "verify", str(result.journal), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["problems"] == [{"file": str(result.journal), "line": None, "what": out[0].split(": ", 1)[1]}]


def test_a_head_that_is_no_hash_is_a_matter_of_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["journal", "verify", "x", "--head", "abc"])
    assert end.value.code == 2
    assert "'abc' is no hash: give the 64 hexadecimal digits that the run told" in capsys.readouterr().err


# Redacted -------------------------------------------------------------------------------------------------------------


def test_a_redacted_journal_holds_no_text_and_everything_else(tmp_path: Path) -> None:
    plain, hidden = run(tmp_path / "plain"), run(tmp_path / "hidden", redact=True)
    assert hidden.answer == plain.answer
    for path in (tmp_path / "hidden").iterdir():
        data = path.read_bytes()
        for text in (b"Ada", b"Lovelace", b"second, ", b"an answer", b"I look", b"step()", b"What is it"):
            assert text not in data
        assert is_redacted(path)
        assert [record.kind for record in read(path) if "redacted" in record.fields] == ["run_started"]
    assert not is_redacted(journal_of(plain))
    kinds = [[record.kind for record in read(journal_of(result))] for result in (plain, hidden)]
    assert kinds[0] == kinds[1]
    report = verify(journal_of(hidden), hidden.journal_head)
    assert (problems(report), report.notes, report.journals) == ([], [], 2)


def test_who_has_a_text_can_show_that_it_was_said(tmp_path: Path) -> None:
    (started, *_) = read(journal_of(run(tmp_path, redact=True)))
    assert started.fields["query"] == mark(f"What is it? {SAID}")
    assert started.fields["query"].startswith(f"[redacted: {12 + len(SAID)} characters, sha256:")
    assert started.fields["context"]["characters"] == 13 + len(SAID)


def test_a_redacted_journal_is_shown_with_its_turns_and_numbers(tmp_path: Path) -> None:
    text = "\n".join(render(journal_of(run(tmp_path, redact=True))))
    assert "[redacted: " in text
    assert "turn 1" in text
    assert "sub-call 1" in text
    assert "Ada" not in text


def test_a_redacted_run_does_not_go_on(tmp_path: Path) -> None:
    path = journal_of(run(tmp_path, redact=True))
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is redacted: what was said in its run is not there to go on with"):
        JournalWriter.append(path)
    assert path.read_bytes() == before


def test_it_is_not_resumed_and_nothing_is_resumed_into_one(tmp_path: Path) -> None:
    path = journal_of(run(tmp_path, redact=True))
    with pytest.raises(ResumeError, match=r"is redacted: what was said in its run is not there to go on with"):
        RLM(FakeModel(), policy=Policy()).resume(path, "the context")
    with pytest.raises(ConfigurationError, match="redact is chosen when a run begins"):
        RLM(FakeModel(), policy=Policy(), journal=tmp_path, redact=True).resume(path, "the context")


def test_who_listens_to_the_events_still_hears_the_texts(tmp_path: Path) -> None:
    heard: list[Event] = []
    boxes = FakeBoxes([[finals("42")]])
    model = FakeModel(default=CODE)
    rlm = RLM(model, None, Policy(), tmp_path, lambda it: heard.append(it.event), redact=True, open_box=boxes.open)
    rlm.complete("text", "What is it?")
    assert [event.query for event in heard if isinstance(event, RunStarted)] == ["What is it?"]


def test_to_redact_without_a_journal_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="redact is about the journal, and there is none"):
        RLM(FakeModel(), policy=Policy(), redact=True)


def test_a_text_of_a_new_kind_of_event_is_redacted_until_somebody_decides(tmp_path: Path) -> None:
    kinds = {event.kind: event for event in a_run()}
    for kind, names in KEPT.items():
        assert all(hasattr(kinds[kind], name) for name in names)
    for kind, name in KEPT_INSIDE:
        assert hasattr(kinds[kind], name)
    said = {"final_set", "observed"}
    assert not said & KEPT.keys()


# A full disk, and size ------------------------------------------------------------------------------------------------


async def says_much(box: FakeBox) -> None:
    for number in range(200):
        await box.call("llm_query", f"question {number} " * 20)
    await box.call("final", "done")


def test_a_full_disk_ends_the_run_with_a_typed_failure_and_a_readable_journal(tmp_path: Path) -> None:
    with full_disk(6144):
        result = run(tmp_path, [says_much])
    assert result.status == "failed"
    assert isinstance(result.error, JournalError)
    assert result.reason == f"cannot write the journal {result.journal}: File too large"
    report = verify(journal_of(result), result.journal_head)
    assert problems(report) == []
    assert report.events > 5
    assert journal_of(result).stat().st_size <= 6144
    # What was answered is on disk, and nothing was asked of which the disk does not know.
    kinds = [record.kind for record in read(journal_of(result))]
    assert kinds.count("subcall_started") - kinds.count("subcall_finished") in (0, 1)


def sizes(folder: Path, turns: int, calls: int) -> int:
    async def asks(box: FakeBox) -> None:
        for number in range(calls):
            await box.call("llm_query", f"{box.cell}.{number}: " + "a line of the text " * 100)

    async def last(box: FakeBox) -> None:
        await asks(box)
        await box.call("final", "done")

    result = run(folder, [*[asks] * (turns - 1), last], settings=["budget.turns=100", "budget.calls=4000"])
    assert (result.status, result.turns) == ("answered", turns)
    texts = [line for line in journal_of(result).read_bytes().splitlines() if b'"kind":"blob"' in line]
    assert len(texts) == len(set(texts))
    return journal_of(result).stat().st_size


def test_a_journal_grows_with_what_is_new_and_no_faster(tmp_path: Path) -> None:
    base = sizes(tmp_path, 5, 4)
    by_turns, more_turns = sizes(tmp_path, 10, 4) - base, sizes(tmp_path, 20, 4) - base
    assert more_turns / by_turns == pytest.approx(3, rel=0.05)
    by_calls, more_calls = sizes(tmp_path, 5, 8) - base, sizes(tmp_path, 5, 16) - base
    assert more_calls / by_calls == pytest.approx(3, rel=0.05)
    # A sub-call costs its prompt and its answer, once, and less than a kilobyte beside them.
    assert by_calls / 20 < 1900 + 1024
