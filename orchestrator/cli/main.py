"""The entry point: parse, run one subcommand, and turn whatever happens into one line and an exit code.

Subcommands import what they need when they run, so that ``--help`` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from orchestrator.cli import chat, clean, doctor, image, journal, kernel, policy, run
from orchestrator.cli import exec as exec_
from orchestrator.cli.common import EXIT_INTERRUPTED, EXIT_NO_ANSWER, PROG, OutputError, Parser, note, out, say
from orchestrator.errors import RlmSandboxError

_EPILOG = """\
exit codes:
  0  answered, or done
  1  it ran, and there is no answer: no Final, a cell that failed, a control that is missing
  2  wrong usage or configuration
  3  a limit ended the run; a partial answer is printed
  4  the sandbox or the engine failed
  5  the model failed
  130  interrupted

Set RLM_SANDBOX_DEBUG=1 to see where an unexpected error comes from.
"""

_COMMANDS = (run, chat, exec_, doctor, image, policy, journal, kernel, clean)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each subcommand's function is its ``handler``."""
    parser = Parser(
        prog=PROG,
        description="Answer questions over texts far larger than a context window; model code runs in a sandbox.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the versions of the package and of its protocol")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    debug = bool(os.environ.get("RLM_SANDBOX_DEBUG"))
    _fill_standard_descriptors()
    try:
        parsed = _parse(build_parser(), arguments)
        code: int = parsed.handler(parsed)
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary of the process: whatever comes must become an exit code
        if debug:
            note(traceback.format_exc())
        if isinstance(error, RlmSandboxError):
            say(f"cannot write the output: {error}" if isinstance(error, OutputError) else str(error))
            return error.exit_code
        hint = "" if debug else "; RLM_SANDBOX_DEBUG=1 shows where"
        say(f"unexpected {type(error).__name__}: {error}{hint}")
        return EXIT_NO_ANSWER
    return code


def _fill_standard_descriptors() -> None:
    # Where one was closed (``>&-``), the next file or socket to be opened would take its number, and what a library
    # or a handler writes to that number with it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr's
        pass
    os.close(descriptor)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    parsed, rest = parser.parse_known_args(arguments)
    # argparse gives up on a list of files at the first option between them.
    if rest and isinstance(getattr(parsed, "files", None), list) and not any(_is_option(item) for item in rest):
        parsed.files += rest
    elif rest:
        named: argparse.ArgumentParser = parsed.parser
        named.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and argument != "-"


class _Version(argparse.Action):
    """Prints the versions and leaves; they are looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002 - argparse's
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from sandbox_image.wire import PROTOCOL_VERSION

        try:
            package = version(PROG)
        except PackageNotFoundError:
            package = "from a source tree that is not installed"
        out(f"{PROG} {package} (protocol {PROTOCOL_VERSION})")
        sys.exit(0)
