from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import LimitExceededError
from orchestrator.ledger import NANO, Amount, Bill, Paid, Scope
from orchestrator.policy import Budget, Policy
from orchestrator.rlm.result import limit_reached
from tests.support.fakes import FakeClock


def scope(clock: FakeClock | None = None, **budget: Any) -> Scope:
    return Scope.root(Budget(**budget), clock or FakeClock())


def refusal(call: Any, *args: Any) -> tuple[str, float]:
    with pytest.raises(LimitExceededError) as caught:
        call(*args)
    return caught.value.reason, caught.value.limit


def spend(where: Scope, amount: Amount, bill: Bill | None = None) -> None:
    where.reserve(amount).settle(amount, bill)


class TestAmount:
    @pytest.mark.parametrize("value", [-1, True, 1.0, float("nan"), "1", None])
    @pytest.mark.parametrize("field", ["calls", "tokens", "cost_nano", "children", "turns"])
    def test_what_is_no_whole_number_of_at_least_zero_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=field):
            Amount(**{field: value})

    def test_a_difference_below_zero_is_refused_and_not_clamped(self) -> None:
        with pytest.raises(ValueError, match="tokens"):
            Amount(tokens=1) - Amount(tokens=2)

    def test_sums_stay_exact_far_above_what_a_float_can_hold(self) -> None:
        assert (Amount(tokens=2**60 + 1) * 10**9).tokens == (2**60 + 1) * 10**9


class TestReserving:
    def test_reserved_amounts_are_taken_off_what_remains_at_once(self) -> None:
        ledger = scope(calls=10, tokens=100, cost_usd=1.0)
        ledger.reserve(Amount(calls=3, tokens=40, cost_nano=NANO // 4))
        left = ledger.remaining()
        assert (left["calls"], left["tokens"], left["cost_usd"]) == (7, 60, 0.75)

    def test_a_reservation_that_fails_in_one_budget_takes_nothing_from_any(self) -> None:
        ledger = scope(calls=10, tokens=100)
        before = ledger.remaining()
        assert refusal(ledger.reserve, Amount(calls=5, tokens=101)) == ("tokens", 100)
        assert ledger.remaining() == before

    def test_a_reservation_that_fails_in_the_parent_takes_nothing_from_the_child(self) -> None:
        parent = scope(calls=10, depth=1)
        child = parent.child(Budget(calls=10))
        parent.reserve(Amount(calls=8))
        assert refusal(child.reserve, Amount(calls=3)) == ("calls", 2)
        assert child.remaining()["calls"] == 2
        parent.reserve(Amount(calls=2))

    @pytest.mark.parametrize(
        ("amount", "reason", "left"),
        [
            (Amount(calls=3), "calls", 2),
            (Amount(tokens=11), "tokens", 10),
            (Amount(cost_nano=NANO + 1), "cost_usd", 1.0),
            (Amount(children=2), "children", 1),
            (Amount(turns=4), "turns", 3),
        ],
    )
    def test_a_refusal_names_the_policy_key_and_what_is_left_in_its_unit(
        self, amount: Amount, reason: str, left: float
    ) -> None:
        ledger = scope(calls=2, tokens=10, cost_usd=1.0, children=1, turns=3)
        assert refusal(ledger.reserve, amount) == (reason, left)

    def test_journals_of_the_whole_tree_count_together_and_end_it(self) -> None:
        parent = scope(journal_mb=1)
        child = parent.child(Budget(journal_mb=1))
        child.recorded(1 << 19)
        parent.recorded(1 << 19)
        assert parent.exhausted is None
        child.recorded(1)
        assert child.exhausted == "journal_mb"
        assert refusal(parent.reserve, Amount(calls=1)) == ("journal_mb", 0)

    def test_the_last_unit_goes_to_exactly_one(self) -> None:
        ledger = scope(calls=1)
        ledger.reserve(Amount(calls=1))
        assert refusal(ledger.reserve, Amount(calls=1)) == ("calls", 0)

    def test_a_refusal_leaves_the_scope_open_for_something_smaller(self) -> None:
        ledger = scope(calls=2)
        refusal(ledger.reserve, Amount(calls=3))
        assert ledger.exhausted is None
        ledger.reserve(Amount(calls=2))

    def test_fits_says_how_many_could_be_reserved_and_they_can(self) -> None:
        ledger = scope(calls=100, tokens=55)
        each = Amount(calls=1, tokens=10)
        assert ledger.fits(each, 1000) == 5
        assert ledger.fits(each, 3) == 3
        ledger.reserve(each * 5)
        assert ledger.fits(each, 1000) == 0

    def test_fits_of_nothing_is_all_that_was_asked(self) -> None:
        assert scope().fits(Amount(), 7) == 7

    def test_after_the_deadline_everything_is_refused_as_wall_time(self) -> None:
        clock = FakeClock()
        ledger = scope(clock, wall_s=60.0)
        held = ledger.reserve(Amount(calls=1))
        clock.now += 60
        assert refusal(ledger.reserve, Amount(calls=1)) == ("wall_s", 0)
        assert refusal(held.extend, Amount(calls=1)) == ("wall_s", 0)
        assert ledger.fits(Amount(calls=1), 1) == 0
        assert ledger.exhausted == "wall_s"
        held.settle(Amount(calls=1))
        assert ledger.usage()["calls"] == 1


class TestSettling:
    def test_settling_below_the_reservation_gives_the_difference_back(self) -> None:
        ledger = scope(tokens=100)
        ledger.reserve(Amount(calls=1, tokens=90)).settle(Amount(calls=1, tokens=10))
        assert ledger.remaining()["tokens"] == 90

    def test_releasing_gives_everything_back(self) -> None:
        ledger = scope(calls=5)
        before = ledger.remaining()
        ledger.reserve(Amount(calls=5)).release()
        assert ledger.remaining() == before

    def test_a_bill_above_the_reservation_is_recorded_comes_out_of_what_is_left_and_closes_the_scope(self) -> None:
        ledger = scope(tokens=100)
        ledger.reserve(Amount(calls=1, tokens=10)).settle(Amount(calls=1, tokens=30))
        assert (ledger.remaining()["tokens"], ledger.exhausted) == (70, "overbilled")
        assert refusal(ledger.reserve, Amount(calls=1)) == ("overbilled", 0)

    def test_so_does_one_in_money_alone(self) -> None:
        ledger = scope()
        ledger.reserve(Amount(calls=1, cost_nano=10)).settle(Amount(calls=1, cost_nano=11))
        assert ledger.exhausted == "overbilled"

    def test_a_child_that_was_overbilled_closes_itself_and_not_its_parent(self) -> None:
        parent = scope(tokens=1000, depth=1)
        child = parent.child(Budget(tokens=100))
        child.reserve(Amount(calls=1, tokens=10)).settle(Amount(calls=1, tokens=11))
        assert (child.exhausted, parent.exhausted) == ("overbilled", None)
        assert parent.remaining()["tokens"] == 989

    def test_a_bill_above_the_budget_is_recorded_whole_and_closes_the_scope_for_good(self) -> None:
        ledger = scope(tokens=100)
        ledger.reserve(Amount(calls=1, tokens=100)).settle(Amount(calls=1, tokens=130))
        assert ledger.usage()["tokens"] == 130
        assert (ledger.exhausted, ledger.remaining()["tokens"]) == ("tokens", 0)
        assert refusal(ledger.reserve, Amount(calls=1)) == ("tokens", 0)
        assert refusal(ledger.reserve, Amount()) == ("tokens", 0)

    def test_a_child_above_its_own_budget_closes_itself_and_not_its_parent(self) -> None:
        parent = scope(tokens=1000, depth=1)
        child = parent.child(Budget(tokens=100))
        child.reserve(Amount(calls=1, tokens=100)).settle(Amount(calls=1, tokens=150))
        assert (child.exhausted, parent.exhausted) == ("tokens", None)
        assert parent.remaining()["tokens"] == 850

    def test_a_parent_that_is_exhausted_exhausts_its_children(self) -> None:
        parent = scope(calls=3, depth=1)
        child = parent.child(Budget(calls=3))
        spend(parent, Amount(calls=3))
        assert child.exhausted == "calls"
        assert refusal(child.reserve, Amount(tokens=1)) == ("calls", 0)

    def test_the_first_reason_stays(self) -> None:
        clock = FakeClock()
        ledger = scope(clock, calls=1, wall_s=60.0)
        spend(ledger, Amount(calls=1))
        clock.now += 100
        assert ledger.exhausted == "calls"

    def test_money_spent_to_the_last_cent_still_lets_an_unpriced_model_answer(self) -> None:
        ledger = scope(cost_usd=1.0)
        spend(ledger, Amount(calls=1, cost_nano=NANO))
        assert ledger.exhausted is None
        spend(ledger, Amount(calls=1))
        assert refusal(ledger.reserve, Amount(cost_nano=1)) == ("cost_usd", 0)

    def test_settling_twice_is_a_mistake_that_raises_and_counts_once(self) -> None:
        ledger = scope()
        held = ledger.reserve(Amount(calls=1))
        held.settle(Amount(calls=1))
        with pytest.raises(RuntimeError):
            held.settle(Amount(calls=1))
        assert ledger.usage()["calls"] == 1

    def test_releasing_what_was_settled_or_released_changes_nothing(self) -> None:
        ledger = scope(calls=10)
        settled, released = ledger.reserve(Amount(calls=2)), ledger.reserve(Amount(calls=3))
        settled.settle(Amount(calls=2))
        for _ in range(2):
            settled.release()
            released.release()
        assert ledger.remaining()["calls"] == 8
        for held in (settled, released):
            assert held.held == Amount()
            with pytest.raises(RuntimeError):
                held.extend(Amount(calls=1))
            with pytest.raises(RuntimeError):
                held.split(Amount())

    def test_leaving_the_block_releases_what_was_not_settled(self) -> None:
        ledger = scope(calls=10)
        with pytest.raises(KeyError), ledger.reserve(Amount(calls=4)):
            raise KeyError
        assert ledger.remaining()["calls"] == 10

    def test_extending_is_all_or_nothing_and_keeps_what_was_held(self) -> None:
        ledger = scope(calls=3, tokens=10)
        held = ledger.reserve(Amount(calls=1))
        assert refusal(held.extend, Amount(calls=1, tokens=11)) == ("tokens", 10)
        held.extend(Amount(calls=2, tokens=10))
        assert held.held == Amount(calls=3, tokens=10)
        held.release()
        assert ledger.remaining()["calls"] == 3

    def test_splitting_moves_a_part_without_asking_the_budget_again(self) -> None:
        ledger = scope(calls=3)
        whole = ledger.reserve(Amount(calls=3))
        part = whole.split(Amount(calls=1))
        assert (whole.held, part.held) == (Amount(calls=2), Amount(calls=1))
        part.settle(Amount(calls=1))
        whole.release()
        assert ledger.remaining()["calls"] == 2
        with pytest.raises(ValueError, match="calls"):
            ledger.reserve(Amount(calls=1)).split(Amount(calls=2))

    def test_a_bill_that_does_not_add_up_is_refused_and_can_be_corrected(self) -> None:
        held = scope().reserve(Amount(calls=1, tokens=10))
        with pytest.raises(ValueError, match="7 tokens"):
            held.settle(Amount(calls=1, tokens=8), Bill("m", input_tokens=7))
        held.settle(Amount(calls=1, tokens=7), Bill("m", input_tokens=7))


class TestChildren:
    def test_a_child_gets_the_smaller_of_its_budget_and_what_remains(self) -> None:
        parent = scope(calls=100, tokens=1000, cost_usd=2.0, children=4, turns=20, depth=3)
        parent.reserve(Amount(calls=90))
        left = parent.child(Budget(calls=50, tokens=500, cost_usd=9.0, turns=10, depth=1)).remaining()
        assert (left["calls"], left["tokens"], left["cost_usd"], left["turns"]) == (10, 500, 2.0, 10)
        assert (left["children"], left["depth"]) == (3, 1)

    def test_depth_comes_from_the_tree_and_ends_it(self) -> None:
        root = scope(depth=2)
        child = root.child(Budget(depth=9))
        grandchild = child.child(Budget(depth=9))
        assert [each.depth for each in (root, child, grandchild)] == [0, 1, 2]
        assert [each.remaining()["depth"] for each in (root, child, grandchild)] == [2, 1, 0]
        assert refusal(grandchild.child, Budget(depth=9)) == ("depth", 0)

    def test_children_are_counted_over_the_whole_tree_and_not_given_back(self) -> None:
        root = scope(children=2, depth=2)
        child = root.child(Budget(depth=2))
        child.child(Budget())
        child.close()
        assert refusal(root.child, Budget()) == ("children", 0)
        assert root.usage()["children"] == 2

    def test_alive_children_are_those_not_closed_at_any_level(self) -> None:
        root = scope(depth=2)
        child = root.child(Budget(depth=2))
        grandchild = child.child(Budget())
        assert (root.alive_children, child.alive_children) == (2, 1)
        grandchild.close()
        grandchild.close()
        child.close()
        assert (root.alive_children, child.alive_children) == (0, 0)

    @pytest.mark.parametrize("gone", [Amount(calls=5), Amount(tokens=50)])
    def test_no_child_is_opened_that_could_not_make_one_call(self, gone: Amount) -> None:
        root = scope(calls=5, tokens=50, depth=1)
        root.reserve(gone)
        refusal(root.child, Budget())
        assert root.usage()["children"] == 0

    def test_a_childs_deadline_is_never_later_than_its_parents(self) -> None:
        clock = FakeClock(0.0)
        root = scope(clock, wall_s=100.0, depth=1)
        clock.now = 70.0
        assert root.child(Budget(wall_s=100.0)).deadline == 100.0
        assert root.child(Budget(wall_s=10.0)).deadline == 80.0

    def test_turns_are_each_runs_own_but_reported_together(self) -> None:
        root = scope(turns=3, depth=1)
        spend(root, Amount(calls=1, turns=2))
        child = root.child(Budget(turns=9))
        assert child.remaining()["turns"] == 3
        spend(child, Amount(calls=3, turns=3))
        assert root.remaining()["turns"] == 1
        assert root.usage()["turns"] == 5

    def test_the_last_turn_leaves_the_scope_open_for_its_sub_calls(self) -> None:
        root = scope(turns=1)
        spend(root, Amount(calls=1, turns=1))
        assert root.exhausted is None
        spend(root, Amount(calls=1))

    def test_a_closed_scope_takes_no_reservation_but_lets_what_is_held_be_settled(self) -> None:
        root = scope(depth=2)
        child = root.child(Budget(depth=1))
        grandchild = child.child(Budget())
        held = grandchild.reserve(Amount(calls=1))
        child.close()
        for closed in (child, grandchild):
            with pytest.raises(RuntimeError, match="closed"):
                closed.reserve(Amount(calls=1))
        held.settle(Amount(calls=1))
        assert root.usage()["calls"] == 1


class TestOwing:
    def test_what_was_paid_before_is_booked_at_its_own_depth_and_is_not_overbilled(self) -> None:
        root = scope(calls=10, tokens=100, depth=2)
        child = root.child(Budget())
        child.owe(Paid(Amount(calls=2, tokens=10, turns=1), Bill("big", input_tokens=10), depth=2))
        assert (root.exhausted, child.exhausted) == (None, None)
        (row,) = root.usage()["by_depth_and_model"]
        assert (row["depth"], row["model"], row["calls"], row["input_tokens"]) == (2, "big", 2, 10)
        assert (root.remaining()["tokens"], root.remaining()["turns"]) == (90, Budget().turns)

    def test_more_than_is_left_is_booked_all_the_same_and_closes_the_scope(self) -> None:
        root = scope(calls=10, tokens=100)
        held = root.reserve(Amount(calls=1, tokens=95))
        root.owe(Paid(Amount(calls=1, tokens=10), Bill("big", input_tokens=10), depth=0))
        assert (root.exhausted, root.usage()["tokens"]) == ("tokens", 10)
        held.release()
        assert refusal(root.reserve, Amount(calls=1))[0] == "tokens"

    def test_nothing_leaves_no_trace(self) -> None:
        root = scope()
        root.owe(Paid(Amount(), Bill(""), depth=3))
        assert root.usage()["by_depth"] == {}


class TestUsage:
    def test_usage_includes_what_is_below_by_model_and_by_depth(self) -> None:
        root = scope(depth=1)
        child = root.child(Budget())
        spend(root, Amount(calls=1, tokens=10, cost_nano=5, turns=1), Bill("big", input_tokens=8, output_tokens=2))
        spend(child, Amount(calls=2, tokens=7), Bill("small", cache_read_tokens=7, unpriced_calls=1))
        usage = root.usage()
        assert (usage["calls"], usage["tokens"], usage["cost_usd"]) == (3, 17, 5e-9)
        assert (usage["input_tokens"], usage["output_tokens"], usage["cache_read_tokens"]) == (8, 2, 7)
        assert (usage["unpriced_calls"], usage["children"], usage["turns"]) == (1, 1, 1)
        assert {name: table["tokens"] for name, table in usage["by_model"].items()} == {"big": 10, "small": 7}
        assert {depth: table["calls"] for depth, table in usage["by_depth"].items()} == {"0": 1, "1": 2}
        assert child.usage()["by_depth"].keys() == {"1"}

    def test_wall_time_stops_when_the_scope_is_closed(self) -> None:
        clock = FakeClock()
        root = scope(clock)
        clock.now += 5
        assert root.usage()["wall_s"] == 5
        root.close()
        clock.now += 5
        assert root.usage()["wall_s"] == 5

    def test_what_a_box_may_see_holds_numbers_alone(self) -> None:
        assert all(type(value) in (int, float) for value in scope().remaining().values())
        assert set(scope().remaining()) == set(Budget.model_fields) - {"journal_mb"}  # which is the host's affair


class TestMore:
    """What a run is told that ended for want of a budget."""

    @pytest.mark.parametrize(
        ("reason", "more"),
        [
            ("calls", "--set budget.calls=10"),
            ("cost_usd", "--set budget.cost_usd=3.0"),
            ("wall_s", "--set budget.wall_s=120.0"),
            ("children_alive", "--set budget.children_alive=8"),
            ("overbilled", ""),
            ("call_timeout_s", ""),
        ],
    )
    def test_it_is_the_setting_that_gives_twice_as_much(self, reason: str, more: str) -> None:
        ledger = Scope.root(Budget(calls=5, cost_usd=1.5, wall_s=60.0), FakeClock())
        told = limit_reached(LimitExceededError(reason, 0), ledger)
        assert (told.reason, told.more) == (reason, more)
        if more:
            Policy().override([more.removeprefix("--set ")])

    def test_a_child_is_told_none_for_its_budgets_are_its_parents(self) -> None:
        child = Scope.root(Budget(depth=1)).child(Budget())
        assert limit_reached(LimitExceededError("calls", 0), child).more == ""
