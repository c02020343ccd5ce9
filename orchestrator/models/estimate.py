"""Token counts for replies whose provider sent none; always marked as estimates."""

from __future__ import annotations

from orchestrator.models.base import ModelRequest, Usage

_BYTES_PER_TOKEN = 4  # what byte-pair tokenizers give for English prose, rounded to a whole number


def tokens(text: str) -> int:
    """Estimate the tokens of ``text``: one for each four bytes of UTF-8, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def usage(request: ModelRequest, reply: str) -> Usage:
    """Estimate the bill of one exchange."""
    return Usage(
        input_tokens=tokens(request.system) + sum(tokens(message.text) for message in request.messages),
        output_tokens=tokens(reply),
        estimated=True,
    )
