"""What model code can call, against a host that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

import pytest

from sandbox_image import guest_api, wire
from sandbox_image.calls import Connection, QueryRefused
from sandbox_image.guest_api import FailedQuery, GuestApi, as_text
from sandbox_image.wire import Kind

MAX_FRAME = 1 << 12
MAX_MESSAGE = 1 << 16
WINDOW = 4
BOUND = 10

Answer = tuple[dict[str, Any], str]
Call = tuple[dict[str, Any], str]


def refusal(reason: str, limit: float | None = None) -> Answer:
    return {"error": {"reason": reason, "limit": limit, "message": "no"}}, ""


class FakeHost:
    """Answers the calls that come over a socket, on a thread of its own.

    Attributes:
        answer: gives result or refusal, and text, for a call's head and body; None leaves it waiting.
        calls: heads and bodies of all that arrived.
        most: how many calls were ever under way at once.
    """

    def __init__(self) -> None:
        self.guest_end, self._socket = socket.socketpair()
        self.answer: Callable[[dict[str, Any], str], Answer | None] = lambda _head, body: ({"result": {}}, body)
        self.calls: list[Call] = []
        self.arrived = threading.Semaphore(0)
        self.under_way = self.most = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoder, assembler = wire.Decoder(MAX_FRAME, frozenset((Kind.RPC,))), wire.Assembler(1 << 24)
        with suppress(OSError):
            while data := self._socket.recv(1 << 16):
                for frame in decoder.feed(data):
                    message = assembler.feed(frame.payload)
                    if message is not None:
                        head, body = wire.unpack_message(message)
                        self._take(head, str(body, "utf-8"))

    def _take(self, head: dict[str, Any], body: str) -> None:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.calls.append((head, body))
        answer = self.answer(head, body)
        if answer is not None:
            self.reply(head["id"], *answer)
        self.arrived.release()

    def reply(self, identity: str, facts: dict[str, Any], text: str = "") -> None:
        with self._lock:
            self.under_way -= 1
            message = wire.pack_message({"id": identity, **facts}, text.encode())
            for fragment in wire.encode_fragments(message, MAX_FRAME - 1):
                self._socket.sendall(fragment)

    def wait(self, calls: int) -> None:
        for _ in range(calls):
            assert self.arrived.acquire(timeout=BOUND)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(BOUND)
        self._socket.close()
        # The guest's reader has the end of the line before it; its descriptor must not be gone before it has seen that.
        for thread in threading.enumerate():
            if thread.name == "rpc-reader":
                thread.join(BOUND)
        self.guest_end.close()

    def params(self, method: str) -> list[dict[str, Any]]:
        return [head["params"] for head, _ in self.calls if head["method"] == method]


@pytest.fixture
def host() -> Iterator[FakeHost]:
    host = FakeHost()
    yield host
    host.close()


@pytest.fixture
def connection(host: FakeHost) -> Connection:
    return Connection(host.guest_end, MAX_FRAME, MAX_MESSAGE, WINDOW + 1)  # one is for what is answered at once


@pytest.fixture
def names() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(connection: Connection, names: dict[str, Any]) -> GuestApi:
    return GuestApi(connection, names)


class TestCalls:
    def test_a_query_is_its_prompt_and_its_answer_a_text(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, body: ({"result": {"stop": "end"}}, body.upper())
        assert api.llm_query("héllo") == "HÉLLO"
        assert api.llm_query("x", model="small", max_tokens=5) == "X"
        assert host.params("llm_query") == [{}, {"model": "small", "max_tokens": 5}]

    def test_a_prompt_of_many_frames_and_its_answer_travel_whole(self, api: GuestApi) -> None:
        prompt = "é" * (MAX_MESSAGE // 2)
        assert api.llm_query(prompt) == prompt

    def test_no_more_text_is_under_way_than_the_host_accepts_at_once(self, host: FakeHost, api: GuestApi) -> None:
        most = 0

        def answer(_head: dict[str, Any], body: str) -> Answer:
            nonlocal most
            with host._lock:
                most = max(most, host.under_way)
            return {"result": {}}, body[:1]

        host.answer = answer
        with ThreadPoolExecutor(WINDOW) as pool:
            prompts = [str(number) * (MAX_MESSAGE // 2 + 1) for number in range(WINDOW)]
            assert list(pool.map(api.llm_query, prompts)) == [str(number) for number in range(WINDOW)]
        assert most == 1

    def test_lone_surrogates_become_question_marks(self, api: GuestApi) -> None:
        assert api.llm_query("a\ud800b") == "a?b"

    def test_a_prompt_that_is_too_large_is_refused_before_it_leaves(self, host: FakeHost, api: GuestApi) -> None:
        with pytest.raises(QueryRefused, match="at most 65,536") as caught:
            api.llm_query("x" * (MAX_MESSAGE + 1))
        assert (caught.value.reason, caught.value.limit) == ("too_large", MAX_MESSAGE)
        assert host.calls == []

    def test_a_refusal_is_raised_with_reason_and_limit(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, _body: refusal("calls", 3)
        with pytest.raises(QueryRefused, match="reason='calls', limit=3") as caught:
            api.llm_query("x")
        assert (caught.value.reason, caught.value.limit) == ("calls", 3)

    @pytest.mark.parametrize("prompt", [None, 1, b"x", ["x"]], ids=str)
    def test_a_prompt_that_is_no_text_is_a_type_error(self, host: FakeHost, api: GuestApi, prompt: Any) -> None:
        with pytest.raises(TypeError, match=type(prompt).__name__):
            api.llm_query(prompt)
        assert host.calls == []

    def test_ids_are_unique_and_unguessable(self, host: FakeHost, api: GuestApi) -> None:
        for _ in range(20):
            api.budget()
        identities = {head["id"] for head, _ in host.calls}
        assert len(identities) == 20
        assert all(len(bytes.fromhex(identity)) == 16 for identity in identities)

    def test_a_fork_cannot_call_and_is_told_so(self, host: FakeHost, api: GuestApi, connection: Connection) -> None:
        connection._pid = os.getpid() + 1
        with pytest.raises(QueryRefused, match="process of the REPL"):
            api.llm_query("x")
        assert host.calls == []

    def test_threads_take_turns_within_the_window(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, _body: None
        with ThreadPoolExecutor(WINDOW * 3) as pool:
            answers = [pool.submit(api.llm_query, str(number)) for number in range(WINDOW * 3)]
            host.wait(WINDOW)
            for done in range(WINDOW * 3):
                head, body = host.calls[done]
                host.reply(head["id"], {"result": {}}, body)
                host.wait(1 if done < WINDOW * 2 else 0)
            assert [answer.result(BOUND) for answer in answers] == [str(number) for number in range(WINDOW * 3)]
        assert host.most == WINDOW

    def test_calls_nobody_waits_for_any_more_keep_their_slots_until_they_are_answered(
        self, host: FakeHost, api: GuestApi, connection: Connection
    ) -> None:
        host.answer = lambda _head, body: None if body == "abandoned" else ({"result": {}}, body)
        for _ in range(WINDOW - 1):
            connection.submit("llm_query", {}, "abandoned", lambda _head, _body: None)
        assert api.llm_query("next") == "next"
        for head, body in list(host.calls):
            if body == "abandoned":
                host.reply(head["id"], *refusal("cell_over"))
        with ThreadPoolExecutor(WINDOW) as pool:
            assert list(pool.map(api.llm_query, "abcd")) == list("abcd")
        assert host.most <= WINDOW

    def test_an_answer_to_nobody_is_ignored_and_frees_no_slot(self, host: FakeHost, api: GuestApi) -> None:
        assert api.llm_query("x") == "x"
        for _ in range(WINDOW):
            host.reply("0" * 32, {"result": {}})
        host.under_way = host.most = 0
        host.answer = lambda _head, _body: None
        with ThreadPoolExecutor(WINDOW * 2) as pool:
            answers = [pool.submit(api.llm_query, "x") for _ in range(WINDOW * 2)]
            host.wait(1 + WINDOW)
            for done in range(WINDOW * 2):
                host.reply(host.calls[1 + done][0]["id"], {"result": {}}, "y")
                host.wait(1 if done < WINDOW else 0)
            assert {answer.result(BOUND) for answer in answers} == {"y"}
            assert host.most == WINDOW


def serve(host: FakeHost, window: int = 2, **failing: str) -> None:
    def answer(head: dict[str, Any], body: str) -> Answer:
        if head["method"] == "batch_open":
            return {"result": {"batch": "b1", "window": window}}, ""
        if body in failing:
            return refusal(failing[body])
        return {"result": {}}, body.upper()

    host.answer = answer


class TestWhoAsks:
    def test_only_the_open_cell_and_what_it_started_is_heard(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, body: ({"result": {}}, body)
        api.begin_cell()
        first = copy_context()  # as a thread or task that the first cell starts has it
        assert api.llm_query("its own") == "its own"
        assert first.run(api.llm_query, "its thread's") == "its thread's"
        api.end_cell()
        for context in (copy_context(), first, Context()):
            with pytest.raises(QueryRefused) as refused:
                context.run(api.llm_query, "between cells")
            assert refused.value.reason == "cell_over"
        api.begin_cell()
        assert api.llm_query("the next") == "the next"
        with pytest.raises(QueryRefused) as refused:
            first.run(api.llm_query, "from the first")
        assert refused.value.reason == "cell_over"
        assert [body for _, body in host.calls] == ["its own", "its thread's", "the next"]


class TestBatches:
    def test_answers_come_in_the_order_of_the_prompts_and_the_batch_is_closed(
        self, host: FakeHost, api: GuestApi
    ) -> None:
        serve(host)
        prompts = [f"p{number}" for number in range(10)]
        assert api.llm_query_batched(iter(prompts), model="small") == [prompt.upper() for prompt in prompts]
        assert host.params("batch_open") == [{"n": 10, "characters": 20, "model": "small"}]
        assert host.params("llm_query") == [{"batch": "b1", "model": "small"}] * 10
        assert host.params("batch_close") == [{"batch": "b1"}]
        assert host.most <= 2

    def test_a_failed_item_stands_in_its_place_and_loses_no_other(self, host: FakeHost, api: GuestApi) -> None:
        serve(host, b="model_unavailable")
        answers = api.llm_query_batched(["a", "b", "c"])
        assert answers == ["A", "[query failed: model_unavailable]", "C"]
        failed = answers[1]
        assert isinstance(failed, FailedQuery)
        assert failed.reason == "model_unavailable"

    def test_a_batch_that_is_refused_is_refused_whole(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, _body: refusal("calls", 3)
        with pytest.raises(QueryRefused) as caught:
            api.llm_query_batched(["a"] * 5)
        assert caught.value.limit == 3
        assert str(caught.value).startswith(f"{caught.value.message} (reason=")
        assert [head["method"] for head, _ in host.calls] == ["batch_open"]

    def test_a_host_that_knows_no_batches_is_asked_plainly_and_within_the_window(
        self, host: FakeHost, api: GuestApi
    ) -> None:
        host.answer = lambda head, body: (
            refusal("unknown_method") if head["method"] != "llm_query" else ({"result": {}}, body.upper())
        )
        prompts = [f"p{number}" for number in range(30)]
        assert api.llm_query_batched(prompts, max_tokens=9) == [prompt.upper() for prompt in prompts]
        assert host.params("llm_query") == [{"max_tokens": 9}] * 30
        assert host.params("batch_close") == []
        assert host.most <= WINDOW

    def test_no_prompts_are_no_call(self, host: FakeHost, api: GuestApi) -> None:
        assert api.llm_query_batched([]) == []
        assert host.calls == []

    def test_one_prompt_that_is_no_text_sends_none(self, host: FakeHost, api: GuestApi) -> None:
        with pytest.raises(TypeError):
            api.llm_query_batched(["a", 5])  # type: ignore[list-item]
        assert host.calls == []

    def test_an_interrupted_batch_is_closed(
        self, host: FakeHost, api: GuestApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(_reason: str, _message: str) -> FailedQuery:
            raise KeyboardInterrupt

        monkeypatch.setattr(guest_api, "FailedQuery", interrupt)
        serve(host, a="model_unavailable")
        with pytest.raises(KeyboardInterrupt):
            api.llm_query_batched(["a", "b", "c"])
        assert host.params("batch_close") == [{"batch": "b1"}]

    def test_two_batches_at_once_stay_within_the_window_together(self, host: FakeHost, api: GuestApi) -> None:
        serve(host, window=WINDOW)
        with ThreadPoolExecutor(4) as pool:
            batches = list(pool.map(api.llm_query_batched, [["a"] * 30] * 4))
        assert batches == [["A"] * 30] * 4
        assert host.most <= WINDOW


class TestChildren:
    @pytest.mark.parametrize(
        ("context", "layout", "body"),
        [
            ("text", {"kind": "text"}, "text"),
            (["é", "", "bc"], {"kind": "list", "lengths": [1, 0, 2]}, "ébc"),
            (("a", "b"), {"kind": "list", "lengths": [1, 1]}, "ab"),
            ({"x": "a", "y": "bb"}, {"kind": "dict", "names": ["x", "y"], "lengths": [1, 2]}, "abb"),
        ],
        ids=["text", "list", "tuple", "dict"],
    )
    def test_a_context_travels_with_its_layout(
        self, host: FakeHost, api: GuestApi, context: Any, layout: dict[str, Any], body: str
    ) -> None:
        assert api.names()["sub_RLM"]("Why?", context) == body
        assert host.params("rlm_query") == [{"query": "Why?", "layout": layout}]

    @pytest.mark.parametrize("context", [None, 5, [1], {"a": 1}, {1: "a"}], ids=str)
    def test_a_context_that_is_none_is_a_type_error(self, host: FakeHost, api: GuestApi, context: Any) -> None:
        with pytest.raises(TypeError):
            api.rlm_query("Why?", context)
        assert host.calls == []


class Stubborn:
    def __str__(self) -> str:
        return "stubborn"


class Broken:
    def __str__(self) -> str:
        raise ZeroDivisionError("no text")


class TestFinal:
    def test_an_unset_final_is_not_delivered(self, host: FakeHost, api: GuestApi) -> None:
        api.deliver_final()
        assert host.calls == []

    def test_a_final_that_is_not_accepted_is_complained_of_once_for_each_value(
        self, host: FakeHost, api: GuestApi, names: dict[str, Any]
    ) -> None:
        host.answer = lambda _head, _body: refusal("unavailable")
        names["Final"] = [1]
        assert api.deliver_final().startswith("Final was not accepted: QueryRefused: ")
        assert api.deliver_final() == ""
        names["Final"] = [1]
        assert "unavailable" in api.deliver_final()
        names["Final"] = Broken()
        assert [api.deliver_final(), api.deliver_final()] == [
            "Final was not accepted: ZeroDivisionError: no text\n",
            "",
        ]

    def test_a_final_that_was_refused_is_offered_again_after_the_next_cell(
        self, host: FakeHost, api: GuestApi, names: dict[str, Any]
    ) -> None:
        names["Final"] = ["too", "large"]
        host.answer = lambda _head, body: refusal("too_large") if "large" in body else ({"result": {}}, "")
        assert api.deliver_final()
        names["Final"].pop()
        assert api.deliver_final() == ""
        assert json.loads(host.calls[-1][1]) == ["too"]

    def test_a_set_final_is(self, host: FakeHost, api: GuestApi, names: dict[str, Any]) -> None:
        api.final({"a": 1})
        api.deliver_final()
        assert [(head["method"], json.loads(body)) for head, body in host.calls] == [("final", {"a": 1})]
        names["answer"] = "x"
        api.final_var("answer")
        assert names["Final"] == "x"
        with pytest.raises(NameError, match="'nothing'"):
            api.final_var("nothing")

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("x", "x"),
            (FailedQuery("calls"), "[query failed: calls]"),
            (5, "5"),
            (True, "true"),
            (0.5, "0.5"),
            (("é", 1), '["é", 1]'),
            ({"a": Stubborn}, str({"a": Stubborn})),
            (Stubborn(), "stubborn"),
            (b"x", "b'x'"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_whatever_it_is_becomes_a_text(self, value: Any, text: str) -> None:
        assert as_text(value) == text
        assert type(as_text(value)) is str

    def test_a_circle_becomes_a_text_too(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        assert as_text(circle) == "[[...]]"


class TestRoom:
    def test_texts_that_fill_the_hosts_room_wait_in_the_box_instead_of_being_refused(
        self, host: FakeHost, api: GuestApi
    ) -> None:
        host.answer = lambda _head, _body: None
        large = "x" * (MAX_MESSAGE * 2 // 5)
        with ThreadPoolExecutor(WINDOW) as pool:
            answers = [pool.submit(api.llm_query, large) for _ in range(WINDOW)]
            host.wait(2)
            for done in range(WINDOW):
                host.reply(host.calls[done][0]["id"], {"result": {}}, "y")
                host.wait(1 if done + 2 < WINDOW else 0)
            assert [answer.result(BOUND) for answer in answers] == ["y"] * WINDOW
        assert host.most == 2

    def test_the_answer_can_be_handed_over_while_every_place_for_queries_is_taken(
        self, host: FakeHost, api: GuestApi, connection: Connection, names: dict[str, Any]
    ) -> None:
        host.answer = lambda head, body: None if head["method"] == "llm_query" else ({"result": {}}, body)
        for _ in range(WINDOW * 2):
            connection.submit("llm_query", {}, "hangs", lambda _head, _body: None)
        host.wait(WINDOW)
        names["Final"] = "42"
        assert api.deliver_final() == ""
        assert host.calls[-1][1] == "42"

    def test_what_was_not_sent_when_a_cell_ends_is_never_sent(
        self, host: FakeHost, api: GuestApi, connection: Connection
    ) -> None:
        host.answer = lambda _head, body: None if body == "hangs" else ({"result": {}}, body)
        over: queue.SimpleQueue[str] = queue.SimpleQueue()
        for _ in range(WINDOW * 3):
            connection.submit("llm_query", {}, "hangs", lambda head, _body: over.put(head["error"]["reason"]))
        host.wait(WINDOW)
        api.deliver_final()
        assert [over.get(timeout=BOUND) for _ in range(WINDOW * 2)] == ["cell_over"] * (WINDOW * 2)
        api.budget()
        assert len(host.params("llm_query")) == WINDOW

    def test_parameters_longer_than_the_wire_takes_are_refused_in_the_box(self, host: FakeHost, api: GuestApi) -> None:
        with pytest.raises(QueryRefused, match="join documents") as caught:
            api.rlm_query("why", ["x"] * 50_000)
        assert caught.value.reason == "invalid_params"
        assert host.calls == []

    @pytest.mark.parametrize(
        "number",
        [float("nan"), object(), 10**30, -(10**30), 10**5000, [[[]] * 10_000]],
        ids=["nan", "an object", "large", "small", "endless", "many"],
    )
    def test_a_parameter_the_wire_does_not_carry_is_refused_in_the_box(
        self, host: FakeHost, api: GuestApi, number: Any
    ) -> None:
        for ask in (api.llm_query, lambda text, **options: api.llm_query_batched([text], **options)):
            with pytest.raises(QueryRefused) as caught:
                ask("x", max_tokens=number)
            assert caught.value.reason == "invalid_params"
        assert host.calls == []
        assert api.llm_query("next") == "next"

    def test_more_documents_than_the_wire_takes_values_are_refused_in_the_box(
        self, host: FakeHost, api: GuestApi
    ) -> None:
        with pytest.raises(QueryRefused, match="join documents") as caught:
            api.rlm_query("why", ["x"] * (wire.MAX_VALUES + 1))
        assert caught.value.reason == "invalid_params"
        assert host.calls == []


class TestAwaiting:
    def test_a_thousand_queries_are_awaited_at_once_within_the_window(self, host: FakeHost, api: GuestApi) -> None:
        llm_query = api.names()["llm_query"]
        host.answer = lambda _head, body: ({"result": {}}, body.upper())

        async def cell() -> list[str]:
            return list(await asyncio.gather(*(llm_query.aio(f"q{number}") for number in range(1000))))

        assert asyncio.run(cell()) == [f"Q{number}" for number in range(1000)]
        assert host.most <= WINDOW

    def test_a_refusal_is_raised_where_it_is_awaited(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, _body: refusal("calls", 3)
        with pytest.raises(QueryRefused) as caught:
            asyncio.run(api.names()["llm_query"].aio("x"))
        assert (caught.value.reason, caught.value.limit) == ("calls", 3)

    def test_one_that_is_given_up_disturbs_no_other(self, host: FakeHost, api: GuestApi) -> None:
        host.answer = lambda _head, body: None if body == "hangs" else ({"result": {}}, body)
        llm_query = api.names()["llm_query"]

        async def cell() -> str:
            hanging = asyncio.create_task(llm_query.aio("hangs"))
            answer = str(await llm_query.aio("next"))
            hanging.cancel()
            return answer

        assert asyncio.run(cell()) == "next"
        for head, body in host.calls:
            if body == "hangs":
                host.reply(head["id"], *refusal("cell_over"))
        assert api.llm_query("after") == "after"

    def test_every_function_that_asks_has_an_awaitable_twin(self, host: FakeHost, api: GuestApi) -> None:
        serve(host)
        names = api.names()

        async def cell() -> list[Any]:
            return [
                await names["llm_query_batched"].aio(["a", "b"]),
                await names["rlm_query"].aio("why", "c"),
                await names["rlm_query_batched"].aio("why", ["d", "e"]),
            ]

        assert asyncio.run(cell()) == [["A", "B"], "C", ["D", "E"]]


class TestPartial:
    def host_with(self, host: FakeHost, fits: int) -> None:
        def answer(head: dict[str, Any], body: str) -> Answer:
            if head["method"] == "batch_open":
                n = head["params"]["n"]
                return refusal("calls", fits) if n > fits else ({"result": {"batch": "b1", "window": 2}}, "")
            return {"result": {}}, body.upper()

        host.answer = answer

    def test_what_fits_is_asked_and_the_rest_stands_as_failed(self, host: FakeHost, api: GuestApi) -> None:
        self.host_with(host, 2)
        answers = api.llm_query_batched(["a", "b", "c", "d"], partial=True)
        assert answers == ["A", "B", "[query failed: calls]", "[query failed: calls]"]
        assert [answer.reason for answer in answers if isinstance(answer, FailedQuery)] == ["calls", "calls"]
        assert [opened["n"] for opened in host.params("batch_open")] == [4, 2]

    @pytest.mark.parametrize("partial", [False, True])
    def test_where_nothing_fits_or_nobody_asked_for_a_part_it_is_refused_whole(
        self, host: FakeHost, api: GuestApi, *, partial: bool
    ) -> None:
        self.host_with(host, 0 if partial else 2)
        with pytest.raises(QueryRefused):
            api.llm_query_batched(["a", "b", "c"], partial=partial)
        assert host.params("llm_query") == []

    def test_progress_is_told_of_every_answer(self, host: FakeHost, api: GuestApi) -> None:
        self.host_with(host, 9)
        seen: list[tuple[int, int]] = []
        api.llm_query_batched(["a", "b", "c"], progress=lambda *done: seen.append(done))
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def test_progress_that_raises_ends_the_batch_and_closes_it(self, host: FakeHost, api: GuestApi) -> None:
        self.host_with(host, 9)
        with pytest.raises(ZeroDivisionError):
            api.llm_query_batched(["a", "b", "c"], progress=lambda *_: 1 // 0)
        assert host.params("batch_close") == [{"batch": "b1"}]

    def test_ten_thousand_prompts_are_encoded_a_window_at_a_time(self, host: FakeHost, api: GuestApi) -> None:
        self.host_with(host, 10**6)
        prompts = [str(number) for number in range(10_000)]
        assert api.llm_query_batched(prompts) == prompts
        assert host.most <= 3


class TestManyChildren:
    def test_one_question_over_many_contexts_or_one_for_each(self, host: FakeHost, api: GuestApi) -> None:
        serve(host)
        assert api.rlm_query_batched("why", ["a", ["b", "c"], {"n": "d"}]) == ["A", "BC", "D"]
        assert host.params("batch_open") == [{"n": 3, "characters": 0, "method": "rlm_query"}]
        assert [params["batch"] for params in host.params("rlm_query")] == ["b1"] * 3
        api.rlm_query_batched(["why", "how"], ["a", "b"])
        assert [params["query"] for params in host.params("rlm_query")[3:]] == ["why", "how"]

    def test_a_child_that_failed_stands_in_its_place_with_what_it_said(self, host: FakeHost, api: GuestApi) -> None:
        serve(host, b="child_limit")
        answers = api.rlm_query_batched("why", ["a", "b"])
        assert answers == ["A", "[query failed: child_limit]"]
        assert isinstance(answers[1], FailedQuery)
        assert (answers[1].reason, answers[1].message) == ("child_limit", "no")

    @pytest.mark.parametrize(("queries", "contexts"), [(["a"], ["x", "y"]), ("a", ["x", 5]), ([1], ["x"])])
    def test_what_cannot_be_asked_is_told_before_anything_is_sent(
        self, host: FakeHost, api: GuestApi, queries: Any, contexts: Any
    ) -> None:
        with pytest.raises((TypeError, ValueError)):
            api.rlm_query_batched(queries, contexts)
        assert host.calls == []


def test_an_answer_of_a_wrong_form_is_told_and_not_handed_over_again(
    host: FakeHost, api: GuestApi, names: dict[str, Any]
) -> None:
    host.answer = lambda _head, _body: refusal("wrong_form", 3)
    names["Final"] = "many"
    assert "QueryRefused" in api.deliver_final()
    assert "Final" not in names
    assert api.deliver_final() == ""
    assert len(host.calls) == 1


# Answers of a form ----------------------------------------------------------------------------------------------------

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def script(host: FakeHost, *replies: str) -> None:
    """Answer the queries with ``replies`` in order, and then with the last of them."""
    left = list(replies)
    host.answer = lambda _head, _body: ({"result": {}}, left.pop(0) if len(left) > 1 else left[0])


def ask_async(api: GuestApi, **options: Any) -> Any:
    return asyncio.run(api.names()["llm_query"].aio("how many?", **options))


@pytest.mark.parametrize("ask", [lambda api, **given: api.llm_query("how many?", **given), ask_async])
class TestForms:
    @pytest.mark.parametrize("reply", ['{"n": 3}', '```json\n{"n": 3}\n```', 'Here:\n```\n{"n": 3}\n```\nDone.'])
    def test_a_reply_that_fits_is_the_object_it_is(self, host: FakeHost, api: GuestApi, ask: Any, reply: str) -> None:
        script(host, reply)
        assert ask(api, schema=NUMBER) == {"n": 3}
        (prompt,) = [body for _, body in host.calls]
        assert prompt.startswith("how many?\n")
        assert json.dumps(NUMBER) in prompt

    def test_one_that_does_not_is_asked_for_again_with_what_is_wrong(
        self, host: FakeHost, api: GuestApi, ask: Any
    ) -> None:
        script(host, "three", '{"n": "three"}', '{"n": 3}')
        assert ask(api, schema=NUMBER, max_tokens=9) == {"n": 3}
        prompts = [body for _, body in host.calls]
        assert "it is not JSON" in prompts[1]
        assert "at $.n: 'three' is not of type 'integer'" in prompts[2]
        assert host.params("llm_query") == [{"max_tokens": 9}] * 3

    @pytest.mark.parametrize("reply", ["x" * 20_000, "[" * 20_000, '{"n": NaN}', '{"n": 1, "m": 2}'])
    def test_after_three_that_do_not_it_is_refused(self, host: FakeHost, api: GuestApi, ask: Any, reply: str) -> None:
        script(host, reply)
        with pytest.raises(QueryRefused) as caught:
            ask(api, schema=NUMBER)
        assert caught.value.reason == "wrong_form"
        assert len(host.calls) == 3
        assert all(len(body) < 4000 for _, body in host.calls)

    def test_a_refusal_of_the_budget_is_passed_on(self, host: FakeHost, api: GuestApi, ask: Any) -> None:
        host.answer = lambda _head, _body: refusal("calls", 0)
        with pytest.raises(QueryRefused, match="calls"):
            ask(api, schema=NUMBER)

    @pytest.mark.parametrize(("schema", "kind"), [({"type": "strin"}, ValueError), ("object", TypeError)])
    def test_what_is_no_schema_asks_nothing(
        self, host: FakeHost, api: GuestApi, ask: Any, schema: Any, kind: type[Exception]
    ) -> None:
        with pytest.raises(kind):
            ask(api, schema=schema)
        assert host.calls == []


def batches(host: FakeHost, reply: Callable[[str], Answer]) -> None:
    """Answer batches, and each query by a function of its prompt."""

    def answer(head: dict[str, Any], body: str) -> Answer:
        if head["method"] == "batch_open":
            return {"result": {"batch": "b", "window": 2}}, ""
        return reply(body) if head["method"] == "llm_query" else ({"result": {}}, "")

    host.answer = answer


def test_a_batch_asks_again_only_what_does_not_fit_and_keeps_the_order(host: FakeHost, api: GuestApi) -> None:
    def reply(body: str) -> Answer:
        number = int(body.partition("\n")[0])
        if number == 4:
            return refusal("model_request")
        wrong = number == 2 or (number == 1 and "Your last reply" not in body)
        return {"result": {}}, "no idea" if wrong else json.dumps({"n": number})

    batches(host, reply)
    told: list[tuple[int, int]] = []
    answers = api.llm_query_batched(
        [str(number) for number in range(5)], schema=NUMBER, progress=lambda done, of: told.append((done, of))
    )
    assert [answers[0], answers[1], answers[3]] == [{"n": 0}, {"n": 1}, {"n": 3}]
    assert [answers[2].reason, answers[4].reason] == ["wrong_form", "model_request"]
    assert "no idea" not in answers[2]
    assert [params["n"] for params in host.params("batch_open")] == [5, 2, 1]
    assert told == [(number, 5) for number in range(1, 6)]


def test_a_budget_that_ends_between_the_rounds_of_a_batch_loses_only_what_was_left(
    host: FakeHost, api: GuestApi
) -> None:
    batches(host, lambda body: ({"result": {}}, '{"n": 1}' if body.startswith("a") else "no idea"))
    answer, opened = host.answer, []

    def once(head: dict[str, Any], body: str) -> Answer | None:
        if head["method"] == "batch_open":
            opened.append(head)
            if len(opened) > 1:
                return refusal("calls", 0)
        return answer(head, body)

    host.answer = once
    first, second = api.llm_query_batched(["a", "b"], schema=NUMBER)
    assert first == {"n": 1}
    assert (type(second), second.reason) == (FailedQuery, "calls")


# Functions of the host ------------------------------------------------------------------------------------------------


def test_a_function_of_the_host_is_called_like_any_other(host: FakeHost, api: GuestApi) -> None:
    host.answer = lambda _head, body: ({"result": {}}, body)
    lookup = api.tools(["lookup"])["lookup"]
    assert lookup("é", 2, most=[None]) == {"args": ["é", 2], "kwargs": {"most": [None]}}
    assert asyncio.run(lookup.aio("x")) == {"args": ["x"], "kwargs": {}}
    assert host.params("tool") == [{"name": "lookup"}] * 2
    assert lookup.__name__ == "lookup"


@pytest.mark.parametrize("argument", [object(), float("nan"), b"bytes"])
def test_what_is_no_plain_data_never_leaves(host: FakeHost, api: GuestApi, argument: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        api.tools(["lookup"])["lookup"](argument)
    assert host.calls == []


def test_its_failure_is_a_refusal(host: FakeHost, api: GuestApi) -> None:
    host.answer = lambda _head, _body: refusal("tool_failed")
    with pytest.raises(QueryRefused) as caught:
        api.tools(["lookup"])["lookup"]()
    assert caught.value.reason == "tool_failed"
