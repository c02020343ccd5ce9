"""I ask once more what failed, and what was cut off in two halves."""

from __future__ import annotations

from orchestrator.models.offline.programs.guest import ask, documents, hopeless, replies, tasks, unreadable

# ---- in the REPL ----
Piece = list[tuple[str, int, int]]  # document, start, end


def halves(piece: Piece) -> list[Piece]:
    if len(piece) > 1:
        return [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
    name, start, end = piece[0]
    middle = documents[name].rfind("\n", start, (start + end) // 2) + 1
    if middle <= start:
        middle = documents[name].find("\n", (start + end) // 2, end) + 1
    return [[(name, start, middle)], [(name, middle, end)]] if start < middle < end else [piece]


for index in sorted(unreadable):
    number, piece = tasks[index]
    first, *rest = halves(piece)
    tasks[index] = (number, first)
    tasks.extend((number, part) for part in rest)
ask([index for index in range(len(tasks)) if index not in replies and index not in hopeless])
