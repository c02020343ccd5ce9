"""What a root model was told and what it said: the messages of its next request.

Pure: the same texts in the same order make the same messages, live and when they are read from a journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.models.base import Message
from orchestrator.rlm import prompt
from orchestrator.text import head_and_tail

# A reply longer than any real one is not repeated to the model whole, or every later turn would pay for it again.
REPLY_CHARS = 100_000
# Of a summary, and of each message of the last turn, which stands behind it.
_SUMMARY_CHARS = 32_000
_LAST_CHARS = 20_000
# Providers refuse an empty message.
_NOTHING = "(empty reply)"


@dataclass(slots=True)
class History:
    """A conversation with a root model. It only grows, so that a provider can cache it, until it is compacted.

    Attributes:
        messages: oldest first; the roles alternate, beginning with the user's.
    """

    messages: list[Message] = field(default_factory=list)
    _question: str = ""
    _asked: int = 0

    def ask(self, question: str) -> None:
        """Begin with a question: all that must still be there when the rest is compacted."""
        self._question = question
        self.say(question)
        self._asked = len(self.messages)

    def say(self, text: str) -> None:
        """Add to what the model is told next."""
        if self.messages and self.messages[-1].role == "user":
            text = f"{self.messages.pop().text}\n\n{text}"
        self.messages.append(Message("user", text))

    def reply(self, text: str) -> None:
        """Add what the model said."""
        self.messages.append(Message("assistant", head_and_tail(text, REPLY_CHARS) if text.strip() else _NOTHING))

    def retell(self, talk: Iterable[tuple[str, str]]) -> None:
        """Take in what a :class:`~orchestrator.trajectory.tape.Tape` has of a conversation."""
        ways = {"ask": self.ask, "say": self.say, "reply": self.reply, "compact": self.compact}
        for way, text in talk:
            ways[way](text)

    @property
    def compactable(self) -> bool:
        """Whether there is more than a question and one turn, so that compacting it makes it shorter."""
        return len(self.messages) > self._turn + 1

    @property
    def _turn(self) -> int:
        """Messages of the last turn, if the question that is being answered has one."""
        return 2 if len(self.messages) >= self._asked + 2 else 0

    def with_notice(self, notice: str) -> tuple[Message, ...]:
        """Return the messages with one more sentence to the model, which is not kept."""
        *before, last = self.messages
        return (*before, Message("user", f"{last.text}\n\n{notice}"))

    def compact(self, summary: str) -> None:
        """Put a summary in the place of all but the question and the last turn.

        Args:
            summary: of the model's own; may be empty.
        """
        last = self.messages[len(self.messages) - self._turn :]
        told = head_and_tail(summary.strip(), _SUMMARY_CHARS) or prompt.NO_SUMMARY
        text = prompt.render("compacted", question=self._question, summary=told)
        self.messages = [Message("user", text.rstrip("\n"))]
        self.messages += [Message(message.role, head_and_tail(message.text, _LAST_CHARS)) for message in last]
        self._asked = 1
