"""Owners of temporary folders: which process writes a folder, and whether that process has ended.

    FOLDER/owner.json    host, process and start time of the owner, and its last heartbeat

A folder may be deleted, or what it holds put back, only when its owner is known to have ended: its process is gone from
this machine, or its last heartbeat is older than STALE_SECONDS. Process ids alone are no identity: pods and containers
each count their own from 1, and a machine uses them again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs

from groundray.storage.folder import Folder

OWNER = "owner.json"
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 15 * 60.0  # 30 heartbeats; more than clocks of machines differ
WATCH_SECONDS = 4 * HEARTBEAT_SECONDS  # without a heartbeat, by this machine's clock
LOOK_SECONDS = 5.0  # between looks at a heartbeat


@contextlib.contextmanager
def owned(folder: Folder) -> Iterator[None]:
    """Own a folder inside the context: write who owns it, and a heartbeat every 30 seconds in a thread."""
    identity = {**_machine(), "process": os.getpid(), "started": _started(os.getpid()), "id": uuid.uuid4().hex[:12]}
    folder.write_json(OWNER, identity | {"time": time.time()})
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # code that needs the storage raises its own error
                folder.write_json(OWNER, identity | {"time": time.time()})

    thread = threading.Thread(target=beat, name="groundray-owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def release(folder: Folder) -> None:
    """Write that the owner of a folder, this process, has ended with it."""
    folder.write_json(OWNER, folder.read_json(OWNER) | {"released": True})


def has_ended(folder: Folder) -> bool:
    """Return True if the owner of a folder is known to have ended.

    A folder without a readable owner is judged by the newest of its files.
    """
    owner = _read(folder)
    if owner is None:
        return time.time() - _newest(folder) > STALE_SECONDS
    if owner.get("released"):
        return True
    if _is_visible(owner):
        return _started(owner["process"]) != owner["started"]
    return time.time() - float(owner["time"]) > STALE_SECONDS


def watch(folder: Folder, tell: Callable[[str], None]) -> bool:
    """Return True if the owner of a folder has ended. Only the heartbeat of a process on another machine can be
    seen: it is watched until the next heartbeat, or for WATCH_SECONDS.

    Args:
        tell: is called with a line for the user before a wait.
    """
    if has_ended(folder):
        return True
    before = _read(folder)
    if before is None or _is_visible(before):
        return False
    tell(f"{folder} was written by {describe(folder)}: waiting up to {WATCH_SECONDS:.0f} s to see whether it has ended")
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        if _read(folder) != before:
            return has_ended(folder)
    return True


def identity(folder: Folder) -> str:
    """Return an id of a folder's owner: of a process and the time since it owns the folder."""
    return str((_read(folder) or {}).get("id", "unknown"))


def describe(folder: Folder) -> str:
    """Return the owner of a folder in a few words, for messages."""
    owner = _read(folder)
    if owner is None:
        return "an unknown process"
    age = max(0.0, time.time() - float(owner["time"]))
    return f"process {owner['process']} on {owner['host']}, last heartbeat {age:.0f} s ago"


def _read(folder: Folder) -> dict[str, Any] | None:
    try:
        owner = folder.read_json(OWNER)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    kinds = {"host": str, "process": int, "started": float, "time": float}
    fits = isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in kinds.items())
    return owner if fits else None


def _is_visible(owner: dict[str, Any]) -> bool:
    """Return True if an owner is, or was, a process of this machine that this process may see."""
    here = all(owner.get(name) == value for name, value in _machine().items())
    return here and not _is_hidden(owner["process"])


def _machine() -> dict[str, str]:
    """Return what tells machines, and containers that count processes for themselves, apart."""
    identity = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):  # Linux only
        identity["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity["namespace"] = str(Path("/proc/self/ns/pid").readlink())
    return identity


def _is_hidden(process: int) -> bool:
    """Return True if a process of another user lives, and its start cannot be read: /proc mounted with `hidepid`."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return not os.access(f"/proc/{process}/stat", os.R_OK)
    except (ProcessLookupError, OverflowError):
        pass
    return False


def _started(process: int) -> float | None:
    """Return when a process of this machine started, in a unit that is the machine's own; None if it has ended."""
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else float(numbers[18])  # in ticks since boot: clocks may be set
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        return psutil.Process(process).create_time()
    except psutil.NoSuchProcess:
        return None


def _newest(folder: Folder) -> float:
    """Return the time of the newest file in a folder, or of the folder, in seconds since 1970; 0 if it is gone."""
    selector = pafs.FileSelector(folder.path, allow_not_found=True, recursive=True)
    infos = [*folder.filesystem.get_file_info(selector), folder.filesystem.get_file_info(folder.path)]
    return max((info.mtime_ns / 1e9 for info in infos if info.mtime_ns), default=0.0)
