"""The README's commands and examples do what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^```console\n\$ (.+?)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.docker


def _run(command: list[str], tmp_path: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "OPENAI"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("…"))


@pytest.mark.parametrize(("command", "shown"), [pair for pair in CONSOLE if "make " not in pair[0]])
def test_a_command_prints_what_is_shown(command: str, shown: str, tmp_path: Path) -> None:
    printed = _run(["bash", "-c", command], tmp_path)
    for line in shown.splitlines():
        assert re.search(f"^{_pattern(line)}$", printed, re.MULTILINE), printed


def test_the_commands_of_the_first_screen_are_targets_of_make() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (\w+)", README)) <= set(targets)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    printed = _run([sys.executable, "-c", example], tmp_path)
    assert "Traceback" not in printed
    assert printed.strip()


def test_the_example_with_a_form_gives_the_object(tmp_path: Path) -> None:
    (example,) = [each for each in EXAMPLES if "schema=" in each]
    assert _run([sys.executable, "-c", example], tmp_path) == "name='Alder-1' reopened=1911\n"


def test_the_first_example_answers_the_question(tmp_path: Path) -> None:
    printed = _run([sys.executable, "-c", EXAMPLES[0]], tmp_path).splitlines()
    assert printed[0] == "answered"
    assert printed[1].startswith("1 of 2 documents")
