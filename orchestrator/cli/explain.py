"""What a policy means, in plain words: what a run may do, what another would allow, and what makes no sense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from orchestrator.policy import Policy
from orchestrator.sandbox import gvisor
from orchestrator.text import counted, one_line

Direction = Literal["tighter", "looser", "other"]

# What an idle box holds: supervisor, kernel, and the libraries it has loaded. 45 MiB have been measured.
IDLE_MB: Final = 64
# UTF-8 of one output token: English has some four letters to one, other scripts as many bytes or fewer.
BYTES_PER_TOKEN: Final = 4
_MINUTE, _HOUR = 60, 3600
_WIDTH = 120
# Of these tables a larger number always allows more; of the others the keys named here do, or allow less.
_LARGER_IS_LOOSER: Final = frozenset(("budget", "limits"))
_LOOSER: Final = frozenset(
    (
        "models.max_tokens",
        "models.in_flight",
        "models.provider_in_flight",
        "models.request_timeout_s",
        "sandbox.allow_subprocess",
    )
)
_TIGHTER: Final = frozenset(("sandbox.user_namespace", "sandbox.freeze_between_cells", "sandbox.uids"))
_NONE_AT_0: Final = frozenset(("models.requests_per_minute", "models.tokens_per_minute"))


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value is not that of the policy compared with.

    Attributes:
        key: ``table.key``.
        value: its value.
        other: the other policy's.
        direction: whether a run may do less (``tighter``) or more (``looser``) for it, or just something else.
    """

    key: str
    value: Any
    other: Any
    direction: Direction


def meaning(policy: Policy) -> list[tuple[str, list[str]]]:
    """Return headings, each with what follows it, a line each."""
    return [("A run", _run(policy)), ("A box", _box(policy)), ("A cell", _cell(policy))]


def _run(policy: Policy) -> list[str]:
    budget, models = policy.budget, policy.models
    if budget.depth and budget.children:
        children = f"{counted(budget.children, 'child run')}, {counted(budget.depth, 'level')} deep, on the same budget"
    else:
        children = "no child runs: an rlm_query is one plain sub-call"
    asked = one_line(models.root, _WIDTH) or "whatever model the command line or the environment names"
    lines = [
        f"lasts at most {duration(budget.wall_s)} and {counted(budget.turns, 'turn')}",
        (
            f"spends at most {counted(budget.calls, 'call')}, {counted(budget.tokens, 'token')} and "
            f"{budget.cost_usd:,.2f} USD"
        ),
        f"has {children}",
        (
            f"asks {asked}; at most {counted(models.in_flight, 'sub-call')} at once, "
            f"{counted(models.max_tokens, 'token')} a reply"
        ),
        f"writes at most {size_mb(budget.journal_mb)} of journals, and the event that passes it",
    ]
    if models.sub:
        lines.append(f"asks {one_line(models.sub, _WIDTH)} in sub-calls")
    if models.allowed:
        lines.append(f"lets a cell ask {one_line(', '.join(models.allowed), _WIDTH)} as well")
    if models.history_tokens:
        lines.append(f"has the root model sum its history up at {counted(models.history_tokens, 'token')}")
    if models.direct_below_chars:
        lines.append(
            f"is one plain call, without a box, below {counted(models.direct_below_chars, 'character')} of context"
        )
    return lines


def _box(policy: Policy) -> list[str]:
    limits, sandbox = policy.limits, policy.sandbox
    runtime = f"the runtime {sandbox.runtime}" if sandbox.runtime else "the engine's default runtime"
    if gvisor.asked_for(sandbox.runtime):
        runtime += ", and must find gVisor's kernel there"
    return [
        (
            f"has {size_mb(limits.memory_mb)} of memory and no swap, {limits.pids:,} processes and threads, and "
            f"{limits.cpus:.0%} of a core"
        ),
        (
            f"holds a context of up to {size_mb(limits.context_mb)}, and {size_mb(limits.tmp_mb)} in "
            f"{counted(limits.tmp_inodes, 'file')} of its own, all in memory"
        ),
        f"runs as {sandbox.user}, or one of the {sandbox.uids - 1:,} uids after it, under {runtime}, from "
        + (f"the image {one_line(sandbox.image, _WIDTH)}" if sandbox.image else "the image built from these sources"),
        "has no network, no mount, no port and no secret, whatever the policy",
        *(
            ["stands still between cells: nothing in it runs but its supervisor"]
            if sandbox.freeze_between_cells
            else []
        ),
    ]


def _cell(policy: Policy) -> list[str]:
    limits = policy.limits
    return [
        f"runs at most {duration(limits.cell_timeout_s)}",
        (
            "starts programs and forks, which end with it"
            if policy.sandbox.allow_subprocess
            else "starts no process beside its interpreter; threads it may"
        ),
        (
            f"prints at most {limits.output_kb:,} KiB a stream, of which the root model sees "
            f"{counted(limits.observation_chars, 'character')}"
        ),
        (
            f"sends and gets at most {size_mb(limits.frame_kb / 1024)} in a sub-call, and answers with at most "
            f"{size_mb(limits.answer_mb)}"
        ),
    ]


def compare(policy: Policy, other: Policy) -> list[Difference]:
    """Return each key, of all tables, whose value is not the other policy's."""
    mine, its = policy.model_dump(mode="json"), other.model_dump(mode="json")
    return [
        Difference(f"{table}.{key}", value, its[table][key], _direction(f"{table}.{key}", value, its[table][key]))
        for table, values in mine.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != its[table][key]
    ]


def _direction(key: str, value: Any, other: Any) -> Direction:
    if key == "sandbox.runtime":
        value, other = not gvisor.asked_for(value), not gvisor.asked_for(other)
    elif key == "models.allowed":
        value, other = set(value), set(other)
    elif key == "models.price_caps":
        return _direction_of_caps(value, other)
    elif key in _NONE_AT_0:
        value, other = value or math.inf, other or math.inf
    elif key in _TIGHTER:
        value, other = -value, -other
    elif key not in _LOOSER and key.partition(".")[0] not in _LARGER_IS_LOOSER:
        return "other"
    return "looser" if value > other else "tighter" if value < other else "other"


def _direction_of_caps(caps: dict[str, float], others: dict[str, float]) -> Direction:
    pairs = [(caps.get(name, math.inf), others.get(name, math.inf)) for name in caps | others]
    looser, tighter = any(mine > its for mine, its in pairs), any(mine < its for mine, its in pairs)
    return "other" if looser is tighter else "looser" if looser else "tighter"


def doubts(policy: Policy) -> list[str]:
    """Return what is allowed to be written and cannot be meant: limits that never bind, or that nothing can meet."""
    return [*_doubts_of_budget(policy), *_doubts_of_limits(policy), *_doubts_of_models(policy)]


def _doubts_of_budget(policy: Policy) -> Iterator[str]:
    budget, limits, models = policy.budget, policy.limits, policy.models
    if budget.children and not budget.depth:
        yield f"budget.children = {budget.children} with budget.depth = 0: there will be no child run"
    if budget.depth and not budget.children:
        yield f"budget.depth = {budget.depth} with budget.children = 0: there will be no child run"
    if budget.turns > budget.calls:
        yield f"budget.turns = {budget.turns:,} is more than budget.calls = {budget.calls:,}: every turn is a call"
    if models.max_tokens > budget.tokens:
        yield (
            f"models.max_tokens = {models.max_tokens:,} is more than budget.tokens = {budget.tokens:,}: a reply could "
            "cost more than there is, so every call is refused"
        )
    if not budget.cost_usd:
        yield "budget.cost_usd = 0: every model with a price is refused"
    for key in ("cell_timeout_s", "start_timeout_s"):
        value = getattr(limits, key)
        if value > budget.wall_s:
            yield f"limits.{key} = {value:g} is more than budget.wall_s = {budget.wall_s:g}: the run ends first"


def _doubts_of_limits(policy: Policy) -> Iterator[str]:
    limits = policy.limits
    # The context is in the box twice: as it arrived, in memory, and as the variable that cells read.
    needed = 2 * limits.context_mb + limits.tmp_mb + IDLE_MB
    if needed > limits.memory_mb:
        yield (
            f"limits.memory_mb = {limits.memory_mb} is less than {needed}: what a full context (limits.context_mb = "
            f"{limits.context_mb}, held twice), a full /tmp (limits.tmp_mb = {limits.tmp_mb}) and an idle box take"
        )
    if limits.answer_mb > limits.memory_mb:
        yield f"limits.answer_mb = {limits.answer_mb} is more than limits.memory_mb = {limits.memory_mb}"
    if limits.observation_chars > 2 * limits.output_kb * 1024:
        yield (
            f"limits.observation_chars = {limits.observation_chars:,} is more than what leaves the box: "
            f"limits.output_kb = {limits.output_kb} a stream"
        )


def _doubts_of_models(policy: Policy) -> Iterator[str]:
    budget, limits, models = policy.budget, policy.limits, policy.models
    if models.in_flight > budget.calls:
        yield f"models.in_flight = {models.in_flight} is more than budget.calls = {budget.calls}: it is never reached"
    if models.max_tokens * BYTES_PER_TOKEN > limits.frame_kb * 1024:
        yield (
            f"limits.frame_kb = {limits.frame_kb} is less than a reply of models.max_tokens = {models.max_tokens:,} "
            f"may take ({models.max_tokens * BYTES_PER_TOKEN // 1024:,} KiB): long replies are cut"
        )
    if models.direct_below_chars > limits.context_mb << 20:
        yield (
            f"models.direct_below_chars = {models.direct_below_chars:,} is more than any context of limits.context_mb "
            f"= {limits.context_mb} has: there will be no box"
        )


def duration(seconds: float) -> str:
    """Return a time for people: ``45 s``, ``30 min``, ``1.5 h``."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:g} s"
    return f"{seconds / _MINUTE:.3g} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.3g} h"


def size_mb(megabytes: float) -> str:
    """Return a size for people: ``512 KiB``, ``64 MiB``, ``2 GiB``."""
    if megabytes < 1:
        return f"{megabytes * 1024:.3g} KiB"
    return f"{megabytes / 1024:.3g} GiB" if megabytes >= 1024 and megabytes % 512 == 0 else f"{megabytes:,.4g} MiB"  # noqa: PLR2004
