"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.broker import METHODS
from orchestrator.policy import Policy, profiles
from orchestrator.sandbox.by_design import BY_DESIGN, NOT_MADE
from orchestrator.sandbox.controls import CONTROLS
from sandbox_image import wire
from tests.contract import controls_document

ROOT = Path(__file__).resolve().parents[2]


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("table", ["budget", "limits", "sandbox", "models"])
def test_every_policy_key_is_described_and_no_other(table: str) -> None:
    section = _read("policies/README.md").partition(f"## `[{table}]`")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    annotation = Policy.model_fields[table].annotation
    assert annotation is not None
    assert described == list(annotation.model_fields)


@pytest.mark.parametrize("name", profiles())
def test_a_shipped_policy_states_every_value_it_sets(name: str) -> None:
    text = _read(f"policies/{name}.toml")
    for table in ("budget", "limits", "sandbox", "models"):
        annotation = Policy.model_fields[table].annotation
        assert annotation is not None
        section = text.partition(f"[{table}]")[2].partition("\n[")[0]
        assert re.findall(r"^(\w+) =", section, re.MULTILINE) == list(annotation.model_fields)


def test_the_default_profile_is_what_the_code_defaults_to() -> None:
    assert Policy.load("default") == Policy()


def test_every_frame_kind_is_in_the_protocol() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", _read("sandbox_image/PROTOCOL.md"), re.MULTILINE)
    assert {name: int(number) for name, number in rows} == {kind.name: kind.value for kind in wire.Kind}
    assert f"version **{wire.PROTOCOL_VERSION}**" in _read("sandbox_image/PROTOCOL.md")


def test_every_method_is_in_the_protocol() -> None:
    table = _read("sandbox_image/PROTOCOL.md").partition("| method |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(METHODS)


def test_every_control_is_in_its_document_as_the_code_has_it() -> None:
    assert _read("policies/CONTROLS.md") == controls_document.text()


def test_no_control_has_two_entries_and_none_is_both_made_and_not() -> None:
    ids = _control_ids()
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(NOT_MADE)


def test_every_control_the_threat_model_speaks_of_is_known() -> None:
    known = {re.match(r"[HP]\d+", name).group() for name in (*_control_ids(), *NOT_MADE)}  # type: ignore[union-attr]
    assert set(re.findall(r"\b[HP]\d+\b", _read("policies/THREAT_MODEL.md"))) <= known


def _control_ids() -> list[str]:
    return [control.id for control in (*CONTROLS, *BY_DESIGN)]


def test_every_layer_is_in_the_map() -> None:
    text = _read("orchestrator/ARCHITECTURE.md")
    folders = [path.name for path in (ROOT / "orchestrator").iterdir() if (path / "__init__.py").is_file()]
    assert [name for name in folders if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    "document",
    [
        str(path.relative_to(ROOT))
        for folder in (".", ".github", "orchestrator", "policies", "sandbox_image")
        for path in sorted((ROOT / folder).rglob("*.md") if folder != "." else ROOT.glob("*.md"))
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    base = (ROOT / document).parent
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", _read(document))
    assert [link for link in links if not (base / link).exists()] == []
