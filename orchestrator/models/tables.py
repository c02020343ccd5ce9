"""Reading a TOML file into a frozen table, with one clear line for whatever is wrong with it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import ConfigurationError
from orchestrator.text import one_line


class Table(BaseModel):
    """A table whose unknown keys are errors and whose values are of the very type asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


AnyTable = TypeVar("AnyTable", bound=Table)


def read(path: Path | str, what: str) -> str:
    """Return the text of the file at ``path``.

    Raises:
        ConfigurationError: it cannot be read; the message says ``what`` it was to be.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"cannot read {what} {path}: it is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot read {what} {path}: {reason}") from error


def parse(text: str, kind: type[AnyTable], source: str, nested: Mapping[str, type[Table]]) -> AnyTable:
    """Validate TOML.

    Args:
        text: the file's content.
        kind: the table to make of it.
        source: names the file in messages.
        nested: the tables within, by the key that holds them, so that a message can list the keys known there.

    Raises:
        ConfigurationError: it is no TOML, or a key or value is wrong; the message names each.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}") from error
    return make(data, kind, source, nested)


def make(data: object, kind: type[AnyTable], source: str, nested: Mapping[str, type[Table]]) -> AnyTable:
    """Validate what TOML could hold; as :func:`parse`.

    Raises:
        ConfigurationError: a key or value is wrong; the message names each.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = (_explain(problem, kind, nested) for problem in error.errors())
        raise ConfigurationError(f"{source}: " + "; ".join(problems)) from error


def _explain(problem: Any, kind: type[Table], nested: Mapping[str, type[Table]]) -> str:
    *parents, key = problem["loc"] or ("",)
    if problem["type"] == "extra_forbidden":
        table = next((nested[name] for name in reversed(parents) if name in nested), kind)
        return f"unknown key {_where([*parents, key])}; known here: {', '.join(sorted(table.model_fields))}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{_where(parents)} lacks the key {key}" if parents else f"the key {key} is missing"
    where = _where(problem["loc"])
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} = {one_line(repr(problem['input']), 60)}: {message[0].lower()}{message[1:]}"


def _where(parts: Any) -> str:
    """``("root", 0, "reply")`` as ``root 1.reply``: people count tables from one."""
    where = ""
    for part in parts:
        where += f" {part + 1}" if isinstance(part, int) else f".{part}" if where else str(part)
    return where
