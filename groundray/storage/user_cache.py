"""The folder of this machine in which commands keep what they can make or download again."""

from __future__ import annotations

import os
from pathlib import Path

from groundray.storage.folder import Folder


def user_cache(url: str | Path | None = None) -> Folder:
    """Return the folder at a path or URL, by default `$XDG_CACHE_HOME/groundray` or `~/.cache/groundray`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Folder.at(url or f"{home}/groundray")
