"""Whether a stage of a run reads what is cached of its frozen parts: decided once, where it can be, and kept.

    RUN/inputs/grounding.json        whether the stage reads trunk features, or images
    RUN/inputs/retrieval.keys.json   whether it reads keys (`keys.py`), or computes them

Features are rounded to bfloat16, and the last bits of queries depend on which texts are computed together, so a run
that went on with the other would end otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Literal

from groundray.config import Settings
from groundray.data.derived import DerivedDataset, count_missing_rows, open_derived
from groundray.storage.folder import Folder, format_bytes
from groundray.training.checkpoint import CheckpointStore
from groundray.training.feature_uses import make_room, stored_features
from groundray.training.layout import INPUTS, features_folder

Cached = Literal["features", "keys"]


def recorded(run: Folder, stage: str, cached: Cached) -> bool | None:
    """Return whether a stage of a run reads what is cached; None if that is not decided.

    Raises:
        Damaged: the record is damaged.
    """
    if (run / INPUTS).exists(name := _file(stage, cached)):
        repair = "write in it what the stage has read, or start the run anew under another --run.name"
        return bool((run / INPUTS).read_sealed(name, repair=repair)[cached])
    # earlier versions always read features, and still earlier ones knew no keys
    return cached == "features" if CheckpointStore.at(run).committed(stage) else None


def record(run: Folder, stage: str, cached: Cached, reads: bool) -> None:
    """Record whether a stage of a run reads what is cached, unless that is recorded."""
    (run / INPUTS).make().create_sealed(_file(stage, cached), {cached: reads})


def _file(stage: str, cached: Cached) -> str:
    return f"{stage}.json" if cached == "features" else f"{stage}.{cached}.json"


def misfit(specs: Sequence[DerivedDataset], settings: Settings, notice: Callable[[str], None]) -> str | None:
    """Return why features do not fit, with both sizes; None if they do. Makes room as `features.max_gb` asks.

    Args:
        specs: all that a stage reads. Those that are complete fit.
        notice: takes a line for each deletion.
    """
    missing = [spec for spec in specs if not open_derived(spec)]
    if not missing:
        return None
    cache, total = features_folder(settings), sum(spec.bytes for spec in specs)
    needed = sum(count_missing_rows(spec) * spec.bytes_per_row for spec in missing)
    if settings.features.max_gb:
        limit = int(settings.features.max_gb * 1e9)
        if total > limit:
            return f"they take {format_bytes(total)}, features.max_gb allows {format_bytes(limit)}"
        for line in make_room(cache, needed, limit, {spec.folder.name for spec in specs}):
            notice(line)
        used = sum(features.bytes for features in stored_features(cache))
        if used + needed > limit:
            others = format_bytes(used + needed - total)
            return f"they take {format_bytes(total)}, features.max_gb allows {format_bytes(limit)}, {others} are in use"
    if cache.local and needed > (free := shutil.disk_usage(cache.make().path).free):
        return f"they take {format_bytes(needed)} more, {format_bytes(free)} are free at {cache}"
    return None
