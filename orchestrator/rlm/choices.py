"""Which models a caller chose, and their connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import anyio

from orchestrator.errors import ConfigurationError
from orchestrator.models.base import Model, Usage
from orchestrator.models.prices import PriceTable, names_of
from orchestrator.models.spec import FORMS, open_model
from orchestrator.policy import Policy


class OpenModels:
    """The models of one run: opened once each, closed together.

    Attributes:
        provider: of a model that is asked for by its bare name.
    """

    def __init__(self) -> None:
        self.provider = ""
        self._by_spec: dict[str, Model] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[OpenModels]:
        """Close all that were opened when the block is left."""
        models = cls()
        try:
            yield models
        finally:
            with anyio.CancelScope(shield=True):
                for model in models._by_spec.values():
                    await model.aclose()

    def open(self, model: str | Model) -> Model:
        """Return a model by its spec, the same one each time; an object is returned as it is, and stays its owner's."""
        if not isinstance(model, str):
            return model
        if model not in self._by_spec:
            self._by_spec[model] = open_model(model)
        return self._by_spec[model]

    def named(self, name: str) -> Model:
        """Return a model of ``models.allowed``.

        Raises:
            ConfigurationError: it is not usable, or it is not known whose it is.
        """
        if ":" in name:
            return self.open(name)
        if not self.provider:
            raise ConfigurationError(f"models.allowed: write {name!r} with its provider, for example anthropic:{name}")
        return self.open(f"{self.provider}:{name}")


def spec_of(model: str | Model | None) -> str:
    """Return a spec as it was given; nothing for an object."""
    return model if isinstance(model, str) else ""


def chosen(what: str, model: object) -> str | Model | None:
    """Return what the caller gave as the argument ``what``, if it is a spec, a Model or None.

    Raises:
        ConfigurationError: it is something else.
    """
    if model is None or isinstance(model, str):
        return model
    fits = isinstance(getattr(model, "name", None), str) and callable(getattr(model, "complete", None))
    if isinstance(model, type) or not fits or not callable(getattr(model, "aclose", None)):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"
        raise ConfigurationError(
            f"{what} is {given}: give a spec ({FORMS}), or an object with a name (a str) and the coroutine methods "
            "complete(request) and aclose()"
        )
    return cast("Model", model)


def check_caps(policy: Policy, prices: PriceTable) -> None:
    """Check that each of ``models.price_caps`` can bind.

    Raises:
        ConfigurationError: no price is known for the model of one.
    """
    for spec in policy.models.price_caps:
        if all(prices.cost_nano(name, Usage()) is None for name in names_of(spec)):
            raise ConfigurationError(f"models.price_caps: no price is known for {spec!r}, so no cap can bind it")
