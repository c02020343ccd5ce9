"""``rlm-sandbox doctor``: what this machine's engine enforces, tried on a real box."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import (
    EXIT_NO_ANSWER,
    EXIT_OK,
    add_json,
    add_policy,
    load_policy,
    out,
    out_json,
    say,
)
from orchestrator.errors import HardeningError, RlmSandboxError, SandboxError

if TYPE_CHECKING:
    from orchestrator.interpreter import BoxInfo
    from orchestrator.policy import Policy
    from orchestrator.sandbox.engine import EngineInfo
    from orchestrator.sandbox.image import ImageRef


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="check the engine, the image and every control",
        description="Ask the engine what it is, find the image, open a box, and list the controls read back from it.",
        allow_abbrev=False,
    )
    add_policy(parser)
    add_json(parser, "what was found")
    parser.set_defaults(handler=handle)


@dataclass(slots=True)
class Findings:
    """What was found, as far as it went.

    Attributes:
        engine: the engine about itself.
        image: the image boxes would be made of.
        box: the box that was opened, with the controls that were read back.
        missing: controls that the policy demands and that are not in force.
        error: why the examination ended early.
    """

    engine: EngineInfo | None = None
    image: ImageRef | None = None
    box: BoxInfo | None = None
    missing: list[str] = field(default_factory=list)
    error: RlmSandboxError | None = None

    def exit_code(self) -> int:
        """Return 0 when all is well, 1 when a control is missing, else the error's own code."""
        if self.missing:
            return EXIT_NO_ANSWER
        return EXIT_OK if self.error is None else self.error.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return {
            "ok": self.exit_code() == EXIT_OK,
            "engine": None if self.engine is None else asdict(self.engine),
            "image": None if self.image is None else asdict(self.image),
            "runtime": None if self.box is None else self.box.runtime,
            "kernel": None if self.box is None else self.box.kernel,
            "opened_s": None if self.box is None else self.box.opened_s,
            "controls": {} if self.box is None else self.box.controls,
            "missing": self.missing,
            "error": None if self.error is None else str(self.error),
        }


def handle(args: argparse.Namespace) -> int:
    """Examine, print, and return 0, 1 when a control is missing, or 4 when there is no engine or no box.

    Raises:
        PolicyError: the policy does not load.
    """
    import anyio

    findings = Findings()
    anyio.run(_examine, load_policy(args.policy, args.assignments), findings)
    if args.json:
        out_json(findings.to_dict())
    else:
        _print(findings)
    if findings.error is not None:
        say(str(findings.error))
    return findings.exit_code()


async def _examine(policy: Policy, findings: Findings) -> None:
    from anyio import to_thread

    from orchestrator.interpreter import Sandbox
    from orchestrator.sandbox import image
    from orchestrator.sandbox.engine import Engine

    try:
        engine = await to_thread.run_sync(Engine.connect)
        findings.engine = await to_thread.run_sync(engine.info)
        findings.image = await to_thread.run_sync(image.find, engine, policy.sandbox.image)
        async with Sandbox.open(policy, engine=engine) as box:
            findings.box = box.info
    except SandboxError as error:
        findings.error = error
        findings.missing = error.controls if isinstance(error, HardeningError) else []


def _print(findings: Findings) -> None:
    if engine := findings.engine:
        out(f"engine   Docker {engine.version} on Linux {engine.kernel}, cgroup v{engine.cgroup_version}")
        out(f"runtimes {', '.join(engine.runtimes)} (default {engine.default_runtime})")
        out(f"security {', '.join(engine.security_options) or 'nothing reported'}")
    if image := findings.image:
        out(f"image    {image.id} (protocol {image.protocol})")
    if box := findings.box:
        out(f"box      opened in {box.opened_s:.2f} s under {box.runtime}")
        out(f"kernel   {box.kernel} (as the box sees it)")
        width = max(map(len, box.controls), default=0)
        for name, state in box.controls.items():
            out(f"  {name:{width}}  {state}")
    for control in findings.missing:
        out(f"  MISSING  {control}")
