"""Files that one of several processes makes, while the others wait for it.

    FOLDER/making/NAME-0001.json            claim: the process that makes NAME; a higher number takes over
    FOLDER/making/NAME-9f3a01cc/owner.json  heartbeat of a process that makes it, or waits to (storage/owner.py)

Both are deleted when it is made, and the folder `making` with the last of them. A process that is killed leaves its
claim. Another one that sees that it has ended claims the next number. What is made must be written whole or not at all:
a process that was suspended for longer than `owner.STALE_SECONDS` may go on beside the one that took over.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from groundray.storage import owner
from groundray.storage.folder import WRITING, Folder, not_writable
from groundray.storage.seals import Damaged

MAKING = "making"
WAIT_SECONDS = 1.0  # about, between looks at the process that makes it
Made = TypeVar("Made")


def made_once(
    folder: Folder,
    name: str,
    files: Sequence[str],
    read: Callable[[], Made],
    make: Callable[[], None],
    tell: Callable[[str], None],
) -> Made:
    """Return what `read` returns. Where it raises FileNotFoundError or Damaged, one process makes the files first.

    Args:
        folder: holds the files.
        name: of what is made, as part of a file's name.
        files: names of what `make` writes. What a killed process left of them under temporary names is deleted.
        read: reads them, or only checks that they are there.
        make: writes them.
        tell: is called with a line for the user about a damaged file, and before a wait.

    Raises:
        FileNotFoundError, Damaged: `read` raises it although the files were just made.
        OSError: the folder cannot be written to.
    """
    try:
        return read()
    except FileNotFoundError:
        pass
    except Damaged as error:
        tell(f"{error.file} is made again: {error.reason}")
    work, waited = folder / MAKING, False
    own = work / f"{name}-{uuid.uuid4().hex[:8]}"
    try:
        with owner.owned(_make(own, f"{folder}/{files[0]}")):
            while not _claim(work, name, own.name, tell):
                if not waited:
                    tell(f"waiting for the process that makes {folder}/{files[0]}")
                waited = True
                time.sleep(WAIT_SECONDS * random.uniform(0.5, 1.5))
            try:
                return read()  # the process that had the claim before may have made it
            except (FileNotFoundError, Damaged):
                _delete_unfinished(folder, files)
                make()
                return read()
    finally:
        _withdraw(work, name, own.name)


def _make(own: Folder, what: str) -> Folder:
    """Make the folder for a heartbeat, and return it.

    Args:
        what: the file that is to be made, for a message.

    Raises:
        OSError: the folder cannot be made.
    """
    try:
        return own.make()
    except FileNotFoundError:  # another process has ended and deleted `making`, which was empty
        return own.make()
    except OSError as error:
        raise not_writable(error, what) from None


def _claim(work: Folder, name: str, own: str, tell: Callable[[str], None]) -> bool:
    """Claim the making unless a process that has not ended has it, and return whether it is this process's now."""
    before = _holders(work, name)
    if before:
        holder = before[max(before)]
        try:
            if not owner.watch(work / holder, tell):
                return False
        except OSError:
            if work.exists(f"{holder}/{owner.OWNER}"):
                raise
            return False  # it was deleted while it was read
    claim = f"{name}-{max(before, default=0) + 1:04d}.json"
    if not work.create_sealed(claim, {"holder": own}):
        return False
    # another one may have claimed a lower number, after the process that had it before deleted its claim
    if set(_holders(work, name).values()) - {own, *before.values()}:
        work.delete(claim)
        return False
    return True


def _holders(work: Folder, name: str) -> dict[int, str]:
    """Return which process made each claim, by number: the name of the folder with its heartbeat."""
    holders = {}
    for each in work.names():
        number = each.removeprefix(f"{name}-").removesuffix(".json")
        if each == f"{name}-{number}.json" and number.isdecimal():
            try:
                holders[int(number)] = str(work.read_sealed(each)["holder"])
            except (Damaged, KeyError):
                holders[int(number)] = f"{name}-unknown"  # as one that has ended
            except OSError:
                if work.exists(each):
                    raise  # else it was withdrawn before or while it was read
    return holders


def _withdraw(work: Folder, name: str, own: str) -> None:
    """Delete the heartbeat of this process and its claim if it has one, with all that it took over."""
    holders = _holders(work, name)
    last = max((number for number, holder in holders.items() if holder == own), default=0)
    for number, holder in sorted(holders.items()):
        if number <= last:
            work.delete(holder)
            work.delete(f"{name}-{number:04d}.json")
    work.delete(own)
    if work.local:
        with contextlib.suppress(OSError):  # others make or wait, or have deleted it
            Path(work.path).rmdir()


def _delete_unfinished(folder: Folder, files: Sequence[str]) -> None:
    for name in folder.names():
        if name.endswith(WRITING) and name.startswith(tuple(f"{file}." for file in files)):
            folder.delete(name)
