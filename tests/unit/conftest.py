"""What the unit tests of the command line share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.sandbox.image import ImageRef
from orchestrator.selfcheck import ATTACKS, Outcome
from tests.support.cli import BOX_INFO, FakeBox, FakeEngine, Run


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line and gives exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> FakeBox:
    """Let ``exec`` and ``doctor`` find a box whose cells end well."""
    fake = FakeBox()
    monkeypatch.setattr("orchestrator.interpreter.Sandbox", fake)
    return fake


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, box: FakeBox) -> FakeEngine:
    """Let commands find an engine, an image, and nothing to sweep."""
    fake = FakeEngine()
    box.info = BOX_INFO
    image = ImageRef("sha256:1", "abc", 1)

    def build(_: Any, *, force: bool, report: Callable[[str], None]) -> ImageRef:
        fake.built.append(force)
        report("building the image")
        return image

    async def sweep(_: Any) -> list[str]:
        return []

    monkeypatch.setattr("orchestrator.sandbox.engine.Engine", fake)
    monkeypatch.setattr("orchestrator.sandbox.image.find", lambda *_: image)
    monkeypatch.setattr("orchestrator.sandbox.image.build", build)
    monkeypatch.setattr("orchestrator.sandbox.container.sweep", sweep)
    return fake


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let the self-check find what is said here of an attack, and containment of all others."""
    said: dict[str, str] = {}

    async def run(*_: Any) -> AsyncIterator[Outcome]:
        for attack in ATTACKS:
            answer = said.get(attack.what, min(attack.contained))
            yield Outcome(attack, answer, answer in attack.contained, "", 0.01)

    async def boot_id(*_: Any) -> str:
        return "6f4a"

    monkeypatch.setattr("orchestrator.selfcheck.run", run)
    monkeypatch.setattr("orchestrator.selfcheck.boot_id", boot_id)
    return said
