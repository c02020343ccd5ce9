"""The server that other tests stand on."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.support.model_server import Body, Fault, ModelServer, Reply, prompt_of, system_of

ASK: Body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "12345678"}]}


def post(url: str, body: Body) -> Body:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - our own server
        answer: Body = json.load(response)
    return answer


def refusal(url: str, body: Body) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, body)
    with caught.value as error:
        return error.code, json.load(error)["error"]["message"]


def test_it_counts_tokens() -> None:
    with ModelServer() as server:
        assert post(f"{server.url}/v1/messages/count_tokens", ASK | {"system": "1234"}) == {"input_tokens": 3}


def test_it_answers_by_content_and_number() -> None:
    with ModelServer(lambda body, n: Reply(f"{n}: {prompt_of(body)}")) as server:
        texts = [post(f"{server.url}/v1/messages", ASK)["content"][0]["text"] for _ in range(2)]
    assert texts == ["1: 12345678", "2: 12345678"]
    assert [request.path for request in server.requests] == ["/v1/messages"] * 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"temperature": 0.5}, "temperature: Extra inputs are not permitted"),
        ({"max_tokens": 0}, "max_tokens: an integer of at least 1 is required"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages: text content blocks must be non-empty"),
        ({"model": None}, "model: Field required"),
    ],
)
def test_it_refuses_what_a_provider_refuses(change: Body, problem: str) -> None:
    with ModelServer() as server:
        assert refusal(f"{server.url}/v1/messages", ASK | change) == (400, problem)
        assert len(server.requests) == 1


def test_it_knows_its_endpoints_and_its_key() -> None:
    with ModelServer(key="k") as server:
        assert refusal(f"{server.url}/v1/messages", ASK)[0] == 401
    with ModelServer() as server:
        assert refusal(f"{server.url}/v2", ASK) == (404, "no such endpoint: /v2")


def test_a_responder_that_raises_fails_the_test_that_wrote_it() -> None:
    def broken(_body: Body, _n: int) -> Reply | Fault:
        raise LookupError("mistake")

    with pytest.raises(LookupError, match="mistake"), ModelServer(broken) as server:
        assert refusal(f"{server.url}/v1/messages", ASK)[0] == 400


def test_the_parts_of_a_request_are_found_in_either_dialect() -> None:
    chat: Body = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]}
    blocks: Body = {"system": [{"type": "text", "text": "s"}], "messages": [{"content": [{"text": "p"}]}]}
    assert [(system_of(body), prompt_of(body)) for body in (chat, blocks)] == [("s", "p")] * 2


def test_it_runs_by_hand_and_prints_its_url() -> None:
    command = [sys.executable, "-m", "tests.support.model_server", "--port", "0", "--fault-every", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert post(f"{url}/v1/messages", ASK | {"max_tokens": 99})["content"][0]["text"] == "echo: 12345678"
            assert refusal(f"{url}/v1/messages", ASK)[0] == 529
        finally:
            process.terminate()
