"""``rlm-sandbox doctor``: what this machine's engine enforces, tried on a real box."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import (
    add_json,
    add_policy,
    load_policy,
    out,
    out_json,
    say,
)
from orchestrator.cli.findings import Findings
from orchestrator.errors import HardeningError, SandboxError

if TYPE_CHECKING:
    from orchestrator.interpreter import Sandbox
    from orchestrator.policy import Policy
    from orchestrator.sandbox.engine import Engine, EngineInfo


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="check the engine, the image, every control, and a dozen attacks",
        description="Ask the engine what it is, find the image, open a box, list the controls read back from it, try a "
        "dozen attacks in it, and say what the host could do besides. Exit 1 when a control is missing, when an attack "
        "was not contained, or when a version has a known bug that nothing of a box stops.",
        allow_abbrev=False,
    )
    add_policy(parser)
    add_json(parser, "what was found")
    parser.set_defaults(handler=handle)


def handle(args: argparse.Namespace) -> int:
    """Examine, print, and return 0; 1 when something mandatory does not hold; 4 when there is no engine or no box.

    Raises:
        PolicyError: the policy does not load.
    """
    import anyio

    from orchestrator.cli.doctor_report import report

    findings = Findings()
    anyio.run(_examine, load_policy(args.policy, args.assignments), findings)
    if args.json:
        out_json(findings.to_dict())
    else:
        out(report(findings), end="")
    if findings.error is not None:
        say(str(findings.error))
    return findings.exit_code()


async def _examine(policy: Policy, findings: Findings) -> None:
    from anyio import to_thread

    from orchestrator.interpreter import Sandbox
    from orchestrator.sandbox import floors, host, image
    from orchestrator.sandbox.engine import Engine

    try:
        engine = await to_thread.run_sync(Engine.connect)
        try:
            findings.engine = await to_thread.run_sync(engine.info)
            findings.floors = floors.check(findings.engine)
            findings.unknown = list(floors.unknown(findings.engine))
            # Replaced once a box has told which host it is on.
            findings.advice = host.advise(findings.engine, None, own_kernel=False)
            findings.image = await to_thread.run_sync(image.find, engine, policy.sandbox.image)
            async with Sandbox.open(policy, engine=engine) as box:
                findings.box = box.info
                await _examine_box(box, policy, engine, findings, findings.engine)
        finally:
            engine.close()
    except SandboxError as error:
        findings.error = error
        findings.missing = error.controls if isinstance(error, HardeningError) else []


async def _examine_box(box: Sandbox, policy: Policy, engine: Engine, findings: Findings, about: EngineInfo) -> None:
    from anyio import to_thread

    from orchestrator import selfcheck
    from orchestrator.sandbox import cis, gvisor, host

    own_kernel = gvisor.serves({"kernel": box.info.kernel})
    boot_id = await selfcheck.boot_id(box, policy)
    sight = host.look() if host.is_here(about, boot_id, own_kernel=own_kernel) else None
    findings.advice = host.advise(about, sight, own_kernel=own_kernel)
    findings.cis = cis.judge(await to_thread.run_sync(engine.inspect, box.info.container), about)
    async for outcome in selfcheck.run(box, policy):
        findings.attacks.append(outcome)
