"""Typed answers: what a final answer must be, checked on the host, and what is wrong with one that is not.

A form is a JSON Schema (draft 2020-12, or the one its ``$schema`` names), or anything pydantic has a type adapter for:
a model, a dataclass, ``list[int]``. The schema is the caller's own, and trusted; the answer is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from orchestrator.errors import ConfigurationError
from orchestrator.text import one_line
from orchestrator.transport.rpc import RpcRefusal
from sandbox_image import wire

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

# Problems that are told of one answer, and characters of each.
PROBLEMS_TOLD = 5
_PROBLEM_CHARS = 300
MAX_SCHEMA_CHARS = 100_000
# Keywords of JSON Schema whose value is data, and those whose value is schemas by a name of the author's.
_DATA = frozenset(("const", "default", "enum", "examples"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "properties"))
# Answers of a wrong form that end a run: each was told what is wrong with it.
MAX_WRONG = 4
WRONG_FORM = "wrong_form"
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n```\s*", re.DOTALL | re.IGNORECASE)


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
        except Exception as error:  # noqa: BLE001 - a reference that leads nowhere, or the author's own validator
            problems = [f"it cannot be checked there: {type(error).__name__}"]
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


class AnswerCheck:
    """Holds the answers of one run against a form, and counts those that do not have it.

    Checking runs in a thread, one answer at a time: an answer of megabytes must not keep other runs waiting.

    Attributes:
        form: what they must be; None lets any text pass.
        wrong: how many were not.
        last: the last of those.
        partial: set when the run is over and only what it has so far is wanted, in whatever form.
        accepted: whether one was taken; a later one changes nothing.
        value: the object that it is.
    """

    def __init__(self, form: AnswerForm | None) -> None:
        """Begin a run."""
        self.form = form
        self.wrong = 0
        self.last = ""
        self.partial = False
        self.accepted = False
        self.value: Any = None
        self._one = anyio.CapacityLimiter(1)

    @property
    def exhausted(self) -> bool:
        """Whether so many were wrong that no further one is looked at."""
        return self.wrong >= MAX_WRONG

    async def complaint(self, text: str) -> str:
        """Return what is wrong with an answer, for a model to read; nothing when it is accepted."""
        if self.form is None or self.partial:
            return ""
        if self.exhausted:
            return "no further answer is looked at"
        try:
            value = await to_thread.run_sync(self.form.value, text, abandon_on_cancel=True, limiter=self._one)
        except FormError as error:
            self.wrong += 1
            self.last = text
            return str(error)
        if not self.accepted:
            self.accepted, self.value = True, value
        return ""

    async def accept(self, text: str) -> None:
        """Let the broker take an answer.

        Raises:
            RpcRefusal: ``wrong_form``, with what is wrong, and how many more attempts there are as limit.
        """
        complaint = await self.complaint(text)
        if complaint:
            message = f"it does not have the form that is asked for:\n{complaint}\nSet it again."
            raise RpcRefusal(WRONG_FORM, message, limit=MAX_WRONG - self.wrong)


def unfenced(text: str) -> str:
    """Return what stands in the code fence that a model may put around a reply that is JSON."""
    fenced = _FENCED.fullmatch(text)
    return text.strip() if fenced is None else fenced[1]


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
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    kind: Any = validator_for(schema, default=Draft202012Validator)
    kind = extend(kind, {"pattern": _by_pattern})  # type: ignore[no-untyped-call]
    try:
        kind.check_schema(schema)
        _check_patterns(schema)
        # What it cannot be checked against now, such as a reference that leads nowhere, must not end a run later.
        json.dumps(schema)
        list(kind(schema, registry=REGISTRY).iter_errors(None))
    except SchemaError as error:
        raise ConfigurationError(
            f"the answer's schema is no JSON Schema: at {error.json_path}: {error.message}"
        ) from None
    except Exception as error:
        raise ConfigurationError(f"the answer's schema cannot be used: {error}") from error
    return kind(schema, registry=REGISTRY)  # which fetches nothing, whatever a reference names


def _by_pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Exception]:
    """Match as pydantic does, in time linear in the text.

    An answer is hostile, and Python's ``re`` would take for ever over some texts, holding the whole process.
    """
    from jsonschema.exceptions import ValidationError as Mismatch
    from pydantic_core import ValidationError

    if isinstance(instance, str):
        try:
            _matcher(pattern).validate_python(instance)
        except ValidationError:
            yield Mismatch(f"{one_line(repr(instance[:80]), 80)} does not match {pattern!r}")


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> SchemaValidator:
    from pydantic_core import SchemaValidator, core_schema

    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _check_patterns(schema: Any, *, names: bool = False) -> None:
    """Refuse patterns that could not be matched in linear time; ``names`` says that the keys are properties' names."""
    if isinstance(schema, list):
        for part in schema:
            _check_patterns(part)
    if not isinstance(schema, Mapping):
        return
    for key, part in schema.items():
        if names or key not in _DATA:
            _check_patterns(part, names=not names and key in _NAMED)
        if names:
            continue
        if key == "patternProperties":
            raise ValueError("patternProperties is not supported: write additionalProperties, with propertyNames")
        if key == "pattern" and isinstance(part, str):
            try:
                _matcher(part)
            except Exception as error:
                told = f"the pattern {one_line(part, 80)!r} is none without look-around and back-references"
                raise ValueError(told) from error


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
