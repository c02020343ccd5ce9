"""What a person sees while one question after another is answered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.cli.common import note

if TYPE_CHECKING:
    from orchestrator.cli.progress import Progress
    from orchestrator.events import Envelope, Sink


class View:
    """The progress of the question that is being answered; between two there is none, and nothing is drawn.

    Attributes:
        sink: hears the events; None where nobody is to see them.
    """

    def __init__(self, *, quiet: bool) -> None:
        """Begin between two questions; a ``quiet`` one shows no progress at all."""
        self.sink: Sink | None = None if quiet else self._tell
        self._quiet = quiet
        self._progress: Progress | None = None

    def _tell(self, envelope: Envelope) -> None:
        if self._progress is not None:
            self._progress(envelope)

    def message(self, text: str) -> None:
        """Show a line that is about this program."""
        (note if self._progress is None else self._progress.message)(text)

    @contextmanager
    def question(self) -> Iterator[Progress | None]:
        """Show the progress of one question; at the end what was drawn anew is gone."""
        from orchestrator.cli.progress import Progress
        from orchestrator.models.prices import PriceTable

        self._progress = None if self._quiet else Progress.on(sys.stderr, PriceTable.load())
        try:
            yield self._progress
        finally:
            if self._progress is not None:
                self._progress.close()
            self._progress = None
