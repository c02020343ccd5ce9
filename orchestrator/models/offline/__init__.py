"""A model that needs no key and no network: a small deterministic program, and no language model of any strength."""

from __future__ import annotations

from orchestrator.models.offline.model import HELP, OfflineModel

__all__ = ["HELP", "OfflineModel"]
