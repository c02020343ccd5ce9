"""What a redacted journal holds of an event: its structure and its numbers, and of texts their length and hash."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.trajectory.reading import digest

# What stays as it is, by kind: words of this system, names of models, images and runs, and what a policy says. Whatever
# is not listed is redacted, so a new text is, too, until somebody decides otherwise.
KEPT: dict[str, frozenset[str]] = {
    "run_started": frozenset(("policy", "root_model", "sub_model", "tools", "session")),
    "sandbox_opened": frozenset(("container", "image", "runtime", "controls")),
    "sandbox_closed": frozenset(("container", "reason")),
    "root_replied": frozenset(("stop_reason", "usage")),
    "root_failed": frozenset(("code",)),
    "subcall_started": frozenset(("model", "batch")),
    "subcall_finished": frozenset(("stop_reason", "usage")),
    "subcall_failed": frozenset(("code",)),
    "tool_started": frozenset(("tool",)),
    "tool_failed": frozenset(("code",)),
    "retry_scheduled": frozenset(("purpose", "code")),
    "estimate_charged": frozenset(("purpose",)),
    "circuit_changed": frozenset(("provider", "state")),
    "refused": frozenset(("method", "reason")),
    "child_started": frozenset(("child",)),
    "child_finished": frozenset(("child", "status")),
    "limit_reached": frozenset(("reason", "more")),
    "run_finished": frozenset(("status", "usage")),
}
# And of what is no text but an object, these.
KEPT_INSIDE: dict[tuple[str, str], frozenset[str]] = {
    ("run_started", "context"): frozenset(("kind", "sha256", "layout")),
    ("run_started", "origin"): frozenset(("model", "sub_model")),
    ("cell_finished", "result"): frozenset(("status",)),
}
# A reason is the name of a budget or a word of ours, which stays, or a sentence with what others said, which does not.
_REASONED = frozenset(("child_finished", "run_finished"))
_WORD = re.compile(r"[a-z_]{0,32}")


def redacted(kind: str, name: str, value: Any) -> Any:
    """Return what a redacted journal holds of a field of an event.

    Args:
        kind: of the event.
        name: of the field.
        value: what it says.
    """
    if name in KEPT.get(kind, ()):
        return value
    if name == "reason" and kind in _REASONED and isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return _hidden(value, KEPT_INSIDE.get((kind, name), frozenset()))


def _hidden(value: Any, kept: frozenset[str] = frozenset()) -> Any:
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in kept else _hidden(item) for key, item in value.items()}
    return value


def mark(text: str) -> str:
    """Return what stands for a text: its length in characters and its hash, as of a blob; nothing for none."""
    return f"[redacted: {len(text)} characters, sha256:{digest(text).hex()}]" if text else ""
