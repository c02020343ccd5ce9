"""The filter in live boxes: it answers as reviewed, and it is what stops the calls it refuses.

Three twins stand beside the box: one with the engine's own profile, one without a filter, and one without a filter
whose code is root with capabilities, because Linux refuses some calls to anyone less.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

import pytest

from orchestrator.interpreter import Sandbox
from orchestrator.sandbox import gvisor
from orchestrator.sandbox.engine import Engine
from tests.escape import names, profile, sweep
from tests.escape.catalogue import case
from tests.escape.forbidden import ATTEMPTS, Attempt
from tests.escape.sweep import POLICY, Answers
from tests.support import policies
from tests.support.weakened import Config, weakened_box, with_seccomp, without_filter_and_with_capabilities

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64"),
    pytest.mark.skipif(
        gvisor.asked_for(policies.base().sandbox.runtime),
        reason="gVisor serves system calls, and filters them, itself: test_gvisor.py makes the forbidden ones",
    ),
]

REFUSALS = ("EPERM", "ENOSYS")
REFUSED = [
    number
    for name, number in sweep.numbers().items()
    if profile.verdict(name, []) in REFUSALS and name not in sweep.BY_ARGUMENT and number not in sweep.BEFORE_ANY_FILTER
]
FAMILIES = [*range(64)]
KINDS = [1, 2, 3, 4, 5, 6, 10]


def without_filter(config: Config) -> None:
    with_seccomp("unconfined")(config)


@dataclass(frozen=True, slots=True, repr=False)  # thousands of lines in every failure otherwise
class Seen:
    """What was seen in one box.

    Attributes:
        answers: of its filter.
        attempts: what came of each attempt.
        refused: what came of making every call that the profile refuses, with arguments of -1.
        sockets: what came of a socket, then of a pair, of each family.
    """

    answers: Answers
    attempts: dict[str, str]
    refused: dict[int, str]
    sockets: list[str]


async def tried(box: Sandbox) -> dict[str, str]:
    """Make every attempt."""
    outcomes = await sweep.run_in(box, f"found = [attempt(code) for code in {[attempt.code for attempt in ATTEMPTS]}]")
    return {attempt.name: outcome for attempt, outcome in zip(ATTEMPTS, outcomes, strict=True)}


async def look(box: Sandbox) -> Seen:
    """Look at all there is to be seen."""
    blind, sockets = await sweep.run_in(box, f"found = [blindly({REFUSED}), sockets({FAMILIES}, {KINDS})]")
    return Seen(await sweep.observe(box), await tried(box), dict(zip(REFUSED, blind, strict=True)), sockets)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def box(live_engine: Engine, anyio_backend: str) -> Seen:
    async with Sandbox.open(POLICY, engine=live_engine) as box:
        return await look(box)


@pytest.fixture(scope="module")
async def unfiltered(live_engine: Engine, anyio_backend: str) -> Seen:
    async with weakened_box(POLICY, without_filter) as twin:
        return await look(twin)


@pytest.fixture(scope="module")
async def capable(live_engine: Engine, anyio_backend: str) -> dict[str, str]:
    """What came of the attempts where there is neither a filter nor a lack of capabilities."""
    async with weakened_box(POLICY, without_filter_and_with_capabilities) as twin:
        return await tried(twin)


@pytest.fixture(scope="module")
async def engines(live_engine: Engine, anyio_backend: str) -> dict[int, str]:
    """What the engine's own profile answers to every number."""
    async with weakened_box(POLICY, with_seccomp(None)) as twin:
        return (await sweep.observe(twin)).calls


@case("KE12", controls="H2 H19 H21", alone="the test after it has the twin")
def test_the_filter_answers_as_reviewed(box: Seen) -> None:
    assert sweep.difference(sweep.render(box.answers)) == ""


@case("KE12", controls="H19", twin="H19")
def test_without_the_filter_everything_is_allowed(unfiltered: Seen) -> None:
    answers = unfiltered.answers
    calls = {verdict for number, verdict in answers.calls.items() if number not in sweep.BEFORE_ANY_FILTER}
    values = {verdict for section in answers.sections for verdict in section.values()}
    assert calls | values | set(answers.x32.values()) == {"allowed"}


@case("KE12", controls="H19", alone="the test after it has the twin")
def test_every_call_the_filter_refuses_is_refused_when_it_is_made(box: Seen) -> None:
    assert box.refused == {number: box.answers.calls[number] for number in box.refused}
    assert set(box.refused.values()) <= set(REFUSALS)


@case("KE12", controls="H19", twin="H19")
def test_without_the_filter_the_same_calls_reach_the_kernel(unfiltered: Seen) -> None:
    by_number = {number: name for name, number in sweep.numbers().items()}
    unclear = {by_number[number] for number, outcome in unfiltered.refused.items() if outcome == "EPERM"}
    with_capabilities = {attempt.name.split()[0] for attempt in ATTEMPTS if attempt.twin == "filter and capabilities"}
    assert unclear <= with_capabilities, "Linux itself refuses these: their attempts need a twin with capabilities"


@case("NE07", "NE08", "NE09", controls="H2", alone="the test after it has the twin")
def test_only_unix_sockets_are_made(box: Seen) -> None:
    for made in (box.sockets[: len(FAMILIES)], box.sockets[len(FAMILIES) :]):
        assert {family: outcome for family, outcome in enumerate(made) if outcome != "EPERM"} == {1: "ok"}


@case("NE07", controls="H2", twin="H2")
def test_without_the_filter_sockets_of_other_families_are_made(unfiltered: Seen) -> None:
    made = unfiltered.sockets[: len(FAMILIES)]
    assert {names.FAMILIES[family] for family, outcome in enumerate(made) if outcome == "ok"} > {"AF_UNIX", "AF_INET"}
    refused = {names.FAMILIES[family] for family, outcome in enumerate(made) if outcome == "EPERM"}
    assert refused <= {"AF_PACKET", "AF_XDP"}, "for these alone a capability is needed as well"


@case(
    *("KE01", "KE02", "KE03", "KE04", "KE05", "KE06", "KE07", "KE08", "KE09", "KE11", "KE12", "KE15", "KE16", "KE21"),
    *("KE24", "KE41", "FS04", "FS05", "FS06", "FS07", "FS08", "FS19", "DL03", "DL05", "NE08"),
    controls="H2 H3 H19 H21",
    twin="H2 H3 H19 H21",
)
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_a_forbidden_call_is_refused_and_its_twin_gets_further(
    box: Seen, unfiltered: Seen, capable: dict[str, str], attempt: Attempt
) -> None:
    refusal = box.attempts[attempt.name]
    assert refusal in attempt.refusal.split("|")
    twin = (unfiltered.attempts if attempt.twin == "filter" else capable)[attempt.name]
    if twin == "ENOSYS":
        pytest.skip(f"{attempt.name}: this kernel does not have the call, so no twin could make it")
    assert twin != refusal, f"without {attempt.twin} it was refused all the same: the attempt shows nothing"


@case("KE12", controls="H19", twin="H19")
def test_the_engines_own_profile_refuses_nothing_that_a_box_allows(box: Seen, engines: dict[int, str]) -> None:
    known = max(number for number, verdict in engines.items() if verdict == "allowed")
    ours = box.answers.calls
    assert [number for number in range(known) if ours[number] == "allowed" != engines[number]] == []


@case("KE12", controls="H19", twin="H19")
def test_the_document_names_every_call_that_the_engines_own_profile_allows_and_a_box_does_not(
    box: Seen, engines: dict[int, str]
) -> None:
    more = {
        name
        for name, number in sweep.numbers().items()
        if engines[number] == "allowed" != box.answers.calls[number] and name not in sweep.BY_ARGUMENT
    }
    assert more <= profile.left_out()
