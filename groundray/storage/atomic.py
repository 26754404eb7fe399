"""A folder that is there whole or not at all: written beside its place, and brought there when it is done."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from groundray.storage.folder import Folder

LEFT_SECONDS = 7 * 24 * 3600.0  # after which what lies aside in a store is of a process that was killed
ASIDE, BEGUN, BRINGING = ".writing", "begun.json", "bringing.json"


@contextlib.contextmanager
def atomic_folder(out: Folder, marker: str) -> Iterator[Folder]:
    """An empty folder to write to, which takes the place of `out` when the block ends without an exception.

    Until then `out` is as it was. What a killed process left beside it is cleared away by the next one.

    Args:
        marker: the name of files that say that what lies beside them is whole.

    Raises:
        OSError: nothing can be written there; before the block begins.
    """
    with _renamed(out) if out.local else _copied(out, marker) as aside:
        yield aside


def is_empty(out: Folder) -> bool:
    """Whether nothing is at a place, or only what a process that was killed has half brought there."""
    names = out.names()
    return not names or BRINGING in names


@contextlib.contextmanager
def _renamed(folder: Folder) -> Iterator[Folder]:
    out = Path(folder.path)
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}{ASIDE}-*"):
        if not _alive(left.name.rpartition("-")[2]):
            shutil.rmtree(left)
    aside = out.parent / f".{out.name}{ASIDE}-{os.getpid()}"
    aside.mkdir()
    try:
        yield Folder.at(aside)
        before = out.parent / f".{out.name}{ASIDE}-before-{os.getpid()}"
        if out.exists():
            out.rename(before)
        aside.rename(out)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _copied(out: Folder, marker: str) -> Iterator[Folder]:
    """In a store, which renames nothing: copied there within it, the files called `marker` after all others."""
    if "/" not in out.path:
        raise ValueError(f"expected a folder of the bucket, got the bucket itself: write to {out}/FOLDER")
    beside = out.parent / ASIDE
    for name in beside.names():
        if name.rpartition("-")[0] == out.name and _left(beside / name):
            beside.delete(name)
    aside = beside / f"{out.name}-{uuid.uuid4().hex[:8]}"
    aside.write_json(BEGUN, {"time": time.time()})
    try:
        yield aside
        new = [name for name in aside.files() if name != BEGUN]
        out.write_json(BRINGING, {"time": time.time()})
        for name in (*_called(marker, out.files()), *(name for name in out.names() if name != BRINGING)):
            out.delete(name)
        lasts = set(_called(marker, new))
        aside.copy([name for name in new if name not in lasts], out)
        aside.copy(sorted(lasts), out)
        out.delete(BRINGING)
    finally:
        aside.delete(".")


def _called(base: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name.rpartition("/")[2] == base]


def _left(aside: Folder) -> bool:
    """Whether nobody writes there any more."""
    try:
        return aside.read_json(BEGUN)["time"] < time.time() - LEFT_SECONDS
    except FileNotFoundError:  # it is the first to be written
        return True


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
