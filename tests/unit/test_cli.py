from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import anyio
import pytest

from orchestrator.cli.exec import split_cells
from orchestrator.cli.inputs import load_context
from orchestrator.cli.interrupt import Interrupt
from orchestrator.cli.main import main
from orchestrator.errors import (
    ContextError,
    EngineUnavailableError,
    ImageError,
    LimitExceededError,
    ModelAuthenticationError,
    RlmSandboxError,
    SandboxGoneError,
)
from orchestrator.events import Envelope, Event
from orchestrator.kernel.result import CellError, ExecutionResult
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.rlm.result import Result
from orchestrator.trajectory.journal import JournalWriter
from sandbox_image.wire import PROTOCOL_VERSION
from tests.support.cli import HOSTILE, FakeBox, FakeEngine, Run, Stdin, one_complaint, write
from tests.support.runs import a_run, replied, started

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every journal of these tests in a folder of their own, and the debug switch off."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RLM_SANDBOX_DEBUG", raising=False)
    return tmp_path / "state" / "rlm-sandbox" / "journal"


@dataclass(slots=True)
class FakeRuns:
    """Stands in for the library behind ``run``: remembers what it was asked, and ends as it is told.

    Attributes:
        outcome: what a run returns, or raises.
        during: called while the run goes on.
        made: keywords of each ``RLM``.
        asked: context and query of each run.
        schemas: of their answers.
    """

    outcome: Result | BaseException
    during: Callable[[], object] | None = None
    made: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[Any, str]] = field(default_factory=list)
    schemas: list[Any] = field(default_factory=list)

    def __call__(self, **keywords: Any) -> FakeRuns:
        self.made.append(keywords)
        return self

    async def acomplete(self, context: Any, query: str, schema: Any, *, stop: anyio.Event, origin: Any) -> Result:
        del origin
        self.schemas.append(schema)
        self.asked.append((context, query))
        sink = self.made[-1]["on_event"]
        recorder = Recorder("r1", None, () if sink is None else (sink,))
        recorder.emit(started(query))
        recorder.emit(replied())
        if self.during is not None:
            self.during()
            await stop.wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def result(
    status: Any = "answered", answer: str | None = "42", reason: str = "", error: RlmSandboxError | None = None
) -> Result:
    return Result(status, answer, reason, {"calls": 3}, Path("/journals/r1.jsonl"), 2, error, "r1")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """Let ``run`` find a library that answers 42."""
    fake = FakeRuns(result())
    module = ModuleType("orchestrator.rlm.api")
    module.RLM = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestrator.rlm.api", module)
    return fake


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Return the path of a small text."""
    path = tmp_path / "text.txt"
    path.write_text("some text")
    return str(path)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["run"], "-q/--query"),
        (["run", "-q"], "expected one argument"),
        (["run", "-q", "x", "--jsno"], "unrecognized arguments: --jsno"),
        (["run", "-q", "x", "--query-file", "y"], "not allowed with argument"),
        (["run", "-q", " ", "{text}"], "the question is empty"),
        (["run", "-q", "x", "missing.txt"], "no such file or folder: missing.txt"),
        (["run", "-q", "x", "missing", "{text}"], "no such file or folder: missing"),
        (["run", "-q", "x", "-", "{text}"], "- (stdin) cannot be combined with files"),
        (["run", "--query-file", "missing", "{text}"], "--query-file missing: No such file or directory"),
        (
            ["run", "-q", "x", "{text}", "--policy", "nonsense"],
            "no policy 'nonsense': give a TOML file or one of default",
        ),
        (["run", "-q", "x", "{text}", "--set", "budget.cals=1"], "unknown key 'budget.cals'; known here: bytes_in"),
        (["run", "-q", "x", "{text}", "--set", "budget.calls=none"], "budget.calls = 'none'"),
        (["run", "-q", "x", "{text}", "--set", "calls"], "write table.key=value"),
        (["run", "-q", "x", "{text}", "--journal", "/proc/none"], "cannot make the journal folder /proc/none"),
        (["run", "-q", "x", "{binary}"], "binary.bin is not UTF-16 text (byte 2)"),
        (["run", "-q", "x", "{text}", "--set", "limits.context_mb=0"], "limits.context_mb = 0"),
        (["chat"], "nothing to ask about: name a FILE or a folder, or a session with --resume"),
        (["chat", "-"], "- (stdin) cannot be a FILE here: the questions come from there, one a line"),
        (["chat", "missing.txt"], "no such file or folder: missing.txt"),
        (["chat", "{text}", "--on-divergence", "fresh"], "--on-divergence is about --resume"),
        (["chat", "{text}", "--journal", "/proc/none"], "cannot make the journal folder /proc/none"),
        (["chat", "--resume", "s9"], "no session 's9': it is neither a file nor a session in"),
        (["chat", "--resume", "s9", "--policy", "strict"], "a session that goes on keeps its policy"),
        (["chat", "--resume", "s9", "--redact"], "--redact is chosen when a session begins"),
        (["exec", "missing.py"], "code missing.py: No such file or directory"),
        (["exec", "{empty}"], "there is no code to run"),
        (["exec", "{text}", "--timeout", "0"], "'0' is not a number of seconds above 0"),
        (["exec", "{text}", "--timeout", "nan"], "'nan' is not a number of seconds above 0"),
        (["exec", "{text}", "--timeout", "x"], "'x' is not a number of seconds above 0"),
        (["exec", "{text}", "extra"], "unrecognized arguments: extra"),
        (["exec", "-", "--context", "-"], "stdin cannot be both"),
        (["exec", "{text}", "--context", "missing"], "no such file or folder: missing"),
        (["policy"], "VERB"),
        (["policy", "check"], "FILE"),
        (["policy", "check", "missing.toml"], "no policy 'missing.toml'"),
        (["policy", "check", "{text}"], "is not valid TOML"),
        (["policy", "show", "default", "--set", "x.y=1"], "no table 'x'"),
        (["journal", "show"], "FILE|RUN"),
        (["journal", "show", "r9"], "no journal 'r9': it is neither a file nor a run in"),
        (["journal", "show", ""], "the run is empty: give a file, or a run's id or its beginning"),
        (["journal", "show", "{text}"], "text.txt, line 1 is not a line of a journal"),
        (["journal", "show", "{text}", "--json"], "text.txt, line 1 is not a line of a journal"),
        (["journal", "show", "{binary}"], "not a journal: "),
        (["journal", "show", "{nothing}"], "is empty: not a journal"),
        (["journal", "show", "r", "--journal", ""], "argument --journal: the value is empty"),
        (["journal", "list", "--journal", "missing"], "no such folder: missing"),
        (["image"], "VERB"),
        (["run", "-q", "x", "{text}", "--model", ""], "argument --model: the value is empty"),
        (["run", "-q", "x", "{text}", "--sub-model", " "], "argument --sub-model: the value is empty"),
        (["run", "-q", "x", "{text}", "--journal", ""], "argument --journal: the value is empty"),
        (["run", "-q", "x", ""], "the name of a FILE is empty"),
        (["run", "--query-file", "{nothing}", "{text}"], "nothing: the file is empty"),
        (["run", "--query-file", "", "{text}"], "--query-file: the name of the file is empty"),
        (["run", "-q", "x", "{text}", "--jsno"], "(see rlm-sandbox run --help)"),
        (["policy", "check", "x", "--jsno"], "(see rlm-sandbox policy check --help)"),
        (["--jsno", "run", "-q", "x"], "--jsno"),
        (["run", "-q", "x", "{text}", "{binary}"], "binary.bin is not UTF-16 text (byte 2)"),
        (["exec", "{text}", "--timeout", "301"], "--timeout 301 is more than the policy's limits.cell_timeout_s = 300"),
        (
            ["policy", "show", "--set", "sandbox.user=root"],
            "sandbox.user = 'root': give numeric uid:gid, each of at least 100, such as 64000:64000",
        ),
        (
            ["policy", "show", "--set", "sandbox.runtime=/x"],
            "sandbox.runtime = '/x': give a name of at most 64 letters",
        ),
        (["policy", "show", "--set", "models.allowed=offline"], "models.allowed = 'offline': give a list such as ["),
        (["policy", "check", "{binary}"], "is not UTF-8 text"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(  # noqa: PLR0917 - fixtures and a table
    cli: Run, runs: FakeRuns, text: str, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "binary.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.py").write_text("\n# %%\n \n")
    (tmp_path / "nothing").touch()
    places = {"binary": "binary.bin", "empty": "empty.py", "nothing": "nothing"}
    names = {"text": text, **{name: str(tmp_path / place) for name, place in places.items()}}
    code, out, err = cli(*(argument.format(**names) for argument in arguments))
    assert (code, out) == (2, "")
    assert one_complaint(err)
    assert complaint in err
    assert runs.asked == []


def test_hostile_arguments_cannot_steer_the_terminal(cli: Run) -> None:
    code, _, err = cli("run", "-q", "x", f"a{HOSTILE}\nb")
    assert (code, err) == (2, "rlm-sandbox: no such file or folder, and as a pattern it matches nothing: ared b\n")


def test_an_unexpected_error_is_one_line_and_debug_shows_where(
    cli: Run, runs: FakeRuns, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.outcome = RuntimeError("a bug\nin two lines")
    code, out, err = cli("run", "-q", "x", text, "--quiet")
    assert (code, out) == (1, "")
    assert err == "rlm-sandbox: unexpected RuntimeError: a bug in two lines; RLM_SANDBOX_DEBUG=1 shows where\n"
    monkeypatch.setenv("RLM_SANDBOX_DEBUG", "1")
    code, _, err = cli("run", "-q", "x", text, "--quiet")
    assert code == 1
    assert "Traceback" in err


def test_version_names_package_and_protocol(cli: Run) -> None:
    code, out, err = cli("--version")
    assert (code, err) == (0, "")
    assert out.startswith("rlm-sandbox ")
    assert out.endswith(f"(protocol {PROTOCOL_VERSION})\n")


def test_the_help_says_what_the_defaults_are(cli: Run) -> None:
    told = " ".join(cli("run", "--help")[1].split())
    assert "(default: rlm-sandbox/journal in $XDG_STATE_HOME, or else in ~/.local/state)" in told
    told = " ".join(cli("exec", "--help")[1].split())
    assert "at most, and by default, the policy's limits.cell_timeout_s" in told


def test_help_is_fast() -> None:
    script = "import sys, orchestrator.cli.main as m; m.build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    heavy = {
        "anthropic",
        "openai",
        "docker",
        "pydantic",
        "jupyter_client",
        "anyio",
        "markdown_it",
        "asyncio",
        "tenacity",
    }
    assert not heavy & set(loaded.split())


# run ------------------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer_on_stdout_and_all_else_on_stderr(
    cli: Run, runs: FakeRuns, text: str, state: Path
) -> None:
    code, out, err = cli("run", text, "-q", "What?")
    assert (code, out) == (0, "42\n")
    assert "question: What?" in err
    assert "turn 1" in err
    assert "journal: /journals/r1.jsonl" in err
    assert runs.asked == [("some text", "What?")]
    assert runs.made[0]["journal"] == state
    assert runs.made[0]["redact"] is False
    assert runs.made[0]["policy"] == Policy.load()
    assert (runs.made[0]["model"], runs.made[0]["sub_model"]) == (None, None)


def test_run_hands_on_what_the_options_say(cli: Run, runs: FakeRuns, text: str, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("From a file?\n")
    folder = tmp_path / "journals"
    options = ["--model", "offline", "--sub-model", "openai:x", "--policy", "strict", "--set", "budget.calls=7"]
    code, _, err = cli(
        "run", text, "--query-file", str(tmp_path / "q.txt"), *options, "--journal", str(folder), "--quiet"
    )
    made = runs.made[0]
    assert (code, err) == (0, "")
    assert (made["model"], made["sub_model"], made["journal"]) == ("offline", "openai:x", folder)
    assert (made["policy"].name, made["policy"].budget.calls) == ("strict", 7)
    assert runs.asked[0][1] == "From a file?\n"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_run_tells_the_head_of_the_journal_to_be_kept_elsewhere(cli: Run, runs: FakeRuns, text: str) -> None:
    runs.outcome = replace(result(), journal_head="0f" * 32)
    _, _, err = cli("run", text, "-q", "What?")
    assert err.endswith(f"journal: /journals/r1.jsonl\njournal head: {'0f' * 32}\n")


def test_run_redacts_its_journal_on_request(cli: Run, runs: FakeRuns, text: str) -> None:
    assert cli("run", text, "-q", "What?", "--redact")[0] == 0
    assert runs.made[0]["redact"] is True


def test_run_hands_on_the_schema_of_the_answer(cli: Run, runs: FakeRuns, text: str, tmp_path: Path) -> None:
    (tmp_path / "form.json").write_text('{"type": "array"}')
    assert cli("run", "-q", "What?", text, "--schema", str(tmp_path / "form.json"), "--quiet")[0] == 0
    assert cli("run", "-q", "What?", text, "--quiet")[0] == 0
    assert runs.schemas == [{"type": "array"}, None]


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ("{", "it is not JSON: Expecting property name"),
        ("[" * 100_000, "it is not JSON: "),
        ("[1]", 'a JSON Schema is an object, such as {"type": "array"}'),
        ('{"type": "strin"}', "the answer's schema is no JSON Schema: at $.type: 'strin' is not valid"),
        ('{"patternProperties": {"a": {}}}', "patternProperties"),
        (None, "No such file"),
    ],
)
def test_a_bad_schema_is_one_line_before_anything_is_spent(
    cli: Run, runs: FakeRuns, tmp_path: Path, schema: str | None, complaint: str
) -> None:
    path = tmp_path / "form.json"
    if schema is not None:
        path.write_text(schema)
    code, out, err = cli("run", "-q", "What?", "-", "--schema", str(path))
    assert (code, out, runs.made) == (2, "", [])
    assert err.count("\n") == 1
    assert err.startswith("rlm-sandbox: ")
    assert str(path) in err
    assert complaint.lower() in err.lower()


def test_run_with_json_prints_the_result_and_nothing_else(cli: Run, runs: FakeRuns, text: str) -> None:
    code, out, _ = cli("run", "-q", "What?", text, "--json")
    assert code == 0
    assert json.loads(out) == runs.outcome.to_dict()  # type: ignore[union-attr]
    keys = ["status", "answer", "reason", "usage", "journal", "journal_head", "turns", "run", "value"]
    assert list(json.loads(out)) == keys


@pytest.mark.parametrize(
    ("outcome", "code", "complaint"),
    [
        (result(), 0, ""),
        (
            result("no_answer", "a bit", "3 replies in a row held no code"),
            1,
            "no answer: 3 replies in a row held no code",
        ),
        (
            result("answered", "so far", "calls"),
            0,
            "answered early, at a limit: calls; to go on: rlm-sandbox journal resume r1 --set budget.calls=4000\n",
        ),
        (result("limit", "partial", "calls"), 3, "a limit ended the run: calls; the answer is a partial one"),
        (
            result("limit", None, "wall_s"),
            3,
            "a limit ended the run: wall_s; to go on: rlm-sandbox journal resume r1 --set budget.wall_s=3600.0\n",
        ),
        (result("failed", None, "the box died", SandboxGoneError("the box died")), 4, "the run failed: the box died"),
        (result("failed", None, "no key", ModelAuthenticationError("no key")), 5, "the run failed: no key"),
        (result("failed", None, "a bug"), 1, "the run failed: a bug"),
        (EngineUnavailableError("no Docker engine answers"), 4, "no Docker engine answers"),
        (ImageError("the image is not built"), 4, "the image is not built"),
        (ModelAuthenticationError("no key"), 5, "no key"),
        (LimitExceededError("calls", 0), 3, "the budget for calls is used up"),
        (ContextError("too large"), 2, "too large"),
    ],
)
def test_the_exit_code_tells_how_the_run_ended(  # noqa: PLR0917 - fixtures and a table
    cli: Run, runs: FakeRuns, text: str, outcome: Result | BaseException, code: int, complaint: str
) -> None:
    runs.outcome = outcome
    got, out, err = cli("run", text, "-q", "What?", "--quiet")
    assert got == code
    assert one_complaint(err) if complaint else not err
    assert complaint in err
    answer = outcome.answer if isinstance(outcome, Result) else None
    assert out == ("" if answer is None else f"{answer}\n")


def test_an_answer_goes_into_a_pipe_whole_and_as_it_is(cli: Run, runs: FakeRuns, text: str) -> None:
    answer = HOSTILE + "é\ud800\r\n" + "x" * 5_000_000
    runs.outcome = result(answer=answer)
    code, out, _ = cli("run", text, "-q", "What?", "--quiet")
    assert code == 0
    assert out == answer.replace("\ud800", "\ufffd") + "\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_interrupted_once_it_stops_with_what_there_is(
    cli: Run, runs: FakeRuns, text: str, flag: list[str], number: signal.Signals
) -> None:
    runs.outcome = result("failed", "half of it", "interrupted")
    runs.during = lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    code, out, err = cli("run", text, "-q", "What?", *flag)
    assert code == 130
    assert "stopping; press Ctrl-C once more" in err
    assert "rlm-sandbox: interrupted; the answer is a partial one" in err
    assert signal.getsignal(number) is before
    if flag:
        assert json.loads(out) == runs.outcome.to_dict()
    else:
        assert out == "half of it\n"


def test_a_terminal_that_closes_and_tells_of_it_twice_is_no_impatience(cli: Run, runs: FakeRuns, text: str) -> None:
    def hang_up() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    runs.outcome, runs.during = result("failed", "half of it", "interrupted"), hang_up
    assert cli("run", text, "-q", "What?")[:2] == (130, "half of it\n")


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt(print):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_model_without_a_price_is_told_when_the_run_begins(cli: Run, runs: FakeRuns, text: str) -> None:
    _, _, err = cli("run", text, "-q", "What?")
    assert "no price is known for root-model: budget.cost_usd does not bound it\n" in err
    assert "no price is known for sub-model: budget.cost_usd does not bound it\n" in err
    assert err.index("no price") < err.index("turn 1")


# Streams that fail ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["full", "closed", "missing"])
def broken(request: pytest.FixtureRequest) -> Iterator[TextIO | None]:
    """Give a stream that takes nothing: it is full, closed, or not there at all."""
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        if request.param == "closed":
            stream.close()
        yield None if request.param == "missing" else stream


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_an_answer_that_stdout_does_not_take_is_told_to_be_in_the_journal(
    cli: Run, runs: FakeRuns, text: str, monkeypatch: pytest.MonkeyPatch, *, broken: TextIO | None, flag: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    code, _, err = cli("run", text, "-q", "What?", "--quiet", *flag)
    reason = "stdout is closed" if broken is None or broken.closed else "No space left on device"
    assert (code, err) == (1, f"rlm-sandbox: cannot write the answer: {reason}; it is in /journals/r1.jsonl\n")


def test_an_answer_is_printed_whatever_becomes_of_stderr(
    cli: Run, runs: FakeRuns, text: str, monkeypatch: pytest.MonkeyPatch, broken: TextIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", broken)
    runs.outcome = result("limit", "partial", "calls")
    assert cli("run", text, "-q", "What?")[:2] == (3, "partial\n")
    assert cli("run", "missing", "-q", "What?")[:2] == (2, "")


@pytest.mark.parametrize("arguments", [["policy", "show"], ["policy", "show", "--json"], ["--help"], ["--version"]])
def test_other_output_that_stdout_does_not_take_is_an_error(
    cli: Run, monkeypatch: pytest.MonkeyPatch, broken: TextIO | None, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    code, _, err = cli(*arguments)
    assert code == 1
    assert one_complaint(err)
    assert "cannot write the output: " in err


def test_the_answer_comes_before_the_closing_notes(runs: FakeRuns, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = io.StringIO()
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    runs.outcome = result("limit", "partial", "calls")
    assert main(["run", text, "-q", "What?"]) == 3
    end = "a limit ended the run: calls; the answer is a partial one; to go on: rlm-sandbox journal resume r1 "
    end += "--set budget.calls=4000"
    notes = f"rlm-sandbox: {end}\njournal: /journals/r1.jsonl\n"
    assert both.getvalue().endswith("partial\n" + notes)


@pytest.mark.parametrize("arguments", [["run", "-q", "x"], ["run", "-q", "x", "-"], ["exec"], ["exec", "-", "--json"]])
def test_a_closed_stdin_asks_for_a_file(
    cli: Run, runs: FakeRuns, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli(*arguments) == (2, "", "rlm-sandbox: stdin is closed: name a FILE\n")


_AFTER_CLOSING = """
import os
from orchestrator.cli.main import main
os.close(1), os.close(2)
main(["policy", "show"])
os._exit(os.open(os.devnull, os.O_RDONLY))
"""


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    assert subprocess.run([sys.executable, "-c", _AFTER_CLOSING], cwd=ROOT, check=False).returncode > 2


# What goes in as the context ------------------------------------------------------------------------------------------


def test_files_that_are_no_text_are_left_out_and_told(tmp_path: Path, cli: Run, runs: FakeRuns) -> None:
    write(tmp_path, a_dot_txt="A", nul_dot_bin=b"a\0b", short_dot_txt=b"\xe9")
    assert load_context([str(tmp_path)], 1).skipped == ["nul.bin", "short.txt"]
    _, _, err = cli("run", str(tmp_path), "-q", "What?")
    assert "left out 2 files that cannot be read as text: nul.bin, short.txt\n" in err
    assert runs.asked[0][0] == {"a.txt": "A"}


def test_exec_tells_what_was_left_out_of_its_context(tmp_path: Path, cli: Run, box: FakeBox, text: str) -> None:
    folder = write(tmp_path / "folder", a="A", b=b"\xff")
    assert cli("exec", text, "--context", str(folder)) == (0, "", "left out 1 file that cannot be read as text: b\n")
    assert box.opened[1] == {"a": "A"}


def test_files_may_stand_on_both_sides_of_an_option(cli: Run, runs: FakeRuns, tmp_path: Path) -> None:
    write(tmp_path, a="A", b="B")
    code, _, _ = cli("run", str(tmp_path / "a"), "-q", "What?", str(tmp_path / "b"))
    assert code == 0
    assert runs.asked[0][0] == {"a": "A", "b": "B"}


# exec -----------------------------------------------------------------------------------------------------------------


CELLS = "a = 1\n# %% second\nprint(a)\n#%% is no marker\n# %%\n\n# %% last\na\n"


def test_cells_are_split_at_marker_lines_only() -> None:
    assert split_cells(CELLS) == ["a = 1\n", "print(a)\n#%% is no marker\n", "a\n"]
    assert split_cells("x = '''\n # %%\n'''\n") == ["x = '''\n # %%\n'''\n"]
    assert split_cells("a\r\n# %%\r\nb") == ["a\n", "b"]
    assert split_cells("# %%\n\n") == []


def test_exec_prints_what_the_cells_print(cli: Run, box: FakeBox, tmp_path: Path) -> None:
    box.results = [
        ExecutionResult("ok", stdout="out" + HOSTILE, stderr="err" + HOSTILE),
        ExecutionResult("ok", result="1"),
        ExecutionResult("error", error=CellError("ValueError", "bad", "Traceback\x1b[31m…\nValueError: bad")),
    ]
    (tmp_path / "cells.py").write_text(CELLS)
    code, out, err = cli("exec", str(tmp_path / "cells.py"), "--timeout", "2.5", "--set", "limits.pids=30")
    assert (code, out) == (1, "outred\n1\n")
    assert err == "errred\nTraceback…\nValueError: bad\nrlm-sandbox: cell 3: error after 0.0 s\n"
    assert [timeout for _, timeout in box.ran] == [2.5, 2.5, 2.5]
    assert box.opened[0].limits.pids == 30
    assert box.opened[1] is None


def test_exec_with_json_prints_the_list_of_results_exactly(
    cli: Run, box: FakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ExecutionResult(
        "timeout", state_lost=True, stdout=HOSTILE, error=CellError("T", "v", "t"), detail="killed"
    )
    box.results = [failed]
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\n# %%\nb"))
    code, out, err = cli("exec", "--json")
    assert (code, err) == (1, "")
    told = json.loads(out)
    assert told[0] == failed.to_dict()
    assert [item["status"] for item in told] == ["timeout", "ok"]
    documented = [
        "status",
        "state_lost",
        "stdout",
        "stderr",
        "result",
        "error",
        "truncated",
        "elapsed_s",
        "detail",
        "ladder",
    ]
    assert list(told[0]) == documented
    assert list(told[0]["error"]) == ["name", "value", "traceback"]


def test_exec_loads_the_context(cli: Run, box: FakeBox, text: str, tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("context")
    assert cli("exec", str(tmp_path / "c.py"), "--context", text)[0] == 0
    assert box.opened[1] == "some text"


def test_exec_keeps_what_ran_when_the_box_fails(cli: Run, box: FakeBox, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(CELLS)
    box.results = [ExecutionResult("ok", stdout="kept\n"), SandboxGoneError("the box is gone")]
    code, out, err = cli("exec", str(tmp_path / "cells.py"), "--json")
    assert (code, err) == (4, "rlm-sandbox: the box is gone\n")
    assert [item["stdout"] for item in json.loads(out)] == ["kept\n"]


def test_exec_without_an_engine_is_exit_code_4(cli: Run, box: FakeBox, text: str) -> None:
    box.failure = EngineUnavailableError("no Docker engine answers: start dockerd, or set DOCKER_HOST")
    code, out, err = cli("exec", text)
    assert (code, out) == (4, "")
    assert err == "rlm-sandbox: no Docker engine answers: start dockerd, or set DOCKER_HOST\n"


def test_exec_interrupted_keeps_what_the_running_cell_has_printed(cli: Run, box: FakeBox, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(CELLS)
    box.during = lambda: os.kill(os.getpid(), signal.SIGTERM)
    code, out, err = cli("exec", str(tmp_path / "cells.py"), "--json")
    assert code == 130
    assert [(item["status"], item["stdout"]) for item in json.loads(out)] == [("ok", ""), ("cancelled", "so far\n")]
    assert err.endswith("rlm-sandbox: interrupted in cell 2 of 3\n")
    box.ran.clear()
    code, out, err = cli("exec", str(tmp_path / "cells.py"))
    assert (code, out) == (130, "so far\n")
    assert "cell 2: cancelled after 0.0 s (it was asked to stop: interrupted)" in err
    assert len(box.ran) == 2


def test_exec_interrupted_while_the_box_opens_runs_nothing(cli: Run, box: FakeBox, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(CELLS)
    box.opening = lambda: os.kill(os.getpid(), signal.SIGINT)
    code, out, err = cli("exec", str(tmp_path / "cells.py"), "--json")
    assert (code, json.loads(out), box.ran) == (130, [], [])
    assert err.endswith("rlm-sandbox: interrupted after 0 of 3 cells\n")


# image, clean ---------------------------------------------------------------------------------------------------------


def test_image_build_prints_the_id_and_its_progress_apart(cli: Run, engine: FakeEngine) -> None:
    assert cli("image", "build") == (0, "sha256:1\n", "building the image\n")
    code, out, _ = cli("image", "build", "--force", "--json")
    assert (code, json.loads(out)) == (0, {"id": "sha256:1", "content": "abc", "protocol": 1})
    assert engine.built == [False, True]


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("unix:///nonexistent.sock", "DOCKER_HOST=unix:///nonexistent.sock (No such file or directory)"),
        ("tcp://127.0.0.1:1", "DOCKER_HOST=tcp://127.0.0.1:1 (Connection refused)"),
        ("nonsense://x", "DOCKER_HOST=nonsense://x (Invalid bind address protocol: nonsense://x)"),
    ],
)
def test_an_engine_that_is_down_is_named_with_the_reason(host: str, told: str) -> None:
    with process("clean", env={**os.environ, "DOCKER_HOST": host}, stderr=subprocess.PIPE) as started_:
        _, err = started_.communicate()
    assert started_.returncode == 4
    assert err.decode() == f"rlm-sandbox: no Docker engine answers at {told}: start dockerd, or set DOCKER_HOST\n"


def test_clean_tells_what_it_removed(cli: Run, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("clean") == (0, "nothing to remove\n", "")

    async def sweep(_: Any) -> list[str]:
        return ["0123456789abcdef"]

    monkeypatch.setattr("orchestrator.sandbox.container.sweep", sweep)
    assert cli("clean") == (0, "removed 0123456789ab\n", "")
    assert json.loads(cli("clean", "--json")[1]) == {"removed": ["0123456789abcdef"]}


# journal --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(state: Path) -> Path:
    """Return a journal with every kind of event, where the command line looks for it."""
    with JournalWriter.create(state, "run-abc") as writer:
        recorder = Recorder("run-abc", None, (writer,))
        for event in a_run():
            recorder.emit(event)
    return writer.path


def record(folder: Path, run: str, *happened: Event, time: float = 1e9, parent: str | None = None) -> None:
    """Write a journal that holds these events, or one that a run began with."""
    with JournalWriter.create(folder, run) as writer:
        for number, event in enumerate(happened or [started()]):
            writer(Envelope(run, parent, number, 0.0, time, event))


def test_journal_show_finds_a_run_by_path_id_or_beginning(cli: Run, journal: Path) -> None:
    texts = {cli("journal", "show", name)[1] for name in (str(journal), "run-abc", "run-a")}
    assert len(texts) == 1
    assert "answered, 1 turn" in texts.pop()
    code, out, _ = cli("journal", "show", "abc", "--journal", str(journal.parent))
    assert (code, out) == (2, "")


def test_journal_show_with_an_ambiguous_beginning_asks_for_more(cli: Run, journal: Path) -> None:
    for run in ("run-abcd", "run-x", "run-x.1", "run-x.1.1"):
        record(journal.parent, run)
    assert cli("journal", "show", "run-abc")[0] == 0
    code, _, err = cli("journal", "show", "run-")
    assert code == 2
    assert "3 runs" in err
    assert cli("journal", "show", "run-x")[0] == cli("journal", "show", "run-x.1")[0] == 0


def test_journal_show_with_json_prints_every_record(cli: Run, journal: Path) -> None:
    code, out, _ = cli("journal", "show", str(journal), "--json")
    told = json.loads(out)
    assert code == 0
    assert [item["kind"] for item in told] == [event.kind for event in a_run()]
    assert [item["seq"] for item in told] == list(range(len(told)))


def test_journal_show_of_a_damaged_journal_shows_what_there_is_before(cli: Run, journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b"noise\n")
    code, out, err = cli("journal", "show", str(journal))
    assert code == 1
    assert "answered, 1 turn" in out
    assert one_complaint(err)
    assert "is not JSON" in err


def test_journal_list_lists_the_runs_newest_first_and_no_children(cli: Run, journal: Path) -> None:
    record(journal.parent, "run-new", started("And\nthen?" + HOSTILE), time=2e9)
    record(journal.parent, "run-new.1", started("Inside?", 1), time=2e9, parent="run-new")
    with journal.open("ab") as file:
        file.write(b'{"v":1,"torn')
    (journal.parent / "noise.jsonl").write_text("noise\n")
    code, out, err = cli("journal", "list")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["run-new", "run-abc"]
    assert lines[0].endswith("  unfinished  And then?red")
    assert lines[1].endswith("  How many?")
    assert err.startswith("left out: ")
    assert err.count("\n") == 1


def test_journal_list_with_json_tells_the_same_as_data(cli: Run, journal: Path, tmp_path: Path) -> None:
    code, out, _ = cli("journal", "list", "--json")
    (told,) = json.loads(out)
    assert code == 0
    assert isinstance(told.pop("time"), float)
    path = str(journal)
    assert told == {"run": "run-abc", "status": "answered", "query": "How many?", "path": path, "session": None}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli("journal", "list", "--journal", str(empty), "--json")[:2] == (0, "[]\n")
    assert cli("journal", "list", "--journal", str(empty)) == (0, "", f"no runs in {empty}\n")


# The process ----------------------------------------------------------------------------------------------------------


def process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "orchestrator", *arguments], cwd=ROOT, **options)


def test_a_full_stdout_does_not_change_the_exit_code_at_exit() -> None:
    with Path("/dev/full").open("wb") as full, process("policy", "show", stdout=full, stderr=subprocess.PIPE) as ended:
        _, err = ended.communicate()
    assert (ended.returncode, err) == (1, b"rlm-sandbox: cannot write the output: No space left on device\n")


def test_a_reader_that_has_gone_is_no_error(journal: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with process("journal", "show", str(journal), stdout=writing, stderr=subprocess.PIPE) as started_:
        os.close(writing)
        _, err = started_.communicate()
    assert (started_.returncode, err) == (0, b"")


def test_an_interrupt_before_there_is_anything_to_stop_is_exit_code_130(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            os.kill(os.getpid(), signal.SIGINT)
            return super().read(size)

    # A shell starts what runs in its background with SIGINT ignored, and tests may run there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stdin = Stdin(b"")
    stdin.buffer = Interrupted()
    monkeypatch.setattr(sys, "stdin", stdin)
    try:
        assert cli("exec") == (130, "", "rlm-sandbox: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)


_STUBBORN = """
import signal, sys, time
from orchestrator.cli.interrupt import Interrupt

async def work(stop):
    print("working", flush=True)
    time.sleep(60)  # a loop that is stuck: only a handler that does not need it can help

with Interrupt(print) as interrupt:
    interrupt.run(work)
"""


def test_interrupted_twice_it_leaves_at_once_even_when_stuck() -> None:
    command = [sys.executable, "-c", _STUBBORN]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None
        stuck.stdout.readline()
        stuck.send_signal(signal.SIGINT)
        # Not SIGINT again: two of a kind that are pending together are one.
        stuck.send_signal(signal.SIGTERM)
        stuck.wait(10)
    assert stuck.returncode == 130
