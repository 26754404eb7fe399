"""Atomic folders: a folder that is complete or absent. It is written beside its final path and then moved there."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from groundray.storage.folder import Folder, flush_files, flush_folder

STALE_SECONDS = 7 * 24 * 3600.0  # a staging folder in a store that is older than this belongs to a killed process
# names in stores; other processes look for them
STAGING, BEGUN, MOVING = ".writing", "begun.json", "bringing.json"


@contextlib.contextmanager
def atomic_folder(out: Folder, marker: str) -> Iterator[Folder]:
    """Yield an empty staging folder that replaces `out` when the block ends without an exception.

    Until then `out` is unchanged. Staging folders of killed processes are deleted by the next process.

    Args:
        marker: name of the files that mark the files beside them as complete. In a store they are copied last.

    Raises:
        OSError: the staging folder cannot be created; raised before the block begins.
    """
    with _renamed(out) if out.local else _copied(out, marker) as staging:
        yield staging


def is_empty(out: Folder) -> bool:
    """Return True if a folder is empty or was only partly moved to its path by a killed process."""
    names = out.names()
    return not names or MOVING in names


@contextlib.contextmanager
def _renamed(folder: Folder) -> Iterator[Folder]:
    out = Path(folder.path)
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(f".{out.name}{STAGING}-*"):
        if not _is_running(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale)
    staging = out.parent / f".{out.name}{STAGING}-{os.getpid()}"
    staging.mkdir()
    try:
        yield Folder.at(staging)
        flush_files(staging)
        replaced = out.parent / f".{out.name}{STAGING}-before-{os.getpid()}"
        if out.exists():
            out.rename(replaced)
        staging.rename(out)
        flush_folder(out.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _copied(out: Folder, marker: str) -> Iterator[Folder]:
    """Stage in a store, which cannot rename: copy within it, the marker files after all others."""
    if "/" not in out.path:
        raise ValueError(f"expected a folder of the bucket, got the bucket itself: write to {out}/FOLDER")
    stagings = out.parent / STAGING
    for name in stagings.names():
        if name.rpartition("-")[0] == out.name and _is_stale(stagings / name):
            stagings.delete(name)
    staging = stagings / f"{out.name}-{uuid.uuid4().hex[:8]}"
    staging.write_json(BEGUN, {"time": time.time()})
    try:
        yield staging
        new = [name for name in staging.files() if name != BEGUN]
        out.write_json(MOVING, {"time": time.time()})
        for name in (*_named(marker, out.files()), *(name for name in out.names() if name != MOVING)):
            out.delete(name)
        markers = set(_named(marker, new))
        staging.copy([name for name in new if name not in markers], out)
        staging.copy(sorted(markers), out)
        out.delete(MOVING)
    finally:
        staging.delete(".")


def _named(base: str, paths: Sequence[str]) -> list[str]:
    return [path for path in paths if path.rpartition("/")[2] == base]


def _is_stale(staging: Folder) -> bool:
    try:
        return staging.read_json(BEGUN)["time"] < time.time() - STALE_SECONDS
    except FileNotFoundError:  # the first file to be written
        return True


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
