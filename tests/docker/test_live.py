"""What is under way, streamed and drawn, with a real box."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import RLM
from tests.support import policies
from tests.support.terminal import Terminal

pytestmark = pytest.mark.docker
SCRIPT = '''
name = "asks"

[[root]]
reply = """
```repl
answers = llm_query_batched([f"How many words are there?\\\\n\\\\n{n} words" for n in range(30)])
print(len(answers), "\\\\x1b[2J\\\\x1b]0;pwned\\\\x07 answers")
Final = str(len(answers))
```
"""
'''


@pytest.mark.anyio
async def test_the_events_of_a_real_run_stream_while_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "script.toml").write_text(SCRIPT)
    rlm = RLM(f"scripted:{tmp_path / 'script.toml'}", "offline", policies.base(), tmp_path / "journal")
    async with rlm.stream("text", "What?") as run:
        kinds = [envelope.event.kind async for envelope in run]
        result = await run.result()
    assert (result.status, result.answer) == ("answered", "30")
    assert (kinds[0], kinds[-1]) == ("run_started", "run_finished")
    assert kinds.count("subcall_finished") == 30
    assert "<pre" in result._repr_html_()


def test_a_real_run_on_a_terminal_and_its_page(tmp_path: Path) -> None:
    (tmp_path / "script.toml").write_text(SCRIPT)
    (tmp_path / "text").write_text("a text")
    master, slave = pty.openpty()
    arguments = ["run", str(tmp_path / "text"), "-q", "What?", "--model", f"scripted:{tmp_path / 'script.toml'}"]
    arguments += [
        "--sub-model",
        "offline",
        "--policy",
        os.environ.get(policies.VARIABLE) or "default",
        "--journal",
        str(tmp_path / "journal"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    written = b""
    while select.select([master], [], [], 120)[0]:
        try:
            written += os.read(master, 1 << 16)
        except OSError:  # EIO: the other side is closed
            break
    os.close(master)
    out, _ = process.communicate(timeout=60)
    terminal = Terminal(80, 24)
    terminal.write(written.decode())
    assert (process.returncode, out) == (0, b"30\n")
    text = terminal.text()
    assert any(row.startswith("│ answers = llm_query_batched") for row in text)
    assert any(row.endswith("answers") and row.startswith("  30") for row in text)
    assert not [row for row in text if "in flight" in row or "━" in row]
    (journal,) = (tmp_path / "journal").glob("*.jsonl")
    page = tmp_path / "page.html"
    subprocess.run([sys.executable, "-m", "orchestrator", "journal", "html", str(journal), "-o", str(page)], check=True)
    assert "How many words are there" in page.read_text("utf-8")
