"""``rlm-sandbox kernel``: let Jupyter run cells in our boxes."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.cli.common import EXIT_OK, Parser, add_json, load_policy, out, out_json
from orchestrator.errors import ConfigurationError

NAME = "rlm-sandbox"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("kernel", help="let Jupyter run cells in boxes", allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    install = verbs.add_parser(
        "install",
        help="make a kernel known to Jupyter",
        description="Write a kernel specification, so that Jupyter offers a Python whose cells run in a box. One that "
        "is there under that name is replaced.",
        allow_abbrev=False,
    )
    install.add_argument("--policy", default="default", metavar="NAME|PATH", help="policy of the box")
    install.add_argument("--name", default=NAME, help="what to call it (default: %(default)s)")
    where = install.add_mutually_exclusive_group()
    where.add_argument("--prefix", metavar="DIR", help="install under DIR/share/jupyter, and not for this user")
    where.add_argument("--sys-prefix", action="store_true", help="install into this Python environment")
    install.add_argument(
        "--plain", action="store_true", help="without the provisioner: for a Jupyter of another environment"
    )
    add_json(install, "where it is")
    install.set_defaults(handler=handle_install)


def handle_install(args: argparse.Namespace) -> int:
    """Write the specification.

    Raises:
        ConfigurationError: a part of Jupyter is missing, the name is not fit, or it cannot be written.
        PolicyError: the policy does not load.
    """
    import sys

    policy = load_policy(args.policy, [])
    name = args.policy if policy.name == args.policy else str(Path(args.policy).absolute())
    try:
        import ipykernel  # noqa: F401
        from jupyter_client.kernelspec import KernelSpecManager

        from orchestrator.jupyter.provisioner import command
    except ImportError as error:
        raise ConfigurationError(f"{error}: install rlm-sandbox[jupyter]") from error
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.json").write_text(
            json.dumps(
                specification(command("{connection_file}", name), policy.name, None if args.plain else name), indent=1
            ),
            encoding="utf-8",
        )
        prefix = sys.prefix if args.sys_prefix else args.prefix
        try:
            path = KernelSpecManager().install_kernel_spec(folder, args.name, user=prefix is None, prefix=prefix)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot install the kernel {args.name!r}: {error}") from error
    if args.json:
        out_json({"name": args.name, "path": path, "policy": name})
    else:
        out(f"installed kernel {args.name}: {path}")
    return EXIT_OK


def specification(argv: list[str], policy: str, provisioned: str | None) -> dict[str, Any]:
    """Return what ``kernel.json`` says (jupyter_client, "Making kernels for Jupyter").

    Args:
        argv: starts the kernel.
        policy: name of the policy, for people.
        provisioned: the policy for our provisioner; None leaves the provisioner out.
    """
    metadata: dict[str, Any] = {"debugger": False}
    if provisioned is not None:
        metadata["kernel_provisioner"] = {"provisioner_name": NAME, "config": {"policy": provisioned}}
    return {
        "argv": argv,
        "display_name": "Python (in a box)" if policy == "default" else f"Python (in a box, {policy})",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": metadata,
    }
