"""Ends a worker that hangs, and writes what it was doing to `RUN/stacks/`.

    worker-1-TIME.txt     the stack traces of the threads of rank 1
    flight-GROUP/rank1    its last collectives, pickled by torch's flight recorder

When a worker hangs, the others wait for it, in a collective or, where collectives only enqueue work on a GPU, wherever
they next need a number from it. The one that hangs must be ended first, so that its stack traces are the ones that are
reported. It has begun fewer collectives than the others. Ranks tell each other their numbers (`Peers`); where they are
not known, or equal, a worker waits if its thread is in a collective.

    after `seconds`      a worker without heartbeat that does not wait for others is ended by its watchdog
    a `grace` later      one in which no Python can run: by a thread of C (faulthandler)
    1.5 graces later     one whose process is stopped: by Ray's health check
    2 graces later       one that waits for others: by its watchdog, since the network hangs
    3 graces later       the collective itself: by torch's timeout

Every worker without heartbeat writes its flight record shortly before `seconds`, as the others are killed at the end of
the first.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from groundray import distributed
from groundray.storage.folder import Folder
from groundray.training.layout import STACKS

CHECKS = 20  # within the heartbeat timeout
REPORT_SECONDS = 30.0  # maximum time to write the stack traces to the run's folder
RECORD_SECONDS = 5.0  # of these, to wait for a flight record
MAX_GRACE_SECONDS = 60.0
EXIT_HUNG = 75
STACKS_PREFIX = "groundray-stacks-"  # of a temporary file: then a hash of the run's folder, process and rank
RECORD_AT = 0.9  # of `seconds`
NAMED_RANKS = 3  # in a message
KEPT_SECONDS = 7 * 24 * 3600.0
LOCK_SECONDS = 60.0  # maximum time between the creation of a temporary file and its lock


def grace(seconds: float) -> float:
    """Returns the seconds between the steps of the module's table, for a heartbeat timeout of `seconds`."""
    return min(MAX_GRACE_SECONDS, seconds)


@dataclass(frozen=True)
class Peers:
    """What a worker knows of the other ranks of its group.

    Attributes:
        group: identifies the group among those of the run.
        exchange: publishes the number of collectives that this rank has begun, and returns the last number of each
            rank that has published one. It may fail, or take long.
        begun: counts the collectives (replaced in tests).
    """

    world_size: int
    group: str
    exchange: Callable[[int], Mapping[int, int]]
    begun: Callable[[], int] = distributed.collectives_begun


class Watchdog:
    """Ends a worker that gives no heartbeat for `seconds`.

    Args:
        run: the folder of the run.
        report: takes a message before the worker is ended.
        end: ends the process (replaced in tests).
        peers: the other ranks, if there are any.
    """

    def __init__(
        self,
        seconds: float,
        run: Folder,
        rank: int,
        report: Callable[[str], None],
        end: Callable[[], None] = lambda: os._exit(EXIT_HUNG),
        peers: Peers | None = None,
    ):
        self._seconds, self._run, self._rank, self._send_report, self._end = seconds, run, rank, report, end
        self._peers, self._begun_on = peers, dict[int, int]()
        self._last_heartbeat, self._worker = time.monotonic(), threading.get_ident()
        self._closed, self._reported = threading.Event(), threading.Event()
        rescue_stacks(run)
        prefix = f"{STACKS_PREFIX}{_key(run)}-{os.getpid()}-{rank}-"
        self._stacks = tempfile.NamedTemporaryFile(prefix=prefix, suffix=".txt")  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._stacks, fcntl.LOCK_EX)
        self._flight = Path(f"{self.flight_prefix}{rank}") if peers else None
        self._recording: threading.Thread | None = None
        if peers:
            threading.Thread(target=self._exchange, args=(peers,), name="groundray-peers", daemon=True).start()
        self._thread = threading.Thread(target=self._watch, name="groundray-watchdog", daemon=True)
        self._thread.start()

    @property
    def flight_prefix(self) -> str:
        """The path of the worker's temporary flight record without its rank, which torch appends."""
        group = self._peers.group if self._peers else ""
        return f"{self._stacks.name.removesuffix('.txt')}-{group}-rank"

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
        if time.monotonic() - self._last_heartbeat > RECORD_AT * self._seconds:
            self._keep_flight_record()  # the worker fails, since the one is ended that it waited for
        self._drop_flight_record()

    def _watch(self) -> None:
        extra = grace(self._seconds)
        while not self._closed.wait(self._seconds / CHECKS):
            # if a library holds the interpreter lock, only this timer, a thread of C, can end the process
            faulthandler.dump_traceback_later(self._seconds + extra, exit=True, file=self._stacks)
            silent = time.monotonic() - self._last_heartbeat
            if silent <= RECORD_AT * self._seconds:
                self._drop_flight_record()
            elif self._flight and not self._recording:
                # on a thread: the recorder may wait for what hangs
                self._recording = threading.Thread(target=self._record, args=(self._flight,), daemon=True)
                self._recording.start()
            if silent > self._seconds and (silent > self._seconds + 2 * extra or not self._waits()):
                self._write_stacks()
                threading.Thread(target=self._report, name="groundray-stacks", daemon=True).start()
                self._reported.wait(REPORT_SECONDS)  # the storage or the network may be what hangs
                self._end()
                return

    def _write_stacks(self) -> None:
        """Write the stack traces of the worker's thread, then of all: faulthandler stops at 100, newest first."""
        frame, calls = sys._current_frames().get(self._worker), []
        while frame:
            calls.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}\n')
            frame = frame.f_back
        self._stacks.write("".join(["Thread of the worker (most recent call first):\n", *calls, "\n"]).encode())
        self._stacks.flush()
        faulthandler.dump_traceback(self._stacks, all_threads=True)

    def _exchange(self, peers: Peers) -> None:
        """Tell the other ranks how many collectives this one has begun, and keep their numbers."""
        while True:
            with contextlib.suppress(Exception):  # numbers that are missing or old end no worker that works
                self._begun_on = dict(peers.exchange(peers.begun()))
            if self._closed.wait(self._seconds / CHECKS):
                return

    def _behind_and_ahead(self) -> tuple[list[int], list[int]]:
        """Returns the ranks that have begun fewer collectives than this one, and those that have begun more."""
        if not self._peers or not self._begun_on:
            return [], []
        own = self._peers.begun()
        begun = {rank: self._begun_on.get(rank, -1) for rank in range(self._peers.world_size) if rank != self._rank}
        return [rank for rank in begun if begun[rank] < own], [rank for rank in begun if begun[rank] > own]

    def _waits(self) -> bool:
        """True if the worker waits for other ranks, and is not the one that hangs."""
        behind, ahead = self._behind_and_ahead()
        return bool(behind) or (not ahead and self._in_collective())

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
        self._keep_flight_record()
        behind, ahead = self._behind_and_ahead()
        waits = f" while {_named(ahead)} waited for it" if ahead else ""
        if behind or (not ahead and self._in_collective()):
            waits = f" while it waited for {_named(behind) if behind else 'other workers'}"
        self._send_report(
            f"worker {self._rank} gave no heartbeat for {time.monotonic() - self._last_heartbeat:.0f} s{waits} "
            f"(scaling.hang_minutes) and is ended; its stack traces are in {where}"
        )
        self._reported.set()

    def _record(self, flight: Path) -> None:
        with contextlib.suppress(OSError):
            if record := distributed.flight_record():
                flight.write_bytes(record)

    def _keep_flight_record(self) -> None:
        if self._recording and self._flight:
            self._recording.join(RECORD_SECONDS)
            with contextlib.suppress(OSError):
                _move_flight_record(self._flight, self._run)

    def _drop_flight_record(self) -> None:
        """Delete the record of a worker that goes on."""
        if self._recording and self._flight and not self._recording.is_alive():
            self._flight.unlink(missing_ok=True)
            self._recording = None


def rescue_stacks(run: Folder) -> None:
    """Delete the temporary files of watchdogs whose process is dead, after moving stack traces and flight records of
    this run to its folder: a worker that a thread of C ended, or that was killed, could not do so itself."""
    pattern = rf"({STACKS_PREFIX}([0-9a-f]{{8}})-\d+-(\d+)-\w+)(?:\.txt|-\d+-rank\d+)"
    for file in Path(tempfile.gettempdir()).glob(f"{STACKS_PREFIX}*"):
        match = re.fullmatch(pattern, file.name)
        with contextlib.suppress(OSError):  # another user's, or another worker was faster
            if match is None:
                continue
            is_flight_record = file.suffix != ".txt"
            stacks = file.with_name(f"{match[1]}.txt")
            if (stacks.exists() and _is_locked(stacks)) if is_flight_record else is_watched(file):
                continue
            written = file.stat()
            if written.st_size and match[2] == _key(run):
                if is_flight_record:
                    _move_flight_record(file, run)
                    continue
                name = f"worker-{match[3]}-{written.st_mtime:.0f}.txt"
                (run / STACKS).make().write_bytes(name, file.read_bytes())
            elif written.st_size and time.time() - written.st_mtime < KEPT_SECONDS:
                continue  # its run may still start again
            file.unlink()


def _move_flight_record(file: Path, run: Folder) -> None:
    """Move a temporary flight record to the run's folder, where those of a group lie together."""
    *_, group, rank = file.name.split("-")
    record = file.read_bytes()
    (run / STACKS / f"flight-{group}").make().write_bytes(rank, record)
    file.unlink()


def _named(ranks: list[int]) -> str:
    """Returns ranks in words."""
    named = ", ".join(map(str, ranks[:NAMED_RANKS]))
    return f"worker{'s' * (len(ranks) > 1)} {named}{' and others' * (len(ranks) > NAMED_RANKS)}"


def is_watched(file: Path) -> bool:
    """Return True if the process of a watchdog's temporary file may be alive.

    The process holds a lock on its file, which the system releases when it ends. Its id tells less: ids are used again,
    and containers that share a temporary folder each count their own.

    Raises:
        OSError: the file cannot be opened or locked.
    """
    if _is_locked(file):
        return True
    written = file.stat()
    return not written.st_size and time.time() - written.st_mtime < LOCK_SECONDS


def _is_locked(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _key(run: Folder) -> str:
    return hashlib.sha256(str(run).encode()).hexdigest()[:8]


def stacks_since(run: Folder, since: float) -> list[str]:
    """Returns the files of stack traces that hung workers have written since a time, in seconds since 1970."""
    matches = ((name, re.fullmatch(r"worker-\d+-(\d+)\.txt", name)) for name in (run / STACKS).names())
    return [name for name, match in matches if match and int(match[1]) >= int(since)]
