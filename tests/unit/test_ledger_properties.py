"""The ledger against a second, slower one: a list of what happened, summed anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestrator.errors import LimitExceededError
from orchestrator.ledger import NANO, Amount, Reservation, Scope
from orchestrator.policy import Budget
from tests.support.fakes import FakeClock

KEYS = {
    "calls": "calls",
    "tokens": "tokens",
    "cost_nano": "cost_usd",
    "children": "children",
    "bytes_in": "bytes_in",
    "bytes_out": "bytes_out",
    "tool_calls": "tool_calls",
}
FIELDS = tuple(KEYS)

amounts = st.builds(
    Amount,
    calls=st.integers(0, 2),
    tokens=st.integers(0, 9),
    cost_nano=st.integers(0, 9),
    children=st.just(0),
    turns=st.integers(0, 2),
    bytes_in=st.integers(0, 9),
    bytes_out=st.integers(0, 9),
    tool_calls=st.integers(0, 3),
)
picks = st.integers(0, 99)
budgets = st.builds(
    Budget,
    calls=st.integers(1, 8),
    tokens=st.integers(1, 40),
    cost_usd=st.integers(0, 40).map(lambda nano: nano / NANO),
    children=st.integers(0, 4),
    children_alive=st.integers(0, 3),
    bytes_in=st.integers(0, 60),
    bytes_out=st.integers(0, 60),
    tool_calls=st.integers(0, 9),
    turns=st.integers(1, 5),
    depth=st.integers(0, 3),
    wall_s=st.integers(20, 400).map(float),
)


@dataclass(eq=False)
class Run:
    """A scope and what the second ledger knows of it."""

    scope: Scope
    limit: dict[str, int]
    turns: int
    alive: int
    levels: int
    deadline: float
    parent: Run | None
    closed: bool = False
    reason: str | None = None
    children: list[Run] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def path(self) -> list[Run]:
        return [self, *(self.parent.path() if self.parent else [])]

    def below(self) -> list[Run]:
        return [self, *(run for child in self.children for run in child.below())]

    def spent(self, name: str) -> int:
        if name == "children":
            return len(self.below()) - 1
        return sum(getattr(entry.actual, name) for run in self.below() for entry in run.entries)

    def reserved(self, name: str) -> int:
        return sum(getattr(entry.held, name) for run in self.below() for entry in run.entries)

    def overshoot(self, name: str) -> int:
        return sum(entry.overshoot.get(name, 0) for run in self.below() for entry in run.entries)

    def alive_left(self) -> int:
        return min(max(run.alive - sum(not each.closed for each in run.below()[1:]), 0) for run in self.path())

    def own_turns(self) -> int:
        return sum(entry.actual.turns + entry.held.turns for entry in self.entries)

    def left(self, name: str) -> int:
        return min(max(run.limit[name] - run.spent(name) - run.reserved(name), 0) for run in self.path())

    def note_exhaustion(self) -> None:
        # Of several that are passed at once the first is told, in the order of an amount's fields.
        for name in (*FIELDS[:4], "turns", *FIELDS[4:]):
            if name == "turns":
                spent, limit = sum(entry.actual.turns for entry in self.entries), self.turns
            else:
                spent, limit = self.spent(name), self.limit[name]
            if self.reason is None and (spent > limit or (name in ("calls", "tokens") and spent == limit)):
                self.reason = KEYS.get(name, name)

    def room_for(self, amount: Amount) -> bool:
        enough = all(getattr(amount, name) <= self.left(name) for name in FIELDS)
        return enough and amount.turns <= max(self.turns - self.own_turns(), 0)


@dataclass(eq=False)
class Entry:
    """A reservation and what became of it."""

    run: Run
    reservation: Reservation
    held: Amount
    actual: Amount = field(default_factory=Amount)
    overshoot: dict[str, int] = field(default_factory=dict)
    ended: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Many scopes; reservations made, extended, split, settled, released; runs closed; time passing; in any order."""

    @initialize(budget=budgets)
    def begin(self, budget: Budget) -> None:
        self.clock = FakeClock()
        self.runs: list[Run] = []
        self.entries: list[Entry] = []
        self.opened(Scope.root(budget, self.clock), budget, None)

    @rule(pick=picks, budget=budgets)
    def open_child(self, pick: int, budget: Budget) -> None:
        parent = self.runs[pick % len(self.runs)]
        may = self.may_spend(parent) and parent.levels > 0
        may = may and parent.alive_left() > 0
        may = may and parent.room_for(Amount(calls=1, tokens=1, children=1, bytes_in=1, bytes_out=1))
        try:
            scope = parent.scope.child(budget)
        except (LimitExceededError, RuntimeError):
            assert not may
        else:
            assert may
            assert scope.depth == parent.scope.depth + 1
            self.opened(scope, budget, parent)

    @rule(pick=picks, amount=amounts)
    def reserve(self, pick: int, amount: Amount) -> None:
        run = self.runs[pick % len(self.runs)]
        may = self.may_spend(run) and run.room_for(amount)
        fits = run.scope.fits(amount, 1)
        try:
            reservation = run.scope.reserve(amount)
        except (LimitExceededError, RuntimeError):
            assert not may
        else:
            assert may
            assert fits == 1
            self.entered(Entry(run, reservation, amount))

    @rule(pick=picks, amount=amounts)
    def extend(self, pick: int, amount: Amount) -> None:
        entry = self.entry(pick)
        if entry is None:
            return
        may = not entry.ended and self.may_spend(entry.run) and entry.run.room_for(amount)
        try:
            entry.reservation.extend(amount)
        except (LimitExceededError, RuntimeError):
            assert not may
        else:
            assert may
            entry.held += amount

    @rule(pick=picks, part=amounts)
    def split(self, pick: int, part: Amount) -> None:
        entry = self.entry(pick)
        if entry is not None and not entry.ended:
            part = part.smaller(entry.held)
            self.entered(Entry(entry.run, entry.reservation.split(part), part))
            entry.held -= part

    @rule(pick=picks, actual=amounts)
    def settle(self, pick: int, actual: Amount) -> None:
        entry = self.entry(pick)
        if entry is None:
            return
        try:
            entry.reservation.settle(actual)
        except RuntimeError:
            assert entry.ended
            return
        assert not entry.ended
        over = {name: getattr(actual, name) - getattr(entry.held, name) for name in FIELDS}
        entry.overshoot = {name: excess for name, excess in over.items() if excess > 0}
        entry.held, entry.actual, entry.ended = Amount(), actual, True
        for run in entry.run.path():
            run.note_exhaustion()
        if entry.run.reason is None and entry.overshoot.keys() & {"tokens", "cost_nano"}:
            entry.run.reason = "overbilled"

    @rule(pick=picks, bill=st.floats(0, 1))
    def settle_within(self, pick: int, bill: float) -> None:
        entry = self.entry(pick)
        if entry is not None:
            held = entry.held
            truth = Amount(held.calls, int(held.tokens * bill), int(held.cost_nano * bill), turns=held.turns)
            self.settle(pick, truth + Amount(bytes_in=int(held.bytes_in * bill), bytes_out=held.bytes_out))

    @rule(pick=picks)
    def release(self, pick: int) -> None:
        entry = self.entry(pick)
        if entry is not None:
            entry.reservation.release()
            entry.held, entry.ended = Amount(), True

    @rule(seconds=st.integers(0, 20))
    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(pick=picks)
    def close(self, pick: int) -> None:
        run = self.runs[pick % len(self.runs)]
        # A closed root makes the rest of an example dull; one in which a child is closed is not.
        if run.parent is not None:
            run.scope.close()
            run.closed = True

    def entry(self, pick: int) -> Entry | None:
        return self.entries[pick % len(self.entries)] if self.entries else None

    def entered(self, entry: Entry) -> None:
        self.entries.append(entry)
        entry.run.entries.append(entry)

    def opened(self, scope: Scope, budget: Budget, parent: Run | None) -> None:
        limit = {
            "calls": budget.calls,
            "tokens": budget.tokens,
            "cost_nano": round(budget.cost_usd * NANO),
            "children": budget.children,
            "bytes_in": budget.bytes_in,
            "bytes_out": budget.bytes_out,
            "tool_calls": budget.tool_calls,
        }
        turns, deadline = budget.turns, self.clock() + budget.wall_s
        run = Run(scope, limit, turns, budget.children_alive, budget.depth, deadline, parent)
        if parent is not None:
            parent.children.append(run)
            run.limit = {name: min(limit[name], parent.left(name)) for name in FIELDS}
            run.turns, run.deadline = min(turns, parent.turns), min(deadline, parent.deadline)
            run.alive = min(run.alive, parent.alive)
            run.levels = min(budget.depth, parent.levels - 1)
        self.runs.append(run)

    def may_spend(self, run: Run) -> bool:
        return not any(each.closed or each.reason or self.clock() >= each.deadline for each in run.path())

    @invariant()
    def no_scope_holds_more_than_its_budget_but_for_bills_above_their_reservation(self) -> None:
        for run in self.runs:
            for name in FIELDS:
                assert run.spent(name) + run.reserved(name) <= run.limit[name] + run.overshoot(name)

    @invariant()
    def what_remains_is_what_the_second_ledger_says_and_never_negative(self) -> None:
        for run in self.runs:
            left = run.scope.remaining()
            for name, key in KEYS.items():
                scale = NANO if name == "cost_nano" else 1
                assert left[key] == run.left(name) / scale
            assert left["depth"] == run.levels
            assert left["children_alive"] == run.alive_left()
            assert left["turns"] == max(run.turns - run.own_turns(), 0)
            assert left["wall_s"] == max(run.deadline - self.clock(), 0)

    @invariant()
    def nothing_that_was_billed_is_lost_or_counted_twice(self) -> None:
        for run in self.runs:
            usage = run.scope.usage()
            for name, key in KEYS.items():
                scale = NANO if name == "cost_nano" else 1
                assert usage[key] == run.spent(name) / scale
            own = sum(entry.actual.calls for entry in run.entries)
            assert usage["calls"] == own + sum(child.scope.usage()["calls"] for child in run.children)
            assert usage["turns"] == sum(entry.actual.turns for each in run.below() for entry in each.entries)

    @invariant()
    def a_scope_once_exhausted_stays_so_for_the_same_reason(self) -> None:
        for run in self.runs:
            for each in run.path():
                if each.reason is None and each.scope.exhausted == "wall_s" and self.clock() >= each.deadline:
                    each.reason = "wall_s"
            reasons = [each.reason for each in run.path() if each.reason]
            assert run.scope.exhausted == (reasons[0] if reasons else None)
            assert (run.scope.exhausted is None) or run.scope.fits(Amount(calls=1), 1) == 0

    @invariant()
    def what_children_spent_and_their_parent_itself_is_the_parents_share(self) -> None:
        for run in self.runs:
            for name, key in KEYS.items():
                scale = NANO if name == "cost_nano" else 1
                own = len(run.children) if name == "children" else sum(getattr(e.actual, name) for e in run.entries)
                theirs = sum(round(child.scope.usage()[key] * scale) for child in run.children)
                assert round(run.scope.usage()[key] * scale) == own + theirs

    @invariant()
    def the_alive_are_those_below_that_are_not_closed(self) -> None:
        for run in self.runs:
            assert run.scope.alive_children == sum(not each.closed for each in run.below()[1:])


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
