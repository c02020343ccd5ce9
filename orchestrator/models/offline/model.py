"""The offline model: both halves behind the one interface."""

from __future__ import annotations

import anyio
import anyio.to_thread

from orchestrator.models import estimate
from orchestrator.models.base import ModelReply, ModelRequest, StopReason
from orchestrator.models.offline import answer, root

HELP = """\
The model "offline" is a small deterministic program and no language model of any strength: no network, no key, no cost.
It reads plain English questions of a few kinds by their form, and all it says of a text is extracted from that text.

As root model it writes ordinary code: look, split, ask every slice, reduce, check, answer. As sub-model it answers a
question about the text in its prompt ("How many ...?", then the text after a blank line, a label such as "Text:", a
fence or a tag; documents may begin with lines "=== document: NAME ==="), in plain words or, when asked to, in JSON.

It claims these kinds of question, over any text or documents:
- counting: how often a word or a text occurs, in how many documents or lines; how many functions, classes, email
  addresses, ... there are; which documents contain something, which the most or the fewest; sizes in lines and words
  the first, second or last line, word, sentence or paragraph
- lists: the distinct email addresses, URLs, IP addresses, dates, years, numbers, imports, classes, functions, headings,
  ..., or only those that contain, start or end with something; the most common ones; the longest word, the latest date
- arithmetic: sum, mean, smallest and largest of all numbers, of the numbers after a label ("amount: 12"),
  or of a column that the first line of a table names; how many rows and columns a table has
- needles: the value of a name, where a name is defined, the line or sentence that answers a question, with its place
- anything else: the passages that share most with the question, word for word

It does not reason, judge, translate or write, and of conditions such as "but not", "without" and "except" it reads
none. It says so at once, and the run ends without an answer. Where it finds nothing it says so, as its answer.
"""

# Below this, extraction takes a few milliseconds and a thread would cost more than it saves.
_INLINE_CHARS = 20_000
_CHARS_A_TOKEN = 4
# More threads than this would only fight the event loop for the interpreter's lock.
_THREADS = 2


class OfflineModel:
    """A deterministic stand-in for a language model: forms of questions in, extracts out.

    It answers the kinds of question that :data:`HELP` lists. Token counts are estimates.

    Attributes:
        name: how journals and price tables call it.
    """

    def __init__(self, name: str = "offline") -> None:
        """Make one; it holds nothing open."""
        self.name = name
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Answer, as root or as sub-model."""
        if request.characters < _INLINE_CHARS:
            text = respond(request)
        else:
            text = await anyio.to_thread.run_sync(respond, request, limiter=self._threads)
        stop_reason: StopReason = "end"
        if len(text) > request.max_tokens * _CHARS_A_TOKEN:
            text, stop_reason = text[: request.max_tokens * _CHARS_A_TOKEN], "max_tokens"
        return ModelReply(text, estimate.usage(request, text), stop_reason)

    async def aclose(self) -> None:
        """Nothing is held open."""


def respond(request: ModelRequest) -> str:
    """Return the answer to a request; the same request always has the same answer."""
    if not request.messages:
        return answer.NOT_FOUND
    if request.purpose == "root":
        messages = root.since_last_question(request.messages)
        query = root.query_of(messages[0].text)
        if query is not None:
            return root.next_reply(messages, query)
    return answer.answer(request.messages[-1].text)
