"""``rlm-sandbox policy``: what a policy says, what it means, and what an engine or a cluster gets for it."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import EXIT_OK, Parser, add_json, add_set, load_policy, note, out, out_json, say
from orchestrator.errors import ConfigurationError, PolicyError

if TYPE_CHECKING:
    from orchestrator.cli.explain import Difference
    from orchestrator.policy import Policy

_WIDTH = 80
_FORMATS = ("docker", "podspec", "seccomp")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("policy", help="show, explain or check a policy", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    show = verbs.add_parser(
        "show",
        help="print the effective values, or what is made of them",
        description="Print every value of a policy, defaults included, as TOML that is itself a policy; "
        "or what the engine gets for it. No engine is asked.",
        allow_abbrev=False,
    )
    show.add_argument("policy", nargs="?", default="default", metavar="NAME|PATH", help="a shipped one or a file")
    show.add_argument(
        "--effective", action="store_true", help="print the body of the engine's request that creates the container"
    )
    show.add_argument(
        "--format",
        choices=_FORMATS,
        help="what --effective prints: the container for docker (the default), the same as a Kubernetes Pod with a "
        "NetworkPolicy (podspec), or the seccomp profile alone; all are JSON",
    )
    show.add_argument("--full", action="store_true", help="with the whole seccomp profile instead of its hash")
    add_set(show)
    add_json(show, "the values")
    show.set_defaults(handler=handle_show)
    check = verbs.add_parser(
        "check",
        help="check a policy file, and explain it",
        description="Check a policy file: exit 0 and what it means when it is valid, 2 and what is wrong with it when "
        "it is not. What cannot be meant is pointed out, and is no error.",
        allow_abbrev=False,
    )
    check.add_argument("policy", metavar="FILE", help="a TOML file, or a shipped policy's name")
    add_json(check, "validity, and what is wrong,")
    check.set_defaults(handler=handle_check)


def handle_show(args: argparse.Namespace) -> int:
    """Print the policy, or what is made of it.

    Raises:
        PolicyError: it does not load.
        ConfigurationError: the options do not go together.
    """
    kind = args.format or ("docker" if args.effective else "")
    if args.full and kind != "docker":
        raise ConfigurationError("--full: give it with --effective; it is about the seccomp profile in there")
    policy = load_policy(args.policy, args.assignments)
    if kind:
        _show_effective(policy, kind, full=args.full, as_json=args.json)
        return EXIT_OK
    data = policy.model_dump(mode="json")
    if args.json:
        out_json(data)
    else:
        out(to_toml(data), end="")
    return EXIT_OK


def _show_effective(policy: Policy, kind: str, *, full: bool, as_json: bool) -> None:
    from orchestrator.sandbox import effective, hardening, podspec

    if kind == "docker":
        out_json(effective.body(policy, full=full))
    elif kind == "seccomp":
        # As it is sent, to the byte: its hash is in the other formats.
        out(hardening.seccomp_profile(policy, effective.seccomp()), end="")
    else:
        profile = effective.seccomp()
        out_json(podspec.manifest(policy, effective.image_reference(policy), profile))
        if not as_json:
            note("A Pod has no words for these; they are in its annotations, too:")
            for line in podspec.unsaid(policy, profile):
                note(f"- {line}")


def handle_check(args: argparse.Namespace) -> int:
    """Say whether the file is a policy, and what it means or what is wrong with it; return 0 or 2."""
    from orchestrator.cli import explain
    from orchestrator.policy import Policy

    try:
        policy = load_policy(args.policy, [])
    except PolicyError as error:
        if args.json:
            out_json({"policy": args.policy, "valid": False, "error": str(error), "problems": error.problems})
        for problem in error.problems:
            say(problem)
        return error.exit_code
    meaning, doubts = explain.meaning(policy), explain.doubts(policy)
    differences = explain.compare(policy, Policy.load())
    if args.json:
        out_json(
            {
                "policy": args.policy,
                "name": policy.name,
                "valid": True,
                "meaning": dict(meaning),
                "compared_with_default": [asdict(difference) for difference in differences],
                "doubts": doubts,
            }
        )
        return EXIT_OK
    out(f"{args.policy}: a valid policy")
    for heading, lines in meaning:
        _list(heading, lines)
    _list("Compared with the default policy", _table(differences) or ["the same in everything"])
    _list("Hardly meant", doubts)
    return EXIT_OK


def _list(heading: str, lines: list[str]) -> None:
    if lines:
        out(f"\n{heading}\n" + "\n".join(_wrapped(line) for line in lines))


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _table(differences: list[Difference]) -> list[str]:
    rows = [(item.direction, item.key, _value(item.value), _value(item.other)) for item in differences]
    keys, values = (max((len(row[column]) for row in rows), default=0) for column in (1, 2))
    return [
        f"{direction:7}  {key:{keys}}  {value:{values}}  (default {other})" for direction, key, value, other in rows
    ]


def to_toml(data: dict[str, Any]) -> str:
    """Write a policy's plain data as TOML: scalars, lists of strings and inline tables, in tables one level deep."""
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for name, table in data.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(key)} = {_value(item)}" for key, item in value.items()) + "}"
    # For these types JSON is TOML, but for the one control character that JSON lets stand.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
