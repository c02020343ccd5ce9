"""Typed answers of sub-calls: what ``llm_query(…, schema=…)`` adds to a prompt, and how it reads the reply.

It is done in the box, because a schema that model code wrote is nothing the host should work on: patterns and
references can make the checking of a short text take for ever. The host sees prompts and replies, each an ordinary call
of the budget.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Generator
from itertools import islice
from typing import Any

from sandbox_image.calls import QueryRefused

# Replies that are asked for, the first one included.
ATTEMPTS = 3
WRONG_FORM = "wrong_form"
_PROBLEMS, _PROBLEM_CHARS, _REPLY_CHARS = 5, 300, 2000
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)

Dialogue = Generator[str, str, Any]
"""Yields prompts, is sent their replies, and returns the object; raises QueryRefused when no reply fits."""


class Form:
    """What the answer of a sub-call must be: a JSON Schema, of draft 2020-12 or what its ``$schema`` names."""

    def __init__(self, schema: Any) -> None:
        """Take a schema.

        Raises:
            TypeError: it is no dict.
            ValueError: it is no JSON Schema; the message says where.
        """
        # Only for cells that want it: a kernel's start and an idle box's memory stay what they are.
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for

        if not isinstance(schema, dict):
            raise TypeError(f"a schema is a dict that holds a JSON Schema, not {type(schema).__name__}")
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"no JSON Schema: at {error.json_path}: {error.message}") from None
        self._validator = kind(schema)
        self._shown = json.dumps(schema, ensure_ascii=False)

    def dialogue(self, prompt: str) -> Dialogue:
        """Ask ``prompt``, and again while replies do not fit."""
        asked = f"{prompt}\n\nReply with JSON alone, one value that fits this JSON Schema:\n{self._shown}"
        text, problems = asked, ""
        for _ in range(ATTEMPTS):
            reply = yield text
            try:
                value = _parsed(reply)
            except (ValueError, RecursionError) as error:
                problems = f"- it is not JSON: {error}"
            else:
                problems = self._problems(value)
                if not problems:
                    return value
            text = (
                f"{asked}\n\nYour last reply was:\n{_short(reply, _REPLY_CHARS)}\n\nIt does not fit:\n{problems}\n"
                "Reply with the corrected JSON alone."
            )
        raise QueryRefused(WRONG_FORM, None, f"none of {ATTEMPTS} replies fits the schema; of the last:\n{problems}")

    def _problems(self, value: Any) -> str:
        found = islice(self._validator.iter_errors(value), _PROBLEMS)
        return "\n".join(f"- at {error.json_path}: {_short(error.message, _PROBLEM_CHARS)}" for error in found)


def hold(dialogue: Dialogue, ask: Callable[[str], str]) -> Any:
    """Hold a dialogue to its end; return the object.

    Raises:
        QueryRefused: no reply fits, or what ``ask`` raised.
    """
    prompt = next(dialogue)
    while True:
        try:
            prompt = dialogue.send(ask(prompt))
        except StopIteration as end:
            return end.value


async def hold_async(dialogue: Dialogue, ask: Callable[[str], Awaitable[str]]) -> Any:
    """Hold a dialogue as :func:`hold` does, awaiting each reply."""
    prompt = next(dialogue)
    while True:
        reply = await ask(prompt)
        try:
            prompt = dialogue.send(reply)
        except StopIteration as end:
            return end.value


def hold_many(
    dialogues: list[Dialogue],
    ask: Callable[[list[str], bool], list[str]],
    failed: type[str],
) -> list[Any]:
    """Hold many dialogues, round by round; return the objects in order.

    Args:
        dialogues: not begun.
        ask: asks many prompts; is told whether they are the first ones.
        failed: type of what stands where a prompt failed; made of a reason and a message.

    Raises:
        QueryRefused: what the first round raised.
    """
    results: list[Any] = [None] * len(dialogues)
    pending = {index: next(dialogue) for index, dialogue in enumerate(dialogues)}
    first = True
    while pending:
        try:
            replies = ask(list(pending.values()), first)
        except QueryRefused as refusal:
            if first:
                raise
            replies = [failed(refusal.reason, str(refusal))] * len(pending)  # type: ignore[call-overload]
        asked, pending, first = pending, {}, False
        for index, reply in zip(asked, replies, strict=True):
            if isinstance(reply, failed):
                results[index] = reply
                continue
            try:
                pending[index] = dialogues[index].send(reply)
            except StopIteration as end:
                results[index] = end.value
            except QueryRefused as refusal:
                results[index] = failed(refusal.reason, str(refusal))  # type: ignore[call-overload]
    return results


def _parsed(reply: str) -> Any:
    """Return the JSON that a reply is, or that its first code fence holds."""
    try:
        return json.loads(reply, parse_constant=_refuse)
    except ValueError:
        fence = _FENCE.search(reply)
        if fence is None:
            raise
        return json.loads(fence[1], parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
