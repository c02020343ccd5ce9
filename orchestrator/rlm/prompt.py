"""What the root model is told: pure text out of facts, of constant size whatever the size of the context.

The wording lies in ``prompts/*.md``, one file a message, with ``$name`` where a fact goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Literal

from orchestrator.context import PREFIX_CHARS, Context, ContextInfo
from orchestrator.kernel.result import ExecutionResult
from orchestrator.policy import Policy
from orchestrator.rlm.parse import ParsedReply
from orchestrator.rlm.result import Status
from orchestrator.text import counted, head_and_tail, json_text, one_line, printable
from orchestrator.tools import Tool

Name = Literal[
    "system",
    "rlm_query",
    "tools",
    "models",
    "one_process",
    "lazy",
    "first",
    "earlier",
    "contexts",
    "form",
    "observation",
    "no_code",
    "last_turn",
    "compact",
    "compacted",
    "direct_system",
    "direct",
]

PROMPTS = Path(__file__).parent / "prompts"
# Below 100,000 tokens of English: above that some providers charge the whole request several times as much, and
# models read worse.
PIECE_CHARS = 250_000
NAME_CHARS = 80
# Contexts of earlier questions that are told of, the latest ones, and characters of the beginning of each.
CONTEXTS_TOLD = 10
_CONTEXT_CHARS = 100
# A prompt needs room for a question besides its piece, and a character may take four bytes.
_BYTES_A_CHARACTER = 4

# What the model is told of each way a cell can end, besides what the cell printed.
_ENDS = {
    "ok": "ok",
    "error": "failed with an exception",
    "timeout": "TIMED OUT",
    "output_limit": "was STOPPED for its output",
    "oom": "ran OUT OF MEMORY",
    "died": "DIED",
    "protocol_error": "broke the REPL",
    "cancelled": "was cancelled",
}
_STATE_LOST = (
    "All variables, functions and imports of earlier cells are LOST; only `context` is there again. Define anew what "
    "you need."
)
_STATE_KEPT = "Variables set before it was stopped are still there."
_CUT = (
    "Your last code block had no end, because your reply was cut off at its length limit: it was NOT run. Write it "
    "again, shorter; build long texts from variables instead of writing them out."
)
_UNCLOSED = "A code block of yours has no closing fence and is not Python: it was NOT run. Close it with ```."
_CUT_OFF = "Your reply was cut off at its length limit. Write shorter ones."
# What stands in the place of a summary that the model did not write.
NO_SUMMARY = "(There is no summary. Print the names of your variables, and look at them before you go on.)"
_STRAY = "FINAL(...) in the text of a reply beside anything else counts for nothing. Set `Final` in a code block."

_BUDGETS = {
    "calls": "model calls",
    "tokens": "tokens",
    "cost_usd": "dollars",
    "children": "child runs",
    "turns": "turns",
    "wall_s": "time",
    "bytes_in": "bytes of answers",
    "bytes_out": "bytes of prompts",
    "tool_calls": "calls of tools",
}


_KEPT = "All variables of the earlier questions are still there, but for `Final` and `draft`."
_LOST = "The REPL was started anew: all variables of the earlier questions are LOST. Define anew what you need."
_ENDED = {
    "answered": "Your last answer was taken; it had {characters:,} characters and began {beginning}.",
    "no_answer": "The last question found no answer.",
    "limit": "The last question ended at its limit of {reason}.",
    "failed": "The last question failed.",
}


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a question of a session is told of those before.

    Attributes:
        question: which question it is, from 1.
        contexts: facts of the contexts before the last one, oldest first, and whether it is read from its file.
        kept: whether the variables are still there.
        status: how the question before ended.
        answer: what it had, or None.
        reason: why it ended so.
    """

    question: int
    contexts: Sequence[tuple[ContextInfo, bool]] = ()
    kept: bool = True
    status: Status = "answered"
    answer: str | None = None
    reason: str = ""

    @property
    def outcome(self) -> str:
        """How the question before ended, in a sentence; what it says of an answer stands as JSON."""
        answer = self.answer or ""
        beginning = json_text(answer[:PREFIX_CHARS])
        return _ENDED[self.status].format(characters=len(answer), beginning=beginning, reason=self.reason)


def render(name: Name, **values: object) -> str:
    """Fill in a prompt; values are not looked into for further ``$name``.

    Raises:
        ValueError: the values are not exactly those the prompt names.
    """
    template = _load(name)
    wanted = set(template.get_identifiers())
    if wanted != set(values):
        raise ValueError(f"prompt {name!r} takes {sorted(wanted)}, not {sorted(values)}")
    return template.substitute(values)


@cache
def _load(name: str) -> Template:
    return Template((PROMPTS / f"{name}.md").read_text(encoding="utf-8"))


def system(
    policy: Policy, *, levels: int, lazy_most: int | None = None, tools: Mapping[str, Tool] | None = None
) -> str:
    """Return the standing instructions; the same for every run of a policy, so that a provider can cache them.

    Args:
        policy: of the run.
        levels: how many levels of child runs are allowed below this one.
        lazy_most: bytes of a context too large to be held that may become a ``str`` at a time; None for all others.
        tools: functions of the host that the box may call.
    """
    limits = policy.limits
    optional = render("rlm_query") if levels else ""
    if tools:
        told = "\n".join(
            indent(f"- {tool.description}", "    ").replace("    - ", "  - ", 1) for tool in tools.values()
        )
        optional += render("tools", tools=told, in_flight=policy.models.in_flight)
    if policy.models.allowed:
        optional += render("models", names=", ".join(json_text(name) for name in policy.models.allowed))
    if not policy.sandbox.allow_subprocess:
        optional += render("one_process")
    if lazy_most is not None:
        optional += render("lazy", most=f"{lazy_most:,}")
    return render(
        "system",
        observation_chars=f"{limits.observation_chars:,}",
        cell_timeout_s=f"{limits.cell_timeout_s:g}",
        in_flight=policy.models.in_flight,
        piece_chars=f"{min(PIECE_CHARS, limits.frame_kb * 1024 // _BYTES_A_CHARACTER):,}",
        optional=optional,
    )


def first(
    query: str,
    info: ContextInfo,
    left: Mapping[str, int | float],
    *,
    tag: str,
    lazy_most: int | None = None,
    schema: str = "",
    earlier: Earlier | None = None,
) -> str:
    """Return the message that asks a question: it, and the facts of a context that is itself never sent.

    Args:
        query: the question.
        info: the facts.
        left: what the ledger has left, by policy key.
        tag: word around everything the box says in later messages, unknown to the box.
        lazy_most: as of :func:`system`.
        schema: JSON Schema of the answer; empty for an answer in words.
        earlier: what to tell of the questions before, if it is not the first of its session.
    """
    form = f"{render('form', schema=schema)}\n" if schema else ""
    context = describe(info, lazy=lazy_most is not None)
    before = others = ""
    if earlier is not None:
        state = _KEPT if earlier.kept else _LOST
        before = render("earlier", question=earlier.question, outcome=earlier.outcome, state=state)
        others = render("contexts", contexts=_others(earlier.contexts)) if earlier.contexts else ""
    limits = budget_line(left)
    return render(
        "first", earlier=before, query=query, context=context, contexts=others, limits=limits, form=form, tag=tag
    )


def _others(contexts: Sequence[tuple[ContextInfo, bool]]) -> str:
    first = max(len(contexts) - CONTEXTS_TOLD, 0)
    lines = [f"- `contexts[0]` to `contexts[{first - 1}]` are not told of here"] if first else []
    for number, (info, lazy) in enumerate(contexts[first:], first):
        form = info.kind if info.kind == "text" else f"{info.kind} of {counted(info.documents, 'document')}"
        form += ", read from its file piece by piece" if lazy else ""
        begins = json_text(info.prefix[:_CONTEXT_CHARS])
        lines.append(f"- `contexts[{number}]`: {form}, {info.characters:,} characters, begins: {begins}")
    return "\n".join(lines)


def describe(info: ContextInfo, *, lazy: bool = False) -> str:
    """Return the facts of a context in a few lines; what comes out of it stands as JSON and cannot pose as ours."""
    form = {
        "text": "one `str`",
        "list": f"a `list` of {counted(info.documents, 'document')}, each a `str`",
        "dict": f"a `dict` of {counted(info.documents, 'document')}, name to `str`",
    }[info.kind]
    if lazy:
        form += "; it is too large to be held, so it is NOT that type but reads it from a file, piece by piece"
    lines = [
        f"- form: {form}",
        f"- size: {info.characters:,} characters, {info.bytes:,} bytes as UTF-8, {counted(info.lines, 'line')}",
    ]
    if info.kind != "text":
        sizes = f"shortest {info.smallest:,}, median {info.median:,}, longest {info.largest:,} characters"
        lines.append(f"- documents: {sizes}")
    if info.names:
        names = ", ".join(json_text(name[:NAME_CHARS]) for name in info.names)
        lines.append(f"- first names: {names}{', …' if info.documents > len(info.names) else ''}")
    where = "it" if info.kind == "text" else "the first that is not empty"
    lines.append(f"- {where} begins: {json_text(info.prefix)}")
    return "\n".join(lines)


def budget_line(left: Mapping[str, int | float]) -> str:
    """Return what is left in one line; ``left`` is as the ledger gives it."""
    parts = [
        f"{left['turns']:,} turns",
        f"{left['calls']:,} model calls",
        f"{left['tokens']:,} tokens",
        f"${left['cost_usd']:,.2f}",
        f"{left['wall_s']:,.0f} seconds",
    ]
    if left["depth"]:
        parts.append(f"{left['children']:,} child runs, {left['depth']} deep")
    return ", ".join(parts)


def observation(
    cells: Sequence[tuple[int, ExecutionResult]],
    notes: Sequence[str],
    *,
    turn: int,
    left: Mapping[str, int | float],
    limit: int,
    tag: str,
) -> str:
    """Return what the root model is shown of a turn.

    Args:
        cells: the cells that ran, with their numbers.
        notes: remarks of ours, each on a line.
        turn: which is over, from 1.
        left: what the ledger has left.
        limit: characters of the cells' output that are shown; what is longer is cut in its middle.
        tag: word around what the box says.
    """
    streams = [_streams(result) for _, result in cells]
    texts = [text for stream in streams for _, text in stream]
    rooms = iter(share([len(text) for text in texts], limit))
    shown: list[str] = []
    for (number, result), stream in zip(cells, streams, strict=True):
        detail = f": {one_line(result.detail, 200)}" if result.detail else ""
        shown.append(f"[cell {number} {_ENDS[result.status]}{detail} ({result.elapsed_s:.1f} s)]")
        shown += [f"<{name}-{tag}>\n{head_and_tail(text, next(rooms))}\n</{name}-{tag}>" for name, text in stream]
        if not stream and result.ok:
            shown.append("(no output)")
        if result.state_lost:
            shown.append(f"[{_STATE_LOST}]")
        elif result.status in {"timeout", "output_limit"}:
            shown.append(f"[{_STATE_KEPT}]")
    shown += [f"[{note}]" for note in notes]
    return render("observation", shown="\n".join(shown), turn=turn, left=budget_line(left)).rstrip("\n")


def _streams(result: ExecutionResult) -> list[tuple[str, str]]:
    """Name and text of everything a cell gave that is not empty."""
    error = "" if result.error is None else result.error.traceback or f"{result.error.name}: {result.error.value}"
    streams = [("stdout", result.stdout), ("stderr", result.stderr), ("value", result.result or ""), ("error", error)]
    return [(name, printable(text).rstrip("\n")) for name, text in streams if text.strip()]


def share(lengths: Sequence[int], limit: int) -> list[int]:
    """Divide ``limit`` characters among texts: short ones are shown whole, long ones get equal parts of the rest."""
    rooms = [0] * len(lengths)
    left, waiting = limit, len(lengths)
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        rooms[index] = min(lengths[index], left // waiting)
        left -= rooms[index]
        waiting -= 1
    return rooms


def reply_notes(reply: ParsedReply, *, complete: bool, unrun: int = 0, failed: bool = True) -> list[str]:
    """Return what must be said about a reply of which something did not run.

    Args:
        reply: the reply.
        complete: the model ended it by itself.
        unrun: blocks that were left out at the end.
        failed: they were because one before them failed, and not because there were too many.
    """
    notes = []
    if unrun:
        why = "one failed" if failed else "a reply may not have more"
        notes.append(f"{unrun} further block{'s' if unrun > 1 else ''} of your reply did NOT run, because {why}.")
    if reply.cut:
        notes.append(_UNCLOSED if complete else _CUT)
    elif not complete:
        notes.append(_CUT_OFF)
    if reply.skipped and not reply.blocks:
        marks = ", ".join(sorted({one_line(language, 20) or "nothing" for language in reply.skipped})[:5])
        notes.append(f"Only blocks marked `repl` or `python` run; yours were marked: {marks}.")
    if reply.stray_final:
        notes.append(_STRAY)
    return notes


def failing(turns: int) -> str:
    """Return the hint for a model whose code failed in so many turns, one after another."""
    return f"Your code failed in {turns} turns in a row. Take a smaller step; look first at what your variables hold."


def no_code(notes: Sequence[str], *, remaining: int) -> str:
    """Return the reminder for a reply without code; ``remaining`` more of them end the run."""
    return render("no_code", notes="".join(f" {note}" for note in notes), remaining=remaining).rstrip("\n")


def last_turn(key: str) -> str:
    """Return the message that asks for an answer now, because the budget ``key`` of the policy allows no more."""
    return render("last_turn", budget=_BUDGETS.get(key, key)).rstrip("\n")


def wrong_form(complaint: str) -> str:
    """Return what is said of an answer that was given in words and does not have its form."""
    return f"[Your answer does not have the form that is asked for:\n{complaint}\nGive it again.]"


def direct(query: str, context: Context, *, schema: str = "") -> str:
    """Return the one message of a run that answers without a box."""
    if isinstance(context, str):
        text = context
    else:
        named = context.items() if isinstance(context, dict) else enumerate(context, 1)
        text = "\n\n".join(f"=== document: {one_line(str(name), NAME_CHARS)} ===\n{part}" for name, part in named)
    form = f"\n{render('form', schema=schema)}" if schema else ""
    return render("direct", query=query, context=text, form=form)
