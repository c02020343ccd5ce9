"""Journals made by hand, for whatever shows them."""

from __future__ import annotations

from pathlib import Path

from orchestrator import events
from orchestrator.events import Envelope, Event
from orchestrator.trajectory.journal import JournalWriter
from tests.support.runs import cell_result, finished, replied, started


def write_at(folder: Path, run: str, happened: list[tuple[float, Event]], parent: str | None = None) -> Path:
    """Write the journal of ``run``: events, each with the seconds since the run began."""
    with JournalWriter.create(folder, run) as writer:
        for number, (at, event) in enumerate(happened):
            writer(Envelope(run, parent, number, at, 1_795_411_200 + at, event))
    return writer.path


def with_calls(folder: Path, calls: int, prompt: str = "What is here?", run: str = "many") -> Path:
    """Write a run of one cell that makes ``calls`` sub-calls, ten of them at a time, each of one second."""
    happened: list[tuple[float, Event]] = [(0, started()), (1, replied()), (1, events.CellStarted(1, 1, "ask()"))]
    usage = {"input_tokens": 10, "output_tokens": 2}
    for first in range(0, calls, 10):
        wave = range(first, min(first + 10, calls))
        at = 1.0 + first / 10
        happened += [(at, events.SubcallStarted(n, 1, "sub-model", f"{prompt} {n}", 64, "b1")) for n in wave]
        happened += [(at + 1, events.SubcallFinished(n, f"word {n}", "end", usage, 0.001, 1, 1.0)) for n in wave]
    end = 1.0 + calls / 10
    happened += [(end, events.CellFinished(1, 1, cell_result())), (end, finished())]
    return write_at(folder, run, happened)


def everywhere(folder: Path, text: str, run: str = "hostile") -> Path:
    """Write a run that holds ``text`` in every place where a model or a box can put it, a child run among them."""
    error = {"name": text, "value": text, "traceback": text}
    result = cell_result(status="error", stdout=text, stderr=text, result=text, error=error, detail=text)
    child = f"{run}.1"
    usage = {"input_tokens": 1, "output_tokens": 1}

    def one(query: str, depth: int) -> list[Event]:
        context = {"kind": text, "characters": 1, "lines": 1}
        begin = events.RunStarted(query, context, {"name": text}, text, text, depth)
        return [
            begin,
            events.SandboxOpened(text, text, text, 0.1, {text: text}),
            events.Observed(0, text),
            events.RootFailed(1, text, text, 1, 0.1),
            replied(1, text),
            events.RootReplied(2, text, text, usage, None, 0.1),
            events.CellStarted(1, 1, text),
            events.SubcallStarted(1, 1, text, text, 64, text),
            events.SubcallFinished(1, text, text, usage, 0.1, 1, 0.1),
            events.SubcallStarted(2, 1, text, text, 64, text),
            events.SubcallFailed(2, text, text, 1, 0.1),
            events.RetryScheduled(text, 1, text, 0.1),
            events.Refused(1, text, text, 1.0),
            events.LimitReached(text, 1.0),
            events.CellFinished(1, 1, result),
            events.FinalSet(1, text),
            events.SandboxClosed(text, text),
        ]

    end = events.RunFinished("no_answer", text, text, {"calls": 1, "by_model": {text: {"calls": 1}}}, 2, 1.0)
    write_at(folder, child, [(n / 10, event) for n, event in enumerate([*one(text, 1), end])], run)
    own = one(text, 0)
    own[13:13] = [events.ChildStarted(child, 1, text), events.ChildFinished(child, text, text)]
    return write_at(folder, run, [(n / 10, event) for n, event in enumerate([*own, end])])
