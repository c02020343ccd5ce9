"""When a provider is asked, by one circuit and a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import JournalError, ModelUnavailableError, ProviderDownError
from orchestrator.models import circuit
from orchestrator.models.circuit import Change, Circuit, CircuitPolicy, Circuits, Request, provider_of
from tests.support.fakes import FakeClock, FakeModel

POLICY = CircuitPolicy(failures=3, first_s=2.0, longest_s=8.0, patience_s=30.0)
BUSY = ModelUnavailableError("busy")


@dataclass
class Bench:
    """A circuit, its clock, and what it told."""

    clock: FakeClock = field(default_factory=FakeClock)
    told: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.circuit = Circuit("It", POLICY, self.clock)

    def admitted(self) -> Request:
        request = self.circuit.admit(self.told.append)
        assert isinstance(request, Request)
        return request

    def waits(self) -> float:
        wait = self.circuit.admit(self.told.append)
        assert isinstance(wait, float)
        return wait

    def fail(self, times: int = 1, error: ModelUnavailableError = BUSY) -> None:
        for _ in range(times):
            self.admitted().failed(error, self.told.append)

    def states(self) -> list[str]:
        return [change.state for change in self.told]


def test_it_opens_after_so_many_failures_in_a_row_and_says_for_how_long() -> None:
    bench = Bench()
    bench.fail(2)
    assert (bench.circuit.state, bench.told) == ("closed", [])
    bench.fail()
    assert bench.told == [Change("It", "open", 3, 2.0)]
    assert bench.waits() == 2.0


def test_an_answer_in_between_begins_the_count_anew() -> None:
    bench = Bench()
    bench.fail(2)
    bench.admitted().answered(bench.told.append)
    bench.fail(2)
    assert (bench.circuit.state, bench.told) == ("closed", [])


def test_when_the_wait_is_over_one_request_probes_and_the_others_wait_for_it() -> None:
    bench = Bench()
    bench.fail(3)
    bench.clock.now += 2
    probe = bench.admitted()
    assert bench.circuit.state == "half_open"
    assert bench.waits() == circuit.LOOK_S
    probe.answered(bench.told.append)
    assert bench.states() == ["open", "half_open", "closed"]
    bench.admitted()


def test_a_probe_that_fails_doubles_the_wait_up_to_the_longest() -> None:
    bench = Bench()
    bench.fail(3)
    waits = []
    for _ in range(4):
        bench.clock.now += bench.waits()
        bench.fail()
        waits.append(bench.told[-1].wait_s)
    assert waits == [4, 8, 8, 8]
    assert [change.failures for change in bench.told if change.state == "open"] == [3, 4, 5, 6, 7]


def test_the_wait_begins_short_again_after_it_was_closed() -> None:
    bench = Bench()
    bench.fail(3)
    bench.clock.now += 2
    bench.fail()
    bench.clock.now += 4
    bench.admitted().answered(bench.told.append)
    bench.fail(3)
    assert bench.told[-1] == Change("It", "open", 3, 2.0)


def test_the_providers_retry_after_holds_the_probe_back_but_not_for_days() -> None:
    bench = Bench()
    bench.fail(2)
    bench.fail(1, ModelUnavailableError("busy", retry_after_s=25.0))
    assert bench.waits() == 25.0
    other = Bench()
    other.fail(2)
    other.fail(1, ModelUnavailableError("busy", retry_after_s=1e9))
    assert other.told[-1].wait_s == circuit.LONGEST_WAIT_S


def test_a_long_outage_refuses_at_once_and_says_when_the_next_probe_is() -> None:
    bench = Bench()
    bench.fail(3)
    for _ in range(5):
        bench.clock.now += bench.waits()
        bench.fail()
    bench.clock.now = 1000.0 + 30.0
    with pytest.raises(ProviderDownError, match="It has not answered 8 requests in a row") as caught:
        bench.circuit.admit(bench.told.append)
    assert caught.value.retry_after_s == pytest.approx(bench.circuit._probe_at - bench.clock.now)
    # The probe itself is still let through, and ends the outage when it is answered.
    bench.clock.now = bench.circuit._probe_at
    bench.admitted().answered(bench.told.append)
    bench.admitted()


def test_a_wait_longer_than_the_patience_is_not_begun() -> None:
    bench = Bench()
    bench.fail(2)
    bench.fail(1, ModelUnavailableError("busy", retry_after_s=31.0))
    with pytest.raises(ProviderDownError):
        bench.circuit.admit(bench.told.append)


def test_a_probe_whose_caller_gave_up_leaves_the_probe_to_the_next() -> None:
    bench = Bench()
    bench.fail(3)
    bench.clock.now += 2
    bench.admitted().abandoned()
    bench.admitted().answered(bench.told.append)
    assert bench.states() == ["open", "half_open", "half_open", "closed"]


def test_requests_that_left_before_it_opened_count_no_more_when_they_fail_and_close_it_when_answered() -> None:
    bench = Bench()
    late = [bench.admitted() for _ in range(5)]
    bench.fail(3)
    for request in late[:4]:
        request.failed(BUSY, bench.told.append)
    assert bench.told == [Change("It", "open", 3, 2.0)]
    late[4].answered(bench.told.append)
    assert bench.circuit.state == "closed"


def test_a_change_that_cannot_be_recorded_leaves_no_probe_behind_that_nobody_makes() -> None:
    bench = Bench()
    bench.fail(3)
    bench.clock.now += 2

    def full(_change: Change) -> None:
        raise JournalError("no space")

    with pytest.raises(JournalError):
        bench.circuit.admit(full)
    probe = bench.admitted()
    with pytest.raises(JournalError):
        probe.answered(full)
    assert bench.circuit.state == "closed"


@given(st.lists(st.sampled_from(["ask", "answered", "failed", "abandoned", "pass time"]), max_size=60))
def test_whatever_happens_there_is_one_probe_at_most_and_none_is_lost(steps: list[str]) -> None:
    bench = Bench()
    under_way: list[Request] = []
    for step in steps:
        if step == "pass time":
            bench.clock.now += 3
        elif step == "ask":
            was = bench.circuit.state
            try:
                admission = bench.circuit.admit(bench.told.append)
            except ProviderDownError:
                continue
            if isinstance(admission, Request):
                assert was in ("closed", "open")
                under_way.append(admission)
        elif under_way:
            request = under_way.pop()
            if step == "abandoned":
                request.abandoned()
            elif step == "failed":
                request.failed(BUSY, bench.told.append)
            else:
                request.answered(bench.told.append)
        probing = bench.circuit.state == "half_open"
        assert probing == (bench.circuit._probe is not None)
        assert not probing or bench.circuit._probe in under_way
    states = bench.states()
    assert all(now != before for before, now in pairwise(states) if now != "half_open")


def test_models_of_one_provider_share_a_circuit_and_one_that_names_none_is_its_own() -> None:
    circuits = Circuits()
    first, second, alone = FakeModel(name="a"), FakeModel(name="b"), FakeModel(name="c")
    first.provider = second.provider = "Anthropic"  # type: ignore[attr-defined]
    assert circuits.of(first) is circuits.of(second) is not circuits.of(alone)
    assert (provider_of(first), provider_of(alone)) == ("Anthropic", "c")
