"""How the model server's answers look on the wire: the Messages API and chat completions, whole, streamed and broken.

Nothing here does I/O; :mod:`tests.support.model_server` does.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, Self

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
CHAT = "/v1/chat/completions"

Body = dict[str, Any]
FaultKind = Literal["status", "disconnect", "drop", "reset", "end_early", "malformed", "overloaded", "hang"]

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_FINISH_REASONS = {"max_tokens": "length", "refusal": "content_filter"}
_BYTES_PER_TOKEN = 4
_MOST_MARKS = 4


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        text: what the model says; cut at the request's ``max_tokens``, as a provider would.
        stop_reason: in the Messages API's words; None for ``end_turn``, or ``max_tokens`` when the text was cut.
        input_tokens: uncached input to bill; None for the server's own count.
        output_tokens: likewise for the output.
        usage: whether to report usage at all; some servers do not.
        delay_s: seconds before the answer.
        drip_s: seconds between two of its sixteen parts.
    """

    text: str = "ok"
    stop_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usage: bool = True
    delay_s: float = 0.0
    drip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure; made by the class methods.

    Attributes:
        kind: which.
        code: the HTTP status, where the kind is ``status``.
        headers: extra headers of that answer.
        message: what its body says.
        delay_s: seconds before it.
    """

    kind: FaultKind
    code: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    message: str = "scripted fault"
    delay_s: float = 0.0

    @classmethod
    def status(cls, code: int, *, message: str = "scripted fault", delay_s: float = 0.0, **headers: object) -> Self:
        """Answer with an HTTP error; ``retry_after=2`` becomes the header ``retry-after: 2``."""
        named = tuple((name.replace("_", "-"), str(value)) for name, value in headers.items())
        return cls("status", code, named, message, delay_s)

    @classmethod
    def disconnect(cls) -> Self:
        """Close the connection instead of answering."""
        return cls("disconnect")

    @classmethod
    def drop(cls) -> Self:
        """Send the first half of an answer, then close the connection."""
        return cls("drop")

    @classmethod
    def reset(cls) -> Self:
        """Send the first half of an answer, then have the connection reset."""
        return cls("reset")

    @classmethod
    def end_early(cls) -> Self:
        """Send half a stream and end it politely, without a stop reason."""
        return cls("end_early")

    @classmethod
    def malformed(cls) -> Self:
        """Answer with a body that is not JSON."""
        return cls("malformed")

    @classmethod
    def overloaded(cls) -> Self:
        """Send half a stream, then an ``overloaded_error`` event; a plain 529 where nothing is streamed."""
        return cls("overloaded", 529, message="Overloaded")

    @classmethod
    def hang(cls) -> Self:
        """Say nothing until the client goes away."""
        return cls("hang")


_HALF = Reply("half an answer, and then")

Outcome = Literal["billed", "unbilled", "broken", "refused", "given_up"]
Responder = Callable[[Body, int], Reply | Fault]
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request that reached the server, whatever became of it; header names are in lower case."""

    path: str
    headers: dict[str, str] = field(repr=False)
    body: Body

    @property
    def key(self) -> str:
        """The key it was sent with."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key", "")


def prompt_of(body: Body) -> str:
    """Return the text of the last message, in either dialect."""
    messages = body.get("messages") or [{}]
    return "".join(_texts(messages[-1].get("content", "")))


def system_of(body: Body) -> str:
    """Return the standing instructions, in either dialect."""
    parts = list(_texts(body.get("system", "")))
    parts += [text for m in body.get("messages", []) if m.get("role") == "system" for text in _texts(m["content"])]
    return "\n".join(part for part in parts if part)


def tokens(text: str) -> int:
    """Count tokens the way this server does."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do about one request.

    Attributes:
        data: head and body.
        keep: the connection is good for another request afterwards.
        reset: end it with a reset.
        delay_s: seconds before it; None to wait until the client goes away.
        drip_s: seconds between two parts of it.
        usage: what its tokens are billed as, in the Messages API's words; None for a refusal.
        outcome: what becomes of it if the client stays: the word for the books.
    """

    data: bytes = b""
    keep: bool = True
    reset: bool = False
    delay_s: float | None = 0.0
    drip_s: float = 0.0
    usage: dict[str, int] | None = None
    outcome: Outcome = "refused"


@dataclass(slots=True)
class PromptCache:
    """Which prefixes are cached, by the rules of the Messages API; for chat completions, where no mark is needed.

    A prefix is cached up to a mark, from ``minimum`` tokens on, for ``ttl_s`` after its last use. A request reads the
    longest cached prefix that ends at one of its marks or at most ``lookback`` blocks before it.

    Attributes:
        minimum: tokens of the shortest prefix that is cached.
        lookback: blocks.
        ttl_s: seconds.
        clock: monotonic seconds.
    """

    minimum: int = 1024
    lookback: int = 20
    ttl_s: float = 300.0
    clock: Callable[[], float] = time.monotonic
    _expires: dict[bytes, float] = field(default_factory=dict)

    def bill(self, request: Request, text: str) -> dict[str, int]:
        """Return the usage of an answer of ``text``, in the Messages API's words, and cache what is to be cached."""
        blocks = list(_blocks(request.body))
        sizes = list(accumulate((tokens(block) for _, block in blocks), initial=0))
        digests = list(_digests(str(request.body.get("model")), blocks))
        chat = request.path == CHAT
        marks = list(range(1, len(blocks) + 1)) if chat else _marks(request.body)
        marks = [mark for mark in marks if sizes[mark] >= self.minimum]
        now = self.clock()
        seen = {end for mark in marks for end in range(max(mark - self.lookback, 1), mark + 1)}
        read = max((end for end in seen if self._expires.get(digests[end], now) > now), default=0)
        for end in (read, *marks):
            self._expires[digests[end]] = now + self.ttl_s
        last = read if chat else max(marks, default=0)
        return {
            "input_tokens": sizes[-1] - sizes[last],
            "output_tokens": max(tokens(text), 1),
            "cache_creation_input_tokens": sizes[last] - sizes[read],
            "cache_read_input_tokens": sizes[read],
        }


def problem(request: Request) -> str | None:
    """Return what a provider would refuse the request for."""
    body = request.body
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    chat, messages = request.path == CHAT, body.get("messages")
    sampling = [key for key in ("temperature", "top_p", "top_k") if key in body and not chat]
    problems = {
        "".join(f"{key}: Extra inputs are not permitted" for key in sampling[:1]): bool(sampling),
        "model: Field required": not isinstance(body.get("model"), str),
        "messages: at least one message is required": not isinstance(messages, list) or not messages,
        "messages: text content blocks must be non-empty": any(
            not text for role, text in _blocks(body) if role != "system"
        ),
        "max_tokens: an integer of at least 1 is required": request.path == MESSAGES
        and (type(limit) is not int or limit < 1),
        "stream: not supported by this server": chat and bool(body.get("stream")),
        f"A maximum of {_MOST_MARKS} blocks with cache_control may be provided": len(_marks(body)) > _MOST_MARKS,
    }
    return next((problem for problem, there in problems.items() if there), None)


def count(body: Body) -> Answer:
    """Answer ``count_tokens``."""
    return _json(200, {"input_tokens": sum(tokens(text) for _, text in _blocks(body))})


def answer(request: Request, reply: Reply, cache: PromptCache, number: int) -> Answer:
    """Answer with ``reply``."""
    cut = _cut(request.body, reply)
    usage = cache.bill(request, cut.text)
    told = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
    usage |= {key: count for key, count in told.items() if count is not None}
    sent = _whole(request, cut, usage, number)
    believable = reply.usage and all(0 <= count <= 2**53 for count in usage.values())
    outcome: Outcome = "billed" if believable else "unbilled"
    return replace(sent, delay_s=reply.delay_s, drip_s=reply.drip_s, usage=usage, outcome=outcome)


def failure(request: Request, fault: Fault, cache: PromptCache, number: int) -> Answer:
    """Answer with ``fault``."""
    if fault.kind == "status" or (fault.kind == "overloaded" and not _streamed(request)):
        return _json(fault.code, _error(request, fault), fault.headers, delay_s=fault.delay_s)
    usage = cache.bill(request, _HALF.text)
    if fault.kind == "hang":
        return Answer(keep=False, delay_s=None, usage=usage, outcome="broken")
    if fault.kind == "disconnect":
        return Answer(keep=False, usage=usage, outcome="broken")
    # A completion that does not say why it stopped is whole: several servers never say.
    whole = fault.kind == "end_early" and request.path == CHAT
    return replace(_broken(request, fault, usage, number), usage=usage, outcome="billed" if whole else "broken")


def _whole(request: Request, reply: Reply, usage: dict[str, int], number: int) -> Answer:
    if request.path == CHAT:
        return _json(200, _completion(request.body, reply, usage, number))
    if request.body.get("stream"):
        return _stream(_events(request.body, reply, usage, number))
    return _json(200, _message(request.body, reply, usage, number))


def _broken(request: Request, fault: Fault, usage: dict[str, int], number: int) -> Answer:
    cut_off = fault.kind in ("drop", "reset")
    if _streamed(request):
        events = list(_events(request.body, _HALF, usage, number))[:-3]
        if fault.kind == "malformed":
            events.append(("content_block_delta", '{"type": "content_block_delta", "ind'))
        elif fault.kind == "overloaded":
            events.append(("error", json.dumps(_error(request, fault))))
        sent = _stream(iter(events))
        if not cut_off:
            return sent
        # Without its last chunk, a chunked body is known to be incomplete.
        return Answer(sent.data.removesuffix(b"0\r\n\r\n"), keep=False, reset=fault.kind == "reset")
    whole = _whole(request, _HALF, usage, number).data
    if cut_off:
        return Answer(whole[:-20], keep=False, reset=fault.kind == "reset")
    if fault.kind == "malformed":
        return _http(200, "application/json", b'{"content": [{"type": "text", "te')
    return _json(200, _without_reason(json.loads(whole.partition(b"\r\n\r\n")[2])))


def _without_reason(body: Body) -> Body:
    for part in (body, *body.get("choices", [])):
        for key in ("stop_reason", "finish_reason"):
            if key in part:
                part[key] = None
    return body


def _streamed(request: Request) -> bool:
    return request.path == MESSAGES and bool(request.body.get("stream"))


def _cut(body: Body, reply: Reply) -> Reply:
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    if type(limit) is not int or tokens(reply.text) <= limit:
        return reply if reply.stop_reason else replace(reply, stop_reason="end_turn")
    text = reply.text.encode()[: limit * _BYTES_PER_TOKEN].decode("utf-8", "ignore")
    return replace(reply, text=text, stop_reason=reply.stop_reason or "max_tokens")


def _message(body: Body, reply: Reply, usage: dict[str, int], number: int) -> Body:
    return {
        "id": f"msg_{number:06}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": reply.text}],
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
    } | ({"usage": usage} if reply.usage else {})


def _events(body: Body, reply: Reply, usage: dict[str, int], number: int) -> Iterator[tuple[str, str]]:
    start = _message(body, reply, usage | {"output_tokens": 1}, number) | {"content": [], "stop_reason": None}
    yield _event("message_start", message=start)
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield _event("ping")
    third = max(-(-len(reply.text) // 3), 1)
    for at in range(0, len(reply.text), third):
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": reply.text[at : at + third]})
    yield _event("content_block_stop", index=0)
    spent = {"usage": {"output_tokens": usage["output_tokens"]}} if reply.usage else {}
    yield _event("message_delta", delta={"stop_reason": reply.stop_reason, "stop_sequence": None}, **spent)
    yield _event("message_stop")


def _event(kind: str, **fields: object) -> tuple[str, str]:
    return kind, json.dumps({"type": kind, **fields})


def _completion(body: Body, reply: Reply, usage: dict[str, int], number: int) -> Body:
    sent = sum(usage.values()) - usage["output_tokens"]
    message = {"role": "assistant", "content": reply.text}
    reason = _FINISH_REASONS.get(reply.stop_reason or "", "stop")
    spent = {
        "prompt_tokens": sent,
        "completion_tokens": usage["output_tokens"],
        "total_tokens": sent + usage["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["cache_read_input_tokens"]},
    }
    return {
        "id": f"chatcmpl-{number:06}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
    } | ({"usage": spent} if reply.usage else {})


def _error(request: Request, fault: Fault) -> Body:
    kind = _ERROR_TYPES.get(fault.code, "api_error")
    if request.path == CHAT:
        return {"error": {"message": fault.message, "type": kind, "param": None, "code": None}}
    return {"type": "error", "error": {"type": kind, "message": fault.message}}


def _json(code: int, body: Body, headers: Headers = (), *, delay_s: float = 0.0) -> Answer:
    return _http(code, "application/json", json.dumps(body).encode(), headers, delay_s=delay_s)


def _http(code: int, kind: str, body: bytes, headers: Headers = (), *, delay_s: float = 0.0) -> Answer:
    lines = [f"HTTP/1.1 {code} -", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return Answer("\r\n".join([*lines, "", ""]).encode() + body, delay_s=delay_s)


def _stream(events: Iterator[tuple[str, str]]) -> Answer:
    head = b"HTTP/1.1 200 -\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [f"event: {kind}\ndata: {data}\n\n".encode() for kind, data in events]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Answer(head + framed + b"0\r\n\r\n")


def _blocks(body: Body) -> Iterator[tuple[str, str]]:
    yield from (("system", text) for text in _texts(body.get("system", "")) if text)
    for message in body.get("messages", []):
        yield from ((message.get("role", "?"), text) for text in _texts(message.get("content", "")))


def _texts(content: Any) -> Iterator[str]:
    for block in [content] if isinstance(content, str) else content or ():
        yield block if isinstance(block, str) else block.get("text", "")


def _marks(body: Body) -> list[int]:
    """Return after how many blocks each ``cache_control`` stands; the one of the request itself is after the last."""
    contents = [body.get("system", ""), *(message.get("content", "") for message in body.get("messages", []))]
    flat = [block for content in contents for block in ([content] if isinstance(content, str) else content) if block]
    marks = [number for number, block in enumerate(flat, 1) if isinstance(block, dict) and "cache_control" in block]
    return [*marks, len(flat)] if "cache_control" in body else marks


def _digests(model: str, blocks: list[tuple[str, str]]) -> Iterator[bytes]:
    """Yield the digest of each prefix, the empty one first."""
    digest = hashlib.sha256(model.encode())
    yield digest.digest()
    for role, text in blocks:
        digest.update(f"\0{role}\0{len(text)}\0{text}".encode("utf-8", "surrogatepass"))
        yield digest.digest()
