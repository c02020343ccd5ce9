"""The demo's own parts: its text, its planted line, its truths."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.demo import library, truth
from tests.demo.library import Needle

NEEDLE = Needle("silver ferry", "00FF00-1234", "a.py")


def test_the_same_seed_plants_the_same_line_on_disk_and_in_memory(tmp_path: Path) -> None:
    original = {"a.py": "x = 1\n\ny = 2\n", "b/c.py": "no empty line"}
    planted = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        documents = dict(original)
        needle = library.plant(folder, documents, random.Random("seed"))  # noqa: S311 - a seed must repeat it
        assert (folder / needle.document).read_text() == documents[needle.document]
        assert f"# The access code of the {needle.thing} is {needle.code}." in documents[needle.document]
        assert sum(documents[name] != original[name] for name in original) == 1
        planted.append(needle)
    assert planted[0] == planted[1]


def test_the_library_is_read_in_a_fixed_order_and_fits_what_is_on_disk(tmp_path: Path) -> None:
    documents = library.collect(tmp_path)
    assert sum(len(text.encode()) for text in documents.values()) >= library.LEAST_BYTES
    on_disk = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert on_disk == set(documents)
    assert documents["configparser.py"] == (tmp_path / "configparser.py").read_bytes().decode()


def test_truths_are_plain_counts() -> None:
    documents = {
        "a.py": "# TODO TODO\n# Deprecated; self\n",
        "b.py": "# TODO: self, self\nundeprecated\n",
        "c.py": "selfish = self, self, self\n",
        "configparser.py": f"{truth.CONSTANT} = 10\n",
    }
    truths = [question.truth for question in truth.questions(documents, NEEDLE)]
    assert truths == ["1", "2", "c.py, b.py, a.py", "00FF00-1234, in a.py", "10, in configparser.py"]


def test_a_constant_that_is_gone_is_named() -> None:
    with pytest.raises(LookupError, match=truth.CONSTANT):
        truth.questions({"a.py": ""}, NEEDLE)


@pytest.mark.parametrize(
    ("answer", "number"),
    [("120 of 1786 documents", 120), ('The word "1984" occurs 1,200 times', 1200), ("none", None), ("", None)],
)
def test_the_first_number_of_an_answer_counts(answer: str, number: int | None) -> None:
    assert truth.first_number(answer) == number


@pytest.mark.parametrize(
    ("answer", "name", "expected"),
    [
        ("it is 10.", "10", True),
        ("it is 110", "10", False),
        ("lib/a.py: 3", "a.py", False),
        ("a.py: 3", "a.py", True),
        ("(code 00FF00-1234)", "00FF00-1234", True),
    ],
)
def test_a_name_inside_something_longer_is_no_mention(*, answer: str, name: str, expected: bool) -> None:
    assert truth.mentions(answer, name) is expected
