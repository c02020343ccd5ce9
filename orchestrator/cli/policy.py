"""``rlm-sandbox policy``: what a policy says, and whether a file is one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from orchestrator.cli.common import EXIT_OK, Parser, add_json, add_set, load_policy, out, out_json
from orchestrator.errors import PolicyError


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("policy", help="show or check a policy", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    show = verbs.add_parser(
        "show",
        help="print the effective values",
        description="Print every value of a policy, defaults included, as TOML that is itself a policy.",
        allow_abbrev=False,
    )
    show.add_argument("policy", nargs="?", default="default", metavar="NAME|PATH", help="a shipped one or a file")
    add_set(show)
    add_json(show, "the values")
    show.set_defaults(handler=handle_show)
    check = verbs.add_parser(
        "check",
        help="check a policy file",
        description="Check a policy file: exit 0 when it is valid, 2 with what is wrong with it.",
        allow_abbrev=False,
    )
    check.add_argument("policy", metavar="FILE", help="a TOML file, or a shipped policy's name")
    add_json(check, "validity, and what is wrong,")
    check.set_defaults(handler=handle_check)


def handle_show(args: argparse.Namespace) -> int:
    """Print the effective policy.

    Raises:
        PolicyError: it does not load.
    """
    data = load_policy(args.policy, args.assignments).model_dump(mode="json")
    if args.json:
        out_json(data)
    else:
        out(to_toml(data), end="")
    return EXIT_OK


def handle_check(args: argparse.Namespace) -> int:
    """Say that the file is a policy.

    Raises:
        PolicyError: it is not; the message tells why.
    """
    try:
        policy = load_policy(args.policy, [])
    except PolicyError as error:
        if args.json:
            out_json({"policy": args.policy, "valid": False, "error": str(error)})
        raise
    if args.json:
        out_json({"policy": args.policy, "name": policy.name, "valid": True})
    else:
        out(f"{args.policy}: a valid policy")
    return EXIT_OK


def to_toml(data: dict[str, Any]) -> str:
    """Write a policy's plain data as TOML: scalars and lists of strings, in tables one level deep."""
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for name, table in data.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    # For these types JSON is TOML, but for the one control character that JSON lets stand.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
