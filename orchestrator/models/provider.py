"""What the HTTP providers share: how an answer that is not a reply becomes one of our errors, and whose client it is.

Both SDKs stand on the same HTTP library and fail in the same ways; the table of statuses is here, once.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from orchestrator.errors import (
    ConfigurationError,
    ModelAuthenticationError,
    ModelError,
    ModelRequestError,
    ModelUnavailableError,
)
from orchestrator.text import one_line

Client = TypeVar("Client")

_DETAIL_WIDTH = 240
_UNAUTHORIZED = 401
# 402: an account that cannot pay fails every further call too, so it must stop a run as a refused key does.
_ACCOUNT = frozenset({402, 403})
_TRANSIENT = frozenset({408, 409, 425, 429})
_SERVER_ERROR = 500
_PORTS = 65536
_MOST_TOKENS = 2**53  # of one reply; what is more is no count
# Of a reply's text: several times what the longest output of any model comes to. A stream may have no end.
MOST_CHARACTERS = 16 * 1024 * 1024


def trusted() -> ssl.SSLContext:
    """Return what servers' certificates are checked by, as the environment says; one for all clients of the process.

    To make it, the system's certificates are read, which takes 25 ms: ten times what else there is to opening a client.
    """
    return _trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _trusted(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom a client talks to, and how its failures are told.

    Attributes:
        provider: its name for people.
        key_variable: the environment variable that holds its key.
        where: host and port, never with credentials.
        secret: the key, removed from whatever the provider says before we repeat it.
    """

    provider: str
    key_variable: str
    where: str
    secret: str = field(default="", repr=False)

    def refused(self, status: int, body: object, headers: Mapping[str, str], *, instead: str = "") -> ModelError:
        """Translate a status that is not a success; ``instead`` tells what was seen where it was not an HTTP status."""
        said = self._said(body)
        what = instead or f"HTTP {status}"
        if status == _UNAUTHORIZED:
            # What a provider says about a wrong key may quote a part of it, so it is not repeated.
            return ModelAuthenticationError(f"{self.provider} refuses the key ({what}): check {self.key_variable}")
        if status in _ACCOUNT:
            return ModelAuthenticationError(
                f"{self.provider} refuses this account ({what}): check {self.key_variable} and what it may use{said}"
            )
        told = f"{self.provider} answered {what}{said}"
        transient = status in _TRANSIENT or status >= _SERVER_ERROR
        if transient and headers.get("x-should-retry") != "false":
            return ModelUnavailableError(told, retry_after_s=retry_after(headers))
        return ModelRequestError(told)

    def unreachable(self, error: BaseException) -> ModelUnavailableError:
        """Translate a connection that could not be made, timed out or broke; the last two may be billed."""
        import httpx2

        # The SDKs wrap the cause in an exception that says only "Connection error."
        cause = error.__cause__ or error
        detail = one_line(self._redact(str(cause)), _DETAIL_WIDTH)
        kind = type(cause).__name__
        return ModelUnavailableError(
            f"no whole answer from {self.provider} at {self.where} ({kind}{f': {detail}' if detail else ''})",
            may_be_billed=not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout),
        )

    def unusable(self, what: str) -> ModelUnavailableError:
        """Translate an answer that arrived and is no reply; the next one may be, and this one may be billed."""
        return ModelUnavailableError(f"{self.provider} at {self.where} {what}", may_be_billed=True)

    def _said(self, body: object) -> str:
        detail = one_line(self._redact(_message_in(body)), _DETAIL_WIDTH)
        return f": {detail}" if detail else ""

    def _redact(self, text: str) -> str:
        return text.replace(self.secret, "[key]") if self.secret else text


class PerLoop(Generic[Client]):
    """A client whose connections belong to one event loop, made anew when another loop asks.

    A synchronous caller starts a fresh loop for each run; connections kept alive from the last one would be dead.
    """

    def __init__(self, make: Callable[[], Client]) -> None:
        """Make the first client at once, so that what is wrong with its settings is known now."""
        self._make = make
        self._client: Client | None = make()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> Client:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop not in (None, loop):
            self._client = self._make()
        self._loop = loop
        return self._client

    def take(self) -> Client | None:
        """Hand over the client of the running loop, to be closed; None when there is none."""
        client, owner = self._client, self._loop
        self._client = self._loop = None
        return client if owner in (None, asyncio.get_running_loop()) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the provider asks to wait: ``retry-after-ms``, or ``retry-after`` as seconds or as a date.

    Returns:
        None when it asks for nothing, or for nothing a clock can do.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    parsed = email.utils.parsedate_tz(value)
    if parsed is None:
        return None
    try:
        return max(email.utils.mktime_tz(parsed) - time.time(), 0.0)
    except (OverflowError, ValueError):
        return None


def endpoint(provider: str, key_variable: str, base_url: str, secret: str) -> Endpoint:
    """Describe the endpoint at ``base_url``."""
    parts = urlsplit(base_url)
    return Endpoint(provider, key_variable, parts.netloc.rpartition("@")[2] or "?", secret)


def named(provider: str, url: str | None) -> str:
    """Return the provider's name, with its host where that is not the provider's own."""
    return f"{provider} at {urlsplit(url).netloc.rpartition('@')[2]}" if url else provider


def checked_url(variable: str, value: str | None) -> str | None:
    """Return the base URL set in an environment variable, or None when it is unset or empty.

    Raises:
        ConfigurationError: it is no http(s) URL.
    """
    value = (value or "").strip()
    if not value:
        return None
    import httpx2

    try:
        url = httpx2.URL(value)
        fine = url.scheme in ("http", "https") and bool(url.host) and (url.port is None or 0 < url.port < _PORTS)
    except httpx2.InvalidURL:
        fine = False
    if not fine:
        # A URL may carry a password, so only its shape is asked for.
        raise ConfigurationError(f"{variable} is not a URL: write it as http://HOST:PORT or https://HOST")
    return value


def checked_key(variable: str, value: str | None) -> str | None:
    """Return the key set in an environment variable, or None when it is unset or empty.

    Raises:
        ConfigurationError: it holds characters that no HTTP header can carry.
    """
    value = (value or "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigurationError(
            f"{variable} holds a space, a line break or a character outside ASCII: set it to the key alone"
        )
    return value


def sendable(text: str) -> str:
    """Return ``text`` with lone surrogates, which UTF-8 cannot carry, as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def count(value: Any) -> int | None:
    """Return a token count a provider reported, or None for anything that is not one."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _message_in(body: object) -> str:
    if isinstance(body, dict):
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else inner
        return message if isinstance(message, str) else ""
    return body if isinstance(body, str) else ""


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
