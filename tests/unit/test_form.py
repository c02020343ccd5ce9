"""Typed answers: what fits is the object it is, and what does not is told precisely, whatever it is."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from orchestrator.errors import ConfigurationError
from orchestrator.rlm.form import MAX_WRONG, PROBLEMS_TOLD, AnswerCheck, AnswerForm, FormError, unfenced
from orchestrator.transport.rpc import RpcRefusal

PRICES = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}}
    },
    "required": ["items"],
    "additionalProperties": False,
}


class Invoice(BaseModel):
    number: int = Field(gt=0)
    customer: str


@dataclass
class Point:
    x: float
    y: float


def test_what_fits_a_schema_is_the_plain_object() -> None:
    assert AnswerForm(PRICES).value('{"items": [{"price": 1.5}]}') == {"items": [{"price": 1.5}]}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (Invoice, '{"number": 7, "customer": "Ada"}', Invoice(number=7, customer="Ada")),
        (Point, '{"x": 1, "y": 2.5}', Point(1.0, 2.5)),
        (list[int], "[1, 2]", [1, 2]),
        (str, "plain words", "plain words"),
        (str, '"quoted"', "quoted"),
        (int, "42", 42),
    ],
)
def test_what_fits_a_type_is_one_of_it(schema: Any, text: str, value: object) -> None:
    found = AnswerForm(schema).value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_text_that_is_no_json_is_a_string_where_one_is_wanted() -> None:
    assert AnswerForm({"type": "string", "minLength": 3}).value("Alder bridge") == "Alder bridge"


@pytest.mark.parametrize(
    ("schema", "text", "told"),
    [
        (PRICES, '{"items": [{"price": 1}, {"price": "x"}]}', "- at $.items[1].price: 'x' is not of type 'number'"),
        (PRICES, "{}", "- at $: 'items' is a required property"),
        (PRICES, "about five", "it is not JSON"),
        (PRICES, '{"items": NaN}', "it is not JSON"),
        (PRICES, "[" * 5000, "it is not JSON"),
        (Invoice, '{"number": 0, "customer": "Ada"}', "- at $.number: Input should be greater than 0, not 0"),
        (list[Point], '[{"x": 1}]', "- at $[0].y: Field required"),
    ],
)
def test_what_does_not_fit_is_told_where_and_why(schema: Any, text: str, told: str) -> None:
    with pytest.raises(FormError) as caught:
        AnswerForm(schema).value(text)
    assert told in str(caught.value)


def test_a_hostile_answer_gives_a_short_message_without_controls() -> None:
    text = json.dumps([{"price": "\x1b[2J" + "y" * 100_000}] * 1000)
    with pytest.raises(FormError) as caught:
        AnswerForm({"type": "array", "items": {"type": "integer"}}).value(text)
    message = str(caught.value)
    assert len(message.splitlines()) == PROBLEMS_TOLD + 1
    assert len(message) < 2500
    assert "\x1b" not in message
    assert message.endswith("- and more")


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "strin"}, "is no JSON Schema: at $.type"),
        ({"$ref": "#/nowhere"}, "cannot be used"),
        ({"$ref": "https://example.com/schema"}, "cannot be used"),
        ({"pattern": "("}, "is no JSON Schema|cannot be used"),
        ({"items": {"pattern": "(?=a)"}}, "cannot be used: the pattern '.*' is none without look-around"),
        ({"properties": {"x": {"patternProperties": {"a": {}}}}}, "patternProperties is not supported"),
        ("object", "give a JSON Schema"),
        (7, "give a JSON Schema"),
        ({"description": "x" * 200_000}, "may have 100,000"),
    ],
)
def test_what_is_no_schema_is_refused_before_anything_is_spent(schema: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint.replace("$", r"\$")):
        AnswerForm(schema)


FORMS = AnswerForm(PRICES), AnswerForm(Invoice), AnswerForm({"type": "string"})


@settings(deadline=None)
@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20).map(json.dumps))
def test_any_answer_fits_or_is_told_and_nothing_else_happens(text: str) -> None:
    for form in FORMS:
        with suppress(FormError):
            form.value(text)


# Patterns: the schema is trusted, the text is not --------------------------------------------------------------------

SLOW = r"^(a+)+$"


def test_a_text_that_would_hold_a_backtracking_matcher_for_ever_is_refused_at_once() -> None:
    with pytest.raises(FormError, match="does not match"):
        AnswerForm({"type": "string", "pattern": SLOW}).value("a" * 100_000 + "!")


def test_a_backtracking_matcher_takes_twice_as_long_for_each_character() -> None:
    """The weakened twin: what the library would do by itself, with texts that are short enough to wait for."""
    from time import thread_time

    def took(length: int) -> float:
        began = thread_time()
        assert re.search(SLOW, "a" * length + "!") is None
        return thread_time() - began

    assert took(22) > 20 * took(12)


def test_names_and_data_that_look_like_patterns_are_none() -> None:
    form = AnswerForm(
        {
            "properties": {"pattern": {"type": "string"}, "patternProperties": {"type": "integer"}},
            "examples": [{"pattern": "("}],
            "const": {"pattern": "("},
        }
    )
    assert form.value('{"pattern": "("}') == {"pattern": "("}


# The check of a run ---------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_first_answer_that_fits_is_the_value_whatever_comes_after_it() -> None:
    check = AnswerCheck(AnswerForm(list[int]))
    assert "not JSON" in await check.complaint("one")
    await check.accept("[1]")
    await check.accept("[2]")
    assert (check.value, check.wrong, check.last) == ([1], 1, "one")


@pytest.mark.anyio
async def test_a_refusal_says_what_is_wrong_and_how_many_attempts_are_left_and_the_end_is_the_end() -> None:
    check = AnswerCheck(AnswerForm(int))
    lefts = []
    for number in range(MAX_WRONG + 1):
        with pytest.raises(RpcRefusal) as caught:
            await check.accept(f"wrong {number}")
        assert caught.value.reason == "wrong_form"
        lefts.append(caught.value.limit)
    assert lefts == [3, 2, 1, 0, 0]
    with pytest.raises(RpcRefusal, match="no further answer"):
        await check.accept("7")
    assert (check.last, check.accepted) == (f"wrong {MAX_WRONG - 1}", False)


@pytest.mark.anyio
async def test_what_a_run_has_so_far_may_have_any_form() -> None:
    check = AnswerCheck(AnswerForm(int))
    check.partial = True
    await check.accept("about seven")
    assert (check.value, check.wrong) == (None, 0)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("```json\n[1]\n```", "[1]"),
        (" ```\n{}\n``` \n", "{}"),
        (" [1] ", "[1]"),
        ("see ```json\n[1]\n```", "see ```json\n[1]\n```"),
    ],
)
def test_a_fence_around_a_whole_reply_is_no_part_of_it(reply: str, text: str) -> None:
    assert unfenced(reply) == text


def refuse_all(value: object) -> object:
    raise KeyError(value)


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"$ref": "#/nowhere"}},
        {"items": {"$ref": "https://example.com/schema"}},
        list[Annotated[int, AfterValidator(refuse_all)]],
    ],
)
def test_what_cannot_be_checked_is_told_and_ends_nothing(schema: Any) -> None:
    with pytest.raises(FormError, match="it cannot be checked there"):
        AnswerForm(schema).value("[1]")
