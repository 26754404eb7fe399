"""Train, sweep and understand visually grounded language models on Ray.

Settings and training: load_settings, fit, Settings, SettingsError. Trained models: open_model, embed, analyse_model,
open_search. See `groundray.api`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundray.api import analyse_model, embed, fit, load_settings, open_model, open_search
    from groundray.config import Settings, SettingsError

__all__ = [
    "Settings",
    "SettingsError",
    "analyse_model",
    "embed",
    "fit",
    "load_settings",
    "open_model",
    "open_search",
]
_CONFIG = ("Settings", "SettingsError")


def __getattr__(name: str) -> Any:
    """Import a name of the API on first use (PEP 562), so that importing groundray takes milliseconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("groundray.config" if name in _CONFIG else "groundray.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
