"""Ends a worker that hangs, and leaves what each of its threads was doing in a file: `RUN/stacks/worker-1-TIME.txt`.

Where one hangs, the others wait for it. So it is to be the first that is ended, and only its stacks are told of:

    after `seconds`            a worker that is silent and does not wait for others, by itself
    a `grace` later            one in which no Python can run, by a thread of C
    1.5 graces later           one that is stopped as a whole, by Ray, from outside
    2 graces later             one that waits for others, by itself: it is the way between them that hangs
    3 graces later             a collective, by torch
"""

from __future__ import annotations

import contextlib
import faulthandler
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

LOOKS = 20  # within the time that a worker may be silent
REPORT_SECONDS = 30.0  # for which bringing the stacks to the run may take
GRACE_SECONDS = 60.0  # at most
EXIT_HUNG = 75


def grace(seconds: float) -> float:
    """How much later than a worker that may be silent for so many seconds others are ended, in seconds."""
    return min(GRACE_SECONDS, seconds)


class Watchdog:
    """Wants to hear from a worker at least once in so many seconds.

    Args:
        rank: of the worker.
        tell: is given what to say of it before the worker is ended.
        end: ends the process (a test does something else).
    """

    def __init__(
        self,
        seconds: float,
        run: Folder,
        rank: int,
        tell: Callable[[str], None],
        end: Callable[[], None] = lambda: os._exit(EXIT_HUNG),
    ):
        self._seconds, self._run, self._rank, self._tell, self._end = seconds, run, rank, tell, end
        self._heard, self._worker = time.monotonic(), threading.get_ident()
        self._over, self._reported = threading.Event(), threading.Event()
        self._stacks = tempfile.NamedTemporaryFile(prefix="groundray-stacks-", suffix=".txt")  # noqa: SIM115
        self._thread = threading.Thread(target=self._watch, name="groundray-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self) -> None:
        """Tell that the worker is at work, on the thread that calls this."""
        self._heard, self._worker = time.monotonic(), threading.get_ident()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()

    def _watch(self) -> None:
        late = grace(self._seconds)
        while not self._over.wait(self._seconds / LOOKS):
            # where some library holds the interpreter, no thread of it can look; this one is C's
            faulthandler.dump_traceback_later(self._seconds + late, exit=True, file=self._stacks)
            silent = time.monotonic() - self._heard
            if silent > self._seconds and (silent > self._seconds + 2 * late or not self._waits()):
                faulthandler.dump_traceback(self._stacks, all_threads=True)
                threading.Thread(target=self._report, name="groundray-stacks", daemon=True).start()
                self._reported.wait(REPORT_SECONDS)  # what hangs may be the storage, or the way to the driver
                self._end()
                return

    def _waits(self) -> bool:
        """Whether the worker is in a collective, in which it waits for others."""
        frame = sys._current_frames().get(self._worker)
        while frame and frame.f_code.co_filename != distributed.__file__:
            frame = frame.f_back
        return frame is not None

    def _report(self) -> None:
        """Bring the stacks to the run, and tell where they are."""
        where, file = f"{self._stacks.name} on its machine", f"worker-{self._rank}-{time.time():.0f}.txt"
        with contextlib.suppress(OSError):
            (self._run / STACKS).make().write_bytes(file, Path(self._stacks.name).read_bytes())
            where = f"{self._run / STACKS}/{file}"
        waits = ", waiting for others that it could not reach," if self._waits() else ""
        self._tell(
            f"worker {self._rank} gave no sign of life for {time.monotonic() - self._heard:.0f} s{waits} "
            f"(scaling.hang_minutes) and is ended; what it was doing is in {where}"
        )
        self._reported.set()


def stacks_since(run: Folder, then: float) -> list[str]:
    """The stacks that hung workers have left since some time, in seconds since 1970."""
    found = ((name, re.fullmatch(r"worker-\d+-(\d+)\.txt", name)) for name in (run / STACKS).names())
    return [name for name, parts in found if parts and int(parts[1]) >= int(then)]
