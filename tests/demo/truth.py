"""The demo's questions, and their truth: counted by plain Python, by other means than any model uses."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from tests.demo.library import Needle

CONSTANT = "MAX_INTERPOLATION_DEPTH"


@dataclass(frozen=True, slots=True)
class Question:
    """A question whose answer is known.

    Attributes:
        text: as it is asked.
        truth: what a right answer says.
        agrees: whether an answer says it.
    """

    text: str
    truth: str
    agrees: Callable[[str], bool]


def questions(documents: dict[str, str], needle: Needle) -> list[Question]:
    """Return the questions about ``documents``."""
    deprecated = sum(1 for text in documents.values() if re.search(r"\bdeprecated\b", text, re.IGNORECASE))
    todo = sum(line.count("TODO") > 0 for text in documents.values() for line in text.split("\n"))
    selves = {name: len(re.findall(r"\bself\b", text, re.IGNORECASE)) for name, text in documents.items()}
    most = sorted(selves, key=selves.__getitem__, reverse=True)[:3]
    value, where = _constant(documents)
    return [
        _number('In how many files does the word "deprecated" occur?', deprecated),
        _number('How many lines contain the text "TODO"?', todo),
        _named('Which 3 files contain the word "self" most often?', ", ".join(most), most),
        _named(
            f"What is the access code of the {needle.thing}?", f"{needle.code}, in {needle.document}", [needle.code]
        ),
        _named(f"What is the value of {CONSTANT}?", f"{value}, in {where}", [value]),
    ]


def _number(text: str, truth: int) -> Question:
    return Question(text, str(truth), lambda answer: first_number(answer) == truth)


def _named(text: str, truth: str, names: list[str]) -> Question:
    return Question(text, truth, lambda answer: all(mentions(answer, name) for name in names))


def first_number(answer: str) -> int | None:
    """Return the first number of an answer; one in quotation marks is part of the question."""
    found = re.search(r"\d[\d,]*", re.sub(r"\"[^\"]*\"", "", answer))
    return int(found.group().replace(",", "")) if found else None


def mentions(answer: str, name: str) -> bool:
    """Whether ``name`` stands in the answer, and not inside something longer."""
    return re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])", answer) is not None


def _constant(documents: dict[str, str]) -> tuple[str, str]:
    """Return the value the parser sees assigned to the constant, and in which document."""
    for name, text in documents.items():
        if CONSTANT not in text:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == CONSTANT for target in node.targets
            ):
                return ast.unparse(node.value), name
    message = f"{CONSTANT} is not defined in this standard library"
    raise LookupError(message)
