r"""A model that answers from a file: for tests, demonstrations and rehearsals of failure, without a provider.

The file is TOML. Root replies are given in order, whoever asks; sub-calls are answered by the first rule whose pattern
is found in the prompt::

    name = "claude-haiku-5-5"     # optional: its name in prices and journals; "scripted", which is free, if absent

    [[root]]
    reply = '''
    ```repl
    parts = llm_query_batched([f"count the lines: {text}" for text in context])
    Final = sum(map(int, parts))
    ```
    '''

    [[root]]
    fail = "unavailable"          # the first two attempts fail, the third is answered
    times = 2
    retry_after_s = 1.5
    reply = "…"

    [[sub]]
    match = '(?s)count the (?P<what>\w+): (.*)'
    reply = "I was asked to count the ${what}"
    delay_s = 0.2

    [[sub]]
    match = ""                    # found in every prompt
    fail = "request"              # and without a reply, it fails every time

Keys of a ``[[root]]`` entry and of a ``[[sub]]`` rule:

``reply``
    the text. In a rule, ``$1``, ``$name`` and ``${name}`` stand for the pattern's groups and ``$$`` for a dollar sign.
``match``
    rules only, and required: a regular expression, searched for in the text of the request's last message.
``fail``, ``times``, ``retry_after_s``
    fail with ``unavailable`` (which is retried), ``authentication`` or ``request``: the first ``times`` attempts, or
    always when there is no ``reply``. A rule counts the attempts of each prompt apart, so that which of many
    concurrent sub-calls fail does not depend on their order. ``retry_after_s`` is what the provider would ask for.
``delay_s``
    seconds before the reply or the failure.
``stop_reason``
    ``end`` (the default), ``max_tokens``, ``refusal``, ``context_window`` or ``cut_short``.
``usage``
    a table of ``input_tokens``, ``output_tokens``, ``cache_read_tokens`` and ``cache_write_tokens``; estimated from the
    lengths, and marked so, when absent.

A root request after the last reply, and a sub-call that no rule matches, fail with
:class:`~orchestrator.errors.ModelRequestError`.
"""

from __future__ import annotations

import hashlib
import re
import string
import textwrap
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import anyio
from pydantic import Field, field_validator, model_validator

from orchestrator.errors import (
    ModelAuthenticationError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
)
from orchestrator.models import estimate, tables
from orchestrator.models.base import ModelReply, ModelRequest, StopReason, Usage
from orchestrator.text import one_line

Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Sleep = Callable[[float], Awaitable[None]]
Tokens = Annotated[int, Field(ge=0, le=2**53)]


class ScriptedUsage(tables.Table):
    """The bill of a scripted reply."""

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0


class RootReply(tables.Table):
    """One ``[[root]]`` entry; the module's text describes its keys."""

    reply: str | None = None
    fail: Literal["unavailable", "authentication", "request"] | None = None
    times: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    retry_after_s: Seconds | None = None
    delay_s: Seconds = 0.0
    stop_reason: StopReason = "end"
    usage: ScriptedUsage | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.reply is None and self.fail is None:
            message = "give a reply, or say how to fail with fail"
        elif self.fail is None and (self.times is not None or self.retry_after_s is not None):
            message = "times and retry_after_s need fail"
        elif self.fail != "unavailable" and self.retry_after_s is not None:
            message = 'retry_after_s needs fail = "unavailable"'
        elif self.fail is not None and (self.reply is None) == (self.times is not None):
            message = "fail needs both times and reply, or neither, to fail every time"
        else:
            return self
        raise ValueError(message)

    def failure(self, attempts: int) -> ModelError | None:
        """Return the error of one more attempt after ``attempts``, or None when it is to be answered."""
        if self.fail is None or (self.times is not None and attempts >= self.times):
            return None
        told = f"scripted failure {attempts + 1}" + (f" of {self.times}" if self.times else "")
        if self.fail == "unavailable":
            return ModelUnavailableError(told, retry_after_s=self.retry_after_s)
        return ModelAuthenticationError(told) if self.fail == "authentication" else ModelRequestError(told)

    def answer(self, request: ModelRequest, text: str) -> ModelReply:
        """Return ``text`` with its bill."""
        bill = Usage(**self.usage.model_dump()) if self.usage else estimate.usage(request, text)
        return ModelReply(text, bill, self.stop_reason)


class SubRule(RootReply):
    """One ``[[sub]]`` rule; the module's text describes its keys."""

    match: str

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            message = f"not a regular expression: {error}"
            raise ValueError(message) from error
        return value

    @model_validator(mode="after")
    def _groups_exist(self) -> Self:
        pattern, template = re.compile(self.match), _Template(self.reply or "")
        if not template.is_valid():
            message = "reply: a $ stands before a group's name or number; write $$ for a dollar sign"
            raise ValueError(message)
        known = {*pattern.groupindex, *map(str, range(pattern.groups + 1))}
        unknown = [name for name in template.get_identifiers() if name not in known]
        if unknown:
            message = f"reply: match has no group {unknown[0]!r}; write $$ for a dollar sign"
            raise ValueError(message)
        return self

    def fill(self, found: re.Match[str]) -> str:
        """Return the reply with the groups of ``found`` in it; a group that took no part is empty."""
        groups = {str(number): found[number] or "" for number in range(found.re.groups + 1)}
        return _Template(self.reply or "").substitute(groups | found.groupdict(""))


class Script(tables.Table):
    """A whole file."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "scripted"
    root: Annotated[tuple[RootReply, ...], Field(strict=False)] = ()
    sub: Annotated[tuple[SubRule, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.root and not self.sub:
            message = "the script has neither [[root]] replies nor [[sub]] rules"
            raise ValueError(message)
        return self


_NESTED: Mapping[str, type[tables.Table]] = {"root": RootReply, "sub": SubRule, "usage": ScriptedUsage}


class ScriptedModel:
    """A model that answers from a script.

    Attributes:
        name: what the script calls it.
    """

    def __init__(self, script: Script, *, sleep: Sleep = anyio.sleep) -> None:
        """Start at the first root reply; ``sleep`` waits for ``delay_s``."""
        self.name = script.name
        self._script = script
        self._sleep = sleep
        self._rules = [(re.compile(rule.match), rule) for rule in script.sub]
        self._replied = 0
        self._failures: Counter[tuple[str, int, bytes]] = Counter()

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a script file.

        Raises:
            ConfigurationError: it cannot be read, or a key or value in it is wrong.
        """
        return cls.parse(tables.read(path, "script"), source=f"script {path}")

    @classmethod
    def parse(cls, text: str, *, source: str = "script", sleep: Sleep = anyio.sleep) -> Self:
        """Make a model of a script's text.

        Raises:
            ConfigurationError: a key or value in it is wrong.
        """
        return cls(tables.parse(text, Script, source, _NESTED), sleep=sleep)

    @classmethod
    def writing(cls, *cells: str, sub: Mapping[str, str] | None = None, name: str = "scripted") -> Self:
        """Make a model that writes these cells, one a turn, as a root model does.

        In use::

            rlm = RLM(ScriptedModel.writing("Final = llm_query(context)", sub={"capital of (.*)": "$1's capital"}))

        Args:
            cells: Python source; what indents all of its lines is taken off.
            sub: answers to sub-calls: the reply to a prompt in which the pattern is found, as of a ``[[sub]]`` rule.
            name: its name in prices and journals.

        Raises:
            ConfigurationError: there is neither a cell nor a rule, or one of them is wrong.
        """
        root = [{"reply": _reply(cell)} for cell in cells]
        rules = [{"match": pattern, "reply": reply} for pattern, reply in (sub or {}).items()]
        return cls(tables.make({"name": name, "root": root, "sub": rules}, Script, "ScriptedModel", _NESTED))

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Answer, or fail, as the script says.

        Raises:
            ModelError: the script says so, has no more root replies, or no rule for the prompt.
        """
        if request.purpose == "root":
            return await self._complete_root(request)
        prompt = request.messages[-1].text if request.messages else ""
        for number, (pattern, rule) in enumerate(self._rules):
            found = pattern.search(prompt)
            if found is not None:
                digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
                await self._delay_or_fail(rule, ("sub", number, digest))
                return rule.answer(request, rule.fill(found))
        raise ModelRequestError(f"no [[sub]] rule of the script matches the prompt {one_line(prompt, 80)!r}")

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _complete_root(self, request: ModelRequest) -> ModelReply:
        number = self._replied
        if number >= len(self._script.root):
            raise ModelRequestError(f"the script has no more root replies (it holds {len(self._script.root)})")
        entry = self._script.root[number]
        failure = entry.failure(self._failures["root", number, b""])
        if failure is None:
            # Before the delay: a second request that comes meanwhile gets the next reply.
            self._replied += 1
        await self._delay_or_fail(entry, ("root", number, b""))
        return entry.answer(request, entry.reply or "")

    async def _delay_or_fail(self, entry: RootReply, key: tuple[str, int, bytes]) -> None:
        failure = entry.failure(self._failures[key])
        if failure is not None:
            self._failures[key] += 1
        if entry.delay_s:
            await self._sleep(entry.delay_s)
        if failure is not None:
            raise failure


def _reply(cell: object) -> object:
    """Return a reply that holds a cell, in a fence longer than any that the cell itself holds."""
    if not isinstance(cell, str):
        return cell  # which the table will tell of
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", cell)), default=0))
    return f"{fence}repl\n{textwrap.dedent(cell).strip()}\n{fence}\n"


class _Template(string.Template):
    """``$1`` and ``$name``, case-sensitive."""

    idpattern = r"(?a:[0-9]+|[A-Za-z_][A-Za-z0-9_]*)"
    flags = re.RegexFlag(0)
