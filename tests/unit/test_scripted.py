"""The scripted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import (
    ConfigurationError,
    ModelAuthenticationError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
)
from orchestrator.models import scripted
from orchestrator.models.base import Message, ModelRequest, Usage
from orchestrator.models.scripted import ScriptedModel
from orchestrator.rlm.parse import parse_reply

pytestmark = pytest.mark.anyio

ROOT = ModelRequest((Message("user", "go"),), max_tokens=100, purpose="root")


def sub(prompt: str) -> ModelRequest:
    return ModelRequest((Message("user", prompt),), max_tokens=100)


async def text_of(model: ScriptedModel, request: ModelRequest) -> str:
    return (await model.complete(request)).text


async def test_root_replies_come_in_order_and_end_with_an_error() -> None:
    model = ScriptedModel.parse('[[root]]\nreply = "one"\n[[root]]\nreply = "two"\n')
    assert [await text_of(model, ROOT), await text_of(model, ROOT)] == ["one", "two"]
    with pytest.raises(ModelRequestError, match=r"no more root replies \(it holds 2\)"):
        await model.complete(ROOT)


async def test_the_first_rule_that_matches_answers_with_the_groups_filled_in() -> None:
    model = ScriptedModel.parse(
        """
        [[sub]]
        match = 'capital of (\\w+)(!)?'
        reply = "$1's capital costs $$5${2}"
        [[sub]]
        match = '(?P<what>\\w+)'
        reply = "${what} from ${0}"
        """
    )
    assert await text_of(model, sub("the capital of France?")) == "France's capital costs $5"
    assert await text_of(model, sub("the capital of Peru!")) == "Peru's capital costs $5!"
    assert await text_of(model, sub("something")) == "something from something"


async def test_a_model_of_cells_writes_one_a_turn_and_answers_sub_calls_by_pattern() -> None:
    model = ScriptedModel.writing(
        """
        for each in context:
            print(each)
        """,
        'Final = "```"',
        sub={"capital of (\\w+)": "$1's capital", "": "I do not know"},
        name="rehearsal",
    )
    blocks = [parse_reply(await text_of(model, ROOT)).blocks for _ in range(2)]
    assert blocks == [("for each in context:\n    print(each)\n",), ('Final = "```"\n',)]
    assert await text_of(model, sub("the capital of Peru?")) == "Peru's capital"
    assert await text_of(model, sub("the weather?")) == "I do not know"
    assert model.name == "rehearsal"


@pytest.mark.parametrize(
    ("cells", "rules", "told"),
    [
        ((), {}, "neither"),
        ((7,), {}, "root 1.reply = 7"),
        ((), {"(": "x"}, "not a regular expression"),
        ((), {"a": "$1"}, "match has no group"),
    ],
)
def test_what_cannot_be_a_script_of_cells_is_told(cells: Any, rules: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ScriptedModel.writing(*cells, sub=rules)


async def test_a_prompt_no_rule_matches_is_refused_and_shown_shortened() -> None:
    model = ScriptedModel.parse('[[sub]]\nmatch = "x"\nreply = ""\n')
    with pytest.raises(ModelRequestError, match=r"no \[\[sub\]\] rule .* 'yyy\\?") as caught:
        await model.complete(sub("yyy\n" * 1000))
    assert len(str(caught.value)) < 160


async def test_what_is_put_in_from_the_prompt_is_not_read_as_a_template() -> None:
    model = ScriptedModel.parse('[[sub]]\nmatch = "(?s)(.*)"\nreply = "<$1>"\n')
    assert await text_of(model, sub("$1 ${2} $$ \\1")) == "<$1 ${2} $$ \\1>"


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("unavailable", ModelUnavailableError),
        ("authentication", ModelAuthenticationError),
        ("request", ModelRequestError),
    ],
)
async def test_a_root_entry_fails_so_many_times_and_then_replies(word: str, kind: type[ModelError]) -> None:
    model = ScriptedModel.parse(f'[[root]]\nfail = "{word}"\ntimes = 2\nreply = "at last"\n[[root]]\nreply = "next"\n')
    for _ in range(2):
        with pytest.raises(kind, match="scripted failure"):
            await model.complete(ROOT)
    assert [await text_of(model, ROOT), await text_of(model, ROOT)] == ["at last", "next"]


async def test_a_failure_without_a_reply_lasts() -> None:
    model = ScriptedModel.parse('[[sub]]\nmatch = ""\nfail = "unavailable"\nretry_after_s = 2\n')
    for _ in range(3):
        with pytest.raises(ModelUnavailableError) as caught:
            await model.complete(sub("anything"))
        assert caught.value.retry_after_s == 2


async def test_each_prompt_has_failures_of_its_own_whatever_the_order() -> None:
    model = ScriptedModel.parse('[[sub]]\nmatch = "(.)"\nfail = "unavailable"\ntimes = 1\nreply = "ok $1"\n')
    for prompt in "abc":
        with pytest.raises(ModelUnavailableError):
            await model.complete(sub(prompt))
    assert [await text_of(model, sub(prompt)) for prompt in "cab"] == ["ok c", "ok a", "ok b"]


async def test_a_delay_is_waited_for_before_a_reply_and_before_a_failure() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    script = '[[root]]\nfail = "unavailable"\ntimes = 1\nreply = "x"\ndelay_s = 1.5\n'
    script += '[[sub]]\nmatch = ""\nreply = ""\ndelay_s = 3\n'
    model = ScriptedModel.parse(script, sleep=sleep)
    with pytest.raises(ModelUnavailableError):
        await model.complete(ROOT)
    await model.complete(ROOT)
    await model.complete(sub("x"))
    assert slept == [1.5, 1.5, 3]


async def test_usage_is_the_scripts_or_else_an_estimate_that_says_so() -> None:
    model = ScriptedModel.parse(
        '[[root]]\nreply = "x"\nstop_reason = "max_tokens"\nusage = { input_tokens = 5, cache_read_tokens = 7 }\n'
        '[[sub]]\nmatch = ""\nreply = "12345678"\n'
    )
    reply = await model.complete(ROOT)
    assert (reply.usage, reply.stop_reason) == (Usage(input_tokens=5, cache_read_tokens=7), "max_tokens")
    estimated = (await model.complete(sub("1234" * 10))).usage
    assert estimated == Usage(input_tokens=10, output_tokens=2, estimated=True)


async def test_a_script_may_give_itself_a_priced_name() -> None:
    assert ScriptedModel.parse('name = "claude-haiku-5-5"\n[[root]]\nreply = ""\n').name == "claude-haiku-5-5"
    assert ScriptedModel.parse('[[root]]\nreply = ""\n').name == "scripted"


async def test_closing_it_twice_is_fine() -> None:
    model = ScriptedModel.parse('[[root]]\nreply = ""\n')
    await model.aclose()
    await model.aclose()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the script has neither [[root]] replies nor [[sub]] rules"),
        ("[[root]]\nreplay = 'x'\n", "unknown key root 1.replay; known here: delay_s, fail, reply, retry_after_s"),
        ("[[root]]\nreply = 'x'\n[[root]]\n", "root 2: give a reply, or say how to fail with fail"),
        ("[[sub]]\nreply = 'x'\n", "sub 1 lacks the key match"),
        ("[[sub]]\nmatch = '('\nreply = 'x'\n", "sub 1.match: not a regular expression: missing )"),
        ("[[sub]]\nmatch = '(.)'\nreply = '$2'\n", "sub 1: reply: match has no group '2'; write $$"),
        ("[[sub]]\nmatch = ''\nreply = '5 $ each'\n", "sub 1: reply: a $ stands before"),
        ("[[root]]\nreply = 5\n", "root 1.reply = 5: input should be a valid string"),
        ("[[root]]\nreply = 'x'\ndelay_s = -1\n", "root 1.delay_s = -1"),
        ("[[root]]\nreply = 'x'\ndelay_s = inf\n", "root 1.delay_s = inf"),
        (
            "[[root]]\nfail = 'sometimes'\n",
            "root 1.fail = 'sometimes': input should be 'unavailable', 'authentication'",
        ),
        ("[[root]]\nfail = 'request'\nreply = 'x'\n", "root 1: fail needs both times and reply, or neither"),
        ("[[root]]\nfail = 'request'\ntimes = 2\n", "root 1: fail needs both times and reply, or neither"),
        ("[[root]]\nreply = 'x'\ntimes = 2\n", "root 1: times and retry_after_s need fail"),
        ("[[root]]\nfail = 'request'\nretry_after_s = 2\n", 'root 1: retry_after_s needs fail = "unavailable"'),
        ("[[root]]\nreply = 'x'\nusage = { inputs = 1 }\n", "unknown key root 1.usage.inputs; known here: cache_read"),
        ("root = 'x'\n", "root = 'x': input should be a valid tuple"),
        ("[[root]\n", "is not valid TOML"),
    ],
)
def test_a_bad_script_is_told_with_its_name_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "script.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        ScriptedModel.load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_script_that_is_not_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "script.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="it is not UTF-8 text"):
        ScriptedModel.load(file)


async def test_the_example_in_the_documentation_is_a_script() -> None:
    documentation = scripted.__doc__ or ""
    example = documentation.partition("::\n")[2].partition("\nKeys of a")[0]
    model = ScriptedModel.parse("\n".join(line[4:] for line in example.splitlines()))
    assert model.name == "claude-haiku-5-5"
    assert "llm_query_batched" in await text_of(model, ROOT)


@given(st.text())
def test_any_prompt_can_be_put_into_a_reply(prompt: str) -> None:
    model = ScriptedModel.parse("[[sub]]\nmatch = '(?s)\\A(.*)\\Z'\nreply = '$1'\n")
    assert anyio.run(text_of, model, sub(prompt)) == prompt
