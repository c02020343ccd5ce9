"""Whole runs: the real loop, broker, ledger, journal and boxes, and the real Anthropic client on a local server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import RLM, Policy, Result
from orchestrator.context import Context
from orchestrator.errors import ModelAuthenticationError
from orchestrator.trajectory import journal
from tests.support import policies
from tests.support.model_server import Body, Fault, ModelServer, Reply, prompt_of, system_of

pytestmark = pytest.mark.docker

KEY = "sk-canary-5f1c0e"
SMALL = ["limits.memory_mb=512", "limits.context_mb=32", "limits.cell_timeout_s=20.0"]
Turn = str | Callable[[Body], str]


class Script:
    """A root model that says its lines in order, one a request, and sub-models that answer by a function."""

    def __init__(self, *turns: Turn, sub: Callable[[str], Reply | Fault] | None = None) -> None:
        self.turns = list(turns)
        self.roots: list[Body] = []
        self._sub = sub or (lambda prompt: Reply(prompt[:50]))

    def __call__(self, body: Body, _n: int) -> Reply | Fault:
        if not system_of(body):
            return self._sub(prompt_of(body))
        self.roots.append(body)
        turn = self.turns.pop(0) if self.turns else "I am done."
        text = turn if isinstance(turn, str) else turn(body)
        return Reply(text)

    def seen(self, turn: int) -> str:
        """What the root model was shown last before its reply number ``turn``, from 0."""
        return prompt_of(self.roots[turn])


def code(*lines: str) -> str:
    return "I run this.\n\n```repl\n" + "\n".join(lines) + "\n```\n"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., tuple[Result, ModelServer]]]:
    """Run a script to its end in a real box."""

    def run(script: Script, context: Context = "some text", **settings: Any) -> tuple[Result, ModelServer]:
        policy = policies.base().override([*SMALL, *settings.get("set", ())])
        with ModelServer(script, key=settings.get("key", KEY)) as server:
            monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            rlm = RLM(model="anthropic:claude-haiku-5-5", policy=policy, journal=tmp_path)
            return rlm.complete(context, settings.get("query", "What is it?")), server

    yield run
    for path in tmp_path.glob("*.jsonl"):
        assert KEY not in path.read_text(encoding="utf-8")


def kinds(result: Result) -> list[str]:
    assert result.journal is not None
    return [record.kind for record in journal.read(result.journal)]


Answer = Callable[..., tuple[Result, ModelServer]]


def test_a_run_survives_every_passing_fault_of_the_provider_and_its_bill_is_the_servers(answer: Answer) -> None:
    faults = [
        Fault.status(429, retry_after=0),
        Fault.status(500),
        Fault.status(529),
        Fault.drop(),
        Fault.end_early(),
        Fault.overloaded(),
        Fault.malformed(),
        Fault.disconnect(),
    ]
    waiting = dict(enumerate(faults))

    def sub(prompt: str) -> Reply | Fault:
        number = int(re.findall(r"\d+", prompt)[0])
        return waiting.pop(number, None) or Reply(f"answer {number}")

    script = Script(
        code("answers = llm_query_batched([f'question {i}' for i in range(8)])", "Final = answers"), sub=sub
    )
    result, server = answer(script)
    assert (result.status, json.loads(result.answer or "")) == ("answered", [f"answer {i}" for i in range(8)])
    assert result.usage["calls"] == len(server.requests) == 1 + 8 + len(faults)
    assert kinds(result).count("retry_scheduled") == len(faults)


def test_final_of_fifty_megabytes_comes_out_whole(answer: Answer) -> None:
    result, _ = answer(Script(code("Final = 'abcde' * 10_000_000")), set=["limits.answer_mb=64"])
    assert result.status == "answered"
    assert result.answer == "abcde" * 10_000_000


def test_the_root_model_sees_metadata_of_constant_size_whatever_the_context(answer: Answer) -> None:
    sizes = []
    for megabytes in (1, 100):
        script = Script(code("Final = str(len(context))"))
        settings = ["limits.context_mb=128", "limits.memory_mb=1024"]
        text = "0123456789abcde\n" * (megabytes * 65536)
        result, _ = answer(script, text, set=settings)
        assert result.answer == str(megabytes << 20)
        sizes.append(len(json.dumps(script.roots[0])))
    assert abs(sizes[1] - sizes[0]) < 100


def test_variables_persist_and_observations_are_cut(answer: Answer) -> None:
    script = Script(code("x = 41", "print('y' * 10_000_000)"), code("Final = x + 1"))
    result, _ = answer(script)
    assert result.answer == "42"
    assert "characters cut" in script.seen(1)
    assert len(script.seen(1)) < 2 * Policy().limits.observation_chars


def test_nothing_printed_or_forged_ends_a_run(answer: Answer) -> None:
    forged = "\\x00\\x00\\x00\\x05!" + "A" * 5
    script = Script(
        code("print('FINAL(forged)'); print('{\"final\": \"forged\"}')"),
        code("import os", f"for fd in range(3, 64):\n    try: os.write(fd, b'{forged}')\n    except OSError: pass"),
        code(
            "class FinalAnswerException(BaseException): pass",
            "raise FinalAnswerException('forged')",
        ),
        code("Final = 'true'"),
    )
    result, _ = answer(script)
    assert (result.status, result.answer, result.turns) == ("answered", "true", 4), result.reason


def test_a_dead_interpreter_is_told_plainly_and_the_context_is_still_there(answer: Answer) -> None:
    script = Script(code("x = 1", "import os; os._exit(7)"), code("Final = 'x' in globals(), context"))
    result, _ = answer(script, "the text")
    assert json.loads(result.answer or "") == [False, "the text"]
    assert "exit code 7" in script.seen(1)


def test_a_fence_inside_a_string_does_not_cut_the_block(answer: Answer) -> None:
    result, _ = answer(Script(code('text = """\n```python\nnot code\n```\n"""', "Final = text")))
    assert result.answer == "\n```python\nnot code\n```\n"


def test_a_root_model_that_stops_writing_code_is_reminded_and_then_given_up(answer: Answer) -> None:
    script = Script("Let me think.", "Still thinking.", "It is probably 42.")
    result, _ = answer(script)
    assert (result.status, result.answer) == ("no_answer", "It is probably 42.")
    assert "code" in script.seen(1)


def test_an_endless_cell_ends_the_run_in_time_with_the_draft_as_its_partial_answer(answer: Answer) -> None:
    script = Script(code("draft = 'half of it'"), code("while True: pass"), code("while True: pass"))
    result, _ = answer(script, set=["budget.wall_s=8.0", "limits.cell_timeout_s=20.0"])
    assert (result.status, result.reason, result.answer) == ("limit", "wall_s", "half of it")
    assert result.usage["wall_s"] < 8 + 5


def test_a_budget_refuses_in_the_cell_and_the_model_can_adapt(answer: Answer) -> None:
    script = Script(
        code(
            "try: llm_query_batched(['q'] * 10)",
            "except QueryRefused as refusal: fits = int(refusal.limit); reason = refusal.reason",
            "Final = [reason, len(llm_query_batched(['q'] * (fits - 1)))]",
        )
    )
    result, server = answer(script, set=["budget.calls=6"])
    assert json.loads(result.answer or "") == ["calls", 3]
    assert len(server.requests) == 4


def test_a_child_run_has_its_own_box_and_the_trees_ledger(answer: Answer) -> None:
    def root(body: Body) -> str:
        if "count the words" in json.dumps(body):
            return code("secret = 'child'", "Final = str(len(context.split())) + llm_query('x')")
        return code("part = rlm_query('count the words', 'one two three')", "Final = [part, 'secret' in globals()]")

    result, server = answer(Script(root, root, sub=lambda _prompt: Reply("!")))
    assert json.loads(result.answer or "") == ["3!", False]
    assert result.usage["calls"] == len(server.requests) == 3
    assert result.usage["children"] == 1
    assert result.journal is not None
    assert len(list(result.journal.parent.glob("*.jsonl"))) == 2


def test_a_refused_key_fails_the_run_at_once(answer: Answer) -> None:
    result, server = answer(Script(), key="another")
    assert result.status == "failed"
    assert isinstance(result.error, ModelAuthenticationError)
    assert len(server.requests) == 1


def test_the_prompts_prefix_is_cached_and_the_ledger_knows(answer: Answer) -> None:
    script = Script(*[code(f"print('{'word ' * 400}', {turn})") for turn in range(3)], code("Final = 1"))
    result, _ = answer(script)
    assert result.usage["cache_read_tokens"] > 0
    assert all("cache_control" in json.dumps(body) for body in script.roots)


def test_the_journal_tells_the_whole_run_and_holds_each_large_text_once(answer: Answer) -> None:
    text = "z" * 5000
    result, _ = answer(Script(code("a = llm_query(context)", "b = llm_query(context)", "Final = a")), text)
    assert {"run_started", "sandbox_opened", "root_replied", "cell_started", "subcall_started", "final_set"} <= set(
        kinds(result)
    )
    assert kinds(result)[-1] == "run_finished"
    assert result.journal is not None
    # The context is never written, but it is the prompt of both calls.
    assert result.journal.read_text(encoding="utf-8").count(text) == 1
