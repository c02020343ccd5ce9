"""What the events of a run say it spent, against what its ledger said at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import JournalError
from orchestrator.ledger import Amount, Bill, Paid
from orchestrator.text import one_line
from orchestrator.trajectory.journal import RUN_ID, SUFFIX
from orchestrator.trajectory.reading import Record, read

# What a journal that is not of this format raises where its values are used.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)

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

    def __init__(self, depth: int = 0) -> None:
        """Begin with nothing spent, by a run of that depth."""
        self.countable = True
        self.children = 0
        self._rows: dict[tuple[int, str], Counter[str]] = {}
        self._depth = depth
        self._root_model = ""
        self._models: dict[int, str] = {}
        self._limited = False
        self._tells_all = False
        self._retried = 0  # attempts at the turn that is under way that are counted already
        self._under_way: dict[int, int] = {}  # sub-calls, and how many attempts at each have failed
        self._turns: list[int] = []

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
            case "resumed":
                self.countable &= int(said.get("revision", 0)) > 0
                self._go_on(said["after"])
            case _:
                if record.kind == "root_replied":
                    self._turns.append(record.seq)
                self._add_spending(record.kind, said)

    def cut_off(self) -> None:
        """Count what was under way when the process died: each sub-call had left once more than it had failed."""
        for call, failed in self._under_way.items():
            self._row(self._models[call])["calls"] += failed + 1
        self._under_way.clear()
        self._retried = 0

    def _go_on(self, after: int) -> None:
        self.cut_off()
        # Only turns that are played back are turns of the run that goes on.
        self._turns = [turn for turn in self._turns if turn <= after]
        self._row(self._root_model)["turns"] = len(self._turns)

    def _add_spending(self, kind: str, said: Mapping[str, Any]) -> None:
        if kind.startswith("subcall_"):
            self._add_call(kind, said)
            return
        match kind:
            case "root_replied":
                self.answer(self._root_model, said, turns=1)
                self._retried = 0
            case "root_failed":
                if said["attempts"]:
                    self._row(self._root_model).update(calls=said["attempts"] - self._retried, turns=1)
                self._retried = 0
            case "retry_scheduled" if said["purpose"] == "root":
                self._row(self._root_model)["calls"] += 1
                self._retried += 1
            case "retry_scheduled" if said.get("call") in self._under_way:
                self._under_way[said["call"]] += 1
            case "estimate_charged":
                row = self._row(self._root_model if said["call"] is None else self._models[said["call"]])
                row.update(tokens=said["tokens"], estimated_tokens=said["tokens"], estimated_calls=said["attempts"])
                _add_cost(row, said["cost_usd"], said["attempts"])

    def _add_call(self, kind: str, said: Mapping[str, Any]) -> None:
        call = said["call"]
        if kind == "subcall_started":
            self._models[call] = str(said["model"])
            self._under_way[call] = 0
            return
        self._under_way.pop(call, None)
        answered = kind == "subcall_finished"
        if said.get("memo_of") is None and (answered or said["attempts"]):
            row = self._row(self._models[call])
            row["calls"] += said["attempts"]
            if answered:
                _add_reply(row, said)

    def answer(self, model: str, said: Mapping[str, Any], *, times: int = 1, turns: int = 0) -> None:
        """Add a reply as it is booked when it is played back, as one request; or take it out, ``times`` being -1."""
        reply = Counter(calls=1, turns=turns)
        _add_reply(reply, said)
        self._row(model).update({name: times * value for name, value in reply.items()})

    def paid(self) -> list[Paid]:
        """Return what was spent as the ledger books it."""
        found = [_paid(row, depth, model) for (depth, model), row in self._rows.items()]
        return [paid for paid in found if any(paid.amount)]

    @classmethod
    def of_tree(cls, path: Path, above: frozenset[Path] = frozenset()) -> Books:
        """Add up a journal and those of its child runs, as far as they can be read."""
        books, children = cls(), list[str]()
        try:
            for record in read(path):
                books.add(record)
                if record.kind == "child_started":
                    children.append(str(record.fields["child"]))
        except (JournalError, *MALFORMED):
            pass
        books.cut_off()
        for child in filter(RUN_ID.fullmatch, children):
            its = path.with_name(f"{child}{SUFFIX}")
            if its not in above | {path}:
                books.include(cls.of_tree(its, above | {path}))
        return books

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


def _paid(row: Counter[str], depth: int, model: str) -> Paid:
    amount = Amount(**{name: max(row[name], 0) for name in ("calls", "tokens", "cost_nano", "turns")})
    kinds = {name: max(row[name], 0) for name in (*_TOKENS, "unpriced_calls", "estimated_calls", "estimated_tokens")}
    # Estimates are told as one number.
    kinds["input_tokens"] += amount.tokens - sum(kinds[name] for name in _TOKENS)
    return Paid(amount, Bill(model, **kinds), depth)


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
