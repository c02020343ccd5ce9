"""How a cell can end, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "output_limit", "oom", "died", "protocol_error", "cancelled"]
Step = Literal["interrupt", "kill", "destroy"]


@dataclass(frozen=True, slots=True)
class CellError:
    """The exception that ended a cell, as the kernel reported it: text from a stranger."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """The outcome of one cell. Code that fails is a result, never an exception on the host.

    Attributes:
        status: ``ok``; ``error`` (the code raised); ``timeout`` (the deadline passed); ``output_limit`` (it flooded
            the channel until it had to be stopped); ``oom`` (the kernel of the host killed it for memory); ``died``
            (the REPL process ended by itself); ``protocol_error`` (what the box sent made no sense: the box is burnt);
            ``cancelled`` (the caller asked it to stop).
        state_lost: the variables of earlier cells are gone; a fresh REPL with ``context`` serves the next cell, unless
            the box itself is gone.
        stdout: text written there; when it was cut, head and tail with the cut marked between.
        stderr: likewise.
        result: ``text/plain`` of the last expression, if it had a value.
        error: the exception, when ``status`` is ``error``, or what is known of the end otherwise.
        truncated: some output was cut.
        elapsed_s: seconds from sending the cell to its end, on the host's monotonic clock.
        detail: for people: what was done to end the cell, or how the process died.
        ladder: what was done to end the cell, in that order; nothing for one that ended by itself. ``interrupt``:
            SIGINT to the process group of the REPL; ``kill``: SIGKILL to every process of the box but its supervisor,
            which starts a fresh REPL; ``destroy``: the box was given up.
    """

    status: Status
    state_lost: bool = False
    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    error: CellError | None = None
    truncated: bool = False
    elapsed_s: float = 0.0
    detail: str = ""
    ladder: tuple[Step, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the cell ran to its end."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``rlm-sandbox exec --json`` prints it."""
        return {**asdict(self), "ladder": list(self.ladder)}
