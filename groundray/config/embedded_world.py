"""Where the data of the preset `demo` are: the embedded world, which a run draws if it is missing."""

from __future__ import annotations

WORLD = "data/scenes"  # in the preset
SHARED_WORLD = f".{WORLD}"  # in `run.storage`, which all machines of a cluster see


def in_preset(value: object) -> object:
    """Return the preset's path of a part of the embedded world that is in some `run.storage`; any other value as it is.

    A run is the same run wherever its world was drawn.
    """
    if not isinstance(value, str):
        return value
    _, shared, part = value.partition(f"/{SHARED_WORLD}/")
    return f"{WORLD}/{part}" if shared else value
