"""What an engine gets for a policy, for people to read and compare: the same for the same policy, on any machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from orchestrator import bundle
from orchestrator.policy import Policy
from orchestrator.sandbox import container, hardening, image

SECCOMP_FILE = "policies/seccomp.json"


def seccomp() -> str:
    """Return the shipped seccomp profile as an engine is sent it: without comments and white space."""
    return json.dumps(json.loads(bundle.path(SECCOMP_FILE).read_text("utf-8")), separators=(",", ":"))


def image_reference(policy: Policy) -> str:
    """Return the image a box is made of as the policy names it, else the tag of the one built from these sources."""
    return policy.sandbox.image or image.tag(image.content_hash())


def body(policy: Policy, *, full: bool = False) -> dict[str, Any]:
    """Return the body of the engine's ``POST /containers/create``, but for what only the moment of its creation knows.

    That is the image's id, which stands here as a reference, who owns the box until when, and which of the policy's
    uids it has: the first stands here.

    Args:
        policy: what the box may use.
        full: whether the seccomp profile is in it, as it is when it is sent; else its name and hash are.
    """
    profile = seccomp()
    labels = {
        container.OWNER_LABEL: "<boot id>:<PID namespace>:<pid>:<start time> of the process that makes it",
        container.EXPIRES_LABEL: f"<its start + {policy.budget.wall_s + container.LEASE_SLACK_S:g} s, in Unix time>",
    }
    made = hardening.container_config(policy, image_reference(policy), profile, labels)
    if not full:
        sent = hardening.seccomp_profile(policy, profile)
        digest = hashlib.sha256(sent.encode()).hexdigest()
        options: list[str] = made["HostConfig"]["SecurityOpt"]
        made["HostConfig"]["SecurityOpt"] = [
            f"seccomp=<{SECCOMP_FILE}, sha256:{digest}>" if option == f"seccomp={sent}" else option
            for option in options
        ]
    return made
