"""What ``rlm-sandbox doctor`` found, for people: at most 80 columns, and plain wherever it goes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.text import counted, one_line

if TYPE_CHECKING:
    from orchestrator.cli.findings import Findings
    from orchestrator.sandbox.host import Advice

_WIDTH = 80
_LABEL = 9
_FREE_TEXT = 400


def report(findings: Findings) -> str:
    """Return the whole report, each line ended."""
    parts = (_head, _missing, _controls, _self_check, _benchmark, _versions, _host, _verdict)
    return "".join(f"{line}\n" for part in parts for line in part(findings))


def _entry(label: str, text: str, width: int = _LABEL, indent: int = 0) -> str:
    """Return a text behind a label, its further lines set in to where it begins."""
    first = " " * indent + label.ljust(width)
    return textwrap.fill(
        one_line(text, _FREE_TEXT),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
    )


def _head(findings: Findings) -> Iterator[str]:
    if engine := findings.engine:
        runc = f", runc {engine.runc}" if engine.runc else ""
        yield _entry(
            "engine", f"Docker {engine.version}{runc} on Linux {engine.kernel}, cgroup v{engine.cgroup_version}"
        )
        yield _entry("runtimes", f"{', '.join(engine.runtimes)} (default {engine.default_runtime})")
        yield _entry("security", ", ".join(engine.security_options) or "nothing reported")
    if image := findings.image:
        yield _entry("image", f"{image.id} (protocol {image.protocol})")
    if box := findings.box:
        yield _entry("box", f"opened in {box.opened_s:.2f} s under {box.runtime}")
        yield _entry("kernel", f"{box.kernel} (as the box sees it)")


def _missing(findings: Findings) -> Iterator[str]:
    if findings.missing:
        yield "\nControls that are missing: the box was refused"
    for control in findings.missing:
        yield _entry("MISSING", control, 9, 2)


def _controls(findings: Findings) -> Iterator[str]:
    from orchestrator.sandbox.controls import CONTROLS

    if findings.box is None:
        return
    found = findings.box.controls
    held = sum("NOT IN FORCE" not in state for state in found.values())
    yield f"\nControls: {held} of {len(found)} hold, as read back (in brackets: CIS Docker Benchmark)"
    for control in CONTROLS:
        if control.id in found:
            cis = f" [{' '.join(control.cis)}]" if control.cis else ""
            state = found[control.id].removeprefix(f"{control.what}: ")
            # How it was seen is for --json, unless there is more to say.
            note = "" if state.startswith("held") and ";" not in state else f": {state}"
            yield _entry(control.id, f"{control.what}{note}{cis}", 6, 2)


def _self_check(findings: Findings) -> Iterator[str]:
    if not findings.attacks:
        return
    held = sum(outcome.contained for outcome in findings.attacks)
    yield f"\nSelf-check: {held} of {counted(len(findings.attacks), 'attack')} contained"
    for outcome in findings.attacks:
        label = "contained" if outcome.contained else "known" if outcome.known else "ESCAPED"
        controls = " ".join(outcome.attack.controls)
        text = f"{outcome.attack.what}: {outcome.said}"
        if not outcome.contained:
            text += f", expected {' or '.join(sorted(outcome.attack.contained))}"
        yield _entry(label, f"{text} ({controls}{'; ' if outcome.known else ''}{outcome.known})", 11, 2)


def _benchmark(findings: Findings) -> Iterator[str]:
    if not findings.cis:
        return
    states = [verdict.state for verdict in findings.cis]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("pass", "fail", "not applicable"))
    yield f"\nCIS Docker Benchmark 1.6, section 5: {counts}"
    for verdict in findings.cis:
        if verdict.state != "pass":
            why = f": {verdict.why}" if verdict.why else ""
            label = "FAIL" if verdict.state == "fail" else "n/a"
            yield _entry(f"{label:4}  {verdict.id}", f"{verdict.title}{why}", 12, 2)


def _versions(findings: Findings) -> Iterator[str]:
    if findings.floors or findings.unknown:
        yield "\nVersions with a published bug (a distribution may have mended them silently)"
    for found in findings.floors:
        yield _entry("OPEN" if found.open else "below", str(found), 7, 2)
    for component in findings.unknown:
        yield _entry("?", f"the version of {component} is not told", 7, 2)


def _host(findings: Findings) -> Iterator[str]:
    if findings.advice:
        yield "\nThe host: what it may give besides, and what it costs that it does not"
    label: dict[str, str] = {"on": "on", "off": "off", "not visible": "?"}
    for advice in findings.advice:
        yield _entry(f"{label[advice.state]:4} {advice.id}", _advised(advice), 10, 2)


def _advised(advice: Advice) -> str:
    text = f"{advice.what}: {advice.found}"
    return text if advice.state != "off" else f"{text}. Cost: {advice.cost}. Remedy: {advice.remedy}"


def _verdict(findings: Findings) -> Iterator[str]:
    if findings.box is None:
        return
    escaped = sum(outcome.failed for outcome in findings.attacks)
    opened = sum(found.open for found in findings.floors)
    wrong = [
        text
        for number, text in (
            (escaped, f"{counted(escaped, 'attack')} not contained"),
            (opened, f"{counted(opened, 'known bug')} that nothing of a box stops"),
        )
        if number
    ]
    weigh = sum(advice.state == "off" for advice in findings.advice) + len(findings.floors) - opened
    if wrong:
        yield "\n" + _entry("verdict", f"NOT SAFE: {'; '.join(wrong)}")
    elif findings.attacks:
        rest = f"; {counted(weigh, 'finding')} above to weigh" if weigh else ""
        yield f"\n{'verdict':{_LABEL}}everything mandatory holds{rest}"
