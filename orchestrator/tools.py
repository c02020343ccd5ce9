"""Host tools: the caller's own Python functions, called by the code in a box.

A tool is the one way by which a box reaches what its owner has: whoever gives one decides what hostile code may do with
it. What arrives is checked here, strictly, against the function's own annotations, before it is called; what it raises
stays here but for a word, and for what it says on purpose (:class:`ToolError`).
"""

from __future__ import annotations

import builtins
import inspect
import json
import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NotRequired, get_type_hints

from orchestrator.errors import ConfigurationError
from orchestrator.text import one_line
from sandbox_image import wire

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_TOOLS: Final = 64
MAX_NAME: Final = 64
# Of what the root model is told of a tool; it reads all of it, every turn.
MAX_DESCRIPTION: Final = 4000
# What is in a box already, or means something there.
RESERVED: Final = frozenset(
    (
        *("context", "draft", "budget", "llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "sub_RLM"),
        *("Final", "FINAL", "FINAL_VAR", "QueryRefused", "FailedQuery", "get_ipython", "exit", "quit", "In", "Out"),
    )
)
_PROBLEMS, _PROBLEM_CHARS = 5, 200
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ToolError(Exception):
    """Raised by a tool to tell the code in the box why it failed: its text goes there, cut to a line of 500 characters.

    Of any other exception the box learns nothing but that there was one.
    """


class BadArgumentsError(ValueError):
    """Arguments are not what a tool takes; the message says where and why, for a model to read."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One function that a box may call.

    Attributes:
        name: in the box.
        function: what is called.
        is_async: whether it is a coroutine function; any other is called in a thread.
        description: its signature and docstring, as the root model is told.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    description: str
    _signature: inspect.Signature
    _arguments: TypeAdapter[Any]

    @classmethod
    def of(cls, function: object) -> Tool:
        """Make a tool of a function.

        Raises:
            ConfigurationError: it is none that can be one; the message says why.
        """
        name = getattr(function, "__name__", None)
        if not callable(function) or isinstance(function, type) or not isinstance(name, str):
            raise ConfigurationError(f"tools: {one_line(repr(function), 80)} is no function with a name")
        _check_name(name)
        try:
            signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
        except (NameError, TypeError, ValueError) as error:
            raise ConfigurationError(f"tool {name}: its annotations cannot be read: {error}") from error
        adapter = _adapter(name, signature, hints)
        description = _description(name, signature, adapter, inspect.getdoc(function) or "")
        if len(description) > MAX_DESCRIPTION:
            told = f"{len(description):,} characters and may have {MAX_DESCRIPTION:,}"
            raise ConfigurationError(f"tool {name}: signature and docstring have {told}: the root model reads them")
        is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        return cls(name, function, is_async, description, signature, adapter)

    def arguments(self, text: str) -> dict[str, Any]:
        """Decode what the box sent, and return the function's keyword arguments.

        Strictly: JSON without NaN, of 32 levels and 10,000 values at most, with nothing but ``args`` and ``kwargs`` in
        it; types as annotated, where no text is a number and no number a text.

        Raises:
            BadArgumentsError: it does not fit.
        """
        from pydantic import ValidationError

        try:
            sent: Any = wire.loads(text.encode("utf-8", "surrogatepass"))
        except wire.WireError as error:
            raise BadArgumentsError(f"arguments are JSON: {error}") from error
        match sent:
            case {"args": list(args), "kwargs": dict(kwargs)} if len(sent) == 2:  # noqa: PLR2004 - the two just named
                pass
            case _:
                raise BadArgumentsError("arguments are an object of args, a list, and kwargs, an object")
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise BadArgumentsError(one_line(str(error), _PROBLEM_CHARS)) from error
        try:
            valid = self._arguments.validate_json(json.dumps(bound))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            told = [
                one_line(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}", _PROBLEM_CHARS)
                for problem in problems[:_PROBLEMS]
            ]
            raise BadArgumentsError("; ".join(told)) from error
        except Exception as error:
            # A validator of the author's own, perhaps, that did not expect this: no reason to end the run.
            raise BadArgumentsError("they cannot be checked") from error
        return dict(valid)


Toolbox = dict[str, Tool]
"""Tools by name."""


def toolbox(functions: object) -> Toolbox:
    """Make tools of functions.

    Raises:
        ConfigurationError: one cannot be a tool, two have one name, or there are too many.
    """
    if isinstance(functions, (str, bytes)) or not isinstance(functions, Iterable):
        raise ConfigurationError("tools is a list of functions")
    tools: Toolbox = {}
    for function in functions:
        tool = Tool.of(function)
        if tool.name in tools:
            raise ConfigurationError(f"two tools are called {tool.name}")
        tools[tool.name] = tool
    if len(tools) > MAX_TOOLS:
        raise ConfigurationError(f"there are {len(tools)} tools; at most {MAX_TOOLS} can be given")
    return tools


def _check_name(name: str) -> None:
    why = ""
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or len(name) > MAX_NAME:
        why = f"its name is no identifier of at most {MAX_NAME} ASCII characters"
    elif name.startswith("_"):
        why = "its name begins with an underscore"
    elif name in RESERVED or hasattr(builtins, name):
        why = "its name is taken in the box"
    if why:
        raise ConfigurationError(f"tool {one_line(name, 80)}: {why}; give the function another one")


def _adapter(name: str, signature: inspect.Signature, hints: dict[str, Any]) -> TypeAdapter[Any]:
    """Return what validates the arguments, as a TypedDict: its keys may have any name, unlike a model's fields."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError
    from typing_extensions import TypedDict  # that of the standard library is one for pydantic from Python 3.12 on

    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in _NAMED:
            raise ConfigurationError(f"tool {name}: {parameter} is no parameter with a name of its own")
        if parameter.name not in hints:
            raise ConfigurationError(f"tool {name}: parameter {parameter.name} has no type: annotate it")
        hint = hints[parameter.name]
        fields[parameter.name] = hint if parameter.default is parameter.empty else NotRequired[hint]
    make: Any = TypedDict  # known to a type checker by its keyword arguments alone
    kind = make("Arguments", fields)
    kind.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", regex_engine="rust-regex")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        adapter.json_schema()
    except (PydanticUserError, TypeError, ValueError) as error:
        raise ConfigurationError(f"tool {name}: {one_line(str(error), 300)}") from error
    return adapter


class _Written(str):
    """An annotation that is a text, shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _as_written(annotation: Any) -> Any:
    return _Written(annotation) if isinstance(annotation, str) else annotation


def _description(name: str, signature: inspect.Signature, adapter: TypeAdapter[Any], doc: str) -> str:
    parameters = [
        parameter.replace(annotation=_as_written(parameter.annotation)) for parameter in signature.parameters.values()
    ]
    shown = signature.replace(parameters=parameters, return_annotation=_as_written(signature.return_annotation))
    text = f"{name}{shown}"
    defined = adapter.json_schema().get("$defs")
    if defined:
        text += f", types as JSON Schema: {json.dumps(defined, ensure_ascii=False)}"
    return f"{text}\n{doc}".strip()
