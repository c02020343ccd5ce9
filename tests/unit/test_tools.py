"""Host tools: what may be one, what reaches it, what of it reaches the box, and what it costs."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from orchestrator import RLM, ConfigurationError, Policy, ToolError
from orchestrator.context import Context
from orchestrator.errors import ResumeError
from orchestrator.events import Refused, RunStarted, ToolFailed, ToolFinished, ToolStarted
from orchestrator.models.base import ModelReply, Usage
from orchestrator.rlm import prompt
from orchestrator.tools import RESERVED, BadArgumentsError, Tool, toolbox
from orchestrator.transport.rpc import RpcHandler, RpcRefusal
from sandbox_image.guest_api import GuestApi
from tests.support.broker_bench import Bench
from tests.support.fake_session import CellBody, FakeBox, FakeBoxes
from tests.support.fakes import FakeModel, MemoryJournal

CODE = ModelReply("```repl\nstep()\n```", Usage(100, 10))
BOUND_S = 10


class Order(BaseModel):
    article: str
    pieces: Annotated[int, Field(gt=0)]


def lookup(key: str, *, most: int = 3) -> list[str]:
    """Return what is stored under a key."""
    return [key] * most


async def stock(article: str) -> dict[str, int]:
    """Return how many there are."""
    await anyio.lowlevel.checkpoint()
    return {article: 7}


def place(order: Order, by: dt.date | None = None) -> str:
    """Place an order."""
    return f"{order.pieces} of {order.article} by {by}"


def sent(*args: object, **kwargs: object) -> str:
    return json.dumps({"args": args, "kwargs": kwargs})


def bench(*functions: Callable[..., Any], **given: Any) -> Bench:
    return Bench(tools=toolbox(functions), **given)


async def call(on: Bench, name: str, *args: object, **kwargs: object) -> Any:
    return json.loads((await on.call("tool", {"name": name}, sent(*args, **kwargs))).body)


# What may be a tool ---------------------------------------------------------------------------------------------------


def untyped(key) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    return str(key)


def variadic(*keys: str) -> str:
    return "".join(keys)


def by_keyword(**keys: str) -> str:
    return "".join(keys)


def by_position(key: str, /) -> str:
    return key


def unknowable(key: threading.Lock) -> str:
    return str(key)


def unresolved(key: Missing) -> str:  # type: ignore[name-defined]  # noqa: F821
    return str(key)


def long_winded() -> None:
    """Say little."""


long_winded.__doc__ = "x" * 5000


def named(name: str) -> Callable[..., Any]:
    def function() -> None:
        """Do nothing."""

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("functions", "complaint"),
    [
        ([untyped], "tool untyped: parameter key has no type: annotate it"),
        ([variadic], "no parameter with a name of its own"),
        ([by_keyword], "no parameter with a name of its own"),
        ([by_position], "no parameter with a name of its own"),
        ([unknowable], "tool unknowable: "),
        ([unresolved], "its annotations cannot be read"),
        ([long_winded], "may have 4,000"),
        ([lookup, lookup], "two tools are called lookup"),
        ([lambda: 1], "no identifier"),
        ([named("_hidden")], "underscore"),
        ([named("class")], "no identifier"),
        ([named("lök")], "no identifier"),
        ([named("print")], "is taken in the box"),
        ([Order], "is no function"),
        ([3], "is no function"),
        ("lookup", "a list of functions"),
        (3, "a list of functions"),
        ([named(f"tool{number}") for number in range(65)], "at most 64"),
        *(([named(name)], "is taken in the box") for name in sorted(RESERVED)),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_given(functions: Any, complaint: str) -> None:
    for given_as in ("tools", "child_tools"):
        with pytest.raises(ConfigurationError) as caught:
            RLM("offline", **{given_as: functions})
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_name_of_the_box_is_reserved() -> None:
    names = GuestApi(None, {}).names()  # type: ignore[arg-type]
    assert names.keys() | {"context", "Final"} <= RESERVED


def test_the_root_model_is_told_signature_docstring_and_types() -> None:
    text = prompt.system(Policy(), levels=0, tools=toolbox([lookup, place]))
    assert "  - lookup(key: str, *, most: int = 3) -> list[str]\n    Return what is stored under a key.\n" in text
    assert '"exclusiveMinimum": 0' in text
    assert "Functions of the user" not in prompt.system(Policy(), levels=0)


# What reaches it ------------------------------------------------------------------------------------------------------

DEEP = json.loads("[" * 20 + "]" * 20)


@pytest.mark.parametrize(
    ("function", "text", "told"),
    [
        (lookup, "", "JSON"),
        (lookup, "[" * 100_000, "JSON"),
        (lookup, sent(*range(20_000)), "JSON of too many values"),
        (lookup, '{"args": ["x"], "kwargs": {"most": NaN}}', "JSON"),
        (lookup, '{"args": ["x"], "kwargs": {"most": 1e999}}', "JSON|finite|integer"),
        (lookup, '{"args": ["x"], "kwargs": {}, "self": 1}', "an object of args"),
        (lookup, '{"args": {}, "kwargs": []}', "an object of args"),
        (lookup, '["x"]', "an object of args"),
        (lookup, sent(), "missing a required argument: 'key'"),
        (lookup, sent("x", "y"), "too many positional arguments"),
        (lookup, sent("x", key="y"), "multiple values for argument 'key'"),
        (lookup, sent("x", other=1), "unexpected keyword argument 'other'"),
        (lookup, sent("x", **{"\x1b[2J" * 1000: 1}), "unexpected keyword argument"),
        (lookup, sent(3), "key: "),
        (lookup, sent(None), "key: "),
        (lookup, sent(DEEP), "key: "),
        (lookup, sent("x", most="3"), "most: "),
        (lookup, sent("x", most=True), "most: "),
        (lookup, sent("x", most=1.5), "most: "),
        (lookup, '{"args": ["\\ud800"], "kwargs": {}}', "JSON"),
        (place, sent({"article": "nail", "pieces": 0}), "order.pieces: Input should be greater than 0"),
        (place, sent({"article": "nail"}), "order.pieces: Field required"),
        (place, sent({"article": "nail", "pieces": 1}, by=7), "by: "),
    ],
)
def test_arguments_that_do_not_fit_are_told_and_never_reach_the_function(
    function: Callable[..., Any], text: str, told: str
) -> None:
    with pytest.raises(BadArgumentsError) as caught:
        Tool.of(function).arguments(text)
    message = str(caught.value)
    assert any(part in message for part in told.split("|"))
    assert len(message) < 1200
    assert message.isprintable()


def test_without_the_check_the_function_gets_what_the_box_sent() -> None:
    """The weakened twin: Python itself holds nobody to an annotation."""
    bound = json.loads(sent(3, most=True))
    assert lookup(*bound["args"], **bound["kwargs"]) == [3]  # type: ignore[comparison-overlap]


ANY_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.text() | st.builds(lambda args, kwargs: json.dumps({"args": args, "kwargs": kwargs}), ANY_JSON, ANY_JSON))
def test_whatever_is_sent_is_told_or_is_what_the_annotations_say(text: str) -> None:
    try:
        arguments = Tool.of(lookup).arguments(text)
    except BadArgumentsError:
        return
    assert type(arguments["key"]) is str
    assert type(arguments.get("most", 3)) is int
    assert arguments.keys() <= {"key", "most"}


# What comes of a call -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
class TestCalls:
    async def test_a_result_comes_back_as_json_recorded_and_paid_for(self) -> None:
        on = bench(lookup, stock, place)
        assert await call(on, "lookup", "a", most=2) == ["a", "a"]
        assert await call(on, "stock", "nail") == {"nail": 7}
        assert await call(on, "place", {"article": "nail", "pieces": 2}, by="2026-01-02") == "2 of nail by 2026-01-02"
        assert on.journal.kinds == ["tool_started", "tool_finished"] * 3
        first = on.journal.of(ToolStarted)[0]
        assert (first.call, first.cell, first.tool, first.arguments) == (1, 1, "lookup", sent("a", most=2))
        assert on.journal.of(ToolFinished)[0].result == '["a","a"]'
        usage = on.scope.usage()
        assert (usage["tool_calls"], usage["calls"]) == (3, 0)
        assert usage["bytes_in"] == sum(len(each.result) for each in on.journal.of(ToolFinished))

    async def test_the_budget_is_kept_and_a_refused_call_runs_nothing(self) -> None:
        ran = []

        def note(word: str) -> None:
            ran.append(word)

        on = bench(note, budget__tool_calls=2)
        for word in ("a", "b"):
            await call(on, "note", word)
        refusal = await on.refusal("tool", {"name": "note"}, sent("c"))
        assert (refusal.reason, refusal.limit, ran) == ("tool_calls", 0, ["a", "b"])
        assert (await call_reason(on, "note", 3)) == "invalid_arguments"

    @pytest.mark.parametrize(
        ("params", "body", "reason"),
        [
            ({"name": "other"}, sent(), "unknown_tool"),
            ({"name": "__class__"}, sent(), "unknown_tool"),
            ({}, sent(), "invalid_params"),
            ({"name": ""}, sent(), "invalid_params"),
            ({"name": ["lookup"]}, sent(), "invalid_params"),
            ({"name": "lookup", "cell": 1}, sent("x"), "invalid_params"),
            ({"name": "lookup"}, sent("x" * 65_536), "arguments_too_large"),
            ({"name": "lookup"}, sent(1), "invalid_arguments"),
        ],
    )
    async def test_hostile_calls_are_refused_and_recorded(self, params: dict[str, Any], body: str, reason: str) -> None:
        on = bench(lookup, limits__frame_kb=64)
        assert (await on.refusal("tool", params, body)).reason == reason
        assert [each.reason for each in on.journal.of(Refused)] == [reason]
        assert on.scope.usage()["tool_calls"] == 0

    async def test_of_an_error_the_box_learns_what_the_tool_says_on_purpose_and_no_more(self) -> None:
        def fails(how: Literal["secret", "said", "exit", "limit", "cannot"]) -> Any:
            if how == "secret":
                raise ValueError("provider said: /home/x sk-ant-1")
            if how == "said":
                raise ToolError("no such\narticle" + "!" * 1000)
            if how == "exit":
                raise SystemExit(3)
            if how == "limit":
                raise RpcRefusal("already_final", "/home/x")
            return threading.Lock()

        on = bench(fails)
        refusals = {
            how: await on.refusal("tool", {"name": "fails"}, sent(how))
            for how in ("secret", "said", "exit", "limit", "cannot")
        }
        assert {refusal.reason for refusal in refusals.values()} == {"tool_failed"}
        assert {refusals[how].message for how in ("secret", "exit", "limit", "cannot")} == {"the tool failed"}
        assert refusals["said"].message.startswith("no such article!!!")
        assert len(refusals["said"].message) <= 500
        details = [each.detail for each in on.journal.of(ToolFailed)]
        assert details[0] == "ValueError: provider said: /home/x sk-ant-1"

    async def test_a_result_that_is_too_large_is_refused(self) -> None:
        on = bench(lookup, limits__frame_kb=64)
        refusal = await on.refusal("tool", {"name": "lookup"}, sent("x", most=100_000))
        assert (refusal.reason, refusal.limit) == ("result_too_large", 65_536)
        assert on.journal.of(ToolFinished) == []

    async def test_an_async_tool_is_cancelled_with_its_cell_or_by_its_time(self) -> None:
        cancelled = []

        async def hang() -> None:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                cancelled.append(1)
                raise

        on = bench(hang, limits__call_timeout_s=0.05)
        refusal = await on.refusal("tool", {"name": "hang"}, sent())
        assert (refusal.reason, refusal.limit, cancelled) == ("call_timeout_s", 0.05, [1])
        with anyio.move_on_after(0.01):
            await call(on, "hang")
        assert [each.code for each in on.journal.of(ToolFailed)] == ["call_timeout_s", "cancelled"]

    async def test_a_thread_that_hangs_is_given_up_and_keeps_its_place_until_it_returns(self) -> None:
        hanging = Hanging()
        on = bench(hanging.hang, lookup, models__in_flight=2)
        try:
            for _ in range(2):
                await hanging.given_up(lambda: call(on, "hang"))
            assert [each.code for each in on.journal.of(ToolFailed)] == ["cancelled"] * 2
            with anyio.move_on_after(0.05) as waited:
                await call(on, "lookup", "x")
            assert waited.cancelled_caught  # no place is free, however many calls were given up
        finally:
            hanging.release.set()
        with anyio.fail_after(BOUND_S):
            assert await call(on, "lookup", "x", most=1) == ["x"]

    async def test_without_places_each_call_that_is_given_up_leaves_a_thread(self) -> None:
        """The weakened twin: a limiter of threads forgets those that were abandoned."""
        hanging, limiter = Hanging(), anyio.CapacityLimiter(2)

        async def weak() -> None:
            await anyio.to_thread.run_sync(hanging.hang, abandon_on_cancel=True, limiter=limiter)

        try:
            for _ in range(4):  # each waits until its thread runs: with places, the third would wait for ever
                await hanging.given_up(weak)
        finally:
            hanging.release.set()

    async def test_many_at_once_run_beside_one_another_within_the_bound(self) -> None:
        at_once, most = 0, 0

        async def count(number: int) -> int:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await anyio.lowlevel.checkpoint()
            at_once -= 1
            return number

        on = bench(count, models__in_flight=3)
        replies = await on.all_at_once(
            [lambda number=number: on.call("tool", {"name": "count"}, sent(number)) for number in range(20)]  # type: ignore[misc]
        )
        assert len(replies) == 20
        assert most == 3

    async def test_a_result_that_cannot_be_recorded_is_not_given(self) -> None:
        def fill_the_disk() -> int:
            on.journal.full = True
            return 1

        on = bench(fill_the_disk)
        assert (await on.refusal("tool", {"name": "fill_the_disk"}, sent())).reason == "run_stopped"


class Hanging:
    """A function that returns when it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._begun = threading.Semaphore(0)

        def hang() -> None:
            self._begun.release()
            self.release.wait(BOUND_S)

        self.hang = hang

    async def given_up(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Begin ``work``, and cancel it once the function runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            assert await anyio.to_thread.run_sync(lambda: self._begun.acquire(timeout=BOUND_S))
            tasks.cancel_scope.cancel()


async def call_reason(on: Bench, name: str, *args: object) -> str:
    return (await on.refusal("tool", {"name": name}, sent(*args))).reason


# Runs -----------------------------------------------------------------------------------------------------------------


class ToolBoxes(FakeBoxes):
    """Fake boxes that are told the names of tools."""

    @asynccontextmanager
    async def open(
        self, policy: Policy, context: Context, rpc: RpcHandler, *, tools: Sequence[str] = ()
    ) -> AsyncIterator[FakeBox]:
        TOLD.append(tuple(tools))
        async with super().open(policy, context, rpc) as box:
            yield box


TOLD: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    TOLD.clear()


def uses(name: str, *args: object) -> CellBody:
    async def body(box: FakeBox) -> None:
        try:
            answer = await box.call("tool", sent(*args), name=name)
        except RpcRefusal as refusal:
            answer = refusal.reason
        await box.call("final", answer)

    return body


def test_a_run_has_its_tools_and_its_children_have_only_what_is_passed_on() -> None:
    async def asks_children(box: FakeBox) -> None:
        answers = [await box.child("lookup?", "text"), await box.child("stock?", "text")]
        await box.call("final", json.dumps(answers))

    boxes = ToolBoxes([[asks_children], [uses("lookup", "x")], [uses("stock", "nail")]])
    journal = MemoryJournal()
    model = FakeModel(default=CODE)
    runs = RLM(model, on_event=journal, open_box=boxes.open, tools=[lookup, stock], child_tools=[stock])
    result = runs.complete("text", "What?")
    assert json.loads(result.answer or "") == ["unknown_tool", '{"nail":7}']
    assert TOLD == [("lookup", "stock"), ("stock",), ("stock",)]
    assert [each.tools for each in journal.of(RunStarted)] == [("lookup", "stock"), ("stock",), ("stock",)]
    assert ["lookup(" in request.system for request in model.requests] == [True, False, False]
    assert result.usage["tool_calls"] == 1


def test_a_run_without_tools_opens_its_box_as_ever() -> None:
    boxes = FakeBoxes([[uses("lookup", "x")]])
    assert RLM(FakeModel(default=CODE), open_box=boxes.open).complete("text", "What?").answer == "unknown_tool"


def test_a_short_context_goes_into_a_box_where_there_are_tools() -> None:
    boxes = ToolBoxes([[uses("lookup", "x")]])
    policy = Policy().override(["models.direct_below_chars=100"])
    result = RLM(FakeModel(default=CODE), policy=policy, open_box=boxes.open, tools=[lookup]).complete("text", "What?")
    assert result.answer == '["x","x","x"]'


def test_a_resumed_run_calls_no_tool_again(tmp_path: Path) -> None:
    called: list[str] = []

    def buy(article: str) -> str:
        called.append(article)
        return f"bought {article}"

    async def twice(box: FakeBox) -> None:
        for article in ("nail", "screw"):
            await box.call("tool", sent(article), name="buy")

    async def once_more(box: FakeBox) -> None:
        await box.call("final", await box.call("tool", sent("bolt"), name="buy"))

    def run(cells: list[CellBody], *settings: str) -> RLM:
        policy = Policy().override(list(settings))
        boxes = ToolBoxes([cells])
        return RLM(FakeModel(default=CODE), policy=policy, journal=tmp_path, open_box=boxes.open, tools=[buy])

    first = run([twice], "budget.turns=2").complete("text", "What?")
    assert (first.status, called) == ("limit", ["nail", "screw"])
    assert first.journal is not None
    without = RLM(FakeModel(default=CODE), journal=tmp_path)
    with pytest.raises(ResumeError, match="tools that are not given now: buy;"):
        without.resume(first.journal, "text", settings=["budget.turns=9"])
    rest = run([twice, once_more]).resume(first.journal, "text", settings=["budget.turns=9"])
    assert (rest.status, rest.answer) == ("answered", '"bought bolt"')
    assert called == ["nail", "screw", "bolt"]
    assert rest.usage["tool_calls"] == 3
    numbers = [json.loads(line)["call"] for line in first.journal.read_text().splitlines() if "tool_started" in line]
    assert numbers == [1, 2, 3]


def picky(key: Annotated[str, AfterValidator(lambda key: {}[key])]) -> str:
    return key


def test_a_validator_that_breaks_refuses_the_call_and_ends_nothing() -> None:
    with pytest.raises(BadArgumentsError, match="they cannot be checked"):
        Tool.of(picky).arguments(sent("x"))
