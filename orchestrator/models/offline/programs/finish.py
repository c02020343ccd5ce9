"""I answer with what I have."""

from __future__ import annotations

NOTE = ""

# ---- in the REPL ----
Final = str(globals().get("draft") or "I could not find an answer.") + NOTE
