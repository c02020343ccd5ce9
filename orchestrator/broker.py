"""Answers the calls of one box: checks them, pays for them, asks the model, and tells the box as little as it needs.

A refusal holds a stable word, perhaps a number, and one plain sentence; never a host path, a traceback, a model's name,
a provider's message or a key. The words, and what the number is:

``calls``, ``tokens``, ``cost_usd``, ``children``, ``children_alive``, ``depth``, ``wall_s``, ``bytes_in``,
``bytes_out``, ``tool_calls``, ``journal_mb``
    that budget of the policy does not allow it: what is left; for a batch, how many prompts would fit
``overbilled``
    a provider billed more than a request can cost at worst; the run can spend no more
``call_timeout_s``, ``cell_timeout_s``
    the call took that many seconds; the cell it belongs to is about to be stopped
``unknown_method``, ``invalid_params``
    no such method; not the parameters it takes: the nearest number that would do, where it was one
``no_open_cell``, ``duplicate_id``, ``too_many_calls``
    no cell runs; a call of this cell had that id, and that one stands; more calls than one cell may make: how many
``prompt_too_large``, ``context_too_large``, ``answer_too_large``
    the bytes of UTF-8 that are allowed
``price_cap``
    the policy's most for one query to that model: US dollars
``model_not_allowed``
    the policy does not list that model
``model_unavailable``, ``model_request``, ``model_authentication``, ``model_error``
    the model did not answer (:class:`~orchestrator.errors.ModelError` and its kin)
``provider_down``
    the model's provider has failed so long that it is not asked for now: the seconds until it is
``wrong_form``
    the answer is not what the run's schema asks for: how many more attempts there are
``unknown_tool``, ``invalid_arguments``, ``arguments_too_large``
    no such tool; not the arguments it takes; the bytes of JSON that are allowed
``tool_failed``, ``result_too_large``
    the tool raised something; the bytes of JSON that its result may have
``already_final``
    the run has its answer
``child_failed``
    a child run could not be carried out
``run_stopped``
    the run is being ended by the host
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from orchestrator import broker_params as params
from orchestrator.broker_cell import RECORDED_BUDGETS, Batch, CellBooks, RefusalLog
from orchestrator.context import Context
from orchestrator.errors import (
    ConfigurationError,
    JournalError,
    LimitExceededError,
    ModelAuthenticationError,
    ModelError,
    ProviderDownError,
    RlmSandboxError,
)
from orchestrator.events import BudgetTold, FinalSet
from orchestrator.ledger import Amount, Reservation, Scope
from orchestrator.memo import Memo
from orchestrator.metering import Complete, Till
from orchestrator.models import retry
from orchestrator.models.base import Message, Model, ModelRequest
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.subcalls import Subcalls
from orchestrator.text import cut_to_bytes, size
from orchestrator.toolcalls import Toolcalls
from orchestrator.tools import Toolbox
from orchestrator.traffic import Lane
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply

ChildHandler = Callable[[str, Context, int, Reservation], Awaitable[str]]
"""Carries out a child run, ``await child(query, context, cell, held)``, and returns its answer.

``held`` holds the child itself, which :meth:`~orchestrator.ledger.Scope.child` books.

It raises RpcRefusal to refuse, and LimitExceededError, ModelError or another RlmSandboxError as they come.
"""

Accept = Callable[[str], Awaitable[None]]
"""Judges an answer; raises RpcRefusal for one that is not to be taken."""

METHODS: Final = ("llm_query", "batch_open", "batch_close", "rlm_query", "tool", "budget", "final")
"""All a box may call."""

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_MODEL_ERRORS: Final = {
    "model_authentication": "the model cannot be used",
    "model_unavailable": "the model did not answer; the same query may succeed later",
    "provider_down": "the model has not answered for some time and is not asked before the limit, in seconds, is over",
    "model_request": "the model refused this query; a shorter or different one may succeed",
}


class Broker:
    """The RPC handler of one run's box.

    Each call is answered in a task of its own, which may be cancelled at any time. All of it runs on one event loop.

    Args:
        scope: the run's share of the ledger.
        policy: the run's policy.
        sub_model: the default model of sub-calls.
        open_named: gives the model for a name of ``policy.models.allowed``, the same one each time; it stays the owner.
        prices: the price table.
        recorder: the run's events.
        limiter: of ``policy.models.in_flight``, one for the whole tree of runs.
        lane: the tree's way to the providers.
        cell_ends: gives when the open cell will be stopped, on the event loop's clock.
        child: carries out child runs; None turns every ``rlm_query`` into a plain sub-call.
        complete: how a model is asked, retries included.
        accept: judges the answer when the box hands it over; None takes any.
        tools: functions of the caller's that the box may call.
        tool_limiter: of calls of tools under way, one for the whole tree of runs.

    Attributes:
        final: the run's answer, once the box has handed it over.
        fatal: why the run must stop: the provider refuses the key, or the journal cannot be written. After that nothing
            that costs is answered.
    """

    def __init__(
        self,
        *,
        scope: Scope,
        policy: Policy,
        sub_model: Model,
        open_named: Callable[[str], Model],
        prices: PriceTable,
        recorder: Recorder,
        limiter: anyio.CapacityLimiter,
        child: ChildHandler | None,
        complete: Complete = retry.complete,
        lane: Lane | None = None,
        cell_ends: Callable[[], float] = lambda: math.inf,
        accept: Accept | None = None,
        tools: Toolbox | None = None,
        tool_limiter: anyio.CapacityLimiter | None = None,
    ) -> None:
        self.final: str | None = None
        self.fatal: RlmSandboxError | None = None
        self._scope = scope
        self._limits = policy.limits
        self._models = policy.models
        self._sub_model = sub_model
        self._open_named = open_named
        self._recorder = recorder
        self._accept = accept
        self._child = child
        self._alive = policy.budget.children_alive
        self._subcalls = Subcalls(
            Till(scope, prices, recorder, complete, lane, policy.models.request_timeout_s),
            limiter=limiter,
            check=self._check_running,
            max_bytes=policy.limits.frame_kb * _KIB,
            timeout_s=policy.limits.call_timeout_s,
            cell_ends=cell_ends,
            price_caps=policy.models.price_caps,
            memo=Memo() if policy.models.memo else None,
        )
        self._tools = Toolcalls(
            tools or {},
            scope=scope,
            recorder=recorder,
            limiter=tool_limiter or anyio.CapacityLimiter(policy.models.in_flight),
            max_bytes=policy.limits.frame_kb * _KIB,
            timeout_s=policy.limits.call_timeout_s,
            cell_ends=cell_ends,
        )
        self._books = CellBooks()
        self._refusals = RefusalLog(recorder)
        self._methods: dict[str, Callable[[RpcCall, int], Awaitable[RpcReply]]] = {
            name: getattr(self, f"_{name}") for name in METHODS
        }

    async def __call__(self, call: RpcCall) -> RpcReply:
        """Answer one call.

        Raises:
            RpcRefusal: it is refused, or failed; the cause, where there is one, stays on the host.
            GivenUpError: it has no answer, as it had none when its cell was stopped.
        """
        try:
            return await self._answer(call)
        except RpcRefusal as error:
            refusal = self._recorded(call, error)
        except LimitExceededError as error:
            message = f"the budget for {error.reason} does not allow this"
            refusal = self._recorded(call, RpcRefusal(error.reason, message, limit=error.limit))
        except ModelError as error:
            if isinstance(error, ModelAuthenticationError):
                self.fatal = self.fatal or error
            when = error.retry_after_s if isinstance(error, ProviderDownError) else None
            refusal = RpcRefusal(error.code, _MODEL_ERRORS.get(error.code, "the model failed"), limit=when)
        except JournalError as error:
            refusal = self._stop(error)
        await self._books.pace()
        try:
            raise refusal
        finally:
            # Its traceback holds this frame, and with it the call's whole text, which would stay until it is collected.
            del refusal

    def cell_ended(self, cell: int) -> None:
        """Close the books of ``cell``: its batches are released, and what still comes from it is refused.

        Raises:
            JournalError: what was left to record cannot be.
        """
        self._books.close(cell)
        self._refusals.flush()

    async def _answer(self, call: RpcCall) -> RpcReply:
        cell = self._books.admit(call)
        past = self._recorder.refusal(cell, call.method, self._books.nth(call))
        # An answer is judged anew, which costs nothing and counts what was wrong as it did then.
        if past is not None and past.reason != "wrong_form":
            raise RpcRefusal(past.reason, past.message, limit=past.limit)
        method = self._methods.get(call.method)
        if method is None:
            raise RpcRefusal("unknown_method", "there is no such method")
        if (
            call.body and call.method != "final"
        ):  # the answer is what the run is for; one is accepted, and it is bounded
            self._scope.spend(Amount(bytes_out=size(call.body)))
        return await method(call, cell)

    async def _llm_query(self, call: RpcCall, cell: int) -> RpcReply:
        query = params.sub_query(call.params, call.body, self._models, self._limits)
        self._check_running()
        if query.batch is None:
            request = self._request(query.prompt, query.max_tokens)
            return await self._subcalls.ask(self._model(query.model), request, cell)
        batch = self._books.batch(query.batch)
        if batch.model is None:
            raise params.invalid("that batch is one of child runs")
        if query.model not in (None, batch.name) or query.max_tokens not in (None, batch.max_tokens):
            raise params.invalid("model and max_tokens of a batch are set when it is opened")
        request = self._request(query.prompt, batch.max_tokens)
        held = batch.draw(self._subcalls.input_cost(batch.model, request.likely_input_tokens()))
        return await self._subcalls.ask(batch.model, request, cell, held, query.batch)

    async def _batch_open(self, call: RpcCall, _cell: int) -> RpcReply:
        plan = params.batch_plan(call.params, call.body, self._models, self._limits)
        self._check_running()
        if plan.children and self._has_children:
            return self._children_open(plan.n)
        model = self._model(plan.model)
        frame = self._request("", plan.max_tokens)
        # A character has at least one byte; a prompt that has more reserves the difference when it leaves.
        input_tokens = frame.likely_input_tokens() + -(-plan.characters // (2 * plan.n))
        held = self._subcalls.reserve_batch(model, plan.n, input_tokens, frame.max_tokens)
        identity = self._books.add(Batch(model, plan.model, frame.max_tokens, plan.n, held))
        return RpcReply({"batch": identity, "window": min(plan.n, self._models.in_flight)})

    def _children_open(self, n: int) -> RpcReply:
        try:
            held = self._scope.reserve(Amount(children=n))
        except LimitExceededError as error:
            raise LimitExceededError(error.reason, self._scope.fits(Amount(children=1), n)) from error
        identity = self._books.add(Batch(None, None, 0, n, held))
        return RpcReply({"batch": identity, "window": max(min(n, self._alive), 1)})

    async def _batch_close(self, call: RpcCall, _cell: int) -> RpcReply:
        self._books.remove(params.batch_id(call.params, call.body))
        return RpcReply()

    async def _rlm_query(self, call: RpcCall, cell: int) -> RpcReply:
        query = params.child_query(call.params, call.body, self._limits)
        self._check_running()
        batch = None if query.batch is None else self._books.batch(query.batch)
        if batch is not None and (batch.model is None) is not self._has_children:
            raise params.invalid("that batch is not one of child runs")
        if self._child is not None and self._has_children:
            return RpcReply(body=await self._run_child(self._child, query, cell, batch))
        # As the paper has it: where no further run may start, the question goes to a model as it is.
        request = self._request(params.plain_prompt(query, self._limits), None)
        held = None
        if batch is not None:
            held = batch.draw(self._subcalls.input_cost(self._sub_model, request.likely_input_tokens()))
        return await self._subcalls.ask(self._sub_model, request, cell, held, query.batch)

    @property
    def _has_children(self) -> bool:
        return self._child is not None and self._scope.levels > 0

    async def _run_child(self, child: ChildHandler, query: params.ChildQuery, cell: int, batch: Batch | None) -> str:
        itself = Amount(children=1)
        most = min(self._limits.answer_mb * _MIB, max(int(self._scope.remaining()["bytes_in"]), 1))
        with (
            self._scope.reserve(itself) if batch is None else batch.draw(itself) as held,
            self._scope.reserve(Amount(bytes_in=most)) as room,
        ):
            try:
                answer = await child(query.query, query.context, cell, held)
            except (LimitExceededError, ModelError, JournalError):
                raise
            except RlmSandboxError as error:
                raise RpcRefusal("child_failed", "the child run could not be carried out") from error
            text = cut_to_bytes(answer, most)
            room.settle(Amount(bytes_in=size(text)))
        return text

    async def _tool(self, call: RpcCall, cell: int) -> RpcReply:
        name = params.tool_call(call.params, call.body, self._limits)
        self._check_running()
        return await self._tools.call(name, call.body, cell)

    async def _budget(self, call: RpcCall, cell: int) -> RpcReply:
        params.nothing(call.params, call.body)
        nth = self._books.nth(call)
        await self._books.pace()
        left = self._recorder.budget(cell, nth)
        if left is None:
            left = self._scope.remaining()
            if nth <= RECORDED_BUDGETS:
                self._recorder.emit(BudgetTold(cell, nth, left))
        return RpcReply(dict(left))

    async def _final(self, call: RpcCall, cell: int) -> RpcReply:
        answer = params.final_answer(call.params, call.body, self._limits)
        self._check_open()
        if self._accept is not None:
            await self._accept(answer)
            self._check_open()  # another may have been accepted meanwhile
        self._recorder.emit(FinalSet(cell, answer))
        self.final = answer
        return RpcReply()

    def _check_open(self) -> None:
        if self.final is not None:
            raise RpcRefusal("already_final", "the run has its answer already")

    def _request(self, prompt: str, max_tokens: int | None) -> ModelRequest:
        return ModelRequest((Message("user", prompt),), max_tokens or self._models.max_tokens)

    def _model(self, name: str | None) -> Model:
        if name is None:
            return self._sub_model
        try:
            return self._open_named(name)
        except (ConfigurationError, ModelAuthenticationError) as error:
            # What is wrong with one model a policy lists is no reason to end a run that has another.
            raise RpcRefusal("model_unavailable", "that model cannot be used; leave it out for the default") from error

    def _check_running(self) -> None:
        if self.fatal is not None:
            raise RpcRefusal("run_stopped", "the run is being ended")

    def _stop(self, error: RlmSandboxError) -> RpcRefusal:
        self.fatal = self.fatal or error
        return RpcRefusal("run_stopped", "the run is being ended")

    def _recorded(self, call: RpcCall, refusal: RpcRefusal) -> RpcRefusal:
        """Return ``refusal`` once it is in the journal, or the one that says the run stops when it cannot be."""
        try:
            self._refusals.record(call, refusal, self._books.nth(call))
        except JournalError as error:
            return self._stop(error)
        return refusal
