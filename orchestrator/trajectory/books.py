"""What the events of a run say it spent, against what its ledger said at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orchestrator.text import one_line
from orchestrator.trajectory.reading import Record

# Kinds after which nobody can tell from the events alone what the ledger will say: a run that is resumed counts what it
# plays back once more.
_UNCOUNTABLE = frozenset(("resumed", "diverged"))
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_EXACT = (
    "tokens",
    "cost_nano",
    "cache_read_tokens",
    "cache_write_tokens",
    "estimated_calls",
    "estimated_tokens",
    "unpriced_calls",
)
_NANO = 10**9
# Exchanges with the root model of which no event of revision 0 tells, because they failed or were broken off: the one
# that ended the run, and the one for its last word. Of each at most its last attempt is in no ``retry_scheduled``.
_UNTOLD = 2
_NAME_CHARS = 80


class Books:
    """Adds up the events of a run, by depth and model.

    Attributes:
        countable: whether the events tell all that was spent.
        children: child runs that were started, those of child runs with them.
    """

    def __init__(self) -> None:
        """Begin with nothing spent."""
        self.countable = True
        self.children = 0
        self._rows: dict[tuple[int, str], Counter[str]] = {}
        self._depth = 0
        self._root_model = ""
        self._models: dict[int, str] = {}
        self._limited = False
        self._tells_all = False
        self._retried = 0  # attempts at the turn that is under way that are counted already

    def add(self, record: Record) -> None:
        """Add one event of the run.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, ArithmeticError: it is not of this format.
        """
        said = record.fields
        match record.kind:
            case "run_started":
                self._depth, self._root_model = int(said["depth"]), str(said["root_model"])
                self._tells_all = int(said.get("revision", 0)) > 0
            case "child_started":
                self.children += 1
            case "limit_reached":
                self._limited = True
            case "run_finished" if not self._tells_all and (self._limited or said["status"] in ("limit", "failed")):
                self._row(self._root_model)["untold"] += _UNTOLD
            case kind if kind in _UNCOUNTABLE:
                self.countable = False
            case _:
                self._add_spending(record.kind, said)

    def _add_spending(self, kind: str, said: Mapping[str, Any]) -> None:
        match kind:
            case "root_replied":
                row = self._row(self._root_model)
                row.update(calls=1, turns=1)
                self._retried = 0
                _add_reply(row, said)
            case "root_failed":
                if said["attempts"]:
                    self._row(self._root_model).update(calls=said["attempts"] - self._retried, turns=1)
                self._retried = 0
            case "subcall_started":
                self._models[said["call"]] = str(said["model"])
            case "subcall_finished" if said.get("memo_of") is None:
                row = self._row(self._models[said["call"]])
                row["calls"] += said["attempts"]
                _add_reply(row, said)
            case "subcall_failed" if said["attempts"]:
                self._row(self._models[said["call"]])["calls"] += said["attempts"]
            case "retry_scheduled" if said["purpose"] == "root":
                self._row(self._root_model)["calls"] += 1
                self._retried += 1
            case "estimate_charged":
                row = self._row(self._root_model if said["call"] is None else self._models[said["call"]])
                row.update(tokens=said["tokens"], estimated_tokens=said["tokens"], estimated_calls=said["attempts"])
                _add_cost(row, said["cost_usd"], said["attempts"])

    def include(self, child: Books) -> None:
        """Add what a child run spent."""
        self.countable &= child.countable
        self.children += child.children
        for key, row in child._rows.items():
            self._rows.setdefault(key, Counter()).update(row)

    def differences(self, usage: Mapping[str, Any]) -> Iterator[str]:
        """Yield in what the ``usage`` that a run ended with differs from its events, a sentence each.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, ArithmeticError: it is no usage.
        """
        if usage["children"] != self.children:
            yield f"the run's end tells of {usage['children']!r} child runs, the events of {self.children}"
        # Older journals tell of fewer things.
        names = frozenset(usage) | {"cost_nano"}
        yield from _compared("in all", names, self._rows.values(), usage)
        for column, told in enumerate((usage["by_depth"], usage["by_model"])):
            mine = {str(key[column]) for key, row in self._rows.items() if +row and key[1]}
            for name in sorted(mine | set(told)):
                where = f"at depth {name}" if column == 0 else f"by {one_line(name, _NAME_CHARS)}"
                rows = [row for key, row in self._rows.items() if str(key[column]) == name]
                yield from _compared(where, names, rows, told.get(name, {}))
        yield from self._by_both(names, usage.get("by_depth_and_model"))

    def _by_both(self, names: frozenset[str], told: Iterable[Mapping[str, Any]] | None) -> Iterator[str]:
        if told is None:
            return  # as in older journals
        its = {(row["depth"], str(row["model"])): row for row in told}
        mine = {key for key, row in self._rows.items() if +row and key[1]}
        for depth, model in sorted(mine | its.keys()):
            where = f"by {one_line(model, _NAME_CHARS)} at depth {depth}"
            row = self._rows.get((depth, model), Counter())
            yield from _compared(where, names, [row], its.get((depth, model), {}))

    def _row(self, model: str) -> Counter[str]:
        return self._rows.setdefault((self._depth, model), Counter())


def _add_reply(row: Counter[str], said: Mapping[str, Any]) -> None:
    usage = said["usage"]
    total = 0
    for name in _TOKENS:
        row[name] += usage[name]
        total += usage[name]
    row["tokens"] += total
    if usage.get("estimated"):
        row.update(estimated_calls=1, estimated_tokens=total)
    _add_cost(row, said["cost_usd"], 1)


def _add_cost(row: Counter[str], dollars: float | None, requests: int) -> None:
    if dollars is None:
        row["unpriced_calls"] += requests
    else:
        row["cost_nano"] += round(dollars * _NANO)


def _compared(
    where: str, names: frozenset[str], rows: Iterable[Counter[str]], told: Mapping[str, Any]
) -> Iterator[str]:
    mine: Counter[str] = Counter()
    for row in rows:
        mine.update(row)
    its = {**told, "cost_nano": round(told.get("cost_usd", 0) * _NANO)}
    ranges = {name: (mine[name], mine[name]) for name in _EXACT}
    ranges |= {name: (mine[name], mine[name] + mine["untold"]) for name in ("calls", "turns")}
    # An estimate is told as one number, and booked as input and output.
    ranges |= {name: (mine[name], mine[name] + mine["estimated_tokens"]) for name in ("input_tokens", "output_tokens")}
    for name in sorted(names & ranges.keys()):
        (least, most), value = ranges[name], its.get(name, 0)
        if not least <= value <= most:
            events = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            what = "nano-dollars" if name == "cost_nano" else name.replace("_", " ")
            yield f"the run's end tells of {value:,} {what} {where}, the events of {events}"
