"""Atomic folders: a folder that is complete or absent. It is written beside its final path and then moved there.

On a filesystem, in the parent of the folder NAME:

    .NAME.writing-ID/owner.json    who writes it (owner.py)
    .NAME.writing-ID/new/          what is written
    .NAME.writing-ID/old/          what it replaces, from just before the move until just after it

A process that is killed during the move leaves the former folder in `old/`. Whoever looks for the folder next puts it
back. In a store, which cannot rename, files are copied instead:

    .writing/NAME-ID/owner.json, new/
    NAME/bringing-ID.json          from before the first file is replaced until after the last

There the next command completes the copy. Other names and other processes are left alone: ID is unique, and a folder
is only touched once its owner is known to have ended.
"""

from __future__ import annotations

import contextlib
import errno
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.fs as pafs

from groundray.storage import owner
from groundray.storage.folder import Folder, flush_files, flush_folder

# names that other processes look for
STAGING, NEW, OLD, MOVING = ".writing", "new", "old", "bringing"
WAIT_SECONDS = 2.0  # about, between looks at another process that moves files
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # a folder cannot be moved to a path that is in use


@contextlib.contextmanager
def atomic_folder(out: Folder, marker: str) -> Iterator[Folder]:
    """Yield an empty staging folder that replaces `out` when the block ends without an exception.

    Until then `out` is unchanged, and after an exception nothing is left behind. If another process writes an equal
    folder meanwhile and ends first, its folder stays.

    Args:
        marker: name of the files that mark the files beside them as complete. In a store they are copied last. Equal
            markers mean equal folders.

    Raises:
        FileExistsError: another process has written something else to `out` meanwhile.
        OSError: the staging folder cannot be created; raised before the block begins.
        ValueError: `out` is a whole bucket or disk; raised before the block begins.
    """
    out = _linked(out)
    if out.local and Path(out.path).is_mount():  # the system refuses to rename it, which only the end would show
        raise ValueError(f"expected a folder of the disk, got the disk mounted at {out}: write to {out}/FOLDER")
    recover(out, marker)
    with _renamed(out, marker) if out.local else _copied(out, marker) as staging:
        yield staging


def is_empty(out: Folder) -> bool:
    """Return True if a folder is empty or was only partly moved to its path by a killed process."""
    names = out.names()
    return not names or any(_is_moving(name) for name in names)


def recover(out: Folder, marker: str) -> None:
    """Repair what killed processes have left of `out`, and delete their staging folders.

    Raises:
        OSError: another process, which may be alive, moves files to `out`.
        ValueError: `out` is a whole bucket.
    """
    out = _linked(out)
    if not out.local:
        if "/" not in out.path:
            raise ValueError(f"expected a folder of the bucket, got the bucket itself: write to {out}/FOLDER")
        for work in _movers(out):
            if not owner.has_ended(work):
                raise OSError(
                    f"{out}: another command moves files there ({owner.describe(work)}): wait for it to end; if it was "
                    f"killed, rerun this command when its heartbeat is {owner.STALE_SECONDS / 60:.0f} minutes old"
                )
            _bring(work, out, marker)
    for work in _works(out):
        if owner.has_ended(work):
            if out.local:
                _put_back(work, out)
            _remove(work)


def find_missing(folder: Folder) -> str:
    """Put back a missing folder that a killed process has set aside, itself or a folder above it.

    Return where it is if it cannot be put back now, with the repair, or an empty string.
    """
    out = _linked(folder)
    while out.parent != out and out.parent.path:
        if out.local:
            for work in [] if Path(out.path).exists() else _works(out):
                kept = _kept(work)
                if not kept.exists():
                    continue
                with contextlib.suppress(OSError):
                    if owner.has_ended(work):
                        _put_back(work, out)
                        return ""
                return (
                    f"a command that replaces {out} ({owner.describe(work)}) has set it aside: wait for it to end, or "
                    f"if it was killed, move {kept} to {out}"
                )
        elif movers := _movers(out):
            (work, *_) = movers
            return (
                f"a command that moves files to {out} ({owner.describe(work)}) has not ended: wait for it, or if it "
                "was killed, rerun it"
            )
        out = out.parent
    return ""


def _linked(out: Folder) -> Folder:
    """Return the folder that a symbolic link leads to, so that it is replaced, on its own disk, and the link stays."""
    if out.local and Path(out.path).is_symlink():
        return Folder.at(Path(out.path).resolve())
    return out


@contextlib.contextmanager
def _renamed(folder: Folder, marker: str) -> Iterator[Folder]:
    out = Path(folder.path)
    made = [parent for parent in out.parents if not parent.exists()]
    before = _contents(folder, marker)
    work = out.parent / f".{out.name}{STAGING}-{uuid.uuid4().hex[:12]}"
    moved = False
    try:
        (work / NEW).mkdir(parents=True)
        with owner.owned(Folder.at(work)):
            yield Folder.at(work / NEW)
            flush_files(work / NEW)
            if not _is_written_by_another(folder, before, Folder.at(work / NEW), marker):
                _move(work, out)
                flush_folder(out.parent)
            moved = True
    finally:
        if not moved:
            _put_back(Folder.at(work), folder)  # after an exception between the two moves
        _to_the_end(lambda: _remove(Folder.at(work)))
        for parent in made:  # deepest first; not if something is in it
            with contextlib.suppress(OSError):
                parent.rmdir()


def _move(work: Path, out: Path) -> None:
    """Replace `out` by the new folder in `work`."""
    if not (work / NEW).exists():
        raise FileNotFoundError(f"{work} was deleted while this command wrote to it: rerun the same command")
    with contextlib.suppress(FileNotFoundError):
        out.rename(work / OLD)
    try:
        (work / NEW).rename(out)
    except OSError as error:
        if error.errno in TAKEN:
            raise _taken(str(out)) from None
        raise


def _put_back(work: Folder, folder: Folder) -> None:
    """Move the folder that was set aside in `work` back to its path, unless something is there."""
    out, kept = Path(folder.path), _kept(work)
    if not kept.exists() or (out.exists() and not out.is_dir()):
        return
    try:
        kept.rename(out)  # replaces an empty folder
    except OSError as error:
        if error.errno not in (*TAKEN, errno.ENOENT):  # another process was faster
            raise


def _kept(work: Folder) -> Path:
    """Return where a work folder keeps what it replaces. Earlier versions had a folder of its own for it."""
    path = Path(work.path)
    return path if f"{STAGING}-before-" in path.name else path / OLD


def _works(out: Folder) -> list[Folder]:
    """Return the work folders of processes that write `out`, or were killed while they did."""
    name, staging = re.escape(out.name), re.escape(STAGING)
    pattern = rf"\.{name}{staging}-(before-)?[0-9a-f]+" if out.local else rf"{name}-[0-9a-f]+"
    works = out.parent if out.local else out.parent / STAGING
    return [works / work for work in works.names() if re.fullmatch(pattern, work)]


@contextlib.contextmanager
def _copied(out: Folder, marker: str) -> Iterator[Folder]:
    """Stage in a store, which cannot rename: copy within it, the marker files after all others."""
    before = _contents(out, marker)
    work = out.parent / STAGING / f"{out.name}-{uuid.uuid4().hex[:12]}"
    moving = False
    try:
        with owner.owned(work):
            yield work / NEW
            while not moving and not _is_written_by_another(out, before, work / NEW, marker):
                # each writes that it moves and then looks for others, so of two at least one sees the other
                out.write_json(_moving(work), {"time": time.time()})
                moving = not _others(out, work)
                if not moving:
                    out.delete(_moving(work))
                    while _others(out, work):
                        time.sleep(WAIT_SECONDS * random.uniform(0.5, 1.5))
            if moving:
                _to_the_end(lambda: _bring(work, out, marker))
                moving = False
    finally:
        if not moving:  # else the next command completes the copy
            work.delete(".")


def _bring(work: Folder, out: Folder, marker: str) -> None:
    """Replace the files of `out` in a store by the new ones, a marker always after the files that it marks."""
    new = work / NEW
    names = new.files()
    markers = set(_named(marker, names))
    for name in (*_named(marker, out.files()), *(name for name in out.names() if name != _moving(work))):
        out.delete(name)
    new.copy([name for name in names if name not in markers], out)
    new.copy(sorted(markers), out)
    out.delete(_moving(work))


def _others(out: Folder, own: Folder) -> list[Folder]:
    """Return the work folders of other living processes that move files to `out`."""
    return [work for work in _movers(out) if work != own and not owner.has_ended(work)]


def _movers(out: Folder) -> list[Folder]:
    """Return the work folders from which files are moved to `out` in a store."""
    infos = out.filesystem.get_file_info(pafs.FileSelector(out.path, allow_not_found=True))
    moving = [info.base_name for info in infos if _is_moving(info.base_name)]
    works = [work for work in _works(out) if _moving(work) in moving] if moving else []
    return [work for work in works if work.files()]


def _moving(work: Folder) -> str:
    return f"{MOVING}-{work.name.rpartition('-')[2]}.json"


def _is_moving(name: str) -> bool:
    return re.fullmatch(rf"{MOVING}(-[0-9a-f]+)?\.json", name) is not None


def _to_the_end(work: Callable[[], None]) -> None:
    """Run a function that may be repeated; begin again after a first interrupt, which comes too late to undo it."""
    try:
        work()
    except KeyboardInterrupt:
        work()


def _contents(folder: Folder, marker: str) -> dict[str, bytes]:
    """Return the content of the marker files in a folder."""
    return {name: folder.read_bytes(name) for name in _named(marker, folder.files())}


def _is_written_by_another(out: Folder, before: dict[str, bytes], new: Folder, marker: str) -> bool:
    """Return True if another process has written to `out` what is in `new`.

    Raises:
        FileExistsError: it has written something else.
    """
    now = _contents(out, marker)
    if now == before:
        return False
    if now != _contents(new, marker):
        raise _taken(str(out))
    return True


def _taken(out: str) -> FileExistsError:
    return FileExistsError(
        f"{out}: another command has written something else there meanwhile, and that is kept: rerun this command "
        "with another folder, or to replace it"
    )


def _named(base: str, paths: Sequence[str]) -> list[str]:
    return [path for path in paths if path.rpartition("/")[2] == base]


def _remove(work: Folder) -> None:
    """Delete a work folder, which another process may delete at the same time."""
    if work.local:
        shutil.rmtree(work.path, ignore_errors=True)
    else:
        work.delete(".")
