"""Tracks a training run: the driver's events go to each tracker of the settings, on a thread of its own.

A tracker that is slow or down delays neither training nor another tracker, and ends nothing. The end waits as long as
what is left is being logged. The first failure of a tracker is reported when it happens, and the number of events that
could not be logged at the end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking.protocol import MAX_EVENTS, RunLog, Status, openers
from groundray.tracking.store import one_line
from groundray.training.events import Attempted, Event
from groundray.training.identity import Identity

FLUSH_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 60.0  # without progress
RELOG = "rerun the same command to log the rest"


class Tracker:
    """Logs a training run to all its trackers; every method returns at once, except `close`."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        run: Identity,
        warn: Callable[[str], None],
        parent: str | None = None,
    ):
        """Start to track the run in a folder.

        Args:
            run: the run's identity.
            warn: takes a line for each problem.
            parent: id of the sweep that the run is part of. A run that has one does not log its model.
        """
        self._warn = warn
        self._threads = [
            _LogThread(
                title, lambda progress, opened=opened: opened(settings, folder, run, parent, progress), folder, warn
            )
            for title, opened in openers(settings).items()
        ]

    def observe(self, event: Event) -> None:
        """Log the metrics of an event."""
        for thread in self._threads:
            thread.put(event)

    def close(self, result: dict[str, Any] | None, status: Status = "FINISHED") -> None:
        """End the run in all trackers. Waits until all is logged, as long as each CLOSE_TIMEOUT_SECONDS bring progress.

        A signal that interrupts the wait ends it with a warning.
        """
        for thread in self._threads:
            thread.end(result, status)
        try:
            for thread in self._threads:
                thread.wait()
        except KeyboardInterrupt:
            for thread in self._threads:
                thread.report_if_alive("stopped before all was logged")


class _LogThread:
    """Logs events to one tracker, on a thread."""

    def __init__(
        self,
        title: str,
        open_log: Callable[[Callable[[float], None]], RunLog],
        folder: Folder,
        warn: Callable[[str], None],
    ):
        """Start to log the run in a folder.

        Args:
            title: of the tracker, for messages.
            open_log: opens the log, and takes what the log calls where there is progress.
        """
        self._title = title
        self._open_log, self._folder, self._warn = open_log, folder, warn
        self._jobs: queue.Queue[Event | dict[str, Any] | None] = queue.Queue()
        self._lost = 0
        self._deadline = 0.0  # of the next progress
        self._thread = threading.Thread(target=self._work, name=f"groundray-tracking-{title}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        self._jobs.put(event)

    def end(self, result: dict[str, Any] | None, status: Status) -> None:
        """End the run when all events are logged, and then the thread."""
        self._jobs.put({"result": result, "status": status})
        self._jobs.put(None)
        self._progress()

    def wait(self) -> None:
        """Wait for the end, as long as there is progress, and report what is not logged then."""
        started, told = time.monotonic(), False
        while self._thread.is_alive() and (left := self._deadline - time.monotonic()) > 0:
            self._thread.join(min(left, CLOSE_TIMEOUT_SECONDS))
            if self._thread.is_alive() and not told and time.monotonic() - started >= CLOSE_TIMEOUT_SECONDS:
                told = True
                self._warn(f"tracking in {self._title}: still logging what is missing; Ctrl-C ends it, and {RELOG}")
        self.report_if_alive(f"no answer within {CLOSE_TIMEOUT_SECONDS:.0f} s")
        if self._lost and not self._thread.is_alive():
            self._warn(
                f"tracking in {self._title}: {self._lost} events could not be logged; the run itself is complete"
            )

    def report_if_alive(self, problem: str) -> None:
        if self._thread.is_alive():
            self._warn(f"tracking in {self._title}: {problem}; the run itself is complete, {RELOG}")

    def _progress(self, seconds: float = 0.0) -> None:
        """Note that there was progress, and that the next may take so many seconds more than CLOSE_TIMEOUT_SECONDS."""
        self._deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS + seconds

    def _work(self) -> None:
        log: RunLog | None = None
        closed = False
        while not closed:
            batch, closed = self._next_batch()
            try:
                opened = log is None
                log = log or self._open_log(self._progress)
                if opened or any(isinstance(job, dict | Attempted) for job in batch):  # events may be missing
                    log.catch_up(self._folder, self._warn)
                log.metrics([event for event in batch if not isinstance(event, dict)])
                for job in batch:
                    if isinstance(job, dict):
                        log.end(job["result"], job["status"], self._folder)
                        self._lost = 0
            except (Exception, SystemExit) as error:  # noqa: BLE001  whatever tracking raises, training continues
                if not self._lost:
                    self._warn(f"tracking failed, training continues: {self._title}: {one_line(error)}")
                self._lost += len(batch)
                if log:
                    log.release()
                log = None  # its run may have been deleted
        if log:
            log.release()

    def _next_batch(self) -> tuple[list[Event | dict[str, Any]], bool]:
        """Return the jobs of the next FLUSH_SECONDS, and whether the queue is closed."""
        batch: list[Event | dict[str, Any]] = []
        until = time.monotonic() + FLUSH_SECONDS
        while (left := until - time.monotonic()) > 0 and len(batch) < MAX_EVENTS:
            try:
                job = self._jobs.get(timeout=left)
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False
