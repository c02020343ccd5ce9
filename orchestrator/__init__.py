"""Recursive language models whose code runs in locked-down containers.

Importing this package does nothing and loads nothing: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.errors import (
        ConfigurationError,
        JournalError,
        LimitExceededError,
        ModelError,
        RlmSandboxError,
        SandboxError,
    )
    from orchestrator.interpreter import Sandbox
    from orchestrator.kernel.result import ExecutionResult
    from orchestrator.models.base import Message, Model, ModelReply, ModelRequest, Usage
    from orchestrator.policy import Policy
    from orchestrator.rlm.api import RLM
    from orchestrator.rlm.result import Result

__version__ = "0.1.0"

_HOMES = {
    "ConfigurationError": "errors",
    "ExecutionResult": "kernel.result",
    "JournalError": "errors",
    "LimitExceededError": "errors",
    "Message": "models.base",
    "Model": "models.base",
    "ModelError": "errors",
    "ModelReply": "models.base",
    "ModelRequest": "models.base",
    "Policy": "policy",
    "RLM": "rlm.api",
    "Result": "rlm.result",
    "RlmSandboxError": "errors",
    "Sandbox": "interpreter",
    "SandboxError": "errors",
    "Usage": "models.base",
}

__all__ = [
    "RLM",
    "ConfigurationError",
    "ExecutionResult",
    "JournalError",
    "LimitExceededError",
    "Message",
    "Model",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "Policy",
    "Result",
    "RlmSandboxError",
    "Sandbox",
    "SandboxError",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what there is, loaded or not."""
    return sorted({*globals(), *__all__})
