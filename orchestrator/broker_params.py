"""What a box may ask for, decoded strictly: JSON from a stranger in, frozen values or a refusal out.

Unknown fields, ``null`` for an absent one, booleans for numbers and numbers out of range are all refused. There is no
parameter for depth, parent, run or budget, so none can be spoofed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

from orchestrator.context import Context
from orchestrator.policy import Limits, ModelSettings
from orchestrator.text import cut_to_bytes, size
from orchestrator.transport.rpc import RpcRefusal

# One batch: a hundred times the largest seen in earnest, and far below what would strain the host's arithmetic.
MAX_BATCH: Final = 1_000_000
# The question of a child run; the text it is about goes into its context. It rides in a message head of 64 KiB.
MAX_QUERY_BYTES: Final = 32 * 1024
_MAX_WORD: Final = 200
_KIB: Final = 1024
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SubQuery:
    """``llm_query``: one prompt to a sub-call model.

    Attributes:
        prompt: the text.
        model: a name the policy allows, or None for the default.
        max_tokens: most output tokens, or None for the policy's (or the batch's) own number.
        batch: the batch whose reservation pays, or None.
    """

    prompt: str
    model: str | None
    max_tokens: int | None
    batch: str | None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """``batch_open``: what a batch is going to be.

    Attributes:
        n: prompts.
        characters: length of all of them together.
        model: as in :class:`SubQuery`, for every prompt.
        max_tokens: likewise.
        children: whether it is one of child runs.
    """

    n: int
    characters: int
    model: str | None
    max_tokens: int | None
    children: bool = False


@dataclass(frozen=True, slots=True)
class ChildQuery:
    """``rlm_query``: the question and the context of a child run, and the batch whose reservation holds it, or None."""

    query: str
    context: Context
    batch: str | None = None


def sub_query(params: dict[str, Any], body: str, models: ModelSettings, limits: Limits) -> SubQuery:
    """Decode ``llm_query``.

    Raises:
        RpcRefusal: ``invalid_params``, ``model_not_allowed`` or ``prompt_too_large``.
    """
    _only(params, "model", "max_tokens", "batch")
    if not body.strip():
        raise invalid("the prompt is empty")
    check_size(body, limits.frame_kb * _KIB, "prompt")
    return SubQuery(body, _model(params, models), _max_tokens(params, models), _word(params, "batch"))


def batch_plan(params: dict[str, Any], body: str, models: ModelSettings, limits: Limits) -> BatchPlan:
    """Decode ``batch_open``.

    Raises:
        RpcRefusal: ``invalid_params``, ``model_not_allowed`` or ``prompt_too_large``.
    """
    _only(params, "n", "characters", "model", "max_tokens", "method")
    no_body(body)
    method = _word(params, "method") or "llm_query"
    if method not in ("llm_query", "rlm_query"):
        raise invalid("the method of a batch is llm_query or rlm_query")
    children = method == "rlm_query"
    if children and params.keys() & {"model", "max_tokens"}:
        raise invalid("child runs take neither model nor max_tokens")
    n = whole(params, "n", 1, MAX_BATCH)
    characters = whole(params, "characters", 0, 2**53)
    most = n * (limits.answer_mb * _MIB if children else limits.frame_kb * _KIB)
    if characters > most:
        raise RpcRefusal("prompt_too_large", f"{n:,} prompts have at most {most:,} characters", limit=most)
    return BatchPlan(n, characters, _model(params, models), _max_tokens(params, models), children)


def batch_id(params: dict[str, Any], body: str) -> str:
    """Decode ``batch_close``.

    Raises:
        RpcRefusal: ``invalid_params``.
    """
    _only(params, "batch")
    no_body(body)
    identity = _word(params, "batch")
    if identity is None:
        raise invalid("batch is missing")
    return identity


def child_query(params: dict[str, Any], body: str, limits: Limits) -> ChildQuery:
    """Decode ``rlm_query``.

    Raises:
        RpcRefusal: ``invalid_params``, ``prompt_too_large`` (the question) or ``context_too_large``.
    """
    _only(params, "query", "layout", "batch")
    query = params.get("query")
    if not isinstance(query, str) or not query.strip():
        raise invalid("query is a text that is not empty")
    check_size(query, MAX_QUERY_BYTES, "prompt")
    check_size(body, min(limits.context_mb, limits.answer_mb) * _MIB, "context")
    return ChildQuery(query, decode_context(params.get("layout"), body), _word(params, "batch"))


def final_answer(params: dict[str, Any], body: str, limits: Limits) -> str:
    """Decode ``final``.

    Raises:
        RpcRefusal: ``invalid_params`` or ``answer_too_large``.
    """
    _only(params)
    check_size(body, limits.answer_mb * _MIB, "answer")
    return body


def tool_call(params: dict[str, Any], body: str, limits: Limits) -> str:
    """Decode ``tool``, and return the tool's name; its arguments are the body, and the tool's to judge.

    Raises:
        RpcRefusal: ``invalid_params`` or ``arguments_too_large``.
    """
    _only(params, "name")
    name = _word(params, "name")
    if name is None:
        raise invalid("name is missing")
    check_size(body, limits.frame_kb * _KIB, "arguments", verb="have")
    return name


def nothing(params: dict[str, Any], body: str) -> None:
    """Decode a method that takes nothing.

    Raises:
        RpcRefusal: ``invalid_params``.
    """
    _only(params)
    no_body(body)


def decode_context(layout: object, body: str) -> Context:
    """Cut ``body`` into the documents that ``layout`` describes.

    Args:
        layout: ``{"kind": "text"}``, ``{"kind": "list", "lengths": […]}`` or ``{"kind": "dict", "names": […],
            "lengths": […]}``; lengths count characters and add up to the body.
        body: the documents, one after the other.

    Raises:
        RpcRefusal: ``invalid_params``; the layout is anything else.
    """
    if not isinstance(layout, dict):
        raise invalid("layout is an object")
    match layout:
        case {"kind": "text"} if len(layout) == 1:
            return body
        case {"kind": "list", "lengths": list(lengths)} if len(layout) == 2:  # noqa: PLR2004 - the two just named
            return _cut(body, lengths)
        case {"kind": "dict", "names": list(names), "lengths": list(lengths)} if len(layout) == 3:  # noqa: PLR2004
            if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
                raise invalid("the names of a layout are texts, each one different")
            if len(names) != len(lengths):
                raise invalid("a layout has one name for each length")
            return dict(zip(names, _cut(body, lengths), strict=True))
    raise invalid("layout is of kind text, or list with lengths, or dict with names and lengths")


def plain_prompt(child: ChildQuery, limits: Limits) -> str:
    """Return the question and the context of a child as the prompt of one sub-call, cut to the size of such a prompt.

    Documents follow one another under their names or numbers; of what is too long, beginning and end are kept.
    """
    match child.context:
        case str(text):
            pass
        case list(texts):
            text = "\n\n".join(f"[document {number}]\n{each}" for number, each in enumerate(texts))
        case dict(documents):
            text = "\n\n".join(f"[{name}]\n{each}" for name, each in documents.items())
    prompt = f"{child.query}\n\n"
    return prompt + cut_to_bytes(text, limits.frame_kb * _KIB - size(prompt))


def invalid(message: str, limit: float | None = None) -> RpcRefusal:
    """Return the refusal for parameters that are not what the method takes."""
    return RpcRefusal("invalid_params", message, limit=limit)


def whole(params: dict[str, Any], name: str, low: int, high: int) -> int:
    """Return the whole number ``name``; a boolean is none.

    Raises:
        RpcRefusal: ``invalid_params``, with the nearest number that would do as limit.
    """
    value = params.get(name)
    if type(value) is not int or not low <= value <= high:
        below = type(value) is int and value < low
        raise invalid(f"{name} is a whole number from {low:,} to {high:,}", low if below else high)
    return value


def check_size(text: str, most: int, what: str, *, verb: str = "has") -> None:
    """Refuse a text of more than ``most`` bytes of UTF-8.

    Raises:
        RpcRefusal: ``prompt_too_large`` and the like, with ``most`` as limit.
    """
    if len(text) > most or size(text) > most:
        raise RpcRefusal(f"{what}_too_large", f"the {what} {verb} more than {most:,} bytes of UTF-8", limit=most)


def no_body(body: str) -> None:
    """Refuse text where none belongs.

    Raises:
        RpcRefusal: ``invalid_params``.
    """
    if body:
        raise invalid("this method takes no text")


def _only(params: dict[str, Any], *known: str) -> None:
    if not params.keys() <= set(known):
        raise invalid(f"unknown parameter; there is {', '.join(known) or 'none'}")


def _word(params: dict[str, Any], name: str) -> str | None:
    if name not in params:
        return None
    value = params[name]
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_WORD:
        raise invalid(f"{name} is a text of 1 to {_MAX_WORD} characters")
    return value


def _model(params: dict[str, Any], models: ModelSettings) -> str | None:
    name = _word(params, "model")
    if name is not None and name not in models.allowed:
        raise RpcRefusal("model_not_allowed", "the policy does not allow that model; leave it out for the default")
    return name


def _max_tokens(params: dict[str, Any], models: ModelSettings) -> int | None:
    return whole(params, "max_tokens", 1, models.max_tokens) if "max_tokens" in params else None


def _cut(body: str, lengths: list[Any]) -> list[str]:
    if any(type(length) is not int or length < 0 for length in lengths):
        raise invalid("the lengths of a layout are whole numbers of at least 0")
    if sum(lengths) != len(body):
        raise invalid("the lengths of a layout add up to the characters of the context", len(body))
    return [body[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
