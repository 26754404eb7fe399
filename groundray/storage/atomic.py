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

A folder that is written in parts has two files and a folder more beside `new/`. The next command that writes the same
content takes the work folder over, and goes on:

    content.json       what is written
    records/           which parts are whole; the caller's
    taken-OWNER.json   some process has taken over what OWNER has left
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
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from groundray.storage import owner
from groundray.storage.folder import Folder, flush_files, flush_folder

# names that other processes look for
STAGING, NEW, OLD, MOVING = ".writing", "new", "old", "bringing"
CONTENT, RECORDS, TAKEN_OVER = "content.json", "records", "taken"  # of a folder that is written in parts
WAIT_SECONDS = 2.0  # about, between looks at another process that moves files
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # a folder cannot be moved to a path that is in use


@dataclass(frozen=True)
class Staging:
    """A folder that is being written in parts.

    Attributes:
        new: what is written.
        records: says which parts of it are whole. An interrupted folder is kept if there is a record.
    """

    new: Folder
    records: Folder


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
    with _staged(out, marker, None) as work:
        yield work / NEW


@contextlib.contextmanager
def resumable_folder(
    out: Folder, marker: str, content: str, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Staging]:
    """Yield a staging folder as `atomic_folder` does, which may hold parts that an earlier process has written.

    It is kept when the process is killed, and when the block ends with an OSError or KeyboardInterrupt, if it has
    records. Of several processes that write the same content at once, one goes on with what is left.

    Args:
        content: identifies what is written. The same content has the same parts.
        tell: is called with a line for the user before a wait.

    Raises:
        OSError, ValueError: as of `atomic_folder`.
    """
    with _staged(out, marker, content, tell) as work:
        yield Staging((work / NEW).make(), (work / RECORDS).make())


@contextlib.contextmanager
def _staged(
    out: Folder, marker: str, content: str | None, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Folder]:
    """Yield a work folder."""
    out = _linked(out)
    if out.local and Path(out.path).is_mount():  # the system refuses to rename it, which only the end would show
        raise ValueError(f"expected a folder of the disk, got the disk mounted at {out}: write to {out}/FOLDER")
    recover(out, marker, content)
    work = (content and _take_over(out, content, tell)) or _new_work(out)
    with (_renamed if out.local else _copied)(out, marker, work, content):
        yield work


def is_empty(out: Folder) -> bool:
    """Return True if a folder is empty or was only partly moved to its path by a killed process."""
    names = out.names()
    return not names or any(_is_moving(name) for name in names)


def recover(out: Folder, marker: str, content: str | None = None) -> None:
    """Repair what killed processes have left of `out`, and delete their staging folders.

    Args:
        content: identifies the content whose staging folders are left to `resumable_folder`.

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
            _remove(work)
    for work in _works(out):
        if owner.has_ended(work):
            if out.local:
                _put_back(work, out)
            if content is None or not _is_resumable(work, content):
                _remove(work)


def _take_over(out: Folder, content: str, tell: Callable[[str], None]) -> Folder | None:
    """Return a work folder with parts of the content whose owner has ended, and that no other process takes over."""
    for work in _works(out):
        if _is_resumable(work, content) and owner.watch(work, tell):
            with contextlib.suppress(OSError):  # another process deletes it
                if work.create_sealed(f"{TAKEN_OVER}-{owner.identity(work)}.json", {"time": time.time()}):
                    return work
    return None


def _is_resumable(work: Folder, content: str) -> bool:
    """Return True if a work folder has parts of a content."""
    try:
        written = work.read_sealed(CONTENT)["content"]
    except (OSError, ValueError, KeyError):
        return False
    return written == content and bool((work / RECORDS).files())


def _new_work(out: Folder) -> Folder:
    id = uuid.uuid4().hex[:12]
    return out.parent / f".{out.name}{STAGING}-{id}" if out.local else out.parent / STAGING / f"{out.name}-{id}"


def _keep(work: Folder, content: str | None) -> bool:
    """Return True if another process may go on with a work folder, to which it is released."""
    if not content or not (work / RECORDS).files():
        return False
    with contextlib.suppress(OSError):  # without room, the end of this process is known all the same
        owner.release(work)
    return True


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
def _renamed(folder: Folder, marker: str, work: Folder, content: str | None) -> Iterator[None]:
    out, new = Path(folder.path), Path(work.path) / NEW
    made = [parent for parent in out.parents if not parent.exists()]
    before = _contents(folder, marker)
    moved = kept = False
    try:
        new.mkdir(parents=True, exist_ok=True)
        with owner.owned(work):
            if content:
                work.write_sealed(CONTENT, {"content": content})
            yield
            flush_files(new)
            if not _is_written_by_another(folder, before, work / NEW, marker):
                _move(Path(work.path), out)
                flush_folder(out.parent)
            moved = True
    except (KeyboardInterrupt, OSError):
        kept = _keep(work, content)
        raise
    finally:
        if not moved:
            _put_back(work, folder)  # after an exception between the two moves
        if not kept:
            _to_the_end(lambda: _remove(work))
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
def _copied(out: Folder, marker: str, work: Folder, content: str | None) -> Iterator[None]:
    """Stage in a store, which cannot rename: copy within it, the marker files after all others."""
    before = _contents(out, marker)
    moving = kept = False
    try:
        with owner.owned(work):
            if content:
                work.write_sealed(CONTENT, {"content": content})
            yield
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
    except (KeyboardInterrupt, OSError):
        kept = not moving and _keep(work, content)
        raise
    finally:
        if not moving and not kept:  # else the next command completes the copy
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
