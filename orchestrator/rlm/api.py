"""The front door: ``RLM(...).complete(context, query)``."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import anyio
import anyio.from_thread
from anyio import to_thread

from orchestrator.context import Context, check
from orchestrator.errors import ConfigurationError
from orchestrator.events import Envelope, Sink
from orchestrator.ledger import Scope
from orchestrator.models import retry
from orchestrator.models.base import Model, Usage
from orchestrator.models.circuit import Circuits
from orchestrator.models.prices import PriceTable, names_of
from orchestrator.models.spec import FORMS, default_spec, open_model
from orchestrator.policy import Policy
from orchestrator.rlm.form import AnswerForm
from orchestrator.rlm.recursion import Resuming, Run, Tree
from orchestrator.rlm.result import Result
from orchestrator.rlm.resume import Resumable, result_of
from orchestrator.rlm.stream import RunStream, streamed
from orchestrator.session import Backing, OpenBox, open_sandbox
from orchestrator.tools import toolbox
from orchestrator.traffic import Lane, Limits
from orchestrator.trajectory.replay import OnDivergence

__all__ = ["RLM", "Result", "new_run_id"]

# The question goes into every request; what is longer belongs into the context.
MAX_QUERY_CHARS = 100_000


def new_run_id() -> str:
    """Return an id that no other run has, and that sorts by the time it was made (UTC, to the millisecond)."""
    now = time.time()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now * 1000) % 1000:03d}-{secrets.token_hex(3)}"


class RLM:
    """A recursive language model: answers questions over texts of any size.

    Holds choices, no connections: each run opens its models and its sandbox and closes them, so one object serves
    any number of runs, at once too. What one of them learns of a provider that is down spares the others.

    Args:
        model: the root model, as a spec such as ``anthropic:NAME`` or as a Model, which stays the caller's to close.
            None takes the policy's, or what the environment has a key for, or the offline model. A Model that breaks
            (raises what is no ModelError, or returns what is no ModelReply) fails the run or its sub-call, no more.
        sub_model: the model of the sub-calls, likewise. None takes the policy's, or the root model.
        policy: a Policy, the name of a shipped one, or the path of a TOML file.
        journal: folder for the journals, one file a run; None keeps none.
        on_event: called with every event of the run and its children, in order, on the run's thread. An exception it
            raises ends the run.
        redact: the journals hold lengths and hashes in the place of prompts, answers, code, output and the question;
            such a run cannot be resumed.
        open_box: opens the sandbox of each run.
        tools: functions, sync or async, that code in the sandbox may call by their names, as it calls ``llm_query``.
            Every parameter is annotated with what pydantic knows; the root model is told signature and docstring. What
            arrives is checked strictly, but the code that calls is hostile: a tool is what *it* may do. A function that
            is not async is called in a thread, several at once; one that hangs is given up, and its thread left.
        child_tools: those of child runs; none by default, whatever ``tools`` holds.

    Raises:
        ConfigurationError: ``model`` or ``sub_model`` is neither a spec nor a Model, ``redact`` has no journal, or a
            function cannot be a tool.
        PolicyError: the policy does not load.
    """

    def __init__(
        self,
        model: str | Model | None = None,
        sub_model: str | Model | None = None,
        policy: str | Path | Policy | None = None,
        journal: str | Path | None = None,
        on_event: Sink | None = None,
        *,
        redact: bool = False,
        open_box: OpenBox = open_sandbox,
        tools: Iterable[Callable[..., Any]] = (),
        child_tools: Iterable[Callable[..., Any]] = (),
    ) -> None:
        if redact and journal is None:
            raise ConfigurationError("redact is about the journal, and there is none: name its folder with journal=")
        self.policy = policy if isinstance(policy, Policy) else Policy.load(policy or "default")
        self._model = _model("model", model) or self.policy.models.root or None
        self._sub_model = _model("sub_model", sub_model) or self.policy.models.sub or None
        self._journal = None if journal is None else Path(journal)
        self._on_event = on_event
        self._redact = redact
        self._open_box = open_box
        self._circuits = Circuits()
        self._tools, self._child_tools = toolbox(tools), toolbox(child_tools)

    def complete(self, context: Context, query: str, schema: object = None) -> Result:
        """Answer ``query`` over ``context`` and wait for it; works inside a running event loop (a notebook), too.

        Args:
            context: a text, a list of texts, or a dict of name to text. Lone surrogates, which UTF-8 cannot carry,
                become ``?``.
            query: the question; a str.
            schema: what the answer must be: a JSON Schema (a dict), or a type that pydantic knows, such as a model, a
                dataclass or ``list[int]``. The root model is told; an answer that does not fit goes back to it with
                what is wrong, three times. :attr:`Result.value` is then the object. None asks for a text.

        Returns:
            How it went. A run that began has a result, whatever befell it; see :attr:`Result.status`.

        Raises:
            ConfigurationError: the context, the query, the schema or a model's spec is not usable, or a provider's key
                is not set.
            JournalError: the journal cannot be made.
        """
        return _now(partial(self.acomplete, context, query, schema))

    async def acomplete(
        self,
        context: Context,
        query: str,
        schema: object = None,
        *,
        stop: anyio.Event | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> Result:
        """Answer ``query`` over ``context``; as :meth:`complete`.

        Args:
            context: a text, a list of texts, or a dict of name to text.
            query: the question.
            schema: what the answer must be.
            stop: when set, the run ends at once: the result has the status ``failed``, the reason ``interrupted`` and
                the best partial answer. Cancelling the call ends the run as well and records the same, but returns
                nothing.
            origin: where the context came from, for the journal (see :class:`orchestrator.events.RunStarted`).
        """
        return await self._complete(context, query, schema, self._on_event, stop, origin=origin)

    def stream(self, context: Context, query: str, schema: object = None) -> AbstractAsyncContextManager[RunStream]:
        """Answer ``query`` over ``context`` while its events are read.

        In use::

            async with rlm.stream(context, query) as run:
                async for envelope in run:
                    print(envelope.elapsed_s, envelope.event.kind)
                result = await run.result()

        The events (:mod:`orchestrator.events`) are those of the run and of its children, told apart by
        ``envelope.run`` and ``envelope.parent``, in the order in which they were recorded; ``on_event`` hears them
        first. Leaving the block ends a run that goes on: the block is there so that a reader who has seen enough, or
        fails, does not go on paying.

        Args:
            context: as of :meth:`complete`.
            query: as of :meth:`complete`.
            schema: as of :meth:`complete`.
        """

        async def begin(sink: Sink, stop: anyio.Event) -> Result:
            return await self._complete(context, query, schema, _both(self._on_event, sink), stop)

        return streamed(begin)

    async def _complete(
        self,
        context: Context,
        query: str,
        schema: object,
        sink: Sink | None,
        stop: anyio.Event | None,
        *,
        origin: Mapping[str, Any] | None = None,
    ) -> Result:
        context, query = check(context), _checked(query)
        form = None if schema is None else AnswerForm(schema)
        origin = {"model": _spec(self._model), "sub_model": _spec(self._sub_model), **(origin or {})}
        async with self._tree(self.policy, self._journal, sink, redact=self._redact) as tree:
            scope = Scope.root(self.policy.budget)
            run = Run(tree, scope, self.policy, context, query, new_run_id(), origin=origin, form=form)
            return await run.complete(stop)

    def resume(
        self,
        journal: str | Path,
        context: Context,
        *,
        settings: Sequence[str] = (),
        on_divergence: OnDivergence = "stop",
    ) -> Result:
        """Go on with a run that was cut off or ended at a limit, and wait for it; see :meth:`aresume`."""
        return _now(partial(self.aresume, journal, context, settings=settings, on_divergence=on_divergence))

    async def aresume(
        self,
        journal: str | Path,
        context: Context,
        *,
        settings: Sequence[str] = (),
        on_divergence: OnDivergence = "stop",
        stop: anyio.Event | None = None,
    ) -> Result:
        """Go on with a run that was cut off or ended at a limit.

        Its policy, its question and the schema of its answer are those of its journal, which is continued; this
        object's models are asked for, and its tools called for, what is not in it. A call of a tool that was cut off
        is made again. A run that was answered returns its answer; one that answered because a budget ended goes on
        where ``settings`` give it more of that.

        Args:
            journal: the file.
            context: the same as then.
            settings: ``table.key=value`` assignments to the run's policy, such as ``budget.calls=4000``.
            on_divergence: what is done when a cell that is run again does something else than it did: ``stop`` ends
                the run, ``live`` records that and goes on.
            stop: as of :meth:`acomplete`.

        Raises:
            JournalError: the journal cannot be read or continued, or somebody else is writing it.
            ResumeError: the context is another one, or a tool that the run had is not given.
            ConfigurationError: a setting or the context is not usable, or no wall time is left.
        """
        if on_divergence not in get_args(OnDivergence):
            raise ConfigurationError(f"on_divergence={on_divergence!r}: give 'stop' or 'live'")
        if self._redact:
            raise ConfigurationError("redact is chosen when a run begins: it cannot be resumed into a redacted journal")
        context = check(context)
        run = await to_thread.run_sync(Resumable.of, Path(journal), settings)
        if run.is_over:
            return result_of(run.tape)
        await to_thread.run_sync(run.check, context, self._tools)
        past = Resuming(run.tape, on_divergence)
        policy = run.rest
        async with self._tree(policy, run.tape.path.parent, self._on_event) as tree:
            scope = Scope.root(policy.budget)
            its = Run(tree, scope, policy, context, run.query, run.tape.run, past=past, form=run.form)
            return await its.complete(stop)

    @asynccontextmanager
    async def _tree(
        self, policy: Policy, journal: Path | None, sink: Sink | None, *, redact: bool = False
    ) -> AsyncIterator[Tree]:
        prices = PriceTable.load()
        _check_caps(policy, prices)
        async with _Models.opened() as models:
            root = models.open(self._model or default_spec())
            sub = root if self._sub_model is None else models.open(self._sub_model)
            spec = self._sub_model or self._model or default_spec()
            models.provider = spec.partition(":")[0] if isinstance(spec, str) else ""
            backing = Backing(
                sub_model=sub,
                open_named=models.named,
                prices=prices,
                limiter=anyio.CapacityLimiter(policy.models.in_flight),
                open_box=self._open_box,
                lane=Lane(Limits.of(policy.models)),
                complete=partial(retry.complete, circuits=self._circuits),
                tool_limiter=anyio.CapacityLimiter(policy.models.in_flight),
            )
            yield Tree(root, backing, journal, sink, redact, self._tools, self._child_tools)


class _Models:
    """The models of one run: opened once each, closed together.

    Attributes:
        provider: of a model that is asked for by its bare name.
    """

    def __init__(self) -> None:
        self.provider = ""
        self._by_spec: dict[str, Model] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[_Models]:
        models = cls()
        try:
            yield models
        finally:
            with anyio.CancelScope(shield=True):
                for model in models._by_spec.values():
                    await model.aclose()

    def open(self, model: str | Model) -> Model:
        if not isinstance(model, str):
            return model
        if model not in self._by_spec:
            self._by_spec[model] = open_model(model)
        return self._by_spec[model]

    def named(self, name: str) -> Model:
        if ":" in name:
            return self.open(name)
        if not self.provider:
            raise ConfigurationError(f"models.allowed: write {name!r} with its provider, for example anthropic:{name}")
        return self.open(f"{self.provider}:{name}")


def _both(first: Sink | None, second: Sink) -> Sink:
    if first is None:
        return second

    def sink(envelope: Envelope) -> None:
        first(envelope)
        second(envelope)

    return sink


def _now(work: Callable[[], Awaitable[Result]]) -> Result:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(work)
    # That loop waits meanwhile, as for any blocking call. Leaving the block by an exception cancels the run.
    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(work)


def _spec(model: str | Model | None) -> str:
    return model if isinstance(model, str) else ""


def _model(what: str, model: object) -> str | Model | None:
    if model is None or isinstance(model, str):
        return model
    fits = isinstance(getattr(model, "name", None), str) and callable(getattr(model, "complete", None))
    if isinstance(model, type) or not fits or not callable(getattr(model, "aclose", None)):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"
        raise ConfigurationError(
            f"{what} is {given}: give a spec ({FORMS}), or an object with a name (a str) and the coroutine methods "
            "complete(request) and aclose()"
        )
    return cast("Model", model)


def _check_caps(policy: Policy, prices: PriceTable) -> None:
    for spec in policy.models.price_caps:
        if all(prices.cost_nano(name, Usage()) is None for name in names_of(spec)):
            raise ConfigurationError(f"models.price_caps: no price is known for {spec!r}, so no cap can bind it")


def _checked(query: object) -> str:
    if not isinstance(query, str):
        raise ConfigurationError(f"the query is a str, not {type(query).__name__}")
    if not query.strip():
        raise ConfigurationError("the query is empty: ask a question")
    if len(query) > MAX_QUERY_CHARS:
        raise ConfigurationError(
            f"the query has {len(query):,} characters and may have {MAX_QUERY_CHARS:,}: put long texts into the context"
        )
    # A lone surrogate could not be sent to any provider.
    return query.encode("utf-8", "replace").decode()
