"""What the HTTP providers share, at its edges."""

from __future__ import annotations

import math
import ssl
import time
from pathlib import Path

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.errors import ModelAuthenticationError, ModelRequestError, ModelUnavailableError
from orchestrator.models import provider
from orchestrator.models.provider import PerLoop

SECRET = "sk-0123456789"  # noqa: S105 - a key that opens nothing
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "message", "x"]), inner),
)


@given(st.text(), st.text())
@example("Wed, 99 Oct 99999 07:28:00 GMT", "")
@example("1e400", "-1")
@example("", "inf")
def test_whatever_a_header_says_the_wait_is_a_number_or_none(seconds: str, milliseconds: str) -> None:
    wait = provider.retry_after({"retry-after": seconds, "retry-after-ms": milliseconds})
    assert wait is None or (math.isfinite(wait) and wait >= 0)


def test_a_date_is_a_wait_until_then() -> None:
    then = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert provider.retry_after({"retry-after": then}) == pytest.approx(100, abs=2)


@given(st.integers(400, 599), JSON)
def test_whatever_a_body_holds_the_error_is_one_line_of_ours(status: int, body: object) -> None:
    error = provider.endpoint("It", "KEY", "http://host", SECRET).refused(status, body, {})
    assert isinstance(error, (ModelAuthenticationError, ModelRequestError, ModelUnavailableError))
    assert "\n" not in str(error)
    assert len(str(error)) < 350


@given(st.text())
def test_the_key_is_taken_out_of_whatever_is_said(said: str) -> None:
    endpoint = provider.endpoint("It", "KEY", f"http://user:{SECRET}@host:8000/v1", SECRET)
    assert endpoint.where == "host:8000"
    for error in (
        endpoint.refused(400, {"error": {"message": said + SECRET}}, {}),
        endpoint.unreachable(OSError(SECRET)),
    ):
        assert SECRET not in str(error)
    assert SECRET not in repr(endpoint)


@given(st.text(alphabet=st.characters()))
def test_what_is_sent_encodes_and_differs_only_in_surrogates(text: str) -> None:
    sent = provider.sendable(text)
    sent.encode()
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert sent == text


@pytest.mark.parametrize(("value", "number"), [(0, 0), (5, 5), (-1, None), (True, None), (1.0, None), ("5", None)])
def test_only_a_count_is_a_count(value: object, number: int | None) -> None:
    assert provider.count(value) == number


def test_a_client_serves_one_loop_and_is_made_anew_for_the_next() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    clients = PerLoop(make)
    assert len(made) == 1, "what is wrong with the settings is known at once"

    async def twice() -> list[object]:
        return [clients.get(), clients.get()]

    async def take() -> object:
        return clients.take()

    assert anyio.run(twice) == [made[0], made[0]]
    assert anyio.run(twice) == [made[1], made[1]]
    assert anyio.run(take) is None, "it belongs to a loop that is gone"
    assert anyio.run(twice) == [made[2], made[2]]


def test_clients_share_what_they_trust_as_long_as_the_environment_says_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    shared = provider.trusted()
    assert provider.trusted() is shared
    assert shared.verify_mode is ssl.CERT_REQUIRED
    assert shared.check_hostname
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    other = provider.trusted()
    assert other is not shared
    assert other.verify_mode is ssl.CERT_REQUIRED
