"""Every exception this package raises on purpose.

The type says whose fault it is, so a caller knows what to do next::

    RlmSandboxError
    ├── ConfigurationError      the caller: a bad flag, file or value, a missing key  exit 2
    │   ├── PolicyError             a policy that does not parse or would widen
    │   └── ContextError            a prompt that cannot be loaded or is too large
    ├── SandboxError            the engine or the box, never the code in it         exit 4
    │   ├── EngineUnavailableError  no Docker engine answers
    │   ├── ImageError              the image is missing, stale or cannot be built
    │   ├── SandboxStartError       the box did not come up
    │   ├── HardeningError          a control is not in force: the box was refused
    │   └── SandboxGoneError        the box is dead or closed; it cannot be used again
    ├── ModelError              the model's provider                                exit 5
    │   ├── ModelAuthenticationError  the key is refused
    │   ├── ModelUnavailableError     overloaded, unreachable or failing: worth another try
    │   │   └── ProviderDownError         failing for so long that it is asked no more for now
    │   └── ModelRequestError         the provider refuses this very request
    ├── LimitExceededError      a budget of the policy is used up                   exit 3
    └── JournalError            the record of the run cannot be written or read     exit 1
        └── ResumeError             a run cannot be taken up again from its record

Code that a model wrote and that fails is none of these: it is an
:class:`~orchestrator.kernel.outputs.ExecutionResult`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class RlmSandboxError(Exception):
    """Base of all; never raised itself."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(RlmSandboxError):
    """The caller asked for what cannot be, or did not set a model's key; the message says what would be right."""

    exit_code = 2


class PolicyError(ConfigurationError):
    """A policy does not parse, holds an unknown key, or would widen what it may only narrow.

    Attributes:
        problems: each on a line of its own; the message has them all.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        """Keep ``problems`` as data; the message alone is one, where there is no more to tell."""
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class ContextError(ConfigurationError):
    """A context cannot be read, is of an unsupported type, or is larger than the policy allows."""


class SandboxError(RlmSandboxError):
    """The engine or the box failed; whatever the code in it did is not the cause."""

    exit_code = 4


class EngineUnavailableError(SandboxError):
    """No Docker engine answers, or it refused an operation it should support."""


class ImageError(SandboxError):
    """The sandbox image is missing, speaks another protocol version, or cannot be built."""


class SandboxStartError(SandboxError):
    """A box did not become ready."""


class HardeningError(SandboxError):
    """A control the policy demands is not in force; the box has been destroyed.

    Attributes:
        controls: what deviated, one readable line each.
    """

    def __init__(self, controls: list[str]) -> None:
        """Keep ``controls`` as data and join them for the reader."""
        super().__init__("the box is not as the policy demands: " + "; ".join(controls))
        self.controls = controls


class SandboxGoneError(SandboxError):
    """The box is dead, burnt or closed."""


class ModelError(RlmSandboxError):
    """A model's provider could not or would not answer; itself, and no subclass: a caller's own Model broke.

    Attributes:
        code: a stable word for the journal and, where it concerns a sub-call, for the box.
        attempts: how many requests left this host before giving up.
        may_be_billed: the request left, and no verdict of the provider's came back: it may bill it all the same.
    """

    exit_code = 5
    code: ClassVar[str] = "model_error"
    attempts: int = 1
    may_be_billed: bool = False


class ModelAuthenticationError(ModelError):
    """The provider refuses the key: no further call can succeed."""

    code = "model_authentication"


class ModelUnavailableError(ModelError):
    """Overloaded, rate-limited, unreachable, or cut off: the same request may succeed later.

    Attributes:
        retry_after_s: seconds the provider asked to wait, if it did.
    """

    code = "model_unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None, may_be_billed: bool = False) -> None:
        """Remember what the provider said about when to come back, if it said anything."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.may_be_billed = may_be_billed


class ProviderDownError(ModelUnavailableError):
    """The provider has failed so often and for so long that nothing is sent to it before ``retry_after_s``."""

    code = "provider_down"


class ModelRequestError(ModelError):
    """The provider refuses this request (too long, malformed, unknown model): do not repeat it."""

    code = "model_request"


class LimitExceededError(RlmSandboxError):
    """A budget is used up.

    Attributes:
        reason: which one, as the policy key names it: ``calls``, ``tokens``, ``cost_usd``, ``depth``, ``children``,
            ``children_alive``, ``turns``, ``bytes_in``, ``bytes_out``, ``tool_calls``, ``journal_mb``, ``wall_s``,
            ``cell_timeout_s`` or ``call_timeout_s``. Or ``overbilled``: a provider billed more than a request can
            cost at worst.
        limit: how much of it was left for what was asked, in the key's own unit.
    """

    exit_code = 3

    def __init__(self, reason: str, limit: float, message: str = "") -> None:
        """Hold the facts as data; ``message`` is for people."""
        super().__init__(message or f"the budget for {reason} is used up ({limit:g} left)")
        self.reason = reason
        self.limit = limit


class JournalError(RlmSandboxError):
    """The journal cannot be written (a full disk, say) or is not one of ours."""


class ResumeError(JournalError):
    """A run cannot go on where its journal ends: it does something else this time, or its context is another."""


class ungrouped:  # noqa: N801 - used as contextlib's own
    """Let the first exception of a group leave alone: a task group inside must not change what a caller catches.

    Entered it gives a list; a group put into it leaves whole, because it is a caller's own and not that of a task group
    inside.

    It is no generator, and forgets what it saw: frames in the traceback of what leaves would otherwise hold that very
    exception, and all other frames with it, with texts of many megabytes, until they are collected.
    """

    def __init__(self) -> None:
        """Begin with no group that leaves whole."""
        self._whole: list[BaseException] = []

    def __enter__(self) -> list[BaseException]:
        """Return the list."""
        return self._whole

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Raise the first exception of a group."""
        try:
            if isinstance(error, BaseExceptionGroup):
                _raise_first(error, self._whole)
        finally:
            self._whole.clear()
            del error, _traceback


def _raise_first(leaf: BaseException, whole: list[BaseException]) -> None:
    while isinstance(leaf, BaseExceptionGroup) and not any(leaf is kept for kept in whole):
        leaf = leaf.exceptions[0]
    context, suppressed = leaf.__context__, leaf.__suppress_context__
    try:
        raise leaf
    finally:
        # Raising it here has put the group into its history, in place of what its author wrote.
        leaf.__context__, leaf.__suppress_context__ = context, suppressed
        del leaf, context
