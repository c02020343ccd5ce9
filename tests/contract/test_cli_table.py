"""What ``orchestrator/cli/CLI.md`` says of the command line is what the parser and the errors have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.cli import common
from orchestrator.cli.main import build_parser
from orchestrator.errors import RlmSandboxError

CLI_MD = Path(common.__file__).parent / "CLI.md"

# The commands of the design; a change here is a change of the interface.
COMMANDS = {
    "run": "[FILE…] -q --query --query-file --schema --unpack --model --sub-model --policy --set --journal --redact "
    "--quiet --json",
    "chat": "[FILE…] --resume --on-divergence --model --sub-model --unpack --policy --set --journal --redact --quiet "
    "--json",
    "exec": "[FILE] --context --unpack --policy --set --timeout --json",
    "doctor": "--policy --set --json",
    "image build": "--force --json",
    "policy show": "[NAME|PATH] --effective --format --full --set --json",
    "policy check": "FILE --json",
    "journal resume": "FILE|RUN [FILE…] --on-divergence --model --sub-model --unpack --set --journal --quiet --json",
    "journal show": "FILE|RUN --journal --turn --calls --full --summary --json",
    "journal html": "FILE|RUN -o --output --journal --json",
    "journal verify": "FILE|RUN --head --journal --json",
    "journal list": "--journal --json",
    "kernel install": "--policy --name --prefix --sys-prefix --plain --json",
    "clean": "--json",
}


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, inner in action.choices.items():
            yield from commands(inner, f"{name} {word}".strip())


def usage(parser: argparse.ArgumentParser) -> set[str]:
    names: set[str] = set()
    for action in parser._actions:
        if action.option_strings:
            names |= set(action.option_strings) - {"-h", "--help"}
        else:
            optional = {"*": f"[{action.metavar}…]", "?": f"[{action.metavar}]"}
            names.add(optional.get(str(action.nargs), str(action.metavar)))
    return names


def test_the_parser_has_the_commands_and_options_of_the_design() -> None:
    assert {name: usage(parser) for name, parser in commands(build_parser())} == {
        name: set(words.split()) for name, words in COMMANDS.items()
    }


def test_the_document_lists_every_command_with_its_options() -> None:
    table = CLI_MD.read_text("utf-8").replace("\\|", "¦")
    rows = re.findall(r"^\| `([a-z ]+)` \|(.*?)\|(.*?)\|$", table, re.MULTILINE)
    told = {name: set(re.findall(r"`([^`]+)`", f"{first} {second}".replace("¦", "|"))) for name, first, second in rows}
    assert told == {name: set(words.split()) for name, words in COMMANDS.items()}


def test_every_command_speaks_json_and_has_a_handler() -> None:
    for name, parser in commands(build_parser()):
        assert "--json" in usage(parser), name
        assert callable(parser.get_default("handler")), name
        assert parser.description, name


def all_errors(kind: type[RlmSandboxError] = RlmSandboxError) -> Iterator[type[RlmSandboxError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from all_errors(inner)


def test_every_error_has_a_documented_exit_code() -> None:
    told = set(map(int, re.findall(r"^\| (\d+) \|", CLI_MD.read_text("utf-8"), re.MULTILINE)))
    assert told == {0, 1, 2, 3, 4, 5, 130}
    assert {kind.exit_code for kind in all_errors()} <= told


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigurationError, common.EXIT_USAGE),
        (errors.LimitExceededError, common.EXIT_LIMIT),
        (errors.SandboxError, common.EXIT_SANDBOX),
        (errors.ModelError, common.EXIT_MODEL),
        (errors.JournalError, common.EXIT_NO_ANSWER),
    ],
)
def test_a_familys_exit_code_holds_for_all_of_it(kind: type[RlmSandboxError], code: int) -> None:
    assert {inner.exit_code for inner in all_errors(kind)} == {code}


def test_the_help_lists_every_exit_code() -> None:
    text = build_parser().format_help()
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert re.search(rf"^  {code}  \S", text, re.MULTILINE)
