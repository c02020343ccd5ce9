from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import broker_params as params
from orchestrator.context import Context
from orchestrator.policy import Limits, ModelSettings
from orchestrator.text import size
from orchestrator.transport.rpc import RpcRefusal
from sandbox_image import guest_api

texts = st.text(st.characters(codec="utf-8"), max_size=20)
contexts = texts | st.lists(texts, max_size=5) | st.dictionaries(texts, texts, max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
known = st.sampled_from(
    ["model", "max_tokens", "batch", "n", "characters", "query", "layout", "kind", "lengths", "names"]
)
heads = st.dictionaries(known | texts, json_values, max_size=5)
MODELS, LIMITS = ModelSettings(allowed=("named",)), Limits(frame_kb=64, context_mb=1, answer_mb=1)


@given(contexts)
def test_a_context_arrives_as_the_box_laid_it_out(context: Context) -> None:
    layout, body = guest_api._lay_out(context)
    assert params.decode_context(layout, body) == context


DECODERS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "llm_query": lambda head, body: params.sub_query(head, body, MODELS, LIMITS),
    "batch_open": lambda head, body: params.batch_plan(head, body, MODELS, LIMITS),
    "batch_close": params.batch_id,
    "rlm_query": lambda head, body: params.child_query(head, body, LIMITS),
    "final": lambda head, body: params.final_answer(head, body, LIMITS),
    "budget": params.nothing,
    "layout": params.decode_context,
}


@pytest.mark.parametrize("what", DECODERS)
@given(head=heads, body=texts)
def test_whatever_comes_is_decoded_or_refused(what: str, head: dict[str, Any], body: str) -> None:
    with contextlib.suppress(RpcRefusal):
        DECODERS[what](head, body)


@given(contexts, texts.filter(str.strip))
def test_a_plain_prompt_holds_the_question_and_every_document(context: Context, query: str) -> None:
    prompt = params.plain_prompt(params.ChildQuery(query, context), LIMITS)
    documents = [context] if isinstance(context, str) else [*context]
    assert prompt.startswith(query)
    assert all(document in prompt for document in documents)
    assert size(prompt) <= LIMITS.frame_kb * 1024


@pytest.mark.parametrize(("value", "limit"), [(0, 1), (11, 10), (-5, 1), (True, 10), ("3", 10), (None, 10)])
def test_a_number_out_of_range_is_refused_with_the_nearest_that_would_do(value: Any, limit: int) -> None:
    with pytest.raises(RpcRefusal, match="n is a whole number from 1 to 10") as caught:
        params.whole({"n": value}, "n", 1, 10)
    assert caught.value.limit == limit
