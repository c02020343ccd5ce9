"""The filter in live boxes: it answers as reviewed, and it is what stops the calls it refuses.

Three twins stand beside the box: one with the engine's own profile, one without a filter, and one without a filter whose
code is root with capabilities, because Linux refuses some calls to anyone less.
"""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from orchestrator.interpreter import Sandbox
from orchestrator.sandbox.engine import Engine
from tests.escape import names, profile, sweep
from tests.escape.forbidden import ATTEMPTS, Attempt
from tests.escape.sweep import POLICY, Answers
from tests.support.weakened import Config, weakened_box, with_seccomp

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64"),
]

REFUSALS = ("EPERM", "ENOSYS")
# Those that the attempts need, and those that root needs to run a supervisor in folders of another user.
CAPABILITIES = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER KILL SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT
SYS_CHROOT SYS_MODULE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_TIME SYS_TTY_CONFIG""".split()
FAMILIES = [*range(64)]
KINDS = [1, 2, 3, 4, 5, 6, 10]


def without_filter(config: Config) -> None:
    with_seccomp("unconfined")(config)


def without_filter_and_with_capabilities(config: Config) -> None:
    without_filter(config)
    config["User"] = "0:0"
    config["HostConfig"].update(CapDrop=[], CapAdd=CAPABILITIES)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in one box.

    Attributes:
        answers: of its filter.
        refused: what came of making every call that the box's own filter refuses, with arguments of -1.
        attempts: what came of each attempt.
        sockets: what came of a socket, then of a pair, of each family.
    """

    answers: Answers
    refused: dict[int, str]
    attempts: dict[str, str]
    sockets: list[str]


async def look(box: Sandbox, refused: list[int]) -> Seen:
    answers = await sweep.observe(box)
    codes = [attempt.code for attempt in ATTEMPTS]
    program = f"found = [blindly({refused}), sockets({FAMILIES}, {KINDS}), [attempt(code) for code in {codes}]]"
    blind, sockets, attempts = await sweep.run_in(box, program)
    by_name = {attempt.name: outcome for attempt, outcome in zip(ATTEMPTS, attempts, strict=True)}
    return Seen(answers, dict(zip(refused, blind, strict=True)), by_name, sockets)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def boxes(live_engine: Engine, anyio_backend: str) -> dict[str, Seen]:
    """Look at a box and its twins, one after another."""
    refused = [
        number
        for name, number in sweep.numbers().items()
        if profile.verdict(name, []) != "allowed"
        and name not in sweep.BY_ARGUMENT
        and number not in sweep.BEFORE_ANY_FILTER
    ]
    seen = {}
    async with Sandbox.open(POLICY, engine=live_engine) as box:
        seen["box"] = await look(box, refused)
    twins = {
        "filter": without_filter,
        "filter and capabilities": without_filter_and_with_capabilities,
        "engine's profile": with_seccomp(None),
    }
    for name, weaken in twins.items():
        async with weakened_box(POLICY, weaken) as twin:
            seen[name] = await look(twin, [] if name == "filter and capabilities" else refused)
    return seen


def test_the_filter_answers_as_reviewed(boxes: dict[str, Seen]) -> None:
    assert sweep.difference(sweep.render(boxes["box"].answers)) == ""


def test_without_the_filter_everything_is_allowed(boxes: dict[str, Seen]) -> None:
    answers = boxes["filter"].answers
    calls = {verdict for number, verdict in answers.calls.items() if number not in sweep.BEFORE_ANY_FILTER}
    values = {verdict for section in answers.sections for verdict in section.values()}
    assert calls | values | set(answers.x32.values()) == {"allowed"}


def test_every_call_the_filter_refuses_is_refused_when_it_is_made(boxes: dict[str, Seen]) -> None:
    seen = boxes["box"]
    assert seen.refused == {number: seen.answers.calls[number] for number in seen.refused}
    assert set(seen.refused.values()) <= set(REFUSALS)


def test_without_the_filter_the_same_calls_reach_the_kernel(boxes: dict[str, Seen]) -> None:
    by_number = {number: name for name, number in sweep.numbers().items()}
    unclear = {by_number[number] for number, outcome in boxes["filter"].refused.items() if outcome == "EPERM"}
    tried = {attempt.name.split()[0] for attempt in ATTEMPTS if attempt.twin == "filter and capabilities"}
    assert unclear <= tried, "Linux itself refuses these: an attempt has to have capabilities in its twin"


def test_only_unix_sockets_are_made(boxes: dict[str, Seen]) -> None:
    for made in (boxes["box"].sockets[: len(FAMILIES)], boxes["box"].sockets[len(FAMILIES) :]):
        assert {family: outcome for family, outcome in enumerate(made) if outcome != "EPERM"} == {1: "ok"}


def test_without_the_filter_sockets_of_other_families_are_made(boxes: dict[str, Seen]) -> None:
    twin = boxes["filter"].sockets[: len(FAMILIES)]
    assert {"AF_UNIX", "AF_INET", "AF_NETLINK"} <= {
        names.FAMILIES[family] for family, outcome in enumerate(twin) if outcome == "ok"
    }
    assert [family for family, outcome in enumerate(twin) if family != 1 and outcome == "EPERM" and family != 17] == []


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_a_forbidden_call_is_refused_and_its_twin_gets_further(boxes: dict[str, Seen], attempt: Attempt) -> None:
    refusal = boxes["box"].attempts[attempt.name]
    assert refusal in attempt.refusal.split("|")
    twin = boxes[attempt.twin].attempts[attempt.name]
    if twin == "ENOSYS":
        pytest.skip(f"{attempt.name}: this kernel does not have the call, so that no twin could make it")
    assert twin != refusal, f"without {attempt.twin} it was refused all the same: the attempt shows nothing"


def test_the_engines_own_profile_refuses_nothing_that_a_box_allows(boxes: dict[str, Seen]) -> None:
    ours, engines = boxes["box"].answers.calls, boxes["engine's profile"].answers.calls
    known = max(number for number, verdict in engines.items() if verdict == "allowed")
    assert [number for number in range(known) if ours[number] == "allowed" != engines[number]] == []


def test_the_document_names_every_call_that_the_engines_own_profile_allows_and_a_box_does_not(
    boxes: dict[str, Seen],
) -> None:
    ours, engines = boxes["box"].answers.calls, boxes["engine's profile"].answers.calls
    more = {
        name
        for name, number in sweep.numbers().items()
        if engines[number] == "allowed" != ours[number] and name not in sweep.BY_ARGUMENT
    }
    assert more <= profile.left_out()
