"""A journal as text for a person: the turns, cells and sub-calls of a run, its children set in below their cell.

Nothing here trusts what it shows: every text of a model or a box goes through :func:`orchestrator.text.printable`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.text import counted, fitted, folded, one_line, printable
from orchestrator.trajectory.journal import SUFFIX, Record, read
from orchestrator.trajectory.spend import Spend
from orchestrator.trajectory.wording import (
    box_closed,
    box_opened,
    circuit_text,
    context_facts,
    cost,
    local_time,
    of,
    place_in_session,
    prose,
    tokens,
    told,
)

REPLY_LINES = 8
CODE_LINES = 40
OUTPUT_LINES = 20
CALLS_A_CELL = 5
LINE_CHARS = 200

_BOX_CHARS = 24
_MARGIN = " " * 10  # the column of times
_FRAME = frozenset(("run_started", "run_finished"))


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a run is shown, and how.

    Attributes:
        width: columns a line may have.
        wrap: break longer lines of texts at the width; else they are cut at :data:`LINE_CHARS`.
        full: every sub-call, and every text whole, instead of beginnings with the rest counted.
        calls: every sub-call, a line each.
        turns: these turns alone of the run itself, 0 being what comes before the first; None for all.
        summary: no turns at all: question, answer and what was spent.
    """

    width: int = 100
    wrap: bool = False
    full: bool = False
    calls: bool = False
    turns: range | None = None
    summary: bool = False


def render(path: Path, choice: Choice | None = None) -> Iterator[str]:
    """Yield the lines that show a journal, without line ends or control characters.

    Args:
        path: the journal; those of child runs are looked for beside it.
        choice: what of it.

    Raises:
        JournalError: the journal cannot be read. A child's that cannot is a line of the text instead.
    """
    yield from _View(path.parent, choice or Choice(), frozenset(), Spend()).run(path)


def of_turns(records: Iterable[Record], turns: range | None) -> Iterator[Record]:
    """Yield what belongs to ``turns``, and how the run began and ended; all of it when that is None."""
    turn = 0
    for record in records:
        if record.kind == "root_replied" and isinstance(record.fields.get("turn"), int):
            turn = record.fields["turn"]
        if turns is None or turn in turns or record.kind in _FRAME:
            yield record


class _View:
    """Renders one run; a child gets a view of its own, so that its counts are its own, but for what is spent."""

    def __init__(self, directory: Path, choice: Choice, seen: frozenset[str], spend: Spend) -> None:
        self._directory = directory
        self._choice = choice
        self._width = max(choice.width, 24)
        self._full = choice.full
        self._seen = seen
        self._spend = spend
        self._child = bool(seen)
        self._about: dict[str, Any] = {}
        self._models: dict[int, str] = {}
        self._limits: list[str] = []
        self._refusals: Counter[str] = Counter()
        self._prompts: dict[int, str] = {}
        self._shown = 0
        self._hidden = 0
        self._ended = False
        self._renderers: dict[str, Callable[[Record], Iterator[str]]] = {
            "run_started": self._run_started,
            "sandbox_opened": self._sandbox_opened,
            "sandbox_closed": self._sandbox_closed,
            "root_replied": self._root_replied,
            "compacting": self._compacting,
            "root_failed": self._root_failed,
            "observed": self._observed,
            "cell_started": self._cell_started,
            "cell_finished": self._cell_finished,
            "subcall_started": self._subcall_started,
            "subcall_finished": self._subcall_finished,
            "subcall_failed": self._subcall_failed,
            "retry_scheduled": self._retry_scheduled,
            "estimate_charged": self._estimate_charged,
            "circuit_changed": self._circuit_changed,
            "tool_started": self._tool_started,
            "tool_finished": self._tool_finished,
            "tool_failed": self._tool_failed,
            "budget_told": self._untold,
            "refused": self._refused,
            "resumed": self._resumed,
            "diverged": self._diverged,
            "child_started": self._child_started,
            "child_finished": self._child_finished,
            "final_set": self._final_set,
            "limit_reached": self._limit_reached,
            "run_finished": self._run_finished,
        }

    def run(self, path: Path) -> Iterator[str]:
        for record in of_turns(self._counted(path), self._choice.turns):
            try:
                if not self._choice.summary or record.kind in _FRAME:
                    yield from self._renderers.get(record.kind, self._unknown)(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _not_of_this_format(path, record) from error
        if not self._ended:
            yield from self._more_calls()
            if self._prompts and not self._choice.summary:
                yield f"{_MARGIN}{counted(len(self._prompts), 'sub-call')} without an answer"
            yield from self._closing({})
            yield "the journal ends here: the run did not finish, or is still going on"

    def _counted(self, path: Path) -> Iterator[Record]:
        """Yield every record, counted in what the closing tells, whether it is shown or not."""
        for record in read(path):
            self._seen |= {record.run}
            try:
                self._count(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _not_of_this_format(path, record) from error
            yield record

    def _count(self, record: Record) -> None:
        said = record.fields
        match record.kind:
            case "run_started":
                self._about = said
            case "limit_reached":
                self._limits.append(f"{said['reason']} ({said['limit']:g} left)")
            case "refused":
                self._refusals[f"{said['method']}: {said['reason']}"] += said["count"]
            case "child_started" if self._choice.summary:
                # Nobody else reads it for what it spent.
                for _ in self._child_lines(str(said["child"])):
                    pass
            case _:
                self._count_spending(record.kind, said)

    def _count_spending(self, kind: str, said: dict[str, Any]) -> None:
        match kind:
            case "root_replied":
                self._spend.add(str(self._about["root_model"]), self._about["depth"], said)
            case "subcall_started":
                self._models[said["call"]] = str(said["model"])
            case "subcall_finished":
                self._spend.add(self._models.pop(said["call"], "unknown"), self._about["depth"], said)
            case "estimate_charged":
                model = self._about["root_model"] if said["call"] is None else self._models.get(said["call"], "unknown")
                self._spend.estimate(str(model), self._about["depth"], said)
            case "run_finished" if not self._child:
                self._spend.settle(said["usage"])

    def _run_started(self, record: Record) -> Iterator[str]:
        said = record.fields
        policy = said["policy"].get("name", "unnamed")
        yield self._cut("", f"run {record.run}, begun {local_time(record.time)}")
        if place := place_in_session(said.get("session")):
            yield self._cut("  session  ", place)
        yield self._cut("  query    ", said["query"])
        digest = f", sha256 {said['context']['sha256']}" if "sha256" in said["context"] else ""
        yield self._cut("  context  ", context_facts(said["context"]) + digest)
        yield self._cut("  models   ", f"root {said['root_model']}, sub-calls {said['sub_model']}; policy {policy}")

    def _sandbox_opened(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"box {record.fields['container'][:_BOX_CHARS]} {box_opened(record.fields)}")

    def _sandbox_closed(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"box {record.fields['container'][:_BOX_CHARS]} {box_closed(record.fields)}")

    def _root_replied(self, record: Record) -> Iterator[str]:
        said = record.fields
        facts = [f"turn {said['turn']}", tokens(said["usage"]), cost(said["cost_usd"]), f"{said['elapsed_s']:.1f} s"]
        if said["stop_reason"] != "end":
            facts.append(f"stopped by {said['stop_reason']}")
        yield ""
        yield self._at(record, " · ".join(fact for fact in facts if fact))
        yield from self._block(said["text"] if self._full else prose(said["text"]), "│ ", REPLY_LINES, words=True)

    def _compacting(self, record: Record) -> Iterator[str]:
        said = record.fields
        yield self._at(
            record, f"{said['tokens']:,} tokens of history: the root model sums them up in turn {said['turn']}"
        )

    def _root_failed(self, record: Record) -> Iterator[str]:
        said = record.fields
        facts = [f"turn {said['turn']}", f"failed: {said['code']}", counted(said["attempts"], "attempt")]
        yield ""
        yield self._at(record, " · ".join([*facts, f"{said['elapsed_s']:.1f} s"]))
        yield from self._block(said["detail"], "│ ", REPLY_LINES, words=True)

    def _observed(self, record: Record) -> Iterator[str]:
        if self._full:
            yield self._at(record, "the root model is shown")
            yield from self._block(record.fields["text"], "┆ ", OUTPUT_LINES)

    def _cell_started(self, record: Record) -> Iterator[str]:
        self._shown = self._hidden = 0
        ours = "" if record.fields["turn"] else ", run by rlm-sandbox itself"
        yield self._at(record, f"cell {record.fields['cell']}{ours}")
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

    def _tool_started(self, record: Record) -> Iterator[str]:
        said = record.fields
        yield self._at(record, f"tool {said['call']}: {said['tool']} {said['arguments']}")

    def _tool_finished(self, record: Record) -> Iterator[str]:
        said = record.fields
        yield self._at(record, f"tool {said['call']} ({said['elapsed_s']:.2f} s) → {said['result']}")

    def _tool_failed(self, record: Record) -> Iterator[str]:
        said = record.fields
        yield self._at(
            record, f"tool {said['call']} ({said['elapsed_s']:.2f} s) failed: {said['code']} {said['detail']}"
        )

    def _refused(self, record: Record) -> Iterator[str]:
        said = record.fields
        left = "" if said["limit"] is None else f" ({said['limit']:g} left)"
        times = f", {said['count']:,} times" if said["count"] > 1 else ""
        yield self._at(record, f"refused {said['method']}: {said['reason']}{left}{times}")

    def _resumed(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"the run was resumed here, and goes on behind event {record.fields['after']}")

    def _diverged(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"cell {record.fields['cell']} was run again and diverged: {record.fields['what']}")

    def _child_started(self, record: Record) -> Iterator[str]:
        child = str(record.fields["child"])
        yield self._at(record, f"child run {child}: {record.fields['query']}")
        for line in self._child_lines(child):
            yield f"    {line}" if line else ""

    def _child_lines(self, child: str) -> Iterator[str]:
        path = self._directory / f"{child}{SUFFIX}"
        if child in self._seen or path.name != f"{child}{SUFFIX}":
            return
        choice = replace(self._choice, width=self._width - 4, turns=None)
        try:
            yield from _View(self._directory, choice, self._seen | {child}, self._spend).run(path)
        except JournalError as error:
            yield self._cut("", str(error)) if self._choice.wrap else one_line(str(error), LINE_CHARS * 2)

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
        if said["answer"] is not None:
            yield "answer"
            yield from self._block(said["answer"], "  ", OUTPUT_LINES, margin="", words=True)
        yield from self._closing(said["usage"])

    def _closing(self, usage: dict[str, Any]) -> Iterator[str]:
        """Yield the limits and refusals of this run, and what was used: of the first run by model and depth, too."""
        if self._limits:
            yield self._cut("limits    ", "reached: " + "; ".join(self._limits))
        for what, times in self._refusals.items():
            yield self._cut("          ", f"refused {what}, {counted(times, 'time')}")
        budget = self._about.get("policy", {}).get("budget", {})
        used = [f"{key} {of(value, budget.get(key))}" for key, value in usage.items() if told(value)]
        if used:
            yield from self._listed("used      ", used)
        # Of a run cut off, turns that are not shown leave out the children in them.
        if not self._child and not (self._spend.counted and self._choice.turns is not None):
            yield from self._spend.lines(self._width)

    def _listed(self, head: str, parts: list[str]) -> Iterator[str]:
        """Yield ``parts`` on as few lines as they fit on."""
        line = head
        for part in parts:
            if len(line) > len(head) and len(line) + len(part) + 3 > self._width:
                yield line
                line = " " * len(head)
            line += (" · " if line.strip() and line != head else "") + one_line(part, self._width - len(head))
        yield line

    def _untold(self, record: Record) -> Iterator[str]:
        """Pass over what is for a resumed run and nobody else."""
        del record
        yield from ()

    def _unknown(self, record: Record) -> Iterator[str]:
        yield self._at(record, f"{record.kind} (this version has no text for it)")

    def _call(self, call: int, verb: str, answer: str, facts: list[str]) -> Iterator[str]:
        prompt = self._prompts.pop(call, "")
        summary = ", ".join(fact for fact in facts if fact)
        if self._full:
            yield self._cut(_MARGIN, f"sub-call {call} ({summary})")
            yield from self._block(prompt, "? ", OUTPUT_LINES)
            yield from self._block(f"{verb} {answer}", "  ", OUTPUT_LINES)
            return
        if self._shown == CALLS_A_CELL and not self._choice.calls:
            self._hidden += 1
            return
        self._shown += 1
        room = max(self._width - 26 - len(summary) - len(str(call)), 20)
        asked = one_line(prompt, room // 2)
        answered = one_line(answer, room - len(asked))
        yield self._cut(_MARGIN, f"sub-call {call} {asked} {verb} {answered} ({summary})")

    def _more_calls(self) -> Iterator[str]:
        if self._hidden:
            yield f"{_MARGIN}… and {counted(self._hidden, 'sub-call')} more"

    def _at(self, record: Record, text: str) -> str:
        return self._cut(f"{record.elapsed_s:8.2f}  ", text)

    def _cut(self, head: str, text: str) -> str:
        room = self._width - len(head)
        return head + fitted(one_line(text, room), room)

    def _block(self, text: str, mark: str, most: int, *, margin: str = _MARGIN, words: bool = False) -> Iterator[str]:
        lines = printable(text).strip("\n").split("\n")
        if lines == [""]:
            return
        shown = lines if self._full else lines[:most]
        room = self._width - len(margin) - len(mark) if self._choice.wrap else 0
        for line in shown:
            cut = "" if self._full or len(line) <= LINE_CHARS else "…"
            text = f"{line[:LINE_CHARS]}{cut}" if cut else line
            for number, part in enumerate(folded(text.expandtabs(4), room, words=words) if room else [text]):
                yield f"{margin}{' ' * len(mark) if number else mark}{part}"
        if len(shown) < len(lines):
            yield f"{margin}{mark}… {len(lines) - len(shown):,} more lines"


def _not_of_this_format(path: Path, record: Record) -> JournalError:
    return JournalError(f"{path}: record {record.seq} ({record.kind}) is not of this format")
