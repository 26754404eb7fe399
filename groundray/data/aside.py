"""A folder that is there whole or not at all: written beside its place, and renamed when it is done."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `out` when the block ends without an exception.

    Until then `out` is as it was. What a killed process left beside it is cleared away by the next one.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.writing-*"):
        if not _alive(left.name.rpartition("-")[2]):
            shutil.rmtree(left)
    aside = out.parent / f".{out.name}.writing-{os.getpid()}"
    aside.mkdir()
    try:
        yield aside
        before = out.parent / f".{out.name}.writing-before-{os.getpid()}"
        if out.exists():
            out.rename(before)
        aside.rename(out)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
