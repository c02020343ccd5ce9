"""The descriptors that the supervisor hands to the kernel's process, beside the three of every process."""

from __future__ import annotations

# Its end of the line for calls.
RPC_FD = 3
# The context, read-only.
CONTEXT_FD = 4
