"""Recursive language models whose code runs in locked-down containers.

Importing this package does nothing and loads nothing: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.documents.load import load_context
    from orchestrator.errors import (
        ConfigurationError,
        JournalError,
        LimitExceededError,
        ModelError,
        RlmSandboxError,
        SandboxError,
    )
    from orchestrator.events import Envelope
    from orchestrator.interpreter import Sandbox
    from orchestrator.kernel.result import ExecutionResult
    from orchestrator.models.base import Message, Model, ModelReply, ModelRequest, Usage
    from orchestrator.models.scripted import ScriptedModel
    from orchestrator.policy import Policy
    from orchestrator.pool import Pool
    from orchestrator.rlm.api import RLM
    from orchestrator.rlm.dialogue import AsyncDialogue, Dialogue
    from orchestrator.rlm.result import Result
    from orchestrator.rlm.stream import RunStream
    from orchestrator.tools import ToolError
    from orchestrator.trajectory.journal import read as read_journal
    from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply

__version__ = "0.1.0"

# Module of each public name; after a colon, what it is called there where that is something else.
_HOMES = {
    "AsyncDialogue": "rlm.dialogue",
    "ConfigurationError": "errors",
    "Dialogue": "rlm.dialogue",
    "Envelope": "events",
    "ExecutionResult": "kernel.result",
    "JournalError": "errors",
    "LimitExceededError": "errors",
    "Message": "models.base",
    "Model": "models.base",
    "ModelError": "errors",
    "ModelReply": "models.base",
    "ModelRequest": "models.base",
    "Policy": "policy",
    "Pool": "pool",
    "RLM": "rlm.api",
    "Result": "rlm.result",
    "RlmSandboxError": "errors",
    "RpcCall": "transport.rpc",
    "RpcRefusal": "transport.rpc",
    "RpcReply": "transport.rpc",
    "RunStream": "rlm.stream",
    "Sandbox": "interpreter",
    "SandboxError": "errors",
    "ScriptedModel": "models.scripted",
    "ToolError": "tools",
    "Usage": "models.base",
    "load_context": "documents.load",
    "read_journal": "trajectory.journal:read",
}

__all__ = [
    "RLM",
    "AsyncDialogue",
    "ConfigurationError",
    "Dialogue",
    "Envelope",
    "ExecutionResult",
    "JournalError",
    "LimitExceededError",
    "Message",
    "Model",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "Policy",
    "Pool",
    "Result",
    "RlmSandboxError",
    "RpcCall",
    "RpcRefusal",
    "RpcReply",
    "RunStream",
    "Sandbox",
    "SandboxError",
    "ScriptedModel",
    "ToolError",
    "Usage",
    "__version__",
    "load_context",
    "read_journal",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what there is, loaded or not."""
    return sorted({*globals(), *__all__})
