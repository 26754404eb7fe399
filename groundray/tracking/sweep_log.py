"""The MLflow run of a sweep, the parent of its trials' runs; and what trials could not log in any tracker."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking import models
from groundray.tracking.protocol import MLFLOW, OpenLog, Status, openers, read_end
from groundray.tracking.store import CHILD_TAG, client_of, experiment_of, find_run, metric_name, one_line, reopen
from groundray.training import identity, layout
from groundray.training.identity import Identity

STATUSES: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED"}  # of a trial; any other was stopped


class SweepLog:
    """The MLflow run of a sweep, the parent of its trials' runs, if they are tracked there; other trackers hold the
    trials alone, in a group. What cannot be logged is reported as a warning, and logged at the sweep's end or when it
    resumes."""

    def __init__(
        self, settings: Settings, folder: Folder, sweep: Identity, known: Mapping[str, Any], warn: Callable[[str], None]
    ):
        """Find the MLflow run by the sweep's id, or create it with the parameters `known`."""
        self._settings, self._folder, self._known, self._warn = settings, folder, known, warn
        self._identity = sweep
        if settings.tracking.uses("mlflow"):
            with self._warned():
                self._open()

    def close(
        self,
        metrics: Mapping[str, float],
        files: Sequence[str],
        runs: Mapping[str, Status],
        finished: bool,
    ) -> None:
        """Log what the runs of the sweep could not, attach what came out of the sweep, and close its MLflow run.

        Args:
            files: names of files of the sweep's folder.
            runs: the status of each run that was started, by its folder's name in the sweep's.
        """
        repair = "rerun the same command with --resume to log the rest"
        for title, open_log in openers(self._settings).items():
            with self._warned(repair):
                opened = self._open() if title == MLFLOW else None
                for name, status in runs.items():
                    with self._warned(repair):  # a run that is damaged, or deleted in MLflow, spoils only itself
                        self._catch_up(title, open_log, self._folder / name, status)
                if opened:
                    self._close(*opened, metrics, files, finished)

    def register(self, trial: Folder, name: str, alias: str) -> str | None:
        """Register a trial's model (`models.register`) and return its version; None, with a warning, if that failed."""
        with self._warned():
            return models.register(self._settings, trial, name, alias)
        return None

    def _catch_up(self, title: str, open_log: OpenLog, folder: Folder, status: Status) -> None:
        """Log what a run of the sweep could not log itself in a tracker, and end it there."""
        run = identity.read(folder)
        if run is None:
            return
        run = identity.claim(folder, run.settings, run.fingerprints)  # a copy is not the run that it was copied from
        ended = self._ended_in_mlflow(run) if title == MLFLOW else read_end(folder, title, run)
        if ended == status:
            return
        tracking = self._settings.tracking.model_copy(update={"system_metrics": False})  # it does not run now
        own = run.settings.model_copy(update={"tracking": tracking})
        log = open_log(own, folder, run, self._identity.id)
        try:
            log.catch_up(folder, self._warn)
            log.end(layout.read_result(folder) if status == "FINISHED" else None, status, folder)
        finally:
            log.release()

    def _ended_in_mlflow(self, run: Identity) -> str | None:
        """Return FINISHED if MLflow has a finished run as a child of the sweep's."""
        client = client_of(self._settings)
        logged = find_run(client, self._settings, experiment_of(client, self._settings), run.id)
        done = client.get_run(logged) if logged else None
        return "FINISHED" if done and done.info.status == "FINISHED" and CHILD_TAG in done.data.tags else None

    def _close(
        self, client: Any, run_id: str, metrics: Mapping[str, float], files: Sequence[str], finished: bool
    ) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, metric_name(name), value)
        with tempfile.TemporaryDirectory() as local:
            for name in files:
                (Path(local) / name).write_bytes(self._folder.read_bytes(name))
            client.log_artifacts(run_id, local)
        client.set_terminated(run_id, "FINISHED" if finished else "KILLED")

    def _open(self) -> tuple[Any, str]:
        """Return MLflow's client, and the id of the sweep's MLflow run, which is created if it does not exist."""
        client = client_of(self._settings)
        experiment = experiment_of(client, self._settings)
        return client, reopen(
            client, experiment, self._settings, self._folder, self._identity, "groundray.sweep", self._known, {}
        )

    @contextlib.contextmanager
    def _warned(self, repair: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever tracking raises, the sweep continues
            later = f"; {repair}" if repair else ""
            self._warn(f"tracking failed, the sweep continues: {one_line(error)}{later}")
