"""I ask the same plain question of every slice, many at once, and keep the replies as they come."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import (
    FailedQuery,
    QueryRefused,
    cut,
    documents,
    fence,
    llm_query_batched,
    many,
    slices,
    unread,
)

QUESTIONS: tuple[str, ...] = ()
SHAPE: type = dict

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
odd: set[str] = set()  # replies of earlier rounds that could not be read
hopeless: set[int] = set()
UNREADABLE = "no readable reply"


def prompt(number: int, piece: Piece) -> str:
    texts = [f"{fence} document: {name} {fence}\n{documents[name][start:end]}" for name, start, end in piece]
    return "\n".join([QUESTIONS[number], "", *texts])


def keep(index: int, answer: str, new: set[str]) -> None:
    failed.pop(index, None)
    unreadable.discard(index)
    if isinstance(answer, FailedQuery):
        if answer.reason.endswith("too_large"):
            unreadable.add(index)  # to be cut in two
        else:
            failed[index] = answer.reason
        return
    body = answer.strip().removeprefix("```json").strip("`\n ")
    try:
        reply = json.loads(body)
    except ValueError:
        reply = None
    if isinstance(reply, SHAPE):
        replies[index] = reply
    elif reply is None and body.startswith(("{", "[")):
        unreadable.add(index)  # cut off at the length limit, most likely
    elif answer in odd:
        failed[index] = UNREADABLE  # the same words once more: a third time would bring them again
        hopeless.add(index)
    else:
        unreadable.add(index)
        new.add(answer)


def ask(todo: Sequence[int]) -> None:
    batch = BATCH
    new: set[str] = set()
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
            keep(index, answer, new)
    odd.update(new)
    failing = len(failed) - len(hopeless)
    print(f"answered: {len(replies)} of {len(tasks)}; failed: {failing}; unreadable: {len(unreadable)}")
    if not replies:
        print("because:", why())


def why() -> str:
    reasons = Counter(failed.values())
    reasons[UNREADABLE] += len(unreadable)
    reasons["beyond the budget"] += unread * len(QUESTIONS)
    return ", ".join(f"{reason}: {times}" for reason, times in reasons.items() if times)


def gap() -> str:
    note = "\n(A line longer than a slice was cut: what stands at a cut may be missed or counted twice.)" if cut else ""
    missing = len(tasks) - len(replies) + unread * len(QUESTIONS)
    if not missing:
        return note
    wanted = len(tasks) + unread * len(QUESTIONS)
    return f"\n(Incomplete: {missing} of {many(wanted, 'piece')} were not read: {why()}.)" + note


ask(range(len(tasks)))
