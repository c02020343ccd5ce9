"""I ask the same plain question of every slice, many at once, and keep the replies as they come."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import (
    FailedQuery,
    QueryRefused,
    documents,
    fence,
    llm_query_batched,
    slices,
    unread,
)

QUESTIONS: tuple[str, ...] = ()

# ---- in the REPL ----
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

BATCH = 64
Piece = list[tuple[str, int, int]]  # document, start, end
tasks = [(number, piece) for number in range(len(QUESTIONS)) for piece in slices]
replies: dict[int, Any] = {}
failed: dict[int, str] = {}
unreadable: set[int] = set()


def prompt(number: int, piece: Piece) -> str:
    texts = [f"{fence} document: {name} {fence}\n{documents[name][start:end]}" for name, start, end in piece]
    return "\n".join([QUESTIONS[number], "", *texts])


def ask(todo: Sequence[int]) -> None:
    batch = BATCH
    while todo:
        group = todo[:batch]
        try:
            answers = llm_query_batched([prompt(*tasks[index]) for index in group])
        except QueryRefused as refusal:
            print("refused:", refusal.reason, "limit:", refusal.limit)
            if refusal.reason.endswith("too_large"):
                unreadable.update(group)
                todo = todo[batch:]
                continue
            if 1 <= (refusal.limit or 0) < len(group):
                batch = int(refusal.limit or 1)  # so many would fit
                continue
            failed.update(dict.fromkeys(todo, refusal.reason))
            break
        todo = todo[batch:]
        for index, answer in zip(group, answers, strict=True):
            failed.pop(index, None)
            unreadable.discard(index)
            if isinstance(answer, FailedQuery):
                if answer.reason.endswith("too_large"):
                    unreadable.add(index)  # to be cut in two
                else:
                    failed[index] = answer.reason
                continue
            body = answer.strip().removeprefix("```json").strip("`\n ")
            try:
                replies[index] = json.loads(body)
            except ValueError:
                unreadable.add(index)  # cut off at the length limit, most likely
    print(f"answered: {len(replies)} of {len(tasks)}; failed: {len(failed)}; unreadable: {len(unreadable)}")


def gap() -> str:
    missing = len(tasks) - len(replies) + unread * len(QUESTIONS)
    if not missing:
        return ""
    reasons = dict(Counter(failed.values()))
    if unread:
        reasons["beyond the budget"] = unread
    wanted = len(tasks) + unread * len(QUESTIONS)
    return f"\n(Incomplete: {missing} of {wanted} pieces were not read: {reasons or 'no readable reply'}.)"


ask(range(len(tasks)))
