"""The README's commands and examples do what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import snippets
from tests.support.snippets import Snippet

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = [snippet for section in snippets.sections(README).values() for snippet in section]
EXAMPLES = [snippet for snippet in SNIPPETS if snippet.kind == "python"]
# Those of the first screen set up what tests run in.
COMMANDS = [snippet for snippet in SNIPPETS if snippet.kind == "command" and not snippet.source.startswith("make ")]

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.source[:40])
def test_a_command_prints_what_is_shown(command: Snippet, tmp_path: Path) -> None:
    printed = snippets.run(command, ROOT, tmp_path)
    assert snippets.agrees(printed, command.shown or ""), printed


def test_the_commands_of_the_first_screen_are_targets_of_make() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (\w+)", README)) <= set(targets)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: Snippet, tmp_path: Path) -> None:
    printed = snippets.run(example, ROOT, tmp_path)
    assert "Traceback" not in printed
    assert printed.strip()


def test_the_example_with_a_form_gives_the_object(tmp_path: Path) -> None:
    (example,) = [each for each in EXAMPLES if "schema=" in each.source]
    assert snippets.run(example, ROOT, tmp_path) == "name='Alder-1' reopened=1911\n"


def test_the_first_example_answers_the_question(tmp_path: Path) -> None:
    printed = snippets.run(EXAMPLES[0], ROOT, tmp_path).splitlines()
    assert printed[0] == "answered"
    assert printed[1].startswith("1 of 2 documents")
