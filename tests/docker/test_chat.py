"""The chat command over a real box: what a question leaves in it the next one finds, and a later chat, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sandbox.engine import Engine
from orchestrator.trajectory.journal import read
from orchestrator.trajectory.verify import verify
from tests.support.live import POLICY

pytestmark = pytest.mark.docker

FIRST = """
[[root]]
reply = '''
```repl
seen = context.count("TODO")
Final = f"{seen} of them"
```
'''
"""
SECOND = """
[[root]]
reply = '''
```repl
Final = f"{seen} in {len(contexts)} contexts, and {context!r}"
```
'''
"""
THIRD = """
[[root]]
reply = '''
```repl
Final = f"still {seen}, {contexts[0][:4]!r}"
```
'''
"""


def chat(asked: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    settings = [f"limits.memory_mb={POLICY.limits.memory_mb}", f"sandbox.runtime={POLICY.sandbox.runtime}"]
    command = [sys.executable, "-m", "orchestrator", "chat", *map(str, arguments)]
    command += [f"--set={setting}" for setting in settings]
    return subprocess.run(command, input=asked, capture_output=True, text=True, check=False)


def test_a_question_finds_the_variables_of_the_one_before_and_so_does_a_later_chat(
    engine: Engine, tmp_path: Path
) -> None:
    script, text, more, journals = (tmp_path / name for name in ("script.toml", "text.txt", "more.txt", "journals"))
    script.write_text(FIRST + SECOND)
    text.write_text("TODO one\nTODO two\n")
    more.write_text("more")
    model: list[str | Path] = ["--model", f"scripted:{script}", "--journal", journals, "--quiet"]
    done = chat(f"How many?\n/add {more}\nAnd now?\n", text, *model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 of them\n\n2 in 2 contexts, and 'more'\n", "")
    first, second = sorted(journals.iterdir())
    boxes = [record.fields for path in (first, second) for record in read(path) if record.kind == "sandbox_opened"]
    assert [box["lent"] for box in boxes] == [False, True]
    assert boxes[0]["container"] == boxes[1]["container"]
    script.write_text(THIRD)  # a script begins at its beginning, and the session is behind its first two replies
    done = chat("Still?\n", "--resume", first.stem.rpartition("-")[0], *model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "still 2, 'TODO'\n", "")
    reports = [verify(path) for path in journals.iterdir()]
    assert [(report.problems, report.notes) for report in reports] == [([], [])] * 3
