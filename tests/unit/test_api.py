from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

import orchestrator
from orchestrator.errors import (
    ConfigurationError,
    ContextError,
    JournalError,
    ModelError,
    ModelRequestError,
    PolicyError,
)
from orchestrator.events import Envelope, Refused, RunFinished, RunStarted
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.policy import Policy
from orchestrator.rlm import api, choices
from orchestrator.rlm.api import RLM
from orchestrator.rlm.question import new_run_id
from orchestrator.rlm.result import Result
from orchestrator.transport.rpc import RpcRefusal
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes, finals
from tests.support.fakes import FakeModel

CODE = ModelReply("```repl\nstep()\n```", Usage(100, 10))


def rlm(*cells: CellBody, policy: Policy | None = None, journal: Path | None = None) -> RLM:
    boxes = FakeBoxes([list(cells)])
    return RLM(FakeModel(default=CODE), policy=policy or Policy(), journal=journal, open_box=boxes.open)


def test_complete_answers_and_waits() -> None:
    result = rlm(finals("42")).complete("text", "What?")
    assert (result.status, result.answer) == ("answered", "42")


@pytest.mark.anyio
async def test_complete_works_inside_a_running_event_loop() -> None:
    assert rlm(finals("42")).complete("text", "What?").answer == "42"


@pytest.mark.parametrize(("bound", "most"), [(1, 1), (3, 3)])
def test_runs_in_threads_of_their_own_ask_one_provider_no_more_at_once_than_it_allows(bound: int, most: int) -> None:
    class Provider:
        """Counts the requests it has at once, whichever loop they come from."""

        name = f"provider-{bound}"
        under_way = seen = 0
        lock = threading.Lock()

        async def complete(self, request: ModelRequest) -> ModelReply:
            with self.lock:
                self.under_way += 1
                self.seen = max(self.seen, self.under_way)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            with self.lock:
                self.under_way -= 1
            return CODE if request.purpose == "root" else ModelReply("x", Usage(1, 1))

        async def aclose(self) -> None:
            """Nothing to close."""

    async def asks(box: FakeBox) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(box.call, "llm_query", "x")
        await box.call("final", "done")

    provider, policy = Provider(), Policy().override([f"models.provider_in_flight={bound}"])
    runs = [RLM(provider, policy=policy, open_box=FakeBoxes([[asks]]).open) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda run: run.complete("text", "What?"), runs))
    assert [result.answer for result in results] == ["done"] * 8
    assert [result.usage["calls"] for result in results] == [21] * 8
    assert provider.seen == most


@pytest.mark.anyio
async def test_runs_of_one_object_may_overlap() -> None:
    boxes = FakeBoxes([[finals("a")], [finals("a")]])
    both = RLM(FakeModel(default=CODE), policy=Policy(), open_box=boxes.open)
    results: list[Result] = []

    async def one() -> None:
        results.append(await both.acomplete("text", "What?"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert [result.answer for result in results] == ["a", "a"]
    assert results[0].run != results[1].run


@pytest.mark.anyio
async def test_a_stop_ends_a_run_with_its_partial_result() -> None:
    stop = anyio.Event()

    async def hangs(box: FakeBox) -> None:
        stop.set()
        await anyio.sleep_forever()

    result = await rlm(hangs).acomplete("text", "What?", stop=stop)
    assert (result.status, result.reason) == ("failed", "interrupted")


def test_an_interrupt_in_a_nested_loop_cancels_the_run() -> None:
    ended: list[str] = []

    def watch(envelope: Envelope) -> None:
        if isinstance(envelope.event, RunFinished):
            ended.append(envelope.event.reason)

    async def interrupted(box: FakeBox) -> None:
        raise KeyboardInterrupt

    async def notebook() -> None:
        run = RLM(FakeModel(default=CODE), policy=Policy(), on_event=watch, open_box=FakeBoxes([[interrupted]]).open)
        run.complete("text", "What?")

    with pytest.raises(KeyboardInterrupt):
        anyio.run(notebook)
    assert ended == ["interrupted"]


@pytest.mark.parametrize(
    ("context", "query", "error", "words"),
    [
        ("text", "", ConfigurationError, "query is empty"),
        ("text", "  \n", ConfigurationError, "query is empty"),
        ("text", None, ConfigurationError, "the query is a str, not NoneType"),
        ("text", 3, ConfigurationError, "the query is a str, not int"),
        ("text", "x" * 100_001, ConfigurationError, "100,001 characters"),
        (b"bytes", "What?", ContextError, "bytes"),
        ([1], "What?", ContextError, "int"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_plain_words(
    context: object, query: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        rlm().complete(context, query)  # type: ignore[arg-type]


def test_an_unknown_policy_or_model_is_refused() -> None:
    with pytest.raises(PolicyError):
        RLM(policy="no-such-policy")
    with pytest.raises(ConfigurationError, match="nosuch"):
        RLM("nosuch:model", policy=Policy()).complete("text", "What?")


def test_a_journal_that_cannot_be_made_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError):
        rlm(finals("42"), journal=tmp_path / "file").complete("text", "What?")


def test_the_journal_of_a_run_is_named_in_its_result(tmp_path: Path) -> None:
    result = rlm(finals("42"), journal=tmp_path).complete("text", "What?")
    assert result.journal == tmp_path / f"{result.run}.jsonl"
    assert result.journal.is_file()
    assert result.to_dict() == {
        "status": "answered",
        "answer": "42",
        "reason": "",
        "usage": result.usage,
        "journal": str(result.journal),
        "journal_head": result.journal_head,
        "turns": 1,
        "run": result.run,
        "value": None,
    }


def test_the_representation_of_a_result_is_short_however_long_its_answer() -> None:
    result = Result("answered", "begin" + "x" * 10_000_000 + "end", "", {"calls": 1}, None, 1)
    assert repr(result).startswith("Result(status='answered', answer='beginxxx")
    assert len(repr(result)) < 2000
    assert "answer=None" in repr(Result("failed", None, "no", {}, None, 0))


def test_a_failed_result_names_the_type_of_its_error_and_an_interrupted_one_none() -> None:
    failed = Result("failed", None, "no", {}, None, 0, ModelRequestError("no"), "r")
    assert failed.to_dict()["error"] == "ModelRequestError"
    assert Result("failed", None, "interrupted", {}, None, 0).to_dict()["error"] is None


class OwnModel:
    """A caller's own model."""

    name = "own"

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome

    async def complete(self, request: ModelRequest) -> ModelReply:
        del request
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome  # type: ignore[return-value]

    async def aclose(self) -> None:
        """Nothing is held open."""


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (ValueError("my bug"), "the model raised ValueError: my bug"),
        ({"text": "x"}, "the model returned a dict and no ModelReply"),
    ],
)
def test_a_model_of_the_caller_s_own_that_breaks_fails_the_run_with_usage_and_journal_intact(
    tmp_path: Path, outcome: object, reason: str
) -> None:
    run = RLM(OwnModel(outcome), policy=Policy(), journal=tmp_path, open_box=FakeBoxes().open)
    result = run.complete("text", "What?")
    assert (result.status, result.reason, result.usage["calls"]) == ("failed", reason, 1)
    assert type(result.error) is ModelError
    assert result.journal is not None
    last = list(orchestrator.read_journal(str(result.journal)))[-1]
    assert (last.kind, last.fields["reason"]) == ("run_finished", reason)


def test_a_sub_model_of_the_caller_s_own_that_breaks_refuses_the_call_by_a_code_alone() -> None:
    errors: list[RpcRefusal] = []
    run = RLM(
        FakeModel(default=CODE),
        OwnModel(ValueError("my secret bug")),
        Policy(),
        open_box=FakeBoxes([[asks_model(None, errors)]]).open,
    )
    assert run.complete("text", "What?").answer == "done"
    assert (errors[0].reason, "secret" in errors[0].message) == ("model_error", False)


class Unnamed:
    """All of a model but its name."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing is held open."""


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (object(), "of type object"),
        (OwnModel, "the class OwnModel"),
        (Unnamed(), "of type Unnamed"),
        (5, "of type int"),
    ],
)
def test_what_is_no_model_is_refused_at_once_with_what_one_is(model: Any, found: str) -> None:
    words = rf"is {found}: give a spec \(anthropic:NAME.*an object with a name \(a str\)"
    with pytest.raises(ConfigurationError, match=f"^model {words}"):
        RLM(model=model, policy=Policy())
    with pytest.raises(ConfigurationError, match=f"^sub_model {words}"):
        RLM(sub_model=model, policy=Policy())


def test_a_missing_key_is_a_matter_of_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match=r"set OPENAI_API_KEY.*or choose another model with --model"):
        RLM("openai:gpt", policy=Policy()).complete("text", "What?")


def test_without_a_folder_there_is_no_journal() -> None:
    assert rlm(finals("42")).complete("text", "What?").to_dict()["journal"] is None


class Opened:
    """Stands in for the opener of specs and remembers what it opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: dict[str, FakeModel] = {}
        monkeypatch.setattr(choices, "open_model", self)

    def __call__(self, spec: str) -> FakeModel:
        assert spec not in self.models
        self.models[spec] = FakeModel(default=CODE, name=spec)
        return self.models[spec]


@pytest.mark.parametrize(
    ("model", "sub_model", "settings", "specs"),
    [
        ("a:x", None, [], {"a:x"}),
        ("a:x", "b:y", [], {"a:x", "b:y"}),
        (None, None, ["models.root=c:z", "models.sub=d:w"], {"c:z", "d:w"}),
        ("a:x", None, ["models.root=c:z", "models.sub=d:w"], {"a:x", "d:w"}),
    ],
)
def test_the_caller_s_models_come_before_the_policy_s_and_all_are_closed(
    monkeypatch: pytest.MonkeyPatch, model: str | None, sub_model: str | None, settings: list[str], specs: set[str]
) -> None:
    opened = Opened(monkeypatch)
    policy = Policy().override(settings)
    result = RLM(model, sub_model, policy, open_box=FakeBoxes([[finals("42")]]).open).complete("text", "What?")
    assert result.answer == "42"
    assert set(opened.models) == specs
    assert all(its.closed for its in opened.models.values())


def test_a_model_that_is_handed_in_stays_open() -> None:
    model = FakeModel(default=CODE)
    RLM(model, policy=Policy(), open_box=FakeBoxes([[finals("42")]]).open).complete("text", "What?")
    assert not model.closed


def test_without_any_choice_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    monkeypatch.setattr(api, "default_spec", lambda: "default:model")
    RLM(policy=Policy(), open_box=FakeBoxes([[finals("42")]]).open).complete("text", "What?")
    assert set(opened.models) == {"default:model"}


def asks_model(name: str | None, errors: list[RpcRefusal]) -> CellBody:
    async def body(box: FakeBox) -> None:
        try:
            await box.call("llm_query", "q", **({} if name is None else {"model": name}))
        except RpcRefusal as refusal:
            errors.append(refusal)
        await box.call("final", "done")

    return body


@pytest.mark.parametrize(("name", "spec"), [("other", "b:other"), ("c:third", "c:third")])
def test_an_allowed_model_is_opened_by_its_name_at_the_sub_model_s_provider(
    monkeypatch: pytest.MonkeyPatch, name: str, spec: str
) -> None:
    opened = Opened(monkeypatch)
    policy = Policy().override([f'models.allowed=["{name}"]'])
    errors: list[RpcRefusal] = []
    RLM("a:x", "b:y", policy, open_box=FakeBoxes([[asks_model(name, errors)]]).open).complete("text", "What?")
    assert errors == []
    assert len(opened.models[spec].requests) == 1
    assert opened.models[spec].closed


def test_a_bare_name_beside_a_model_that_was_handed_in_is_refused() -> None:
    errors: list[RpcRefusal] = []
    policy = Policy().override(['models.allowed=["other"]'])
    result = rlm(asks_model("other", errors), policy=policy).complete("text", "What?")
    assert (result.answer, errors[0].reason) == ("done", "model_unavailable")


def test_run_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [identity[:19] for identity in ids] == sorted(identity[:19] for identity in ids)


def test_every_public_name_loads_and_is_listed() -> None:
    assert {*orchestrator._HOMES, "__version__"} == set(orchestrator.__all__)
    assert all(getattr(orchestrator, name) is not None for name in orchestrator.__all__)
    assert set(orchestrator.__all__) <= set(dir(orchestrator))
    with pytest.raises(AttributeError, match="nothing"):
        orchestrator.nothing  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize("module", ["orchestrator", "orchestrator.rlm.api"])
def test_importing_loads_no_heavy_library(module: str) -> None:
    heavy = {"anthropic", "docker", "jupyter_client", "markdown_it", "openai", "tenacity", "zmq"}
    program = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Typed answers --------------------------------------------------------------------------------------------------------


def attempts(*answers: str, told: list[RpcRefusal] | None = None) -> CellBody:
    """Return the body of a cell that hands over one answer after another, and is told why not."""

    async def body(box: FakeBox) -> None:
        for answer in answers:
            try:
                await box.call("final", answer)
            except RpcRefusal as refusal:
                if told is not None:
                    told.append(refusal)

    return body


def test_the_answer_of_a_run_with_a_schema_is_checked_as_it_is_handed_over() -> None:
    told: list[RpcRefusal] = []
    cell = attempts("many", '{"n": "3"}', '{"n": 3}', told=told)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    events: list[Envelope] = []
    model = FakeModel(default=CODE)
    runs = RLM(model, policy=Policy(), on_event=events.append, open_box=FakeBoxes([[cell]]).open)
    result = runs.complete("text", "How many?", schema)
    assert (result.status, result.answer, result.value) == ("answered", '{"n": 3}', {"n": 3})
    assert result.to_dict()["value"] == {"n": 3}
    assert [(each.reason, each.limit) for each in told] == [("wrong_form", 3), ("wrong_form", 2)]
    assert "at $.n: '3' is not of type 'integer'" in told[1].message
    refused = [each.event.reason for each in events if isinstance(each.event, Refused)]
    assert refused == ["wrong_form", "wrong_form"]
    assert [each.event.schema for each in events if isinstance(each.event, RunStarted)] == [schema]
    assert '"type": "integer"' in model.requests[0].messages[0].text


def test_wrong_forms_end_the_run_and_the_last_is_the_partial_answer() -> None:
    result = rlm(*[attempts(f"wrong {number}") for number in range(9)]).complete("text", "How many?", int)
    assert (result.status, result.reason, result.answer) == ("no_answer", "wrong_form", "wrong 3")
    assert (result.value, result.turns) == (None, 4)


def test_without_a_schema_the_same_answer_is_taken() -> None:
    """The weakened twin."""
    assert rlm(attempts("wrong 0")).complete("text", "How many?").answer == "wrong 0"


class Bridge(BaseModel):
    name: str
    opened: date


def test_the_value_of_a_model_is_one_and_prints_as_json() -> None:
    result = rlm(attempts('{"name": "Alder", "opened": "1911-05-02"}')).complete("text", "Which?", Bridge)
    assert result.value == Bridge(name="Alder", opened=date(1911, 5, 2))
    assert json.loads(json.dumps(result.to_dict()))["value"] == {"name": "Alder", "opened": "1911-05-02"}


def test_a_run_without_a_box_has_its_form_checked_too() -> None:
    model = FakeModel([ModelReply("some"), ModelReply("```json\n[1]\n```")])
    policy = Policy().override(["models.direct_below_chars=100"])
    result = RLM(model, policy=policy).complete("text", "Which?", list[int])
    assert (result.status, result.answer, result.value, result.turns) == ("answered", "[1]", [1], 2)
    wrong = RLM(FakeModel(default=ModelReply("some")), policy=policy).complete("text", "Which?", list[int])
    assert (wrong.status, wrong.answer, wrong.reason, wrong.turns) == ("no_answer", "some", "wrong_form", 4)


def test_a_bad_schema_is_told_before_anything_is_spent() -> None:
    model = FakeModel()
    with pytest.raises(ConfigurationError, match="is no JSON Schema"):
        RLM(model).complete("text", "Which?", {"type": "strin"})
    assert model.requests == []
