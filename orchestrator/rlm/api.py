"""The front door: ``RLM(...).complete(context, query)``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, get_args

import anyio
from anyio import from_thread, to_thread

from orchestrator.context import Context, check
from orchestrator.errors import ConfigurationError
from orchestrator.events import Sink
from orchestrator.ledger import Scope
from orchestrator.models import retry
from orchestrator.models.base import Model
from orchestrator.models.circuit import Circuits
from orchestrator.models.prices import PriceTable
from orchestrator.models.spec import default_spec
from orchestrator.policy import Policy
from orchestrator.rlm.choices import OpenModels, check_caps, chosen, spec_of
from orchestrator.rlm.dialogue import AsyncDialogue, Dialogue
from orchestrator.rlm.form import AnswerForm
from orchestrator.rlm.question import checked, new_run_id
from orchestrator.rlm.recursion import Resuming, Run
from orchestrator.rlm.result import Result
from orchestrator.rlm.resume import Resumable, result_of
from orchestrator.rlm.saved import OnDivergence as SessionOnDivergence
from orchestrator.rlm.saved import Saved, session_of
from orchestrator.rlm.stream import RunStream, both, streamed
from orchestrator.rlm.tree import Tree
from orchestrator.session import Backing, OpenBox, open_sandbox
from orchestrator.tools import toolbox
from orchestrator.traffic import Lane, Limits
from orchestrator.trajectory.lock import held
from orchestrator.trajectory.replay import OnDivergence


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
        self._model = chosen("model", model) or self.policy.models.root or None
        self._sub_model = chosen("sub_model", sub_model) or self.policy.models.sub or None
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
            return await self._complete(context, query, schema, both(self._on_event, sink), stop)

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
        context, query = check(context), checked(query)
        form = None if schema is None else AnswerForm(schema)
        origin = {**self._origin, **(origin or {})}
        async with self._tree(self.policy, self._journal, sink, redact=self._redact) as tree:
            scope = Scope.root(self.policy.budget)
            run = Run(tree, scope, self.policy, context, query, new_run_id(), origin=origin, form=form)
            return await run.complete(stop)

    @contextmanager
    def session(self) -> Iterator[Dialogue]:
        """Ask several questions in a row: variables, contexts and what was said before stay.

        In use::

            with rlm.session() as session:
                print(session.ask("Which incidents are there?", context=reports).answer)
                print(session.ask("Which of them were in March?").answer)
                print(session.ask("Does the audit know of those?", context=audit).answer)

        Each question is a run, with the whole budget of the policy, a journal and a result of its own. A new context is
        ``context`` in the box, and the last one of the list ``contexts``. Works inside a running event loop, too.

        Raises:
            ConfigurationError: a model's spec is not usable, or a provider's key is not set.
        """
        with from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(self.asession()) as its:
            yield Dialogue(portal, its)

    @asynccontextmanager
    async def asession(self) -> AsyncIterator[AsyncDialogue]:
        """Ask several questions in a row; as :meth:`session`."""
        identity = new_run_id()
        with nullcontext() if self._journal is None else held(self._journal, identity):
            async with (
                self._tree(self.policy, self._journal, self._on_event, redact=self._redact) as tree,
                AsyncDialogue.opened(tree, self.policy, identity, self._origin) as dialogue,
            ):
                yield dialogue

    @contextmanager
    def resume_session(
        self,
        journal: str | Path,
        contexts: Sequence[Context],
        *,
        settings: Sequence[str] = (),
        on_divergence: SessionOnDivergence = "stop",
    ) -> Iterator[Dialogue]:
        """Go on with a session that ended, or was cut off; see :meth:`aresume_session`."""
        its = self.aresume_session(journal, contexts, settings=settings, on_divergence=on_divergence)
        with from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(its) as dialogue:
            yield Dialogue(portal, dialogue)

    @asynccontextmanager
    async def aresume_session(
        self,
        journal: str | Path,
        contexts: Sequence[Context],
        *,
        settings: Sequence[str] = (),
        on_divergence: SessionOnDivergence = "stop",
    ) -> AsyncIterator[AsyncDialogue]:
        """Go on with a session that ended, or was cut off, from its journals.

        The root model's history is that of the journals. Where the last question left a box, a fresh one is brought to
        the same state: the cells that it saw are run again, with the recorded answers, and nothing is asked or paid. A
        question that was being answered is :attr:`AsyncDialogue.unfinished`; :meth:`AsyncDialogue.finish` goes on with
        it.

        Args:
            journal: of any question of the session; those of the others lie beside it, and new ones come there.
            contexts: all that the session has, in any order.
            settings: ``table.key=value`` assignments to the policy of the session's last question, for those to come.
            on_divergence: what is done when a cell that is run again does something else than it did: ``stop`` raises
                ResumeError, ``fresh`` goes on with a box that has the contexts and none of the variables.

        Raises:
            JournalError: a journal cannot be read, is missing, or does not follow on the one before; or somebody else
                goes on with the session.
            ResumeError: they are no session's, a context or a tool is missing; or as said above.
            ConfigurationError: a setting or a context is not usable.
        """
        if on_divergence not in get_args(SessionOnDivergence):
            raise ConfigurationError(f"on_divergence={on_divergence!r}: give 'stop' or 'fresh'")
        if self._redact:
            raise ConfigurationError("redact is chosen when a session begins: a redacted one cannot be resumed")
        if isinstance(contexts, str) or not isinstance(contexts, Sequence):
            raise ConfigurationError("contexts is the list of all contexts of the session, even if it is one")
        path = Path(journal)
        read = partial(Saved.of, tools=self._tools, settings=settings, on_divergence=on_divergence)
        with held(path.parent, await to_thread.run_sync(session_of, path)):
            saved = await to_thread.run_sync(read, path, contexts)
            async with (
                self._tree(saved.policy, path.parent, self._on_event) as tree,
                AsyncDialogue.opened(tree, saved.policy, saved.id, self._origin, saved) as dialogue,
            ):
                yield dialogue

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

    @property
    def _origin(self) -> dict[str, Any]:
        return {"model": spec_of(self._model), "sub_model": spec_of(self._sub_model)}

    @asynccontextmanager
    async def _tree(
        self, policy: Policy, journal: Path | None, sink: Sink | None, *, redact: bool = False
    ) -> AsyncIterator[Tree]:
        prices = PriceTable.load()
        check_caps(policy, prices)
        async with OpenModels.opened() as models:
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


def _now(work: Callable[[], Awaitable[Result]]) -> Result:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(work)
    # That loop waits meanwhile, as for any blocking call. Leaving the block by an exception cancels the run.
    with from_thread.start_blocking_portal() as portal:
        return portal.call(work)
