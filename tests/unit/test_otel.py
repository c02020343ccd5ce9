"""Runs as spans and metrics, as OpenTelemetry's own SDK sees them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from orchestrator import events
from orchestrator.cli import run as cli
from orchestrator.events import Event
from orchestrator.recording import Recorder
from orchestrator.trajectory.otel import CONTENT_BYTES, Telemetry
from tests.support import runs

TEXT = "canary-of-the-prompt"


class Collected:
    """Takes what a run of made-up events gives."""

    def __init__(self, *, content: bool = False) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        meters = MeterProvider([self.reader])
        self.sink = Telemetry(content=content, tracer_provider=tracers, meter_provider=meters)

    def run(self, *happened: Event, run: str = "r1", parent: str | None = None) -> None:
        recorder = Recorder(run, parent, (self.sink,))
        for event in happened:
            recorder.emit(event)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found

    def metric(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def opened() -> Event:
    return events.SandboxOpened("box", "sha256:ab", "runc", 0.3, {})


def whole_run() -> list[Event]:
    return [
        runs.started(TEXT),
        opened(),
        runs.replied(text=TEXT),
        events.CellStarted(1, 1, f"llm_query('{TEXT}')"),
        runs.asked(prompt=TEXT),
        runs.answered(text=TEXT),
        events.CellFinished(1, 1, runs.cell_result(stdout=TEXT)),
        events.FinalSet(1, TEXT),
        events.SandboxClosed("box"),
        runs.finished(answer=TEXT),
    ]


def test_a_run_is_a_tree_of_spans_with_the_names_of_the_genai_conventions() -> None:
    collected = Collected()
    collected.run(*whole_run())
    run, cell, root, call = (
        collected.span(name)
        for name in ("invoke_agent rlm-sandbox", "execute_tool python", "chat root-model", "chat sub-model")
    )
    assert run.parent is None
    assert run.context is not None
    assert cell.context is not None
    assert {span.parent.span_id for span in (cell, root, collected.span("rlm.box")) if span.parent} == {
        run.context.span_id
    }
    assert call.parent is not None
    assert call.parent.span_id == cell.context.span_id
    assert (root.kind, call.kind, cell.kind) == (SpanKind.CLIENT, SpanKind.CLIENT, SpanKind.INTERNAL)
    attributes = call.attributes or {}
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "sub-model"
    assert attributes["gen_ai.usage.input_tokens"] == runs.USAGE["input_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == runs.USAGE["output_tokens"]
    assert attributes["gen_ai.response.finish_reasons"] == ("end",)
    assert (cell.attributes or {})["gen_ai.tool.name"] == "python"
    assert all(span.status.status_code is StatusCode.UNSET for span in (run, cell, root, call))
    assert root.end_time is not None
    assert root.start_time is not None
    assert (root.end_time - root.start_time) / 1e9 == pytest.approx(1.5, abs=0.001)


def test_what_a_run_costs_is_measured() -> None:
    collected = Collected()
    collected.run(*whole_run())
    tokens = {
        (point.attributes["gen_ai.request.model"], point.attributes["gen_ai.token.type"]): point.sum
        for point in collected.metric("gen_ai.client.token.usage")
    }
    assert tokens[("root-model", "input")] == tokens[("sub-model", "input")] == runs.USAGE["input_tokens"]
    assert {point.attributes["gen_ai.request.model"]: point.value for point in collected.metric("rlm.cost")} == {
        "root-model": 0.01,
        "sub-model": 0.001,
    }
    (box,) = collected.metric("rlm.box.open")
    (queue,) = collected.metric("rlm.subcall.in_flight")
    assert (box.value, queue.value) == (0, 0)
    assert collected.metric("rlm.box.open.duration")[0].sum == 0.3


def test_what_was_charged_for_replies_that_broke_off_is_measured_and_an_outage_is_told() -> None:
    collected = Collected()
    happened = [
        runs.started(),
        events.EstimateCharged("root", None, 1, 900, 0.25),
        runs.asked(),
        events.EstimateCharged("sub", 1, 1, 750, 0.5),
        events.CircuitChanged("Anthropic", "open", 8, 2.0),
        runs.finished(),
    ]
    collected.run(*happened)
    assert {point.attributes["gen_ai.request.model"]: point.value for point in collected.metric("rlm.cost")} == {
        "root-model": 0.25,
        "sub-model": 0.5,
    }
    told = [(event.name, dict(event.attributes or {})) for event in collected.span("invoke_agent rlm-sandbox").events]
    assert [name for name, _ in told] == ["rlm.estimate_charged", "rlm.estimate_charged", "rlm.circuit"]
    assert told[2][1] == {"rlm.provider": "Anthropic", "rlm.state": "open", "rlm.wait_s": 2.0}


def test_no_text_leaves_unless_it_is_asked_for() -> None:
    plain, full = Collected(), Collected(content=True)
    for collected in (plain, full):
        collected.run(*whole_run())
    assert TEXT not in str([span.to_json() for span in plain.exporter.get_finished_spans()])
    for name in ("invoke_agent rlm-sandbox", "execute_tool python", "chat root-model", "chat sub-model"):
        assert TEXT in full.span(name).to_json()


def test_a_text_is_cut_and_cannot_steer_a_terminal() -> None:
    collected = Collected(content=True)
    collected.run(runs.started("\x1b]0;title\x07" + "x" * 100_000), runs.finished())
    query = str((collected.span("invoke_agent rlm-sandbox").attributes or {})["rlm.query"])
    assert "\x1b" not in query
    assert len(query.encode()) <= CONTENT_BYTES


def test_a_child_hangs_on_the_cell_that_asked_for_it() -> None:
    collected = Collected()
    recorder = Recorder("r1", None, (collected.sink,))
    for event in (runs.started(), events.CellStarted(1, 1, "rlm_query('?', 'text')")):
        recorder.emit(event)
    recorder.emit(events.ChildStarted("r1.1", 1, "?"))
    collected.run(runs.started(depth=1), runs.finished(), run="r1.1", parent="r1")
    recorder.emit(events.ChildFinished("r1.1", "answered", ""))
    recorder.emit(events.CellFinished(1, 1, runs.cell_result()))
    recorder.emit(runs.finished())
    child, parent = collected.spans("invoke_agent rlm-sandbox")
    cell = collected.span("execute_tool python")
    assert child.parent is not None
    assert cell.context is not None
    assert child.parent.span_id == cell.context.span_id
    assert parent.parent is None


def test_failures_say_what_they_are_and_what_a_runs_end_cuts_short_is_ended_with_it() -> None:
    collected = Collected()
    collected.run(
        runs.started(),
        opened(),
        events.CellStarted(1, 1, "x"),
        runs.asked(1),
        runs.asked(2),
        events.SubcallFailed(1, "model_unavailable", "detail", 3, 2.0),
        events.Refused(1, "llm_query", "calls", 5.0, 7),
        events.RetryScheduled("subcall", 1, "overloaded", 0.5),
        events.LimitReached("calls", 5.0),
        runs.finished("limit", None, "calls"),
    )
    failed, abandoned = collected.spans("chat sub-model")
    assert (failed.attributes or {})["error.type"] == "model_unavailable"
    assert (abandoned.attributes or {})["error.type"] == "abandoned"
    assert (collected.span("execute_tool python").attributes or {})["error.type"] == "abandoned"
    run = collected.span("invoke_agent rlm-sandbox")
    assert run.status.status_code is StatusCode.ERROR
    assert {event.name for event in run.events} == {"rlm.retry", "rlm.limit"}
    assert [point.value for point in collected.metric("rlm.refusal")] == [7]
    assert [point.value for point in collected.metric("rlm.box.open")] == [0]
    assert [point.value for point in collected.metric("rlm.subcall.in_flight")] == [0]


@pytest.mark.parametrize(
    "happened",
    [
        [runs.answered(9), events.SubcallFailed(9, "x", "", 1, 0.1), events.CellFinished(1, 9, {})],
        [events.SandboxClosed("none")],
        [events.CellStarted(1, 1, "x"), events.CellFinished(1, 1, {"status": 7})],
    ],
    ids=["ends without a start", "no box", "a result of another shape"],
)
def test_events_that_do_not_fit_together_stop_no_run(happened: list[Event]) -> None:
    collected = Collected()
    collected.run(*happened)
    collected.run(runs.started(), *happened, runs.finished())
    assert collected.span("invoke_agent rlm-sandbox").end_time is not None


def test_the_package_needs_opentelemetry_for_this_module_alone() -> None:
    code = "import sys, orchestrator.rlm.api; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


def test_the_command_line_makes_spans_only_where_the_process_was_started_with_an_sdk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(cli.traced(), Telemetry)
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk.trace")
    assert cli.traced() is None
    assert cli.heard_by(None, cli.traced()) is None
    heard: list[events.Envelope] = []
    tell = cli.heard_by(heard.append, None, heard.append)
    assert tell is not None
    Recorder("r1", None, (tell,)).emit(runs.finished())
    assert len(heard) == 2


def test_a_call_of_a_tool_is_a_span_of_its_cell_and_tells_no_text_unless_asked() -> None:
    happened = [
        runs.started(),
        events.CellStarted(1, 1, "lookup()"),
        events.ToolStarted(1, 1, "lookup", TEXT),
        events.ToolFinished(1, TEXT, 0.1),
        events.ToolStarted(2, 1, "lookup", TEXT),
        events.ToolFailed(2, "tool_failed", TEXT, 0.1),
        events.ToolStarted(3, 1, "lookup", TEXT),
        events.CellFinished(1, 1, runs.cell_result()),
        runs.finished(),
    ]
    for content in (False, True):
        collected = Collected(content=content)
        collected.run(*happened)
        calls, cell = collected.spans("execute_tool lookup"), collected.span("execute_tool python")
        assert cell.context is not None
        assert [call.parent.span_id for call in calls if call.parent] == [cell.context.span_id] * 3
        assert [call.status.description for call in calls] == [None, "tool_failed", "abandoned"]
        told = [str(dict(call.attributes or {})) for call in calls]
        assert [TEXT in each for each in told] == [content] * 3
        assert dict(calls[0].attributes or {})["gen_ai.tool.name"] == "lookup"
