"""Folds the kernel's messages into an :class:`~orchestrator.kernel.result.ExecutionResult`; pure.

The messages are testimony: a cell can forge any of them. So a closed set of shapes is read, every text is bounded again
here, and nothing a message says decides more than what the model is shown.
"""

from __future__ import annotations

from typing import Any

from orchestrator.kernel.result import CellError, ExecutionResult, Status, Step
from sandbox_image import wire

# The box cuts each stream at its limit and adds the tail and marks: twice the limit leaves room for those.
SLACK = 2
# Of a cell's messages: the gate in the box lets some 2,500 through, with a few times the limit in them. Who sends more
# than this is no gate.
MAX_MESSAGES = 10_000
MAX_TEXT = 32


class CellFold:
    """Collects one cell's output.

    Args:
        limit: characters of output a stream, a result or an error may have.
    """

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self._limit = limit
        self._streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._left = {"stdout": limit * SLACK, "stderr": limit * SLACK}
        self._messages = 0
        self._text_left = limit * MAX_TEXT
        self._result: str | None = None
        self._truncated = False
        self.error: CellError | None = None
        self.replied: Status | None = None

    def message(self, kind: str, content: dict[str, Any]) -> None:
        """Take one message of the open cell.

        Raises:
            WireError: its content has not the shape its type demands, or the cell's messages do not end.
        """
        self._messages += 1
        if self._messages > MAX_MESSAGES:
            raise wire.WireError("output of a cell without end")
        self._take(kind, content)

    def _take(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            name = self._text(content.get("name"))
            if name not in self._streams:
                raise wire.WireError("output on an unknown stream")
            self._write(name, self._text(content.get("text")))
        elif kind in ("execute_result", "display_data"):
            plain = self._text(_mapping(content.get("data")).get("text/plain", ""))
            if kind == "execute_result":
                self._result = self._bounded(plain)
            elif plain:
                self._write("stdout", plain + "\n")
        elif kind == "error":
            self.error = self._error(content)
        elif kind == "execute_reply":
            status = content.get("status")
            if status not in ("ok", "error", "aborted"):
                raise wire.WireError("reply with an unknown status")
            if status == "error":
                self.error = self._error(content)
            self.replied = "ok" if status == "ok" else "error"

    def cut(self, facts: dict[str, Any]) -> None:
        """Take what the supervisor held back: per stream the tail, and how much is lost before it.

        Raises:
            WireError: the facts have another shape.
        """
        for name in self._streams:
            if name in facts:
                cut = _mapping(facts[name])
                lost = cut.get("lost")
                if type(lost) is not int:
                    raise wire.WireError("cut without a count")
                self._write(name, (f"\n[… {lost:,} characters cut …]\n" if lost else "") + self._text(cut.get("tail")))
                self._truncated = self._truncated or lost > 0
        self._truncated = self._truncated or bool(facts.get("dropped")) or facts.get("shortened") is True

    def result(
        self,
        status: Status,
        *,
        elapsed_s: float,
        state_lost: bool = False,
        detail: str = "",
        ladder: tuple[Step, ...] = (),
    ) -> ExecutionResult:
        """Return the outcome."""
        return ExecutionResult(
            status=status,
            state_lost=state_lost,
            stdout="".join(self._streams["stdout"]),
            stderr="".join(self._streams["stderr"]),
            result=self._result,
            error=self.error,
            truncated=self._truncated,
            elapsed_s=elapsed_s,
            detail=detail,
            ladder=ladder,
        )

    def _write(self, name: str, text: str) -> None:
        kept = text[: self._left[name]]
        self._left[name] -= len(kept)
        self._truncated = self._truncated or len(kept) < len(text)
        if kept:
            self._streams[name].append(kept)

    def _text(self, value: object) -> str:
        if not isinstance(value, str):
            raise wire.WireError("text expected")
        self._text_left -= len(value)
        if self._text_left < 0:
            raise wire.WireError("output of a cell without end")
        # A lone surrogate is legal in JSON and in no encoding; it would break whoever writes the text next.
        return value if value.isascii() else value.encode("utf-8", "replace").decode()

    def _bounded(self, text: str) -> str:
        self._truncated = self._truncated or len(text) > self._limit * SLACK
        return text[: self._limit * SLACK]

    def _error(self, content: dict[str, Any]) -> CellError:
        lines = content.get("traceback")
        if not isinstance(lines, list):
            raise wire.WireError("error without a traceback")
        trace = "\n".join(self._text(line) for line in lines)
        return CellError(
            self._bounded(self._text(content.get("ename"))),
            self._bounded(self._text(content.get("evalue"))),
            self._bounded(trace),
        )


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wire.WireError("object expected")
    return value
