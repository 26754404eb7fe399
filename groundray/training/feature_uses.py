"""Uses of trunk features: which runs read them, when they were last used, and which may be deleted.

    FEATURES/KEY/                   trunk features (trunk_features.py)
    FEATURES/uses/KEY-ID.json       a run or sweep that reads them: its folder, and when an attempt last began to
    FEATURES/deleting/KEY.json      they are about to be deleted

A reader writes its use and then looks for a deletion; whoever deletes announces it and then looks for uses. Of two that
do so at once, at least one sees the other: the deletion is given up, or the reader waits for its end and makes the
features again. The storage only has to list what was written.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass

import pyarrow.fs as pafs

from groundray.storage.folder import Folder, format_bytes
from groundray.training import attempts
from groundray.training.layout import ATTEMPTS, is_complete

USES, DELETING = "uses", "deleting"
KEY = r"[0-9a-f]{16}"
# A run counts as active for this long after its last heartbeat, unless it has said why it ended. Heartbeats come with
# steps; a validation and a pass that makes features have none.
IDLE_SECONDS = 6 * 3600.0
MARK_SECONDS = 600.0  # between marks of a use during a pass
ABANDONED_SECONDS = 600.0  # a deletion that takes longer was killed
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class StoredFeatures:
    """Trunk features that are stored.

    Attributes:
        folder: where they are.
        bytes: size of all files.
        last_written: when a part was last written, in seconds since 1970.
        last_used: when a part was written or an attempt began to read them.
    """

    folder: Folder
    bytes: int
    last_written: float
    last_used: float


def mark_used(features: Folder, run: Folder) -> None:
    """Record that a run uses trunk features from now on. Waits until a deletion of them that has begun is over."""
    cache, key = features.parent, features.name
    (cache / USES).make().write_json(f"{key}-{_use(run)}", {"run": str(run), "time": time.time()})
    while (began := _time(cache / DELETING, f"{key}.json")) is not None:
        if time.time() - began > ABANDONED_SECONDS:
            (cache / DELETING).delete(f"{key}.json")
        time.sleep(POLL_SECONDS)


def release(cache: Folder, run: Folder) -> None:
    """Record that a run uses no trunk features any more."""
    for name in (cache / USES).names():
        if name.endswith(f"-{_use(run)}"):
            (cache / USES).delete(name)


def _use(run: Folder) -> str:
    """Return the end of the names of a run's uses."""
    return f"{hashlib.sha256(str(run).encode()).hexdigest()[:12]}.json"


def stored_features(cache: Folder) -> list[StoredFeatures]:
    """Return all trunk features of a cache, the least recently used first."""
    sizes: dict[str, int] = {}
    written: dict[str, float] = {}
    selector = pafs.FileSelector(cache.path, allow_not_found=True, recursive=True)
    for info in cache.filesystem.get_file_info(selector):
        name = info.path[len(cache.path) :].lstrip("/")
        key = name.partition("/")[0]
        if info.is_file and re.fullmatch(KEY, key):
            sizes[key] = sizes.get(key, 0) + info.size
            written[key] = max(written.get(key, 0.0), (info.mtime_ns or 0) / 1e9)
    used = dict(written)
    for name in (cache / USES).names():
        key = name.partition("-")[0]
        if key in used:
            used[key] = max(used[key], _time(cache / USES, name) or 0.0)
    return sorted(
        (StoredFeatures(cache / key, size, written[key], used[key]) for key, size in sizes.items()),
        key=lambda features: features.last_used,
    )


def user_of(features: StoredFeatures, idle_seconds: float = IDLE_SECONDS) -> str:
    """Return what uses trunk features now, or may use them, in a few words; empty if nothing does."""
    cache, key = features.folder.parent, features.folder.name
    now = time.time()
    for name in (cache / USES).names():
        if not name.startswith(f"{key}-"):
            continue
        try:
            use = (cache / USES).read_json(name)
            run, began = Folder.at(use["run"]), float(use["time"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        last, ended = _last_heartbeat(run)
        # a run that began just now may have no attempt yet
        if not (is_complete(run) or (ended and last >= began)) and now - max(last, began) < idle_seconds:
            return f"read by {run}"
    age = now - features.last_written
    return f"written {age / 60:.0f} min ago" if age < min(idle_seconds, ABANDONED_SECONDS) else ""


def is_active(run: Folder, idle_seconds: float = IDLE_SECONDS) -> bool:
    """Return True if an attempt at a run may be alive: it has not said that it ended, and gave a heartbeat or began
    within `idle_seconds`."""
    last, ended = _last_heartbeat(run)
    return not ended and time.time() - last < idle_seconds


def _last_heartbeat(run: Folder) -> tuple[float, bool]:
    """Return when an attempt last began or gave a heartbeat, in seconds since 1970, and whether it ended then."""
    last = attempts.latest(run).last_heartbeat() or {"time": 0.0, "ended": ""}
    times = [entry for name in (run / ATTEMPTS).names() if (entry := _time(run / ATTEMPTS, name)) is not None]
    newest = max(times, default=0.0)
    return newest, bool(last["ended"]) and newest <= last["time"]


def delete_features(features: StoredFeatures, idle_seconds: float = IDLE_SECONDS) -> bool:
    """Delete trunk features unless they are in use, and return whether they are deleted."""
    cache, key = features.folder.parent, features.folder.name
    (cache / DELETING).make().write_json(f"{key}.json", {"time": time.time()})
    try:
        if user_of(features, idle_seconds):
            return False
        features.folder.delete("dataset.json")  # first: what is left after a kill is made again
        cache.delete(key)
        for name in (cache / USES).names():
            if name.startswith(f"{key}-"):
                (cache / USES).delete(name)
        return True
    finally:
        (cache / DELETING).delete(f"{key}.json")


def make_room(cache: Folder, needed: int, max_bytes: float, keep: set[str]) -> list[str]:
    """Delete the least recently used trunk features until those that are left and `needed` bytes fit into `max_bytes`.

    Return a line for each that is deleted, and one if those in use leave too little room.

    Args:
        keep: keys that are not deleted, such as those of this run.
    """
    stored = stored_features(cache)
    total = sum(features.bytes for features in stored)
    lines = []
    for features in stored:
        if total + needed <= max_bytes:
            break
        if features.folder.name in keep or user_of(features) or not delete_features(features):
            continue
        total -= features.bytes
        days = (time.time() - features.last_used) / 86400
        lines.append(
            f"trunk features {features.folder} ({format_bytes(features.bytes)}, last used {days:.1f} days ago) are "
            "deleted to keep the limit features.max_gb"
        )
    if total + needed > max_bytes:
        lines.append(
            f"trunk features take {format_bytes(total + needed)} in {cache}, more than the limit features.max_gb "
            f"({format_bytes(int(max_bytes))}): all others are in use"
        )
    return lines


def _time(folder: Folder, name: str) -> float | None:
    """Return when a use, deletion or attempt was written, in seconds since 1970; None if it cannot be read."""
    try:
        content = folder.read_json(name)
        return float(content["time"] if "time" in content else content["began"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
