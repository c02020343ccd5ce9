"""From a model's spec, ``provider:name``, to the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.errors import ConfigurationError
from orchestrator.models.base import Model

FORMS: Final = "anthropic:NAME, openai:NAME, offline[:NAME] or scripted:FILE"
DEFAULT_ANTHROPIC: Final = "anthropic:claude-sonnet-5-5"
DEFAULT_OFFLINE: Final = "offline"


def open_model(spec: str, *, environ: Mapping[str, str] = os.environ) -> Model:
    """Open the model a spec names.

    Args:
        spec: ``anthropic:NAME``, ``openai:NAME``, ``offline[:NAME]`` or ``scripted:FILE``.
        environ: where keys and base URLs are looked up.

    Raises:
        ConfigurationError: the spec, or what it refers to, is wrong, or the provider needs a key and none is set; the
            message says what would be right.
    """
    provider, colon, name = (part.strip() for part in spec.partition(":"))
    opener = _OPENERS.get(provider)
    if opener is None:
        what = f"no model provider {provider!r} (in {spec!r})" if spec.strip() else "the model spec is empty"
        raise ConfigurationError(f"{what}: write {FORMS}")
    if not name and (colon or provider != "offline"):
        raise ConfigurationError(f"the model spec {spec!r} lacks what comes after {provider + ':'!r}: write {FORMS}")
    if not name.isprintable():
        raise ConfigurationError(f"the model spec {spec!r} holds characters that cannot be printed: write {FORMS}")
    return opener(name, environ)


def default_spec(environ: Mapping[str, str] = os.environ) -> str:
    """Return the spec used where none is given: Anthropic's where a key for it is set, else the offline model."""
    has_key = any(environ.get(name, "").strip() for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"))
    return DEFAULT_ANTHROPIC if has_key else DEFAULT_OFFLINE


# The modules are imported when a model of theirs is opened: a run that needs no SDK does not load one.
def _anthropic(name: str, environ: Mapping[str, str]) -> Model:
    from orchestrator.models.anthropic import AnthropicModel

    return AnthropicModel(name, environ=environ)


def _openai(name: str, environ: Mapping[str, str]) -> Model:
    from orchestrator.models.openai import OpenAIModel

    return OpenAIModel(name, environ=environ)


def _offline(name: str, _environ: Mapping[str, str]) -> Model:
    from orchestrator.models.offline import OfflineModel

    return OfflineModel(f"offline:{name}") if name else OfflineModel()


def _scripted(name: str, _environ: Mapping[str, str]) -> Model:
    from orchestrator.models.scripted import ScriptedModel

    return ScriptedModel.load(name)


_OPENERS: Final[dict[str, Callable[[str, Mapping[str, str]], Model]]] = {
    "anthropic": _anthropic,
    "openai": _openai,
    "offline": _offline,
    "scripted": _scripted,
}
