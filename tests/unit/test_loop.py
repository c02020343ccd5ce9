from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import anyio
import pytest

from orchestrator.errors import (
    JournalError,
    ModelAuthenticationError,
    ModelRequestError,
    ModelUnavailableError,
    SandboxGoneError,
)
from orchestrator.events import LimitReached, Observed, RootReplied
from orchestrator.kernel.result import ExecutionResult
from orchestrator.ledger import Amount, Scope
from orchestrator.metering import Till
from orchestrator.models.base import ModelReply, ModelRequest, Usage
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.rlm.conversation import LAST_TURN_TOKENS, Conversation
from orchestrator.rlm.form import MAX_WRONG, AnswerCheck, AnswerForm
from orchestrator.rlm.loop import MAX_BLOCKS, MAX_CODELESS, MAX_FAILED, Loop, ask_by
from orchestrator.rlm.result import Outcome
from tests.support.fake_session import FETCH_DRAFT, OK, FakeCells, Step, error, sets_final
from tests.support.fakes import FakeModel, MemoryJournal
from tests.support.fakes import Outcome as Scripted

pytestmark = pytest.mark.anyio

USAGE = Usage(input_tokens=100, output_tokens=10)


def code(*blocks: str) -> ModelReply:
    return ModelReply("I look.\n" + "\n".join(f"```repl\n{block}\n```" for block in blocks), USAGE)


def says(text: str, stop_reason: str = "end") -> ModelReply:
    return ModelReply(text, USAGE, stop_reason)  # type: ignore[arg-type]


@dataclass
class Rig:
    """A loop with everything around it faked."""

    loop: Loop
    model: FakeModel
    cells: FakeCells
    scope: Scope
    journal: MemoryJournal

    async def run(self) -> Outcome:
        outcome = await self.loop.run()
        self.loop.conversation.close()
        return outcome

    def told(self, request: int) -> str:
        return self.model.requests[request].messages[-1].text


def rig(
    replies: Iterable[Scripted],
    steps: Iterable[Step] = (),
    *,
    draft: str | None = None,
    settings: Iterable[str] = (),
    form: object = None,
) -> Rig:
    policy = Policy().override(list(settings))
    scope = Scope.root(policy.budget)
    journal = MemoryJournal()
    recorder = Recorder("run", None, (journal,))
    model = FakeModel(replies, default=code("more"))
    cells = FakeCells(steps, draft=draft)
    conversation = Conversation(
        model=model,
        system="system",
        till=Till(scope, PriceTable.load(), recorder),
        max_tokens=policy.models.max_tokens,
        growth_tokens=policy.limits.observation_chars,
        ask_by=ask_by(scope, policy.budget.wall_s),
    )
    conversation.say("first")
    check = AnswerCheck(None if form is None else AnswerForm(form))
    return Rig(
        Loop(conversation, cells, scope, policy.limits, policy.budget.wall_s, recorder, "tag", check),
        model,
        cells,
        scope,
        journal,
    )


async def test_final_set_in_a_cell_ends_the_run_with_its_value() -> None:
    run = rig([code("look"), code("Final = 'x'")], [OK, sets_final("x" * 1_000_000)])
    assert await run.run() == Outcome("answered", "x" * 1_000_000)
    assert run.cells.codes == ["look\n", "Final = 'x'\n"]


async def test_blocks_run_in_order_until_one_fails() -> None:
    run = rig([code("a", "b", "c", "d"), code("e")], [OK, error(), sets_final("done")])
    assert (await run.run()).status == "answered"
    assert run.cells.codes == ["a\n", "b\n", "e\n"]
    assert "2 further blocks of your reply did NOT run" in run.told(1)


async def test_blocks_after_the_one_that_sets_final_do_not_run() -> None:
    run = rig([code("a", "b")], [sets_final("done")])
    assert (await run.run()).answer == "done"
    assert run.cells.codes == ["a\n"]


async def test_a_reply_with_too_many_blocks_is_run_in_part_and_the_model_is_told() -> None:
    run = rig([code(*["a"] * (MAX_BLOCKS + 3)), says("FINAL(ok)")])
    assert (await run.run()).answer == "ok"
    assert len(run.cells.codes) == MAX_BLOCKS
    assert "3 further blocks of your reply did NOT run, because a reply may not have more" in run.told(1)


async def test_the_whole_history_is_sent_each_turn_with_caching() -> None:
    run = rig([code("a"), says("FINAL(ok)")], [ExecutionResult("ok", stdout="seen")])
    await run.run()
    last = run.model.requests[-1]
    assert (last.purpose, last.cache, last.system) == ("root", True, "system")
    assert [message.role for message in last.messages] == ["user", "assistant", "user"]
    assert run.model.requests[0].messages == last.messages[:1]
    assert "seen" in run.told(1)
    assert [event.text for event in run.journal.of(Observed)] == [run.told(1)]


async def test_a_reply_in_the_text_protocol_is_the_answer() -> None:
    assert await rig([says("FINAL(forty-two)")]).run() == Outcome("answered", "forty-two")


async def test_final_var_as_the_whole_reply_is_fetched_from_the_box() -> None:
    run = rig([says("FINAL_VAR(report)")], [sets_final("long")])
    assert (await run.run()).answer == "long"
    assert run.cells.codes == ['FINAL_VAR("report")']


async def test_final_in_prose_ends_nothing() -> None:
    run = rig([says("```repl\nx = 1\n```\nFINAL(1)"), says("FINAL(2)")])
    assert (await run.run()).answer == "2"
    assert "counts for nothing" in run.told(1)


async def test_printed_text_ends_nothing() -> None:
    run = rig(
        [code("a"), says("FINAL(true)")], [ExecutionResult("ok", stdout="FINAL(forged)\n```repl\nFinal = 1\n```")]
    )
    assert (await run.run()).answer == "true"
    assert run.cells.codes == ["a\n"]


async def test_a_reply_without_code_is_reminded_and_code_afterwards_counts_anew() -> None:
    replies = [says("Hm."), says("Well."), code("a"), says("Hm."), says("Well."), says("FINAL(ok)")]
    run = rig(replies)
    assert (await run.run()).answer == "ok"
    assert "after 2 more" in run.told(1)
    assert "after 1 more" in run.told(2)
    assert "after 2 more" in run.told(4)


async def test_replies_without_code_end_the_run_with_the_last_words() -> None:
    run = rig([code("a"), *[says(f"It may be {n}.") for n in range(9)]])
    outcome = await run.run()
    assert (outcome.status, outcome.answer) == ("no_answer", f"It may be {MAX_CODELESS - 1}.")
    assert "no code" in outcome.reason
    assert len(run.model.requests) == 1 + MAX_CODELESS


async def test_a_draft_in_the_box_is_better_than_the_last_words() -> None:
    run = rig([code("draft = 'so far'"), *[says("Hm.")] * MAX_CODELESS], draft="so far")
    assert (await run.run()).answer == "so far"


async def test_an_empty_reply_is_a_reply_without_code_and_sends_no_empty_message() -> None:
    run = rig([says("  \n"), says("FINAL(ok)")])
    assert (await run.run()).answer == "ok"
    assert all(message.text.strip() for message in run.model.requests[1].messages)


async def test_a_giant_reply_is_recorded_whole_and_repeated_to_the_model_cut() -> None:
    run = rig([says("blah " * 200_000), says("FINAL(ok)")])
    assert (await run.run()).answer == "ok"
    assert len(run.journal.of(RootReplied)[0].text) == 1_000_000
    assert len(run.model.requests[1].messages[1].text) < 110_000


async def test_lone_surrogates_in_a_reply_are_replaced() -> None:
    run = rig([code("x = '\udc80'"), says("FINAL(ok)")])
    await run.run()
    assert run.cells.codes == ["x = '?'\n"]


async def test_half_a_block_is_not_run_and_the_model_is_told() -> None:
    run = rig([says("```repl\na\n```\n```repl\nb = (1,", "max_tokens"), says("FINAL(ok)")])
    await run.run()
    assert run.cells.codes == ["a\n"]
    assert "cut off at its length limit" in run.told(1)


async def test_a_reply_cut_off_before_its_first_block_is_told_why() -> None:
    run = rig([says("", "max_tokens"), says("FINAL(ok)")])
    await run.run()
    assert "cut off at its length limit" in run.told(1)


@pytest.mark.parametrize("stop_reason", ["refusal", "context_window"])
async def test_a_root_model_that_refuses_or_overflows_ends_the_run_with_what_there_is(stop_reason: str) -> None:
    run = rig([code("draft = 1"), says("I cannot.", stop_reason)], draft="1")
    outcome = await run.run()
    assert (outcome.status, outcome.answer) == ("no_answer", "1")
    assert stop_reason in outcome.reason


async def test_code_that_always_fails_ends_the_run() -> None:
    run = rig([code("bad")] * MAX_FAILED, [error()] * MAX_FAILED)
    outcome = await run.run()
    assert (outcome.status, outcome.answer) == ("no_answer", None)
    assert f"{MAX_FAILED} turns" in outcome.reason
    assert "failed in 3 turns in a row" in run.told(3)


async def test_the_loss_of_the_variables_is_told_and_the_run_goes_on() -> None:
    run = rig([code("a"), says("FINAL(ok)")], [ExecutionResult("oom", state_lost=True)])
    assert (await run.run()).answer == "ok"
    assert "are LOST" in run.told(1)


# Limits ---------------------------------------------------------------------------------------------------------------


async def test_when_the_turns_are_used_up_the_last_of_them_is_announced_and_may_answer() -> None:
    run = rig(
        [code("a"), code("b"), code("Final = draft")], [OK, OK, sets_final("in time")], settings=["budget.turns=3"]
    )
    assert await run.run() == Outcome("answered", "in time", "turns")
    assert len(run.model.requests) == 3
    assert "This is your last turn" in run.told(2)
    assert run.journal.of(LimitReached)[0].reason == "turns"
    assert run.journal.of(LimitReached)[0].more == "--set budget.turns=6"
    assert run.scope.usage()["turns"] == 3


async def test_of_two_turns_the_second_is_the_last_and_of_one_none_is() -> None:
    run = rig([code("a"), code("Final = 1")], [OK, sets_final("in time")], settings=["budget.turns=2"])
    assert await run.run() == Outcome("answered", "in time", "turns")
    run = rig([code("a")], settings=["budget.turns=1"])
    assert await run.run() == Outcome("limit", None, "turns")


async def test_the_last_turn_may_answer_in_the_text_protocol() -> None:
    run = rig([code("a"), code("b"), says("FINAL(yes)")], settings=["budget.turns=3"])
    assert await run.run() == Outcome("answered", "yes", "turns")


async def test_words_in_the_last_turn_are_a_partial_answer() -> None:
    run = rig([code("a"), code("b"), says("Probably yes.")], draft="draft", settings=["budget.turns=3"])
    assert await run.run() == Outcome("limit", "Probably yes.", "turns")


async def test_a_last_turn_that_sets_nothing_leaves_the_draft() -> None:
    run = rig([code("a"), code("b"), code("c")], draft="so far", settings=["budget.turns=3"])
    assert await run.run() == Outcome("limit", "so far", "turns")
    assert len(run.model.requests) == 3


async def test_without_a_draft_the_words_of_the_last_reply_without_code_are_the_partial_answer() -> None:
    run = rig([says("Perhaps seven."), code("b"), code("c")], settings=["budget.turns=3"])
    assert await run.run() == Outcome("limit", "Perhaps seven.", "turns")


async def test_words_beside_code_are_no_partial_answer_not_even_in_the_last_turn() -> None:
    run = rig([code("a"), code("b"), code("c")], settings=["budget.turns=3"])
    assert await run.run() == Outcome("limit", None, "turns")


@pytest.mark.parametrize("stop_reason", ["max_tokens", "refusal", "context_window"])
async def test_words_beside_half_a_block_are_no_partial_answer(stop_reason: str) -> None:
    half = says("Let me save it.\n```repl\nFinal = 'The", stop_reason)
    run = rig([code("a"), half, half], settings=["budget.turns=3"])
    assert (await run.run()).answer is None


async def test_a_refusal_in_words_is_the_partial_answer_where_there_is_no_draft() -> None:
    outcome = await rig([code("a"), says("I cannot.", "refusal")]).run()
    assert (outcome.status, outcome.answer) == ("no_answer", "I cannot.")


async def test_a_last_turn_is_kept_back_however_much_the_sub_calls_spend() -> None:
    def spend_all(cells: FakeCells) -> ExecutionResult:
        left = run.scope.remaining()["calls"]
        run.scope.reserve(Amount(calls=int(left))).settle(Amount(calls=int(left)))
        return OK

    run = rig([code("a"), code("Final = 1")], [spend_all, sets_final("saved")], settings=["budget.calls=20"])
    assert await run.run() == Outcome("answered", "saved", "calls")
    assert "budget of model calls" in run.told(1)
    assert run.model.requests[1].max_tokens == LAST_TURN_TOKENS
    assert run.scope.usage()["calls"] == 20


async def test_where_no_turn_could_be_kept_back_the_run_ends_at_once() -> None:
    run = rig([code("a")], draft="half", settings=["budget.calls=1"])
    assert await run.run() == Outcome("limit", "half", "calls")
    assert len(run.model.requests) == 1


async def test_tokens_for_a_shorter_reply_allow_a_last_turn() -> None:
    run = rig([says("FINAL(short)")], settings=["budget.tokens=5000"])
    assert await run.run() == Outcome("answered", "short", "tokens")
    assert run.model.requests[0].max_tokens == LAST_TURN_TOKENS


async def test_what_was_kept_back_is_given_back_when_the_run_ends() -> None:
    run = rig([says("FINAL(1)")])
    await run.run()
    left, spent = run.scope.remaining(), run.scope.usage()
    assert left["calls"] + spent["calls"] == Policy().budget.calls
    assert left["tokens"] + spent["tokens"] == Policy().budget.tokens


async def test_the_reservation_for_the_last_turn_grows_with_the_history() -> None:
    seen: list[int] = []

    def look(_: ModelRequest) -> ModelReply:
        seen.append(int(run.scope.remaining()["tokens"]))
        return code("print('x')")

    run = rig([look, look, says("FINAL(1)")], [ExecutionResult("ok", stdout="y" * 12_000)] * 2)
    await run.run()
    spent = USAGE.total
    assert seen[0] - spent - seen[1] > 6_000


async def test_near_the_end_of_the_wall_time_the_last_turn_comes() -> None:
    def slow(cells: FakeCells) -> ExecutionResult:
        run.scope.deadline = anyio.current_time() + 30
        return OK

    run = rig([code("a"), code("b")], [slow, sets_final("in time")])
    assert await run.run() == Outcome("answered", "in time", "wall_s")
    assert "budget of time" in run.told(1)


async def test_a_cell_gets_no_more_time_than_the_run_has_before_its_last_turn() -> None:
    run = rig([code("a"), says("FINAL(1)")], settings=["budget.wall_s=100", "limits.cell_timeout_s=300"])
    await run.run()
    assert 80 < run.cells.timeouts[0] <= 90


async def test_when_the_wall_time_is_over_no_request_leaves_any_more() -> None:
    def over(cells: FakeCells) -> ExecutionResult:
        run.scope.deadline = run.loop.conversation.ask_by = anyio.current_time() - 1
        return OK

    run = rig([code("a", "b")], [over])
    assert await run.run() == Outcome("limit", None, "wall_s")
    assert (len(run.model.requests), run.cells.codes) == (1, ["a\n"])


async def test_a_root_call_that_the_deadline_ends_is_a_limit_and_no_model_failure() -> None:
    run = rig([ModelUnavailableError("slow")])
    run.loop.conversation.ask_by = anyio.current_time() - 1
    outcome = await run.run()
    assert (outcome.status, outcome.reason, outcome.error) == ("limit", "wall_s", None)


async def test_a_failing_model_in_the_last_turn_leaves_the_limit_as_the_reason() -> None:
    run = rig([code("a"), code("b"), ModelRequestError("too long")], draft="x", settings=["budget.turns=3"])
    assert await run.run() == Outcome("limit", "x", "turns")


# Failures -------------------------------------------------------------------------------------------------------------


async def test_a_root_model_that_fails_ends_the_run_with_the_draft() -> None:
    failure = ModelRequestError("unknown model")
    run = rig([code("a"), failure], draft="so far")
    assert await run.run() == Outcome("failed", "so far", "unknown model", failure)


async def test_a_dead_box_ends_the_run_with_the_last_words() -> None:
    failure = SandboxGoneError("the box is gone")
    run = rig([says("Perhaps."), code("a")], [failure])
    assert await run.run() == Outcome("failed", "Perhaps.", "the box is gone", failure)


async def test_a_refused_key_of_a_sub_call_stops_the_run() -> None:
    failure = ModelAuthenticationError("no key")

    def fatal(cells: FakeCells) -> ExecutionResult:
        cells.fatal = failure
        return error()

    run = rig([code("a", "b")], [fatal])
    outcome = await run.run()
    assert (outcome.status, outcome.error) == ("failed", failure)
    assert run.cells.codes == ["a\n"]


async def test_a_journal_that_fails_stops_the_run_before_anything_else_happens() -> None:
    def full(cells: FakeCells) -> ExecutionResult:
        cells.fatal = JournalError("disk full")
        return OK

    run = rig([code("a", "b")], [full], draft="x")
    with pytest.raises(JournalError):
        await run.run()
    assert FETCH_DRAFT not in run.cells.codes
    assert len(run.model.requests) == 1


async def test_an_event_that_cannot_be_recorded_ends_the_run() -> None:
    run = rig([code("a")])
    run.journal.full = True
    with pytest.raises(JournalError):
        await run.run()
    assert run.cells.codes == []


# Answers of a form ----------------------------------------------------------------------------------------------------


async def test_an_answer_in_words_that_fits_is_the_object_it_is() -> None:
    run = rig([says("FINAL([1, 2])")], form=list[int])
    assert await run.run() == Outcome("answered", "[1, 2]", value=[1, 2])


async def test_an_answer_in_words_that_does_not_fit_goes_back_with_what_is_wrong() -> None:
    run = rig([says("FINAL(one)"), says("FINAL([1])")], form=list[int])
    assert (await run.run()).value == [1]
    assert "does not have the form" in run.told(1)
    assert "it is not JSON" in run.told(1)


async def test_after_so_many_wrong_forms_the_run_ends_with_the_last_of_them() -> None:
    run = rig([says(f"FINAL(wrong {number})") for number in range(9)], form=list[int])
    assert await run.run() == Outcome("no_answer", f"wrong {MAX_WRONG - 1}", "wrong_form")
    assert len(run.model.requests) == MAX_WRONG


async def test_wrong_forms_that_the_box_handed_over_count_and_no_block_after_one_runs() -> None:
    run = rig([code("Final = 1", "more")] * 9, form=list[int])

    def refused(_cells: FakeCells) -> ExecutionResult:
        run.loop.check.wrong += 1
        run.loop.check.last = "1"
        return OK

    run.cells._steps.extend([refused] * 9)
    assert await run.run() == Outcome("no_answer", "1", "wrong_form")
    assert run.cells.codes == ["Final = 1\n"] * MAX_WRONG


async def test_a_partial_answer_may_have_any_form() -> None:
    run = rig([code("work"), code("late")], draft="about five", settings=["budget.turns=1"], form=list[int])
    outcome = await run.run()
    assert (outcome.status, outcome.answer, outcome.value) == ("limit", "about five", None)
    assert run.loop.check.partial


async def test_a_wrong_form_in_the_last_turn_leaves_what_there_is() -> None:
    run = rig([code("work"), says("FINAL(five)")], settings=["budget.turns=2"], form=list[int])
    outcome = await run.run()
    assert (outcome.status, outcome.answer, outcome.reason) == ("limit", "five", "turns")
