"""How the model server's answers look on the wire: the Messages API and chat completions, whole, streamed and broken.

Nothing here does I/O; :mod:`tests.support.model_server` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, Self

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
CHAT = "/v1/chat/completions"

Body = dict[str, Any]
FaultKind = Literal["status", "disconnect", "drop", "end_early", "malformed", "overloaded", "hang"]

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
    """

    text: str = "ok"
    stop_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usage: bool = True
    delay_s: float = 0.0


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


Responder = Callable[[Body, int], Reply | Fault]
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request that reached the server, whatever became of it; header names are in lower case."""

    path: str
    headers: dict[str, str] = field(repr=False)
    body: Body


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
        delay_s: seconds before it; None to wait until the client goes away.
    """

    data: bytes = b""
    keep: bool = True
    delay_s: float | None = 0.0


@dataclass(slots=True)
class PromptCache:
    """The prefixes that clients asked to have cached; unlike a provider's, it never forgets and takes the shortest."""

    _known: set[bytes] = field(default_factory=set)

    def bill(self, body: Body, reply: Reply) -> dict[str, int]:
        """Return the usage, in the Messages API's words, and cache what the request marks."""
        blocks = list(_blocks(body))
        sizes = list(accumulate((tokens(block) for _, block in blocks), initial=0))
        digests = list(_digests(str(body.get("model")), blocks))
        marked = _marked(body)
        read = max((end for end in range(1, marked + 1) if digests[end] in self._known), default=0)
        if marked:
            self._known.add(digests[marked])
        return {
            "input_tokens": sizes[-1] - sizes[marked] if reply.input_tokens is None else reply.input_tokens,
            "output_tokens": max(tokens(reply.text), 1) if reply.output_tokens is None else reply.output_tokens,
            "cache_creation_input_tokens": sizes[marked] - sizes[read],
            "cache_read_input_tokens": sizes[read],
        }


def problem(request: Request) -> str | None:
    """Return what a provider would refuse the request for."""
    body = request.body
    for key in ("temperature", "top_p", "top_k"):
        if key in body and request.path != CHAT:
            return f"{key}: Extra inputs are not permitted"
    if not isinstance(body.get("model"), str):
        return "model: Field required"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "messages: at least one message is required"
    if any(not text for role, text in _blocks(body) if role != "system"):
        return "messages: text content blocks must be non-empty"
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    if request.path == MESSAGES and (type(limit) is not int or limit < 1):
        return "max_tokens: an integer of at least 1 is required"
    return "stream: not supported by this server" if request.path == CHAT and body.get("stream") else None


def count(body: Body) -> Answer:
    """Answer ``count_tokens``."""
    return _json(200, {"input_tokens": sum(tokens(text) for _, text in _blocks(body))})


def answer(request: Request, reply: Reply, usage: dict[str, int], number: int) -> Answer:
    """Answer with ``reply``."""
    cut = _cut(request.body, reply)
    if request.path == CHAT:
        return _json(200, _completion(request.body, cut, usage, number), delay_s=reply.delay_s)
    if request.body.get("stream"):
        return _stream(_events(request.body, cut, usage, number), delay_s=reply.delay_s)
    return _json(200, _message(request.body, cut, usage, number), delay_s=reply.delay_s)


def failure(request: Request, fault: Fault, usage: dict[str, int], number: int) -> Answer:
    """Answer with ``fault``."""
    if fault.kind == "hang":
        return Answer(keep=False, delay_s=None)
    if fault.kind == "disconnect":
        return Answer(keep=False)
    if fault.kind == "status" or (fault.kind == "overloaded" and not _streamed(request)):
        return _json(fault.code, _error(request, fault), fault.headers, delay_s=fault.delay_s)
    return _broken(request, fault, usage, number)


def _broken(request: Request, fault: Fault, usage: dict[str, int], number: int) -> Answer:
    half = Reply("half an answer, and then")
    if _streamed(request):
        events = list(_events(request.body, half, usage, number))[:-3]
        if fault.kind == "malformed":
            events.append(("content_block_delta", '{"type": "content_block_delta", "ind'))
        elif fault.kind == "overloaded":
            events.append(("error", json.dumps(_error(request, fault))))
        sent = _stream(iter(events))
        # Without its last chunk, a chunked body is known to be incomplete.
        return sent if fault.kind != "drop" else Answer(sent.data.removesuffix(b"0\r\n\r\n"), keep=False)
    whole = answer(request, half, usage, number).data
    if fault.kind == "drop":
        return Answer(whole[:-20], keep=False)
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


def _stream(events: Iterator[tuple[str, str]], *, delay_s: float = 0.0) -> Answer:
    head = b"HTTP/1.1 200 -\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [f"event: {kind}\ndata: {data}\n\n".encode() for kind, data in events]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Answer(head + framed + b"0\r\n\r\n", delay_s=delay_s)


def _blocks(body: Body) -> Iterator[tuple[str, str]]:
    yield from (("system", text) for text in _texts(body.get("system", "")) if text)
    for message in body.get("messages", []):
        yield from ((message.get("role", "?"), text) for text in _texts(message.get("content", "")))


def _texts(content: Any) -> Iterator[str]:
    for block in [content] if isinstance(content, str) else content or ():
        yield block if isinstance(block, str) else block.get("text", "")


def _marked(body: Body) -> int:
    """Return how many blocks the last ``cache_control`` covers; on the request itself, it covers them all."""
    if "cache_control" in body:
        return len(list(_blocks(body)))
    contents = [body.get("system", ""), *(message.get("content", "") for message in body.get("messages", []))]
    flat = [block for content in contents for block in ([content] if isinstance(content, str) else content) if block]
    marks = [number for number, block in enumerate(flat, 1) if isinstance(block, dict) and "cache_control" in block]
    return marks[-1] if marks else 0


def _digests(model: str, blocks: list[tuple[str, str]]) -> Iterator[bytes]:
    """Yield the digest of each prefix, the empty one first."""
    digest = hashlib.sha256(model.encode())
    yield digest.digest()
    for role, text in blocks:
        digest.update(f"\0{role}\0{len(text)}\0{text}".encode("utf-8", "surrogatepass"))
        yield digest.digest()
