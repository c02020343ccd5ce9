"""A journal as text for a person: the turns, cells and sub-calls of a run, its children set in below their cell.

Nothing here trusts what it shows: every text of a model or a box goes through :func:`orchestrator.text.printable`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.text import counted, one_line, printable
from orchestrator.trajectory.journal import SUFFIX, Record, read

REPLY_LINES = 8
CODE_LINES = 40
OUTPUT_LINES = 20
CALLS_A_CELL = 5
LINE_CHARS = 200

_BOX_CHARS = 24
_LAST_LINE = 1 << 18  # far more than the end of a run takes: its long texts stand in lines of their own
_MARGIN = " " * 10  # the column of times


def render(path: Path, *, width: int = 100, full: bool = False) -> Iterator[str]:
    """Yield the lines that show a journal, without line ends or control characters.

    Args:
        path: the journal; those of child runs are looked for beside it.
        width: characters a summary line may have.
        full: show every sub-call and every text whole, instead of beginnings with the rest counted.

    Raises:
        JournalError: the journal cannot be read. A child's that cannot is a line of the text instead.
    """
    yield from _View(path.parent, width=width, full=full, seen=frozenset()).run(path)


class _View:
    """Renders one run; a child gets a view of its own, so that its counts are its own."""

    def __init__(self, directory: Path, *, width: int, full: bool, seen: frozenset[str]) -> None:
        self._directory = directory
        self._width = max(width, 40)
        self._full = full
        self._seen = seen
        self._prompts: dict[int, str] = {}
        self._shown = 0
        self._hidden = 0
        self._ended = False
        self._renderers: dict[str, Callable[[Record], Iterator[str]]] = {
            "run_started": self._run_started,
            "sandbox_opened": self._sandbox_opened,
            "sandbox_closed": self._sandbox_closed,
            "root_replied": self._root_replied,
            "observed": self._observed,
            "cell_started": self._cell_started,
            "cell_finished": self._cell_finished,
            "subcall_started": self._subcall_started,
            "subcall_finished": self._subcall_finished,
            "subcall_failed": self._subcall_failed,
            "retry_scheduled": self._retry_scheduled,
            "estimate_charged": self._estimate_charged,
            "circuit_changed": self._circuit_changed,
            "refused": self._refused,
            "child_started": self._child_started,
            "child_finished": self._child_finished,
            "final_set": self._final_set,
            "limit_reached": self._limit_reached,
            "run_finished": self._run_finished,
        }

    def run(self, path: Path) -> Iterator[str]:
        for record in read(path):
            self._seen |= {record.run}
            try:
                yield from self._renderers.get(record.kind, self._unknown)(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise JournalError(f"{path}: record {record.seq} ({record.kind}) is not of this format") from error
        if not self._ended:
            yield from self._more_calls()
            if self._prompts:
                yield f"{_MARGIN}{counted(len(self._prompts), 'sub-call')} without an answer"
            yield "the journal ends here: the run did not finish, or is still going on"

    def _run_started(self, record: Record) -> Iterator[str]:
        said = record.fields
        policy = said["policy"].get("name", "unnamed")
        yield self._cut("", f"run {record.run}, begun {local_time(record.time)}")
        yield self._cut("  query    ", said["query"])
        digest = f", sha256 {said['context']['sha256']}" if "sha256" in said["context"] else ""
        yield self._cut("  context  ", context_facts(said["context"]) + digest)
        yield self._cut("  models   ", f"root {said['root_model']}, sub-calls {said['sub_model']}; policy {policy}")

    def _sandbox_opened(self, record: Record) -> Iterator[str]:
        said = record.fields
        yield self._at(
            record,
            f"box {said['container'][:_BOX_CHARS]} open under {said['runtime']} in {said['elapsed_s']:.2f} s, "
            f"{counted(len(said['controls']), 'control')} read back",
        )

    def _sandbox_closed(self, record: Record) -> Iterator[str]:
        reason = record.fields["reason"]
        yield self._at(
            record, f"box {record.fields['container'][:_BOX_CHARS]} destroyed{': ' if reason else ''}{reason}"
        )

    def _root_replied(self, record: Record) -> Iterator[str]:
        said = record.fields
        facts = [f"turn {said['turn']}", tokens(said["usage"]), cost(said["cost_usd"]), f"{said['elapsed_s']:.1f} s"]
        if said["stop_reason"] != "end":
            facts.append(f"stopped by {said['stop_reason']}")
        yield ""
        yield self._at(record, " · ".join(fact for fact in facts if fact))
        yield from self._block(said["text"] if self._full else _prose(said["text"]), "│ ", REPLY_LINES)

    def _observed(self, record: Record) -> Iterator[str]:
        if self._full:
            yield self._at(record, "the root model is shown")
            yield from self._block(record.fields["text"], "┆ ", OUTPUT_LINES)

    def _cell_started(self, record: Record) -> Iterator[str]:
        self._shown = self._hidden = 0
        yield self._at(record, f"cell {record.fields['cell']}")
        yield from self._block(record.fields["code"], "> ", CODE_LINES)

    def _cell_finished(self, record: Record) -> Iterator[str]:
        result = record.fields["result"]
        yield from self._more_calls()
        lost = ", its variables are lost" if result.get("state_lost") else ""
        cut = ", output cut" if result.get("truncated") else ""
        detail = f": {result['detail']}" if result.get("detail") else ""
        status = f"cell {record.fields['cell']} {result['status']} in {result['elapsed_s']:.2f} s{lost}{cut}{detail}"
        yield self._at(record, status)
        for name in ("stdout", "stderr", "result"):
            if result.get(name):
                yield f"{_MARGIN}{name}"
                yield from self._block(result[name], "  ", OUTPUT_LINES)
        if result.get("error"):
            error = result["error"]
            yield self._cut(_MARGIN, f"{error['name']}: {error['value']}")
            if self._full:
                yield from self._block(error["traceback"], "  ", OUTPUT_LINES)

    def _subcall_started(self, record: Record) -> Iterator[str]:
        self._prompts[record.fields["call"]] = record.fields["prompt"]
        yield from ()

    def _subcall_finished(self, record: Record) -> Iterator[str]:
        said = record.fields
        facts = [f"{said['elapsed_s']:.2f} s", cost(said["cost_usd"])]
        if said["attempts"] > 1:
            facts.append(counted(said["attempts"], "attempt"))
        if said.get("memo_of") is not None:
            facts = [f"as sub-call {said['memo_of']}"]
        elif self._full:
            facts.append(tokens(said["usage"]))
        yield from self._call(said["call"], "→", said["text"], facts)

    def _subcall_failed(self, record: Record) -> Iterator[str]:
        said = record.fields
        facts = [f"{said['elapsed_s']:.2f} s", counted(said["attempts"], "attempt")]
        yield from self._call(said["call"], "failed:", f"{said['code']} {said['detail']}", facts)

    def _retry_scheduled(self, record: Record) -> Iterator[str]:
        said = record.fields
        failure = f"{said['purpose']}: attempt {said['attempt']} failed ({said['code']})"
        detail = f": {said['detail']}" if self._full and said.get("detail") else ""
        yield self._at(record, f"{failure}, again in {said['wait_s']:.1f} s{detail}")

    def _estimate_charged(self, record: Record) -> Iterator[str]:
        said = record.fields
        what = f"{counted(said['attempts'], 'request')} without a reply charged as {counted(said['tokens'], 'token')}"
        facts = [f"{said['purpose']}: {what} at most", cost(said["cost_usd"])]
        yield self._at(record, ", ".join(fact for fact in facts if fact))

    def _circuit_changed(self, record: Record) -> Iterator[str]:
        said = record.fields
        yield self._at(record, circuit_text(said["provider"], said["state"], said["failures"], said["wait_s"]))

    def _refused(self, record: Record) -> Iterator[str]:
        said = record.fields
        left = "" if said["limit"] is None else f" ({said['limit']:g} left)"
        times = f", {said['count']:,} times" if said["count"] > 1 else ""
        yield self._at(record, f"refused {said['method']}: {said['reason']}{left}{times}")

    def _child_started(self, record: Record) -> Iterator[str]:
        child = str(record.fields["child"])
        yield self._at(record, f"child run {child}: {record.fields['query']}")
        path = self._directory / f"{child}{SUFFIX}"
        if child in self._seen or path.name != f"{child}{SUFFIX}":
            return
        view = _View(self._directory, width=self._width - 4, full=self._full, seen=self._seen)
        try:
            for line in view.run(path):
                yield f"    {line}" if line else ""
        except JournalError as error:
            yield f"    {one_line(str(error), LINE_CHARS * 2)}"

    def _child_finished(self, record: Record) -> Iterator[str]:
        said = record.fields
        reason = f": {said['reason']}" if said["reason"] else ""
        yield self._at(record, f"child run {said['child']} {said['status']}{reason}")

    def _final_set(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"Final set, {counted(len(record.fields['answer']), 'character')}")

    def _limit_reached(self, record: Record) -> Iterator[str]:
        said = record.fields
        more = f"; for more: {said['more']}" if said.get("more") else ""
        yield self._at(record, f"limit reached: {said['reason']} ({said['limit']:g} left){more}")

    def _run_finished(self, record: Record) -> Iterator[str]:
        self._ended = True
        said = record.fields
        reason = f": {said['reason']}" if said["reason"] else ""
        yield ""
        turns = counted(said["turns"], "turn")
        yield self._at(record, f"{said['status']}{reason}, {turns}, {said['elapsed_s']:.1f} s")
        for key, value in said["usage"].items():
            if isinstance(value, int | float) and value:
                yield self._cut(_MARGIN, f"{key} {round(value, 4):,}")
        if said["answer"] is not None:
            yield "answer"
            yield from self._block(said["answer"], "  ", OUTPUT_LINES, margin="")

    def _unknown(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"{record.kind} (this version has no text for it)")

    def _call(self, call: int, verb: str, answer: str, facts: list[str]) -> Iterator[str]:
        prompt = self._prompts.pop(call, "")
        summary = ", ".join(fact for fact in facts if fact)
        if self._full:
            yield f"{_MARGIN}sub-call {call} ({summary})"
            yield from self._block(prompt, "? ", OUTPUT_LINES)
            yield from self._block(f"{verb} {answer}", "  ", OUTPUT_LINES)
            return
        if self._shown == CALLS_A_CELL:
            self._hidden += 1
            return
        self._shown += 1
        room = max(self._width - 26 - len(summary) - len(str(call)), 20)
        asked = one_line(prompt, room // 2)
        answered = one_line(answer, room - len(asked))
        yield f"{_MARGIN}sub-call {call} {asked} {verb} {answered} ({summary})"

    def _more_calls(self) -> Iterator[str]:
        if self._hidden:
            yield f"{_MARGIN}… and {counted(self._hidden, 'sub-call')} more"

    def _at(self, record: Record, text: str) -> str:
        return f"{record.elapsed_s:8.2f}  {one_line(text, self._width - 10)}"

    def _cut(self, head: str, text: str) -> str:
        return head + one_line(text, self._width - len(head))

    def _block(self, text: str, mark: str, most: int, *, margin: str = _MARGIN) -> Iterator[str]:
        lines = printable(text).strip("\n").split("\n")
        if lines == [""]:
            return
        shown = lines if self._full else lines[:most]
        for line in shown:
            cut = "" if self._full or len(line) <= LINE_CHARS else "…"
            yield f"{margin}{mark}{line[:LINE_CHARS] if cut else line}{cut}"
        if len(shown) < len(lines):
            yield f"{margin}{mark}… {len(lines) - len(shown):,} more lines"


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a line of a list.

    Attributes:
        run: its id.
        parent: id of the run that started it, or None.
        time: Unix time in seconds at which it began.
        status: how it ended, or ``unfinished``.
        query: the question.
        path: its journal.
    """

    run: str
    parent: str | None
    time: float
    status: str
    query: str
    path: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``journal list --json`` prints it."""
        return {key: value for key, value in asdict(self).items() if key != "parent"}


def summarize(path: Path) -> Summary:
    """Return what a list tells of a journal, from its beginning and its end alone.

    Raises:
        JournalError: it cannot be read, or does not begin as a journal does.
    """
    first = next(read(path), None)
    if first is None or first.kind != "run_started" or not isinstance(first.fields.get("query"), str):
        raise JournalError(f"{path} does not begin with a run")
    status = _last_status(path) or "unfinished"
    return Summary(first.run, first.parent, first.time, status, first.fields["query"], str(path))


def _last_status(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _LAST_LINE, 0))
            last = file.read().splitlines()[-1]
        data = json.loads(last)
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error
    except (ValueError, IndexError, RecursionError):
        return None  # The line was being written when the process died.
    return str(data.get("status")) if isinstance(data, dict) and data.get("kind") == "run_finished" else None


def local_time(seconds: float) -> str:
    """Return a Unix time as date and time here."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "at no time that can be"


def tokens(usage: dict[str, Any]) -> str:
    """Say how many tokens went in and out, by the names that model usage has; empty when it does not tell."""
    cached = usage.get("cache_read_tokens", 0)
    taken = usage.get("input_tokens", 0) + cached + usage.get("cache_write_tokens", 0)
    given = usage.get("output_tokens", 0)
    if not taken and not given:
        return ""
    return f"{taken:,} tokens in{f' ({cached:,} cached)' if cached else ''}, {given:,} out"


def cost(dollars: float | None) -> str:
    """Say what something cost; empty when it has no price."""
    return "" if dollars is None else f"${dollars:.4f}"


def circuit_text(provider: str, state: str, failures: int, wait_s: float) -> str:
    """Say what became of a provider's circuit."""
    if state == "open":
        return f"{provider}: {counted(failures, 'failure')} in a row, asked again in {wait_s:.0f} s"
    return f"{provider}: {'asked again by one request' if state == 'half_open' else 'answers again'}"


def context_facts(facts: dict[str, Any]) -> str:
    """Say what a context was, from its metadata."""
    parts = [str(facts.get("kind", "unknown"))]
    nouns = ("document", "character", "line") if facts.get("kind") != "text" else ("character", "line")
    parts += [counted(facts[f"{noun}s"], noun) for noun in nouns if isinstance(facts.get(f"{noun}s"), int)]
    return ", ".join(parts)


def _prose(reply: str) -> str:
    """Return a reply without its fenced blocks, which are shown as cells."""
    kept: list[str] = []
    fenced = False
    for line in reply.splitlines():
        fence = line.lstrip().startswith(("```", "~~~"))
        if not fence and not fenced:
            kept.append(line)
        fenced ^= fence
    return "\n".join(kept)
