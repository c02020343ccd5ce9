"""The answer to a question whose context is so short that a model simply reads it, without a box."""

from __future__ import annotations

from orchestrator.errors import LimitExceededError
from orchestrator.rlm import prompt
from orchestrator.rlm.conversation import Conversation
from orchestrator.rlm.form import WRONG_FORM, AnswerCheck, unfenced
from orchestrator.rlm.result import Outcome, limit_reached


async def answer_directly(conversation: Conversation, check: AnswerCheck) -> Outcome:
    """Ask until an answer has its form, or too many had not.

    Args:
        conversation: it has its one message.
        check: of the answer.

    Raises:
        ModelError: the model did not answer.
        JournalError: what happens cannot be recorded.
    """
    recorder, scope = conversation.till.recorder, conversation.till.scope
    while True:
        try:
            reply = await conversation.ask()
        except LimitExceededError as limit:
            recorder.emit(limit_reached(limit, scope))
            return Outcome("limit", check.last or None, limit.reason)
        if reply.stop_reason != "end" or not reply.text.strip():
            return Outcome("no_answer", reply.text.strip() or None, f"the model stopped with {reply.stop_reason}")
        answer = reply.text if check.form is None else unfenced(reply.text)
        complaint = await check.complaint(answer)
        if not complaint:
            return Outcome("answered", answer, value=check.value)
        if check.exhausted:
            return Outcome("no_answer", check.last, WRONG_FORM)
        conversation.say(recorder.show(conversation.turns, prompt.wrong_form(complaint)))
