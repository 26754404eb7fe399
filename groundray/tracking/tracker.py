"""Tracks a training run: the driver's events go to MLflow, on a thread of their own.

A tracking server that is slow or down never delays or ends a training run. Its end waits as long as what is left is
being logged. The first failure is reported when it happens, and the number of events that could not be logged at the
end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking.mlflow_log import MlflowLog, Status
from groundray.tracking.store import MAX_METRICS, one_line
from groundray.training.events import Attempted, Event
from groundray.training.identity import Identity

FLUSH_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 60.0  # without progress
RELOG = "rerun the same command to log the rest"


class Tracker:
    """Logs a training run to MLflow; every method returns at once, except `close`."""

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
            parent: id of the sweep whose MLflow run is the parent. A run that has one does not log its model.
        """
        self._settings, self._folder, self._run, self._warn = settings, folder, run, warn
        self._parent = parent
        self._jobs: queue.Queue[Event | dict[str, Any] | None] = queue.Queue()
        self._lost = 0
        self._deadline = 0.0  # of the next progress
        self._thread = threading.Thread(target=self._work, name="groundray-tracking", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Log the metrics of an event."""
        self._jobs.put(event)

    def close(self, result: dict[str, Any] | None, status: Status = "FINISHED") -> None:
        """End the MLflow run. Waits until all is logged, as long as each CLOSE_TIMEOUT_SECONDS bring progress.

        A signal that interrupts the wait ends it with a warning.
        """
        self._jobs.put({"result": result, "status": status})
        self._jobs.put(None)
        self._progress()
        started, told = time.monotonic(), False
        try:
            while self._thread.is_alive() and (left := self._deadline - time.monotonic()) > 0:
                self._thread.join(min(left, CLOSE_TIMEOUT_SECONDS))
                if self._thread.is_alive() and not told and time.monotonic() - started >= CLOSE_TIMEOUT_SECONDS:
                    told = True
                    self._warn(f"tracking: still logging what the server lacks; Ctrl-C ends it, and {RELOG}")
        except KeyboardInterrupt:
            self._warn(f"tracking: stopped before all was logged; the run itself is complete, {RELOG}")
            return
        if self._thread.is_alive():
            self._warn(f"tracking: no answer within {CLOSE_TIMEOUT_SECONDS:.0f} s; the run itself is complete, {RELOG}")
        elif self._lost:
            self._warn(f"tracking: {self._lost} events could not be logged; the run itself is complete")

    def _progress(self, seconds: float = 0.0) -> None:
        """Note that there was progress, and that the next may take so many seconds more than CLOSE_TIMEOUT_SECONDS."""
        self._deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS + seconds

    def _work(self) -> None:
        log: MlflowLog | None = None
        closed = False
        while not closed:
            batch, closed = self._next_batch()
            try:
                opened = log is None
                log = log or MlflowLog.open(self._settings, self._folder, self._run, self._parent, self._progress)
                if opened or any(isinstance(job, dict | Attempted) for job in batch):  # events may be missing
                    log.catch_up(self._folder, self._warn)
                log.metrics([event for event in batch if not isinstance(event, dict)])
                for job in batch:
                    if isinstance(job, dict):
                        log.end(job["result"], job["status"], self._folder)
                        self._lost = 0
            except Exception as error:  # noqa: BLE001  whatever tracking raises, training continues
                if not self._lost:
                    self._warn(f"tracking failed, training continues: {one_line(error)}")
                self._lost += len(batch)
                log = None  # its MLflow run may have been deleted

    def _next_batch(self) -> tuple[list[Event | dict[str, Any]], bool]:
        """Return the jobs of the next FLUSH_SECONDS, and whether the queue is closed."""
        batch: list[Event | dict[str, Any]] = []
        until = time.monotonic() + FLUSH_SECONDS
        while (left := until - time.monotonic()) > 0 and len(batch) < MAX_METRICS:
            try:
                job = self._jobs.get(timeout=left)
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False
