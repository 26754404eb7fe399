"""Train, sweep and understand visually grounded language models on Ray.

Settings and training: load_settings, fit, Settings, SettingsError. Trained models: open_model, embed, analyse_model,
open_search. Each name is imported on first use, so that importing groundray takes milliseconds.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from groundray.cli.api import analyse_model, embed, fit, load_settings, open_model, open_search
    from groundray.config import Settings, SettingsError

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cli.api": ["analyse_model", "embed", "fit", "load_settings", "open_model", "open_search"],
        "config": ["Settings", "SettingsError"],
    },
)
