"""Typed answers: what a final answer must be, checked on the host, and what is wrong with one that is not.

A form is a JSON Schema (draft 2020-12, or the one its ``$schema`` names), or anything pydantic has a type adapter for:
a model, a dataclass, ``list[int]``. The schema is the caller's own, and trusted; the answer is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigurationError
from orchestrator.text import one_line
from sandbox_image import wire

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# Problems that are told of one answer, and characters of each.
PROBLEMS_TOLD = 5
_PROBLEM_CHARS = 300
MAX_SCHEMA_CHARS = 100_000


class FormError(ValueError):
    """An answer does not have its form; the message says where and why, in a few lines for a model to read."""


class AnswerForm:
    """What an answer must be.

    Attributes:
        schema: its JSON Schema.
    """

    def __init__(self, schema: object) -> None:
        """Take a JSON Schema as a mapping, or a type.

        Raises:
            ConfigurationError: it is neither; the message says what is wrong with it.
        """
        self._adapter: TypeAdapter[Any] | None = None
        if isinstance(schema, (Mapping, bool)):
            self.schema: Any = dict(schema) if isinstance(schema, Mapping) else schema
            self._validator = _validator(self.schema)
        else:
            self._adapter = _adapter(schema)
            self.schema = self._adapter.json_schema()
        if len(self.shown) > MAX_SCHEMA_CHARS:
            raise ConfigurationError(
                f"the answer's schema has {len(self.shown):,} characters and may have {MAX_SCHEMA_CHARS:,}: "
                "the root model reads all of it"
            )

    @property
    def shown(self) -> str:
        """The schema, as the root model is shown it."""
        return json.dumps(self.schema, ensure_ascii=False)

    def value(self, text: str) -> Any:
        """Return the object that an answer's text is.

        The text is JSON; one that is none counts as a string, which a schema may well ask for. JSON is taken strictly:
        no NaN, no number beyond 64 bits, no key twice, 32 levels at most.

        Raises:
            FormError: it does not fit.
        """
        try:
            value: Any = wire.loads(text.encode("utf-8", "surrogatepass"))
        except wire.WireError as error:
            value, doubt = text, f"it is not JSON ({error}), so it was taken for a string"
        else:
            doubt = ""
        try:
            problems = self._problems(value)
        except RecursionError:
            problems = ["it nests too deeply"]
        if isinstance(problems, list):
            told = [f"- {one_line(problem, _PROBLEM_CHARS)}" for problem in problems[:PROBLEMS_TOLD]]
            if len(problems) > PROBLEMS_TOLD:
                told.append("- and more")
            raise FormError("\n".join(([f"- {doubt}"] if doubt else []) + told))
        return problems[0]

    def _problems(self, value: Any) -> list[str] | tuple[Any]:
        """Return what is wrong, or the object alone in a tuple."""
        if self._adapter is not None:
            return _by_pydantic(self._adapter, value)
        # No more than are told: each repeats what it is about, and there may be as many as the answer has parts.
        found = islice(self._validator.iter_errors(value), PROBLEMS_TOLD + 1)
        return [f"at {error.json_path}: {error.message}" for error in found] or (value,)


def _by_pydantic(adapter: TypeAdapter[Any], value: Any) -> list[str] | tuple[Any]:
    from pydantic import ValidationError

    try:
        return (
            adapter.validate_json(json.dumps(value)) if not isinstance(value, str) else adapter.validate_python(value),
        )
    except ValidationError as error:
        return [
            f"at ${''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in problem['loc'])}: "
            f"{problem['msg']}, not {one_line(repr(problem['input']), 80)}"
            for problem in error.errors(include_url=False, include_context=False)
        ]


def _validator(schema: Any) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        # What it cannot be checked against now, such as a reference that leads nowhere, must not end a run later.
        json.dumps(schema)
        list(kind(schema).iter_errors(None))
    except SchemaError as error:
        raise ConfigurationError(
            f"the answer's schema is no JSON Schema: at {error.json_path}: {error.message}"
        ) from None
    except Exception as error:
        raise ConfigurationError(f"the answer's schema cannot be used: {error}") from error
    return kind(schema)


def _adapter(schema: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    complaint = f"schema={one_line(repr(schema), 80)}: give a JSON Schema (a dict) or a type that pydantic knows"
    if isinstance(schema, str):  # pydantic would take it for the name of a type that is yet to be made
        raise ConfigurationError(complaint)
    try:
        return TypeAdapter(schema)
    except (PydanticUserError, TypeError) as error:
        raise ConfigurationError(complaint) from error
