"""Folds the journals of a tree of runs into the plain data that the page's script draws from.

What a model or a box said is passed on as it came, as strings in one table: the script writes them into text nodes and
nowhere else. The table holds each text once, and whatever is a text elsewhere in the data is a place in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.events import KEPT
from orchestrator.text import counted, head_and_tail
from orchestrator.trajectory.journal import SUFFIX, Record, read
from orchestrator.trajectory.spend import TOKENS, Row, Spend
from orchestrator.trajectory.wording import box_closed, box_opened, circuit_text, compacting, place_in_session

TEXT_CHARS = 100_000
"""Of a longer text the page has its beginning and its end."""

PAGE_CHARS = 64_000_000
"""Past so much text in all, the page has only :data:`SHORT_CHARS` of each further one."""

SHORT_CHARS = 1_000

# Of the arguments and the result of a tool, in the note that a call of it is.
_TOOL_CHARS = 500
_RESULT_TEXTS = ("stdout", "stderr", "result")

Data = dict[str, Any]


def fold(path: Path) -> Data:
    """Return the run in the journal ``path``, and its child runs, whose journals are looked for beside it.

    A journal that is damaged further on gives what stands before, and the damage in words as the run's ``damage``.

    Raises:
        JournalError: the journal has no run at its beginning.
    """
    tree = _Tree(path.parent)
    tree.run(path, at=0.0, place=None)
    if not tree.runs or "query" not in tree.runs[0]:
        raise JournalError(tree.runs[0]["damage"] if tree.runs else f"{path} does not begin with a run")
    return tree.data()


class _Texts:
    """The table of texts; what is added is cut to what a page can hold."""

    def __init__(self) -> None:
        self.table: list[str] = []
        self.cut = 0
        self._places: dict[str, int] = {}
        self._chars = 0

    def add(self, text: object) -> int:
        if not isinstance(text, str):
            raise TypeError("a text is a string")
        limit = TEXT_CHARS if self._chars < PAGE_CHARS else SHORT_CHARS
        if len(text) > limit:
            self.cut += 1
            text = head_and_tail(text, limit)
        place = self._places.setdefault(text, len(self.table))
        if place == len(self.table):
            self.table.append(text)
            self._chars += len(text)
        return place


class _Tree:
    def __init__(self, directory: Path) -> None:
        self.texts = _Texts()
        self.spend = Spend()
        self.runs: list[Data] = []
        self._directory = directory
        self._seen: set[str] = set()

    def run(self, path: Path, at: float, place: list[int] | None) -> int:
        """Fold one journal that began ``at`` seconds after the root's; return its place among the runs."""
        number = len(self.runs)
        data: Data = {"id": path.stem, "at": at, "place": place, "status": "unfinished", "items": [], "limits": []}
        self.runs.append(data)
        folded = _Run(self, number, data)
        try:
            for record in read(path):
                self._seen.add(record.run)
                folded.add(record)
        except JournalError as error:
            data["damage"] = str(error)
        return number

    def child(self, name: str, at: float, place: list[int]) -> int | None:
        """Fold the journal of a child run; None when its name is no run's, or it is one that is above it."""
        path = self._directory / f"{name}{SUFFIX}"
        if name in self._seen or path.name != f"{name}{SUFFIX}":
            return None
        return self.run(path, at, place)

    def data(self) -> Data:
        spend = {
            "models": [_row(row) for row in self.spend.by_model()],
            "depths": [_row(row) for row in self.spend.by_depth()],
            "counted": self.spend.counted,
        }
        return {"runs": self.runs, "texts": self.texts.table, "cut": self.texts.cut, "spend": spend}


class _Run:
    """Folds the events of one run into ``data``."""

    def __init__(self, tree: _Tree, number: int, data: Data) -> None:
        self._tree = tree
        self._number = number
        self._data = data
        self._text = tree.texts.add
        self._cells: dict[int, int] = {}
        self._running: int | None = None
        self._calls: dict[int, list[Any]] = {}
        self._children: dict[str, Data] = {}
        self._adders: dict[str, Callable[[Record, Data], None]] = {
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
            "budget_told": self._untold,
            "tool_started": self._tool_started,
            "tool_finished": self._tool_finished,
            "tool_failed": self._tool_failed,
            "refused": self._refused,
            "resumed": self._resumed,
            "diverged": self._diverged,
            "child_started": self._child_started,
            "child_finished": self._child_finished,
            "final_set": self._final_set,
            "limit_reached": self._limit_reached,
            "run_finished": self._run_finished,
        }

    def add(self, record: Record) -> None:
        """Take in one event.

        Raises:
            JournalError: it has not the shape of its kind.
        """
        try:
            self._data["end"] = record.elapsed_s
            self._adders.get(record.kind, self._unknown)(record, record.fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JournalError(f"record {record.seq} ({record.kind}) of {record.run} is not of this format") from error

    def _run_started(self, record: Record, said: Data) -> None:
        policy = said["policy"]
        self._data |= {
            "id": record.run,
            "time": record.time,
            "query": self._text(said["query"]),
            "session": place_in_session(said.get("session")),
            "context": {key: said["context"].get(key) for key in ("kind", "documents", "characters", "lines")},
            "policy": str(policy.get("name", "unnamed")),
            "budget": dict(policy.get("budget", {})),
            "root": str(said["root_model"]),
            "sub": str(said["sub_model"]),
            "depth": int(said["depth"]),
        }

    def _sandbox_opened(self, record: Record, said: Data) -> None:
        self._note(record, f"sandbox {said['container'][:24]} {box_opened(said)}")

    def _sandbox_closed(self, record: Record, said: Data) -> None:
        level = "" if said["reason"] in ("", KEPT) else "warn"
        self._note(record, f"sandbox {said['container'][:24]} {box_closed(said)}", level)

    def _root_replied(self, record: Record, said: Data) -> None:
        self._tree.spend.add(self._data["root"], self._data["depth"], said)
        self._item(
            record,
            "turn",
            n=int(said["turn"]),
            took=float(said["elapsed_s"]),
            text=self._text(said["text"]),
            stop=str(said["stop_reason"]),
            usage=_usage(said["usage"]),
            cost=said["cost_usd"],
        )

    def _compacting(self, record: Record, said: Data) -> None:
        self._note(record, compacting(said))

    def _root_failed(self, record: Record, said: Data) -> None:
        made = f"{counted(said['attempts'], 'attempt')}, {said['elapsed_s']:.1f} s"
        self._note(record, f"turn {said['turn']} failed ({made}): {said['code']} {said['detail']}", "warn")

    def _observed(self, record: Record, said: Data) -> None:
        self._item(record, "shown", n=int(said["turn"]), text=self._text(said["text"]))

    def _cell_started(self, record: Record, said: Data) -> None:
        self._running = self._cell(record, said, self._text(said["code"]))["n"]

    def _cell_finished(self, record: Record, said: Data) -> None:
        number, result = int(said["cell"]), said["result"]
        cell = self._cell_of(number) or self._cell(record, said, None)
        self._running = None
        error = result.get("error")
        cell |= {
            "end": record.elapsed_s,
            "status": str(result["status"]),
            "took": float(result["elapsed_s"]),
            "lost": bool(result.get("state_lost")),
            "truncated": bool(result.get("truncated")),
            "detail": str(result.get("detail") or ""),
            **{name: self._text(result[name]) for name in _RESULT_TEXTS if result.get(name)},
        }
        if error:
            cell["error"] = {key: self._text(error[key]) for key in ("name", "value", "traceback")}

    def _subcall_started(self, record: Record, said: Data) -> None:
        cell = self._cell_of(said["cell"]) or self._cell(record, said, None)
        number, prompt, model = int(said["call"]), self._text(said["prompt"]), str(said["model"])
        # An array, and not an object, because there may be tens of thousands: `CALL` in text.js names its fields.
        call = [number, record.elapsed_s, None, model, prompt, None, "", "", [0, 0, 0, 0], None, 0]
        self._calls[number] = call
        cell["calls"].append(call)

    def _subcall_finished(self, record: Record, said: Data) -> None:
        call = self._calls.pop(said["call"])
        self._tree.spend.add(call[3], self._data["depth"], said)
        call[2] = record.elapsed_s
        call[5] = self._text(said["text"])
        call[6] = "" if said["stop_reason"] == "end" else f"stopped by {said['stop_reason']}"
        if said.get("memo_of") is not None:
            call[6] = f"the answer of sub-call {said['memo_of']}; nothing was sent"
        call[8:] = [_usage(said["usage"]), said["cost_usd"], int(said["attempts"])]

    def _subcall_failed(self, record: Record, said: Data) -> None:
        call = self._calls.pop(said["call"])
        call[2], call[6], call[7] = record.elapsed_s, str(said["code"]), str(said["detail"])
        call[10] = int(said["attempts"])

    def _retry_scheduled(self, record: Record, said: Data) -> None:
        text = f"{said['purpose']}: attempt {said['attempt']} failed ({said['code']}), again in {said['wait_s']:.1f} s"
        self._note(record, text, "warn", None if said["purpose"] == "root" else self._running)

    def _estimate_charged(self, record: Record, said: Data) -> None:
        call = self._calls.get(said["call"])
        model = self._data["root"] if said["call"] is None else "unknown" if call is None else call[3]
        self._tree.spend.estimate(model, self._data["depth"], said)
        what = f"{counted(said['attempts'], 'request')} without a reply charged as {counted(said['tokens'], 'token')}"
        text = f"{said['purpose']}: {what} at most"
        self._note(record, text, "warn", None if said["purpose"] == "root" else self._running)

    def _circuit_changed(self, record: Record, said: Data) -> None:
        text = circuit_text(said["provider"], said["state"], said["failures"], said["wait_s"])
        self._note(record, text, "warn", self._running)

    def _tool_started(self, record: Record, said: Data) -> None:
        self._note(record, f"tool {said['call']}: {said['tool']} {_clipped(said['arguments'])}", "", said["cell"])

    def _tool_finished(self, record: Record, said: Data) -> None:
        text = f"tool {said['call']} ({said['elapsed_s']:.2f} s) → {_clipped(said['result'])}"
        self._note(record, text, "", self._running)

    def _tool_failed(self, record: Record, said: Data) -> None:
        text = f"tool {said['call']} ({said['elapsed_s']:.2f} s) failed: {said['code']} {said['detail']}"
        self._note(record, text, "warn", self._running)

    def _refused(self, record: Record, said: Data) -> None:
        left = "" if said["limit"] is None else f" ({said['limit']:g} left)"
        times = f", {said['count']:,} times" if said["count"] > 1 else ""
        self._note(record, f"refused {said['method']}: {said['reason']}{left}{times}", "warn", said["cell"])

    def _resumed(self, record: Record, said: Data) -> None:
        self._note(record, f"the run was resumed here, and goes on behind event {said['after']}", "warn")

    def _diverged(self, record: Record, said: Data) -> None:
        self._note(record, f"the cell was run again and diverged: {said['what']}", "warn", said["cell"])

    def _child_started(self, record: Record, said: Data) -> None:
        cell = self._cells.get(said["cell"])
        place = [self._number, len(self._data["items"]) if cell is None else cell]
        item = self._item(record, "child", cell, id=str(said["child"]), query=self._text(said["query"]), status="")
        self._children[item["id"]] = item
        item["run"] = self._tree.child(item["id"], self._data["at"] + record.elapsed_s, place)

    def _child_finished(self, record: Record, said: Data) -> None:
        item = self._children.get(said["child"]) or self._item(record, "child", None, id=str(said["child"]), run=None)
        item |= {"end": record.elapsed_s, "status": str(said["status"]), "reason": str(said["reason"])}

    def _final_set(self, record: Record, said: Data) -> None:
        self._note(record, f"Final set, {counted(len(said['answer']), 'character')}", "", said["cell"])

    def _limit_reached(self, record: Record, said: Data) -> None:
        text = f"{said['reason']} ({said['limit']:g} left)"
        self._data["limits"].append({"at": record.elapsed_s, "text": text})
        more = f"; for more: {said['more']}" if said.get("more") else ""
        self._note(record, f"limit reached: {text}{more}", "warn")

    def _run_finished(self, record: Record, said: Data) -> None:
        if self._number == 0:
            self._tree.spend.settle(said["usage"])
        numbers = {key: value for key, value in said["usage"].items() if type(value) in (int, float)}
        answer = None if said["answer"] is None else self._text(said["answer"])
        self._data |= {
            "end": max(record.elapsed_s, 0.0),
            "status": str(said["status"]),
            "reason": str(said["reason"]),
            "answer": answer,
            "turns": int(said["turns"]),
            "usage": numbers,
        }

    def _untold(self, record: Record, said: Data) -> None:
        """Pass over what is for a resumed run and nobody else."""

    def _unknown(self, record: Record, said: Data) -> None:
        del said
        self._note(record, f"{record.kind} (this version has no text for it)")

    def _cell(self, record: Record, said: Data, code: int | None) -> Data:
        number = int(said["cell"])
        self._cells[number] = len(self._data["items"])
        return self._item(
            record, "cell", n=number, turn=said.get("turn"), code=code, status="", end=None, calls=[], items=[]
        )

    def _cell_of(self, number: object) -> Data | None:
        place = self._cells.get(number) if isinstance(number, int) else None
        return None if place is None else self._data["items"][place]

    def _item(self, record: Record, kind: str, cell: int | None = None, **facts: Any) -> Data:
        item = {"k": kind, "at": record.elapsed_s, **facts}
        (self._data["items"] if cell is None else self._data["items"][cell]["items"]).append(item)
        return item

    def _note(self, record: Record, text: str, level: str = "", cell: object = None) -> None:
        place = self._cells.get(cell) if isinstance(cell, int) else None
        self._item(record, "note", place, text=text, level=level)


def _clipped(text: Any) -> str:
    return head_and_tail(str(text), _TOOL_CHARS)


def _usage(usage: Data) -> list[int]:
    return [int(usage.get(name, 0)) for name in TOKENS]


def _row(row: Row) -> list[Any]:
    return [row.name, row.calls, row.tokens_in, row.tokens_out, row.cached, row.cost_usd]
