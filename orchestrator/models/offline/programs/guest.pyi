# What the REPL holds for the programs: the names of the box, and what earlier cells of ours leave there.
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

Piece: TypeAlias = list[tuple[str, int, int]]

# The box.
context: str | list[str] | dict[str, str]

class QueryRefused(Exception):  # noqa: N818 - the name in the box
    reason: str
    limit: float | None

class FailedQuery(str):
    reason: str

def llm_query(prompt: str, *, model: str | None = None, max_tokens: int | None = None) -> str: ...
def llm_query_batched(
    prompts: Iterable[str], *, model: str | None = None, max_tokens: int | None = None
) -> list[str]: ...
def budget() -> dict[str, Any]: ...

# inspect
documents: dict[str, str]
sizes_as_given: dict[str, int]
tables: dict[str, tuple[list[str], str]]

def many(number: int, one: str, more: str = "") -> str: ...
def columns_of(text: str) -> tuple[list[str], str]: ...

# split
slices: list[Piece]
unread: int
cut: int
fence: str
# ask
QUESTIONS: Sequence[str]
tasks: list[tuple[int, Piece]]
replies: dict[int, Any]
failed: dict[int, str]
unreadable: set[int]
hopeless: set[int]

def ask(todo: Sequence[int]) -> None: ...
def gap() -> str: ...

# reduce_…
counts: Counter[str]
otherwise: str
found: Counter[str]
values: dict[Decimal, int]
best: list[dict[str, Any]]
coverage: float
draft: str
