"""The demo and the offline model in real boxes, on a part of the demo's text."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from orchestrator import RLM, Policy, Result
from tests.demo import __main__ as demo
from tests.demo import library

pytestmark = pytest.mark.docker


def some(folder: Path) -> dict[str, str]:
    """Return about 1 MB of the standard library."""
    place = Path(sysconfig.get_paths()["stdlib"])
    paths = [place / "configparser.py", *sorted((place / "asyncio").glob("*.py")), *sorted(place.glob("[a-d]*.py"))]
    documents = {path.relative_to(place).as_posix(): path.read_text(encoding="utf-8") for path in dict.fromkeys(paths)}
    for name, text in documents.items():
        library.write(folder, name, text)
    return documents


def test_the_demo_agrees_with_the_truth_and_its_refusals_hold(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("DEMO_MODEL", raising=False)
    monkeypatch.setattr(demo, "collect", some)
    monkeypatch.setattr(demo, "JOURNALS", tmp_path / "journals")
    code = demo.main()
    shown = capfd.readouterr()
    assert code == 0, shown.out
    assert "5 of 5 answers agree with the truth; 3 of 3 refusals hold." in shown.out
    assert "sub-calls" in shown.err
    assert len(list((tmp_path / "journals").glob("*.jsonl"))) == 6


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return some(tmp_path_factory.mktemp("library"))


def ask(query: str, documents: dict[str, str], *settings: str) -> Result:
    policy = Policy.load().override(["limits.memory_mb=512", "limits.context_mb=32", *settings])
    return RLM(model="offline", policy=policy).complete(documents, query)


def test_a_budget_that_is_too_small_ends_in_an_answer_that_says_so(documents: dict[str, str]) -> None:
    result = ask("How many classes are there?", documents, "budget.tokens=200000")
    assert "were not read" in (result.answer or "")


def test_frames_too_small_for_a_slice_make_smaller_slices(documents: dict[str, str]) -> None:
    expected = sum("TODO" in line for text in documents.values() for line in text.split("\n"))
    result = ask('How many lines contain the text "TODO"?', documents, "limits.frame_kb=64")
    assert (result.answer or "").startswith(f"{expected} lines"), result
