"""A question, and the id of the run that answers it."""

from __future__ import annotations

import secrets
import time

from orchestrator.errors import ConfigurationError

# It goes into every request; what is longer belongs into the context.
MAX_QUERY_CHARS = 100_000


def new_run_id() -> str:
    """Return an id that no other run has, and that sorts by the time it was made (UTC, to the millisecond)."""
    now = time.time()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now * 1000) % 1000:03d}-{secrets.token_hex(3)}"


def checked(query: object) -> str:
    """Return a question if it is one; a lone surrogate in it, which no provider could be sent, becomes ``?``.

    Raises:
        ConfigurationError: it is no text, empty, or too long.
    """
    if not isinstance(query, str):
        raise ConfigurationError(f"the query is a str, not {type(query).__name__}")
    if not query.strip():
        raise ConfigurationError("the query is empty: ask a question")
    if len(query) > MAX_QUERY_CHARS:
        raise ConfigurationError(
            f"the query has {len(query):,} characters and may have {MAX_QUERY_CHARS:,}: put long texts into the context"
        )
    return query.encode("utf-8", "replace").decode()
