"""The offline model as a root model: which step comes next, from the question and what the last cell showed.

It keeps no state. Where it stands it reads from the conversation, like any model: its own cells begin with
``# Step: NAME``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.models.base import Message
from orchestrator.models.offline.cells import Writer
from orchestrator.models.offline.questions import IDENTITIES, TABLE, Question
from orchestrator.models.offline.understand import understand

_CONTEXT_HEADING = "# The variable `context`"
_QUESTION_HEADING = "# The question"
_EARLIER_HEADING = "# The conversation so far"
_TAG = re.compile(r"tags that end in `(-\w+)`")
_ONE_TEXT = "- form: one `str`"
_LAST_TURN = "This is your last turn"
_STATE_LOST = "All variables, functions and imports of earlier cells are LOST"
_STEP = re.compile(r"^# Step: (\w+)\.", re.MULTILINE)
_CELL = re.compile(r"^\[cell \d+ (?P<end>[^\n]*?) \([\d.]+ s\)\]$", re.MULTILINE)
_ANSWERED = re.compile(r"^answered: (\d+) of (\d+); failed: (\d+); unreadable: (\d+)$", re.MULTILINE)
_BECAUSE = re.compile(r"^because: (.+)$", re.MULTILINE)
_REFUSED = re.compile(r"^refused: (\w+) limit:", re.MULTILINE)
_NOTHING = re.compile(r"^nothing found$", re.MULTILINE)
# Labels that may also stand for sums of money without a label.
_MONEY = ("amount", "price", "cost")
_EACH = re.compile(
    r"(?i)\b(?:(?:for|in|of) (?:each|every)|per) (?:\w+ )?(?:documents?|files?|pages?|chapters?|modules?)\b"
)
_EVERY_DOCUMENT = 100_000
_MOST_FAILURES = 4
_MOST_RESTARTS = 3
_MOST_ROUNDS = 8
_MOST_TRIES = 2


@dataclass(frozen=True, slots=True)
class Seen:
    """What the last cell showed.

    Attributes:
        text: the whole observation.
        ok: the cell ran to its end.
        lost: variables of earlier cells are gone.
    """

    text: str
    ok: bool
    lost: bool

    @classmethod
    def of(cls, message: str) -> Seen:
        """Read the host's own lines of an observation; what stands between them is only output."""
        ends = [match["end"] for match in _CELL.finditer(message)]
        ok = all(end.startswith("ok") for end in ends)
        return cls(message, ok, lost=_STATE_LOST in message or (not ok and "NameError" in message))


def query_of(first: str) -> str | None:
    """Return the question in the message that asks it, or None when that does not speak of a context in a REPL."""
    end = first.rfind(_CONTEXT_HEADING)
    if end < 0:
        return None
    start = first.find(f"\n{_QUESTION_HEADING}\n") if first.startswith(_EARLIER_HEADING) else 0
    return first[start:end].strip().removeprefix(_QUESTION_HEADING).strip()


def since_last_question(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages from the one on that asks the last question of a session; all of them in a run of its own."""
    for number in range(len(messages) - 1, 0, -1):
        text = messages[number].text
        tag = _TAG.search(text)
        # Behind what was shown of the turn before, where that stands in the same message: there is only output in it.
        shown = text.rfind(f"{tag[1]}>\n") if tag else -1
        start = text.find(_EARLIER_HEADING, max(shown, 0))
        if messages[number].role == "user" and tag and start >= 0:
            return [Message("user", text[start:]), *messages[number + 1 :]]
    return messages


def readings(query: str) -> tuple[Question, ...]:
    """Return the readings of a question, in the order in which they are tried while nothing is found."""
    question = understand(query)
    if question.kind == "count" and question.noun in IDENTITIES and not _EACH.search(question.text):
        return (replace(question, kind="count_both"),)
    if question.kind == "count" and _EACH.search(question.text):
        question = replace(question, kind="top_documents", number=_EVERY_DOCUMENT)
    if question.noun != "labelled numbers":
        return (question,)
    money = [replace(question, noun="amounts of money", what="")] if question.what.lower() in _MONEY else []
    return (question, *money, Question(question.text, "passages", scope=question.scope))


def next_reply(messages: Sequence[Message], query: str) -> str:
    """Return the root model's next turn: a sentence and a cell, or in words alone why there is no answer."""
    if messages[-1].role == "user" and len(messages) > 1 and not _STEP.search(messages[-2].text):
        return messages[-2].text  # what was said in words stays said
    steps = _steps(messages)
    observations = [message.text for message in messages[1:] if message.role == "user"]
    seen = Seen.of(observations[-1] if observations else "")
    choices = readings(query)
    if choices[0].kind == "unable":
        return choices[0].what
    since_start = steps[_last(steps, "inspect") :]
    tried = min(max(since_start.count("ask") - 1, 0), len(choices) - 1)
    writer = Writer(choices[tried], seen.text, not seen.ok, _ONE_TEXT in messages[0].text)
    nothing = _nothing_read(writer, since_start, seen)
    if _LAST_TURN in messages[-1].text:
        return nothing or _last_words(writer, since_start)
    if not seen.ok:
        failures = sum(not Seen.of(text).ok for text in observations)
        return writer.turn(_after_failure(steps, seen, failures))
    if _gives_nothing(since_start, seen) and tried + 1 < len(choices):
        return replace(writer, question=choices[tried + 1]).turn("ask")
    step = _next(writer, since_start, seen)
    return nothing if nothing and step != "again" else writer.turn(step)


def _steps(messages: Sequence[Message]) -> list[str]:
    return [match[1] for message in messages if message.role == "assistant" for match in _STEP.finditer(message.text)]


def _last(steps: list[str], step: str) -> int:
    return len(steps) - 1 - steps[::-1].index(step) if step in steps else 0


def _gives_nothing(steps: list[str], seen: Seen) -> bool:
    return steps[-1:] == ["reduce_items"] and _NOTHING.search(seen.text) is not None


def _nothing_read(writer: Writer, steps: list[str], seen: Seen) -> str:
    """Say that no sub-call gave a reply that can be read, if so and if code alone gives no answer."""
    counts = _ANSWERED.findall(seen.text)
    if steps[-1:] not in (["ask"], ["again"]) or writer.counts_by_code or not counts:
        return ""
    answered, total, _, _ = map(int, counts[-1])
    if answered or not total:
        return ""
    reasons = _BECAUSE.findall(seen.text)
    told = f" ({reasons[-1]})" if reasons else ""
    return f"I could not answer the question: none of my sub-calls about the text gave a reply that I can use{told}."


def _next(writer: Writer, steps: list[str], seen: Seen) -> str:
    """Return the step that follows a cell that ran."""
    last = steps[-1] if steps else ""
    if last in ("ask", "again"):
        return _after_asking(writer, steps, seen)
    if last.startswith("reduce_"):
        return last.replace("reduce_", "answer_")
    by_code = writer.question.by_code
    if last == "inspect" and writer.about_table:
        return "split" if writer.question.scope else "table"
    if last == "inspect":
        return "measure" if by_code and not (writer.separator or writer.question.scope) else "split"
    if last == "split" and writer.question.noun in TABLE:
        return "table"
    return {"": "inspect", "split": "measure" if by_code else "ask"}.get(last, "finish")


def _after_asking(writer: Writer, steps: list[str], seen: Seen) -> str:
    counts = _ANSWERED.findall(seen.text)
    answered, total, failed, unreadable = map(int, counts[-1]) if counts else (0, 0, 0, 0)
    refused = [reason for reason in _REFUSED.findall(seen.text) if not reason.endswith("too_large")]
    spent = bool(refused) and answered + unreadable < total
    rounds = steps.count("again")
    if rounds < (_MOST_ROUNDS if unreadable else _MOST_TRIES) and (unreadable or (failed and not spent)):
        return "again"
    return writer.reduce


def _after_failure(steps: list[str], seen: Seen, failures: int) -> str:
    """Return the step that follows a cell that failed."""
    last = steps[-1] if steps else "inspect"
    if failures >= _MOST_FAILURES or last.startswith(("answer", "finish")):
        return "finish"
    if seen.lost:
        return "inspect" if steps.count("inspect") < _MOST_RESTARTS else "finish"
    if last in ("ask", "again"):
        return "again"
    return "finish" if steps[-2:] == [last, last] else last


def _last_words(writer: Writer, steps: list[str]) -> str:
    """Answer at once: from what was reduced, from what was asked, or in words."""
    if any(step.startswith(("reduce_", "measure", "table")) for step in steps):
        return writer.turn("finish")
    if "ask" in steps and writer.reduce.startswith("reduce_"):
        return writer.turn(writer.reduce, writer.reduce.replace("reduce_", "answer_"))
    return "I could not answer the question: a limit was reached before the text was read."
