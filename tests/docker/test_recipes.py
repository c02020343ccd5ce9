"""Every recipe of ``orchestrator/RECIPES.md``, carried out: what it shows is what comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import snippets

DOCUMENT = Path(__file__).resolve().parents[2] / "orchestrator/RECIPES.md"
SECTIONS = snippets.sections(DOCUMENT.read_text(encoding="utf-8"))
RECIPES = {title: recipe for title, recipe in SECTIONS.items() if title or recipe}

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_gives_what_it_shows(title: str, tmp_path: Path) -> None:
    folder, home = tmp_path / "here", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    assert RECIPES[title], "a recipe has something to carry out"
    for snippet in RECIPES[title]:
        printed = snippets.run(snippet, folder, home)
        assert snippets.agrees(printed, snippet.shown or ""), f"{snippet.source}\nprinted:\n{printed}"
