"""What the tests of containment share: the engine, canaries, the check of what is left, and the table at the end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from orchestrator.sandbox.engine import Engine
from tests.escape import tally
from tests.escape.catalogue import Mark
from tests.support import aftermath, canaries, live, weakened
from tests.support.canaries import Canaries
from tests.support.policies import UNDER_GVISOR

# Fixtures of a module that hold a twin which its tests share.
SHARED_TWINS = {"unfiltered", "capable", "engines"}
_BEFORE = "_twins_before"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    """Secrets on the host, and a watch over what crosses the streams of this module's boxes."""
    with canaries.planted(tmp_path_factory.mktemp("host")) as found:
        yield found


@pytest.fixture(scope="module")
def live_engine(planted: Canaries) -> Iterator[Engine]:
    """One connection a module, after which nothing of its boxes is left; skips where there is no engine or no image."""
    with aftermath.nothing_left([Path.home(), Path.cwd()]):
        yield from live.connect()


@pytest.fixture
def engine(live_engine: Engine) -> Iterator[Engine]:
    """A connection for a test that leaves no container behind."""
    yield live_engine
    assert live.left_behind(live_engine) == []


@pytest.fixture(autouse=True)
def _marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold a test to its mark: where it says that it has a twin, one was there; and no secret was told."""
    marks: list[Mark] = [mark.args[0] for mark in request.node.iter_markers("case")]
    setattr(request.node, _BEFORE, weakened.opened())
    yield
    if "live_engine" not in request.fixturenames:
        return
    told = request.getfixturevalue("planted").take()
    assert told == [], "a secret of the host crossed the stream"
    if getattr(request.node, tally.OUTCOME, "") != "passed":
        return
    declared = any(mark.twin for mark in marks)
    # Some twins cannot be under gVisor; then the table counts none.
    right = _had_twin(request.node) == declared or (declared and UNDER_GVISOR)
    assert right, "it lacks the twin that its mark declares, or its mark does not declare its twin"


def _had_twin(item: pytest.Item) -> bool:
    shared = SHARED_TWINS & set(getattr(item, "fixturenames", ()))
    by_hand = any(mark.args[0].by_hand for mark in item.iter_markers("case"))
    return weakened.opened() > getattr(item, _BEFORE, 0) or bool(shared) or by_hand


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the reports of tests hold their marks, those of tests that are skipped as well."""
    for item in items:
        item.user_properties += [(tally.PROPERTY, mark.args[0]) for mark in item.iter_markers("case")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how a test went, for the fixtures that end after it and for the table."""
    if call.when == "call":
        item.user_properties.append((tally.TWIN, _had_twin(item)))
    report = yield
    if call.when == "call":
        setattr(item, tally.OUTCOME, report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of cases held, twins that bit, and what was skipped."""
    tally.show(terminalreporter)
