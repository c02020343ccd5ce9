"""Runs as OpenTelemetry spans and metrics: a sink of events that talks to OpenTelemetry's API alone.

Which SDK takes them, and where they go, is the application's to configure; without one nothing is made and nothing
costs. Names are those of the GenAI semantic conventions 1.37 where they have one, and begin with ``rlm.`` otherwise.
No text of a prompt, an answer, a cell or its output is in them unless ``content`` is asked for.

A question of a session is a run whose ``gen_ai.conversation.id`` is the session's. It has a ``rlm.box`` span for the
time it has the box, and ``rlm.box.open`` counts boxes that runs have: one that waits between two questions is not
counted, because no event tells when a session is left and its box goes.

A run is an ``invoke_agent`` span; in it are the box, the root model's turns (``chat``), the cells (``execute_tool``)
and, in the cell that asked, the sub-calls (``chat``) and child runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from orchestrator import events
from orchestrator.events import Envelope, Event
from orchestrator.text import cut_to_bytes, printable

SCOPE = "rlm-sandbox"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
CONTENT_BYTES = 8192
_NS = 1_000_000_000

Attributes = dict[str, str | int | float | bool | tuple[str, ...]]


@dataclass(slots=True)
class _Run:
    """The open spans of one run."""

    span: Span
    model: str
    sub_model: str
    box: Span | None = None
    cells: dict[int, Span] = field(default_factory=dict)
    calls: dict[int, tuple[Span, str]] = field(default_factory=dict)
    tools: dict[int, Span] = field(default_factory=dict)


class Telemetry:
    """A sink (:data:`orchestrator.events.Sink`) for the runs of a process, children included.

    Give it as ``on_event``. It raises nothing, so it can stop no run.

    Args:
        content: whether texts go along: questions, code, output, prompts and answers, cut to 8 KiB each, with what
            could steer a terminal made visible.
        tracer_provider: takes the spans; the global one if None.
        meter_provider: takes the metrics; the global one if None.
    """

    def __init__(
        self,
        *,
        content: bool = False,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        """Make the instruments."""
        self._content = content
        self._tracer = trace.get_tracer(SCOPE, schema_url=SCHEMA_URL, tracer_provider=tracer_provider)
        meter = metrics.get_meter(SCOPE, schema_url=SCHEMA_URL, meter_provider=meter_provider)
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}", "tokens of one request")
        self._durations = meter.create_histogram("gen_ai.client.operation.duration", "s", "seconds of one request")
        self._cost = meter.create_counter("rlm.cost", "{USD}", "US dollars by the price table")
        self._opened = meter.create_histogram("rlm.box.open.duration", "s", "seconds until a box was ready")
        self._boxes = meter.create_up_down_counter("rlm.box.open", "{box}", "boxes that a run has")
        self._in_flight = meter.create_up_down_counter("rlm.subcall.in_flight", "{call}", "sub-calls at a provider")
        self._refusals = meter.create_counter("rlm.refusal", "{call}", "calls from boxes that were refused")
        self._runs: dict[str, _Run] = {}
        # Cells that asked for a child run, which names only its parent run.
        self._parents: dict[str, Span] = {}
        self._takers: dict[type[Event], Callable[[_Run, Any, Envelope], None]] = {
            events.SandboxOpened: self._box_opened,
            events.SandboxClosed: self._box_closed,
            events.RootReplied: self._root_replied,
            events.RootFailed: self._root_failed,
            events.CellStarted: self._cell_started,
            events.CellFinished: self._cell_finished,
            events.SubcallStarted: self._subcall_started,
            events.SubcallFinished: self._subcall_finished,
            events.SubcallFailed: self._subcall_failed,
            events.ToolStarted: self._tool_started,
            events.ToolFinished: self._tool_finished,
            events.ToolFailed: self._tool_failed,
            events.RetryScheduled: self._retried,
            events.EstimateCharged: self._estimated,
            events.CircuitChanged: self._circuit_changed,
            events.Refused: self._refused,
            events.ChildStarted: self._child_started,
            events.LimitReached: self._limit_reached,
            events.RunFinished: self._run_finished,
        }

    def __call__(self, envelope: Envelope) -> None:
        """Take one event."""
        event = envelope.event
        if isinstance(event, events.RunStarted):
            self._runs[envelope.run] = self._run_started(event, envelope)
        run, take = self._runs.get(envelope.run), self._takers.get(type(event))
        if run is not None and take is not None:
            take(run, event, envelope)

    # Runs and boxes -------------------------------------------------------------------------------------------------

    def _run_started(self, event: events.RunStarted, envelope: Envelope) -> _Run:
        attributes: Attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": SCOPE,
            "gen_ai.conversation.id": str(event.session.get("id") or envelope.run),
            "rlm.run": envelope.run,
            "gen_ai.request.model": event.root_model,
            "rlm.depth": event.depth,
            "rlm.sub_model": event.sub_model,
            "rlm.policy": str(event.policy.get("name", "")),
            "rlm.context.characters": int(event.context.get("characters", 0)),
        }
        if event.session:
            attributes["rlm.question"] = int(event.session["question"])
        self._add(attributes, "rlm.query", event.query)
        asked_by = self._parents.pop(envelope.run, None)
        span = self._start(f"invoke_agent {SCOPE}", asked_by, envelope, attributes)
        return _Run(span, event.root_model, event.sub_model)

    def _run_finished(self, run: _Run, event: events.RunFinished, envelope: Envelope) -> None:
        # What the end of the run cut short never reported an end of its own.
        for span in (*run.cells.values(), *run.tools.values(), *(call for call, _ in run.calls.values())):
            _fail(span, "abandoned", envelope)
        self._in_flight.add(-len(run.calls))
        if run.box is not None:
            run.box.end(_ns(envelope))
            self._boxes.add(-1)
        attributes: Attributes = {"rlm.status": event.status, "rlm.turns": event.turns}
        self._add(attributes, "rlm.answer", event.answer or "")
        run.span.set_attributes(attributes)
        if event.status == "answered":
            run.span.end(_ns(envelope))
        else:
            _fail(run.span, event.status, envelope)
        del self._runs[envelope.run]

    def _box_opened(self, run: _Run, event: events.SandboxOpened, envelope: Envelope) -> None:
        # A box that was lent was opened, and that was measured, in the run of an earlier question.
        began_s = 0.0 if event.lent else event.elapsed_s
        attributes: Attributes = {"container.id": event.container, "rlm.box.lent": event.lent}
        run.box = self._start("rlm.box", run.span, envelope, attributes, began_s=began_s)
        run.box.set_attributes({"container.image.id": event.image, "container.runtime.name": event.runtime})
        if not event.lent:
            self._opened.record(event.elapsed_s)
        self._boxes.add(1)

    def _box_closed(self, run: _Run, event: events.SandboxClosed, envelope: Envelope) -> None:
        if run.box is None:
            return
        box, run.box = run.box, None
        self._boxes.add(-1)
        if event.reason not in ("", events.KEPT):
            _fail(box, event.reason, envelope)
        else:
            box.end(_ns(envelope))

    def _limit_reached(self, run: _Run, event: events.LimitReached, envelope: Envelope) -> None:
        run.span.add_event("rlm.limit", {"rlm.reason": event.reason, "rlm.limit": event.limit}, _ns(envelope))

    def _child_started(self, run: _Run, event: events.ChildStarted, _: Envelope) -> None:
        self._parents[event.child] = run.cells.get(event.cell, run.span)

    def _refused(self, run: _Run, event: events.Refused, envelope: Envelope) -> None:
        self._refusals.add(event.count, {"rlm.method": event.method, "error.type": event.reason})
        span = run.span if event.cell is None else run.cells.get(event.cell, run.span)
        span.add_event("rlm.refused", {"rlm.method": event.method, "error.type": event.reason}, _ns(envelope))

    # Turns and cells ------------------------------------------------------------------------------------------------

    def _root_replied(self, run: _Run, event: events.RootReplied, envelope: Envelope) -> None:
        attributes = self._chat(run.model) | {"rlm.turn": event.turn}
        span = self._start(
            f"chat {run.model}", run.span, envelope, attributes, began_s=event.elapsed_s, kind=SpanKind.CLIENT
        )
        self._charge(span, run.model, event)
        self._end_chat(span, event, envelope)

    def _root_failed(self, run: _Run, event: events.RootFailed, envelope: Envelope) -> None:
        attributes = self._chat(run.model) | {"rlm.turn": event.turn, "rlm.attempts": event.attempts}
        span = self._start(
            f"chat {run.model}", run.span, envelope, attributes, began_s=event.elapsed_s, kind=SpanKind.CLIENT
        )
        self._durations.record(event.elapsed_s, {**_measured(run.model), "error.type": event.code})
        _fail(span, event.code, envelope)

    def _cell_started(self, run: _Run, event: events.CellStarted, envelope: Envelope) -> None:
        attributes: Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "python",
            "rlm.turn": event.turn,
            "rlm.cell": event.cell,
        }
        self._add(attributes, "rlm.code", event.code)
        run.cells[event.cell] = self._start("execute_tool python", run.span, envelope, attributes)

    def _cell_finished(self, run: _Run, event: events.CellFinished, envelope: Envelope) -> None:
        span = run.cells.pop(event.cell, None)
        if span is None:
            return
        result = event.result
        status = str(result.get("status", ""))
        attributes: Attributes = {
            "rlm.status": status,
            "rlm.state_lost": bool(result.get("state_lost")),
            "rlm.truncated": bool(result.get("truncated")),
        }
        for name in ("stdout", "stderr", "result"):
            self._add(attributes, f"rlm.{name}", str(result.get(name) or ""))
        span.set_attributes(attributes)
        if status == "ok":
            span.end(_ns(envelope))
        else:
            _fail(span, status, envelope)

    # Sub-calls ------------------------------------------------------------------------------------------------------

    def _subcall_started(self, run: _Run, event: events.SubcallStarted, envelope: Envelope) -> None:
        attributes = self._chat(event.model) | {"gen_ai.request.max_tokens": event.max_tokens, "rlm.call": event.call}
        self._add(attributes, "rlm.prompt", event.prompt)
        parent = run.cells.get(event.cell, run.span)
        span = self._start(f"chat {event.model}", parent, envelope, attributes, kind=SpanKind.CLIENT)
        run.calls[event.call] = span, event.model
        self._in_flight.add(1)

    def _subcall_finished(self, run: _Run, event: events.SubcallFinished, envelope: Envelope) -> None:
        if (call := run.calls.pop(event.call, None)) is not None:
            self._in_flight.add(-1)
            span, model = call
            span.set_attribute("rlm.attempts", event.attempts)
            self._charge(span, model, event)
            self._end_chat(span, event, envelope)

    def _subcall_failed(self, run: _Run, event: events.SubcallFailed, envelope: Envelope) -> None:
        if (call := run.calls.pop(event.call, None)) is not None:
            self._in_flight.add(-1)
            span, model = call
            span.set_attribute("rlm.attempts", event.attempts)
            self._durations.record(event.elapsed_s, {**_measured(model), "error.type": event.code})
            _fail(span, event.code, envelope)

    def _tool_started(self, run: _Run, event: events.ToolStarted, envelope: Envelope) -> None:
        attributes: Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": event.tool,
            "rlm.call": event.call,
        }
        self._add(attributes, "rlm.arguments", event.arguments)
        parent = run.cells.get(event.cell, run.span)
        run.tools[event.call] = self._start(f"execute_tool {event.tool}", parent, envelope, attributes)

    def _tool_finished(self, run: _Run, event: events.ToolFinished, envelope: Envelope) -> None:
        if (span := run.tools.pop(event.call, None)) is not None:
            attributes: Attributes = {}
            self._add(attributes, "rlm.result", event.result)
            span.set_attributes(attributes)
            span.end(_ns(envelope))

    def _tool_failed(self, run: _Run, event: events.ToolFailed, envelope: Envelope) -> None:
        if (span := run.tools.pop(event.call, None)) is not None:
            _fail(span, event.code, envelope)

    def _retried(self, run: _Run, event: events.RetryScheduled, envelope: Envelope) -> None:
        attributes: Attributes = {"rlm.purpose": event.purpose, "error.type": event.code, "rlm.wait_s": event.wait_s}
        run.span.add_event("rlm.retry", attributes, _ns(envelope))

    def _estimated(self, run: _Run, event: events.EstimateCharged, envelope: Envelope) -> None:
        model = run.model if event.call is None else run.calls.get(event.call, (run.span, run.sub_model))[1]
        attributes: Attributes = {"gen_ai.request.model": model, "rlm.tokens": event.tokens}
        if event.cost_usd is not None:
            attributes["rlm.cost_usd"] = event.cost_usd
            self._cost.add(event.cost_usd, {"gen_ai.request.model": model})
        run.span.add_event("rlm.estimate_charged", attributes, _ns(envelope))

    def _circuit_changed(self, run: _Run, event: events.CircuitChanged, envelope: Envelope) -> None:
        attributes: Attributes = {"rlm.provider": event.provider, "rlm.state": event.state, "rlm.wait_s": event.wait_s}
        run.span.add_event("rlm.circuit", attributes, _ns(envelope))

    def _charge(self, span: Span, model: str, event: events.RootReplied | events.SubcallFinished) -> None:
        measured = _measured(model)
        for kind in ("input", "output"):
            tokens = int(event.usage.get(f"{kind}_tokens", 0))
            span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
            self._tokens.record(tokens, {**measured, "gen_ai.token.type": kind})
        for kind in ("cache_read", "cache_write"):
            span.set_attribute(f"rlm.usage.{kind}_tokens", int(event.usage.get(f"{kind}_tokens", 0)))
        if event.cost_usd is not None:
            span.set_attribute("rlm.cost_usd", event.cost_usd)
            self._cost.add(event.cost_usd, {"gen_ai.request.model": model})
        self._durations.record(event.elapsed_s, measured)

    def _end_chat(self, span: Span, event: events.RootReplied | events.SubcallFinished, envelope: Envelope) -> None:
        attributes: Attributes = {"gen_ai.response.finish_reasons": (event.stop_reason,)}
        self._add(attributes, "rlm.reply", event.text)
        span.set_attributes(attributes)
        span.end(_ns(envelope))

    # Spans ----------------------------------------------------------------------------------------------------------

    def _start(
        self,
        name: str,
        parent: Span | None,
        envelope: Envelope,
        attributes: Attributes,
        *,
        began_s: float = 0.0,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        # Without a parent of ours: of whatever the application has open around the run.
        context = None if parent is None else trace.set_span_in_context(parent)
        start = _ns(envelope) - int(began_s * _NS)
        return self._tracer.start_span(name, context, kind, attributes, start_time=start)

    def _chat(self, model: str) -> Attributes:
        return {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}

    def _add(self, attributes: Attributes, name: str, text: str) -> None:
        if self._content and text:
            attributes[name] = cut_to_bytes(printable(text), CONTENT_BYTES)


def _measured(model: str) -> dict[str, str]:
    return {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}


def _ns(envelope: Envelope) -> int:
    return int(envelope.time * _NS)


def _fail(span: Span, why: str, envelope: Envelope) -> None:
    span.set_attribute("error.type", why)
    span.set_status(Status(StatusCode.ERROR, why))
    span.end(_ns(envelope))
