"""A run that is killed in a real box, by a signal that nothing can catch, and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sandbox.engine import Engine
from orchestrator.trajectory.journal import read
from tests.support.live import POLICY, TIMEOUT

pytestmark = pytest.mark.docker

FIRST = """
[[root]]
reply = '''
```repl
answers = [llm_query(f"question {number}") for number in range(12)]
print(len(answers), context[:5])
```
'''
"""
SECOND = """
[[root]]
reply = '''
```repl
Final = " ".join(answers) + " " + llm_query("and last")
```
'''
"""
SUB = """
[[sub]]
match = ""
reply = "yes"
delay_s = 0.15
"""


def command(*arguments: str | Path) -> list[str]:
    settings = [f"limits.memory_mb={POLICY.limits.memory_mb}", f"sandbox.runtime={POLICY.sandbox.runtime}"]
    return [sys.executable, "-m", "orchestrator", *map(str, arguments), *(f"--set={setting}" for setting in settings)]


def journal_of(folder: Path) -> list[dict[str, Any]]:
    paths = list(folder.glob("*.jsonl"))
    return [record.to_dict() for path in paths for record in read(path)]


def answered(folder: Path) -> int:
    return sum(record["kind"] == "subcall_finished" for record in journal_of(folder))


def test_a_run_killed_in_the_middle_of_a_cell_goes_on_and_asks_for_what_is_missing(
    engine: Engine, tmp_path: Path
) -> None:
    script, text, journals = tmp_path / "script.toml", tmp_path / "text.txt", tmp_path / "journals"
    script.write_text(FIRST + SECOND + SUB)
    text.write_text("words of the context")
    run = command("run", text, "-q", "How?", "--model", f"scripted:{script}", "--journal", journals, "--quiet")
    with subprocess.Popen(run, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + TIMEOUT
        while answered(journals) < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    before = answered(journals)
    assert before < 13
    script.write_text(SECOND + SUB)  # a script begins at its beginning, and the run is behind its first reply
    (path,) = journals.glob("*.jsonl")
    resumed = subprocess.run(
        command("journal", "resume", path.stem[:20], "--journal", journals, "--quiet", "--json"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    said = json.loads(resumed.stdout)
    assert (said["status"], said["answer"]) == ("answered", " ".join(["yes"] * 13))
    records = journal_of(journals)
    assert sum(record["kind"] == "resumed" for record in records) == 1
    assert not any(record["kind"] == "diverged" for record in records)
    # Each question has one answer in the journal; one may have been under way when it was killed, and is asked again.
    started = [record["prompt"] for record in records if record["kind"] == "subcall_started"]
    assert answered(journals) == 13
    assert len(started) in (13, 14)
    again = subprocess.run(command("journal", "resume", path, "--quiet"), capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, said["answer"] + "\n")
