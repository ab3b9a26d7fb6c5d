"""Training: from a configuration to a run folder."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {"LitCaptioner": "captioner.training.module"}


def __getattr__(name: str) -> Any:
    """Import the documented names of this package when they are first used."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
