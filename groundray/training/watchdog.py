"""Ends a worker that hangs, and writes the stack traces of its threads to `RUN/stacks/worker-1-TIME.txt`.

When a worker hangs, the others wait for it in a collective. The one that hangs must be ended first, so that its stack
traces are the ones that are reported:

    after `seconds`      a worker without heartbeat that is not in a collective is ended by its watchdog
    a `grace` later      one in which no Python can run: by a thread of C (faulthandler)
    1.5 graces later     one whose process is stopped: by Ray's health check
    2 graces later       one that waits in a collective: by its watchdog, since the network hangs
    3 graces later       the collective itself: by torch's timeout
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import hashlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from groundray import distributed
from groundray.storage.folder import Folder
from groundray.training.layout import STACKS

CHECKS = 20  # within the heartbeat timeout
REPORT_SECONDS = 30.0  # maximum time to write the stack traces to the run's folder
MAX_GRACE_SECONDS = 60.0
EXIT_HUNG = 75
STACKS_PREFIX = "groundray-stacks-"  # of a temporary file: then a hash of the run's folder, process and rank
KEPT_SECONDS = 7 * 24 * 3600.0
LOCK_SECONDS = 60.0  # maximum time between the creation of a temporary file and its lock


def grace(seconds: float) -> float:
    """Returns the seconds between the steps of the module's table, for a heartbeat timeout of `seconds`."""
    return min(MAX_GRACE_SECONDS, seconds)


class Watchdog:
    """Ends a worker that gives no heartbeat for `seconds`.

    Args:
        run: the folder of the run.
        report: takes a message before the worker is ended.
        end: ends the process (replaced in tests).
    """

    def __init__(
        self,
        seconds: float,
        run: Folder,
        rank: int,
        report: Callable[[str], None],
        end: Callable[[], None] = lambda: os._exit(EXIT_HUNG),
    ):
        self._seconds, self._run, self._rank, self._send_report, self._end = seconds, run, rank, report, end
        self._last_heartbeat, self._worker = time.monotonic(), threading.get_ident()
        self._closed, self._reported = threading.Event(), threading.Event()
        rescue_stacks(run)
        prefix = f"{STACKS_PREFIX}{_key(run)}-{os.getpid()}-{rank}-"
        self._stacks = tempfile.NamedTemporaryFile(prefix=prefix, suffix=".txt")  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._stacks, fcntl.LOCK_EX)
        self._thread = threading.Thread(target=self._watch, name="groundray-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self) -> None:
        """Record that the worker makes progress, on the calling thread."""
        self._last_heartbeat, self._worker = time.monotonic(), threading.get_ident()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(FileNotFoundError):  # it was moved to the run's folder
            self._stacks.close()

    def _watch(self) -> None:
        extra = grace(self._seconds)
        while not self._closed.wait(self._seconds / CHECKS):
            # if a library holds the interpreter lock, only this timer, a thread of C, can end the process
            faulthandler.dump_traceback_later(self._seconds + extra, exit=True, file=self._stacks)
            silent = time.monotonic() - self._last_heartbeat
            if silent > self._seconds and (silent > self._seconds + 2 * extra or not self._in_collective()):
                faulthandler.dump_traceback(self._stacks, all_threads=True)
                threading.Thread(target=self._report, name="groundray-stacks", daemon=True).start()
                self._reported.wait(REPORT_SECONDS)  # the storage or the network may be what hangs
                self._end()
                return

    def _in_collective(self) -> bool:
        """True if the worker's thread is in a collective, where it waits for other ranks."""
        frame = sys._current_frames().get(self._worker)
        while frame and frame.f_code.co_filename != distributed.__file__:
            frame = frame.f_back
        return frame is not None

    def _report(self) -> None:
        """Write the stack traces to the run's folder, and report where they are."""
        where, file = f"{self._stacks.name} on its machine", f"worker-{self._rank}-{time.time():.0f}.txt"
        with contextlib.suppress(OSError):
            (self._run / STACKS).make().write_bytes(file, Path(self._stacks.name).read_bytes())
            where = f"{self._run / STACKS}/{file}"
            Path(self._stacks.name).unlink()
        waits = " while it waited for other workers" if self._in_collective() else ""
        self._send_report(
            f"worker {self._rank} gave no heartbeat for {time.monotonic() - self._last_heartbeat:.0f} s{waits} "
            f"(scaling.hang_minutes) and is ended; its stack traces are in {where}"
        )
        self._reported.set()


def rescue_stacks(run: Folder) -> None:
    """Delete the temporary files of watchdogs whose process is dead, after moving stack traces of this run to its
    folder: a worker that a thread of C ended, or that was killed, could not do so itself."""
    pattern = rf"{STACKS_PREFIX}([0-9a-f]{{8}})-\d+-(\d+)-\w+\.txt"
    for file in Path(tempfile.gettempdir()).glob(f"{STACKS_PREFIX}*.txt"):
        match = re.fullmatch(pattern, file.name)
        with contextlib.suppress(OSError):  # another user's, or another worker was faster
            if match is None or is_watched(file):
                continue
            written = file.stat()
            if written.st_size and match[1] == _key(run):
                name = f"worker-{match[2]}-{written.st_mtime:.0f}.txt"
                (run / STACKS).make().write_bytes(name, file.read_bytes())
            elif written.st_size and time.time() - written.st_mtime < KEPT_SECONDS:
                continue  # its run may still start again
            file.unlink()


def is_watched(file: Path) -> bool:
    """Return True if the process of a watchdog's temporary file may be alive.

    The process holds a lock on its file, which the system releases when it ends. Its id tells less: ids are used again,
    and containers that share a temporary folder each count their own.

    Raises:
        OSError: the file cannot be opened or locked.
    """
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        written = os.fstat(opened.fileno())
    return not written.st_size and time.time() - written.st_mtime < LOCK_SECONDS


def _key(run: Folder) -> str:
    return hashlib.sha256(str(run).encode()).hexdigest()[:8]


def stacks_since(run: Folder, since: float) -> list[str]:
    """Returns the files of stack traces that hung workers have written since a time, in seconds since 1970."""
    matches = ((name, re.fullmatch(r"worker-\d+-(\d+)\.txt", name)) for name in (run / STACKS).names())
    return [name for name, match in matches if match and int(match[1]) >= int(since)]
