"""What runs, features, indexes and caches take on a disk or in a store, and which of it may be deleted.

Deleted may be what no active process uses and what a command makes again: never a model, a result, a history, a data
set, or a checkpoint that a run needs to resume.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from groundray.data.schema import INDEX
from groundray.storage import atomic, owner
from groundray.storage.folder import WRITING, Folder
from groundray.training import attempts, feature_uses
from groundray.training.checkpoint import MANIFEST, CheckpointStore, OtherFormat
from groundray.training.feature_uses import StoredFeatures, is_active, user_of
from groundray.training.layout import (
    ATTEMPTS,
    CHECKPOINTS,
    CONFIG,
    DRAWN_DATA,
    FEATURES,
    NOT_FINITE,
    RUN,
    STACKS,
    START_MODELS,
    is_complete,
)
from groundray.training.watchdog import STACKS_PREFIX, is_watched

RAY = "ray"  # a run's folder of Ray Train's state: runtime/train/launch.py
TEMPORARY_SECONDS = 24 * 3600.0  # a file under a temporary name has no owner; writing one takes less


@dataclass(frozen=True)
class Item:
    """Files that are kept or deleted together.

    Attributes:
        kind: one of the kinds that `python -m groundray.clean --help` describes.
        folder: what holds them.
        names: files or folders in `folder`.
        bytes: their size.
        last_used: when they were last written or used, in seconds since 1970.
        kept: why they are not deleted, in a few words; empty if they may be.
        run: the run that they belong to, None if to none.
        features: the trunk features that they are, None if they are none.
    """

    kind: str
    folder: Folder
    names: tuple[str, ...]
    bytes: int
    last_used: float
    kept: str = ""
    run: Folder | None = None
    features: StoredFeatures | None = None

    @property
    def path(self) -> str:
        if len(self.names) == 1:
            return f"{self.folder}/{self.names[0]}".removesuffix("/.")
        return f"{self.folder} ({len(self.names)})"

    def delete(self, idle_seconds: float) -> bool:
        """Delete the files unless they are in use by now, and return whether they are deleted."""
        if self.kept:
            raise ValueError(f"{self.path}: expected something that may be deleted, got what is kept: {self.kept}")
        if self.features:
            return feature_uses.delete_features(self.features, idle_seconds)
        if self.run and is_active(self.run, idle_seconds):
            return False
        if self.kind in ("index", "models") and self._written() > self.last_used:  # a search has marked it meanwhile
            return False
        # what describes other files first, so that nothing incomplete counts as complete
        for name in self.names:
            for first in (INDEX, MANIFEST):
                self.folder.delete(f"{name}/{first}")
            self.folder.delete(name)
        return True

    def _written(self) -> float:
        """Return when the files were last written, in seconds since 1970; 0 if they are gone."""
        return max((time for name in self.names for time in _Files.of(self.folder / name).times.values()), default=0.0)


@dataclass
class _Files:
    """The files below a folder, by name, with their sizes and times."""

    folder: Folder
    sizes: dict[str, int]
    times: dict[str, float]

    @staticmethod
    def of(folder: Folder) -> _Files:
        selector = pafs.FileSelector(folder.path, allow_not_found=True, recursive=True)
        with folder.readable_errors():
            infos = [info for info in folder.filesystem.get_file_info(selector) if info.is_file]
        names = {posixpath.relpath(info.path, folder.path): info for info in infos}
        return _Files(
            folder,
            {name: info.size for name, info in names.items()},
            {name: (info.mtime_ns or 0) / 1e9 for name, info in names.items()},
        )

    def take(self, prefix: str) -> _Files:
        """Remove the files of a folder, or one file, and return them."""
        names = [name for name in self.sizes if name == prefix or prefix == "." or name.startswith(f"{prefix}/")]
        return _Files(
            self.folder, {name: self.sizes.pop(name) for name in names}, {name: self.times.pop(name) for name in names}
        )

    def item(
        self, kind: str, folder: Folder, names: tuple[str, ...], kept: str = "", run: Folder | None = None
    ) -> Item:
        return Item(kind, folder, names, sum(self.sizes.values()), max(self.times.values(), default=0.0), kept, run)


def find_items(
    folder: Folder, features: Folder | None = None, idle_seconds: float = feature_uses.IDLE_SECONDS
) -> list[Item]:
    """Return what is in a folder of runs or data sets, the largest first. Lists the folder once.

    Args:
        features: the trunk features of its runs, if they are elsewhere.
        idle_seconds: time after its last heartbeat for which a run counts as active.
    """
    files = _Files.of(folder)
    items = list(_temporary(files))
    folders = {posixpath.dirname(name) or "." for name in files.sizes if posixpath.basename(name) in (RUN, CONFIG)}
    runs = sorted(name for name in folders if _is_run(files, name))
    items += _features(folder / FEATURES, idle_seconds)
    files.take(FEATURES)
    if features:
        items += _features(features, idle_seconds)
    if (models := files.take(START_MODELS)).sizes:
        items.append(models.item("models", folder, (START_MODELS,), "runs start from them"))
    if (drawn := files.take(DRAWN_DATA)).sizes:
        items.append(drawn.item("data", folder, (DRAWN_DATA,), "data sets are never deleted"))
    for name in runs:
        items += _run(folder / name, _below(files.take(name), folder, name), idle_seconds)
    for name in sorted(name for name in files.sizes if posixpath.basename(name) == INDEX):
        at = posixpath.dirname(name) or "."
        if rest := files.take(at):
            items.append(rest.item("data", folder, (at,), "data sets are never deleted"))
    if files.sizes:
        names = tuple(sorted({name.partition("/")[0] for name in files.sizes}))
        items.append(files.item("other", folder, names, "not of groundray"))
    return sorted((item for item in items if item.bytes or item.kind == "temporary"), key=lambda item: -item.bytes)


def find_cached(cache: Folder, idle_seconds: float = feature_uses.IDLE_SECONDS) -> list[Item]:
    """Return what commands keep in a cache: the vectors of words (analysis/inputs/vector_cache.py), downloaded models
    (tracking/model_uris.py) and their indexes."""
    items = []
    for name, kind in {"embeddings": "vectors", "models": "models", "index": "index"}.items():
        if (files := _Files.of(cache / name)).sizes:
            lately = kind != "vectors" and time.time() - max(files.times.values()) < idle_seconds
            items.append(files.item(kind, cache, (name,), "used lately" if lately else ""))
    return items


def find_stack_files() -> list[Item]:
    """Return the stack trace files in this machine's temporary folder whose processes are dead."""
    items = []
    for path in Path(tempfile.gettempdir()).glob(f"{STACKS_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or deleted meanwhile
            written = path.stat()
            if time.time() - written.st_mtime > TEMPORARY_SECONDS and not is_watched(path):
                items.append(Item("stacks", Folder.at(path.parent), (path.name,), written.st_size, written.st_mtime))
    return items


def _is_run(files: _Files, name: str) -> bool:
    """Return True if a folder is a run's. Other programs have a `config.yaml` and folders of the same names too."""
    inside = "" if name == "." else f"{name}/"
    return any(re.fullmatch(rf"{re.escape(inside + ATTEMPTS)}/{attempts.TOKEN}\.json", file) for file in files.sizes)


def _below(files: _Files, folder: Folder, name: str) -> _Files:
    """Return files with names that begin in a folder inside."""
    if name == ".":
        return files
    cut = len(name) + 1
    return _Files(
        folder / name,
        {file[cut:]: size for file, size in files.sizes.items()},
        {file[cut:]: written for file, written in files.times.items()},
    )


def _run(run: Folder, files: _Files, idle_seconds: float) -> Iterator[Item]:
    complete, active = is_complete(run), is_active(run, idle_seconds)
    kept = "the run is active" if active else "" if complete else "needed to resume the run"
    try:
        needed = _needed(run, files) if complete else {}
        dead = {} if active else _superseded(run, files)
    except OtherFormat:
        needed, dead, kept = {}, {}, "of another version of groundray"
    for (parent, name), size in dead.items():
        rest = files.take(f"{parent}/{name}")
        yield Item("attempts", run / parent, (name,), size, max(rest.times.values(), default=0.0), "", run)
    names = {name.split("/")[1] for name in files.sizes if name.startswith(f"{CHECKPOINTS}/")}
    for name in sorted(names):
        reason = kept or needed.get(name, "")
        yield files.take(f"{CHECKPOINTS}/{name}").item("checkpoints", run / CHECKPOINTS, (name,), reason, run)
    for kind, folder, reason in (
        ("state", RAY, kept),
        ("stacks", STACKS, "the run is active" if active else ""),
        ("stacks", NOT_FINITE, "the run is active" if active else ""),
    ):
        if (part := files.take(folder)).sizes:
            yield part.item(kind, run, (folder,), reason, run)
    for name in sorted({posixpath.dirname(name) for name in files.sizes if re.fullmatch(r"index/\w+/.+", name)}):
        part = files.take(name)
        used = max(part.times.values(), default=0.0)
        reason = "used lately" if time.time() - used < idle_seconds else ""
        yield part.item("index", run, (name,), reason)
    yield files.item("results", run, (".",), "models and results are never deleted", run)


def _superseded(run: Folder, files: _Files) -> dict[tuple[str, str], int]:
    """Return the checkpoints that the newest attempt of a run does not build on, with their sizes.

    Histories stay: they are the run's record, of steps that were repeated too.
    """
    newest = attempts.latest(run)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    if newest.number:
        for file, size in files.sizes.items():
            parent, _, name = file.partition("/")
            name = name.partition("/")[0]
            if parent == CHECKPOINTS and attempts.token_of(name).number >= 0 and not newest.accepts(name):
                sizes[parent, name] += size
    return sizes


def _needed(run: Folder, files: _Files) -> dict[str, str]:
    """Return the names of checkpoints of a complete run that stay, each with the reason in a few words."""
    store, best = CheckpointStore.at(run), "the best of its stage"
    needed: dict[str, str] = {}
    for file in files.sizes:
        if record := re.fullmatch(rf"{CHECKPOINTS}/((\w+)-done-.+)", file):
            name, stage = record.groups()
            needed |= {one.name: "kept by checkpoints.keep_every" for one in store.committed(stage) if one.kept}
            needed |= {name: best, **({finished.best: best} if (finished := store.finished(stage)) else {})}
    return needed


def _features(cache: Folder, idle_seconds: float) -> Iterator[Item]:
    for stored in feature_uses.stored_features(cache):
        kept = user_of(stored, idle_seconds)
        yield Item("features", cache, (stored.folder.name,), stored.bytes, stored.last_used, kept, None, stored)


def _temporary(files: _Files) -> Iterator[Item]:
    """Take the staging folders and the files under temporary names, and yield them."""
    staging = re.compile(
        rf"((?:.*/)?(?:\..+{re.escape(atomic.STAGING)}-(?:before-)?[0-9a-f]+|\.writing/.+-[0-9a-f]+))/.*"
    )
    works = sorted({match[1] for name in files.sizes if (match := staging.fullmatch(name))})
    for name in works:
        work = files.folder / name
        part = files.take(name)
        if not part.sizes:
            continue
        kept = "" if owner.has_ended(work) else f"in use by {owner.describe(work)}"
        if not kept and any(f"/{atomic.OLD}/" in file for file in part.sizes):
            kept = "holds a folder that was set aside: rerun the command that replaces it"
        yield part.item("temporary", files.folder, (name,), kept)
    for name in [name for name in files.sizes if re.search(rf"\.[0-9a-f]{{8}}{re.escape(WRITING)}$", name)]:
        part = files.take(name)
        kept = "" if time.time() - max(part.times.values()) > TEMPORARY_SECONDS else "being written"
        yield part.item("temporary", files.folder, (name,), kept)
